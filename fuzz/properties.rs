//! What must hold for any bytes whatsoever. Run by the fuzz targets without end, and by
//! `tests/fuzz_properties.rs` on mutated seeds within `cargo test`.

#![allow(dead_code)]

use walrust::base::{DbChecksum, PageSize, Pgno};
use walrust::ltx::{self, Decoder, Encoder, HEADER_LEN, Header, PageIndex, Tail, Tracking};
use walrust::wal::{
    self, Endian, FRAME_HEADER_LEN, FrameChecksum, FrameHeader, INDEX_HEADER_LEN, IndexHeader,
    WAL_HEADER_LEN, WalHeader,
};

type Pages = Vec<(Pgno, Vec<u8>)>;

fn pages(bytes: &[u8]) -> Option<(Header, Pages)> {
    let mut decoder = Decoder::new(bytes).ok()?;
    let mut page = vec![0; decoder.header().page_size.len()];
    let mut pages = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).ok()? {
        pages.push((pgno, page.clone()));
    }
    let header = decoder.header().clone();
    decoder.finish().ok()?;
    Some((header, pages))
}

/// The strict reader never panics. What it accepts has an index that leads to the same pages, and can be
/// written again.
pub fn ltx_decode(data: &[u8]) {
    let _ = Decoder::piece(data).and_then(Decoder::finish);
    let verified = ltx::verify(data);
    let Some((header, pages)) = pages(data) else {
        assert!(verified.is_err());
        return;
    };
    let verified = verified.expect("two readings agree");
    assert_eq!((verified.trailer.bytes, verified.pages as usize), (data.len() as u64, pages.len()));
    let encoded = header.encode().expect("a header that was read can be written");
    assert_eq!(Header::decode(&encoded).expect("and read"), header);

    let tail = Tail::parse(data).expect("a good file has a good tail");
    assert_eq!((tail.checksum, tail.post_apply), (verified.trailer.checksum, verified.trailer.post_apply));
    let index = tail.index_in(data).expect("and an index");
    let index = PageIndex::parse_for(index, data.len() as u64, &header).expect("a good one");
    assert_eq!(index.len(), pages.len());
    for (entry, (pgno, content)) in index.entries().iter().zip(&pages) {
        let mut page = vec![0; content.len()];
        let range = entry.range();
        let frame = &data[range.start as usize..range.end as usize];
        assert_eq!(ltx::decode_frame(frame, header.page_size, &mut page).expect("a good frame"), *pgno);
        assert_eq!(&page, content);
    }
    if header.tracking == Tracking::NoChecksum {
        let mut encoder = Encoder::new(Vec::new(), header.clone()).expect("what was read can be written");
        pages.iter().for_each(|(pgno, page)| encoder.page(*pgno, page).expect("page by page"));
        let (summary, bytes) = encoder.finish().expect("to the end");
        assert_eq!(ltx::verify(bytes.as_slice()).expect("and is good").trailer.checksum, summary.checksum);
        assert_eq!(self::pages(&bytes), Some((header, pages)));
    }
}

