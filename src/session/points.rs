//! Asking replicas for their points, for the page: on one thread, whatever the number of those who look, and none while nobody does.
//!
//! A replica is asked once in [`FRESH`] at most, its answer is kept for as long, and of so many replicas at once; the thread ends when
//! the last answer is stale. A store that does not answer is given up after [`PATIENCE`], and the others wait until then.

use crate::base::{Result, clock, lock, panics, thread};
use crate::metrics::{PointFace, Points, ReplicaFace};
use crate::replica::list::{Holdings, holdings};
use crate::store::{Store, block_on};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long an answer is given again.
const FRESH: Duration = Duration::from_secs(30);
/// How long a store is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Answers that are kept, and questions that wait: who asks for more asks again.
const MOST: usize = 8;

/// Opens the replica; called on the asking thread.
pub(super) type Open = Box<dyn FnOnce() -> Result<Store> + Send>;

/// The questions and answers of a process. A forked child has an empty one.
#[derive(Default)]
pub(super) struct Asker {
    at: Mutex<Desk>,
    wake: Condvar,
}

#[derive(Default)]
struct Desk {
    waiting: VecDeque<(String, Open)>,
    asking: Option<String>,
    /// The newest last.
    answers: Vec<Kept>,
    is_at_work: bool,
}

struct Kept {
    database: String,
    /// Uptime.
    at: Duration,
    said: Result<Arc<ReplicaFace>, String>,
}

impl Desk {
    fn forget_stale(&mut self, now: Duration) {
        self.answers.retain(|a| now.saturating_sub(a.at) < FRESH);
    }

    fn answer(&self, database: &str) -> Option<Points> {
        let kept = self.answers.iter().find(|a| a.database == database)?;
        Some(match &kept.said {
            Ok(held) => Points::Known(held.clone()),
            Err(why) => Points::Failed(why.clone()),
        })
    }

    fn keep(&mut self, kept: Kept) {
        self.answers.retain(|a| a.database != kept.database);
        if self.answers.len() >= MOST {
            self.answers.remove(0);
        }
        self.answers.push(kept);
    }

    /// How long the thread has something to wait for.
    fn rest(&self, now: Duration) -> Option<Duration> {
        self.answers.first().map(|a| (a.at + FRESH).saturating_sub(now))
    }
}

impl Asker {
    /// The points of a replica, if it was asked just now; else it is asked.
    pub(super) fn look(&'static self, database: &str, open: Open) -> Points {
        let mut desk = lock(&self.at);
        desk.forget_stale(clock::uptime());
        if let Some(said) = desk.answer(database) {
            return said;
        }
        let is_asked = desk.asking.as_deref() == Some(database)
            || desk.waiting.iter().any(|(name, _)| name == database)
            || desk.waiting.len() >= MOST;
        if is_asked {
            return Points::Asking;
        }
        desk.waiting.push_back((database.to_string(), open));
        if !desk.is_at_work {
            if let Err(e) = thread::spawn("walrust-points", 1 << 20, || self.work()) {
                desk.waiting.clear();
                return Points::Failed(format!("the replica cannot be asked: no thread can be started: {e}"));
            }
            desk.is_at_work = true;
        }
        self.wake.notify_one();
        Points::Asking
    }

    /// What a replica holds has changed: the next look asks it again.
    pub(super) fn forget(&self, database: &str) {
        lock(&self.at).answers.retain(|a| a.database != database);
    }

    fn work(&self) {
        loop {
            let mut desk = lock(&self.at);
            let now = clock::uptime();
            desk.forget_stale(now);
            let Some((database, open)) = desk.waiting.pop_front() else {
                let Some(rest) = desk.rest(now) else {
                    desk.is_at_work = false;
                    return;
                };
                drop(self.wake.wait_timeout(desk, rest).unwrap_or_else(PoisonError::into_inner));
                continue;
            };
            desk.asking = Some(database.clone());
            drop(desk);
            let said =
                panics::caught(|| ask(open)).unwrap_or_else(|said| Err(format!("internal error: {said}")));
            let mut desk = lock(&self.at);
            desk.asking = None;
            desk.keep(Kept { database, at: clock::uptime(), said: said.map(Arc::new) });
        }
    }
}

