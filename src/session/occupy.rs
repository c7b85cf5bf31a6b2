//! Leave to replace a file: nobody may have it open, stream it, or keep it up to date.
//!
//! What SQLite's handles tell is in [`Occupied`]; here is what walrust's own locks tell of processes whose connections are closed at
//! the moment. Takes no lock of ours: it only asks who holds one. Refused: to take the ship lock for as long as the file is being
//! replaced; a process that begins to stream meanwhile has opened the file, and that is seen.

use super::registry::Engine;
use crate::base::{Error, Kind, Result};
use crate::config::default_spool;
use crate::replica;
use crate::spool::holder_of;
use crate::sqlite::Occupied;
use std::path::Path;

/// Keeps everybody out of the file at `path`, for a restore that replaces it.
///
/// Errors with `Config`, naming who, if the file is open in this process or another, streamed by another, or kept up to date from a
/// replica.
pub(super) fn occupy(engine: &Engine, path: &Path) -> Result<Box<dyn replica::Occupied>> {
    if engine.is_open(path) {
        let text =
            format!("{} is open in this process; close it there, or restore to another path", path.display());
        return Err(Error::new(Kind::Config, text));
    }
    engine.followers.refuse_target(path)?;
    refuse_streamed(engine, path)?;
    Ok(Box::new(Held(Occupied::take(path)?)))
}

/// An error while another process ships the database, be it open there at the moment or not.
fn refuse_streamed(engine: &Engine, path: &Path) -> Result<()> {
    let set = engine.resolve(path, None).ok().and_then(|r| r.settings.spool_dir);
    for dir in [Some(default_spool(path)), set].into_iter().flatten() {
        if let Some(who) = holder_of(&dir.join("lock.ship")) {
            let text = format!(
                "{} is streamed by {who}; stop that program, or restore to another path",
                path.display()
            );
            return Err(Error::config(text));
        }
    }
    Ok(())
}

struct Held(Option<Occupied>);

impl replica::Occupied for Held {
    fn is_there(&self) -> bool {
        self.0.is_some()
    }

    fn stayed_alone(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), Occupied::stayed_alone)
    }

    fn replaced(&mut self) {
        if let Some(file) = &mut self.0 {
            file.replaced();
        }
    }
}
