//! The room against a real SQLite: the bundled one of the tests, through [`super::linked`].

#![allow(clippy::disallowed_methods)]

use super::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once};

/// Routes each test's files to its own observer.
struct TestHost;
type Factory = Arc<dyn Fn(&FileInfo<'_>) -> Option<Arc<dyn DbObserver>> + Send + Sync>;
static ROUTES: LazyLock<Mutex<HashMap<PathBuf, Factory>>> = LazyLock::new(Mutex::default);
static OPENED: AtomicUsize = AtomicUsize::new(0);

impl Host for TestHost {
    fn opened(&self, file: &FileInfo<'_>) -> Option<Arc<dyn DbObserver>> {
        let factory = ROUTES.lock().unwrap().get(file.path).cloned()?;
        factory(file)
    }
    fn connection_opened(&self, conn: &Connection) {
        OPENED.fetch_add(1, Ordering::Relaxed);
        // A failing statement here must not fail the app's open.
        assert!(conn.exec("SELECT nonsense FROM nowhere").is_err());
    }
}

static TEST_FUNCTIONS: &[ScalarFunction] =
    &[ScalarFunction { name: "test_echo", args: 1..=2, call: |_, a| Ok(a[0].clone()) }];

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        linked::install(Wiring::default).unwrap();
        add_host(Arc::new(TestHost));
    });
}

