//! Capture against real databases, without the hooks: the wal-index is read from its file, which one
//! process with one connection may do.

use super::resync::{Attested, View};
use super::*;
use crate::base::{DbChecksum, Lineage, PageSize, Pgno, Result, Timestamp, TxId};
use crate::ltx;
use crate::spool::{Position, Shipped, Spool};
use crate::wal::IndexHeader;
use rusqlite::Connection;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

struct Files(PathBuf);

struct FilePin(File, IndexHeader);

impl Database for Files {
    fn pin(&self) -> Result<Box<dyn Pinned>> {
        Ok(Box::new(FilePin(File::open(&self.0).unwrap(), header(&self.0))))
    }
    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        read_or_zero(&File::open(&self.0).unwrap(), buf, offset);
        Ok(())
    }
}

impl Pinned for FilePin {
    fn header(&self) -> &IndexHeader {
        &self.1
    }
    fn is_db_only(&self) -> bool {
        false
    }
    fn read_db(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        read_or_zero(&self.0, buf, offset);
        Ok(())
    }
    fn db_size(&self) -> Result<u64> {
        Ok(self.0.metadata().unwrap().len())
    }
}

fn read_or_zero(f: &File, buf: &mut [u8], offset: u64) {
    let got = f.read_at(buf, offset).unwrap();
    buf[got..].fill(0);
}

fn header(db: &Path) -> IndexHeader {
    let mut bytes = [0; crate::wal::INDEX_HEADER_LEN];
    let shm = format!("{}-shm", db.display());
    File::open(shm).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    IndexHeader::decode(&bytes).unwrap()
}

/// The database as SQLite would read it now, lock page aside.
fn image(db: &Path) -> Vec<u8> {
    let view = View::open(&Files(db.to_path_buf()), &PathBuf::from(format!("{}-wal", db.display()))).unwrap();
    let size = view.page_size();
    let mut out = vec![0; view.commit() as usize * size.len()];
    for (i, page) in out.chunks_mut(size.len()).enumerate() {
        view.page(Pgno::new(i as u32 + 1).unwrap(), page).unwrap();
    }
    out
}

struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    conn: Connection,
    spool: Arc<Spool>,
    tracker: Tracker,
    /// The replica: the database after each TXID.
    replica: Vec<u8>,
}

impl Rig {
    fn new(page_size: u32) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app db?#.sqlite");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a,b);"
        ))
        .unwrap();
        let spool = Arc::new(Spool::open(&dir.path().join("spool")).unwrap());
        let tracker = Tracker::new(&path, spool.clone(), Arc::new(Files(path.clone())), 1 << 40);
        let mut rig = Rig { _dir: dir, path, conn, spool, tracker, replica: Vec::new() };
        rig.begin();
        rig
    }

    /// A first lineage, as the session makes it.
    fn begin(&mut self) {
        self.tracker.begin_resync();
        let view = View::open(&Files(self.path.clone()), self.tracker.wal_path()).unwrap();
        let checksum = view.scan(self.spool.sums(), |_, _| {}).unwrap();
        let lineage = Lineage::fresh();
        view.snapshot(
            &self.spool,
            &Attested { txid: TxId(1), lineage, checksum, time: Timestamp(1) },
            |_, _| {},
        )
        .unwrap();
        let p = Position {
            lineage,
            txid: TxId(1),
            pieces: 0,
            literal: false,
            page_size: view.page_size(),
            commit: view.commit(),
            checksum,
            timestamp: Timestamp(1),
            wal: view.wal_point().into(),
            handoff: view.handoff(&self.path).unwrap(),
        };
        self.spool.set_position(&self.spool.hold_unsettled().unwrap(), &p).unwrap();
        self.replica = image(&self.path);
        self.tracker.resume(p);
    }

    fn seal(&self) -> Sealed {
        self.tracker.seal(&header(&self.path), ltx::Packing::Lz4, Timestamp(2)).unwrap()
    }

    /// Cuts, applies the file as a restore would, and compares with the database.
    fn cut_and_compare(&mut self) {
        let p = self.tracker.cut().unwrap().expect("something to cut");
        let file = File::open(self.spool.pending_path(p.txid)).unwrap();
        let mut d = ltx::Decoder::new(std::io::BufReader::new(file)).unwrap();
        let h = d.header().clone();
        assert_eq!(h.attest.unwrap().after, p.checksum);
        let n = h.page_size.len();
        let mut page = vec![0; n];
        while let Some(pgno) = d.next_page(&mut page).unwrap() {
            let at = pgno.offset(h.page_size) as usize;
            if self.replica.len() < at + n {
                self.replica.resize(at + n, 0xAA);
            }
            self.replica[at..at + n].copy_from_slice(&page);
        }
        d.finish().unwrap();
        self.replica.resize(h.commit as usize * n, 0xAA);
        assert!(self.replica == image(&self.path), "TXID {} differs from the database", p.txid);
        let sum = self.replica.chunks(n).enumerate().fold(DbChecksum::EMPTY, |c, (i, page)| {
            c.toggle(ltx::page_checksum(Pgno::new(i as u32 + 1).unwrap(), page))
        });
        assert_eq!(sum, p.checksum);
        assert_eq!(self.spool.sums().checksum(p.commit, h.page_size).unwrap(), p.checksum);
    }

    fn run(&mut self, sql: &str) {
        self.conn.execute_batch(sql).unwrap();
        self.seal();
        self.cut_and_compare();
    }
}

