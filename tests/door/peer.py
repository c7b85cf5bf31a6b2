"""A process with SQLite in it, driven one JSON line at a time (see door.Peer).

Started as `python peer.py MODULE [EXTENSION]`, where MODULE is `sqlite3` (the system's SQLite), `apsw` (a newer one) or
`sqlcipher3` (SQLCipher).
With EXTENSION it loads that on a :memory: connection, closes the connection, and says so: everything opened later is
opened by plain path, as an application does. Each request is one line, each answer is one line.
"""

import json
import os
import sys
import threading
import time
import traceback

MODULE = sys.argv[1]
EXTENSION = sys.argv[2] if len(sys.argv) > 2 else None

if MODULE == "apsw":
    import apsw

    class Connection:
        """apsw, with the few names of the sqlite3 module that the tests use."""

        def __init__(self, path, uri):
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | (apsw.SQLITE_OPEN_URI if uri else 0)
            self.db = apsw.Connection(path, flags=flags)
            self.db.set_busy_timeout(10_000)
            self.close = self.db.close

        def execute(self, sql, params=()):
            return self.db.execute(sql, params)

        def executemany(self, sql, rows):
            return self.db.executemany(sql, rows)

        def load(self, path):
            self.db.enable_load_extension(True)
            self.db.load_extension(path)

    def connect(path, uri=False):
        return Connection(path, uri)

    def sqlite_version():
        return apsw.sqlite_lib_version()
else:
    if MODULE == "sqlcipher3":
        from sqlcipher3 import dbapi2 as sqlite3
    else:
        import sqlite3

    class Connection(sqlite3.Connection):
        def load(self, path):
            self.enable_load_extension(True)
            self.load_extension(path)

    def connect(path, uri=False):
        return sqlite3.connect(
            path, timeout=10, isolation_level=None, check_same_thread=False, uri=uri, factory=Connection, cached_statements=20
        )

    def sqlite_version():
        return sqlite3.sqlite_version


conns = {}


def fetch(conn, sql, params=()):
    return [list(row) for row in conn.execute(sql, params)]


def plain(value):
    return {"hex": bytes(value).hex()} if isinstance(value, (bytes, memoryview)) else value


def unplain(value):
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) and "hex" in value else value


def act(request):
    op = request["op"]
    if op == "load":
        conns[request["conn"]].load(request["path"])
        return None
    if op == "open":
        conns[request["conn"]] = connect(request["path"], request.get("uri", False))
        return None
    if op == "close":
        conns.pop(request["conn"]).close()
        return None
    if op == "sql":
        rows = fetch(conns[request["conn"]], request["sql"], [unplain(p) for p in request.get("params", [])])
        return [[plain(v) for v in row] for row in rows]
    if op == "many":
        conns[request["conn"]].executemany(request["sql"], [[unplain(v) for v in row] for row in request["rows"]])
        return None
    if op == "code":
        scope = {
            "conns": conns, "connect": connect, "fetch": fetch, "os": os, "time": time, "threading": threading,
            "args": request.get("args", {}), "result": None, "sqlite_version": sqlite_version, "sys": sys,
        }
        exec(compile(request["code"], "<test>", "exec"), scope)
        return scope["result"]
    raise ValueError("unknown op " + op)


def main():
    if EXTENSION:
        first = connect(":memory:")
        first.load(EXTENSION)
        first.close()
    print(json.dumps({"ok": sqlite_version()}), flush=True)
    for line in sys.stdin:
        try:
            answer = {"ok": act(json.loads(line))}
        except Exception as error:  # every failure goes back to the test, which knows what it expected
            answer = {"error": str(error), "type": type(error).__name__, "trace": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
    for conn in conns.values():
        conn.close()


main()
