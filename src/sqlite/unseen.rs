//! Connections that we open ourselves, of which neither our auto-extension nor our `xOpen` takes notice.

use std::cell::Cell;

thread_local! {
    /// Set while this thread opens a connection of our own.
    static UNSEEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, in which nothing of ours takes no notice of connections this thread opens.
pub(super) fn unseen<T>(f: impl FnOnce() -> T) -> T {
    let before = UNSEEN.replace(true);
    let result = f();
    UNSEEN.set(before);
    result
}

/// Whether this thread opens a connection of our own.
pub(super) fn is_unseen() -> bool {
    UNSEEN.get()
}
