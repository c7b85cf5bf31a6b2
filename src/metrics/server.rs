//! `/metrics` and `/health` over HTTP/1.1, on a thread of its own.
//!
//! No TLS and no login: it is for the loopback address or a private network, as exporters are.
//! Refused: an HTTP library. Two pages without parameters need a request line; what a library would
//! add in a guest's process is attack surface.

use crate::base::{Error, Kind, Result, Timestamp, clock, panics, thread};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

/// A scraper's request has a few hundred bytes.
const LONGEST_REQUEST: usize = 8 * 1024;

/// Of one connection, from accept to close: a scraper answers in milliseconds, a slow-loris never.
const LONGEST_TIME: Duration = Duration::from_secs(5);

/// Of the thread, in bytes.
const STACK: usize = 2 << 20;

/// Connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 32;

/// Whether all is well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HealthStatus {
    /// Every database is in its replica, or on the way.
    Healthy,
    /// Something lags or is paused, and heals by itself.
    Degraded,
    /// A database is not being replicated. Answered with status 503.
    Unhealthy,
}

/// One database on the health page.
#[derive(Clone, PartialEq, Debug)]
pub struct DatabaseHealth {
    /// As in `walrust_status`.
    pub state: String,
    /// Age of the oldest commit the replica does not have.
    pub lag_seconds: f64,
    /// Bytes captured but not in the replica.
    pub pending_bytes: u64,
    /// The newest transaction.
    pub txid: u64,
    /// The newest transaction in the replica.
    pub replicated_txid: u64,
    /// When the last upload succeeded.
    pub last_upload: Option<Timestamp>,
    /// The last error, if it still holds.
    pub last_error: Option<String>,
}

/// The health page.
#[derive(Clone, PartialEq, Debug)]
pub struct Health {
    /// The worst of the databases.
    pub status: HealthStatus,
    /// Since walrust was loaded.
    pub uptime: Duration,
    /// By name.
    pub databases: BTreeMap<String, DatabaseHealth>,
}

impl Health {
    fn json(&self) -> String {
        let status = match self.status {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Unhealthy => "unhealthy",
        };
        let one = |d: &DatabaseHealth| {
            json!({
                "state": d.state,
                "lag_seconds": d.lag_seconds,
                "pending_bytes": d.pending_bytes,
                "txid": d.txid,
                "replicated_txid": d.replicated_txid,
                "last_upload": d.last_upload.map(Timestamp::rfc3339),
                "last_error": d.last_error,
            })
        };
        let databases: Map<String, Value> = self.databases.iter().map(|(n, d)| (n.clone(), one(d))).collect();
        let uptime = self.uptime.as_secs_f64();
        format!("{}\n", json!({ "status": status, "uptime_seconds": uptime, "databases": databases }))
    }
}

/// What the server shows. Called on its thread; may take locks, should not wait for the network.
pub trait Pages: Send + Sync + 'static {
    /// The exposition, with gauges brought up to date.
    fn metrics(&self) -> String;
    /// The health page.
    fn health(&self) -> Health;
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl Server {
    /// Where it listens; the port is the real one if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // In a forked child there is no such thread to wait for.
        if self.process != std::process::id() {
            return;
        }
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::warn!("the metrics server had panicked");
        }
    }
}

/// Serves `pages` at `address` (`host:port`) until the [`Server`] is dropped.
///
/// # Errors
/// [`Kind::Config`] if nothing can listen there, [`Kind::Io`] if no thread can be started.
pub fn serve(address: &str, pages: Arc<dyn Pages>) -> Result<Server> {
    let refused = |e| {
        Error::config(format!("metrics_listen: cannot listen on {address}; name a free host:port")).because(e)
    };
    let listener = std::net::TcpListener::bind(address).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let no_thread = |e| Error::new(Kind::Io, "metrics_listen: cannot start its thread").because(e);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(no_thread)?;
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let thread = thread::spawn_joined("walrust-metrics", STACK, move || {
        while let Err(said) = panics::caught(|| {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener.try_clone(), &pages) => {}
                    () = stopped.notified() => {}
                }
            });
        }) {
            log::error!("metrics_listen: internal error: {said}; goes on");
            clock::sleep(Duration::from_millis(100));
        }
        runtime.shutdown_background();
    });
    let thread = Some(thread.map_err(no_thread)?);
    Ok(Server { address: bound, stop, thread, process: std::process::id() })
}

