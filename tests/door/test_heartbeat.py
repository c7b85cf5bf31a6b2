"""The dead man's switch, heard by a real HTTP server; and the address that a process leaves to whoever comes after it."""

import http.server
import os
import re
import socketserver
import threading
import time
import urllib.request

import door


class Listener:
    """An HTTP server that notes when it was asked for what."""

    def __init__(self, test, status=200):
        self.seen, self.status = [], status
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self):
                listener.seen.append((time.monotonic(), self.command, self.path))
                self.send_response(listener.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = do_HEAD = answer

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/ping/s3cr3t-capability?x=1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        test.addCleanup(self.server.server_close)
        test.addCleanup(self.server.shutdown)

    def since(self, at):
        return [s for s in self.seen if s[0] >= at]


class Heartbeat(door.DoorTest):
    def test_it_is_asked_while_all_is_in_the_replica(self):
        s3, ear = door.S3(self), Listener(self)
        proxy = door.FaultProxy(self, s3.port)
        env = s3.env(WALRUST_HEARTBEAT_URL=ear.url, WALRUST_HEARTBEAT_INTERVAL="300ms")
        p = self.peer(env=env).open(self.path("app.db"))
        time.sleep(1)
        self.assertEqual(ear.seen, [], "nothing is watched: nothing can be said of it")
        retry = {"base": "5ms", "max": "100ms", "breaker_threshold": 3, "breaker_cooldown": "500ms"}
        p.watch(s3.url("app", proxy.endpoint), interval="0s", retry=retry)
        p.sql("CREATE TABLE t(v)")
        p.sync()
        begun = time.monotonic()
        self.eventually(lambda: len(ear.since(begun)) >= 4, timeout=15, what="four beats")
        self.assertLess(time.monotonic() - begun, 10)
        self.assertEqual({s[1:] for s in ear.seen}, {("GET", "/ping/s3cr3t-capability?x=1")})
        # The store is away, and something is committed that it does not have.
        proxy.down = True
        p.sql("INSERT INTO t VALUES(1)")
        self.eventually(lambda: p.status()["state"] == "paused", what="paused")
        time.sleep(1.5)
        quiet = time.monotonic()
        time.sleep(2)
        self.assertEqual(ear.since(quiet), [], "silence is what is heard")
        proxy.down = False
        p.sync()
        back = time.monotonic()
        self.eventually(lambda: len(ear.since(back)) >= 2, timeout=15, what="it begins again")
        # One database that is in trouble is enough.
        p.open(self.path("other.db"), conn="other")
        p.watch(s3.url("other", proxy.endpoint), conn="other", interval="0s", retry=retry)
        p.sql("CREATE TABLE t(v)", conn="other")
        p.sync(conn="other")
        proxy.fault = lambda method, path: ("status", 403) if "/other/" in path and method == "PUT" else None
        p.sql("INSERT INTO t VALUES(1)", conn="other")
        self.eventually(lambda: p.status(database=self.path("other.db"))["state"] == "failed", what="failed")
        time.sleep(1.5)
        quiet = time.monotonic()
        time.sleep(1.5)
        self.assertEqual(ear.since(quiet), [])
        # What nobody may read is read nowhere.
        shown = str(p.rows("SELECT * FROM walrust_config")) + p.stderr()
        self.assertNotIn("s3cr3t-capability", shown)

    def test_who_does_not_listen_delays_nothing_and_is_told_once(self):
        ear = Listener(self, status=500)
        env = {"WALRUST_HEARTBEAT_URL": ear.url, "WALRUST_HEARTBEAT_INTERVAL": "200ms", "WALRUST_LOG": "warn"}
        script = "\n".join([
            ".log stderr", "PRAGMA journal_mode=WAL;", f"SELECT walrust_watch({door.quote(self.path('r'))});", "CREATE TABLE t(v);",
            *(f"INSERT INTO t VALUES({n}); SELECT walrust_sync();" for n in range(30)), ".shell sleep 2",
        ])
        done = self.run_shell(script, self.path("app.db"), env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(len(ear.seen), 3)
        said = [line for line in done.stderr.splitlines() if "heartbeat" in line]
        self.assertEqual(len(said), 1, done.stderr)
        self.assertErrorLine(said[0], "heartbeat_url http://127.0.0.1", "answered 500")
        self.assertNotIn("s3cr3t-capability", done.stderr)

    def test_a_bad_url_is_an_error_that_keeps_the_secret(self):
        for url, said in (("ping.example/s3cr3t-capability", "unreadable"), ("ftp://ping.example/s3cr3t-capability", "http or https")):
            p = self.peer(env={"WALRUST_HEARTBEAT_URL": url}).open(self.path("app.db"))
            with self.assertRaises(door.SqlError) as caught:
                p.watch(self.path("r"))
            self.assertErrorLine(str(caught.exception), "WALRUST_HEARTBEAT_URL", said)
            self.assertNotIn("s3cr3t-capability", str(caught.exception))
            self.assertFalse(os.path.exists(self.path("r")))


class Address(door.DoorTest):
    def test_a_forked_child_does_not_keep_the_address(self):
        """A program forks a worker that lives on, and ends: the next start listens at once, as the worker never did."""
        port = door.free_port()
        env = {"WALRUST_METRICS_LISTEN": f"127.0.0.1:{port}"}
        p = self.peer(env=env).open(self.path("app.db"))
        p.watch(self.path("r"))
        p.sql("CREATE TABLE t(v)")
        p.sync()
        # The child closes what it has of the pipes, and sleeps.
        child = p.code("""
import os, time
pid = os.fork()
if pid == 0:
    for fd in (0, 1, 2):
        os.close(fd)
    time.sleep(60)
    os._exit(0)
result = pid
""")
        self.addCleanup(kill, child)
        self.assertTrue(self.answers(port))
        p.kill()
        os.kill(child, 0)
        q = self.peer(env=env).open(self.path("next.db"))
        q.watch(self.path("r2"))
        self.eventually(lambda: self.answers(port), timeout=4.5, what="the next process listens, and not with its second try")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status.json", timeout=5) as answer:
            self.assertRegex(answer.read().decode(), re.escape(f'"pid":{q.pid}'))

    def test_a_descriptor_that_the_program_uses_again_is_left_alone(self):
        """A daemon closes all descriptors that it does not know, ours among them, and opens files: a fork closes none of those."""
        port = door.free_port()
        p = self.peer(env={"WALRUST_METRICS_LISTEN": f"127.0.0.1:{port}"}).open(self.path("app.db"))
        p.watch(self.path("r"))
        self.assertTrue(self.answers(port))
        left = p.code("""
import os, socket, time
def is_listening(fd):
    try:
        s = socket.socket(fileno=os.dup(fd))
        return s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    except OSError:
        return False
[fd] = [int(n) for n in os.listdir('/proc/self/fd') if is_listening(int(n))]
mine = os.open(args['path'], os.O_CREAT | os.O_RDWR)
os.dup2(mine, fd)
pid = os.fork()
if pid == 0:
    try:
        os.fstat(fd)
        os._exit(0)
    except OSError:
        os._exit(1)
result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""", path=self.path("mine"))
        self.assertEqual(left, 0, "the program's file is open in the child")
        p.kill()

    def answers(self, port):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


def kill(pid):
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
