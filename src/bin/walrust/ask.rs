//! Asking the process that streams: its own word of each database, at the `metrics_listen` that it and this command are configured with.

use reqwest::Client;
use serde_json::Value;
use std::time::Duration;
use walrust::base::certificates;
use walrust::session::engine;
use walrust::store::block_on;

/// A process of this machine answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a process said.
pub struct Said {
    /// The process.
    pub pid: i64,
    /// Where it was asked.
    pub address: String,
    /// When it said so.
    pub now: String,
    /// The rows of its page.
    databases: Vec<Value>,
}

impl Said {
    /// What it says of a database.
    pub fn of(&self, database: &str) -> Option<&Value> {
        self.databases.iter().find(|d| d["database"] == database)
    }
}

/// Asks. `None` where no address is configured, or no process of ours answers there: the spool has to do then.
pub fn process() -> Option<Said> {
    let address = engine().config().ok()?.process().ok()?.settings.metrics_listen?;
    let url = format!("http://{}/status.json", reachable(&address));
    certificates::install_provider();
    let said: Value = block_on(async move {
        let client = Client::builder().tls_certs_only([]).no_proxy().timeout(PATIENCE).build().ok()?;
        let answer = client.get(url).send().await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    })
    .ok()??;
    Some(Said {
        pid: said["pid"].as_i64()?,
        now: said["now"].as_str()?.to_string(),
        databases: said["databases"].as_array()?.clone(),
        address,
    })
}

/// Where a process is reached that listens at every address of the machine.
fn reachable(address: &str) -> String {
    match address.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        assert_eq!(reachable("0.0.0.0:9090"), "127.0.0.1:9090");
        assert_eq!(reachable("[::]:9090"), "[::1]:9090");
        assert_eq!(reachable("10.0.0.7:9090"), "10.0.0.7:9090");
    }
}
