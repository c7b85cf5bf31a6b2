"""Stores that refuse: keys, headers, conditions, locks; and sources of keys that hang."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import threading
import time
import unittest

import door
from test_s3 import S3Test


def error(code, message="refused"):
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


XML = {"Content-Type": "application/xml"}


class Keys(door.DoorTest):
    """Keys that are "valid" for hours, and that the store does not take any more."""

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self, auth=False)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.offered, self.revoked, self.asked, self.refused = "AKIAONE", {}, [], []
        forward, test = self.proxy.forward, self

        def store(method, path, headers, body):
            key = re.search(r"Credential=(\w+)/", headers["Authorization"])[1]
            if key in test.revoked:
                test.refused.append(time.monotonic())
                status, code = test.revoked[key]
                return status, XML, error(code)
            return forward(method, path, headers, body)

        self.proxy.forward = store

        class Agent(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                test.asked.append(test.offered)
                text = json.dumps({"AccessKeyId": test.offered, "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z"})
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        agent = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Agent)
        threading.Thread(target=agent.serve_forever, args=(0.05,), daemon=True).start()
        self.addCleanup(agent.server_close)
        self.addCleanup(agent.shutdown)
        with open(self.path("token"), "w") as f:
            f.write("t")
        self.env = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{agent.server_address[1]}/creds",
                    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": self.path("token")}

    def test_revoked_keys_are_asked_for_again(self):
        for n, refusal in enumerate([(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (403, "AccessDenied")]):
            with self.subTest(refusal):
                self.offered, self.revoked = "AKIAONE", {}
                self.asked.clear()
                p = self.peer(env=self.env).open(self.path(f"{n}.db"))
                p.watch(self.s3.url(f"app{n}", self.proxy.endpoint), interval="0s")
                p.sql("CREATE TABLE t(x)")
                p.sync()
                self.assertEqual(set(self.asked), {"AKIAONE"})
                self.revoked, self.offered = {"AKIAONE": refusal}, "AKIATWO"
                p.sql("INSERT INTO t VALUES(1)")
                self.assertEqual(p.sync(10), p.status()["txid"])
                self.assertEqual(p.status()["state"], "streaming")
                p.kill()

    def test_a_source_is_not_asked_at_each_refusal(self):
        p = self.peer(env=self.env).open(self.path("app.db"))
        p.watch(self.s3.url("app", self.proxy.endpoint), interval="0s", retry={"base": "10ms", "max": "50ms", "breaker_threshold": 1000000})
        p.sql("CREATE TABLE t(x)")
        p.sync()
        self.asked.clear()
        self.revoked = {"AKIAONE": (403, "InvalidAccessKeyId")}
        p.sql("INSERT INTO t VALUES(1)")
        began = time.monotonic()
        self.eventually(lambda: len(self.refused) > 12 or time.monotonic() - began > 8, what="refusals")
        self.assertLessEqual(len(self.asked), 1 + (time.monotonic() - began) / 5)
        self.assertGreater(len(self.refused), len(self.asked))


class Processes(door.DoorTest):
    def test_a_credential_process_that_hangs_holds_nobody_else_up(self):
        s3 = door.S3(self, auth=False)
        script, hang, pids = self.path("keys.sh"), self.path("hang"), self.path("pids")
        with open(script, "w") as f:
            # (They end so soon that each request asks anew.)
            f.write(f"""if [ -e {hang} ]; then echo $$ >>{pids}; exec sleep 100000; fi
