//! Whether what labels name can be restored. Pure; the replica without labels has no finding.

use super::finding::{Finding, Rule, Severity};
use super::judge::{Facts, rule};
use crate::base::TxId;
use crate::replica::labels::Labels;
use crate::replica::layout::FileId;
use crate::replica::plan::restorable;
use std::collections::BTreeSet;

/// One finding for each label that names nothing, or cannot be read; one for all where there are labels and each is well. `bad`: files that
/// were found damaged.
pub(super) fn labels(facts: &Facts, bad: &BTreeSet<FileId>, found: &Labels) -> Vec<Finding> {
    let states = restorable(&facts.usable(bad));
    let of = |txid: TxId, text: String| Finding {
        txids: Some((txid, txid)),
        issue: Some(text.clone()),
        ..rule(Rule::Label, Severity::Warning, text)
    };
    let lost = found.labels.iter().filter(|l| !states.contains_key(&l.txid)).map(|l| {
        of(l.txid, format!("Label {} names TXID {}, which cannot be restored any more", l.name, l.txid.0))
    });
    let damaged = found.damaged.iter().map(|e| Finding {
        issue: Some(e.to_string()),
        ..rule(Rule::Label, Severity::Warning, e.to_string())
    });
    let mut findings: Vec<Finding> = lost.chain(damaged).collect();
    if findings.is_empty() && !found.labels.is_empty() {
        let text = format!("all {} labels name points that can be restored", found.labels.len());
        findings.push(rule(Rule::Label, Severity::Ok, text));
    }
    findings
}
