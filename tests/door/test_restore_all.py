"""The command line's `restore --all`: a whole prefix."""

import json
import os
import re
import shutil

import door


class RestoreAll(door.DoorTest):
    """`restore --all URL DIR`: every database below a prefix."""

    def setUp(self):
        super().setUp()
        self.names = ["a", "b.sqlite", "deep/c", "deep/d", "e"]
        self.prefix = self.path("replicas")
        p = self.peer()
        for name in self.names:
            db = self.path(name.replace("/", "-") + ".source")
            p.open(db, conn=name)
            p.watch(os.path.join(self.prefix, name), conn=name, interval="0s")
            p.sql("CREATE TABLE t(v)", conn=name)
            p.sql("INSERT INTO t VALUES(?)", name, conn=name)
            p.sync(conn=name)
        p.end()
        self.out = self.path("out")

    def file(self, name):
        return os.path.join(self.out, name if "." in name else name + ".db")

    def whole(self, names):
        for name in names:
            self.assertEqual(door.plain_rows(self.file(name), "SELECT v FROM t"), [(name,)])

    def test_every_database_below_a_prefix(self):
        done = self.run_cli("restore", "--all", self.prefix, self.out)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        *lines, summary = done.stdout.splitlines()
        self.assertEqual(summary, "5 databases restored")
        self.assertEqual(sorted(line.split(": TXID ")[0] for line in lines), sorted(map(self.file, self.names)))
        for line in lines:
            self.assertRegex(line, r": TXID [0-9a-f]{16}$")
        self.whole(self.names)
        # What is there is refused, each with its own word, and nothing of it is changed; --if-db-not-exists leaves it; --overwrite replaces it.
        os.unlink(self.file("e"))
        kept = {k: v for k, v in door.tree(self.out).items() if k != "e.db"}
        done = self.run_cli("restore", "--all", self.prefix, self.out)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 4)
        for line in done.stderr.splitlines():
            self.assertRegex(line, r"^walrust: (a|b\.sqlite|deep/[cd]): .*overwrite")
        self.assertEqual(done.stdout.splitlines()[-1], "1 database restored, 4 failed")
        self.whole(["e"])
        self.assertEqual({k: v for k, v in door.tree(self.out).items() if k != "e.db"}, kept)
        done = self.run_cli("restore", "--all", self.prefix, self.out, "--if-db-not-exists")
        self.assertEqual((done.returncode, done.stderr, done.stdout.splitlines()[-1]), (0, "", "0 databases restored, 5 skipped"))
        done = self.run_cli("restore", "--all", self.prefix, self.out, "--overwrite", "--json")
        said = json.loads(done.stdout)
        self.assertEqual((done.returncode, said["exit"]), (0, 0))
        self.assertEqual([d["name"] for d in said["databases"]], self.names)
        self.assertTrue(all(d["txid"] > 0 and d["path"] == self.file(d["name"]) for d in said["databases"]))

    def test_dry_run_writes_nothing(self):
        done = self.run_cli("restore", "--all", self.prefix, self.out, "--dry-run")
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        *lines, summary = done.stdout.splitlines()
        self.assertEqual(summary, "5 databases would be restored (dry run: nothing was written)")
        for line in lines:
            self.assertRegex(line, r": TXID [0-9a-f]{16} of 20\S+, [\d.]+ KB; reads [\d.]+ \w+ in \d+ files? and \d+ requests?")
        said = json.loads(self.run_cli("restore", "--all", self.prefix, self.out, "--dry-run", "--json").stdout)
        self.assertTrue(all(d["dry_run"] and d["requests"] and d["files"] for d in said["databases"]))
        self.assertFalse(os.path.exists(self.out))

    def test_what_fails_of_one_stops_no_other(self):
        os.unlink(min(door.ltx_files(os.path.join(self.prefix, "b.sqlite")))[3])
        shutil.rmtree(os.path.join(self.prefix, "e", "walrust"), ignore_errors=True)
        door_file = min(door.ltx_files(os.path.join(self.prefix, "deep/c")))[3]
        with open(door_file, "r+b") as f:
            f.seek(os.path.getsize(door_file) // 2)
            f.write(b"damage!!")
        done = self.run_cli("restore", "--all", self.prefix, self.out, "--json")
        said = json.loads(done.stdout)
        self.assertEqual((done.returncode, said["exit"]), (1, 1))
        wrong = {d["name"] for d in said["databases"] if "error" in d}
        self.assertEqual(wrong, {"b.sqlite", "deep/c"})
        self.whole(set(self.names) - wrong)
        for name in wrong:
            self.assertFalse(os.path.exists(self.file(name)))

    def test_a_name_does_not_lead_out_of_the_directory(self):
        # A directory in the way that is a link to elsewhere, and a replica that SQLite would take for a's WAL.
        os.mkdir(self.out)
        os.mkdir(self.path("elsewhere"))
        os.symlink(self.path("elsewhere"), os.path.join(self.out, "deep"))
        os.rename(os.path.join(self.prefix, "e"), os.path.join(self.prefix, "a.db-wal"))
        done = self.run_cli("restore", "--all", self.prefix, self.out)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.splitlines()[-1], "2 databases restored, 3 failed")
        for name, why in (("deep/c", "symbolic link"), ("deep/d", "symbolic link"), ("a.db-wal", "part of another database")):
            self.assertRegex(done.stderr, re.compile(rf"^walrust: {re.escape(name)}: .*{why}", re.M))
        self.assertEqual(os.listdir(self.path("elsewhere")), [])
        self.assertEqual(sorted(os.listdir(self.out)), ["a.db", "b.sqlite", "deep"])

    def test_names_in_a_bucket_that_lead_out_are_refused(self):
        s3 = door.S3(self)
        p = self.peer(env=s3.env()).open(self.path("x.db"))
        p.watch(s3.url("tenants/good"), interval="0s")
        p.sql("CREATE TABLE t(v)")
        p.sync()
        p.end()
        client = s3.client("s3")
        for bad in ("tenants/../bad", "tenants/x//bad"):
            for key in s3.keys("tenants/good/"):
                client.put_object(Bucket="bucket", Key=key.replace("tenants/good", bad), Body=s3.get(key))
        before = set(os.listdir(self.dir))
        done = self.run_cli("restore", "--all", s3.url("tenants"), self.out, env=s3.env())
        self.assertEqual(door.plain_rows(self.file("good"), "SELECT count(*) FROM t"), [(0,)])
        self.assertEqual(os.listdir(self.out), ["good.db"])
        self.assertEqual(set(os.listdir(self.dir)) - before, {"out"})
        self.assertNotIn("Traceback", done.stderr)

    def test_nothing_there(self):
        nothing = self.path("nothing")
        done = self.run_cli("restore", "--all", nothing, self.out)
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "no replica lies at")
        done = self.run_cli("restore", "--all", nothing, self.out, "--if-replica-exists")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        done = self.run_cli("restore", "--all", self.prefix, self.path("a.source"))
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "is a file", "directory")
        self.assertFalse(os.path.exists(self.out))
