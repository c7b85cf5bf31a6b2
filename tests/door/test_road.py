"""The road between spool and store: how many requests an upload, a start and a large file cost, and what their failures cost."""

import collections
import contextlib
import json
import os
import re
import shutil
import threading
import time
import unittest
import urllib.parse

import door


class Counting:
    """A proxy's requests, by method and by what they are about, from a moment on. Each takes so long."""

    def __init__(self, proxy, delay=0.0):
        self.proxy, self.start = proxy, len(proxy.seen)
        if delay:
            proxy.fault = lambda method, path: ("delay", delay)

    def all(self):
        return [(m, kind(m, p)) for m, p, _ in self.proxy.seen[self.start:]]

    def of(self, *kinds):
        return sum(k in kinds for _, k in self.all())


def kind(method, path):
    if method == "GET" and "list-type" in path:
        return "list"
    for name in ("lease", "manifest", "probe"):
        if f"/walrust/{name}" in path:
            return name
    found = re.search(r"/000(\d)/[0-9a-f]{16}-", path)
    return "other" if not found else "level 0" if found[1] == "0" else "merged"


class Road(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)
        self.proxy = door.FaultProxy(self, self.s3.port)
        self.db = self.path("app.db")
        self.url = self.s3.url("app", self.proxy.endpoint)

    def streaming(self, so=door.SO, **options):
        p = self.peer(so=so, env=self.s3.env()).open(self.db)
        p.sql("PRAGMA journal_mode=WAL")
        p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        p.watch(self.url, **{"interval": "0s", "levels": ["1h"], "snapshot_interval": "0s", **options})
        p.sync(60)
        return p

    def verify(self, mode="quick"):
        text = self.shell(f"SELECT walrust_verify({door.quote(self.s3.url())}, '{mode}');", env=self.s3.env())
        return text


