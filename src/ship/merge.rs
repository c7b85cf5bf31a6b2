//! Merging small files into levels 1, 2, 3, from the copies that the spool kept: nothing is downloaded.
//!
//! Level n+1 gets one file for everything level n received in its interval. When that is due is told by the age of the copies
//! themselves, not by how long a process has lived: a program that runs for a second each minute merges as a server does. Inputs
//! are neighbours of one lineage; few large ones are left for the next level to merge (`is_worth`), so that what a quiet database changes is
//! not uploaded once for each level; a break (another lineage, a missing copy) ends a merge there, and what cannot be merged any more
//! is dropped from the spool: merged files make restores quick, they are never the only copy. What time it is is said by the
//! caller.

use crate::base::{Error, Manners, Result, Timestamp};
use crate::ltx::{self, FileName, Level};
use crate::replica::FileId;
use crate::spool::Spool;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most files one merge takes: each holds a descriptor and a page while it runs.
const MOST: usize = 512;
/// The most copies of one level that are kept: where no merged file gets into the replica, the oldest go.
const MOST_KEPT: usize = 4 * MOST;
/// Fewer files than [`FEW`], of more bytes than this each on the whole, are not worth a merge that another will merge again: it spares a restore
/// a request for each of them, and costs all their bytes once more. (Many are: most of their pages may be the same.)
const WORTH_BYTES: u64 = 256 << 10;
/// See [`WORTH_BYTES`].
const FEW: usize = 4;
/// The longest time between two looks.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);
/// The shortest.
const SHORTEST_LOOK: Duration = Duration::from_millis(200);

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

/// What time it is, in both ways.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// By the wall: copies bear such times, and it may jump.
    pub(super) wall: Timestamp,
    /// Since the process began: it never goes back.
    pub(super) uptime: Duration,
}

/// When a level is looked at next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// From this uptime on.
    At(Duration),
    /// When another copy is kept there: there is nothing to merge.
    WhenKept,
}

/// When to merge what.
#[derive(Debug)]
pub(super) struct Merger {
    levels: Vec<Duration>,
    /// Of level i, whose copies are merged into level i + 1.
    looks: Vec<Look>,
    /// Uptime of this process's last merge of level i: a clock that jumps makes no two merges of one interval.
    merged: Vec<Option<Duration>>,
}

/// How long the copies of a level have to wait yet. `oldest`: the time of the oldest of them. One from the future was made while
/// the clock was wrong, and is as old as need be.
fn left(interval: Duration, oldest: Timestamp, merged: Option<Duration>, now: Now) -> Duration {
    let age = if oldest > now.wall { interval } else { now.wall.since(oldest) };
    let spacing = merged.map_or(Duration::ZERO, |m| interval.saturating_sub(now.uptime.saturating_sub(m)));
    interval.saturating_sub(age).max(spacing)
}

impl Merger {
    /// One that merges level i into level i + 1 each `levels[i]`. What earlier processes kept is looked at first.
    pub(super) fn new(levels: Vec<Duration>) -> Merger {
        let (looks, merged) = (vec![Look::At(Duration::ZERO); levels.len()], vec![None; levels.len()]);
        Merger { levels, looks, merged }
    }

    /// Whether level-0 files are merged at all.
    pub(super) fn wants_l0(&self) -> bool {
        !self.levels.is_empty()
    }

    /// Keeps a shipped file for merging. Errors with [`crate::base::Kind::Io`] and others of the file system.
    pub(super) fn keep(
        &mut self,
        spool: &Spool,
        path: &Path,
        level: Level,
        name: FileName,
        uptime: Duration,
    ) -> Result<()> {
        let to = spool.merge_path(level, &name);
        if let Some(dir) = to.parent() {
            let made = match Manners::of(spool.dir()) {
                Some(manners) => manners.make_tree(spool.dir(), dir),
                None => std::fs::create_dir_all(dir),
            };
            made.map_err(|e| Error::io("create", dir, e))?;
        }
        std::fs::rename(path, &to).map_err(|e| Error::io("keep for merging", path, e))?;
        let i = usize::from(level.get());
        if let (Some(look), Some(interval)) = (self.looks.get_mut(i), self.levels.get(i))
            && *look == Look::WhenKept
        {
            *look = Look::At(uptime + *interval);
        }
        Ok(())
    }

    /// Time until some level may be due.
    pub(super) fn due_in(&self, uptime: Duration) -> Duration {
        let left = self.looks.iter().map(|l| match l {
            Look::At(t) => t.saturating_sub(uptime),
            Look::WhenKept => LONGEST_LOOK,
        });
        left.min().unwrap_or(LONGEST_LOOK).clamp(SHORTEST_LOOK, LONGEST_LOOK)
    }

