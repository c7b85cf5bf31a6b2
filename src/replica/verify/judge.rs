//! The judgement over the facts. Pure: the same facts, the same findings, whatever the store.

use super::super::inventory::FileInfo;
use super::super::layout::FileId;
use super::super::manifest::{MOST_WAITING, Manifest, ManifestEntry};
use super::super::plan::restorable;
use super::super::probe::{Probe, Probed};
use super::finding::{Finding, Rule, Severity};
use crate::base::{DbChecksum, Lineage, Timestamp, TxId};
use crate::ltx::Level;
use crate::store::hex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Listed files with what their edges say, ordered by level and TXID.
    pub files: Vec<(FileInfo, Probed)>,
    /// The manifest.
    pub manifest: Manifest,
    /// Files it names that are gone.
    pub lost: BTreeSet<FileId>,
    /// Attested files that it did not name at this look, nor at the look before.
    pub unnamed: BTreeSet<FileId>,
    /// Entries may be still to come ([`is_ahead`](crate::replica::manifest::is_ahead)).
    pub ahead: bool,
    /// What `deep` found out about the content of files.
    pub content: BTreeMap<FileId, (Rule, String)>,
}

impl Facts {
    fn sound(&self) -> impl Iterator<Item = (&FileInfo, &Probe)> + Clone {
        self.files.iter().filter_map(|(f, p)| match p {
            Probed::Sound(p) => Some((f, p.as_ref())),
            _ => None,
        })
    }

    /// The files whose edges are sound, with what their headers say.
    pub fn usable(&self, bad: &BTreeSet<FileId>) -> Vec<FileInfo> {
        let usable = self.files.iter().filter_map(|(f, p)| {
            let mut f = f.clone();
            match p {
                Probed::Sound(p) => f.learn(&p.header),
                // (Its name is believed: without an identity there is no more.)
                Probed::Sealed(_) => {}
                Probed::Vanished | Probed::Damaged(_) => return None,
            }
            Some(f)
        });
        usable.filter(|f| !bad.contains(&f.id())).collect()
    }
}

/// The files that attest their place and that the manifest does not name.
pub fn unnamed(facts: &Facts) -> BTreeSet<FileId> {
    let ours = facts.sound().filter(|(_, p)| p.header.attest.is_some()).map(|(f, _)| f.id());
    ours.filter(|id| facts.manifest.get(*id).is_none()).collect()
}

/// All findings: one per file, then one per rule.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut bad: BTreeMap<FileId, (Rule, String)> = BTreeMap::new();
    for (f, p) in &facts.files {
        let content = facts.content.get(&f.id()).cloned();
        if let Some(why) = file_problem(f, p, facts.manifest.get(f.id())).or(content) {
            bad.insert(f.id(), why);
        }
    }
    for (id, why) in history_problems(facts, &bad) {
        bad.insert(id, (Rule::History, why));
    }
    let newest_listed = facts.files.iter().map(|(f, _)| f.max).max().unwrap_or_default();
    let mut findings: Vec<Finding> = Vec::with_capacity(facts.files.len() + 8);
    for (f, p) in &facts.files {
        findings.push(match bad.get(&f.id()) {
            Some((rule, why)) => bad_file(f.id(), f.bytes, *rule, why),
            None => sound_file(f, p, facts),
        });
    }
    findings.extend(facts.lost.iter().map(|id| lost_file(*id, facts, newest_listed)));
    findings.sort_by_key(|f| f.file);
    let ids: BTreeSet<FileId> = bad.keys().copied().collect();
    findings.push(existence(facts));
    findings.push(snapshot(facts, &ids));
    findings.push(continuity(facts, &bad));
    findings.push(history(facts, &bad));
    findings.push(manifest(facts));
    findings
}

