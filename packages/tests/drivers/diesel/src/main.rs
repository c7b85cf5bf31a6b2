use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};

/// Diesel has no call that loads an extension: its SQLite is asked, once, for all connections that are opened later.
fn load(so: &str) -> Result<(), Box<dyn std::error::Error>> {
    use libsqlite3_sys::*;
    let so = std::ffi::CString::new(so)?;
    unsafe {
        let mut db = std::ptr::null_mut();
        assert_eq!(sqlite3_open(c":memory:".as_ptr(), &mut db), SQLITE_OK);
        sqlite3_enable_load_extension(db, 1);
        assert_eq!(sqlite3_load_extension(db, so.as_ptr(), std::ptr::null(), std::ptr::null_mut()), SQLITE_OK);
        sqlite3_close(db);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().collect();
    let (so, d, how) = (&a[1], &a[2], &a[3]);
    load(so)?;
    let mut c = SqliteConnection::establish(&format!("{d}/app.db"))?;
    let (url, copy) = (format!("{d}/replica"), format!("{d}/copy.db"));
    diesel::select(sql::<Text>("walrust_watch(").bind::<Text, _>(&url).sql(")")).get_result::<String>(&mut c)?;
    sql_query("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").execute(&mut c)?;
    for i in 0..100 {
        sql_query("INSERT INTO t(v) VALUES(?)").bind::<Text, _>(i.to_string()).execute(&mut c)?;
    }
    diesel::select(sql::<BigInt>("walrust_sync()")).get_result::<i64>(&mut c)?;
    let restore = sql::<BigInt>("walrust_restore(").bind::<Text, _>(&url).sql(", ").bind::<Text, _>(&copy).sql(")");
    diesel::select(restore).get_result::<i64>(&mut c)?;
    sql_query("INSERT INTO t(v) VALUES('last')").execute(&mut c)?;
    match how.as_str() {
        "close" => drop(c),
        // (Unwinding would close it.)
        "throw" => {
            std::mem::forget(c);
            panic!("nobody catches this")
        }
        _ => std::process::exit(0),
    }
    Ok(())
}
