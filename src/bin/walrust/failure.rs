//! Why a command could not be done: one line.

use std::fmt;

/// The exit status, or why there is none.
pub type Outcome = Result<u8, Failure>;

/// One line for stderr.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// `message` becomes one line.
    pub fn new(message: impl AsRef<str>) -> Failure {
        let words: Vec<&str> =
            message.as_ref().split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect();
        Failure(words.join(" "))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The functions name themselves; here nobody typed their names.
fn without_function(message: &str) -> &str {
    match message.split_once(": ") {
        Some((name, rest)) if name.starts_with("walrust_") && !name.contains(' ') => rest,
        _ => message,
    }
}

/// An option as it is typed here.
fn as_typed(message: &str) -> String {
    message
        .replace("pass overwrite to", "pass --overwrite to")
        .replace("or pass overwrite", "or pass --overwrite")
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Failure {
        match e {
            rusqlite::Error::SqliteFailure(_, Some(message)) => {
                Failure::new(as_typed(without_function(&message)))
            }
            other => Failure::new(other.to_string()),
        }
    }
}

impl From<walrust::base::Error> for Failure {
    fn from(e: walrust::base::Error) -> Failure {
        Failure::new(e.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::new(e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_without_the_functions_name() {
        assert_eq!(without_function("walrust_restore: no such point: 7"), "no such point: 7");
        assert_eq!(without_function("walrust is old: 7"), "walrust is old: 7");
        assert_eq!(Failure::new("a\n  b\r\n").to_string(), "a b");
        assert_eq!(
            as_typed("exists; or pass overwrite to replace it"),
            "exists; or pass --overwrite to replace it"
        );
        assert_eq!(as_typed("remove it, or pass overwrite"), "remove it, or pass --overwrite");
    }
}
