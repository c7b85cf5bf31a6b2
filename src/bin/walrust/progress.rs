//! Progress of long work, on stderr, if that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use walrust::replica::Progress;

/// Goes when dropped.
pub struct Shown(ProgressBar);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Work whose end is not known.
pub fn spinner(what: &'static str) -> Shown {
    let bar = ProgressBar::new_spinner().with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    Shown(bar)
}

static RESTORE: OnceLock<ProgressBar> = OnceLock::new();
static SHOWN: AtomicBool = AtomicBool::new(false);

/// A restore that takes no longer shows nothing.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Bytes, rate and time left of the restore that follows.
pub fn restore() -> Shown {
    let bar = RESTORE.get_or_init(|| {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let template = "{wide_bar} {bytes} of {total_bytes}, {msg}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    });
    walrust::sql::on_restore_progress(|p: Progress| {
        if let Some(bar) = RESTORE.get() {
            bar.set_length(p.of_bytes);
            bar.set_position(p.bytes);
            bar.set_message(format!("file {} of {}", p.files, p.of_files));
            // (Last, so that the first line it shows has all its words.)
            if bar.elapsed() >= SHOWN_AFTER && !SHOWN.swap(true, Ordering::Relaxed) {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
        }
    });
    Shown(bar.clone())
}
