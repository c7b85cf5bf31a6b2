//! Joining files: neighbours in TXID order into one ([`merge`]), or the parts of one TXID into one
//! ([`fold`]).
//!
//! Newest wins, page by page. A page is dropped if any input from its own onward leaves the database
//! smaller: merging 8 → 5 → 8 pages in one go must not bring page 7 back with what it held before the
//! shrink. All inputs stream side by side; none is held.

use super::decode::Decoder;
use super::encode::{Encoder, Summary};
use super::header::{Attest, Header, WalRange};
use super::sequence::Shape;
use crate::base::{DbChecksum, Error, Kind, Lineage, Pgno, Result, Timestamp};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

/// What the output's header says differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// Instead of the last input's.
    pub timestamp: Option<Timestamp>,
    /// Instead of none ([`merge`]) or the joined range ([`fold`]).
    pub wal: Option<WalRange>,
}

/// Merges `inputs`, oldest first, into one file on `writer`.
///
/// The TXID ranges must join: each starts at most one after the end of the one before, and ends later.
/// Inputs that attest database checksums must follow one another; an input that needs nothing before it
/// (I-LTX-6) may break the chain, and is then held to having every page. If all inputs attest, so does the
/// output. The lineage is kept if all share it.
///
/// Every input is read to its end and proved. Errors: `Kind::Corrupt` if one is damaged, if they do not
/// join, or if one grows the database without holding the new pages. After an error what was written is no
/// LTX file and is to be removed.
pub fn merge<R: Read, W: Write>(inputs: Vec<R>, overrides: Overrides, writer: W) -> Result<Summary> {
    join(inputs, Shape::Whole, overrides, writer)
}

/// Folds the parts of one TXID, oldest first, into one file on `writer`: all have the same min = max TXID
/// and cover WAL ranges that follow one another. As [`merge`], except that the output carries the joined
/// WAL range.
pub fn fold<R: Read, W: Write>(inputs: Vec<R>, overrides: Overrides, writer: W) -> Result<Summary> {
    join(inputs, Shape::Piece, overrides, writer)
}

fn join<R: Read, W: Write>(inputs: Vec<R>, shape: Shape, overrides: Overrides, writer: W) -> Result<Summary> {
    let mut readers = Vec::with_capacity(inputs.len());
    for input in inputs {
        let decoder = Decoder::with_shape(input, shape)
            .map_err(|e| e.context(format!("input {} of a merge", readers.len() + 1)))?;
        readers.push(Input::new(decoder));
    }
    let headers: Vec<&Header> = readers.iter().map(|r| r.decoder.header()).collect();
    let mut header = match shape {
        Shape::Whole => merged_header(&headers)?,
        Shape::Piece => folded_header(&headers)?,
    };
    let breaks = chain_breaks(&headers)?;
    let limits = suffix_minima(&headers);
    let before: Vec<u32> = std::iter::once(0).chain(headers.iter().map(|h| h.commit)).collect();
    for (reader, commit) in readers.iter_mut().zip(before) {
        reader.expect_growth_from(commit);
    }
    if header.commit == 0 {
        return Err(Error::corrupt("a merge that ends with a database of 0 pages cannot be written"));
    }
    header.timestamp = overrides.timestamp.unwrap_or(header.timestamp);
    header.wal = overrides.wal.or(header.wal);

    let mut encoder = Encoder::new(writer, header)?;
    merge_pages(&mut readers, &limits, &mut encoder)?;
    for (i, reader) in readers.into_iter().enumerate() {
        reader.finish(i > 0, breaks.contains(&i))?;
    }
    Ok(encoder.finish()?.0)
}

fn merge_pages<R: Read, W: Write>(
    readers: &mut [Input<R>],
    limits: &[u32],
    encoder: &mut Encoder<W>,
) -> Result<()> {
    // Smallest page first, of one page the newest input first.
    let mut heap = BinaryHeap::with_capacity(readers.len());
    for (i, reader) in readers.iter_mut().enumerate() {
        if let Some(pgno) = reader.advance()? {
            heap.push((Reverse(pgno), i));
        }
    }
    let mut done: Option<Pgno> = None;
    while let Some((Reverse(pgno), i)) = heap.pop() {
        let (Some(reader), Some(limit)) = (readers.get_mut(i), limits.get(i)) else { continue };
        if done != Some(pgno) && pgno.get() <= *limit {
            // Repacking a packed page would give the same again, for most of the merge's time.
            match reader.decoder.block() {
                Some(block) if block.len() < reader.page.len() => {
                    encoder.packed_page(pgno, &reader.page, block)?;
                }
                _ => encoder.page(pgno, &reader.page)?,
            }
        }
        done = Some(pgno);
        if let Some(next) = reader.advance()? {
            heap.push((Reverse(next), i));
        }
    }
    Ok(())
}

/// One input and the page it stands at.
struct Input<R> {
    decoder: Decoder<R>,
    page: Vec<u8>,
    grown_from: u32,
    grown_pages: u32,
}

impl<R: Read> Input<R> {
    fn new(decoder: Decoder<R>) -> Input<R> {
        let page = vec![0; decoder.header().page_size.len()];
        Input { decoder, page, grown_from: 0, grown_pages: 0 }
    }

    fn expect_growth_from(&mut self, commit: u32) {
        self.grown_from = commit;
    }

    fn name(&self) -> String {
        self.decoder.header().file_name().to_string()
    }

