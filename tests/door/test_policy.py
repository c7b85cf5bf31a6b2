"""The policies that `walrust policy` prints, enforced: a proxy before the S3 server allows what the printed policy allows, and nothing else."""

import collections
import fnmatch
import json
import os
import re
import time
import unittest
import urllib.parse

import door

NOTHING = ("--hourly", "0", "--daily", "0", "--weekly", "0", "--monthly", "0")
DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


class Guard(door.FaultProxy):
    """Evaluates an IAM policy for each request as S3 does, for the actions that walrust may make. Counts actions, keeps what was denied."""

    def __init__(self, test, port, policy):
        super().__init__(test, port)
        self.policy, self.actions, self.denied = policy, collections.Counter(), []

    def requests(self, method, path, headers, body):
        """(action, resource, context) of each permission that a request needs."""
        url = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        bucket, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
        arn = f"arn:aws:s3:::{bucket}"
        names = {k.lower() for k in headers.keys()}
        creates = {"s3:if-none-match": "*" if "if-none-match" in names else None, "s3:ObjectCreationOperation": "true"}
        if not key:
            if method == "POST" and "delete" in query:
                return [("s3:DeleteObject", f"{arn}/{k}", {}) for k in re.findall(r"<Key>(.*?)</Key>", body.decode())]
            return [("s3:ListBucket", arn, {"s3:prefix": query.get("prefix", "")})] if method in ("GET", "HEAD") else [("s3:CreateBucket", arn, {})]
        resource = f"{arn}/{key}"
        if method in ("GET", "HEAD"):
            return [("s3:GetObject", resource, {})]
        if method == "DELETE":
            return [("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject", resource, {})]
        is_part = "uploads" in query or (method == "PUT" and "uploadId" in query)
        return [("s3:PutObject", resource, {"s3:ObjectCreationOperation": "false", "s3:if-none-match": None} if is_part else creates)]

    def holds(self, condition, context):
        for operator, tests in condition.items():
            for name, wanted in tests.items():
                value = context.get(name)
                wanted = [wanted] if isinstance(wanted, str) else wanted
                if operator == "StringLike":
                    ok = value is not None and any(fnmatch.fnmatchcase(value, w) for w in wanted)
                elif operator == "Null":
                    ok = (value is None) == (wanted[0] == "true")
                elif operator == "Bool":
                    ok = value == wanted[0]
                else:
                    raise AssertionError(f"the policy has an operator that nobody taught the test: {operator}")
                if not ok:
                    return False
        return True

    def allows(self, action, resource, context):
        allowed = False
        for s in self.policy["Statement"]:
            is_about = action in s["Action"] and any(fnmatch.fnmatchcase(resource, r) for r in s["Resource"])
            if is_about and self.holds(s.get("Condition", {}), context):
                if s["Effect"] == "Deny":
                    return False
                allowed = True
        return allowed

    def forward(self, method, path, headers, body):
        for action, resource, context in self.requests(method, path, headers, body):
            self.actions[action] += 1
            if not self.allows(action, resource, context):
                self.denied.append((action, resource))
                return 403, {"Content-Type": "application/xml"}, DENIED
        return super().forward(method, path, headers, body)


