//! Two weeks of three databases under both rules: a full copy each hour, and a full copy when it is worth it. Pure reckoning: what decides
//! copies, retention and plans is the code that users run; files are their names, times and sizes, made up as merges make them.

use super::{Due, decide};
use crate::base::{Timestamp, TxId};
use crate::ltx::Level;
use crate::replica::{FileId, FileInfo, Point, Policy, plan, retention};
use std::collections::BTreeSet;
use std::time::Duration;

const START: i64 = 1_795_370_400_000; // 2026-11-22T18:00:00Z
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const DAYS: u64 = 14;
const MB: u64 = 1_000_000;
/// `levels` as they are by default.
const LEVELS: [u64; 3] = [30, 300, 3600];
/// List prices of S3, dollars: a gigabyte for a month, a thousand requests.
const PER_GB: f64 = 0.023;
const PER_1000: f64 = 0.005;

#[derive(Clone, Copy)]
struct Profile {
    name: &'static str,
    /// Size of a full copy at the start, and what each upload adds to it.
    bytes: u64,
    grows: u64,
    /// Seconds from one upload to the next, and what each has.
    every: u64,
    upload: u64,
    /// The pages that are written again and again: no merged file of these is larger.
    hot: u64,
}

const PROFILES: [Profile; 3] = [
    Profile { name: "small and busy", bytes: 20 * MB, grows: 0, every: 60, upload: MB / 10, hot: 2 * MB },
    Profile {
        name: "large and quiet",
        bytes: 10_000 * MB,
        grows: 0,
        every: 1200,
        upload: 1_400_000,
        hot: u64::MAX,
    },
    Profile {
        name: "append-only",
        bytes: 1000 * MB,
        grows: MB / 2,
        every: 60,
        upload: MB / 2,
        hot: u64::MAX,
    },
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Clock,
    Change,
}

#[derive(Default)]
struct Replica {
    files: Vec<FileInfo>,
    /// Not merged into level i + 1 yet.
    waiting: [Vec<FileInfo>; 3],
    uploaded: u64,
    /// By the commits themselves.
    changes: u64,
    requests: u64,
    copies: u64,
}

fn at(seconds: u64) -> Timestamp {
    Timestamp(START + seconds as i64 * 1000)
}

impl Replica {
    fn put(&mut self, level: u8, txids: (u64, u64), bytes: u64, seconds: u64) -> FileInfo {
        let id = FileId { level: Level::new(level).unwrap(), min: TxId(txids.0), max: TxId(txids.1) };
        let file = FileInfo::listed(id, bytes, at(seconds));
        self.files.push(file.clone());
        self.uploaded += bytes;
        self.requests += 1;
        file
    }

    fn merge(&mut self, hot: u64, now: u64) {
        for (i, interval) in LEVELS.into_iter().enumerate() {
            let run = &self.waiting[i];
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            if run.len() < 2 || at(now).since(first.time) < Duration::from_secs(interval) {
                continue;
            }
            let sum = run.iter().map(|f| f.bytes).sum::<u64>();
            if run.len() < 4 && sum >= run.len() as u64 * (256 << 10) && i + 1 < LEVELS.len() {
                // Few large ones are the next level's (`ship::merge`).
                let run = std::mem::take(&mut self.waiting[i]);
                self.waiting[i + 1].extend(run);
                continue;
            }
            let bytes = sum.min(hot);
            let (txids, time) = ((first.min.0, last.max.0), last.time.since(at(0)).as_secs());
            self.waiting[i].clear();
            let merged = self.put(i as u8 + 1, txids, bytes, time);
            self.requests += 1; // its entry
            if let Some(next) = self.waiting.get_mut(i + 1) {
                next.push(merged);
            }
        }
    }

