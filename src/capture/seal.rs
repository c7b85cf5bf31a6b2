//! Frames of the WAL → one LTX piece in the spool.
//!
//! Two passes over the range. The first walks the checksum chain from the position to the wal-index header
//! and keeps the newest frame of each page. The second reads those pages once for their checksums (the
//! header of an LTX file comes first and attests the database after it) and once to encode; they come out of
//! the page cache.
//!
//! Growth: pages between the old and the new size of the database that no frame of the range holds are
//! added, as SQLite would read them: the newest older frame of this generation, else the database file,
//! else zeros. Without them a merge over a shrink would bring back old content.

use super::database::Database;
use super::error::SealError;
use super::pages;
use crate::base::{Error, PageSize, Pgno, Timestamp, crash};
use crate::ltx::{self, Attest, Encoder, Header, Packing, WalRange};
use crate::spool::{Handoff, Position, SealHeld, Spool, WalPlace, WalPoint};
use crate::wal::{self, IndexHeader, WalPos};
use std::fs::File;

/// What one seal did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Frames read.
    pub frames: u32,
    /// Distinct pages kept.
    pub pages: u32,
    /// Bytes of the piece.
    pub bytes: u64,
}

/// Where the newest version of a page is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Frame(u32),
    /// Not in the range: content as of now, looked up once.
    Growth,
}

/// What sealing works with: the position is the spool's, read under the lock that is held; the header is how far the WAL is
/// committed.
pub(super) struct Sealing<'a> {
    pub(super) spool: &'a Spool,
    pub(super) held: &'a SealHeld<'a>,
    pub(super) position: &'a Position,
    pub(super) header: &'a IndexHeader,
    pub(super) wal: &'a File,
    pub(super) db: &'a dyn Database,
    pub(super) now: Timestamp,
}

/// Seals frames from `from + 1` to the header's last (I-CAP-1). Errors with [`SealError::Again`] when the WAL was restarted
/// meanwhile, [`SealError::OutOfSync`] when it has another page size, and as reading the WAL and writing the spool do.
pub(super) fn seal(
    sealing: &Sealing<'_>,
    from: u32,
    packing: Packing,
) -> Result<(Position, Sealed), SealError> {
    let Sealing { spool, held, position: p, header: h, wal: wal_file, db, now } = *sealing;
    let page_size = p.page_size;
    if h.page_size != Some(page_size) {
        let (was, is) = (page_size.get(), h.page_size.map_or(0, PageSize::get));
        return Err(SealError::OutOfSync(format!("the page size is no longer {was} but {is}").into()));
    }
    let known = db.frame_pages(from, h.max_frame);
    let mut places = wal::locate(wal_file, start_of(p, from, h, wal_file)?, h.position(), known.as_deref())?;
    let lock_page = page_size.lock_page();
    places.pages.retain(|at| at.pgno.get() <= h.pages && at.pgno != lock_page);
    let reader = pages::Reader::new(wal_file, page_size, h.salt, from, db);
    let mut content = Content { reader: &reader, page: vec![0; page_size.len()] };
    let mut sources = Vec::with_capacity(places.pages.len());
    let mut sums = Vec::with_capacity(places.pages.len());
    for at in &places.pages {
        places.read(wal_file, at, &mut content.page)?;
        sources.push((at.pgno, Source::Frame(at.frame)));
        sums.push((at.pgno, ltx::page_checksum(at.pgno, &content.page)));
    }
    for pgno in growth(&sources, p.commit, h.pages, lock_page) {
        let page = content.read(pgno, Source::Growth)?;
        sources.push((pgno, Source::Growth));
        sums.push((pgno, ltx::page_checksum(pgno, page)));
    }
    sources.sort_unstable_by_key(|(pgno, _)| *pgno);
    sums.sort_unstable_by_key(|(pgno, _)| *pgno);
    let after = checksum_after(spool, p, h.pages, page_size, &sums)?;

    let timestamp = now.max(p.timestamp);
    let txid = p.txid.next();
    let mut header = Header::new(page_size, h.pages, txid, txid, timestamp);
    header.lineage = p.lineage;
    header.attest = Some(Attest { before: p.checksum, after });
    header.wal = Some(WalRange::of_frames(page_size, from, h.max_frame, (h.salt.salt1, h.salt.salt2)));
    crash::point("seal.before-piece");
    let path = spool.piece_path(txid, p.pieces);
    let change = spool.begin_change(held)?;
    let bytes = spool.write_file(&path, |w| {
        let mut e = Encoder::piece(w, header, packing)?;
        for (pgno, source) in &sources {
            let page = content.read(*pgno, *source)?;
            e.page(*pgno, page)?;
        }
        Ok(e.finish()?.0.bytes)
    })?;
    crash::point("seal.after-piece");
    if let Err(e) = wal::check_generation(wal_file, h.salt) {
        // Restarted under us: the copies made after the chain was walked may be of the next generation.
        std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        change.done()?;
        return Err(e.into());
    }
    spool.sums().store(&sums)?;
    crash::point("seal.after-sums");
    let next = Position {
        pieces: p.pieces + 1,
        literal: p.literal || packing == Packing::Literal,
        commit: h.pages,
        checksum: after,
        timestamp,
        wal: WalPlace::from(WalPoint {
            salt1: h.salt.salt1,
            salt2: h.salt.salt2,
            frame: h.max_frame,
            checksum: Some((h.frame_checksum.0, h.frame_checksum.1)),
        }),
        handoff: Handoff::Live,
        ..p.clone()
    };
    spool.set_position(held, &next)?;
    crash::point("seal.after-position");
    change.done()?;
    let sealed = Sealed { frames: h.max_frame - from, pages: sources.len() as u32, bytes };
    Ok((next, sealed))
}

