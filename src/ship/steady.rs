//! A week in the life of a replica, in simulated time: an upload a minute, merged at three levels, hourly snapshots, retention by the
//! default policy after each of them. What merges, decides, removes and restores is the code that users run; only the clock
//! is turned by hand, and commits come from a model of a database instead of from SQLite.
//!
//! Shown: the replica does not grow with the history but with what the settings say it holds, hour by hour; and
//! every upload within `pitr_window` restores, byte by byte. Refused: a shorter window or fewer levels, which would be quicker and
//! prove less; a model in which pages never change twice.

use super::merge::{Merger, Now};
use crate::base::{DbChecksum, Lineage, PageSize, Pgno, Timestamp, TxId, clock};
use crate::ltx::{Attest, Encoder, FileName, Header, Level, page_checksum};
use crate::replica::compact::{Action, compact};
use crate::replica::manifest::{ManifestEntry, ManifestWriter};
use crate::replica::{
    Check, FileId, FileInfo, Inventory, Mode, Overwrite, Point, Policy, RestoreOptions, VerifyOptions,
    restorable, restore, verify,
};
use crate::spool::Spool;
use crate::store::{Body, Put, PutMeta, Store, block_on};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

pub(super) const START: Timestamp = Timestamp(1_795_370_400_000); // 2026-11-22T18:00:00Z
const STEP: u64 = 60;
const HOUR: u64 = 3600;
const HOURS: u64 = 7 * 24;
pub(super) const PAGE: usize = 512;

/// A database of which each page tells who wrote it last, and which grows and shrinks.
pub(super) struct Model {
    pub(super) lineage: Lineage,
    /// For each page the TXIDs that wrote it, ascending.
    writers: Vec<Vec<u64>>,
    sizes: Vec<u32>,
    sum: DbChecksum,
    /// Another one is another database with the same history.
    salt: u64,
}

fn content(page: u32, writer: u64) -> Vec<u8> {
    let mut x = (u64::from(page) << 40) ^ writer;
    (0..PAGE)
        .map(|i| {
            // Half of it compresses.
            if i % 16 == 0 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            }
            if i % 16 < 8 { (x >> (i % 8 * 8)) as u8 } else { b' ' }
        })
        .collect()
}

impl Model {
    pub(super) fn new() -> Model {
        Model::salted(0)
    }

    fn salted(salt: u64) -> Model {
        let mut m = Model {
            lineage: Lineage::fresh(),
            writers: vec![Vec::new(); 200],
            sizes: vec![0],
            sum: DbChecksum::EMPTY,
            salt,
        };
        m.commit(1);
        m
    }

    pub(super) fn size(txid: u64) -> u32 {
        // 96 to 159 pages, up and down twice a day.
        let n = (txid / 5 % 128) as u32;
        96 + if n < 64 { n } else { 127 - n }
    }

    fn page_at(&self, page: u32, txid: u64) -> Vec<u8> {
        let w = &self.writers[page as usize];
        content(page, w[w.partition_point(|t| *t <= txid) - 1] ^ self.salt)
    }

    /// The pages that `txid` writes, and the checksum before it.
    pub(super) fn commit(&mut self, txid: u64) -> (Vec<u32>, DbChecksum) {
        let (old, new) = (*self.sizes.last().unwrap(), Model::size(txid));
        let mut pages: BTreeSet<u32> = (old + 1..=new).collect();
        if txid > 1 {
            pages.extend([1, (txid * 7 % u64::from(new)) as u32 + 1, (txid * txid % 31) as u32 + 1]);
        }
        let before = self.sum;
        for page in 1..=old {
            if page > new || pages.contains(&page) {
                let was = self.page_at(page, txid);
                self.sum = self.sum.toggle(page_checksum(Pgno::new(page).unwrap(), &was));
            }
        }
        for page in &pages {
            self.writers[*page as usize].push(txid);
            let sum = page_checksum(Pgno::new(*page).unwrap(), &content(*page, txid ^ self.salt));
            self.sum = self.sum.toggle(sum);
        }
        self.sizes.push(new);
        (pages.into_iter().collect(), before)
    }

    fn image(&self, txid: u64) -> Vec<u8> {
        (1..=self.sizes[txid as usize]).flat_map(|p| self.page_at(p, txid)).collect()
    }

