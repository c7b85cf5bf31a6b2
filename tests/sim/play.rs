//! The scheduler: machines with processes with connections, what may happen to them, and one seed that decides what does.

use super::bucket::{self, Bucket, Weather};
use super::oracle::{Oracle, States, hash, state_of};
use super::world::{Clockwork, Killed, Others, Pid};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use walrust::base::TxId;
use walrust::base::sim::{self, World};
use walrust::replica::{self, Inventory, Point, RestoreOptions, Severity, VerifyOptions};
use walrust::session::Engine;
use walrust::ship::{State, runtime};
use walrust::sqlite::linked;
use walrust::store::{Retry, Store, block_on};

const URL: &str = "s3://simulated/replica";
/// How deep one waiting process may lie above another: each keeps its place on this thread's stack.
const DEPTH: u32 = 3;
/// Lines of the story that a failure tells.
const STORY: usize = 160;

thread_local! {
    /// Whether the process at work has loaded walrust: asked when SQLite opens a file.
    pub static LOADED: Cell<bool> = const { Cell::new(false) };
    /// The last panic that was not a simulated death.
    pub static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What kind of world a seed makes.
#[derive(Clone, Debug)]
struct Kind {
    page_size: u32,
    /// `durability = "sync"`; then one process a machine, and no writer without walrust.
    sync: bool,
    foreign: bool,
    rivals: bool,
    full: bool,
    interval: &'static str,
    levels: &'static str,
    snapshots: &'static str,
    pitr: &'static str,
}

struct Machine {
    dir: PathBuf,
    /// Milliseconds by which its clock is wrong.
    skew: i64,
    /// Older versions of the spool's records, which a power cut may bring back.
    old: VecDeque<(String, Vec<u8>)>,
    /// Generation and length of the WAL that is on disk to stay.
    safe: ([u8; 8], u64),
    backfilled: u32,
    /// When something without walrust last touched the database.
    foreign: Duration,
    /// COMMITs refused that may be in the replica.
    doubts: u32,
}

struct Process {
    machine: usize,
    /// `None`: it has not loaded walrust.
    engine: Option<&'static Engine>,
    runtime: Option<Runtime>,
    runtime_at: Duration,
    /// A connection in use is away.
    connections: Vec<Option<Connection>>,
    /// How often it is on this thread's stack.
    frames: u32,
    frozen_until: Duration,
}

/// Counts for the end of a campaign.
#[derive(Default, Debug, Clone)]
pub struct Tally(pub BTreeMap<&'static str, u64>);

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        for (k, n) in &other.0 {
            *self.0.entry(k).or_default() += n;
        }
    }
}

pub struct Play {
    pub world: Rc<Clockwork>,
    bucket: Arc<Bucket>,
    kind: Kind,
    root: tempfile::TempDir,
    machines: RefCell<BTreeMap<usize, Machine>>,
    processes: RefCell<BTreeMap<Pid, Process>>,
    oracle: RefCell<Oracle>,
    born: Cell<usize>,
    depth: Cell<u32>,
    pumping: Cell<bool>,
    pub steps: Cell<u64>,
    limit: u64,
    calm: Cell<bool>,
    patience: Cell<u32>,
    /// Waits since the last step that did not come out of one.
    waits: Cell<u32>,
    failed: RefCell<Option<String>>,
    story: RefCell<VecDeque<String>>,
    pub trace: Cell<u64>,
    pub tally: RefCell<Tally>,
    verbose: bool,
}

impl Others for Play {
    fn while_waiting(&self, d: Duration) {
        if tokio::runtime::Handle::try_current().is_ok() {
            self.world.advance(d);
            return;
        }
        // Whoever has waited long looks less often: a day goes by in a few thousand steps.
        let waits = self.waits.replace(self.waits.get() + 1);
        let factor = 1 + (waits / 10).min(200) + self.world.below(6) as u32;
        self.world.advance(d.max(Duration::from_millis(2)) * factor);
        if self.failed.borrow().is_some() || (!self.calm.get() && self.steps.get() >= self.limit + 10_000) {
            self.world.doom(self.world.current());
            return;
        }
        if self.calm.get() {
            let left = self.patience.get();
            if left == 0 && self.depth.get() > 0 {
                self.world.doom(self.world.current());
            }
            self.patience.set(left.saturating_sub(1));
        }
        self.background();
        if !self.calm.get()
            && self.depth.get() < DEPTH
            && self.steps.get() < self.limit
            && self.world.one_in(3)
        {
            self.step();
        }
    }

    fn between(&self, _point: &str) {
        if !self.calm.get()
            && !self.pumping.get()
            && tokio::runtime::Handle::try_current().is_err()
            && self.failed.borrow().is_none()
            && self.depth.get() < DEPTH
            && self.steps.get() < self.limit
            && self.world.one_in(8)
        {
            self.step();
        }
    }
}

/// Restores what this thread works for.
struct Context {
    world: Rc<Clockwork>,
    before: (Pid, bool, i64),
    engine: Option<&'static Engine>,
    handle: Option<tokio::runtime::Handle>,
}