async fn accept(listener: std::io::Result<std::net::TcpListener>, pages: &Arc<dyn Pages>) {
    let listener = match listener.and_then(tokio::net::TcpListener::from_std) {
        Ok(listener) => listener,
        Err(e) => return log::warn!("metrics_listen: {e}"),
    };
    let seats = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let pages = Arc::clone(pages);
                tokio::spawn(async move {
                    // Too slow, or gone: either way the connection ends here.
                    let _ = timeout(LONGEST_TIME, connection(stream, pages)).await;
                    drop(seat);
                });
            }
            // Out of descriptors, or the peer went away: the next one may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(mut stream: TcpStream, pages: Arc<dyn Pages>) -> std::io::Result<()> {
    let head = read_head(&mut stream).await?;
    let answer = answer(&head, pages.as_ref());
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    // Closing with bytes unread would reset the connection and may take the answer back.
    let mut rest = [0; 4096];
    for _ in 0..16 {
        match timeout(Duration::from_millis(500), stream.read(&mut rest)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => break,
        }
    }
    Ok(())
}

/// What was sent up to the blank line, the limit, or the end.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !is_complete(&head) && head.len() <= LONGEST_REQUEST {
        let n = stream.read(&mut chunk).await?;
        match chunk.get(..n) {
            Some(bytes) if n > 0 => head.extend_from_slice(bytes),
            _ => break,
        }
    }
    Ok(head)
}

fn is_complete(head: &[u8]) -> bool {
    head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n")
}

/// The whole answer to a request.
fn answer(head: &[u8], pages: &dyn Pages) -> Vec<u8> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !is_complete(head) {
        return match head.len() > LONGEST_REQUEST {
            true => response("431 Request Header Fields Too Large", TEXT, "request too long\n", Body::Sent),
            false => response("400 Bad Request", TEXT, "incomplete request\n", Body::Sent),
        };
    }
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default().trim_end();
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let known = version.is_some_and(|v| v.starts_with("HTTP/1.")) && words.next().is_none();
    let (Some(method), Some(target), true) = (method, target, known) else {
        return response("400 Bad Request", TEXT, "not an HTTP/1 request\n", Body::Sent);
    };
    let body = match method {
        "GET" => Body::Sent,
        "HEAD" => Body::Withheld,
        _ => {
            return response(
                "405 Method Not Allowed\r\nAllow: GET, HEAD",
                TEXT,
                "only GET and HEAD\n",
                Body::Sent,
            );
        }
    };
    match target.split('?').next().unwrap_or_default() {
        "/metrics" => response("200 OK", super::CONTENT_TYPE, &pages.metrics(), body),
        "/health" => {
            let health = pages.health();
            let status = match health.status {
                HealthStatus::Unhealthy => "503 Service Unavailable",
                HealthStatus::Healthy | HealthStatus::Degraded => "200 OK",
            };
            response(status, "application/json", &health.json(), body)
        }
        _ => response("404 Not Found", TEXT, "there are /metrics and /health\n", body),
    }
}

/// HEAD is answered like GET, without the body.
#[derive(Clone, Copy, PartialEq)]
enum Body {
    Sent,
    Withheld,
}

fn response(status: &str, content_type: &str, text: &str, body: Body) -> Vec<u8> {
    let shown = if body == Body::Sent { text } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{shown}",
        text.len()
    )
    .into_bytes()
}
