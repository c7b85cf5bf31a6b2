"""What S3 itself does for a replica: objects that it keeps from removal, storage classes, encryption, versions of a bucket."""

import base64
import datetime
import os
import time
import unittest

import door

NOTHING = ("--hourly", "0", "--daily", "0", "--weekly", "0", "--monthly", "0")


class Headers(door.FaultProxy):
    """Notes the headers of what passes."""

    def __init__(self, test, port):
        super().__init__(test, port)
        self.headers = []

    def forward(self, method, path, headers, body):
        self.headers.append((method, path, {k.lower(): v for k, v in headers.items()}))
        return super().forward(method, path, headers, body)


class Bucket(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.s3 = door.S3(self)

    def stream(self, url, env=None, **options):
        p = self.peer(env=env or self.s3.env()).open(self.path("app.db"))
        p.watch(url, **{"interval": "0s", "levels": ["100ms"], "snapshot_interval": "0", **options})
        p.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v)")
        return p

    def fill(self, p, rows=4):
        for _ in range(rows):
            p.sql("INSERT INTO t(v) VALUES(hex(randomblob(500)))")
            txid = p.sync()
        return txid

    def files(self, bucket, prefix="app/00"):
        return [o["Key"] for o in self.s3.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]

    def by_level(self, bucket="bucket", what="StorageClass"):
        """What HEAD tells of the files, by level."""
        found = {}
        for key in self.files(bucket):
            found.setdefault(key.split("/")[1], set()).add(self.s3.s3.head_object(Bucket=bucket, Key=key).get(what))
        return found


class Locks(Bucket):
    def setUp(self):
        super().setUp()
        self.s3.s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        self.url = self.s3.url("app", bucket="locked")

    def until(self):
        """When the lock of each file ends. (moto forgets that of an upload in parts.)"""
        ends = {}
        for key in self.files("locked"):
            head = self.s3.s3.head_object(Bucket="locked", Key=key)
            if head["ContentLength"] < 16 << 20:
                self.assertEqual(head["ObjectLockMode"], self.mode, key)
                ends[key] = head["ObjectLockRetainUntilDate"]
        return ends

    mode = "GOVERNANCE"

    def test_each_file_is_kept_from_removal_and_nothing_else(self):
        proxy = Headers(self, self.s3.port)
        p = self.stream(self.s3.url("app", proxy.endpoint, bucket="locked"), retain="30d")
        self.fill(p)
        p.sql("SELECT walrust_snapshot()")
        # One that is put in parts.
        p.sql("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4200) INSERT INTO t(v) SELECT randomblob(4800) FROM n")
        p.sync(60)
        self.assertIsNone(p.status()["last_error"])
        p.end()
        ends = self.until()
        self.assertTrue({"0000", "0009"} <= {key.split("/")[1] for key in ends})
        month = datetime.timedelta(days=30)
        for key, end in ends.items():
            head = self.s3.s3.head_object(Bucket="locked", Key=key)
            self.assertLess(abs(end - (head["LastModified"] + month)), datetime.timedelta(hours=1), key)
        begun = [h for m, path, h in proxy.headers if m == "POST" and "uploads" in path]
        self.assertEqual([h["x-amz-object-lock-mode"] for h in begun], ["GOVERNANCE"])
        self.assertRegex(begun[0]["x-amz-object-lock-retain-until-date"], r"^\d{4}-\d\d-\d\dT")
        from botocore.exceptions import ClientError

        key = next(iter(ends))
        version = self.s3.s3.head_object(Bucket="locked", Key=key)["VersionId"]
        with self.assertRaises(ClientError):
            self.s3.s3.delete_object(Bucket="locked", Key=key, VersionId=version)
        for key in self.files("locked", "app/walrust/"):
            self.assertNotIn("ObjectLockMode", self.s3.s3.head_object(Bucket="locked", Key=key), key)
        out, _ = self.restore(self.url, env=self.s3.env())
        self.assertSameBytes(self.path("app.db"), out)

    def test_retention_extends_the_locks_of_what_it_keeps(self):
        self.mode = "COMPLIANCE"
        p = self.stream(self.url, retain="10s", retain_mode="compliance", retention={"by": "janitor"}, levels=["1h"])
        self.fill(p)
        p.sql("SELECT walrust_snapshot()")
        p.end()
        before = self.until()
        with open(self.path("walrust.toml"), "w") as f:
            f.write('pitr_window = "0s"\nretain = "10s"\nretain_mode = "compliance"\n')
        time.sleep(5.5)
        dry = self.run_cli("compact", self.url, *NOTHING, env=self.s3.env())
        self.assertRegex(dry.stdout, r"Locks: \d+ to extend")
        self.assertEqual(self.until(), before)
        done = self.run_cli("compact", self.url, "--force", *NOTHING, env=self.s3.env())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"Locks: \d+ extended to 10s from now")
        after = self.until()
        self.assertLess(len(after), len(before))
        for key, end in after.items():
            self.assertGreater(end, before[key], key)

    def test_who_refuses_is_told(self):
        p = self.stream(self.s3.url("app"), retain="30d")
        # A bucket without Object Lock takes none.
        row = self.eventually(lambda: p.status()["last_error"] and p.status(), what="an error")
        self.assertErrorLine(row["last_error"], "Object Lock", "s3:PutObjectRetention")
        self.assertEqual(self.files("bucket"), [])
        p.kill()
        q = self.peer().open(self.path("other.db"))
        with self.assertRaises(door.SqlError) as caught:
            q.watch(self.path("replica"), retain="30d")
        self.assertErrorLine(str(caught.exception), "retain is for replicas on S3")


