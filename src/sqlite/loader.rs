//! What the dynamic loader knows: in which library an address stands, and that SQLite's stays.
//!
//! * I-PIN-1: the library that holds the host's SQLite is not unloaded any more once we are in it. We are called from threads of
//!   our own, and at exit; a host that unloads its SQLite (PHP its module, Lua its state, a plain `dlclose`) pulls the code away
//!   under them. `SQLITE_OK_LOAD_PERMANENTLY` keeps us, not what we call.
//!
//! Refused: to join our threads when the last connection closes (a follower has none); to count on somebody else's reference.

use std::ffi::{CStr, c_char, c_int, c_void};

#[repr(C)]
struct DlInfo {
    file_name: *const c_char,
    base: *mut c_void,
    symbol_name: *const c_char,
    symbol: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
}

#[cfg(target_os = "macos")]
mod mode {
    pub(super) const LAZY: super::c_int = 0x1;
    pub(super) const NO_LOAD: super::c_int = 0x10;
    pub(super) const NO_DELETE: super::c_int = 0x80;
}
#[cfg(not(target_os = "macos"))]
mod mode {
    pub(super) const LAZY: super::c_int = 0x1;
    pub(super) const NO_LOAD: super::c_int = 0x4;
    pub(super) const NO_DELETE: super::c_int = 0x1000;
}

/// A program or library in memory.
pub(super) struct Object {
    /// Where it begins.
    pub(super) base: usize,
    /// The name the loader knows it by; lives while the object is loaded.
    file_name: *const c_char,
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
    known.then_some(Object { base: info.base as usize, file_name: info.file_name })
}

/// I-PIN-1: keeps the library in which `address` stands for the life of the process. The program itself stays anyway.
pub(super) fn pin(address: *const c_void) {
    let Some(object) = object_of(address) else { return };
    // SAFETY: the name is the loader's own; NOLOAD loads nothing and runs no code, NODELETE marks what is there.
    unsafe {
        // The reference is never given back. Of the program's own name nothing is found, which is well.
        if dlopen(object.file_name, mode::LAZY | mode::NO_LOAD | mode::NO_DELETE).is_null() {
            let name = CStr::from_ptr(object.file_name).to_string_lossy();
            log::debug!("walrust: {name} holds SQLite and is not a library of the loader's");
        }
    }
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
        pin((&raw const HERE).cast());
    }
}
