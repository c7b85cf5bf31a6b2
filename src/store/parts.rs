//! Large objects go up in parts: several at once, each tried again by itself, and where an upload stopped it goes on.
//!
//! What is on its way is noted in a file beside the source, `<source>.upload`: which upload it is, how long its parts are, and which of
//! them the store has. The note is worth as much as what it says of the source: its length and its SHA-256.
//!
//! Rules
//! * I-PART-1 An upload is gone on with, or aborted: after a failure that may pass, and after a crash, its note stays, and who puts the same
//!   file again goes on from there; after any other failure the upload is aborted and the note removed. A note whose source is
//!   gone is an upload to be aborted ([`abandoned`]).
//!   One that the store answers with failures and takes no part of, [`BARREN`] times running, is dead, whatever the store says of it: it
//!   is given up and begun anew, as soon as the store begins another one.
//! * I-PART-2 Nothing of an object is visible before its end, which is create-only as a plain put is: going on with an upload of long ago
//!   replaces nothing.
//! * I-PART-3 At most [`IN_FLIGHT_BYTES`], or one part, are in memory.
//! * I-PART-4 The parts of a file that a store refuses to take so many of are made longer, and the store's limit is remembered.
//!
//! Refused: a list of the bucket's uploads (object_store has none, and another program's uploads are not ours to abort); parts of
//! different lengths in one upload (R2 refuses them).

use super::backend::{Create, Failure, Tags};
use super::error::Verb;
use super::http::{ANSWER_TIMEOUT, survived, without_condition};
use super::object::{Version, file_error};
use super::objects::{Objects, SLOWEST_BYTES_PER_S, about_a_hold, headers_of, not_yet};
use super::retry::Retry;
use crate::base::hex::digits;
use crate::base::{Error, Kind, clock, crash, manners};
use bytes::Bytes;
use futures_util::StreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::{PutMultipartOptions, PutPayload};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// S3 wants 5 MiB or more.
const PART_BYTES: u64 = 8 << 20;
/// A part is no longer than this: it is in memory.
const LONGEST_PART_BYTES: u64 = 256 << 20;
/// Some stores take 1,000 parts, S3 10,000 (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
const MOST_PARTS: u64 = 1_000;
/// The same for files that would need parts too long for memory otherwise.
const MOST_PARTS_OF_ALL: u64 = 9_000;
/// A part that makes a file fit into [`MOST_PARTS`] is no longer than this.
const COMFORTABLE_PART_BYTES: u64 = 32 << 20;
/// What is in memory of one upload.
const IN_FLIGHT_BYTES: u64 = 32 << 20;
/// Tries of one part: about 20 seconds.
const PART: Retry = Retry::without_end(Duration::from_millis(200), Duration::from_secs(5)).at_most(8);
/// How often running an upload is gone on with of which the store takes nothing and says that something is wrong with itself.
const BARREN: usize = 3;
/// Tries to abort one: the line may break over it, as over the parts that were on their way.
const ABORTS: u32 = 3;
/// How often an upload begins anew because the store gave it up or wants longer parts.
const ROUNDS: usize = 12;
/// What a note's file is called after its source.
const NOTE: &str = "upload";

/// How long the parts of a file are, for a store that takes `limit` of them (0: not known). Pure.
fn part_bytes(size: u64, limit: u64) -> u64 {
    let fit = |parts: u64| size.div_ceil(parts.max(1)).next_multiple_of(1 << 20);
    let known = if limit > 0 { fit(limit) } else { 0 };
    let few = fit(MOST_PARTS).min(COMFORTABLE_PART_BYTES);
    PART_BYTES.max(known).max(few).max(fit(MOST_PARTS_OF_ALL))
}

/// How many parts of that length are under way at once. Pure.
fn at_once(part: u64) -> usize {
    usize::try_from(IN_FLIGHT_BYTES / part.max(1)).unwrap_or(1).max(1)
}

