//! One write a frame: SQLite writes a WAL frame as two (24 bytes of header, then the page). Of a watched database we
//! hold the header back until the page comes, a call of its own later, and hand both down as one. That saves a system
//! call a frame, more than all our hooks on a commit cost.
//!
//! Nothing that SQLite may rely on changes: it promises itself no order between the two writes, a frame whose page is
//! missing is not valid, and no reader looks past `mxFrame`, which moves when all frames are written
//! (<https://sqlite.org/walformat.html>). A crash in between leaves what a crash before the header leaves.
//!
//! * I-JOIN-1: a header is held only if its page is sure to follow: 24 bytes at the start of a frame (the page size is the
//!   WAL header's), at or past the end of the last frame that went through this handle. Headers below are written again in
//!   place, without their pages (`walRewriteChecksums`), and a WAL that was reset starts below, too: those pass as they come,
//!   and so does the first frame of a handle that we have just met. The rest of a page that was split where a sync is due
//!   (`walWriteToLog`) may be 24 bytes as well, at the end of what was written, but never at the start of a frame.
//! * I-JOIN-2: whatever else is asked of the file, a held header goes down first; its failure is that call's. Not in a
//!   forked child, whose parent writes it.
//!
//! Only over SQLite's own VFSes (I-VFS-3): another one may know frames by the lengths of the writes. Refused: a file
//! descriptor of our own and `pwritev`, which would go past the lower VFS.

use super::ffi::{self, File, IoMethods};
use super::methods::{Methods, is_closed_by};
use crate::base::fork;
use std::ffi::{c_int, c_void};

/// Bytes of a frame header.
const HEADER: usize = 24;
/// Pages up to this size are joined: to copy a larger one costs more than the system call.
const LARGEST_PAGE: usize = 16 << 10;

/// What `pMethods` of a joined WAL file points to: methods first, our state behind.
#[repr(C)]
struct Table {
    methods: IoMethods,
    join: Join,
}

struct Join {
    original: Methods,
    /// Header and page as they go down, once the page size is known, or none; the header is held while `held` says where it
    /// belongs.
    frame: Option<Box<[u8]>>,
    held: Option<i64>,
    /// How many forks had been when it was held.
    forks: usize,
    /// A header that passed just now.
    passed: Option<i64>,
    /// Where the last frame ended that went through here.
    end: i64,
}

/// Bytes of the WAL header, and where in it the page size stands (<https://sqlite.org/fileformat2.html#walformat>).
const WAL_HEADER: usize = 32;
const PAGE_SIZE_AT: usize = 8;

impl Join {
    /// # Safety
    /// `file` is the open file that this belongs to.
    unsafe fn let_go(&mut self, file: *mut File) -> c_int {
        self.passed = None;
        match self.held.take() {
            // SAFETY: caller; the header's bytes are there.
            Some(at) if self.forks == fork::generation() => unsafe { self.write(file, HEADER, at) },
            _ => ffi::OK,
        }
    }

    /// Takes up the page size that a WAL header says. One that is not joined leaves no frame.
    fn set_page_size(&mut self, field: [u8; 4]) {
        let page = u32::from_be_bytes(field) as usize;
        let len =
            if page.is_power_of_two() && (512..=LARGEST_PAGE).contains(&page) { HEADER + page } else { 0 };
        self.frame = Some(vec![0; len].into());
    }

    /// Reads the page size of a WAL that somebody else began.
    ///
    /// # Safety
    /// As [`Join::let_go`].
    unsafe fn learn_page_size(&mut self, file: *mut File) {
        let mut field = [0u8; 4];
        let read = self.original.x_read();
        // SAFETY: caller; the buffer has four bytes.
        let rc = read.map_or(ffi::IOERR, |f| unsafe {
            f(file, field.as_mut_ptr().cast(), field.len() as c_int, PAGE_SIZE_AT as i64)
        });
        self.set_page_size(if rc == ffi::OK { field } else { [0; 4] });
    }

