//! Eventfds as interrupt sources, the dispatcher that watches them, and resampling.
