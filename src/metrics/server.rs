//! The pages over HTTP/1.1, on a thread of its own.
//!
//! No TLS: it is for the loopback address or a private network, as exporters are. What strangers send is parsed by hyper,
//! which is in the tree already; what a connection may cost is bounded here.
//! Refused: keep-alive (a seat would be kept by whoever looks now and then; a page asks once in two seconds).

use super::answer::{Answer, Desk, Pages, answer};
use super::trail::{STEP, Trail};
use crate::base::{Error, Kind, Result, clock, lock, panics, thread};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

/// A request's head, in bytes: a scraper's has a few hundred.
const LONGEST_REQUEST: usize = 8 * 1024;

/// Header lines of a request.
const MOST_HEADERS: usize = 100;

/// Of one connection, from accept to close: a scraper answers in milliseconds, a slow-loris never.
const LONGEST_TIME: Duration = Duration::from_secs(5);

/// Of the thread, in bytes.
const STACK: usize = 2 << 20;

/// Connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 32;

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
    let token = pages.token();
    let desk =
        Arc::new(Desk { pages, token, host: address.to_string(), trail: Mutex::new(Trail::default()) });
    let listener = {
        let _inside = runtime.enter();
        Listener::new(tokio::net::TcpListener::from_std(listener).map_err(refused)?)
    };
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let thread = thread::spawn_joined("walrust-metrics", STACK, move || {
        while let Err(said) = panics::caught(|| {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(&listener.socket, &desk) => {}
                    () = stopped.notified() => {}
                }
            });
        }) {
            log::error!("metrics_listen: internal error: {said}; goes on");
            clock::sleep(Duration::from_millis(100));
        }
        drop(listener);
        runtime.shutdown_background();
    });
    let thread = Some(thread.map_err(no_thread)?);
    Ok(Server { address: bound, stop, thread, process: std::process::id() })
}

/// The descriptor of the process's listening socket; -1: there is none.
static LISTENING: AtomicI32 = AtomicI32::new(-1);
/// That socket's inode, by which it is known again: a program may close descriptors that are not its own, and the number comes again.
static INODE: AtomicU64 = AtomicU64::new(0);

/// The one socket that is listened at.
struct Listener {
    socket: tokio::net::TcpListener,
}

impl Listener {
    fn new(socket: tokio::net::TcpListener) -> Listener {
        INODE.store(rustix::fs::fstat(&socket).map_or(0, |s| s.st_ino), Ordering::Relaxed);
        LISTENING.store(socket.as_raw_fd(), Ordering::Relaxed);
        Listener { socket }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = LISTENING.compare_exchange(self.socket.as_raw_fd(), -1, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// In a forked child: lets go of the parent's listening socket, which has no thread here and would keep the address from whoever comes
/// after the parent.
pub fn in_child() {
    let socket = LISTENING.swap(-1, Ordering::Relaxed);
    if socket < 0 {
        return;
    }
    // (Where the system does not tell what it is, it stays: better an address that is taken than a file of the program that is closed.)
    let ours = format!("socket:[{}]", INODE.load(Ordering::Relaxed));
    let link = std::fs::read_link(format!("/proc/self/fd/{socket}"));
    if link.is_ok_and(|link| link.as_os_str() == ours.as_str()) {
        let _ = nix::unistd::close(socket);
    }
}

async fn accept(listener: &tokio::net::TcpListener, desk: &Arc<Desk>) {
    let seats = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = Arc::clone(desk);
                tokio::spawn(async move {
                    // Too slow, or gone: either way the connection ends here.
                    let _ = timeout(LONGEST_TIME, connection(stream, desk)).await;
                    drop(seat);
                });
            }
            // Out of descriptors, or the peer went away: the next one may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One request and its answer. Errors when the connection fails.
async fn connection(stream: TcpStream, desk: Arc<Desk>) -> std::io::Result<()> {
    let stream = stream.into_std()?;
    let rest = stream.try_clone()?;
    let stream = TokioIo::new(TcpStream::from_std(stream)?);
    let service = service_fn(move |request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(respond(&desk, request)) }
    });
    let _ = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .title_case_headers(true)
        .auto_date_header(false)
        .max_buf_size(LONGEST_REQUEST)
        .max_headers(MOST_HEADERS)
        .serve_connection(stream, service)
        .await;
    // Closing with bytes unread would reset the connection and may take the answer back.
    let mut rest = TcpStream::from_std(rest)?;
    let mut chunk = [0; 4096];
    for _ in 0..16 {
        match timeout(Duration::from_millis(500), rest.read(&mut chunk)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => break,
        }
    }
    Ok(())
}

fn respond(desk: &Arc<Desk>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, _) = request.into_parts();
    let said = answer(desk, &parts);
    if said.begins_trail {
        tokio::spawn(keep_trail(Arc::clone(desk)));
    }
    response(said)
}

fn response(said: Answer) -> Response<Full<Bytes>> {
    let body = Bytes::from(said.text);
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = said.status;
    let headers = response.headers_mut();
    headers.extend(said.headers.into_iter().map(|(name, value)| (Some(name), value)));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(said.media_type));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Takes samples for as long as somebody looks.
async fn keep_trail(desk: Arc<Desk>) {
    loop {
        tokio::time::sleep(STEP).await;
        let uptime = clock::uptime();
        let due = lock(&desk.trail).is_due(uptime);
        match due {
            None => return,
            Some(false) => {}
            Some(true) => {
                // (A panic in it ends the samples, not the server.)
                let face = desk.pages.face();
                lock(&desk.trail).note(&face, uptime);
            }
        }
    }
}
