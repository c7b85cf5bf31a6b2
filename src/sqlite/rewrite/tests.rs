use super::*;
use crate::sqlite::{Wiring, linked};
use rusqlite::Connection;

struct Case {
    _dir: tempfile::TempDir,
    path: PathBuf,
    /// The file as it is, and as it is to become: both rollback mode, of `size` bytes a page.
    from: Vec<u8>,
    to: Vec<u8>,
    size: usize,
}

/// A database, and what `sql` makes of it, with a change counter far on.
fn case(page_size: u32, sql: &str) -> Case {
    linked::install(Wiring::default).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("app.db");
    let c = Connection::open(&path).unwrap();
    c.execute_batch(&format!(
        "PRAGMA page_size={page_size}; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300)
         INSERT INTO t(v) SELECT randomblob(200) FROM n;"
    ))
    .unwrap();
    drop(c);
    let from = fs::read(&path).unwrap();
    let other = path.with_extension("to");
    fs::copy(&path, &other).unwrap();
    let c = Connection::open(&other).unwrap();
    c.execute_batch(sql).unwrap();
    drop(c);
    let mut to = fs::read(&other).unwrap();
    to[24..28].copy_from_slice(&0x4711u32.to_be_bytes());
    to[92..96].copy_from_slice(&0x4711u32.to_be_bytes());
    Case { _dir: dir, path, from, to, size: page_size as usize }
}

impl Case {
    fn changed(&self) -> Vec<usize> {
        let page = |b: &[u8], i: usize| b.get(i * self.size..(i + 1) * self.size).map(<[u8]>::to_vec);
        (0..self.from.len().max(self.to.len()) / self.size)
            .filter(|i| page(&self.from, *i) != page(&self.to, *i))
            .collect()
    }

    fn sealed(&self) -> Rewrite {
        let mut tx = Rewrite::begin(&self.path).unwrap();
        for i in self.changed() {
            if (i + 1) * self.size <= self.from.len() {
                let mut page = vec![0; self.size];
                tx.read_at(&mut page, (i * self.size) as u64).unwrap();
                tx.keep(Pgno::new(i as u32 + 1).unwrap(), &page).unwrap();
            }
        }
        tx.seal().unwrap();
        tx
    }

    fn write(&self, tx: &mut Rewrite, pages: usize) {
        for i in self.changed().into_iter().take(pages) {
            if let Some(page) = self.to.get(i * self.size..(i + 1) * self.size) {
                tx.write_at(page, (i * self.size) as u64).unwrap();
            }
        }
        tx.cut(self.to.len() as u64).unwrap();
    }

    fn journal(&self) -> PathBuf {
        beside(&self.path, "-journal")
    }
}

fn sum(c: &Connection) -> i64 {
    c.query_row("SELECT total(id) + total(length(v)) + total(unicode(hex(v))) FROM t", [], |r| {
        r.get::<_, f64>(0)
    })
    .unwrap() as i64
}

fn check(c: &Connection) -> String {
    c.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap()
}

const CHANGES: [&str; 4] = [
    "UPDATE t SET v = randomblob(190) WHERE id % 7 = 0",
    "INSERT INTO t(v) SELECT randomblob(300) FROM t",
    "DELETE FROM t WHERE id > 40; VACUUM",
    "CREATE TABLE u(x); INSERT INTO u VALUES(1)",
];

#[test]
fn a_transaction_is_seen_by_readers_that_had_the_old_state_cached() {
    for sql in CHANGES {
        for page_size in [512, 4096, 65536] {
            let case = case(page_size, sql);
            let reader = Connection::open(&case.path).unwrap();
            let before = sum(&reader);
            let mut tx = case.sealed();
            // RESERVED keeps no reader out.
            assert_eq!(sum(&reader), before);
            tx.exclude(Duration::ZERO).unwrap();
            case.write(&mut tx, usize::MAX);
            tx.commit().unwrap();
            assert!(!case.journal().exists());
            assert_eq!(fs::read(&case.path).unwrap(), case.to, "{sql} {page_size}");
            let fresh = Connection::open(&case.path).unwrap();
            assert_eq!((sum(&reader), check(&reader)), (sum(&fresh), "ok".to_string()));
        }
    }
}

