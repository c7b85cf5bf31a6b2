//! The manifest: what we uploaded, told by us and not by the store, so that a missing or exchanged file can
//! be noticed. Litestream has no place for it; it lies under `walrust/` and Litestream ignores it.
//!
//! Form: segments `walrust/manifest-<16 hex digits>.json`, each one JSON document, one line per file (readable with grep, about
//! 150 bytes). The newest, which each upload rewrites, names at most [`SEGMENT_FILES`] files; eight full ones are packed into one of
//! [`PACKED_FILES`], so that a reader needs few requests:
//!
//! ```json
//! {"walrust_manifest":1,"segment":"0000000000000001",
//! "columns":["level","min","max","bytes","pages","commit","crc","edge","sha256","time","after"],
//! "files":[
//! [0,2,2,198,1,4,"a9d50ffd1a467fce","01c277ab","<64 hex>",1795370683421,"8f4e…"],
//! ],
//! "check":"<16 hex>"}
//! ```
//!
//! `edge` is a checksum of all bytes of the file that are not page frames: header, page index, trailer. So a ranged read of
//! these alone finds each change in them. `check` is the start of the SHA-256 of all bytes up to its own line: a bit flipped in the manifest is the
//! manifest's damage, not that of the file it names.
//!
//! Rules
//! * I-MAN-1 The holder of the lease writes; on an upload only the newest segment. Each segment is replaced on condition that it is as it
//!   was read, where the store can do that; so who removes entries beside the holder undoes nothing and is not undone.
//! * I-MAN-2 Adding: the object first, then its entry. Removing: the entry first, then the object. So an object
//!   without an entry is new (or Litestream's), and an entry without an object is a lost file.
//! * I-MAN-3 A later segment wins where two name one file; a reader that meets a vanished segment starts over.
//! * I-MAN-4 The entries of the newest level-0 files, [`MOST_WAITING`] at the most, may wait for one another: while the lease says so
//!   ([`is_ahead`]). Each other entry, and whatever waits before it, is made before the next step. So the files without an entry
//!   are the newest ones, unbroken; and of a replica whose lease says nothing, all are named but one that is just being uploaded.
//!
//! Of a writer that only creates objects (`append_only`) the segments are `walrust/entries/<newest TXID>-<number>.json`, one for each time that it
//! names something. They have the same form, and are never written again; who may delete (retention, `fix`) makes one of many.
//!
//! * I-MAN-5 What such a segment says is a claim: whoever has the writer's keys can put one. Of two that name one file the earlier stands, by
//!   the store's own time, so that nothing that was said is unsaid by what is put later; what a numbered segment names stands before both. One that
//!   cannot be read, or is of a later version, hides nothing else and fails nothing.
//!
//! A crash leaves either the old or the new form of a segment (an object is put whole), and between two
//! segments at worst a file named twice. Refused: one manifest object (each upload would rewrite all of it:
//! 1.5 MB at 10,000 files), and one small object per file (10,000 requests to read, the price of a GET each).
//! 128 and 1024 files: 20 KB at most per rewrite, 10 KB held by a writer, 18 requests at most for 10,000 files.

use super::layout::{self, FileId};
use crate::base::{DbChecksum, Error, Kind, Result, Timestamp, TxId, clock};
use crate::ltx::Level;
use crate::store::{APPEND_ONLY_KEY, ObjectInfo, PutMeta, Store, Version, hex};
use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

/// Most files in the segment that is appended to. (The build that is killed at named points comes to pack them in a moment.)
pub const SEGMENT_FILES: usize = if cfg!(feature = "crash-points") { 8 } else { 128 };
/// Full segments that are packed into one.
const PACK: usize = 8;
/// Most files in a segment packed from others.
pub const PACKED_FILES: usize = PACK * SEGMENT_FILES;
/// Objects below this size are not packed ones: a line has 190 bytes at the most.
const UNPACKED_BYTES: u64 = 190 * SEGMENT_FILES as u64 + 256;
const COLUMNS: &str =
    r#"["level","min","max","bytes","pages","commit","crc","edge","sha256","time","after"]"#;
