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

    def test_writes_say_read_only(self):
        p, db, replica = self.watched()
        p.sql("INSERT INTO t(v) VALUES('one')")
        p.sync()
        before = door.tree(replica)
        r = self.reader()
        r.sql(f"ATTACH 'file://{replica}' AS past")
        for statement in ("INSERT INTO past.t(v) VALUES(1)", "CREATE TABLE past.u(x)", "DELETE FROM past.t",
                          "PRAGMA past.user_version=5", "DROP TABLE past.t"):
            with self.assertRaisesRegex(SqlError, "readonly"):
                r.sql(statement)
        self.assertEqual(r.sql("PRAGMA past.journal_mode=WAL"), "delete")
        self.assertEqual(r.sql("SELECT count(*) FROM past.t"), 1)
        p.close()
        after = {k: v for k, v in door.tree(replica).items() if k.endswith(".ltx")}
        self.assertLessEqual({k: v for k, v in before.items() if k.endswith(".ltx")}.items(), after.items())

    def test_what_is_no_replica_is_one_clear_error(self):
        r = self.reader()
        os.mkdir(self.path("empty"))
        with open(self.path("file.db"), "wb") as f:
            f.write(b"x" * 5000)
        for name in (f"file://{self.path('empty')}", f"file://{self.path('absent')}", self.path("empty"), "walrust:", "s3://",
                     "s3://bucket/app?colour=red", f"file://{self.path('empty')}?at=tomorrow-ish"):
            with self.assertRaisesRegex(SqlError, "unable to open database"):
                r.sql(f"ATTACH {quote(name)} AS past")
            self.assertErrorLine(r.sql("SELECT walrust_last_error()"), ".")
            self.assertIsNone(r.sql("SELECT walrust_last_error()"))
        self.assertEqual(sorted(os.listdir(self.path("empty"))), [])


class Oracle(ReadTest):
    """Every point opened in place is what its restore is."""

    def history(self, size, replica, steps=18):
        p = self.peer().open(self.path(f"app-{size}.db"))
        p.sql(f"PRAGMA page_size={size}")
        p.sql("PRAGMA auto_vacuum=INCREMENTAL")
        p.watch(replica, interval="0s", levels=["300ms", "1s"])
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v BLOB)")
        p.sql("CREATE INDEX tk ON t(k)")
        for step in range(steps):
            kind = step % 6
            if kind in (0, 3):
                p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) "
                      "INSERT INTO t(k, v) SELECT abs(random()) % 1000, randomblob(abs(random()) % 700) FROM n")
            elif kind == 1:
                p.sql("UPDATE t SET v=randomblob(40) WHERE id % 7 = ?", step % 7)
            elif kind == 2:
                p.sql("DELETE FROM t WHERE id % 2 = ?", step % 2)
                p.sql("PRAGMA incremental_vacuum")
            elif kind == 4:
                p.sql("VACUUM")
            else:
                p.sql(f"CREATE TABLE x{step}(a, b)")
                p.sql(f"INSERT INTO x{step} SELECT id, k FROM t LIMIT 50")
            p.sync()
            if step == steps // 2:
                p.sql("SELECT walrust_snapshot()")
        return p

    def every_point(self, url, env=None):
        r = self.reader(env=env)
        points = [t for t, in r.rows("SELECT txid FROM walrust_points(?)", url)]
        self.assertGreater(len(points), 8)
        for txid in points:
            out, at = self.restore(url, point=txid, env=env)
            self.assertEqual(at, txid)
            expected = self.digest(r, out)
            self.assertEqual(expected[1], [("ok",)])
            with self.subTest(txid=txid):
                name = r.sql("SELECT walrust_url(?, ?)", url, txid)
                self.assertEqual(self.digest(r, name), expected)
            os.remove(out)
        return points

    def test_every_point_in_place_is_its_restore_at_512(self):
        replica = self.path("r512")
        p = self.history(512, replica)
        self.every_point("file://" + replica)
        p.close()

    def test_every_point_in_place_is_its_restore_at_4096(self):
        replica = self.path("r4096")
        p = self.history(4096, replica)
        p.close()
        self.every_point("file://" + replica)

    def test_every_point_in_place_is_its_restore_at_65536(self):
        replica = self.path("r65536")
        p = self.history(65536, replica, steps=12)
        self.every_point("file://" + replica)
        p.close()

    def test_a_new_history_in_the_same_replica(self):
        p, db, replica = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES('first history')")
        p.sync()
        r = self.reader()
        r.sql(f"ATTACH 'file://{replica}' AS past")
        self.assertEqual(r.rows("SELECT v FROM past.t"), [("first history",)])
        p.close()
        with contextlib.closing(door.plain_connect(db)) as stranger:
            stranger.execute("DROP TABLE t")
            stranger.execute("CREATE TABLE t(other, v)")
            stranger.execute("INSERT INTO t VALUES(1, 'of a stranger')")
        p.open(db)
        p.watch(replica, interval="0s")
        p.sync()
        self.eventually(lambda: r.rows("SELECT * FROM past.t") == [(1, "of a stranger")], timeout=40, every=0.5)
        self.every = [t for t, in r.rows(f"SELECT txid FROM walrust_points('file://{replica}')")]
        for txid in self.every:
            out, _ = self.restore("file://" + replica, point=txid)
            self.assertEqual(self.digest(r, f"file://{replica}?at={txid}", "then"), self.digest(r, out, "then"))


