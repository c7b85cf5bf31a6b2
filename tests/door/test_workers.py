"""One picture of several workers: whichever has the port of metrics_listen shows all databases of the machine, each as its shipper tells."""

import json
import os
import re
import time
import urllib.error
import urllib.request

import door


class Workers(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.port = door.free_port()
        self.env = {"WALRUST_METRICS_LISTEN": f"127.0.0.1:{self.port}"}
        os.mkdir(self.path("data"))

    def configure(self, replica=None):
        door.toml(self, f'interval = "0s"\n[[databases]]\npath = "data/*.db"\nreplica = "{replica or self.path("r")}/{{name}}"\n')

    def worker(self, *names, env=None):
        p = self.peer(env={**self.env, **(env or {})})
        for name in names:
            p.open(self.path("data", f"{name}.db"), conn=name)
            p.sql("CREATE TABLE IF NOT EXISTS t(v)", conn=name)
            p.sync(60, conn=name)
        return p

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def rows(self):
        return {os.path.basename(d["database"]): d for d in json.loads(self.get("/status.json")[1])["databases"]}

    def row(self, name, **wanted):
        """The row, once it says so."""
        def is_so():
            row = self.rows().get(f"{name}.db")
            return row if row and all((re.search(v, row[k] or "") if isinstance(v, str) else row[k] == v) for k, v in wanted.items()) else None
        return self.eventually(is_so, what=f"{name}: {wanted}, not {self.rows().get(f'{name}.db')}", every=0.2)

    def test_whoever_has_the_port_shows_all(self):
        self.configure()
        a = self.worker("a")
        b = self.worker("b", "c")
        row = self.row("b", told_by=f"^process {b.pid} of this machine$")
        self.assertEqual((row["state"], row["health"], row["lag_seconds"], row["replica"]), ("streaming", "healthy", 0, f"file://{self.path('r', 'b')}"))
        self.assertGreater(row["txid"], 0)
        self.assertEqual(set(self.rows()), {"a.db", "b.db", "c.db"})
        self.assertIsNone(self.rows()["a.db"]["told_by"])
        # Its commits are seen there, and its points.
        b.sql("INSERT INTO t VALUES(1)", conn="b")
        txid = b.sync(conn="b")
        self.row("b", replicated_txid=txid)
        question = "/points.json?database=" + urllib.request.quote(self.path("data", "b.db"))
        points = self.eventually(lambda: (lambda x: x if not x["asking"] else None)(json.loads(self.get(question)[1])), what="points")
        self.assertEqual(points["last"]["txid"], txid)
        # For programs, too.
        health = json.loads(self.get("/health")[1])
        self.assertEqual(len(health["databases"]), 3)
        text = self.get("/metrics")[1]
        self.assertRegex(text, rf'(?m)^walrust_replicated_txid\{{database="[^"]*/b\.db"\}} {txid}$')
        self.assertRegex(text, r'(?m)^walrust_state\{database="[^"]*/c\.db",state="streaming"\} 1$')
        self.assertNotRegex(text, r'walrust_uploads_total\{database="[^"]*/b\.db"\}', "who counts, tells")
        done = self.run_cli("status", "--json", env=self.env)
        told = {os.path.basename(r["database"]): r["told_by"] for r in json.loads(done.stdout)}
        self.assertEqual((done.returncode, set(told)), (0, {"a.db", "b.db", "c.db"}))
        self.assertRegex(told["b.db"], f"process {b.pid} of this machine, by way of process {a.pid} at ")
        # The other one has it when this one ends, and shows what that left.
        a.end()
        self.eventually(lambda: self.is_there() and "a.db" in self.rows(), timeout=60, what="the port is taken over")
        row = self.row("a", state="stopped")
        self.assertEqual((row["health"], row["told_by"], self.get("/health")[0]), ("healthy", "the spool", 200))
        self.assertIsNone(self.rows()["b.db"]["told_by"])

    def is_there(self):
        try:
            self.get("/health")
            return True
        except OSError:
            return False

    def test_a_standby_is_told_as_its_shipper(self):
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        self.configure("s3://bucket")
        env = {**s3.env(), "AWS_ENDPOINT_URL_S3": proxy.endpoint, "WALRUST_RETRY_BASE": "5ms", "WALRUST_RETRY_MAX": "50ms",
               "WALRUST_RETRY_BREAKER_THRESHOLD": "2", "WALRUST_RETRY_BREAKER_COOLDOWN": "1s"}
        shipper = self.worker("app", env={**env, "WALRUST_METRICS_LISTEN": ""})
        standby = self.worker("app", env=env)
        self.assertEqual(standby.status(conn="app")["state"], "standby")
        self.row("app", told_by=f"^process {shipper.pid} ", state="^streaming$")
        proxy.down = True
        shipper.sql("INSERT INTO t VALUES(1)", conn="app")
        row = self.row("app", state="^paused$", health="unhealthy")
        self.assertRegex(row["last_error"], "cannot (put|reach)")
        self.assertEqual(self.get("/health")[0], 503)
        proxy.down = False
        shipper.sync(60, conn="app")
        self.row("app", state="^streaming$", health="healthy")
        # When the shipper ends, the standby tells of itself.
        shipper.kill()
        row = self.eventually(lambda: (lambda r: r if r["told_by"] is None and r["state"] == "streaming" else None)(self.rows()["app.db"]),
                              timeout=60, what="it ships now")
        self.assertEqual(row["kind"], "source")

    def test_a_process_that_does_not_answer_is_told_by_its_spool(self):
        self.configure()
        self.worker("a")
        b = self.worker("b")
        self.row("b", told_by=f"^process {b.pid} ")
        os.kill(b.pid, 19)
        self.addCleanup(os.kill, b.pid, 18)
        row = self.row("b", told_by="^the spool$")
        self.assertEqual((row["state"], row["health"]), ("streaming", "healthy"), "as far as the spool knows")
        begun = time.monotonic()
        for _ in range(10):
            self.assertEqual(self.get("/health")[0], 200)
        self.assertLess(time.monotonic() - begun, 8, "nobody who looks waits for it")
        os.kill(b.pid, 18)
        self.row("b", told_by=f"^process {b.pid} ")

    def test_nobody_is_asked_while_nobody_looks(self):
        self.configure()
        a = self.worker("a")
        b = self.worker("b")
        time.sleep(3)
        requests = self.path("data", "b.db-walrust", "requests")
        self.assertFalse(os.path.exists(requests), "nothing was asked")
        self.row("b", told_by=f"^process {b.pid} ")
        self.assertTrue(os.path.exists(requests))
        self.eventually(lambda: os.listdir(requests) == [] or None, what="requests are taken away")
        a.end()
