//! For the tests of this room: real databases, their states page by page, and replicas made of them.

use super::apply::checksum_of_file;
use super::layout::FileId;
use super::manifest::{ManifestEntry, ManifestWriter};
use crate::base::{DbChecksum, Lineage, PageSize, Pgno, Timestamp, TxId};
use crate::ltx::{Attest, Encoder, Header, Level, Overrides, Summary, page_checksum};
use crate::store::Store;
use sha2::Digest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(super) const START: Timestamp = Timestamp(1_795_370_683_421); // 2026-11-22T18:04:43.421Z

/// One LTX file and what the manifest would say of it.
#[derive(Clone, Debug)]
pub(super) struct LtxFile {
    pub(super) id: FileId,
    pub(super) bytes: Vec<u8>,
    pub(super) entry: ManifestEntry,
}

impl LtxFile {
    fn of(level: Level, summary: &Summary, bytes: Vec<u8>) -> LtxFile {
        let edge = super::edge::edge_of(&mut std::io::Cursor::new(&bytes)).unwrap();
        let h = &summary.header;
        let id = FileId { level, min: h.min, max: h.max };
        let entry = ManifestEntry {
            id,
            bytes: summary.bytes,
            pages: summary.pages,
            commit: h.commit,
            crc: summary.checksum,
            edge,
            sha256: sha2::Sha256::digest(&bytes).into(),
            time: h.timestamp,
            after: h.attest.map(|a| a.after),
        };
        LtxFile { id, bytes, entry }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attested {
    Yes,
    No,
}

/// A database that grows a history.
pub(super) struct Maker {
    _dir: tempfile::TempDir,
    path: PathBuf,
    conn: rusqlite::Connection,
    size: PageSize,
    pub(super) lineage: Lineage,
    pub(super) attested: Attested,
    pub(super) txid: TxId,
    pub(super) time: Timestamp,
    last: Vec<u8>,
    /// The database file as it was after each TXID.
    pub(super) images: BTreeMap<TxId, Vec<u8>>,
}

impl Maker {
    pub(super) fn new(page_size: u32) -> Maker {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=DELETE;
             CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v BLOB); CREATE INDEX tk ON t(k);"
        ))
        .unwrap();
        let size = PageSize::new(page_size).unwrap();
        let last = std::fs::read(&path).unwrap();
        let mut m = Maker {
            _dir: dir,
            path,
            conn,
            size,
            lineage: Lineage::fresh(),
            attested: Attested::Yes,
            txid: TxId(1),
            time: START,
            last,
            images: BTreeMap::new(),
        };
        m.images.insert(m.txid, m.last.clone());
        m
    }

    pub(super) fn sum(&self) -> DbChecksum {
        checksum_of_file(&self.path, self.size).unwrap().1
    }

    fn pages(image: &[u8], size: PageSize) -> impl Iterator<Item = (Pgno, &[u8])> {
        image.chunks(size.len()).zip(1..).map(|(p, n)| (Pgno::new(n).unwrap(), p))
    }

    fn image_sum(image: &[u8], size: PageSize) -> DbChecksum {
        Self::pages(image, size).fold(DbChecksum::EMPTY, |s, (n, p)| s.toggle(page_checksum(n, p)))
    }

    fn header(&self, min: TxId, max: TxId, image: &[u8], before: DbChecksum) -> Header {
        let commit = (image.len() / self.size.len()) as u32;
        let mut h = Header::new(self.size, commit, min, max, self.time);
        if self.attested == Attested::Yes {
            h.lineage = self.lineage;
            h.attest = Some(Attest { before, after: Self::image_sum(image, self.size) });
        }
        h
    }

    /// One transaction, one second later, as a level-0 file.
    pub(super) fn commit(&mut self, sql: &str) -> LtxFile {
        self.conn.execute_batch(&format!("BEGIN; {sql}; COMMIT;")).unwrap();
        self.seal()
    }

    /// Statements that cannot run inside a transaction.
    pub(super) fn run(&mut self, sql: &str) -> LtxFile {
        self.conn.execute_batch(sql).unwrap();
        self.seal()
    }

    /// The n-th of a fixed mix of inserts, updates, deletes, growth and shrinking.
    pub(super) fn step(&mut self, n: u64) -> LtxFile {
        match n % 7 {
            5 => self.commit(&format!("DELETE FROM t WHERE id % 3 = {}", n % 3)),
            6 => self.run("PRAGMA incremental_vacuum"),
            _ => self.commit(&format!(
                "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < {})
                 INSERT INTO t(k, v) SELECT abs(random()) % 1000, randomblob(100) FROM c;
                 UPDATE t SET k = k + 1 WHERE id % 5 = {}",
                1 + n % 11,
                n % 5
            )),
        }
    }

    fn seal(&mut self) -> LtxFile {
        self.txid = self.txid.next();
        self.time.0 += 1000;
        let image = std::fs::read(&self.path).unwrap();
        let before = Self::image_sum(&self.last, self.size);
        let header = self.header(self.txid, self.txid, &image, before);
        let changed: Vec<(Pgno, &[u8])> = Self::pages(&image, self.size)
            .filter(|(n, p)| {
                let at = n.offset(self.size) as usize;
                self.last.get(at..at + p.len()) != Some(*p)
            })
            .collect();
        let file = encode(Level::L0, header, &changed);
        self.images.insert(self.txid, image.clone());
        self.last = image;
        file
    }

    /// A full snapshot of the current state.
    pub(super) fn snapshot(&self) -> LtxFile {
        let header = self.header(TxId(1), self.txid, &self.last, DbChecksum::EMPTY);
        let pages: Vec<_> = Self::pages(&self.last, self.size).collect();
        encode(Level::SNAPSHOT, header, &pages)
    }

    /// A snapshot of a database that only its program can read.
    pub(super) fn noise(&mut self) -> LtxFile {
        let bytes = self.last.len() / 8;
        self.last = (0..bytes).flat_map(|_| crate::base::clock::random_u64().to_le_bytes()).collect();
        self.snapshot()
    }

    /// Commits that nobody captured, then a new history: the snapshot that starts it.
    pub(super) fn gap(&mut self) -> LtxFile {
        let _ = self.step(0);
        self.lineage = Lineage::fresh();
        self.snapshot()
    }
}

