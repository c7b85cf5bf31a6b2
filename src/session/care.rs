//! Looking after the replica: periodic validation, retention after each snapshot, and the labels that `auto_label` makes.
//!
//! # Rules
//!
//! * I-CARE-1: neither the sealer's nor the shipper's thread does any of it: one thread, `walrust-care`, works
//!   through a queue for all databases, and ends when it is empty.
//! * I-CARE-2: only the process that ships looks after a replica, and only while it is able to.
//! * I-CARE-3: files are taken out of the manifest while it is borrowed from the shipper
//!   ([`crate::ship::Borrowed`]), so that it has one writer.
//! * I-CARE-4: before retention drops the last snapshot of which it is known that its database was sound, the database is looked at once
//!   (`sound`): one that was damaged at its source does not age out its last good copy.
//!
//! Retention follows each snapshot, and is applied where one was due by the clock and not worth its upload (`replica::due`): files become
//! superfluous by a snapshot, and by what they were merged into when `pitr_window` has passed.
//! Validation is due by the age of the last one, and retention after a snapshot that it was not applied after yet, whatever process made
//! them (`care.json` in the spool): what a process that ends leaves undone the next one does. What failed is due after a rest of its own
//! ([`Duty::Retention`]).
//! Refused: validation on a timer of each database's own (a thread each); retention on a timer of its
//! own (that of snapshots is there).

use super::alone::alone;
use super::drill::{self, last_drilled};
use super::events::note_trouble;
use super::mirror::Mirror;
use super::settings::locks;
use super::sound;
use super::watched::{Ask, Watched};
use crate::base::event::EventKind;
use crate::base::{Result, TxId, clock, lock, panics, thread};
use crate::config::{RetentionBy, Settings};
use crate::replica::compact::{Action, Compacted};
use crate::replica::retention::Policy;
use crate::replica::{self, Report, Rule, Severity, VerifyOptions};
use crate::ship::{Aged, Course, Duty};
use crate::spool::Spool;
use crate::store::{Retry, Store, block_on};
use serde_json::json;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Between two looks at what seems to be wrong with a replica that is written meanwhile.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How long a mirror's shipper may take to hand its manifest over.
const HAND_OVER: Duration = Duration::from_secs(600);
/// The longest rest of retention after a failure.
const RETENTION_RESTS: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Validate,
    Retain,
    Label,
    Drill,
    /// Validation and retention of mirrors.
    Mirrors,
}

impl Task {
    fn as_str(self) -> &'static str {
        match self {
            Task::Validate => "validation",
            Task::Retain => "retention",
            Task::Label => "labelling",
            Task::Drill => "a drill",
            Task::Mirrors => "the care of a mirror",
        }
    }
}

/// What is to be done, for all databases of an engine: a forked child begins with an empty one. There are two: a drill may take hours, for
/// which retention would have to wait.
#[derive(Debug)]
pub(super) struct Queue {
    /// Of its thread.
    name: &'static str,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    tasks: VecDeque<(Weak<Watched>, Task)>,
    /// The thread is there.
    is_at_work: bool,
}

impl Watched {
    pub(super) fn set_finding(&self, finding: Option<String>) {
        *lock(&self.finding) = finding;
    }
}

impl Queue {
    /// An empty one, whose thread has this name.
    pub(super) fn named(name: &'static str) -> Queue {
        Queue { name, waiting: Mutex::default() }
    }

    /// Queues a drill, if the clock says that one is due.
    pub(super) fn schedule_drill(&'static self, w: &Arc<Watched>) {
        let every = w.settings().drill_interval;
        if every.is_zero() || w.link.status().snapshot.0 == 0 || !w.ships() {
            return;
        }
        let now = || Aged::new(clock::now(), clock::now(), clock::uptime());
        let mut last = lock(&w.drilled);
        let known = *last.get_or_insert_with(|| {
            last_drilled(w).map_or_else(now, |at| Aged::new(at, clock::now(), clock::uptime()))
        });
        if known.by(clock::uptime()) >= every {
            *last = Some(now());
            drop(last);
            self.add(w, Task::Drill);
        }
    }

