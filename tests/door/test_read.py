"""A replica read in place: SQLite opens or attaches its URL, at any point in time, and fetches what it reads."""

import contextlib
import os
import shutil
import time
import unittest

import door
from door import SqlError, quote

#: What a stranger compares: all rows of all tables, in their order.
DUMP = """
def dump(conn, schema):
    import hashlib
    h = hashlib.sha256()
    tables = [r[0] for r in conn.execute(f"SELECT name FROM {schema}.sqlite_master WHERE type='table' ORDER BY name")]
    for t in tables:
        h.update(t.encode())
        for row in conn.execute(f'SELECT rowid, * FROM {schema}."{t}" ORDER BY rowid'):
            h.update(repr(tuple(row)).encode())
    for row in conn.execute(f"SELECT type, name, tbl_name, sql FROM {schema}.sqlite_master ORDER BY 1, 2"):
        h.update(repr(tuple(row)).encode())
    return h.hexdigest()
"""


class ReadTest(door.DoorTest):
    def reader(self, **kwargs):
        """A process that only reads: walrust is loaded, nothing is watched."""
        return self.peer(**kwargs).open(":memory:")

    def digest(self, peer, name, schema="past", conn="main"):
        """Attaches `name`, and gives what it holds and what SQLite says of its soundness."""
        peer.sql(f"ATTACH {quote(name)} AS {schema}", conn=conn)
        try:
            got = peer.code(DUMP + "\nresult = dump(conns[args['conn']], args['schema'])", conn=conn, schema=schema)
            return got, peer.rows(f"PRAGMA {schema}.integrity_check", conn=conn)
        finally:
            peer.sql(f"DETACH {schema}", conn=conn)


class Places(ReadTest):
    def test_a_directory_is_opened_and_attached_at_points(self):
        p, db, replica = self.watched()
        p.sql("INSERT INTO t(v) VALUES('one')")
        first = p.sync()
        p.sql("INSERT INTO t(v) VALUES('two')")
        second = p.sync()
        self.assertGreater(second, first)
        r = self.reader()
        for name in (f"file://{replica}", f"walrust:{replica}", f"walrust:file://{replica}", replica):
            r.sql(f"ATTACH {quote(name)} AS past")
            self.assertEqual(r.rows("SELECT v FROM past.t ORDER BY id"), [("one",), ("two",)], name)
            r.sql("DETACH past")
        r.sql(f"ATTACH 'file://{replica}?at={first}' AS past")
        r.sql(f"ATTACH 'file://{replica}?at={second}' AS later")
        self.assertEqual(r.rows("SELECT v FROM past.t"), [("one",)])
        self.assertEqual(r.rows("SELECT v FROM later.t WHERE v NOT IN (SELECT v FROM past.t)"), [("two",)])
        r.open(f"file://{replica}?at={first}", "direct")
        self.assertEqual(r.rows("SELECT v FROM t", conn="direct"), [("one",)])
