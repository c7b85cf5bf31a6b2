//! From frames to committed pages.

use super::checksum::FrameChecksum;
use super::header::{
    FRAME_HEADER_LEN, FrameHeader, Salt, WAL_HEADER_LEN, WalHeader, WalPos, frame_offset, page_offset,
};
use super::read_at::ReadAt;
use crate::base::{Error, Kind, PageSize, Pgno};
use std::io;

/// Bytes per read: large enough that system calls cost nothing, small enough to forget.
const BULK: usize = 256 * 1024;

/// Why frames could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The generation asked for is gone: the WAL was reset, truncated or replaced.
    #[error("the WAL no longer holds generation {0}")]
    Reset(Salt),
    /// The WAL holds the generation, but not the frames that were committed.
    #[error("the WAL is damaged: {0}")]
    Corrupt(String),
    /// The file could not be read.
    #[error("cannot read the WAL: {0}")]
    Io(#[source] io::Error),
}

impl From<ReadError> for Error {
    fn from(e: ReadError) -> Error {
        match e {
            ReadError::Reset(_) => Error::new(Kind::Missing, e.to_string()),
            ReadError::Corrupt(_) => Error::corrupt(e.to_string()),
            ReadError::Io(e) => Error::new(Kind::Io, "cannot read the WAL").because(e),
        }
    }
}

/// One frame on its way past.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The page.
    pub pgno: Pgno,
    /// The frame, counting from 1.
    pub number: u32,
    /// The page's bytes.
    pub page: &'a [u8],
    /// In a commit frame the size of the database in pages after it, else 0.
    pub commit: u32,
}

/// A range of committed frames, proved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frames {
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Size of the database in pages after the range; 0 if the range is empty.
    pub commit: u32,
    /// Number of commit frames in it. (SQLite pads a commit by repeating its last frame, so this is no
    /// count of transactions.)
    pub commits: u32,
    /// The newest frame of each page, pages ascending. Also of pages above `commit`: the range may shrink
    /// the database, and what lies above is then no part of it.
    pub pages: Vec<(Pgno, u32)>,
    /// The place behind the range.
    pub end: WalPos,
}

/// Reads the frames from `start` (exclusive) to `end` (inclusive), which are positions of one generation,
/// and proves them (I-WAL-2). `visit` sees every frame in order, on the way: what it learns counts only if
/// this returns `Ok`.
pub fn read_frames<S: ReadAt + ?Sized>(
    source: &S,
    start: WalPos,
    end: WalPos,
    mut visit: impl FnMut(Frame<'_>),
) -> Result<Frames, ReadError> {
    in_generation(source, start, end, |header| read_range(source, header, start, end, &mut visit))
}

/// Reads what lies between two positions of one generation. Whatever was found: in a WAL that was reset meanwhile it means
/// nothing.
fn in_generation<S: ReadAt + ?Sized, T>(
    source: &S,
    start: WalPos,
    end: WalPos,
    read: impl FnOnce(&WalHeader) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let salt = end.salt;
    if start.salt != salt {
        return Err(ReadError::Reset(start.salt));
    }
    if start.frame > end.frame {
        return Err(ReadError::Corrupt(format!("it ends at frame {} and not {}", end.frame, start.frame)));
    }
    let header = generation(source, salt)?;
    let found = read(&header);
    if generation(source, salt)? != header {
        return Err(ReadError::Reset(salt));
    }
    found
}

fn read_range<S: ReadAt + ?Sized>(
    source: &S,
    header: &WalHeader,
    start: WalPos,
    end: WalPos,
    visit: &mut impl FnMut(Frame<'_>),
) -> Result<Frames, ReadError> {
    let seed = if start.frame == 0 { header.checksum } else { start.checksum };
    let mut newest = Newest::default();
    let (mut sum, mut commit, mut commits) = (seed, 0, 0);
    let read = each_frame(source, header, start.frame, end.frame, seed, |frame, after| {
        newest.add(Place { pgno: frame.pgno, frame: frame.number, before: None });
        sum = after;
        commit = frame.commit;
        commits += u32::from(frame.commit != 0);
        visit(frame);
    })?;
    if read != end.frame {
        return Err(ReadError::Corrupt(format!("frame {} breaks the chain", read.saturating_add(1))));
    }
    if start.frame != end.frame && commit == 0 {
        return Err(ReadError::Corrupt(format!("frame {} has no commit mark", end.frame)));
    }
    if end.frame != 0 && sum != end.checksum {
        return Err(ReadError::Corrupt(format!("frame {} is not the one committed", end.frame)));
    }
    let end = WalPos { salt: header.salt, frame: end.frame, checksum: sum };
    Ok(Frames { page_size: header.page_size, commit, commits, pages: newest.frames(), end })
}

/// A page's newest frame in a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The page.
    pub pgno: Pgno,
    /// The frame, counting from 1.
    pub frame: u32,
    /// The running checksum in front of it, from which the frame proves itself; `None`: in the header before.
    before: Option<FrameChecksum>,
}

/// Which frames of a committed range hold the newest version of each page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    header: WalHeader,
    /// Pages ascending, those above the size that the range leaves included.
    pub pages: Vec<Place>,
}