#[test]
fn every_kind_of_commit_is_sealed_as_it_is() {
    for page_size in [512, 1024, 4096, 65536] {
        let mut rig = Rig::new(page_size);
        rig.run("INSERT INTO t VALUES(1, randomblob(100))");
        rig.run("INSERT INTO t SELECT value, randomblob(500) FROM generate_series(1,300)".replace(
            "generate_series(1,300)",
            "(WITH RECURSIVE s(value) AS (SELECT 1 UNION ALL SELECT value+1 FROM s WHERE value<300) SELECT value FROM s)",
        ).as_str());
        rig.run("CREATE INDEX i ON t(b); DELETE FROM t WHERE a % 3 = 0;");
        // Spill: more dirty pages than cache.
        rig.run("PRAGMA cache_size=10; BEGIN; UPDATE t SET b=randomblob(700); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; UPDATE t SET a=a+1; COMMIT;");
        rig.conn.execute_batch("BEGIN; UPDATE t SET b=randomblob(900); ROLLBACK;").unwrap();
        rig.run("INSERT INTO t VALUES('after rollback', zeroblob(20000))");
        rig.run("DELETE FROM t WHERE a > 10; VACUUM;");
        rig.run("INSERT INTO t VALUES('growth after shrink', randomblob(90000))");
        rig.run("DROP TABLE t; CREATE TABLE t(a,b); INSERT INTO t VALUES(1,2);");
    }
}

/// A page that is allocated and freed in one transaction never reaches the WAL, yet the database grows past it.
#[test]
fn pages_that_sqlite_never_wrote_are_in_the_file() {
    let mut rig = Rig::new(1024);
    rig.run("CREATE TABLE big(x); INSERT INTO big VALUES(randomblob(40000));");
    rig.run("DROP TABLE big; VACUUM;");
    rig.run("BEGIN; CREATE TABLE a(x); INSERT INTO a VALUES(randomblob(60000)); CREATE TABLE b(x); INSERT INTO b VALUES(randomblob(9000)); DROP TABLE a; COMMIT;");
    rig.run("INSERT INTO b VALUES(randomblob(200000))");
    rig.run("DELETE FROM b; BEGIN; INSERT INTO b VALUES(randomblob(3000000)); DELETE FROM b; INSERT INTO b VALUES(1); COMMIT;");
}

#[test]
fn pieces_fold_into_one_file() {
    let mut rig = Rig::new(4096);
    for i in 0..40 {
        rig.conn.execute("INSERT INTO t VALUES(?1, randomblob(3000))", [i]).unwrap();
        if i % 7 == 0 {
            rig.conn.execute_batch("DELETE FROM t; VACUUM").unwrap();
        }
        rig.seal();
        if i == 20 {
            rig.tracker.squash().unwrap();
            assert_eq!(rig.tracker.position().unwrap().pieces, 1);
        }
    }
    rig.cut_and_compare();
}

