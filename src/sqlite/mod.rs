//! Room `sqlite`.
