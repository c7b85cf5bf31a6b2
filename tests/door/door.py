"""What every door test stands on: paths, the stock sqlite3 shell, driven processes, S3, Litestream, and comparison.

The tests come in through the doors a user has (the sqlite3 shell, Debian's python3, apsw, the command line) and judge by
what a stranger could see: rows, files, HTTP requests, exit codes. Nothing here knows the inside of walrust.

WALRUST_SO      the extension under test (default dist/walrust.so)
WALRUST_ROUNDS  multiplies the counts of the campaigns (default 1; `make crash` raises it)
WALRUST_PYTHON  the Python of the driven processes (default: the one that runs the tests)
WALRUST_SHELL   the sqlite3 shell
"""

import contextlib
import errno
import hashlib
import http.client
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
SO = os.environ.get("WALRUST_SO", os.path.join(ROOT, "dist", "walrust" + SUFFIX))
CRASH_SO = os.environ.get("WALRUST_CRASH_SO", os.path.join(ROOT, "dist", "walrust-crash" + SUFFIX))
CLI = os.environ.get("WALRUST_CLI", os.path.join(ROOT, "dist", "walrust"))
SHELL = os.environ.get("WALRUST_SHELL", "sqlite3")
PYTHON = os.environ.get("WALRUST_PYTHON", sys.executable)
BIN = os.path.dirname(sys.executable)
LITESTREAM = os.path.join(BIN, "litestream")
ROUNDS = float(os.environ.get("WALRUST_ROUNDS", "1"))
SEED = int(os.environ.get("WALRUST_SEED", "20261122"))


def rounds(n):
    """How often a campaign goes round: n in `make test`, more under WALRUST_ROUNDS."""
    return max(1, int(n * ROUNDS))


class SqlError(Exception):
    """SQLite refused a statement; str() is its message."""


def clean_env(home, extra=None):
    """The environment of a child: no credentials, no settings, no configuration of whoever runs the tests."""
    env = {k: v for k, v in os.environ.items() if not re.match(r"(AWS|WALRUST|LITESTREAM|GOOGLE|AZURE)_", k)}
    env.update({"HOME": home, "TZ": "UTC", "LC_ALL": "C.UTF-8", "AWS_EC2_METADATA_DISABLED": "true"})
    env.update(extra or {})
    return {k: v for k, v in env.items() if v is not None}


