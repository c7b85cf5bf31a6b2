//! Everything is downloaded: each file proved byte by byte, the newest state rebuilt and put before SQLite.

use super::finding::{Finding, Rule, Severity};
use super::judge::{Facts, judge, rule};
use super::options::VerifyOptions;
use super::rounds::{ROUNDS, settled};
use crate::base::scratch::Scratch;
use crate::base::{Error, Kind, Pgno, Result, TxId, clock, panics};
use crate::ltx::{Batch, Header, Sink};
use crate::replica::fetch::{Ahead, Arrived, PARALLEL};
use crate::replica::inventory::FileInfo;
use crate::replica::large::{Done, Large, Work};
use crate::replica::layout::FileId;
use crate::replica::plan::restorable;
use crate::replica::point::Point;
use crate::replica::probe::Probed;
use crate::replica::restore::{Check, RestoreOptions, Restored, Structure, restore};
use crate::replica::reuse::Reuse;
use crate::replica::target::Overwrite;
use crate::store::{Store, hex};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

pub(super) async fn check(
    store: &Store,
    mut facts: Facts,
    options: &VerifyOptions<'_>,
) -> Result<Vec<Finding>> {
    let dir = options.work_dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&dir, "verify")?;
    let mut proved = Proved::default();
    for _ in 0..ROUNDS {
        if prove_files(store, &facts, &mut proved).await? == Gone::None {
            break;
        }
        // Files went while they were fetched: what is left of the old list may have holes that the replica never had.
        (facts, _) = settled(store, options.pause).await?;
    }
    facts.content = proved.wrong;
    let before = judge(&facts);
    let bad: BTreeSet<FileId> =
        before.iter().filter(|f| f.severity != Severity::Ok).filter_map(|f| f.file).collect();
    let states = restorable(&facts.usable(&bad));
    let Some((newest, _)) = states.last_key_value() else { return Ok(before) };
    if facts.files.iter().any(|(_, p)| matches!(p, Probed::Sealed(_))) {
        let text =
            "not checked: the replica is encrypted; set WALRUST_IDENTITY to have what is in it checked, too";
        let mut findings = before;
        findings.push(rule(Rule::Content, Severity::Ok, text.to_string()));
        return Ok(findings);
    }
    let (built, integrity) = rebuild(store, *newest, scratch.path(), options).await?;
    let mut rules = Vec::new();
    match built {
        Ok(restored) => {
            rules.push(content(&restored));
            if restored.structure == Structure::Encrypted {
                let text =
                    "not checked: the database is encrypted, or none of SQLite's; its checksums are right";
                rules.push(rule(Rule::Integrity, Severity::Ok, text.to_string()));
            }
        }
        Err(e) => rules.push(Finding {
            issue: Some(format!("TXID {} cannot be rebuilt", newest.0)),
            ..rule(Rule::Content, Severity::Critical, format!("TXID {} cannot be rebuilt: {e}", newest.0))
        }),
    }
    rules.extend(integrity);
    let mut findings = before;
    findings.extend(rules);
    Ok(findings)
}

/// Some files whole, drawn by chance.
pub(super) async fn sample(
    store: &Store,
    mut facts: Facts,
    share: u16,
    options: &VerifyOptions<'_>,
) -> Result<Vec<Finding>> {
    let mut proved = Proved::default();
    for _ in 0..ROUNDS {
        let drawn = Facts { files: drawn(&facts.files, share, clock::random_u64), ..facts.clone() };
        if prove_files(store, &drawn, &mut proved).await? == Gone::None {
            break;
        }
        (facts, _) = settled(store, options.pause).await?;
    }
    let (read, wrong) = (proved.read.len(), proved.wrong.len());
    facts.content = proved.wrong;
    let mut findings = judge(&facts);
    if wrong == 0 && read > 0 {
        findings.push(rule(
            Rule::Content,
            Severity::Ok,
            format!("{read} of {} files read whole", facts.files.len()),
        ));
    }
    Ok(findings)
}

