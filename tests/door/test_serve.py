"""`walrust serve`: the page, /health and /metrics of replicas without their process: what a replica alone can say, and nothing more."""

import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request

import door

ONLY_A_PROCESS = ("lag_seconds", "safe_until", "pending_bytes", "txid", "database_bytes", "wal_bytes", "spool_bytes", "breaker")


class Serve(door.DoorTest):
    def serve(self, target, *args, env=None):
        self.port = door.free_port()
        proc = subprocess.Popen([door.CLI, "serve", target, "--listen", f"127.0.0.1:{self.port}", *args], env=door.clean_env(self.dir, env),
                                cwd=self.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for clean in (proc.stdout.close, proc.stderr.close, proc.wait, proc.kill):
            self.addCleanup(clean)
        self.assertIn(f"http://127.0.0.1:{self.port}/", proc.stdout.readline())
        return proc

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def rows(self, state=None, count=1):
        def all_are():
            rows = json.loads(self.get("/status.json")[1])["databases"]
            return rows if len(rows) == count and all(r["state"] != "being asked" and state in (None, r["state"]) for r in rows) else None
        return self.eventually(all_are, what=f"{count} rows, {state}")

    def replica(self, name="app", where=None, labels=()):
        p, db, url = self.watched(self.path(f"{name}.db"), replica=where or self.path("r", name))
        p.sync()
        for label in labels:
            p.sql("SELECT walrust_label(?)", label)
        points = p.rows("SELECT txid FROM walrust_points")
        p.end()
        os.rename(db, db + ".gone")
        return url, [t for t, in points]

    def test_a_replica_without_its_process(self):
        url, points = self.replica(labels=("before-migration",))
        before = door.tree(url)
        proc = self.serve(url)
        row, = self.rows("readable")
        self.assertEqual((row["kind"], row["health"], row["database"], row["replica"]), ("replica", "healthy", f"file://{url}", f"file://{url}"))
        self.assertEqual({k: row[k] for k in ONLY_A_PROCESS}, dict.fromkeys(ONLY_A_PROCESS))
        seen = row["seen"]
        self.assertEqual((seen["points"], seen["labels"], seen["files"]), (len(points), 1, len(door.ltx_files(url))))
        self.assertEqual(seen["bytes"], sum(os.path.getsize(f[3]) for f in door.ltx_files(url)))
        self.assertGreaterEqual(seen["newest_age_seconds"], 0)
        said = json.loads(self.get("/points.json?database=" + urllib.request.quote(row["database"]))[1])
        self.assertEqual([p["txid"] for p in said["points"]], points)
        self.assertEqual([p["labels"] for p in said["points"]][-1], ["before-migration"])
        status, health = self.get("/health")
        self.assertEqual((status, json.loads(health)["status"]), (200, "healthy"))
        text = self.get("/metrics")[1]
        self.assertRegex(text, r'(?m)^walrust_replica_readable\{replica="file://[^"]*"\} 1$')
        self.assertRegex(text, rf"(?m)^walrust_replica_points\{{.*\}} {len(points)}$")
        with open(os.path.join(door.ROOT, "docs", "metrics.md")) as f:
            documented = set(re.findall(r"walrust_replica_\w+", f.read()))
        self.assertEqual(set(re.findall(r"(?m)^# TYPE (walrust_replica_\w+) ", text)), documented)
        for said in (text, health):
            self.assertNotRegex(said, "streaming|catching up|standby|lag|pending")
        self.assertEqual(door.tree(url), before, "nothing is written")
        proc.send_signal(signal.SIGTERM)
        self.assertEqual((proc.wait(30), proc.stderr.read()), (0, ""))

    def test_all_below_a_url_and_those_of_a_configuration(self):
        for name in ("a", "b"):
            self.replica(name)
        urls = {f"file://{self.path('r', n)}" for n in ("a", "b")}
        self.serve(self.path("r"))
        self.assertEqual({r["database"] for r in self.rows("readable", 2)}, urls)
        # The databases are on another machine: the configuration names a pattern, and one by its name.
        self.replica("alone", where=self.path("elsewhere", "alone"))
        toml = self.path("walrust.toml")
        with open(toml, "w") as f:
            f.write(f'[[databases]]\npath = "/srv/tenants/*.db"\nreplica = "{self.path("r")}/{{name}}"\n'
                    '[[databases]]\npath = "/srv/alone.db"\nreplica = "elsewhere/{name}"\n')
        self.serve(toml)
        self.assertEqual({r["database"] for r in self.rows("readable", 3)}, urls | {f"file://{self.path('elsewhere', 'alone')}"})

    def test_a_store_that_is_away_and_a_place_that_is_empty(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url("app"))
        p.sql("CREATE TABLE t(v)")
        p.sync(60)
        p.end()
        proxy.down = True
        self.serve(s3.url("app", proxy.endpoint), env={**s3.env(), "WALRUST_RETRY_MAX": "10ms"})
        row, = self.rows("cannot be read")
        self.assertEqual((row["health"], row["seen"]), ("unhealthy", None))
        self.assertErrorLine(row["last_error"])
        status, text = self.get("/health")
        self.assertEqual(status, 503)
        for secret in door.SECRETS:
            self.assertNotIn(secret, text + json.dumps(row))
        os.mkdir(self.path("empty"))
        self.serve(self.path("empty"))
        row, = self.rows("empty")
        self.assertEqual((row["health"], self.get("/health")[0]), ("unhealthy", 503))

    def test_a_check_that_is_asked_for(self):
        url, _ = self.replica()
        self.serve(url, "--verify", "1h")
        row, = self.eventually(lambda: (lambda r: r if r[0]["last_verified"] else None)(self.rows()), what="checked")
        self.assertEqual(row["state"], "readable")
        os.unlink(door.ltx_files(url)[0][3])
        self.serve(url, "--verify", "1h")
        row, = self.rows("damaged")
        self.assertIn(row["health"], ("degraded", "unhealthy"))
        self.assertIsNone(row["last_verified"])
        self.assertErrorLine(row["last_error"])

    def test_it_reads_when_somebody_looks_and_not_otherwise(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        p = self.peer(env=s3.env()).open(self.path("app.db"))
        p.watch(s3.url("app"))
        p.sql("CREATE TABLE t(v)")
        p.sync(60)
        p.end()
        self.serve(s3.url("app", proxy.endpoint), env=s3.env())
        self.assertEqual(proxy.seen, [], "nobody has looked")
        self.rows("readable")
        asked = len(proxy.seen)
        self.assertGreater(asked, 0)
        for _ in range(20):
            self.rows("readable")
            self.get("/metrics")
        self.assertEqual(len(proxy.seen), asked, "what was read just now is shown again")
        self.assertEqual({m for m, *_ in proxy.seen} - {"GET", "HEAD"}, set(), "it only reads")

    def test_mistakes(self):
        url, _ = self.replica()
        taken = door.free_port()
        with open(self.path("none.toml"), "w") as f:
            f.write('interval = "1s"\n')
        import socket
        with socket.create_server(("127.0.0.1", taken)):
            for args, words in (((url, "--listen", f"127.0.0.1:{taken}"), ("cannot listen", str(taken), "--listen")), ((url, "--verify", "soon"), ("--verify",)),
                                (("ftp://x",), ("ftp",)), ((self.path("none.toml"),), ("names no replica",)), ((self.path("missing.toml"),), ("missing.toml",))):
                with self.subTest(args=args):
                    done = self.run_cli("serve", *args)
                    self.assertEqual((done.returncode, done.stdout), (1, ""))
                    self.assertErrorLine(done.stderr, *words)
        self.assertRegex(self.run_cli("serve", "--help").stdout, re.escape("[default: 127.0.0.1:9090]"))
