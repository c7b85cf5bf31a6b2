//! What the format rooms write, restored by the real Litestream; what it wrote, read by us.
//!
//! Needs the `litestream` binary (0.5.16 or later) named by the environment variable LITESTREAM; skipped
//! with a notice otherwise.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_macros)]

use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use walrust::base::{DbChecksum, Lineage, PageSize, Pgno, Timestamp, TxId};
use walrust::ltx::{self, Attest, Encoder, Header, Level, Overrides, WalRange};
use walrust::wal::{self, ReadAt, WalPos};

fn litestream() -> Option<PathBuf> {
    let found = std::env::var_os("LITESTREAM").map(PathBuf::from);
    if found.is_none() {
        println!("skipped: the environment variable LITESTREAM does not name a litestream binary");
    }
    found
}

/// A database, captured commit by commit the simplest possible way.
struct Captured {
    dir: tempfile::TempDir,
    db: Connection,
    size: PageSize,
    at: Option<WalPos>,
    txid: TxId,
    pages: BTreeMap<u32, Vec<u8>>,
    /// The database after each TXID, from 1.
    states: Vec<Vec<u8>>,
    files: Vec<Vec<u8>>,
}

const LINEAGE: Lineage = Lineage(0xfeed_0000_0000_0001);

impl Captured {
    fn new(page_size: u32) -> Captured {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join("a.db")).unwrap();
        db.execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB); CREATE INDEX i ON t(x);"
        ))
        .unwrap();
        let size = PageSize::new(page_size).unwrap();
        let (pages, states, files) = Default::default();
        Captured { dir, db, size, at: None, txid: TxId::ZERO, pages, states, files }
    }

    /// Everything committed since the last call becomes the next L0 file.
    fn seal(&mut self) {
        let wal = File::open(self.dir.path().join("a.db-wal")).unwrap();
        let scan = wal::scan(&wal).unwrap().unwrap();
        let start = self.at.unwrap_or(scan.header.start());
        let frames = wal::read_frames(&wal, start, scan.end, |_| {}).unwrap();
        self.at = Some(frames.end);
        let before = self.checksum();
        let mut new = BTreeMap::new();
        for (pgno, number) in &frames.pages {
            if pgno.get() <= frames.commit {
                let mut page = vec![0; self.size.len()];
                wal.read_exact_at(&mut page, wal::page_offset(*number, self.size)).unwrap();
                new.insert(pgno.get(), page);
            }
        }
        let grown_from = self.pages.len() as u32;
        // The growth rule. The main file holds only the first pages: nothing was checkpointed.
        for n in grown_from + 1..=frames.commit {
            new.entry(n).or_insert_with(|| vec![0; self.size.len()]);
        }
        self.pages.retain(|n, _| *n <= frames.commit);
        self.pages.extend(new.clone());
        self.txid = self.txid.next();
        let mut header = Header::new(
            self.size,
            frames.commit,
            self.txid,
            self.txid,
            Timestamp(1_790_000_000_000 + self.txid.as_i64()),
        );
        let first = wal::frame_offset(start.frame + 1, self.size);
        let last = wal::frame_offset(frames.end.frame + 1, self.size);
        let wal::Salt { salt1, salt2 } = frames.end.salt;
        header.wal = Some(WalRange { offset: first, size: last - first, salt1, salt2 });
        header.lineage = LINEAGE;
        header.attest = Some(Attest { before, after: self.checksum() });
        let mut encoder = Encoder::new(Vec::new(), header).unwrap();
        for (n, page) in &new {
            encoder.page(Pgno::new(*n).unwrap(), page).unwrap();
        }
        self.files.push(encoder.finish().unwrap().1);
        self.states.push(self.pages.values().flatten().copied().collect());
    }

    fn checksum(&self) -> DbChecksum {
        self.pages.iter().fold(DbChecksum::EMPTY, |sum, (n, page)| {
            sum.toggle(ltx::page_checksum(Pgno::new(*n).unwrap(), page))
        })
    }
}

/// Some life: growth, updates, a shrink, growth again.
fn lived(page_size: u32) -> Captured {
    let mut c = Captured::new(page_size);
    c.seal();
    let rows = 40 * page_size / 512;
    let fill = format!(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<{rows})
         INSERT INTO t(x) SELECT randomblob(200) FROM c;"
    );
    for step in [
        fill.as_str(),
        "UPDATE t SET x = zeroblob(300) WHERE id % 3 = 0;",
        "INSERT INTO t(x) VALUES (randomblob(70000));",
        "DELETE FROM t WHERE id > 10; VACUUM;",
        "UPDATE t SET x = 'small' WHERE id < 5;",
        fill.as_str(),
        "DELETE FROM t WHERE id % 2;",
    ] {
        c.db.execute_batch(step).unwrap();
        c.seal();
    }
    c
}

fn put(root: &Path, level: Level, file: &[u8]) {
    let name = ltx::verify(file).unwrap().header.file_name().to_string();
    let dir = root.join("ltx").join(level.to_string());
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), file).unwrap();
}

