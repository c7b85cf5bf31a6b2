use super::*;
use crate::ltx::{HEADER_LEN, Level};
use crate::replica::layout::manifest_key;
use crate::replica::testkit::*;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    maker: Maker,
    files: Vec<LtxFile>,
}

impl Bench {
    fn new(n: u64) -> Bench {
        Bench::with(Maker::new(1024), n)
    }

    fn with(mut maker: Maker, n: u64) -> Bench {
        let (dir, store) = (tempfile::tempdir().unwrap(), Store::in_memory());
        let files = history(&mut maker, n);
        block(upload(&store, &files));
        Bench { dir, store, maker, files }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.db")
    }

    fn get(&self, point: Point) -> Result<Restored> {
        let replace = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
        self.get_with(point, &replace)
    }

    fn get_with(&self, point: Point, options: &RestoreOptions<'_>) -> Result<Restored> {
        block(restore(&self.store, point, &self.out(), options))
    }

    /// What lies in the target's directory.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn key(&self, id: FileId) -> String {
        id.key(self.store.layout())
    }

    fn change(&self, id: FileId, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = block(self.store.get(&self.key(id))).unwrap().to_vec();
        change(&mut bytes);
        block(self.store.put_over(&self.key(id), bytes)).unwrap();
    }

    /// Puts `good`, changed, in the place of a file that may be too large for [`Bench::change`].
    fn change_all(&self, id: FileId, good: &[u8], change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        block(self.store.put_over(&self.key(id), bytes)).unwrap();
    }

    fn id(&self, level: u8, max: u64) -> FileId {
        self.files.iter().map(|f| f.id).find(|id| id.level.get() == level && id.max.0 == max).unwrap()
    }
}

#[test]
fn every_txid_is_the_database_as_it_was() {
    for page_size in [512, 4096] {
        let b = Bench::with(Maker::new(page_size), 30);
        for (txid, image) in &b.maker.images {
            let r = b.get(Point::TxId(*txid)).unwrap();
            assert!(read(&b.out()) == *image, "TXID {txid}");
            assert_eq!((r.txid, r.attested, r.lineage), (*txid, true, b.maker.lineage));
            assert_eq!(u64::from(r.pages) * u64::from(page_size), image.len() as u64);
        }
        let r = b.get(Point::Latest).unwrap();
        assert_eq!((r.txid, r.checksum), (b.maker.txid, b.maker.sum()));
        assert_eq!(b.names(), ["out.db"]);
    }
}

#[test]
fn times() {
    let b = Bench::new(12);
    for (offset, n) in [(0, 1), (999, 1), (1000, 2), (10_500, 11), (11_000, 12), (99_000, 12)] {
        let r = b.get(Point::Time(Timestamp(START.0 + offset))).unwrap();
        assert_eq!(r.txid, TxId(n), "{offset}");
    }
    let e = b.get(Point::Time(Timestamp(START.0 - 1))).unwrap_err();
    assert!(e.to_string().contains("outside the history 0000000000000001..000000000000000c"), "{e}");
}

#[test]
fn litestreams_files_restore_by_their_header_times_and_without_a_manifest() {
    let mut maker = Maker::new(1024);
    maker.attested = Attested::No;
    let files = history(&mut maker, 9);
    let b = Bench { dir: tempfile::tempdir().unwrap(), store: Store::in_memory(), maker, files };
    block(put(&b.store, &b.files));
    for (txid, image) in &b.maker.images {
        let r = b.get(Point::Time(Timestamp(START.0 + (txid.0 as i64 - 1) * 1000))).unwrap();
        assert_eq!((r.txid, r.attested), (*txid, false));
        assert!(read(&b.out()) == *image);
    }
}

#[test]
fn both_sides_of_a_gap_restore_and_never_mix() {
    let mut b = Bench::new(8);
    let old = b.maker.lineage;
    let mut more = vec![b.maker.gap()];
    more.extend((10..=13).map(|n| b.maker.step(n)));
    block(upload(&b.store, &more));
    for (txid, image) in &b.maker.images {
        let r = b.get(Point::TxId(*txid)).unwrap();
        assert!(read(&b.out()) == *image, "TXID {txid}");
        assert_eq!(r.lineage == old, txid.0 <= 8);
    }
}

