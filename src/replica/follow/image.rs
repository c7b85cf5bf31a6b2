//! A full copy that takes the place of what a follower's file holds (I-FOL-4).

use super::disk::{Disk, data_pages, fresh_counter, header_of};
use super::record::Place;
use super::record::{COUNTER, word};
use crate::base::{Error, Pgno, Result, clock};
use crate::replica::Restored;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A restored database beside the follower's file, to take its place (I-FOL-4). The file is removed when this is dropped.
pub struct Image {
    path: PathBuf,
    file: File,
    place: Place,
    /// Bit per page: differs.
    differs: Vec<u64>,
}

impl Image {
    /// Takes over what was restored to `path`, which nobody else has open.
    /// Errors with `Config` if the database is encrypted: its header cannot be changed then.
    pub fn open(path: &Path, restored: &Restored) -> Result<Image> {
        let io = |e| Error::io("read", path, e);
        let mut file = File::options().read(true).write(true).open(path).map_err(io)?;
        let mut page = vec![0; restored.page_size.len()];
        file.read_exact(&mut page).map_err(io)?;
        let place = Place {
            txid: restored.txid,
            time: restored.time,
            lineage: restored.lineage,
            checksum: restored.checksum,
            page_size: restored.page_size,
            pages: restored.pages,
            counter: fresh_counter(0),
            cookie_shift: 0,
            source: header_of(&page)?,
        };
        Ok(Image { path: path.to_path_buf(), file, place, differs: Vec::new() })
    }

    /// The place it holds.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Makes of it a follower's file that can be put where none is.
    pub fn localize(&mut self) -> Result<()> {
        use std::io::Write;
        let io = |e| Error::io("write", &self.path, e);
        let header = self.place.header();
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.sync_all())
            .map_err(io)
    }

    /// The first pass over a follower's file of the same page size, now with `header` and `pages`: keeps what differs.
    pub fn compare(&mut self, header: &[u8; 100], pages: u32, disk: &mut dyn Disk) -> Result<()> {
        self.shift(header, pages);
        let size = self.place.page_size;
        let (mut page, mut old) = (vec![0; size.len()], vec![0; size.len()]);
        for pgno in data_pages(1, pages.max(self.place.pages), size) {
            let has_new = pgno.get() <= self.place.pages;
            let has_old = pgno.get() <= pages;
            if has_old {
                disk.read(pgno, &mut old)?;
            }
            if has_new {
                self.page(pgno, &mut page)?;
            }
            let differs = pgno == Pgno::ONE || !has_old || !has_new || page != old;
            if differs && has_old {
                disk.keep(pgno, &old)?;
            }
            if differs && has_new {
                self.mark(pgno);
            }
        }
        Ok(())
    }

    /// The first pass over a file of another page size, whose originals were kept: everything is new.
    pub fn replaces_all(&mut self, header: &[u8; 100]) {
        self.shift(header, 1);
        for pgno in data_pages(1, self.place.pages, self.place.page_size) {
            self.mark(pgno);
        }
    }

    /// Begins the first pass, perhaps again: counter and schema cookie that no reader of the old content has seen.
    fn shift(&mut self, header: &[u8; 100], pages: u32) {
        self.differs.clear();
        if pages > 0 {
            self.place.counter = fresh_counter(word(header, COUNTER));
            self.place.cookie_shift = (clock::random_u64() & 0x7fff_ffff) as u32 | 1;
        }
    }

    /// The second pass.
    pub fn write(&mut self, disk: &mut dyn Disk) -> Result<()> {
        let mut page = vec![0; self.place.page_size.len()];
        for pgno in data_pages(1, self.place.pages, self.place.page_size) {
            let n = pgno.get() as usize;
            if self.differs.get(n / 64).is_some_and(|w| w & (1 << (n % 64)) != 0) {
                self.page(pgno, &mut page)?;
                if pgno == Pgno::ONE {
                    self.place.localize(&mut page);
                }
                disk.write(pgno, &page)?;
            }
        }
        disk.resize(self.place.pages)
    }

    fn page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(pgno.offset(self.place.page_size)))
            .and_then(|_| self.file.read_exact(page))
            .map_err(|e| Error::io("read", &self.path, e))
    }

    fn mark(&mut self, pgno: Pgno) {
        let n = pgno.get() as usize;
        if self.differs.len() <= n / 64 {
            self.differs.resize(n / 64 + 1, 0);
        }
        if let Some(w) = self.differs.get_mut(n / 64) {
            *w |= 1 << (n % 64);
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
