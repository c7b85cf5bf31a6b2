"""A replica read in place: SQLite opens or attaches its URL, at any point in time, and fetches what it reads."""

import contextlib
import json
import os
import re
import shutil
import subprocess
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

    def test_the_columns_of_points(self):
        p, db, replica = self.watched(interval="0s")
        for n in range(3):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            p.sync()
        points = p.rows("SELECT txid, time, level, bytes, pages, label, commit_pages FROM walrust_points")
        self.assertEqual(points, p.rows("SELECT * FROM walrust_points(?)", replica))
        files = {row[2]: row for row in p.rows("SELECT level, min_txid, max_txid, time, bytes, pages, commit_pages FROM walrust_files ORDER BY level DESC")}
        self.assertEqual([t for t, *_ in points], sorted(files))
        for txid, time_, level, size, pages, label, commit in points:
            self.assertIsNone(label)
            self.assertEqual((level, time_, size, pages, commit), files[txid][:1] + files[txid][3:])

    def test_what_is_no_replica_is_one_clear_error(self):
        r = self.reader()
        os.mkdir(self.path("empty"))
        with open(self.path("file.db"), "wb") as f:
            f.write(b"x" * 5000)
        for name in (f"walrust:file://{self.path('empty')}", f"walrust:file://{self.path('absent')}", f"walrust:{self.path('empty')}", "walrust:", "s3://",
                     "s3://bucket/app?colour=red", f"walrust:file://{self.path('empty')}?at=tomorrow-ish"):
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
            self.assertEqual(self.digest(r, f"file://{replica}?at={txid}", "was"), self.digest(r, out, "was"))


#: What each driver is asked for: lines of text that are the same whoever asks, so that all can be compared with a restored file.
PYTHON_LINES = """
def lines(conn, schema, statements):
    return [str(r[0]) for s in statements for r in conn.execute(s.replace("SCHEMA", schema))]
got = []
for name in args['names']:
    db = connect(":memory:")
    db.execute("ATTACH ? AS past", (name,))
    got.append(lines(db, "past", args['statements'][name]))
    db.close()
    db = connect(name)
    got.append(lines(db, "main", args['statements'][name]))
    db.close()
result = got
"""
NODE_LINES = """
const [so, modules] = process.argv.slice(1), { names, statements } = JSON.parse(require('fs').readFileSync(0))
const Database = require(modules + '/better-sqlite3')
new Database(':memory:').loadExtension(so)
const lines = (db, schema, all) => all.flatMap(s => db.prepare(s.replaceAll('SCHEMA', schema)).raw().all().map(r => String(r[0])))
const got = []
for (const name of names) {
  let db = new Database(':memory:')
  db.prepare('ATTACH ? AS past').run(name)
  got.push(lines(db, 'past', statements[name]))
  db.close()
  db = new Database(name)
  got.push(lines(db, 'main', statements[name]))
  db.close()
}
console.log(JSON.stringify(got))
"""
#: Where better-sqlite3 lies, if it is not among what `make` installs for the tests: its package is built where it is installed.
NODE_MODULES = os.environ.get("WALRUST_NODE_MODULES", os.path.join(os.path.dirname(door.BIN), "npm", "node_modules"))


