//! A drill: what a person would do after a disaster, done while there is none. The replica is verified, a point of it restored to a
//! temporary file, SQLite asked whether that is sound, the caller's assertions put to it, and where the live database is here, the two compared.
//!
//! Rules
//! * I-DRILL-1 A drill changes nothing, and leaves nothing: what it restores goes with it.
//! * I-DRILL-2 What is wrong with the backup is a failed part of the report; trouble in reaching the store, or on this machine's disk, is an
//!   error and says nothing of the backup (as I-VER-3).
//! * I-DRILL-3 A replica that is written, merged and compacted meanwhile gives no false alarm: files are judged by `verify` (I-VER-2), and a
//!   point that went between the choice and the restore is chosen anew.
//! * I-DRILL-4 Each file is read whole where all of them are at most [`ALL_BYTES`], or as much again as the restore reads; of a larger replica
//!   what is not on the way to the point is judged by its edges, unless `All` is asked for.
//!
//! Refused: a drill that reads pages in place (no disk, but a disaster wants a file, and the time that takes).

use super::place::{self, Found};
use super::plan::{plan, restorable};
use super::point::Point;
use super::restore::{Check, RestoreOptions, Restored, restore};
use super::reuse::Reuse;
use super::target::Overwrite;
use super::verify::{Mode, Rule, Severity, VerifyOptions, verify};
use crate::base::scratch::Scratch;
use crate::base::{DbChecksum, Result, Timestamp, TxId, clock, size};
use crate::store::Store;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A replica of so many bytes is read whole.
const ALL_BYTES: u64 = 64 << 20;
/// How often a point is chosen that is gone when it is restored.
const TRIES: usize = 4;
/// Most of a statement that the report shows.
const SHOWN: usize = 120;

/// Which state is restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aim {
    /// This one.
    At(Point),
    /// One of all that can be restored, drawn by this number.
    Drawn(u64),
}

/// How much of a replica is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reads {
    /// I-DRILL-4.
    #[default]
    BySize,
    /// Every byte.
    All,
}

/// What the database itself holds at a TXID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Live {
    /// It is not here, or could not be read at one.
    Unknown,
    /// Its checksum, read from its own files.
    Is(TxId, DbChecksum),
}

/// What SQLite says of a restored file: one answer for the structure, one for each assertion. Trouble of our own is an error.
pub type Inspect<'a> = &'a (dyn Fn(&Path) -> Result<Vec<Part>> + Send + Sync);

/// How to drill.
pub struct DrillOptions<'a> {
    /// Which state.
    pub aim: Aim,
    /// How much.
    pub reads: Reads,
    /// Where there is room for the database.
    pub work_dir: PathBuf,
    /// Looks at the restored file.
    pub inspect: Inspect<'a>,
    /// Runs SQLite's integrity check on the file that a deep verify makes.
    pub integrity: super::restore::Checker<'a>,
    /// To be compared with.
    pub live: Live,
    /// Rest between two looks at something suspicious. Zero is for tests.
    pub pause: Duration,
}

/// What a part of a drill is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// The replica's files: verify.
    Files,
    /// The restore.
    Restore,
    /// SQLite's own check.
    Integrity,
    /// A statement that must be true.
    Assertion,
    /// The live database.
    Live,
}

impl About {
    /// For the report.
    pub fn as_str(self) -> &'static str {
        match self {
            About::Files => "files",
            About::Restore => "restore",
            About::Integrity => "integrity",
            About::Assertion => "assertion",
            About::Live => "live database",
        }
    }
}

/// How a part went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Went {
    /// As it should.
    Well,
    /// It was not tried; why is said.
    Untried,
    /// Not as it should.
    Wrong,
}

/// One part of a drill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// What it is about.
    pub about: About,
    /// How it went.
    pub went: Went,
    /// One line.
    pub text: String,
}

impl Part {
    /// A part that went well.
    pub fn well(about: About, text: impl Into<String>) -> Part {
        Part { about, went: Went::Well, text: text.into() }
    }

    /// A part that went wrong.
    pub fn wrong(about: About, text: impl Into<String>) -> Part {
        Part { about, went: Went::Wrong, text: text.into() }
    }

    /// A part that was not tried.
    pub fn untried(about: About, text: impl Into<String>) -> Part {
        Part { about, went: Went::Untried, text: text.into() }
    }

    /// A statement that must give one true row, and what it gave.
    pub fn assertion(sql: &str, gave: std::result::Result<bool, String>) -> Part {
        let shown = shortened(sql);
        match gave {
            Ok(true) => Part::well(About::Assertion, shown),
            Ok(false) => Part::wrong(About::Assertion, format!("{shown}: it is not true")),
            Err(why) => Part::wrong(About::Assertion, format!("{shown}: {why}")),
        }
    }
}

