//! Functions and a host for tests through the door (feature `crash-points` only; never in a release).
//!
//! `WALRUST_DEBUG_HOST=1` hooks every database file with an observer that counts, and answers BUSY to WAL
//! resets while `walrust_debug_veto(1)` is on.

use super::{
    Connection, DbObserver, FileInfo, HookedFile, Host, How, LockOp, PragmaVerdict, Rows, ScalarFunction,
    SlotRange, TableFunction, Value, Verdict, Wiring,
};
use crate::base::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the debug observer saw, in the process.
#[derive(Default)]
struct Counters {
    vfs_opens: AtomicU64,
    hot_attaches: AtomicU64,
    commits: AtomicU64,
    vetoes: AtomicU64,
    closes: AtomicU64,
    panics: AtomicU64,
    last_closes: AtomicU64,
}

static COUNTERS: Counters = Counters {
    vfs_opens: AtomicU64::new(0),
    hot_attaches: AtomicU64::new(0),
    commits: AtomicU64::new(0),
    vetoes: AtomicU64::new(0),
    closes: AtomicU64::new(0),
    panics: AtomicU64::new(0),
    last_closes: AtomicU64::new(0),
};
static VETO: AtomicBool = AtomicBool::new(false);
static PANIC: AtomicBool = AtomicBool::new(false);

struct DebugHost;
struct DebugObserver(AtomicU64);

/// Adds the functions, and the host if the environment asks for it.
pub fn add_to(wiring: &mut Wiring) {
    wiring.functions.extend(FUNCTIONS);
    wiring.tables.extend(TABLES);
    if std::env::var("WALRUST_DEBUG_HOST").as_deref() == Ok("1") {
        wiring.hosts.insert(0, Arc::new(DebugHost));
    }
}

impl Host for DebugHost {
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        let c = match file.how {
            How::VfsOpen => &COUNTERS.vfs_opens,
            How::HotAttach => &COUNTERS.hot_attaches,
        };
        c.fetch_add(1, Ordering::Relaxed);
        Some(Arc::new(DebugObserver(AtomicU64::new(0))))
    }
}

/// (mxFrame, salt-1) folded into one number.
fn position(f: &HookedFile) -> u64 {
    let Some(h) = f.wal_index_header() else { return 0 };
    let word = |n: usize| {
        h.chunks_exact(4).nth(n).map_or(0, |b| u64::from(u32::from_ne_bytes([b[0], b[1], b[2], b[3]])))
    };
    word(4) << 32 | word(8)
}

impl DbObserver for DebugObserver {
    #[allow(clippy::panic)]
    fn before_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) -> Verdict {
        assert!(!PANIC.load(Ordering::Relaxed), "asked to panic in an observer");
        if slots == SlotRange::WRITE && op == LockOp::UnlockExclusive {
            let now = position(f);
            if now >> 32 != 0 && now != self.0.load(Ordering::Relaxed) {
                COUNTERS.commits.fetch_add(1, Ordering::Relaxed);
            }
        }
        if slots == SlotRange::READ_MARKS && op == LockOp::LockExclusive && VETO.load(Ordering::Relaxed) {
            COUNTERS.vetoes.fetch_add(1, Ordering::Relaxed);
            return Verdict::Busy;
        }
        Verdict::Pass
    }
    fn after_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) {
        if slots == SlotRange::WRITE && op == LockOp::LockExclusive {
            self.0.store(position(f), Ordering::Relaxed);
        }
    }
    fn pragma(&self, _: &HookedFile, name: &str, arg: Option<&str>) -> PragmaVerdict {
        match name {
            "walrust_debug_refuse" => PragmaVerdict::Refuse("refused by the observer".into()),
            "walrust_debug_answer" => PragmaVerdict::Answer(arg.map(str::to_string)),
            _ => PragmaVerdict::Pass,
        }
    }
    fn last_close(&self, _: &HookedFile) {
        COUNTERS.last_closes.fetch_add(1, Ordering::Relaxed);
    }
    fn closing(&self, _: &HookedFile) {
        COUNTERS.closes.fetch_add(1, Ordering::Relaxed);
    }
    fn panicked(&self, _: &str) {
        COUNTERS.panics.fetch_add(1, Ordering::Relaxed);
    }
}