/// Most level-0 files whose entries wait.
pub const MOST_WAITING: usize = 64;
/// The longest that they wait. (The build that is killed at named points comes to it in a moment.)
pub const ENTRIES_WITHIN: Duration =
    if cfg!(feature = "crash-points") { Duration::from_millis(300) } else { Duration::from_secs(10) };
/// The same of a writer that only creates: each time is an object that stays until a janitor comes.
pub const CLAIMS_WITHIN: Duration =
    if cfg!(feature = "crash-points") { Duration::from_millis(300) } else { Duration::from_secs(60) };
/// Segments read at once.
const PARALLEL: usize = 16;
/// Segments deleted in one request, in the order that matters.
const DELETED_AT_ONCE: usize = 500;
/// How often a reader starts over when segments vanish under it.
const RESTARTS: usize = 5;

/// What the manifest says of one LTX file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestEntry {
    /// Which file.
    pub id: FileId,
    /// Object size.
    pub bytes: u64,
    /// Page frames in it.
    pub pages: u32,
    /// Database size in pages after it.
    pub commit: u32,
    /// The file checksum in its trailer.
    pub crc: u64,
    /// See [`super::edge::edge_of`].
    pub edge: u32,
    /// SHA-256 of the object.
    pub sha256: [u8; 32],
    /// The timestamp in its header.
    pub time: Timestamp,
    /// Database checksum after it, if attested.
    pub after: Option<DbChecksum>,
}

impl ManifestEntry {
    /// For a local LTX file, which is read and proved whole. Errors with `Corrupt` if it is damaged.
    pub fn of_file(level: Level, path: &std::path::Path) -> Result<ManifestEntry> {
        let open = || std::fs::File::open(path).map_err(|e| Error::io("open", path, e));
        let proved = crate::ltx::verify(std::io::BufReader::with_capacity(128 * 1024, open()?))
            .map_err(|e| e.context(path.display()))?;
        let edge = super::edge::edge_of(&mut open()?)?;
        Ok(ManifestEntry {
            id: FileId { level, min: proved.header.min, max: proved.header.max },
            bytes: proved.trailer.bytes,
            pages: proved.pages,
            commit: proved.header.commit,
            crc: proved.trailer.checksum,
            edge,
            sha256: proved.sha256,
            time: proved.header.timestamp,
            after: proved.header.attest.map(|a| a.after),
        })
    }

    /// The same of the age file that was made of it, as it lies in the replica: nothing that was computed of the content in the clear
    /// (I-AGE-2).
    #[must_use]
    pub fn sealed(self, bytes: u64, sha256: [u8; 32]) -> ManifestEntry {
        ManifestEntry { bytes, sha256, crc: 0, edge: 0, after: None, ..self }
    }

    /// Whether it tells of an age file: of no LTX file the file checksum is 0, as its highest bit is set.
    pub fn is_sealed(&self) -> bool {
        self.crc == 0
    }

    /// As it stands in a segment: one line of JSON.
    pub fn line(&self) -> String {
        let mut s = String::with_capacity(176);
        let after = self.after.map(|c| c.to_string()).unwrap_or_default();
        let (id, crc, time) = (&self.id, self.crc, self.time.0);
        let _ = write!(s, "[{},{},{},{},", id.level.get(), id.min.0, id.max.0, self.bytes);
        let _ = write!(s, "{},{},\"{crc:016x}\",\"{:08x}\",\"", self.pages, self.commit, self.edge);
        s.push_str(&hex(&self.sha256));
        let _ = write!(s, "\",{time},\"{after}\"]");
        s
    }

    /// Reads what [`ManifestEntry::line`] wrote; `None` for anything else.
    pub fn of_line(line: &str) -> Option<ManifestEntry> {
        entry(&serde_json::from_str(line).ok()?)
    }
}

