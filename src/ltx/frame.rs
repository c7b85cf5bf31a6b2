//! One page as stored: a 6-byte page header, then an LZ4 block with its length ("v3-block", which we write),
//! or an LZ4 frame ("v3-frame", Litestream up to 0.5.15, which we read).

use super::source::Source;
use crate::base::{Error, PageSize, Pgno, Result};
use lz4_flex::block::decompress_into;
use lz4_flex::frame::FrameDecoder;
use std::io::Read;

/// Page number and flags.
pub(super) const PAGE_HEADER_LEN: usize = 6;
/// Page number, flags and payload length.
pub(super) const BLOCK_HEADER_LEN: usize = 10;
const FLAG_BLOCK: u16 = 1;

/// The longest LZ4 block that a page of `n` bytes may become: LZ4's own bound
/// (<https://github.com/lz4/lz4/blob/dev/lib/lz4.h>, `LZ4_COMPRESSBOUND`).
pub(super) fn block_bound(page_size: PageSize) -> usize {
    page_size.len() + page_size.len() / 255 + 16
}

/// The longest page frame of either form.
pub(super) fn frame_bound(page_size: PageSize) -> usize {
    // An LZ4 frame around a block adds at most 19 bytes of header, two block lengths, two checksums.
    PAGE_HEADER_LEN + block_bound(page_size) + 64
}

/// The 10 bytes in front of an LZ4 block.
pub(super) fn block_header(pgno: Pgno, payload: u32) -> [u8; BLOCK_HEADER_LEN] {
    let [a, b, c, d] = pgno.get().to_be_bytes();
    let [e, f] = FLAG_BLOCK.to_be_bytes();
    let [g, h, i, j] = payload.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j]
}

/// What stands before the `n` literals (15 or more) of an LZ4 block that is nothing else: a token, then what `n`
/// is above 15, in bytes of 255 (<https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>).
pub(super) fn literal_prefix(n: usize) -> Vec<u8> {
    let more = n.saturating_sub(15);
    let mut prefix = vec![0xf0];
    prefix.resize(1 + more / 255, 255);
    prefix.push((more % 255) as u8);
    prefix
}

/// How the page that follows a page header is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Block,
    Lz4Frame,
}

/// How the page last read was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stored {
    /// As an LZ4 block of this length: the bytes last taken from the source.
    Block(usize),
    /// In a form that we do not write.
    Otherwise,
}

/// Splits a page header. `None` is the end of the page block.
pub(super) fn page_header(bytes: [u8; PAGE_HEADER_LEN]) -> Result<Option<(Pgno, Form)>> {
    let [a, b, c, d, e, f] = bytes;
    let flags = u16::from_be_bytes([e, f]);
    match (Pgno::new(u32::from_be_bytes([a, b, c, d])), flags) {
        (None, 0) => Ok(None),
        (None, _) => Err(Error::corrupt(format!("page 0 has flags {flags:#x}"))),
        (Some(pgno), 0) => Ok(Some((pgno, Form::Lz4Frame))),
        (Some(pgno), FLAG_BLOCK) => Ok(Some((pgno, Form::Block))),
        (Some(pgno), _) => Err(Error::corrupt(format!("page {pgno} has unknown flags {flags:#x}"))),
    }
}

/// Reads what follows a page header from `source` into `page`. `hash` gets the stored bytes that the file
/// checksum covers beyond the page header: the payload length of a block, nothing of a frame.
pub(super) fn read_payload<R: Read>(
    source: &mut Source<R>,
    form: Form,
    page: &mut [u8],
    page_size: PageSize,
    scratch: &mut Vec<u8>,
    mut hash: impl FnMut(&[u8]),
) -> Result<Stored> {
    match form {
        Form::Block => {
            let size: [u8; 4] = source.array("a page's length")?;
            hash(&size);
            let n = payload_len(size, page_size)?;
            decode_block(source.take(n, "a page")?, page)?;
            Ok(Stored::Block(n))
        }
        Form::Lz4Frame => {
            scratch.clear();
            loop {
                let more = frame_needs(scratch, page_size)?;
                if more == 0 {
                    break;
                }
                scratch.extend_from_slice(source.take(more, "a page")?);
            }
            decode_lz4_frame(scratch, page)?;
            Ok(Stored::Otherwise)
        }
    }
}

