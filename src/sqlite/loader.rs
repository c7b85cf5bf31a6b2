//! What the dynamic loader knows: in which library an address stands.

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
struct DlInfo {
    file_name: *const c_char,
    base: *mut c_void,
    symbol_name: *const c_char,
    symbol: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

/// A program or library in memory.
pub(super) struct Object {
    /// Where it begins.
    pub(super) base: usize,
}

/// The program or library in which `address` stands. None for memory that is no library's, and in a program without a loader.
pub(super) fn object_of(address: *const c_void) -> Option<Object> {
    let mut info = DlInfo {
        file_name: std::ptr::null(),
        base: std::ptr::null_mut(),
        symbol_name: std::ptr::null(),
        symbol: std::ptr::null_mut(),
    };
    // SAFETY: dladdr takes any address and writes the struct.
    let known = unsafe { dladdr(address, &raw mut info) } != 0 && !info.file_name.is_null();
    known.then_some(Object { base: info.base as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_memory_is_an_objects_and_heap_is_nobodys() {
        static HERE: u64 = 7;
        let heap = Box::new(7u64);
        let here = object_of((&raw const HERE).cast()).unwrap();
        assert_eq!(object_of(object_of as *const c_void).unwrap().base, here.base);
        assert!(object_of((&raw const *heap).cast()).is_none());
    }
}
