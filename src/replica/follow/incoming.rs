//! The two passes over one file (I-FOL-1, I-FOL-2).

use super::disk::{Disk, data_pages, fresh_counter, header_of};
use super::fetched::Fetched;
use super::record::Place;
use crate::base::{DbChecksum, Error, Pgno, Result, TxId};
use crate::ltx::{Decoder, Header, page_checksum};
use crate::replica::apply::{added_pages, agrees_with_manifest};
use crate::replica::layout::FileId;
use crate::replica::manifest::ManifestEntry;
use std::fs::File;
use std::io::Read;

/// One file of the replica on this machine, on its way into the follower's.
pub struct Incoming {
    pub(super) id: FileId,
    pub(super) bytes: u64,
    pub(super) known: Option<ManifestEntry>,
    pub(super) fetched: Fetched,
}

impl Incoming {
    /// The TXID it leads to.
    pub fn txid(&self) -> TxId {
        self.id.max
    }

    /// Size of the object.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn decoder(&self) -> Result<Decoder<Box<dyn Read + '_>>> {
        let reader: Box<dyn Read + '_> = match &self.fetched {
            Fetched::Bytes(b) => Box::new(b.as_ref()),
            Fetched::File(part) => {
                let file = File::open(&part.0).map_err(|e| Error::io("open", &part.0, e))?;
                Box::new(std::io::BufReader::with_capacity(128 * 1024, file))
            }
        };
        Decoder::with_sha256(reader)
    }

    /// The first pass: proves the file, keeps the originals of what it changes, and tells the place it leads to.
    /// Errors with `Corrupt` and the file's name if it is damaged or of another history.
    pub fn judge(&self, at: &Place, disk: &mut dyn Disk) -> Result<Place> {
        self.judge_inner(at, disk).map_err(|e| if e.is_corrupt() { e.context(self.id) } else { e })
    }

    fn judge_inner(&self, at: &Place, disk: &mut dyn Disk) -> Result<Place> {
        let mut decoder = self.decoder()?;
        let header = decoder.header().clone();
        self.fits(&header, at)?;
        let size = header.page_size;
        let (mut page, mut old) = (vec![0; size.len()], vec![0; size.len()]);
        let mut out = Outgoing { at, disk, sum: at.checksum };
        let (mut source, mut grown, mut has_first) = (at.source, 0u32, false);
        while let Some(pgno) = decoder.next_page(&mut page)? {
            if pgno.get() <= at.pages {
                out.take(pgno, &mut old)?;
            } else {
                grown += 1;
            }
            if pgno == Pgno::ONE {
                has_first = true;
                source = header_of(&page)?;
            }
            out.sum = out.sum.toggle(page_checksum(pgno, &page));
        }
        if !has_first {
            // Its counter changes; what counts of it, for the checksum, does not.
            out.disk.read(Pgno::ONE, &mut old)?;
            out.disk.keep(Pgno::ONE, &old)?;
        }
        if grown < added_pages(at.pages, header.commit, size) {
            return Err(Error::corrupt(format!(
                "it grows the database from {} to {} pages without holding all of them",
                at.pages, header.commit
            )));
        }
        for pgno in data_pages(header.commit.saturating_add(1), at.pages, size) {
            out.take(pgno, &mut old)?;
        }
        let checksum = out.sum;
        agrees_with_manifest(&decoder.finish()?, self.known.as_ref())?;
        if let Some(attest) = header.attest
            && attest.after != checksum
        {
            return Err(Error::corrupt(format!(
                "the database after it has checksum {checksum}, not {} as the file attests: a file of another history",
                attest.after
            )));
        }
        Ok(Place {
            txid: header.max,
            time: header.timestamp,
            lineage: header.lineage,
            checksum,
            page_size: size,
            pages: header.commit,
            counter: fresh_counter(at.counter),
            cookie_shift: at.cookie_shift,
            source,
        })
    }

    /// Whether a file with this header may come after `at`.
    fn fits(&self, header: &Header, at: &Place) -> Result<()> {
        if header.file_name() != self.id.name() {
            let text = format!("its header says {}: a renamed or swapped file", header.file_name());
            return Err(Error::corrupt(text));
        }
        if header.page_size != at.page_size {
            let (was, is) = (at.page_size.get(), header.page_size.get());
            return Err(Error::corrupt(format!("page size {is} after {was}: a file of another history")));
        }
        if header.commit == 0 {
            return Err(Error::corrupt("it leaves a database without a page"));
        }
        if header.min > at.txid.next() || header.max <= at.txid {
            return Err(Error::corrupt(format!("it does not continue TXID {}", at.txid)));
        }
        match header.attest {
            Some(a)
                if header.min == at.txid.next()
                    && a.before != DbChecksum::EMPTY
                    && a.before != at.checksum =>
            {
                Err(Error::corrupt(format!(
                    "it continues a database with checksum {}, not {}: a file of another history",
                    a.before, at.checksum
                )))
            }
            _ => Ok(()),
        }
    }

    /// The second pass: writes what the first has proved. `to` is what that gave.
    pub fn write(&self, to: &Place, disk: &mut dyn Disk) -> Result<()> {
        let mut decoder = self.decoder()?;
        let mut page = vec![0; to.page_size.len()];
        let mut has_first = false;
        while let Some(pgno) = decoder.next_page(&mut page)? {
            if pgno == Pgno::ONE {
                has_first = true;
                to.localize(&mut page);
            }
            disk.write(pgno, &page)?;
        }
        if !has_first {
            disk.read(Pgno::ONE, &mut page)?;
            to.localize(&mut page);
            disk.write(Pgno::ONE, &page)?;
        }
        disk.resize(to.pages)
    }
}

/// Takes pages off the checksum, keeping them.
struct Outgoing<'a> {
    at: &'a Place,
    disk: &'a mut dyn Disk,
    sum: DbChecksum,
}

impl Outgoing<'_> {
    fn take(&mut self, pgno: Pgno, old: &mut [u8]) -> Result<()> {
        self.disk.read(pgno, old)?;
        self.disk.keep(pgno, old)?;
        if pgno == Pgno::ONE {
            self.at.original(old);
        }
        self.sum = self.sum.toggle(page_checksum(pgno, old));
        Ok(())
    }
}