    /// Queues what the clock says is due.
    pub(super) fn schedule(&'static self, w: &Arc<Watched>) {
        // Retention that failed is due again when it has rested.
        let retention = w.link.course(Duty::Retention);
        let has_rested = retention != Course::Well && retention.is_due(clock::uptime());
        if has_rested || is_owed(w) {
            self.add(w, Task::Retain);
        }
        if w.owes_labels() {
            self.add(w, Task::Label);
        }
        if w.mirrors.iter().any(|m| what_is_due(&w.settings(), m) != MirrorDue::default()) {
            self.add(w, Task::Mirrors);
        }
        let every = w.settings().validation_interval;
        // Before the first snapshot is there, a validation could only say so.
        if every.is_zero() || w.link.status().snapshot.0 == 0 {
            return;
        }
        let mut last = lock(&w.validated);
        let known = *last.get_or_insert_with(|| last_validated(w));
        if known.by(clock::uptime()) >= every {
            *last = Some(Aged::new(clock::now(), clock::now(), clock::uptime()));
            drop(last);
            self.add(w, Task::Validate);
        }
    }

    /// Time has made something superfluous.
    pub(super) fn retain(&'static self, w: &Arc<Watched>) {
        if w.settings().retention_is_by() == RetentionBy::Writer {
            *lock(&w.retained) = Some(w.link.status().snapshot);
            self.add(w, Task::Retain);
        }
    }

    fn add(&'static self, w: &Arc<Watched>, task: Task) {
        let mut q = lock(&self.waiting);
        let me = Arc::downgrade(w);
        if !q.tasks.iter().any(|(o, t)| *t == task && Weak::ptr_eq(o, &me)) {
            q.tasks.push_back((me, task));
        }
        if !q.is_at_work {
            match thread::spawn(self.name, 1 << 20, || self.run()) {
                Ok(()) => q.is_at_work = true,
                // It stays in the queue, and whoever asks next tries again.
                Err(e) => {
                    log::error!("walrust: cannot start a thread: {e}");
                    w.set_finding(Some(format!("{} waits: no thread can be started: {e}", task.as_str())));
                }
            }
        }
    }

    fn next(&self) -> Option<(Weak<Watched>, Task)> {
        let mut q = lock(&self.waiting);
        let next = q.tasks.pop_front();
        q.is_at_work = next.is_some();
        next
    }

    fn run(&self) {
        while let Some((w, task)) = self.next() {
            let Some(w) = w.upgrade().filter(|w| w.ships()) else { continue };
            let work = || match task {
                Task::Validate => validate(&w),
                Task::Retain => retain(&w),
                Task::Label => w.make_labels(),
                Task::Drill => drill::scheduled(&w),
                Task::Mirrors => w.mirrors.iter().for_each(|m| care_for_mirror(&w, m)),
            };
            if let Err(said) = panics::caught(work) {
                let what = task.as_str();
                log::error!("walrust: {}: an internal error stopped {what}: {said}", w.path().display());
                w.set_finding(Some(format!("an internal error stopped {what}: {said}")));
            }
        }
    }
}

/// Whether the replica has a snapshot that no process of this spool has applied retention after, which this one has not begun to do.
fn is_owed(w: &Watched) -> bool {
    let newest = w.link.status().snapshot;
    if newest == TxId::ZERO || w.settings().retention_is_by() != RetentionBy::Writer || !w.ships() {
        return false;
    }
    let mut begun = lock(&w.retained);
    let known = *begun.get_or_insert_with(|| w.spool.retained(w.replica()).unwrap_or_default());
    let is_owed = newest > known;
    if is_owed {
        *begun = Some(newest);
    }
    is_owed
}

/// How long ago the replica was validated, by whatever process: a program may live for a second. The first look begins the count.
fn last_validated(w: &Watched) -> Aged {
    last_checked(&w.spool, w.replica())
}

/// (A record that cannot be written makes the next validation early.)
fn last_checked(spool: &Spool, replica: &str) -> Aged {
    let now = clock::now();
    let noted = spool.validated(replica).ok().flatten();
    if noted.is_none() {
        drop(spool.note_validated(replica, now));
    }
    Aged::new(noted.unwrap_or(now), now, clock::uptime())
}

/// (A record that cannot be written makes the next validation early.)
fn note_validated(w: &Watched) {
    if let Err(e) = w.spool.note_validated(w.replica(), clock::now()) {
        log::debug!("walrust: {}: {e}", w.path().display());
    }
}