/// An upload that is under way.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Upload {
    key: String,
    bytes: u64,
    sha256: String,
    part_bytes: u64,
    id: String,
}

/// The note of an upload: one line for it, one for each part that the store has, `<index> <its id>`, and one for each time when it was
/// gone on with in vain, `! <HTTP status>`.
#[derive(Debug)]
struct Note {
    path: PathBuf,
    file: Mutex<Option<File>>,
    /// How often running it was gone on with in vain, before this time.
    barren: usize,
    /// Whether the store took a part this time.
    is_fruitful: AtomicBool,
}

fn note_of(source: &Path) -> PathBuf {
    let mut name = source.as_os_str().to_os_string();
    name.push(".");
    name.push(NOTE);
    name.into()
}

impl Note {
    /// Begins a note. Where none can be written, the upload cannot be gone on with, and that is all.
    fn begin(source: &Path, upload: &Upload) -> Note {
        let path = note_of(source);
        let written = serde_json::to_string(upload).ok().and_then(|text| {
            drop(std::fs::remove_file(&path));
            let mut file = manners::create(&path).ok()?;
            writeln!(file, "{text}").ok()?;
            Some(file)
        });
        Note { path, file: Mutex::new(written), barren: 0, is_fruitful: AtomicBool::new(false) }
    }

    /// What is noted beside `source`: the upload, and which parts the store has.
    fn read(source: &Path) -> Option<(Note, Upload, BTreeMap<usize, String>)> {
        let path = note_of(source);
        let text = std::fs::read_to_string(&path).ok()?;
        // (The last line may be half written.)
        let whole = text.rfind('\n').and_then(|end| text.get(..end))?;
        let mut lines = whole.lines();
        let upload = serde_json::from_str(lines.next()?).ok()?;
        let (mut parts, mut barren) = (BTreeMap::new(), 0);
        for (index, id) in lines.filter_map(|l| l.split_once(' ')) {
            match index.parse() {
                Ok(index) => {
                    barren = 0;
                    parts.insert(index, id.to_string());
                }
                Err(_) => barren += 1,
            }
        }
        let mut file = File::options().append(true).open(&path).ok()?;
        if !text.ends_with('\n') {
            writeln!(file).ok()?;
        }
        let note = Note { path, file: Mutex::new(Some(file)), barren, is_fruitful: AtomicBool::new(false) };
        Some((note, upload, parts))
    }

    fn is_kept(&self) -> bool {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn add(&self, index: usize, id: &str) {
        self.is_fruitful.store(true, Ordering::Relaxed);
        self.line(format_args!("{index} {id}"));
    }

    fn line(&self, text: std::fmt::Arguments<'_>) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(f) = file.as_mut()
            && writeln!(f, "{text}").is_err()
        {
            *file = None;
        }
    }

    fn remove(&self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// Notes in `dir` whose sources are gone: of uploads that nobody goes on with.
fn abandoned(dir: &Path) -> Vec<(PathBuf, Upload)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let notes = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == NOTE));
    notes
        .map(|p| p.with_extension(""))
        .filter(|source| !source.exists())
        .filter_map(|source| Note::read(&source).map(|(note, upload, _)| (note.path, upload)))
        .collect()
}

/// Whether the store says of a part that it cannot be.
fn is_refused(f: &Failure) -> bool {
    f.status == Some(400) && f.error.kind() == Kind::Config
}

/// Whether a store says with this answer that something is wrong with itself, and not that it wants to be asked later.
fn says_it_is_broken(status: u16) -> bool {
    status >= 500 && status != 503
}

/// Why an upload is not done.
enum Halt {
    /// It failed.
    Failed(Failure),
    /// It is begun anew: the store has given it up, or takes no more than so many parts.
    Again,
}

impl From<Failure> for Halt {
    fn from(f: Failure) -> Halt {
        Halt::Failed(f)
    }
}