/// Ranged reading: two bytes choose page size and commit, the rest is an index, a tail, a frame.
pub fn ltx_index(data: &[u8]) {
    let Some(([shift, commit], rest)) = data.split_first_chunk::<2>() else { return };
    let page_size = PageSize::new(512 << (shift % 8)).expect("a power of two");
    let commit = u32::from(*commit) << (shift / 8);
    let mut page = vec![0; page_size.len()];
    let _ = ltx::decode_frame(rest, page_size, &mut page);

    // The one file length that fits is known from the entries; try it, and one that does not.
    let mut reader = rest;
    let mut end = HEADER_LEN as u64;
    while let (Some(_), Some(_), Some(len)) =
        (varint(&mut reader).filter(|n| *n != 0), varint(&mut reader), varint(&mut reader))
    {
        end = end.saturating_add(len);
    }
    let file_len = end.saturating_add(6 + rest.len() as u64 + 24);
    if let Ok(index) = PageIndex::parse(rest, file_len, commit, page_size) {
        let mut at = HEADER_LEN as u64;
        for entry in index.entries() {
            assert_eq!(entry.offset, at);
            assert!(entry.pgno.get() <= commit && entry.pgno != page_size.lock_page());
            assert_eq!(index.get(entry.pgno), Some(*entry));
            at = entry.range().end;
        }
        assert!(index.entries().is_sorted_by(|a, b| a.pgno < b.pgno));
        assert!(PageIndex::parse(rest, file_len + 1, commit, page_size).is_err());
    }
    if let Ok(tail) = Tail::parse(rest) {
        assert!(tail.checksum & DbChecksum::FLAG != 0);
        if let Ok(range) = tail.index_range(rest.len() as u64) {
            let index = tail.index_in(rest).expect("the whole file is at hand");
            assert_eq!(index.len() as u64, range.end - range.start);
            let _ = PageIndex::parse(index, rest.len() as u64, commit, page_size);
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// A WAL: the first byte says whether checksums are put right first (so that the fuzzer gets behind them),
/// the second where to start. Recovery never panics; what it finds can be read again as committed frames,
/// from any commit on, to the same end.
pub fn wal_read(data: &[u8]) {
    let Some(([repair, from], rest)) = data.split_first_chunk::<2>() else { return };
    let mut bytes = rest.to_vec();
    if repair & 1 == 1 {
        put_right(&mut bytes);
    }
    let Some(scan) = wal::scan(bytes.as_slice()).expect("memory does not fail") else { return };
    assert!(scan.end.frame <= scan.valid);
    let mut places = vec![scan.header.start()];
    let mut newest = std::collections::BTreeMap::new();
    let all = wal::read_frames(bytes.as_slice(), scan.header.start(), scan.end, |frame| {
        newest.insert(frame.pgno, frame.number);
        let at = wal::frame_offset(frame.number, scan.header.page_size) as usize;
        let head = FrameHeader::decode(bytes[at..].first_chunk().expect("the frame is there"));
        assert_eq!((head.pgno, head.commit), (Some(frame.pgno), frame.commit));
        if frame.commit != 0 {
            places.push(wal::WalPos { salt: head.salt, frame: frame.number, checksum: head.checksum });
        }
    })
    .expect("what recovery finds can be read");
    assert_eq!((&all.pages, all.commit, all.end.frame), (&scan.pages, scan.commit, scan.end.frame));
    assert!(newest.into_iter().eq(all.pages.iter().copied()));
    let start = places[usize::from(*from) % places.len()];
    let part = wal::read_frames(bytes.as_slice(), start, scan.end, |f| assert!(f.number > start.frame))
        .expect("from any commit on");
    assert!(part.pages.iter().all(|p| all.pages.contains(p)));
    let past = wal::WalPos { frame: scan.end.frame + 1, ..scan.end };
    assert!(wal::read_frames(bytes.as_slice(), start, past, |_| {}).is_err());
}

/// Gives a WAL's header and frames right checksums and salts, as far as it looks like one.
fn put_right(bytes: &mut [u8]) {
    let Some((head, mut rest)) = bytes.split_first_chunk_mut::<WAL_HEADER_LEN>() else { return };
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let endian = if word(0) & 1 == 1 { Endian::Big } else { Endian::Little };
    let page_size = PageSize::new(512 << (word(8).trailing_zeros() % 3)).expect("a power of two");
    let salt = wal::Salt { salt1: word(16), salt2: word(20) };
    let header = WalHeader { endian, page_size, sequence: word(12), salt, checksum: FrameChecksum(0, 0) };
    *head = header.encode();
    let mut sum = WalHeader::decode(head).expect("as encoded").checksum;
    while let Some((frame, after)) = rest.split_at_mut_checked(FRAME_HEADER_LEN + page_size.len()) {
        let (head, page) =
            frame.split_first_chunk_mut::<FRAME_HEADER_LEN>().expect("a frame begins with a header");
        let mut fields = FrameHeader::decode(head);
        fields.salt = salt;
        fields.checksum = fields.chain(page, sum, endian);
        sum = fields.checksum;
        *head = fields.encode();
        rest = after;
    }
}

/// A wal-index header: the first byte says whether checksum and second copy are put right first. Never
/// panics; one changed byte in either copy and it is not believed.
pub fn wal_index_header(data: &[u8]) {
    let Some((repair, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if repair & 1 == 1 && bytes.len() >= INDEX_HEADER_LEN {
        let FrameChecksum(a, b) = wal::checksum(&bytes[..40], FrameChecksum(0, 0), Endian::NATIVE);
        bytes[40..44].copy_from_slice(&a.to_ne_bytes());
        bytes[44..48].copy_from_slice(&b.to_ne_bytes());
        bytes.copy_within(0..48, 48);
    }
    let Some(header) = IndexHeader::decode(&bytes) else { return };
    assert_eq!(header.position().frame, header.max_frame);
    let at = usize::from(*repair >> 1) % 96;
    bytes[at] ^= 0x10;
    assert_eq!(IndexHeader::decode(&bytes), None);
}