def quote(value):
    """An SQL literal."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return "x'" + value.hex() + "'"
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


class Peer:
    """One process with SQLite (and, unless so=None, walrust) in it. Calls are synchronous; kill() is SIGKILL."""

    def __init__(self, test, module="sqlite3", so=SO, env=None, prefix=(), cwd=None):
        self.test = test
        argv = [*prefix, PYTHON if module == "sqlite3" else sys.executable, os.path.join(HERE, "peer.py"), module] + ([so] if so else [])
        self.errlog = tempfile.TemporaryFile(dir=test.dir)
        self.proc = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errlog, text=True,
            env=clean_env(test.dir, env), cwd=cwd or test.dir,
        )
        test.addCleanup(self.kill)
        self.sqlite_version = self._answer()

    def _answer(self):
        line = self.proc.stdout.readline()
        if not line:
            code = self.proc.wait()
            raise AssertionError(f"the process ended with status {code}: {self.stderr()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SqlError(answer["error"])
        return answer["ok"]

    def send(self, **request):
        """Send without waiting; the answer is taken with wait()."""
        self.proc.stdin.write(json.dumps(request) + "\n")
        self.proc.stdin.flush()

    def wait(self):
        return self._answer()

    def call(self, **request):
        self.send(**request)
        return self._answer()

    def open(self, path, conn="main", uri=False):
        self.call(op="open", conn=conn, path=path, uri=uri)
        return self

    def load(self, conn="main", so=SO):
        self.call(op="load", conn=conn, path=so)

    def close(self, conn="main"):
        self.call(op="close", conn=conn)

    def rows(self, sql, *params, conn="main"):
        params = [{"hex": p.hex()} if isinstance(p, bytes) else p for p in params]
        answer = self.call(op="sql", conn=conn, sql=sql, params=params)
        return [tuple(bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for v in row) for row in answer]

    def sql(self, sql, *params, conn="main"):
        """The first value of the first row, or None."""
        rows = self.rows(sql, *params, conn=conn)
        return rows[0][0] if rows and rows[0] else None

    def many(self, sql, rows, conn="main"):
        rows = [[{"hex": v.hex()} if isinstance(v, bytes) else v for v in row] for row in rows]
        self.call(op="many", conn=conn, sql=sql, rows=rows)

    def code(self, code, **args):
        return self.call(op="code", code=code, args=args)

    def watch(self, url, conn="main", **options):
        if options:
            return self.sql("SELECT walrust_watch(?, ?)", url, json.dumps(options), conn=conn)
        return self.sql("SELECT walrust_watch(?)", url, conn=conn)

    def sync(self, timeout=30, conn="main"):
        return self.sql("SELECT walrust_sync(?)", timeout, conn=conn)

    def status(self, conn="main", database=None):
        """walrust_status of the one watched database (or the named one) as a dict."""
        columns = STATUS_COLUMNS
        rows = [dict(zip(columns, r)) for r in self.rows(f"SELECT {', '.join(columns)} FROM walrust_status", conn=conn)]
        if database is not None:
            rows = [r for r in rows if os.path.realpath(r["database"]) == os.path.realpath(database)]
        return rows[0] if rows else None

    @property
    def pid(self):
        return self.proc.pid

    def kill(self):
        """SIGKILL; nothing of the process runs any more."""
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        for stream in (self.proc.stdin, self.proc.stdout):
            with contextlib.suppress(OSError):
                stream.close()

    def end(self, timeout=60):
        """Close every connection and leave, as a program does at its end. The exit status."""
        self.proc.stdin.close()
        status = self.proc.wait(timeout)
        self.proc.stdout.close()
        return status

    def rss_kb(self):
        with open(f"/proc/{self.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))

    def stderr(self):
        self.errlog.seek(0)
        return self.errlog.read().decode(errors="replace")


STATUS_COLUMNS = [
    "database", "replica", "state", "txid", "replicated_txid", "lag_seconds", "pending_bytes", "wal_bytes", "spool_bytes",
    "breaker", "last_upload", "last_error", "protection",
]
# Those of `walrust status` on the command line, which also says whether it is well, who says so, and when that was so.
STATUS_LINE_COLUMNS = [*STATUS_COLUMNS[:-1], "health", "told_by", "as_of"]
LIST_COLUMNS = ["name", "replica", "snapshots", "files", "bytes", "min_txid", "max_txid", "first_time", "last_time"]
FILES_COLUMNS = ["level", "min_txid", "max_txid", "bytes", "time", "pages", "commit_pages", "sha256", "key"]
VERIFY_COLUMNS = ["severity", "check", "file", "min_txid", "max_txid", "bytes", "message"]
CONFIG_COLUMNS = ["name", "value", "source", "default_value", "description"]


class DoorTest(unittest.TestCase):
    """A test with a directory of its own and children that never outlive it."""

    maxDiff = 4000

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="door-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        if not os.path.exists(SO):
            self.fail(f"{SO} does not exist: run `make quick` or `make loadable`")
        self.random = random.Random(f"{SEED}:{self.id()}")

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def peer(self, **kwargs):
        return Peer(self, **kwargs)

    def watched(self, db=None, replica=None, schema="CREATE TABLE t(id INTEGER PRIMARY KEY, v)", env=None, **options):
        """A process with db open and watched. Gives (peer, db, replica url)."""
        db, replica = db or self.path("app.db"), replica or self.path("replica")
        p = self.peer(env=env).open(db)
        p.watch(replica, **options)
        if schema:
            for statement in schema.split(";"):
                p.sql(statement)
        return p, db, replica

    # -- the stock shell ------------------------------------------------------------------------------------------

    def run_shell(self, script, db=":memory:", env=None, load=True, args=(), cwd=None, timeout=120):
        """Run a script in the stock sqlite3 shell. Gives the finished process: stdout, stderr, returncode."""
        text = (f".load {shell_word(SO)}\n" if load else "") + script
        return subprocess.run(
            [SHELL, "-batch", "-bail", *args, db], input=text if isinstance(text, str) else text.decode(), text=True,
            capture_output=True, env=clean_env(self.dir, env), cwd=cwd or self.dir, timeout=timeout,
        )

    def shell(self, script, db=":memory:", **kwargs):
        """The shell's output; an error in the script raises SqlError."""
        done = self.run_shell(script, db, **kwargs)
        if done.returncode != 0 or done.stderr.strip():
            raise SqlError(done.stderr.strip() or f"status {done.returncode}")
        return done.stdout.rstrip("\n")

    def run_cli(self, *args, env=None, timeout=120):
        """Run dist/walrust. Gives the finished process."""
        if not os.path.exists(CLI):
            self.fail(f"{CLI} does not exist: run `make cli`")
        return subprocess.run(
            [CLI, *args], text=True, capture_output=True, env=clean_env(self.dir, env), cwd=self.dir, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def litestream(self, *args, env=None, ok=True, timeout=120):
        done = subprocess.run(
            [LITESTREAM, *args], text=True, capture_output=True, env=clean_env(self.dir, env), cwd=self.dir, timeout=timeout
        )
        if ok and done.returncode != 0:
            self.fail(f"litestream {' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    # -- walrust, through the shell: one process a call ------------------------------------------------------------

    def restore(self, url, out=None, point=None, env=None, **options):
        """walrust_restore in a fresh process. Gives (path, TXID restored)."""
        out = out or self.path(f"restored-{self.random.getrandbits(48):x}.db")
        call = f"SELECT walrust_restore({quote(url)}, {quote(out)}, {quote(point)}, {quote(json.dumps(options))});"
        return out, int(self.shell(call, env=env))

    # -- judging ---------------------------------------------------------------------------------------------------

    def eventually(self, condition, timeout=30, what="the condition", every=0.02):
        """Poll until the condition gives something true, which is returned."""
        end = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                self.fail(f"{what}: not within {timeout} s")
            time.sleep(every)

    def assertSameBytes(self, a, b, message=""):
        """Both databases, as committed, are the same bytes (the lock page aside)."""
        x, y = image(a), image(b)
        if x != y:
            self.fail(f"{a} and {b} differ: {difference(x, y)} {message}")

    def assertSound(self, db):
        self.assertEqual(plain_rows(db, "PRAGMA integrity_check"), [("ok",)])

    def assertNamesTheHolder(self, text, holder):
        """Whose the replica is (a Peer), how long unless it renews its lease, and the way round."""
        self.assertErrorLine(text, rf"held by \S+ \(process {holder.pid}\)(; its lease ends in (1m|\d+s) unless|, which took its lease)", "takeover")

    def assertErrorLine(self, text, *fragments):
        """One line that holds every fragment and none of the secrets in use."""
        self.assertEqual(len(text.strip().splitlines()), 1, f"one line wanted: {text!r}")
        for fragment in fragments:
            self.assertRegex(text, re.compile(fragment, re.I))
        for secret in SECRETS:
            self.assertNotIn(secret, text)


SECRETS = set()


def shell_word(path):
    """A path as one argument of a dot command."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def plain_connect(path, **kwargs):
    """A connection of this process, which never loads walrust: a writer, or a judge, without the extension."""
    return sqlite3.connect(path, isolation_level=None, timeout=10, **kwargs)


def plain_rows(path, sql, params=()):
    with contextlib.closing(plain_connect(path)) as db:
        return db.execute(sql, params).fetchall()


def image(path):
    """The committed database as bytes, without disturbing it: copy db and WAL, let stock SQLite recover the copy.

    Nobody may write or checkpoint meanwhile. The lock page, which SQLite never uses, is masked.
    """
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        copy = os.path.join(scratch, "copy")
        shutil.copyfile(path, copy)
        if os.path.exists(path + "-wal"):
            shutil.copyfile(path + "-wal", copy + "-wal")
        with contextlib.closing(plain_connect(copy)) as db:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        with open(copy, "rb") as f:
            data = f.read()
    if len(data) > 0x40000000:
        size = page_size(data)
        data = data[:0x40000000] + bytes(size) + data[0x40000000 + size:]
    return data


def live_image(path):
    """The database as its open connections see it, as bytes: through the wal-index, without recovering the WAL.

    A writer that was killed between its commit frame and the wal-index leaves a commit that no connection sees, that the next
    commit overwrites, and that only a recovery of the WAL (as `image` does) would bring back.
    """
    with contextlib.closing(plain_connect(path)) as db:
        return db.serialize()


def page_size(data):
    size = int.from_bytes(data[16:18], "big")
    return 65536 if size == 1 else size


def difference(a, b):
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} bytes;"
    size = page_size(a)
    pages = [i // size + 1 for i in range(0, len(a), size) if a[i:i + size] != b[i:i + size]]
    return f"{len(pages)} pages differ, first {pages[:8]};"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def tree(directory):
    """Every file below a directory with its content's digest: to assert that nothing changed."""
    found = {}
    for base, _, names in os.walk(directory):
        for name in names:
            full = os.path.join(base, name)
            try:
                with open(full, "rb") as f:
                    found[os.path.relpath(full, directory)] = digest(f.read())
            except FileNotFoundError:
                pass  # removed while we look, by retention: it is not there
    return found


def remove_tree(directory):
    """Removes a directory whose owner may go on writing there: as often as a file comes while it is being emptied."""
    while os.path.exists(directory):
        try:
            return shutil.rmtree(directory)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def file_bytes(directory, wanted=lambda path: True):
    """The sizes of the files below a directory, summed; what is removed while we look is not there."""
    total = 0
    for base, _, names in os.walk(directory):
        for path in (os.path.join(base, n) for n in names):
            with contextlib.suppress(FileNotFoundError):
                total += os.path.getsize(path) if wanted(path) else 0
    return total


def ltx_files(replica, level=None):
    """The LTX files of a local replica, as (level, min, max, path), by level and TXID."""
    found = []
    for base, _, names in os.walk(os.path.join(replica, "ltx")):
        for name in names:
            m = re.fullmatch(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx", name)
            if m and (level is None or os.path.basename(base) == str(level)):
                found.append((int(os.path.basename(base)), int(m[1], 16), int(m[2], 16), os.path.join(base, name)))
    return sorted(found)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# -- S3 -------------------------------------------------------------------------------------------------------------------


class S3:
    """moto in its authenticating mode: signatures are checked, conditional writes are honoured. Without `auth` every key will do."""

    def __init__(self, test, bucket="bucket", auth=True, actions=("s3:*",)):
        self.test, self.bucket = test, bucket
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.log = open(os.path.join(test.dir, "moto.log"), "wb")
        test.addCleanup(self.log.close)
        self.proc = subprocess.Popen(
            [os.path.join(BIN, "moto_server"), "-H", "127.0.0.1", "-p", str(self.port)], stdout=self.log, stderr=self.log,
            env=clean_env(test.dir, {"INITIAL_NO_AUTH_ACTION_COUNT": "3"} if auth else {}),
        )
        test.addCleanup(self.stop)
        test.eventually(self._answers, what="moto")
        import boto3
        from botocore.config import Config

        self._boto3, self._config = boto3, Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
        iam = self.client("iam", "none", "none")
        iam.create_user(UserName="walrust")
        key = iam.create_access_key(UserName="walrust")["AccessKey"]
        iam.put_user_policy(
            UserName="walrust", PolicyName="s3", PolicyDocument=json.dumps(
                {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]}
            ),
        )
        self.access_key, self.secret_key = key["AccessKeyId"], key["SecretAccessKey"]
        SECRETS.add(self.secret_key)
        self.s3 = self.client("s3")
        self.s3.create_bucket(Bucket=bucket)

    def _answers(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True

    def client(self, service, access_key=None, secret_key=None):
        return self._boto3.client(
            service, endpoint_url=self.endpoint, region_name="us-east-1", config=self._config,
            aws_access_key_id=access_key or self.access_key, aws_secret_access_key=secret_key or self.secret_key,
        )

    def env(self, **extra):
        return {
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, "AWS_REGION": "us-east-1", **extra,
        }

    def url(self, path="app", endpoint=None, bucket=None):
        return f"s3://{bucket or self.bucket}/{path}?endpoint={endpoint or self.endpoint}&region=us-east-1&path_style=true"

    def keys(self, prefix=""):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(o["Key"] for page in pages for o in page.get("Contents", []))

    def get(self, key):
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def stop(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()


class FaultProxy:
    """An HTTP proxy in front of an S3 server that fails on command.

    `fault(method, path)` is asked for each request; it gives None (pass on), or
      ("status", code[, headers])  answer with this status, the request does not reach the server
      ("drop",)                    cut the connection before the request reaches the server
      ("lose",)                    let the server do it, then cut the connection: a lost answer
      ("delay", seconds)           wait, then pass on
    `down = True` refuses everything by cutting connections. Requests are recorded in `seen` as (method, path, outcome).
    """

    def __init__(self, test, target_port):
        self.target, self.fault, self.down, self.seen = target_port, None, False, []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def relay(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = ("drop",) if proxy.down else (proxy.fault(self.command, self.path) if proxy.fault else None)
                kind = fault[0] if fault else "pass"
                if kind == "drop":
                    proxy.seen.append((self.command, self.path, "dropped"))
                    return self.cut()
                if kind == "status":
                    proxy.seen.append((self.command, self.path, fault[1]))
                    return self.answer(fault[1], (fault[2] if len(fault) > 2 else {}), b"")
                if kind == "delay":
                    time.sleep(fault[1])
                try:
                    status, headers, data = proxy.forward(self.command, self.path, self.headers, body)
                except OSError:
                    proxy.seen.append((self.command, self.path, "server gone"))
                    return self.cut()
                if kind == "lose":
                    proxy.seen.append((self.command, self.path, "lost"))
                    return self.cut()
                proxy.seen.append((self.command, self.path, status))
                self.answer(status, headers, data)

            def answer(self, status, headers, data):
                self.send_response_only(status)
                length = None
                for name, value in headers.items():
                    if name.lower() == "content-length":
                        length = value
                    elif name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def cut(self):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads, allow_reuse_address = True, True

            def handle_error(self, *args):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        test.addCleanup(self.close)

    def forward(self, method, path, headers, body):
        conn = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        try:
            conn.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("connection", "expect"):
                    conn.putheader(name, value)
            conn.endheaders(body if body else None)
            answer = conn.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            conn.close()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Hook:
    """A webhook endpoint: keeps what it was sent; `answers` gives the status for the n-th request (default 200)."""

    def __init__(self, test, status=200, delay=0):
        self.requests, self.status, self.delay = [], status, delay
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if hook.delay:
                    time.sleep(hook.delay)
                status = hook.status(len(hook.requests)) if callable(hook.status) else hook.status
                hook.requests.append((dict(self.headers.items()), body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                hook.requests.append((dict(self.headers.items()), b"GET"))
                self.send_response(405)
                self.send_header("Content-Length", "0")
                self.end_headers()

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def handle_error(self, *args):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        test.addCleanup(self.server.server_close)
        test.addCleanup(self.server.shutdown)

    def events(self, name=None):
        found = [json.loads(body) for _, body in self.requests if body != b"GET"]
        return [e for e in found if name is None or e["event"] == name]


def crash_points():
    """The names in the source: crash::point("name")."""
    found = set()
    for base, _, names in os.walk(os.path.join(ROOT, "src")):
        for name in names:
            if name.endswith(".rs"):
                with open(os.path.join(base, name)) as f:
                    found |= set(re.findall(r'crash::point\("([^"]+)"\)', f.read()))
    return sorted(found)


def toml(test, text, name="walrust.toml"):
    path = test.path(name)
    with open(path, "w") as f:
        f.write(text)
    return path