#[test]
fn what_is_given_up_leaves_no_trace() {
    for stage in 0..3 {
        let case = case(1024, CHANGES[1]);
        let mut tx = match stage {
            0 => Rewrite::begin(&case.path).unwrap(),
            _ => case.sealed(),
        };
        if stage == 2 {
            // Fails after its first writes: rolled back as after a crash.
            tx.exclude(Duration::ZERO).unwrap();
            case.write(&mut tx, 3);
        }
        drop(tx);
        assert!(!case.journal().exists(), "stage {stage}");
        assert_eq!(fs::read(&case.path).unwrap(), case.from, "stage {stage}");
    }
}

#[test]
fn a_crash_is_rolled_back_by_sqlite() {
    for sql in CHANGES {
        let case = case(4096, sql);
        for written in [0, 1, 2, usize::MAX] {
            let mut tx = case.sealed();
            tx.exclude(Duration::ZERO).unwrap();
            if written > 0 {
                case.write(&mut tx, written);
            }
            // What a crash here would leave on disk. The copies' names match as the originals' do.
            let left = case._dir.path().join("left.db");
            fs::copy(&case.path, &left).unwrap();
            fs::copy(case.journal(), beside(&left, "-journal")).unwrap();
            drop(tx);
            let c = Connection::open(&left).unwrap();
            assert_eq!(check(&c), "ok");
            drop(c);
            assert_eq!(fs::read(&left).unwrap(), case.from, "{sql} {written}");
        }
    }
}

#[test]
fn a_journal_that_is_not_sealed_plays_nothing_back() {
    let case = case(4096, CHANGES[0]);
    let mut tx = Rewrite::begin(&case.path).unwrap();
    // A record that is wrong, as a power cut may leave one.
    tx.keep(Pgno::new(2).unwrap(), &vec![0xee; 4096]).unwrap();
    tx.journal.flush().unwrap();
    let left = case._dir.path().join("left.db");
    fs::copy(&case.path, &left).unwrap();
    fs::copy(case.journal(), beside(&left, "-journal")).unwrap();
    drop(tx);
    let c = Connection::open(&left).unwrap();
    assert_eq!(check(&c), "ok");
    drop(c);
    assert_eq!(fs::read(&left).unwrap(), case.from);
}

#[test]
fn a_long_reader_puts_it_off_and_is_not_disturbed() {
    let case = case(4096, CHANGES[0]);
    let reader = Connection::open(&case.path).unwrap();
    reader.busy_timeout(Duration::ZERO).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let before = sum(&reader);
    let mut tx = case.sealed();
    assert!(tx.exclude(Duration::from_millis(20)).unwrap_err().is_retry());
    // PENDING: nobody new comes in.
    let other = Connection::open(&case.path).unwrap();
    other.busy_timeout(Duration::ZERO).unwrap();
    assert!(other.query_row("SELECT count(*) FROM t", [], |_| Ok(())).is_err());
    drop(tx);
    assert_eq!((sum(&other), sum(&reader)), (before, before));
    reader.execute_batch("COMMIT").unwrap();
    let mut tx = case.sealed();
    tx.exclude(Duration::ZERO).unwrap();
    case.write(&mut tx, usize::MAX);
    tx.commit().unwrap();
    assert_eq!(sum(&other), sum(&reader));
}