/// A power cut has taken back what was shipped (I-SPOOL-12).
#[test]
fn no_file_is_made_of_a_txid_that_the_replica_has() {
    for (shipped, is_cut) in [(0, true), (1, true), (2, false), (9, false)] {
        let rig = Rig::new(4096);
        rig.conn.execute_batch("INSERT INTO t VALUES(1, 2)").unwrap();
        rig.seal();
        let p = rig.tracker.position().unwrap();
        assert_eq!((p.txid, p.pieces), (TxId(1), 1));
        let shipped = Shipped {
            replica: "file:///r".into(),
            lineage: p.lineage,
            txid: TxId(shipped),
            snapshot: TxId(1),
            snapshot_time: None,
            time: Timestamp(0),
            change: Default::default(),
        };
        rig.spool.set_shipped(&shipped).unwrap();
        let last = rig.tracker.forget_place().unwrap().unwrap();
        assert_eq!((last.txid, last.pieces), if is_cut { (TxId(2), 0) } else { (TxId(1), 1) });
        assert_eq!(rig.spool.pending().unwrap().iter().any(|q| q.txid == TxId(2)), is_cut);
        let held = rig.spool.hold_seal().unwrap();
        rig.spool.drop_shipped(&held, TxId(2)).unwrap();
        assert_eq!(rig.spool.pending().unwrap(), []);
    }
}

#[test]
fn a_reset_is_granted_only_when_all_is_sealed_and_the_next_generation_follows() {
    let mut rig = Rig::new(4096);
    let before = header(&rig.path);
    rig.tracker.write_begins(Some(before));
    rig.conn.execute_batch("INSERT INTO t VALUES(1,2)").unwrap();
    let h = header(&rig.path);
    assert_eq!(rig.tracker.write_ends(Some(h)), Noticed::Commit);
    // The short tail is sealed by whoever resets.
    assert!(!rig.tracker.is_sealed(&h));
    assert_eq!(rig.tracker.reset_wanted(Some(&h), Resetter::Commit, || 0), Permit::Granted);
    assert!(rig.tracker.is_sealed(&h));
    // Restart under one WRITE lock.
    rig.tracker.write_begins(Some(h));
    rig.conn.execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES(3,4)").unwrap();
    let next = header(&rig.path);
    assert_ne!(next.salt, h.salt);
    assert_eq!(rig.tracker.write_ends(Some(next)), Noticed::Commit);
    rig.seal();
    rig.cut_and_compare();
    // A restart that nobody announced.
    rig.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES(5,6)").unwrap();
    let strange = header(&rig.path);
    rig.tracker.write_begins(Some(strange));
    rig.conn.execute_batch("INSERT INTO t VALUES(7,8)").unwrap();
    assert_eq!(rig.tracker.write_ends(Some(header(&rig.path))), Noticed::Lost);
    assert!(matches!(rig.tracker.sync_state(), Continuity::Lost(_)));
    assert_eq!(
        rig.tracker.reset_wanted(Some(&strange), Resetter::Commit, || 0),
        Permit::Granted,
        "nothing to protect any more"
    );
}

#[test]
fn nothing_past_the_committed_frame_is_sealed() {
    let mut rig = Rig::new(1024);
    // A spilled transaction leaves valid frames behind mxFrame when it is rolled back.
    rig.conn.execute_batch("PRAGMA cache_size=5; BEGIN;").unwrap();
    for i in 0..200 {
        rig.conn.execute("INSERT INTO t VALUES(?1, randomblob(900))", [i]).unwrap();
    }
    let wal_len = std::fs::metadata(rig.tracker.wal_path()).unwrap().len();
    let h = header(&rig.path);
    assert!(wal_len > 32 + u64::from(h.max_frame) * 1048 + 50_000, "the transaction must have spilled");
    rig.conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(rig.seal(), Sealed::default());
    rig.run("INSERT INTO t VALUES('x','y')");
}