/// Finds the newest frame of each page from `start` (exclusive) to `end` (inclusive), which are positions of one
/// generation, without reading pages (I-WAL-5): by the frame headers, or by `known`, the page numbers of just these
/// frames out of the wal-index.
pub fn locate<S: ReadAt + ?Sized>(
    source: &S,
    start: WalPos,
    end: WalPos,
    known: Option<&[u32]>,
) -> Result<Places, ReadError> {
    in_generation(source, start, end, |header| {
        let pages = match known {
            Some(pages) if pages.len() == (end.frame - start.frame) as usize => {
                locate_known(source, header, start, end, pages)
            }
            _ => locate_in(source, header, start, end),
        }?;
        Ok(Places { header: *header, pages })
    })
}

fn locate_in<S: ReadAt + ?Sized>(
    source: &S,
    header: &WalHeader,
    start: WalPos,
    end: WalPos,
) -> Result<Vec<Place>, ReadError> {
    let mut before = if start.frame == 0 { header.checksum } else { start.checksum };
    let mut newest = Newest::default();
    for frame in start.frame.saturating_add(1)..=end.frame {
        let head = frame_header(source, header, frame)?;
        let (Some(pgno), true) = (head.pgno, head.salt == header.salt) else {
            return Err(ReadError::Corrupt(format!("frame {frame} breaks the chain")));
        };
        if frame == end.frame && (head.commit == 0 || head.checksum != end.checksum) {
            return Err(ReadError::Corrupt(format!("frame {frame} is not the one committed")));
        }
        newest.add(Place { pgno, frame, before: Some(before) });
        before = head.checksum;
    }
    Ok(newest.finish())
}

fn locate_known<S: ReadAt + ?Sized>(
    source: &S,
    header: &WalHeader,
    start: WalPos,
    end: WalPos,
    known: &[u32],
) -> Result<Vec<Place>, ReadError> {
    let mut newest = Newest::default();
    let first = if start.frame == 0 { header.checksum } else { start.checksum };
    for (pgno, frame) in known.iter().zip(start.frame.saturating_add(1)..) {
        let Some(pgno) = Pgno::new(*pgno) else {
            return Err(ReadError::Corrupt(format!("the wal-index has no page for frame {frame}")));
        };
        let before = (frame == start.frame.saturating_add(1)).then_some(first);
        newest.add(Place { pgno, frame, before });
    }
    if end.frame > start.frame {
        let last = frame_header(source, header, end.frame)?;
        if last.salt != header.salt || last.commit == 0 || last.checksum != end.checksum {
            return Err(ReadError::Corrupt(format!("frame {} is not the one committed", end.frame)));
        }
    }
    Ok(newest.finish())
}