/// What all parts of one upload have in common.
struct Way<'a> {
    client: Arc<dyn MultipartStore>,
    path: object_store::path::Path,
    key: &'a str,
    source: &'a Path,
    upload: Upload,
}

impl Objects {
    /// Puts a file in parts. Create-only where the store can (S3); elsewhere as far as a look just before the end can tell.
    pub(super) async fn put_in_parts(
        &self,
        client: Arc<dyn MultipartStore>,
        key: &str,
        source: &Path,
        tags: &Tags,
        create: Create,
    ) -> Result<Version, Failure> {
        let mut rounds = 0;
        loop {
            rounds += 1;
            match self.put_once(client.clone(), key, source, tags, create).await {
                Ok(version) => return Ok(version),
                Err(Halt::Again) if rounds < ROUNDS => {}
                Err(Halt::Again) => {
                    let why = format!("cannot put {key}: the store gives each upload of it up");
                    return Err(Failure::sure(Error::new(Kind::Retry, why)));
                }
                Err(Halt::Failed(f)) => return Err(f),
            }
        }
    }

    async fn put_once(
        &self,
        client: Arc<dyn MultipartStore>,
        key: &str,
        source: &Path,
        tags: &Tags,
        create: Create,
    ) -> Result<Version, Halt> {
        let io = |e| Failure::sure(file_error("read", source, e));
        let file = File::open(source).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let path = self.path(key).map_err(Failure::sure)?;
        let part_bytes = part_bytes(bytes, self.parts_limit().load(Ordering::Relaxed));
        let wanted =
            Upload { key: key.into(), bytes, sha256: digits(&tags.sha256), part_bytes, id: String::new() };
        let found = Note::read(source).filter(|(note, u, _)| {
            note.barren < BARREN && Upload { id: String::new(), ..u.clone() } == wanted
        });
        let (note, upload, mut done) = match found {
            Some(found) => found,
            None => {
                let options =
                    PutMultipartOptions { attributes: self.attributes(Some(tags)), ..Default::default() };
                let start = client.create_multipart_opts(&path, options);
                let start = super::http::with_headers(headers_of(Some(tags)), start);
                let id = self.run(Verb::Put, key, ANSWER_TIMEOUT * 2, start).await;
                let id = id.map_err(|f| about_a_hold(Some(tags), not_yet(f)))?;
                // (Not before: as long as the store begins none, what is noted may be as good as it was.)
                self.abort_noted(&client, source).await;
                let upload = Upload { id, ..wanted };
                (Note::begin(source, &upload), upload, BTreeMap::new())
            }
        };
        crash::point("parts.begun");
        let way = Way { client, path, key, source, upload };
        let sent = self.send(&way, &file, &note, &mut done).await;
        let ended = match sent {
            Ok(()) => self.end(&way, done, create).await.map_err(Halt::Failed),
            Err(halt) => Err(halt),
        };
        let may_go_on = match &ended {
            Ok(_) => {
                note.remove();
                return ended;
            }
            // The condition may be refused and not the upload: then it is ended without one.
            Err(Halt::Failed(f)) => note.is_kept() && (f.error.is_retry() || f.may_refuse_condition()),
            Err(Halt::Again) => false,
        };
        // (An upload that the store has given up is not to be gone on with.)
        let is_gone = matches!(&ended, Err(Halt::Failed(f)) if f.status == Some(404));
        if let Err(Halt::Failed(f)) = &ended
            && let Some(status) =
                f.status.filter(|s| says_it_is_broken(*s) && !note.is_fruitful.load(Ordering::Relaxed))
        {
            note.line(format_args!("! {status}"));
        }
        if !may_go_on || is_gone {
            self.abort(&way.client, &way.path, &way.upload.id).await;
            note.remove();
        }
        match ended {
            // It may have been carried out, and the answer lost: that is looked for before it is begun anew.
            Err(Halt::Failed(f)) if is_gone => Err(Halt::Failed(Failure { may_have_happened: true, ..f })),
            ended => ended,
        }
    }

