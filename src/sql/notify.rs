//! `walrust_notify_test()`

use super::common;
use crate::base::Result;
use crate::notify::Notifier;
use crate::sqlite::{Connection, Value};

/// Sends a test event to every webhook of this connection's database and says what each answered, one a line.
pub(super) fn test(conn: &Connection, _args: &[Value]) -> Result<Value> {
    let hooks = common::settings(conn)?.webhooks;
    if hooks.is_empty() {
        let none = "no webhook is configured; set [[webhooks]] url = \"https://...\" in walrust.toml";
        return Ok(Value::Text(none.to_string()));
    }
    let answers: Vec<String> = Notifier::new(hooks).test().iter().map(ToString::to_string).collect();
    Ok(Value::Text(answers.join("\n")))
}
