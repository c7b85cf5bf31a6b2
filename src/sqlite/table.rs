//! Table-valued SQL functions, as eponymous-only virtual tables (<https://sqlite.org/vtab.html#epovtab>):
//! `SELECT * FROM walrust_list('url')`, and without arguments `SELECT * FROM walrust_status`.
//!
//! Arguments are hidden columns, in order. `SQLITE_VTAB_DIRECTONLY` where the host knows it (3.31).

use super::connection::Connection;
use super::ffi::{self, Context, IndexInfo, Module, RawValue, Sqlite3, Vtab, VtabCursor};
use super::function::{arguments, fail};
use super::guard::{caught, guard};
use super::value::Value;
use super::{api, error, stack};
use crate::base::{Error, Kind, Result};
use std::ffi::{CString, c_char, c_int, c_void};

/// The rows of a table-valued function.
pub type Rows = Box<dyn Iterator<Item = Result<Vec<Value>>>>;

/// A table-valued SQL function.
pub struct TableFunction {
    /// Name in SQL; also what its errors begin with.
    pub name: &'static str,
    /// Name and declared type of each result column.
    pub columns: &'static [(&'static str, &'static str)],
    /// Names of the arguments (hidden columns); 30 at most.
    pub args: &'static [&'static str],
    /// Makes the rows. One entry per argument, `None` when it was not given. Runs on the app's thread,
    /// inside a statement of `Connection`; the iterator runs there too.
    pub rows: fn(&Connection, &[Option<Value>]) -> Result<Rows>,
}

/// `sqlite3_vtab` of ours.
#[repr(C)]
struct Table {
    base: Vtab,
    db: *mut Sqlite3,
    function: &'static TableFunction,
}

/// `sqlite3_vtab_cursor` of ours.
#[repr(C)]
struct Cursor {
    base: VtabCursor,
    rows: Option<Rows>,
    row: Option<Vec<Value>>,
    args: Vec<Option<Value>>,
    rowid: i64,
}

// xCreate null: eponymous-only.
static MODULE: Module = Module {
    i_version: 1,
    x_create: None,
    x_connect: Some(x_connect),
    x_best_index: Some(x_best_index),
    x_disconnect: Some(x_disconnect),
    x_destroy: Some(x_disconnect),
    x_open: Some(x_open),
    x_close: Some(x_close),
    x_filter: Some(x_filter),
    x_next: Some(x_next),
    x_eof: Some(x_eof),
    x_column: Some(x_column),
    x_rowid: Some(x_rowid),
    x_update: None,
    x_begin: None,
    x_sync: None,
    x_commit: None,
    x_rollback: None,
    x_find_function: None,
    x_rename: None,
};

/// Registers the table on a connection.
///
/// # Safety
/// `db` is an open connection of the adopted library.
pub(super) unsafe fn register(db: *mut Sqlite3, f: &'static TableFunction) -> Result<()> {
    let name = CString::new(f.name).map_err(|_| Error::config("a table name holds a NUL"))?;
    let aux = std::ptr::from_ref(f).cast_mut().cast();
    // SAFETY: caller; module and function are static.
    let rc = unsafe { api::create_module_v2(db, name.as_ptr(), &raw const MODULE, aux, None) };
    error::check(rc, || format!("cannot register {}", f.name))
}

/// `CREATE TABLE x("a" TEXT, …, "arg" HIDDEN)`
fn schema(f: &TableFunction) -> String {
    let shown = f.columns.iter().map(|(name, ty)| format!("\"{name}\" {ty}"));
    let hidden = f.args.iter().map(|name| format!("\"{name}\" HIDDEN"));
    format!("CREATE TABLE x({})", shown.chain(hidden).collect::<Vec<_>>().join(", "))
}

unsafe extern "C" fn x_connect(
    db: *mut Sqlite3,
    aux: *mut c_void,
    _: c_int,
    _: *const *const c_char,
    out: *mut *mut Vtab,
    _: *mut *mut c_char,
) -> c_int {
    guard(ffi::ERROR, || {
        // SAFETY: `register` gave a `&'static TableFunction`; the calls are those of an xConnect
        // (https://sqlite.org/vtab.html#xcreate).
        unsafe {
            let function = &*aux.cast::<TableFunction>();
            let Ok(sql) = CString::new(schema(function)) else { return ffi::ERROR };
            let rc = api::declare_vtab(db, sql.as_ptr());
            if rc != ffi::OK {
                return rc;
            }
            if api::at_least(3_031_000) {
                api::vtab_config(db, ffi::VTAB_DIRECTONLY);
            }
            let base = Vtab { module: std::ptr::null(), n_ref: 0, err_msg: std::ptr::null_mut() };
            *out = Box::into_raw(Box::new(Table { base, db, function })).cast();
            ffi::OK
        }
    })
}

unsafe extern "C" fn x_disconnect(vtab: *mut Vtab) -> c_int {
    // SAFETY: made in x_connect, given back once.
    guard((), || unsafe { drop(Box::from_raw(vtab.cast::<Table>())) });
    ffi::OK
}