fn ask(open: Open) -> Result<ReplicaFace, String> {
    let asked = clock::now();
    let held = open().and_then(|store| {
        block_on(async move { tokio::time::timeout(PATIENCE, async { holdings(&store).await }).await })
    });
    match held {
        Ok(Ok(Ok(held))) => Ok(face(held, asked)),
        Ok(Ok(Err(e))) | Err(e) => Err(e.to_string()),
        Ok(Err(_)) => {
            Err(format!("the store has not answered within {} seconds; ask again", PATIENCE.as_secs()))
        }
    }
}

/// What the pages show of a replica that was asked.
pub fn face(held: Holdings, asked: crate::base::Timestamp) -> ReplicaFace {
    let point = |p: &crate::replica::list::PointRow| PointFace {
        txid: p.txid,
        time: p.time,
        level: p.id.level.get(),
        bytes: p.bytes,
        pages: p.pages,
        labels: p.labels.clone(),
    };
    ReplicaFace {
        asked,
        points: held.points.iter().map(point).collect(),
        files: held.files,
        bytes: held.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Error;
    use crate::store::ReplicaUrl;

    fn until_said(asker: &'static Asker, database: &str, open: impl Fn() -> Open) -> Points {
        let begun = clock::uptime();
        loop {
            match asker.look(database, open()) {
                Points::Asking if clock::uptime() - begun < Duration::from_secs(20) => {
                    clock::sleep(Duration::from_millis(2));
                }
                said => return said,
            }
        }
    }

    #[test]
    fn an_answer_is_kept_and_a_failure_says_why() {
        let asker: &'static Asker = Box::leak(Box::default());
        let dir = tempfile::tempdir().unwrap();
        let url = dir.path().join("replica").display().to_string();
        std::fs::create_dir(&url).unwrap();
        let asked = Arc::new(Mutex::new(0));
        let open = || -> Open {
            let (url, asked) = (url.clone(), asked.clone());
            Box::new(move || {
                *lock(&asked) += 1;
                Store::open(&ReplicaUrl::parse(&url)?)
            })
        };
        assert!(matches!(asker.look("a", open()), Points::Asking), "nobody waits for a store");
        for _ in 0..3 {
            let Points::Known(held) = until_said(asker, "a", open) else { panic!("no answer") };
            assert_eq!((held.files, held.points.len()), (0, 0));
        }
        assert_eq!(*lock(&asked), 1, "asked once in {FRESH:?}");
        let refuse = || -> Open { Box::new(|| Err(Error::config("no such key"))) };
        let Points::Failed(why) = until_said(asker, "b", refuse) else { panic!("no failure") };
        assert!(why.contains("no such key"), "{why}");
        let panics = || -> Open { Box::new(|| panic!("on purpose")) };
        let Points::Failed(why) = until_said(asker, "c", panics) else { panic!("no failure") };
        assert!(why.contains("internal error"), "{why}");
        assert!(matches!(until_said(asker, "a", open), Points::Known(_)), "and the thread goes on");
    }

    #[test]
    fn questions_that_wait_and_answers_are_bounded() {
        let asker: &'static Asker = Box::leak(Box::default());
        let slow = || -> Open {
            Box::new(|| {
                clock::sleep(Duration::from_millis(30));
                Err(Error::config("no"))
            })
        };
        for n in 0..50 {
            assert!(matches!(asker.look(&n.to_string(), slow()), Points::Asking));
        }
        assert!(lock(&asker.at).waiting.len() <= MOST);
        let begun = clock::uptime();
        while !lock(&asker.at).waiting.is_empty() || lock(&asker.at).asking.is_some() {
            assert!(clock::uptime() - begun < Duration::from_secs(20));
            clock::sleep(Duration::from_millis(5));
        }
        assert!(lock(&asker.at).answers.len() <= MOST);
    }
}