fn observe(path: &Path, f: impl Fn(&FileInfo<'_>) -> Option<Arc<dyn DbObserver>> + Send + Sync + 'static) {
    install();
    ROUTES.lock().unwrap().insert(path.to_path_buf(), Arc::new(f));
}

fn observe_with<O: DbObserver>(path: &Path, observer: &Arc<O>) {
    let o = observer.clone();
    observe(path, move |_| Some(o.clone()));
}

fn dir() -> (tempfile::TempDir, PathBuf) {
    let d = tempfile::tempdir().unwrap();
    let p = d.path().canonicalize().unwrap().join("app.db");
    (d, p)
}

fn wal_db(path: &Path) -> rusqlite::Connection {
    let c = rusqlite::Connection::open(path).unwrap();
    c.pragma_update(None, "journal_mode", "wal").unwrap();
    c.execute_batch("CREATE TABLE IF NOT EXISTS t(x)").unwrap();
    c
}

fn word(h: &[u8], n: usize) -> u32 {
    u32::from_ne_bytes(h[n * 4..n * 4 + 4].try_into().unwrap())
}

fn checkpoint(c: &rusqlite::Connection, mode: &str) -> (i64, i64, i64) {
    c.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .unwrap()
}

/// Counts, and answers as told.
#[derive(Default)]
struct Watcher {
    commits: AtomicU64,
    begun: AtomicU64,
    vetoes: AtomicU64,
    veto: AtomicBool,
    panic: AtomicBool,
    panics: AtomicU64,
    wrote: AtomicU64,
    last_closes: AtomicU64,
    closes: AtomicU64,
    reserved: AtomicU64,
    peeks: Mutex<Vec<ShmPeek>>,
    wal: Mutex<Option<Arc<dyn WalObserver>>>,
    wal_link: Mutex<Option<PathBuf>>,
}

fn position(f: &HookedFile) -> u64 {
    f.wal_index_header().map_or(0, |h| u64::from(word(&h, 4)) << 32 | u64::from(word(&h, 8)))
}

impl DbObserver for Watcher {
    fn before_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) -> Verdict {
        assert!(!self.panic.load(Ordering::Relaxed), "told to");
        if slots == SlotRange::WRITE && op == LockOp::UnlockExclusive {
            let now = position(f);
            if now >> 32 != 0 && now != self.begun.load(Ordering::Relaxed) {
                self.commits.fetch_add(1, Ordering::Relaxed);
            }
        }
        if slots == SlotRange::READ_MARKS && op == LockOp::LockExclusive && self.veto.load(Ordering::Relaxed)
        {
            self.vetoes.fetch_add(1, Ordering::Relaxed);
            return Verdict::Busy;
        }
        Verdict::Pass
    }
    fn after_shm_lock(&self, f: &HookedFile, slots: SlotRange, op: LockOp) {
        if slots == SlotRange::WRITE && op == LockOp::LockExclusive {
            self.begun.store(position(f), Ordering::Relaxed);
            let mut peeks = self.peeks.lock().unwrap();
            if peeks.is_empty() {
                peeks.push(f.peek());
            }
        }
    }
    fn before_file_lock(&self, _: &HookedFile, level: FileLock) {
        if level == FileLock::Reserved {
            self.reserved.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn wrote_db(&self, f: &HookedFile, offset: u64, len: usize) {
        let mut back = vec![0; len];
        assert_eq!(f.read_main_at(&mut back, offset).unwrap(), ReadExtent::Full);
        assert!(f.file_size().unwrap() >= offset + len as u64);
        self.wrote.fetch_add(1, Ordering::Relaxed);
    }
    fn pragma(&self, _: &HookedFile, name: &str, arg: Option<&str>) -> PragmaVerdict {
        match name {
            "test_refuse" => PragmaVerdict::Refuse("no, thank you".into()),
            "test_answer" => PragmaVerdict::Answer(arg.map(|a| format!("heard {a}"))),
            _ => PragmaVerdict::Pass,
        }
    }
    fn last_close(&self, f: &HookedFile) {
        self.last_closes.fetch_add(1, Ordering::Relaxed);
        if let Some(to) = self.wal_link.lock().unwrap().take() {
            std::fs::hard_link(format!("{}-wal", f.path().display()), to).unwrap();
        }
    }
    fn closing(&self, _: &HookedFile) {
        self.closes.fetch_add(1, Ordering::Relaxed);
    }
    fn panicked(&self, what: &str) {
        assert!(what.contains("told to"), "{what}");
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
    fn wal_hook(&self) -> WalHook {
        self.wal.lock().unwrap().clone().map_or(WalHook::JoinWrites, WalHook::Observe)
    }
}

fn get(n: &AtomicU64) -> u64 {
    n.load(Ordering::Relaxed)
}

/// I-SQLITE-2: every slot is where `sqlite3ext.h` has it.
#[test]
fn used_slots_agree_with_sqlite3ext_h() {
    let version = String::from_utf8(Command::new("rustc").arg("-vV").output().unwrap().stdout).unwrap();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let json: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let manifest = json["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == "libsqlite3-sys")
        .and_then(|p| p["manifest_path"].as_str())
        .expect("libsqlite3-sys is a dev-dependency, its sources hold sqlite3ext.h");
    let include = Path::new(manifest).parent().unwrap().join("sqlite3");
    assert!(include.join("sqlite3ext.h").is_file(), "no sqlite3ext.h in {}", include.display());

    let (tmp, _) = dir();
    let source = tmp.path().join("slots.c");
    let program = tmp.path().join("slots");
    let lines: String = api::USED
        .iter()
        .map(|(name, ..)| {
            format!("printf(\"%zu\\n\", offsetof(struct sqlite3_api_routines, {name}) / sizeof(void*));\n")
        })
        .collect();
    std::fs::write(
        &source,
        format!("#include <stdio.h>\n#include <stddef.h>\n#include \"sqlite3ext.h\"\nint main(void) {{\n{lines}return 0; }}\n"),
    )
    .unwrap();
    let compiled =
        Command::new("cc").arg("-I").arg(&include).arg(&source).arg("-o").arg(&program).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let out = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    let found: Vec<usize> = out.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(found.len(), api::USED.len());
    for ((name, slot, _), at) in api::USED.iter().zip(found) {
        assert_eq!(*slot, at, "slot of sqlite3_{name}");
    }
    let header = std::fs::read_to_string(include.join("sqlite3ext.h")).unwrap();
    for (name, _, since) in api::USED {
        assert_eq!(*since, version_of_field(&header, name).max(api::FLOOR), "version of sqlite3_{name}");
    }
}

/// The version whose comment ("Version 3.32.0 and later") stands last above the field in sqlite3ext.h.
fn version_of_field(header: &str, name: &str) -> i32 {
    let mut version = 0;
    for line in header.lines() {
        if let Some((_, rest)) = line.split_once("/* Version 3.") {
            let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<i32>().unwrap());
            version = 3_000_000 + numbers.next().unwrap() * 1000 + numbers.next().unwrap();
        } else if line.contains(&format!("(*{name})")) {
            return version;
        }
    }
    panic!("no field {name} in sqlite3ext.h")
}

/// The structs are the host's, byte for byte.
#[test]
fn structs_have_the_hosts_layout() {
    use rusqlite::ffi as host;
    use std::mem::{offset_of, size_of};
    assert_eq!(size_of::<ffi::IoMethods>(), size_of::<host::sqlite3_io_methods>());
    assert_eq!(offset_of!(ffi::IoMethods, x_shm_map), offset_of!(host::sqlite3_io_methods, xShmMap));
    assert_eq!(offset_of!(ffi::IoMethods, x_unfetch), offset_of!(host::sqlite3_io_methods, xUnfetch));
    assert_eq!(size_of::<ffi::IoMethods1>(), offset_of!(host::sqlite3_io_methods, xShmMap));
    assert_eq!(size_of::<ffi::IoMethods2>(), offset_of!(host::sqlite3_io_methods, xFetch));
    assert_eq!(size_of::<ffi::Vfs>(), size_of::<host::sqlite3_vfs>());
    assert_eq!(offset_of!(ffi::Vfs, x_open), offset_of!(host::sqlite3_vfs, xOpen));
    assert_eq!(offset_of!(ffi::Vfs, x_next_system_call), offset_of!(host::sqlite3_vfs, xNextSystemCall));
    assert_eq!(offset_of!(ffi::Module, x_rename), offset_of!(host::sqlite3_module, xRename));
    assert_eq!(size_of::<ffi::Vtab>(), size_of::<host::sqlite3_vtab>());
    assert_eq!(size_of::<ffi::VtabCursor>(), size_of::<host::sqlite3_vtab_cursor>());
    assert_eq!(
        offset_of!(ffi::IndexInfo, estimated_rows),
        offset_of!(host::sqlite3_index_info, estimatedRows)
    );
    assert_eq!(size_of::<ffi::IndexConstraint>(), size_of::<host::sqlite3_index_constraint>());
    assert_eq!(size_of::<ffi::IndexConstraintUsage>(), size_of::<host::sqlite3_index_constraint_usage>());
}

#[test]
fn commits_are_seen_once_each() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let c = wal_db(&path);
    let before = get(&w.commits);
    for i in 0..200 {
        c.execute("INSERT INTO t VALUES (?1)", [i]).unwrap();
    }
    c.execute_batch("BEGIN; INSERT INTO t VALUES (1); ROLLBACK").unwrap();
    // Spills: 1,000 rows of 1 KB through a cache of ten pages.
    c.execute_batch(
        "PRAGMA cache_size=10; BEGIN;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000) INSERT INTO t SELECT randomblob(1000) FROM n;
         COMMIT; BEGIN;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000) INSERT INTO t SELECT randomblob(1000) FROM n;
         ROLLBACK",
    )
    .unwrap();
    checkpoint(&c, "TRUNCATE");
    c.execute("INSERT INTO t VALUES (0)", []).unwrap();
    assert_eq!(get(&w.commits) - before, 202);
    assert!(get(&w.wrote) > 0, "the checkpoint wrote pages");
    assert_eq!(hooked_handles(&path), 1);
    drop(c);
    assert_eq!((get(&w.last_closes), get(&w.closes)), (1, 1));
    assert_eq!(hooked_handles(&path), 0);
    assert_eq!(get(&w.panics), 0);
}

#[test]
fn busy_holds_off_every_reset_and_nobody_notices() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let c = wal_db(&path);
    c.pragma_update(None, "wal_autocheckpoint", 10).unwrap();
    w.veto.store(true, Ordering::Relaxed);
    let wal = PathBuf::from(format!("{}-wal", path.display()));
    let salt = || std::fs::read(&wal).unwrap()[16..24].to_vec();
    let before = salt();
    for i in 0..500 {
        c.execute("INSERT INTO t VALUES (?1)", [i]).unwrap();
    }
    assert_eq!(salt(), before, "the WAL was never reset");
    assert!(get(&w.vetoes) > 100, "{}", get(&w.vetoes));
    let (busy, log, done) = checkpoint(&c, "PASSIVE");
    assert_eq!((busy, log), (0, done), "passive checkpoints still copy everything");
    assert_eq!(checkpoint(&c, "TRUNCATE").0, 1);
    w.veto.store(false, Ordering::Relaxed);
    assert_eq!(checkpoint(&c, "TRUNCATE").0, 0);
    c.execute("INSERT INTO t VALUES (0)", []).unwrap();
    assert_ne!(salt(), before);
}