#[test]
fn damage_is_gone_around_where_other_files_lead_there() {
    let b = Bench::new(6);
    // The level-1 file 2-5 is damaged; level 0 has the same. TXID 5 is asked for, as 6 has a snapshot.
    b.change(b.id(1, 5), |bytes| bytes[HEADER_LEN + 30] ^= 1);
    let r = b.get(Point::TxId(TxId(5))).unwrap();
    assert!(read(&b.out()) == b.maker.images[&TxId(5)]);
    assert_eq!(r.notes.len(), 1);
    assert!(r.notes[0].starts_with("0000000000000002-0000000000000005.ltx: "), "{:?}", r.notes);
}

#[test]
fn damage_without_a_way_around_is_an_error_and_the_target_stays() {
    for what in ["flip", "cut", "grow", "delete", "swap", "header"] {
        let b = Bench::new(12);
        std::fs::write(b.out(), b"precious").unwrap();
        let id = b.id(0, 9);
        match what {
            "flip" => b.change(id, |v| v[HEADER_LEN + 20] ^= 4),
            "cut" => b.change(id, |v| v.truncate(v.len() - 9)),
            "grow" => b.change(id, |v| v.push(0)),
            "swap" => {
                let other = block(b.store.get(&b.key(b.id(0, 10)))).unwrap();
                block(b.store.put_over(&b.key(id), other)).unwrap();
            }
            "header" => b.change(id, |v| v[35] ^= 1),
            _ => block(b.store.delete(&[b.key(id)])).unwrap(),
        }
        let e = b.get(Point::Latest).unwrap_err();
        assert!(e.is_corrupt(), "{what}: {e:?}");
        assert_eq!(e.to_string().lines().count(), 1);
        assert_eq!(read(&b.out()), b"precious");
        assert_eq!(b.names(), ["out.db"], "{what}");
        assert_eq!(b.get(Point::TxId(TxId(8))).unwrap().txid, TxId(8));
    }
}

#[test]
fn a_valid_file_of_another_history_is_refused() {
    // The same TXIDs, correct names and checksums, but another database; once attested, once not, once without manifest.
    for attested in [Attested::Yes, Attested::No] {
        let b = Bench::new(12);
        let mut other = Maker::new(1024);
        other.attested = attested;
        let foreign = history(&mut other, 12).into_iter().find(|f| f.id == b.id(0, 12)).unwrap();
        block(put(&b.store, std::slice::from_ref(&foreign)));
        let e = b.get(Point::Latest).unwrap_err();
        assert!(e.is_corrupt() && e.to_string().contains("000c.ltx"), "{e}");
        block(b.store.delete(&[manifest_key(1)])).unwrap();
        if attested == Attested::Yes {
            let e = b.get(Point::Latest).unwrap_err();
            assert!(e.to_string().contains("another history"), "{e}");
        }
    }
}

#[test]
fn a_lost_newest_file_is_an_error_unless_its_predecessor_is_named() {
    let b = Bench::new(9);
    block(b.store.delete(&[b.key(b.id(0, 9))])).unwrap();
    let e = b.get(Point::Latest).unwrap_err();
    assert!(e.is_corrupt() && e.to_string().contains("restore TXID 0000000000000008"), "{e}");
    assert_eq!(b.get(Point::TxId(TxId(8))).unwrap().txid, TxId(8));
}

#[test]
fn a_file_removed_in_order_is_no_loss() {
    let b = Bench::new(9);
    let id = b.id(0, 9);
    let mut w = block(ManifestWriter::load(&b.store)).unwrap();
    block(w.remove(&b.store, &BTreeSet::from([id]))).unwrap();
    block(b.store.delete(&[b.key(id)])).unwrap();
    assert_eq!(b.get(Point::Latest).unwrap().txid, TxId(8));
}

use crate::replica::manifest::ManifestWriter;

