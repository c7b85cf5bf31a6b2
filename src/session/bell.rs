//! How the app's threads and the shipper wake the sealer.
//!
//! A wake-up per commit would nearly double the price of a small one. So a woken sealer lingers, and a commit that finds it awake
//! leaves a note ([`News`]) and pays for nothing else.

use crate::base::{lock, thread};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The sealer's thread, which the first ring starts.
pub(super) struct Bell {
    /// What the thread does.
    run: fn(&Receiver<()>),
    to: Mutex<Option<(u32, Sender<()>)>>,
    is_awake: AtomicBool,
    /// Why the thread could not be started.
    refused: Mutex<Option<String>>,
}

impl Bell {
    /// `run`: the thread's work, which never ends.
    pub(super) fn new(run: fn(&Receiver<()>)) -> Bell {
        Bell { run, to: Mutex::default(), is_awake: AtomicBool::new(false), refused: Mutex::default() }
    }

    /// Makes the sealer look soon. Cheap while it is awake.
    pub(super) fn wake(&self) {
        if !self.is_awake.load(Ordering::Acquire) && !self.is_awake.swap(true, Ordering::AcqRel) {
            self.send();
        }
    }

    /// Makes the sealer look at once.
    pub(super) fn hurry(&self) {
        self.is_awake.store(true, Ordering::Release);
        self.send();
    }

    /// The sealer says that it goes to sleep, or is awake.
    pub(super) fn set_awake(&self, is_awake: bool) {
        self.is_awake.store(is_awake, Ordering::Release);
    }

    fn send(&self) {
        let mut to = lock(&self.to);
        if let Some((pid, tx)) = to.as_ref()
            && *pid == std::process::id()
        {
            // (Full: it will look anyway. Disconnected: there is no such thread any more.)
            if !matches!(tx.try_send(()), Err(TrySendError::Disconnected(()))) {
                return;
            }
        }
        let (tx, rx) = crossbeam_channel::bounded(1);
        let _ = tx.try_send(());
        let run = self.run;
        match thread::spawn("walrust-seal", 512 << 10, move || run(&rx)) {
            Ok(()) => {
                *to = Some((std::process::id(), tx));
                *lock(&self.refused) = None;
            }
            Err(e) => {
                *to = None;
                self.is_awake.store(false, Ordering::Release);
                log::error!("walrust: cannot start the sealer thread: {e}");
                let why = format!(
                    "nothing is captured: the thread walrust-seal cannot be started: {e}; tried again"
                );
                *lock(&self.refused) = Some(why);
            }
        }
    }

    /// Why there is no thread, if one was wanted and could not be started. Tries again.
    pub(super) fn refused(&self) -> Option<String> {
        if lock(&self.refused).is_some() {
            self.hurry();
        }
        lock(&self.refused).clone()
    }
}

/// What was left for the sealer since its last look at one database.
#[derive(Debug, Default)]
pub(super) struct News(AtomicU8);

/// One thing that is left for the sealer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Note {
    /// A commit, or something else that calls for a look at the WAL.
    Commit = 1,
    /// Seal now, whatever the interval: a reset or checkpoint waits.
    Hurry = 2,
    /// Look at everything, however short ago that was done.
    LookFully = 4,
    /// What is sealed, or is to be, waits for the upload slot.
    WaitsForSlot = 8,
}

impl News {
    /// Leaves a note. Whether it is new.
    pub(super) fn leave(&self, note: Note) -> bool {
        // (The first look is cheaper where many threads leave the same.)
        !self.has(note) && self.0.fetch_or(note as u8, Ordering::AcqRel) & note as u8 == 0
    }

    /// Whether such a note lies there.
    pub(super) fn has(&self, note: Note) -> bool {
        self.0.load(Ordering::Acquire) & note as u8 != 0
    }

    /// Takes the note up. Whether there was one.
    pub(super) fn take(&self, note: Note) -> bool {
        self.0.fetch_and(!(note as u8), Ordering::AcqRel) & note as u8 != 0
    }

    /// Whether any note lies there.
    pub(super) fn is_any(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_kept_apart() {
        let news = News::default();
        assert!(!news.is_any());
        assert!(news.leave(Note::Commit) && !news.leave(Note::Commit), "the second is no news");
        assert!(news.leave(Note::WaitsForSlot));
        assert!(news.has(Note::Commit) && !news.has(Note::Hurry));
        assert!(news.take(Note::Commit) && !news.take(Note::Commit));
        assert!(news.is_any() && news.take(Note::WaitsForSlot) && !news.is_any());
    }
}
