"""What is read of a replica is kept on local disk: shared by processes, still there after a restart, bounded, and never believed."""

import os
import threading

import door
import test_read
from door import SqlError

GUIDE = b"walrust guide 1."


class Cached(test_read.OverS3):
    """One replica, and readers whose cache is `cache`."""

    def reader(self, size="64MB", cache="cache", **kwargs):
        env = self.s3.env(WALRUST_CACHE_DIR=self.path(cache), WALRUST_CACHE_SIZE=size)
        return self.peer(env=env, **kwargs).open(":memory:")

    def url(self):
        return self.s3.url("app", self.proxy.endpoint)

    def cache_file(self, cache="cache"):
        names = os.listdir(self.path(cache))
        self.assertEqual(len(names), 1, names)
        return os.path.join(self.path(cache), names[0])

    def data(self, seen):
        """The requests for bytes of files, or of what lies beside them."""
        return [path for _, path, outcome in seen if (".ltx" in path or "blocks-" in path) and outcome in (200, 206)]

    def scan(self, r, schema="past"):
        return r.rows(f"SELECT count(*), sum(length(v)), sum(k) FROM {schema}.t")


class Kept(Cached):
    def test_a_page_is_fetched_once_by_whatever_process(self):
        p, db, txid = self.filled(3000)
        name = self.url() + f"&at={txid}"
        first = self.reader()
        first.sql("ATTACH ? AS past", name)
        expected = self.scan(first)
        first.kill()
        r = self.reader()

        def all_of_it():
            r.sql("ATTACH ? AS past", name)
            return self.scan(r)

        got, seen, _, _ = self.spent("another process", all_of_it)
        self.assertEqual(got, expected)
        self.assertEqual(self.data(seen), [])
        self.assertEqual(self.digest(r, name, "again"), self.digest(r, db, "live"))

    def test_another_point_fetches_what_is_its_own(self):
        p, db, txid = self.filled(3000)
        first = self.reader()
        first.sql("ATTACH ? AS past", self.url() + f"&at={txid}")
        self.scan(first)
        first.kill()
        p.sql("UPDATE t SET v = randomblob(1000) WHERE id < 30")
        later = p.sync()
        r = self.reader()

        def all_of_it():
            r.sql("ATTACH ? AS past", self.url() + f"&at={later}")
            return self.scan(r)

        got, seen, fetched, _ = self.spent("a later point", all_of_it)
        self.assertEqual(got, p.rows("SELECT count(*), sum(length(v)), sum(k) FROM t"))
        self.assertEqual([path for path in self.data(seen) if "/0009/" in path or "blocks-9" in path], [])
        self.assertLess(fetched, 200_000)

    def test_a_damaged_cache_is_fetched_again_and_never_believed(self):
        p, db, txid = self.filled(2000)
        name = self.url() + f"&at={txid}"
        r = self.reader()
        good = self.digest(r, name)
        r.kill()
        path = self.cache_file()
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            data = f.read()

        def flipped(d):
            d = bytearray(d)
            for i in range(4096 + 7, len(d), 1024):
                d[i] ^= 0x20
            return bytes(d)

        for what, change in {
            "a byte in each kilobyte": flipped,
            "zeros": lambda d: d[:4096] + bytes(size - 4096),
            "other slots' bytes": lambda d: d[:size // 2] + d[size // 3:size // 3 + size - size // 2],
            "cut short": lambda d: d[:size // 2],
            "noise in front": lambda d: os.urandom(5000) + d[5000:],
            "empty": lambda d: b"",
        }.items():
            with self.subTest(what):
                with open(path, "wb") as f:
                    f.write(change(data))
                r = self.reader()
                self.assertEqual(self.digest(r, name), good)
                self.assertEqual(self.digest(r, name, "again"), good)
                r.kill()

    def test_it_is_bounded_and_its_owner_s_alone(self):
        p, db, txid = self.filled(6000)
        r = self.reader(size="2MB")
        r.sql("ATTACH ? AS past", self.url())
        for _ in range(2):
            self.assertEqual(self.scan(r), p.rows("SELECT count(*), sum(length(v)), sum(k) FROM t"))
        path = self.cache_file()
        self.assertLessEqual(os.path.getsize(path), 2_000_000)
        self.assertGreater(os.path.getsize(path), 1_000_000)
        self.assertEqual((os.stat(path).st_mode & 0o777, os.stat(os.path.dirname(path)).st_mode & 0o777), (0o600, 0o700))

    def test_none_is_made_where_none_is_wanted(self):
        p, db, txid = self.filled(500)
        r = self.reader(size="0")
        r.sql("ATTACH ? AS past", self.url())
        self.scan(r)
        self.assertFalse(os.path.exists(self.path("cache")))
        # What lies in a directory is as near as a cache would be.
        replica = self.path("near")
        q = self.peer().open(self.path("near.db"))
        q.watch(replica)
        q.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k, v)")
        q.sync()
        r = self.reader(cache="near-cache")
        r.sql(f"ATTACH 'walrust:{replica}' AS past")
        self.scan(r)
        self.assertFalse(os.path.exists(self.path("near-cache")))

    def test_where_none_can_be_made_reading_goes_on(self):
        p, db, txid = self.filled(500)
        expected = p.rows("SELECT count(*), sum(length(v)), sum(k) FROM t")
        with open(self.path("file"), "wb") as f:
            f.write(b"x")
        for cache in ("file", "file/below"):
            r = self.reader(cache=cache)
            r.sql("ATTACH ? AS past", self.url())
            self.assertEqual(self.scan(r), expected)
            r.kill()
        with open(self.path("file"), "rb") as f:
            self.assertEqual(f.read(), b"x")
        os.mkdir(self.path("linked"), 0o700)
        os.symlink(self.path("file"), os.path.join(self.path("linked"), "blocks.walrust-cache"))
        r = self.reader(cache="linked")
        r.sql("ATTACH ? AS past", self.url())
        self.assertEqual(self.scan(r), expected)
        with open(self.path("file"), "rb") as f:
            self.assertEqual(f.read(), b"x", "no link is written through")

    def test_several_processes_at_once_and_kills_between(self):
        p, db, txid = self.filled(3000)
        self.proxy.fault = None
        expected = self.digest(self.reader(cache="other"), self.url() + f"&at={txid}")
        wrong = []

        def read(k):
            for n in range(3):
                r = self.reader(size="2MB")
                try:
                    if (k + n) % 4 == 3:
                        r.send(op="code", code="connect(args['url']).execute('SELECT sum(length(v)) FROM t').fetchall()", args={"url": self.url()})
                        threading.Event().wait(0.15)
                        r.kill()
                        continue
                    got = self.digest(r, self.url() + f"&at={txid}")
                    if got != expected:
                        wrong.append(got)
                except SqlError as e:
                    wrong.append(str(e))
                finally:
                    r.kill()

        threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        self.assertEqual(wrong, [])
        self.assertLessEqual(os.path.getsize(self.cache_file()), 2_000_000)

    def test_a_forked_child_reads_with_a_cache_of_its_own(self):
        p, db, txid = self.filled(1000)
        r = self.reader()
        r.sql("ATTACH ? AS past", self.url())
        expected = self.scan(r)
        got = r.code("""
import os
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        own = connect(args['url']).execute("SELECT count(*), sum(length(v)), sum(k) FROM t").fetchone()
    except Exception as e:
        own = repr(e)
    os.write(write, repr(tuple(own)).encode())
    os._exit(0)
os.waitpid(pid, 0)
result = os.read(read, 1000).decode()
""", url=self.url())
        self.assertEqual(got, repr(expected[0]))
        self.assertEqual(self.scan(r), expected)



class Unmerged(Cached):
    """Many small files that are not merged yet, beside a full copy."""

    FILES = 40

    def test_small_files_cost_their_page_indexes_and_the_pages_that_are_wanted(self):
        p = self.peer(env=self.s3.env()).open(self.path("app.db"))
        p.watch(self.s3.url("app"), interval="0s", levels=["1h"])
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v BLOB)")
        p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<8000) INSERT INTO t(k, v) SELECT i, randomblob(1000) FROM n")
        p.sql("SELECT walrust_snapshot()")
        p.sync(60)
        for n in range(self.FILES):
            p.sql("UPDATE t SET v = randomblob(1000), k = k + 1 WHERE id % 200 = ?", n)
            p.sync(60)
        sizes = [n for n in (len(self.s3.get(k)) for k in self.s3.keys("app/0000/")) if 16 << 10 < n <= 256 << 10]
        self.assertEqual(len(sizes), self.FILES)
        # (A file that no manifest names yet, for ten seconds at most, can be proved whole alone.)
        named = lambda: sum(self.s3.get(k).count(b"\n[0,") for k in self.s3.keys("app/walrust/manifest-"))
        self.eventually(lambda: named() > self.FILES, timeout=60, every=0.2)
        r = self.reader()

        def both():
            r.sql("ATTACH ? AS past", self.url())
            return r.rows("SELECT id, k FROM past.t WHERE id = 4321")

        got, seen, fetched, _ = self.spent(f"open and a look-up beside {self.FILES} files of {sum(sizes)} bytes", both)
        self.assertEqual(got, p.rows("SELECT id, k FROM t WHERE id = 4321"))
        self.assertLessEqual(fetched, 1_500_000)
        # Two for each small file, what is asked for once, and the path to the row.
        self.assertLessEqual(len(seen), 2 * self.FILES + 9)
        expected = self.scan(p, "main")
        got, seen, fetched, _ = self.spent("a scan", lambda: self.scan(r))
        self.assertEqual(got, expected)
        # Whoever comes next finds on disk what was fetched.
        r = self.reader()
        _, seen, _, _ = self.spent("the same again, another process", lambda: (r.sql("ATTACH ? AS past", self.url()), self.scan(r)))
        self.assertEqual(self.data(seen), [])
        # And where nothing is kept, nothing that memory gave up is missing.
        r = self.peer(env=self.s3.env(WALRUST_CACHE_SIZE="0")).open(":memory:")
        self.assertEqual(self.digest(r, self.url()), self.digest(self.reader(cache="other"), self.url()))


