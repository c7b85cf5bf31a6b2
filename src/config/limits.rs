//! How much is read.

/// The longest text read as a configuration or an options object. Real ones are a few KB; a
/// wrong `WALRUST_CONFIG` may name anything.
pub const MAX_INPUT_BYTES: u64 = 1 << 20;
