"""Every way a transaction can reach the WAL, through the doors of an ordinary application."""

import os
import re
import threading
import unittest

import door

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Capture(door.DoorTest):
    def check(self, p, db, url, conn="main"):
        """What the replica restores is what the database holds, byte for byte."""
        txid = p.sync(conn=conn)
        restored, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, restored)
        self.assertSound(restored)
        return txid

    def test_spilled_cache(self):
        """A transaction larger than the page cache writes frames before it commits; none of them is a commit."""
        p, db, url = self.watched()
        p.sql("PRAGMA cache_size=10")
        p.sql("BEGIN")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "s" * 900) for i in range(3000)])
        p.sql("UPDATE t SET v = 'u' || substr(v, 2) WHERE id % 3 = 0")
        p.sql("COMMIT")
        self.check(p, db, url)

    def test_spilled_and_rolled_back(self):
        p, db, url = self.watched()
        p.sql("PRAGMA cache_size=10")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "keep") for i in range(100)])
        before = p.sync()
        p.sql("BEGIN")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "gone" * 200) for i in range(1000, 3000)])
        p.sql("ROLLBACK")
        self.assertEqual(p.sync(), before)
        p.sql("INSERT INTO t VALUES(5000, 'after')")
        self.assertEqual(self.check(p, db, url), before + 1)

    def test_savepoints(self):
        p, db, url = self.watched()
        p.sql("PRAGMA cache_size=10")
        p.sql("BEGIN")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "a" * 700) for i in range(500)])
        p.sql("SAVEPOINT one")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "b" * 700) for i in range(1000, 1800)])
        p.sql("SAVEPOINT two")
        p.sql("DELETE FROM t WHERE id < 300")
        p.sql("ROLLBACK TO one")
        p.sql("RELEASE one")
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "c" * 700) for i in range(2000, 2100)])
        p.sql("COMMIT")
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 600)
        self.check(p, db, url)

    def test_a_wal_whose_checksums_sqlite_broke(self):
        """SQLite 3.40 breaks the chain of a WAL when a transaction that spilled is rolled back to a savepoint. Its readers do not
        notice (a crash then would lose the transaction, with walrust or without); what they see is what is replicated."""
        p, db, url = self.watched(interval="0s")
        p.sql("PRAGMA cache_size=5")
        p.sql("PRAGMA wal_autocheckpoint=200")
        for i in range(60):
            kind = self.random.randrange(3)
            if kind == 0:
                p.sql("INSERT INTO t(v) VALUES(randomblob(?))", self.random.randrange(6000))
            elif kind == 1:
                p.sql("BEGIN")
                p.many("INSERT INTO t(v) VALUES(?)", [(self.random.randbytes(2000),)] * 50)
                p.sql(self.random.choice(("COMMIT", "ROLLBACK")))
            else:
                p.sql("SAVEPOINT s")
                p.sql("DELETE FROM t WHERE id % 2")
                p.sql("INSERT INTO t(v) VALUES('s')")
                p.sql("ROLLBACK TO s")
                p.sql("RELEASE s")
            if i % 3 == 0:
                p.sync()
                restored, _ = self.restore(url)
                with open(restored, "rb") as f:
                    self.assertEqual(door.digest(f.read()), door.digest(door.live_image(db)), i)
        self.assertEqual(p.status()["state"], "streaming")

    def test_txids_follow_commits(self):
        """A commit that is synced has a TXID of its own; reads, empty transactions and rollbacks have none."""
        p, db, url = self.watched(interval="0s")
        last = p.sync()
        for i in range(25):
            p.sql("INSERT INTO t VALUES(?, 'x')", i)
            p.sql("SELECT count(*) FROM t")
            p.sql("BEGIN")
            p.sql("COMMIT")
            p.sql("BEGIN IMMEDIATE")
            p.sql("ROLLBACK")
            self.assertEqual(p.sync(), last + 1)
            self.assertEqual(p.sync(), last + 1)
            last += 1
        self.check(p, db, url)

    def test_a_burst_of_commits(self):
        """Commits in quick succession may share a TXID; none is missing."""
        p, db, url = self.watched(interval="0s")
        first = p.sync()
        p.many("INSERT INTO t VALUES(?, 'x')", [(i,) for i in range(500)])
        last = self.check(p, db, url)
        self.assertTrue(first < last <= first + 500)

    def test_vacuum(self):
        p, db, url = self.watched()
        p.many("INSERT INTO t VALUES(?, ?)", [(i, "v" * 1000) for i in range(800)])
        p.sql("DELETE FROM t WHERE id % 5")
        self.check(p, db, url)
        p.sql("VACUUM")
        self.check(p, db, url)
        p.sql("INSERT INTO t VALUES(9999, 'after')")
        self.check(p, db, url)

    def test_growth_after_shrink(self):
        p, db, url = self.watched()
        for turn in range(4):
            p.many("INSERT INTO t(v) VALUES(?)", [("g" * 2000,) for _ in range(300)])
            self.check(p, db, url)
            p.sql("DELETE FROM t")
            p.sql("VACUUM")
            self.check(p, db, url)

    def test_incremental_and_full_auto_vacuum(self):
        for mode in (1, 2):
            db, url = self.path(f"av{mode}.db"), self.path(f"r{mode}")
            p = self.peer().open(db)
            p.sql(f"PRAGMA auto_vacuum={mode}")
            p.watch(url)
            p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
            p.many("INSERT INTO t(v) VALUES(?)", [("a" * 3000,) for _ in range(200)])
            p.sql("DELETE FROM t WHERE id > 40")
            p.sql("PRAGMA incremental_vacuum(50)")
            self.check(p, db, url)

    def test_page_sizes(self):
        for size in SIZES:
            with self.subTest(page_size=size):
                db, url = self.path(f"p{size}.db"), self.path(f"r{size}")
                p = self.peer().open(db)
                p.sql(f"PRAGMA page_size={size}")
                p.watch(url)
                p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                p.many("INSERT INTO t(v) VALUES(?)", [(os.urandom(700),) for _ in range(100)])
                p.sql("DELETE FROM t WHERE id % 2")
                self.assertEqual(p.sql("PRAGMA page_size"), size)
                self.check(p, db, url)
                p.end()

    def test_page_size_change_by_vacuum(self):
        """Only possible outside WAL mode: the database is another one afterwards, and is snapshotted again."""
        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("a" * 300,) for _ in range(100)])
        self.check(p, db, url)
        p.sql("PRAGMA journal_mode=delete")
        p.sql("PRAGMA page_size=8192")
        p.sql("VACUUM")
        p.sql("PRAGMA journal_mode=wal")
        p.sql("INSERT INTO t(v) VALUES('after')")
        self.check(p, db, url)

    def test_checkpoints_of_every_mode(self):
        p, db, url = self.watched()
        for turn in range(3):
            for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
                p.many("INSERT INTO t(v) VALUES(?)", [(f"{mode}{turn}" * 50,) for _ in range(30)])
                self.assertEqual(len(p.rows(f"PRAGMA wal_checkpoint({mode})")), 1)
                p.sql("INSERT INTO t(v) VALUES('next')")
            self.check(p, db, url)

    def test_truncate_checkpoint_completes_when_all_is_sealed(self):
        """The veto is for unsealed frames only: a checkpoint after a sync empties the WAL as it does without us."""
        p, db, url = self.watched()
        p.many("INSERT INTO t(v) VALUES(?)", [("w" * 1000,) for _ in range(200)])
        p.sync()
        self.eventually(lambda: p.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, what="TRUNCATE")
        self.assertEqual(os.path.getsize(db + "-wal"), 0)
        p.sql("INSERT INTO t(v) VALUES('after')")
        self.check(p, db, url)

    def test_truncate_checkpoint_right_after_many_commits(self):
        """Whoever asks for it has it, though nothing of it was sealed before."""
        p, db, url = self.watched(interval="60s")
        p.sql("PRAGMA busy_timeout=0")
        p.sql("PRAGMA wal_autocheckpoint=0")
        for i in range(900):
            p.sql("INSERT INTO t(v) VALUES(?)", "x" * 300)
        self.assertEqual(p.rows("PRAGMA wal_checkpoint(TRUNCATE)"), [(0, 0, 0)])
        self.assertEqual(os.path.getsize(db + "-wal"), 0)
        self.check(p, db, url)

    def test_wal_does_not_grow_without_bound(self):
        """SQLite's default autocheckpoint keeps the WAL small while everything is captured."""
        p, db, url = self.watched()
        for _ in range(40):
            p.many("INSERT INTO t(v) VALUES(?)", [("w" * 1500,) for _ in range(50)])
        p.sync()
        for _ in range(40):
            p.many("INSERT INTO t(v) VALUES(?)", [("w" * 1500,) for _ in range(50)])
        self.assertLess(os.path.getsize(db + "-wal"), 40 << 20)
        self.check(p, db, url)

    def test_manual_and_tiny_autocheckpoint(self):
        for pages in (0, 1, 7):
            db, url = self.path(f"a{pages}.db"), self.path(f"r{pages}")
            p = self.peer().open(db)
            p.sql(f"PRAGMA wal_autocheckpoint={pages}")
            p.watch(url)
            p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
            for i in range(60):
                p.sql("INSERT INTO t(v) VALUES(?)", "z" * 600)
            self.check(p, db, url)

    def test_journal_mode_changes(self):
        """Commits in rollback mode are not in any WAL: the way back to WAL is noticed, and nothing is stale."""
        p, db, url = self.watched()
        last = self.check(p, db, url)
        for mode in ("delete", "truncate", "persist", "memory"):
            p.sql("INSERT INTO t(v) VALUES('wal')")
            p.sql(f"PRAGMA journal_mode={mode}")
            p.sql("INSERT INTO t(v) VALUES(?)", mode)
            self.assertEqual(p.sql("PRAGMA journal_mode=wal"), "wal")
            p.sql("INSERT INTO t(v) VALUES('back')")
            now = self.check(p, db, url)
            self.assertGreater(now, last)
            last = now

    def test_attached_databases(self):
        """Each file has its own replica; a transaction over two files commits to both."""
        a, b = self.path("a.db"), self.path("b.db")
        p = self.peer().open(b, "b")
        p.watch(self.path("rb"), conn="b")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", conn="b")
        p.open(a)
        p.watch(self.path("ra"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.sql("ATTACH ? AS b", b)
        for i in range(20):
            p.sql("BEGIN")
            p.sql("INSERT INTO main.t VALUES(?, 'a')", i)
            p.sql("INSERT INTO b.t VALUES(?, 'b')", i)
            p.sql("COMMIT")
        p.sync()
        p.sync(conn="b")
        self.assertSameBytes(a, self.restore(self.path("ra"))[0])
        self.assertSameBytes(b, self.restore(self.path("rb"))[0])

    def test_connections_and_threads(self):
        p, db, url = self.watched()
        p.code(
            """
def work(n):
    c = connect(args['db'])
    for i in range(args['count']):
        while True:
            try:
                c.execute('INSERT INTO t(v) VALUES(?)', (f'{n}:{i}',))
                break
            except Exception as e:
                if 'locked' not in str(e) and 'busy' not in str(e).lower():
                    raise
    c.close()
errors = []
def guarded(n):
    try:
        work(n)
    except BaseException as e:
        errors.append(repr(e))
threads = [threading.Thread(target=guarded, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
result = errors
assert not errors, errors
""", db=db, count=door.rounds(150),
        )
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 4 * door.rounds(150))
        self.check(p, db, url)

    def test_file_names(self):
        """Any name that the file system takes."""
        names = ["app.sqlite", "data", "with space.db", "what?.db", "hash#tag.db", "100%.db", "%41.db", "ünïcode-日本.db",
                 "quote'd.db", 'double"quote.db', "-dash.db", "semi;colon.db", "a.b.c.db", ".hidden", "tab\there.db",
                 "name-wal", "back\\slash.db"]
        p = self.peer()
        for i, name in enumerate(names):
            with self.subTest(name=name):
                db, url = self.path(name), self.path(f"r{i}")
                p.open(db, "c")
                p.watch(url, conn="c")
                p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", conn="c")
                p.sql("INSERT INTO t(v) VALUES('x')", conn="c")
                self.check(p, db, url, conn="c")
                p.close("c")

    def test_file_names_of_the_embedded_default(self):
        p = self.peer()
        for name in ("app.sqlite", "data", "with space.db", "what?.db", "100%.db"):
            with self.subTest(name=name):
                db = self.path(name)
                p.open(db, "c")
                p.sql("SELECT walrust_watch()", conn="c")
                p.sql("CREATE TABLE t(x)", conn="c")
                p.sync(conn="c")
                self.assertTrue(door.ltx_files(db + "-replica"), os.listdir(self.dir))
                p.close("c")

    def test_relative_paths_and_links(self):
        os.mkdir(self.path("real"))
        os.symlink(self.path("real"), self.path("link"))
        p = self.peer().open("real/app.db")
        p.watch(self.path("r"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.open(self.path("link", "app.db"), "two")
        p.sql("INSERT INTO t(v) VALUES('by link')", conn="two")
        self.check(p, self.path("real", "app.db"), self.path("r"))
        self.assertEqual(p.sql("SELECT count(*) FROM walrust_status"), 1)

    def test_nothing_is_written_into_the_users_database(self):
        p, db, url = self.watched()
        p.sql("CREATE INDEX i ON t(v)")
        p.sync()
        self.assertEqual(p.rows("SELECT name FROM sqlite_schema ORDER BY name"), [("i",), ("t",)])
        before = (p.sql("PRAGMA schema_version"), p.sql("PRAGMA user_version"), p.sql("PRAGMA application_id"))
        p.sync()
        self.assertEqual(before, (p.sql("PRAGMA schema_version"), p.sql("PRAGMA user_version"), p.sql("PRAGMA application_id")))

    def test_the_database_bytes_are_those_of_stock_sqlite(self):
        """The same statements with and without walrust leave the same database file."""
        script = ["PRAGMA journal_mode=wal", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)", "CREATE INDEX i ON t(v)"]
        script += [f"INSERT INTO t(v) VALUES('{i * 7919 % 1000}')" for i in range(200)] + ["DELETE FROM t WHERE id % 7 = 0"]
        images = []
        for so in (None, door.SO):
            db = self.path("stock.db" if so is None else "ours.db")
            p = self.peer(so=so).open(db)
            if so:
                p.watch(self.path("r"))
            for statement in script:
                p.rows(statement)
            p.end()
            images.append(door.image(db))
        self.assertEqual(images[0], images[1])

    def test_unwatch_ships_and_stops(self):
        p, db, url = self.watched(interval="10s")
        p.many("INSERT INTO t(v) VALUES(?)", [("x",) for _ in range(20)])
        txid = p.sql("SELECT walrust_unwatch()")
        before = door.tree(url)
        self.assertSameBytes(db, self.restore(url, point=txid)[0])
        p.sql("INSERT INTO t(v) VALUES('unwatched')")
        self.assertEqual(p.sql("SELECT count(*) FROM walrust_status"), 0)
        self.assertEqual({k: v for k, v in door.tree(url).items() if k.startswith("ltx")},
                         {k: v for k, v in before.items() if k.startswith("ltx")})

    def test_watch_turns_wal_on(self):
        p = self.peer().open(self.path("app.db"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        self.assertEqual(p.sql("PRAGMA journal_mode"), "delete")
        p.watch(self.path("r"))
        self.assertEqual(p.sql("PRAGMA journal_mode"), "wal")
        p.sql("INSERT INTO t(v) VALUES('x')")
        self.check(p, self.path("app.db"), self.path("r"))

    def test_a_configured_new_database_streams_from_its_first_commit(self):
        p = self.peer(env={"WALRUST_REPLICA": self.path("replicas", "{file}")}).open(":memory:")
        p.open(self.path("new.db"), "n")
        self.assertEqual(p.status(database=self.path("new.db"))["txid"], 0)
        p.sql("CREATE TABLE t(x)", conn="n")
        row = self.eventually(lambda: (lambda r: r["txid"] > 0 and r)(p.status(database=self.path("new.db"))), what="a first TXID")
        self.assertIn(row["state"], ("streaming", "catching up"), row)

    def test_an_empty_database(self):
        """Watched before it has a first page."""
        p = self.peer().open(self.path("empty.db"))
        p.watch(self.path("r"))
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        self.check(p, self.path("empty.db"), self.path("r"))

    def test_large_transaction(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40000) "
              "SELECT hex(randomblob(400)) FROM n")
        self.assertGreater(p.sql("PRAGMA page_count"), 8000)
        self.check(p, db, url)

    def test_zeroblob_and_overflow(self):
        p, db, url = self.watched()
        p.sql("INSERT INTO t VALUES(1, zeroblob(3000000)), (2, randomblob(1000000))")
        self.check(p, db, url)
        p.sql("UPDATE t SET v = randomblob(2000000) WHERE id = 1")
        p.sql("DELETE FROM t WHERE id = 2")
        self.check(p, db, url)

    def test_status_row(self):
        p, db, url = self.watched()
        txid = p.sync()
        row = self.eventually(lambda: (lambda r: r if r["state"] == "streaming" else None)(p.status()), what="streaming")
        self.assertEqual(os.path.realpath(row["database"]), os.path.realpath(db))
        self.assertIn(url, row["replica"])
        self.assertEqual((row["txid"], row["replicated_txid"], row["pending_bytes"]), (txid, txid, 0))
        self.assertEqual(row["breaker"], "closed")
        self.assertIsNone(row["last_error"])
        self.assertRegex(str(row["last_upload"]), r"^20\d\d-\d\d-\d\dT")
        self.assertLess(row["lag_seconds"], 5)
        self.assertEqual(row["wal_bytes"], os.path.getsize(db + "-wal"))
        # The spool is beside the database; its pieces and files are its size.
        kept = door.file_bytes(db + "-walrust", lambda f: f.endswith(".ltx"))
        self.assertGreater(kept, 0)
        self.assertGreaterEqual(row["spool_bytes"], kept)
        self.assertLess(row["spool_bytes"], kept + 100_000)

    def test_every_commit_is_in_the_wal_whole(self):
        """Padded to a sector and cut in two where the sync is due (no psow, FULL, small pages), a frame is all there when COMMIT
        returns: to a process without walrust, too."""
        for page_size in (512, 1024, 2048):
            db, url = self.path(f"p{page_size}.db"), self.path(f"r{page_size}")
            p = self.peer().open(f"file:{db}?psow=0", uri=True)
            p.sql(f"PRAGMA page_size={page_size}")
            p.sql("PRAGMA wal_autocheckpoint=0")
            p.watch(url)
            p.sql("PRAGMA synchronous=FULL")
            p.sql("CREATE TABLE t(v)")
            short = p.code("""
import os
short, c = 0, conns['main']
for i in range(600):
    c.execute("INSERT INTO t VALUES(?)", (str(i) * 40,))
    short += (os.path.getsize(args['wal']) - 32) % args['frame'] != 0
result = short
""", wal=db + "-wal", frame=page_size + 24)
            self.assertEqual(short, 0, f"page size {page_size}")
            self.assertEqual(door.plain_rows(db, "SELECT count(*) FROM t"), [(600,)])
            self.assertEqual(door.plain_rows(db, "PRAGMA integrity_check"), [("ok",)])
            p.sync()
            out, _ = self.restore(url)
            self.assertEqual(door.plain_rows(out, "SELECT sum(length(v)) FROM t"), door.plain_rows(db, "SELECT sum(length(v)) FROM t"))
            p.end()

    def test_local_replica_has_litestreams_layout(self):
        p, db, url = self.watched()
        p.sync()
        self.assertEqual(sorted(n for n in os.listdir(url) if n != "walrust"), ["ltx"])
        for level, low, high, path in door.ltx_files(url):
            self.assertRegex(os.path.relpath(path, url), r"^ltx/\d/[0-9a-f]{16}-[0-9a-f]{16}\.ltx$")
            self.assertTrue(low == high if level == 0 else low <= high)
        for base, _, names in os.walk(url):
            for name in names:
                self.assertFalse(re.search(r"tmp|partial", name), os.path.join(base, name))


if __name__ == "__main__":
    unittest.main()