#[test]
fn refusals_touch_nothing() {
    let b = Bench::new(3);
    let keep = RestoreOptions::default();
    std::fs::write(b.out(), b"x").unwrap();
    assert_eq!(b.get_with(Point::Latest, &keep).unwrap_err().kind(), Kind::Exists);
    std::fs::remove_file(b.out()).unwrap();
    let wal = b.dir.path().join("out.db-wal");
    std::fs::write(&wal, b"old frames").unwrap();
    assert_eq!(b.get_with(Point::Latest, &keep).unwrap_err().kind(), Kind::Exists);
    std::fs::remove_file(&wal).unwrap();
    std::fs::create_dir(b.out()).unwrap();
    let replace = RestoreOptions { overwrite: Overwrite::Replace, ..keep };
    assert_eq!(b.get_with(Point::Latest, &replace).unwrap_err().kind(), Kind::Config);
    let nowhere = b.dir.path().join("no/such/out.db");
    assert_eq!(block(restore(&b.store, Point::Latest, &nowhere, &keep)).unwrap_err().kind(), Kind::Missing);
    assert_eq!(b.names(), ["out.db"]);
}

#[test]
fn an_old_wal_does_not_poison_the_restored_database() {
    let b = Bench::new(6);
    // A database with commits that live in its -wal only, whose process is gone.
    let live = b.dir.path().join("live.db");
    let c = rusqlite::Connection::open(&live).unwrap();
    c.execute_batch(
        "PRAGMA page_size=1024; PRAGMA journal_mode=WAL; CREATE TABLE old(x); INSERT INTO old VALUES(1);",
    )
    .unwrap();
    for s in ["", "-wal", "-shm"] {
        std::fs::copy(format!("{}{s}", live.display()), format!("{}{s}", b.out().display())).unwrap();
    }
    drop(c);
    for s in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{s}", live.display()));
    }
    assert!(std::fs::metadata(b.dir.path().join("out.db-wal")).unwrap().len() > 0);
    let mode = std::fs::metadata(b.out()).unwrap().permissions();
    b.get(Point::Latest).unwrap();
    assert_eq!(b.names(), ["out.db"]);
    assert_eq!(std::fs::metadata(b.out()).unwrap().permissions(), mode);
    assert!(read(&b.out()) == b.maker.images[&TxId(6)]);
    let c = rusqlite::Connection::open(b.out()).unwrap();
    let old: i64 =
        c.query_row("SELECT count(*) FROM sqlite_schema WHERE name='old'", [], |r| r.get(0)).unwrap();
    assert_eq!(old, 0);
}

