//! SQL values, in and out.

use super::ffi::{self, Context, RawValue, Stmt};
use super::{api, ffi::transient};
use crate::base::{Error, Result};
use std::ffi::{c_int, c_void};

/// The longest argument in bytes: options may have 1 MiB, and nothing else is longer. SQLite itself allows a thousand times that.
const LONGEST: c_int = 1 << 20;

/// One SQL value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// NULL
    Null,
    /// INTEGER
    Integer(i64),
    /// REAL
    Real(f64),
    /// TEXT, UTF-8
    Text(String),
    /// BLOB
    Blob(Vec<u8>),
}

impl Value {
    /// Whether it is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The text of a TEXT value.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(t) => Some(t),
            _ => None,
        }
    }

    /// The number of an INTEGER value.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Value::Integer(n) => Some(*n),
            _ => None,
        }
    }

    /// SQLite's name of the type: `null`, `integer`, `real`, `text`, `blob`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Integer(_) => "integer",
            Value::Real(_) => "real",
            Value::Text(_) => "text",
            Value::Blob(_) => "blob",
        }
    }

    /// Reads an argument. Errors when a text is not UTF-8, or when it is too long to mean anything: then it is not copied.
    ///
    /// # Safety
    /// `v` is a live value of SQLite's, used by this thread only.
    pub(super) unsafe fn from_raw(v: *mut RawValue) -> Result<Value> {
        // SAFETY: caller; bytes are asked for after the pointer, so that no conversion comes between
        // (https://sqlite.org/c3ref/value_blob.html).
        unsafe {
            Ok(match api::value_type(v) {
                ffi::INTEGER => Value::Integer(api::value_int64(v)),
                ffi::FLOAT => Value::Real(api::value_double(v)),
                ffi::TEXT => {
                    let p = api::value_text(v);
                    Value::Text(utf8(bytes(p, short_enough(api::value_bytes(v))?))?)
                }
                ffi::BLOB => {
                    let p = api::value_blob(v);
                    Value::Blob(bytes(p, short_enough(api::value_bytes(v))?))
                }
                _ => Value::Null,
            })
        }
    }

    /// Reads a result column. Errors when a text is not UTF-8.
    ///
    /// # Safety
    /// `s` stands on a row that has column `col`.
    pub(super) unsafe fn from_column(s: *mut Stmt, col: c_int) -> Result<Value> {
        // SAFETY: as in `from_raw`.
        unsafe {
            Ok(match api::column_type(s, col) {
                ffi::INTEGER => Value::Integer(api::column_int64(s, col)),
                ffi::FLOAT => Value::Real(api::column_double(s, col)),
                ffi::TEXT => {
                    let p = api::column_text(s, col);
                    Value::Text(utf8(bytes(p, api::column_bytes(s, col)))?)
                }
                ffi::BLOB => {
                    let p = api::column_blob(s, col);
                    Value::Blob(bytes(p, api::column_bytes(s, col)))
                }
                _ => Value::Null,
            })
        }
    }

    /// Makes it the result of a function or column. Longer than `SQLITE_LIMIT_LENGTH`: SQLite makes it
    /// "string or blob too big" itself.
    ///
    /// # Safety
    /// `c` is the context of the running callback.
    pub(super) unsafe fn set_result(&self, c: *mut Context) {
        // SAFETY: caller; text and blob are copied by SQLite (SQLITE_TRANSIENT).
        unsafe {
            match self {
                Value::Null => api::result_null(c),
                Value::Integer(n) => api::result_int64(c, *n),
                Value::Real(r) => api::result_double(c, *r),
                Value::Text(t) => {
                    api::result_text64(c, t.as_ptr().cast(), t.len() as u64, transient(), ffi::UTF8 as u8);
                }
                Value::Blob(b) => api::result_blob64(c, b.as_ptr().cast(), b.len() as u64, transient()),
            }
        }
    }
}

fn short_enough(n: c_int) -> Result<c_int> {
    if n <= LONGEST {
        return Ok(n);
    }
    Err(Error::config(format!("{n} bytes are more than any argument takes ({LONGEST} at most)")))
}

/// # Safety
/// `p` is null or points to `n` bytes.
unsafe fn bytes(p: *const c_void, n: c_int) -> Vec<u8> {
    match usize::try_from(n) {
        // SAFETY: caller.
        Ok(n) if n > 0 && !p.is_null() => unsafe { std::slice::from_raw_parts(p.cast::<u8>(), n) }.to_vec(),
        _ => Vec::new(),
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::config("the text is not valid UTF-8"))
}

impl From<i64> for Value {
    fn from(n: i64) -> Value {
        Value::Integer(n)
    }
}

impl From<f64> for Value {
    fn from(r: f64) -> Value {
        Value::Real(r)
    }
}

impl From<String> for Value {
    fn from(t: String) -> Value {
        Value::Text(t)
    }
}

impl From<&str> for Value {
    fn from(t: &str) -> Value {
        Value::Text(t.to_string())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(v: Option<T>) -> Value {
        v.map_or(Value::Null, Into::into)
    }
}