/// Rules 2 and 3 for one file.
fn file_problem(f: &FileInfo, p: &Probed, entry: Option<&ManifestEntry>) -> Option<(Rule, String)> {
    if let Some(e) = entry
        && e.bytes != f.bytes
    {
        return Some((Rule::Checksum, format!("{} bytes, the manifest says {}", f.bytes, e.bytes)));
    }
    let p = match p {
        Probed::Sound(p) => p,
        Probed::Damaged(why) => return Some((Rule::Header, why.clone())),
        Probed::Sealed(stored) => return entry.and_then(|e| stored_problem(*stored, e)),
        Probed::Vanished => return None,
    };
    let e = entry?;
    if let Some(why) = stored_problem(p.stored_sha256, e) {
        return Some(why);
    }
    match (p.is_sealed, e.is_sealed()) {
        (true, true) => {
            // (Without an identity nobody could say how many: who named it may have had none.)
            let said = (e.pages, e.commit, e.time);
            let wrong = e.commit > 0 && said != (p.pages, p.header.commit, p.header.timestamp);
            return wrong
                .then(|| (Rule::Checksum, "header or page index is not the one uploaded".to_string()));
        }
        (true, false) => {
            return Some((Rule::Checksum, "it is encrypted, the manifest says that it is not".into()));
        }
        (false, true) => {
            return Some((Rule::Checksum, "it is not encrypted, the manifest says that it is".into()));
        }
        (false, false) => {}
    }
    let after = p.header.attest.map(|a| a.after);
    if p.crc != e.crc {
        return Some((
            Rule::Checksum,
            format!("trailer checksum {:016x}, the manifest says {:016x}", p.crc, e.crc),
        ));
    }
    let said = (e.pages, e.commit, e.time, e.after, e.edge);
    if said != (p.pages, p.header.commit, p.header.timestamp, after, p.edge) {
        return Some((Rule::Checksum, "header or page index is not the one uploaded".to_string()));
    }
    None
}

/// What the store keeps beside the object, against the manifest.
fn stored_problem(stored: Option<[u8; 32]>, e: &ManifestEntry) -> Option<(Rule, String)> {
    let sha = stored.filter(|sha| *sha != e.sha256)?;
    let text = format!("stored SHA-256 {}, the manifest says {}", hex(&sha), hex(&e.sha256));
    Some((Rule::Checksum, text))
}

/// Rule 6: files whose attested checksums do not fit those of their neighbours. In order of TXIDs, so that what follows a bad file is
/// judged without it.
fn history_problems(facts: &Facts, bad: &BTreeMap<FileId, (Rule, String)>) -> Vec<(FileId, String)> {
    let mut files: Vec<(&FileInfo, &Probe)> =
        facts.sound().filter(|(f, _)| !bad.contains_key(&f.id())).collect();
    files.sort_by_key(|(f, _)| (f.max, f.level));
    let mut claims: BTreeMap<TxId, Vec<DbChecksum>> = BTreeMap::new();
    for (f, p) in &files {
        if let Some(a) = p.header.attest {
            claims.entry(f.max).or_default().push(a.after);
            if a.before != DbChecksum::EMPTY {
                claims.entry(TxId(f.min.0 - 1)).or_default().push(a.before);
            }
        }
    }
    let neighbours = Neighbours::of(&files);
    let mut after: BTreeMap<TxId, DbChecksum> = BTreeMap::new();
    let mut out = Vec::new();
    for (f, p) in &files {
        let Some(a) = p.header.attest else {
            if let Some(lineage) = neighbours.both(f) {
                out.push((
                    f.id(),
                    format!("it attests nothing, amid files of lineage {lineage}: of another history"),
                ));
            }
            continue;
        };
        let base = TxId(f.min.0 - 1);
        if let Some(known) = after.get(&base)
            && a.before != DbChecksum::EMPTY
            && a.before != *known
        {
            let text =
                format!("it continues a database with checksum {}, TXID {} has {known}", a.before, base.0);
            out.push((f.id(), text));
            continue;
        }
        // Where files differ about one state, the value most of them tell is taken; the lowest level decides a tie.
        let believed = *after.entry(f.max).or_insert_with(|| majority(claims.get(&f.max), a.after));
        if a.after != believed {
            let text =
                format!("it leads to checksum {} at TXID {}, where others say {believed}", a.after, f.max.0);
            out.push((f.id(), text));
        }
    }
    out
}