class OneRoundTrip(Road):
    def test_an_upload_is_one_put_and_one_round_trip(self):
        """Steady writing for 25 seconds at 20 ms a request: about one PUT an upload, and a sync takes about one of them."""
        p = self.streaming()
        count = Counting(self.proxy, delay=0.02)
        took, waited_for, end = [], [], time.monotonic() + 25
        while time.monotonic() < end:
            p.sql("INSERT INTO t(v) VALUES('x')")
            before, began = len(self.proxy.seen), time.monotonic()
            p.sync()
            took.append(time.monotonic() - began)
            waited_for.append(len(self.proxy.seen) - before)
            time.sleep(0.25)
        uploads, entries = count.of("level 0"), count.of("manifest")
        median = sorted(took)[len(took) // 2]
        print(f"\n  {uploads} uploads, {entries} of the manifest, {len(count.all())} requests; sync {median * 1000:.1f} ms at the median", flush=True)
        self.assertGreaterEqual(uploads, len(took))
        puts = sum(m == "PUT" and k in ("level 0", "manifest") for m, k in count.all())
        self.assertLessEqual(puts / uploads, 1.1, count.all())
        # Each sync waits for the file's PUT alone, but for those in whose time the entries of many were made, or the lease renewed.
        self.assertLessEqual(sum(n > 1 for n in waited_for), 1 + len(took) // 10, waited_for)
        self.assertNotRegex(self.verify(), "Stale|⚠️|❌")
        p.end()
        self.assertNotIn("will be named", self.verify())

    def test_a_connection_for_each_request(self):
        """Most closes of a program that opens and closes the database again and again ask the store for nothing, written or read."""
        p = self.streaming()
        p.close()
        count = Counting(self.proxy, delay=0.06)
        for i in range(60):
            p.open(self.db)
            p.sql("INSERT INTO t(v) VALUES(?)" if i % 2 else "SELECT count(*), ? FROM t", i)
            p.close()
        visits = count.all()
        print(f"\n  60 visits: {collections.Counter(visits)}", flush=True)
        # (A close that waits gives the lease back, and the next open takes it. On a slow machine each commit is an upload of its own.)
        self.assertLessEqual(sum(m == "PUT" and k == "lease" for m, k in visits), 12, visits)
        self.assertLessEqual(sum(m == "PUT" for m, _ in visits), 60, visits)
        # What is pending leaves all the same, while the program has it closed.
        rows = lambda: door.plain_rows(self.restore(self.s3.url(), env=self.s3.env())[0], "SELECT count(*) FROM t")
        self.eventually(lambda: rows() == [(30,)], what="all is in the replica", every=0.5)
        # And another machine may go on with it when it has been closed for a while: the program that lives on has given the lease back.
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        q = self.peer(env=self.s3.env()).open(out)

        def taken():
            with contextlib.suppress(door.SqlError):
                return q.watch(self.s3.url(), interval="0s")

        self.assertIn("continuing at TXID", self.eventually(taken, what="the lease is given back", every=1))

    def test_what_a_killed_process_left_is_told_and_named_by_the_next(self):
        p = self.streaming()
        for i in range(8):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        p.kill()
        # Another machine, or process: no alarm, and it is said what could not be seen.
        text = self.verify()
        self.assertRegex(text, r"more, TXID \d+-\d+, will be named: the loss of one behind them could not be noticed")
        self.assertNotRegex(text, "Stale|⚠️|❌")
        for mode in ("quick", "deep", "fix"):
            done = self.run_shell(f"SELECT walrust_verify({door.quote(self.s3.url())}, '{mode}');", env=self.s3.env(), timeout=200)
            self.assertNotRegex(done.stdout, "⚠️|❌", mode)
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        self.assertSameBytes(self.db, out)
        p = self.streaming()
        self.eventually(lambda: "will be named" not in self.verify(), what="named", every=0.3)
        p.end()

    def test_a_machine_that_is_lost_with_its_spool(self):
        """Its successor restores, takes over, and names what it finds."""
        p = self.streaming()
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        p.kill()
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        self.db = out
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.url, interval="0s", takeover=True)
        p.sql("INSERT INTO t(v) VALUES('next')")
        p.sync(60)
        p.end()
        text = self.verify()
        self.assertNotRegex(text, "Stale|will be named|⚠️|❌")

    def test_closing_names_all_and_a_lost_newest_file_is_noticed(self):
        p = self.streaming()
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        p.close()
        newest = self.s3.keys("app/0000/")[-1]
        self.s3.s3.delete_object(Bucket=self.s3.bucket, Key=newest)
        self.assertRegex(self.verify(), "(?i)critical")
        with self.assertRaises(door.SqlError):
            self.restore(self.s3.url(), env=self.s3.env())

    def test_verify_in_the_process_that_streams_sees_all_named(self):
        p = self.streaming()
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        text = p.sql("SELECT walrust_verify()")
        self.assertNotRegex(text, "will be named|⚠️|❌")
        newest = self.s3.keys("app/0000/")[-1]
        self.s3.s3.delete_object(Bucket=self.s3.bucket, Key=newest)
        self.assertRegex(p.sql("SELECT walrust_verify()"), "(?i)critical")
        p.kill()

    def test_a_manifest_that_is_refused_stops_no_commit(self):
        p = self.streaming(durability="sync", retry={"base": "10ms", "max": "200ms"})
        self.proxy.fault = lambda m, path: ("status", 403) if m == "PUT" and "/manifest-" in path else None
        for i in range(30):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
        self.eventually(lambda: "manifest: " in (p.status()["last_error"] or ""), what="its own error")
        self.proxy.fault = None
        self.eventually(lambda: p.status()["last_error"] is None, timeout=40, what="it heals by itself")
        p.end()
        self.assertNotRegex(self.verify(), "will be named|⚠️|❌")


class Start(Road):
    def test_a_start_on_a_known_replica_is_six_requests(self):
        p = self.streaming(levels=["1h"], snapshot_interval="1h")
        for i in range(30):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        p.end()
        for visit in range(3):
            count = Counting(self.proxy)
            p = self.peer(env=self.s3.env()).open(self.db)
            p.watch(self.url, interval="0s", levels=["1h"], snapshot_interval="1h")
            self.eventually(lambda: p.status()["state"] == "streaming", what="streaming")
            time.sleep(0.5)
            start = count.all()
            self.assertLessEqual(len(start), 6, start)
            self.assertEqual(count.of("probe"), 0, "it is known what the store can do")
            p.sql("INSERT INTO t(v) VALUES('visit')")
            p.sync()
            p.end()
            whole = count.all()
            print(f"\n  visit {visit}: {len(start)} requests to stream, {len(whole)} with a commit and the end: {[k for _, k in whole]}", flush=True)
            self.assertLess(len(whole), 12, whole)
        self.assertNotRegex(self.verify(), "⚠️|❌")

    def test_a_store_that_takes_no_conditions_any_more_is_asked_again(self):
        """What was remembered does not hold: the answer says so, and the next one is believed."""
        p = self.streaming()
        p.end()
        with open(self.db + "-walrust/store.json") as f:
            self.assertEqual(json.load(f)["conditions"], "held")

        def no_conditions(method, path, headers, body):
            if any(h.lower() in ("if-none-match", "if-match") for h in headers) and method in ("PUT", "POST"):
                return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"
            return self.carry(method, path, headers, body)

        self.carry, self.proxy.forward = self.proxy.forward, no_conditions
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.url, interval="0s")
        p.sql("INSERT INTO t(v) VALUES('none')")
        p.sync(60)
        p.end()
        with open(self.db + "-walrust/store.json") as f:
            self.assertEqual(json.load(f)["conditions"], "ignored")
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        self.assertSameBytes(self.db, out)

    def test_an_inventory_of_more_than_a_page_and_of_others_below(self):
        """Another replica below this one's path, and more objects than a listing holds: nothing is mistaken, nothing is missed."""
        p = self.streaming()
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        p.end()
        txid = self.restore(self.s3.url(), env=self.s3.env())[1]
        s3 = self.s3.s3
        for i in range(1005):
            s3.put_object(Bucket=self.s3.bucket, Key=f"app/00000/{i}", Body=b"x")
        self.assertEqual(self.restore(self.s3.url(), env=self.s3.env())[1], txid)
        self.assertNotRegex(self.verify(), "⚠️|❌")