/// The page number of the frame at the beginning of `bytes`, and its length, header included. Errors with `Corrupt` where no LZ4 block of a
/// possible length begins there.
pub fn frame_head(bytes: &[u8], page_size: PageSize) -> Result<(Pgno, usize)> {
    let short = || Error::corrupt("a page frame is cut short");
    let (head, rest) = bytes.split_first_chunk::<PAGE_HEADER_LEN>().ok_or_else(short)?;
    let size = rest.first_chunk::<4>().ok_or_else(short)?;
    match page_header(*head)? {
        Some((pgno, Form::Block)) => Ok((pgno, BLOCK_HEADER_LEN + payload_len(*size, page_size)?)),
        _ => Err(Error::corrupt("no LZ4 block begins where one should")),
    }
}

/// Decodes one page frame out of its exact bytes (as a page index names them) into `page`, which is one
/// page long. Only the page's length is proved here: the file checksum cannot be checked on one frame.
pub fn decode_frame(bytes: &[u8], page_size: PageSize, page: &mut [u8]) -> Result<Pgno> {
    if page.len() != page_size.len() {
        return Err(Error::corrupt(format!(
            "a page of {} bytes was asked for, not {}",
            page.len(),
            page_size.len()
        )));
    }
    let short = || Error::corrupt("a page frame is cut short");
    let (head, rest) = bytes.split_first_chunk::<PAGE_HEADER_LEN>().ok_or_else(short)?;
    let Some((pgno, form)) = page_header(*head)? else {
        return Err(Error::corrupt("a page frame has page number 0"));
    };
    match form {
        Form::Block => {
            let (size, payload) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            if payload_len(*size, page_size)? != payload.len() {
                return Err(Error::corrupt(format!("the frame of page {pgno} is not as long as it says")));
            }
            decode_block(payload, page)?;
        }
        Form::Lz4Frame => {
            let mut seen = 0;
            loop {
                match frame_needs(rest.get(..seen).ok_or_else(short)?, page_size)? {
                    0 => break,
                    more => seen += more,
                }
            }
            if seen != rest.len() {
                return Err(Error::corrupt(format!("bytes follow the frame of page {pgno}")));
            }
            decode_lz4_frame(rest, page)?;
        }
    }
    Ok(pgno)
}

fn payload_len(size: [u8; 4], page_size: PageSize) -> Result<usize> {
    let n = u32::from_be_bytes(size) as usize;
    if n == 0 || n > block_bound(page_size) {
        return Err(Error::corrupt(format!(
            "a page's payload of {n} bytes is not 1 to {}",
            block_bound(page_size)
        )));
    }
    Ok(n)
}

fn decode_block(payload: &[u8], page: &mut [u8]) -> Result<()> {
    match decompress_into(payload, page) {
        Ok(n) if n == page.len() => Ok(()),
        Ok(n) => Err(Error::corrupt(format!("a page unpacks to {n} bytes, not {}", page.len()))),
        Err(e) => Err(Error::corrupt("a page does not unpack").because(e)),
    }
}

/// How long the frame is with which `seen` begins, page header included, and its page; `None`: it is the end of the pages. Where more bytes
/// must be seen to tell, that many, which is more than there are.
pub(super) fn frame_len(seen: &[u8], page_size: PageSize) -> Result<(usize, Option<Pgno>)> {
    let Some((head, rest)) = seen.split_first_chunk::<PAGE_HEADER_LEN>() else {
        return Ok((PAGE_HEADER_LEN, None));
    };
    let Some((pgno, form)) = page_header(*head)? else { return Ok((PAGE_HEADER_LEN, None)) };
    let len = match (form, rest.first_chunk::<4>()) {
        (Form::Block, None) => BLOCK_HEADER_LEN,
        (Form::Block, Some(size)) => BLOCK_HEADER_LEN + payload_len(*size, page_size)?,
        (Form::Lz4Frame, _) => PAGE_HEADER_LEN + lz4_frame_len(rest, page_size)?,
    };
    Ok((len, Some(pgno)))
}

