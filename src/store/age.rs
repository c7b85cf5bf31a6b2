//! age files: what `encrypt` makes of a file before it is uploaded, and what comes out of one with an identity. The format and
//! its cryptography are the `age` crate's (<https://age-encryption.org/v1>).
//!
//! An age file is a header (the file's key, wrapped for each recipient, and a MAC), a nonce of 16 bytes, and chunks of 64 KiB,
//! each with a tag of its own, the last one marked as last. So a range needs the header and the chunks that cover it, and each chunk
//! proves itself and its place.

use crate::base::hex::Digest32;
use crate::base::{Error, Kind, Result};
use age::{DecryptError, Decryptor, Encryptor, IdentityFile, x25519};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Bytes of a chunk in the clear.
const CHUNK: u64 = 64 << 10;
/// The same in the age file: with its tag.
const SEALED_CHUNK: u64 = CHUNK + 16;
/// Bytes between the header and the first chunk.
const NONCE: usize = 16;
/// A header is no longer than this: some 500 recipients.
pub(super) const MOST_HEADER: u64 = 64 << 10;

/// For whom objects are encrypted: public keys, `age1…`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipients(Arc<[String]>);

impl Recipients {
    /// `None` of none. Errors with [`Kind::Config`] for one that is no public key.
    pub fn parse(all: &[String]) -> Result<Option<Recipients>> {
        for one in all {
            recipient(one)?;
        }
        Ok((!all.is_empty()).then(|| Recipients(all.into())))
    }

    /// Writes the age file of `from` to `to`, in bounded memory, and gives its size and SHA-256. Two of one file are never alike.
    /// Errors as reading and writing do.
    pub fn seal(&self, from: &Path, to: &mut dyn Write) -> Result<(u64, Digest32)> {
        let mut source = File::open(from).map_err(|e| Error::io("open", from, e))?;
        let mut sealing = self.sealing(to, &from.display().to_string())?;
        let mut piece = vec![0; CHUNK as usize];
        loop {
            let n = source.read(&mut piece).map_err(|e| Error::io("read", from, e))?;
            match piece.get(..n) {
                Some(read) if n > 0 => sealing.add(read)?,
                _ => return sealing.finish(),
            }
        }
    }

    /// An age file that is written to `to` piece by piece; `what` is encrypted, for errors.
    pub(super) fn sealing<W: Write>(&self, to: W, what: &str) -> Result<Sealing<W>> {
        let all = self.0.iter().map(|one| recipient(one)).collect::<Result<Vec<_>>>()?;
        let encryptor = Encryptor::with_recipients(all.iter().map(|r| r as &dyn age::Recipient))
            .map_err(|e| Error::new(Kind::Bug, format!("cannot encrypt {what}: {e}")))?;
        let summed = Summed { to, hash: Sha256::new(), bytes: 0 };
        let writer = encryptor.wrap_output(summed).map_err(|e| unencrypted(what, e))?;
        Ok(Sealing { writer, what: what.to_string() })
    }
}

fn unencrypted(what: &str, e: io::Error) -> Error {
    Error::new(Kind::Io, format!("cannot encrypt {what}")).because(e)
}

/// An age file on its way to `W`.
pub(super) struct Sealing<W: Write> {
    writer: age::stream::StreamWriter<Summed<W>>,
    what: String,
}

impl<W: Write> Sealing<W> {
    /// The next bytes in the clear. Errors as writing to `W` does.
    pub(super) fn add(&mut self, clear: &[u8]) -> Result<()> {
        self.writer.write_all(clear).map_err(|e| unencrypted(&self.what, e))
    }

    /// Its size and SHA-256. Errors as writing to `W` does.
    pub(super) fn finish(self) -> Result<(u64, Digest32)> {
        let summed = self.writer.finish().map_err(|e| unencrypted(&self.what, e))?;
        Ok((summed.bytes, summed.hash.finalize().into()))
    }
}

fn recipient(text: &str) -> Result<x25519::Recipient> {
    text.parse().map_err(|why| {
        // (Whoever pastes the wrong half of a key pair does not want to see it in a log.)
        let shown = if text.to_ascii_uppercase().contains("SECRET") { "a secret key" } else { text };
        Error::config(format!(
            "encrypt takes public keys of age (age1…, as age-keygen -y prints them), not {shown}: {why}"
        ))
    })
}

