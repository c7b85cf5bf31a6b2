//! Room `ship`.