    /// The next merge that is due; `None` if none is.
    pub(super) fn due(&mut self, spool: &Spool, now: Now) -> Option<Job> {
        for i in 0..self.levels.len() {
            let is_due = matches!(self.looks.get(i), Some(Look::At(t)) if now.uptime >= *t);
            if is_due && let Some(job) = self.look(i, spool, now) {
                return Some(job);
            }
        }
        None
    }

    fn look(&mut self, i: usize, spool: &Spool, now: Now) -> Option<Job> {
        let level = |n: usize| u8::try_from(n).ok().and_then(Level::new);
        let (from, to) = (level(i)?, level(i + 1)?);
        let (interval, merged) = (*self.levels.get(i)?, *self.merged.get(i)?);
        let files = copies(spool, from);
        let mut files = files.as_slice();
        loop {
            let run = first_run(files);
            // One file alone has nothing to be merged with, unless another lineage follows it.
            if run.len() >= 2 {
                break;
            }
            if files.len() <= run.len() || drop_all(run).is_err() {
                *self.looks.get_mut(i)? = Look::WhenKept;
                return None;
            }
            files = files.get(run.len()..).unwrap_or_default();
        }
        let run = first_run(files);
        let oldest = run.first().and_then(|(_, p)| header(p)).map_or(now.wall, |h| h.timestamp);
        let left = left(interval, oldest, merged, now);
        if !left.is_zero() {
            *self.looks.get_mut(i)? = Look::At(now.uptime + left);
            return None;
        }
        if i + 1 < self.levels.len()
            && !is_worth(run.len(), bytes_of(run))
            && self.hand_on(spool, to, run, now)
        {
            return self.look(i, spool, now);
        }
        // (What one merge does not take is looked at right after it.)
        if run.len() == files.len() {
            *self.merged.get_mut(i)? = Some(now.uptime);
        }
        Some(Job { to, run: run.to_vec() })
    }

    /// Has the next level merge what this one does not: whether all of it is there.
    fn hand_on(&mut self, spool: &Spool, to: Level, run: &[(FileName, PathBuf)], now: Now) -> bool {
        let all = run.iter().all(|(name, path)| self.keep(spool, path, to, *name, now.uptime).is_ok());
        if let Some(look) = self.looks.get_mut(usize::from(to.get())) {
            *look = Look::At(now.uptime);
        }
        all
    }

    /// A merge of files into `to` failed: it is due again.
    pub(super) fn failed(&mut self, to: Level) {
        let i = usize::from(to.get()).saturating_sub(1);
        if let (Some(look), Some(merged)) = (self.looks.get_mut(i), self.merged.get_mut(i)) {
            (*look, *merged) = (Look::At(Duration::ZERO), None);
        }
    }

    /// The merged file is in the replica: its inputs may go, and it waits for the next level. Errors as [`Merger::keep`] does.
    pub(super) fn done(&mut self, spool: &Spool, m: &Merged, uptime: Duration) -> Result<()> {
        if usize::from(m.level.get()) < self.levels.len() {
            self.keep(spool, &m.path, m.level, m.name, uptime)?;
        } else {
            drop(std::fs::remove_file(&m.path));
        }
        for p in &m.inputs {
            drop(std::fs::remove_file(p));
        }
        Ok(())
    }
}

/// Whether so many files of so many bytes are worth a merge that will be merged again. Pure.
fn is_worth(files: usize, bytes: u64) -> bool {
    files >= FEW || bytes < WORTH_BYTES.saturating_mul(files as u64)
}