    pub(super) fn file(
        &self,
        spool: &Spool,
        path: &Path,
        txids: RangeInclusive<u64>,
        pages: &[u32],
        before: DbChecksum,
        at: Timestamp,
    ) {
        let (min, max) = txids.into_inner();
        let mut header =
            Header::new(PageSize::new(PAGE as u32).unwrap(), Model::size(max), TxId(min), TxId(max), at);
        header.lineage = self.lineage;
        header.attest = Some(Attest { before, after: self.sum });
        spool
            .write_file(path, |w| {
                let mut e = Encoder::new(w, header)?;
                for p in pages {
                    e.page(Pgno::new(*p).unwrap(), &self.page_at(*p, max))?;
                }
                e.finish().map(drop)
            })
            .unwrap();
    }
}

struct Week {
    start: Timestamp,
    model: Model,
    spool: Spool,
    store: Store,
    manifest: ManifestWriter,
    merger: Merger,
    /// Bytes put, by files of all kinds.
    uploaded: u64,
    scratch: tempfile::TempDir,
}

impl Week {
    fn new() -> Week {
        Week::over(Store::in_memory(), START, [180, 900, 3600])
    }

    fn over(store: Store, start: Timestamp, levels: [u64; 3]) -> Week {
        let scratch = tempfile::tempdir().unwrap();
        let levels = levels.map(Duration::from_secs).to_vec();
        Week {
            start,
            model: Model::new(),
            spool: Spool::open(&scratch.path().join("spool")).unwrap(),
            manifest: block(ManifestWriter::load(&store)),
            store,
            merger: Merger::new(levels),
            uploaded: 0,
            scratch,
        }
    }

    /// As the shipper does it: object, manifest.
    fn upload(&mut self, path: &Path, level: Level) -> FileName {
        let entry = ManifestEntry::of_file(level, path).unwrap();
        let meta = PutMeta { timestamp: Some(entry.time), sha256: Some(entry.sha256), ..PutMeta::default() };
        let key = entry.id.key(self.store.layout());
        let put = block(self.store.put_new(&key, Body::File(path.to_path_buf()), meta));
        assert_eq!(put, Put::Created);
        self.uploaded += entry.bytes;
        block(self.manifest.append(&self.store, &[entry]));
        entry.id.name()
    }

    fn commit(&mut self, txid: u64, at: Timestamp) {
        let uptime = at.since(self.start);
        let (pages, before) = self.model.commit(txid);
        let path = self.spool.pending_path(TxId(txid));
        self.model.file(&self.spool, &path, txid..=txid, &pages, before, at);
        let name = self.upload(&path, Level::L0);
        self.merger.keep(&self.spool, &path, Level::L0, name, uptime).unwrap();
    }

    fn merge(&mut self, uptime: Duration) {
        let now = Now { wall: Timestamp(self.start.0 + uptime.as_millis() as i64), uptime };
        while let Some(job) = self.merger.due(&self.spool, now) {
            let merged = job.merge(&self.spool).unwrap();
            self.upload(&merged.path, merged.level);
            self.merger.done(&self.spool, &merged, uptime).unwrap();
        }
    }

    fn snapshot(&mut self, txid: u64, at: Timestamp) {
        let path = self.spool.snapshot_path(TxId(txid));
        let pages: Vec<u32> = (1..=Model::size(txid)).collect();
        self.model.file(&self.spool, &path, 1..=txid, &pages, DbChecksum::EMPTY, at);
        self.upload(&path, Level::SNAPSHOT);
        std::fs::remove_file(&path).unwrap();
    }

    fn retain(&mut self, now: Timestamp) {
        let policy = Policy::default();
        block(compact(&self.store, &policy, Action::Force, now, Some(&mut self.manifest)));
    }

    fn files(&self) -> Vec<FileInfo> {
        block(Inventory::read_with_manifest(&self.store)).0.files
    }

    fn assert_restores(&self, txid: u64) {
        let path = self.scratch.path().join("restored.db");
        let how =
            RestoreOptions { overwrite: Overwrite::Replace, check: Check::None, ..RestoreOptions::default() };
        block(restore(&self.store, Point::TxId(TxId(txid)), &path, &how));
        assert!(std::fs::read(&path).unwrap() == self.model.image(txid), "TXID {txid} is another database");
    }
}

fn block<T: Send>(f: impl Future<Output = crate::base::Result<T>> + Send) -> T {
    block_on(f).unwrap().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp(START.0 + seconds as i64 * 1000)
}

