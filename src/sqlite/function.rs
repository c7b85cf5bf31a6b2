//! Scalar SQL functions.
//!
//! Registered for each allowed number of arguments, so that a wrong number is SQLite's own error, and
//! `SQLITE_DIRECTONLY` where the host knows it (3.30): a hostile schema cannot call them from a view or
//! trigger.

use super::connection::Connection;
use super::ffi::{self, Context, RawValue, Sqlite3};
use super::guard::caught;
use super::value::Value;
use super::{api, error};
use crate::base::{Error, Result};
use std::ffi::{CString, c_char, c_int};
use std::ops::RangeInclusive;

/// A scalar SQL function.
pub struct ScalarFunction {
    /// Name in SQL; also what its errors begin with.
    pub name: &'static str,
    /// Numbers of arguments it takes.
    pub args: RangeInclusive<u8>,
    /// The function. Runs on the app's thread, inside a statement of `Connection`.
    pub call: fn(&Connection, &[Value]) -> Result<Value>,
}

/// Registers the function on a connection.
///
/// # Safety
/// `db` is an open connection of the adopted library.
pub(super) unsafe fn register(db: *mut Sqlite3, f: &'static ScalarFunction) -> Result<()> {
    let name = CString::new(f.name).map_err(|_| Error::config("a function name holds a NUL"))?;
    let flags = ffi::UTF8 | if api::at_least(3_030_000) { ffi::DIRECTONLY } else { 0 };
    let user = std::ptr::from_ref(f).cast_mut().cast();
    for n in f.args.clone() {
        // SAFETY: caller; `f` is static, so the user pointer stays good without a destructor.
        let rc = unsafe {
            api::create_function_v2(db, name.as_ptr(), n.into(), flags, user, Some(call), None, None, None)
        };
        error::check(rc, || format!("cannot register {}", f.name))?;
    }
    Ok(())
}

unsafe extern "C" fn call(c: *mut Context, argc: c_int, argv: *mut *mut RawValue) {
    // SAFETY: `register` gave a `&'static ScalarFunction`; SQLite gives `argc` live values.
    let (f, result) = unsafe {
        let f = &*api::user_data(c).cast::<ScalarFunction>();
        (f, caught(|| run(f, c, argc, argv)))
    };
    super::log::deliver();
    let result = result.unwrap_or_else(|what| {
        Err(Error::new(crate::base::Kind::Bug, format!("internal error (panic): {what}")))
    });
    // SAFETY: `c` is the running context.
    unsafe {
        match result {
            Ok(v) => v.set_result(c),
            Err(e) => fail(c, &format!("{}: {e}", f.name)),
        }
    }
}

/// # Safety
/// As in `call`.
unsafe fn run(f: &ScalarFunction, c: *mut Context, argc: c_int, argv: *mut *mut RawValue) -> Result<Value> {
    super::stack::check()?;
    // SAFETY: caller; the connection outlives the call.
    unsafe {
        let args = arguments(argc, argv)?;
        let conn = Connection::borrowed(api::context_db_handle(c));
        (f.call)(&conn, &args)
    }
}

/// The arguments of a callback.
///
/// # Safety
/// `argv` holds `argc` live values.
pub(super) unsafe fn arguments(argc: c_int, argv: *mut *mut RawValue) -> Result<Vec<Value>> {
    (0..usize::try_from(argc).unwrap_or(0))
        // SAFETY: caller.
        .map(|i| {
            unsafe { Value::from_raw(*argv.add(i)) }.map_err(|e| e.context(format!("argument {}", i + 1)))
        })
        .collect()
}

/// # Safety
/// `c` is the context of the running callback.
pub(super) unsafe fn fail(c: *mut Context, text: &str) {
    let len = c_int::try_from(text.len()).unwrap_or(c_int::MAX);
    // SAFETY: "sqlite3_result_error() makes a copy of the text".
    unsafe { api::result_error(c, text.as_ptr().cast::<c_char>(), len) };
}