    /// Sends the parts that the store does not have.
    async fn send(
        &self,
        way: &Way<'_>,
        file: &File,
        note: &Note,
        done: &mut BTreeMap<usize, String>,
    ) -> Result<(), Halt> {
        let count = usize::try_from(way.upload.bytes.div_ceil(way.upload.part_bytes)).unwrap_or(usize::MAX);
        let todo: Vec<usize> = (0..count).filter(|i| !done.contains_key(i)).collect();
        let parts = futures_util::stream::iter(todo).map(|index| async move {
            let sent = self.part(way, file, index).await;
            if let Ok(id) = &sent {
                note.add(index, id);
                crash::point("parts.sent");
            }
            (index, sent)
        });
        // (In order: the first that is refused says how many are taken.)
        let mut parts = Box::pin(parts.buffered(at_once(way.upload.part_bytes)));
        while let Some((index, sent)) = parts.next().await {
            match sent {
                Ok(id) => drop(done.insert(index, id)),
                Err(f) if f.status == Some(404) => return Err(Halt::Again),
                Err(f) if is_refused(&f) && self.takes_only(index as u64, &way.upload) => {
                    return Err(Halt::Again);
                }
                Err(f) => return Err(f.into()),
            }
        }
        Ok(())
    }

    /// The store refuses a part behind the first `index`, which it took: whether longer ones may help. That is remembered.
    fn takes_only(&self, index: u64, upload: &Upload) -> bool {
        let longer = part_bytes(upload.bytes, index);
        let may_help = index > 0 && longer > upload.part_bytes && longer <= LONGEST_PART_BYTES;
        if may_help {
            self.parts_limit().store(index, Ordering::Relaxed);
            log::info!("walrust: {}: the store takes {index} parts: they are made longer", upload.key);
        }
        may_help
    }

    /// One part, tried again by itself.
    async fn part(&self, way: &Way<'_>, file: &File, index: usize) -> Result<String, Failure> {
        let io = |e| Failure::sure(file_error("read", way.source, e));
        let offset = index as u64 * way.upload.part_bytes;
        let length = way.upload.part_bytes.min(way.upload.bytes.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut bytes, offset).map_err(io)?;
        let bytes = Bytes::from(bytes);
        let limit = ANSWER_TIMEOUT * 2 + Duration::from_secs(length / SLOWEST_BYTES_PER_S);
        let mut failed = 0;
        loop {
            let put = way.client.put_part(&way.path, &way.upload.id, index, PutPayload::from(bytes.clone()));
            let f = match self.run(Verb::Put, way.key, limit, put).await {
                Ok(PartId { content_id }) => return Ok(content_id),
                Err(f) => not_yet(f),
            };
            let may_pass = f.error.is_retry() && f.status != Some(404);
            if !may_pass || failed + 1 >= PART.attempts {
                return Err(f);
            }
            log::debug!("walrust: part {} of {}: {}", index + 1, way.key, f.error);
            tokio::time::sleep(PART.delay(failed, clock::random_u64(), f.error.retry_after())).await;
            failed += 1;
        }
    }

    async fn end(
        &self,
        way: &Way<'_>,
        done: BTreeMap<usize, String>,
        create: Create,
    ) -> Result<Version, Failure> {
        if create.wants_a_look(self.ends_with_condition()) {
            self.look_before_the_end(way.key).await?;
        }
        let parts = done.into_values().map(|content_id| PartId { content_id }).collect();
        let limit = ANSWER_TIMEOUT * 2;
        let complete = way.client.complete_multipart(&way.path, &way.upload.id, parts);
        let complete = async {
            if create != Create::Enforced { without_condition(complete).await } else { complete.await }
        };
        self.run(Verb::Put, way.key, limit, complete).await.map(super::objects::version)
    }

