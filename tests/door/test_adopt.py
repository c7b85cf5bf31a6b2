"""`walrust adopt`: from a litestream.yml to a walrust.toml, with the real Litestream before and after."""

import json
import os
import subprocess
import time
import unittest

import door

SECRET = "adopt-s3cr3t-key"
door.SECRETS.add(SECRET)

FULL = """
addr: ":9099"
exec: myapp -x
access-key-id: AKIA0000
secret-access-key: adopt-s3cr3t-key
levels:
  - interval: 20s
  - interval: 4m
snapshot:
  interval: 2h
  retention: 72h
l0-retention: 10m
validation:
  interval: 6h
logging:
  level: debug
dbs:
  - path: /data/one.db
    monitor-interval: 1s
    checkpoint-interval: 1m
    replica:
      type: s3
      bucket: mybucket
      path: one
      region: eu-west-1
      endpoint: http://127.0.0.1:1
      force-path-style: true
      sync-interval: 5s
      part-size: 5MB
      no-such-key: 1
  - path: /data/two.db
    replicas:
      - url: s3://$ADOPT_BUCKET/two
        retention: 48h
      - url: s3://other/two
  - dir: /data/tenants
    pattern: "*.sqlite"
    replica:
      url: gs://tenants/all
  - path: /data/three.db
    replica:
      type: sftp
      host: example.com:22
      user: u
      password: adopt-s3cr3t-key
"""


