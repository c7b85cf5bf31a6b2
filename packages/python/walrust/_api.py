"""SQL functions as Python functions."""

import datetime
import json
import os
import sqlite3
import tempfile
import threading
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from ._load import Error, load

Database = Union[str, "os.PathLike[str]", Any]
Point = Union[None, int, str, datetime.datetime, datetime.timedelta]

_kept: Dict[str, sqlite3.Connection] = {}
# What a fork inherited: not used, and not closed, as SQLite wants it.
_inherited: List[sqlite3.Connection] = []
_lock = threading.RLock()
_process = os.getpid()


class Status(NamedTuple):
    """A watched database, a followed file, or a configured database that is open and not watched yet."""

    database: str
    replica: Optional[str]
    state: str
    txid: int
    replicated_txid: int
    lag_seconds: Optional[float]
    pending_bytes: int
    wal_bytes: int
    spool_bytes: int
    breaker: str
    last_upload: Optional[datetime.datetime]
    last_error: Optional[str]
    protection: Optional[str]


class Finding(NamedTuple):
    """One line of a verification."""

    severity: str
    check: str
    file: Optional[str]
    min_txid: Optional[int]
    max_txid: Optional[int]
    bytes: Optional[int]
    message: str


class Verification(NamedTuple):
    """What a verification found. `ok` is True when no finding is worse than "ok"."""

    findings: Tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.issues

    @property
    def issues(self) -> Tuple[Finding, ...]:
        """The findings that are not "ok"."""
        return tuple(f for f in self.findings if f.severity != "ok")


def watch(database: Database, replica: Optional[str] = None, **options: Any) -> Status:
    """Start streaming a database to a replica; WAL mode is turned on. The options are walrust's settings (`interval="5s"`).

    Without `replica` it is the configured one, else the directory `<database>-replica` beside it.
    """
    begun = not _is_connection(database) and _key(database) not in _kept
    db = _keep(database)
    try:
        if options:
            _one(db, "SELECT walrust_watch(?, ?)", (replica, json.dumps(options)))
        elif replica is not None:
            _one(db, "SELECT walrust_watch(?)", (replica,))
        else:
            _one(db, "SELECT walrust_watch()")
    except Error:
        if begun:
            _let_go(database)
        raise
    mine = _file(db)
    for row in status():
        if same_file(row.database, mine):
            return row
    raise Error(f"{mine} was watched, and is not any more: another thread ended it")


def unwatch(database: Database) -> int:
    """Ship what is pending, then stop. Gives the TXID."""
    with _using(database) as db:
        txid = int(_one(db, "SELECT walrust_unwatch()"))
    if not _is_connection(database):
        _let_go(database)
    return txid


def sync(database: Database, timeout: float = 30.0) -> int:
    """Return when every commit made before the call is in the replica: its TXID. Raises Error after `timeout` seconds."""
    with _using(database) as db:
        return int(_one(db, "SELECT walrust_sync(?)", (timeout,)))


def snapshot(database: Database, url: Optional[str] = None) -> int:
    """Put a full snapshot into the replica now, or a copy of one at another URL. Gives its TXID."""
    with _using(database) as db:
        if url is None:
            return int(_one(db, "SELECT walrust_snapshot()"))
        return int(_one(db, "SELECT walrust_snapshot(?)", (url,)))


def status() -> List[Status]:
    """The watched databases of this process, the files it follows, and the configured databases that are open and not watched yet."""
    with _memory() as db:
        rows = _all(db, "SELECT " + ", ".join(Status._fields) + " FROM walrust_status")
    return [Status(*row)._replace(last_upload=_time(row[Status._fields.index("last_upload")])) for row in rows]


def restore(
    url: str, path: "Union[str, os.PathLike[str]]", point: Point = None, *, overwrite: bool = False, check: Optional[str] = None,
    parallel: Optional[int] = None
) -> int:
    """Write the database as it was at `point` to `path`. Gives the TXID.

    `point` is a TXID, a datetime, a timedelta back from now, a text as SQL takes it, or None for the newest. `check` is "none", "quick"
    or "full", SQLite's own check of what was restored.
    """
    options: Dict[str, Any] = {"overwrite": overwrite, "check": check, "parallel": parallel}
    given = json.dumps({k: v for k, v in options.items() if v not in (None, False)})
    with _memory() as db:
        return int(_one(db, "SELECT walrust_restore(?, ?, ?, ?)", (url, os.fspath(path), _point(point), given)))


def verify(url: str, mode: str = "quick") -> Verification:
    """Whether the backup works. `mode` is "quick" (what the replica holds), "deep" (reads and rebuilds all of it), or "fix"."""
    with _memory() as db:
        rows = _all(db, "SELECT " + _columns(Finding) + " FROM walrust_verify(?, ?)", (url, mode))
    return Verification(tuple(Finding(*row) for row in rows))


