//! Does the backup work, without a restore? Facts are gathered by listings and ranged reads (`quick`) or by reading everything
//! (`deep`); the judgement over them is pure (`judge`), and so is the report.
//!
//! Rules
//! * I-VER-1 `quick` fetches no page data: manifest, one listing per level, and per file the bytes that are not page frames, once.
//! * I-VER-2 A replica that is written, merged and compacted meanwhile gives no false alarm: what looks wrong is looked at again, with a
//!   new manifest and new listings, and only what is wrong in two rounds running is reported. What a listing lacked is asked for by name.
//! * I-VER-3 Trouble in reaching the store is an error, never a finding.
//! * I-VER-4 `fix` removes manifest entries whose object is gone, and nothing else; no mode deletes an object.
//!
//! Severity: `critical` where nothing can be restored, the newest state is lost, or the rebuilt database is unsound; `warning` where some
//! file or state is lost; else `ok`. A crash leaves at most a file in the work directory.
//! Refused: trusting one listing (levels are listed one after the other, while files move between them).

mod deep;
pub mod judge;
mod report;
#[cfg(test)]
mod tests;

use super::inventory::{FileInfo, Inventory};
use super::layout::FileId;
use super::manifest::ManifestWriter;
use super::place::{self, There};
use super::probe::{AskMetadata, Probed, probe};
use super::restore::{Checker, confirm_lost};
use crate::base::{Error, Kind, Result, TxId};
use crate::store::{ReplicaUrl, Store};
use futures_util::{StreamExt, TryStreamExt};
use judge::{Facts, judge};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// Files looked at at once.
const PARALLEL: usize = 32;
/// Files with a page index this large are looked at two at a time, to bound memory: an index of 1 MiB is that of about 150,000 pages.
const LARGE: u64 = 256 * 1024 * 1024;
/// Rounds until what still changes is reported as it is.
const ROUNDS: usize = 8;

/// How thorough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// No page data.
    #[default]
    Quick,
    /// Everything is downloaded, the newest state rebuilt and checked.
    Deep,
    /// As quick, then manifest entries without object are removed.
    Fix,
}

impl Mode {
    /// From the name SQL uses.
    pub fn parse(name: &str) -> Option<Mode> {
        match name {
            "quick" => Some(Mode::Quick),
            "deep" => Some(Mode::Deep),
            "fix" => Some(Mode::Fix),
            _ => None,
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Some file or state is lost or doubtful.
    Warning,
    /// Nothing, or not the newest state, can be restored.
    Critical,
}

impl Severity {
    /// As SQL shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Which rule a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// Every manifest entry has its object.
    Existence,
    /// The file parses and agrees with its name.
    Header,
    /// Size, trailer checksum and SHA-256 agree with the manifest, and in `deep` with the content.
    Checksum,
    /// From a snapshot to the newest TXID without a gap.
    Continuity,
    /// A full copy exists.
    Snapshot,
    /// One history: the chain of database checksums is unbroken.
    History,
    /// The manifest itself can be read.
    Manifest,
    /// The rebuilt database has the checksum attested (`deep`).
    Content,
    /// The rebuilt database passes SQLite's integrity check (`deep`).
    Integrity,
}

impl Rule {
    /// As SQL shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Existence => "existence",
            Rule::Header => "header",
            Rule::Checksum => "checksum",
            Rule::Continuity => "continuity",
            Rule::Snapshot => "snapshot",
            Rule::History => "history",
            Rule::Manifest => "manifest",
            Rule::Content => "content",
            Rule::Integrity => "integrity",
        }
    }
}

/// One row of the answer: one per file, and one per rule over the whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Which rule; for a sound file the last it passed.
    pub check: Rule,
    /// The file it is about.
    pub file: Option<FileId>,
    /// First and last TXID concerned.
    pub txids: Option<(TxId, TxId)>,
    /// Size of the file.
    pub bytes: Option<u64>,
    /// One line, complete.
    pub message: String,
    /// A few words for the report's line about the file.
    pub brief: &'static str,
    /// The line under "Issues found", unless another finding says it already.
    pub issue: Option<String>,
}

/// How to verify.
#[derive(Clone, Default)]
pub struct VerifyOptions<'a> {
    /// How thorough.
    pub mode: Mode,
    /// What the report calls the database; empty: the last part of the URL's path.
    pub name: String,
    /// Where `deep` rebuilds the database: an existing directory with room for it.
    pub work_dir: Option<PathBuf>,
    /// Runs `PRAGMA integrity_check` on the rebuilt file (`deep`).
    pub integrity: Option<Checker<'a>>,
    /// Rest between two looks at something suspicious. Zero is for tests.
    pub pause: Duration,
}

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
        report::text(self)
    }
}