fn restore(binary: &Path, root: &Path, txid: Option<TxId>) -> Result<Vec<u8>, String> {
    let out = root.join(format!("restored-{}.db", txid.map_or(0, |t| t.0)));
    let mut command = Command::new(binary);
    command.args(["restore", "-o"]).arg(&out);
    if let Some(txid) = txid {
        command.args(["-txid", &txid.to_string()]);
    }
    let done = command.arg(format!("file://{}", root.display())).output().unwrap();
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned());
    }
    let bytes = fs::read(&out).unwrap();
    let ok: String =
        Connection::open(&out).unwrap().query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
    assert_eq!(ok, "ok");
    Ok(bytes)
}

/// `merge` of files, as one file.
fn merged(files: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    ltx::merge(files.iter().map(Vec::as_slice).collect(), Overrides::default(), &mut out).unwrap();
    out
}

/// The bytes of a restore and of our state agree but for what opening the copy may not change: nothing.
fn same(a: &[u8], b: &[u8], what: &str) {
    assert!(a == b, "{what}: {} and {} bytes differ", a.len(), b.len());
}

#[test]
fn level_0_files() {
    let Some(binary) = litestream() else { return };
    for page_size in [512, 4096, 65536] {
        let c = lived(page_size);
        let root = tempfile::tempdir().unwrap();
        c.files.iter().for_each(|f| put(root.path(), Level::L0, f));
        for (i, state) in c.states.iter().enumerate() {
            let txid = TxId(i as u64 + 1);
            let got = restore(&binary, root.path(), Some(txid)).unwrap();
            same(&got, state, &format!("page size {page_size}, TXID {txid}"));
        }
    }
}

#[test]
fn merged_files_and_snapshots() {
    let Some(binary) = litestream() else { return };
    let c = lived(4096);
    let n = c.files.len();
    for cut in 1..n {
        // A snapshot of the beginning, and the rest in two merged files, at levels of their own.
        let root = tempfile::tempdir().unwrap();
        put(root.path(), Level::SNAPSHOT, &merged(&c.files[..cut]));
        let middle = cut + (n - cut) / 2;
        for (level, part) in [(1, &c.files[cut..middle]), (2, &c.files[middle..])] {
            if !part.is_empty() {
                put(root.path(), Level::new(level).unwrap(), &merged(part));
            }
        }
        same(&restore(&binary, root.path(), None).unwrap(), &c.states[n - 1], &format!("cut at {cut}"));
    }
}

#[test]
fn a_damaged_file_is_refused_by_both() {
    // It refuses what we refuse: one flipped bit behind the pages of an otherwise good file.
    let Some(binary) = litestream() else { return };
    let c = lived(4096);
    let root = tempfile::tempdir().unwrap();
    let mut file = merged(&c.files);
    put(root.path(), Level::SNAPSHOT, &file);
    same(&restore(&binary, root.path(), None).unwrap(), c.states.last().unwrap(), "one snapshot");
    let name = ltx::verify(file.as_slice()).unwrap().header.file_name().to_string();
    let at = file.len() - 1;
    file[at] ^= 1;
    assert!(ltx::verify(file.as_slice()).unwrap_err().is_corrupt());
    fs::write(root.path().join("ltx/9").join(name), &file).unwrap();
    fs::remove_file(root.path().join("restored-0.db")).unwrap();
    restore(&binary, root.path(), None).unwrap_err();
}

#[test]
fn what_litestream_writes() {
    let Some(binary) = litestream() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (db_path, root) = (dir.path().join("a.db"), dir.path().join("replica"));
    let db = Connection::open(&db_path).unwrap();
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x);").unwrap();
    let url = format!("file://{}", root.display());
    let mut child = Command::new(&binary)
        .arg("replicate")
        .arg(&db_path)
        .arg(&url)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let level0 = root.join("ltx/0");
    let count = || fs::read_dir(&level0).map_or(0, |d| d.count());
    for i in 0..6 {
        db.execute("INSERT INTO t VALUES (randomblob(5000))", []).unwrap();
        for _ in 0..100 {
            if count() > i {
                break;
            }
            walrust::base::clock::sleep(std::time::Duration::from_millis(100));
        }
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    child.wait().unwrap();
    let mut names: Vec<_> = fs::read_dir(&level0)
        .unwrap()
        .filter_map(|e| ltx::FileName::parse(&e.unwrap().file_name().to_string_lossy()))
        .collect();
    names.sort();
    assert!(names.len() >= 3, "litestream wrote {} files", names.len());
    let files: Vec<Vec<u8>> = names.iter().map(|n| fs::read(level0.join(n.to_string())).unwrap()).collect();
    for (name, file) in names.iter().zip(&files) {
        let header = ltx::verify(file.as_slice()).unwrap().header;
        assert_eq!((header.file_name(), header.attest), (*name, None));
    }
    // The whole chain merged by us is what it restores.
    let all = merged(&files);
    let mut decoder = ltx::Decoder::new(all.as_slice()).unwrap();
    let mut ours = Vec::new();
    let mut page = vec![0; decoder.header().page_size.len()];
    while decoder.next_page(&mut page).unwrap().is_some() {
        ours.extend(&page);
    }
    decoder.finish().unwrap();
    same(&restore(&binary, &root, None).unwrap(), &ours, "our merge of its files");
}