fn bytes_of(run: &[(FileName, PathBuf)]) -> u64 {
    run.iter().filter_map(|(_, p)| p.metadata().ok()).map(|m| m.len()).sum()
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
    if out.len() > MOST_KEPT {
        let kept = out.split_off(out.len() - MOST_KEPT);
        drop(drop_all(&out));
        return kept;
    }
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
    /// The level that it is for.
    pub(super) fn to(&self) -> Level {
        self.to
    }

    /// The newest of the files to read, as it may be in the replica: at the level below, or a lower one that handed it on.
    pub(super) fn newest(&self) -> Vec<FileId> {
        let Some((name, _)) = self.run.last() else { return Vec::new() };
        let levels = (0..self.to.get()).rev().filter_map(Level::new);
        levels.map(|level| FileId { level, min: name.min, max: name.max }).collect()
    }

    /// There is no use in the merged file: its inputs need not be kept. Errors as the file system does.
    pub(super) fn drop_inputs(self) -> Result<()> {
        drop_all(&self.run)
    }

    /// Reads the inputs and writes the merged file into the spool. Takes as long as the pages take. Errors with
    /// [`crate::base::Kind::Corrupt`] when an input is damaged, and as the file system does.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_wait_for_an_interval_of_their_own_age() {
        let s = Duration::from_secs;
        let interval = s(30);
        let now = |wall: i64, up: u64| Now { wall: Timestamp(wall * 1000), uptime: s(up) };
        let at = |wall: i64| Timestamp(wall * 1000);
        for (what, oldest, merged, now, want) in [
            ("just made", 1000, None, now(1000, 5), 30),
            ("half its time", 1000, None, now(1015, 20), 15),
            ("due, and the process is young", 1000, None, now(1030, 1), 0),
            ("long due", 1000, None, now(9000, 1), 0),
            ("from a future that was none", 9000, None, now(1000, 1), 0),
            ("the same, and this process has just merged", 9000, Some(s(50)), now(1000, 60), 20),
            ("the clock jumped ahead", 1000, Some(s(50)), now(90_000, 51), 29),
            ("an interval after the last merge", 1000, Some(s(50)), now(1030, 80), 0),
        ] {
            assert_eq!(left(interval, at(oldest), merged, now), s(want), "{what}");
        }
    }

    #[test]
    fn a_level_without_copies_is_not_looked_at_until_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let mut merger = Merger::new(vec![Duration::from_secs(30), Duration::from_secs(300)]);
        assert_eq!(merger.due_in(Duration::ZERO), SHORTEST_LOOK, "what an earlier process kept may be due");
        let now = |s: u64| Now { wall: Timestamp(0), uptime: Duration::from_secs(s) };
        assert!(merger.due(&spool, now(1)).is_none());
        assert_eq!(merger.due_in(Duration::from_secs(1)), LONGEST_LOOK);
        let (path, name) = (dir.path().join("x"), FileName { min: TxId(2), max: TxId(2) });
        std::fs::write(&path, b"").unwrap();
        merger.keep(&spool, &path, Level::L0, name, Duration::from_secs(7)).unwrap();
        assert_eq!(merger.due_in(Duration::from_secs(7)), Duration::from_secs(30));
        merger.failed(Level::new(1).unwrap());
        assert_eq!(merger.due_in(Duration::from_secs(7)), SHORTEST_LOOK);
        assert!(!Merger::new(Vec::new()).wants_l0());
    }

    #[test]
    fn few_large_files_are_merged_once() {
        for (files, bytes, want) in [
            (2, 10, true),
            (2, (512 << 10) - 1, true),
            (2, 512 << 10, false),
            (3, 9 << 20, false),
            (4, 9 << 20, true),
        ] {
            assert_eq!(is_worth(files, bytes), want, "{files} files of {bytes} bytes");
        }
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let intervals = [3, 30, 300].map(Duration::from_secs).to_vec();
        let mut merger = Merger::new(intervals);
        let mut model = crate::ship::steady::Model::new();
        for txid in 2..=4 {
            let (pages, before) = model.commit(txid);
            let path = spool.pending_path(TxId(txid));
            model.file(&spool, &path, txid..=txid, &pages, before, Timestamp(txid as i64 * 1000));
            let name = FileName { min: TxId(txid), max: TxId(txid) };
            merger.keep(&spool, &path, Level::L0, name, Duration::ZERO).unwrap();
        }
        // As large files are; they are read no further than their headers here.
        for (_, path) in copies(&spool, Level::L0) {
            File::options().append(true).open(path).unwrap().set_len(WORTH_BYTES).unwrap();
        }
        let now = |s: u64| Now { wall: Timestamp(2000 + s as i64 * 1000), uptime: Duration::from_secs(s) };
        assert!(merger.due(&spool, now(4)).is_none(), "the first level leaves them to the second");
        let at = |level: u8| copies(&spool, Level::new(level).unwrap()).len();
        assert_eq!([at(0), at(1), at(2)], [0, 3, 0]);
        assert!(merger.due(&spool, now(31)).is_none());
        assert_eq!([at(0), at(1), at(2)], [0, 0, 3]);
        let job = merger.due(&spool, now(400)).unwrap();
        assert_eq!(
            (job.to(), job.run.len()),
            (Level::new(3).unwrap(), 3),
            "the last one merges whatever there is"
        );
        let levels: Vec<u8> = job.newest().iter().map(|id| id.level.get()).collect();
        assert_eq!(levels, [2, 1, 0]);
    }

    use crate::base::TxId;
}