thread_local! {
    static AT_WORK: RefCell<(Option<&'static Engine>, Option<tokio::runtime::Handle>)> = const { RefCell::new((None, None)) };
}

impl Context {
    fn enter(play: &Play, pid: Pid) -> Context {
        let (engine, handle, skew) = {
            let ps = play.processes.borrow();
            let p = ps.get(&pid);
            let machine = p.map(|p| p.machine);
            let skew = machine.and_then(|m| play.machines.borrow().get(&m).map(|m| m.skew)).unwrap_or(0);
            (p.and_then(|p| p.engine), p.and_then(|p| p.runtime.as_ref()).map(|r| r.handle().clone()), skew)
        };
        let world = play.world.clone();
        let before = (world.set_current(pid), LOADED.replace(engine.is_some()), world.skew.replace(skew));
        let (was_engine, was_handle) = AT_WORK.with(|a| a.replace((engine, handle.clone())));
        Engine::stand_in(engine);
        runtime::stand_in(handle);
        Context { world, before, engine: was_engine, handle: was_handle }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.world.set_current(self.before.0);
        LOADED.set(self.before.1);
        self.world.skew.set(self.before.2);
        Engine::stand_in(self.engine);
        runtime::stand_in(self.handle.clone());
        AT_WORK.with(|a| *a.borrow_mut() = (self.engine, self.handle.take()));
    }
}

impl Play {
    pub fn new(seed: u64, limit: u64, verbose: bool) -> Rc<Play> {
        let world = Clockwork::new(seed);
        sim::enter(Some(world.clone()));
        bucket::enter(Some(world.clone()));
        linked::seed_randomness((seed as u32) | 1);
        let sync = world.one_in(5);
        let kind = Kind {
            page_size: [512, 1024, 4096][world.below(3) as usize],
            sync,
            foreign: !sync && world.one_in(2),
            rivals: world.one_in(2),
            full: world.one_in(2),
            interval: ["0s", "100ms", "1s"][world.below(3) as usize],
            levels: ["1s,5s,30s", "30s,5m,1h", "3s"][world.below(3) as usize],
            snapshots: ["20s", "1h", "0"][world.below(3) as usize],
            pitr: ["0", "10s", "24h"][world.below(3) as usize],
        };
        let scratch =
            if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm").into() } else { std::env::temp_dir() };
        let root = tempfile::Builder::new().prefix("walrust-sim-").tempdir_in(scratch).unwrap();
        let play = Rc::new(Play {
            world: world.clone(),
            bucket: bucket::shared(),
            kind,
            root,
            machines: RefCell::default(),
            processes: RefCell::default(),
            oracle: RefCell::default(),
            born: Cell::new(1),
            depth: Cell::new(0),
            pumping: Cell::new(false),
            steps: Cell::new(0),
            limit,
            calm: Cell::new(false),
            patience: Cell::new(0),
            waits: Cell::new(0),
            failed: RefCell::default(),
            story: RefCell::default(),
            trace: Cell::new(seed),
            tally: RefCell::default(),
            verbose,
        });
        let weak: Weak<dyn Others> = Rc::downgrade(&play) as Weak<dyn Others>;
        world.set_others(weak);
        Store::stand_in(Some(play.store()));
        play.say(format!("world {seed}: {:?}", play.kind));
        if std::env::var("DIFF").is_ok() {
            play.oracle.borrow_mut().images = Some(Default::default());
        }
        play.first_machine();
        play
    }

    fn store(&self) -> Store {
        Store::over_client(self.bucket.clone(), URL).with_retry(Retry::BRIEF)
    }

    fn say(&self, what: String) {
        let line = format!(
            "{:>6} {}{:>9.3} {what}",
            self.steps.get(),
            "  ".repeat(self.depth.get() as usize),
            self.world.uptime().as_secs_f64()
        );
        if self.verbose {
            eprintln!("{line}");
        }
        self.mix(hash(what.as_bytes()));
        let mut s = self.story.borrow_mut();
        if s.len() == STORY {
            s.pop_front();
        }
        s.push_back(line);
    }

    fn mix(&self, n: u64) {
        self.trace.set((self.trace.get() ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
    }

    fn count(&self, what: &'static str) {
        *self.tally.borrow_mut().0.entry(what).or_default() += 1;
    }

    fn fail(&self, why: String) {
        let mut f = self.failed.borrow_mut();
        if f.is_none() {
            *f = Some(why);
        }
    }

    /// What went wrong, and what led to it.
    pub fn verdict(&self) -> Result<(), String> {
        match self.failed.borrow().as_ref() {
            None => Ok(()),
            Some(why) => {
                let story: Vec<String> = self.story.borrow().iter().cloned().collect();
                Err(format!("{}\n\nat step {}: {why}", story.join("\n"), self.steps.get()))
            }
        }
    }

    // -- machines and processes --------------------------------------------------------------------------------------

    fn db(&self, m: usize) -> PathBuf {
        self.machines.borrow()[&m].dir.join("app.db")
    }

    fn spool(&self, m: usize) -> PathBuf {
        self.machines.borrow()[&m].dir.join("app.db-walrust")
    }

    fn new_machine(&self, dir: PathBuf) -> usize {
        let id = self.born.replace(self.born.get() + 1);
        let machine = Machine {
            dir,
            skew: self.world.below(4000) as i64 - 2000,
            old: VecDeque::new(),
            safe: ([0; 8], 0),
            backfilled: 0,
            foreign: Duration::ZERO,
            doubts: 0,
        };
        self.machines.borrow_mut().insert(id, machine);
        id
    }

    fn first_machine(&self) {
        let dir = self.root.path().join("a");
        std::fs::create_dir(&dir).unwrap();
        let db = dir.join("app.db");
        let m = self.new_machine(dir);
        let c = Connection::open(&db).unwrap();
        c.execute_batch(&format!(
            "PRAGMA page_size={}; PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, k, v); CREATE INDEX i ON t(k)",
            self.kind.page_size
        ))
        .unwrap();
        self.oracle.borrow_mut().machines.insert(m, (States::default(), 0));
        self.observe(m, &c);
        drop(c);
    }

    fn pids(&self, pick: impl Fn(&Process) -> bool) -> Vec<Pid> {
        self.processes
            .borrow()
            .iter()
            .filter(|(pid, p)| !self.world.is_doomed(**pid) && pick(p))
            .map(|(i, _)| *i)
            .collect()
    }

    fn machine_ids(&self) -> Vec<usize> {
        self.machines.borrow().keys().copied().collect()
    }

    fn pick<T: Copy>(&self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.world.below(from.len() as u64) as usize])
    }

    fn machine_of(&self, pid: Pid) -> usize {
        self.processes.borrow()[&pid].machine
    }

    fn start_process(&self, m: usize, loaded: bool) -> Pid {
        let pid = self.born.replace(self.born.get() + 1);
        let rt = loaded.then(|| {
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
        });
        let p = Process {
            machine: m,
            engine: loaded.then(Engine::simulated),
            runtime: rt,
            runtime_at: self.world.uptime(),
            connections: Vec::new(),
            frames: 0,
            frozen_until: Duration::ZERO,
        };
        self.processes.borrow_mut().insert(pid, p);
        self.bucket.born(pid, m);
        self.count(if loaded { "processes" } else { "foreign processes" });
        pid
    }

    /// Runs a piece of a process. `None` when it died of it.
    fn inside<T>(&self, pid: Pid, f: impl FnOnce() -> T) -> Option<T> {
        match self.processes.borrow_mut().get_mut(&pid) {
            Some(p) => p.frames += 1,
            None => return None,
        }
        let context = Context::enter(self, pid);
        let done = catch_unwind(AssertUnwindSafe(f));
        drop(context);
        if let Some(p) = self.processes.borrow_mut().get_mut(&pid) {
            p.frames -= 1;
        }
        let out = match done {
            Ok(out) => Some(out),
            Err(e) => {
                if e.downcast_ref::<Killed>().is_none() {
                    let why = PANIC.with(|p| p.borrow_mut().take()).unwrap_or_default();
                    self.fail(format!("panic: {why}"));
                }
                self.world.doom(pid);
                None
            }
        };
        self.bury_if_dead(pid);
        out
    }

    fn bury_if_dead(&self, pid: Pid) {
        let dead =
            self.world.is_doomed(pid) && self.processes.borrow().get(&pid).is_some_and(|p| p.frames == 0);
        if !dead {
            return;
        }
        let Some(p) = self.processes.borrow_mut().remove(&pid) else { return };
        self.say(format!("process {pid} is dead"));
        self.count("deaths");
        if let Some(e) = p.engine {
            e.die();
        }
        if let Some(rt) = p.runtime {
            rt.shutdown_background();
        }
        for c in p.connections.into_iter().flatten() {
            // A process that is killed checkpoints nothing.
            let _ = c.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            drop(c);
        }
        self.world.buried(pid);
    }

    fn kill(&self, pid: Pid) {
        self.world.doom(pid);
        self.bury_if_dead(pid);
    }

    fn open(&self, pid: Pid) -> Option<usize> {
        let db = self.db(self.machine_of(pid));
        let (small, auto) = (self.world.one_in(3), [0, 5, 30, 1000][self.world.below(4) as usize]);
        let full = self.kind.full;
        let c = self.inside(pid, || {
            let c = Connection::open(&db).ok()?;
            c.busy_timeout(Duration::ZERO).ok()?;
            c.execute_batch(&format!(
                "PRAGMA synchronous={}; PRAGMA wal_autocheckpoint={auto}; PRAGMA cache_size={};",
                if full { "FULL" } else { "NORMAL" },
                if small { 5 } else { 200 }
            ))
            .ok()?;
            Some(c)
        })??;
        let mut ps = self.processes.borrow_mut();
        let p = ps.get_mut(&pid)?;
        p.connections.push(Some(c));
        Some(p.connections.len() - 1)
    }

    /// Runs `f` with a free connection of the process.
    fn with<T>(&self, pid: Pid, f: impl FnOnce(&Connection) -> T) -> Option<T> {
        let (i, c) = {
            let mut ps = self.processes.borrow_mut();
            let p = ps.get_mut(&pid)?;
            let free: Vec<usize> = (0..p.connections.len()).filter(|i| p.connections[*i].is_some()).collect();
            let i = self.pick(&free)?;
            (i, p.connections[i].take()?)
        };
        // While it is on the stack the process is not buried, so the connection finds its place again.
        self.processes.borrow_mut().get_mut(&pid)?.frames += 1;
        let out = self.inside(pid, || f(&c));
        if let Some(p) = self.processes.borrow_mut().get_mut(&pid) {
            p.frames -= 1;
            p.connections[i] = Some(c);
        }
        self.bury_if_dead(pid);
        out
    }

    fn watch(&self, pid: Pid, takeover: bool) {
        let k = &self.kind;
        let options = format!(
            r#"{{"interval":"{}","levels":"{}","snapshot_interval":"{}","pitr_window":"{}","durability":"{}","sync_timeout":"5s","spool_limit":"1MiB","retention_hourly":1,"retention_daily":1,"retention_weekly":0,"retention_monthly":0,"takeover":{takeover}}}"#,
            k.interval,
            k.levels,
            k.snapshots,
            k.pitr,
            if k.sync { "sync" } else { "async" },
        );
        let answer = self.with(pid, |c| {
            c.query_row("SELECT walrust_watch(?1, ?2)", [URL, options.as_str()], |r| r.get::<_, String>(0))
        });
        if let Some(answer) = answer {
            let text = match answer {
                Ok(t) => t.split('(').nth(1).unwrap_or_default().to_string(),
                // (The directory's name has digits, too: it goes first.)
                Err(e) => {
                    let text = e.to_string().replace(&*self.root.path().to_string_lossy(), "");
                    text.chars().filter(|c| !c.is_ascii_digit()).collect()
                }
            };
            self.say(format!("process {pid} watches (takeover {takeover}): {}", without_host(&text)));
        }
    }

    // -- the database ------------------------------------------------------------------------------------------------

    /// Notes the state of a machine's database.
    fn observe(&self, m: usize, c: &Connection) {
        let Ok(data) = c.serialize("main") else { return };
        let sum = state_of(&data);
        if let Some(i) = &mut self.oracle.borrow_mut().images {
            i.insert(sum, data.to_vec());
        }
        let news = self.oracle.borrow_mut().machines.get_mut(&m).is_some_and(|(s, _)| s.push(sum));
        if news {
            self.mix(sum);
            self.count("states");
        }
        self.note_syncs(m);
    }

    /// The database as its files have it: a process that died in the middle of a statement may have died after its COMMIT, and cannot be
    /// asked; one that is still in the statement has not looked.
    fn observe_files(&self, m: usize) {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("app.db");
        for (from, to) in [(self.db(m), copy.clone()), (beside(&self.db(m), "-wal"), beside(&copy, "-wal"))] {
            if std::fs::copy(from, to).is_err() {
                return;
            }
        }
        if let Ok(c) = Connection::open(&copy) {
            self.observe(m, &c);
        }
    }

    /// What SQLite has synced of the WAL: all of it when a checkpoint ran, nothing else at `synchronous=NORMAL`.
    fn note_syncs(&self, m: usize) {
        let db = self.db(m);
        let mut machines = self.machines.borrow_mut();
        let Some(machine) = machines.get_mut(&m) else { return };
        let Some((salt, length)) = wal_of(&db) else {
            machine.safe = ([0; 8], 0);
            return;
        };
        let index = read_some(&beside(&db, "-shm"), 136);
        let word =
            |i: usize| index.get(i * 4..i * 4 + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap()));
        let (max_frame, backfilled) = (word(4), word(24));
        let frames = 32 + u64::from(max_frame) * (u64::from(self.kind.page_size) + 24);
        if machine.safe.0 != salt {
            machine.safe = (salt, 32);
            machine.backfilled = 0;
        }
        if backfilled > machine.backfilled || self.kind.full {
            machine.safe.1 = frames.min(length);
        }
        machine.backfilled = backfilled;
    }

    fn sql(&self) -> String {
        let w = &self.world;
        let n = w.below(1000);
        match w.below(100) {
            0..40 => format!("INSERT INTO t(k, v) VALUES({n}, randomblob({}))", w.below(600)),
            40..52 => format!("UPDATE t SET v = randomblob({}) WHERE id % 5 = {}", w.below(300), n % 5),
            52..60 => format!("DELETE FROM t WHERE id % 4 = {}", n % 4),
            60..70 => format!(
                "BEGIN; INSERT INTO t(k, v) SELECT k + 1, randomblob(200) FROM t LIMIT 12; DELETE FROM t WHERE k < {n} AND id % 3 = 0; \
                 INSERT INTO t(k, v) VALUES({n}, zeroblob(900)); COMMIT"
            ),
            // Spilled frames stay behind mxFrame.
            70..78 => "BEGIN; INSERT INTO t(k, v) SELECT k, randomblob(1500) FROM t LIMIT 20; UPDATE t SET k = k + 1; ROLLBACK".into(),
            78..84 => format!(
                "BEGIN; SAVEPOINT s; INSERT INTO t(k, v) SELECT k, randomblob(1500) FROM t LIMIT 15; ROLLBACK TO s; \
                 INSERT INTO t(k, v) VALUES({n}, randomblob(2500)); COMMIT"
            ),
            84..88 => format!("INSERT INTO t(k, v) VALUES({n}, randomblob(12000))"),
            88..92 => "CREATE TABLE IF NOT EXISTS u(x); INSERT INTO u VALUES(randomblob(3000)); DROP TABLE u".into(),
            92..96 => "DELETE FROM t WHERE id % 2 = 0; VACUUM".into(),
            _ => "DELETE FROM t WHERE id NOT IN (SELECT id FROM t ORDER BY id DESC LIMIT 10)".into(),
        }
    }

    /// Whether commits of the process are seen by walrust.
    fn is_watching(&self, pid: Pid) -> bool {
        self.processes.borrow().get(&pid).is_some_and(|p| p.engine.is_some_and(|e| !e.watched().is_empty()))
    }

    /// Whether somebody of the machine is in the middle of something.
    fn is_busy(&self, m: usize) -> bool {
        self.processes.borrow().values().any(|p| p.machine == m && p.frames > 0)
    }

    fn write(&self, pid: Pid) {
        let m = self.machine_of(pid);
        let alone = !self.is_busy(m);
        let loaded = self.is_watching(pid);
        let sql = if self.pages(m) > 90 {
            "DELETE FROM t WHERE id % 8 != 0; VACUUM".to_string()
        } else {
            self.sql()
        };
        if !loaded {
            self.touched(m);
        }
        let done = self.with(pid, |c| {
            let mut done = Ok(());
            for statement in sql.split(';') {
                done = c.execute_batch(statement);
                if done.is_err() {
                    break;
                }
                if c.is_autocommit() {
                    self.observe(m, c);
                }
            }
            if !c.is_autocommit() {
                let _ = c.execute_batch("ROLLBACK");
            }
            if done.is_err()
                && self.kind.sync
                && let Some(machine) = self.machines.borrow_mut().get_mut(&m)
            {
                machine.doubts += 1;
                // SQLite keeps page 1 as it was about to write it: its change counter is that of no state.
                let _ = c.execute_batch("PRAGMA shrink_memory");
            }
            self.observe(m, c);
            if self.world.is_doomed(pid) {
                done = Ok(());
            }
            done
        });
        if self.world.is_doomed(pid) {
            self.observe_files(m);
        }
        let text = match &done {
            None => "died".to_string(),
            Some(Ok(())) => "ok".to_string(),
            Some(Err(e)) => e.to_string(),
        };
        self.count(if matches!(done, Some(Ok(()))) { "writes" } else { "writes refused" });
        self.say(format!("process {pid} writes: {} → {text}", sql.chars().take(60).collect::<String>()));
        if let Some(Err(e)) = done
            && alone
            && !self.kind.sync
        {
            self.fail(format!("a write failed that nothing stood in the way of: {e}"));
        }
    }

    fn pages(&self, m: usize) -> u64 {
        std::fs::metadata(self.db(m)).map_or(0, |f| f.len()) / u64::from(self.kind.page_size)
    }

    /// Something without walrust is at the database. Its writes get a time of their own: the kernel's clock of files is
    /// coarser than the steps here.
    fn touched(&self, m: usize) {
        let now = self.world.uptime();
        if let Some(machine) = self.machines.borrow_mut().get_mut(&m) {
            machine.foreign = now;
        }
    }

    fn checkpoint(&self, pid: Pid) {
        let m = self.machine_of(pid);
        let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][self.world.below(4) as usize];
        if !self.is_watching(pid) {
            self.touched(m);
        }
        let got = self.with(pid, |c| {
            let got = c.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| {
                Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?))
            });
            self.observe(m, c);
            got.ok()
        });
        self.count("checkpoints");
        self.say(format!("process {pid} checkpoints {mode}: {got:?}"));
    }

    fn close(&self, pid: Pid) {
        // A close waits for walrust's own handles, which others on the stack may hold.
        let m = self.machine_of(pid);
        if self.is_busy(m) {
            return;
        }
        let c = {
            let mut ps = self.processes.borrow_mut();
            let Some(p) = ps.get_mut(&pid) else { return };
            let Some(Some(c)) = p.connections.pop() else { return };
            c
        };
        let foreign = !self.is_watching(pid);
        let db = self.db(m);
        self.inside(pid, || drop(c));
        if foreign {
            self.touched(m);
            stamp(&db, self.world.now().0);
        }
        self.note_syncs(m);
        self.count("closes");
        self.say(format!("process {pid} closes a connection"));
    }

    /// A writer without walrust uses a rollback journal for a while.
    fn rollback_mode(&self, pid: Pid) {
        let m = self.machine_of(pid);
        if self.is_busy(m) {
            return;
        }
        self.touched(m);
        let db = self.db(m);
        let done = self.with(pid, |c| {
            let mode: String =
                c.query_row("PRAGMA journal_mode=DELETE", [], |r| r.get(0)).unwrap_or_default();
            if mode == "delete" {
                self.observe(m, c);
                let _ = c.execute_batch("INSERT INTO t(k, v) VALUES(1, randomblob(100))");
                self.observe(m, c);
                stamp(&db, self.world.now().0);
                let _ = c.execute_batch("PRAGMA journal_mode=WAL");
            }
            self.observe(m, c);
            mode
        });
        self.say(format!("process {pid} tries rollback mode: {done:?}"));
    }

    fn sync(&self, pid: Pid) {
        let m = self.machine_of(pid);
        let before = self.oracle.borrow().machines.get(&m).map_or(0, |(s, _)| s.newest);
        let timeout = 1 + self.world.below(20) as i64;
        let got =
            self.with(pid, |c| c.query_row("SELECT walrust_sync(?1)", [timeout], |r| r.get::<_, i64>(0)));
        self.take_puts();
        match got {
            Some(Ok(txid)) if !self.world.is_doomed(pid) => {
                self.count("syncs acknowledged");
                self.say(format!("process {pid} syncs: TXID {txid}"));
                // (Another process may be between its commit and what it does after that.)
                if self.oracle.borrow().acknowledged(m, before, txid as u64).is_err() {
                    self.observe_files(m);
                }
                let o = self.oracle.borrow();
                if let Err(e) = o.acknowledged(m, before, txid as u64) {
                    let how =
                        o.txids.get(&(txid as u64)).map(|s| o.difference(*s, self.kind.page_size as usize));
                    self.fail(format!("{e} (state {before}): {how:?}"));
                }
            }
            Some(Err(e)) => {
                self.count("syncs refused");
                self.say(format!("process {pid} syncs in vain: {}", kind_of(&e.to_string())));
            }
            _ => self.say(format!("process {pid} died in a sync")),
        }
    }

    fn snapshot(&self, pid: Pid) {
        let got = self.with(pid, |c| c.query_row("SELECT walrust_snapshot()", [], |r| r.get::<_, i64>(0)));
        let text = match got {
            Some(Ok(t)) => format!("TXID {t}"),
            Some(Err(e)) => kind_of(&e.to_string()),
            None => "died".into(),
        };
        self.count("snapshots asked for");
        self.say(format!("process {pid} takes a snapshot: {text}"));
    }

    fn unwatch(&self, pid: Pid) {
        let got =
            self.with(pid, |c| c.query_row("SELECT walrust_unwatch()", [], |r| r.get::<_, i64>(0)).is_ok());
        self.say(format!("process {pid} unwatches: {got:?}"));
    }

    // -- what runs by itself -----------------------------------------------------------------------------------------

    /// The shipper of a process takes a few turns.
    fn pump(&self, pid: Pid, turns: u64) {
        if self.pumping.replace(true) {
            return;
        }
        let now = self.world.uptime();
        let taken = {
            let mut ps = self.processes.borrow_mut();
            ps.get_mut(&pid).and_then(|p| {
                let gone = now.saturating_sub(p.runtime_at);
                p.runtime_at = now;
                p.runtime.take().map(|rt| (rt, gone))
            })
        };
        if let Some((rt, gone)) = taken {
            // The handle stays good while the runtime is away.
            let handle = rt.handle().clone();
            self.inside_with(pid, handle, || {
                rt.block_on(async {
                    tokio::time::advance(gone).await;
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                });
            });
            match self.processes.borrow_mut().get_mut(&pid) {
                Some(p) => p.runtime = Some(rt),
                None => rt.shutdown_background(),
            }
        }
        self.pumping.set(false);
        self.bury_if_dead(pid);
    }

    fn inside_with(&self, pid: Pid, handle: tokio::runtime::Handle, f: impl FnOnce()) {
        if let Some(p) = self.processes.borrow_mut().get_mut(&pid) {
            p.frames += 1;
        }
        self.inside(pid, || {
            runtime::stand_in(Some(handle));
            f();
        });
        if let Some(p) = self.processes.borrow_mut().get_mut(&pid) {
            p.frames -= 1;
        }
    }

    fn look(&self, pid: Pid) {
        let engine = self.processes.borrow().get(&pid).and_then(|p| p.engine);
        if let Some(e) = engine {
            self.inside(pid, || e.look());
        }
    }

    /// A thread of a process gets to run.
    fn job(&self) {
        if self.depth.get() > DEPTH {
            return;
        }
        let now = self.world.uptime();
        let job = {
            let ps = self.processes.borrow();
            let mut jobs = self.world.jobs.borrow_mut();
            let at = jobs.iter().position(|(pid, _, _)| {
                !self.world.is_doomed(*pid) && ps.get(pid).is_some_and(|p| p.frozen_until <= now)
            });
            at.and_then(|at| jobs.remove(at))
        };
        if let Some((pid, name, work)) = job {
            self.say(format!("process {pid} runs {name}"));
            self.count("jobs");
            self.depth.set(self.depth.get() + 1);
            self.inside(pid, work);
            self.depth.set(self.depth.get() - 1);
        }
    }

    /// Everybody who is awake does a little.
    fn background(&self) {
        let now = self.world.uptime();
        self.bucket.arrive(now);
        for pid in self.pids(|p| p.engine.is_some() && p.frozen_until <= now) {
            self.steps.set(self.steps.get() + 1);
            if self.calm.get() || self.world.one_in(2) {
                self.look(pid);
            }
            self.pump(pid, if self.calm.get() { 40 } else { 1 + self.world.below(12) });
        }
        self.job();
        self.take_puts();
    }

    // -- trouble -----------------------------------------------------------------------------------------------------

    fn power_cut(&self, m: usize) {
        if self.is_busy(m) {
            return;
        }
        self.count("power cuts");
        for pid in self.pids(|p| p.machine == m) {
            self.kill(pid);
        }
        let (db, spool) = (self.db(m), self.spool(m));
        let w = &self.world;
        let (safe, old) = {
            let ms = self.machines.borrow();
            (ms[&m].safe, ms[&m].old.clone())
        };
        // The database file: pages that a checkpoint wrote are synced before a frame is overwritten, and until then
        // the frames are there.
        let mut lost = String::new();
        if let Some((salt, length)) = wal_of(&db) {
            let from = if salt == safe.0 { safe.1 } else { 32 };
            let wal = beside(&db, "-wal");
            if length > from {
                let mut bytes = std::fs::read(&wal).unwrap();
                let cut = (from + w.below(length - from + 1)) as usize;
                match w.below(3) {
                    0 => bytes.truncate(cut),
                    1 => bytes[cut..].fill(0),
                    // One sector did not make it, later ones did.
                    _ => {
                        let end = (cut + 512).min(bytes.len());
                        bytes[cut..end].fill(0);
                    }
                }
                std::fs::write(&wal, bytes).unwrap();
                lost = format!("WAL damaged from byte {cut} of {length}");
            }
        }
        let _ = std::fs::remove_file(beside(&db, "-shm"));
        for path in files_below(&spool) {
            let name = path.file_name().unwrap().to_string_lossy().to_string();
            let is_safe = inode(&path).is_some_and(|i| w.durable.borrow().contains(&i));
            if name.starts_with("lock.") || is_safe || w.one_in(2) {
                continue;
            }
            let older: Vec<&Vec<u8>> = old.iter().filter(|(n, _)| *n == name).map(|(_, b)| b).collect();
            let mut bytes = std::fs::read(&path).unwrap_or_default();
            match w.below(5) {
                0 => drop(std::fs::remove_file(&path)),
                1 => std::fs::write(&path, b"").unwrap(),
                2 if !older.is_empty() => {
                    std::fs::write(&path, older[w.below(older.len() as u64) as usize]).unwrap();
                }
                3 => {
                    bytes.truncate(w.below(bytes.len() as u64 + 1) as usize);
                    std::fs::write(&path, bytes).unwrap();
                }
                _ => {
                    let at = w.below(bytes.len() as u64 + 1) as usize / 512 * 512;
                    bytes.iter_mut().skip(at).take(512).for_each(|b| *b = 0);
                    std::fs::write(&path, bytes).unwrap();
                }
            }
            lost += &format!(", {name}");
        }
        self.say(format!("machine {m} loses power; {lost}"));
        self.see_after_the_cut(m);
    }

    /// What SQLite makes of it is what the database is now; it must be something it was.
    fn see_after_the_cut(&self, m: usize) {
        let Ok(c) = Connection::open(self.db(m)) else { return };
        let before = self.oracle.borrow().machines[&m].0.newest;
        self.observe(m, &c);
        let ok: rusqlite::Result<String> = c.query_row("PRAGMA integrity_check", [], |r| r.get(0));
        if ok.as_deref() != Ok("ok") {
            self.fail(format!("the simulated power cut broke SQLite's promise: {ok:?}"));
        }
        let after = self.oracle.borrow().machines[&m].0.newest;
        self.say(format!("machine {m} is at state {after} (was {before})"));
        let _ = c.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// Another machine begins with a copy of this one's files.
    fn clone_machine(&self, m: usize) {
        if self.is_busy(m) || self.machines.borrow().len() >= 3 {
            return;
        }
        let dir = self.root.path().join(format!("m{}", self.born.get()));
        std::fs::create_dir(&dir).unwrap();
        let (db, spool) = (self.db(m), self.spool(m));
        std::fs::copy(&db, dir.join("app.db")).unwrap();
        let wal = beside(&db, "-wal");
        if wal.exists() {
            std::fs::copy(&wal, dir.join("app.db-wal")).unwrap();
        }
        let with_spool = spool.exists() && self.world.one_in(2);
        if with_spool {
            for f in files_below(&spool) {
                let to = dir.join("app.db-walrust").join(f.strip_prefix(&spool).unwrap());
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(&f, to).unwrap();
            }
        }
        let id = self.new_machine(dir);
        let (states, shipped) = {
            let o = self.oracle.borrow();
            let (s, n) = &o.machines[&m];
            (s.clone(), *n)
        };
        self.oracle.borrow_mut().machines.insert(id, (states, shipped));
        // Whoever copies a database's files has them on disk before they are used.
        if let (Some(safe), Some(machine)) = (wal_of(&self.db(id)), self.machines.borrow_mut().get_mut(&id)) {
            machine.safe = safe;
        }
        self.count("machines cloned");
        self.say(format!("machine {id} is a copy of machine {m}, with its spool: {with_spool}"));
    }

    fn scrap_machine(&self, m: usize) {
        if self.is_busy(m) || self.machines.borrow().len() < 2 {
            return;
        }
        for pid in self.pids(|p| p.machine == m) {
            self.kill(pid);
        }
        self.machines.borrow_mut().remove(&m);
        self.say(format!("machine {m} is gone for good"));
    }

    // -- judging -----------------------------------------------------------------------------------------------------

    fn take_puts(&self) {
        for put in self.bucket.seen() {
            let machine = self.machine_of_dead_or_alive(put.by);
            let is_ltx = put.key.ends_with(".ltx");
            if is_ltx {
                self.say(format!("put {} by process {}", put.key, put.by));
                self.mix(hash(&put.bytes));
            }
            if let Err(e) = self.oracle.borrow_mut().judge(&put, machine) {
                self.fail(e);
            }
        }
    }

    fn machine_of_dead_or_alive(&self, pid: Pid) -> usize {
        self.bucket.machine_of(pid)
    }

    /// At the end of a step nothing may be unexplained.
    fn explain(&self) {
        let left = self.oracle.borrow_mut().explain();
        if self.depth.get() > 0 {
            self.oracle.borrow_mut().open_again(left);
            return;
        }
        for (m, txid, sum) in left {
            let mut machines = self.machines.borrow_mut();
            let doubted = machines.get_mut(&m).is_some_and(|machine| {
                machine.doubts > 0 && {
                    machine.doubts -= 1;
                    true
                }
            });
            let gone = !machines.contains_key(&m);
            if !doubted && !gone {
                let how = self.oracle.borrow().difference(sum, self.kind.page_size as usize);
                self.fail(format!(
                    "TXID {txid} is in the replica, and machine {m} never was in that state: {how}"
                ));
            }
        }
    }

    fn check_status(&self) {
        let now = self.world.uptime();
        let ps = self.pids(|p| p.engine.is_some() && p.frames == 0 && p.frozen_until <= now);
        let Some(pid) = self.pick(&ps) else { return };
        let (engine, m) = {
            let ps = self.processes.borrow();
            (ps[&pid].engine, ps[&pid].machine)
        };
        let row = self.inside(pid, || engine.and_then(|e| e.watched().first().map(|w| w.row()))).flatten();
        let Some(row) = row else { return };
        let newest = self.oracle.borrow().newest();
        if row.replicated.0 > newest {
            self.fail(format!(
                "process {pid} says that TXID {} is replicated; the newest is {newest}",
                row.replicated
            ));
        }
        if let Some(e) = row.last_error.as_deref().filter(|e| e.contains("internal error")) {
            self.fail(format!("process {pid}: {e}"));
        }
        self.mix(row.replicated.0 ^ row.txid.0 << 20 ^ hash(row.state.as_str().as_bytes()));
        // "Streaming" with nothing pending is a promise, where nobody else is at work.
        let calm = self.machines.borrow().len() == 1
            && !self.is_busy(m)
            && now > self.machines.borrow()[&m].foreign + Duration::from_secs(3)
            && !self.processes.borrow()[&pid].connections.is_empty()
            && self.pids(|p| p.machine == m).into_iter().all(|p| self.is_watching(p));
        if calm && row.state == State::Streaming && row.pending_bytes == 0 {
            self.count("promises checked");
            let o = self.oracle.borrow();
            let last = o.machines[&m].0.last;
            if o.txids.get(&newest) != Some(&last) {
                drop(o);
                self.fail(format!("process {pid} says it is streaming and nothing is pending; the replica is behind: {row:?}"));
            }
        }
    }

    /// A real restore of some TXID gives what that TXID was.
    fn check_restore(&self) {
        let newest = self.oracle.borrow().newest();
        if newest == 0 {
            return;
        }
        let latest = self.world.one_in(3);
        let n = if latest { newest } else { 1 + self.world.below(newest) };
        let point = if latest { Point::Latest } else { Point::TxId(TxId(n)) };
        let target = self.root.path().join("restored.db");
        let _ = std::fs::remove_file(&target);
        let store = self.store();
        let nobody = Context::enter(self, 0);
        let done =
            block_on(replica::restore(&store, point, &target, &RestoreOptions::default())).and_then(|r| r);
        drop(nobody);
        self.count("restores");
        match done {
            Ok(r) => {
                let sum = state_of(&std::fs::read(&target).unwrap());
                self.mix(sum);
                if self.oracle.borrow().txids.get(&r.txid.0) != Some(&sum) {
                    self.fail(format!(
                        "a restore of {point:?} gave TXID {} with other content than it had",
                        r.txid.0
                    ));
                }
                if r.txid.0 != n {
                    self.fail(format!("a restore of {point:?} gave TXID {} in place of {n}", r.txid.0));
                }
            }
            // Retention took it, or it lies between a gap's end and the snapshot that followed.
            Err(e) if e.is_missing() && !latest => self.count("restores of what retention took"),
            // Or it arrived when its time was over: retention has taken what it builds on.
            Err(e) if e.is_corrupt() && !latest && self.bucket.was_late(n) => {
                self.count("restores of what came too late");
            }
            Err(e) => self.fail(format!("a restore of {point:?} (newest {newest}) failed: {e:?}")),
        }
    }

    fn remember_records(&self, m: usize) {
        let spool = self.spool(m);
        let mut machines = self.machines.borrow_mut();
        let Some(machine) = machines.get_mut(&m) else { return };
        for name in ["position.json", "shipped.json", "pages.sum"] {
            if let Ok(bytes) = std::fs::read(spool.join(name)) {
                machine.old.push_back((name.to_string(), bytes));
            }
        }
        while machine.old.len() > 12 {
            machine.old.pop_front();
        }
    }

    // -- one step ----------------------------------------------------------------------------------------------------

    pub fn step(&self) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.steps.set(self.steps.get() + 1);
        let nested = self.depth.get();
        if nested == 0 {
            self.waits.set(0);
        }
        self.depth.set(nested + 1);
        self.act();
        self.depth.set(nested);
        self.take_puts();
        self.explain();
        if self.world.one_in(6) {
            self.check_status();
        }
        if nested == 0 && self.world.one_in(40) {
            self.check_restore();
        }
        if let Some(p) = PANIC.with(|p| p.borrow_mut().take()) {
            self.fail(format!("panic: {p}"));
        }
        if std::env::var("SUMS").is_ok() {
            for m in self.machine_ids() {
                self.show_sums(m);
            }
        }
    }

    /// SUMS=1: where page sums and position part.
    fn show_sums(&self, m: usize) {
        let spool = self.spool(m);
        let Ok(text) = std::fs::read(spool.join("position.json")) else { return };
        let Ok(p) = serde_json::from_slice::<walrust::spool::Position>(&text) else { return };
        let Ok(sums) = walrust::spool::PageSums::open(&spool.join("pages.sum")) else { return };
        if let Ok(c) = sums.checksum(p.commit, p.page_size) {
            let text = format!(
                "machine {m}: TXID {} + {} pieces, wal {:?}, {:?}, commit {}, {} sums {c}",
                p.txid, p.pieces, p.wal, p.handoff, p.commit, p.checksum
            );
            eprintln!("{:>6} {text} {}", self.steps.get(), if c == p.checksum { "" } else { "PARTED" });
        }
    }

    fn act(&self) {
        let w = &self.world;
        let now = w.uptime();
        let top = self.depth.get() == 1;
        let awake = |p: &Process| p.frozen_until <= now;
        let free = |p: &Process| awake(p) && p.connections.iter().any(Option::is_some);
        let loaded = self.pids(|p| p.engine.is_some() && free(p));
        let everyone = self.pids(free);
        self.bucket.arrive(now);
        match w.below(1000) {
            0..230 => {
                if let Some(pid) = self.pick(&everyone) {
                    self.write(pid);
                }
            }
            230..460 => {
                if let Some(pid) = self.pick(&self.pids(|p| p.engine.is_some() && awake(p))) {
                    self.look(pid);
                }
            }
            460..700 => {
                if let Some(pid) = self.pick(&self.pids(|p| p.engine.is_some() && awake(p))) {
                    self.pump(pid, 1 + w.below(16));
                }
            }
            700..790 => {
                let ms = match w.below(20) {
                    0 => w.below(90_000),
                    1..4 => w.below(10_000),
                    _ => w.below(600),
                };
                w.advance(Duration::from_millis(ms));
            }
            790..830 => self.job(),
            830..860 => {
                if let Some(pid) = self.pick(&everyone) {
                    self.checkpoint(pid);
                }
            }
            860..880 => {
                if let Some(pid) = self.pick(&loaded) {
                    self.sync(pid);
                }
            }
            880..884 => {
                if let Some(pid) = self.pick(&loaded) {
                    self.snapshot(pid);
                }
            }
            884..900 => {
                if let Some(pid) =
                    self.pick(&self.pids(|p| awake(p) && p.connections.len() < 3 && p.frames == 0))
                {
                    self.open(pid);
                }
            }
            900..912 => {
                if let Some(pid) = self.pick(&everyone) {
                    self.close(pid);
                }
            }
            912..940 => self.begin_a_process(),
            940..948 => {
                let idle = self.pids(|p| p.frames == 0);
                if let Some(pid) = self.pick(&idle) {
                    self.say(format!("process {pid} is killed"));
                    self.kill(pid);
                }
            }
            948..958 => {
                if let Some(pid) = self.pick(&loaded) {
                    let points = w.below(30) as u32;
                    self.say(format!("process {pid} will die {points} points on"));
                    w.arm(pid, points);
                }
            }
            958..966 => {
                if let Some(pid) = self.pick(&self.pids(|p| p.frames == 0)) {
                    let d = Duration::from_millis(w.below(150_000));
                    self.say(format!("process {pid} freezes for {d:?}"));
                    self.count("freezes");
                    if let Some(p) = self.processes.borrow_mut().get_mut(&pid) {
                        p.frozen_until = now + d;
                    }
                }
            }
            966..980 => {
                if let Some(m) = self.pick(&self.machine_ids()) {
                    let weather = match w.below(10) {
                        0..5 => Weather::Fine,
                        5..8 => Weather::Rough,
                        8 => Weather::Out,
                        _ => Weather::Denied,
                    };
                    self.say(format!("machine {m} has {weather:?} weather"));
                    self.bucket.set_weather(m, weather);
                }
            }
            980..984 => {
                if let Some(m) = self.pick(&self.machine_ids()) {
                    self.remember_records(m);
                    if top {
                        self.disk_trouble(m);
                    }
                }
            }
            984..986 if top => {
                if let Some(m) = self.pick(&self.machine_ids()) {
                    self.power_cut(m);
                }
            }
            986..988 if top && self.kind.rivals => {
                if let Some(m) = self.pick(&self.machine_ids()) {
                    self.clone_machine(m);
                }
            }
            988..989 if top => {
                if let Some(m) = self.pick(&self.machine_ids()) {
                    self.scrap_machine(m);
                }
            }
            989..991 if self.kind.foreign => {
                if let Some(pid) = self.pick(&self.pids(|p| p.engine.is_none() && free(p))) {
                    self.rollback_mode(pid);
                }
            }
            991..993 => {
                if let Some(pid) = self.pick(&loaded) {
                    self.unwatch(pid);
                }
            }
            993..997 => {
                let idle: Vec<Pid> = loaded.iter().copied().filter(|p| !self.is_watching(*p)).collect();
                if let Some(pid) = self.pick(&idle) {
                    let takeover = self.machines.borrow().len() > 1 && w.one_in(3);
                    self.watch(pid, takeover);
                }
            }
            _ => {
                if let Some(m) = self.pick(&self.machine_ids()) {
                    self.remember_records(m);
                }
            }
        }
    }

    fn begin_a_process(&self) {
        let Some(m) = self.pick(&self.machine_ids()) else { return };
        let foreign = self.kind.foreign && self.world.one_in(4);
        let most = if self.kind.sync { 1 } else { 3 };
        if self.pids(|p| p.machine == m).len() >= most {
            return;
        }
        let pid = self.start_process(m, !foreign);
        self.say(format!(
            "process {pid} begins on machine {m}{}",
            if foreign { ", without walrust" } else { "" }
        ));
        if self.open(pid).is_none() {
            self.kill(pid);
            return;
        }
        if !foreign {
            let takeover = self.machines.borrow().len() > 1 && self.world.one_in(3);
            self.watch(pid, takeover);
        }
    }

    fn disk_trouble(&self, m: usize) {
        let spool = self.spool(m);
        let w = &self.world;
        let is_bad = w.bad_disks.borrow().iter().any(|(d, _)| *d == spool);
        if is_bad {
            w.bad_disks.borrow_mut().retain(|(d, _)| *d != spool);
            self.say(format!("machine {m}: the spool can be written again"));
        } else if w.one_in(4) && !self.is_busy(m) {
            self.say(format!("machine {m}: the spool is deleted"));
            self.count("spools deleted");
            let _ = std::fs::remove_dir_all(&spool);
        } else {
            self.say(format!("machine {m}: the spool cannot be written"));
            self.count("full disks");
            w.bad_disks.borrow_mut().push((spool, 28));
        }
    }

    // -- the end -----------------------------------------------------------------------------------------------------

    pub fn run(&self) {
        while self.steps.get() < self.limit && self.failed.borrow().is_none() {
            self.step();
        }
        if self.failed.borrow().is_none() {
            self.converge();
        }
        self.calm.set(true);
        for pid in self.pids(|_| true) {
            self.kill(pid);
        }
        for (name, n) in self.world.points() {
            self.mix(hash(name.as_bytes()) ^ n);
        }
    }

    /// The trouble ends, one machine is left: everything comes right by itself, and the replica is the database.
    fn converge(&self) {
        self.say("the trouble ends".into());
        self.calm.set(true);
        self.patience.set(400_000);
        self.world.disarm();
        self.world.bad_disks.borrow_mut().clear();
        let ids = self.machine_ids();
        let survivor = ids[self.world.below(ids.len() as u64) as usize];
        for m in ids {
            self.bucket.set_weather(m, Weather::Fine);
            if m != survivor {
                self.scrap_machine(m);
            }
        }
        for p in self.processes.borrow_mut().values_mut() {
            p.frozen_until = Duration::ZERO;
        }
        for pid in self.pids(|p| p.engine.is_none()) {
            self.kill(pid);
        }
        // Requests under way arrive; leases of the dead run out.
        for _ in 0..200 {
            self.world.advance(Duration::from_millis(500));
            self.background();
            if self.failed.borrow().is_some() {
                return;
            }
        }
        let watched =
            |p: &Process| p.engine.is_some_and(|e| !e.watched().is_empty()) && !p.connections.is_empty();
        let state = |pid: Pid| {
            let engine = self.processes.borrow().get(&pid).and_then(|p| p.engine);
            self.inside(pid, || engine.and_then(|e| e.watched().first().map(|w| w.state()))).flatten()
        };
        let fit: Vec<Pid> = self
            .pids(watched)
            .into_iter()
            .filter(|p| !matches!(state(*p), Some(State::Fenced | State::Failed) | None))
            .collect();
        let pid = match fit.iter().find(|p| state(**p) != Some(State::Standby)) {
            Some(pid) => *pid,
            None => {
                for pid in self.pids(|_| true) {
                    self.kill(pid);
                }
                let pid = self.start_process(survivor, true);
                self.open(pid);
                self.watch(pid, true);
                pid
            }
        };
        self.say(format!("process {pid} ({:?}) is to bring machine {survivor} home", state(pid)));
        let mut done = None;
        for _ in 0..40 {
            self.waits.set(0);
            let got = self.with(pid, |c| c.query_row("SELECT walrust_sync(60)", [], |r| r.get::<_, i64>(0)));
            let row = {
                let engine = self.processes.borrow().get(&pid).and_then(|p| p.engine);
                self.inside(pid, || engine.and_then(|e| e.watched().first().map(|w| w.row()))).flatten()
            };
            match got {
                Some(Ok(txid)) => {
                    done = Some(txid as u64);
                    break;
                }
                Some(Err(e)) => self.say(format!("not yet: {e}; {row:?}")),
                None => break,
            }
            self.world.advance(Duration::from_secs(5));
            for _ in 0..20 {
                self.world.advance(Duration::from_millis(300));
                self.background();
            }
        }
        self.take_puts();
        self.explain();
        let Some(txid) = done else {
            self.fail("the trouble is over, and the replica does not catch up".into());
            return;
        };
        self.with(pid, |c| self.observe(survivor, c));
        let (newest, last) = {
            let o = self.oracle.borrow();
            (o.newest(), o.machines[&survivor].0.last)
        };
        let found = self.oracle.borrow().txids.get(&newest).copied();
        if txid != newest || found != Some(last) {
            self.fail(format!(
                "at the end a sync gave TXID {txid}, the newest is {newest}, and equal is {}",
                found == Some(last)
            ));
            return;
        }
        for _ in 0..30 {
            self.world.advance(Duration::from_millis(500));
            self.background();
        }
        self.check_newest(last);
        self.verify();
        self.count("worlds");
        let (puts, lineages) = (self.oracle.borrow().puts, self.oracle.borrow().lineages);
        *self.tally.borrow_mut().0.entry("LTX files put").or_default() += puts;
        *self.tally.borrow_mut().0.entry("lineages").or_default() += lineages;
    }

    fn check_newest(&self, last: u64) {
        let target = self.root.path().join("end.db");
        let store = self.store();
        let nobody = Context::enter(self, 0);
        let done = block_on(replica::restore(&store, Point::Latest, &target, &RestoreOptions::default()))
            .and_then(|r| r);
        drop(nobody);
        match done {
            Ok(_) if state_of(&std::fs::read(&target).unwrap()) == last => {}
            Ok(r) => self.fail(format!("at the end the restore (TXID {}) is not the database", r.txid.0)),
            Err(e) => self.fail(format!("at the end the restore failed: {e:?}")),
        }
    }

    fn verify(&self) {
        let store = self.store();
        let nobody = Context::enter(self, 0);
        let report = block_on(replica::verify(&store, &VerifyOptions::default())).and_then(|r| r);
        let inventory = block_on(Inventory::read(&store)).and_then(|r| r);
        drop(nobody);
        match (report, inventory) {
            (Ok(r), Ok(i)) => {
                self.say(format!("at the end {} files; verify: {:?}", i.files.len(), r.severity()));
                // Two machines had the manifest for a moment: an entry may have come back whose object is gone. Or what was to
                // be entered was on a disk that lost it, when the object was there already.
                let lost = ["power cuts", "spools deleted"]
                    .iter()
                    .any(|what| self.tally.borrow().0.contains_key(what));
                let bar = if self.kind.rivals || lost { Severity::Warning } else { Severity::Ok };
                if r.severity() > bar {
                    let found: Vec<String> = r.issues().map(|f| f.message.clone()).collect();
                    self.fail(format!("at the end verify finds: {}", found.join("; ")));
                }
            }
            (r, i) => self.fail(format!("at the end verify fails: {:?} {:?}", r.err(), i.err())),
        }
    }
}