#[test]
fn a_panicking_observer_costs_the_app_nothing() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let c = wal_db(&path);
    w.panic.store(true, Ordering::Relaxed);
    for i in 0..10 {
        c.execute("INSERT INTO t VALUES (?1)", [i]).unwrap();
    }
    assert_eq!(get(&w.panics), 1, "silenced after the first");
    drop(c);
    assert_eq!(get(&w.closes), 1, "still told of the close");
}

#[test]
fn rollback_mode_writers_and_pragmas_are_seen() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let c = rusqlite::Connection::open(&path).unwrap();
    c.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(100000)); DELETE FROM t; VACUUM")
        .unwrap();
    assert!(get(&w.reserved) >= 3);
    assert!(get(&w.wrote) > 0);
    assert_eq!(get(&w.commits), 0);
    let refused = c.execute_batch("PRAGMA test_refuse").unwrap_err();
    assert!(refused.to_string().contains("no, thank you"), "{refused}");
    let answer: String = c.query_row("PRAGMA test_answer(you)", [], |r| r.get(0)).unwrap();
    assert_eq!(answer, "heard you");
    assert!(c.prepare("PRAGMA test_answer").unwrap().query([]).unwrap().next().unwrap().is_none());
}

#[test]
fn the_last_close_is_where_the_wal_can_be_kept() {
    let (d, path) = dir();
    let w = Arc::new(Watcher::default());
    let kept = d.path().join("kept-wal");
    observe_with(&path, &w);
    let c = wal_db(&path);
    let second = rusqlite::Connection::open(&path).unwrap();
    let _: i64 = second.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap();
    c.execute("INSERT INTO t VALUES (1)", []).unwrap();
    *w.wal_link.lock().unwrap() = Some(kept.clone());
    drop(second);
    assert_eq!(get(&w.last_closes), 0);
    drop(c);
    assert_eq!(get(&w.last_closes), 1);
    assert!(std::fs::metadata(kept).unwrap().len() > 4096);
    assert!(!PathBuf::from(format!("{}-wal", path.display())).exists());
}