class Doors(Oracle):
    """The same through each driver, by ATTACH and by open."""

    def questions(self, url, env=None, name=lambda url, txid: f"{url}{'&' if '?' in url else '?'}at={txid}"):
        """Each name of a point, the statements that read all of it, and what they give in its restore."""
        statements, expected = {}, []
        for txid in [t for t, in self.reader(env=env).rows("SELECT txid FROM walrust_points(?)", url)]:
            out, _ = self.restore(url, point=txid, env=env)
            asks = ["SELECT type || name || tbl_name || coalesce(sql, '') FROM SCHEMA.sqlite_master ORDER BY name, type", "PRAGMA SCHEMA.integrity_check"]
            for (table,) in door.plain_rows(out, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"):
                columns = [c for c, in door.plain_rows(out, "SELECT name FROM pragma_table_info(?)", (table,))]
                asks.append(f"SELECT rowid || {' || '.join(f'quote({c})' for c in columns)} FROM SCHEMA.{table} ORDER BY rowid")
            statements[name(url, txid)] = asks
            lines = [str(r[0]) for ask in asks for r in door.plain_rows(out, ask.replace("SCHEMA.", ""))]
            # By ATTACH, and by open.
            expected += [lines, lines]
            os.remove(out)
        self.assertGreater(len(statements), 6)
        return {"names": list(statements), "statements": statements}, expected

    def places(self):
        replica = self.path("replica")
        self.history(4096, replica, steps=12).close()
        yield "file://" + replica, None
        s3 = door.S3(self)
        for at, _, names in os.walk(replica):
            for name in names:
                key = re.sub(r"^ltx/(\d)/", r"000\1/", os.path.relpath(os.path.join(at, name), replica))
                if not name.startswith("."):
                    s3.s3.upload_file(os.path.join(at, name), "bucket", f"app/{key}")
        yield s3.url("app"), s3.env(WALRUST_CACHE_DIR=self.path("cache"))

    def test_every_point_through_python_and_apsw(self):
        for url, env in self.places():
            asked, expected = self.questions(url, env)
            for module in ("sqlite3", "apsw"):
                with self.subTest(module=module, url=url):
                    self.assertEqual(self.peer(module=module, env=env).code(PYTHON_LINES, **asked), expected)

    def test_every_point_through_the_shell(self):
        for url, env in self.places():
            asked, expected = self.questions(url, env)
            script = []
            for name in asked["names"]:
                for by, schema in ((f"ATTACH {quote(name)} AS past;", "past"), (f".open {door.shell_word(name)}", "main")):
                    script += [by, *(s.replace("SCHEMA", schema) + ";" for s in asked["statements"][name]), "SELECT '-- end';", ".open :memory:"]
            got = [[]]
            for line in self.shell("\n".join(script), env=env).split("\n"):
                got[-1].append(line) if line != "-- end" else got.append([])
            self.assertEqual(got[:-1], ["\n".join(lines).split("\n") for lines in expected])

    @unittest.skipUnless(shutil.which("node") and os.path.isdir(os.path.join(NODE_MODULES, "better-sqlite3")), "better-sqlite3 is not installed; WALRUST_NODE_MODULES says where it is")
    def test_every_point_through_better_sqlite3(self):
        for url, env in self.places():
            # It opens a name only in a directory that there is, or one that begins with file:.
            names = {"name": lambda url, txid: f"file:{url}{'&' if '?' in url else '?'}at={txid}"} if url.startswith("s3:") else {}
            asked, expected = self.questions(url, env, **names)
            done = subprocess.run(["node", "-e", NODE_LINES, door.SO, NODE_MODULES], input=json.dumps(asked), text=True, capture_output=True,
                                  timeout=120, env=door.clean_env(self.dir, env), cwd=self.dir)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(json.loads(done.stdout), expected)


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
        self.assertErrorLine(r.sql("SELECT walrust_last_error()"), f"TXID {txid:016x} is gone")

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


class OverS3(ReadTest):
    """What it costs, counted at a proxy in front of the server; each request takes 20 ms longer there."""

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.proxy.fault = lambda method, path: ("delay", 0.02)
        self.bytes = 0
        forward = self.proxy.forward

        def count(method, path, headers, body):
            status, answer, data = forward(method, path, headers, body)
            self.bytes += len(data) if method == "GET" else 0
            return status, answer, data

        self.proxy.forward = count

    def spent(self, what, f):
        """Runs f, and gives (its result, requests, bytes, seconds)."""
        before, self.bytes, began = len(self.proxy.seen), 0, time.monotonic()
        got = f()
        took, seen = time.monotonic() - began, self.proxy.seen[before:]
        lists = sum("list-type" in path for _, path, _ in seen)
        print(f"\n{what}: {len(seen)} requests ({lists} listings), {self.bytes} bytes, {took:.3f} s", flush=True)
        self.assertEqual({m for m, _, _ in seen} - {"GET", "HEAD"}, set(), seen)
        return got, seen, self.bytes, took

    def filled(self, rows, size=4096):
        db = self.path("app.db")
        p = self.peer(env=self.s3.env()).open(db)
        p.sql(f"PRAGMA page_size={size}")
        p.watch(self.s3.url("app"), interval="0s")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v BLOB)")
        p.sql(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows}) "
              "INSERT INTO t(k, v) SELECT i * 7919 % 100003, randomblob(1000) FROM n")
        p.sql("CREATE INDEX tk ON t(k)")
        p.sql("SELECT walrust_snapshot()")
        return p, db, p.sync()