/// Counts and sums what passes.
struct Summed<W: Write> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hash.update(bytes.get(..n).unwrap_or_default());
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The identities in a file, which is read when the first encrypted object comes.
pub(super) struct Keys {
    path: PathBuf,
    loaded: OnceLock<Result<Vec<Box<dyn age::Identity + Send + Sync>>, String>>,
}

impl Keys {
    pub(super) fn of_file(path: impl Into<PathBuf>) -> Keys {
        Keys { path: path.into(), loaded: OnceLock::new() }
    }

    fn identities(&self) -> Result<&[Box<dyn age::Identity + Send + Sync>]> {
        let loaded = self.loaded.get_or_init(|| load(&self.path));
        loaded
            .as_deref()
            .map_err(|why| Error::config(format!("WALRUST_IDENTITY={}: {why}", self.path.display())))
    }

    /// The clear text of the chunks from number `first` on, which `chunks` are; `is_end`: they end where the file does. Errors with
    /// `Corrupt` where the key is not the file's, or a byte is not as it was.
    pub(super) fn open(
        &self,
        key: &str,
        head: &[u8],
        first: u64,
        chunks: &[u8],
        is_end: bool,
    ) -> Result<Vec<u8>> {
        let from = head.len() as u64 + first * SEALED_CHUNK;
        let all = Sparse { head, from, chunks, at: 0 };
        let identities = self.identities()?.iter().map(|i| i.as_ref() as &dyn age::Identity);
        let opened = Decryptor::new(all).and_then(|d| d.decrypt(identities));
        let mut stream = opened.map_err(|e| self.refused(key, &e))?;
        let mut clear = Vec::with_capacity(chunks.len());
        let read = (|| {
            if first > 0 {
                // (To the beginning of a chunk itself the stream goes by way of the last one, which is not here.)
                stream.seek(SeekFrom::Start(first * CHUNK + 1))?;
                stream.seek(SeekFrom::Start(first * CHUNK))?;
            }
            if is_end {
                return stream.read_to_end(&mut clear);
            }
            let whole = (chunks.len() as u64 / SEALED_CHUNK) * CHUNK;
            stream.by_ref().take(whole).read_to_end(&mut clear)
        })();
        read.map_err(|e| {
            Error::corrupt(format!(
                "{key}: its encryption does not hold: bytes were changed, moved or cut off ({e})"
            ))
        })?;
        Ok(clear)
    }

    fn refused(&self, key: &str, e: &DecryptError) -> Error {
        let path = self.path.display();
        Error::corrupt(match e {
            DecryptError::NoMatchingKeys => format!(
                "{key}: no identity in WALRUST_IDENTITY={path} opens it: it is encrypted for others, or its header is damaged"
            ),
            _ => format!(
                "{key}: it is encrypted, and its header is damaged ({})",
                super::text::one_line(&e.to_string())
            ),
        })
    }
}

fn load(path: &Path) -> Result<Vec<Box<dyn age::Identity + Send + Sync>>, String> {
    let file = File::open(path).map_err(|e| format!("cannot read the file: {e}"))?;
    let wrong = "it is no file of age identities (AGE-SECRET-KEY-1…, as age-keygen writes it)";
    // (What it says of a line may be the line.)
    let file = IdentityFile::from_buffer(BufReader::new(file)).map_err(|_| wrong.to_string())?;
    let all = file.into_identities().map_err(|_| wrong.to_string())?;
    if all.is_empty() { Err(wrong.to_string()) } else { Ok(all) }
}

/// How many bytes at the beginning of an age file come before its first chunk; `None` if `begin` does not reach so far.
pub(super) fn head_len(begin: &[u8]) -> Option<usize> {
    let mac = begin.windows(5).position(|w| w == b"\n--- ")?;
    let end = begin.get(mac + 1..)?.iter().position(|b| *b == b'\n')?;
    let len = mac + 1 + end + 1 + NONCE;
    (begin.len() >= len).then_some(len)
}

/// The bytes in the clear of an age file of `stored` bytes whose head has `head`.
pub(super) fn clear_len(stored: u64, head: usize) -> u64 {
    let payload = stored.saturating_sub(head as u64);
    payload.saturating_sub(payload.div_ceil(SEALED_CHUNK) * 16)
}

/// Which chunks a range in the clear lies in.
pub(super) fn chunks_of(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK..range.end.div_ceil(CHUNK)
}

/// Where a chunk begins in the clear.
pub(super) fn clear_start(chunk: u64) -> u64 {
    chunk * CHUNK
}

