//! Tests of the LTX room: the reference library's files, round trips, a naive model of merging, and hostile
//! bytes.

mod damage;
mod merging;
mod round_trip;
mod split;
mod strict;
mod vectors;

use super::*;
use crate::base::{DbChecksum, Lineage, PageSize, Pgno, Result, Timestamp, TxId};
use std::collections::BTreeMap;

/// A database as page number → content, without the lock page.
pub(super) type Pages = BTreeMap<u32, Vec<u8>>;

pub(super) fn pgno(n: u32) -> Pgno {
    Pgno::new(n).unwrap()
}

pub(super) fn size(n: u32) -> PageSize {
    PageSize::new(n).unwrap()
}

pub(super) fn header(page_size: u32, commit: u32, min: u64, max: u64) -> Header {
    Header::new(size(page_size), commit, TxId(min), TxId(max), Timestamp(1_700_000_000_000 + max as i64))
}

pub(super) fn db_checksum(pages: &Pages) -> DbChecksum {
    pages.iter().fold(DbChecksum::EMPTY, |sum, (n, page)| sum.toggle(page_checksum(pgno(*n), page)))
}

pub(super) fn encode(header: &Header, pages: &Pages) -> Result<Vec<u8>> {
    encode_shape(header, pages, Shape::Whole)
}

pub(super) fn encode_shape(header: &Header, pages: &Pages, shape: Shape) -> Result<Vec<u8>> {
    let mut encoder = match shape {
        Shape::Whole => Encoder::new(Vec::new(), header.clone())?,
        Shape::Piece => Encoder::piece(Vec::new(), header.clone(), Packing::Literal)?,
    };
    for (n, page) in pages {
        encoder.page(pgno(*n), page)?;
    }
    let (summary, bytes) = encoder.finish()?;
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(summary.pages as usize, pages.len());
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Header, Pages, Trailer)> {
    let mut decoder = Decoder::new(bytes)?;
    let header = decoder.header().clone();
    let mut page = vec![0; header.page_size.len()];
    let mut pages = Pages::new();
    while let Some(n) = decoder.next_page(&mut page)? {
        pages.insert(n.get(), page.clone());
    }
    Ok((header, pages, decoder.finish()?))
}

/// The page index of a whole file, read the way a ranged reader does.
pub(super) fn index_of(bytes: &[u8]) -> Result<PageIndex> {
    let header = Header::decode(bytes.first_chunk().unwrap())?;
    let tail = Tail::parse(bytes)?;
    let range = tail.index_range(bytes.len() as u64)?;
    let index = &bytes[range.start as usize..range.end as usize];
    assert_eq!(tail.index_in(bytes), Some(index));
    PageIndex::parse_for(index, bytes.len() as u64, &header)
}

/// Content that differs by seed: half of it compressible, half not.
pub(super) fn content(page_size: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut page = vec![seed as u8; page_size];
    if seed.is_multiple_of(2) {
        for byte in &mut page[page_size / 2..] {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *byte = x as u8;
        }
    }
    page
}

/// An LTX file put together by hand, so that one thing in it can be wrong while its file checksum is right.
#[derive(Clone)]
pub(super) struct Raw {
    pub header: Vec<u8>,
    /// Stored page header (with the length of a block), payload, and the page it stands for.
    pub frames: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>,
    pub index: Option<Vec<u8>>,
    pub index_len: Option<u64>,
    pub post: u64,
}

impl Raw {
    pub fn new(header: &Header) -> Raw {
        let header = header.encode().unwrap().to_vec();
        Raw { header, frames: Vec::new(), index: None, index_len: None, post: 0 }
    }

    pub fn block(mut self, n: u32, page: &[u8]) -> Raw {
        let payload = lz4_flex::block::compress(page);
        let mut head = n.to_be_bytes().to_vec();
        head.extend([0, 1]);
        head.extend((payload.len() as u32).to_be_bytes());
        self.frames.push((head, payload, page.to_vec()));
        self
    }

    pub fn lz4_frame(mut self, n: u32, page: &[u8]) -> Raw {
        let mut head = n.to_be_bytes().to_vec();
        head.extend([0, 0]);
        self.frames.push((head, lz4_frame(page, true), page.to_vec()));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut crc = Crc::new();
        let mut out = self.header.clone();
        crc.update(&self.header);
        let mut index = Vec::new();
        for (head, payload, page) in &self.frames {
            for n in [
                u64::from(u32::from_be_bytes(*head.first_chunk().unwrap())),
                out.len() as u64,
                (head.len() + payload.len()) as u64,
            ] {
                varint(&mut index, n);
            }
            crc.update(head);
            crc.update(page);
            out.extend(head);
            out.extend(payload);
        }
        index.push(0);
        let index = self.index.clone().unwrap_or(index);
        let index_len = self.index_len.unwrap_or(index.len() as u64);
        let mut end = vec![0; 6];
        end.extend(&index);
        end.extend(index_len.to_be_bytes());
        end.extend(self.post.to_be_bytes());
        crc.update(&end);
        out.extend(&end);
        out.extend(crc.flagged().to_be_bytes());
        out
    }
}

pub(super) fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(super) fn lz4_frame(page: &[u8], content_checksum: bool) -> Vec<u8> {
    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
    use std::io::Write;
    let info = FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(content_checksum);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(page).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn lineage() -> Lineage {
    Lineage(0x1122_3344_5566_7788)
}
