"""What it costs to read a replica in place: requests, round trips, bytes, seconds, memory; Litestream's VFS beside it.

    read.py --so EXTENSION [--megabytes 1000] [--delay-ms 20] [--keep DIRECTORY] [--walrust-only]

A database is filled, streamed into a directory, and that is served as a bucket, each request of which takes some time more. Each line
is of a process of its own. Round trips: the longest chain of requests of which each began after the one before had ended. `--keep`
keeps the replica there, and takes it if it is there.
"""

import argparse
import http.server
import json
import os
import re
import shutil
import socketserver
import sys
import threading
import time
import urllib.parse
from xml.sax.saxutils import escape

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "door"))
import door  # noqa: E402

FILL = """
PRAGMA page_size=4096;
PRAGMA journal_mode=OFF;
CREATE TABLE customers(id INTEGER PRIMARY KEY, name, pad BLOB);
CREATE TABLE products(id INTEGER PRIMARY KEY, name, pad BLOB);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, day, pad BLOB);
CREATE TABLE items(id INTEGER PRIMARY KEY, order_id INTEGER, product INTEGER, n);
CREATE TABLE shipments(id INTEGER PRIMARY KEY, order_id INTEGER, pad BLOB);
CREATE TABLE scanned(id INTEGER PRIMARY KEY, pad BLOB);
CREATE TABLE large(id INTEGER PRIMARY KEY, k INTEGER, pad BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{customers}) INSERT INTO customers SELECT i, 'customer '||i, randomblob(150) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{products}) INSERT INTO products SELECT i, 'product '||i, randomblob(200) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{orders}) INSERT INTO orders SELECT i, 1 + i*7919 % {customers}, i / 1000, randomblob(80) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{items}) INSERT INTO items SELECT i, 1 + i / 5, 1 + i*104729 % {products}, i % 9 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{orders}) INSERT INTO shipments SELECT i, 1 + i*15485863 % {orders}, randomblob(60) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<8000) INSERT INTO scanned SELECT i, randomblob(1000) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{large}) INSERT INTO large SELECT i, i*7919 % 1000003, randomblob(1000) FROM n;
CREATE INDEX items_order ON items(order_id);
CREATE INDEX shipments_order ON shipments(order_id);
CREATE INDEX large_k ON large(k);
"""

JOIN = """SELECT o.id, c.name, p.name, i.n, length(s.pad) FROM orders o JOIN customers c ON c.id = o.customer
JOIN items i ON i.order_id = o.id JOIN products p ON p.id = i.product JOIN shipments s ON s.order_id = o.id WHERE o.id = ?"""


