//! What retention did, or would do, in words and in values. Pure.

use crate::base::{Timestamp, TxId, size};
use crate::ltx::Level;
use crate::replica::inventory::FileInfo;
use crate::replica::layout::FileId;
use crate::replica::retention::{Policy, Retention, Why};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

pub(super) const DRY_NOTHING: &str = "Dry run: nothing to remove.";
pub(super) const FORCE_NOTHING: &str = "Nothing to remove.";
/// Files that are not counted on of which the reason is told.
const DOUBTS_SHOWN: usize = 20;

/// Whether to remove, or only to say what would be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// Say it.
    #[default]
    DryRun,
    /// Do it.
    Force,
}

/// All that is told of one run.
pub(super) struct Told<'a> {
    pub(super) url: &'a str,
    /// The files that were there.
    pub(super) files: &'a [FileInfo],
    pub(super) decided: &'a Retention,
    pub(super) policy: &'a Policy,
    pub(super) action: Action,
    /// How many files are to be vouched for, or were.
    pub(super) vouched: usize,
    /// How many locks are to be extended, or were.
    pub(super) extended: usize,
    /// Files that are not counted on, and why.
    pub(super) doubted: &'a BTreeMap<FileId, String>,
}

impl Told<'_> {
    fn removed(&self) -> impl Iterator<Item = (&FileInfo, Why)> {
        self.decided.remove.iter().map(|(f, why)| (f, *why))
    }

    fn kept(&self) -> impl Iterator<Item = (&FileInfo, Why)> {
        self.files.iter().filter_map(|f| Some((f, *self.decided.keep.get(&f.id())?)))
    }

    /// For programs: sizes in bytes.
    pub(super) fn json(&self) -> Value {
        let ranges = |rows: Vec<Row>| rows.iter().map(Row::json).collect::<Vec<_>>();
        let doubt = |(id, why): (&FileId, &String)| json!({ "level": id.level.get(), "file": id.to_string(), "why": why });
        let (points, policy) = (&self.decided.states, self.policy);
        json!({
            "replica": self.url,
            "dry_run": self.action == Action::DryRun,
            "policy": {
                "hourly": policy.hourly,
                "daily": policy.daily,
                "weekly": policy.weekly,
                "monthly": policy.monthly,
                "every_upload_seconds": policy.pitr_window.as_secs_f64(),
            },
            "files": self.files.len(),
            "bytes": bytes(self.files.iter()),
            "removed_files": self.decided.remove.len(),
            "removed_bytes": bytes(self.removed().map(|(f, _)| f)),
            "vouched_files": self.vouched,
            "extended_locks": self.extended,
            "not_counted_on": self.doubted.iter().map(doubt).collect::<Vec<_>>(),
            "removed": ranges(rows(self.removed())),
            "kept": ranges(rows(self.kept())),
            "points": {
                "count": points.len(),
                "min_txid": points.keys().next().map(|t| t.0),
                "max_txid": points.keys().next_back().map(|t| t.0),
            },
        })
    }

    /// For people: no line of a table is wider than 80 columns.
    pub(super) fn text(&self) -> String {
        let mut out = format!("Compacting backup: {}\n{}\n", self.url, "=".repeat(48));
        let policy = self.policy;
        let window = words(policy.pitr_window);
        let _ = writeln!(
            out,
            "Policy: hourly {}, daily {}, weekly {}, monthly {}; every upload for {window}",
            policy.hourly, policy.daily, policy.weekly, policy.monthly
        );
        let is_done = self.action == Action::Force;
        let verb = |done: &'static str, due: &'static str| if is_done { done } else { due };
        let full = |f: &FileInfo| f.min == TxId(1);
        let snapshots = self.files.iter().filter(|f| full(f)).count();
        let snapshots_gone = self.removed().filter(|(f, _)| full(f)).count();
        let removed = verb("removed", "to remove");
        let _ = writeln!(out, "Snapshots: {snapshots}, {snapshots_gone} {removed}");
        let (all, gone) = (size(bytes(self.files.iter())), size(bytes(self.removed().map(|(f, _)| f))));
        let (files, going) = (self.files.len(), self.decided.remove.len());
        let _ = writeln!(out, "Files: {files} ({all}), {going} {removed} ({gone})");
        if self.vouched > 0 {
            let _ = writeln!(out, "New: {} {}", self.vouched, verb("vouched for", "to vouch for"));
        }
        if let Some((how_long, _)) = policy.retain
            && self.extended > 0
        {
            let (n, extended) = (self.extended, verb("extended", "to extend"));
            let _ = writeln!(out, "Locks: {n} {extended} to {} from now", words(how_long));
        }
        if !self.doubted.is_empty() {
            let _ = writeln!(out, "Not counted on, and left as they are: {}", self.doubted.len());
            for (id, why) in self.doubted.iter().take(DOUBTS_SHOWN) {
                let _ = writeln!(out, "  level {} {id}: {why}", id.level.get());
            }
        }
        table(&mut out, removed, &rows(self.removed()));
        table(&mut out, "kept", &rows(self.kept()));
        let states = &self.decided.states;
        if let (Some((first, t1)), Some((last, t2))) = (states.first_key_value(), states.last_key_value()) {
            let _ = writeln!(
                out,
                "Restorable after this: {} points\n  from TXID {first} ({t1})\n  to   TXID {last} ({t2})",
                states.len()
            );
        }
        let end = match (self.action, going) {
            (Action::Force, 0) => FORCE_NOTHING.to_string(),
            (Action::DryRun, 0) => DRY_NOTHING.to_string(),
            (Action::DryRun, _) => {
                "Dry run: nothing was removed. Pass {\"force\":true} to remove.".to_string()
            }
            (Action::Force, n) => format!("Removed {n} files ({gone})."),
        };
        out.push_str(&end);
        out.push('\n');
        out
    }
}

