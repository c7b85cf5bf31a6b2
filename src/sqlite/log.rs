//! The `log` facade, routed to `sqlite3_log` (<https://sqlite.org/errlog.html>), never to stderr.
//!
//! Warnings and errors only, unless `WALRUST_LOG` names another level (`off`, `error`, `warn`, `info`,
//! `debug`, `trace`). SQLite hands the text to the app's own log callback, if it has set one; that
//! callback must not call SQLite, so a line may be written inside any callback of ours.
//!
//! But not from any thread: a program with one thread need not have a callback that stands a second one (an interpreter's
//! does not: it aborts the process). So what threads of ours have to say waits here until the program itself calls into SQLite.

use super::{api, ffi};
use crate::base::ForkSafe;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::collections::VecDeque;
use std::ffi::{CString, c_int};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lines that wait at most; of more the oldest go.
const MOST: usize = 100;

static WAITING: ForkSafe<Mutex<VecDeque<(c_int, CString)>>> = ForkSafe::new(Mutex::default);
static SOME_WAIT: AtomicBool = AtomicBool::new(false);

/// Whether this thread is one that we started: all of them are named so.
fn is_ours() -> bool {
    std::thread::current().name().is_some_and(|n| n.starts_with("walrust-"))
}

/// Writes what waits. Called wherever the program calls in, on its own thread; one load when nothing waits.
pub(super) fn deliver() {
    if SOME_WAIT.load(Ordering::Relaxed) && !is_ours() {
        deliver_now();
    }
}

#[cold]
fn deliver_now() {
    if !api::is_set() {
        return;
    }
    let lines = {
        let mut waiting = WAITING.lock();
        SOME_WAIT.store(false, Ordering::Relaxed);
        std::mem::take(&mut *waiting)
    };
    for (code, text) in lines {
        // SAFETY: the table is set.
        unsafe { api::log(code, &text) };
    }
}

struct SqliteLog;

impl Log for SqliteLog {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        m.level() <= log::max_level() && api::is_set()
    }

    fn log(&self, r: &Record<'_>) {
        if !self.enabled(r.metadata()) {
            return;
        }
        let code = if r.level() <= Level::Warn { ffi::WARNING } else { ffi::NOTICE };
        let mut text = r.args().to_string().into_bytes();
        text.retain(|&b| b != 0);
        let Ok(text) = CString::new(text) else { return };
        if is_ours() {
            let mut waiting = WAITING.lock();
            waiting.push_back((code, text));
            while waiting.len() > MOST {
                waiting.pop_front();
            }
            SOME_WAIT.store(true, Ordering::Relaxed);
            return;
        }
        deliver();
        // SAFETY: the table is set (`enabled`).
        unsafe { api::log(code, &text) };
    }

    fn flush(&self) {}
}

/// Installs the logger once; a logger the program already has stays.
pub(super) fn install() {
    static LOGGER: SqliteLog = SqliteLog;
    if log::set_logger(&LOGGER).is_ok() {
        let asked = std::env::var("WALRUST_LOG").ok().and_then(|v| v.parse::<LevelFilter>().ok());
        log::set_max_level(asked.unwrap_or(LevelFilter::Warn));
    }
}
