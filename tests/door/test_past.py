"""The past of a watched database: read through its own file where nothing was changed since, and brought back by a rewind."""

import json
import os
import time

import door
import test_read
from door import SqlError
from test_read import DUMP

ROWS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{}) "


class Past(test_read.ReadTest):
    def attach(self, p, point, schema="past"):
        p.sql(f"ATTACH ? AS {schema}", p.sql("SELECT walrust_past(?)", point))

    def test_the_shell_undoes_a_bad_delete(self):
        p, db, replica = self.watched(schema="CREATE TABLE orders(id INTEGER PRIMARY KEY, what)")
        p.many("INSERT INTO orders(what) VALUES(?)", [[f"order {n}"] for n in range(500)])
        p.sync()
        time.sleep(1.1)
        p.close()
        out = self.shell(
            f"SELECT count(*) FROM orders;\nSELECT walrust_watch('{replica}') <> '';\nDELETE FROM orders WHERE id > 20;\n"
            "SELECT count(*) FROM orders;\nSELECT walrust_sync() > 0;\n"
            "ATTACH walrust_past('1 second ago') AS past;\n"
            "INSERT INTO orders SELECT * FROM past.orders WHERE id NOT IN (SELECT id FROM orders);\n"
            "SELECT count(*) FROM orders;\nSELECT count(*) FROM past.orders;\nSELECT walrust_sync() > 0;", db=db)
        self.assertEqual(out.split(), ["500", "1", "20", "1", "500", "500", "1"])
        out, _ = self.restore("file://" + replica)
        self.assertEqual(door.plain_rows(out, "SELECT count(*), count(what) FROM orders"), [(500, 500)])

    def test_it_stays_what_it_is_while_commits_and_checkpoints_go_on(self):
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)", interval="0s")
        p.sql(ROWS.format(3000) + "INSERT INTO t(v, pad) SELECT i, randomblob(300) FROM n")
        txid = p.sync()
        before = p.code(DUMP + "\nresult = dump(conns['main'], 'main')")
        self.attach(p, txid)
        for n in range(12):
            p.sql("UPDATE t SET v = -v, pad = randomblob(400) WHERE id % 12 = ?", n)
            if n % 4 == 1:
                p.sql("INSERT INTO t(v, pad) SELECT -v, pad FROM past.t WHERE id % 50 = 0")
            if n % 3 == 0:
                p.sql("PRAGMA wal_checkpoint(TRUNCATE)")
            if n == 6:
                p.sql("DELETE FROM t WHERE id % 2 = 0")
                p.sync()
            self.assertEqual(p.code(DUMP + "\nresult = dump(conns['main'], 'past')"), before, n)
        p.sql("DETACH past")
        p.sql("VACUUM")
        p.sync()
        self.attach(p, txid)
        self.assertEqual(p.code(DUMP + "\nresult = dump(conns['main'], 'past')"), before)
        self.assertEqual(p.rows("PRAGMA past.integrity_check"), [("ok",)])

    def test_in_the_middle_of_a_transaction_of_the_same_connection(self):
        p, db, replica = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(1000)])
        txid = p.sync()
        name = p.sql("SELECT walrust_past(?)", txid)
        p.sql("BEGIN IMMEDIATE")
        p.sql("DELETE FROM t")
        p.sql("ATTACH ? AS past", name)
        p.sql("INSERT INTO t SELECT * FROM past.t WHERE id <= 700")
        p.sql("COMMIT")
        self.assertEqual(p.rows("SELECT count(*), (SELECT count(*) FROM past.t) FROM t"), [(700, 1000)])
        p.sync()
        out, _ = self.restore("file://" + replica)
        self.assertSameBytes(db, out)

    def test_writes_are_refused(self):
        p, db, replica = self.watched()
        txid = p.sync()
        self.attach(p, txid)
        with self.assertRaisesRegex(SqlError, "readonly"):
            p.sql("INSERT INTO past.t(v) VALUES(1)")

    def test_what_cannot_be_had_is_one_clear_error(self):
        p, db, replica = self.watched()
        txid = p.sync()
        for point in (txid + 50, "2001-01-01"):
            with self.assertRaisesRegex(SqlError, "outside the history"):
                p.sql("SELECT walrust_past(?)", point)
        name = p.sql("SELECT walrust_past(?)", txid)
        stranger = self.reader()
        with self.assertRaisesRegex(SqlError, "walrust_watch|watched"):
            stranger.sql("SELECT walrust_past(?)", txid)
        with self.assertRaisesRegex(SqlError, "unable to open"):
            stranger.sql("ATTACH ? AS past", name)
        self.assertErrorLine(stranger.sql("SELECT walrust_last_error()"), "is not watched in this process")
        with self.assertRaisesRegex(SqlError, "unable to open"):
            p.sql("ATTACH 'walrust:past:app.db' AS past")
        self.assertErrorLine(p.sql("SELECT walrust_last_error()"), r"walrust_past\(point\)")

    def test_a_page_that_is_damaged_in_the_database_s_file_comes_from_the_replica(self):
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, pad BLOB)", interval="0s")
        p.sql(ROWS.format(2000) + "INSERT INTO t(pad) SELECT randomblob(500) FROM n")
        txid = p.sync()
        p.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        before = p.code(DUMP + "\nresult = dump(conns['main'], 'main')")
        # As a disk does it: below SQLite, which has the page in its cache or not.
        fd = os.open(db, os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            for page in range(5, size // 4096, 3):
                os.pwrite(fd, b"\xa5\x5a", page * 4096 + 1000)
        finally:
            os.close(fd)
        self.attach(p, txid)
        self.assertEqual(p.code(DUMP + "\nresult = dump(conns['main'], 'past')"), before)

    def test_the_past_of_another_history(self):
        """A TXID of the history before this one is not taken from a file of this one."""
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)", interval="0s")
        p.sql(ROWS.format(400) + "INSERT INTO t(v, pad) SELECT 'first', randomblob(200) FROM n")
        last = p.sync()
        p.close()
        with door.plain_connect(db) as stranger:
            stranger.execute("UPDATE t SET v = 'other' WHERE id > 200")
            stranger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        stranger.close()
        p.open(db)
        p.watch(replica, interval="0s")
        p.sql("UPDATE t SET v = 'third' WHERE id = 1")
        newest = p.sync()
        for txid in range(last, newest + 1):
            try:
                self.attach(p, txid)
            except SqlError:
                continue
            out, _ = self.restore("file://" + replica, point=txid)
            got = p.rows("SELECT v, count(*) FROM past.t GROUP BY v")
            self.assertEqual(got, door.plain_rows(out, "SELECT v, count(*) FROM t GROUP BY v"), txid)
            os.remove(out)
            p.sql("DETACH past")

    def test_another_process_ships(self):
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v)", interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(300)])
        txid = p.sync()
        q = self.peer().open(db)
        q.watch(replica, interval="0s")
        q.sql("DELETE FROM t WHERE id > 5")
        q.sync()
        self.attach(q, txid)
        self.assertEqual(q.rows("SELECT count(*), (SELECT count(*) FROM past.t) FROM t"), [(5, 300)])

    def test_a_fork_beside_it(self):
        p, db, replica = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(300)])
        txid = p.sync()
        self.attach(p, txid)
        took = p.code("""
began = time.monotonic()
pid = os.fork()
if pid == 0:
    try:
        conns['main'].execute("SELECT count(*) FROM past.t").fetchall()
        code = 1
    except Exception:
        code = 0
    os._exit(code)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
result = [code, time.monotonic() - began]
""")
        self.assertEqual(took[0], 0)
        self.assertLess(took[1], 2)
        self.assertEqual(p.sql("SELECT count(*) FROM past.t"), 300)