#[test]
fn sqlites_own_vfses_are_known_and_the_default_stays_the_default() {
    use super::judge::Owner;
    install();
    // SAFETY: names that end in zero, after the load; a registered VFS lives for good.
    unsafe {
        for name in [c"unix", c"unix-excl", c"unix-none", c"unix-dotfile"] {
            assert_eq!(judge::owner_of(api::vfs_find(name.as_ptr())), Owner::Sqlite, "{name:?}");
        }
        let default = api::vfs_find(std::ptr::null());
        assert_eq!(lower::vfs_name(default), "unix");
        let ours = api::vfs_find(lower::NAME.as_ptr());
        assert_eq!(judge::owner_of(ours), Owner::Walrust { over_sqlites: true });
        assert_eq!(judge::owner_of(api::vfs_find(c"memdb".as_ptr())), Owner::Another);
        // One under SQLite's name, with SQLite's own methods, is another's all the same.
        let copy = Box::new(std::ptr::read(default));
        assert_eq!(judge::owner_of(&raw const *copy), Owner::Another);
    }
    let heap = Box::new(7u64);
    assert_eq!(judge::table_of((&raw const *heap).cast()), judge::Table::Another);
}

#[test]
fn a_pagers_file_is_told_from_one_that_a_shim_opens() {
    let (_d, path) = dir();
    install();
    let layout = pager::layout().expect("the distances are read off at load");
    assert!(layout.file >= 100 && layout.name >= 100, "{layout:?}");
    let seen = Arc::new(AtomicUsize::new(0));
    let s = seen.clone();
    observe(&path, move |f| {
        s.fetch_add(usize::from(f.how == How::VfsOpen), Ordering::Relaxed);
        None
    });
    let attached = rusqlite::Connection::open_in_memory().unwrap();
    attached.execute("ATTACH ? AS a", [path.to_str().unwrap()]).unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 1, "a pager's");
    // The same name and flags with a file elsewhere, as a shim has its own; then with one whose beginning says another VFS.
    let c = rusqlite::Connection::open(&path).unwrap();
    let before = seen.load(Ordering::Relaxed);
    let size = layout.file + layout.name + 200;
    let mut piece = vec![0u64; size.div_ceil(8)];
    // SAFETY: memory laid out as a pager's, whose VFS is null; the name ends in zeros, and the file is closed.
    unsafe {
        let default = api::vfs_find(std::ptr::null());
        let file = piece.as_mut_ptr().byte_add(layout.file).cast::<ffi::File>();
        let name = file.byte_add(layout.name).cast::<std::ffi::c_char>();
        let text = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        std::ptr::copy_nonoverlapping(text.as_ptr(), name, text.count_bytes());
        let flags = ffi::OPEN_READWRITE | ffi::OPEN_MAIN_DB;
        let mut granted = 0;
        for elsewhere in [false, true] {
            let name = if elsewhere { name.sub(8) } else { name };
            std::ptr::copy(text.as_ptr(), name, text.count_bytes() + 1);
            assert!(!pager::is_pagers(default, name, file));
            let open = (*default).x_open.unwrap();
            assert_eq!(open(default, name, file, flags, &raw mut granted), ffi::OK);
            assert_eq!(judge::table_of((*file).methods), judge::Table::Sqlite);
            ((*(*file).methods).x_close.unwrap())(file);
        }
    }
    assert_eq!(seen.load(Ordering::Relaxed), before);
    drop(c);
}