/// Whether the replica's lease says that its holder may have put files whose entries are still to come (I-MAN-4), or its writer is one that holds
/// none and only creates. Errors: the store's.
pub async fn is_ahead(store: &Store, manifest: &Manifest) -> Result<bool> {
    if manifest.is_marked {
        return Ok(true);
    }
    #[derive(serde::Deserialize)]
    struct Lease {
        #[serde(default)]
        ahead: bool,
    }
    match store.get(layout::LEASE_KEY).await {
        Ok(bytes) => Ok(serde_json::from_slice::<Lease>(&bytes).is_ok_and(|l| l.ahead)),
        Err(e) if e.is_missing() || e.is_corrupt() => Ok(false),
        Err(e) => Err(e),
    }
}

fn unhex32(s: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if s.len() != 64 || !s.is_ascii() {
        return None;
    }
    for (o, i) in out.iter_mut().zip((0..64).step_by(2)) {
        *o = u8::from_str_radix(s.get(i..i + 2)?, 16).ok()?;
    }
    Some(out)
}

fn unhex64(s: &str) -> Option<u64> {
    (s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u64::from_str_radix(s, 16).ok())?
}

/// The bytes of segment `number`. Pure.
pub fn encode_segment(number: u64, entries: &[ManifestEntry]) -> Vec<u8> {
    let mut s = format!(
        "{{\"walrust_manifest\":1,\"segment\":\"{number:016x}\",\n\"columns\":{COLUMNS},\n\"files\":[\n"
    );
    for (i, e) in entries.iter().enumerate() {
        let comma = if i + 1 < entries.len() { "," } else { "" };
        let _ = writeln!(s, "{}{comma}", e.line());
    }
    s.push_str("],\n");
    let check = check_of(s.as_bytes());
    let _ = writeln!(s, "\"check\":\"{check}\"}}");
    s.into_bytes()
}

fn check_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)).chars().take(16).collect()
}

type Row = (u8, u64, u64, u64, u32, u32, String, String, String, i64, String);

#[derive(serde::Deserialize)]
struct Document {
    walrust_manifest: u32,
    segment: String,
    files: Vec<Row>,
    check: String,
}

/// Reads the bytes of segment `number`. Pure.
///
/// Errors with `Corrupt` on anything that [`encode_segment`] cannot have written, with `Config` on a manifest of
/// a later version.
pub fn decode_segment(number: u64, bytes: &[u8]) -> Result<Vec<ManifestEntry>> {
    decode_named(&layout::manifest_key(number), number, bytes)
}

fn decode_named(name: &str, number: u64, bytes: &[u8]) -> Result<Vec<ManifestEntry>> {
    let bad = |why: &str| Error::corrupt(format!("manifest segment {name} is damaged: {why}"));
    let text = std::str::from_utf8(bytes).map_err(|_| bad("not text"))?;
    let (body, _) = text.rsplit_once("\"check\":").ok_or_else(|| bad("no check line"))?;
    let doc: Document = serde_json::from_str(text).map_err(|e| bad("not JSON").because(e))?;
    if doc.walrust_manifest != 1 {
        let text = format!(
            "manifest segment {name} has version {}; this walrust reads version 1",
            doc.walrust_manifest
        );
        return Err(Error::config(text));
    }
    if doc.check != check_of(body.as_bytes()) {
        return Err(bad("its check value does not match"));
    }
    if unhex64(&doc.segment) != Some(number) {
        return Err(bad("it is another segment"));
    }
    doc.files.iter().map(|r| entry(r).ok_or_else(|| bad("a line is out of range"))).collect()
}

fn entry(r: &Row) -> Option<ManifestEntry> {
    let (level, min, max, bytes, pages, commit, crc, edge, sha256, time, after) = r;
    let id = FileId::new(Level::new(*level)?, TxId(*min), TxId(*max))?;
    let after = if after.is_empty() { None } else { Some(DbChecksum(unhex64(after)?)) };
    Some(ManifestEntry {
        id,
        bytes: *bytes,
        pages: *pages,
        commit: *commit,
        crc: unhex64(crc)?,
        edge: unhex64(&format!("00000000{edge}")).and_then(|n| u32::try_from(n).ok())?,
        sha256: unhex32(sha256)?,
        time: Timestamp(*time),
        after,
    })
}