fn validate(w: &Arc<Watched>) {
    w.have_named();
    let options = VerifyOptions { pause: SECOND_LOOK, ..Default::default() };
    let report: Result<Report> = block_on(replica::verify(&w.store, &options)).and_then(|r| r);
    if report.is_ok() {
        note_validated(w);
    }
    match report {
        Ok(r) if r.severity() == Severity::Ok => {
            w.metrics.validation_success();
            if lock(&w.finding).is_some() {
                let message = "the replica was checked, and found good again".to_string();
                w.tell(EventKind::Recovered, message, json!({}));
            }
            w.set_finding(None);
        }
        Ok(r) => {
            let message = damage(&r);
            w.metrics.validation_failure();
            log::error!("walrust: {}: {message}", w.path().display());
            w.set_finding(Some(message.clone()));
            // (A manifest that lags behind its files is no damage: all of them are there, and restore.)
            if r.issues().any(|f| f.check != Rule::Manifest) {
                w.tell(EventKind::CorruptionDetected, message, details(&r));
            }
            if r.severity() == Severity::Critical {
                // What is lost stays lost; from the next snapshot on everything can be restored again.
                w.ask(Ask::Snapshot);
            }
        }
        // Not the replica's fault: the uploads' own state says what is wrong with the store.
        Err(e) => {
            log::warn!("walrust: {}: the replica could not be validated: {e}", w.path().display());
            w.set_finding(Some(format!("the replica could not be validated: {e}")));
        }
    }
}

/// What the settings say of retention.
pub fn policy(s: &Settings) -> Policy {
    let r = &s.retention;
    Policy {
        hourly: r.hourly,
        daily: r.daily,
        weekly: r.weekly,
        monthly: r.monthly,
        pitr_window: s.pitr_window,
        retain: locks(s),
    }
}

/// Applies retention. Decides first, while uploads go on; what there is to remove is then decided again and
/// removed with nobody else at the manifest. `shipping`: the database that this process streams there.
pub(super) fn compact(
    store: &Store,
    shipping: Option<&Arc<Watched>>,
    spools: &[PathBuf],
    policy: &Policy,
    action: Action,
) -> Result<Compacted> {
    let decided = block_on(replica::compact::compact(store, policy, Action::DryRun, clock::now(), None))??;
    if action == Action::DryRun {
        return Ok(decided);
    }
    if decided.removed == 0 && decided.vouched == 0 && decided.extended == 0 {
        return Ok(decided.forced());
    }
    if let Some(w) = shipping {
        sound::lets_go(w, &decided)?;
    }
    let _alone = alone(store, shipping, spools)?;
    block_on(replica::compact::compact(store, policy, action, clock::now(), None))?
}

/// What a mirror's replica needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct MirrorDue {
    retention: bool,
    validation: bool,
}

fn what_is_due(s: &Settings, m: &Mirror) -> MirrorDue {
    let Some(queue) = m.queue().filter(|_| m.is_serving()) else { return MirrorDue::default() };
    let newest = m.link().status().snapshot;
    if newest == TxId::ZERO {
        return MirrorDue::default();
    }
    let retained = *lock(&m.retained).get_or_insert_with(|| queue.retained(m.url()).unwrap_or_default());
    let age = lock(&m.validated).get_or_insert_with(|| last_checked(&queue, m.url())).by(clock::uptime());
    MirrorDue {
        retention: s.retention_is_by() == RetentionBy::Writer && newest > retained,
        validation: !s.validation_interval.is_zero() && age >= s.validation_interval,
    }
}

