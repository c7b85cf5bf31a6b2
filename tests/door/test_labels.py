"""Labels: points with names, which keep what they name until they are dropped."""

import json
import os
import time
import unittest

import door
import test_read
from door import SqlError, quote

#: Keeps nothing but the newest: only a label keeps more.
BARE = {"pitr_window": "0s", "retention": {"hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}}
NOTHING = json.dumps({"force": True, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0})


class LabelTest(test_read.ReadTest):
    def filled(self, n=6, **options):
        """A watched database with `n` rows, each of its own TXID."""
        p, db, replica = self.watched(interval="0s", **options)
        for i in range(n):
            p.sql("INSERT INTO t VALUES(?, ?)", i, f"row {i}")
            p.sync()
        return p, db, replica

    def labels(self, p, url=None):
        return dict(p.rows("SELECT label, txid FROM walrust_points(?) WHERE label IS NOT NULL", url))

    def held(self, replica):
        """What lies there, but for what the process that streams writes down by itself in its own time."""
        return {k: v for k, v in door.tree(replica).items() if "manifest" not in k and "lease" not in k}

    def count(self, path):
        return door.plain_rows(path, "SELECT count(*) FROM t")[0][0]


class Names(LabelTest):
    def test_a_label_stands_wherever_a_point_does(self):
        p, db, replica = self.filled()
        # What was committed before the call is in it, without a sync of the caller's.
        p.sql("INSERT INTO t VALUES(100, 'the last before')")
        txid = p.sql("SELECT walrust_label('before-migration-42')")
        kept = door.image(db)
        p.sql("DELETE FROM t WHERE id < 5")
        p.sync()
        self.assertEqual(self.labels(p), {"before-migration-42": txid})
        out, at = self.restore(f"file://{replica}", point="before-migration-42")
        self.assertEqual((at, door.image(out)), (txid, kept))
        r = self.reader()
        r.sql(f"ATTACH 'file://{replica}?at=before-migration-42' AS past")
        self.assertEqual(r.sql("SELECT count(*) FROM past.t"), 7)
        name = r.sql("SELECT walrust_url(?, 'before-migration-42')", replica)
        self.assertTrue(name.endswith(f"at={txid}"), name)
        p.sql("ATTACH walrust_past('before-migration-42') AS past")
        self.assertEqual(p.sql("SELECT count(*) FROM past.t"), 7)
        p.sql("DETACH past")
        changed = p.rows("SELECT name, deleted FROM walrust_changes(NULL, 'before-migration-42')")
        self.assertIn(("t", 5), changed)
        self.assertGreater(p.sql("SELECT walrust_rewind('before-migration-42')"), txid)
        self.assertEqual(p.sql("SELECT count(*) FROM t"), 7)

    def test_a_name_is_one_point_and_the_same_call_has_the_same_answer(self):
        p, db, replica = self.filled()
        txid = p.sql("SELECT walrust_label('a')")
        self.assertEqual(p.sql("SELECT walrust_label('a', 1)"), txid)
        p.sql("INSERT INTO t VALUES(100, 'x')")
        with self.assertRaises(SqlError) as e:
            p.sql("SELECT walrust_label('a')")
        self.assertErrorLine(str(e.exception), "there already", f"TXID {txid:016x} ", r"walrust_label\('a', 0\)")
        self.assertEqual(p.sql("SELECT walrust_label('a', 0)"), txid)
        self.assertEqual(p.sql("SELECT walrust_label('a', 0)"), txid)
        self.assertEqual(self.labels(p), {})
        self.assertGreater(p.sql("SELECT walrust_label('a')"), txid)
        p.sql("SELECT walrust_label('b')")
        self.assertEqual(set(self.labels(p)), {"a, b"})
        older = p.sql("SELECT walrust_label('older', NULL, NULL, ?)", txid - 1)
        self.assertEqual(older, txid - 1)

    def test_what_cannot_name_a_point(self):
        p, db, replica = self.filled(2)
        before = self.held(replica)
        for name in ("", "57", "deadbeefdeadbeef", "latest", "NOW", "2026-11-22", "5 minutes ago", "-1h", "a b", "a/b", "../a", "1st",
                     "x" * 65, "caf\u00e9", " a", "a\n"):
            for call in ("SELECT walrust_label(?)", "SELECT walrust_label(?, 0)"):
                with self.assertRaises(SqlError, msg=name) as e:
                    p.sql(call, name)
                self.assertErrorLine(str(e.exception), "label")
        for arguments in ("NULL", "7", "'a', 2", "'a', 'yes'", "'a', 1, ''", "'a', 1, 'ftp://x/y'", "'a', 0, NULL, 1", "'a', 1, NULL, 999"):
            with self.assertRaises(SqlError, msg=arguments) as e:
                p.sql(f"SELECT walrust_label({arguments})")
            self.assertErrorLine(str(e.exception))
        with self.assertRaises(SqlError) as e:
            p.sql("SELECT walrust_label('never-was', 0)")
        self.assertErrorLine(str(e.exception), 'no label "never-was"', "it has no label")
        p.sql("SELECT walrust_label('there')")
        for call in ("SELECT walrust_restore(?, ?, 'theer')", "SELECT walrust_restore(?, ?, '5 parsecs ago')"):
            with self.assertRaises(SqlError) as e:
                p.sql(call, replica, self.path("out.db"))
            self.assertErrorLine(str(e.exception), "there|label's name", "allowed are a TXID")
        self.assertFalse(os.path.exists(self.path("out.db")))
        p.sql("SELECT walrust_label('there', 0)")
        self.assertEqual(self.held(replica), before)
        with self.assertRaisesRegex(SqlError, "walrust_watch|watched"):
            self.peer().open(self.path("other.db")).sql("SELECT walrust_label('a')")

    def test_an_empty_replica_has_nothing_to_name(self):
        p = self.reader()
        with self.assertRaisesRegex(SqlError, "no LTX file"):
            p.sql("SELECT walrust_label('a', 1, ?)", self.path("nothing"))
        self.assertFalse(os.path.exists(self.path("nothing")))


class Kept(LabelTest):
    def test_it_outlives_merges_snapshots_retention_and_restarts_and_litestream_restores_it(self):
        p, db, replica = self.filled(levels=["100ms", "300ms", "1s"], snapshot_interval="500ms", **BARE)
        txid = p.sql("SELECT walrust_label('kept')")
        kept = door.image(db)
        self.assertEqual(p.sync(), txid)
        for n in range(12):
            p.sql("INSERT INTO t VALUES(?, randomblob(2000))", 1000 + n)
            p.sync()
            time.sleep(0.15)
        p.sql("SELECT walrust_snapshot()")
        p.end()
        p = self.peer().open(db)
        p.watch(replica, interval="0s", levels=["100ms", "300ms", "1s"], snapshot_interval="500ms", **BARE)
        for n in range(6):
            p.sql("INSERT INTO t VALUES(?, randomblob(2000))", 2000 + n)
            p.sync()
            p.sql("SELECT walrust_snapshot()")
        report = p.sql("SELECT walrust_compact(NULL, ?)", NOTHING)
        left = {row[0] for row in p.rows("SELECT txid FROM walrust_points")}
        self.assertIn(txid, left, report)
        # (The way to the labelled point may lead through those before it.)
        self.assertFalse(left & {txid + 1, txid + 2, txid + 3}, "retention removed what no label keeps")
        self.assertEqual(self.labels(p), {"kept": txid})
        out, at = self.restore(f"file://{replica}", point="kept")
        self.assertEqual((at, door.image(out)), (txid, kept))
        self.litestream("restore", "-integrity-check", "full", "-o", self.path("ls.db"), "-txid", f"{txid:016x}", f"file://{replica}")
        self.assertEqual(door.image(self.path("ls.db")), kept)
        self.litestream("restore", "-integrity-check", "full", "-o", self.path("newest.db"), f"file://{replica}")
        self.assertSameBytes(db, self.path("newest.db"))
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify()"))
        p.sql("SELECT walrust_label('kept', 0)")
        p.sql("SELECT walrust_compact(NULL, ?)", NOTHING)
        self.assertNotIn(txid, {row[0] for row in p.rows("SELECT txid FROM walrust_points")})

    def test_it_outlives_a_takeover(self):
        p, db, replica = self.filled(**BARE)
        txid = p.sql("SELECT walrust_label('of-the-first')")
        kept = door.image(db)
        p.end()
        other = self.peer().open(self.path("other.db"))
        other.sql("CREATE TABLE u(x)")
        other.watch(replica, takeover=True, interval="0s", **BARE)
        for n in range(4):
            other.sql("INSERT INTO u VALUES(?)", n)
            other.sync()
            other.sql("SELECT walrust_snapshot()")
        other.sql("SELECT walrust_compact(NULL, ?)", NOTHING)
        self.assertEqual(self.labels(other), {"of-the-first": txid})
        out, _ = self.restore(f"file://{replica}", point="of-the-first")
        self.assertEqual(door.image(out), kept)

    def test_a_label_that_cannot_be_read_keeps_everything_and_says_so(self):
        p, db, replica = self.filled(**BARE)
        p.sql("SELECT walrust_label('a')")
        with open(os.path.join(replica, "walrust", "labels", "a.json"), "w") as f:
            f.write("{}")
        before = door.ltx_files(replica)
        with self.assertRaises(SqlError) as e:
            p.sql("SELECT walrust_compact(NULL, ?)", NOTHING)
        self.assertErrorLine(str(e.exception), "nothing is removed", 'label "a" is damaged')
        self.assertEqual(door.ltx_files(replica), before)
        self.assertIn('label "a" is damaged', p.sql("SELECT walrust_verify()"))
        self.assertIsNone(p.sql("SELECT walrust_label('a', 0)"))
        self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify()"))

    def test_what_another_removed_is_told(self):
        p, db, replica = self.filled()
        txid = p.sql("SELECT walrust_label('lost', NULL, NULL, 3)")
        p.end()
        # As somebody's lifecycle rule does it.
        for level, low, high, path in door.ltx_files(replica, 0):
            if high == txid:
                os.unlink(path)
        report = self.shell(f"SELECT walrust_verify({quote(replica)});")
        self.assertIn(f"Label lost names TXID {txid}, which cannot be restored any more", report)


class Bucket(LabelTest):
    def test_of_two_machines_one_makes_a_name(self):
        s3 = door.S3(self)
        url = s3.url("app")
        p, db, _ = self.watched(replica=url, env=s3.env(), interval="0s")
        for n in range(5):
            p.sql("INSERT INTO t VALUES(?, 'x')", n)
            p.sync()
        readers = [self.peer(env=s3.env()).open(":memory:") for _ in range(5)]
        for n, r in enumerate(readers):
            r.send(op="sql", conn="main", sql="SELECT walrust_label('mine', 1, ?, ?)", params=[url, n + 2])
        won, lost = [], 0
        for n, r in enumerate(readers):
            try:
                won.append(r.wait()[0][0])
            except SqlError as e:
                self.assertErrorLine(str(e), "there already")
                lost += 1
        self.assertEqual((len(won), lost), (1, 4))
        self.assertEqual(self.labels(p), {"mine": won[0]})


class Automatic(LabelTest):
    def test_the_point_before_a_change_of_the_schema_is_labelled(self):
        p, db, replica = self.filled(auto_label="ddl", **BARE)
        before, kept = p.sync(), door.image(db)
        p.sql("ALTER TABLE t ADD COLUMN w")
        p.sync()
        name = f"ddl-{before:016x}"
        self.eventually(lambda: name in self.labels(p), what="the label")
        for n in range(6):
            p.sql("INSERT INTO t(id, v, w) VALUES(?, 'x', 'y')", 100 + n)
            p.sync()
        p.sql("SELECT walrust_snapshot()")
        p.sql("SELECT walrust_compact(NULL, ?)", NOTHING)
        out, at = self.restore(f"file://{replica}", point=name)
        self.assertEqual((at, door.image(out)), (before, kept))
        # What only writes rows is none, however much.
        found = self.labels(p)
        p.many("INSERT INTO t(id, v) VALUES(?, ?)", [[n, "z" * 900] for n in range(1000, 2000)])
        p.sync()
        p.sql("DELETE FROM t WHERE id >= 1000")
        p.sync()
        time.sleep(0.5)
        self.assertEqual(self.labels(p), found)

    def test_the_first_change_of_a_process_is_one_too(self):
        p, db, replica = self.filled()
        before = p.sync()
        p.end()
        q = self.peer().open(db)
        q.watch(replica, interval="0s", auto_label="ddl")
        q.sql("CREATE INDEX by_v ON t(v)")
        q.sync()
        self.eventually(lambda: f"ddl-{before:016x}" in self.labels(q), what="the label")

    def test_without_the_setting_there_is_none(self):
        p, db, replica = self.filled()
        p.sql("ALTER TABLE t ADD COLUMN w")
        p.sync()
        time.sleep(0.5)
        self.assertEqual(self.labels(p), {})


class CommandLine(LabelTest):
    def ok(self, *args):
        done = self.run_cli(*args)
        self.assertEqual(done.returncode, 0, f"{args}: {done.stdout}{done.stderr}")
        return done.stdout

    def test_label_points_restore_query_and_diff(self):
        p, db, replica = self.filled()
        txid = p.sync()
        p.end()
        self.assertIn(f"{txid:016x}", self.ok("label", replica, "good"))
        self.assertEqual(json.loads(self.ok("label", replica, "early", "--point", "3", "--json")), {"label": "early", "txid": 3})
        self.assertIn("good", self.ok("points", replica))
        found = {row["label"]: row["txid"] for row in json.loads(self.ok("points", replica, "--json")) if row["label"]}
        self.assertEqual(found, {"good": txid, "early": 3})
        self.ok("restore", replica, self.path("out.db"), "--point", "early")
        self.assertEqual(self.count(self.path("out.db")), self.count_at(replica, 3))
        self.assertEqual(json.loads(self.ok("query", replica, "--at", "good", "SELECT count(*) AS n FROM t", "--json")), [{"n": 6}])
        self.ok("diff", replica, "--from", "early", "--to", "good")
        self.ok("label", replica, "early", "--drop")
        self.assertNotIn("early", self.ok("points", replica))
        done = self.run_cli("label", replica, "latest")
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "cannot name a label")
        with open(self.path("walrust.toml"), "w") as f:
            f.write(f'[[databases]]\npath = "{db}"\nreplica = "{replica}"\n')
        self.assertIn(f"{txid:016x}", self.ok("label", db, "by-the-file"))

    def count_at(self, replica, txid):
        out, _ = self.restore(f"file://{replica}", point=txid)
        return self.count(out)


if __name__ == "__main__":
    unittest.main()
