//! A configured database that is open here and not watched yet: what the program has said of it, and when its watch begins. Pure
//! but for the note itself; [`super::begin`] has the rules, and does what is decided here.

use crate::base::{Error, clock, lock};
use crate::config::Settings;
use crate::ship::State;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two tries of what failed: doubled after each, up to the second.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A database that the parent watched when it forked: the child watches it, too, once it opens it.
#[derive(Clone, Debug)]
pub(super) struct Inherited {
    pub(super) path: PathBuf,
    pub(super) settings: Settings,
    pub(super) replica: String,
}

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// It holds nothing yet.
    Empty,
    /// A database in WAL mode.
    Wal,
    /// A database in rollback mode.
    Rollback,
    /// It does not begin as SQLite's files do: encrypted, or no database.
    Opaque,
}

/// When something may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A connection was opened or loaded the extension; SQL may be run on it.
    Opened,
    /// A handle that holds no lock is about to take one.
    BeforeLock,
    /// A handle has given its last lock back.
    AfterUnlock,
    /// A handle has the wal-index mapped: the file is in WAL mode, whatever its bytes say.
    Mapped,
}

/// What the program has done and said, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It has written to the file in rollback mode, or was streamed from this machine before.
    pub(super) wrote: bool,
    /// It has asked for a journal mode other than WAL.
    pub(super) other_mode: bool,
    /// No connection was opened on the file, which was empty when something else opened it: `ATTACH`, or `VACUUM INTO`, whose file is
    /// not to be touched.
    pub(super) made_aside: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    Wait(Why),
    /// Turn WAL mode on by SQL, then start.
    SwitchBySql,
    /// Put an empty WAL beside the file, then start.
    SwitchByWal,
    /// Start.
    Start,
}

/// Why nothing is begun yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing is in it.
    Empty,
    /// No key is known to us, and the program has not written yet.
    Opaque,
    /// The program wants another journal mode.
    OtherMode,
    /// It was made by something else than a connection of its own.
    MadeAside,
}

impl Why {
    /// One line for the status.
    pub(super) fn text(self) -> &'static str {
        match self {
            Why::Empty => "the database is empty: it is watched from its first commit on",
            Why::Opaque => {
                "the database is encrypted, or no SQLite database: it is watched once this program reads it in WAL mode, or has written \
                 to it"
            }
            Why::MadeAside => {
                "this program made it by ATTACH (or VACUUM INTO): it is watched once it is opened by itself, or attached again after its \
                 last close"
            }
            Why::OtherMode => {
                "the program set another journal mode, and only what is committed in WAL mode can be replicated: set PRAGMA \
                 journal_mode=WAL"
            }
        }
    }
}

/// The decision. Reads nothing, changes nothing.
pub(super) fn decide(moment: Moment, kind: FileKind, said: Said) -> Step {
    match (moment, kind) {
        _ if said.made_aside => Step::Wait(Why::MadeAside),
        (Moment::Mapped, _) | (_, FileKind::Wal) => Step::Start,
        (_, FileKind::Empty) => Step::Wait(Why::Empty),
        (_, FileKind::Rollback | FileKind::Opaque) if said.other_mode => Step::Wait(Why::OtherMode),
        (_, FileKind::Rollback) => Step::SwitchBySql,
        (Moment::Opened, FileKind::Opaque) => Step::Wait(Why::Opaque),
        (_, FileKind::Opaque) if said.wrote => Step::SwitchByWal,
        (_, FileKind::Opaque) => Step::Wait(Why::Opaque),
    }
}

/// A configured database that is open here and not watched yet.
#[derive(Debug, Default)]
pub(super) struct Wish {
    /// Whether there is one: what the program's threads look at first.
    is_open: AtomicBool,
    at: Mutex<Option<Wanted>>,
}

/// A wish while something else is tried in its place.
#[derive(Debug)]
pub(super) struct SetAside(Option<Wanted>);

/// What is wished.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Watched by the parent when it forked, with these settings; else the configuration tells.
    pub(super) inherited: Option<Inherited>,
    /// The program has written to the file in rollback mode, or was streamed from this machine before.
    pub(super) wrote: bool,
    /// See [`Said::made_aside`].
    pub(super) made_aside: bool,
    last: Last,
    /// Uptime before which nothing is tried again, and how long the next pause is.
    not_before: Duration,
    pause: Duration,
}

impl Wanted {
    pub(super) fn new(inherited: Option<Inherited>) -> Wanted {
        Wanted {
            inherited,
            wrote: false,
            made_aside: false,
            last: Last::Waits(Why::Empty),
            not_before: Duration::ZERO,
            pause: PAUSE,
        }
    }

    /// Whether what failed may be tried again at uptime `now`.
    pub(super) fn may_try(&self, now: Duration) -> bool {
        now >= self.not_before
    }

    pub(super) fn waits(&mut self, why: Why) {
        self.last = Last::Waits(why);
    }

    pub(super) fn fails(&mut self, path: &Path, e: Error) {
        // What is busy now is tried again in a moment, and no news.
        let level = if e.is_retry() { log::Level::Debug } else { log::Level::Error };
        log::log!(level, "walrust: {} is not replicated yet: {e}", path.display());
        self.not_before = clock::uptime() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.last = Last::Failed(e);
    }
}

/// What came of the last look.
#[derive(Debug)]
enum Last {
    Waits(Why),
    Failed(Error),
}

