use rusqlite::Connection;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().collect();
    let (so, d, how) = (&a[1], &a[2], &a[3]);
    let c = Connection::open(format!("{d}/app.db"))?;
    unsafe {
        c.load_extension_enable()?;
        c.load_extension(so, None::<&str>)?;
    }
    let run = |sql: &str, values: &[&str]| -> rusqlite::Result<()> {
        let mut s = c.prepare(sql)?;
        s.query(rusqlite::params_from_iter(values))?.next()?;
        Ok(())
    };
    run("SELECT walrust_watch(?)", &[&format!("{d}/replica")])?;
    run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", &[])?;
    for i in 0..100 {
        run("INSERT INTO t(v) VALUES(?)", &[&i.to_string()])?;
    }
    run("SELECT walrust_sync()", &[])?;
    run("SELECT walrust_restore(?, ?)", &[&format!("{d}/replica"), &format!("{d}/copy.db")])?;
    run("INSERT INTO t(v) VALUES('last')", &[])?;
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
