//! What verify finds: one of a file, and one of each rule over the whole.

use crate::base::TxId;
use crate::replica::layout::FileId;

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
    /// Each label names a point that can be restored.
    Label,
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
            Rule::Label => "label",
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