/// A row of `walrust_status` for a database that is not watched yet.
#[derive(Debug)]
pub struct WishRow {
    /// Path of the database.
    pub database: PathBuf,
    /// Whether something is wrong: else it is waited for.
    pub is_failed: bool,
    /// What is wrong, or waited for.
    pub why: String,
}

impl WishRow {
    /// What the status says.
    pub fn state(&self) -> State {
        if self.is_failed { State::Failed } else { State::CatchingUp }
    }
}

impl Wish {
    /// Whether there is a wish: cheap.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// There is one, or none any more.
    pub(super) fn set(&self, wanted: Option<Wanted>) {
        let mut at = lock(&self.at);
        self.is_open.store(wanted.is_some(), Ordering::Release);
        *at = wanted;
    }

    /// It is watched, or nobody has it open any more.
    pub(super) fn close(&self) {
        if self.is_open() {
            self.set(None);
        }
    }

    /// Sets it aside.
    pub(super) fn take(&self) -> SetAside {
        let mut at = lock(&self.at);
        self.is_open.store(false, Ordering::Release);
        SetAside(at.take())
    }

    /// What took its place did not come to be.
    pub(super) fn put_back(&self, SetAside(wanted): SetAside) {
        if wanted.is_some() {
            self.set(wanted);
        }
    }

    /// The wish, whose holder decides alone. `None`: another thread has it, and `may_wait` says not to wait for that.
    pub(super) fn turn(&self, may_wait: bool) -> Option<Turn<'_>> {
        let at = if may_wait { lock(&self.at) } else { self.at.try_lock().ok()? };
        Some(Turn { of: self, at })
    }

    /// Takes note of what the program does.
    pub(super) fn note(&self, f: impl FnOnce(&mut Wanted)) {
        if let Some(wanted) = lock(&self.at).as_mut() {
            f(wanted);
        }
    }

    /// What failed, and is tried again.
    pub(super) fn failed(&self, path: &Path, e: Error) {
        if let Some(wanted) = lock(&self.at).as_mut() {
            wanted.fails(path, e);
        }
    }

    /// What is waited for.
    pub(super) fn waits(&self, step: Step) {
        if let (Some(wanted), Step::Wait(why)) = (lock(&self.at).as_mut(), step) {
            wanted.waits(why);
        }
    }

    /// What the status says.
    pub(super) fn row(&self, path: &Path) -> Option<WishRow> {
        let at = lock(&self.at);
        let (is_failed, why) = match &at.as_ref()?.last {
            Last::Waits(Why::OtherMode) => (true, Why::OtherMode.text().to_string()),
            Last::Waits(why) => (false, why.text().to_string()),
            // Somebody else uses the file at this moment.
            Last::Failed(e) if e.is_retry() => (false, format!("{e}; tried again at the next use")),
            Last::Failed(e) => (true, e.to_string()),
        };
        Some(WishRow { database: path.to_path_buf(), is_failed, why })
    }
}

/// A look at the wish by one thread.
pub(super) struct Turn<'a> {
    of: &'a Wish,
    at: MutexGuard<'a, Option<Wanted>>,
}

impl Turn<'_> {
    /// The wish, if there is one.
    pub(super) fn wanted(&mut self) -> Option<&mut Wanted> {
        self.at.as_mut()
    }

    /// It has come true.
    pub(super) fn fulfilled(mut self) {
        self.of.is_open.store(false, Ordering::Release);
        *self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: what the program did and said, what the file is, and the steps at Opened, BeforeLock, AfterUnlock, Mapped.
    #[test]
    fn a_watch_begins_after_the_programs_own_words() {
        use FileKind::{Empty, Opaque, Rollback, Wal};
        use Step::{Start, SwitchBySql, SwitchByWal, Wait};
        let moments = [Moment::Opened, Moment::BeforeLock, Moment::AfterUnlock, Moment::Mapped];
        let nothing = Said::default();
        let wrote = Said { wrote: true, ..nothing };
        let mode = Said { other_mode: true, ..nothing };
        let both = Said { wrote: true, other_mode: true, ..nothing };
        let aside = Said { made_aside: true, ..nothing };
        let made = Wait(Why::MadeAside);
        let (empty, opaque, other) = (Wait(Why::Empty), Wait(Why::Opaque), Wait(Why::OtherMode));
        for (said, kind, steps) in [
            (aside, Empty, [made; 4]),
            (aside, Rollback, [made; 4]),
            (aside, Wal, [made; 4]),
            (nothing, Empty, [empty, empty, empty, Start]),
            (mode, Empty, [empty, empty, empty, Start]),
            (nothing, Wal, [Start, Start, Start, Start]),
            (mode, Wal, [Start, Start, Start, Start]),
            (nothing, Rollback, [SwitchBySql, SwitchBySql, SwitchBySql, Start]),
            (wrote, Rollback, [SwitchBySql, SwitchBySql, SwitchBySql, Start]),
            (mode, Rollback, [other, other, other, Start]),
            (both, Rollback, [other, other, other, Start]),
            (nothing, Opaque, [opaque, opaque, opaque, Start]),
            (wrote, Opaque, [opaque, SwitchByWal, SwitchByWal, Start]),
            (both, Opaque, [other, other, other, Start]),
        ] {
            for (moment, step) in moments.into_iter().zip(steps) {
                assert_eq!(decide(moment, kind, said), step, "{moment:?} {kind:?} {said:?}");
            }
        }
    }
}