#[test]
#[allow(clippy::disallowed_macros)] // the figures are what one runs it for
fn a_week_of_commits_leaves_a_replica_of_bounded_size() {
    let mut week = Week::new();
    week.snapshot(1, at(0));
    let mut txid = 1;
    // (hour, level-0 files, merged files, snapshots, bytes), after retention.
    let mut seen: Vec<(u64, usize, usize, usize, u64)> = Vec::new();
    for hour in 1..=HOURS {
        for step in 1..=HOUR / STEP {
            let now = (hour - 1) * HOUR + step * STEP;
            txid += 1;
            week.commit(txid, at(now));
            week.merge(Duration::from_secs(now));
        }
        let now = at(hour * HOUR);
        week.snapshot(txid, now);
        week.retain(now);
        let files = week.files();
        let count = |which: &dyn Fn(&FileInfo) -> bool| files.iter().filter(|f| which(f)).count();
        let (l0, snapshots) = (count(&|f| f.level == Level::L0), count(&|f| f.min == TxId(1)));
        seen.push((hour, l0, files.len() - l0 - snapshots, snapshots, files.iter().map(|f| f.bytes).sum()));
        // Every upload of the window is a state of its own that can be restored.
        let states = restorable(&files);
        let window = txid.saturating_sub(24 * HOUR / STEP).max(1)..=txid;
        assert!(window.clone().all(|t| states.contains_key(&TxId(t))), "hour {hour}");
        // Really so: a few of each hour, and of the last all.
        let every = if hour == HOURS { 1 } else { 331 };
        window.step_by(every).for_each(|t| week.assert_restores(t));
    }
    for (hour, l0, merged, snapshots, bytes) in seen.iter().filter(|s| s.0 % 24 == 0) {
        println!(
            "after day {}: {l0} level-0 files, {merged} merged, {snapshots} snapshots, {bytes} bytes",
            hour / 24
        );
    }
    let day = (24 * HOUR / STEP) as usize;
    for (hour, l0, merged, snapshots, _) in &seen {
        assert!(*l0 <= day + 1, "hour {hour}: {l0} level-0 files");
        assert!(*merged <= day / 3 + 24 * 4 + 24 + 3, "hour {hour}: {merged} merged files");
        assert!(*snapshots <= 24 + 7 + 12 + 12, "hour {hour}: {snapshots} snapshots");
    }
    // Once a day is full, only the daily snapshots, seven at the most, still come to it; the rest breathes with the database.
    let bytes: Vec<u64> = seen.iter().map(|s| s.4).collect();
    let snapshot = bytes_of_largest_snapshot(&week.files());
    let (second_day, later) = (*bytes[24..48].iter().max().unwrap(), *bytes[48..].iter().max().unwrap());
    assert!(
        later <= second_day + second_day / 20 + 6 * snapshot,
        "{second_day} bytes on the second day, later {later}"
    );
    println!(
        "{txid} uploads, {} bytes in all; the replica never held more than {later} after the second day",
        week.uploaded
    );
    assert!(later < week.uploaded / 4);
    let options = VerifyOptions { mode: Mode::Deep, ..VerifyOptions::default() };
    let report = block(verify(&week.store, &options));
    assert_eq!(report.exit_code(), 0, "{}", report.text());
}

fn bytes_of_largest_snapshot(files: &[FileInfo]) -> u64 {
    files.iter().filter(|f| f.min == TxId(1)).map(|f| f.bytes).max().unwrap_or_default()
}

/// The states that retention promises of a history of `days` whole days with a commit each [`MONTH_STEP`]: of each of the newest hours, days,
/// weeks and months that there were, one at the least.
fn assert_promised(states: &[Timestamp], now: Timestamp) {
    use chrono::{DateTime, Datelike};
    let policy = Policy::default();
    let date = |t: Timestamp| DateTime::from_timestamp_millis(t.0).unwrap();
    let week =
        |t: Timestamp| i64::from(date(t).iso_week().year()) * 100 + i64::from(date(t).iso_week().week());
    let month = |t: Timestamp| i64::from(date(t).year()) * 12 + i64::from(date(t).month0());
    let mut all = vec![now];
    while let Some(t) = all.last().map(|t| Timestamp(t.0 - MONTH_STEP as i64 * 1000))
        && t.0 > now.0 - 31 * 86_400_000
    {
        all.push(t);
    }
    let periods = |period: &dyn Fn(Timestamp) -> i64, from: &[Timestamp]| -> BTreeSet<i64> {
        from.iter().map(|t| period(*t)).collect()
    };
    for (name, period, count) in [
        ("hour", &(|t: Timestamp| t.0.div_euclid(3_600_000)) as &dyn Fn(Timestamp) -> i64, policy.hourly),
        ("day", &|t: Timestamp| t.0.div_euclid(86_400_000), policy.daily),
        ("week", &week, policy.weekly),
        ("month", &month, policy.monthly),
    ] {
        let there = periods(period, states);
        for p in periods(period, &all).into_iter().rev().take(count as usize) {
            assert!(there.contains(&p), "no state of {name} {p}");
        }
    }
}