/// A transaction that SQLite is about to commit: all its frames are in the WAL, but for the last one's header,
/// which is held back.
#[derive(Debug)]
pub struct Uncommitted<'a> {
    /// Number of the commit frame.
    pub frame: u32,
    /// Its page.
    pub pgno: Pgno,
    /// Size of the database in pages after it.
    pub commit: u32,
    /// The page's content.
    pub page: &'a [u8],
}

/// What the position becomes if the commit goes through.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) position: Position,
    pub(super) sums: Vec<(Pgno, u64)>,
}

/// Makes the level-0 file of a transaction before it is committed. The frames' own checksums are not looked
/// at: a spilled transaction has them only at its very end. Everything before it is sealed and cut.
///
/// Errors as [`seal`].
pub(super) fn prepare(sealing: &Sealing<'_>, last: &Uncommitted<'_>) -> Result<Prepared, SealError> {
    let Sealing { spool, position: p, header: h, wal: wal_file, db, now, .. } = *sealing;
    let page_size = p.page_size;
    let lock_page = page_size.lock_page();
    let salt = wal::current_salt(wal_file)?;
    let first = if salt == h.salt { h.max_frame + 1 } else { 1 };
    let older = if salt == h.salt { h.max_frame } else { 0 };
    let mut newest: std::collections::BTreeMap<Pgno, u32> = std::collections::BTreeMap::new();
    for n in first..last.frame {
        if let Some(pgno) = wal::frame_page(wal_file, page_size, n)? {
            newest.insert(pgno, n);
        }
    }
    newest.insert(last.pgno, last.frame);
    let mut sources: Vec<(Pgno, Source)> = newest
        .into_iter()
        .filter(|(pgno, _)| pgno.get() <= last.commit && *pgno != lock_page)
        .map(|(pgno, n)| (pgno, Source::Frame(n)))
        .collect();
    sources.extend(growth(&sources, p.commit, last.commit, lock_page).map(|pgno| (pgno, Source::Growth)));
    sources.sort_unstable_by_key(|(pgno, _)| *pgno);
    let reader = pages::Reader::new(wal_file, page_size, salt, older, db);
    let mut content = Content { reader: &reader, page: vec![0; page_size.len()] };
    let mut read = |pgno: Pgno, source: Source, out: &mut Vec<u8>| -> crate::base::Result<()> {
        out.clear();
        match source {
            Source::Frame(n) if n == last.frame => out.extend_from_slice(last.page),
            source => out.extend_from_slice(content.read(pgno, source)?),
        }
        Ok(())
    };
    let mut page = Vec::with_capacity(page_size.len());
    let mut sums = Vec::with_capacity(sources.len());
    for (pgno, source) in &sources {
        read(*pgno, *source, &mut page)?;
        sums.push((*pgno, ltx::page_checksum(*pgno, &page)));
    }
    let after = checksum_after(spool, p, last.commit, page_size, &sums)?;
    let txid = p.txid.next();
    let timestamp = now.max(p.timestamp);
    let mut header = Header::new(page_size, last.commit, txid, txid, timestamp);
    header.lineage = p.lineage;
    header.attest = Some(Attest { before: p.checksum, after });
    header.wal = Some(WalRange::of_frames(page_size, first - 1, last.frame, (salt.salt1, salt.salt2)));
    spool.write_file(&spool.pending_path(txid), |w| {
        let mut e = Encoder::new(w, header)?;
        for (pgno, source) in &sources {
            read(*pgno, *source, &mut page)?;
            e.page(*pgno, &page)?;
        }
        e.finish().map(drop)
    })?;
    let position = Position { txid, pieces: 0, commit: last.commit, checksum: after, timestamp, ..p.clone() };
    Ok(Prepared { position, sums })
}