def sizes(megabytes):
    """Rows of each table: a third of it all in the tables that are joined."""
    unit = megabytes * 1000
    return {"customers": unit // 5, "products": unit // 10, "orders": unit * 2 // 3, "items": unit * 3, "shipments": unit * 2 // 3,
            "large": max(1000, unit * 11 // 20 - 8000)}


class Bench(door.DoorTest):
    def runTest(self):
        pass


class Bucket:
    """A directory replica as an S3 bucket that is only read; each request takes `delay` seconds more."""

    def __init__(self, folder, delay):
        self.folder, self.delay, self.seen, self.lock = folder, delay, [], threading.Lock()
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def log_message(self, *args):
                pass

            def do_GET(self):
                begin = time.monotonic()
                time.sleep(bucket.delay)
                status, headers, body = bucket.answer(self.path, self.headers.get("Range"))
                with bucket.lock:
                    bucket.seen.append((begin, time.monotonic(), self.path, len(body), self.headers.get("Range")))
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads, allow_reuse_address, request_queue_size = True, True, 128

            def handle_error(self, *args):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def keys(self):
        for at, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(at, name)
                key = os.path.relpath(path, self.folder)
                if not name.startswith("."):
                    yield re.sub(r"^ltx/(\d)/", r"000\1/", key), path

    def answer(self, target, span):
        path, _, query = target.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if "list-type" in query:
            prefix, after = query.get("prefix", ""), query.get("start-after") or query.get("continuation-token") or ""
            found = sorted(("app/" + k, p) for k, p in self.keys())
            found = [(k, p) for k, p in found if k.startswith(prefix) and k > after]
            found, more = found[:1000], len(found) > 1000
            rows = "".join(
                f"<Contents><Key>{escape(k)}</Key><LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(os.path.getmtime(p)))}"
                f"</LastModified><ETag>&quot;{os.path.getsize(p):032x}&quot;</ETag><Size>{os.path.getsize(p)}</Size></Contents>" for k, p in found)
            token = f"<NextContinuationToken>{escape(found[-1][0])}</NextContinuationToken>" if more else ""
            return 200, {"Content-Type": "application/xml"}, (
                f"<?xml version=\"1.0\"?><ListBucketResult><Name>bucket</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
                f"<MaxKeys>1000</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>").encode()
        key = urllib.parse.unquote(path).removeprefix("/bucket/app/")
        at = os.path.join(self.folder, re.sub(r"^000(\d)/", r"ltx/\1/", key))
        try:
            with open(at, "rb") as f:
                size, from_, to = os.path.getsize(at), 0, None
                if span:
                    first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
                    from_, to = (int(first), min(int(last), size - 1) if last else size - 1) if first else (max(0, size - int(last)), size - 1)
                    if from_ >= size:
                        return 416, {"Content-Range": f"bytes */{size}"}, b""
                f.seek(from_)
                body = f.read(size if to is None else to - from_ + 1)
        except OSError:
            return 404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
        headers = {"ETag": f'"{size:032x}"', "Accept-Ranges": "bytes",
                   "Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(os.path.getmtime(at)))}
        if span:
            headers["Content-Range"] = f"bytes {from_}-{from_ + len(body) - 1}/{size}"
        return 206 if span else 200, headers, body

    def url(self):
        return f"s3://bucket/app?endpoint={self.endpoint}&region=us-east-1&path_style=true"


def round_trips(seen):
    """The longest chain of requests that followed one another."""
    n, end = 0, 0.0
    for begin, ended, *_ in sorted(seen, key=lambda s: s[1]):
        if begin >= end:
            n, end = n + 1, ended
    return n


def most_at_once(seen):
    events = sorted([(s[0], 1) for s in seen] + [(s[1], -1) for s in seen])
    most = now = 0
    for _, step in events:
        now += step
        most = max(most, now)
    return most


ENV = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class Reader:
    """A process that reads, by one way or the other."""

    def __init__(self, test, bucket, way, env=None):
        self.bucket, self.way = bucket, way
        if way == "litestream":
            url = f"s3://bucket/app?endpoint={bucket.endpoint}&region=us-east-1&forcePathStyle=true"
            self.peer = test.peer(so=None, env={**ENV, "LITESTREAM_REPLICA_URL": url})
            self.peer.open(":memory:")
            self.peer.code("import litestream_vfs\nlitestream_vfs.load(conns['main'])")
        else:
            self.peer = test.peer(env={**ENV, **(env or {})})
            self.peer.open(":memory:")
        # (Without what is mapped from files: the extension's own code.)
        self.before = self.memory()

    def memory(self):
        """Kilobytes that are this process's own."""
        with open(f"/proc/{self.peer.pid}/status") as f:
            return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1))

    def open(self):
        if self.way == "litestream":
            self.peer.open("file:any.db?vfs=litestream", "r", uri=True)
        else:
            self.peer.open(self.bucket.url(), "r")

    def sql(self, sql, *params):
        return self.peer.rows(sql, *params, conn="r")

    def step(self, what, run, show=True):
        first, begin = len(self.bucket.seen), time.monotonic()
        result = run()
        took = time.monotonic() - begin
        time.sleep(0.05)
        seen = self.bucket.seen[first:]
        fetched = sum(s[3] for s in seen)
        if show:
            print(f"  {self.way:<10} {what:<34} {len(seen):5} requests {round_trips(seen):4} round trips {fetched / 1e6:8.3f} MB "
                  f"{took * 1000:8.0f} ms   at once {most_at_once(seen):2}   +{(self.memory() - self.before) / 1024:.1f} MB", flush=True)
            if os.environ.get("READ_VERBOSE"):
                at = seen[0][0] if seen else 0
                for b, e, path, size, span in seen:
                    print(f"      {1000 * (b - at):7.1f} {1000 * (e - at):7.1f} {path.partition('?')[0][-44:]} {span or ''} {size}")
        return result


def campaign(test, bucket, way, n):
    r = Reader(test, bucket, way)
    middle = n["large"] // 2

    def first():
        r.open()
        return r.sql("SELECT id, length(pad) FROM large WHERE id = ?", middle)

    got = r.step("open and a look-up, cold", first)
    assert got == [(middle, 1000)], got
    r.step("a look-up in the same table", lambda: r.sql("SELECT length(pad) FROM large WHERE id = ?", middle + 40000))
    r.step("look-ups in 10 places", lambda: [r.sql("SELECT length(pad) FROM large WHERE id = ?", 1 + i * (n["large"] // 11)) for i in range(10)])
    r.step("look-ups by an index in 10 places", lambda: [r.sql("SELECT length(pad) FROM large WHERE k = ?", i * 7919 * (n["large"] // 11) % 1000003) for i in range(1, 11)])
    r.peer.kill()
    for what, run in (
        ("a scan of 8.4 MB", lambda: r.sql("SELECT sum(length(pad)) FROM scanned")),
        ("a join of 5 tables by keys", lambda: r.sql(JOIN, n["orders"] // 2)),
        ("an aggregate by an index", lambda: r.sql("SELECT count(*), max(k) FROM large WHERE k BETWEEN 5000 AND 9000")),
        ("200 rows by an index", lambda: r.sql("SELECT sum(length(pad)) FROM (SELECT pad FROM large WHERE k > 700000 ORDER BY k LIMIT 200)")),
        ("the last 2 MB of a table, descending", lambda: r.sql("SELECT sum(length(pad)) FROM (SELECT pad FROM large ORDER BY id DESC LIMIT 2000)")),
    ):
        r = Reader(test, bucket, way)
        r.open()
        r.sql("SELECT count(*) FROM sqlite_master")
        r.step(what, run)
        r.peer.kill()


def fill(test, folder, megabytes, n):
    db = test.path("app.db")
    p = test.peer(so=None).open(db)
    for statement in FILL.format(**n).strip().split(";\n"):
        p.sql(statement.rstrip(";"))
    p.close()
    p.kill()
    p = test.peer().open(db)
    p.watch(folder, interval="0s")
    p.sync(600)
    for i in range(40):
        p.sql("UPDATE large SET k = k + 1 WHERE id % 1000 = ?", i)
        p.sync(60)
    p.close()
    p.end()
    with open(os.path.join(folder, "sizes.json"), "w") as f:
        json.dump(n, f)
    os.remove(db)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--keep")
    parser.add_argument("--walrust-only", action="store_true")
    args = parser.parse_args()
    door.SO = os.path.abspath(args.so)
    test = Bench()
    test.setUp()
    try:
        folder = os.path.abspath(args.keep) if args.keep else test.path("replica")
        n = sizes(args.megabytes)
        if not os.path.exists(os.path.join(folder, "sizes.json")):
            shutil.rmtree(folder, ignore_errors=True)
            fill(test, folder, args.megabytes, n)
        with open(os.path.join(folder, "sizes.json")) as f:
            n = json.load(f)
        bucket = Bucket(folder, args.delay_ms / 1000)
        held = sum(os.path.getsize(p) for _, p in bucket.keys())
        print(f"{held / 1e6:.0f} MB of replica, {len(list(bucket.keys()))} objects, {args.delay_ms:.0f} ms a request:", flush=True)
        for way in ["walrust"] + ([] if args.walrust_only else ["litestream"]):
            campaign(test, bucket, way, n)
    finally:
        test.doCleanups()


if __name__ == "__main__":
    main()