#[test]
fn the_callers_check_sees_the_file_and_its_no_is_final() {
    let b = Bench::new(6);
    std::fs::write(b.out(), b"precious").unwrap();
    let (calls, image) = (AtomicUsize::new(0), b.maker.images[&TxId(6)].clone());
    let sees = |p: &Path, c: Check| {
        calls.fetch_add(1, Ordering::SeqCst);
        assert_eq!(c, Check::Full);
        assert!(read(p) == image);
        // As SQLite may leave them.
        std::fs::write(format!("{}-wal", p.display()), b"").unwrap();
        Err(Error::corrupt("integrity_check: no"))
    };
    let options = RestoreOptions {
        overwrite: Overwrite::Replace,
        check: Check::Full,
        checker: Some(&sees),
        ..RestoreOptions::default()
    };
    assert!(b.get_with(Point::Latest, &options).unwrap_err().to_string().contains("integrity_check: no"));
    assert_eq!(read(&b.out()), b"precious");
    assert_eq!((b.names(), calls.load(Ordering::SeqCst)), (vec!["out.db".to_string()], 1));
    b.get_with(Point::Latest, &RestoreOptions { check: Check::None, ..options }).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn an_encrypted_file_is_not_shown_to_sqlite() {
    let (store, mut maker) = (Store::in_memory(), Maker::new(1024));
    let file = maker.noise();
    block(upload(&store, &[file]));
    let dir = tempfile::tempdir().unwrap();
    let never = |_: &Path, _: Check| Err(Error::corrupt("file is not a database"));
    let options = RestoreOptions { check: Check::Full, checker: Some(&never), ..RestoreOptions::default() };
    let r = block(restore(&store, Point::Latest, &dir.path().join("out.db"), &options)).unwrap();
    assert_eq!(r.structure, Structure::Encrypted);
    // Damage at the source is shown to it.
    let b = Bench::new(3);
    let e = b.get_with(Point::Latest, &options).unwrap_err();
    assert!(e.to_string().contains("not a database"), "{e}");
}

#[test]
fn mode_is_that_of_what_was_there() {
    use std::os::unix::fs::PermissionsExt;
    let b = Bench::new(3);
    let mode = || std::fs::metadata(b.out()).unwrap().permissions().mode() & 0o777;
    b.get(Point::Latest).unwrap();
    let usual =
        std::fs::File::create(b.dir.path().join("usual")).unwrap().metadata().unwrap().permissions().mode()
            & 0o777;
    assert_eq!(mode(), usual);
    std::fs::remove_file(b.dir.path().join("usual")).unwrap();
    std::fs::set_permissions(b.out(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let options = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
    b.get_with(Point::Latest, &options).unwrap();
    assert_eq!((mode(), b.names()), (0o640, vec!["out.db".to_string()]));
}

#[test]
fn progress_counts_up_to_the_whole() {
    let b = Bench::new(12);
    let seen = Mutex::new(Vec::new());
    let progress = |p: Progress| seen.lock().unwrap().push(p);
    for parallel in [0, 1, 3, 64] {
        seen.lock().unwrap().clear();
        let options = RestoreOptions {
            overwrite: Overwrite::Replace,
            parallel,
            progress: Some(&progress),
            ..RestoreOptions::default()
        };
        let r = b.get_with(Point::Latest, &options).unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.iter().map(|p| p.files).collect::<Vec<_>>(), (1..=r.files).collect::<Vec<_>>());
        let last = seen.last().unwrap();
        assert_eq!((last.bytes, last.files), (last.of_bytes, last.of_files));
        assert_eq!(last.bytes, r.bytes);
    }
}

/// A history whose snapshots, and a level-0 file, are larger than a range.
fn large(page_size: u32) -> Bench {
    let mut maker = Maker::new(page_size);
    let rows = |n: u32| {
        format!(
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < {n})
             INSERT INTO t(v) SELECT randomblob(1000) FROM c"
        )
    };
    maker.commit(&rows(9000));
    let mut b = Bench::with(maker, 5);
    let more =
        [b.maker.commit("UPDATE t SET v = randomblob(1000)"), b.maker.commit(&rows(2)), b.maker.step(5)];
    block(upload(&b.store, &more));
    b.files.extend(more);
    let over = |f: &LtxFile| f.bytes.len() as u64 > crate::replica::fetch::RANGE;
    assert!(b.files.iter().filter(|f| over(f)).count() >= 2, "a snapshot, and a commit of all pages");
    b
}

#[test]
fn what_is_larger_than_a_range_is_put_in_place_by_several_threads() {
    for page_size in [512, 4096, 65536] {
        let b = large(page_size);
        for (txid, image) in &b.maker.images {
            for parallel in [1, 2, 32] {
                let options =
                    RestoreOptions { overwrite: Overwrite::Replace, parallel, ..RestoreOptions::default() };
                if let Ok(r) = b.get_with(Point::TxId(*txid), &options) {
                    assert!(read(&b.out()) == *image, "TXID {txid} of pages of {page_size}");
                    assert_eq!((r.txid, r.attested), (*txid, true));
                }
            }
        }
        assert!(read(&b.out()) == b.maker.images[&b.maker.txid]);
        assert_eq!(b.names(), ["out.db"], "nothing lies beside it");
    }
}

#[test]
fn damage_in_a_large_file_is_found_wherever_it_is_and_the_target_stays() {
    let b = large(4096);
    let id = b.files[0].id;
    let good = block(b.store.get_range(&b.key(id), 0..u64::MAX >> 1)).unwrap().to_vec();
    std::fs::write(b.out(), b"precious").unwrap();
    let n = good.len();
    // A header, a page's length, a page, the end of the first range, the page index, the trailer.
    for at in [35, HEADER_LEN + 7, n / 2, 4 << 20, (4 << 20) - 1, n - 40, n - 5] {
        for change in [|v: &mut Vec<u8>, at: usize| v[at] ^= 4, |v: &mut Vec<u8>, at: usize| v.truncate(at)] {
            b.change_all(id, &good, |v| change(v, at));
            let e = b.get(Point::TxId(id.max)).unwrap_err();
            assert!(e.is_corrupt() && e.to_string().lines().count() == 1, "byte {at}: {e:?}");
            assert_eq!((read(&b.out()), b.names()), (b"precious".to_vec(), vec!["out.db".to_string()]));
        }
    }
    b.change_all(id, &good, |v| v.push(0));
    assert!(b.get(Point::TxId(id.max)).unwrap_err().is_corrupt());
    b.change_all(id, &good, |_| ());
    b.get(Point::TxId(id.max)).unwrap();
}

#[test]
fn one_range_that_fails_is_fetched_again_by_itself() {
    struct Third(AtomicUsize, String);
    impl crate::store::Faults for Third {
        fn next(&self, op: crate::store::Op, key: &str) -> crate::store::Fault {
            let n =
                (op == crate::store::Op::Get && key == self.1).then(|| self.0.fetch_add(1, Ordering::SeqCst));
            if n == Some(1) { crate::store::Fault::Fail(Kind::Retry) } else { crate::store::Fault::None }
        }
    }
    let b = large(4096);
    let asked = std::sync::Arc::new(Third(AtomicUsize::new(0), b.key(b.files[0].id)));
    let store = b.store.clone().with_faults(asked.clone());
    let options = RestoreOptions { overwrite: Overwrite::Replace, ..RestoreOptions::default() };
    let bytes = b.files[0].bytes.len() as u64;
    let ranges = usize::try_from(bytes.div_ceil(crate::replica::fetch::range_bytes(bytes))).unwrap();
    block(restore(&store, Point::TxId(b.files[0].id.max), &b.out(), &options)).unwrap();
    assert_eq!(asked.0.load(Ordering::SeqCst), ranges + 1, "each range once, and one twice");
}

#[test]
fn a_target_that_appears_meanwhile_is_not_replaced() {
    let b = Bench::new(6);
    let out = b.out();
    let appear = |_: &Path, _: Check| {
        std::fs::write(&out, b"somebody's").unwrap();
        Ok(())
    };
    let options = RestoreOptions { check: Check::Quick, checker: Some(&appear), ..RestoreOptions::default() };
    assert_eq!(b.get_with(Point::Latest, &options).unwrap_err().kind(), Kind::Exists);
    assert_eq!(read(&b.out()), b"somebody's");
    assert_eq!(b.names(), ["out.db"]);
}

#[test]
fn a_symbolic_link_is_written_through() {
    let b = Bench::new(4);
    let real = b.dir.path().join("real.db");
    std::fs::write(&real, b"old").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&real, b.out()).unwrap();
    b.get(Point::Latest).unwrap();
    assert!(read(&real) == b.maker.images[&TxId(4)]);
    assert!(std::fs::symlink_metadata(b.out()).unwrap().is_symlink());
}

#[test]
fn a_file_merged_away_while_restoring_is_replanned() {
    // The listing is read, then level 0 gives way to level 1: simulated by an inventory that is already old.
    let b = Bench::new(5);
    let (inventory, manifest) = block(Inventory::read_with_manifest(&b.store)).unwrap();
    block(b.store.delete(&[b.key(b.id(1, 5))])).unwrap();
    let goal = plan(&inventory.files, Point::Latest, clock::now()).unwrap();
    assert_eq!(goal.files.last().unwrap().level, Level::new(1).unwrap());
    let target = Target::prepare(&b.out(), Overwrite::Replace).unwrap();
    let mut notes = Vec::new();
    let options = RestoreOptions::default();
    let built = block(build(
        &b.store,
        (inventory, manifest, None),
        (Point::Latest, goal),
        &target,
        &options,
        &mut notes,
    ))
    .unwrap();
    assert_eq!(built.files, 5);
}