fn shortened(sql: &str) -> String {
    let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(SHOWN).collect();
    if short.len() < line.len() { format!("{short}...") } else { short }
}

/// What came of a drill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drilled {
    /// The replica.
    pub replica: String,
    /// When it began.
    pub began: Timestamp,
    /// The state that was restored, and when that was; `None` if none was.
    pub state: Option<(TxId, Timestamp)>,
    /// Bytes of the restored database.
    pub bytes: u64,
    /// Bytes that the restore fetched.
    pub fetched: u64,
    /// How long the restore took, until the file was there.
    pub took: Duration,
    /// Part by part.
    pub parts: Vec<Part>,
}

impl Drilled {
    /// Whether nothing was wrong.
    pub fn has_passed(&self) -> bool {
        self.wrong().next().is_none()
    }

    fn wrong(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|p| p.went == Went::Wrong)
    }

    /// What was wrong first, and how much more was; empty where nothing was.
    pub fn message(&self) -> String {
        let Some(first) = self.wrong().next() else { return String::new() };
        let more = match self.wrong().count() - 1 {
            0 => String::new(),
            1 => " (and one more)".to_string(),
            n => format!(" (and {n} more)"),
        };
        format!("{}: {}{more}", first.about.as_str(), first.text)
    }

    /// For people.
    pub fn text(&self) -> String {
        let place = self.replica.split('?').next().unwrap_or(&self.replica);
        let mut out = format!("Drill: {place}\n{}\n", "=".repeat(48));
        if let Some((txid, time)) = self.state {
            let (bytes, fetched) = (size(self.bytes), size(self.fetched));
            let _ = writeln!(
                out,
                "Restored: TXID {} of {time}, {bytes}, in {:.3} s ({fetched} fetched)",
                txid,
                self.took.as_secs_f64()
            );
        }
        for p in &self.parts {
            let sign = match p.went {
                Went::Well => "✅",
                Went::Untried => "➖",
                Went::Wrong => "❌",
            };
            let _ = writeln!(out, "{sign} {}: {}", p.about.as_str(), p.text);
        }
        let result = match self.wrong().count() {
            0 => "passed".to_string(),
            n => format!("failed ({n} of {})", self.parts.len()),
        };
        let _ = writeln!(out, "Result: {result}");
        out
    }
}