pub(super) fn encode(level: Level, header: Header, pages: &[(Pgno, &[u8])]) -> LtxFile {
    let mut e = Encoder::new(Vec::new(), header).unwrap();
    for (n, p) in pages {
        e.page(*n, p).unwrap();
    }
    let (summary, bytes) = e.finish().unwrap();
    LtxFile::of(level, &summary, bytes)
}

/// Merges neighbouring files into one of `level`.
pub(super) fn merged(level: u8, files: &[LtxFile]) -> LtxFile {
    let inputs = files.iter().map(|f| f.bytes.as_slice()).collect();
    let mut out = Vec::new();
    let summary = crate::ltx::merge(inputs, Overrides::default(), &mut out).unwrap();
    LtxFile::of(Level::new(level).unwrap(), &summary, out)
}

/// Puts files in place without a manifest, as Litestream would.
pub(super) async fn put(store: &Store, files: &[LtxFile]) {
    for f in files {
        store.put_over(&f.id.key(store.layout()), f.bytes.clone()).await.unwrap();
    }
}

/// Puts files in place as the shipper does: objects, then the manifest.
pub(super) async fn upload(store: &Store, files: &[LtxFile]) {
    put(store, files).await;
    let mut writer = ManifestWriter::load(store).await.unwrap();
    let entries: Vec<_> = files.iter().map(|f| f.entry).collect();
    writer.append(store, &entries).await.unwrap();
}

/// The history that most tests use: snapshot 1-1, level-0 files 2..=n, a level-1 file 2-5, a second snapshot at 6 if n allows.
pub(super) fn history(maker: &mut Maker, n: u64) -> Vec<LtxFile> {
    let mut files = vec![maker.snapshot()];
    for i in 2..=n {
        files.push(maker.step(i));
        if i == 5 {
            files.push(merged(1, &files[1..5]));
        }
        if i == 6 {
            files.push(maker.snapshot());
        }
    }
    files
}

pub(super) fn block<F: Future + Send>(f: F) -> F::Output
where
    F::Output: Send,
{
    crate::store::block_on(f).unwrap()
}

pub(super) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
