//! What verify is asked.

use crate::replica::restore::Checker;
use std::path::PathBuf;
use std::time::Duration;

/// How thorough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// No page data.
    #[default]
    Quick,
    /// As quick, and so many in a thousand of the files, drawn by chance and one at the least, are read whole.
    Sample(u16),
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
            "sample" => Some(Mode::Sample(SAMPLE)),
            "deep" => Some(Mode::Deep),
            "fix" => Some(Mode::Fix),
            other => share(other.strip_prefix("sample ")?).map(Mode::Sample),
        }
    }
}

/// Without a share said: a replica that is sampled each day is read in 100 days.
const SAMPLE: u16 = 10;

/// `5%` or `0.5%`, in thousandths.
fn share(text: &str) -> Option<u16> {
    let percent: f64 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
    let thousandths = (percent * 10.0).round();
    // (In range: it fits.)
    (1.0..=1000.0).contains(&thousandths).then_some(thousandths as u16)
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
