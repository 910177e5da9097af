//! Versioned save and restore of every station.