/// The start of the range with its running checksum, which the spool may not have.
fn start_of(p: &Position, from: u32, h: &IndexHeader, wal_file: &File) -> Result<WalPos, SealError> {
    let checksum = match p.wal.point().and_then(|w| w.checksum).filter(|_| from > 0) {
        Some((a, b)) => wal::FrameChecksum(a, b),
        None => wal::checksum_at(wal_file, h.salt, from)?,
    };
    Ok(WalPos { salt: h.salt, frame: from, checksum })
}

/// The pages in `(old, new]` that are not among `sources`.
fn growth(
    sources: &[(Pgno, Source)],
    old: u32,
    new: u32,
    lock_page: Pgno,
) -> impl Iterator<Item = Pgno> + use<> {
    let have: std::collections::HashSet<u32> =
        sources.iter().map(|(p, _)| p.get()).filter(|p| *p > old).collect();
    (old.saturating_add(1)..=new)
        .filter(move |n| !have.contains(n))
        .filter_map(Pgno::new)
        .filter(move |pgno| *pgno != lock_page)
}

/// The database checksum after these pages replace theirs and the size becomes `commit`.
fn checksum_after(
    spool: &Spool,
    p: &Position,
    commit: u32,
    page_size: PageSize,
    sums: &[(Pgno, u64)],
) -> Result<crate::base::DbChecksum, SealError> {
    let mut c = p.checksum;
    let replaced: Vec<Pgno> = sums.iter().map(|(g, _)| *g).filter(|g| g.get() <= p.commit).collect();
    for old in spool.sums().load(&replaced)? {
        if old != 0 {
            c = c.toggle(old);
        }
    }
    for (_, new) in sums {
        c = c.toggle(*new);
    }
    if commit < p.commit {
        c = c.toggle_all(spool.sums().scrambled(commit + 1, p.commit, page_size)?);
    }
    Ok(c)
}

struct Content<'a> {
    reader: &'a pages::Reader<'a>,
    page: Vec<u8>,
}

impl Content<'_> {
    fn read(&mut self, pgno: Pgno, source: Source) -> crate::base::Result<&[u8]> {
        match source {
            Source::Frame(frame) => self.reader.frame(frame, &mut self.page)?,
            Source::Growth => self.reader.growth(pgno, &mut self.page)?,
        }
        Ok(&self.page)
    }
}
