//! The world behind the crate's doors: simulated time, one source of chance, locks between simulated processes, jobs in
//! place of threads, and death at a crash point.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;
use walrust::base::Timestamp;
use walrust::base::sim::{Job, World};

/// 2026-11-22T18:04:43.421Z
const START: i64 = 1_795_370_683_421;

/// Number of a simulated process; 0 is nobody, whom no fault touches.
pub type Pid = usize;

/// What a process dies of at a crash point. Thrown by `panic_any`, so that its stack unwinds to the step that ran it.
pub struct Killed;

/// Whoever lets others run while a process waits.
pub trait Others {
    fn while_waiting(&self, d: Duration);
    fn between(&self, point: &str);
}

pub struct Clockwork {
    rng: Cell<u64>,
    uptime: Cell<Duration>,
    held: Cell<i32>,
    current: Cell<Pid>,
    owners: RefCell<BTreeMap<PathBuf, Pid>>,
    pub jobs: RefCell<VecDeque<(Pid, String, Job)>>,
    /// The process that dies after so many more points.
    crash: Cell<Option<(Pid, u32)>>,
    dead: RefCell<HashSet<Pid>>,
    /// Directories whose disk refuses writes, and with which error.
    pub bad_disks: RefCell<Vec<(PathBuf, i32)>>,
    /// Inodes that are on disk to stay.
    pub durable: RefCell<HashSet<u64>>,
    others: RefCell<Option<Weak<dyn Others>>>,
    /// Milliseconds by which the current machine's clock is wrong.
    pub skew: Cell<i64>,
    points: RefCell<BTreeMap<String, u64>>,
}

impl Clockwork {
    pub fn new(seed: u64) -> Rc<Clockwork> {
        Rc::new(Clockwork {
            rng: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d),
            uptime: Cell::new(Duration::from_secs(1000)),
            held: Cell::default(),
            current: Cell::default(),
            owners: RefCell::default(),
            jobs: RefCell::default(),
            crash: Cell::default(),
            dead: RefCell::default(),
            bad_disks: RefCell::default(),
            durable: RefCell::default(),
            others: RefCell::default(),
            skew: Cell::default(),
            points: RefCell::default(),
        })
    }

    pub fn set_others(&self, others: Weak<dyn Others>) {
        *self.others.borrow_mut() = Some(others);
    }

    fn others(&self) -> Option<Rc<dyn Others>> {
        self.others.borrow().as_ref()?.upgrade()
    }

    /// SplitMix64.
    pub fn next(&self) -> u64 {
        let s = self.rng.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.rng.set(s);
        let z = (s ^ (s >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn advance(&self, d: Duration) {
        self.uptime.set(self.uptime.get() + d);
    }

    pub fn current(&self) -> Pid {
        self.current.get()
    }

    pub fn set_current(&self, pid: Pid) -> Pid {
        self.current.replace(pid)
    }

    /// Whether a lock is held that others may want.
    pub fn is_locked(&self) -> bool {
        self.held.get() > 0
    }

    pub fn arm(&self, pid: Pid, points: u32) {
        self.crash.set(Some((pid, points)));
    }

    pub fn disarm(&self) {
        self.crash.set(None);
    }

    /// It is to die as soon as it comes back from a wait.
    pub fn doom(&self, pid: Pid) {
        self.dead.borrow_mut().insert(pid);
    }

    pub fn is_doomed(&self, pid: Pid) -> bool {
        self.dead.borrow().contains(&pid)
    }

    /// Nothing of it is left: its locks are free.
    pub fn buried(&self, pid: Pid) {
        self.owners.borrow_mut().retain(|_, p| *p != pid);
        self.jobs.borrow_mut().retain(|(p, _, _)| *p != pid);
        if self.crash.get().is_some_and(|(p, _)| p == pid) {
            self.crash.set(None);
        }
    }

    /// How often each crash point was passed.
    pub fn points(&self) -> BTreeMap<String, u64> {
        self.points.borrow().clone()
    }

    fn die_if_doomed(&self) {
        let pid = self.current.get();
        if pid != 0 && self.is_doomed(pid) && !std::thread::panicking() {
            std::panic::panic_any(Killed);
        }
    }
}

impl World for Clockwork {
    fn now(&self) -> Timestamp {
        Timestamp(START + self.uptime.get().as_millis() as i64 + self.skew.get())
    }

    fn uptime(&self) -> Duration {
        self.uptime.get()
    }

    fn sleep(&self, d: Duration) {
        self.die_if_doomed();
        match self.others() {
            Some(o) => o.while_waiting(d),
            None => self.advance(d),
        }
        self.die_if_doomed();
    }

    fn random(&self) -> u64 {
        self.next()
    }

    fn reached(&self, point: &str) {
        let pid = self.current.get();
        if pid == 0 {
            return;
        }
        *self.points.borrow_mut().entry(point.to_string()).or_default() += 1;
        if let Some((p, n)) = self.crash.get()
            && p == pid
        {
            if n == 0 {
                self.crash.set(None);
                self.doom(pid);
            } else {
                self.crash.set(Some((p, n - 1)));
            }
        }
        self.die_if_doomed();
        if !self.is_locked()
            && let Some(o) = self.others()
        {
            o.between(point);
            self.die_if_doomed();
        }
    }

    fn spawn(&self, name: &str, work: Job) {
        // The scheduler looks at the databases in the sealer's place.
        if name != "walrust-seal" {
            self.jobs.borrow_mut().push_back((self.current.get(), name.to_string(), work));
        }
    }

    fn holds(&self, change: i32) {
        self.held.set(self.held.get() + change);
    }

    fn own(&self, lock: &Path) -> bool {
        let me = self.current.get();
        *self.owners.borrow_mut().entry(lock.to_path_buf()).or_insert(me) == me
    }

    fn disown(&self, lock: &Path) {
        let me = self.current.get();
        self.owners.borrow_mut().retain(|l, p| l != lock || *p != me);
    }

    fn process(&self) -> u64 {
        u64::try_from(self.current.get()).unwrap_or(0)
    }

    fn is_dead(&self) -> bool {
        self.is_doomed(self.current.get())
    }

    fn disk(&self, path: &Path) -> Option<i32> {
        self.bad_disks.borrow().iter().find(|(d, _)| path.starts_with(d)).map(|(_, e)| *e)
    }

    fn synced(&self, path: &Path) {
        if let Ok(m) = std::fs::metadata(path) {
            self.durable.borrow_mut().insert(m.ino());
        }
    }
}