/// What a reader sees.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    entries: BTreeMap<FileId, ManifestEntry>,
    /// One line per segment that could not be read.
    pub damaged: Vec<String>,
    /// Segments read.
    pub segments: usize,
    /// Bytes read.
    pub bytes: u64,
    /// What the numbered segments name: nobody who only creates objects could have said that.
    vouched: BTreeSet<FileId>,
    /// There is a segment of a writer that only creates.
    has_claims: bool,
    /// There is the mark of such a writer.
    is_marked: bool,
}

/// The objects of a manifest.
#[derive(Clone, Debug, Default)]
struct Listed {
    /// Numbered segments, ascending.
    numbers: Vec<u64>,
    /// Keys of segments that are only ever created, and what is in them, the newest by the store's time first.
    appended: Vec<Appended>,
    is_marked: bool,
}

#[derive(Clone, Debug)]
struct Appended {
    key: String,
    newest: TxId,
    number: u64,
}

impl Listed {
    fn of(objects: &[ObjectInfo]) -> Listed {
        let mut appended: Vec<(Timestamp, Appended)> = objects
            .iter()
            .filter_map(|o| {
                let (newest, number) = layout::appended_of(&o.key)?;
                Some((o.modified, Appended { key: o.key.clone(), newest, number }))
            })
            .collect();
        appended.sort_by(|(t, a), (u, b)| (u, b.newest, &b.key).cmp(&(t, a.newest, &a.key)));
        Listed {
            numbers: numbers_in(objects),
            appended: appended.into_iter().map(|(_, a)| a).collect(),
            is_marked: objects.iter().any(|o| o.key == APPEND_ONLY_KEY),
        }
    }

    async fn read(store: &Store) -> Result<Listed> {
        Ok(Listed::of(&store.list(layout::OWN_PREFIX).await?))
    }

    fn newest_claim(&self) -> TxId {
        self.appended.iter().map(|a| a.newest).max().unwrap_or_default()
    }
}

impl Manifest {
    /// Reads all segments. A damaged one is reported in `damaged`, not as an error.
    pub async fn read(store: &Store) -> Result<Manifest> {
        for _ in 0..RESTARTS {
            match Self::read_once(store).await {
                Err(e) if e.is_missing() => {}
                other => return other,
            }
        }
        Err(Error::new(Kind::Retry, "the manifest was rewritten each time it was read; try again"))
    }

    /// As [`Manifest::read`], where it is known already what lies in the replica. Errors as that one.
    pub async fn read_listed(store: &Store, objects: &[ObjectInfo]) -> Result<Manifest> {
        match Self::of_listed(store, Listed::of(objects)).await {
            Err(e) if e.is_missing() => Self::read(store).await,
            other => other,
        }
    }

    async fn read_once(store: &Store) -> Result<Manifest> {
        Self::of_listed(store, Listed::read(store).await?).await
    }

    async fn of_listed(store: &Store, listed: Listed) -> Result<Manifest> {
        let mut m = Manifest {
            has_claims: !listed.appended.is_empty(),
            is_marked: listed.is_marked,
            ..Manifest::default()
        };
        for (a, found) in fetch_appended(store, listed.appended).await? {
            m.segments += 1;
            let found = found.and_then(|bytes| {
                m.bytes += bytes.len() as u64;
                decode_named(&a.key, a.number, &bytes)
            });
            match found {
                Ok(entries) => m.entries.extend(entries.into_iter().map(|e| (e.id, e))),
                // (Also what is of a later version: anybody who may create can have put it there.)
                Err(e) => m.damaged.push(e.to_string()),
            }
        }
        for (number, found) in fetch(store, listed.numbers).await? {
            m.segments += 1;
            let found = found.and_then(|(bytes, _)| {
                m.bytes += bytes.len() as u64;
                decode_segment(number, &bytes)
            });
            match found {
                Ok(entries) => {
                    m.vouched.extend(entries.iter().map(|e| e.id));
                    m.entries.extend(entries.into_iter().map(|e| (e.id, e)));
                }
                Err(e) if e.is_corrupt() => m.damaged.push(e.to_string()),
                Err(e) => return Err(e),
            }
        }
        Ok(m)
    }