/// A share of the files in thousandths, one at the least.
fn drawn<T: Clone>(files: &[T], share: u16, mut random: impl FnMut() -> u64) -> Vec<T> {
    let mut left: Vec<T> = files.to_vec();
    let wanted = (files.len() * usize::from(share)).div_ceil(1000).min(files.len());
    let mut drawn = Vec::with_capacity(wanted);
    while drawn.len() < wanted {
        let at = usize::try_from(random() % left.len() as u64).unwrap_or(0);
        drawn.push(left.swap_remove(at));
    }
    drawn
}

/// What is known of contents so far.
#[derive(Default)]
struct Proved {
    /// Files that were read whole, with their size.
    read: BTreeSet<(FileId, u64)>,
    /// Those of them that are not what they must be.
    wrong: BTreeMap<FileId, (Rule, String)>,
}

/// Whether files were no longer there when they were fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    None,
    Some,
}

/// Each file whole that was not read yet: file checksum, structure, SHA-256 in the manifest.
async fn prove_files(store: &Store, facts: &Facts, proved: &mut Proved) -> Result<Gone> {
    let files: Vec<FileInfo> = facts
        .files
        .iter()
        .filter(|(f, p)| matches!(p, Probed::Sound(_)) && !proved.read.contains(&(f.id(), f.bytes)))
        .map(|(f, _)| f.clone())
        .collect();
    let sealed = facts.files.iter().filter(|(_, p)| matches!(p, Probed::Sealed(_))).map(|(f, _)| f);
    for file in sealed.filter(|f| !proved.read.contains(&(f.id(), f.bytes))).cloned().collect::<Vec<_>>() {
        // Without an identity: each byte as it is stored.
        let (id, said) = (file.id(), said_of(file.id(), facts));
        match store.stored_sum(&id.key(store.layout())).await.and_then(|(_, sha)| is_said(sha, said)) {
            Ok(()) => {}
            Err(e) if e.is_missing() => return Ok(Gone::Some),
            Err(e) if e.is_corrupt() => {
                proved.wrong.insert(id, (Rule::Checksum, e.to_string()));
            }
            Err(e) => return Err(e),
        }
        proved.read.insert((id, file.bytes));
    }
    let mut ahead = Ahead::new(store, files, PARALLEL);
    let mut large: Option<Large<Reading>> = None;
    let mut gone = Gone::None;
    while let Some(arrived) = ahead.next().await {
        let (whole, end) = (arrived.is_whole(), arrived.is_last());
        let Arrived { file, piece, .. } = arrived;
        let (id, said) = (file.id(), said_of(file.id(), facts));
        let verdict = match piece {
            Ok(piece) if whole => {
                panics::blocking(move || prove(piece.bytes.as_ref(), id).and_then(|sha| is_said(sha, said)))
                    .await?
            }
            Ok(piece) => {
                let mut coming = large.take().unwrap_or_else(|| Large::new(Reading(id)));
                match coming.push(piece).await {
                    Ok(()) if !end => {
                        large = Some(coming);
                        continue;
                    }
                    Ok(()) => coming
                        .finish()
                        .await
                        .and_then(|(_, trailer, _)| is_said(trailer.sha256.unwrap_or_default(), said)),
                    Err(e) => Err(e),
                }
            }
            Err(e) if e.is_missing() => {
                large = None;
                gone = Gone::Some;
                continue;
            }
            Err(e) => Err(e),
        };
        large = None;
        match verdict {
            Ok(()) => {}
            Err(e) if e.is_corrupt() => {
                ahead.pass(&file);
                proved.wrong.insert(id, (Rule::Checksum, e.to_string()));
            }
            Err(e) => return Err(e),
        }
        proved.read.insert((id, file.bytes));
    }
    Ok(gone)
}

/// A large file that is read, and no more.
struct Reading(FileId);

impl Work for Reading {
    fn begins(&self, header: &Header) -> Result<()> {
        is_named(header, self.0)
    }

    fn unpack(&self, batch: &Batch) -> Result<Done> {
        let mut page = OnePage(vec![0; batch.page_size().len()]);
        Ok(Done { unpacked: batch.unpack(&mut page)?, ..Done::default() })
    }
}

/// Pages that nobody keeps.
struct OnePage(Vec<u8>);

impl Sink for OnePage {
    fn place(&mut self, _: Pgno) -> Result<&mut [u8]> {
        Ok(&mut self.0)
    }

    fn placed(&mut self, _: Pgno) -> Result<()> {
        Ok(())
    }
}