def connect(url: str, point: Point = None, **arguments: Any) -> sqlite3.Connection:
    """Read a replica: a read-only connection to the database as it was at `point`. Other arguments are those of sqlite3.connect().

    The database is restored into a temporary file, which has no name any more when the connection is given: it needs the room there,
    and is gone with the connection.
    """
    with tempfile.TemporaryDirectory(prefix="walrust-") as directory:
        path = os.path.join(directory, "replica.db")
        restore(url, path, point)
        arguments.pop("uri", None)
        try:
            db = sqlite3.connect(_uri(path) + "?mode=ro&immutable=1", uri=True, **arguments)
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as e:
            raise Error(str(e)) from e
    return db


# -- connections -----------------------------------------------------------------------------------------------------------------


class _using:
    """The connection that was given, the one that is kept for a path, or one for this call."""

    def __init__(self, database: Database) -> None:
        self.db: Any = database
        self.mine = False
        if _is_connection(database):
            _known(database)
            return
        with _lock:
            _after_fork()
            kept = _kept.get(_key(database))
        self.mine = kept is None
        self.db = _open(_key(database)) if kept is None else kept

    def __enter__(self) -> Any:
        return self.db

    def __exit__(self, *_: Any) -> None:
        if self.mine:
            self.db.close()


def _memory() -> _using:
    load()
    using = _using.__new__(_using)
    using.db, using.mine = _connect(":memory:"), True
    return using


def _keep(database: Database) -> Any:
    if _is_connection(database):
        _known(database)
        return database
    with _lock:
        _after_fork()
        key = _key(database)
        if key not in _kept:
            _kept[key] = _open(key, create=True)
        return _kept[key]


def _let_go(database: Database) -> None:
    with _lock:
        kept = _kept.pop(_key(database), None)
    if kept is not None:
        kept.close()


def _after_fork() -> None:
    global _process
    if _process != os.getpid():
        _inherited.extend(_kept.values())
        _kept.clear()
        _process = os.getpid()


def _is_connection(database: Database) -> bool:
    return not isinstance(database, (str, bytes)) and not hasattr(database, "__fspath__")


def _known(connection: Any) -> None:
    """The connection has walrust, by load() before it or from now on."""
    try:
        _all(connection, "SELECT walrust_version()")
    except Error:
        load(connection)


def _key(database: Database) -> str:
    return os.path.realpath(os.fspath(database))


def _open(path: str, create: bool = False) -> sqlite3.Connection:
    load()
    return _connect(_uri(path) + ("" if create else "?mode=rw"))


def _uri(path: str) -> str:
    return "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _connect(name: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(name, uri=name.startswith("file:"), timeout=30, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as e:
        path = name.split("?")[0].split(":", 1)[-1]
        raise Error(f"cannot open {path}: {e}") from e


# -- statements ------------------------------------------------------------------------------------------------------------------


def _all(db: Any, sql: str, parameters: Sequence[Any] = ()) -> List[Tuple[Any, ...]]:
    try:
        cursor = db.cursor()
        if isinstance(db, sqlite3.Connection):
            cursor.row_factory = None
        rows = cursor.execute(sql, tuple(parameters)).fetchall()
    except Exception as e:  # each driver has its own class for it
        raise Error(str(e)) from e
    return [tuple(v.decode() if isinstance(v, bytes) else v for v in row) for row in rows]


def _one(db: Any, sql: str, parameters: Sequence[Any] = ()) -> Any:
    return _all(db, sql, parameters)[0][0]


def _columns(rows: Any) -> str:
    return ", ".join(f'"{name}"' for name in rows._fields)


def _file(db: Any) -> str:
    return next((str(r[2]) for r in _all(db, "PRAGMA database_list") if r[1] == "main"), "")


def same_file(a: "Union[str, os.PathLike[str]]", b: "Union[str, os.PathLike[str]]") -> bool:
    """Whether two paths name one database file."""
    return os.path.realpath(a) == os.path.realpath(b)


def _point(point: Point) -> Union[None, int, str]:
    if isinstance(point, datetime.timedelta):
        point = datetime.datetime.now(datetime.timezone.utc) - point
    if isinstance(point, datetime.datetime):
        if point.tzinfo is None:
            point = point.astimezone()  # a datetime without a zone is local, as everywhere in Python
        return point.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return point


def _time(text: Optional[str]) -> Optional[datetime.datetime]:
    if text is None:
        return None
    form = "%Y-%m-%dT%H:%M:%S.%fZ" if "." in text else "%Y-%m-%dT%H:%M:%SZ"
    return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.timezone.utc)
