//! What the page does for whoever shows the token: each on a thread of its own (`walrust-deed`), in the order and number that
//! [`super::deeds`] allows.

use super::care::{SECOND_LOOK, damage, details};
use super::drill::{self, DrillRequest};
use super::registry::Engine;
use super::watched::{Watched, series};
use crate::base::{Error, Kind, Result, TxId, clock, panics, thread};
use crate::metrics::{Begun, Deed, DeedFace};
use crate::replica::drill::{Aim, Reads};
use crate::replica::label::By;
use crate::replica::{LabelName, Named, Point, Severity, VerifyOptions, labels, verify};
use crate::store::block_on;
use std::sync::Arc;
use std::time::Duration;

/// How long a full copy may take: it may be large.
const SNAPSHOT: Duration = Duration::from_secs(24 * 3600);
/// Stack of a thread that does one.
const STACK: usize = 1 << 20;

impl Engine {
    /// Begins a deed for a database of the page. Does not wait for it.
    pub(super) fn act(&'static self, database: &str, deed: Deed) -> Begun {
        let Some(w) = self.watched().into_iter().find(|w| series(w.path()) == database) else {
            return Begun::Unknown;
        };
        let what = deed.as_str();
        let task = match Task::of(deed) {
            Ok(task) => task,
            Err(e) => return Begun::Refused(e.to_string()),
        };
        if let Err(why) = self.deeds.take(database, what, clock::now()) {
            return Begun::Busy(why);
        }
        let name = database.to_string();
        let started = thread::spawn("walrust-deed", STACK, move || {
            let done = panics::caught(|| task.perform(self, &w))
                .unwrap_or_else(|said| Err(Error::new(Kind::Bug, format!("an internal error: {said}"))));
            self.points.forget(&name);
            match done {
                Ok((is_well, said)) => self.deeds.end(&name, is_well, said.trim_end()),
                Err(e) => self.deeds.end(&name, false, &e.to_string()),
            }
        });
        if let Err(e) = started {
            let why = format!("no thread can be started: {e}; try again");
            self.deeds.end(database, false, &why);
            return Begun::Busy(why);
        }
        Begun::Yes
    }

    /// The last deed for a database of the page.
    pub(super) fn last_deed(&self, database: &str) -> Option<DeedFace> {
        self.deeds.last(database)
    }
}

/// A deed whose words were read.
enum Task {
    Snapshot,
    Verify,
    Drill,
    Label(LabelName, Option<TxId>),
}

impl Task {
    /// Errors with what is wrong with a label's name.
    fn of(deed: Deed) -> Result<Task> {
        Ok(match deed {
            Deed::Snapshot => Task::Snapshot,
            Deed::Verify => Task::Verify,
            Deed::Drill => Task::Drill,
            Deed::Label { name, txid } => Task::Label(Named::label(&name, clock::now())?, txid),
        })
    }

    /// Whether all is well, and what came of it. Errors where it could not be done.
    fn perform(&self, engine: &Engine, w: &Arc<Watched>) -> Result<(bool, String)> {
        match self {
            Task::Snapshot => {
                let txid = engine.snapshot(w, None, SNAPSHOT)?;
                Ok((true, format!("A full copy is in the replica: TXID {txid}.")))
            }
            Task::Verify => check(engine, w),
            Task::Drill => {
                let request = DrillRequest {
                    aim: Aim::At(Point::Latest),
                    reads: Reads::BySize,
                    assertions: Vec::new(),
                };
                let done = drill::run(&w.store, Some(w), None, &request)?;
                Ok((done.has_passed(), done.text()))
            }
            Task::Label(name, txid) => {
                let txid = match txid {
                    Some(txid) => *txid,
                    None => w.sync(w.settings().sync_timeout)?,
                };
                w.have_named();
                let made = block_on(labels::make(&w.store, name, Point::TxId(txid), By::Person))??;
                Ok((true, format!("{name} is the label of TXID {}.", made.txid)))
            }
        }
    }
}

/// As `walrust_verify` checks: what is damaged is told.
fn check(engine: &Engine, w: &Arc<Watched>) -> Result<(bool, String)> {
    w.have_named();
    let options = VerifyOptions { pause: SECOND_LOOK, ..Default::default() };
    let report = block_on(verify(&w.store, &options))??;
    let is_well = report.severity() == Severity::Ok;
    if is_well {
        w.metrics.found_good();
    } else if report.findings.iter().any(|f| f.file.is_some()) {
        engine.tell_damage(w.store.url(), &damage(&report), details(&report));
    }
    // (Files that are as they should be are counted in it, and need no line each.)
    let text = report.text();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("✅ ")).collect();
    Ok((is_well, lines.join("\n")))
}
