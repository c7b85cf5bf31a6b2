"""A panic of walrust's, or a thread that the system refuses, ends nothing silently: the state says so, a webhook is told, and what
can go on goes on by itself.

`WALRUST_PANIC` (the extension with crash points) panics at a named point. Keys with line breaks, and an IP address where a host
name is needed, are what made object_store panic.
"""

import http.server
import json
import os
import threading
import time
import unittest

import door

INTERNAL = "internal error"
#: As in test_bad_input.py: root is refused nothing.
AS_ANOTHER = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"] if os.geteuid() == 0 else []


class Points(door.DoorTest):
    def panicking(self, point, **options):
        """A process whose walrust panics at the point."""
        self.hook = door.Hook(self)
        p = self.peer(so=door.CRASH_SO, env={"WALRUST_PANIC": point}).open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        options = {"snapshot_interval": "0", "interval": "0s", "webhooks": [{"url": self.hook.url}], **options}
        p.sql("SELECT walrust_watch(?, ?)", self.path("replica"), json.dumps(options))
        return p

    def failed(self, p):
        return self.eventually(lambda: (s := p.status()) and s["state"] == "failed" and s, what="failed", timeout=20, every=0.005)

    def assertTold(self):
        told = lambda: [e for e in self.hook.events("upload_error") if INTERNAL in e["message"]]
        self.eventually(told, what="the webhook", timeout=20)

    def assertReplicated(self, p, rows):
        p.end()
        out, _ = self.restore(self.path("replica"))
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(rows,)])

    def test_the_shipper(self):
        """In the middle of uploads: `failed` at once, and streaming again by itself, with nothing lost."""
        for point in ("ship.before-put:4", "ship.after-put:4", "ship.noted:4"):
            with self.subTest(point=point):
                self.setUp()
                p = self.panicking(point)
                rows, end = 0, time.monotonic() + 30
                while (s := p.status())["state"] != "failed" and time.monotonic() < end:
                    p.sql("INSERT INTO t VALUES (0)")
                    rows += 1
                    time.sleep(0.02)
                self.assertEqual(s["state"], "failed")
                self.assertIn(INTERNAL, s["last_error"])
                self.assertIn("again in", s["last_error"])
                self.assertTold()
                self.eventually(lambda: p.status()["state"] == "streaming", what="streaming again", timeout=30)
                p.sql("INSERT INTO t VALUES (9)")
                p.sync()
                self.assertIsNone(p.status()["last_error"])
                self.assertReplicated(p, rows + 1)

    def test_the_reading_thread(self):
        """`failed`, and not busy for ever: unwatching and watching again works, and so does a snapshot."""
        p = self.panicking("lineage.after-snapshot", sync_timeout="1s")
        s = self.failed(p)
        self.assertIn(INTERNAL, s["last_error"])
        self.assertTold()
        p.sql("INSERT INTO t VALUES (1)")
        with self.assertRaises(door.SqlError):
            p.sql("SELECT walrust_unwatch()")
        p.sql("SELECT walrust_watch(?)", self.path("replica"))
        p.sync()
        p.sql("SELECT walrust_snapshot()")
        self.assertReplicated(p, 1)


class Threads(door.DoorTest):
    @unittest.skipIf(os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), "root is refused nothing")
    def test_no_thread_can_be_started(self):
        """A limit on processes (RLIMIT_NPROC, a container's pids limit), for some seconds."""
        os.chmod(self.dir, 0o777)
        p = self.peer(prefix=AS_ANOTHER).open(self.path("app.db"))
        p.watch(self.path("replica"), snapshot_interval="0")
        p.sql("CREATE TABLE t(x)")
        p.sync()
        # (Helper threads live for some seconds.)
        self.eventually(lambda: len(os.listdir(f"/proc/{p.pid}/task")) <= 3, what="idle threads ended", timeout=20)
        limit = lambda n: p.code(
            "import resource; s, h = resource.getrlimit(resource.RLIMIT_NPROC); resource.setrlimit(resource.RLIMIT_NPROC, (args['n'] or h, h))",
            n=n,
        )
        limit(len(os.listdir(f"/proc/{p.pid}/task")))
        p.sql("INSERT INTO t VALUES (1)")
        told = self.eventually(lambda: p.status()["last_error"], what="an error that is told", timeout=10)
        self.assertIn("refuses another thread", told)
        limit(0)
        p.sql("INSERT INTO t VALUES (2)")
        p.sync(40)
        self.assertEqual(p.status()["state"], "streaming")
        p.end()
        out, _ = self.restore(self.path("replica"))
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(2,)])

    @unittest.skipIf(os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), "root is refused nothing")
    def test_no_thread_can_be_started_from_the_start(self):
        """A configured database: the application works, the status says why nothing is replicated, and later it is."""
        os.chmod(self.dir, 0o777)
        p = self.peer(prefix=AS_ANOTHER, env={"WALRUST_REPLICA": self.path("replicas", "{name}")})
        limit = lambda n: p.code(
            "import resource; s, h = resource.getrlimit(resource.RLIMIT_NPROC); resource.setrlimit(resource.RLIMIT_NPROC, (args['n'] or h, h))",
            n=n,
        )
        limit(1)
        p.open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        p.sql("INSERT INTO t VALUES (1)")
        s = self.eventually(lambda: (s := p.status()) and s["last_error"] and s, what="an error that is told", timeout=20)
        self.assertIn("thread", s["last_error"])
        limit(0)
        p.close()
        p.open(self.path("app.db"))
        p.sql("INSERT INTO t VALUES (2)")
        p.sync(40)
        p.end()
        out, _ = self.restore(self.path("replicas", "app"))
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(2,)])


