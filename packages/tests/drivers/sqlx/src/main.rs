use sqlx::Executor;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(story())
}

async fn story() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().collect();
    let (so, d, how) = (a[1].clone(), &a[2], &a[3]);
    let options = SqliteConnectOptions::new().filename(format!("{d}/app.db")).create_if_missing(true).extension(so);
    let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
    sqlx::query("SELECT walrust_watch(?)").bind(format!("{d}/replica")).fetch_one(&pool).await?;
    pool.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").await?;
    for i in 0..100 {
        sqlx::query("INSERT INTO t(v) VALUES(?)").bind(i).execute(&pool).await?;
    }
    sqlx::query("SELECT walrust_sync()").fetch_one(&pool).await?;
    sqlx::query("SELECT walrust_restore(?, ?)").bind(format!("{d}/replica")).bind(format!("{d}/copy.db")).fetch_one(&pool).await?;
    pool.execute("INSERT INTO t(v) VALUES('last')").await?;
    match how.as_str() {
        "close" => pool.close().await,
        "throw" => panic!("nobody catches this"),
        _ => std::process::exit(0),
    }
    Ok(())
}