class Large(Road):
    """A first snapshot of 60 MB: 8 parts of 8 MiB."""

    PARTS = 8

    def setUp(self):
        super().setUp()
        with contextlib.closing(door.plain_connect(self.db)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE b(x)")
            db.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) INSERT INTO b SELECT randomblob(1000000) FROM n")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.proxy.fault = self.asked
        self.fault = lambda number: None
        self.told = set()

    def asked(self, method, path):
        part = re.search(r"partNumber=(\d+)", path)
        return self.fault(int(part[1])) if part and method == "PUT" else None

    def once(self, faults):
        """A fault for each of these parts, the first time."""
        left = dict(faults)
        self.fault = lambda number: left.pop(number, None)

    def begin(self, **options):
        p = self.peer(env=self.s3.env()).open(self.db)
        p.watch(self.url, **{"interval": "0s", "levels": ["1h"], "snapshot_interval": "0s", "retry": {"base": "10ms", "max": "200ms"}, **options})
        return p

    def begin_and_die(self, point):
        p = self.peer(so=door.CRASH_SO, env=self.s3.env(WALRUST_CRASH=point)).open(self.db)
        with contextlib.suppress(AssertionError):  # the call is cut short, perhaps
            p.watch(self.url, interval="0s", levels=["1h"], snapshot_interval="0s")
        self.eventually(lambda: p.proc.poll() is not None, timeout=60, what="killed")
        time.sleep(1.5)  # what was on its way arrives
        self.assertEqual(len(self.uploads()), 1)

    def arrives(self, p):
        def there():
            self.told.add(p.status()["last_error"])
            return p.status()["replicated_txid"]

        self.eventually(there, timeout=120, what="the snapshot", every=0.05)
        self.assertEqual(self.uploads(), [], "nothing is left of any upload")
        self.assertEqual([f for f in os.listdir(self.db + "-walrust/snapshot") if f.endswith(".upload")], [])
        out, _ = self.restore(self.s3.url(), env=self.s3.env())
        self.assertSameBytes(self.db, out)

    def uploads(self):
        return [u["Key"] for u in self.s3.s3.list_multipart_uploads(Bucket=self.s3.bucket).get("Uploads", [])]

    def parts_sent(self):
        return sum(m == "PUT" and "partNumber" in path for m, path, _ in self.proxy.seen)

    def begun(self):
        return sum(m == "POST" and path.endswith("?uploads=") or path.endswith("?uploads") for m, path, _ in self.proxy.seen)

    def test_a_part_that_fails_is_sent_again_by_itself(self):
        self.once({2: ("drop",), 4: ("status", 500), 5: ("lose",), 7: ("status", 503, {"Retry-After": "1"})})
        self.arrives(self.begin())
        self.assertEqual((self.begun(), self.parts_sent()), (1, self.PARTS + 4))
        self.assertEqual(self.told, {None}, "nothing of that is an error yet")

    def test_several_parts_are_under_way_at_once(self):
        under_way, most, lock, carry = [0], [0], threading.Lock(), self.proxy.forward

        def forward(method, path, headers, body):
            if "partNumber" not in path:
                return carry(method, path, headers, body)
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            time.sleep(0.2)
            answer = carry(method, path, headers, body)
            with lock:
                under_way[0] -= 1
            return answer

        self.proxy.forward = forward
        self.arrives(self.begin())
        self.assertEqual(most, [4])

    def test_an_upload_goes_on_after_a_kill(self):
        for nth in (2, self.PARTS):
            with self.subTest(nth=nth):
                self.url = self.s3.url(f"kill-{nth}", self.proxy.endpoint)
                shutil.rmtree(self.db + "-walrust", ignore_errors=True)
                self.begin_and_die(f"parts.sent:{nth}")
                before, sent = self.begun(), self.parts_sent()
                p = self.begin()
                self.eventually(lambda: p.status()["replicated_txid"], timeout=120, what="the snapshot")
                self.assertEqual(self.begun(), before, "no other upload is begun")
                self.assertLessEqual(self.parts_sent() - sent, self.PARTS - nth)
                self.assertEqual(self.uploads(), [])
                out, _ = self.restore(self.s3.url(f"kill-{nth}"), env=self.s3.env())
                self.assertSameBytes(self.db, out)
                p.end()

    def test_an_upload_that_nobody_goes_on_with_is_aborted(self):
        self.begin_and_die("parts.sent:3")
        spool = self.db + "-walrust/snapshot/"
        for name in os.listdir(spool):
            if name.endswith(".ltx"):
                os.unlink(spool + name)
        p = self.begin()
        self.eventually(lambda: p.status()["replicated_txid"], timeout=120, what="another snapshot")
        self.eventually(lambda: self.uploads() == [], what="the first upload is aborted")

    def test_a_store_that_takes_few_parts(self):
        self.fault = lambda number: ("status", 400) if number > 3 else None
        self.arrives(self.begin())

    def test_an_upload_that_the_store_gives_up(self):
        """Another is begun at once, and it is not told as a bucket that is missing."""
        self.once({5: ("status", 404)})
        self.arrives(self.begin())
        self.assertEqual(self.begun(), 2)
        self.assertFalse(any("does not exist" in (e or "") for e in self.told), self.told)

    def test_a_large_restore_comes_in_ranges(self):
        """Several are under way at once, one that breaks off is asked for again by itself, and nothing lies beside the file that is made."""
        self.arrives(self.begin())
        under_way, most, asked, lock, carry, beside = [0], [0], [], threading.Lock(), self.proxy.forward, set()

        def forward(method, path, headers, body):
            if method != "GET" or "/0009/" not in path or "Range" not in headers:
                return carry(method, path, headers, body)
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
                asked.append(headers["Range"])
                beside.update(os.listdir(os.path.dirname(out)))
                first = len(asked) == 3
            time.sleep(0.1)
            with lock:
                under_way[0] -= 1
            if first:
                raise OSError("the line breaks")
            return carry(method, path, headers, body)

        os.mkdir(self.path("to"))
        out = self.path("to/big.db")
        self.proxy.forward = forward
        self.restore(self.url, out, env=self.s3.env())
        self.assertSameBytes(self.db, out)
        lengths = [int(b) - int(a) + 1 for a, b in re.findall(r"bytes=(\d+)-(\d+)", " ".join(asked))]
        self.assertEqual(len(lengths) - len(set(asked)), 1, "one was asked for twice")
        self.assertLessEqual(max(lengths), 4 << 20)
        self.assertGreaterEqual(most[0], 6)
        self.assertLessEqual({re.sub(r"-[0-9a-f]{16}$", "", name) for name in beside}, {"big.db.walrust-restore"}, "no second copy")
        self.assertEqual(os.listdir(self.path("to")), ["big.db"])

    def test_an_upload_that_is_dead_is_begun_anew(self):
        """A store may answer 500 for ever to the parts of an upload that it has forgotten: that is not waited out."""
        self.begin_and_die("parts.sent:3")
        [first] = self.s3.s3.list_multipart_uploads(Bucket=self.s3.bucket)["Uploads"]
        spool = self.db + "-walrust/snapshot/"
        [note] = [f for f in os.listdir(spool) if f.endswith(".upload")]
        with open(spool + note, "a") as f:
            f.write("! 500\n! 500\n")  # two times in vain, and a third is seen here
        dead = urllib.parse.quote(first["UploadId"], safe="")
        self.proxy.fault = lambda method, path: ("status", 500) if method == "PUT" and dead in path else None
        before = self.begun()
        self.arrives(self.begin())
        self.assertEqual(self.begun(), before + 1)

    def test_an_outage_in_the_middle(self):
        """Longer than a part is tried by itself: the upload goes on where it stopped."""
        left = [40]

        def out(number):
            if number > 4 and left[0] > 0:
                left[0] -= 1
                return ("status", 503)

        self.fault = out
        self.arrives(self.begin())
        self.assertEqual(self.begun(), 1)
        self.assertLessEqual(self.parts_sent(), self.PARTS + 44)