#[test]
fn unwanted_files_are_left_alone_and_hot_attach_takes_them_later() {
    let (_d, path) = dir();
    install();
    let c = wal_db(&path);
    assert_eq!(hooked_handles(&path), 0);
    let w = Arc::new(Watcher::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (o, s) = (w.clone(), seen.clone());
    observe(&path, move |f| {
        s.lock().unwrap().push((f.how, f.access, f.vfs.to_string(), f.uri_parameter("replica")));
        Some(o.clone())
    });
    // SAFETY: the connection lives, on this thread.
    let conn = unsafe { Connection::borrowed(c.handle().cast()) };
    assert_eq!(conn.main_db_path().as_deref(), Some(path.as_path()));
    assert!(conn.observer_of("main").is_none());
    assert_eq!(conn.hook("main").unwrap(), Hooked::Now);
    assert_eq!(conn.hook("main").unwrap(), Hooked::Already);
    assert_eq!(conn.hook("temp").unwrap(), Hooked::NoFile);
    assert_eq!(conn.hook("nowhere").unwrap(), Hooked::NoFile);
    assert_eq!(*seen.lock().unwrap(), [(How::HotAttach, Access::ReadWrite, "unix".to_string(), None)]);
    c.execute("INSERT INTO t VALUES (1)", []).unwrap();
    assert_eq!(get(&w.commits), 1, "the wal-index was mapped before the hook, and is found");
    let observer: Arc<dyn std::any::Any + Send + Sync> = conn.observer_of("main").unwrap();
    assert!(Arc::downcast::<Watcher>(observer).is_ok());
    drop(c);
    assert_eq!(get(&w.closes), 1);
}

#[test]
fn uri_parameters_and_read_only_are_told() {
    let (_d, path) = dir();
    install();
    drop(wal_db(&path));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let s = seen.clone();
    observe(&path, move |f| {
        s.lock().unwrap().push((f.how, f.access, f.uri_parameter("replica"), f.uri_parameter("none")));
        None
    });
    use rusqlite::OpenFlags as F;
    let uri = format!("file:{}?replica=s3%3A%2F%2Fb%2Fapp&mode=ro", path.display());
    let c =
        rusqlite::Connection::open_with_flags(uri, F::SQLITE_OPEN_READ_ONLY | F::SQLITE_OPEN_URI).unwrap();
    let want = (How::VfsOpen, Access::ReadOnly, Some("s3://b/app".to_string()), None);
    assert_eq!(seen.lock().unwrap()[0], want);
    drop(c);
}

#[test]
fn other_threads_may_peek_while_handles_come_and_go() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let keeper = wal_db(&path);
    let stop = Arc::new(AtomicBool::new(false));
    let looks = {
        let (w, stop) = (w.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut seen = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let peeks = w.peeks.lock().unwrap().clone();
                seen +=
                    peeks.iter().filter_map(ShmPeek::header).filter(|h| h[..48] == h[48..96]).count() as u64;
            }
            seen
        })
    };
    for i in 0..300 {
        let c = rusqlite::Connection::open(&path).unwrap();
        w.peeks.lock().unwrap().clear();
        c.execute("INSERT INTO t VALUES (?1)", [i]).unwrap();
    }
    let dead = w.peeks.lock().unwrap().clone();
    assert!(!dead.is_empty() && dead.iter().all(|p| p.header().is_none()), "closed handles give nothing");
    stop.store(true, Ordering::Relaxed);
    assert!(looks.join().unwrap() > 0);
    drop(keeper);
}

/// The file under a mapping may be emptied by anybody; that must not end the process.
#[cfg(target_os = "linux")]
#[test]
fn a_peek_into_a_wal_index_that_was_emptied_gives_nothing() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let keeper = wal_db(&path);
    keeper.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let peek = w.peeks.lock().unwrap().last().unwrap().clone();
    let before = peek.header().expect("it is mapped");
    let name = format!("{}-shm", path.display());
    let whole = std::fs::read(&name).unwrap();
    let shm = std::fs::File::options().write(true).open(&name).unwrap();
    shm.set_len(0).unwrap();
    assert_eq!(peek.header(), None);
    // Whole again before SQLite reads on. (The file stays open: closing it here would drop SQLite's locks on it.)
    std::os::unix::fs::FileExt::write_all_at(&shm, &whole, 0).unwrap();
    assert_eq!(peek.header(), Some(before));
    std::mem::forget(shm);
    drop(keeper);
}

/// Synchronous durability in small: the commit frame's header is withheld and decided on at its data.
struct Gate {
    refuse: AtomicBool,
    held: Mutex<Option<(u64, Vec<u8>)>>,
    decided: AtomicU64,
    panic: AtomicBool,
}

impl WalObserver for Gate {
    fn before_write(&self, f: &WalFile, data: &[u8], offset: u64) -> WalVerdict {
        assert!(!self.panic.load(Ordering::Relaxed), "told to");
        let commit = data.len() == 24 && offset >= 32 && data[4..8] != [0; 4];
        if commit {
            *self.held.lock().unwrap() = Some((offset, data.to_vec()));
            return WalVerdict::Withhold;
        }
        if let Some((at, header)) = self.held.lock().unwrap().take() {
            assert_eq!(offset, at + 24);
            self.decided.fetch_add(1, Ordering::Relaxed);
            if self.refuse.load(Ordering::Relaxed) {
                return WalVerdict::Fail(IOERR_WRITE);
            }
            f.write_at(&header, at).unwrap();
        }
        WalVerdict::Pass
    }
}

