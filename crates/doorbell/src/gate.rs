//! Mask, unmask and pending of a GSI, whatever its source.
