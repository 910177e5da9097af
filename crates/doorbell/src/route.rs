//! The GSI routing table and its policies.
