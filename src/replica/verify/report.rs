//! The report for people. Its shape is a promise (README, `walrust_verify`): tests compare it.

use super::finding::{Finding, Rule, Severity};
use crate::base::TxId;
use crate::replica::layout::FileId;
use std::fmt::Write as _;

/// Sound files beyond this many are counted and not listed; what is wrong is always listed.
const LISTED: usize = 200;

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// What the database is called.
    pub name: String,
    /// The replica's URL.
    pub url: String,
    /// Files first, ordered by level and TXID, then rules.
    pub findings: Vec<Finding>,
    /// What `fix` removed from the manifest.
    pub removed: Vec<FileId>,
}

impl Report {
    /// 0 all good, 1 issues found, 2 critical.
    pub fn exit_code(&self) -> i32 {
        match self.severity() {
            Severity::Ok => 0,
            Severity::Warning => 1,
            Severity::Critical => 2,
        }
    }

    /// The worst of all findings.
    pub fn severity(&self) -> Severity {
        self.findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Critical)
    }

    /// Findings that are not ok.
    pub fn issues(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.severity != Severity::Ok)
    }

    /// For people, in the shape the README shows.
    pub fn text(&self) -> String {
        text(self)
    }
}

fn text(r: &Report) -> String {
    // Endpoint and region are how to get there, not what is there.
    let place = r.url.split('?').next().unwrap_or(&r.url);
    let mut out = format!("Verifying backup: {} in {place}\n{}\n", r.name, "=".repeat(48));
    snapshots(r, &mut out);
    increments(r, &mut out);
    let issues: Vec<&str> = r.findings.iter().filter_map(|f| f.issue.as_deref()).collect();
    let _ = writeln!(out, "Issues found: {}", issues.len());
    for i in &issues {
        let _ = writeln!(out, "- {i}");
    }
    for id in &r.removed {
        let _ = writeln!(out, "Removed from the manifest: {id} (its object is gone)");
    }
    for f in r.findings.iter().filter(|f| f.file.is_none()) {
        let label = match f.check {
            Rule::Continuity => "Continuity",
            Rule::History => "History",
            Rule::Manifest => "Manifest",
            Rule::Label => "Labels",
            Rule::Content => "Content",
            Rule::Integrity => "Integrity",
            _ => continue,
        };
        // A rule that is kept needs no line, but for the one everybody looks for, and what `deep` adds.
        let always = matches!(f.check, Rule::Continuity | Rule::Content | Rule::Integrity);
        let is_partly_unchecked = f.check == Rule::Manifest && f.txids.is_some();
        if always || is_partly_unchecked || f.severity != Severity::Ok {
            let _ = writeln!(out, "{label}: {} {}", sign(f.severity), f.message);
        }
    }
    if let Some(advice) = advice(r) {
        let _ = writeln!(out, "Recommendation: {advice}");
    }
    let meaning = match r.severity() {
        Severity::Ok => "all good",
        Severity::Warning => "issues found",
        Severity::Critical => "critical",
    };
    let _ = writeln!(out, "Exit code: {} ({meaning})", r.exit_code());
    out
}

fn sign(s: Severity) -> &'static str {
    match s {
        Severity::Ok => "✅",
        Severity::Warning => "⚠️",
        Severity::Critical => "❌",
    }
}

fn is_full_copy(f: &Finding) -> bool {
    f.file.is_some_and(|id| id.min == TxId(1))
}

fn snapshots(r: &Report, out: &mut String) {
    if let Some(f) = r.findings.iter().find(|f| f.check == Rule::Snapshot) {
        let _ = writeln!(out, "Snapshot: {} {}", sign(f.severity), f.message);
    }
    for f in r.findings.iter().filter(|f| is_full_copy(f) && f.severity != Severity::Ok) {
        file_line(f, out);
    }
}

fn increments(r: &Report, out: &mut String) {
    let files: Vec<&Finding> = r.findings.iter().filter(|f| f.file.is_some() && !is_full_copy(f)).collect();
    let count = files.iter().filter(|f| f.check != Rule::Existence).count();
    let _ = writeln!(out, "Incremental files: {count} files");
    let (mut listed, mut folded) = (0, 0);
    for f in files {
        if f.severity != Severity::Ok {
            file_line(f, out);
        } else if listed < LISTED {
            listed += 1;
            file_line(f, out);
        } else {
            folded += 1;
        }
    }
    if folded > 0 {
        let _ = writeln!(out, "✅ {folded} more files");
    }
}

fn file_line(f: &Finding, out: &mut String) {
    let Some(id) = f.file else { return };
    let about = match f.severity {
        Severity::Ok => {
            let n = id.txids();
            format!("{n} {}, {}", if n == 1 { "TXID" } else { "TXIDs" }, size(f.bytes.unwrap_or(0)))
        }
        _ => format!("{}!", f.brief),
    };
    let _ = writeln!(out, "{} {id} ({about})", sign(f.severity));
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_485_760 => format!("{}KB", bytes.div_ceil(1024)),
        _ => format!("{}MB", bytes.div_ceil(1_048_576)),
    }
}

fn advice(r: &Report) -> Option<&'static str> {
    let wrong = |rule: Rule| r.issues().any(|f| f.check == rule);
    let lasting =
        [Rule::Snapshot, Rule::Continuity, Rule::Header, Rule::Checksum, Rule::History, Rule::Content];
    if wrong(Rule::Integrity) {
        Some("Check the source database with PRAGMA integrity_check; the backup holds what it held")
    } else if lasting.into_iter().any(wrong) {
        Some("Re-snapshot database to repair backup chain")
    } else if wrong(Rule::Existence) {
        Some("Re-snapshot database, then verify in mode 'fix' to forget the missing files")
    } else if wrong(Rule::Manifest) {
        Some("Re-snapshot database; new files are entered in a new manifest")
    } else {
        None
    }
}