fn counter(_: &Connection, args: &[Value]) -> Result<Value> {
    let c = match args.first().and_then(Value::as_text) {
        Some("vfs_opens") => &COUNTERS.vfs_opens,
        Some("hot_attaches") => &COUNTERS.hot_attaches,
        Some("commits") => &COUNTERS.commits,
        Some("vetoes") => &COUNTERS.vetoes,
        Some("closes") => &COUNTERS.closes,
        Some("panics") => &COUNTERS.panics,
        Some("last_closes") => &COUNTERS.last_closes,
        _ => return Err(Error::config("no such counter")),
    };
    Ok(Value::Integer(i64::try_from(c.load(Ordering::Relaxed)).unwrap_or(i64::MAX)))
}

fn set(flag: &AtomicBool, args: &[Value]) -> Result<Value> {
    flag.store(args.first().and_then(Value::as_integer) == Some(1), Ordering::Relaxed);
    Ok(Value::Null)
}

#[allow(clippy::panic)]
fn panic_now(_: &Connection, _: &[Value]) -> Result<Value> {
    panic!("asked to panic in a function")
}

#[allow(clippy::panic)]
fn panic_rows(_: &Connection, args: &[Option<Value>]) -> Result<Rows> {
    match args.first().and_then(Option::as_ref).and_then(Value::as_text) {
        Some("open") => panic!("asked to panic before the first row"),
        Some("next") => Ok(Box::new((0..2).map(|i| {
            assert!(i < 1, "asked to panic in a row");
            Ok(vec![Value::Integer(i)])
        }))),
        Some("drop") => {
            struct Bomb;
            impl Drop for Bomb {
                fn drop(&mut self) {
                    panic!("asked to panic while dropping");
                }
            }
            let bomb = Bomb;
            Ok(Box::new((0..1).map(move |i| {
                let _ = &bomb;
                Ok(vec![Value::Integer(i)])
            })))
        }
        Some(other) => Err(Error::config(format!("open, next or drop, not {other}"))),
        None => Err(Error::config("say where to panic: open, next or drop")),
    }
}

/// A thread of ours holds a database file open for some milliseconds.
fn hold(_: &Connection, args: &[Value]) -> Result<Value> {
    let (Some(path), Some(ms)) = (args[0].as_text(), args[1].as_integer()) else {
        return Err(Error::config("a path and milliseconds"));
    };
    let db = super::RawDb::open(std::path::Path::new(path))?;
    let pause = std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let hold = move || {
        crate::base::clock::sleep(pause);
        drop(db);
    };
    crate::base::thread::spawn("walrust-hold", 512 << 10, hold)
        .map_err(|e| Error::new(crate::base::Kind::Io, "cannot start a thread").because(e))?;
    Ok(Value::Null)
}

fn own(_: &Connection, _: &[Value]) -> Result<Value> {
    Ok(Value::Integer(i64::try_from(super::own_handles()).unwrap_or(i64::MAX)))
}

fn echo(_: &Connection, args: &[Value]) -> Result<Value> {
    Ok(args.first().cloned().unwrap_or(Value::Null))
}

static FUNCTIONS: &[ScalarFunction] = &[
    ScalarFunction { name: "walrust_debug_count", args: 1..=1, call: counter },
    ScalarFunction { name: "walrust_debug_veto", args: 1..=1, call: |_, a| set(&VETO, a) },
    ScalarFunction { name: "walrust_debug_panic_observer", args: 1..=1, call: |_, a| set(&PANIC, a) },
    ScalarFunction { name: "walrust_debug_panic", args: 0..=0, call: panic_now },
    ScalarFunction { name: "walrust_debug_hold", args: 2..=2, call: hold },
    ScalarFunction { name: "walrust_debug_own", args: 0..=0, call: own },
    ScalarFunction { name: "walrust_debug_echo", args: 0..=2, call: echo },
];

static TABLES: &[TableFunction] = &[TableFunction {
    name: "walrust_debug_rows",
    columns: &[("n", "INTEGER")],
    args: &["where_to_panic"],
    rows: panic_rows,
}];
