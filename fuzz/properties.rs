//! What must hold for any bytes whatsoever. Run by the fuzz targets without end, and by
//! `tests/fuzz_properties.rs` on mutated seeds within `cargo test`.
//!
//! For each reader: it does not panic; it takes no more memory than the input's length allows for ([`bounded`]); what it accepts
//! it gives back when that is written and read again; an error is one line of bounded length; no name that it accepts leads out
//! of the replica.

#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use walrust::base::{DbChecksum, PageSize, Pgno};
use walrust::config::{ByteCount, Config, Layer, OptionSpec, Options, WithSettings};
use walrust::ltx::{self, Decoder, Encoder, HEADER_LEN, Header, PageIndex, Tail, Tracking};
use walrust::replica::{FileId, Named, Point, layout, manifest};
use walrust::ship::LeaseState;
use walrust::store::{LayoutKind, ReplicaUrl};
use walrust::wal::{
    self, Endian, FRAME_HEADER_LEN, FrameChecksum, FrameHeader, INDEX_HEADER_LEN, IndexHeader,
    WAL_HEADER_LEN, WalHeader,
};

type Pages = Vec<(Pgno, Vec<u8>)>;

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

#[allow(unsafe_code)]
// SAFETY: the system's allocator, and two numbers beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: caller.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist for a moment.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `f` on `data` and checks that at no moment it held more than a constant and a small multiple of the input: no length that
/// the input claims decides how much is allocated.
fn bounded<T>(data: &[u8], f: impl FnOnce(&[u8]) -> T) -> T {
    const AT_ONCE: isize = 1 << 20;
    const PER_BYTE: isize = 256;
    let before = NOW.get();
    PEAK.set(before);
    let out = f(data);
    let taken = PEAK.get() - before;
    assert!(
        taken <= AT_ONCE + PER_BYTE * data.len() as isize,
        "{taken} bytes for an input of {}",
        data.len()
    );
    out
}