fn bytes<'a>(files: impl Iterator<Item = &'a FileInfo>) -> u64 {
    files.map(|f| f.bytes).sum()
}

/// Neighbouring files of one level with one reason are one row.
struct Row {
    level: Level,
    why: Why,
    min: TxId,
    max: TxId,
    files: usize,
    bytes: u64,
    from: Timestamp,
    to: Timestamp,
}

impl Row {
    fn json(&self) -> Value {
        json!({
            "level": self.level.get(),
            "files": self.files,
            "bytes": self.bytes,
            "min_txid": self.min.0,
            "max_txid": self.max.0,
            "first_time": self.from.rfc3339(),
            "last_time": self.to.rfc3339(),
            "why": self.why.as_str(),
        })
    }
}

fn rows<'a>(files: impl Iterator<Item = (&'a FileInfo, Why)>) -> Vec<Row> {
    let mut sorted: Vec<(&FileInfo, Why)> = files.collect();
    sorted.sort_by_key(|(f, _)| f.id());
    let mut out: Vec<Row> = Vec::new();
    for (f, why) in sorted {
        match out.last_mut() {
            Some(r) if r.level == f.level && r.why == why && f.min == r.max.next() => {
                (r.max, r.to) = (f.max, f.time);
                r.files += 1;
                r.bytes += f.bytes;
            }
            _ => out.push(Row {
                level: f.level,
                why,
                min: f.min,
                max: f.max,
                files: 1,
                bytes: f.bytes,
                from: f.time,
                to: f.time,
            }),
        }
    }
    out
}

/// Two lines a row.
fn table(out: &mut String, title: &str, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{title}:");
    let _ = writeln!(out, "level  files        size  TXIDs, times, and why");
    for r in rows {
        let (level, files, size) = (r.level.get(), r.files, size(r.bytes));
        let _ = writeln!(out, "{level:>5}  {files:>5}  {size:>10}  {}-{}", r.min, r.max);
        let (from, to, why) = (r.from.rfc3339(), r.to.rfc3339(), r.why.as_str());
        let _ = writeln!(out, "  {from} to {to}  {why}");
    }
    out.push('\n');
}

/// `1 hour`.
pub(in crate::replica) fn words(d: Duration) -> String {
    let s = d.as_secs();
    let whole = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match s {
        0 => humantime::format_duration(d).to_string(),
        _ if s.is_multiple_of(86_400) => whole(s / 86_400, "day"),
        _ if s.is_multiple_of(3600) => whole(s / 3600, "hour"),
        _ if s.is_multiple_of(60) => whole(s / 60, "minute"),
        _ => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_words() {
        for (s, text) in
            [(0, "0s"), (1, "1s"), (60, "1 minute"), (90, "90s"), (7200, "2 hours"), (86_400, "1 day")]
        {
            assert_eq!(words(std::time::Duration::from_secs(s)), text);
        }
    }

    #[test]
    fn a_table_fits_eighty_columns() {
        let row = |why| Row {
            level: Level::SNAPSHOT,
            why,
            min: TxId(1),
            max: TxId(u64::MAX),
            files: 99_999,
            bytes: 999_900_000,
            from: Timestamp(0),
            to: Timestamp(1_800_000_000_000),
        };
        let mut out = String::new();
        table(&mut out, "kept", &[row(Why::Needed), row(Why::Superseded)]);
        assert!(out.lines().all(|line| line.len() <= 80), "{out}");
    }
}