impl Drilled {
    /// For programs: the same, sizes in bytes, times in seconds.
    pub fn json(&self) -> Value {
        let part = |p: &Part| {
            let went = match p.went {
                Went::Well => "well",
                Went::Untried => "not tried",
                Went::Wrong => "wrong",
            };
            json!({ "about": p.about.as_str(), "result": went, "message": p.text })
        };
        let is_restored = self.state.is_some();
        json!({
            "replica": self.replica,
            "result": if self.has_passed() { "passed" } else { "failed" },
            "began": self.began.rfc3339(),
            "txid": self.state.map(|(txid, _)| txid.0),
            "time": self.state.map(|(_, time)| time.rfc3339()),
            "database_bytes": is_restored.then_some(self.bytes),
            "fetched_bytes": is_restored.then_some(self.fetched),
            "restore_seconds": is_restored.then_some((self.took.as_secs_f64() * 1000.0).round() / 1000.0),
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }
}

/// Drills. Errors: the store's, `Io` of the work directory, `Missing` where something that is no replica lies, or the point that was named
/// is none of its (I-DRILL-2).
pub async fn drill(store: &Store, options: &DrillOptions<'_>) -> Result<Drilled> {
    let mut drilled = Drilled {
        replica: store.url().to_string(),
        began: clock::now(),
        state: None,
        bytes: 0,
        fetched: 0,
        took: Duration::ZERO,
        parts: Vec::new(),
    };
    drilled.parts = files(store, options).await?;
    let scratch = Scratch::new(&options.work_dir, "drill")?;
    let begun = clock::uptime();
    let restored = match restore_one(store, options, scratch.path()).await? {
        Ok(restored) => restored,
        Err(why) => {
            drilled.parts.push(Part::wrong(About::Restore, why));
            return Ok(drilled);
        }
    };
    drilled.took = clock::uptime().saturating_sub(begun);
    drilled.state = Some((restored.txid, restored.time));
    drilled.bytes = u64::from(restored.pages) * u64::from(restored.page_size.get());
    drilled.fetched = restored.bytes;
    drilled.parts.push(how_restored(&restored));
    drilled.parts.extend((options.inspect)(scratch.path())?);
    drilled.parts.push(compared(options.live, &restored));
    Ok(drilled)
}

fn how_restored(restored: &Restored) -> Part {
    match restored.notes.first() {
        Some(note) => Part::wrong(About::Restore, format!("it went around damage: {note}")),
        None => {
            let how = if restored.attested { "as attested" } else { "attested by no file" };
            let text = format!("{} files, database checksum {}, {how}", restored.files, restored.checksum);
            Part::well(About::Restore, text)
        }
    }
}

/// Pure.
fn compared(live: Live, restored: &Restored) -> Part {
    match live {
        Live::Is(txid, sum) if txid == restored.txid && sum == restored.checksum => {
            Part::well(About::Live, format!("the same at TXID {txid}"))
        }
        Live::Is(txid, sum) if txid == restored.txid => {
            let text = format!(
                "another one at TXID {}: its checksum is {sum}, the replica's {}",
                txid, restored.checksum
            );
            Part::wrong(About::Live, text)
        }
        Live::Is(txid, _) => Part::untried(About::Live, format!("not compared: it was read at TXID {txid}")),
        Live::Unknown => Part::untried(
            About::Live,
            "not compared: it is not streamed by this process, or not to be read now",
        ),
    }
}

/// The files of the replica, all of which a restore may want one day.
async fn files(store: &Store, options: &DrillOptions<'_>) -> Result<Vec<Part>> {
    let mode = match options.reads {
        Reads::All => Mode::Deep,
        Reads::BySize => mode_of(&place::find(store).await?.inventory),
    };
    let how = VerifyOptions {
        mode,
        work_dir: Some(options.work_dir.clone()),
        integrity: Some(options.integrity),
        pause: options.pause,
        ..Default::default()
    };
    let report = verify(store, &how).await?;
    if report.severity() == Severity::Ok {
        let n = report.findings.iter().filter(|f| f.file.is_some()).count();
        let read = if mode == Mode::Deep { "each read whole" } else { "each judged by its edges" };
        return Ok(vec![Part::well(About::Files, format!("{n}, {read}"))]);
    }
    // A finding about a file says more than the rule that it breaks.
    let issues = || report.issues().filter(|f| f.file.is_some());
    let named: Vec<Part> = match issues().next() {
        Some(_) => {
            issues().map(|f| Part::wrong(About::Files, format!("{}: {}", file_name(f), f.message))).collect()
        }
        None => report.issues().map(|f| Part::wrong(about(f.check), f.message.clone())).collect(),
    };
    Ok(named)
}

fn file_name(f: &super::verify::Finding) -> String {
    f.file.map(|id| id.to_string()).unwrap_or_default()
}

fn about(rule: Rule) -> About {
    match rule {
        Rule::Integrity => About::Integrity,
        _ => About::Files,
    }
}

/// I-DRILL-4. Pure.
fn mode_of(inventory: &super::inventory::Inventory) -> Mode {
    let way = plan(&inventory.files, Point::Latest, Timestamp(i64::MAX)).map_or(0, |p| p.bytes());
    if inventory.bytes() <= ALL_BYTES.max(way.saturating_mul(2)) { Mode::Deep } else { Mode::Quick }
}

/// The restored file; or why there is none, where that is the backup's fault.
async fn restore_one(
    store: &Store,
    options: &DrillOptions<'_>,
    path: &Path,
) -> Result<std::result::Result<Restored, String>> {
    let how = RestoreOptions {
        overwrite: Overwrite::Refuse,
        check: Check::None,
        checker: None,
        reuse: Reuse::Nothing,
        occupier: None,
        parallel: super::fetch::PARALLEL,
        progress: None,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let point = match options.aim {
            Aim::At(point) => point,
            Aim::Drawn(number) => match drawn(store, number).await? {
                Some(txid) => Point::TxId(txid),
                None => return Ok(Err("nothing there can be restored".to_string())),
            },
        };
        match restore(store, point, path, &how).await {
            Ok(restored) => return Ok(Ok(restored)),
            // Retention took it since it was drawn.
            Err(e) if e.is_missing() && matches!(options.aim, Aim::Drawn(_)) && tries < TRIES => {}
            Err(e) if e.is_missing() && matches!(options.aim, Aim::At(Point::TxId(_) | Point::Time(_))) => {
                return Err(e);
            }
            Err(e) if e.is_missing() || e.is_corrupt() => return Ok(Err(e.to_string())),
            Err(e) => return Err(e),
        }
    }
}

/// One of the states that can be restored.
async fn drawn(store: &Store, number: u64) -> Result<Option<TxId>> {
    let Found { inventory, .. } = place::find(store).await?;
    let states: Vec<TxId> = restorable(&inventory.files).into_keys().collect();
    let at = usize::try_from(number % (states.len() as u64).max(1)).unwrap_or(0);
    Ok(states.get(at).copied())
}