class Requests(OverS3):
    def test_requests_of_a_look_up_and_of_a_scan(self):
        p, db, txid = self.filled(8000)
        size = os.path.getsize(db)
        url = self.s3.url("app", self.proxy.endpoint)
        r = self.reader(env=self.s3.env())
        _, seen, _, _ = self.spent("attach", lambda: r.sql("ATTACH ? AS past", url))
        objects = [path for _, path, _ in seen if "list-type" not in path]
        got, seen, fetched, _ = self.spent("first look-up", lambda: r.rows("SELECT id, length(v) FROM past.t WHERE id = 4321"))
        self.assertEqual(got, [(4321, 1000)])
        self.assertLessEqual(len(objects) + len(seen), 12)
        self.assertLessEqual(fetched, 1_500_000)
        got, seen, _, _ = self.spent("second look-up", lambda: r.rows("SELECT id FROM past.t WHERE id = 4322"))
        self.assertEqual((got, [s for s in seen if ".ltx" in s[1] and s[2] in (200, 206)]), ([(4322,)], []))
        got, seen, fetched, _ = self.spent(f"scan of {size} bytes", lambda: r.sql("SELECT sum(length(v)) FROM past.t"))
        self.assertEqual(got, 8_000_000)
        self.assertLessEqual(len(seen), 20)
        got, seen, fetched, _ = self.spent("scan again", lambda: r.sql("SELECT sum(length(v)) FROM past.t"))
        self.assertEqual(got, 8_000_000)
        self.assertLessEqual(len(seen), 1)

    def test_nobody_reads_and_nothing_is_asked_for(self):
        p, db, txid = self.filled(20)
        r = self.reader(env=self.s3.env())
        r.sql("ATTACH ? AS past", self.s3.url("app", self.proxy.endpoint))
        r.sql("SELECT count(*) FROM past.t")
        before = len(self.proxy.seen)
        time.sleep(2.5)
        self.assertEqual(self.proxy.seen[before:], [])

    def test_a_point_costs_nothing_when_its_name_was_made(self):
        p, db, txid = self.filled(20)
        url = self.s3.url("app", self.proxy.endpoint)
        r = self.reader(env=self.s3.env())
        name = r.sql("SELECT walrust_url(?, ?)", url, txid)
        _, seen, _, _ = self.spent("attach of a name that was made", lambda: r.sql("ATTACH ? AS past", name))
        self.assertEqual(seen, [])

    def test_a_store_that_does_not_answer_is_one_error(self):
        p, db, txid = self.filled(4000)
        r = self.reader(env=self.s3.env())
        r.sql("ATTACH ? AS past", self.s3.url("app", self.proxy.endpoint) + f"&at={txid}")
        r.sql("SELECT count(*) FROM past.t WHERE id = 1")
        self.proxy.down = True
        with self.assertRaisesRegex(SqlError, "I/O error"):
            r.sql("SELECT sum(length(v)) FROM past.t")
        self.assertErrorLine(r.sql("SELECT walrust_last_error()"), "bucket|app")
        self.proxy.down = False
        self.assertEqual(r.sql("SELECT sum(length(v)) FROM past.t"), 4_000_000)

    def test_without_the_sums_of_its_blocks_a_large_file_is_fetched_whole_and_proved(self):
        p, db, txid = self.filled(3000)
        keys = [k for k in self.s3.keys("app/walrust/blocks-")]
        self.assertTrue(keys)
        url = self.s3.url("app", self.proxy.endpoint)
        r = self.reader(env=self.s3.env())
        good = self.digest(r, url)
        for key in keys:
            self.s3.s3.delete_object(Bucket="bucket", Key=key)
        r = self.reader(env=self.s3.env())
        self.assertEqual(self.digest(r, url), good)
        large = max(self.s3.keys("app/0009/"), key=lambda k: len(self.s3.get(k)))
        data = bytearray(self.s3.get(large))
        data[len(data) // 2] ^= 1
        self.s3.s3.put_object(Bucket="bucket", Key=large, Body=bytes(data))
        r = self.reader(env=self.s3.env())
        try:
            self.assertEqual(self.digest(r, url), good)
        except SqlError:
            self.assertErrorLine(r.sql("SELECT walrust_last_error()"), "checksum|unpack")


class Litestream(ReadTest):
    def test_a_replica_that_litestream_wrote(self):
        db, replica = self.path("app.db"), self.path("replica")
        with contextlib.closing(door.plain_connect(db)) as conn:
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
            conn.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) "
                         "INSERT INTO t(v) SELECT randomblob(500) FROM n")
            self.litestream("replicate", "-once", db, f"file://{replica}")
            conn.execute("DELETE FROM t WHERE id % 3 = 0")
            self.litestream("replicate", "-once", db, f"file://{replica}")
        r = self.reader()
        points = [t for t, in r.rows("SELECT txid FROM walrust_points(?)", "file://" + replica)]
        self.assertTrue(points)
        for txid in points:
            out, _ = self.restore("file://" + replica, point=txid)
            self.assertEqual(self.digest(r, r.sql("SELECT walrust_url(?, ?)", "file://" + replica, txid)), self.digest(r, out))


