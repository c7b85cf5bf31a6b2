//! `walrust_metrics()`

use crate::base::Result;
use crate::session::engine;
use crate::sqlite::{Connection, Value};

/// The Prometheus exposition.
pub(super) fn metrics(_conn: &Connection, _args: &[Value]) -> Result<Value> {
    Ok(Value::Text(engine().metrics_text()))
}