impl Places {
    /// Reads the page at `place` into `page`, which is one page long, and proves it. [`ReadError::Reset`] if the
    /// WAL was reset meanwhile.
    pub fn read<S: ReadAt + ?Sized>(
        &self,
        source: &S,
        place: &Place,
        page: &mut [u8],
    ) -> Result<(), ReadError> {
        let proved = self.prove(source, place, page);
        if matches!(proved, Ok(true)) {
            return Ok(());
        }
        if generation(source, self.header.salt)? != self.header {
            return Err(ReadError::Reset(self.header.salt));
        }
        proved?;
        Err(ReadError::Corrupt(format!("frame {} is not what its checksum says", place.frame)))
    }

    fn prove<S: ReadAt + ?Sized>(
        &self,
        source: &S,
        place: &Place,
        page: &mut [u8],
    ) -> Result<bool, ReadError> {
        let salt = self.header.salt;
        let before = match place.before {
            Some(sum) => sum,
            None => {
                let head = frame_header(source, &self.header, place.frame.saturating_sub(1))?;
                if head.salt != salt {
                    return Ok(false);
                }
                head.checksum
            }
        };
        let head = frame_header(source, &self.header, place.frame)?;
        source
            .read_exact_at(page, page_offset(place.frame, self.header.page_size))
            .map_err(|e| cut_short(e, salt))?;
        let holds = head.salt == salt && head.pgno == Some(place.pgno);
        Ok(holds && head.chain(page, before, self.header.endian) == head.checksum)
    }
}

/// A WAL that ends too early was reset.
fn cut_short(e: io::Error, salt: Salt) -> ReadError {
    if e.kind() == io::ErrorKind::UnexpectedEof { ReadError::Reset(salt) } else { ReadError::Io(e) }
}

/// The WAL header, if it is still that of generation `salt`.
fn generation<S: ReadAt + ?Sized>(source: &S, salt: Salt) -> Result<WalHeader, ReadError> {
    // A header with our salts that does not add up may have been caught while another was written over
    // it: a second look tells.
    match header_of(source, salt) {
        Err(ReadError::Corrupt(_)) => header_of(source, salt),
        seen => seen,
    }
}

fn header_of<S: ReadAt + ?Sized>(source: &S, salt: Salt) -> Result<WalHeader, ReadError> {
    let mut bytes = [0; WAL_HEADER_LEN];
    match source.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(ReadError::Reset(salt)),
        Err(e) => return Err(ReadError::Io(e)),
    }
    let ours = [salt.salt1.to_be_bytes(), salt.salt2.to_be_bytes()].concat();
    match WalHeader::decode(&bytes) {
        Ok(header) if header.salt == salt => Ok(header),
        Err(e) if bytes.get(16..24) == Some(ours.as_slice()) => Err(ReadError::Corrupt(e.to_string())),
        _ => Err(ReadError::Reset(salt)),
    }
}

/// What SQLite would find in this WAL if it had to recover it: the frames up to the last valid commit frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// The header.
    pub header: WalHeader,
    /// The place behind the last commit; frame 0 if there is none.
    pub end: WalPos,
    /// Size of the database in pages there; 0 if there is no commit.
    pub commit: u32,
    /// Valid frames, those after the last commit included: not committed, never to be shipped.
    pub valid: u32,
    /// The newest committed frame of each page, pages ascending; see [`Frames::pages`].
    pub pages: Vec<(Pgno, u32)>,
}