/// What goes wrong is that mirror's finding, and is tried again with its next snapshot, or when the next check is due.
fn care_for_mirror(w: &Arc<Watched>, m: &Arc<Mirror>) {
    let due = what_is_due(&w.settings(), m);
    let Some(queue) = m.queue().filter(|_| due != MirrorDue::default()) else { return };
    if due.retention {
        let after = m.link().status().snapshot;
        *lock(&m.retained) = Some(after);
        let settings = m.settings(&w.settings());
        let policy = Policy { retain: locks(&settings).filter(|_| m.store.can_hold()), ..policy(&settings) };
        match compact_mirror(m, &policy) {
            Ok(removed) => {
                drop(queue.note_retained(m.url(), after));
                log::info!(
                    "walrust: {}: mirror {}: retention removed {removed} files",
                    w.path().display(),
                    m.url()
                );
            }
            Err(e) => tell_of_mirror(w, m, &format!("retention: {e}")),
        }
    }
    if due.validation {
        *lock(&m.validated) = Some(Aged::new(clock::now(), clock::now(), clock::uptime()));
        m.link().have_all_named(SECOND_LOOK);
        let options = VerifyOptions { pause: SECOND_LOOK, ..Default::default() };
        match block_on(replica::verify(&m.store, &options)).and_then(|r| r) {
            Ok(r) if r.severity() == Severity::Ok => {
                drop(queue.note_validated(m.url(), clock::now()));
                *lock(&m.finding) = None;
            }
            Ok(r) => {
                let message = damage(&r);
                tell_of_mirror(w, m, &message);
                let event = format!("mirror {}: {message}", m.url());
                w.tell(EventKind::CorruptionDetected, event, details(&r));
                if r.severity() == Severity::Critical {
                    // What is lost stays lost; from the next snapshot on everything can be restored again.
                    m.begin_anew();
                }
            }
            Err(e) => tell_of_mirror(w, m, &format!("the mirror could not be validated: {e}")),
        }
    }
}

fn tell_of_mirror(w: &Watched, m: &Mirror, why: &str) {
    log::warn!("walrust: {}: mirror {}: {why}", w.path().display(), m.url());
    *lock(&m.finding) = Some(why.to_string());
}

/// How many files retention removed.
fn compact_mirror(m: &Mirror, policy: &Policy) -> Result<usize> {
    let compact = |action| block_on(replica::compact::compact(&m.store, policy, action, clock::now(), None))?;
    let decided = compact(Action::DryRun)?;
    if decided.removed == 0 && decided.vouched == 0 && decided.extended == 0 {
        return Ok(0);
    }
    let _alone = m.link().borrow_manifest(HAND_OVER)?;
    Ok(compact(Action::Force)?.removed)
}

fn retain(w: &Arc<Watched>) {
    let after = w.link.status().snapshot;
    match compact(&w.store, Some(w), &[], &policy(&w.settings()), Action::Force) {
        Ok(done) => {
            w.link.set_course(Duty::Retention, Course::Well);
            // (A record that cannot be written makes the next process apply it once more.)
            if let Err(e) = w.spool.note_retained(w.replica(), after) {
                log::debug!("walrust: {}: {e}", w.path().display());
            }
            if done.removed > 0 {
                let (files, bytes) = (done.removed, done.bytes);
                log::info!(
                    "walrust: {}: retention removed {files} files ({bytes} bytes)",
                    w.path().display()
                );
            }
        }
        Err(e) => {
            // (It has its own rest and error: nothing else waits for it.)
            let retry = Retry::without_end(w.settings().retry.base, RETENTION_RESTS);
            let course = w.link.course(Duty::Retention);
            let course = course.failed(&e, clock::uptime(), &retry, clock::random_u64());
            let attempts = course.failures();
            w.link.set_course(Duty::Retention, course);
            note_trouble(w, Duty::Retention, e.kind(), &e.to_string(), attempts);
            if e.is_corrupt() {
                w.set_finding(Some(format!("retention: {e}")));
                w.tell(EventKind::CorruptionDetected, format!("retention: {e}"), json!({}));
            }
        }
    }
}

/// One line about what verify found wrong.
pub fn damage(r: &Report) -> String {
    let count = r.issues().count();
    // A file that is named says more than the rule that it breaks.
    let worst = r.issues().min_by_key(|f| Reverse((f.file.is_some(), f.severity)));
    let worst = worst.map(|f| f.issue.as_deref().unwrap_or(&f.message)).unwrap_or_default();
    let more = match count {
        0 | 1 => String::new(),
        2 => " (and one more finding)".to_string(),
        n => format!(" (and {} more findings)", n - 1),
    };
    format!("verify of {}: {worst}{more}; call walrust_verify() for all of it", r.url)
}

/// The same for a program.
pub fn details(r: &Report) -> serde_json::Value {
    let findings: Vec<_> = r
        .issues()
        .take(20)
        .map(|f| {
            json!({
                "severity": f.severity.as_str(),
                "check": f.check.as_str(),
                "file": f.file.map(|id| id.name().to_string()),
                "message": f.message,
            })
        })
        .collect();
    json!({"exit_code": r.exit_code(), "issues": r.issues().count(), "findings": findings})
}