class RoundTrips(Cached):
    """The bars, at a database that is small, so that they are held each time: with nothing cached, and at what the paths of b-trees are."""

    JOIN = """SELECT count(*), sum(length(c.v)) FROM past.a JOIN past.b ON b.a = a.id JOIN past.c ON c.id = b.c JOIN past.d ON d.b = b.id
              JOIN past.e ON e.id = d.e WHERE a.id = ?"""

    def setUp(self):
        super().setUp()
        self.db = self.path("app.db")
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.s3.url("app"), interval="0s")
        n = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{}) "
        for statement in (
                "CREATE TABLE a(id INTEGER PRIMARY KEY, v)", "CREATE TABLE b(id INTEGER PRIMARY KEY, a INTEGER, c INTEGER, v)",
                "CREATE TABLE c(id INTEGER PRIMARY KEY, v)", "CREATE TABLE d(id INTEGER PRIMARY KEY, b INTEGER, e INTEGER, v)",
                "CREATE TABLE e(id INTEGER PRIMARY KEY, v)", "CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v)",
                "BEGIN",
                n.format(8000) + "INSERT INTO a SELECT i, randomblob(300) FROM n",
                n.format(20000) + "INSERT INTO b SELECT i, 1 + i*7919 % 8000, 1 + i*104729 % 6000, randomblob(60) FROM n",
                n.format(6000) + "INSERT INTO c SELECT i, randomblob(500) FROM n",
                n.format(20000) + "INSERT INTO d SELECT i, 1 + i*15485863 % 20000, 1 + i*7919 % 5000, randomblob(60) FROM n",
                n.format(5000) + "INSERT INTO e SELECT i, randomblob(500) FROM n",
                n.format(8000) + "INSERT INTO t SELECT i, i * 7919 % 100003, randomblob(1000) FROM n",
                "CREATE INDEX b_a ON b(a)", "CREATE INDEX d_b ON d(b)", "CREATE INDEX t_k ON t(k)", "COMMIT", "SELECT walrust_snapshot()"):
            p.sql(statement)
        self.txid = p.sync(60)
        p.sql("UPDATE t SET k = k + 1 WHERE id % 2000 = 7")
        p.sync()
        self.writer = p
        self.at_once, self.under_way, lock = 0, 0, threading.Lock()
        forward = self.proxy.forward

        def counted(*args):
            with lock:
                self.under_way += 1
                self.at_once = max(self.at_once, self.under_way)
            try:
                return forward(*args)
            finally:
                with lock:
                    self.under_way -= 1

        self.proxy.forward = counted

    def fresh(self, n=iter(range(1000))):
        r = self.reader(cache=f"cache-{next(n)}")
        r.sql("ATTACH ? AS past", self.url())
        return r

    def test_open_and_look_up(self):
        r = self.reader()

        def both():
            r.sql("ATTACH ? AS past", self.url())
            return r.rows("SELECT id, length(v) FROM past.t WHERE id = 4321")

        got, seen, fetched, took = self.spent("open and a look-up", both)
        self.assertEqual(got, [(4321, 1000)])
        self.assertLessEqual(len(seen), 9)
        self.assertLessEqual(fetched, 1_500_000)
        for n in range(5):
            got, seen, fetched, _ = self.spent("a look-up", lambda: r.rows("SELECT length(v) FROM past.t WHERE id = ?", 200 + 1500 * n))
            self.assertEqual(got, [(1000,)])
            self.assertLessEqual(len(seen), 2)
            self.assertLessEqual(fetched, 140_000)

    def test_a_scan_either_way(self):
        for what, order in (("a scan", ""), ("a scan backwards", "ORDER BY id DESC")):
            r = self.fresh()
            got, seen, _, _ = self.spent(what, lambda: r.rows(f"SELECT sum(length(v)) FROM (SELECT v FROM past.t {order} LIMIT 100000)"))
            self.assertEqual(got, [(8_000_000,)])
            self.assertLessEqual(len(seen), 20)
        self.assertLessEqual(self.at_once, 8)

    def test_a_join_by_keys(self):
        r = self.fresh()
        got, seen, _, _ = self.spent("a join of five tables by keys", lambda: r.rows(self.JOIN, 4000))
        self.assertEqual(got, self.writer.rows(self.JOIN.replace("past.", ""), 4000))
        self.assertLessEqual(len(seen), 25)

    def test_what_older_versions_put_beside_files_will_do(self):
        expected = self.digest(self.reader(cache="x"), self.url() + f"&at={self.txid}")
        cut = 0
        for key in self.s3.keys("app/walrust/blocks-"):
            data = self.s3.get(key)
            if GUIDE in data:
                self.s3.s3.put_object(Bucket="bucket", Key=key, Body=data[:data.index(GUIDE)])
                cut += 1
        self.assertGreater(cut, 0)
        self.at_once = 0
        r = self.reader(cache="y")
        self.assertEqual(self.digest(r, self.url() + f"&at={self.txid}"), expected)
        self.assertLessEqual(self.at_once, 8)

    def test_a_damaged_guide_is_done_without(self):
        expected = self.digest(self.reader(cache="x"), self.url() + f"&at={self.txid}")
        key = max(self.s3.keys("app/walrust/blocks-9"), key=lambda k: len(self.s3.get(k)))
        data = self.s3.get(key)
        begin = data.index(GUIDE)
        for at in (begin + 3, begin + 18, begin + 50, begin + 130, begin + 400, (begin + len(data)) // 2, len(data) - 5):
            broken = bytearray(data)
            broken[at] ^= 0x10
            self.s3.s3.put_object(Bucket="bucket", Key=key, Body=bytes(broken))
            r = self.reader(cache=f"at-{at}")
            self.assertEqual(self.digest(r, self.url() + f"&at={self.txid}"), expected)
            r.kill()
