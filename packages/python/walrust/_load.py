"""The extension gets into this process's SQLite, and into no other.

A Python that may load extensions does it by sqlite3's own call. One that was built without it (pyenv's, macOS's) has SQLite's C functions
all the same: they are called through ctypes in the very library that this Python's _sqlite3 module uses. No second SQLite is loaded,
and whether the extension serves this Python is asked of a new connection, not assumed.
"""

import ctypes
import os
import sqlite3
import sys
import threading
from typing import Any, Optional

_OK = 0
_READWRITE_CREATE = 2 | 4
_lock = threading.Lock()


class Error(Exception):
    """What walrust, or SQLite on its behalf, refused. The text is one line."""


def loadable_path() -> str:
    """The extension's file, as `load_extension()` of any driver takes it."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "walrust" + suffix)


def load(connection: Optional[Any] = None) -> None:
    """Load walrust, for the life of the process: every connection that is opened from now on has it.

    Without a connection it is loaded into the SQLite of the `sqlite3` module; once is enough, and again does no harm. With a
    connection (of sqlite3, apsw, or a driver with their calls) it is loaded through that one, which has walrust from then on as well.
    Call it before the program opens its databases. Raises Error if this SQLite takes no extension.
    """
    if connection is None:
        _into_process()
    elif isinstance(connection, sqlite3.Connection) and not hasattr(connection, "enable_load_extension"):
        _into_process()
        if not _has_walrust(connection):
            raise Error(
                "this connection was opened before walrust was loaded, and this Python's sqlite3 cannot load into an open connection: "
                "call walrust.load() at the start of the program, then connect"
            )
    else:
        _into_connection(connection)


def _into_process() -> None:
    with _lock:
        connection = sqlite3.connect(":memory:")
        try:
            if _has_walrust(connection):
                return
            if hasattr(connection, "enable_load_extension"):
                _into_connection(connection)
                return
        finally:
            connection.close()
        _through_ctypes(_library_of_sqlite3())
        connection = sqlite3.connect(":memory:")
        try:
            if not _has_walrust(connection):
                raise Error(
                    "walrust was loaded into a SQLite that is not the one of this Python's sqlite3 module, which is linked in with its "
                    "functions hidden: use the apsw or pysqlite3-binary package, and walrust.load(connection)"
                )
        finally:
            connection.close()


def _has_walrust(connection: Any) -> bool:
    # Asked by a call, since sqlite3 itself keeps no list of modules before 3.16.
    try:
        connection.cursor().execute("SELECT walrust_version()").fetchall()
    except sqlite3.Error:
        return False
    return True


def _into_connection(connection: Any) -> None:
    enable = getattr(connection, "enable_load_extension", None) or getattr(connection, "enableloadextension", None)
    load_it = getattr(connection, "load_extension", None) or getattr(connection, "loadextension", None)
    if enable is None or load_it is None:
        raise Error(
            f"a {type(connection).__module__}.{type(connection).__name__} has no load_extension(): give the driver's own connection "
            "(sqlite3, apsw, pysqlite3), or call walrust.load() without one"
        )
    try:
        enable(True)
        try:
            load_it(loadable_path())
        finally:
            enable(False)
    except Exception as e:  # each driver has its own class for it
        raise Error(str(e)) from e


def _library_of_sqlite3() -> Any:
    """The C functions that this Python's sqlite3 module calls."""
    import _sqlite3

    # The module is in memory already, so this gives what is there; a name that is not in it is looked for in what it was linked with.
    # A module that is part of the program has no file.
    return ctypes.CDLL(getattr(_sqlite3, "__file__", None))


def _through_ctypes(library: Any) -> None:
    try:
        version = library.sqlite3_sourceid
        version.restype = ctypes.c_char_p
        if version().decode() != _source_id():
            raise Error(
                f"the SQLite that the loader finds ({version().decode()}) is not the one of this Python's sqlite3 module "
                f"({_source_id()}): use the apsw or pysqlite3-binary package, and walrust.load(connection)"
            )
        open_it, close, config = library.sqlite3_open_v2, library.sqlite3_close, library.sqlite3_enable_load_extension
        load_it, free, message = library.sqlite3_load_extension, library.sqlite3_free, library.sqlite3_errmsg
    except AttributeError as e:
        raise Error(
            f"this Python's SQLite takes no extension ({str(e).split(': ')[-1]}): use the system's python3, or the apsw or pysqlite3-binary "
            "package and walrust.load(connection)"
        ) from e
    open_it.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_char_p]
    close.argtypes = [ctypes.c_void_p]
    config.argtypes = [ctypes.c_void_p, ctypes.c_int]
    load_it.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
    free.argtypes = [ctypes.c_void_p]
    free.restype = None
    message.argtypes = [ctypes.c_void_p]
    message.restype = ctypes.c_char_p
    db, why = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        if open_it(b":memory:", ctypes.byref(db), _READWRITE_CREATE, None) != _OK:
            raise Error("SQLite could not open a database in memory: " + message(db).decode(errors="replace"))
        config(db, 1)
        if load_it(db, os.fsencode(loadable_path()), b"sqlite3_walrust_init", ctypes.byref(why)) != _OK:
            text = ctypes.cast(why, ctypes.c_char_p).value if why else message(db)
            raise Error((text or b"SQLite gave no reason").decode(errors="replace"))
    finally:
        if why:
            free(why)
        close(db)


def _source_id() -> str:
    connection = sqlite3.connect(":memory:")
    try:
        return str(connection.execute("SELECT sqlite_source_id()").fetchone()[0])
    finally:
        connection.close()