class Hosts(ReadTest):
    def test_the_shell_apsw_and_uris(self):
        p, db, replica = self.watched()
        p.sql("INSERT INTO t(v) VALUES('one')")
        txid = p.sync()
        p.sql("INSERT INTO t(v) VALUES('two')")
        p.sync()
        out = self.shell(f"ATTACH 'file://{replica}?at={txid}' AS past;\nSELECT v FROM past.t;\n.open 'walrust:{replica}'\nSELECT count(*) FROM t;")
        self.assertEqual(out.split(), ["one", "2"])
        a = self.peer(module="apsw").open(":memory:")
        a.sql(f"ATTACH 'walrust:file://{replica}?at={txid}' AS past")
        self.assertEqual(a.rows("SELECT v FROM past.t"), [("one",)])
        u = self.peer().open(f"file:{replica}?at={txid}", uri=True)
        self.assertEqual(u.rows("SELECT v FROM t"), [("one",)])
        u.open(f"file:file://{replica}?vfs=walrust&at={txid}", "named", uri=True)
        self.assertEqual(u.rows("SELECT v FROM t", conn="named"), [("one",)])

    def test_the_command_line(self):
        p, db, replica = self.watched()
        p.sql("INSERT INTO t(v) VALUES('one')")
        txid = p.sync()
        p.sql("INSERT INTO t(v) VALUES('two')")
        p.sync()
        done = self.run_cli("query", replica, "SELECT count(*) AS n FROM t", "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout), done.stderr), (0, [{"n": 2}], ""))
        done = self.run_cli("query", replica, "SELECT v FROM t", "--at", str(txid))
        self.assertEqual((done.returncode, done.stdout.split()), (0, ["v", "one"]))
        done = self.run_cli("query", replica, "DELETE FROM t")
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "readonly")
        done = self.run_cli("query", replica, "SELECT 1", "--at", "999")
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "outside the history")
        done = self.run_cli("points", replica)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(len(done.stdout.splitlines()) - 1, p.sql("SELECT count(*) FROM walrust_points(?)", replica))
        done = self.run_cli("points", self.path("nothing"))
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "nothing")

    def test_a_child_of_the_process_opens_its_own(self):
        p, db, replica = self.watched()
        p.sql("INSERT INTO t(v) VALUES('one')")
        p.sync()
        r = self.reader()
        r.sql(f"ATTACH 'file://{replica}' AS past")
        r.sql("SELECT * FROM past.t")
        got = r.code("""
import os
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        own = connect(args['url']).execute("SELECT v FROM t").fetchone()[0]
    except Exception as e:
        own = repr(e)
    try:
        conns['main'].execute("SELECT v FROM past.t").fetchall()
        told = "no error"
    except Exception as e:
        told = str(e)
    os.write(write, f"{own}|{told}".encode())
    os._exit(0)
os.waitpid(pid, 0)
result = os.read(read, 1000).decode()
""", url=f"file://{replica}")
        own, told = got.split("|")
        self.assertEqual(own, "one")
        self.assertRegex(told, "I/O error")
        self.assertEqual(r.rows("SELECT v FROM past.t"), [("one",)])

    def test_a_table_from_the_past_brings_back_what_was_deleted(self):
        p, db, replica = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [[n] for n in range(100)])
        txid = p.sync()
        p.sql("DELETE FROM t WHERE id > 10")
        p.sync()
        p.sql("ATTACH ? AS past", p.sql("SELECT walrust_url(NULL, ?)", txid))
        p.sql("INSERT INTO t SELECT * FROM past.t WHERE id NOT IN (SELECT id FROM t)")
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 100)
        p.sync()
        out, _ = self.restore("file://" + replica)
        self.assertSameBytes(db, out)