/// Seconds between two commits of the month.
const MONTH_STEP: u64 = 1200;

/// What a thief puts who has the writer's keys: sound files of another database, of the past and of a time to come, claims of them, and claims of
/// what is there.
fn steal(week: &mut Week, txid: u64, thief: &mut Model) {
    let path = week.spool.snapshot_path(TxId(txid + 1_000_000));
    let own = std::mem::replace(&mut week.model, std::mem::replace(thief, Model::new()));
    for (n, at) in [(txid - 7, 0), (txid - 3, 400 * 86_400)] {
        while week.model.sizes.len() <= n as usize {
            let next = week.model.sizes.len() as u64;
            week.model.commit(next);
        }
        let pages: Vec<u32> = (1..=*week.model.sizes.last().unwrap()).collect();
        let time = Timestamp(week.start.0 + at * 1000);
        week.model.file(&week.spool, &path, 1..=n, &pages, DbChecksum::EMPTY, time);
        let entry = ManifestEntry::of_file(Level::SNAPSHOT, &path);
        // (Its checksum is of the newest state; what is sound for the encoder is enough here.)
        if let Ok(entry) = entry {
            let key = entry.id.key(week.store.layout());
            drop(block_on(week.store.put_new(&key, Body::File(path.clone()), PutMeta::default())));
            block(week.manifest.append(&week.store, &[entry]));
        }
        drop(std::fs::remove_file(&path));
    }
    *thief = std::mem::replace(&mut week.model, own);
    let lie = |n: u64| ManifestEntry {
        id: FileId { level: Level::L0, min: TxId(n), max: TxId(n) },
        bytes: 7,
        pages: 1,
        commit: 1,
        crc: 1,
        edge: 1,
        sha256: [1; 32],
        time: Timestamp(1),
        after: None,
    };
    block(week.manifest.append(&week.store, &[lie(txid), lie(txid - 1), lie(txid / 2)]));
}

#[test]
fn a_month_without_a_right_to_replace_or_delete_keeps_what_is_promised() {
    // (The store's own times are those of now, and no file's is later than that.)
    let start = Timestamp(clock::now().0 - 45 * 86_400_000);
    let janitor = Store::in_memory();
    let mut week = Week::over(janitor.clone().append_only(), start, [3600, 6 * 3600, 24 * 3600]);
    let at = |seconds: u64| Timestamp(start.0 + seconds as i64 * 1000);
    week.snapshot(1, at(0));
    let (mut txid, mut thief, mut most) = (1, Model::salted(1 << 30), 0);
    for day in 1..=30 {
        for step in 1..=24 * HOUR / MONTH_STEP {
            let now = (day - 1) * 24 * HOUR + step * MONTH_STEP;
            txid += 1;
            week.commit(txid, at(now));
            week.merge(Duration::from_secs(now));
            if now.is_multiple_of(4 * HOUR) {
                week.snapshot(txid, at(now));
            }
        }
        let now = at(day * 24 * HOUR);
        steal(&mut week, txid, &mut thief);
        let done = block(compact(&janitor, &Policy::default(), Action::Force, now, None));
        assert!(done.vouched > 0, "{}", done.text);
        let (inventory, manifest) = block(Inventory::read_with_manifest(&janitor));
        let files: Vec<FileInfo> =
            inventory.files.into_iter().filter(|f| manifest.vouches_for(f.id())).collect();
        most = most.max(files.len());
        let states = restorable(&files);
        let window = txid.saturating_sub(24 * HOUR / MONTH_STEP - 1).max(1)..=txid;
        assert!(window.clone().all(|t| states.contains_key(&TxId(t))), "day {day}");
        let kept: Vec<u64> = states.keys().map(|t| t.0).collect();
        kept.iter().step_by(17).chain(kept.first()).for_each(|t| week.assert_restores(*t));
        if day == 30 {
            assert_promised(&states.values().copied().collect::<Vec<_>>(), now);
            kept.iter().for_each(|t| week.assert_restores(*t));
        }
    }
    assert!(most < 24 * 3 * 2 + 200, "{most} files");
}
