//! A large file that comes in pieces, proved and put to use by several threads while more of it comes.
//!
//! ```text
//! pieces in order ──► one thread at a time: SHA-256, cut between pages ──► batches ──► a few threads: unpack, checksums, [`Work`]
//!                                                                             └──► what each gave, put together in order ──► judged
//! ```
//!
//! Rules
//! * I-LARGE-1 A file is proved as a small one is: each byte goes through SHA-256 in order, and the file checksum, the page index, the order
//!   of pages and a snapshot's database checksum are held against what was read (`ltx::Splitter`). Nothing that [`Work`] did counts before
//!   [`Large::finish`] said yes.
//! * I-LARGE-2 At most [`unpacking`] batches wait to be put together; a piece's memory is given back when its pages are in place.
//!
//! Refused: SHA-256 of parts, which no manifest has; to fetch the page index first and have every thread find its frames by it (a round
//! trip more, and memory that grows with the file: a frame's length stands in front of it).

use crate::base::{Error, Kind, Result, panics};
use crate::ltx::{Batch, Header, Splitter, Trailer, Unpacked};
use crate::replica::fetch::Piece;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// What is done with the pages of one file, by several threads at once.
pub trait Work: Send + Sync + 'static {
    /// Asked once, before any page: whether a file with this header is the one that is wanted.
    fn begins(&self, header: &Header) -> Result<()>;
    /// The pages of a batch.
    fn unpack(&self, batch: &Batch) -> Result<Done>;
}

/// What is known of the pages of batches that follow one another.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// As they came.
    pub unpacked: Unpacked,
    /// XOR of `DbChecksum::scramble` of the pages that they took the place of.
    pub replaced: u64,
    /// How many took no other's place.
    pub grown: u32,
}

/// One file on its way.
pub struct Large<W> {
    work: Arc<W>,
    /// `None`: it failed.
    front: Option<Box<Front>>,
    begun: bool,
    unpacking: VecDeque<JoinHandle<Result<Result<Done>>>>,
    done: Done,
}

#[derive(Default)]
struct Front {
    splitter: Splitter,
    sha: Sha256,
}

/// Batches that are unpacked at once: one for each processor, four at most.
fn unpacking() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4))
}

impl<W: Work> Large<W> {
    /// A file of which nothing has come.
    pub fn new(work: W) -> Large<W> {
        Large {
            work: Arc::new(work),
            front: Some(Box::default()),
            begun: false,
            unpacking: VecDeque::new(),
            done: Done::default(),
        }
    }

    /// Takes its next bytes. Errors with `Corrupt` where the file is damaged, or as its [`Work`].
    pub async fn push(&mut self, piece: Piece) -> Result<()> {
        let mut front = self.front.take().ok_or_else(failed)?;
        let bytes = piece.bytes.clone();
        let (front, batch) = panics::blocking(move || {
            front.sha.update(&bytes);
            let batch = front.splitter.push(&bytes);
            (front, batch)
        })
        .await?;
        let batch = batch?;
        if !self.begun
            && let Some(header) = front.splitter.header()
        {
            self.work.begins(header)?;
            self.begun = true;
        }
        if let Some(batch) = batch {
            let work = self.work.clone();
            let job = panics::blocking(move || {
                let done = work.unpack(&batch);
                drop((batch, piece));
                done
            });
            self.unpacking.push_back(tokio::spawn(job));
        }
        while self.unpacking.len() > unpacking() {
            self.put_together().await?;
        }
        self.front = Some(front);
        Ok(())
    }

    async fn put_together(&mut self) -> Result<()> {
        let Some(next) = self.unpacking.pop_front() else { return Ok(()) };
        let next = next.await.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "unpacking was given up")))??;
        self.done.unpacked.append(&next.unpacked);
        self.done.replaced ^= next.replaced;
        self.done.grown += next.grown;
        Ok(())
    }

    /// All of it has come: proves it. Errors as [`Large::push`].
    pub async fn finish(mut self) -> Result<(Header, Trailer, Done)> {
        while !self.unpacking.is_empty() {
            self.put_together().await?;
        }
        let front = self.front.take().ok_or_else(failed)?;
        let (header, mut trailer) = front.splitter.finish(&self.done.unpacked)?;
        trailer.sha256 = Some(front.sha.finalize().into());
        Ok((header, trailer, std::mem::take(&mut self.done)))
    }
}

fn failed() -> Error {
    Error::corrupt("this file was found damaged before")
}