/// Reads a WAL from its start as SQLite's recovery does (`walIndexRecover`): for start-up, and where no
/// wal-index exists (exclusive locking mode). `None` if there is no WAL content: a file of 32 bytes or
/// fewer, or an invalid header. Only the caller can know that nobody writes meanwhile.
pub fn scan<S: ReadAt + ?Sized>(source: &S) -> Result<Option<Scan>, ReadError> {
    let size = source.size().map_err(ReadError::Io)?;
    let mut bytes = [0; WAL_HEADER_LEN];
    if size <= WAL_HEADER_LEN as u64 {
        return Ok(None);
    }
    source.read_exact_at(&mut bytes, 0).map_err(ReadError::Io)?;
    let Ok(header) = WalHeader::decode(&bytes) else { return Ok(None) };

    let frame_len = (FRAME_HEADER_LEN + header.page_size.len()) as u64;
    let last = u32::try_from((size - WAL_HEADER_LEN as u64) / frame_len).unwrap_or(u32::MAX);
    let (mut end, mut commit) = (header.start(), 0);
    let (mut newest, mut pending) = (Newest::default(), Vec::new());
    let valid = each_frame(source, &header, 0, last, header.checksum, |frame, after| {
        pending.push(Place { pgno: frame.pgno, frame: frame.number, before: None });
        if frame.commit != 0 {
            end = WalPos { salt: header.salt, frame: frame.number, checksum: after };
            commit = frame.commit;
            pending.drain(..).for_each(|place| newest.add(place));
        }
    })?;
    Ok(Some(Scan { header, end, commit, valid, pages: newest.frames() }))
}

