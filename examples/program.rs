//! A program with SQLite and walrust in it, and nothing to load: `program DATABASE REPLICA` streams a few rows, restores, compares.
//!
//! ```sh
//! cargo run --example program --no-default-features --features install -- app.db replica
//! ```
#![allow(clippy::disallowed_macros, reason = "an example talks on stdout")]

use rusqlite::Connection;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(replica)) = (arguments.next(), arguments.next()) else {
        return Err("usage: program DATABASE REPLICA".into());
    };
    walrust::install()?;

    let db = Connection::open(&path)?;
    db.query_row("SELECT walrust_watch(?1)", [&replica], |_| Ok(()))?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")?;
    for i in 0..100 {
        db.execute("INSERT INTO t(v) VALUES(?1)", [format!("row {i}")])?;
    }
    let txid: i64 = db.query_row("SELECT walrust_sync(30)", [], |row| row.get(0))?;

    let copy = format!("{path}.restored");
    let restored: i64 =
        db.query_row("SELECT walrust_restore(?1, ?2)", [&replica, &copy], |row| row.get(0))?;
    let count = |name: &str| -> rusqlite::Result<i64> {
        Connection::open(name)?.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
    };
    println!("TXID {txid}, restored {restored}: {} of {} rows", count(&copy)?, count(&path)?);
    Ok(())
}
