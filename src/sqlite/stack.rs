//! How much of the calling thread's stack is left.
//!
//! The SQL functions run on the program's thread, inside a statement whose mutex that thread holds, so a thread of ours could not use the
//! connection for them. Where the stack is too small for them they are an error: an overflow would end the process.

use crate::base::{Error, Result};
use std::cell::Cell;
use std::ffi::{c_int, c_void};

/// What the functions need. Measured: `walrust_watch`, the deepest of them, takes between 89 and 104 KiB in a build for tests. What talks to a store has
/// a thread of its own for that.
const NEEDED: usize = 104 << 10;

thread_local! {
    /// The lowest and the highest address of this thread's stack, once they are known.
    static BOUNDS: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// Errors with [`crate::base::Kind::Config`] where an SQL function could overflow this thread's stack.
pub(super) fn check() -> Result<()> {
    match left() {
        Some(left) if left < NEEDED => Err(Error::config(format!(
            "this thread has {} KiB of its stack left, and {} KiB are needed; call it from a thread with a larger stack (128 KiB \
             suffice)",
            left >> 10,
            NEEDED >> 10
        ))),
        _ => Ok(()),
    }
}

/// Bytes below the caller's frame. `None` where that is not known: on a stack that the program has made itself (a fiber's).
fn left() -> Option<usize> {
    let (low, high) = match BOUNDS.get() {
        Some(known) => known,
        None => {
            let found = bounds()?;
            BOUNDS.set(Some(found));
            found
        }
    };
    let here = 0u8;
    let at = std::ptr::from_ref(std::hint::black_box(&here)) as usize;
    (low..high).contains(&at).then(|| at - low)
}

/// `pthread_attr_t`, which has 56 bytes on x86-64 and 64 on aarch64.
#[repr(C, align(16))]
struct Attributes([u8; 128]);

#[cfg(target_os = "linux")]
unsafe extern "C" {
    fn pthread_self() -> usize;
    fn pthread_getattr_np(thread: usize, attributes: *mut Attributes) -> c_int;
    fn pthread_attr_getstack(attributes: *const Attributes, low: *mut *mut c_void, size: *mut usize)
    -> c_int;
    fn pthread_attr_destroy(attributes: *mut Attributes) -> c_int;
}

#[cfg(target_os = "linux")]
fn bounds() -> Option<(usize, usize)> {
    let mut attributes = Attributes([0; 128]);
    let (mut low, mut size) = (std::ptr::null_mut::<c_void>(), 0usize);
    // SAFETY: the attributes are initialized by the first call, with room to spare, and destroyed once; the two results are stored by the
    // second (https://man7.org/linux/man-pages/man3/pthread_getattr_np.3.html).
    let rc = unsafe {
        if pthread_getattr_np(pthread_self(), &raw mut attributes) != 0 {
            return None;
        }
        let rc = pthread_attr_getstack(&raw const attributes, &raw mut low, &raw mut size);
        pthread_attr_destroy(&raw mut attributes);
        rc
    };
    (rc == 0 && size > 0).then(|| (low as usize, (low as usize).saturating_add(size)))
}

#[cfg(not(target_os = "linux"))]
fn bounds() -> Option<(usize, usize)> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::base::thread;

    #[test]
    fn a_small_stack_is_told() {
        let on = |kib: usize| {
            thread::spawn_joined("test-stack", kib << 10, || (left(), check())).unwrap().join().unwrap()
        };
        let (large, ok) = on(1024);
        assert!(large.is_some_and(|l| l > 512 << 10 && l < 1200 << 10), "{large:?}");
        ok.unwrap();
        let e = on(80).1.unwrap_err().to_string();
        assert!(e.contains("KiB of its stack left") && !e.contains('\n'), "{e}");
        check().unwrap();
    }
}
