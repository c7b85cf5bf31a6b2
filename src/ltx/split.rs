//! A large file on its way to several threads: cut between page frames in the order of its bytes, unpacked in any order.
//!
//! [`Splitter`] sees every byte once and in order, and does what must be done so: the sequence of pages, the page index that they imply,
//! the end of the file. [`Batch::unpack`] does what costs: LZ4, the file checksum over what was unpacked, page checksums. What each batch
//! gave is put together in order ([`Unpacked::append`]; a CRC of a whole is made of those of its parts), and [`Splitter::finish`] holds it
//! against the trailer. Together they check what [`super::Decoder`] checks, and nothing they gave is to be trusted before `finish` said yes.

use super::checksum::{Crc, page_checksum};
use super::decode::{Trailer, judge_trailer};
use super::frame::{PAGE_HEADER_LEN, frame_len, unpack_frame};
use super::header::{HEADER_LEN, Header};
use super::index::{ExpectedIndex, IndexEntry, TAIL_LEN};
use super::sequence::{Sequence, Shape};
use crate::base::{DbChecksum, Error, Kind, PageSize, Pgno, Result};
use bytes::Bytes;

/// Reads a file piece by piece, in order.
pub struct Splitter {
    state: State,
    /// What was seen of a header, frame or trailer that is not whole yet.
    carry: Vec<u8>,
    taken: u64,
}

enum State {
    Header,
    Pages(Box<Pages>),
    /// Behind the pages.
    Tail(Box<Tail>),
    Failed,
}

struct Pages {
    header: Header,
    head: Crc,
    sequence: Sequence,
    index: ExpectedIndex,
    /// Where the frame in `carry`, or else the next one, starts.
    offset: u64,
}

struct Tail {
    header: Header,
    head: Crc,
    pages: u32,
    /// From the end of the pages to the file checksum.
    crc: Crc,
    seen: Crc,
    expected: (u64, u64),
    left: u64,
}

/// Whole page frames that lie end to end.
pub struct Batch {
    page_size: PageSize,
    pieces: Vec<Bytes>,
}

/// Where unpacked pages go.
pub trait Sink {
    /// The place of page `pgno`, one page long.
    fn place(&mut self, pgno: Pgno) -> Result<&mut [u8]>;
    /// The page whose place was asked for is there.
    fn placed(&mut self, pgno: Pgno) -> Result<()>;
}

/// What is known of the pages of batches that follow one another.
#[derive(Clone, Debug, Default)]
pub struct Unpacked {
    /// As the file checksum counts them.
    crc: Crc,
    /// XOR of their [`DbChecksum::scramble`].
    pub scrambled: u64,
    /// XOR of their page checksums, as LTX's own database checksum has it.
    rolled: u64,
}

impl Unpacked {
    /// Adds the batch that comes next.
    pub fn append(&mut self, next: &Unpacked) {
        self.crc.append(&next.crc);
        self.scrambled ^= next.scrambled;
        self.rolled ^= next.rolled;
    }
}

impl Default for Splitter {
    fn default() -> Splitter {
        Splitter { state: State::Header, carry: Vec::new(), taken: 0 }
    }
}

impl Splitter {
    /// The header, once its bytes were seen.
    pub fn header(&self) -> Option<&Header> {
        match &self.state {
            State::Pages(p) => Some(&p.header),
            State::Tail(t) => Some(&t.header),
            State::Header | State::Failed => None,
        }
    }

    /// Takes the next bytes of the file, and gives the frames that are whole with them. Errors with `Kind::Corrupt`; only errors follow.
    pub fn push(&mut self, bytes: &Bytes) -> Result<Option<Batch>> {
        self.taken += bytes.len() as u64;
        let mut rest = bytes.clone();
        if matches!(self.state, State::Header) {
            if !self.gather(&mut rest, HEADER_LEN) {
                return Ok(None);
            }
            let start = std::mem::take(&mut self.carry);
            self.state = State::Failed;
            self.state = State::Pages(Box::new(Pages::new(&start)?));
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Pages(mut pages) => {
                let (batch, ended) = pages.cut(&mut rest, &mut self.carry)?;
                self.state = match ended {
                    false => State::Pages(pages),
                    true => {
                        let mut tail = Tail::new(*pages)?;
                        tail.take(rest, &mut self.carry)?;
                        State::Tail(Box::new(tail))
                    }
                };
                Ok(batch)
            }
            State::Tail(mut tail) => {
                tail.take(rest, &mut self.carry)?;
                self.state = State::Tail(tail);
                Ok(None)
            }
            _ => Err(Error::corrupt("this LTX file was found damaged before")),
        }
    }

    /// Moves bytes into `carry` until it has `n`; whether it has.
    fn gather(&mut self, rest: &mut Bytes, n: usize) -> bool {
        let more = n.saturating_sub(self.carry.len()).min(rest.len());
        self.carry.extend_from_slice(&rest.split_to(more));
        self.carry.len() >= n
    }

