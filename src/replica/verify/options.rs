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