echo '{{"Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"s","Expiration":"'$(date -u -d '+2 minutes' +%Y-%m-%dT%H:%M:%SZ)'"}}'
""")
        os.mkdir(self.path(".aws"))
        with open(self.path(".aws", "config"), "w") as f:
            f.write(f"[default]\nregion = us-east-1\ncredential_process = sh {script}\n")

        def running():
            with contextlib.suppress(FileNotFoundError), open(pids) as f:
                return [int(pid) for pid in f.read().split() if os.path.exists(f"/proc/{pid}")]
            return []

        def reap():
            for pid in running():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

        self.addCleanup(reap)
        p = self.peer()
        for name in "abcd":
            p.open(self.path(f"{name}.db"), name)
            p.watch(self.path("replica") if name == "d" else s3.url(name), name, interval="0s")
            p.sql("CREATE TABLE t(x)", conn=name)
            p.sync(conn=name)
        open(hang, "w").close()
        for name in "abc":
            p.sql("INSERT INTO t VALUES(1)", conn=name)
        self.eventually(lambda: len(running()) >= 3, what="three programs that hang")
        p.sql("INSERT INTO t VALUES(1)", conn="d")
        self.assertEqual(p.sync(10, conn="d"), p.status("d", self.path("d.db"))["txid"])
        p.kill()


class Headers(S3Test):
    EMPTY = ("AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_SKIP_SIGNATURE", "AWS_REQUEST_PAYER", "AWS_UNSIGNED_PAYLOAD", "AWS_S3_EXPRESS",
             "AWS_SERVER_SIDE_ENCRYPTION", "AWS_COPY_IF_NOT_EXISTS", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CHECKSUM_ALGORITHM",
             "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_PROFILE", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL_S3")

    def works(self, url, env):
        p = self.peer(env=env).open(self.db)
        p.watch(url, interval="0s")
        p.sql("CREATE TABLE IF NOT EXISTS t(x)")
        p.sql("INSERT INTO t VALUES(1)")
        self.assertEqual(p.sync(10), p.status()["txid"])
        p.close()
        p.end()

    def test_empty_variables_are_not_set(self):
        self.works(self.s3.url(), self.s3.env(**{name: "" for name in self.EMPTY}))

    def test_a_server_that_refuses_the_checksum_header(self):
        forward = self.proxy.forward
        for n, (status, code) in enumerate([(400, "InvalidArgument"), (501, "NotImplemented"), (403, "SignatureDoesNotMatch")]):

            def refuses(method, path, headers, body):
                if any(h.lower().startswith("x-amz-checksum") for h in headers):
                    return status, XML, error(code, "Unsupported header 'x-amz-checksum-sha256' received for this API call.")
                return forward(method, path, headers, body)

            self.proxy.forward = refuses
            for m, (parameter, env) in enumerate([("", {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}),
                                                  ("", {"AWS_CHECKSUM_ALGORITHM": "none"}), ("&checksum=none", {})]):
                with self.subTest(status=status, parameter=parameter, env=env):
                    self.db = self.path(f"{n}{m}.db")
                    self.works(self.s3.url(f"app{n}{m}", self.proxy.endpoint) + parameter, self.s3.env(**env))
            p = self.peer(env=self.s3.env()).open(self.path("refused.db"))
            with self.assertRaises(door.SqlError) as raised:
                p.watch(self.s3.url("other", self.proxy.endpoint))
                p.sql("CREATE TABLE IF NOT EXISTS t(x)")
                p.sync(2)
            self.assertIn("checksum=none", str(raised.exception) + str(p.rows("SELECT last_error FROM walrust_status")))
            p.kill()
            os.unlink(self.path("refused.db"))
            shutil.rmtree(self.path("refused.db-walrust"), ignore_errors=True)


class Conditions(S3Test):
    def refusing(self, refuse):
        """The answer to requests for which `refuse(method, path, headers)` gives one."""
        forward = self.proxy.forward

        def store(method, path, headers, body):
            answer = refuse(method, path, headers)
            return (answer[0], XML, error(answer[1])) if answer else forward(method, path, headers, body)

        self.proxy.forward = store

    def test_one_refused_put_does_not_end_the_guard(self):
        armed, puts = [], []

        def refuse(method, path, headers):
            if method == "PUT" and path.endswith(".ltx"):
                puts.append(headers.get("If-None-Match"))
                return (501, "NotImplemented") if armed and armed.pop() else None

        self.refusing(refuse)
        p = self.streaming()
        p.sync()
        armed.append(True)
        self.insert(p, 1)
        p.sync()
        self.assertFalse(armed)
        puts.clear()
        self.insert(p, 1)
        self.assertComplete(p)
        self.assertEqual(set(puts), {"*"})

    def test_a_store_that_refuses_conditions_is_streamed_to(self):
        """Whichever way it says so; where it holds to none, or to one kind only, there is no lease."""
        conditions = ("If-None-Match", "If-Match")
        forward = self.proxy.forward
        for n, (status, code, refused) in enumerate([
            (400, "InvalidArgument", conditions), (403, "AccessDenied", conditions), (405, "MethodNotAllowed", conditions),
            (501, "NotImplemented", conditions), (400, "InvalidArgument", conditions[1:]), (501, "NotImplemented", conditions[1:]),
        ]):
            with self.subTest(status=status, refused=refused):
                self.proxy.forward = forward
                self.refusing(lambda m, path, headers: (status, code) if any(headers.get(c) for c in refused) else None)
                self.db = self.path(f"{n}.db")
                p = self.peer(env=self.s3.env()).open(self.db)
                p.watch(self.s3.url(f"app{n}", self.proxy.endpoint), interval="0s")
                p.sql("CREATE TABLE t(x)")
                self.assertEqual(p.sync(10), p.status()["txid"])
                self.assertFalse(self.s3.keys(f"app{n}/walrust/lease"))
                self.assertFalse(self.s3.keys(f"app{n}/walrust/probe"))
                self.assertIn("second machine", p.rows("SELECT walrust_explain()")[0][0])
                self.assertEqual(p.status()["protection"], "none" if refused == conditions else "create-only")
                p.kill()

    def test_a_store_that_refuses_the_condition_at_the_end_of_an_upload(self):
        puts = []

        def refuse(method, path, headers):
            if method == "PUT" and path.endswith(".ltx"):
                puts.append(headers.get("If-None-Match"))
            return (501, "NotImplemented") if method == "POST" and headers.get("if-none-match") else None

        self.refusing(refuse)
        p = self.peer(env=self.s3.env()).open(self.db)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for _ in range(20):
            p.sql("INSERT INTO t(v) VALUES(randomblob(1000000))")
        p.watch(self.s3.url("app", self.proxy.endpoint), interval="0s")
        p.sync(60)
        puts.clear()
        self.insert(p, 1)
        self.assertComplete(p)
        self.assertTrue(self.s3.keys("app/walrust/lease"), "plain puts take conditions: there is a lease")
        self.assertEqual(p.status()["protection"], "lease")
        self.assertEqual(set(puts), {"*"})

    def test_who_may_not_delete_can_replicate(self):
        self.refusing(lambda method, path, headers: (403, "AccessDenied") if method == "DELETE" or "delete" in path.split("?")[-1] else None)
        p = self.streaming()
        self.insert(p, 1)
        self.assertComplete(p)
        self.assertLessEqual(len(self.s3.keys("app/walrust/probe")), 1)


@unittest.skipUnless(shutil.which("strace"), "strace makes system calls fail")
class Locks(door.DoorTest):
    def test_a_directory_without_locks(self):
        """SMB and FUSE without them: the replica is written without a lease."""
        for code in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"):
            with self.subTest(code):
                replica, lock = self.path(code), self.path(code, "walrust", ".walrust-lock")
                os.makedirs(os.path.dirname(lock))
                open(lock, "w").close()
                strace = ["strace", "-f", "-qq", "-o", self.path("trace"), "-P", lock, "-e", "trace=fcntl", "-e", f"inject=fcntl:error={code}"]
                p = self.peer(prefix=strace).open(self.path(f"{code}.db"))
                p.watch(replica, interval="0s")
                p.sql("CREATE TABLE t(x)")
                p.sql("INSERT INTO t VALUES(1)")
                self.assertEqual(p.sync(10), p.status()["txid"])
                with open(self.path("trace")) as f:
                    self.assertIn("INJECTED", f.read())
                p.close()
                p.end()
                out, _ = self.restore(replica)
                self.assertEqual(door.plain_rows(out, "SELECT x FROM t"), [(1,)])


if __name__ == "__main__":
    unittest.main()