/// Walks the frames after `from` up to `to` for as long as they are valid: salt, page number, checksum
/// chain. Returns the last valid one. A file that ends before `to` ends the walk.
fn each_frame<S: ReadAt + ?Sized>(
    source: &S,
    header: &WalHeader,
    from: u32,
    to: u32,
    mut sum: FrameChecksum,
    mut visit: impl FnMut(Frame<'_>, FrameChecksum),
) -> Result<u32, ReadError> {
    let frame_len = FRAME_HEADER_LEN + header.page_size.len();
    let bulk = u32::try_from(BULK / frame_len).unwrap_or(1).max(1);
    let mut buf = vec![0; frame_len * bulk.min(to.saturating_sub(from)) as usize];
    let mut last = from;
    while last < to {
        let mut count = bulk.min(to - last);
        if !fill(source, &mut buf, frame_len, count, last, header.page_size)? {
            // Near the end of a file that is shorter than it should be: one by one, as far as it goes.
            count = 1;
            if !fill(source, &mut buf, frame_len, count, last, header.page_size)? {
                return Ok(last);
            }
        }
        for bytes in buf.chunks_exact(frame_len).take(count as usize) {
            let Some((head, page)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else { return Ok(last) };
            let head = FrameHeader::decode(head);
            let (Some(pgno), true) = (head.pgno, head.salt == header.salt) else { return Ok(last) };
            let after = head.chain(page, sum, header.endian);
            if after != head.checksum {
                return Ok(last);
            }
            sum = after;
            last += 1;
            visit(Frame { pgno, number: last, page, commit: head.commit }, after);
        }
    }
    Ok(last)
}

/// Reads `count` frames after frame `last`; `false` if the file ends before.
fn fill<S: ReadAt + ?Sized>(
    source: &S,
    buf: &mut [u8],
    frame_len: usize,
    count: u32,
    last: u32,
    size: PageSize,
) -> Result<bool, ReadError> {
    let Some(buf) = buf.get_mut(..frame_len * count as usize) else { return Ok(false) };
    match source.read_exact_at(buf, frame_offset(last.saturating_add(1), size)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(ReadError::Io(e)),
    }
}

/// The newest frame of each page, in memory of the order of the distinct pages: a list that is
/// sorted and thinned whenever it has doubled.
#[derive(Default)]
struct Newest {
    list: Vec<Place>,
    thin: usize,
}

impl Newest {
    fn add(&mut self, place: Place) {
        if self.list.len() >= 1024.max(2 * self.thin) {
            self.thin_out();
        }
        self.list.push(place);
    }

    fn thin_out(&mut self) {
        // Of one page the newest frame first, which is the one dedup keeps.
        self.list.sort_unstable_by_key(|p| (p.pgno, std::cmp::Reverse(p.frame)));
        self.list.dedup_by_key(|p| p.pgno);
        self.thin = self.list.len();
    }

    fn finish(mut self) -> Vec<Place> {
        self.thin_out();
        self.list
    }

    fn frames(self) -> Vec<(Pgno, u32)> {
        self.finish().into_iter().map(|p| (p.pgno, p.frame)).collect()
    }
}

/// Errors with [`ReadError::Reset`] unless the WAL still holds generation `salt`.
pub fn check_generation<S: ReadAt + ?Sized>(source: &S, salt: Salt) -> Result<(), ReadError> {
    generation(source, salt).map(drop)
}

/// The running checksum at frame `frame` of generation `salt` as its header carries it; at 0, that of the WAL
/// header. Not proved by this: the chain from there on is.
pub fn checksum_at<S: ReadAt + ?Sized>(
    source: &S,
    salt: Salt,
    frame: u32,
) -> Result<FrameChecksum, ReadError> {
    let header = generation(source, salt)?;
    if frame == 0 {
        return Ok(header.checksum);
    }
    let found = frame_header(source, &header, frame)?;
    if found.salt != salt {
        return Err(ReadError::Corrupt(format!("frame {frame} is of another generation")));
    }
    Ok(found.checksum)
}

/// The newest frame of each page among frames `1..=last` of generation `salt`, read from the frame headers
/// alone: for frames that were proved before.
pub fn frame_pages<S: ReadAt + ?Sized>(
    source: &S,
    salt: Salt,
    last: u32,
) -> Result<Vec<(Pgno, u32)>, ReadError> {
    let header = generation(source, salt)?;
    let mut newest = Newest::default();
    for n in 1..=last {
        if let Some(pgno) = frame_header(source, &header, n)?.pgno {
            newest.add(Place { pgno, frame: n, before: None });
        }
    }
    Ok(newest.frames())
}

/// The generation that the WAL holds now.
pub fn current_salt<S: ReadAt + ?Sized>(source: &S) -> Result<Salt, ReadError> {
    let mut bytes = [0; WAL_HEADER_LEN];
    source.read_exact_at(&mut bytes, 0).map_err(ReadError::Io)?;
    WalHeader::decode(&bytes).map(|h| h.salt).map_err(|e| ReadError::Corrupt(e.to_string()))
}

/// Whether there may be commits past `known`: a frame that goes on from it, or frames of another generation. Plain reads of
/// a file that others write to: the answer is for those who then look under SQLite's locks.
pub fn goes_on<S: ReadAt + ?Sized>(source: &S, known: WalPos) -> Result<bool, ReadError> {
    let mut bytes = [0; WAL_HEADER_LEN];
    match source.read_exact_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read.map_err(ReadError::Io)?,
    }
    // SQLite, too, takes a WAL with a damaged header for an empty one.
    let Ok(header) = WalHeader::decode(&bytes) else { return Ok(false) };
    let from = if header.salt == known.salt { known.frame } else { 0 };
    let seed = if from == 0 { header.checksum } else { known.checksum };
    let next = from.saturating_add(1);
    Ok(each_frame(source, &header, from, next, seed, |_, _| {})? == next)
}

/// The page that frame `n` says it holds; nothing is checked, its transaction may be under way.
pub fn frame_page<S: ReadAt + ?Sized>(source: &S, size: PageSize, n: u32) -> Result<Option<Pgno>, ReadError> {
    let mut bytes = [0; FRAME_HEADER_LEN];
    source.read_exact_at(&mut bytes, frame_offset(n, size)).map_err(ReadError::Io)?;
    Ok(FrameHeader::decode(&bytes).pgno)
}

fn frame_header<S: ReadAt + ?Sized>(
    source: &S,
    header: &WalHeader,
    n: u32,
) -> Result<FrameHeader, ReadError> {
    let mut bytes = [0; FRAME_HEADER_LEN];
    source
        .read_exact_at(&mut bytes, frame_offset(n, header.page_size))
        .map_err(|e| cut_short(e, header.salt))?;
    Ok(FrameHeader::decode(&bytes))
}