class PastOracle(test_read.Oracle):
    """Every point of a mixed history, through the database's own file, is what its restore is."""

    test_every_point_in_place_is_its_restore_at_512 = None
    test_every_point_in_place_is_its_restore_at_4096 = None
    test_every_point_in_place_is_its_restore_at_65536 = None
    test_a_new_history_in_the_same_replica = None

    def every_past(self, size, steps=18):
        replica = self.path(f"r{size}")
        p = self.history(size, replica, steps)
        points = [t for t, in p.rows("SELECT txid FROM walrust_points")]
        self.assertGreater(len(points), 8)
        for txid in points:
            out, _ = self.restore("file://" + replica, point=txid)
            expected = self.digest(self.plain, out)
            os.remove(out)
            with self.subTest(txid=txid):
                self.assertEqual(self.digest(p, p.sql("SELECT walrust_past(?)", txid)), expected)
        p.close()

    def setUp(self):
        super().setUp()
        self.plain = self.reader()

    def test_every_past_at_512(self):
        self.every_past(512)

    def test_every_past_at_4096(self):
        self.every_past(4096)

    def test_every_past_at_65536(self):
        self.every_past(65536, steps=12)


class Counted(test_read.OverS3):
    """What the past of a watched database asks of the store."""

    for name in [n for n in dir(test_read.OverS3) if n.startswith("test_")]:
        locals()[name] = None

    def watched_there(self, rows):
        db = self.path("app.db")
        p = self.peer(env=self.s3.env()).open(db)
        p.watch(self.s3.url("app", self.proxy.endpoint), interval="0s")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
        p.sql("CREATE TABLE u(id INTEGER PRIMARY KEY, v)")
        p.sql(ROWS.format(rows) + "INSERT INTO t(v) SELECT randomblob(1000) FROM n")
        p.sql("INSERT INTO u(v) VALUES('before')")
        p.sql("SELECT walrust_snapshot()")
        return p, p.sync()

    def test_pages_that_were_not_changed_cost_no_request(self):
        p, txid = self.watched_there(8000)
        p.sql("UPDATE u SET v = 'after'")
        p.sql("DELETE FROM t WHERE id = 4321")
        p.sync()
        # (It has the manifest name what was uploaded: of what it does not name yet, the file tells.)
        p.sql("SELECT walrust_verify()")
        before = p.sql("SELECT sum(length(v)), count(*) FROM t")
        name, seen, _, _ = self.gets("walrust_past", lambda: p.sql("SELECT walrust_past(?)", txid))
        self.assertLessEqual(len(seen), 4)
        self.assertEqual([path for _, path, _ in seen if ".ltx" in path], [], "no file is read to know the point")
        _, seen, fetched, took = self.gets("attach", lambda: p.sql("ATTACH ? AS past", name))
        self.assertLessEqual(len(seen), 6)
        self.assertLess(took, 1)
        got, seen, _, _ = self.gets("unchanged rows", lambda: p.rows("SELECT id, length(v) FROM past.t WHERE id IN (77, 7777)"))
        self.assertEqual((got, seen), ([(77, 1000), (7777, 1000)], []))
        got, seen, _, _ = self.gets("changed rows", lambda: p.rows("SELECT v, (SELECT id FROM past.t WHERE id = 4321) FROM past.u"))
        self.assertEqual(got, [("before", 4321)])
        self.assertLessEqual(len(seen), 6)
        got, seen, fetched, _ = self.gets("scan", lambda: p.rows("SELECT sum(length(v)), count(*) FROM past.t"))
        self.assertEqual(got, [(8_000_000, 8000)])
        self.assertLessEqual(len(seen), 1)
        self.assertEqual(p.sql("SELECT sum(length(v)) FROM t"), before)

    def test_pages_in_the_wal_cost_no_request_either(self):
        p, txid = self.watched_there(500)
        p.sql("PRAGMA wal_autocheckpoint=0")
        p.sql("UPDATE t SET v = zeroblob(1000) WHERE id BETWEEN 100 AND 300")
        txid = p.sync()
        p.sql("UPDATE u SET v = 'after'")
        p.sync()
        # (Retention, which follows the snapshot, reads the header of what the manifest does not name yet.)
        p.sql("SELECT walrust_verify()")
        p.sql("ATTACH ? AS past", p.sql("SELECT walrust_past(?)", txid))
        p.sql("SELECT count(*) FROM past.sqlite_master")
        got, seen, _, _ = self.gets("rows in the WAL", lambda: p.sql("SELECT count(*) FROM past.t WHERE v = zeroblob(1000)"))
        self.assertEqual((got, [path for _, path, _ in seen if ".ltx" in path]), (201, []))

    def gets(self, what, f):
        """As `spent`, where uploads may go on beside it."""
        before, self.bytes, began = len(self.proxy.seen), 0, time.monotonic()
        got = f()
        took = time.monotonic() - began
        seen = [s for s in self.proxy.seen[before:] if s[0] in ("GET", "HEAD") and "lease" not in s[1]]
        print(f"\n{what}: {len(seen)} requests, {self.bytes} bytes, {took:.3f} s", flush=True)
        return got, seen, self.bytes, took