#[test]
fn a_crash_between_piece_and_position_is_settled() {
    let mut rig = Rig::new(4096);
    rig.conn.execute_batch("INSERT INTO t VALUES(1, randomblob(5000))").unwrap();
    let before = rig.spool.position().unwrap().unwrap();
    rig.seal();
    let after = rig.spool.position().unwrap().unwrap();
    // As if the process had died right before the position was written.
    rig.spool.set_position(&rig.spool.hold_unsettled().unwrap(), &before).unwrap();
    let recovered = rig.spool.recover(&rig.spool.hold_unsettled().unwrap()).unwrap().unwrap();
    assert_eq!(recovered.checksum, after.checksum);
    assert_eq!(recovered.pieces, 1);
    assert_eq!(recovered.wal.point().unwrap().frame, after.wal.point().unwrap().frame);
    rig.tracker.resume(recovered);
    rig.run("INSERT INTO t VALUES(2, randomblob(5000))");
    // As if it had died right after the cut's rename.
    rig.conn.execute_batch("INSERT INTO t VALUES(3, 3)").unwrap();
    rig.seal();
    let counted = rig.spool.position().unwrap().unwrap();
    let cut = rig.tracker.cut().unwrap().unwrap();
    rig.spool.set_position(&rig.spool.hold_unsettled().unwrap(), &counted).unwrap();
    let recovered = rig.spool.recover(&rig.spool.hold_unsettled().unwrap()).unwrap().unwrap();
    assert_eq!((recovered.txid, recovered.pieces), (cut.txid, 0));
}

#[test]
fn sums_that_do_not_add_up_are_not_trusted() {
    let rig = Rig::new(4096);
    rig.conn.execute_batch("INSERT INTO t VALUES(1,2)").unwrap();
    rig.seal();
    assert!(rig.spool.recover(&rig.spool.hold_unsettled().unwrap()).unwrap().is_some());
    rig.spool.sums().store(&[(Pgno::ONE, 42)]).unwrap();
    assert!(rig.spool.recover(&rig.spool.hold_unsettled().unwrap()).unwrap().is_none());
    // Nor does another process, which only follows, go on from there.
    assert!(rig.spool.position().unwrap().unwrap().wal.is_given_up());
}

#[test]
fn a_snapshot_refuses_a_checksum_that_is_not_the_databases() {
    let rig = Rig::new(4096);
    let view = View::open(&Files(rig.path.clone()), rig.tracker.wal_path()).unwrap();
    let wrong = view.snapshot(
        &rig.spool,
        &Attested {
            txid: TxId(9),
            lineage: Lineage(1),
            checksum: DbChecksum(1 << 63 | 7),
            time: Timestamp(3),
        },
        |_, _| {},
    );
    assert!(wrong.unwrap_err().is_corrupt());
    assert!(!rig.spool.snapshot_path(TxId(9)).exists());
    let _ = PageSize::new(4096).unwrap();
}

/// This process closed the database, another one went on and was the last to close it: what this one remembers of the WAL is sealed, and
/// the position stays that of the close.
#[test]
fn a_header_from_before_the_close_says_nothing_of_what_came_after() {
    let rig = Rig::new(4096);
    rig.conn.execute_batch("INSERT INTO t VALUES(1, 2)").unwrap();
    assert_eq!(rig.tracker.look(header(&rig.path)), Noticed::Commit);
    let other = Tracker::new(&rig.path, rig.spool.clone(), Arc::new(Files(rig.path.clone())), 1 << 40);
    other.resume(rig.tracker.position().unwrap());
    rig.conn.execute_batch("INSERT INTO t VALUES(3, 4); PRAGMA wal_checkpoint").unwrap();
    assert_eq!(other.last_close(Some(&header(&rig.path))), Noticed::Commit);
    let Rig { conn, spool, tracker, .. } = rig;
    let closed = spool.position().unwrap();
    for is_over in [false, true] {
        tracker.seal_noticed(Timestamp(2)).unwrap();
        assert_eq!(spool.position().unwrap(), closed, "the WAL is gone: {is_over}");
        if !is_over {
            // As after the last close.
            conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        }
    }
}