/// Bit i of `idxNum`: argument i is given; they come to xFilter in order.
unsafe extern "C" fn x_best_index(vtab: *mut Vtab, info: *mut IndexInfo) -> c_int {
    guard(ffi::ERROR, || {
        // SAFETY: `vtab` is ours; SQLite fills the arrays with `n_constraint` entries.
        unsafe {
            let function = (*vtab.cast::<Table>()).function;
            let n = usize::try_from((*info).n_constraint).unwrap_or(0);
            let first_hidden = function.columns.len();
            let mut chosen: Vec<Option<usize>> = vec![None; function.args.len()];
            let mut waiting = vec![false; function.args.len()];
            for i in 0..n {
                let c = &*(*info).constraint.add(i);
                let arg = usize::try_from(c.column).ok().and_then(|col| col.checked_sub(first_hidden));
                let Some(arg) = arg.filter(|a| *a < chosen.len() && c.op == ffi::INDEX_CONSTRAINT_EQ) else {
                    continue;
                };
                if c.usable == 0 {
                    waiting[arg] = true;
                } else if chosen[arg].is_none() {
                    chosen[arg] = Some(i);
                }
            }
            // An argument that hangs on a table not yet visited: this order of tables will not do.
            if chosen.iter().zip(&waiting).any(|(c, w)| c.is_none() && *w) {
                return ffi::CONSTRAINT;
            }
            let mut given = 0;
            (*info).idx_num = 0;
            for (arg, i) in chosen.iter().enumerate() {
                if let Some(i) = i {
                    given += 1;
                    let usage = &mut *(*info).constraint_usage.add(*i);
                    usage.argv_index = given;
                    usage.omit = 1;
                    (*info).idx_num |= 1 << arg;
                }
            }
            (*info).estimated_cost = 1000.0;
            (*info).estimated_rows = 100;
            ffi::OK
        }
    })
}

unsafe extern "C" fn x_open(_: *mut Vtab, out: *mut *mut VtabCursor) -> c_int {
    guard(ffi::ERROR, || {
        let base = VtabCursor { vtab: std::ptr::null_mut() };
        let cursor = Cursor { base, rows: None, row: None, args: Vec::new(), rowid: 0 };
        // SAFETY: SQLite sets `base.vtab` itself after xOpen.
        unsafe { *out = Box::into_raw(Box::new(cursor)).cast() };
        ffi::OK
    })
}

unsafe extern "C" fn x_close(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: made in x_open, given back once.
    guard((), || unsafe { drop(Box::from_raw(cursor.cast::<Cursor>())) });
    ffi::OK
}

/// Runs `f` on the cursor; an error or panic becomes the table's error text.
///
/// # Safety
/// `cursor` was made in x_open and is used by this thread only.
unsafe fn step(cursor: *mut VtabCursor, f: impl FnOnce(&mut Cursor, &Table) -> Result<()>) -> c_int {
    // SAFETY: caller; SQLite set `vtab` to ours.
    let (cursor, table) = unsafe {
        let cursor = &mut *cursor.cast::<Cursor>();
        let table = cursor.base.vtab.cast::<Table>();
        (cursor, table)
    };
    // SAFETY: the table outlives its cursors.
    let function = unsafe { (*table).function };
    let done = caught(|| f(cursor, unsafe { &*table }))
        .unwrap_or_else(|what| Err(Error::new(Kind::Bug, format!("internal error (panic): {what}"))));
    match done {
        Ok(()) => ffi::OK,
        Err(e) => {
            cursor.row = None;
            let rows = cursor.rows.take();
            guard((), || drop(rows));
            let text = api::sqlite_string(&format!("{}: {e}", function.name));
            // SAFETY: "the previous value, if any, must be freed with sqlite3_free" (c3ref/vtab.html).
            unsafe {
                api::free((*table).base.err_msg.cast());
                (*table).base.err_msg = text;
            }
            ffi::ERROR
        }
    }
}

unsafe extern "C" fn x_filter(
    cursor: *mut VtabCursor,
    given: c_int,
    _: *const c_char,
    argc: c_int,
    argv: *mut *mut RawValue,
) -> c_int {
    // SAFETY: SQLite's cursor of ours, with the arguments x_best_index asked for.
    unsafe {
        step(cursor, |cursor, table| {
            stack::check()?;
            let mut values = arguments(argc, argv)?.into_iter();
            cursor.args = (0..table.function.args.len())
                .map(|arg| if given & (1 << arg) != 0 { values.next() } else { None })
                .collect();
            cursor.rowid = 0;
            cursor.rows = None;
            let conn = Connection::borrowed(table.db);
            cursor.rows = Some((table.function.rows)(&conn, &cursor.args)?);
            cursor.row = advance(&mut cursor.rows)?;
            Ok(())
        })
    }
}

fn advance(rows: &mut Option<Rows>) -> Result<Option<Vec<Value>>> {
    rows.as_mut().and_then(Iterator::next).transpose()
}

unsafe extern "C" fn x_next(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: SQLite's cursor of ours.
    unsafe {
        step(cursor, |cursor, _| {
            cursor.rowid += 1;
            cursor.row = advance(&mut cursor.rows)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn x_eof(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: SQLite's cursor of ours.
    unsafe { c_int::from((*cursor.cast::<Cursor>()).row.is_none()) }
}

unsafe extern "C" fn x_column(cursor: *mut VtabCursor, c: *mut Context, col: c_int) -> c_int {
    // SAFETY: SQLite's cursor of ours, and the running context.
    unsafe {
        let cursor = &*cursor.cast::<Cursor>();
        let table = &*cursor.base.vtab.cast::<Table>();
        let done = caught(|| {
            let col = usize::try_from(col).unwrap_or(usize::MAX);
            let value = match col.checked_sub(table.function.columns.len()) {
                None => cursor.row.as_ref().and_then(|r| r.get(col)),
                Some(arg) => cursor.args.get(arg).and_then(Option::as_ref),
            };
            value.unwrap_or(&Value::Null).set_result(c);
        });
        if let Err(what) = done {
            fail(c, &format!("{}: internal error (panic): {what}", table.function.name));
            return ffi::ERROR;
        }
        ffi::OK
    }
}

unsafe extern "C" fn x_rowid(cursor: *mut VtabCursor, out: *mut i64) -> c_int {
    // SAFETY: SQLite's cursor of ours.
    unsafe { *out = (*cursor.cast::<Cursor>()).rowid };
    ffi::OK
}