class Rewind(test_read.ReadTest):
    def test_it_is_one_transaction_and_is_undone_by_another(self):
        p, db, replica = self.watched(schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)", interval="0s")
        p.sql(ROWS.format(2000) + "INSERT INTO t(v, pad) SELECT i, randomblob(300) FROM n")
        good = p.sync()
        p.sql("DELETE FROM t WHERE id > 100")
        p.sql("CREATE TABLE u AS SELECT * FROM t")
        p.sql("PRAGMA user_version = 7")
        q = self.peer().open(db)
        self.assertEqual(q.sql("SELECT count(*) FROM t"), 100)
        q.sql("BEGIN")
        self.assertEqual(q.sql("SELECT count(*) FROM u"), 100)
        late = p.code(DUMP + "\nresult = dump(conns['main'], 'main')")
        undo = p.sql("SELECT walrust_rewind(?)", good)
        self.assertGreater(undo, good)
        self.assertEqual(p.sql("SELECT walrust_rewind(?)", good), undo, "as a driver does that steps a statement twice")
        self.assertEqual(p.rows("SELECT count(*), sum(length(pad)) FROM t"), [(2000, 600_000)])
        self.assertEqual(p.rows("SELECT name FROM sqlite_master"), [("t",)])
        self.assertEqual(p.rows("PRAGMA integrity_check"), [("ok",)])
        self.assertEqual(p.sql("PRAGMA journal_mode"), "wal")
        self.assertEqual(q.sql("SELECT count(*) FROM u"), 100, "a reader keeps its state to the end of its transaction")
        with self.assertRaisesRegex(SqlError, "locked"):
            q.sql("INSERT INTO t(v) VALUES(1)")
        q.sql("COMMIT")
        self.assertEqual(q.sql("SELECT count(*) FROM t"), 2000)
        q.sql("INSERT INTO t(v) VALUES('goes on')")
        after = p.sync()
        self.assertGreater(after, undo)
        for txid, point in ((undo, late), (good, None)):
            out, _ = self.restore("file://" + replica, point=txid)
            r = self.reader()
            r.open(out, "restored")
            got = r.code(DUMP + "\nresult = dump(conns['restored'], 'main')")
            if point is None:
                p.sql("DELETE FROM t WHERE v = 'goes on'")
                point = p.code(DUMP + "\nresult = dump(conns['main'], 'main')")
            self.assertEqual(got, point, txid)
            os.remove(out)
        p.sql("SELECT walrust_rewind(?)", undo)
        self.assertEqual(p.code(DUMP + "\nresult = dump(conns['main'], 'main')"), late)
        self.assertEqual(p.sql("PRAGMA user_version"), 7)
        p.sync()
        out, _ = self.restore("file://" + replica)
        self.assertSameBytes(db, out)
        q.close()

    def test_the_shell_rewinds(self):
        p, db, replica = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES('good')")
        good = p.sync()
        p.close()
        out = self.shell(f"SELECT walrust_watch('{replica}') <> '';\nDROP TABLE t;\nSELECT walrust_rewind({good}) > {good};\n"
                         "SELECT v FROM t;\nSELECT walrust_sync() > 0;", db=db)
        self.assertEqual(out.split(), ["1", "1", "good", "1"])

    def test_what_cannot_be_done_whole_changes_nothing(self):
        p, db, replica = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(500)])
        good = p.sync()
        p.sql("DELETE FROM t WHERE id > 9")
        p.sync()

        def refused(*words, point=good, conn="main"):
            with self.assertRaises(SqlError) as e:
                p.sql("SELECT walrust_rewind(?)", point, conn=conn)
            self.assertErrorLine(str(e.exception), *words)
            self.assertEqual(p.sql("SELECT count(*) FROM t"), 9)

        refused("outside the history", point=good + 70)
        refused("give a TXID, a time or a label", point=None)
        p.sql("BEGIN")
        refused("COMMIT or ROLLBACK first")
        p.sql("COMMIT")
        p.open(db, "reads")
        p.code("globals()['cursor'] = conns['reads'].execute('SELECT id FROM t'); __import__('builtins').kept = cursor; cursor.fetchone()")
        refused("reads the database", conn="reads")
        p.code("__import__('builtins').kept.close()")
        p.open(db, "writes")
        p.sql("BEGIN IMMEDIATE", conn="writes")
        p.sql("PRAGMA busy_timeout=100")
        refused("somebody else writes")
        p.sql("ROLLBACK", conn="writes")
        p.sql("PRAGMA query_only=1")
        refused("query_only")
        p.sql("PRAGMA query_only=0")
        stranger = self.reader().open(self.path("other.db"), "other")
        with self.assertRaisesRegex(SqlError, "not watched|no database is watched"):
            stranger.sql("SELECT walrust_rewind(?)", good, conn="other")
        self.assertGreater(p.sql("SELECT walrust_rewind(?)", good), good)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 500)

    def test_another_page_size_is_refused(self):
        p, db, replica = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(500)])
        good = p.sync()
        p.close()
        with door.plain_connect(db) as c:
            c.execute("PRAGMA journal_mode=DELETE")
            c.execute("PRAGMA page_size=8192")
            c.execute("VACUUM")
        c.close()
        p.open(db)
        p.watch(replica, interval="0s")
        p.sync()
        with self.assertRaises(SqlError) as e:
            p.sql("SELECT walrust_rewind(?)", good)
        self.assertErrorLine(str(e.exception), "page size is 8192 now and was 4096 then")
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 500)

    def test_an_end_by_signal_leaves_the_state_before_or_after(self):
        schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)"
        p, db, replica = self.watched(schema=schema, interval="0s")
        p.sql(ROWS.format(12000) + "INSERT INTO t(v, pad) SELECT 'good', randomblob(1000) FROM n")
        good = p.sync()
        p.sql("UPDATE t SET v = 'bad' WHERE id % 3 = 0")
        p.sync()
        states, ends, rounds = {"good": (12000, 0), "bad": (8000, 4000)}, set(), door.rounds(8)
        began = time.monotonic()
        p.sql("SELECT walrust_rewind(?)", good)
        whole = time.monotonic() - began
        p.sql("UPDATE t SET v = 'bad' WHERE id % 3 = 0")
        p.sync()
        for n in range(rounds):
            p.send(op="sql", conn="main", sql="SELECT walrust_rewind(?)", params=[good])
            # (The first half of it brings the state before to the replica.)
            time.sleep(whole * (0.2 + 1.3 * n / rounds))
            p.kill()
            p = self.peer().open(db)
            got = p.rows("SELECT sum(v = 'good'), sum(v = 'bad') FROM t")[0]
            self.assertIn(got, states.values())
            self.assertEqual(p.rows("PRAGMA integrity_check"), [("ok",)])
            ends.add(got)
            p.watch(replica, interval="0s")
            p.sync()
            out, _ = self.restore("file://" + replica)
            self.assertEqual(door.plain_rows(out, "SELECT sum(v = 'good'), sum(v = 'bad') FROM t"), [got])
            os.remove(out)
            if got == states["good"]:
                p.sql("UPDATE t SET v = 'bad' WHERE id % 3 = 0")
                p.sync()
        print(f"\n{whole:.2f} s; ends: {sorted(ends)}", flush=True)

    def test_the_store_is_down(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url("app", proxy.endpoint), interval="0s", sync_timeout="2s")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sql("INSERT INTO t(v) VALUES('good')")
        good = p.sync()
        p.sql("DELETE FROM t")
        p.sync()
        proxy.down = True
        with self.assertRaises(SqlError):
            p.sql("SELECT walrust_rewind(?)", good)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 0)
        p.sql("INSERT INTO t(v) VALUES('nobody is locked out')")
        proxy.down = False
        p.sync()
        p.sql("SELECT walrust_rewind(?)", good)
        self.assertEqual(p.rows("SELECT v FROM t"), [("good",)])