/// Unpacks a frame of the length that [`frame_len`] gave. How many of its bytes the file checksum covers as they are.
pub(super) fn unpack_frame(frame: &[u8], page: &mut [u8]) -> Result<usize> {
    let short = || Error::corrupt("a page frame is cut short");
    let (head, rest) = frame.split_first_chunk::<PAGE_HEADER_LEN>().ok_or_else(short)?;
    match page_header(*head)? {
        Some((_, Form::Block)) => {
            decode_block(rest.get(4..).ok_or_else(short)?, page)?;
            Ok(BLOCK_HEADER_LEN)
        }
        Some((_, Form::Lz4Frame)) => {
            decode_lz4_frame(rest, page)?;
            Ok(PAGE_HEADER_LEN)
        }
        None => Err(Error::corrupt("a page frame has page number 0")),
    }
}

/// How many bytes an LZ4 frame needs beyond those `seen`: 0 when it is complete.
fn frame_needs(seen: &[u8], page_size: PageSize) -> Result<usize> {
    Ok(lz4_frame_len(seen, page_size)?.saturating_sub(seen.len()))
}

/// How long an LZ4 frame is, as far as those bytes `seen` tell. Judges the frame header
/// and the block lengths, so that neither we nor the LZ4 library allocate by what a file says.
///
/// Accepted: what Litestream wrote, and its free variations: version 1, content checksum (0.5.17 insists on
/// it), no dictionary, 64 KiB blocks, with or without block checksums, content size and block linking.
/// Source: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.
fn lz4_frame_len(seen: &[u8], page_size: PageSize) -> Result<usize> {
    const SHORTEST: usize = 7;
    let bad = |why: &str| Err(Error::corrupt(format!("a page's LZ4 frame {why}")));
    let Some(([m0, m1, m2, m3, flg, bd, _], _)) = seen.split_first_chunk::<SHORTEST>() else {
        return Ok(SHORTEST);
    };
    if [*m0, *m1, *m2, *m3] != [0x04, 0x22, 0x4d, 0x18] {
        return bad("does not start with LZ4's magic number");
    }
    let (version, block_checksum, content_size) = (flg >> 6, flg & 0x10 != 0, flg & 0x08 != 0);
    let (content_checksum, reserved, dictionary) = (flg & 0x04 != 0, flg & 0x02 != 0, flg & 0x01 != 0);
    if version != 1 || reserved || dictionary {
        return bad("has an unknown form");
    }
    if !content_checksum {
        return bad("has no content checksum");
    }
    if *bd != 0x40 {
        return bad("has blocks of other than 64 KiB");
    }
    let mut at = SHORTEST + if content_size { 8 } else { 0 };
    loop {
        let Some(size) = seen.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
            return Ok(at + 4);
        };
        let size = (u32::from_le_bytes(*size) & 0x7fff_ffff) as usize;
        if size == 0 {
            return Ok(at + 8);
        }
        at += 4;
        if size > block_bound(page_size) {
            return bad("has a block longer than a page can need");
        }
        at += size + if block_checksum { 4 } else { 0 };
        if at + 8 > frame_bound(page_size) - PAGE_HEADER_LEN {
            return bad("is longer than a page can need");
        }
    }
}

/// Decodes a complete LZ4 frame; it must hold exactly one page.
fn decode_lz4_frame(frame: &[u8], page: &mut [u8]) -> Result<()> {
    let mut rest = frame;
    let mut decoder = FrameDecoder::new(&mut rest);
    let bad = |e: std::io::Error| Error::corrupt("a page's LZ4 frame does not unpack").because(e);
    decoder.read_exact(page).map_err(bad)?;
    // Only the read after the last byte takes in end mark and checksum.
    if decoder.read(&mut [0]).map_err(bad)? != 0 {
        return Err(Error::corrupt(format!("a page unpacks to more than {} bytes", page.len())));
    }
    if !rest.is_empty() {
        return Err(Error::corrupt("bytes follow a page's LZ4 frame"));
    }
    Ok(())
}