/// Verifies the replica in `store`. Errors are the store's, `Io` of the work directory (I-VER-3), and `Missing` where something that
/// is no replica lies (I-PLACE-1).
pub async fn verify(store: &Store, options: &VerifyOptions<'_>) -> Result<Report> {
    let (mut facts, mut findings) = settled(store, options.pause).await?;
    let mut located = store.clone();
    if facts.files.is_empty() {
        match place::look(store).await? {
            There::OtherLayout => {
                located = store.in_layout(place::other(store.layout()));
                (facts, findings) = settled(&located, options.pause).await?;
            }
            there if facts.manifest.entries().next().is_none() => {
                if let Some(why) = there.refusal(store.url()) {
                    return Err(Error::new(Kind::Missing, why));
                }
            }
            _ => {}
        }
    }
    let store = &located;
    let mut removed = Vec::new();
    if options.mode == Mode::Fix && !facts.lost.is_empty() {
        let mut writer = ManifestWriter::load(store).await?;
        writer.remove(store, &facts.lost).await?;
        removed = facts.lost.iter().copied().collect();
        (_, findings) = settled(store, options.pause).await?;
    }
    if options.mode == Mode::Deep {
        findings = deep::check(store, facts, options).await?;
    }
    let name = if options.name.is_empty() { name_of(store.url()) } else { options.name.clone() };
    Ok(Report { name, url: store.url().to_string(), findings, removed })
}

/// As the user wrote it, not as a URL encodes it.
fn name_of(url: &str) -> String {
    ReplicaUrl::parse(url).map_or_else(|_| url.to_string(), |u| u.name().to_string())
}

/// I-VER-2: looks until what is wrong stays wrong.
async fn settled(store: &Store, pause: Duration) -> Result<(Facts, Vec<Finding>)> {
    let mut before: Option<BTreeSet<(Rule, Option<FileId>, String)>> = None;
    let mut unnamed: Option<BTreeSet<FileId>> = None;
    let mut known = BTreeMap::new();
    for round in 1.. {
        let mut facts = gather(store, &mut known).await?;
        let now = judge::unnamed(&facts);
        // A file that is put and not yet named is named at the next look.
        facts.unnamed = unnamed.map_or_else(|| now.clone(), |u| u.intersection(&now).copied().collect());
        unnamed = Some(now);
        let findings = judge(&facts);
        // Two gaps in two places are not one that stays.
        let place = |f: &Finding| if f.check == Rule::Continuity { f.message.clone() } else { String::new() };
        let wrong: BTreeSet<_> = findings
            .iter()
            .filter(|f| f.severity != Severity::Ok)
            .map(|f| (f.check, f.file, place(f)))
            .collect();
        if wrong.is_empty() || before.as_ref() == Some(&wrong) || round >= ROUNDS {
            return Ok((facts, findings));
        }
        // What was wrong is read afresh; what was sound is not.
        for id in wrong.iter().filter_map(|(_, file, _)| *file) {
            known.remove(&id);
        }
        before = Some(wrong);
        tokio::time::sleep(pause).await;
    }
    Err(Error::new(Kind::Bug, "verify ended without an answer"))
}

/// One round: manifest, listings, probes of what is not known yet, questions about what is absent.
async fn gather(store: &Store, known: &mut BTreeMap<FileId, (u64, Probed)>) -> Result<Facts> {
    let (inventory, manifest) = Inventory::read_with_manifest(store).await?;
    let (large, small): (Vec<&FileInfo>, Vec<&FileInfo>) = inventory
        .files
        .iter()
        .filter(|f| known.get(&f.id()).is_none_or(|(bytes, _)| *bytes != f.bytes))
        .partition(|f| f.bytes >= LARGE);
    let manifest_ref = &manifest;
    let look = |f: &FileInfo| {
        let f = f.clone();
        async move {
            let entry = manifest_ref.get(f.id());
            let ask = if entry.is_some() { AskMetadata::Yes } else { AskMetadata::No };
            Ok::<_, Error>((f.id(), (f.bytes, probe(store, &f, entry, ask).await?)))
        }
    };
    let small: Vec<_> =
        futures_util::stream::iter(small).map(look).buffer_unordered(PARALLEL).try_collect().await?;
    let large: Vec<_> = futures_util::stream::iter(large).map(look).buffer_unordered(2).try_collect().await?;
    known.extend(small);
    known.extend(large);
    let mut files = Vec::with_capacity(inventory.files.len());
    for f in inventory.files {
        match known.get(&f.id()) {
            Some((_, Probed::Vanished)) | None => {}
            Some((_, p)) => files.push((f, p.clone())),
        }
    }
    let there: BTreeSet<FileId> = files.iter().map(|(f, _)| f.id()).collect();
    let absent: Vec<FileId> = manifest.entries().map(|e| e.id).filter(|id| !there.contains(id)).collect();
    let lost = confirm_lost(store, &absent).await?;
    known.retain(|id, _| there.contains(id));
    Ok(Facts { files, manifest, lost, unnamed: BTreeSet::new(), content: BTreeMap::new() })
}