fn majority(claims: Option<&Vec<DbChecksum>>, first: DbChecksum) -> DbChecksum {
    let claims = claims.map(Vec::as_slice).unwrap_or_default();
    let votes = |c: DbChecksum| claims.iter().filter(|x| **x == c).count();
    claims.iter().copied().fold(first, |best, c| if votes(c) > votes(best) { c } else { best })
}

/// The lineages of attested files, to be found by where a file ends and by where it starts.
struct Neighbours {
    ends: BTreeMap<(Level, TxId), Lineage>,
    starts: BTreeMap<(Level, TxId), Lineage>,
}

impl Neighbours {
    fn of(files: &[(&FileInfo, &Probe)]) -> Neighbours {
        let attested = || files.iter().filter(|(_, p)| p.header.attest.is_some());
        Neighbours {
            ends: attested().map(|(f, p)| ((f.level, f.max), p.header.lineage)).collect(),
            starts: attested().map(|(f, p)| ((f.level, f.min), p.header.lineage)).collect(),
        }
    }

    /// Of an unattested file between two of one lineage: that lineage. We wrote both, and so the one between.
    fn both(&self, f: &FileInfo) -> Option<Lineage> {
        let before = self.ends.get(&(f.level, TxId(f.min.0 - 1)))?;
        let behind = self.starts.get(&(f.level, f.max.next()))?;
        (before == behind).then_some(*before)
    }
}

fn bad_file(id: FileId, bytes: u64, rule: Rule, why: &str) -> Finding {
    let (brief, what) = match rule {
        Rule::History => ("another history", "File of another history:"),
        Rule::Content => ("wrong content", "Wrong content in"),
        Rule::Header => ("damaged", "Damaged file"),
        _ => ("checksum mismatch", "Checksum mismatch in"),
    };
    Finding {
        severity: Severity::Warning,
        check: rule,
        file: Some(id),
        txids: Some((id.min, id.max)),
        bytes: Some(bytes),
        message: format!("{brief}: {why}"),
        brief,
        issue: Some(format!("{what} {id}")),
    }
}

fn lost_file(id: FileId, facts: &Facts, newest_listed: TxId) -> Finding {
    let (severity, message) = if id.max > newest_listed {
        (
            Severity::Critical,
            "missing: the manifest names it, its object is gone, and with it the newest state",
        )
    } else {
        (Severity::Warning, "missing: the manifest names it, its object is gone")
    };
    Finding {
        severity,
        check: Rule::Existence,
        file: Some(id),
        txids: Some((id.min, id.max)),
        bytes: facts.manifest.get(id).map(|e| e.bytes),
        message: message.to_string(),
        brief: "missing",
        issue: Some(format!("Missing {id}")),
    }
}

fn sound_file(f: &FileInfo, p: &Probed, facts: &Facts) -> Finding {
    let attested = matches!(p, Probed::Sound(p) if p.header.attest.is_some());
    let message = match (attested, facts.manifest.get(f.id())) {
        (true, Some(_)) => "ok",
        (true, None) => "ok; not in the manifest (yet)",
        (false, _) if matches!(p, Probed::Sealed(_)) => {
            "ok; encrypted, its content not looked at (no identity)"
        }
        (false, Some(_)) => "ok; unattested, in the manifest",
        (false, None) => "ok; unattested (not written by walrust)",
    };
    Finding {
        severity: Severity::Ok,
        check: if facts.manifest.get(f.id()).is_some() { Rule::Checksum } else { Rule::Header },
        file: Some(f.id()),
        txids: Some((f.min, f.max)),
        bytes: Some(f.bytes),
        message: message.to_string(),
        brief: "",
        issue: None,
    }
}

/// A finding about a rule over the whole.
pub(super) fn rule(check: Rule, severity: Severity, message: String) -> Finding {
    Finding { severity, check, file: None, txids: None, bytes: None, message, brief: "", issue: None }
}

/// Rule 1.
fn existence(facts: &Facts) -> Finding {
    let named = facts.manifest.entries().count();
    let (severity, text) = match facts.lost.len() {
        0 => (Severity::Ok, format!("all {named} files of the manifest exist")),
        n => (Severity::Warning, format!("{n} of {named} files of the manifest are missing")),
    };
    rule(Rule::Existence, severity, text)
}