    fn advance(&mut self) -> Result<Option<Pgno>> {
        let pgno = self.decoder.next_page(&mut self.page).map_err(|e| e.context(self.name()))?;
        if let Some(pgno) = pgno
            && pgno.get() > self.grown_from
        {
            self.grown_pages += 1;
        }
        Ok(pgno)
    }

    /// Proves the file; that it holds every page by which it grows the database; and that it is full if it
    /// must be.
    fn finish(self, has_before: bool, must_be_full: bool) -> Result<()> {
        let name = self.name();
        let header = self.decoder.header().clone();
        let trailer = self.decoder.finish().map_err(|e| e.context(&name))?;
        let lock = header.page_size.lock_page().get();
        let lock_within = self.grown_from < lock && lock <= header.commit;
        let growth = header.commit.saturating_sub(self.grown_from) - u32::from(lock_within);
        if has_before && self.grown_pages < growth {
            return Err(Error::corrupt(format!(
                "{name}: it grows the database from {} to {} pages but lacks {} of the new pages",
                self.grown_from,
                header.commit,
                growth - self.grown_pages
            )));
        }
        if must_be_full && trailer.pages != header.full_pages() {
            return Err(Error::corrupt(format!(
                "{name}: it continues nothing, but holds {} of {} pages",
                trailer.pages,
                header.full_pages()
            )));
        }
        Ok(())
    }
}

/// Of each input, the highest page that it can contribute: the smallest `commit` from it onward.
fn suffix_minima(headers: &[&Header]) -> Vec<u32> {
    let mut limits: Vec<u32> = headers.iter().map(|h| h.commit).collect();
    let mut least = u32::MAX;
    for limit in limits.iter_mut().rev() {
        least = least.min(*limit);
        *limit = least;
    }
    limits
}

fn ends<'a>(headers: &[&'a Header]) -> Result<(&'a Header, &'a Header)> {
    match (headers.first(), headers.last()) {
        (Some(first), Some(last)) => Ok((first, last)),
        _ => Err(Error::new(Kind::Bug, "a merge needs at least one input")),
    }
}

fn merged_header(headers: &[&Header]) -> Result<Header> {
    let (first, last) = ends(headers)?;
    for (a, b) in headers.iter().zip(headers.iter().skip(1)) {
        if a.page_size != b.page_size {
            return Err(unjoined(a, b, "their page sizes differ"));
        }
        if b.min > a.max.next() {
            return Err(unjoined(a, b, "TXIDs between them are missing"));
        }
        if b.max <= a.max {
            return Err(unjoined(a, b, "the second reaches no further than the first"));
        }
    }
    let mut header = Header::new(last.page_size, last.commit, first.min, last.max, last.timestamp);
    header.lineage = common_lineage(headers);
    header.attest = joined_attest(headers);
    Ok(header)
}

fn folded_header(headers: &[&Header]) -> Result<Header> {
    let (first, last) = ends(headers)?;
    if first.min != first.max {
        return Err(Error::corrupt(format!("{}: a part covers more than one TXID", first.file_name())));
    }
    for (a, b) in headers.iter().zip(headers.iter().skip(1)) {
        if a.page_size != b.page_size {
            return Err(unjoined(a, b, "their page sizes differ"));
        }
        if (a.min, a.max) != (b.min, b.max) {
            return Err(unjoined(a, b, "they are not parts of one TXID"));
        }
    }
    let mut header = Header::new(last.page_size, last.commit, first.min, last.max, last.timestamp);
    header.lineage = common_lineage(headers);
    header.attest = joined_attest(headers);
    header.wal = headers.iter().filter_map(|h| h.wal).reduce(joined_range);
    Ok(header)
}

fn joined_range(a: WalRange, b: WalRange) -> WalRange {
    let adjacent = (a.salt1, a.salt2) == (b.salt1, b.salt2) && a.offset.checked_add(a.size) == Some(b.offset);
    if adjacent { WalRange { size: a.size + b.size, ..a } } else { b }
}

fn common_lineage(headers: &[&Header]) -> Lineage {
    let mut all = headers.iter().map(|h| h.lineage);
    let last = all.next_back().unwrap_or_default();
    if all.all(|l| l == last) { last } else { Lineage(0) }
}

fn joined_attest(headers: &[&Header]) -> Option<Attest> {
    let all: Option<Vec<Attest>> = headers.iter().map(|h| h.attest).collect();
    let all = all?;
    Some(Attest { before: all.first()?.before, after: all.last()?.after })
}

/// Which inputs do not continue the one before them, by what both attest, but need nothing before them
/// (I-LTX-6). Errors if one does need it. Where TXID ranges overlap the attested states are of different
/// moments and say nothing about each other.
fn chain_breaks(headers: &[&Header]) -> Result<Vec<usize>> {
    let mut breaks = Vec::new();
    for (i, (a, b)) in headers.iter().zip(headers.iter().skip(1)).enumerate() {
        let (Some(x), Some(y)) = (a.attest, b.attest) else { continue };
        let neighbours = b.min == a.max.next() || (b.min, b.max) == (a.min, a.max);
        if !neighbours || x.after == y.before {
            continue;
        }
        if y.before != DbChecksum::EMPTY {
            return Err(unjoined(
                a,
                b,
                format!("one ends at database checksum {}, the next starts at {}", x.after, y.before),
            ));
        }
        breaks.push(i + 1);
    }
    Ok(breaks)
}

fn unjoined(a: &Header, b: &Header, why: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("{} and {} cannot be merged: {why}", a.file_name(), b.file_name()))
}
