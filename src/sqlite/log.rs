//! The `log` facade, routed to `sqlite3_log` (<https://sqlite.org/errlog.html>), never to stderr.
//!
//! Warnings and errors only, unless `WALRUST_LOG` names another level (`off`, `error`, `warn`, `info`,
//! `debug`, `trace`). SQLite hands the text to the app's own log callback, if it has set one; that
//! callback must not call SQLite, so a line may be written from any thread and inside any callback.

use super::{api, ffi};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::ffi::CString;

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
        if let Ok(text) = CString::new(text) {
            // SAFETY: the table is set (`enabled`).
            unsafe { api::log(code, &text) };
        }
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