class Switched(test_read.ReadTest):
    def test_functions_read_switches_the_past_off(self):
        """Who runs strangers' SQL has `functions = "read"`: nothing that reaches the network, or writes, is there."""
        p, db, replica = self.watched(interval="0s")
        txid = p.sync()
        name = p.sql("SELECT walrust_past(?)", txid)
        r = self.peer(env={"WALRUST_FUNCTIONS": "read", "WALRUST_REPLICA": replica}).open(db)
        for call in ("walrust_past(1)", "walrust_rewind(1)", "walrust_url('s3://b/a')", "walrust_last_error()"):
            with self.assertRaisesRegex(SqlError, "no such function"):
                r.sql(f"SELECT {call}")
        for table in ("walrust_points", "walrust_changes"):
            with self.assertRaisesRegex(SqlError, "no such table"):
                r.sql(f"SELECT * FROM {table}")
        with self.assertRaisesRegex(SqlError, "unable to open|no such file"):
            r.sql("ATTACH ? AS past", name)
        self.assertEqual(r.sql("SELECT walrust_version() <> ''"), 1)


class Changes(test_read.ReadTest):
    COLUMNS = "type, name, pages, inserted, deleted, updated"

    def changed(self, p, *args):
        marks = ", ".join("?" * len(args))
        return {name: tuple(rest) for _, name, *rest in p.rows(f"SELECT {self.COLUMNS} FROM walrust_changes({marks})", *args)}

    def rows_of(self, path):
        """The rows of each table with rowids, by rowid, as the shell's SQL has them."""
        names = [n for n, in door.plain_rows(path, "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%'")]
        rows = {n: {r[0]: r[1:] for r in door.plain_rows(path, f'SELECT rowid, * FROM "{n}"')} for n in names}
        rows["sqlite_schema"] = {r[0]: r[1:] for r in door.plain_rows(path, "SELECT rowid, * FROM sqlite_master")}
        return rows

    def expected(self, a, b):
        """What SQL over two restored files finds."""
        out = {}
        for name in a.keys() | b.keys():
            was, now = a.get(name, {}), b.get(name, {})
            both = was.keys() & now.keys()
            out[name] = (len(now.keys() - was.keys()), len(was.keys() - now.keys()), sum(was[r] != now[r] for r in both))
        return out

    def test_which_transaction_was_the_mistake(self):
        p, db, replica = self.watched(schema="CREATE TABLE orders(id INTEGER PRIMARY KEY, v);CREATE TABLE other(id INTEGER PRIMARY KEY, v);"
                                             "CREATE INDEX by_v ON orders(v);CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID", interval="0s")
        p.many("INSERT INTO orders(v) VALUES(?)", [[f"order {n}"] for n in range(1000)])
        p.sql("INSERT INTO other(v) VALUES(1)")
        first = p.sync()
        p.sql("UPDATE orders SET v = 'shipped' WHERE id = 7")
        second = p.sync()
        p.sql("BEGIN")
        p.sql("DELETE FROM orders WHERE id BETWEEN 100 AND 149")
        p.sql("INSERT INTO w VALUES('a', 1)")
        p.sql("INSERT INTO other(v) VALUES(2), (3)")
        p.sql("COMMIT")
        third = p.sync()
        got = self.changed(p, None, first, second)
        self.assertEqual(set(got), {"orders", "by_v"})
        self.assertEqual((got["orders"][1:], got["by_v"][1:]), ((0, 0, 1), (None, None, None)))
        got = self.changed(p, "file://" + replica, second, third)
        self.assertEqual({n: r[1:] for n, r in got.items() if n}, {
            "orders": (0, 50, 0), "by_v": (None, None, None), "other": (2, 0, 0), "w": (None, None, None)})
        self.assertTrue(all(r[0] >= 1 for r in got.values()))
        self.assertEqual(self.changed(p, None, first)["orders"][1:], (0, 50, 1), "without a second point: up to now")
        self.assertEqual(self.changed(p, None, third, third), {})
        self.assertEqual(self.changed(self.reader(env={"WALRUST_REPLICA": replica}), db, second, third), got, "by the database's path")
        for args, words in (((None, third, first), "earlier point first"), ((None, first, 999), "outside the history"),
                            ((None, None, first), "the first point is NULL"), ((self.path("nowhere"), 1, 2), ".")):
            with self.assertRaises(SqlError) as e:
                self.changed(p, *args)
            self.assertErrorLine(str(e.exception), words)

    def test_the_counts_are_those_of_sql_over_the_restored_files(self):
        for size in (512, 4096):
            replica = self.path(f"r{size}")
            p = test_read.Oracle.history(self, size, replica)
            p.sql("CREATE TABLE big(id INTEGER PRIMARY KEY, v BLOB)")
            p.sql(ROWS.format(30) + "INSERT INTO big(v) SELECT randomblob(40000) FROM n")
            p.sync()
            # Overwritten in place: the leaf stays as it is, pages beside it change.
            p.sql("UPDATE big SET v = CAST(substr(v, 1, 30000) || zeroblob(10000) AS BLOB) WHERE id IN (3, 17)")
            p.sync()
            p.sql("DROP TABLE big")
            p.sql("DELETE FROM t WHERE id % 5 = 0")
            p.sync()
            points = [t for t, in p.rows("SELECT txid FROM walrust_points")]
            files = {}
            for txid in points:
                out, _ = self.restore("file://" + replica, point=txid)
                files[txid] = self.rows_of(out)
                os.remove(out)
            pairs = list(zip(points, points[1:])) + [(points[0], points[-1]), (points[1], points[-3])]
            for a, b in pairs:
                got = {n: r[1:] for n, r in self.changed(p, None, a, b).items() if n and r[1] is not None}
                expected = {n: r for n, r in self.expected(files[a], files[b]).items() if any(r)}
                with self.subTest(size=size, a=a, b=b):
                    self.assertEqual({n: r for n, r in got.items() if any(r)}, expected)
            p.close()

    def test_after_a_rewind_only_what_differs_counts(self):
        p, db, replica = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(5000)])
        good = p.sync()
        p.sql("UPDATE t SET v = -1 WHERE id = 3")
        bad = p.sync()
        p.sql("SELECT walrust_rewind(?)", good)
        after = p.sync()
        self.assertEqual(self.changed(p, None, bad, after)["t"][1:], (0, 0, 1))
        self.assertNotIn("t", self.changed(p, None, good, after))

    def test_the_command_line_tells_the_same(self):
        p, db, replica = self.watched(interval="0s")
        p.sql("INSERT INTO t(v) VALUES('one')")
        first = p.sync()
        p.sql("INSERT INTO t(v) VALUES('two')")
        second = p.sync()
        done = self.run_cli("diff", replica, "--from", str(first), "--to", str(second), "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout), [{"type": "table", "name": "t", "pages": 1, "inserted": 1, "deleted": 0, "updated": 0}])
        done = self.run_cli("diff", replica, "--from", str(first))
        self.assertEqual((done.returncode, done.stdout.split()[:6]), (0, ["type", "name", "pages", "inserted", "deleted", "updated"]))
        done = self.run_cli("diff", replica, "--from", "999")
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "outside the history")
