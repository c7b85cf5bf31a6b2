//! Does the backup work, without a restore? Facts are gathered by listings and ranged reads (`quick`) or by reading everything
//! (`deep`); the judgement over them is pure (`judge`), and so is the report.
//!
//! Rules
//! * I-VER-1 `quick` fetches no page data: manifest, a listing (of more than a page: one per level), and per file the bytes that are not page frames, once.
//! * I-VER-2 A replica that is written, merged and compacted meanwhile gives no false alarm: what looks wrong is looked at again, with a
//!   new manifest and new listings, and only what is wrong in two rounds running is reported. What a listing lacked is asked for by name.
//! * I-VER-3 Trouble in reaching the store is an error, never a finding.
//! * I-VER-4 `fix` removes manifest entries whose object is gone, and nothing else; no mode deletes an object.
//!
//! Severity: `critical` where nothing can be restored, the newest state is lost, or the rebuilt database is unsound; `warning` where some
//! file or state is lost; else `ok`. A crash leaves at most a file in the work directory.
//! Refused: trusting one listing (levels are listed one after the other, while files move between them).

mod deep;
mod finding;
pub mod judge;
mod named;
mod options;
mod report;
mod rounds;
#[cfg(test)]
mod tests;

pub use finding::{Finding, Rule, Severity};
pub use options::{Mode, VerifyOptions};
pub use report::Report;

use super::labels::{self, Labels};
use super::manifest::ManifestWriter;
use super::place::{self, There};
use crate::base::{Error, Kind, Result};
use crate::store::{ReplicaUrl, Store};
use judge::Facts;
use rounds::settled;

/// Verifies the replica in `store`. Errors are the store's, `Io` of the work directory (I-VER-3), and `Missing` where something that
/// is no replica lies (I-PLACE-1).
pub async fn verify(store: &Store, options: &VerifyOptions<'_>) -> Result<Report> {
    // (First, so that each point that is named was there when it was looked for.)
    let labelled = labels::all(store).await?;
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
    let mut named = judge_labels(store, &facts, &findings, labelled).await?;
    findings = match options.mode {
        Mode::Deep => deep::check(store, facts, options).await?,
        Mode::Sample(share) => deep::sample(store, facts, share, options).await?,
        Mode::Quick | Mode::Fix => findings,
    };
    findings.append(&mut named);
    let name = if options.name.is_empty() { name_of(store.url()) } else { options.name.clone() };
    Ok(Report { name, url: store.url().to_string(), findings, removed })
}

/// What is to be said of labels. What one of them seems to have lost is said only where it is there still: it may have been dropped meanwhile.
async fn judge_labels(
    store: &Store,
    facts: &Facts,
    findings: &[Finding],
    labelled: Labels,
) -> Result<Vec<Finding>> {
    let bad = findings.iter().filter(|f| f.severity != Severity::Ok).filter_map(|f| f.file).collect();
    let found = named::labels(facts, &bad, &labelled);
    if found.iter().all(|f| f.severity == Severity::Ok) {
        return Ok(found);
    }
    let mut still = labels::all(store).await?;
    still.labels.retain(|l| labelled.labels.contains(l));
    Ok(named::labels(facts, &bad, &still))
}

/// As the user wrote it, not as a URL encodes it.
fn name_of(url: &str) -> String {
    ReplicaUrl::parse(url).map_or_else(|_| url.to_string(), |u| u.name().to_string())
}
