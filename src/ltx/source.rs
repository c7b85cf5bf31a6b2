//! A buffered reader that counts, hashes if asked, and hands out exact pieces.

use crate::base::{Error, Kind, Result};
use sha2::{Digest, Sha256};
use std::io::{self, Read};

/// Large enough to make reads cheap, small enough for a merge of hundreds of files.
const BUFFER: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Source<R> {
    reader: R,
    buf: Vec<u8>,
    at: usize,
    end: usize,
    taken: u64,
    sha: Option<Sha256>,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R, sha: Option<Sha256>) -> Source<R> {
        Source { reader, buf: vec![0; BUFFER], at: 0, end: 0, taken: 0, sha }
    }

    /// Bytes handed out so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// SHA-256 of everything read; of the whole file once [`Source::is_at_end`] said yes.
    pub(super) fn sha256(&self) -> Option<[u8; 32]> {
        self.sha.clone().map(|s| s.finalize().into())
    }

    /// The next `n` bytes. `n` is bounded by the caller, never taken from the file unchecked.
    /// Errors with `Kind::Corrupt` if the file ends before.
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&[u8]> {
        if self.end - self.at < n {
            self.gather(n)?;
        }
        let have = self.buf.get(self.at..self.end).unwrap_or_default();
        let Some(piece) = have.get(..n) else {
            return Err(Error::corrupt(format!("the file ends within {what}")));
        };
        self.at += n;
        self.taken += n as u64;
        Ok(piece)
    }

    /// The last `n` bytes handed out in one piece by [`Source::take`].
    pub(super) fn recent(&self, n: usize) -> Option<&[u8]> {
        self.buf.get(self.at.checked_sub(n)?..self.at)
    }

    /// [`Source::take`] of a fixed length.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    /// Whether nothing is left.
    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        if self.at == self.end {
            self.gather(1)?;
        }
        Ok(self.at == self.end)
    }

    /// Reads until `n` bytes are at hand or the reader is at its end.
    fn gather(&mut self, n: usize) -> Result<()> {
        self.buf.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        if self.buf.len() < n {
            self.buf.resize(n, 0);
        }
        while self.end < n {
            let free = self.buf.get_mut(self.end..).unwrap_or_default();
            let got = match self.reader.read(free) {
                Ok(0) => break,
                Ok(got) => got.min(free.len()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(carried(e, "cannot read an LTX file")),
            };
            if let Some(sha) = &mut self.sha {
                sha.update(free.get(..got).unwrap_or_default());
            }
            self.end += got;
        }
        Ok(())
    }
}

/// The crate's own error if a reader or writer wrapped one in `io::Error` (a stream out of a store), else
/// `Kind::Io`.
pub(super) fn carried(e: io::Error, what: &str) -> Error {
    match e.downcast::<Error>() {
        Ok(own) => own,
        Err(e) => Error::new(Kind::Io, what).because(e),
    }
}