    /// Retention; all that it promises is looked for in what is left.
    fn retain(&mut self, policy: &Policy, first: TxId, now: u64) {
        let decided = retention(&self.files, policy, &Default::default(), at(now)).unwrap();
        self.requests += 11; // listings
        self.files.retain(|f| decided.keep.contains_key(&f.id()));
        let last = self.files.iter().map(|f| f.max).max().unwrap();
        for txid in first.0..=last.0 {
            assert!(decided.states.contains_key(&TxId(txid)), "TXID {txid} of the window, at {now}");
        }
        let day = |t: Timestamp| t.0.div_euclid(86_400_000);
        let days: BTreeSet<i64> = decided.states.values().map(|t| day(*t)).collect();
        for ago in 0..i64::from(policy.daily).min((now / DAY) as i64) {
            assert!(days.contains(&(day(at(now)) - ago)), "a state of {ago} days ago, at {now}");
        }
        for txid in decided.states.keys().step_by(97) {
            plan(&self.files, Point::TxId(*txid), at(now)).unwrap();
        }
    }
}

struct Outcome {
    replica: Replica,
    most_kept: u64,
    most_restored: u64,
    bytes: u64,
}

fn run(p: Profile, rule: Rule) -> Outcome {
    let policy = Policy::default();
    let (mut r, mut txid, mut bytes) = (Replica::default(), 1, p.bytes);
    // When the last copy was made, its size, and what came since.
    let (mut copied, mut size, mut since) = (0, bytes, 0);
    let (mut most_kept, mut most_restored) = (0, 0);
    let copy = |r: &mut Replica, txid: u64, bytes: u64, now: u64| {
        r.put(9, (1, txid), bytes, now);
        r.requests += 1;
        r.copies += 1;
    };
    copy(&mut r, 1, bytes, 0);
    let mut uploads: Vec<(u64, u64)> = vec![(1, 0)];
    for now in (10..=DAYS * DAY).step_by(10) {
        if now.is_multiple_of(p.every) {
            txid += 1;
            bytes += p.grows;
            let file = r.put(0, (txid, txid), p.upload, now);
            r.waiting[0].push(file);
            r.changes += p.upload;
            since += p.upload;
            uploads.push((txid, now));
        }
        r.merge(p.hot, now);
        if now.is_multiple_of(HOUR) {
            let due = match rule {
                Rule::Clock => Due::Copy,
                Rule::Change => decide(Duration::from_secs(now - copied), size, since),
            };
            if due == Due::Copy {
                copy(&mut r, txid, bytes, now);
                (copied, size, since) = (now, bytes, 0);
            }
            let window = uploads.partition_point(|(_, t)| at(*t) < at(now.saturating_sub(DAY)));
            r.retain(&policy, TxId(uploads[window].0), now);
            most_kept = most_kept.max(r.files.iter().map(|f| f.bytes).sum());
            let newest = plan(&r.files, Point::Latest, at(now)).unwrap();
            most_restored = most_restored.max(newest.bytes());
        }
    }
    r.requests += r.changes / p.upload / 64; // entries of level 0
    Outcome { replica: r, most_kept, most_restored, bytes }
}

#[test]
#[allow(clippy::disallowed_macros)] // the figures are what one runs it for
fn a_week_of_three_databases_under_both_rules() {
    println!(
        "  a week of     rule    copies    bytes up      kept at most  restore at most  requests  dollars a month"
    );
    for p in PROFILES {
        let [clock, change] = [Rule::Clock, Rule::Change].map(|rule| {
            let o = run(p, rule);
            let (weeks, r) = (DAYS / 7, &o.replica);
            let dollars = o.most_kept as f64 / 1e9 * PER_GB
                + r.requests as f64 / 1000.0 * PER_1000 * 30.0 / DAYS as f64;
            println!(
                "  {:16} {:8} {:4} {:9} MB {:12} MB {:12} MB {:9} {:12.2}",
                p.name,
                format!("{rule:?}").to_lowercase(),
                r.copies / weeks,
                r.uploaded / weeks / MB,
                o.most_kept / MB,
                o.most_restored / MB,
                r.requests / weeks,
                dollars
            );
            o
        });
        // The first copy, one for each week, and of the changes twice as much where no page is merged away.
        let (c, copies) = (&change.replica, DAYS / 7 + 1);
        assert!(change.most_restored <= 2 * change.bytes + change.bytes / 10, "{}", p.name);
        assert!(c.uploaded <= clock.replica.uploaded && change.most_kept <= clock.most_kept, "{}", p.name);
        if p.name == "large and quiet" {
            assert!(c.uploaded <= 2 * c.changes + copies * p.bytes, "{} of {}", c.uploaded, c.changes);
            assert!(c.copies <= copies);
        }
    }
}
