//! Room `spool`.
