//! Asking the process that ships a database for what only that one can do ([`crate::spool::requests`]: a request in the spool, and an
//! answer). [`super::answer`] is the other side.
//!
//! * I-ASK-1: whoever asks looks at each step whether it has become the shipper itself, or nobody ships: it waits for nobody who is
//!   not there.

use crate::base::{Error, Kind, Result, clock};
use crate::spool::requests::{Answer, Request, Wanted};
use crate::spool::{LockFile, process};
use std::path::Path;
use std::time::Duration;

/// Between two looks at the spool by the asker.
const POLL: Duration = Duration::from_millis(20);
/// How long a request may lie there before somebody answers it, while nobody holds the ship lock.
const NOBODY: Duration = Duration::from_secs(5);
/// What became of a question.
#[derive(Debug)]
pub(super) enum Asking {
    /// It was answered; what is lent is so until the request is dropped.
    Answered(Request, Answer),
    /// The asker ships by now.
    IsMine,
}

/// Asks the process that ships from the spool in `dir`, and waits for its answer. `is_mine` tells whether this process has become
/// that one. Errors with what the shipper met, with [`Kind::Timeout`] after `timeout`, and with [`Kind::Retry`] where nobody ships.
pub(super) fn ask(
    dir: &Path,
    wanted: &Wanted,
    timeout: Duration,
    is_mine: impl Fn() -> bool,
) -> Result<Asking> {
    let request = Request::ask(dir, wanted)?;
    let ship_lock = LockFile::open(&dir.join("lock.ship"))?;
    let begun = clock::uptime();
    let mut seen_at = begun;
    loop {
        match request.answer()? {
            Some(Answer::Refused(why)) => return Err(why.error()),
            Some(answer) => return Ok(Asking::Answered(request, answer)),
            None => {}
        }
        if is_mine() {
            return Ok(Asking::IsMine);
        }
        let now = clock::uptime();
        let holder = ship_lock.holder()?;
        if holder.is_some() {
            seen_at = now;
        }
        if now.saturating_sub(seen_at) >= NOBODY {
            return Err(Error::new(
                Kind::Retry,
                "the process that streamed the database has ended; call again",
            ));
        }
        if now.saturating_sub(begun) >= timeout {
            let who = holder.map_or("nobody".to_string(), process);
            return Err(Error::new(
                Kind::Timeout,
                format!("{who} streams this database and has not answered the request within {timeout:?}"),
            ));
        }
        clock::sleep(POLL);
    }
}
