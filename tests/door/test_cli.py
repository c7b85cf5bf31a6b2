"""The operator's command line: the same surface, exit codes, --json, container start."""

import json
import os
import subprocess
import time
import unittest

import door


class Cli(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.p, self.db, self.url = self.watched(interval="0s")
        for i in range(8):
            self.p.sql("INSERT INTO t VALUES(?, randomblob(500))", i)
            self.txid = self.p.sync()

    def ok(self, *args, **kwargs):
        done = self.run_cli(*args, **kwargs)
        self.assertEqual(done.returncode, 0, f"{args}: {done.stdout}{done.stderr}")
        return done.stdout

    def json(self, *args, **kwargs):
        return json.loads(self.ok(*args, "--json", **kwargs))

    def damage(self):
        os.unlink(door.ltx_files(self.url, 0)[4][3])

    def test_help_and_version(self):
        text = self.ok("--help")
        for command in ("verify", "explain", "list", "files", "snapshot", "restore", "replicate", "compact", "watch", "status"):
            self.assertIn(command, text)
            self.assertTrue(self.ok(command, "--help"))
        self.assertRegex(self.ok("--version"), r"\d+\.\d+\.\d+")

    def test_verify_exit_codes(self):
        self.assertIn("Exit code: 0", self.ok("verify", self.url))
        self.ok("verify", self.url, "--mode", "deep")
        self.p.end()
        self.damage()
        done = self.run_cli("verify", self.url)
        self.assertIn(done.returncode, (1, 2))
        self.assertIn(f"Exit code: {done.returncode}", done.stdout)
        os.mkdir(self.path("empty"))
        done = self.run_cli("verify", self.path("empty"))
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)

    def test_verify_json(self):
        rows = self.json("verify", self.url)
        self.assertTrue(json.dumps(rows))
        self.p.end()
        self.damage()
        done = self.run_cli("verify", self.url, "--json")
        self.assertIn(done.returncode, (1, 2))
        json.loads(done.stdout)

    def test_list_and_files(self):
        self.assertIn(f"{self.txid:016x}", self.ok("files", self.url))
        rows = self.json("files", self.url)
        self.assertEqual(len(rows), len(door.ltx_files(self.url)))
        self.assertEqual(set(rows[0]), set(door.FILES_COLUMNS))
        rows = self.json("list", self.url)
        self.assertEqual(set(rows[0]), set(door.LIST_COLUMNS))
        self.assertEqual(rows[0]["max_txid"], self.txid)

    def test_restore(self):
        out = self.path("out.db")
        self.ok("restore", self.url, out)
        self.assertSameBytes(self.db, out)
        done = self.run_cli("restore", self.url, out)
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "out.db", "overwrite")
        self.ok("restore", self.url, out, "--overwrite")
        answer = self.json("restore", self.url, self.path("two.db"), "--txid", str(self.txid - 2))
        self.assertEqual(answer["txid"], self.txid - 2)

    def test_container_start(self):
        self.ok("restore", "--if-replica-exists", "--if-db-not-exists", self.path("nothing"), self.path("fresh.db"))
        self.assertFalse(os.path.exists(self.path("fresh.db")))
        before = door.tree(self.dir)["app.db"]
        self.ok("restore", "--if-replica-exists", "--if-db-not-exists", self.url, self.db)
        self.assertEqual(door.tree(self.dir)["app.db"], before)
        self.ok("restore", "--if-replica-exists", "--if-db-not-exists", self.url, self.path("fresh.db"))
        self.assertSameBytes(self.db, self.path("fresh.db"))

    def test_snapshot_explain_status_compact(self):
        q = door.plain_connect(self.path("plain.db"))
        q.execute("CREATE TABLE t(x)")
        q.close()
        self.ok("snapshot", self.path("plain.db"), self.path("rp"))
        self.assertTrue(door.ltx_files(self.path("rp")))
        self.assertIn("Walrust Configuration Preview", self.ok("explain", self.db))
        self.ok("status", self.db)
        self.assertRegex(self.ok("compact", self.url), "(?i)dry")

    def test_watch_until_terminated(self):
        self.p.end()
        other = self.path("w.db")
        q = self.peer(so=None).open(other)
        q.rows("PRAGMA journal_mode=wal")
        q.sql("CREATE TABLE t(x)")
        proc = subprocess.Popen([door.CLI, "watch", other, self.path("rw")], env=door.clean_env(self.dir), cwd=self.dir,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(proc.stdout.close)
        self.addCleanup(proc.stderr.close)
        self.addCleanup(proc.kill)
        self.eventually(lambda: door.ltx_files(self.path("rw")), what="the first file")
        q.sql("INSERT INTO t VALUES(1)")

        def equal():
            try:
                return door.image(self.restore(self.path("rw"))[0]) == door.image(other)
            except door.SqlError:
                return False

        self.eventually(equal, what="a foreign commit shipped", every=0.2)
        proc.terminate()
        self.assertIn(proc.wait(30), (0, 143, -15))

    def test_replicate_once_or_until_terminated(self):
        proc = subprocess.Popen([door.CLI, "replicate", self.url, self.path("copy.db")], env=door.clean_env(self.dir), cwd=self.dir,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(proc.wait)
        self.addCleanup(proc.kill)

        def count():
            try:
                return door.plain_rows(self.path("copy.db"), "SELECT count(*) FROM t")[0][0]
            except Exception:
                return -1

        self.eventually(lambda: count() == 8, what="the copy")

    def test_errors(self):
        for args in (("verify", "ftp://x"), ("restore", self.path("nothing"), self.path("n.db")), ("files", self.path("nothing")),
                     ("restore", self.url, self.path("n.db"), "--txid", "99999")):
            done = self.run_cli(*args)
            self.assertNotEqual(done.returncode, 0, args)
            self.assertErrorLine(done.stderr)
        self.assertEqual(self.run_cli("frobnicate").returncode, 2)
        self.assertFalse(os.path.exists(self.path("n.db")))

    def test_completions(self):
        self.assertIn("walrust", self.ok("completions", "bash"))

    def test_speed_of_start(self):
        begin = time.monotonic()
        self.ok("--version")
        self.assertLess(time.monotonic() - begin, 2)


if __name__ == "__main__":
    unittest.main()
