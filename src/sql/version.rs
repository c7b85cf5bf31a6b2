//! `walrust_version()`

use crate::base::Result;
use crate::sqlite::{Connection, Value};

/// Version, git commit, and the SQLite it runs in.
pub(super) fn version(conn: &Connection, _args: &[Value]) -> Result<Value> {
    Ok(Value::Text(format!(
        "walrust {} ({}) in SQLite {}",
        env!("CARGO_PKG_VERSION"),
        env!("WALRUST_COMMIT"),
        conn.libversion()
    )))
}