class Adopt(door.DoorTest):
    def yml(self, text, name="litestream.yml"):
        return door.toml(self, text, name)

    def replicate(self, yml, until, env=None):
        """`litestream replicate` until the condition, then its end."""
        log = open(self.path("litestream.log"), "wb")
        self.addCleanup(log.close)
        proc = subprocess.Popen([door.LITESTREAM, "replicate", "-config", yml], stdout=log, stderr=log, cwd=self.dir, env=door.clean_env(self.dir, env))
        self.addCleanup(proc.kill)
        self.eventually(until, what="Litestream's files")
        proc.terminate()
        proc.wait(60)

    def test_litestream_writes_walrust_goes_on_litestream_restores(self):
        db, replica = self.path("app.db"), self.path("replica")
        with door.plain_connect(db) as c:
            c.execute("PRAGMA journal_mode=WAL")
            c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
            c.executemany("INSERT INTO t(v) VALUES(?)", [[f"row {n}"] for n in range(50)])
        c.close()
        yml = self.yml(f"dbs:\n  - path: {db}\n    replica:\n      type: file\n      path: {replica}\n      sync-interval: 100ms\n")
        self.replicate(yml, lambda: door.ltx_files(replica, 0))
        newest = max(f[2] for f in door.ltx_files(replica))
        done = self.run_cli("adopt", yml)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertErrorLine(done.stderr, f"newest TXID {newest:016x} ", "goes on from it")
        door.toml(self, done.stdout)
        p = self.peer().open(":memory:").open(db, conn="app")
        p.sql("INSERT INTO t(v) VALUES('by walrust')", conn="app")
        txid = p.sync(conn="app")
        self.assertGreater(txid, newest)
        self.assertEqual(p.status()["replica"], f"file://{replica}")
        p.end()
        self.litestream("restore", "-integrity-check", "full", "-o", self.path("ls.db"), f"file://{replica}")
        self.assertEqual(door.plain_rows(self.path("ls.db"), "SELECT count(*) FROM t"), [(51,)])
        # What Litestream wrote is still there: it was gone on with, not begun anew.
        out, _ = self.restore(f"file://{replica}", point=newest)
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(50,)])

    def test_each_key_is_carried_over_or_said_and_no_secret_is(self):
        done = self.run_cli("adopt", self.yml(FULL), "--offline", env={"ADOPT_BUCKET": "from-env"})
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertNotIn(SECRET, done.stdout + done.stderr)
        self.assertNotIn("AKIA0000", done.stdout + done.stderr)
        for line in ('metrics_listen = "0.0.0.0:9099"', 'levels = ["20s", "4m"]', 'snapshot_interval = "2h"', 'pitr_window = "72h"', 'validation_interval = "6h"',
                     'path = "/data/one.db"', 'interval = "5s"', 'replica = "s3://from-env/two"', 'pitr_window = "48h"', 'path = "/data/tenants/*.sqlite"',
                     'replica = "gs://tenants/all/{file}"'):
            self.assertIn(line + "\n", done.stdout)
        self.assertRegex(done.stdout, r'replica = "s3://mybucket/one\?endpoint=\S+&region=eu-west-1&path_style=true"')
        for key in ("exec", "l0-retention", "logging", "monitor-interval", "checkpoint-interval", "part-size", "no-such-key", "access-key-id",
                    "secret-access-key", "sftp"):
            self.assertRegex(done.stdout, rf"(?m)^# \* \S*{key}|# .*{key}")
        self.assertRegex(done.stdout, "AWS_ACCESS_KEY_ID")
        lines = done.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertIn('\n[[databases.mirror]]\nreplica = "s3://other/two"\n', done.stdout)
        self.assertRegex(done.stderr, r"/data/three.db: it has no replica that walrust can write")
        # It is a configuration that walrust reads.
        door.toml(self, done.stdout)
        two = self.path("two.db")
        door.plain_rows(two, "CREATE TABLE t(v)")
        door.toml(self, done.stdout.replace("/data/two.db", two))
        done = self.run_cli("config", two, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(done.stdout)
        self.assertEqual({r["name"]: r["value"] for r in rows}["pitr_window"], "48h")
        found = json.loads(self.run_cli("adopt", self.yml(FULL), "--offline", "--json", env={"ADOPT_BUCKET": "from-env"}).stdout)
        self.assertEqual(set(found), {"exit", "settings", "databases", "toml", "notes", "lacks", "replicas"})
        self.assertEqual((found["exit"], found["replicas"], len(found["lacks"])), (1, [], 1))
        self.assertEqual(found["settings"], {"metrics_listen": "0.0.0.0:9099", "levels": ["20s", "4m"], "snapshot_interval": "2h", "pitr_window": "72h",
                                             "validation_interval": "6h"})
        by_path = {d["path"]: d for d in found["databases"]}
        self.assertEqual(by_path["/data/two.db"], {"path": "/data/two.db", "replica": "s3://from-env/two", "mirrors": ["s3://other/two"], "settings": {"pitr_window": "48h"}})
        self.assertEqual((by_path["/data/one.db"]["settings"], by_path["/data/three.db"]["replica"]), ({"interval": "5s"}, None))

    def test_what_cannot_be_gone_on_with_is_said(self):
        os.makedirs(self.path("old", "generations", "0123456789abcdef", "snapshots"))
        with open(self.path("old", "generations", "0123456789abcdef", "snapshots", "00000000.snapshot.lz4"), "wb") as f:
            f.write(b"x")
        text = f"dbs:\n  - path: /d/old.db\n    replica:\n      path: {self.path('old')}\n  - path: /d/new.db\n    replica:\n      path: {self.path('new')}\n"
        done = self.run_cli("adopt", self.yml(text))
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "old.db: .*Litestream 0.3")
        self.assertRegex(done.stderr, "new.db: nothing lies there yet")
        self.assertFalse(os.path.exists(self.path("new")))
        done = self.run_cli("adopt", self.yml(text), "--json")
        said = json.loads(done.stdout)
        self.assertEqual((done.returncode, said["exit"]), (1, 1))
        old, new = said["replicas"]
        self.assertEqual((old["database"], old["replica"], old["state"], old["txid"], old["time"]), ("/d/old.db", self.path("old"), "unusable", None, None))
        self.assertErrorLine(old["message"], "Litestream 0.3")
        self.assertEqual((new["database"], new["state"], new["txid"]), ("/d/new.db", "empty", None))

    def test_bad_input(self):
        for text, said in (("", "names no database"), ("dbs: [", "no YAML"), ("- a\n- b", "names no database"), ("dbs: 7", "names no database"),
                           ("secret-access-key: [adopt-s3cr3t-key", "no YAML"), ("\x00", "no YAML|names no database")):
            done = self.run_cli("adopt", self.yml(text))
            self.assertEqual(done.returncode, 1, text)
            self.assertEqual(done.stdout, "")
            self.assertErrorLine(done.stderr, said)
        done = self.run_cli("adopt", self.path("not-there.yml"))
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "cannot read")


if __name__ == "__main__":
    unittest.main()
