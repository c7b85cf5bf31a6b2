//! The names of files that stand beside another: `app.db` and `app.db-wal`.

use std::path::{Path, PathBuf};

/// `path` with `suffix` at its end. The name need not be UTF-8.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_goes_to_the_end() {
        assert_eq!(beside(Path::new("/d/app.db"), "-wal"), Path::new("/d/app.db-wal"));
        assert_eq!(beside(Path::new("/d/a.b.c"), ""), Path::new("/d/a.b.c"));
    }
}