/// Rule 5.
fn snapshot(facts: &Facts, bad: &BTreeSet<FileId>) -> Finding {
    let full: Vec<FileInfo> = facts.usable(bad).into_iter().filter(|f| f.min == TxId(1)).collect();
    match full.iter().max_by_key(|f| (f.max, f.level)) {
        Some(f) => {
            let text = format!("Found TXID 1-{} ({} bytes)", f.max.0, f.bytes);
            let found = rule(Rule::Snapshot, Severity::Ok, text);
            Finding { file: None, txids: Some((f.min, f.max)), bytes: Some(f.bytes), ..found }
        }
        None => {
            let any = facts.files.iter().any(|(f, _)| f.min == TxId(1));
            let (text, issue) = if any {
                ("No usable snapshot: nothing can be restored", "No usable snapshot")
            } else {
                ("No snapshot found: nothing can be restored", "No snapshot found")
            };
            Finding { issue: Some(issue.into()), ..rule(Rule::Snapshot, Severity::Critical, text.into()) }
        }
    }
}

/// Rule 4: a hole in the TXIDs, and what made it.
fn continuity(facts: &Facts, bad: &BTreeMap<FileId, (Rule, String)>) -> Finding {
    let usable = facts.usable(&bad.keys().copied().collect());
    let states = restorable(&usable);
    let (Some((first, _)), Some((last, _))) = (states.first_key_value(), states.last_key_value()) else {
        return rule(Rule::Continuity, Severity::Critical, "Nothing can be restored".into());
    };
    let unusable: Vec<FileId> = bad.keys().chain(&facts.lost).copied().collect();
    let mut holes: BTreeSet<(TxId, TxId)> = BTreeSet::new();
    let spans = Spans::of(&usable, &states);
    for f in usable.iter().filter(|f| f.max > *first && !states.contains_key(&f.max)) {
        let base = states.range(..f.max).next_back().map_or(TxId::ZERO, |(t, _)| *t);
        let hole = (base.next(), TxId((f.min.0 - 1).max(base.next().0)));
        // Retention removed the first files of what was merged, and not yet this one: nothing that a restore misses.
        if !spans.cover(f) || unusable.iter().any(|id| touches(*id, hole)) {
            holes.insert(hole);
        }
    }
    // Holes that start alike are one; the shortest says where something goes on.
    let mut shortest: BTreeMap<TxId, TxId> = BTreeMap::new();
    for (from, to) in holes {
        shortest.entry(from).or_insert(to);
    }
    let newest_usable = usable.iter().map(|f| f.max).max().unwrap_or_default();
    for id in unusable.iter().filter(|id| id.max > newest_usable && id.max > *last) {
        let from = TxId(id.min.0.max(newest_usable.0.max(last.0) + 1));
        let to = shortest.entry(from).or_insert(id.max);
        *to = (*to).max(id.max);
    }
    if shortest.is_empty() {
        let text = format!("No gaps detected (TXID {})", range(*first, *last));
        return Finding { txids: Some((*first, *last)), ..rule(Rule::Continuity, Severity::Ok, text) };
    }
    let holes = merge_ranges(shortest);
    let explained = holes.iter().all(|hole| unusable.iter().any(|id| touches(*id, *hole)));
    let list: Vec<String> = holes
        .into_iter()
        .flat_map(|hole| causes(hole, bad))
        .map(|((from, to), cause)| format!("TXID {} {cause}", range(from, to)))
        .collect();
    let issue = (!explained).then(|| format!("Gap: {}", list.join(", ")));
    let text = format!("Gap detected: {}", list.join(", "));
    let newest = facts.files.iter().map(|(f, _)| f.max).max().unwrap_or_default();
    Finding { txids: Some((*first, newest)), issue, ..rule(Rule::Continuity, Severity::Warning, text) }
}

/// The TXIDs of files that a restore can use. A file within one of them may lead nowhere by itself without anything being lost:
/// retention (Litestream's goes by age) removes the oldest of what was merged, and the rest follows on nothing until it goes, too.
struct Spans {
    /// By first TXID: the last one of a span that begins there or before.
    ends: BTreeMap<TxId, TxId>,
}