/// Where a chunk begins in the file.
pub(super) fn stored_start(chunk: u64, head: usize) -> u64 {
    head as u64 + chunk * SEALED_CHUNK
}

/// An age file of which the head and some chunks are here.
struct Sparse<'a> {
    head: &'a [u8],
    /// Where `chunks` lie.
    from: u64,
    chunks: &'a [u8],
    at: u64,
}

impl Read for Sparse<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let part = |of: &[u8], at: u64| -> usize { usize::try_from(at).unwrap_or(usize::MAX).min(of.len()) };
        let rest = if self.at < self.head.len() as u64 {
            self.head.get(part(self.head, self.at)..)
        } else if self.at >= self.from {
            self.chunks.get(part(self.chunks, self.at - self.from)..)
        } else {
            None
        };
        let n = rest.unwrap_or_default().read(into)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Sparse<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => (self.from + self.chunks.len() as u64).checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::sealed::is_sealed;
    use age::secrecy::ExposeSecret;

    fn pair(dir: &Path, name: &str) -> (Keys, String) {
        let identity = x25519::Identity::generate();
        let path = dir.join(name);
        std::fs::write(&path, identity.to_string().expose_secret()).unwrap();
        (Keys::of_file(path), identity.to_public().to_string())
    }

    fn sealed(dir: &Path, to: &str, clear: &[u8]) -> Vec<u8> {
        let path = dir.join("clear");
        std::fs::write(&path, clear).unwrap();
        let mut out = Vec::new();
        let (bytes, sha) =
            Recipients::parse(&[to.to_string()]).unwrap().unwrap().seal(&path, &mut out).unwrap();
        assert_eq!((bytes, sha), (out.len() as u64, <[u8; 32]>::from(Sha256::digest(&out))));
        out
    }

    #[test]
    fn ranges_of_an_age_file_open_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, public) = pair(dir.path(), "k");
        let (others, _) = pair(dir.path(), "o");
        for len in [1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5] {
            let clear: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
            let all = sealed(dir.path(), &public, &clear);
            assert!(is_sealed(&all));
            let head = head_len(&all).unwrap();
            assert_eq!(clear_len(all.len() as u64, head), len);
            let (head, payload) = all.split_at(head);
            let chunks: Vec<&[u8]> = payload.chunks(SEALED_CHUNK as usize).collect();
            for first in 0..chunks.len() {
                for end in first + 1..=chunks.len() {
                    let is_end = end == chunks.len();
                    let some = chunks[first..end].concat();
                    let got = keys.open("x", head, first as u64, &some, is_end).unwrap();
                    let to = if is_end { clear.len() } else { end * CHUNK as usize };
                    assert!(got == clear[first * CHUNK as usize..to], "{len}: {first}..{end}");
                    assert!(others.open("x", head, first as u64, &some, is_end).unwrap_err().is_corrupt());
                }
            }
            if chunks.len() > 2 {
                let swapped = [chunks[1], chunks[0], chunks[2]].concat();
                assert!(keys.open("x", head, 0, &swapped, false).unwrap_err().is_corrupt(), "{len}: moved");
                let cut = chunks[..chunks.len() - 1].concat();
                assert!(keys.open("x", head, 0, &cut, true).unwrap_err().is_corrupt(), "{len}: cut off");
            }
            for at in [0, 30, head.len() / 2, head.len() - 1, head.len(), all.len() - 1] {
                let mut bad = all.clone();
                bad[at] ^= 1;
                let (head, payload) = bad.split_at(head.len());
                assert!(keys.open("x", head, 0, payload, true).unwrap_err().is_corrupt(), "{len}: byte {at}");
            }
        }
    }

    #[test]
    fn what_is_no_key_is_said_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let e = Recipients::parse(&["AGE-SECRET-KEY-1QQQ".into()]).unwrap_err().to_string();
        assert!(e.contains("age1…") && !e.contains("1QQQ"), "{e}");
        std::fs::write(dir.path().join("bad"), "AGE-SECRET-KEY-1QQQ\n").unwrap();
        for name in ["bad", "absent"] {
            let e = Keys::of_file(dir.path().join(name)).open("x", b"", 0, b"", true).unwrap_err();
            assert!(e.kind() == Kind::Config && e.to_string().contains("WALRUST_IDENTITY"), "{e}");
            assert!(!e.to_string().contains("1QQQ"), "{e}");
        }
        assert_eq!(Recipients::parse(&[]).unwrap(), None);
    }
}
