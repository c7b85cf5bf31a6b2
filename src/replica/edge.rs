//! The edge of an LTX file: all of it that is not pages. Its checksum is what a ranged read can prove of a file.

use crate::base::{Error, Kind, Result};
use crate::ltx::{Crc, HEADER_LEN, TAIL_LEN, Tail};
use std::io::{Read, Seek, SeekFrom};

/// Zero bytes between the pages and the page index.
pub(super) const END_OF_PAGES: u64 = 6;
/// Smallest LTX file: no pages, an index of one byte.
pub(super) const SMALLEST: u64 = HEADER_LEN as u64 + END_OF_PAGES + 1 + TAIL_LEN as u64;

/// The checksum of these parts.
pub(super) fn edge(head: &[u8; HEADER_LEN], edges: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(head);
    crc.update(edges);
    (crc.flagged() & 0xffff_ffff) as u32
}

/// The low 32 bits of the CRC-64 of all bytes of an LTX file that are not page frames: header, the zero bytes after the pages,
/// page index, trailer. Reads only those.
pub fn edge_of<R: Read + Seek>(file: &mut R) -> Result<u32> {
    let io = |e: std::io::Error| Error::new(Kind::Io, "cannot read an LTX file").because(e);
    let size = file.seek(SeekFrom::End(0)).map_err(io)?;
    if size < SMALLEST {
        return Err(Error::corrupt(format!("{size} bytes are too few for an LTX file")));
    }
    let mut head = [0; HEADER_LEN];
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut head)).map_err(io)?;
    let mut last = [0; TAIL_LEN];
    file.seek(SeekFrom::End(-(TAIL_LEN as i64))).and_then(|_| file.read_exact(&mut last)).map_err(io)?;
    let start = Tail::parse(&last)?.index_range(size)?.start - END_OF_PAGES;
    let mut edges = Vec::new();
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut edges)).map_err(io)?;
    Ok(edge(&head, &edges))
}