class Credentials(door.DoorTest):
    """Keys that no request can carry."""

    def test_keys_that_turn_bad_and_good_again(self):
        """A token with a line break from a credentials server: `failed`, then streaming again without a word from anybody."""
        s3, bad = door.S3(self, auth=False), []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                # (Renewed five minutes before its end: every two seconds.)
                ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 302))
                body = {"AccessKeyId": s3.access_key, "SecretAccessKey": s3.secret_key, "Expiration": ends}
                body["Token"] = "tok\nen" if bad else "token"
                body = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        token = self.path("token")
        with open(token, "w") as f:
            f.write("t")
        env = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{server.server_address[1]}/creds",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": token,
        }
        p = self.peer(env=env).open(self.path("app.db"))
        p.watch(s3.url(), snapshot_interval="0")
        p.sql("CREATE TABLE t(x)")
        p.sync()
        bad.append(True)
        end = time.monotonic() + 20
        while (s := p.status())["state"] != "failed" and time.monotonic() < end:
            p.sql("INSERT INTO t VALUES (1)")
            time.sleep(0.3)
        self.assertEqual(s["state"], "failed")
        self.assertIn("line break", s["last_error"])
        bad.clear()
        p.sql("INSERT INTO t VALUES (2)")
        self.eventually(lambda: p.status()["state"] == "streaming", what="streaming again", timeout=60, every=0.3)
        p.sync()

    def test_a_line_break_at_the_end_of_a_key(self):
        """As a secret has that was made of a file."""
        s3 = door.S3(self)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
        env = {k: v + n for (k, v), n in zip(((k, s3.env()[k]) for k in names), ("\n", "\r\n", " \n"))}
        env["WALRUST_REPLICA"] = f"s3://bucket/app?endpoint={s3.endpoint}&path_style=true"
        p = self.peer(env=env).open(self.path("app.db"))
        p.sql("CREATE TABLE t(x)")
        p.sync()
        self.assertEqual(p.status()["state"], "streaming")
        p.end()
        del env["WALRUST_REPLICA"]
        done = self.run_cli("restore", s3.url(), self.path("out.db"), env=env)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_line_break_within_a_key(self):
        url = f"s3://bucket/app?endpoint=http://127.0.0.1:{door.free_port()}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            with self.subTest(name=name):
                env = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", name: "hunter\n2"}
                p = self.peer(env={**env, "WALRUST_REPLICA": url}).open(self.path("app.db"))
                p.sql("CREATE TABLE IF NOT EXISTS t(x)")
                s = p.status()
                self.assertEqual(s["state"], "failed")
                self.assertErrorLine(s["last_error"], f"{name} holds a line break")
                self.assertNotIn("hunter", s["last_error"])
                p.end()
                done = self.run_cli("restore", url, self.path("out.db"), env=env)
                self.assertEqual(done.returncode, 1)
                self.assertErrorLine(done.stderr, f"{name} holds a line break")
                self.assertFalse(os.path.exists(self.path("out.db")))
        for name, scheme in (("AZURE_STORAGE_ACCOUNT_KEY", "az"), ("GOOGLE_SERVICE_ACCOUNT", "gs")):
            done = self.run_cli("restore", f"{scheme}://x/y", self.path("out.db"), env={"AZURE_STORAGE_ACCOUNT_NAME": "a", name: "b\nc"})
            self.assertEqual(done.returncode, 1)
            self.assertErrorLine(done.stderr, f"{name} holds a line break")

    def test_an_address_where_a_name_is_needed(self):
        port = door.free_port()
        for host in ("127.0.0.1", "[::1]"):
            with self.subTest(host=host):
                url = f"s3://bucket/app?endpoint=http://{host}:{port}&path_style=false"
                env = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B"}
                p = self.peer(env={**env, "WALRUST_REPLICA": url}).open(self.path("app.db"))
                p.sql("CREATE TABLE IF NOT EXISTS t(x)")
                s = p.status()
                self.assertEqual(s["state"], "failed")
                self.assertErrorLine(s["last_error"], "IP address", "path_style")
                p.open(self.path("other.db"), "other")
                with self.assertRaisesRegex(door.SqlError, "IP address.*path_style"):
                    p.watch(url, "other")
                p.end()
                done = self.run_cli("restore", url, self.path("out.db"), env=env)
                self.assertEqual(done.returncode, 1)
                self.assertErrorLine(done.stderr, "IP address", "path_style")
                done = self.run_cli("verify", url, env=env)
                self.assertEqual(done.returncode, 3)
                self.assertErrorLine(done.stderr, "IP address")
        # Through the environment, where the URL does not know.
        env = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        done = self.run_cli("restore", "s3://bucket/app?path_style=false", self.path("out.db"), env=env)
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "IP address", "path_style")


if __name__ == "__main__":
    unittest.main()