#[test]
fn a_refused_commit_is_rolled_back() {
    let (_d, path) = dir();
    let gate = Arc::new(Gate {
        refuse: AtomicBool::new(false),
        held: Mutex::new(None),
        decided: AtomicU64::new(0),
        panic: AtomicBool::new(false),
    });
    let w = Arc::new(Watcher { wal: Mutex::new(Some(gate.clone())), ..Watcher::default() });
    observe_with(&path, &w);
    let c = wal_db(&path);
    c.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let decided = get(&gate.decided);
    assert!(decided >= 2, "{decided}");
    for flag in [&gate.refuse, &gate.panic] {
        flag.store(true, Ordering::Relaxed);
        let e = c.execute("INSERT INTO t VALUES (2)", []).unwrap_err();
        assert_eq!(e.sqlite_error().unwrap().extended_code, IOERR_WRITE);
        flag.store(false, Ordering::Relaxed);
    }
    assert!(c.is_autocommit());
    c.execute("INSERT INTO t VALUES (3)", []).unwrap();
    drop(c);
    let c = rusqlite::Connection::open(&path).unwrap();
    let rows: String = c.query_row("SELECT group_concat(x) FROM t", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, "1,3");
}

#[test]
fn the_wal_of_an_open_connection_is_hooked_too() {
    let (_d, path) = dir();
    install();
    let c = wal_db(&path);
    c.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let gate = Arc::new(Gate {
        refuse: AtomicBool::new(true),
        held: Mutex::new(None),
        decided: AtomicU64::new(0),
        panic: AtomicBool::new(false),
    });
    let w = Arc::new(Watcher { wal: Mutex::new(Some(gate.clone())), ..Watcher::default() });
    observe_with(&path, &w);
    // SAFETY: the connection lives, on this thread.
    let conn = unsafe { Connection::borrowed(c.handle().cast()) };
    assert_eq!(conn.hook("main").unwrap(), Hooked::Now);
    assert_eq!(conn.hook("main").unwrap(), Hooked::Already);
    assert!(c.execute("INSERT INTO t VALUES (2)", []).is_err());
    assert_eq!(get(&gate.decided), 1);
}

#[test]
fn own_connections_are_unseen_and_check() {
    let (_d, path) = dir();
    let w = Arc::new(Watcher::default());
    observe_with(&path, &w);
    let c = wal_db(&path);
    c.execute_batch("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) INSERT INTO t SELECT randomblob(500) FROM n").unwrap();
    assert_eq!(hooked_handles(&path), 1);
    let own = SqlConnection::open(&path, SqlMode::Guest).unwrap();
    assert_eq!(hooked_handles(&path), 1);
    assert_eq!(own.query_value("SELECT count(*) FROM t").unwrap(), Value::Integer(500));
    own.integrity_check().unwrap();
    own.quick_check().unwrap();
    drop(c);
    drop(own);
    let wal = PathBuf::from(format!("{}-wal", path.display()));
    assert!(wal.exists(), "a guest does not checkpoint, even when it is the last");
    let own = SqlConnection::open(&path, SqlMode::Owner).unwrap();
    own.integrity_check().unwrap();
    drop(own);
    assert!(!wal.exists());
    // Damage: a page in the middle.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 * 5..4096 * 6].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let own = SqlConnection::open(&path, SqlMode::Owner).unwrap();
    assert!(own.integrity_check().unwrap_err().is_corrupt());
    assert!(SqlConnection::open(&path.with_file_name("none.db"), SqlMode::Owner).is_err());
}

#[test]
fn a_read_mark_holds_checkpoints_and_resets_off() {
    let (_d, path) = dir();
    install();
    assert!(ReadMark::begin(&path).err().unwrap().is_missing(), "no file");
    let c = rusqlite::Connection::open(&path).unwrap();
    c.execute_batch("CREATE TABLE t(x)").unwrap();
    assert!(ReadMark::begin(&path).err().unwrap().is_missing(), "rollback mode has no wal-index");
    assert!(!PathBuf::from(format!("{}-shm", path.display())).exists(), "and gets none from us");
    drop(c);
    let c = wal_db(&path);
    c.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let mark = ReadMark::begin(&path).unwrap();
    assert_eq!(mark.pins(), Pins::DbAndWal);
    let mx = word(mark.header(), 4);
    assert!(mx > 0);
    c.execute("INSERT INTO t VALUES (2)", []).unwrap();
    let (busy, log, done) = checkpoint(&c, "PASSIVE");
    assert_eq!((busy, done), (0, i64::from(mx)), "not past the mark");
    assert!(log > done);
    assert_eq!(checkpoint(&c, "TRUNCATE").0, 1);
    c.execute("INSERT INTO t VALUES (3)", []).unwrap();
    assert_eq!(word(mark.header(), 4), mx);
    drop(mark);
    assert_eq!(checkpoint(&c, "PASSIVE").0, 0);
    let mark = ReadMark::begin(&path).unwrap();
    assert_eq!((mark.pins(), mark.slot()), (Pins::DbOnly, SlotRange::read(0)));
    let mut head = [0u8; 16];
    assert_eq!(mark.read_at(&mut head, 0).unwrap(), ReadExtent::Full);
    assert_eq!(&head, b"SQLite format 3\0");
    let mut past = [1u8; 16];
    assert_eq!(mark.read_at(&mut past, mark.file_size().unwrap()).unwrap(), ReadExtent::Short);
    assert_eq!(past, [0; 16]);
    // The app writes on; its WAL is reset, but nothing is copied into the file we read.
    c.execute("INSERT INTO t VALUES (4)", []).unwrap();
    let (_, log, done) = checkpoint(&c, "PASSIVE");
    assert!(done < log, "READ0 is held");
    drop(mark);
    drop(c);
    assert!(!PathBuf::from(format!("{}-wal", path.display())).exists(), "all locks were given back");
}