/// The SHA-256 of a file, and who says so: the manifest, or of what that does not name yet the store, which was told by the uploader.
fn said_of(id: FileId, facts: &Facts) -> Option<(&'static str, [u8; 32])> {
    let opened = |(f, p): &(FileInfo, Probed)| f.id() == id && matches!(p, Probed::Sound(p) if p.is_sealed);
    if facts.files.iter().any(opened) {
        // (It is of the object as it is stored. What was opened was proved chunk by chunk.)
        return None;
    }
    let stored = || facts.files.iter().find(|(f, _)| f.id() == id).and_then(|(_, p)| p.stored_sha256());
    match facts.manifest.get(id) {
        Some(e) => Some(("the manifest", e.sha256)),
        None => stored().map(|sha| ("the object's metadata", sha)),
    }
}

/// A small file. Gives its SHA-256.
fn prove(bytes: &[u8], id: FileId) -> Result<[u8; 32]> {
    let proved = crate::ltx::verify(bytes)?;
    is_named(&proved.header, id)?;
    Ok(proved.sha256)
}

fn is_named(header: &Header, id: FileId) -> Result<()> {
    if header.file_name() == id.name() {
        return Ok(());
    }
    Err(Error::corrupt(format!("its header says {}", header.file_name())))
}

fn is_said(sha: [u8; 32], said: Option<(&'static str, [u8; 32])>) -> Result<()> {
    match said {
        Some((who, sha256)) if sha256 != sha => {
            Err(Error::corrupt(format!("SHA-256 is {}, {who} says {}", hex(&sha), hex(&sha256))))
        }
        _ => Ok(()),
    }
}

/// The newest state, rebuilt as a restore would. Damage is the inner error; the outer is trouble on our side.
async fn rebuild(
    store: &Store,
    newest: TxId,
    path: &Path,
    options: &VerifyOptions<'_>,
) -> Result<(Result<Restored>, Option<Finding>)> {
    let verdict = Mutex::new(None);
    let check = |file: &Path, how: Check| -> Result<()> {
        let Some(integrity) = options.integrity else { return Ok(()) };
        let found = match integrity(file, how) {
            Ok(()) => rule(Rule::Integrity, Severity::Ok, "integrity_check: ok".into()),
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Sqlite) => Finding {
                issue: Some("The rebuilt database fails integrity_check".into()),
                ..rule(Rule::Integrity, Severity::Critical, e.to_string())
            },
            Err(e) => return Err(e),
        };
        if let Ok(mut v) = verdict.lock() {
            *v = Some(found);
        }
        Ok(())
    };
    let how = RestoreOptions {
        overwrite: Overwrite::Refuse,
        check: Check::Full,
        checker: Some(&check),
        reuse: Reuse::Nothing,
        occupier: None,
        parallel: PARALLEL,
        progress: None,
    };
    let mut built = restore(store, Point::TxId(newest), path, &how).await;
    if matches!(&built, Err(e) if e.is_missing()) {
        // Merged away since it was listed; what is newest now will do.
        built = restore(store, Point::Latest, path, &how).await;
    }
    match built {
        Err(e) if !e.is_corrupt() && !e.is_missing() => Err(e),
        built => Ok((built, verdict.into_inner().ok().flatten())),
    }
}

fn content(restored: &Restored) -> Finding {
    let how = if restored.attested { "as attested" } else { "not attested by any file" };
    let text = format!("TXID {} rebuilt: database checksum {}, {how}", restored.txid.0, restored.checksum);
    match restored.notes.first() {
        None => rule(Rule::Content, Severity::Ok, text),
        Some(note) => {
            rule(Rule::Content, Severity::Warning, format!("{text}, but going around damage: {note}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::drawn;

    #[test]
    fn a_share_is_one_at_the_least_and_each_file_once() {
        let files: Vec<u32> = (0..250).collect();
        let mut n = 0_u64;
        let mut random = || {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            n >> 33
        };
        for (share, want) in [(1, 1), (10, 3), (100, 25), (1000, 250)] {
            let mut got = drawn(&files, share, &mut random);
            got.sort_unstable();
            got.dedup();
            assert_eq!(got.len(), want, "{share}");
        }
        assert!(drawn::<u32>(&[], 1000, &mut random).is_empty());
    }
}
