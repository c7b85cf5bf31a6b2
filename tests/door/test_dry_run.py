"""`walrust restore --dry-run`: what a restore would read, said without doing it, and held against the restore that follows."""

import json
import os

import door


class DryRun(door.DoorTest):
    def store(self, rows=3, size=400):
        """A replica over HTTP, every request of which is seen."""
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        p = self.peer(env=self.s3.env()).open(self.path("app.db"))
        self.url = self.s3.url("app", self.proxy.endpoint)
        p.watch(self.url, interval="0s")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)")
        self.txids = [p.sync(60)]
        for _ in range(rows):
            p.sql("INSERT INTO t(v) VALUES(randomblob(?))", size)
            self.txids.append(p.sync(60))
        p.end()
        return p

    def cli(self, *args):
        self.proxy.seen.clear()
        done = self.run_cli(*args, env=self.s3.env())
        return done, [(m, path.split("?")[0]) for m, path, _ in self.proxy.seen]

    def told(self, *args, out="out.db"):
        done, seen = self.cli("restore", self.url, self.path("to", out), "--dry-run", "--json", *args)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual({m for m, _ in seen} - {"GET", "HEAD"}, set(), "it only reads")
        return json.loads(done.stdout)

    def fetched(self, seen):
        return [path for method, path in seen if method == "GET" and path.endswith(".ltx")]

    def test_the_files_and_requests_are_those_of_the_restore(self):
        os.mkdir(self.path("to"))
        self.store()
        for point in (self.txids[-1], self.txids[1]):
            with self.subTest(point=point):
                told = self.told("--point", str(point))
                self.assertEqual(os.listdir(self.path("to")), [], "nothing is written")
                done, seen = self.cli("restore", self.url, self.path("to", "out.db"), "--point", str(point))
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(sorted(self.fetched(seen)), sorted("/bucket/app/" + f["key"] for f in told["files"]))
                self.assertEqual(len(self.fetched(seen)), told["requests"])
                self.assertEqual(told["txid"], point)
                self.assertEqual(told["bytes"], sum(len(self.s3.get("app/" + f["key"])) for f in told["files"]))
                self.assertEqual(told["database_bytes"], os.path.getsize(self.path("to", "out.db")))
                self.assertGreater(told["estimated_seconds"], 0)
                os.unlink(self.path("to", "out.db"))

    def test_a_large_file_is_counted_in_ranges(self):
        os.mkdir(self.path("to"))
        p = self.peer(env={}).open(self.path("big.db"))
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.url = self.s3.url("app", self.proxy.endpoint)
        p.sql("CREATE TABLE t(v)")
        p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) INSERT INTO t SELECT randomblob(4000) FROM n")
        p.end()
        p = self.peer(env=self.s3.env()).open(self.path("big.db"))
        p.watch(self.url)
        p.sync(60)
        p.end()
        told = self.told()
        self.assertGreater(told["requests"], len(told["files"]))
        done, seen = self.cli("restore", self.url, self.path("to", "out.db"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(self.fetched(seen)), told["requests"])

    def test_what_a_restore_refuses_is_refused_in_the_same_words(self):
        os.mkdir(self.path("to"))
        self.store(rows=1)
        done, _ = self.cli("restore", self.url, self.path("to", "out.db"))
        self.assertEqual(done.returncode, 0, done.stderr)
        before = door.tree(self.path("to"))
        for args in (("out.db",), ("no/such.db",), ("x.db", "--point", "999"), ("x.db", "--point", "2001-01-01T00:00:00Z"), ("x.db", "--point", "no-such-label")):
            with self.subTest(args=args):
                way = ("restore", self.url, self.path("to", args[0]), *args[1:])
                real, dry = self.cli(*way)[0], self.cli(*way, "--dry-run")[0]
                self.assertEqual((dry.returncode, dry.stdout, dry.stderr), (real.returncode, real.stdout, real.stderr))
                self.assertEqual(dry.returncode, 1)
        self.assertFalse(self.told("--overwrite")["at_most"])
        self.assertTrue(self.told("--delta")["at_most"], "what the target has already is not fetched")
        self.assertEqual(door.tree(self.path("to")), before)
        done, _ = self.cli("restore", self.url, self.path("to", "out.db"), "--dry-run", "--if-db-not-exists")
        self.assertIn("exists; nothing restored", done.stdout)

    def test_in_words(self):
        p, _, url = self.watched()
        p.sync()
        done = self.run_cli("restore", url, self.path("words.db"), "--dry-run")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        *files, first, second = done.stdout.splitlines()
        self.assertEqual(len(files), len(json.loads(self.run_cli("restore", url, self.path("words.db"), "--dry-run", "--json").stdout)["files"]))
        for line in files:
            self.assertRegex(line, r"^ *\d+(\.\d)? (bytes?|[KMGT]B)  ltx/\d/[0-9a-f]{16}-[0-9a-f]{16}\.ltx$")
        self.assertRegex(first, r"words\.db: TXID [0-9a-f]{16} of 20\S+, [\d.]+ KB \(dry run: nothing was written\)$")
        self.assertRegex(second, r"^reads [\d.]+ \w+ in \d+ files? and \d+ requests?, about [\d.]+ s")
        self.assertTrue(all(len(line) <= 80 for line in done.stdout.splitlines() if self.dir not in line), done.stdout)
        self.assertFalse(os.path.exists(self.path("words.db")))

    def test_by_sql(self):
        p, _, url = self.watched()
        p.sync()
        text, = p.rows("SELECT walrust_restore(?, ?, NULL, '{\"dry_run\":true}')", url, self.path("sql.db"))[0]
        told = json.loads(text)
        self.assertEqual((told["dry_run"], told["txid"]), (True, p.sync()))
        self.assertFalse(os.path.exists(self.path("sql.db")))