    /// Proves the file: nothing follows. `pages` is what all batches gave. Errors with `Kind::Corrupt`.
    pub fn finish(self, pages: &Unpacked) -> Result<(Header, Trailer)> {
        let tail = match self.state {
            State::Tail(tail) if tail.left == 0 && self.carry.len() == TAIL_LEN => tail,
            State::Failed => return Err(Error::corrupt("this LTX file was found damaged before")),
            State::Header => return Err(Error::corrupt("the file ends within its header")),
            State::Pages(_) => return Err(Error::corrupt("the file ends within its pages")),
            State::Tail(_) => return Err(Error::corrupt("the file ends within its page index or trailer")),
        };
        let parsed: &[u8; TAIL_LEN] =
            self.carry.first_chunk().ok_or_else(|| Error::new(Kind::Bug, "a trailer of another length"))?;
        let Tail { header, mut head, pages: count, crc, seen, expected, .. } = *tail;
        let (before, checksum) = parsed.split_at(TAIL_LEN - 8);
        let (size, post) = before.split_at(8);
        if seen.flagged() != expected.1 || size != expected.0.to_be_bytes() {
            return Err(Error::corrupt("the page index does not agree with the pages"));
        }
        head.append(&pages.crc);
        head.append(&crc);
        head.update(before);
        let number = |b: &[u8]| b.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        let sums = (DbChecksum::EMPTY.toggle_all(pages.scrambled), DbChecksum::EMPTY.roll(pages.rolled));
        let known = header.is_snapshot().then_some(sums);
        let post_apply = judge_trailer(&header, number(post), number(checksum), head.flagged(), known)?;
        let (checksum, bytes) = (number(checksum), self.taken);
        Ok((header, Trailer { post_apply, checksum, bytes, pages: count, sha256: None }))
    }
}

impl Pages {
    fn new(start: &[u8]) -> Result<Pages> {
        let bytes: &[u8; HEADER_LEN] =
            start.first_chunk().ok_or_else(|| Error::corrupt("the file ends within its header"))?;
        let header = Header::decode(bytes)?;
        let mut head = Crc::new();
        head.update(bytes);
        let sequence = Sequence::new(&header, Shape::Whole);
        Ok(Pages { header, head, sequence, index: ExpectedIndex::default(), offset: HEADER_LEN as u64 })
    }

    /// Cuts whole frames off the front of `rest`, which goes on where `carry` ends. Whether the pages end there; then `rest` is what
    /// follows them.
    fn cut(&mut self, rest: &mut Bytes, carry: &mut Vec<u8>) -> Result<(Option<Batch>, bool)> {
        let size = self.header.page_size;
        let mut pieces = Vec::new();
        let mut ended = false;
        while !carry.is_empty() && !ended {
            let (n, whole) = frame_len(carry, size)?;
            if n > carry.len() {
                let more = (n - carry.len()).min(rest.len());
                if more == 0 {
                    return Ok((None, false));
                }
                carry.extend_from_slice(&rest.split_to(more));
                continue;
            }
            ended = whole.is_none();
            let frame = std::mem::take(carry);
            if let Some(pgno) = whole {
                self.accept(pgno, n)?;
                pieces.push(Bytes::from(frame));
            }
        }
        let mut at = 0;
        let mut end = 0;
        while !ended {
            let seen = rest.get(at..).unwrap_or_default();
            let (n, whole) = frame_len(seen, size)?;
            if n > seen.len() {
                carry.extend_from_slice(seen);
                break;
            }
            match whole {
                None => (ended, end) = (true, n),
                Some(pgno) => {
                    self.accept(pgno, n)?;
                    at += n;
                }
            }
        }
        if at > 0 {
            pieces.push(rest.split_to(at));
        }
        drop(rest.split_to(end));
        let batch = (!pieces.is_empty()).then_some(Batch { page_size: size, pieces });
        Ok((batch, ended))
    }

    fn accept(&mut self, pgno: Pgno, len: usize) -> Result<()> {
        self.sequence.accept(pgno).map_err(Error::corrupt)?;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.index.add(&IndexEntry { pgno, offset: self.offset, len });
        self.offset += u64::from(len);
        Ok(())
    }
}

impl Tail {
    fn new(pages: Pages) -> Result<Tail> {
        pages.sequence.end().map_err(Error::corrupt)?;
        let mut crc = Crc::new();
        crc.update(&[0; PAGE_HEADER_LEN]);
        let expected = pages.index.end();
        let (header, head, count) = (pages.header, pages.head, pages.sequence.pages());
        Ok(Tail { header, head, pages: count, crc, seen: Crc::new(), expected, left: expected.0 })
    }

    /// The page index, then what `finish` judges.
    fn take(&mut self, mut rest: Bytes, carry: &mut Vec<u8>) -> Result<()> {
        let index = rest.split_to(usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len()));
        self.left -= index.len() as u64;
        self.seen.update(&index);
        self.crc.update(&index);
        if carry.len() + rest.len() > TAIL_LEN {
            return Err(Error::corrupt("bytes follow the end of the file"));
        }
        carry.extend_from_slice(&rest);
        Ok(())
    }
}

impl Batch {
    /// Page size of the database.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Unpacks each page into its place. Errors with `Kind::Corrupt`, or as `sink`.
    pub fn unpack(&self, sink: &mut impl Sink) -> Result<Unpacked> {
        let size = self.page_size;
        let mut all = Unpacked::default();
        for piece in &self.pieces {
            let mut rest: &[u8] = piece;
            while !rest.is_empty() {
                let (n, whole) = frame_len(rest, size)?;
                let (Some(pgno), Some((frame, after))) = (whole, rest.split_at_checked(n)) else {
                    return Err(Error::new(Kind::Bug, "a frame of a batch is not whole"));
                };
                rest = after;
                let page = sink.place(pgno)?;
                let hashed = unpack_frame(frame, page).map_err(|e| e.context(format!("page {pgno}")))?;
                all.crc.update(frame.get(..hashed).unwrap_or_default());
                all.crc.update(page);
                let sum = page_checksum(pgno, page);
                all.scrambled ^= DbChecksum::scramble(sum);
                all.rolled ^= sum;
                sink.placed(pgno)?;
            }
        }
        Ok(all)
    }
}