    /// Whether a writer that only creates objects is, or was, at work: then names and claims may be those of whoever has its keys (I-MAN-5).
    pub fn is_append_only(&self) -> bool {
        self.is_marked || self.has_claims
    }

    /// Whether a numbered segment names the file.
    pub fn vouches_for(&self, id: FileId) -> bool {
        self.vouched.contains(&id)
    }

    /// Whether there are claims of files, which are, or could be, vouched for.
    pub fn has_claims(&self) -> bool {
        self.has_claims
    }

    /// What is said of `id`.
    pub fn get(&self, id: FileId) -> Option<&ManifestEntry> {
        self.entries.get(&id)
    }

    /// What is said of `id` by who could say it with the right to replace and delete: against a claim the file itself stands (I-MAN-5), for it was
    /// created and never replaced.
    pub fn sworn(&self, id: FileId) -> Option<&ManifestEntry> {
        self.get(id).filter(|_| !self.is_append_only() || self.vouches_for(id))
    }

    /// All entries, ordered by level and TXID.
    pub fn entries(&self) -> impl Iterator<Item = &ManifestEntry> {
        self.entries.values()
    }

    /// Whether there is no manifest at all.
    pub fn is_absent(&self) -> bool {
        self.segments == 0
    }
}

#[cfg(test)]
async fn segment_numbers(store: &Store) -> Result<Vec<u64>> {
    Ok(Listed::read(store).await?.numbers)
}

fn numbers_in(objects: &[ObjectInfo]) -> Vec<u64> {
    let mut numbers: Vec<u64> = objects.iter().filter_map(|o| layout::manifest_number(&o.key)).collect();
    numbers.sort_unstable();
    numbers
}