class Moving(ReadTest):
    def test_one_txid_for_a_transaction_and_the_newest_after_it(self):
        p, db, replica = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES(0)")
        p.sync()
        r = self.reader()
        r.sql(f"ATTACH 'file://{replica}' AS now")
        r.sql("BEGIN")
        self.assertEqual(r.sql("SELECT max(v) FROM now.t"), 0)
        for n in range(1, 20):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
        p.sync()
        time.sleep(1.2)
        self.assertEqual(r.sql("SELECT max(v) FROM now.t"), 0)
        r.sql("COMMIT")
        self.eventually(lambda: r.sql("SELECT max(v) FROM now.t") == 19, timeout=5)
        p.sql("CREATE TABLE u AS SELECT * FROM t")
        p.sync()
        self.eventually(lambda: ("u",) in r.rows("SELECT name FROM now.sqlite_master"), timeout=5)
        self.assertEqual(r.sql("SELECT count(*) FROM now.u"), 20)

    def test_reads_while_the_writer_and_merges_go_on(self):
        """Each state has sum(v) = 0, and as many rows as its counter says: what is torn, or mixed of two, has not."""
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, pad BLOB);CREATE TABLE c(n)",
                                      interval="0s", levels=["100ms", "400ms", "1s"])
        p.sql("INSERT INTO c VALUES(0)")
        p.sync()
        p.send(op="code", code="""
import random
db, n, end = conns['main'], 0, time.monotonic() + args['seconds']
while time.monotonic() < end:
    db.execute("BEGIN")
    for v in (7, -7):
        db.execute("INSERT INTO t(v, pad) VALUES(?, randomblob(?))", (v, random.randrange(3000)))
    n += 2
    if random.random() < 0.05:
        n -= 2 * db.execute("DELETE FROM t WHERE id % 10 = 3 AND v = 7").rowcount if False else 0
    db.execute("UPDATE c SET n = ?", (n,))
    db.execute("COMMIT")
    time.sleep(0.002)
result = n
""", args={"seconds": 12})
        r = self.reader()
        seen = r.code("""
import threading
seen, wrong = [], []
def read(k):
    db = connect(":memory:")
    db.execute("ATTACH ? AS r", (args['url'],))
    end = time.monotonic() + 11
    while time.monotonic() < end:
        db.execute("BEGIN")
        n = db.execute("SELECT n FROM r.c").fetchone()[0]
        time.sleep(0.05)
        got = db.execute("SELECT count(*), ifnull(sum(v), 0), count(pad) FROM r.t").fetchone()
        db.execute("COMMIT")
        seen.append(n)
        if tuple(got) != (n, 0, n):
            wrong.append((n, got))
    check = db.execute("PRAGMA r.integrity_check").fetchone()[0]
    if check != "ok":
        wrong.append(check)
threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
result = [len(seen), len(set(seen)), wrong[:5]]
""", url="file://" + replica)
        p.wait()
        print(f"\n{seen[0]} reads of {seen[1]} states", flush=True)
        self.assertEqual(seen[2], [])
        self.assertGreater(seen[1], 5)


