//! What is inside the files of an append-only replica, before a janitor stands for them: each is read whole once, and the database that it leads
//! to is added up, page by page.
//!
//! Rules
//! * I-VOUCH-1 A file is proved if it is sound, if it says what its name says, and if what it leads to is what it attests: for a full copy the sum of its
//!   pages; for any other the sum that its pages make of the state before it, or of one within it, which was proved.
//! * I-VOUCH-2 Of each page eight bytes are in memory, of each large file a copy on disk while it is read. What was vouched for is read only where the
//!   walk begins: the newest full copy before what is new, and what leads from there.
//!
//! A merged file's own checksums say that it is what its maker made; whether that is what the commits made, only adding up tells. Refused: a restore for
//! each file (the base would be read as often); to believe a file that cannot be reached from a proved state.

use super::edge::edge_of;
use super::inventory::FileInfo;
use super::layout::FileId;
use super::manifest::ManifestEntry;
use crate::base::scratch::Scratch;
use crate::base::{DbChecksum, Error, Result, TxId, panics};
use crate::ltx::{Decoder, page_checksum};
use crate::store::Store;
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

/// Files up to this size are fetched into memory, [`AT_ONCE`] at once.
const SMALL: u64 = 1024 * 1024;
const AT_ONCE: usize = 32;

/// The page checksums of a database, and what they add up to.
#[derive(Clone, Debug)]
struct Sums {
    pages: Vec<u64>,
    sum: DbChecksum,
}

impl Sums {
    fn nothing() -> Sums {
        Sums { pages: Vec::new(), sum: DbChecksum::EMPTY }
    }

    fn at(&self, n: u32) -> u64 {
        usize::try_from(n).ok().and_then(|n| self.pages.get(n.checked_sub(1)?)).copied().unwrap_or(0)
    }

    /// What `pages` of a file make of it, where the database then has `commit` pages. Page numbers rise.
    fn with(&self, pages: &[(u32, u64)], commit: u32) -> DbChecksum {
        let replaced = pages.iter().fold(self.sum, |s, (n, new)| s.toggle(self.at(*n)).toggle(*new));
        let had = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        // (What is cut off is in no file.)
        (commit.saturating_add(1)..=had).fold(replaced, |s, n| s.toggle(self.at(n)))
    }

    fn apply(&mut self, pages: &[(u32, u64)], commit: u32) {
        self.sum = self.with(pages, commit);
        self.pages.resize(usize::try_from(commit).unwrap_or(usize::MAX), 0);
        for (n, new) in pages {
            if let Some(at) = usize::try_from(*n).ok().and_then(|n| self.pages.get_mut(n.checked_sub(1)?)) {
                *at = *new;
            }
        }
    }
}

/// One file, read whole.
struct Read {
    entry: ManifestEntry,
    before: Option<DbChecksum>,
    pages: Vec<(u32, u64)>,
}

/// Reads a file, which `open` opens from its beginning.
fn read<R: io::Read + io::Seek>(id: FileId, open: impl Fn() -> Result<R>) -> Result<Read> {
    let mut decoder = Decoder::with_sha256(io::BufReader::with_capacity(128 * 1024, open()?))?;
    let header = decoder.header().clone();
    if header.file_name() != id.name() {
        return Err(Error::corrupt(format!("its header says {}", header.file_name())));
    }
    let mut page = vec![0; header.page_size.len()];
    let mut pages = Vec::new();
    while let Some(n) = decoder.next_page(&mut page)? {
        pages.push((n.get(), page_checksum(n, &page)));
    }
    let trailer = decoder.finish()?;
    let entry = ManifestEntry {
        id,
        bytes: trailer.bytes,
        pages: trailer.pages,
        commit: header.commit,
        crc: trailer.checksum,
        edge: edge_of(&mut open()?)?,
        sha256: trailer.sha256.unwrap_or_default(),
        time: header.timestamp,
        after: header.attest.map(|a| a.after),
    };
    Ok(Read { entry, before: header.attest.map(|a| a.before), pages })
}