class Classes(Bucket):
    def test_each_level_has_its_class_and_its_price(self):
        classes = {"storage_class_level0": "STANDARD", "storage_class_merged": "ONEZONE_IA", "storage_class_snapshot": "STANDARD_IA"}
        p = self.stream(self.s3.url("app"), **classes)
        self.fill(p)
        p.sql("SELECT walrust_snapshot()")
        self.eventually(lambda: self.files("bucket", "app/0001"), what="a merged file")
        # (The default class is not told.)
        self.assertEqual({k: v for k, v in self.by_level().items() if k != "0000"}, {"0001": {"ONEZONE_IA"}, "0009": {"STANDARD_IA"}})
        text = p.sql("SELECT walrust_explain()")
        self.assertRegex(text, r"Storage class of snapshots: STANDARD_IA @ \$0\.0125/GB and \$0\.01/1000 PUT")
        self.assertRegex(text, r"Note: STANDARD_IA bills 30 days")
        p.end()
        out, _ = self.restore(self.s3.url("app"), env=self.s3.env())
        self.assertSameBytes(self.path("app.db"), out)

    def test_a_class_that_would_have_to_be_thawed_is_refused(self):
        p = self.peer().open(self.path("app.db"))
        for name, value, words in (
            ("storage_class_snapshot", "DEEP_ARCHIVE", ("thawed", "GLACIER_IR")),
            ("storage_class_merged", "two words", ("storage class",)),
            ("sse", "rot13", ("aws:kms",)),
            ("retain_mode", "forever", ("governance", "compliance")),
        ):
            with self.assertRaises(door.SqlError) as caught:
                p.watch(self.path("r"), **{name: value})
            self.assertErrorLine(str(caught.exception), name, *words)


class Encryption(Bucket):
    def test_the_settings_of_encryption_are_the_headers_of_what_is_put(self):
        proxy = Headers(self, self.s3.port)
        p = self.stream(self.s3.url("app", proxy.endpoint), sse="aws:kms", sse_kms_key="alias/backup")
        self.fill(p)
        p.end()
        puts = [h for m, path, h in proxy.headers if m == "PUT" and ".ltx" in path]
        self.assertTrue(puts)
        for h in puts:
            self.assertEqual(h["x-amz-server-side-encryption"], "aws:kms")
            self.assertEqual(h["x-amz-server-side-encryption-aws-kms-key-id"], "alias/backup")
        self.assertEqual(self.by_level(what="ServerSideEncryption")["0000"], {"aws:kms"})

    def test_a_key_of_the_customers_comes_from_the_environment(self):
        proxy = Headers(self, self.s3.port)
        key = base64.b64encode(os.urandom(32)).decode()
        env = self.s3.env(AWS_SSE_CUSTOMER_KEY_BASE64=key)
        p = self.stream(self.s3.url("app", proxy.endpoint), env=env, sse="sse-c")
        self.fill(p)
        p.end()
        puts = [h for m, path, h in proxy.headers if m == "PUT" and ".ltx" in path]
        self.assertTrue(puts)
        for h in puts:
            self.assertEqual(h["x-amz-server-side-encryption-customer-algorithm"], "AES256")
            self.assertEqual(h["x-amz-server-side-encryption-customer-key"], key)
        out, _ = self.restore(self.s3.url("app", proxy.endpoint), env={**env, "AWS_SERVER_SIDE_ENCRYPTION": "sse-c"})
        self.assertSameBytes(self.path("app.db"), out)
        self.assertTrue([h for m, path, h in proxy.headers if m == "GET" and ".ltx" in path and "x-amz-server-side-encryption-customer-key" in h])