/// The segments that are only ever created, in the order given. The error of one that is none for its length alone is an inner one.
async fn fetch_appended(store: &Store, all: Vec<Appended>) -> Result<Vec<(Appended, Result<bytes::Bytes>)>> {
    futures_util::stream::iter(all)
        .map(|a| async move {
            match store.get(&a.key).await {
                Err(e) if !e.is_corrupt() => Err(e),
                found => Ok((a, found)),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await
}

/// A segment's number, its bytes and their version. One that cannot be a segment for its length alone is an inner error.
type Fetched = (u64, Result<(bytes::Bytes, Version)>);

async fn fetch(store: &Store, numbers: Vec<u64>) -> Result<Vec<Fetched>> {
    futures_util::stream::iter(numbers)
        .map(|n| async move {
            match store.get_versioned(&layout::manifest_key(n)).await {
                Err(e) if !e.is_corrupt() => Err(e),
                found => Ok((n, found)),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await
}

/// A segment being written, and the version it replaces.
#[derive(Clone, Debug)]
struct Segment {
    number: u64,
    entries: Vec<ManifestEntry>,
    /// `None`: not there yet, or the store keeps no versions.
    version: Option<Version>,
}

impl Segment {
    fn first() -> Segment {
        Segment { number: 1, entries: Vec::new(), version: None }
    }

    fn after(&self) -> Segment {
        Segment { number: self.number + 1, entries: Vec::new(), version: None }
    }

    /// Writes it if nobody else wrote it since it was read; `Exists` if somebody did. Where the store does not hold to conditions, it is
    /// written all the same (I-MAN-1 then rests on the lease alone).
    async fn put(&mut self, store: &Store) -> Result<()> {
        let key = layout::manifest_key(self.number);
        let bytes = encode_segment(self.number, &self.entries);
        if store.conditions().allow_lease() {
            self.version = Some(store.put_if(&key, bytes, self.version.as_ref()).await?);
            Ok(())
        } else {
            store.put_over(&key, bytes).await
        }
    }
}

/// Whether full segments may be packed into one. Packing drops segments that it has read: what somebody else removes from them
/// meanwhile would come again with the packed one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// As soon as there are enough of them.
    WhenFull,
    /// When a later segment is full: somebody removes entries at this moment.
    Later,
}

/// Who writes the manifest (I-MAN-1). Holds the newest segment only. `compact` and `fix`, which may run beside the holder of the lease,
/// write through one of their own: a segment that changed since it was read is read again, and nothing of the other is undone.
#[derive(Debug)]
pub struct ManifestWriter {
    newest: Segment,
    /// The newest TXID that a segment which is only ever created names.
    claimed: TxId,
    /// The mark of a writer that only creates was there.
    is_marked: bool,
}

impl ManifestWriter {
    /// Takes over the manifest of `store` as it is. A damaged newest segment is left for `verify` to report,
    /// and writing goes on in a new one.
    pub async fn load(store: &Store) -> Result<ManifestWriter> {
        store.probe_conditional().await?;
        let (newest, listed) = Self::read_newest(store).await?;
        Ok(ManifestWriter { newest, claimed: listed.newest_claim(), is_marked: listed.is_marked })
    }

    /// The newest TXID that the newest segment names, 0 if it names none.
    pub fn newest(&self) -> TxId {
        let named = self.newest.entries.iter().map(|e| e.id.max).max().unwrap_or_default();
        named.max(self.claimed)
    }

    /// A writer that holds the lease has come after one that only creates: the entries wait for the lease from now on. Best effort: who may not
    /// delete leaves it, and readers then expect entries to come.
    pub async fn unmark(&mut self, store: &Store) {
        if std::mem::take(&mut self.is_marked) {
            drop(store.delete(&[APPEND_ONLY_KEY.to_string()]).await);
        }
    }

    async fn read_newest(store: &Store) -> Result<(Segment, Listed)> {
        let mut tries = 0;
        let (listed, number, found) = loop {
            let listed = Listed::read(store).await?;
            let Some(number) = listed.numbers.last().copied() else { return Ok((Segment::first(), listed)) };
            match store.get_versioned(&layout::manifest_key(number)).await {
                // Another writer has packed it since it was listed: this process may have stood still for long.
                Err(e) if e.is_missing() && tries < RESTARTS => tries += 1,
                found => break (listed, number, found),
            }
        };
        match found.and_then(|(bytes, version)| Ok((decode_segment(number, &bytes)?, version))) {
            Ok((entries, version)) => Ok((Segment { number, entries, version: Some(version) }, listed)),
            Err(e) if e.is_corrupt() => {
                Ok((Segment { number: number + 1, entries: Vec::new(), version: None }, listed))
            }
            Err(e) => Err(e),
        }
    }

    /// Adds files as a writer that only creates does: each call puts objects of its own.
    async fn claim(&mut self, store: &Store, entries: &[ManifestEntry]) -> Result<()> {
        for some in entries.chunks(SEGMENT_FILES) {
            put_claims(store, some).await?;
            let newest = some.iter().map(|e| e.id.max).max().unwrap_or_default();
            self.claimed = self.claimed.max(newest);
            crate::base::crash::point("manifest.append");
        }
        Ok(())
    }

    /// Adds files whose objects are durable in the replica (I-MAN-2), and returns when that is durable too.
    /// After an error give the same entries again: naming a file again replaces its entry. Errors with what the store answers.
    pub async fn append(&mut self, store: &Store, entries: &[ManifestEntry]) -> Result<()> {
        self.add(store, entries, Packing::WhenFull).await
    }

    /// [`ManifestWriter::append`], beside somebody who removes entries, perhaps. Errors with what the store answers.
    pub async fn add(&mut self, store: &Store, entries: &[ManifestEntry], packing: Packing) -> Result<()> {
        if store.is_append_only() {
            return self.claim(store, entries).await;
        }
        let (mut rest, mut conflicts) = (entries, 0);
        while !rest.is_empty() {
            let mut next = self.newest.clone();
            next.entries.retain(|e| !rest.iter().any(|n| n.id == e.id));
            let full = next.entries.len() >= SEGMENT_FILES;
            if full {
                next = next.after();
            }
            let (now, later) = rest.split_at(rest.len().min(SEGMENT_FILES - next.entries.len()));
            next.entries.extend_from_slice(now);
            match next.put(store).await {
                Ok(()) => (self.newest, rest) = (next, later),
                Err(e) if e.kind() == Kind::Exists && conflicts < RESTARTS => {
                    conflicts += 1;
                    self.newest = Self::read_newest(store).await?.0;
                }
                Err(e) => return Err(e),
            }
            crate::base::crash::point("manifest.append");
            // Left undone, it is due again when the next segment is full.
            if full
                && packing == Packing::WhenFull
                && let Err(e) = self.pack_full(store).await
            {
                log::debug!("walrust: the manifest could not be packed: {e}");
            }
        }
        Ok(())
    }

    /// Packs the full segments before the newest into one, once there are [`PACK`] of them.
    async fn pack_full(&self, store: &Store) -> Result<()> {
        let mut sizes: Vec<(u64, u64)> = store
            .list(layout::OWN_PREFIX)
            .await?
            .iter()
            .filter_map(|o| Some((layout::manifest_number(&o.key)?, o.size)))
            .filter(|(number, _)| *number < self.newest.number)
            .collect();
        sizes.sort_unstable();
        let full: Vec<u64> =
            sizes.into_iter().rev().take_while(|(_, b)| *b < UNPACKED_BYTES).map(|(n, _)| n).collect();
        let Some((&last, earlier)) = full.split_first().filter(|(_, e)| e.len() + 1 >= PACK) else {
            return Ok(());
        };
        let mut entries: BTreeMap<FileId, ManifestEntry> = BTreeMap::new();
        let mut version = None;
        for number in full.iter().rev() {
            let (bytes, read) = store.get_versioned(&layout::manifest_key(*number)).await?;
            entries.extend(decode_segment(*number, &bytes)?.into_iter().map(|e| (e.id, e)));
            version = Some(read);
        }
        if entries.len() > PACKED_FILES {
            return Ok(());
        }
        let mut packed = Segment { number: last, entries: entries.into_values().collect(), version };
        packed.put(store).await?;
        crate::base::crash::point("manifest.packed");
        let gone: Vec<String> = earlier.iter().map(|n| layout::manifest_key(*n)).collect();
        store.delete(&gone).await
    }

    /// Takes files out before their objects are deleted (I-MAN-2), and packs what remains: neighbours that
    /// fit into one packed segment become one. Segments that cannot be read are left as they are. Gives how many were named.
    pub async fn remove(&mut self, store: &Store, ids: &BTreeSet<FileId>) -> Result<usize> {
        let mut removed = 0;
        for _ in 0..RESTARTS {
            match self.remove_once(store, ids, &mut removed).await {
                Err(e) if e.kind() == Kind::Exists || e.is_missing() => {}
                other => return other.map(|()| removed),
            }
        }
        Err(Error::new(Kind::Retry, "the manifest was rewritten each time it was changed; try again"))
    }

    async fn remove_once(
        &mut self,
        store: &Store,
        ids: &BTreeSet<FileId>,
        removed: &mut usize,
    ) -> Result<()> {
        let mut segments: Vec<(u64, Vec<ManifestEntry>, usize)> = Vec::new();
        let mut versions: BTreeMap<u64, Version> = BTreeMap::new();
        let listed = Listed::read(store).await?;
        for (number, found) in fetch(store, listed.numbers).await? {
            match found.and_then(|(bytes, version)| Ok((decode_segment(number, &bytes)?, version))) {
                Ok((entries, version)) => {
                    segments.push((number, entries.clone(), entries.len()));
                    versions.insert(number, version);
                }
                Err(e) if e.is_corrupt() => {}
                Err(e) => return Err(e),
            }
        }
        let vouched: BTreeSet<FileId> =
            segments.iter().flat_map(|(_, entries, _)| entries.iter().map(|e| e.id)).collect();
        *removed += unclaim(store, listed.appended, ids, &vouched).await?;
        for (_, entries, had) in &mut segments {
            entries.retain(|e| !ids.contains(&e.id));
            *removed += *had - entries.len();
        }
        let newest = segments.last().map_or(0, |s| s.0).max(self.newest.number);
        for step in pack(segments, newest) {
            match step {
                Step::Put(number, entries) => {
                    let version = versions.get(&number).cloned();
                    let mut segment = Segment { number, entries, version };
                    segment.put(store).await?;
                    crate::base::crash::point("manifest.remove");
                    if number == self.newest.number {
                        self.newest = segment;
                    } else if let Some(v) = segment.version {
                        versions.insert(number, v);
                    }
                }
                Step::Drop(number) => store.delete(&[layout::manifest_key(number)]).await?,
            }
        }
        Ok(())
    }
}

/// Puts a segment that is only ever created.
async fn put_claims(store: &Store, entries: &[ManifestEntry]) -> Result<()> {
    let number = clock::random_u64();
    let newest = entries.iter().map(|e| e.id.max).max().unwrap_or_default();
    let key = layout::appended_key(newest, number);
    store.put_new(&key, encode_segment(number, entries), PutMeta::default()).await.map(drop)
}

/// Makes as few segments as there can be out of those that are only ever created, without what `ids` names and what is `vouched` for. All of those
/// read go, the newest first, so that what stood before stands at each moment (I-MAN-5); of those that cannot be read none does. Gives how many
/// of `ids` were named.
async fn unclaim(
    store: &Store,
    appended: Vec<Appended>,
    ids: &BTreeSet<FileId>,
    vouched: &BTreeSet<FileId>,
) -> Result<usize> {
    let mut claims: BTreeMap<FileId, ManifestEntry> = BTreeMap::new();
    let mut keys = Vec::new();
    for (a, found) in fetch_appended(store, appended).await? {
        if let Ok(entries) = found.and_then(|bytes| decode_named(&a.key, a.number, &bytes)) {
            claims.extend(entries.into_iter().map(|e| (e.id, e)));
            keys.push(a.key);
        }
    }
    let had = claims.len();
    claims.retain(|id, _| !ids.contains(id));
    let removed = had - claims.len();
    claims.retain(|id, _| !vouched.contains(id));
    if removed == 0 && had.div_ceil(SEGMENT_FILES) == keys.len() && claims.len() == had {
        return Ok(0);
    }
    let left: Vec<ManifestEntry> = claims.into_values().collect();
    for some in left.chunks(SEGMENT_FILES) {
        put_claims(store, some).await?;
    }
    crate::base::crash::point("manifest.claims");
    for some in keys.chunks(DELETED_AT_ONCE) {
        store.delete(some).await?;
    }
    Ok(removed)
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Put(u64, Vec<ManifestEntry>),
    Drop(u64),
}

/// What to write and drop so that the segments hold what they should. A segment is merged into the one before
/// it when both fit; the newest keeps its number, so that the writer goes on in it. Merging goes into the later
/// number, since the later one wins (I-MAN-3), and the earlier is dropped after that.
fn pack(segments: Vec<(u64, Vec<ManifestEntry>, usize)>, newest: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut carried: Option<(u64, Vec<ManifestEntry>)> = None;
    for (number, mut entries, had) in segments {
        let mut changed = entries.len() != had;
        if let Some((from, mut earlier)) = carried.take() {
            if number != newest && earlier.len() + entries.len() <= PACKED_FILES {
                earlier.retain(|e| !entries.iter().any(|n| n.id == e.id));
                changed |= !earlier.is_empty();
                earlier.append(&mut entries);
                entries = earlier;
                if changed {
                    steps.push(Step::Put(number, entries.clone()));
                    changed = false;
                }
                steps.push(Step::Drop(from));
            } else if earlier.is_empty() {
                steps.push(Step::Drop(from));
            }
        }
        if changed && (number == newest || !entries.is_empty()) {
            steps.push(Step::Put(number, entries.clone()));
        }
        carried = (number != newest).then_some((number, entries));
    }
    if let Some((from, last)) = carried
        && last.is_empty()
    {
        steps.push(Step::Drop(from));
    }
    steps
}

#[cfg(test)]
mod tests;