impl Spans {
    fn of(usable: &[FileInfo], states: &BTreeMap<TxId, Timestamp>) -> Spans {
        let follows = |f: &&FileInfo| {
            f.min == TxId(1) || states.range(TxId(f.min.0.saturating_sub(1))..f.max).next().is_some()
        };
        let mut ends: BTreeMap<TxId, TxId> = BTreeMap::new();
        for f in usable.iter().filter(|f| f.level > Level::L0 && f.max > f.min).filter(follows) {
            let end = ends.entry(f.min).or_insert(f.max);
            *end = (*end).max(f.max);
        }
        let mut farthest = TxId::ZERO;
        for end in ends.values_mut() {
            farthest = farthest.max(*end);
            *end = farthest;
        }
        Spans { ends }
    }

    fn cover(&self, f: &FileInfo) -> bool {
        self.ends.range(..=f.min).next_back().is_some_and(|(_, end)| *end >= f.max)
    }
}

/// Whether a file that is no snapshot could have filled a part of the hole.
fn touches(id: FileId, (from, to): (TxId, TxId)) -> bool {
    id.min <= to && id.max >= from && id.min > TxId(1)
}

/// A hole in parts, by what became of the files that should fill each.
fn causes(
    (from, to): (TxId, TxId),
    bad: &BTreeMap<FileId, (Rule, String)>,
) -> Vec<((TxId, TxId), &'static str)> {
    let mut files: Vec<(FileId, Rule)> =
        bad.iter().map(|(id, (rule, _))| (*id, *rule)).filter(|(id, _)| touches(*id, (from, to))).collect();
    files.sort_by_key(|(id, _)| (id.min, Reverse(id.max)));
    let mut parts: Vec<((TxId, TxId), &'static str)> = Vec::new();
    let mut at = from;
    let mut add = |until: TxId, cause| {
        if until < at {
            return;
        }
        match parts.last_mut() {
            Some(((_, end), same)) if *same == cause => *end = until,
            _ => parts.push(((at, until), cause)),
        }
        at = until.next();
    };
    for (id, rule) in files {
        add(TxId(id.min.0 - 1), "missing");
        add(to.min(id.max), if rule == Rule::History { "of another history" } else { "corrupt" });
    }
    add(to, "missing");
    parts
}

/// Neighbouring ranges joined.
fn merge_ranges(ranges: BTreeMap<TxId, TxId>) -> Vec<(TxId, TxId)> {
    let mut out: Vec<(TxId, TxId)> = Vec::new();
    for (from, to) in ranges {
        match out.last_mut() {
            Some((_, end)) if from <= end.next() => *end = (*end).max(to),
            _ => out.push((from, to)),
        }
    }
    out
}

fn range(from: TxId, to: TxId) -> String {
    if from == to { from.0.to_string() } else { format!("{}-{}", from.0, to.0) }
}

/// Rule 6 over the whole.
fn history(facts: &Facts, bad: &BTreeMap<FileId, (Rule, String)>) -> Finding {
    let foreign = bad.values().filter(|(r, _)| *r == Rule::History).count();
    if foreign > 0 {
        let text = format!("The chain of database checksums is broken by {foreign} file(s)");
        return rule(Rule::History, Severity::Warning, text);
    }
    let attested = facts.sound().filter(|(_, p)| p.header.attest.is_some());
    let lineages: BTreeSet<u64> = attested.clone().map(|(_, p)| p.header.lineage.0).collect();
    let (ours, all) = (attested.count(), facts.files.len());
    let text = match (ours, lineages.len()) {
        (0, _) => "No file attests its database checksum (not written by walrust)".to_string(),
        (_, 1) => format!("One history: {ours} of {all} files attest it"),
        (_, n) => format!("{n} histories, each unbroken: {ours} of {all} files attest them"),
    };
    rule(Rule::History, Severity::Ok, text)
}

/// The manifest itself. Without one, a missing newest file cannot be noticed.
fn manifest(facts: &Facts) -> Finding {
    let m = &facts.manifest;
    if let Some(first) = m.damaged.first() {
        let text = format!("{} of {} segments are damaged: {first}", m.damaged.len(), m.segments);
        return Finding {
            issue: Some("Damaged manifest".into()),
            ..rule(Rule::Manifest, Severity::Warning, text)
        };
    }
    let ours = facts.sound().any(|(_, p)| p.header.attest.is_some());
    let forgotten = forgotten(facts);
    match (m.is_absent(), ours) {
        (true, true) => Finding {
            issue: Some("Manifest lost: a missing newest file could not be noticed".into()),
            ..rule(
                Rule::Manifest,
                Severity::Warning,
                "The manifest is lost; checked by the files alone".into(),
            )
        },
        (true, false) => rule(Rule::Manifest, Severity::Ok, "No manifest (not written by walrust)".into()),
        (false, _) if !forgotten.is_empty() => {
            let (n, first) = (forgotten.len(), forgotten.first().map(FileId::to_string).unwrap_or_default());
            let text =
                format!("It is stale or lost entries: {n} file(s) are not in it, the first is {first}");
            Finding {
                issue: Some(format!("Stale manifest: {n} file(s) are not in it")),
                ..rule(Rule::Manifest, Severity::Warning, text)
            }
        }
        (false, _) => {
            let text = format!("{} files in {} segment(s)", m.entries().count(), m.segments);
            match to_come(facts) {
                Some((txids, more)) => {
                    Finding { txids: Some(txids), ..rule(Rule::Manifest, Severity::Ok, text + &more) }
                }
                None => rule(Rule::Manifest, Severity::Ok, text),
            }
        }
    }
}

/// What could not be checked, since the newest files have no entry yet.
fn to_come(facts: &Facts) -> Option<((TxId, TxId), String)> {
    let named = facts.manifest.entries().filter(|e| e.id.level == Level::L0).map(|e| e.id.max).max();
    let to_come =
        || facts.unnamed.iter().filter(|id| id.level == Level::L0 && named.is_none_or(|n| n < id.max));
    let txids = (to_come().next()?.min, to_come().next_back()?.max);
    let (n, shown) = (to_come().count(), range(txids.0, txids.1));
    let text =
        format!("; {n} more, TXID {shown}, will be named: the loss of one behind them could not be noticed");
    Some((txids, text))
}

/// The files that the manifest must once have named. Not so: the one file that is put before its entry is made, or those that wait
/// for their entries while the lease says so (I-MAN-4); files older than
/// all that the manifest names of their level, which retention was about to remove; snapshots between snapshots, for the same reason;
/// merged files within a named one of their level, which a process put that died before it named them: the next one merged them with more.
fn forgotten(facts: &Facts) -> BTreeSet<FileId> {
    let mut named: BTreeMap<Level, (TxId, TxId)> = BTreeMap::new();
    for id in facts.manifest.entries().map(|e| e.id) {
        let (oldest, newest) = named.entry(id.level).or_insert((id.max, id.max));
        (*oldest, *newest) = ((*oldest).min(id.max), (*newest).max(id.max));
    }
    let within = |id: &FileId| {
        named.get(&id.level).is_some_and(|(oldest, newest)| *oldest < id.max && id.max < *newest)
    };
    let beyond = |id: &FileId| match named.get(&id.level) {
        Some((_, newest)) => *newest < id.max,
        None => matches!(id.level, Level::L0 | Level::SNAPSHOT),
    };
    let mut forgotten: BTreeSet<FileId> = facts.unnamed.iter().copied().filter(|id| beyond(id)).collect();
    let waits = |id: &FileId| facts.ahead && id.level == Level::L0;
    let waiting = forgotten.iter().filter(|id| waits(id)).count();
    if waiting <= MOST_WAITING + 1 {
        forgotten.retain(|id| !waits(id));
    }
    if forgotten.len() < 2 {
        forgotten.clear();
    }
    let merged_again = |id: &FileId| {
        let contains = |e: FileId| e.level == id.level && e.min <= id.min && id.max <= e.max;
        facts.manifest.entries().any(|e| contains(e.id))
    };
    let is_missed = |id: &&FileId| id.level != Level::SNAPSHOT && within(id) && !merged_again(id);
    forgotten.extend(facts.unnamed.iter().filter(is_missed));
    forgotten
}
