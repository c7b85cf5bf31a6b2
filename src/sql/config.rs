//! `walrust_config`

use crate::base::Result;
use crate::session::engine;
use crate::sqlite::{Connection, Rows, Value};

/// One row per setting, as it holds for this connection's main database (else for the process).
pub(super) fn config(conn: &Connection, _args: &[Option<Value>]) -> Result<Rows> {
    let resolved = match conn.main_db_path() {
        Some(path) => match engine().settings_of(&path) {
            Some(r) => r,
            None => engine().resolve(&path, None)?,
        },
        None => engine().config()?.process()?,
    };
    let rows = resolved.rows().into_iter().map(|r| {
        Ok(vec![
            Value::Text(r.name.to_string()),
            Value::Text(r.value),
            Value::Text(r.source),
            Value::Text(r.default_value.to_string()),
            Value::Text(r.description.to_string()),
        ])
    });
    Ok(Box::new(rows.collect::<Vec<_>>().into_iter()))
}