#[test]
fn a_read_mark_is_one_state_under_writers() {
    let (_d, path) = dir();
    install();
    let c = wal_db(&path);
    c.execute_batch("CREATE TABLE s(k INTEGER PRIMARY KEY, v); INSERT INTO s VALUES (1, 0), (2, 0)").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (path, stop) = (path.clone(), stop.clone());
        std::thread::spawn(move || {
            let c = rusqlite::Connection::open(path).unwrap();
            c.pragma_update(None, "wal_autocheckpoint", 20).unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                c.execute("UPDATE s SET v = ?1", [n]).unwrap();
            }
            n
        })
    };
    let (mut db_only, mut with_wal) = (0, 0);
    for _ in 0..120 {
        let mark = match ReadMark::begin(&path) {
            Ok(m) => m,
            Err(e) if e.is_retry() => continue,
            Err(e) => panic!("{e}"),
        };
        let wal = std::fs::File::open(format!("{}-wal", path.display())).unwrap();
        // Each page: the newest frame up to mxFrame, else the file.
        let (mx, pages) = match mark.pins() {
            Pins::DbOnly => (0, word(mark.header(), 5)),
            Pins::DbAndWal => (word(mark.header(), 4), word(mark.header(), 5)),
        };
        match mark.pins() {
            Pins::DbOnly => db_only += 1,
            Pins::DbAndWal => with_wal += 1,
        }
        let mut image = vec![0u8; pages as usize * 4096];
        mark.read_at(&mut image, 0).unwrap();
        use std::os::unix::fs::FileExt;
        for frame in 0..u64::from(mx) {
            let mut header = [0u8; 24];
            wal.read_exact_at(&mut header, 32 + frame * 4120).unwrap();
            let page = u32::from_be_bytes(header[..4].try_into().unwrap());
            if page <= pages {
                let at = (page as usize - 1) * 4096;
                wal.read_exact_at(&mut image[at..at + 4096], 32 + frame * 4120 + 24).unwrap();
            }
        }
        drop(mark);
        let (_copy_dir, copy) = dir();
        image[18..20].fill(1);
        std::fs::write(&copy, image).unwrap();
        let copy = rusqlite::Connection::open(&copy).unwrap();
        let (a, b): (i64, i64) = copy
            .query_row("SELECT (SELECT v FROM s WHERE k=1), (SELECT v FROM s WHERE k=2)", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .unwrap();
        assert_eq!(a, b);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 0);
    assert!(with_wal > 0, "{db_only} {with_wal}");
}

#[test]
fn raw_handles_lock_as_sqlite_does() {
    let (_d, path) = dir();
    install();
    let c = rusqlite::Connection::open(&path).unwrap();
    c.busy_timeout(std::time::Duration::ZERO).unwrap();
    c.execute_batch("CREATE TABLE t(x)").unwrap();
    let mut raw = RawDb::open(&path).unwrap();
    assert_eq!(raw.access(), Access::ReadWrite);
    raw.lock(FileLock::Exclusive).unwrap();
    assert!(c.execute_batch("SELECT * FROM t").is_err());
    raw.unlock(FileLock::None).unwrap();
    c.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    assert!(raw.lock(FileLock::Exclusive).unwrap_err().is_retry());
    assert_eq!(raw.file_lock(), FileLock::None);
    c.execute_batch("COMMIT").unwrap();
    raw.lock(FileLock::Exclusive).unwrap();
    let size = raw.size().unwrap();
    let mut page = vec![0u8; 4096];
    raw.read_at(&mut page, 0).unwrap();
    raw.truncate(0).unwrap();
    raw.write_at(&page, 0).unwrap();
    raw.truncate(size).unwrap();
    raw.sync().unwrap();
    assert!(raw.shm_lock(SlotRange::WRITE, LockOp::LockShared).is_err(), "no wal-index is open");
    assert!(raw.open_wal_index().unwrap_err().is_missing());
    drop(raw);
    c.execute_batch("SELECT * FROM t").unwrap();
    assert!(RawDb::open(&path.with_file_name("none.db")).err().unwrap().is_missing());
}