    /// Aborts what a note beside `source` tells of: another upload than the one that is wanted.
    async fn abort_noted(&self, client: &Arc<dyn MultipartStore>, source: &Path) {
        if let Some((note, upload, _)) = Note::read(source) {
            if let Ok(path) = self.path(&upload.key) {
                self.abort(client, &path, &upload.id).await;
            }
            note.remove();
        }
    }

    /// Best effort: parts that stay behind are what a bucket's lifecycle rule is for.
    async fn abort(&self, client: &Arc<dyn MultipartStore>, path: &object_store::path::Path, id: &String) {
        for failed in 0..ABORTS {
            let asked =
                survived(tokio::time::timeout(ANSWER_TIMEOUT, client.abort_multipart(path, id))).await;
            match asked {
                Ok(Ok(Err(e))) if !matches!(e, object_store::Error::NotFound { .. }) => {}
                Ok(Ok(_)) => return,
                // (A store that is away, or keys that make no request: a later try finds the same.)
                Ok(Err(_)) | Err(_) => return,
            }
            tokio::time::sleep(PART.delay(failed, clock::random_u64(), None)).await;
        }
    }

    /// Aborts the uploads whose notes lie in `dir` and whose sources are gone.
    pub(super) async fn abort_abandoned(&self, client: Arc<dyn MultipartStore>, dir: &Path) {
        for (note, upload) in abandoned(dir) {
            if let Ok(path) = self.path(&upload.key) {
                self.abort(&client, &path, &upload.id).await;
            }
            drop(std::fs::remove_file(note));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parts_are_as_long_as_the_file_and_the_store_demand() {
        for (size, limit, part, in_flight) in [
            (300 * MIB, 0, 8 * MIB, 4),
            (300 * MIB, 20, 15 * MIB, 2),
            (7_900 * MIB, 0, 8 * MIB, 4),
            // 1,000 parts are enough for it.
            (20_000 * MIB, 0, 20 * MIB, 1),
            (100_000 * MIB, 0, 32 * MIB, 1),
            (100_000 * MIB, 1_000, 100 * MIB, 1),
            // 9,000 parts.
            (900_000 * MIB, 0, 100 * MIB, 1),
        ] {
            let found = part_bytes(size, limit);
            assert_eq!((found / MIB, at_once(found)), (part / MIB, in_flight), "{size} {limit}");
            assert!(limit == 0 || size.div_ceil(found) <= limit);
            assert!(at_once(found) as u64 * found <= IN_FLIGHT_BYTES || at_once(found) == 1);
        }
    }

    #[test]
    fn a_note_tells_what_is_there_and_half_a_line_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("x.ltx");
        std::fs::write(&source, b"").unwrap();
        let upload = Upload {
            key: "0009/x.ltx".into(),
            bytes: 20,
            sha256: "ab".into(),
            part_bytes: 8,
            id: "an id".into(),
        };
        let note = Note::begin(&source, &upload);
        note.add(0, "\"a b\"");
        note.add(2, "c");
        let (_, read, parts) = Note::read(&source).unwrap();
        assert_eq!((&read, parts.len()), (&upload, 2));
        assert_eq!(parts.get(&0).map(String::as_str), Some("\"a b\""));
        let path = note_of(&source);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        let (note, _, parts) = Note::read(&source).unwrap();
        assert_eq!(parts.keys().collect::<Vec<_>>(), [&0]);
        note.add(1, "d");
        assert_eq!(
            Note::read(&source).unwrap().2.len(),
            3,
            "what is noted after half a line is whole, and so is the line now"
        );
        for n in 1..=2 {
            note.line(format_args!("! 500"));
            let (note, _, parts) = Note::read(&source).unwrap();
            assert_eq!((note.barren, parts.len()), (n, 3));
        }
        note.add(3, "e");
        assert_eq!(Note::read(&source).unwrap().0.barren, 0, "a part that the store took ends the row");
        assert!(abandoned(dir.path()).is_empty());
        std::fs::remove_file(&source).unwrap();
        assert_eq!(abandoned(dir.path()), [(path, upload)]);
    }
}
