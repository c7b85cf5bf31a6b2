"""walrust_replicate: a file that follows a replica under readers, through kills, gaps, other histories and other people's writes."""

import glob
import json
import os
import shutil
import time
import unittest

import door
import pytest

# Page 1 of a follower's file has its own format versions, change counter, size, schema cookie (after a rebuild) and counter again.
OWN_BYTES = [(18, 20), (24, 32), (40, 44), (92, 96)]


def masked(data):
    data = bytearray(data)
    for a, b in OWN_BYTES:
        data[a:b] = bytes(b - a)
    return bytes(data)


class Replicate(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.copy = self.path("copy.db")

    def follower(self, url, copy=None, so=door.SO, env=None, **options):
        f = self.peer(so=so, env=env).open(":memory:")
        self.follow(f, url, copy, **{"interval": "10ms", **options})
        return f

    def follow(self, f, url, copy=None, **options):
        return f.sql("SELECT walrust_replicate(?, ?, ?)", url, copy or self.copy, json.dumps(options))

    def until(self, f, txid, copy=None, timeout=60):
        copy = copy or self.copy
        self.eventually(lambda: f.status(database=copy)["txid"] >= txid, timeout=timeout, what=f"TXID {txid} in {copy}")

    def assertFollows(self, db, copy=None):
        """The copy is sound and, its own bytes aside, the source byte for byte."""
        copy = copy or self.copy
        self.assertSound(copy)
        with open(copy, "rb") as f:
            data = f.read()
        source = door.image(db)
        if masked(data) != masked(source):
            self.fail(f"the copy differs: {door.difference(masked(data), masked(source))}")
        self.assertFalse(os.path.exists(copy + "-journal"))
        self.assertEqual(data[18:20], b"\1\1")


class Following(Replicate):
    def test_growth_shrinking_vacuum_and_schema_changes(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        f = self.follower(url)
        reader = door.plain_connect(self.copy)
        for sql in (
            "INSERT INTO t(v) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 3000) SELECT randomblob(500) FROM c",
            "CREATE INDEX tv ON t(v)",
            "DELETE FROM t WHERE id % 3 = 0",
            "VACUUM",
            "CREATE TABLE u(a, b)",
            "INSERT INTO u SELECT id, v FROM t LIMIT 500",
            "DROP TABLE t",
            "VACUUM",
            "ALTER TABLE u ADD COLUMN c",
        ):
            p.sql(sql)
            self.until(f, p.sync())
            self.assertFollows(db)
            names = door.plain_rows(db, "SELECT name, sql FROM sqlite_schema ORDER BY 1")
            self.assertEqual(reader.execute("SELECT name, sql FROM sqlite_schema ORDER BY 1").fetchall(), names)
        row = f.status(database=self.copy)
        self.assertEqual((row["state"], row["last_error"], row["lag_seconds"]), ("streaming", None, 0.0))
        self.assertEqual(row["txid"], row["replicated_txid"])

    def test_it_looks_every_five_seconds_if_nothing_else_is_said(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        f = self.peer().open(":memory:")
        begin = time.monotonic()
        self.assertRegex(f.sql("SELECT walrust_replicate(?, ?)", url, self.copy), r"-> .*copy\.db \(first copy, at TXID [0-9a-f]{16}\)$")
        # Its first look follows the copy at once; on a busy machine that is not at once.
        time.sleep(0.7)
        p.sql("INSERT INTO t VALUES(1, 'x')")
        self.until(f, p.sync())
        self.assertGreater(time.monotonic() - begin, 4)
        self.assertLess(time.monotonic() - begin, 8)
        self.assertFollows(db)

    def test_page_sizes(self):
        for size in (512, 1024, 65536):
            with self.subTest(size):
                db, url, copy = self.path(f"{size}.db"), self.path(f"r{size}"), self.path(f"c{size}.db")
                q = door.plain_connect(db)
                q.execute(f"PRAGMA page_size={size}")
                q.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                q.close()
                p, db, url = self.watched(db, url, schema=None, interval="0s")
                p.sync()
                f = self.follower(url, copy)
                for n in range(5):
                    p.many("INSERT INTO t(v) VALUES(?)", [("x" * 700,)] * 40)
                    p.sql("DELETE FROM t WHERE id % 5 = ?", n)
                    self.until(f, p.sync(), copy)
                self.assertFollows(db, copy)

    def test_readers_in_other_processes_see_whole_transactions(self):
        p, db, url = self.watched(interval="0s", schema="CREATE TABLE account(id INTEGER PRIMARY KEY, balance, pad);"
                                                        "CREATE TABLE log(n INTEGER PRIMARY KEY, moved)")
        p.many("INSERT INTO account VALUES(?, 100, ?)", [(i, "p" * 400) for i in range(300)])
        p.sync()
        f = self.follower(url)
        reading = """
c = connect(args['copy']); seen = set(); end = time.time() + args['seconds']
while time.time() < end:
    c.execute('BEGIN')
    n, moved = c.execute('SELECT count(*), coalesce(sum(moved), 0) FROM log').fetchone()
    total, = c.execute('SELECT sum(balance) FROM account').fetchone()
    first, = c.execute('SELECT 100 - balance FROM account WHERE id = 0').fetchone()
    again, = c.execute('SELECT count(*) FROM log').fetchone()
    c.execute('COMMIT')
    assert total == 30000 and first == moved and n == again, (n, again, total, first, moved)
    seen.add(n)
assert c.execute('PRAGMA integrity_check').fetchone() == ('ok',)
result = len(seen)
"""
        # Without the extension, and with it: in this process of the follower, too.
        readers = [self.peer(so=None), self.peer(so=None), self.peer()]
        seconds = 4
        for r in readers:
            r.send(op="code", code=reading, args={"copy": self.copy, "seconds": seconds})
        f.send(op="code", code=reading, args={"copy": self.copy, "seconds": seconds})
        end, n = time.monotonic() + seconds - 0.5, 0
        while time.monotonic() < end:
            n += 1
            p.sql("BEGIN")
            p.sql("UPDATE account SET balance = balance - ? WHERE id = 0", n % 7)
            p.sql("UPDATE account SET balance = balance + ? WHERE id = ?", n % 7, 1 + n * 31 % 299)
            p.sql("INSERT INTO log VALUES(?, ?)", n, n % 7)
            p.sql("COMMIT")
            time.sleep(0.005)
        seen = [r.wait() for r in readers] + [f.wait()]
        self.until(f, p.sync())
        self.assertFollows(db)
        self.assertGreater(min(seen), 5)

    def test_a_long_reader_keeps_its_snapshot_and_then_sees_the_rest(self):
        p, db, url = self.watched(interval="0s")
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        f = self.follower(url)
        reader = door.plain_connect(self.copy)
        reader.execute("BEGIN")
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone(), (1,))
        p.sql("INSERT INTO t VALUES(2, 'y')")
        txid = p.sync()
        row = self.eventually(lambda: (lambda r: r["last_error"] and r)(f.status(database=self.copy)), what="an error in the status")
        self.assertEqual(row["state"], "catching up")
        self.assertGreater(row["lag_seconds"], 0)
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone(), (1,))
        reader.execute("COMMIT")
        self.until(f, txid)
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone(), (2,))
        self.eventually(lambda: f.status(database=self.copy)["last_error"] is None, what="no error")
        self.assertFollows(db)

    def test_outage_of_the_replica(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        f = self.follower(url)
        os.rename(url, url + ".away")
        row = self.eventually(lambda: (lambda r: r["last_error"] and r)(f.status(database=self.copy)), what="an error in the status")
        self.assertIn(row["state"], ("failed", "catching up"))
        self.assertSound(self.copy)
        os.rename(url + ".away", url)
        p.sql("INSERT INTO t VALUES(1, 'x')")
        self.until(f, p.sync())
        self.eventually(lambda: f.status(database=self.copy)["state"] == "streaming", what="streaming")
        self.assertFollows(db)

    def test_a_small_change_costs_little(self):
        p, db, url = self.watched(interval="0s", snapshot_interval="0s")
        p.sql("INSERT INTO t(v) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 25000) SELECT randomblob(4000) FROM c")
        p.sync(60)
        size = os.path.getsize(db)
        self.assertGreater(size, 100_000_000)
        f = self.follower(url, interval="50ms")

        def io():
            with open(f"/proc/{f.pid}/io") as file:
                return {k: int(v) for k, v in (line.split(": ") for line in file)}

        changes, costs = 10, []
        time.sleep(1.2)
        for n in range(changes):
            before = io()
            p.sql("UPDATE t SET v = randomblob(4000) WHERE id = ?", 1000 * n + 7)
            self.until(f, p.sync())
            after = io()
            costs.append((after["rchar"] - before["rchar"], after["wchar"] - before["wchar"]))
        read, written = (sorted(c)[changes // 2] for c in zip(*costs))
        print(f"\none-row change of a {size / 1e6:.0f} MB database: {read} bytes read, {written} bytes written by the follower (median of {changes})")
        self.assertLess(read, 200_000)
        self.assertLess(written, 200_000)
        self.assertFollows(db)


class Histories(Replicate):
    def test_gap_at_the_source(self):
        """Commits that nobody captured: the source starts a new lineage, the follower a full copy."""
        p, db, url = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [("x" * 900,)] * 200)
        p.sync()
        f = self.follower(url)
        reader = door.plain_connect(self.copy)
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone(), (200,))
        p.end()
        q = door.plain_connect(db)
        q.execute("CREATE TABLE unseen(x)")
        q.execute("DELETE FROM t WHERE id > 150")
        q.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        q.close()
        p = self.peer().open(db)
        p.watch(url, interval="0s")
        p.sql("INSERT INTO unseen VALUES(1)")
        self.until(f, p.sync())
        self.assertFollows(db)
        self.assertEqual(reader.execute("SELECT (SELECT count(*) FROM t), (SELECT x FROM unseen)").fetchone(), (150, 1))
        self.assertEqual(f.status(database=self.copy)["state"], "streaming")

    def test_page_size_changes_at_the_source(self):
        p, db, url = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [("x" * 900,)] * 50)
        p.sync()
        f = self.follower(url)
        reader = door.plain_connect(self.copy)
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone(), (50,))
        p.end()
        q = door.plain_connect(db)
        for sql in ("PRAGMA journal_mode=delete", "PRAGMA page_size=1024", "VACUUM", "PRAGMA journal_mode=wal"):
            q.execute(sql).fetchall()
        q.close()
        p = self.peer().open(db)
        p.watch(url, interval="0s")
        p.sql("INSERT INTO t(v) VALUES('last')")
        self.until(f, p.sync())
        self.assertFollows(db)
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone(), (51,))

    def test_takeover_by_another_database(self):
        p, db, url = self.watched(interval="0s")
        p.sql("INSERT INTO t VALUES(1, 'one')")
        p.sync()
        f = self.follower(url)
        reader = door.plain_connect(self.copy)
        self.assertEqual(reader.execute("SELECT v FROM t").fetchall(), [("one",)])
        p.sql("SELECT walrust_unwatch()")
        p.end()
        # The same schema cookie, another schema.
        p, other, url = self.watched(self.path("other.db"), url, schema=None, interval="0s", takeover=1)
        p.sql("CREATE TABLE elsewhere(a, b)")
        p.sql("INSERT INTO elsewhere VALUES(2, 'two')")
        self.until(f, p.sync())
        self.eventually(lambda: reader.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'elsewhere'").fetchone() == (1,), what="it")
        self.assertEqual(reader.execute("SELECT * FROM elsewhere").fetchall(), [(2, "two")])
        self.eventually(lambda: f.status(database=self.copy)["state"] == "streaming", what="streaming")
        self.assertFollows(other)

    def test_replica_emptied_and_begun_anew(self):
        p, db, url = self.watched(interval="0s")
        for n in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", n)
            p.sync()
        f = self.follower(url)
        p.sql("SELECT walrust_unwatch()")
        p.end()
        shutil.rmtree(url)
        p, other, url = self.watched(self.path("other.db"), url, interval="0s", schema="CREATE TABLE n(x)")
        p.sync()
        self.eventually(lambda: f.rows("SELECT 1 FROM walrust_status WHERE database = ? AND state = 'streaming' AND last_error LIKE '%another history%'",
                                       self.copy), what="the other history")
        self.until(f, p.sync())
        self.assertFollows(other)

    def test_merging_and_retention_while_it_was_away(self):
        p, db, url = self.watched(interval="0s", levels=["100ms", "300ms"], snapshot_interval="1s", pitr_window="100ms")
        p.sync()
        f = self.follower(url)
        for turn in range(4):
            f.kill()
            for n in range(20):
                p.many("INSERT INTO t(v) VALUES(?)", [("x" * 300,)] * 10)
                p.sync()
            time.sleep(0.4)
            f = self.follower(url)
            self.until(f, p.sync())
            self.assertFollows(db)


class Strangers(Replicate):
    def test_a_write_into_the_copy_is_noticed_and_undone(self):
        p, db, url = self.watched(interval="0s")
        p.many("INSERT INTO t(v) VALUES(?)", [("x" * 900,)] * 100)
        p.sync()
        f = self.follower(url)
        reader = door.plain_connect(self.copy)
        for statements in (["DELETE FROM t WHERE id > 50"], ["CREATE TABLE mine(x)", "INSERT INTO mine VALUES(1)"],
                           ["VACUUM"], ["PRAGMA journal_mode=wal", "DELETE FROM t"]):
            q = door.plain_connect(self.copy)
            for sql in statements:
                q.execute(sql).fetchall()
            if "wal" in statements[0]:
                # As long as somebody has it open in WAL mode, nobody can take it out of that.
                self.eventually(lambda: "WAL mode" in (f.status(database=self.copy)["last_error"] or "") or "locked" in
                                (f.status(database=self.copy)["last_error"] or ""), what="an error")
                reader.close()
            q.close()
            if "wal" in statements[0]:
                self.eventually(lambda: f.status(database=self.copy)["state"] == "streaming", what="streaming")
                reader = door.plain_connect(self.copy)
            undone = "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM sqlite_schema)"
            self.eventually(lambda: reader.execute(undone).fetchone() == (100, 1), what=f"{statements} undone")
            self.eventually(lambda: f.status(database=self.copy)["state"] == "streaming", what="streaming")
            self.assertIn("something else wrote into", f.status(database=self.copy)["last_error"])
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.until(f, p.sync())
        reader.close()
        self.assertFollows(db)

    def test_a_copy_put_in_its_place_or_removed(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        f = self.follower(url)
        os.remove(self.copy)
        self.eventually(lambda: os.path.exists(self.copy), what="the copy again")
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.until(f, p.sync())
        self.assertFollows(db)
        with door.contextlib.closing(door.plain_connect(self.path("precious.db"))) as q:
            q.execute("CREATE TABLE precious(x)")
        os.replace(self.path("precious.db"), self.copy)
        row = self.eventually(lambda: (lambda r: r["state"] == "failed" and r)(f.status(database=self.copy)), what="failed")
        self.assertErrorLine(row["last_error"], "another file")
        self.assertEqual(door.plain_rows(self.copy, "SELECT name FROM sqlite_schema"), [("precious",)])
        f.sql("SELECT walrust_unreplicate(?)", self.copy)
        with self.assertRaises(door.SqlError):
            self.follow(f, url)
        self.follow(f, url, overwrite=1)
        self.assertFollows(db)

    def test_one_process_and_one_replica_for_a_path(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        f = self.follower(url)
        self.assertIn("already", self.follow(f, url))
        self.assertIn("already", f.sql("SELECT walrust_replicate(?, ?)", "file://" + url, os.path.join(self.dir, ".", "copy.db")))
        with self.assertRaises(door.SqlError) as caught:
            self.follow(f, self.path("elsewhere"))
        self.assertErrorLine(str(caught.exception), "walrust_replicate", "copy.db", "unreplicate")
        g = self.peer().open(":memory:")
        with self.assertRaises(door.SqlError) as caught:
            self.follow(g, url)
        self.assertErrorLine(str(caught.exception), "another process")
        self.assertEqual(f.rows("SELECT count(*) FROM walrust_status"), [(1,)])
        self.assertEqual(f.sql("SELECT walrust_unreplicate(?)", self.copy), p.sync())
        self.assertEqual(f.rows("SELECT count(*) FROM walrust_status"), [(0,)])
        self.assertIn("continuing", self.follow(g, url))
        p.sql("INSERT INTO t(v) VALUES(1)")
        self.until(g, p.sync())
        self.assertFollows(db)

    def test_errors_change_nothing(self):
        p, db, url = self.watched(interval="0s")
        p.sync()
        f = self.peer().open(":memory:")
        with open(self.path("notes.txt"), "w") as file:
            file.write("precious\n" * 1000)
        before = {k: v for k, v in door.tree(self.dir).items() if not k.startswith(("app.db", "replica"))}
        for args, words in (
            ((url, self.path("notes.txt")), "notes.txt"),
            ((url, self.path("no", "such", "dir.db")), "does not exist"),
            ((url, self.dir), "ordinary file"),
            ((self.path("nothing"), self.copy), "no LTX file"),
            (("ftp://x/y", self.copy), "ftp"),
            ((url, self.copy, '{"interval":"0s"}'), "interval"),
            ((url, self.copy, '{"point":3}'), "point"),
            ((url, ""), "path"),
            ((url, ":memory:"), "plain path"),
            ((url, None), "path"),
        ):
            with self.assertRaises(door.SqlError, msg=args) as caught:
                f.sql(f"SELECT walrust_replicate({', '.join('?' * len(args))})", *args)
            self.assertErrorLine(str(caught.exception), "walrust_replicate", words)
        with self.assertRaises(door.SqlError) as caught:
            p.sql("SELECT walrust_replicate(?, ?)", url, db)
        self.assertErrorLine(str(caught.exception), "watched")
        after = {k: v for k, v in door.tree(self.dir).items() if not k.startswith(("app.db", "replica")) and not k.endswith(".lock")}
        self.assertEqual(before, after)
        self.assertEqual(f.rows("SELECT count(*) FROM walrust_status"), [(0,)])

    def test_a_copy_is_not_watched_by_itself_and_can_be_promoted(self):
        p, db, url = self.watched(interval="0s")
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        env = {"WALRUST_REPLICA": self.path("auto", "{name}")}
        f = self.peer(env=env).open(":memory:")
        self.follow(f, url, interval="10ms")
        app = self.peer(env=env).open(self.copy)
        for peer, conn in ((f, "other"), (app, "main")):
            if conn == "other":
                peer.open(self.copy, conn)
            self.assertEqual(peer.rows("SELECT count(*) FROM t", conn=conn), [(1,)])
            self.assertEqual(peer.sql("PRAGMA journal_mode=WAL", conn=conn), "delete")
            with self.assertRaises(door.SqlError) as caught:
                peer.watch(self.path("mine"), conn=conn)
            self.assertErrorLine(str(caught.exception), "kept up to date")
        self.assertEqual(app.rows("SELECT count(*) FROM walrust_status"), [(0,)])
        self.assertFalse(os.path.exists(self.path("auto")))
        p.sql("SELECT walrust_unwatch()")
        p.end()
        f.sql("SELECT walrust_unreplicate(?)", self.copy)
        f.end()
        self.assertEqual(app.sql("PRAGMA journal_mode"), "delete")
        with self.assertRaises(door.SqlError):
            app.watch(url)
        self.assertTrue(os.path.exists(self.copy + "-walrust-follow.json"))
        app.watch(url, takeover=1)
        self.assertFalse(os.path.exists(self.copy + "-walrust-follow.json"))
        app.sql("INSERT INTO t VALUES(2, 'y')")
        app.sync()
        self.assertEqual(door.plain_rows(self.restore(url)[0], "SELECT count(*) FROM t"), [(2,)])
        g = self.peer().open(":memory:")
        with self.assertRaises(door.SqlError):
            self.follow(g, url)

    def test_existing_files_and_overwrite(self):
        p, db, url = self.watched(interval="0s")
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        open(self.copy, "w").close()
        f = self.follower(url)
        self.assertFollows(db)
        f.sql("SELECT walrust_unreplicate(?)", self.copy)
        mine = self.path("mine.db")
        for mode in ("delete", "wal"):
            with door.contextlib.closing(door.plain_connect(mine)) as q:
                q.execute(f"PRAGMA journal_mode={mode}")
                q.execute("CREATE TABLE IF NOT EXISTS old(x)")
                q.execute("INSERT INTO old VALUES(zeroblob(100000))")
                held = door.plain_connect(mine)
                self.assertEqual(held.execute("SELECT count(*) FROM old").fetchone(), (1,))
                if mode == "delete":
                    self.follow(f, url, mine, overwrite=1)
                    self.assertEqual(held.execute("SELECT * FROM t").fetchall(), [(1, "x")])
                else:
                    with self.assertRaises(door.SqlError) as caught:
                        self.follow(f, url, mine, overwrite=1)
                    self.assertErrorLine(str(caught.exception), "locked|WAL mode")
                held.close()
            if mode == "wal":
                self.follow(f, url, mine, overwrite=1)
            self.assertFollows(db, mine)
            f.sql("SELECT walrust_unreplicate(?)", mine)
            for left in glob.glob(mine + "*"):
                os.remove(left)


@pytest.mark.campaign
class Kills(Replicate):
    POINTS = ["follow.copied", "follow.linked", "rewrite.records", "rewrite.sealed", "follow.recorded", "rewrite.exclusive",
              "rewrite.page", "rewrite.synced", "rewrite.committed", "follow.applied"]

    def consistent(self):
        """What a reader without the extension sees after a kill; SQLite rolls back what must be."""
        if os.path.exists(self.copy):
            (n, total), = door.plain_rows(self.copy, "SELECT count(*), total(v) FROM t")
            self.assertEqual(total, n * (n + 1) / 2)
            self.assertSound(self.copy)

    def source(self):
        p, db, url = self.watched(interval="0s", schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v, pad)")
        self.n = 0
        self.more(p, 5)
        return p, db, url

    def more(self, p, times, rows=7):
        for _ in range(times):
            p.many("INSERT INTO t VALUES(?, ?, randomblob(900))", [(self.n + i, self.n + i) for i in range(1, rows + 1)])
            self.n += rows
            txid = p.sync()
        return txid

    @unittest.skipUnless(os.path.exists(door.CRASH_SO), "make crash-lib")
    def test_at_named_points(self):
        p, db, url = self.source()
        died = 0
        for point in self.POINTS:
            for nth in (1, 2, 5):
                with self.subTest(f"{point}:{nth}"):
                    f = self.peer(so=door.CRASH_SO, env={"WALRUST_CRASH": f"{point}:{nth}"}).open(":memory:")
                    if point in ("follow.copied", "follow.linked"):
                        for left in glob.glob(self.copy + "*"):
                            os.remove(left)
                    try:
                        self.follow(f, url, interval="10ms")
                        self.more(p, 4)
                        end = time.monotonic() + (0.5 if nth > 1 else 10)
                        while f.proc.poll() is None and time.monotonic() < end:
                            time.sleep(0.01)
                    except (AssertionError, BrokenPipeError):
                        pass
                    died += f.proc.poll() is not None
                    if nth == 1:
                        self.assertIsNotNone(f.proc.poll(), "the crash point was reached")
                    f.kill()
                    self.consistent()
                    g = self.follower(url)
                    self.until(g, self.more(p, 1))
                    self.assertFollows(db)
                    self.assertIsNone(g.status(database=self.copy)["last_error"], "nothing had to be rebuilt")
                    g.sql("SELECT walrust_unreplicate(?)", self.copy)
                    g.end()
        print(f"\nkilled at {died} of {3 * len(self.POINTS)} named points")
        self.assertGreaterEqual(died, len(self.POINTS))

    def test_at_random_times(self):
        p, db, url = self.source()
        kills, hot = door.rounds(25), 0
        for n in range(kills):
            f = self.follower(url)
            until = time.monotonic() + self.random.random() * 0.3
            while time.monotonic() < until:
                self.more(p, 1, rows=40)
            f.kill()
            hot += os.path.exists(self.copy + "-journal")
            self.consistent()
            if n % 3 == 0:
                p.sql("DELETE FROM t WHERE id > ?", self.n - 150)
                self.n -= 150 if self.n > 150 else self.n
                p.sync()
        f = self.follower(url)
        self.until(f, p.sync())
        self.assertFollows(db)
        self.assertIsNone(f.status(database=self.copy)["last_error"], "nothing had to be rebuilt")
        print(f"\n{kills} kills, {hot} of them left a hot journal")


if __name__ == "__main__":
    unittest.main()