#[test]
fn every_open_is_told_and_failing_sql_there_is_forgotten() {
    install();
    let before = OPENED.load(Ordering::Relaxed);
    use rusqlite::OpenFlags as F;
    let flags = F::default() | F::SQLITE_OPEN_EXRESCODE;
    drop(rusqlite::Connection::open_in_memory_with_flags(flags).unwrap());
    assert!(OPENED.load(Ordering::Relaxed) > before);
}

#[test]
fn functions_and_values_travel() {
    install();
    let c = rusqlite::Connection::open_in_memory().unwrap();
    // SAFETY: the connection lives, on this thread.
    unsafe { function::register(c.handle().cast(), &TEST_FUNCTIONS[0]).unwrap() };
    let all: (String, String, String, String, String) = c
        .query_row(
            "SELECT typeof(test_echo(NULL)), quote(test_echo(-9223372036854775808)), quote(test_echo(1.5)),
                    quote(test_echo('a' || char(0) || 'ß')), quote(test_echo(x'00ff'))",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
        )
        .unwrap();
    assert_eq!((all.0.as_str(), all.1.as_str(), all.2.as_str()), ("null", "-9223372036854775808", "1.5"));
    assert_eq!(all.4, "X'00FF'");
    let bad =
        c.query_row("SELECT test_echo(CAST(x'ff' AS TEXT))", [], |r| r.get::<_, String>(0)).unwrap_err();
    assert!(bad.to_string().contains("test_echo: argument 1: the text is not valid UTF-8"), "{bad}");
    let few = c.query_row("SELECT test_echo()", [], |r| r.get::<_, String>(0)).unwrap_err();
    assert!(few.to_string().contains("wrong number of arguments"), "{few}");
    c.execute_batch("CREATE VIEW v AS SELECT test_echo(1)").unwrap();
    let view = c.query_row("SELECT * FROM v", [], |r| r.get::<_, i64>(0)).unwrap_err();
    assert!(view.to_string().contains("unsafe use"), "{view}");
}

/// I-JOIN-1: frames of a transaction that wrote pages again in place get their headers anew, without their pages; what the
/// WAL file holds then is what recovery finds without a wal-index.
#[test]
fn a_joined_wal_is_recovered_whole() {
    // Without psow, at FULL, a commit is padded to the sector, and a page may be cut in two where the sync is due.
    let kinds =
        [(512, "NORMAL", 1), (4096, "NORMAL", 1), (65536, "NORMAL", 1), (512, "FULL", 0), (1024, "FULL", 0)];
    for (page_size, synchronous, psow) in kinds {
        let (d, path) = dir();
        observe_with(&path, &Arc::new(Watcher::default()));
        let uri = format!("file:{}?psow={psow}", path.display());
        let c = rusqlite::Connection::open(uri).unwrap();
        c.execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA cache_size=8; PRAGMA synchronous={synchronous}"
        ))
        .unwrap();
        c.pragma_update(None, "journal_mode", "wal").unwrap();
        c.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
        for round in 0..6 {
            c.execute_batch(&format!(
                "BEGIN; INSERT INTO t(v) SELECT randomblob({page_size}) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40) SELECT i FROM n);
                 SAVEPOINT s; UPDATE t SET v = randomblob({page_size}); ROLLBACK TO s; UPDATE t SET v = randomblob(40) WHERE id % 3 = {};
                 UPDATE t SET v = randomblob(50) WHERE id % 3 = {}; COMMIT",
                round % 3,
                round % 3
            ))
            .unwrap();
            if round == 3 {
                checkpoint(&c, "RESTART");
            }
            let small = if psow == 0 { 400 } else { 0 };
            for _ in 0..small {
                c.execute_batch("UPDATE t SET v = randomblob(30) WHERE id = 5").unwrap();
                let (wal, frame) = (format!("{}-wal", path.display()), page_size + 24);
                let len = std::fs::metadata(wal).unwrap().len();
                assert_eq!((len - 32) % frame, 0, "the WAL ends within a frame");
            }
            let copy = d.path().join("copy.db");
            std::fs::copy(&path, &copy).unwrap();
            std::fs::copy(format!("{}-wal", path.display()), d.path().join("copy.db-wal")).unwrap();
            let sum = "SELECT count(*), sum(length(v)), group_concat(hex(v)) FROM t";
            let read = |c: &rusqlite::Connection| -> (i64, i64, String) {
                c.query_row(sum, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap()
            };
            let recovered = rusqlite::Connection::open(&copy).unwrap();
            assert_eq!(read(&recovered), read(&c), "page size {page_size}, round {round}");
            drop(recovered);
            std::fs::remove_file(&copy).unwrap();
        }
    }
}
