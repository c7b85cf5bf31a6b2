//! The door to threads that do a piece of work and end.

/// Starts a thread with a name and a stack of `stack` bytes.
pub fn spawn(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    #[cfg(feature = "sim")]
    if let Some(w) = super::sim::world() {
        w.spawn(name, Box::new(work));
        return Ok(());
    }
    std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(work).map(drop)
}