/// An error's text as a person gets it.
fn one_line(e: &walrust::base::Error) {
    let text = e.to_string();
    assert!(!text.is_empty() && text.len() < 5000, "{} bytes of error", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

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
    let _ = bounded(data, |d| Decoder::piece(d).and_then(Decoder::finish));
    let verified = bounded(data, |d| ltx::verify(d));
    if let Err(e) = &verified {
        one_line(e);
    }
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
    if let Ok(index) = bounded(rest, |r| PageIndex::parse(r, file_len, commit, page_size)) {
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
    let Some(scan) = bounded(&bytes, wal::scan).expect("memory does not fail") else { return };
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
    // What is located without reading pages is the same, found by headers or by page numbers, and each page proves itself.
    let known: Vec<u32> = (start.frame + 1..=scan.end.frame)
        .map(|n| {
            let at = wal::frame_offset(n, scan.header.page_size) as usize;
            u32::from_be_bytes(*bytes[at..].first_chunk().expect("the frame is there"))
        })
        .collect();
    for known in [None, Some(known.as_slice())] {
        let located = wal::locate(bytes.as_slice(), start, scan.end, known).expect("by headers or numbers");
        assert!(located.pages.iter().map(|p| (p.pgno, p.frame)).eq(part.pages.iter().copied()));
        let mut page = vec![0; scan.header.page_size.len()];
        for place in &located.pages {
            located.read(bytes.as_slice(), place, &mut page).expect("a page of the chain proves itself");
            let at = wal::page_offset(place.frame, scan.header.page_size) as usize;
            assert_eq!(page, bytes[at..at + page.len()]);
        }
    }
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

/// A manifest segment; the first byte says whether its check line is put right first. What is accepted is written again and
/// read again as the same.
pub fn manifest(data: &[u8]) {
    let Some((repair, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if repair & 1 == 1
        && let Some(at) = find_last(&bytes, b"\"check\":")
    {
        use sha2::Digest;
        let sum: String =
            sha2::Sha256::digest(&bytes[..at]).iter().take(8).map(|b| format!("{b:02x}")).collect();
        bytes.truncate(at);
        bytes.extend_from_slice(format!("\"check\":\"{sum}\"}}\n").as_bytes());
    }
    match bounded(&bytes, |b| manifest::decode_segment(1, b)) {
        Err(e) => one_line(&e),
        Ok(entries) => {
            assert_eq!(
                manifest::decode_segment(1, &manifest::encode_segment(1, &entries)).expect("as written"),
                entries
            );
            for e in entries {
                for kind in KINDS {
                    assert_eq!(FileId::parse(kind, &e.id.key(kind)), Some(e.id));
                    inside(&e.id.key(kind));
                }
            }
        }
    }
}

fn find_last(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).rposition(|w| w == part)
}

const KINDS: [LayoutKind; 2] = [LayoutKind::LevelHex, LayoutKind::LevelDecimal];

/// A key stays below the directory it is appended to.
fn inside(key: &str) {
    assert!(key.split('/').all(|s| !s.is_empty() && s != "." && s != ".."), "{key:?}");
    assert!(!key.contains('\0') && !std::path::Path::new(key).is_absolute(), "{key:?}");
}

/// The lease object.
pub fn lease(data: &[u8]) {
    let Some(lease) = bounded(data, LeaseState::decode) else { return };
    assert!(lease.holder.chars().count() <= 200 && !lease.holder.chars().any(char::is_control));
    let _ = walrust::base::Timestamp(lease.ends).rfc3339();
    let bytes = lease.encode().expect("what was read can be written");
    assert_eq!(LeaseState::decode(&bytes), Some(lease));
}

/// A store's listing, one key to a line. What counts as ours is named exactly as we would; a database's name leads nowhere else.
pub fn key_names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let url = ReplicaUrl::parse("/replicas").expect("a path");
    for key in text.lines() {
        if let Some(n) = layout::manifest_number(key) {
            assert_eq!(layout::manifest_key(n), key);
        }
        if let Some(name) = ltx::FileName::parse(key) {
            assert_eq!(name.to_string(), key);
            assert!(1 <= name.min.0 && name.min <= name.max);
        }
        for kind in KINDS {
            if let Some(id) = FileId::parse(kind, key) {
                assert_eq!(id.key(kind), key);
                inside(key);
            }
            if let Some((root, id)) = layout::split_root(kind, key) {
                assert!(key.ends_with(&id.key(kind)) && key.starts_with(root));
                if let Ok(child) = url.child(root) {
                    let dir = child.dir().expect("a directory");
                    assert!(dir.starts_with("/replicas"), "{key:?} leads to {dir:?}");
                    assert!(dir.components().all(|c| c != std::path::Component::ParentDir), "{dir:?}");
                }
            }
        }
    }
    let objects: Vec<_> = text.lines().map(object).collect();
    for kind in KINDS {
        let inventory = bounded(data, |_| walrust::replica::Inventory::of(kind, objects.iter()));
        assert_eq!(inventory.files.len() + inventory.ignored, objects.len());
        let now = walrust::base::Timestamp(0);
        for point in [Point::Latest, Point::TxId(inventory.newest()), Point::Time(now)] {
            match walrust::replica::plan(&inventory.files, point, now) {
                Ok(plan) => {
                    assert!(plan.files.first().is_some_and(|f| f.min.0 == 1));
                    assert!(
                        plan.files.windows(2).all(|w| w[1].min <= w[0].max.next() && w[1].max > w[0].max)
                    );
                    assert_eq!(plan.files.last().map(|f| f.max), Some(plan.txid));
                }
                Err(e) => one_line(&e),
            }
        }
    }
}

fn object(key: &str) -> walrust::store::ObjectInfo {
    walrust::store::ObjectInfo {
        key: key.to_string(),
        size: key.len() as u64,
        modified: walrust::base::Timestamp(-1),
        etag: None,
        sha256: None,
        timestamp: None,
    }
}

/// walrust.toml, and the settings of a database by it.
pub fn config_toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = std::path::Path::new("/nowhere/walrust.toml");
    match bounded(data, |_| Config::from_text(Some((text, path)), std::iter::empty())) {
        Err(e) => one_line(&e),
        Ok(config) => match config.resolve(std::path::Path::new("/nowhere/app.db"), None, None) {
            Err(e) => one_line(&e),
            Ok(resolved) => {
                for row in resolved.rows() {
                    assert!(!row.name.is_empty() && !row.source.is_empty());
                }
                assert!(resolved.settings.retry.base <= resolved.settings.retry.max);
            }
        },
    }
}

/// The options of SQL functions.
pub fn config_json(data: &[u8]) {
    const OWN: [OptionSpec; 5] = [
        OptionSpec::flag("takeover"),
        OptionSpec::count("parallel", 1, 64),
        OptionSpec::duration("timeout"),
        OptionSpec::text("note"),
        OptionSpec::one_of("check", &["none", "quick", "full"]),
    ];
    let Ok(text) = std::str::from_utf8(data) else { return };
    for settings in [WithSettings::Yes, WithSettings::No] {
        match bounded(data, |_| Options::parse("walrust_watch", Some(text), &OWN, settings)) {
            Err(e) => {
                one_line(&e);
                assert!(e.to_string().starts_with("walrust_watch: "));
            }
            Ok(o) => {
                assert!(o.count("parallel").is_none_or(|n| (1..=64).contains(&n)));
                assert!(o.text("check").is_none_or(|t| ["none", "quick", "full"].contains(&t)));
            }
        }
    }
}

/// Replica URLs. What is accepted has one spelling, holds no user information, and its path leads down only.
pub fn replica_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match bounded(data, |_| ReplicaUrl::parse(text)) {
        Err(e) => one_line(&e),
        Ok(url) => {
            let shown = url.to_string();
            let again = ReplicaUrl::parse(&shown).expect("its own spelling");
            assert_eq!((again.to_string(), &again), (shown.clone(), &url));
            if let Some(dir) = url.dir() {
                assert!(dir.is_absolute());
                assert!(dir.components().all(|c| c != std::path::Component::ParentDir));
            } else {
                assert!(!url.bucket().is_empty() && !url.bucket().contains('@'));
                if !url.prefix().is_empty() {
                    inside(url.prefix());
                }
            }
            if let Some(e) = url.endpoint() {
                let (scheme, rest) = e.split_once("://").expect("a scheme");
                let host = rest.split('/').next().unwrap_or_default();
                assert!(matches!(scheme, "http" | "https") && !host.is_empty(), "{e}");
                assert!(!host.contains('@') && !e.contains('?'), "{e}");
            }
            let _ = (url.name(), url.layout(), url.region());
        }
    }
}

/// Points in time.
pub fn point(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let now = walrust::base::Timestamp(1_795_370_683_421);
    match bounded(data, |_| Named::parse(text, now)) {
        Err(e) => one_line(&e),
        Ok(Named::Point(Point::Latest)) => {}
        Ok(Named::Label(name)) => {
            assert_eq!(Named::label(name.as_str(), now).expect("a label's own name"), name)
        }
        Ok(Named::Point(Point::TxId(t))) => assert!(t.0 > 0),
        Ok(Named::Point(Point::Time(t))) => {
            let shown = t.rfc3339();
            // What can be shown as a date is read as the same.
            if shown.starts_with(|c: char| c.is_ascii_digit()) && shown.ends_with('Z') {
                assert_eq!(
                    Named::parse(&shown, now).expect("our own spelling"),
                    Named::Point(Point::Time(t)),
                    "{shown}"
                );
            }
        }
    }
}

/// The records of the spool and of a follower.
pub fn records(data: &[u8]) {
    fn one<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) {
        let Some(v) = bounded(data, |d| serde_json::from_slice::<T>(d).ok()) else { return };
        let text = serde_json::to_vec(&v).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&text).expect("and read"), v);
    }
    one::<walrust::spool::Position>(data);
    one::<walrust::spool::Shipped>(data);
    one::<walrust::replica::follow::Record>(data);
}

/// Durations, sizes and the rest of what stands behind a setting's name, as environment and URI give it: `name=value` lines.
pub fn values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(d) = walrust::config::parse_duration(text) {
        assert!(d <= walrust::config::value::MAX_DURATION);
    }
    if let Ok(n) = ByteCount::parse(text) {
        assert_eq!(ByteCount::parse(&n.to_string()), Ok(n));
    }
    let pairs: Vec<(&str, &str)> = text.lines().filter_map(|l| l.split_once('=')).collect();
    let _ = bounded(data, |_| Layer::from_uri(pairs.iter().copied())).map_err(|e| one_line(&e));
    let env = pairs.iter().map(|(k, v)| (format!("WALRUST_{k}").into(), (*v).into()));
    let _ = bounded(data, |_| Config::from_text(None, env)).map_err(|e| one_line(&e));
}
