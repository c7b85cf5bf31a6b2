//! Small verbs on the files of a spool, and their names.

use crate::base::{Error, Kind, Result, TxId, manners};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Replaces a record as a whole (I-SPOOL-1); `settle` sees the file before it has its name.
pub(super) fn replace_json<T: serde::Serialize>(
    path: &Path,
    v: &T,
    settle: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<()> {
    let text = serde_json::to_vec(v)
        .map_err(|e| Error::new(Kind::Bug, format!("cannot write {}", path.display())).because(e))?;
    replace(path, &text, settle)
}

/// [`replace_json`] for a record that is no JSON.
pub(super) fn replace(
    path: &Path,
    text: &[u8],
    settle: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<()> {
    #[cfg(feature = "sim")]
    crate::base::sim::disk(path)?;
    let tmp = temp_beside(path);
    let done = manners::create(&tmp)
        .and_then(|mut f| f.write_all(text).and_then(|()| settle(&f)))
        .and_then(|()| fs::rename(&tmp, path));
    done.map_err(|e| {
        drop(fs::remove_file(&tmp));
        Error::io("write", path, e)
    })
}

pub(super) fn is_missing(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::NotFound
}

/// Removes a file of the spool that another process, or an earlier try, may have removed already.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if !is_missing(&e) => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

pub(super) fn temp_beside(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    path.with_file_name(format!(
        ".tmp-{}-{:08x}-{name}",
        std::process::id(),
        crate::base::clock::random_u64() as u32
    ))
}

pub(super) fn parse_txid(s: &str) -> Option<TxId> {
    let ok = s.len() == 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !ok {
        return None;
    }
    u64::from_str_radix(s, 16).ok().map(TxId)
}

pub(super) fn list_files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|it| it.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect())
        .unwrap_or_default()
}

pub(super) fn file_bytes(path: &Path) -> u64 {
    fs::metadata(path).map(|m| m.len()).unwrap_or(0)
}

/// Whether this is the note of an upload in parts, which the store leaves beside the file.
pub(super) fn is_note(path: &Path) -> bool {
    path.extension().is_some_and(|x| x == "upload")
}

pub(super) fn dir_bytes(dir: &Path) -> u64 {
    list_files(dir).iter().map(|p| file_bytes(p)).sum()
}

pub(super) fn tree_bytes(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .map(|it| {
            it.flatten()
                .map(|e| if e.path().is_dir() { tree_bytes(&e.path()) } else { file_bytes(&e.path()) })
                .sum()
        })
        .unwrap_or(0)
}