/// Files on their way here. Small ones come many at once, in the order in which the walk wants them.
struct Coming<'a> {
    store: &'a Store,
    small: Vec<FileId>,
    here: BTreeMap<FileId, Result<Bytes>>,
}

impl<'a> Coming<'a> {
    fn new(store: &'a Store, files: &[FileInfo], vouched: impl Fn(FileId) -> bool) -> Coming<'a> {
        let mut small: Vec<FileId> =
            files.iter().filter(|f| f.bytes <= SMALL && !vouched(f.id())).map(FileInfo::id).collect();
        small.sort_by_key(|id| (id.min, id.max, id.level));
        Coming { store, small, here: BTreeMap::new() }
    }

    async fn fetch(&mut self, id: FileId) -> Result<Read> {
        if let Some(at) = self.small.iter().position(|s| *s == id) {
            let soon: Vec<FileId> = self.small.iter().skip(at).take(AT_ONCE).copied().collect();
            let store = self.store;
            let got = futures_util::stream::iter(soon.clone())
                .map(|id| async move { (id, store.get(&id.key(store.layout())).await) })
                .buffer_unordered(AT_ONCE)
                .collect::<Vec<_>>()
                .await;
            self.small.retain(|s| !soon.contains(s));
            self.here.extend(got);
        }
        if let Some(bytes) = self.here.remove(&id) {
            let bytes = bytes?;
            return panics::blocking(move || read(id, || Ok(io::Cursor::new(bytes.clone())))).await?;
        }
        let scratch = Scratch::new(&std::env::temp_dir(), "vouch")?;
        self.store.get_to_file(&id.key(self.store.layout()), scratch.path()).await?;
        let open = |path: &Path| File::open(path).map_err(|e| Error::io("open", path, e));
        panics::blocking(move || read(id, || open(scratch.path()))).await?
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The files that are proved, and what a manifest says of them.
    pub(super) good: BTreeMap<FileId, ManifestEntry>,
    /// Those that are not, and why.
    pub(super) bad: BTreeMap<FileId, String>,
}

/// Proves those of `files` (which are believed) that nobody has vouched for. Errors: the store's, `Io` of the directory for temporary files.
pub(super) async fn prove(
    store: &Store,
    files: &[FileInfo],
    vouched: impl Fn(FileId) -> bool + Sync,
) -> Result<Proof> {
    let mut walk = Walk {
        coming: Coming::new(store, files, &vouched),
        vouched: &vouched,
        new: files.iter().filter(|f| !vouched(f.id())).map(|f| f.min).collect(),
        proof: Proof::default(),
        at: None,
        sums: Sums::nothing(),
    };
    let Some(first) = files.iter().filter(|f| !vouched(f.id())).map(|f| f.max).min() else {
        return Ok(walk.proof);
    };
    let mut full: Vec<&FileInfo> = files.iter().filter(|f| f.min == TxId(1)).collect();
    full.sort_by_key(|f| (f.max, f.level));
    let mut steps: Vec<&FileInfo> = files.iter().filter(|f| f.min > TxId(1)).collect();
    steps.sort_by_key(|f| (f.min, f.max, f.level));
    let begin = full.iter().rposition(|f| f.max < first && vouched(f.id()));
    for f in full.iter().take(begin.unwrap_or(0)).filter(|f| !vouched(f.id())) {
        walk.look(f).await?;
    }
    let (mut full, mut steps) =
        (full.into_iter().skip(begin.unwrap_or(0)).peekable(), steps.into_iter().peekable());
    loop {
        let at = walk.at.unwrap_or_default();
        // What begins before here and ends behind it: what it changed before here is here, or is changed again.
        while let Some(f) = steps.next_if(|f| f.min <= at) {
            if f.max > at && !vouched(f.id()) {
                walk.look_from_here(f).await?;
            }
        }
        // Full copies of a state that was passed are proved by themselves.
        while let Some(f) = full.next_if(|f| walk.at.is_some() && f.max <= at) {
            if !vouched(f.id()) {
                walk.look(f).await?;
            }
        }
        let mut from_here = Vec::new();
        while walk.at.is_some()
            && let Some(f) = steps.next_if(|f| f.min == at.next())
        {
            from_here.push(f);
        }
        if walk.advance(&from_here, first).await? {
            continue;
        }
        let Some(f) = full.next() else { break };
        walk.begin_at(f).await?;
    }
    let known: BTreeSet<FileId> = walk.proof.good.keys().chain(walk.proof.bad.keys()).copied().collect();
    for f in files.iter().filter(|f| !vouched(f.id()) && !known.contains(&f.id())) {
        walk.proof.bad.insert(f.id(), "nothing that was proved leads to it".into());
    }
    Ok(walk.proof)
}

struct Walk<'a> {
    coming: Coming<'a>,
    vouched: &'a (dyn Fn(FileId) -> bool + Sync),
    /// Where files begin that nobody has vouched for.
    new: BTreeSet<TxId>,
    proof: Proof,
    at: Option<TxId>,
    sums: Sums,
}

impl Walk<'_> {
    /// The file, if it is sound and leads from `sums` to what it attests.
    async fn judged(&mut self, f: &FileInfo, sums: &Sums) -> Result<Option<Read>> {
        let read = match self.coming.fetch(f.id()).await {
            Ok(read) => read,
            Err(e) if e.is_corrupt() => {
                self.proof.bad.insert(f.id(), e.to_string());
                return Ok(None);
            }
            // (A janitor has removed it meanwhile.)
            Err(e) if e.is_missing() => return Ok(None),
            Err(e) => return Err(e),
        };
        let leads_to = sums.with(&read.pages, read.entry.commit);
        let is_within = self.at.is_some_and(|at| f.min <= at);
        let starts = f.min == TxId(1) || is_within || read.before == Some(sums.sum);
        if !starts || read.entry.after != Some(leads_to) || f.attest_after != read.entry.after {
            let why = format!("it leads to {leads_to}, and not to what it says");
            self.proof.bad.insert(f.id(), why);
            return Ok(None);
        }
        if !(self.vouched)(f.id()) {
            self.proof.good.insert(f.id(), read.entry);
        }
        Ok(Some(read))
    }