    /// Bytes of a frame; 0 for one that is not joined.
    fn frame_len(&self) -> usize {
        self.frame.as_ref().map_or(0, |f| f.len())
    }

    fn is_start_of_frame(&self, offset: i64) -> bool {
        let (frame, at) = (self.frame_len() as u64, u64::try_from(offset).unwrap_or(0));
        frame > 0 && at >= WAL_HEADER as u64 && (at - WAL_HEADER as u64).is_multiple_of(frame)
    }

    /// # Safety
    /// As [`Join::let_go`]; `len` bytes of `frame` are filled.
    unsafe fn write(&self, file: *mut File, len: usize, at: i64) -> c_int {
        let (write, frame) = (self.original.x_write(), self.frame.as_ref());
        // SAFETY: caller.
        write
            .zip(frame)
            .map_or(ffi::IOERR, |(f, frame)| unsafe { f(file, frame.as_ptr().cast(), len as c_int, at) })
    }
}

/// Whether the file is joined by us.
///
/// # Safety
/// `file` points to a `sqlite3_file`.
pub(super) unsafe fn is_joined(file: *const File) -> bool {
    // SAFETY: caller.
    unsafe { is_closed_by(file, x_close) }
}

/// Joins the writes to a WAL file from now on.
///
/// # Safety
/// `file` is an open WAL file that may be hooked (I-VFS-3), with methods of its own; the caller is inside `xOpen`, or holds
/// the mutex of its connection.
pub(super) unsafe fn install(file: *mut File) {
    // SAFETY: caller: open, so its methods are set.
    let original = unsafe { Methods::of(file) };
    let mut methods = original.copy();
    methods.x_close = Some(x_close);
    methods.x_read = methods.x_read.and(Some(x_read));
    methods.x_write = methods.x_write.and(Some(x_write));
    methods.x_truncate = methods.x_truncate.and(Some(x_truncate));
    methods.x_sync = methods.x_sync.and(Some(x_sync));
    methods.x_file_size = methods.x_file_size.and(Some(x_file_size));
    let join = Join {
        original,
        frame: None,
        held: None,
        forks: 0,
        passed: None,
        // Until the first frame has passed: a transaction may be under way.
        end: i64::MAX,
    };
    // SAFETY: the table starts with its methods (repr C) and lives until xClose.
    unsafe { (*file).methods = Box::into_raw(Box::new(Table { methods, join })).cast::<IoMethods>() };
}

/// Gives the file its own methods back, if its writes are joined.
///
/// # Safety
/// `file` is an open WAL file, and the caller holds the mutex of its connection.
pub(super) unsafe fn remove(file: *mut File) {
    // SAFETY: caller; a joined file's methods are ours.
    unsafe {
        if is_joined(file) {
            taken_off(file);
        }
    }
}

/// # Safety
/// `file` is joined, and nobody else uses it.
unsafe fn taken_off(file: *mut File) -> Methods {
    // SAFETY: caller; `install` put a Table there, made by Box::into_raw.
    unsafe {
        let mut table = Box::from_raw((*file).methods.cast_mut().cast::<Table>());
        // Of a transaction that was given up, if there is one: nobody asks for it.
        let _ = table.join.let_go(file);
        (*file).methods = table.join.original.as_ptr();
        table.join.original
    }
}

/// # Safety
/// `file` is joined, and this is one of its methods: "calls for one file handle never overlap", as a connection uses its
/// WAL file with its mutex held.
unsafe fn joined<'a>(file: *mut File) -> &'a mut Join {
    // SAFETY: caller; `install` put a Table there, made by Box::into_raw.
    unsafe { &mut (*(*file).methods.cast_mut().cast::<Table>()).join }
}

