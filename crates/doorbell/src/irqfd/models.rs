//! The protocols of bindings and resampling under every schedule that loom finds.