class Policies(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)

    def policy(self, role, *more, url="s3://bucket/tenants/app"):
        done = self.run_cli("policy", "s3", url, "--role", role, *more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def guarded(self, role, *more):
        guard = Guard(self, self.s3.port, self.policy(role, *more))
        return guard, self.s3.url("tenants/app", guard.endpoint)

    def streaming(self, url, **options):
        p = self.peer(env=self.s3.env()).open(self.path("app.db"))
        p.watch(url, interval="0s", **options)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        return p

    def only_probes(self, guard):
        """What was denied, but for the objects by which the store was tried out: who may not delete leaves them."""
        return [d for d in guard.denied if not (d[0] == "s3:DeleteObject" and "/walrust/probe-" in d[1])]

    def test_a_writer_streams_takes_snapshots_and_merges(self):
        guard, url = self.guarded("writer")
        p = self.streaming(url, levels=["100ms", "300ms", "1s"], snapshot_interval="500ms", retention={"by": "janitor"}, pitr_window="0s")
        for n in range(30):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(2000)))")
            p.sync()
            time.sleep(0.05)
        # One that is put in parts.
        p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4200) INSERT INTO t(v) SELECT randomblob(4800) FROM n")
        txid = p.sync(60)
        p.sql("SELECT walrust_snapshot()")
        p.sql("SELECT walrust_label('kept')")
        self.assertIsNone(p.status()["last_error"])
        self.assertEqual(p.status()["state"], "streaming")
        self.assertEqual(self.only_probes(guard), [])
        levels = {k.split("/")[2] for k in self.s3.keys("tenants/app/00")}
        self.assertTrue({"0000", "0001", "0009"} <= levels, levels)
        p.end()
        self.assertEqual(self.only_probes(guard), [])
        for action in ("s3:ListBucket", "s3:GetObject", "s3:PutObject"):
            self.assertGreater(guard.actions[action], 0, action)
        out, at = self.restore(self.s3.url("tenants/app"), env=self.s3.env())
        self.assertGreaterEqual(at, txid)
        self.assertSameBytes(self.path("app.db"), out)

    def test_a_stolen_writers_key_replaces_and_deletes_no_file(self):
        guard, url = self.guarded("writer")
        p = self.streaming(url, retention={"by": "janitor"})
        p.sync()
        p.end()
        import boto3
        from botocore.exceptions import ClientError

        thief = boto3.client("s3", endpoint_url=guard.endpoint, region_name="us-east-1", config=self.s3._config,
                             aws_access_key_id=self.s3.access_key, aws_secret_access_key=self.s3.secret_key)
        before = {k: self.s3.get(k) for k in self.s3.keys("tenants/app/00")}
        self.assertTrue(before)
        for key in before:
            for attempt in (
                lambda: thief.put_object(Bucket="bucket", Key=key, Body=b"x"),
                lambda: thief.put_object(Bucket="bucket", Key=key, Body=b"x", IfNoneMatch="*"),
                lambda: thief.delete_object(Bucket="bucket", Key=key),
                lambda: thief.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": key}]}),
            ):
                with self.assertRaises(ClientError):
                    attempt()
        for key in ("tenants/other/0000/x", "tenants/walrust/x", "x"):
            for attempt in (lambda: thief.put_object(Bucket="bucket", Key=key, Body=b"x"), lambda: thief.get_object(Bucket="bucket", Key=key)):
                with self.assertRaisesRegex(ClientError, "AccessDenied|Access Denied"):
                    attempt()
        self.assertEqual({k: self.s3.get(k) for k in self.s3.keys("tenants/app/00")}, before)

    def test_a_reader_verifies_restores_lists_and_drills(self):
        p = self.streaming(self.s3.url("tenants/app"))
        for n in range(5):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(2000)))")
            p.sync()
        p.sql("SELECT walrust_label('kept')")
        p.end()
        guard, url = self.guarded("reader")
        for command in (("verify", url), ("verify", url, "--mode", "deep"), ("files", url), ("points", url), ("drill", url, "--full"),
                        ("restore", url, self.path("out.db"), "--point", "kept"), ("query", url, "SELECT count(*) FROM t"),
                        ("diff", url, "--from", "2"), ("compact", url), ("list", url)):
            done = self.run_cli(*command, env=self.s3.env())
            self.assertEqual(done.returncode, 0, f"{command}: {done.stdout}{done.stderr}")
        self.assertEqual(guard.denied, [])
        self.assertEqual(set(guard.actions), {"s3:ListBucket", "s3:GetObject"})
        done = self.run_cli("label", url, "mine", env=self.s3.env())
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "denied|403")

    def test_a_janitor_removes_what_retention_does_not_keep_beside_a_writer_that_cannot(self):
        writer, url = self.guarded("writer")
        p = self.streaming(url, levels=["100ms", "300ms", "1s"], snapshot_interval="0", retention={"by": "janitor"}, pitr_window="0s")
        for n in range(8):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(2000)))")
            p.sync()
            p.sql("SELECT walrust_snapshot()")
        kept = p.sql("SELECT walrust_label('kept', NULL, NULL, 3)")
        self.assertEqual(len(self.s3.keys("tenants/app/0009/")), 9)
        p.end()
        guard, url = self.guarded("janitor")
        with open(self.path("walrust.toml"), "w") as f:
            f.write('pitr_window = "0s"\n')
        done = self.run_cli("compact", url, "--force", *NOTHING, env=self.s3.env())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("Removed", done.stdout)
        self.assertEqual(guard.denied, [])
        self.assertGreater(guard.actions["s3:DeleteObject"], 0)
        self.assertLessEqual(len(self.s3.keys("tenants/app/0009/")), 4)
        self.assertEqual(self.run_cli("verify", url, env=self.s3.env()).returncode, 0)
        out, at = self.restore(self.s3.url("tenants/app"), point="kept", env=self.s3.env())
        self.assertEqual(at, kept)
        self.assertSound(out)

    def test_all_is_what_one_process_does(self):
        guard, url = self.guarded("all")
        p = self.streaming(url, levels=["100ms", "300ms", "1s"], snapshot_interval="0", pitr_window="0s",
                           retention={"hourly": 0, "daily": 0, "weekly": 0, "monthly": 0})
        for n in range(6):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(2000)))")
            p.sync()
            p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: len(self.s3.keys("tenants/app/0009/")) <= 3, what="retention")
        p.end()
        self.assertEqual(guard.denied, [])


    # ---- a writer that only creates

    LEVELS = {"levels": ["100ms", "300ms", "1s"], "snapshot_interval": "0", "pitr_window": "1h"}

    def appending(self, **options):
        guard, url = self.guarded("writer", "--append-only")
        return guard, url, self.streaming(url, append_only=True, **{**self.LEVELS, **options})

    def fill(self, p, states, rows=8, snapshots=True):
        """Commits, each waited for: TXID -> rows."""
        for n in range(rows):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(2000)))")
            states[p.sync()] = p.sql("SELECT count(*) FROM t")
            if snapshots and n % 4 == 3:
                states[p.sql("SELECT walrust_snapshot()")] = p.sql("SELECT count(*) FROM t")

    def assertRestores(self, url, states, **options):
        for txid, rows in states.items():
            out, at = self.restore(url, point=str(txid), env=self.s3.env(), **options)
            self.assertEqual(at, txid)
            self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(rows,)], txid)

    def bodies(self, guard):
        """Keys of the PUTs that the store took, one for each."""
        return [path.split("?")[0] for method, path, status in guard.seen if method == "PUT" and status == 200 and "partNumber" not in path]

    def test_a_writer_that_only_creates_streams_takes_snapshots_and_merges(self):
        guard, url, p = self.appending()
        states = {}
        self.fill(p, states, 12)
        # One that is put in parts.
        p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4200) INSERT INTO t(v) SELECT randomblob(4800) FROM n")
        states[p.sync(60)] = p.sql("SELECT count(*) FROM t")
        p.sql("SELECT walrust_label('kept')")
        self.eventually(lambda: {k.split("/")[2] for k in self.s3.keys("tenants/app/00")} >= {"0000", "0001", "0009"}, what="merges")
        row = p.status()
        self.assertEqual((row["state"], row["last_error"], row["protection"]), ("streaming", None, "append-only"))
        p.end()
        self.assertEqual(guard.denied, [])
        self.assertEqual(set(guard.actions), {"s3:ListBucket", "s3:GetObject", "s3:PutObject"})
        put = self.bodies(guard)
        self.assertEqual([k for k, n in collections.Counter(put).items() if n > 1], [], "nothing was put twice")
        self.assertEqual(self.s3.keys("tenants/app/walrust/manifest"), [])
        self.assertEqual(self.s3.keys("tenants/app/walrust/lease"), [])
        self.assertEqual(self.run_cli("verify", self.s3.url("tenants/app"), "--mode", "deep", env=self.s3.env()).returncode, 0)
        self.assertRestores(self.s3.url("tenants/app"), states)
        # The next process goes on from there, and so does a writer with all rights, which leaves no claim about it.
        p = self.streaming_on(url, append_only=True)
        self.fill(p, states, 3)
        p.end()
        self.assertEqual(guard.denied, [])
        p = self.streaming_on(self.s3.url("tenants/app"))
        self.fill(p, states, 3)
        self.assertEqual(p.status()["protection"], "lease")
        p.end()
        self.assertEqual(self.s3.keys("tenants/app/walrust/append-only"), [])
        self.assertEqual(self.run_cli("verify", self.s3.url("tenants/app"), env=self.s3.env()).returncode, 0)
        self.assertRestores(self.s3.url("tenants/app"), states)

    def streaming_on(self, url, **options):
        p = self.peer(env=self.s3.env()).open(self.path("app.db"))
        p.watch(url, interval="0s", **{**self.LEVELS, **options})
        return p

    def another_database(self, txids):
        """LTX files of another database with as many TXIDs: sound ones, by level."""
        p = self.peer().open(self.path("thief.db"))
        p.watch(self.path("thief"), interval="0s", levels=["100ms", "200ms"], snapshot_interval="0")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        while p.sync() < txids:
            p.sql("INSERT INTO t(v) VALUES('stolen')")
        p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: door.ltx_files(self.path("thief"), level=1), what="a merged file")
        p.end()
        return {level: door.ltx_files(self.path("thief"), level=level) for level in (0, 1, 9)}

    def thief(self, guard):
        import boto3

        return boto3.client("s3", endpoint_url=guard.endpoint, region_name="us-east-1", config=self.s3._config,
                            aws_access_key_id=self.s3.access_key, aws_secret_access_key=self.s3.secret_key)

    def test_a_stolen_key_of_a_writer_that_only_creates_takes_no_point_away(self):
        from botocore.exceptions import ClientError

        guard, url, p = self.appending()
        states = {}
        self.fill(p, states, 12)
        p.sql("SELECT walrust_label('before')")
        labelled, rows = list(states.items())[-1]
        p.end()
        self.assertEqual(guard.denied, [])
        mine = {k: self.s3.get(k) for k in self.s3.keys("tenants/app/")}
        thief, newest = self.thief(guard), max(states)
        # Replace, delete, vouch.
        for key in [*mine, "tenants/app/walrust/manifest-0000000000000001.json", "tenants/app/walrust/lease.json"]:
            for attempt in (
                lambda: thief.put_object(Bucket="bucket", Key=key, Body=b"x"),
                lambda: thief.put_object(Bucket="bucket", Key=key, Body=b"x", IfNoneMatch="*"),
                lambda: thief.delete_object(Bucket="bucket", Key=key),
                lambda: thief.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": key}]}),
            ):
                with self.assertRaises(ClientError):
                    attempt()
        self.assertEqual({k: self.s3.get(k) for k in self.s3.keys("tenants/app/")}, mine)
        # Create: S3 tells seconds, and what is put in one second with the last commit is of its time.
        time.sleep(1.1)

        def put(key, body):
            thief.put_object(Bucket="bucket", Key=f"tenants/app/{key}", Body=body, IfNoneMatch="*")

        put_by_thief = []

        def junk(level, low, high, body):
            key = f"{level:04x}/{low:016x}-{high:016x}.ltx"
            if f"tenants/app/{key}" not in mine:
                put(key, body)
                put_by_thief.append(key)

        sound = self.another_database(newest)
        with open(sound[9][-1][3], "rb") as f:
            snapshot = f.read()
        for txid in range(2, newest + 3):
            junk(9, 1, txid, b"LTX1 and nothing more" if txid % 2 else snapshot)
            junk(3, 2, txid, b"x" * 500)
            junk(8, 1, txid, snapshot[: len(snapshot) // 2])
        # (Two databases that are empty are one: what ends at TXID 1 is what it says.)
        for _, low, high, path in [f for f in sound[9] + sound[1] if f[2] > 1]:
            for level in (1, 2, 9):
                with open(path, "rb") as f:
                    junk(level, low, high, f.read())
        junk(0, newest + 5, newest + 5, b"far ahead")
        claims = next(mine[k] for k in mine if "/entries/" in k)
        for n, body in enumerate((b"{}", claims.replace(b"manifest\":1", b"manifest\":2"), claims, b"x" * (5 << 20))):
            put(f"walrust/entries/{'f' * 15}{n}-{n:016x}.json", body)
        # Claims of true files that say something else of them, with a true check.
        body, _, _ = claims.partition(b'"check":')
        number = b"00000000000000aa"
        body = re.sub(rb'"segment":"[0-9a-f]{16}"', b'"segment":"' + number + b'"', re.sub(rb'"[0-9a-f]{64}"', b'"' + b"0" * 64 + b'"', body))
        import hashlib

        put(f"walrust/entries/{newest:016x}-{number.decode()}.json", body + b'"check":"' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"}\n')
        self.assertGreater(len(put_by_thief), 30)
        plain = self.s3.url("tenants/app")
        self.assertRestores(plain, states)
        out, at = self.restore(plain, point="before", env=self.s3.env())
        self.assertEqual((at, door.plain_rows(out, "SELECT count(*) FROM t")), (labelled, [(rows,)]))
        # The janitor counts on none of it, and removes nothing that anybody promised.
        janitor, url = self.guarded("janitor")
        with open(self.path("walrust.toml"), "w") as f:
            f.write('pitr_window = "0s"\n')
        done = self.run_cli("compact", url, "--force", *NOTHING, env=self.s3.env())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"vouched for")
        self.assertRegex(done.stdout, r"Not counted on, and left as they are: \d\d+")
        self.assertEqual(janitor.denied, [])
        there = self.s3.keys("tenants/app/00")
        self.assertLess(len([k for k in there if k in mine]), len([k for k in mine if "/00" in k]))
        for key in put_by_thief:
            self.assertIn(f"tenants/app/{key}", there)
        out, at = self.restore(plain, point="before", env=self.s3.env())
        self.assertEqual((at, door.plain_rows(out, "SELECT count(*) FROM t")), (labelled, [(rows,)]))
        self.assertRestores(plain, {newest: states[newest]})

    def test_a_janitor_beside_a_writer_that_only_creates(self):
        """Round after round: what was promised is there, each point with what it had, and nobody is denied anything."""
        guard, url, p = self.appending(pitr_window="0s")
        janitor, by_janitor = self.guarded("janitor")
        with open(self.path("walrust.toml"), "w") as f:
            f.write('pitr_window = "8s"\n[retention]\nhourly = 2\ndaily = 1\nweekly = 0\nmonthly = 0\n')
        states, labelled, plain = {}, {}, self.s3.url("tenants/app")
        for n in range(5):
            self.fill(p, states, 8)
            p.sql("SELECT walrust_label(?)", f"round-{n}")
            labelled[max(states)] = states[max(states)]
            done = self.run_cli("compact", by_janitor, "--force", env=self.s3.env())
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertRegex(done.stdout, "vouched for")
            self.assertNotIn("Not counted on", done.stdout)
            self.assertEqual(self.run_cli("verify", plain, env=self.s3.env()).returncode, 0)
            self.assertRestores(plain, labelled)
        self.assertEqual(p.status()["last_error"], None)
        p.end()
        def compacted():
            # (What is younger than pitr_window stays.)
            self.run_cli("compact", by_janitor, "--force", env=self.s3.env())
            return len(self.s3.keys("tenants/app/0000/")) < len(states)

        self.eventually(compacted, what="what is older than pitr_window and merged goes", timeout=60, every=1)
        self.assertEqual((guard.denied, janitor.denied), ([], []))
        self.assertGreater(janitor.actions["s3:DeleteObject"], 10)
        self.assertEqual(self.run_cli("verify", plain, "--mode", "deep", env=self.s3.env()).returncode, 0)
        self.assertRestores(plain, labelled)

    def test_who_only_creates_waits_for_a_lease_and_is_told_what_it_cannot(self):
        holder = self.streaming(self.s3.url("tenants/app"))
        holder.sync()
        p = self.peer(env=self.s3.env()).open(self.path("other.db"))
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.s3.url("tenants/app"), append_only=True)
        self.assertErrorLine(str(caught.exception), "held by")
        holder.end()
        with self.assertRaises(door.SqlError) as caught:
            p.watch(self.s3.url("tenants/new"), append_only=True, durability="sync")
        self.assertErrorLine(str(caught.exception), "append_only", "sync")


class Printed(door.DoorTest):
    def test_other_stores_and_bad_input(self):
        for store, url in (("gcs", "gs://bucket/app"), ("azure", "az://container/app")):
            for role in ("reader", "writer", "janitor", "all"):
                done = self.run_cli("policy", store, url, "--role", role)
                self.assertEqual(done.returncode, 0, done.stderr)
                text = json.dumps(json.loads(done.stdout))
                self.assertIn("app", text)
        for arguments, status in ((("s3", "gs://bucket/app"), 1), (("s3", "ftp://x"), 1), (("s3", "s3://b/a", "--role", "thief"), 2), (("disk", "/r"), 2)):
            done = self.run_cli("policy", *arguments)
            self.assertEqual(done.returncode, status, done.stdout + done.stderr)
            self.assertEqual(done.stdout, "")
        done = self.run_cli("policy", "s3", "s3://b/a", "--role", "janitor", "--append-only")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertErrorLine(done.stderr, "--role writer")
        self.assertIn("janitor", self.run_cli("policy", "s3", "s3://b/a", "--role", "writer").stderr)


if __name__ == "__main__":
    unittest.main()
