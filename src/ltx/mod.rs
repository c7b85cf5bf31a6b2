//! Room `ltx`.
