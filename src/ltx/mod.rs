//! The LTX file format, version 3, as Litestream 0.5 reads and writes it: bytes ↔ values, over `Read` and
//! `Write`.
//!
//! Source: <https://github.com/superfly/ltx> and the behaviour of Litestream 0.5.15 and 0.5.17. Big-endian
//! throughout (LZ4 frames excepted):
//!
//! ```text
//! header 100 B | page frames | 6 zero bytes | page index | u64 index size | post-apply u64 | file checksum u64
//! ```
//!
//! Rules:
//! * I-LTX-1  We write pages as LZ4 blocks ("v3-block"), flags = 2 (NoChecksum), pre- and post-apply 0: the
//!   only form that `litestream restore` takes whole chains of. We read LZ4 blocks and LZ4 frames.
//! * I-LTX-2  Pages ascend strictly, none is 0, above `commit`, or the lock page; a file with min TXID 1 is
//!   a snapshot and holds every other page from 1 to `commit`.
//! * I-LTX-3  A reader checks everything the bytes allow: lengths before use, the page index against the
//!   frames, the file checksum, the database checksum of a snapshot, and that nothing follows. Nothing it
//!   returned is to be trusted before [`Decoder::finish`] said yes.
//! * I-LTX-4  No length read from a file decides an allocation. A reader needs O(1) memory, a writer two or
//!   three bytes a page (for the page index, which comes last), a merge O(inputs).
//! * I-LTX-5  The database checksum before and after travels in the 20 reserved header bytes ([`Attest`]);
//!   the lineage in the node id. Litestream ignores both, its file checksum covers both.
//! * I-LTX-6  `attest.before == DbChecksum::EMPTY` says: this file holds the whole database and needs
//!   nothing before it.
//!
//! Who may call it: anybody, on any thread; values only. A crash leaves nothing behind, since nothing here
//! names a file: who writes one writes it under another name and renames it after [`Encoder::finish`].
//!
//! Refused: the published crates (old layouts, or unchecked); keeping whole files in memory (a snapshot is as
//! large as the database); reproducing Go's LZ4 output byte for byte (any valid block is accepted).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod checksum;
mod decode;
mod encode;
mod frame;
mod header;
mod index;
mod merge;
mod names;
mod packed;
mod sequence;
mod source;
mod split;
#[cfg(test)]
mod tests;

pub use checksum::{Crc, page_checksum};
pub use decode::{Decoder, Trailer, Verified, verify};
pub use encode::{Encoder, Packing, Summary};
pub use frame::{decode_frame, frame_head};
pub use header::{Attest, HEADER_LEN, Header, Tracking, WalRange};
pub use index::{IndexEntry, PageIndex, TAIL_LEN, Tail};
pub use merge::{Overrides, fold, merge};
pub use names::{FileName, Level};
pub use packed::PackedIndex;
pub use sequence::Shape;
pub use split::{Batch, Sink, Splitter, Unpacked};