unsafe extern "C" fn x_write(file: *mut File, data: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: a method of a joined file; SQLite gives `len` readable bytes.
    unsafe {
        let j = joined(file);
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(len).unwrap_or(0));
        let page_of = |header: Option<i64>| header.is_some_and(|h| h + HEADER as i64 == offset);
        let whole = HEADER + bytes.len();
        if page_of(j.held)
            && let Some(at) = j.held
            && whole == j.frame_len()
            && let Some(page) = j.frame.as_mut().and_then(|f| f.get_mut(HEADER..))
        {
            page.copy_from_slice(bytes);
            j.held = None;
            j.end = offset + i64::from(len);
            return j.write(file, whole, at);
        }
        let is_page = page_of(j.held.or(j.passed));
        let rc = j.let_go(file);
        if rc != ffi::OK {
            return rc;
        }
        if bytes.len() == HEADER && offset >= WAL_HEADER as i64 {
            if j.frame.is_none() {
                j.learn_page_size(file);
            }
            if offset >= j.end
                && j.is_start_of_frame(offset)
                && let Some(header) = j.frame.as_mut().and_then(|f| f.get_mut(..HEADER))
            {
                header.copy_from_slice(bytes);
                (j.held, j.forks) = (Some(offset), fork::generation());
                return ffi::OK;
            }
            j.passed = Some(offset);
        } else if is_page {
            j.end = offset + i64::from(len);
        } else if offset == 0
            && let Some(field) = bytes.get(PAGE_SIZE_AT..PAGE_SIZE_AT + 4)
        {
            j.set_page_size([field[0], field[1], field[2], field[3]]);
        }
        j.original.x_write().map_or(ffi::IOERR, |f| f(file, data, len, offset))
    }
}

unsafe extern "C" fn x_read(file: *mut File, out: *mut c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: as above; arguments are passed on as they came.
    unsafe {
        let j = joined(file);
        match j.let_go(file) {
            ffi::OK => j.original.x_read().map_or(ffi::IOERR, |f| f(file, out, len, offset)),
            rc => rc,
        }
    }
}

unsafe extern "C" fn x_truncate(file: *mut File, size: i64) -> c_int {
    // SAFETY: as above.
    unsafe {
        let j = joined(file);
        match j.let_go(file) {
            ffi::OK => j.original.x_truncate().map_or(ffi::IOERR, |f| f(file, size)),
            rc => rc,
        }
    }
}

unsafe extern "C" fn x_sync(file: *mut File, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        let j = joined(file);
        match j.let_go(file) {
            ffi::OK => j.original.x_sync().map_or(ffi::OK, |f| f(file, flags)),
            rc => rc,
        }
    }
}

unsafe extern "C" fn x_file_size(file: *mut File, out: *mut i64) -> c_int {
    // SAFETY: as above.
    unsafe {
        let j = joined(file);
        match j.let_go(file) {
            ffi::OK => j.original.x_file_size().map_or(ffi::IOERR, |f| f(file, out)),
            rc => rc,
        }
    }
}