#[test]
fn a_writer_keeps_it_out_and_its_leftovers_are_seen_to() {
    let case = case(4096, CHANGES[0]);
    let writer = Connection::open(&case.path).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; DELETE FROM t WHERE id = 1").unwrap();
    assert!(Rewrite::begin(&case.path).err().unwrap().is_retry());
    writer.execute_batch("ROLLBACK; PRAGMA journal_mode=WAL; DELETE FROM t WHERE id = 2").unwrap();
    assert!(Rewrite::begin(&case.path).err().unwrap().is_retry());
    drop(writer);
    let tx = Rewrite::begin(&case.path).unwrap();
    assert_eq!(tx.before().header[18..20], [1, 1]);
    assert_ne!(tx.before().header, case.from[..100]);
}

#[test]
fn an_empty_file_is_filled_and_emptied_again_by_a_crash() {
    let case = case(1024, CHANGES[0]);
    let empty = case._dir.path().join("empty.db");
    for crash in [true, false] {
        fs::write(&empty, b"").unwrap();
        let mut tx = Rewrite::begin(&empty).unwrap();
        assert_eq!((tx.pages(), tx.before().size), (0, 0));
        tx.seal().unwrap();
        tx.exclude(Duration::ZERO).unwrap();
        for (i, page) in case.to.chunks(1024).enumerate() {
            tx.write_at(page, i as u64 * 1024).unwrap();
        }
        if crash {
            drop(tx);
            assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
        } else {
            tx.commit().unwrap();
            assert_eq!(fs::read(&empty).unwrap(), case.to);
        }
    }
}

#[test]
fn another_page_size_is_rolled_back_too() {
    let (small, large) = (case(1024, CHANGES[0]), case(8192, CHANGES[1]));
    let put = || {
        let mut tx = Rewrite::begin(&small.path).unwrap();
        for (i, page) in small.from.chunks(1024).enumerate() {
            tx.keep(Pgno::new(i as u32 + 1).unwrap(), page).unwrap();
        }
        tx.seal().unwrap();
        tx.exclude(Duration::ZERO).unwrap();
        for (i, page) in large.to.chunks(8192).enumerate() {
            tx.write_at(page, i as u64 * 8192).unwrap();
        }
        tx.cut(large.to.len() as u64).unwrap();
        tx
    };
    drop(put());
    assert_eq!(fs::read(&small.path).unwrap(), small.from);
    let reader = Connection::open(&small.path).unwrap();
    assert!(sum(&reader) > 0);
    put().commit().unwrap();
    assert_eq!(check(&reader), "ok");
    assert_eq!(sum(&reader), sum(&Connection::open(&small.path).unwrap()));
}

#[test]
fn peek_sees_to_a_hot_journal_first() {
    let case = case(4096, CHANGES[2]);
    let mut tx = case.sealed();
    tx.exclude(Duration::ZERO).unwrap();
    case.write(&mut tx, 2);
    let left = case._dir.path().canonicalize().unwrap().join("left.db");
    fs::copy(&case.path, &left).unwrap();
    fs::copy(case.journal(), beside(&left, "-journal")).unwrap();
    drop(tx);
    let seen = peek(&left).unwrap();
    assert_eq!((seen.header.as_slice(), seen.size), (&case.from[..100], case.from.len() as u64));
    assert!(peek(&left.with_extension("none")).unwrap_err().is_missing());
}

#[test]
fn steps_out_of_order_are_refused() {
    let case = case(4096, CHANGES[0]);
    let mut tx = Rewrite::begin(&case.path).unwrap();
    assert_eq!(tx.write_at(&[0; 4096], 0).unwrap_err().kind(), Kind::Bug);
    assert_eq!(tx.exclude(Duration::ZERO).unwrap_err().kind(), Kind::Bug);
    assert_eq!(tx.keep(Pgno::new(9999).unwrap(), &[0; 4096]).unwrap_err().kind(), Kind::Bug);
    assert_eq!(tx.keep(Pgno::ONE, &[0; 512]).unwrap_err().kind(), Kind::Bug);
    assert_eq!(tx.commit().unwrap_err().kind(), Kind::Bug);
    assert_eq!(fs::read(&case.path).unwrap(), case.from);
}
