"""The road between spool and store: how many requests an upload, a start and a large file cost, and what their failures cost."""

import contextlib
import json
import os
import re
import shutil
import threading
import time
import unittest

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
        p.watch(self.url, **{"interval": "0s", "levels": [], "snapshot_interval": "0s", **options})
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


if __name__ == "__main__":
    unittest.main()