unsafe extern "C" fn x_close(file: *mut File) -> c_int {
    // SAFETY: SQLite calls xClose once, on the joined file; nothing uses the table after it.
    unsafe { taken_off(file).x_close().map_or(ffi::OK, |f| f(file)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    /// What lies in a file, and each write to it.
    type Disk = (Vec<u8>, Vec<(i64, usize)>);

    thread_local! {
        static DISK: RefCell<Disk> = const { RefCell::new((Vec::new(), Vec::new())) };
    }

    fn put(disk: &mut Vec<u8>, at: i64, bytes: &[u8]) {
        let at = at as usize;
        disk.resize(disk.len().max(at + bytes.len()), 0);
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    unsafe extern "C" fn write(_: *mut File, data: *const c_void, len: c_int, offset: i64) -> c_int {
        // SAFETY: `len` bytes, by the method's contract.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len as usize) };
        DISK.with_borrow_mut(|(disk, writes)| {
            put(disk, offset, bytes);
            writes.push((offset, bytes.len()));
        });
        ffi::OK
    }
    unsafe extern "C" fn read(_: *mut File, out: *mut c_void, len: c_int, offset: i64) -> c_int {
        // SAFETY: `len` bytes, by the method's contract.
        let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), len as usize) };
        out.fill(0);
        DISK.with_borrow(|(disk, _)| {
            let from = disk.get(offset as usize..).unwrap_or_default();
            let n = from.len().min(out.len());
            out[..n].copy_from_slice(&from[..n]);
        });
        ffi::OK
    }
    unsafe extern "C" fn fine(_: *mut File, _: c_int) -> c_int {
        ffi::OK
    }
    unsafe extern "C" fn closed(_: *mut File) -> c_int {
        ffi::OK
    }

    static BELOW: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {
        // SAFETY: all-zero is a valid IoMethods.
        let mut m: IoMethods = unsafe { std::mem::zeroed() };
        m.i_version = 1;
        m.x_write = Some(write);
        m.x_read = Some(read);
        m.x_sync = Some(fine);
        m.x_close = Some(closed);
        std::ptr::from_ref(Box::leak(Box::new(m))).expose_provenance()
    });

    struct Wal(File);

    impl Wal {
        fn new() -> Wal {
            DISK.with_borrow_mut(|d| *d = Default::default());
            let mut wal = Wal(File { methods: std::ptr::with_exposed_provenance(*BELOW) });
            // SAFETY: a file with methods.
            unsafe { install(&raw mut wal.0) };
            wal
        }
        fn write(&mut self, at: i64, bytes: &[u8]) {
            let f = &raw mut self.0;
            // SAFETY: SQLite's way to call a method.
            let rc = unsafe {
                (*(*f).methods).x_write.unwrap()(f, bytes.as_ptr().cast(), bytes.len() as c_int, at)
            };
            assert_eq!(rc, ffi::OK);
        }
        fn read(&mut self) {
            let f = &raw mut self.0;
            let mut byte = 0u8;
            // SAFETY: as above; one byte.
            let rc = unsafe { (*(*f).methods).x_read.unwrap()(f, (&raw mut byte).cast(), 1, 0) };
            assert_eq!(rc, ffi::OK);
        }
        fn sync(&mut self) {
            let f = &raw mut self.0;
            // SAFETY: as above.
            assert_eq!(unsafe { (*(*f).methods).x_sync.unwrap()(f, 0) }, ffi::OK);
        }
    }

    impl Drop for Wal {
        fn drop(&mut self) {
            let f = &raw mut self.0;
            // SAFETY: as above, once.
            assert_eq!(unsafe { (*(*f).methods).x_close.unwrap()(f) }, ffi::OK);
            assert_eq!(self.0.methods.expose_provenance(), *BELOW);
        }
    }

    fn writes() -> Vec<(i64, usize)> {
        DISK.with_borrow_mut(|d| std::mem::take(&mut d.1))
    }

    const BEGIN: [u8; 32] = {
        let mut h = [7; 32];
        [h[8], h[9], h[10], h[11]] = [0, 0, (PAGE >> 8) as u8, 0];
        h
    };
    const PAGE: usize = 512;
    const FRAME: i64 = (HEADER + PAGE) as i64;

    fn frame(wal: &mut Wal, n: i64) {
        wal.write(32 + n * FRAME, &[n as u8; HEADER]);
        wal.write(32 + n * FRAME + HEADER as i64, &[!n as u8; PAGE]);
    }

    #[test]
    fn frames_at_the_end_are_written_in_one_call() {
        let mut wal = Wal::new();
        // Begun by somebody else.
        DISK.with_borrow_mut(|d| d.0 = BEGIN.to_vec());
        frame(&mut wal, 3);
        assert_eq!(writes().len(), 2, "the first passes");
        (4..7).for_each(|n| frame(&mut wal, n));
        let whole = HEADER + PAGE;
        assert_eq!(writes(), [(32 + 4 * FRAME, whole), (32 + 5 * FRAME, whole), (32 + 6 * FRAME, whole)]);
        // A page written again in place, then headers made anew from there, as sqlite3WalFrames does.
        wal.write(32 + 5 * FRAME + HEADER as i64, &[9; PAGE]);
        for n in 5..7 {
            wal.read();
            wal.write(32 + n * FRAME, &[7; HEADER]);
        }
        assert_eq!(writes().len(), 3, "none of them is held");
        // The WAL begins anew.
        wal.write(0, &BEGIN);
        frame(&mut wal, 0);
        frame(&mut wal, 1);
        assert_eq!(writes().len(), 4);
        // In a forked child the parent's header is none of ours.
        wal.write(32 + 2 * FRAME, &[2; HEADER]);
        // SAFETY: a joined file.
        unsafe { joined(&raw mut wal.0).forks += 1 };
        wal.read();
        assert_eq!(writes(), []);
    }

    #[test]
    fn a_split_frame_and_a_large_page_arrive_as_they_were_written() {
        let mut wal = Wal::new();
        wal.write(0, &BEGIN);
        frame(&mut wal, 0);
        writes();
        wal.write(32 + FRAME, &[1; HEADER]);
        assert_eq!(writes(), [], "held");
        wal.sync();
        assert_eq!(writes(), [(32 + FRAME, HEADER)]);
        // The last 24 bytes of a page that was cut in two where a sync is due are no header.
        let at = 32 + 2 * FRAME;
        let page = at + HEADER as i64;
        wal.write(at, &[2; HEADER]);
        wal.write(page, &[2; PAGE - HEADER]);
        wal.sync();
        wal.write(page + (PAGE - HEADER) as i64, &[2; HEADER]);
        assert_eq!(writes().iter().map(|w| w.1).collect::<Vec<_>>(), [HEADER, PAGE - HEADER, HEADER]);
        let at = 32 + 3 * FRAME;
        wal.write(at, &[2; HEADER]);
        wal.write(at + HEADER as i64, &[2; 65536]);
        assert_eq!(writes(), [(at, HEADER), (at + HEADER as i64, 65536)]);
        let at = 32 + 200 * FRAME;
        wal.write(at, &[3; HEADER]);
        drop(wal);
        assert_eq!(writes(), [(at, HEADER)]);
    }

    proptest! {
        /// Whatever SQLite writes, the file is the same after every page, every other call, and the end.
        #[test]
        fn the_file_is_what_was_written(ops in proptest::collection::vec((0u8..10, 0i64..6), 1..60)) {
            let mut wal = Wal::new();
            let mut model = Vec::new();
            for (i, (op, n)) in ops.iter().enumerate() {
                let (at, fill) = (32 + n * FRAME, i as u8);
                let mut both = |at: i64, bytes: &[u8]| {
                    wal.write(at, bytes);
                    put(&mut model, at, bytes);
                };
                match op {
                    0..=3 => {
                        both(at, &[fill; HEADER]);
                        both(at + HEADER as i64, &[!fill; PAGE]);
                    }
                    4 => both(at + HEADER as i64, &[fill; PAGE]),
                    5 => both(0, &BEGIN),
                    // Split where a sync is due, wherever that is.
                    8 => {
                        let cut = (i * 37) % PAGE;
                        both(at, &[fill; HEADER]);
                        both(at + HEADER as i64, &vec![fill; PAGE][..cut]);
                        both(at + (HEADER + cut) as i64, &vec![!fill; PAGE][cut..]);
                    }
                    9 => {
                        both(at, &[fill; HEADER]);
                        both(at + HEADER as i64, &[fill; PAGE - HEADER]);
                        both(at + PAGE as i64, &[!fill; HEADER]);
                    }
                    6 => {
                        both(at, &[fill; HEADER]);
                        wal.read();
                    }
                    _ => {
                        both(at, &[fill; HEADER]);
                        wal.sync();
                    }
                }
                prop_assert_eq!(&DISK.with_borrow(|d| d.0.clone()), &model);
            }
        }
    }
}
