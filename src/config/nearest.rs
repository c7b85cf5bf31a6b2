//! "Did you mean …?"

/// Longer words are no misspelt names.
const LONGEST_BYTES: usize = 64;

/// The known name that `given` most likely meant: at most a third of its letters changed, inserted, dropped or swapped
/// with their neighbour.
pub(super) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > LONGEST_BYTES {
        return None;
    }
    let len = given.chars().count();
    let most = (len / 3).max(1);
    let known = known.into_iter().filter(|k| k.chars().count().abs_diff(len) <= most);
    known.map(|k| (strsim::osa_distance(given, k), k)).filter(|(d, _)| *d <= most).min().map(|(_, k)| k)
}
