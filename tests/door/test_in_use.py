"""A restore never replaces a file that somebody has open: in this process or another, in any mode, whatever it has done so far."""

import contextlib
import http.server
import os
import socketserver
import sqlite3
import subprocess
import threading
import time
import unittest
import urllib.parse

import door

SIDECARS = ("", "-wal", "-journal")


class InUse(door.DoorTest):
    def setUp(self):
        super().setUp()
        src, _, self.url = self.watched(self.path("src.db"))
        src.many("INSERT INTO t(v) VALUES(?)", [("restored" * 100,) for _ in range(50)])
        self.txid = src.sync()
        src.end()

    def target(self, name, wal):
        """A database that nobody has open, with one row."""
        path = self.path(name)
        with contextlib.closing(door.plain_connect(path)) as db:
            db.execute("PRAGMA journal_mode=" + ("WAL" if wal else "DELETE"))
            db.execute("CREATE TABLE mine(x)")
            db.execute("INSERT INTO mine VALUES('before')")
        return path

    def seen(self, path):
        """What a refused restore leaves as it was."""
        files = {}
        for suffix in SIDECARS:
            if os.path.exists(path + suffix):
                with open(path + suffix, "rb") as f:
                    files[suffix] = f.read()
        files["inode"] = os.stat(path).st_ino
        return files

    def by_cli(self, path, *flags):
        return self.run_cli("restore", *(flags or ("--overwrite",)), "file://" + self.url, path)

    def assertRefusedByCli(self, path, *fragments):
        before = self.seen(path)
        done = self.by_cli(path)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertErrorLine(done.stderr, *(fragments or ("open in process|locked by another",)), "another path")
        self.assertEqual(self.seen(path), before)
        self.assertEqual([n for n in os.listdir(os.path.dirname(path)) if ".walrust-restore-" in n or ".walrust-old-" in n], [])

    def assertGoesOn(self, peer, path, conn="main", table="mine"):
        """The program commits, and the row is in the file that lies there."""
        peer.sql(f"INSERT INTO {table} VALUES('after')", conn=conn)
        self.assertIn(("after",), door.plain_rows(path, "SELECT x FROM mine"))
        self.assertSound(path)

    # -- another process ----------------------------------------------------------------------------------------------

    def test_another_process_in_every_mode(self):
        for wal in (True, False):
            for reads in (True, False):
                with self.subTest(wal=wal, reads=reads):
                    path = self.target(f"other-{wal}-{reads}.db", wal)
                    p = self.peer(so=None).open(path)
                    if reads:
                        p.sql("SELECT * FROM mine")
                    self.assertRefusedByCli(path, rf"open in process {p.pid} \(python")
                    self.assertGoesOn(p, path)
                    p.end()
                    self.assertEqual(self.by_cli(path).returncode, 0, "once it is closed")
                    self.assertSound(path)

    def test_another_process_that_only_reads_or_attaches(self):
        path = self.target("read-only.db", wal=False)
        p = self.peer(so=None).open(f"file:{path}?mode=ro", uri=True)
        self.assertRefusedByCli(path)
        self.assertEqual(p.rows("SELECT x FROM mine"), [("before",)])
        p.end()
        path = self.target("attached.db", wal=False)
        p = self.peer(so=None).open(self.path("main.db"))
        p.sql("ATTACH ? AS other", path)
        self.assertRefusedByCli(path)
        self.assertGoesOn(p, path, table="other.mine")

    def test_another_process_that_streams_it(self):
        path = self.target("streamed.db", wal=True)
        p = self.peer().open(path)
        p.watch(self.path("its replica"))
        p.sync()
        self.assertRefusedByCli(path, "process")
        self.assertGoesOn(p, path)
        txid = p.sync()
        self.assertEqual(self.restore(self.path("its replica"))[1], txid)

    def test_by_another_name(self):
        """Through a symbolic link, and through a hard link the program opened."""
        path = self.target("real.db", wal=True)
        os.symlink(path, self.path("symlink.db"))
        p = self.peer(so=None).open(path)
        done = self.by_cli(self.path("symlink.db"))
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertGoesOn(p, path)
        p.end()
        path = self.target("one.db", wal=False)
        os.link(path, self.path("two.db"))
        p = self.peer(so=None).open(self.path("two.db"))
        self.assertRefusedByCli(path)
        self.assertGoesOn(p, path)

    def test_a_child_that_inherited_it(self):
        path = self.target("inherited.db", wal=False)
        p = self.peer(so=None).open(path)
        p.sql("SELECT * FROM mine")
        child = p.code("result = os.fork()\nif result == 0:\n    time.sleep(600)\n    os._exit(0)")
        self.addCleanup(lambda: os.path.exists(f"/proc/{child}") and os.kill(child, 9))
        p.close()
        self.assertRefusedByCli(path, f"process {child}")
        p.code("os.kill(args['child'], 9); os.waitpid(args['child'], 0)", child=child)
        self.assertEqual(self.by_cli(path).returncode, 0)

    def test_a_process_that_opens_it_during_the_download(self):
        path = self.target("late.db", wal=True)
        slow, began = SlowDirectory(self, self.url), threading.Event()
        slow.on_object = lambda: (began.set(), time.sleep(1.5))
        env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        outcome = []
        before = self.seen(path)
        t = threading.Thread(target=lambda: outcome.append(self.run_cli("restore", "--overwrite", slow.url, path, env=env)))
        t.start()
        self.assertTrue(began.wait(30))
        p = self.peer(so=None).open(path)
        t.join()
        self.assertEqual(outcome[0].returncode, 1, outcome[0].stdout)
        self.assertErrorLine(outcome[0].stderr, f"open in process {p.pid}")
        self.assertEqual(self.seen(path), before)
        self.assertEqual([n for n in os.listdir(self.dir) if ".walrust-restore-" in n], [])
        self.assertGoesOn(p, path)

    def test_a_process_that_opens_it_in_the_last_moment(self):
        """After the last look and before the rename: it waits for the lock, and finds its own file."""
        shim, log = self.path("failfs.so"), self.path("failfs.log")
        source = os.path.join(door.ROOT, "tests", "support", "failfs.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
        for wal in (True, False):
            with self.subTest(wal=wal):
                path = self.target(f"moment-{wal}.db", wal)
                before = self.seen(path)
                env = {"LD_PRELOAD": shim, "FAILFS_DIR": path, "FAILFS_LOG": log, "FAILFS_RENAME": "2000"}
                outcome, p = [], self.peer(so=None)
                restore = lambda: outcome.append(self.run_cli("restore", "--overwrite", "file://" + self.url, path, env=env))
                t = threading.Thread(target=restore)
                t.start()
                self.eventually(lambda: os.path.exists(log) and os.path.getsize(log), what="the rename")
                p.open(path)
                self.assertEqual(p.rows("SELECT x FROM mine"), [("before",)])
                t.join()
                self.assertEqual(outcome[0].returncode, 1, outcome[0].stdout)
                self.assertErrorLine(outcome[0].stderr, f"open in process {p.pid}")
                self.assertEqual(self.seen(path)["inode"], before["inode"])
                self.assertGoesOn(p, path)
                self.assertEqual([n for n in os.listdir(self.dir) if ".walrust-restore-" in n or ".walrust-old-" in n], [])
                p.end()
                os.unlink(log)

    def test_two_that_restore_at_once_and_a_crowd_that_opens(self):
        """Whatever is answered: who opens, reads and writes all the time never meets a file that is half the one and half the other."""
        path = self.target("crowd.db", wal=True)
        stop, wrong = threading.Event(), []
        script = (
            "import sqlite3, sys\n"
            "for line in sys.stdin:\n"
            "    try:\n"
            "        c = sqlite3.connect(sys.argv[1], timeout=5, isolation_level=None)\n"
            "        c.execute('CREATE TABLE IF NOT EXISTS crowd(x)'); c.execute('INSERT INTO crowd VALUES(1)')\n"
            "        print(c.execute('PRAGMA integrity_check').fetchone()[0], flush=True); c.close()\n"
            "    except sqlite3.OperationalError as e: print('busy', e, flush=True)\n"
            "    except Exception as e: print('wrong', e, flush=True)\n"
        )

        def crowd():
            p = subprocess.Popen([door.sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            while not stop.is_set():
                p.stdin.write("\n")
                p.stdin.flush()
                answer = p.stdout.readline().strip()
                if answer != "ok" and not answer.startswith("busy"):
                    wrong.append(answer)
                time.sleep(0.01)
            p.stdin.close()
            p.wait()
            p.stdout.close()

        threads = [threading.Thread(target=crowd) for _ in range(2)]
        [t.start() for t in threads]
        done = [self.by_cli(path).returncode for _ in range(door.rounds(25))]
        stop.set()
        [t.join() for t in threads]
        self.assertEqual(wrong, [])
        self.assertTrue(set(done) <= {0, 1}, done)
        self.assertSound(path)

    # -- this process -------------------------------------------------------------------------------------------------

    def here(self, peer, path):
        peer.open(":memory:", "tool")
        return peer.sql("SELECT walrust_restore(?, ?, NULL, '{\"overwrite\":1}')", self.url, path, conn="tool")

    def assertRefusedHere(self, peer, path):
        before = self.seen(path)
        with self.assertRaises(door.SqlError) as caught:
            self.here(peer, path)
        self.assertErrorLine(str(caught.exception), "walrust_restore", "open in this process")
        self.assertEqual(self.seen(path), before)

    def test_this_process_in_every_mode(self):
        for wal in (True, False):
            for reads in (True, False):
                for loaded in ("before", "after"):
                    with self.subTest(wal=wal, reads=reads, loaded=loaded):
                        path = self.target(f"here-{wal}-{reads}-{loaded}.db", wal)
                        p = self.peer(so=door.SO if loaded == "before" else None).open(path)
                        if reads:
                            p.sql("SELECT * FROM mine")
                        if loaded == "after":
                            p.open(":memory:", "loader")
                            p.load("loader")
                        self.assertRefusedHere(p, path)
                        self.assertGoesOn(p, path)
                        p.close()
                        self.assertEqual(self.here(p, path), self.txid, "once it is closed")
                        p.end()

    def test_this_process_read_only_attached_or_by_another_vfs(self):
        path = self.target("ro.db", wal=True)
        p = self.peer().open(f"file:{path}?mode=ro", uri=True)
        self.assertRefusedHere(p, path)
        self.assertEqual(p.rows("SELECT x FROM mine"), [("before",)])
        p.end()
        path = self.target("attached.db", wal=True)
        p = self.peer().open(self.path("main.db"))
        p.sql("ATTACH ? AS other", path)
        self.assertRefusedHere(p, path)
        self.assertGoesOn(p, path, table="other.mine")
        p.end()
        for vfs in ("unix-dotfile", "unix-none"):
            path = self.target(f"{vfs}.db", wal=False)
            p = self.peer().open(f"file:{path}?vfs={vfs}", uri=True)
            p.sql("SELECT * FROM mine")
            self.assertRefusedHere(p, path)
            p.sql("INSERT INTO mine VALUES('after')")
            p.end()

    def test_a_refusal_leaves_the_programs_locks_alone(self):
        """Closing any descriptor of the file would drop them (howtocorrupt, 2.2): another process could then write under a reader."""
        for wal in (True, False):
            path = self.target(f"locks-{wal}.db", wal)
            p = self.peer().open(path)
            p.sql("BEGIN IMMEDIATE")
            p.sql("INSERT INTO mine VALUES('mine alone')")
            self.assertRefusedHere(p, path)
            with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                with self.assertRaises(sqlite3.OperationalError):
                    other.execute("BEGIN IMMEDIATE")
            p.sql("COMMIT")
            p.end()
            self.assertIn(("mine alone",), door.plain_rows(path, "SELECT x FROM mine"))

    # -- walrust's own ------------------------------------------------------------------------------------------------

    def test_a_followed_file(self):
        copy = self.path("copy.db")
        p = self.peer().open(":memory:")
        p.sql("SELECT walrust_replicate(?, ?)", self.url, copy)
        self.assertRefusedByCli(copy, "kept up to date", f"process {p.pid}", "walrust_unreplicate")
        with self.assertRaises(door.SqlError) as caught:
            self.here(p, copy)
        self.assertErrorLine(str(caught.exception), "kept up to date", "this process")
        p.sql("SELECT walrust_unreplicate(?)", copy)
        self.assertEqual(self.by_cli(copy).returncode, 0)

    # -- what is no database ------------------------------------------------------------------------------------------

    def test_a_file_of_no_bytes_is_no_database(self):
        for name, make in (("bare", ""), ("with an empty wal", "-wal"), ("with an empty journal", "-journal")):
            for by in ("cli", "function", "plain cli"):
                with self.subTest(name, by=by):
                    path = self.path(f"{name} {by}.db")
                    for suffix in {"", make}:
                        open(path + suffix, "w").close()
                    if by == "function":
                        self.restore(self.url, path)
                    else:
                        flags = ("--if-replica-exists", "--if-db-not-exists") if by == "cli" else ("--check=quick",)
                        done = self.by_cli(path, *flags)
                        self.assertEqual(done.returncode, 0, done.stderr)
                        self.assertIn("TXID", done.stdout)
                    self.assertEqual(door.plain_rows(path, "SELECT count(*) FROM t"), [(50,)])

    def test_a_file_of_no_bytes_may_be_in_use_or_have_a_wal(self):
        path = self.path("new.db")
        open(path, "w").close()
        p = self.peer(so=None).open(path)
        done = self.by_cli(path, "--if-db-not-exists")
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertErrorLine(done.stderr, f"open in process {p.pid}")
        p.sql("CREATE TABLE mine(x)")
        self.assertGoesOn(p, path)
        p.end()
        path = self.path("wal.db")
        open(path, "w").close()
        with open(path + "-wal", "wb") as f:
            f.write(b"x" * 4128)
        self.assertIn("exists; nothing restored", self.by_cli(path, "--if-db-not-exists").stdout)
        self.assertEqual(self.by_cli(path, "--check=quick").returncode, 1)
        self.assertEqual(os.path.getsize(path), 0)


class SlowDirectory:
    """A directory's replica as an S3 bucket that only reads, with a word before each object."""

    def __init__(self, test, replica):
        self.on_object = lambda: None
        slow = self
        files = {}
        for level, low, high, path in door.ltx_files(replica):
            with open(path, "rb") as f:
                files[f"app/{level:04x}/{low:016x}-{high:016x}.ltx"] = f.read()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                path, _, query = self.path.partition("?")
                asked = urllib.parse.parse_qs(query)
                if "list-type" in asked:
                    prefix = asked.get("prefix", [""])[0]
                    entries = "".join(
                        f"<Contents><Key>{k}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"e\"</ETag>"
                        f"<Size>{len(v)}</Size></Contents>" for k, v in sorted(files.items()) if k.startswith(prefix)
                    )
                    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
                    return self.answer(200, body.encode())
                body = files.get(path.split("/", 2)[2])
                if body is None:
                    return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                slow.on_object()
                self.answer(200, body, ETag='"e"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

        server = Server(("127.0.0.1", 0), Handler)
        self.url = f"s3://bucket/app?endpoint=http://127.0.0.1:{server.server_address[1]}&region=us-east-1&path_style=true"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        test.addCleanup(server.server_close)
        test.addCleanup(server.shutdown)


if __name__ == "__main__":
    unittest.main()