fn without_host(text: &str) -> String {
    let text = text.split("held by").next().unwrap_or_default();
    // The world's directory has another name in each run.
    let mut parts = text.split("walrust-sim-");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |s, rest| s + rest.split_once('/').map_or("", |(_, path)| path))
}

/// The start of an error, which has no numbers that differ from run to run.
fn kind_of(text: &str) -> String {
    without_host(text).chars().take(60).filter(|c| !c.is_ascii_digit()).collect()
}

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut p = db.as_os_str().to_owned();
    p.push(suffix);
    p.into()
}

fn read_some(path: &Path, n: usize) -> Vec<u8> {
    use std::io::Read;
    let mut out = Vec::new();
    if let Ok(f) = std::fs::File::open(path) {
        let _ = f.take(n as u64).read_to_end(&mut out);
    }
    out
}

/// Salts and length of the WAL.
fn wal_of(db: &Path) -> Option<([u8; 8], u64)> {
    let wal = beside(db, "-wal");
    let length = std::fs::metadata(&wal).ok()?.len();
    let head = read_some(&wal, 32);
    Some((head.get(16..24)?.try_into().ok()?, length))
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|m| m.ino())
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let p = e.path();
        if p.is_dir() { out.extend(files_below(&p)) } else { out.push(p) }
    }
    out.sort();
    out
}

/// Sets a file's time without opening the file for SQLite's locks to notice.
fn stamp(path: &Path, ms: i64) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 },
        last_modification: rustix::fs::Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 },
    };
    let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty());
}