    /// A full copy by itself.
    async fn look(&mut self, f: &FileInfo) -> Result<()> {
        self.judged(f, &Sums::nothing()).await.map(drop)
    }

    /// A file by the state that is reached.
    async fn look_from_here(&mut self, f: &FileInfo) -> Result<()> {
        let sums = std::mem::replace(&mut self.sums, Sums::nothing());
        let judged = self.judged(f, &sums).await;
        self.sums = sums;
        judged.map(drop)
    }

    /// A full copy to go on from.
    async fn begin_at(&mut self, f: &FileInfo) -> Result<()> {
        if let Some(read) = self.judged(f, &Sums::nothing()).await? {
            self.sums = Sums::nothing();
            self.sums.apply(&read.pages, read.entry.commit);
            self.at = Some(f.max);
        }
        Ok(())
    }

    /// Looks at all that go on from here, and goes on by the shortest that is good: each commit where there is one. Where nothing new begins
    /// before its end, by the longest that was vouched for. Whether it got on.
    async fn advance(&mut self, from_here: &[&FileInfo], first: TxId) -> Result<bool> {
        let is_new = |f: &&FileInfo| !(self.vouched)(f.id());
        let skips = |f: &FileInfo| f.min < f.max && self.new.range(f.min.next()..=f.max).next().is_some();
        let old = from_here.iter().filter(|f| f.max < first && !is_new(f) && !skips(f));
        let old = old.max_by_key(|f| f.max).copied();
        let looked_at: Vec<&FileInfo> = from_here.iter().filter(|f| is_new(f)).copied().collect();
        let shortest_old = from_here.iter().filter(|f| !is_new(f)).min_by_key(|f| f.max).copied();
        let sums = std::mem::replace(&mut self.sums, Sums::nothing());
        let mut way: Option<Read> = None;
        for f in looked_at {
            let judged = self.judged(f, &sums).await?;
            if way.is_none() {
                way = judged;
            }
        }
        if let Some(f) = old.or(shortest_old)
            && way.as_ref().is_none_or(|w| f.max < w.entry.id.max)
            && let Some(read) = self.judged(f, &sums).await?
        {
            way = Some(read);
        }
        self.sums = sums;
        let Some(read) = way else { return Ok(false) };
        self.sums.apply(&read.pages, read.entry.commit);
        self.at = Some(read.entry.id.max);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::Level;
    use crate::replica::inventory::Inventory;
    use crate::replica::testkit::{LtxFile, Maker, block, encode, history, merged, put};

    fn proved(store: &Store, vouched: &[FileId]) -> Proof {
        block(async {
            let mut inventory = Inventory::read(store).await.unwrap();
            inventory.learn_headers(store, |_| true).await.unwrap();
            prove(store, &inventory.files, |id| vouched.contains(&id)).await.unwrap()
        })
    }

    #[test]
    fn a_history_is_proved_and_what_it_says_of_itself_is_its_entry() {
        let store = Store::in_memory();
        let mut maker = Maker::new(1024);
        let mut files = history(&mut maker, 20);
        files.push(merged(
            2,
            &files.iter().filter(|f| f.id.level == Level::L0).take(9).cloned().collect::<Vec<_>>(),
        ));
        files.push(maker.gap());
        files.push(maker.step(3));
        files.push(maker.snapshot());
        block(put(&store, &files));
        let proof = proved(&store, &[]);
        assert_eq!(proof.bad, BTreeMap::new());
        let entries: BTreeMap<FileId, ManifestEntry> = files.iter().map(|f| (f.id, f.entry)).collect();
        assert_eq!(proof.good, entries);
        // What was vouched for is not proved again; what is new is.
        let old: Vec<FileId> = files.iter().take(15).map(|f| f.id).collect();
        let proof = proved(&store, &old);
        assert_eq!(proof.bad, BTreeMap::new());
        assert_eq!(proof.good.len(), files.len() - old.len());
        assert!(proved(&store, &files.iter().map(|f| f.id).collect::<Vec<_>>()).good.is_empty());
    }

    /// Another content under the same promises.
    fn forged(of: &LtxFile) -> LtxFile {
        let mut decoder = Decoder::new(of.bytes.as_slice()).unwrap();
        let header = decoder.header().clone();
        let mut pages = Vec::new();
        let mut page = vec![0; header.page_size.len()];
        while let Some(n) = decoder.next_page(&mut page).unwrap() {
            pages.push((n, page.clone()));
        }
        pages[0].1[100] ^= 1;
        let pages: Vec<_> = pages.iter().map(|(n, p)| (*n, p.as_slice())).collect();
        encode(of.id.level, header, &pages)
    }

    #[test]
    fn a_sound_file_with_another_content_is_found_at_each_level() {
        // (A full copy with another content proves itself wrong: its pages are its checksum.)
        for which in [2, 5] {
            let store = Store::in_memory();
            let mut maker = Maker::new(1024);
            let mut files = history(&mut maker, 9);
            let id = files[which].id;
            files[which] = forged(&files[which]);
            assert!(crate::ltx::verify(files[which].bytes.as_slice()).is_ok());
            block(put(&store, &files));
            let proof = proved(&store, &[]);
            assert!(proof.bad.contains_key(&id), "{id:?} {:?}", proof.bad);
            assert!(!proof.good.contains_key(&id));
        }
    }
}