class Damage(ReadTest):
    def large(self, rows=3000):
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)", interval="0s")
        p.sql(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows}) "
              "INSERT INTO t(v) SELECT randomblob(900) FROM n")
        txid = p.sync()
        p.close()
        return db, replica, txid

    def test_a_damaged_object_is_one_error_and_no_wrong_row(self):
        db, replica, txid = self.large()
        good = self.digest(self.reader(), f"file://{replica}")
        files = [f for _, _, _, f in door.ltx_files(replica)]
        for path in files:
            with open(path, "rb") as f:
                data = f.read()
            size = len(data)
            for at in sorted({5, 50, 99, 120, size // 3, size // 2, size - 400, size - 30, size - 20, size - 5}):
                broken = bytearray(data)
                broken[at] ^= 0x55
                with open(path, "wb") as f:
                    f.write(broken)
                r = self.reader()
                with self.subTest(file=os.path.basename(path), at=at):
                    try:
                        got = self.digest(r, f"file://{replica}")
                    except SqlError:
                        self.assertErrorLine(r.sql("SELECT walrust_last_error()"), os.path.basename(path))
                    else:
                        self.assertEqual(got, good)
                r.kill()
                with open(path, "wb") as f:
                    f.write(data)

    def test_a_file_that_is_gone_or_cut_short(self):
        db, replica, txid = self.large()
        path = max((f for _, _, _, f in door.ltx_files(replica)), key=os.path.getsize)
        os.rename(path, path + "-away")
        r = self.reader()
        with self.assertRaisesRegex(SqlError, "unable to open"):
            r.sql(f"ATTACH 'file://{replica}' AS past")
        self.assertErrorLine(r.sql("SELECT walrust_last_error()"), "cannot be rebuilt|cannot be restored|gone")
        with self.assertRaisesRegex(SqlError, "cannot be rebuilt|cannot be restored|gone"):
            r.sql("SELECT walrust_url(?)", "file://" + replica)
        os.rename(path + "-away", path)
        r.sql(f"ATTACH 'file://{replica}' AS past")
        self.assertEqual(r.sql("SELECT count(*) FROM past.t WHERE id < 3"), 2)
        os.rename(path, path + "-away")
        with self.assertRaises(SqlError):
            r.sql("SELECT sum(length(v)) FROM past.t")
        self.assertErrorLine(r.sql("SELECT walrust_last_error()"), f"TXID {txid} is gone")

    def test_a_point_that_is_gone_is_one_clear_error(self):
        p, db, replica = self.watched()
        p.sync()
        r = self.reader()
        for point in (99, "99", "2001-01-01"):
            with self.assertRaisesRegex(SqlError, "outside the history"):
                r.sql("SELECT walrust_url(?, ?)", "file://" + replica, point)
            with self.assertRaisesRegex(SqlError, "unable to open"):
                r.sql(f"ATTACH 'file://{replica}?at={point}' AS past")
            self.assertErrorLine(r.sql("SELECT walrust_last_error()"), "outside the history")
        with self.assertRaisesRegex(SqlError, "second argument"):
            r.sql("SELECT walrust_url(?)", f"file://{replica}?at=3")
