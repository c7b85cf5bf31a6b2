//! Room `sql`.
