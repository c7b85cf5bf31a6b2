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

    def policy(self, role, url="s3://bucket/tenants/app"):
        done = self.run_cli("policy", "s3", url, "--role", role)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def guarded(self, role):
        guard = Guard(self, self.s3.port, self.policy(role))
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
        self.assertIn("janitor", self.run_cli("policy", "s3", "s3://b/a", "--role", "writer").stderr)


if __name__ == "__main__":
    unittest.main()
