//! `walrust_status`

use super::common::{int, time};
use crate::base::Result;
use crate::session::{Row, engine};
use crate::sqlite::{Connection, Rows, Value};

/// The columns of a watched database, or of one of its mirrors.
fn of(r: Row) -> Vec<Value> {
    vec![
        Value::Text(r.database.display().to_string()),
        Value::Text(r.replica),
        Value::Text(r.state.as_str().to_string()),
        Value::Integer(r.txid.as_i64()),
        Value::Integer(r.replicated.as_i64()),
        Value::Real(r.lag.as_secs_f64()),
        int(r.pending_bytes),
        int(r.wal_bytes),
        int(r.spool_bytes),
        Value::Text(r.breaker.as_str().to_string()),
        time(r.last_upload),
        r.last_error.map_or(Value::Null, Value::Text),
        r.protection.map_or(Value::Null, |p| Value::Text(p.as_str().to_string())),
    ]
}

/// One row per watched database, one for each of its mirrors after it, per followed file, and per configured database that is open and not watched yet. Of a followed file
/// `txid` is what it shows, `replicated_txid` the newest that the replica is known to hold, `last_upload` when the commit it
/// shows was captured at the source. `protection` says what keeps a second writer away: `lease`, `create-only`, `append-only`, `none`, or
/// `unknown` before the store has answered.
pub(super) fn status(_conn: &Connection, _args: &[Option<Value>]) -> Result<Rows> {
    let mut rows: Vec<Result<Vec<Value>>> = Vec::new();
    let (watched, unwatched) = engine().all();
    for w in watched {
        rows.push(Ok(of(w.row())));
        rows.extend(w.mirror_rows().into_iter().map(|r| Ok(of(r))));
    }
    for f in engine().followers() {
        rows.push(Ok(vec![
            Value::Text(f.path.display().to_string()),
            Value::Text(f.replica),
            Value::Text(f.state.as_str().to_string()),
            Value::Integer(f.txid.as_i64()),
            Value::Integer(f.newest.as_i64()),
            Value::Real(f.lag.as_secs_f64()),
            int(f.pending_bytes),
            int(0),
            int(0),
            Value::Text("closed".to_string()),
            time(f.time),
            f.last_error.map_or(Value::Null, Value::Text),
            Value::Null,
        ]));
    }
    for row in unwatched {
        let state = row.state().as_str();
        let (path, why) = (row.database, row.why);
        let mut row = vec![Value::Text(path.display().to_string()), Value::Null, Value::Text(state.into())];
        row.extend([Value::Integer(0), Value::Integer(0), Value::Null, Value::Integer(0), Value::Integer(0)]);
        row.extend([
            Value::Integer(0),
            Value::Text("closed".into()),
            Value::Null,
            Value::Text(why),
            Value::Null,
        ]);
        rows.push(Ok(row));
    }
    Ok(Box::new(rows.into_iter()))
}
