//! Page content as SQLite would read it: WAL frames over the database file.

use super::database::Database;
use crate::base::{Error, PageSize, Pgno, Result};
use crate::wal::{self, Salt};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Reads pages of one generation of the WAL, and of the database file beneath it.
pub struct Reader<'a> {
    wal: &'a File,
    page_size: PageSize,
    salt: Salt,
    db: &'a dyn Database,
    /// Frames up to here are "older": looked through for growth pages, once, if there are any.
    older: u32,
    index: OnceCell<HashMap<Pgno, u32>>,
}

impl<'a> Reader<'a> {
    /// Frames `1..=older` of generation `salt` count as older.
    pub fn new(
        wal: &'a File,
        page_size: PageSize,
        salt: Salt,
        older: u32,
        db: &'a dyn Database,
    ) -> Reader<'a> {
        Reader { wal, page_size, salt, db, older, index: OnceCell::new() }
    }

    /// The page of frame `frame` (1-based).
    pub fn frame(&self, frame: u32, page: &mut [u8]) -> Result<()> {
        read_frame(self.wal, self.page_size, frame, page)
    }

    /// A page that the range does not hold: its newest older frame, else the database file, else zeros.
    pub fn growth(&self, pgno: Pgno, page: &mut [u8]) -> Result<()> {
        let index = match self.index.get() {
            Some(i) => i,
            None => {
                let made = wal::frame_pages(self.wal, self.salt, self.older)
                    .map_err(|e| Error::from(e).context("looking for older frames of a page"))?;
                self.index.get_or_init(|| made.into_iter().collect())
            }
        };
        if let Some(frame) = index.get(&pgno) {
            return self.frame(*frame, page);
        }
        self.db.read_db(page, pgno.offset(self.page_size))
    }
}

/// Reads the page of one frame.
pub fn read_frame(wal: &File, page_size: PageSize, frame: u32, page: &mut [u8]) -> Result<()> {
    wal.read_exact_at(page, wal::page_offset(frame, page_size))
        .map_err(|e| Error::new(crate::base::Kind::Io, format!("cannot read WAL frame {frame}")).because(e))
}
