//! Merging small files into levels 1, 2, 3, from the copies that the spool kept: nothing is downloaded.
//!
//! Level n+1 gets one file for everything level n received in its interval. Inputs are neighbours of one
//! lineage; a break (another lineage, a missing copy) ends a merge there, and what cannot be merged any more
//! is dropped from the spool: merged files make restores quick, they are never the only copy. What time it is is said by the
//! caller.

use crate::base::{Error, Result};
use crate::ltx::{self, FileName, Level};
use crate::replica::FileId;
use crate::spool::Spool;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most files one merge takes: each holds a descriptor and a page while it runs.
const MOST: usize = 512;

/// A merged file on its way up.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) level: Level,
    pub(super) name: FileName,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) inputs: Vec<PathBuf>,
}

/// A merge that is due: files to read and the level to write.
#[derive(Debug)]
pub(super) struct Job {
    to: Level,
    run: Vec<(FileName, PathBuf)>,
}

/// When to merge what.
#[derive(Debug)]
pub(super) struct Merger {
    levels: Vec<Duration>,
    /// Uptime of the last merge into level i + 1.
    last: Vec<Duration>,
}

impl Merger {
    pub(super) fn new(levels: Vec<Duration>, now: Duration) -> Merger {
        let last = vec![now; levels.len()];
        Merger { levels, last }
    }

    pub(super) fn wants_l0(&self) -> bool {
        !self.levels.is_empty()
    }

    /// Keeps a shipped file for merging.
    pub(super) fn keep(&self, spool: &Spool, path: &Path, level: Level, name: FileName) -> Result<()> {
        let to = spool.merge_path(level, &name);
        if let Some(dir) = to.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        std::fs::rename(path, &to).map_err(|e| Error::io("keep for merging", path, e))
    }

    /// Time until some level may be due.
    pub(super) fn due_in(&self, now: Duration) -> Duration {
        let left = self.levels.iter().zip(&self.last).map(|(d, l)| (*l + *d).saturating_sub(now));
        left.min().unwrap_or(Duration::from_secs(3600)).max(Duration::from_millis(200))
    }

    /// The next merge that is due; `None` if none is.
    pub(super) fn due(&mut self, spool: &Spool, now: Duration) -> Option<Job> {
        for (i, interval) in self.levels.iter().enumerate() {
            let Some(last) = self.last.get_mut(i) else { continue };
            if now.saturating_sub(*last) < *interval {
                continue;
            }
            let (Some(from), Some(to)) = (Level::new(i as u8), Level::new(i as u8 + 1)) else { continue };
            let files = copies(spool, from);
            let run = first_run(&files);
            // One file alone has nothing to be merged with, unless another lineage follows it.
            if run.len() < 2 {
                if files.len() > run.len() && drop_all(run).is_ok() {
                    return self.due(spool, now);
                }
                *last = now;
                continue;
            }
            if run.len() == files.len() {
                *last = now;
            }
            return Some(Job { to, run: run.to_vec() });
        }
        None
    }

    /// The merged file is in the replica: its inputs may go, and it waits for the next level.
    pub(super) fn done(&self, spool: &Spool, m: &Merged) -> Result<()> {
        if usize::from(m.level.get()) < self.levels.len() {
            self.keep(spool, &m.path, m.level, m.name)?;
        } else {
            drop(std::fs::remove_file(&m.path));
        }
        for p in &m.inputs {
            drop(std::fs::remove_file(p));
        }
        Ok(())
    }
}

fn drop_all(run: &[(FileName, PathBuf)]) -> Result<()> {
    run.iter().try_for_each(|(_, p)| std::fs::remove_file(p).map_err(|e| Error::io("remove", p, e)))
}

/// The kept files of a level, oldest first.
fn copies(spool: &Spool, level: Level) -> Vec<(FileName, PathBuf)> {
    let dir = spool.dir().join("merge").join(level.get().to_string());
    let mut out: Vec<(FileName, PathBuf)> = std::fs::read_dir(dir)
        .map(|it| {
            it.flatten().filter_map(|e| Some((FileName::parse(e.file_name().to_str()?)?, e.path()))).collect()
        })
        .unwrap_or_default();
    // One that may have to be taken back is no part of anything yet.
    out.retain(|(n, _)| level != Level::L0 || !spool.is_asked(n.max));
    out.sort_by_key(|(n, _)| (n.min, n.max));
    out
}

/// The longest run of neighbours from the start: TXIDs that touch, one lineage, an unbroken attestation.
fn first_run(files: &[(FileName, PathBuf)]) -> &[(FileName, PathBuf)] {
    let mut end = 0;
    let mut previous: Option<ltx::Header> = None;
    for (name, path) in files.iter().take(MOST) {
        let Some(h) = header(path) else { break };
        if let Some(p) = &previous {
            let touches = name.min == p.max.next();
            let attested = match (p.attest, h.attest) {
                (Some(a), Some(b)) => a.after == b.before,
                _ => false,
            };
            if !touches || !attested || h.lineage != p.lineage || h.page_size != p.page_size {
                break;
            }
        }
        previous = Some(h);
        end += 1;
    }
    files.get(..end.max(1).min(files.len())).unwrap_or_default()
}

fn header(path: &Path) -> Option<ltx::Header> {
    let f = File::open(path).ok()?;
    ltx::Decoder::new(BufReader::with_capacity(4 << 10, f)).ok().map(|d| d.header().clone())
}

impl Job {
    /// The newest of the files to read, as it is in the replica.
    pub(super) fn newest(&self) -> Option<FileId> {
        let (name, _) = self.run.last()?;
        Some(FileId { level: Level::new(self.to.get() - 1)?, min: name.min, max: name.max })
    }

    /// There is no use in the merged file: its inputs need not be kept.
    pub(super) fn drop_inputs(self) -> Result<()> {
        drop_all(&self.run)
    }

    /// Reads the inputs and writes the merged file into the spool. Takes as long as the pages take.
    pub(super) fn merge(self, spool: &Spool) -> Result<Merged> {
        let mut inputs = Vec::with_capacity(self.run.len());
        for (_, p) in &self.run {
            let f = File::open(p).map_err(|e| Error::io("open", p, e))?;
            inputs.push(BufReader::with_capacity(16 << 10, f));
        }
        let (Some((first, _)), Some((last, _))) = (self.run.first(), self.run.last()) else {
            return Err(Error::new(crate::base::Kind::Bug, "nothing to merge"));
        };
        let name = FileName { min: first.min, max: last.max };
        let path = spool.dir().join("merge").join(format!("up-{}-{name}", self.to.get()));
        let summary = spool.write_file(&path, |w| ltx::merge(inputs, ltx::Overrides::default(), w))?;
        let inputs = self.run.into_iter().map(|(_, p)| p).collect();
        Ok(Merged { level: self.to, name, path, bytes: summary.bytes, inputs })
    }
}
