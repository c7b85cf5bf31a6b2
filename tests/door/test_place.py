"""What is said of a place that holds no replica, or not as its kind of store has it: "nothing is here" only if nothing is, and a
store says so. Whoever believes that there is no backup begins empty."""

import http.server
import json
import os
import shutil
import socketserver
import threading
import unittest

import door

CONTAINER = ("restore", "--if-replica-exists", "--if-db-not-exists")


class PlaceTest(door.DoorTest):
    env = None

    def setUp(self):
        super().setUp()
        self.out = self.path("out.db")

    def container(self, url):
        return self.run_cli(*CONTAINER, url, self.out, env=self.env)

    def assertStartsEmpty(self, url):
        done = self.container(url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("holds no replica", done.stdout)

    def assertNotTakenForEmpty(self, url, *fragments):
        """Neither by a container's start nor by whoever restores plainly; and nothing appears."""
        for done in (self.container(url), self.run_cli("restore", url, self.out, env=self.env)):
            self.assertEqual((done.returncode, done.stdout), (1, ""), done.stdout + done.stderr)
            self.assertErrorLine(done.stderr, *fragments)
        self.assertFalse(os.path.exists(self.out))

    def assertUnjudged(self, url, *fragments):
        done = self.run_cli("verify", url, env=self.env)
        self.assertEqual(done.returncode, 3, done.stdout + done.stderr)
        self.assertErrorLine(done.stderr, *fragments)

    def history(self, replica, db="app.db", n=5, env=None, **options):
        p, db, url = self.watched(self.path(db), replica, env=env, interval="0s", **options)
        for i in range(n):
            p.sql("INSERT INTO t VALUES(?, randomblob(500))", i)
            txid = p.sync()
        p.end()
        return db, txid


class Directories(PlaceTest):
    def test_nothing_is_nothing(self):
        os.mkdir(self.path("empty"))
        os.makedirs(self.path("folders", "ltx", "0"))
        for name in ("absent", "empty", "folders"):
            self.assertStartsEmpty(self.path(name))

    def test_what_a_start_left_that_never_shipped_is_nothing(self):
        os.makedirs(self.path("begun", "walrust"))
        with open(self.path("begun", "walrust", "lease.json"), "w") as f:
            f.write("{}")
        self.assertStartsEmpty(self.path("begun"))

    def test_litestream_03(self):
        old = self.path("old", "generations", "0123456789abcdef", "snapshots")
        os.makedirs(old)
        with open(os.path.join(old, "00000000.snapshot.lz4"), "wb") as f:
            f.write(b"x")
        url = self.path("old")
        self.assertNotTakenForEmpty(url, r"Litestream 0\.3")
        self.assertUnjudged(url, r"Litestream 0\.3")
        done = self.run_cli("list", url)
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, r"Litestream 0\.3")
        p = self.peer().open(self.path("app.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.watch(url)
        self.assertErrorLine(str(caught.exception), "walrust_watch", r"Litestream 0\.3")
        self.assertEqual(list(door.tree(url)), ["generations/0123456789abcdef/snapshots/00000000.snapshot.lz4"])

    def test_one_folder_too_high_or_too_deep(self):
        self.history(self.path("all", "tenants", "one"))
        self.assertNotTakenForEmpty(self.path("all"), "tenants/one", "name one")
        self.assertNotTakenForEmpty(self.path("all", "tenants"), '"one"')
        self.assertIn("tenants/one", self.run_cli("list", self.path("all")).stdout)
        replica = self.path("all", "tenants", "one")
        for inside in ("ltx", "ltx/0", "ltx/9", "ltx/3", "walrust"):
            url = os.path.join(replica, inside)
            os.makedirs(url, exist_ok=True)
            before = door.tree(replica)
            self.assertNotTakenForEmpty(url, "within a replica")
            p = self.peer().open(self.path(f"{inside.replace('/', '-')}.db"))
            with self.assertRaises(door.SqlError) as caught:
                p.watch(url)
            self.assertErrorLine(str(caught.exception), "within a replica")
            p.kill()
            self.assertEqual(door.tree(replica), before)

    def test_something_else(self):
        os.mkdir(self.path("photos"))
        with open(self.path("photos", "cat.jpg"), "wb") as f:
            f.write(b"x")
        self.assertNotTakenForEmpty(self.path("photos"), "cat.jpg")
        self.assertEqual(self.run_cli("list", self.path("photos"), "--json").stdout.strip(), "[]")

    def test_a_manifest_whose_files_are_gone(self):
        self.history(self.path("replica"))
        shutil.rmtree(self.path("replica", "ltx"))
        self.assertNotTakenForEmpty(self.path("replica"), "manifest names")

    def test_a_file_where_the_directory_should_be(self):
        with open(self.path("file"), "w") as f:
            f.write("x")
        self.assertNotTakenForEmpty(self.path("file"))

    def as_in_a_bucket(self, replica, copy):
        """What `aws s3 sync` brings from a bucket."""
        shutil.copytree(replica, copy)
        for level in os.listdir(os.path.join(copy, "ltx")):
            os.rename(os.path.join(copy, "ltx", level), os.path.join(copy, f"{int(level):04x}"))
        os.rmdir(os.path.join(copy, "ltx"))

    def test_a_bucket_copied_to_a_disk_is_read(self):
        db, txid = self.history(self.path("replica"))
        copy = self.path("copy")
        self.as_in_a_bucket(self.path("replica"), copy)
        before = door.tree(copy)
        done = self.container(copy)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertSameBytes(db, self.out)
        self.assertEqual(self.restore(copy)[1], txid)
        self.assertEqual(self.restore(copy, point=txid - 1)[1], txid - 1)
        for mode in ("quick", "deep"):
            self.assertIn("Exit code: 0", self.run_cli("verify", copy, "--mode", mode).stdout)
        [row] = json.loads(self.run_cli("list", copy, "--json").stdout)
        self.assertEqual((row["name"], row["max_txid"]), ("copy", txid))
        self.assertEqual(len(json.loads(self.run_cli("files", copy, "--json").stdout)), len([k for k in before if k.endswith(".ltx")]))
        p = self.peer().open(":memory:")
        self.assertRegex(p.sql("SELECT walrust_replicate(?, ?)", copy, self.path("follows.db")), f"TXID {txid:016x}")
        # A stream begun there would be a second history beside it.
        p.open(self.path("new.db"), "new")
        with self.assertRaises(door.SqlError) as caught:
            p.watch(copy, conn="new")
        self.assertErrorLine(str(caught.exception), "walrust_watch", "another kind of store", "nothing was written")
        with self.assertRaises(door.SqlError):
            p.watch(copy, conn="new", takeover=True)
        q = self.peer(env={"WALRUST_REPLICA": copy}).open(self.path("configured.db"))
        q.sql("CREATE TABLE t(x)")
        told = lambda: "another kind of store" in (q.status()["last_error"] or "")
        self.eventually(told, what="the refusal in the status")
        q.kill()
        self.assertEqual(door.tree(copy), before)

    def test_a_copy_of_a_bucket_that_goes_on_is_followed(self):
        db, txid = self.history(self.path("replica"), n=2)
        copy = self.path("copy")
        self.as_in_a_bucket(self.path("replica"), copy)
        p = self.peer().open(":memory:")
        p.sql("SELECT walrust_replicate(?, ?, '{\"interval\":\"50ms\"}')", copy, self.path("follows.db"))
        q, _, _ = self.watched(db, self.path("replica"), schema="")
        q.sql("INSERT INTO t VALUES(100, 'later')")
        later = q.sync()
        q.end()
        shutil.rmtree(copy)
        self.as_in_a_bucket(self.path("replica"), copy)
        self.eventually(lambda: p.status()["txid"] == later, what="the follower")


class Buckets(PlaceTest):
    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.env = self.s3.env()

    def upload(self, directory, prefix):
        for base, _, names in os.walk(directory):
            for name in names:
                full = os.path.join(base, name)
                self.s3.s3.upload_file(full, self.s3.bucket, prefix + os.path.relpath(full, directory))

    def test_a_directory_uploaded_to_a_bucket_is_read(self):
        db, txid = self.history(self.path("replica"))
        self.upload(self.path("replica"), "up/")
        url, before = self.s3.url("up"), self.s3.keys("up/")
        done = self.container(url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertSameBytes(db, self.out)
        self.assertIn("Exit code: 0", self.run_cli("verify", url, env=self.env).stdout)
        self.assertIn(str(txid), self.run_cli("list", url, "--json", env=self.env).stdout)
        p = self.peer(env=self.env).open(self.path("new.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.watch(url)
        self.assertErrorLine(str(caught.exception), "another kind of store")
        self.assertEqual(self.s3.keys("up/"), before)

    def test_wrong_prefixes(self):
        self.history(self.s3.url("app"), env=self.env)
        self.assertNotTakenForEmpty(self.s3.url(""), '"app"')
        for inside in ("app/0000", "app/0003", "app/walrust"):
            self.assertNotTakenForEmpty(self.s3.url(inside), "within a replica", r"s3://bucket/app\?")
        for nothing in ("App", "ap", "app2", "app%20", "x/app"):
            self.assertStartsEmpty(self.s3.url(nothing))
        self.s3.s3.put_object(Bucket=self.s3.bucket, Key="old/generations/0123456789abcdef/wal/00000000.wal.lz4", Body=b"x")
        self.assertNotTakenForEmpty(self.s3.url("old"), r"Litestream 0\.3")
        self.s3.s3.put_object(Bucket=self.s3.bucket, Key="foreign/a.txt", Body=b"x")
        self.assertNotTakenForEmpty(self.s3.url("foreign"), "a.txt")
        # What consoles make for an empty folder.
        self.s3.s3.put_object(Bucket=self.s3.bucket, Key="folder/", Body=b"")
        self.assertStartsEmpty(self.s3.url("folder"))


class Web:
    """Something that answers HTTP 200, and is no store."""

    def __init__(self, test, body, **headers):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                data = body.encode()
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        test.addCleanup(server.server_close)
        test.addCleanup(server.shutdown)


PAGE = "<!doctype html><html><head><title>Console</title></head><body>Sign in</body></html>"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
ANSWERS = [
    ("a page", PAGE, "a web page"),
    ("a page as XHTML", XML + '<html xmlns="http://www.w3.org/1999/xhtml"><body/></html>', "a web page"),
    ("a list of buckets", XML + "<ListAllMyBucketsResult><Buckets></Buckets></ListAllMyBucketsResult>", "ListAllMyBucketsResult"),
    ("another bucket", XML + "<ListBucketResult><Name>other</Name><Prefix></Prefix></ListBucketResult>", "another bucket"),
    ("another place", XML + "<ListBucketResult><Name>bucket</Name><Prefix>else/</Prefix></ListBucketResult>", "another place"),
    ("Azure's", XML + "<EnumerationResults><Blobs></Blobs></EnumerationResults>", "EnumerationResults"),
    ("JSON", '{"ok":true}', "no XML"),
    ("nothing", "", "empty"),
]


class NoStore(PlaceTest):
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "aGVsbG8="}

    def test_a_page_is_not_an_empty_replica(self):
        for name, body, word in ANSWERS:
            with self.subTest(name):
                web = Web(self, body, Content_Type="text/html", ETag='"page"')
                url = f"s3://bucket/app?endpoint={web.endpoint}&region=us-east-1&path_style=true"
                self.assertNotTakenForEmpty(url, word, web.endpoint)
                self.assertUnjudged(url, word)
                done = self.run_cli("list", url, env=self.env)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertErrorLine(done.stderr, word)
                p = self.peer(env=self.env).open(":memory:")
                for sql in ("SELECT * FROM walrust_list(?)", "SELECT * FROM walrust_files(?)", "SELECT walrust_replicate(?, 'copy.db')"):
                    with self.assertRaises(door.SqlError) as caught:
                        p.rows(sql, url)
                    self.assertErrorLine(str(caught.exception), word)
                p.kill()


class Interrupted(PlaceTest):
    """A page in place of the store for some seconds, in the midst of a stream."""

    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.env = self.s3.env()
        self.proxy = door.FaultProxy(self, self.s3.port)

    def test_a_page_is_no_rival(self):
        cases = [
            (("GET", "HEAD", "PUT", "POST", "DELETE"), {}),
            (("GET", "HEAD", "PUT", "POST", "DELETE"), {"ETag": '"page"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}),
            (("PUT",), {}),
            (("PUT", "HEAD"), {}),
            (("GET", "HEAD"), {}),
        ]
        for n, (methods, headers) in enumerate(cases):
            with self.subTest(methods=methods, headers=headers):
                p = self.peer(env=self.env).open(self.path(f"{n}.db"))
                p.watch(self.s3.url(f"r{n}", self.proxy.endpoint), interval="0s", retry={"base": "10ms", "max": "200ms"})
                p.sql("CREATE TABLE t(x)")
                p.sync()
                through = self.proxy.forward

                def page(method, *request):
                    if method not in methods:
                        return through(method, *request)
                    return 200, {"Content-Type": "text/html; charset=utf-8", **headers}, PAGE.encode()

                self.proxy.forward = page
                with self.assertRaises(door.SqlError):
                    p.sql("INSERT INTO t VALUES(1)")
                    p.sync(2)
                    raise door.SqlError("only reads were answered wrongly")
                self.assertNotEqual(p.status()["state"], "fenced")
                self.proxy.forward = through
                txid = p.sync(60)
                self.eventually(lambda: p.status()["state"] == "streaming", what="the stream")
                self.assertEqual(self.restore(self.s3.url(f"r{n}"), env=self.env)[1], txid)
                p.end()


if __name__ == "__main__":
    unittest.main()