class Again(Road):
    """A restore that was interrupted is gone on with; one with `delta` fetches what differs."""

    MEGABYTES = 30

    def setUp(self):
        super().setUp()
        with contextlib.closing(door.plain_connect(self.db)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE b(id INTEGER PRIMARY KEY, x)")
            db.execute(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {self.MEGABYTES * 300}) "
                       "INSERT INTO b(x) SELECT randomblob(3300) FROM n")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.p = self.peer(env=self.s3.env()).open(self.db)
        self.p.watch(self.url, interval="0s", levels=["1h"], snapshot_interval="0s")
        self.p.sync(120)
        os.mkdir(self.path("to"))
        self.out = self.path("to/out.db")
        self.fetched, self.lock, self.carry = 0, threading.Lock(), self.proxy.forward
        self.after, self.then = None, None
        self.proxy.forward = self.forward

    def forward(self, method, path, headers, body):
        """Counts the bytes that come, and does `then` when there are as many as `after`."""
        answer = self.carry(method, path, headers, body)
        if method == "GET":
            with self.lock:
                self.fetched += len(answer[2])
                due, self.after = (True, None) if self.after is not None and self.fetched >= self.after else (False, self.after)
            if due:
                self.then()
        return answer

    def sized(self, wanted):
        """The bytes that come while `wanted` runs."""
        self.fetched = 0
        wanted()
        return self.fetched

    def full(self, **options):
        return self.sized(lambda: self.restore(self.url, self.out, env=self.s3.env(), **options))

    def change(self, where):
        """About 1 % of the pages, here and there."""
        return f"UPDATE b SET x = randomblob(3300) WHERE id % 100 = {where}"

    def test_delta_fetches_what_differs(self):
        size = self.full()
        self.assertGreater(size, os.path.getsize(self.db) * 0.8)
        self.p.sql(self.change(7))
        self.p.sync(60)
        told = {"the source changed": self.full(delta=True)}
        self.assertSameBytes(self.db, self.out)
        with contextlib.closing(door.plain_connect(self.out)) as db:
            db.execute("PRAGMA journal_mode=DELETE")
            db.execute(self.change(31))
            db.commit()
        told["the target changed"] = self.full(delta=True)
        self.assertSameBytes(self.db, self.out)
        told["nothing changed"] = self.full(delta=True)
        self.assertSameBytes(self.db, self.out)
        # A new snapshot, and a target of long ago.
        self.p.sql(self.change(55))
        self.p.sql("SELECT walrust_snapshot()")
        told["a snapshot since"] = self.full(delta=True, overwrite=True)
        self.assertSameBytes(self.db, self.out)
        print(f"\n  of {size} bytes: {told}", flush=True)
        for what, fetched in told.items():
            self.assertLessEqual(fetched, size * 0.1, what)
        self.assertEqual(os.listdir(self.path("to")), ["out.db"])

    def test_delta_with_a_target_that_is_damaged_foreign_or_absent(self):
        self.full(delta=True)
        self.assertSameBytes(self.db, self.out)
        with open(self.out, "rb") as f:
            whole = f.read()
        for name, content in (("half of it", whole[:len(whole) // 2 + 100]), ("another file", os.urandom(100_000)), ("empty", b""),
                              ("shifted", whole[4096:]), ("longer", whole + b"x" * 5000)):
            with self.subTest(name):
                with open(self.out, "wb") as f:
                    f.write(content)
                self.full(delta=True)
                self.assertSameBytes(self.db, self.out)
                self.assertEqual(os.listdir(self.path("to")), ["out.db"])

    def test_delta_refuses_a_target_that_is_in_use(self):
        self.full()
        with contextlib.closing(door.plain_connect(self.out)) as db:
            db.execute("SELECT count(*) FROM b").fetchone()
            with self.assertRaises(door.SqlError) as caught:
                self.full(delta=True)
            self.assertErrorLine(str(caught.exception), "walrust_restore", "open in")
        self.assertEqual([n for n in os.listdir(self.path("to")) if "walrust" in n], [])

    def restoring(self, **options):
        """A process that restores; it is killed, or the line is gone, when half of all has come."""
        p = self.peer(env=self.s3.env()).open(":memory:")
        return p, lambda: p.sql("SELECT walrust_restore(?, ?, NULL, ?)", self.url, self.out, json.dumps(options))

    def test_a_restore_that_was_killed_goes_on(self):
        size = os.path.getsize(self.db)
        for when in (0.3, 0.7):
            with self.subTest(when=when):
                p, restore = self.restoring()
                self.after, self.then = int(size * when), p.proc.kill
                self.fetched = 0
                with self.assertRaises(AssertionError):
                    restore()
                time.sleep(0.5)
                self.assertRegex(" ".join(os.listdir(self.path("to"))), r"^out\.db\.walrust-restore-[0-9a-f]{16}$")
                p, restore = self.restoring()
                restore()
                print(f"\n  killed at {when}: {self.fetched / size:.2f} of the size in all", flush=True)
                self.assertLessEqual(self.fetched, size * 1.2)
                self.assertSameBytes(self.db, self.out)
                self.assertEqual(os.listdir(self.path("to")), ["out.db"])
                os.unlink(self.out)

    def test_a_restore_whose_line_is_gone_goes_on(self):
        size = os.path.getsize(self.db)
        p, restore = self.restoring()
        self.after, self.then = size // 2, lambda: setattr(self.proxy, "down", True)
        self.fetched = 0
        with self.assertRaises(door.SqlError):
            restore()
        self.assertEqual(len(os.listdir(self.path("to"))), 1)
        self.proxy.down = False
        # Meanwhile there is more to restore, and another snapshot.
        self.p.sql(self.change(3))
        self.p.sql("SELECT walrust_snapshot()")
        restore()
        self.assertLessEqual(self.fetched, size * 1.25)
        self.assertSameBytes(self.db, self.out)
        self.assertEqual(os.listdir(self.path("to")), ["out.db"])

    def test_a_delta_that_was_killed_leaves_the_target_whole(self):
        self.full()
        with open(self.out, "rb") as f:
            before = f.read()
        self.p.sql(f"UPDATE b SET x = randomblob(3300) WHERE id <= {self.MEGABYTES * 150}")
        self.p.sql("SELECT walrust_snapshot()")
        size = os.path.getsize(self.db)
        p, restore = self.restoring(delta=True)
        self.after, self.then = int(size * 0.2), p.proc.kill
        self.fetched = 0
        with self.assertRaises(AssertionError):
            restore()
        time.sleep(0.5)
        with open(self.out, "rb") as f:
            self.assertTrue(f.read() == before, "the target is what it was")
        p, restore = self.restoring(delta=True)
        restore()
        self.assertLessEqual(self.fetched, size * 0.75)
        self.assertSameBytes(self.db, self.out)
        self.assertEqual(os.listdir(self.path("to")), ["out.db"])

    def test_what_was_left_is_proved(self):
        """Somebody, or a power cut, changed what lies there: those pages are fetched again."""
        size = os.path.getsize(self.db)
        p, restore = self.restoring()
        self.after, self.then = size // 2, p.proc.kill
        with self.assertRaises(AssertionError):
            restore()
        time.sleep(0.5)
        [left] = os.listdir(self.path("to"))
        with open(self.path(f"to/{left}"), "r+b") as f:
            for page in range(0, size // 4096 // 4, 40):
                f.seek(page * 4096 + 100)
                f.write(os.urandom(8))
        p, restore = self.restoring()
        restore()
        self.assertSameBytes(self.db, self.out)


if __name__ == "__main__":
    unittest.main()