class AsOf(Bucket):
    def setUp(self):
        super().setUp()
        self.s3.s3.create_bucket(Bucket="kept")
        self.s3.s3.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
        self.url = self.s3.url("app", bucket="kept")

    def moment(self):
        """A time that what was put before it and what is put after it are told apart by: S3 tells seconds."""
        time.sleep(1.2)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        time.sleep(1.2)
        return now

    def restore_as_of(self, at, *more, url=None):
        out = self.path(f"as-of-{self.random.getrandbits(48):x}.db")
        return out, self.run_cli("restore", url or self.url, out, "--as-of", at, *more, env=self.s3.env())

    def test_a_bucket_that_was_emptied_and_written_over_is_read_as_it_was(self):
        before = self.moment()
        p = self.stream(self.url)
        first = self.fill(p)
        rows = p.sql("SELECT count(*) FROM t")
        at = self.moment()
        self.fill(p)
        p.sql("SELECT walrust_snapshot()")
        p.end()
        # Everything is written over, and then removed.
        keys = self.files("kept", "app/")
        for key in keys:
            self.s3.s3.put_object(Bucket="kept", Key=key, Body=b"ransom")
        self.assertEqual(self.run_cli("restore", self.url, self.path("no.db"), env=self.s3.env()).returncode, 1)
        for key in keys:
            self.s3.s3.delete_object(Bucket="kept", Key=key)
        self.assertEqual(self.files("kept", "app/"), [])
        out, done = self.restore_as_of(at)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"TXID {first:016x}", done.stdout)
        self.assertEqual(door.plain_rows(out, "SELECT count(*) FROM t"), [(rows,)])
        self.assertSound(out)
        # Any point of that time, and by SQL.
        out, done = self.restore_as_of(at, "--point", str(first - 1))
        self.assertEqual(done.returncode, 0, done.stderr)
        out, txid = self.restore(self.url, env=self.s3.env(), as_of=at)
        self.assertEqual(txid, first)
        out, done = self.restore_as_of(at, "--dry-run")
        self.assertEqual((done.returncode, os.path.exists(out)), (0, False), done.stderr)
        for when in (before, "now"):
            out, done = self.restore_as_of(when)
            self.assertEqual((done.returncode, os.path.exists(out)), (1, False))
            self.assertErrorLine(done.stderr, "holds")
        # It is only read: nothing of the bucket has changed.
        self.assertEqual(self.files("kept", "app/"), [])

    def test_a_bucket_without_versions_lacks_only_what_came_later(self):
        url = self.s3.url("app")
        p = self.stream(url, levels=["1h"])
        first = self.fill(p)
        at = self.moment()
        self.fill(p)
        p.end()
        _, done = self.restore_as_of(at, url=url)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"TXID {first:016x}", done.stdout)

    def test_what_is_no_time_and_no_bucket_is_refused(self):
        p = self.stream(self.path("replica"))
        self.fill(p)
        p.end()
        _, done = self.restore_as_of("1 hour ago", url=self.path("replica"))
        self.assertEqual(done.returncode, 1)
        self.assertErrorLine(done.stderr, "only S3 keeps the versions")
        _, done = self.restore_as_of("57")
        self.assertErrorLine(done.stderr, "as_of", "no time")


if __name__ == "__main__":
    unittest.main()
