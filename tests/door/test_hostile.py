"""Replicas, stores, servers and arguments made to harm: nothing outside of the target is touched, memory does not follow what an
input claims, certificates are checked, and no secret is in anything that anybody gets to see (I-STORE-1, I-STORE-5, I-STORE-6).

The readers themselves are fuzzed (fuzz/properties.rs); here the same is asked of the loaded extension.
"""

import datetime
import ipaddress
import json
import os
import re
import socket
import ssl
import unittest
import urllib.request

import door

EVIL_KEYS = [
    "../outside/ltx/0/0000000000000001-0000000000000009.ltx",
    "ltx/0/../../../outside/0000000000000001-0000000000000009.ltx",
    "/ltx/0/0000000000000001-0000000000000009.ltx",
    "ltx//0/0000000000000001-0000000000000009.ltx",
    "ltx/0/0000000000000001-0000000000000009.ltx/../../../../outside",
    "ltx/0/./0000000000000001-0000000000000009.ltx",
    "0000/../../outside/0000000000000001-0000000000000009.ltx",
    "0000//0000000000000001-0000000000000009.ltx",
    "0000/000000000000000A-000000000000000B.ltx",
    "0000/0000000000000009-0000000000000001.ltx",
    "0000/0000000000000000-0000000000000001.ltx",
    "walrust/../../outside/manifest-0000000000000001.json",
    "walrust/manifest-../../../outside.json",
    "walrust/manifest-ffffffffffffffffff.json",
]
MB = 1 << 20


class Memory(door.DoorTest):
    def bounded(self, p, call, most=96 * MB):
        """Runs a call that may fail; the process's memory grows by less than `most`."""
        with open(f"/proc/{p.pid}/clear_refs", "w") as f:
            f.write("5")  # the high-water mark begins anew
        before = self.peak(p)
        try:
            result = p.rows(call)
        except door.SqlError as error:
            self.assertEqual(len(str(error).splitlines()), 1, str(error)[:300])
            self.assertLess(len(str(error)), 5000)
            result = error
        grown = self.peak(p) - before
        self.assertLess(grown, most, f"{call[:100]}: {grown >> 20} MB more")
        return result

    def peak(self, p):
        with open(f"/proc/{p.pid}/status") as f:
            return int(re.search(r"VmHWM:\s+(\d+)", f.read())[1]) * 1024


class Directory(Memory):
    """A replica in a directory, as somebody else may have made it."""

    def replica(self):
        p, db, url = self.watched()
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", f"row {i}" * 50)
            p.sync()
        p.end()
        return db, url

    def everything(self, url):
        """Every function that reads a replica, in a process of its own, within bounded memory."""
        p = self.peer().open(":memory:")
        u, out = door.quote(url), door.quote(self.path("out.db"))
        for call in (f"SELECT * FROM walrust_list({u})", f"SELECT * FROM walrust_files({u})", f"SELECT walrust_verify({u})",
                     f"SELECT walrust_verify({u}, 'deep')", f"SELECT walrust_compact({u})",
                     f"SELECT walrust_restore({u}, {out}, NULL, '{{\"overwrite\":1}}')"):
            self.bounded(p, call)
        p.end()

    def test_fifos_where_files_belong(self):
        _, url = self.replica()
        for victim in (door.ltx_files(url, 0)[-1][-1], *(os.path.join(url, "walrust", n) for n in os.listdir(os.path.join(url, "walrust")))):
            if os.path.isfile(victim):
                os.rename(victim, victim + ".moved")
                os.mkfifo(victim)
                self.everything(url)
                os.unlink(victim)
                os.rename(victim + ".moved", victim)

    def test_objects_that_claim_to_be_huge(self):
        """Lease and manifest of 64 GB (sparse): they are named as what they are, and not read."""
        _, url = self.replica()
        for name in ("lease.json", "manifest-0000000000000001.json", "manifest-0000000000000007.json"):
            with open(os.path.join(url, "walrust", name), "ab") as f:
                f.truncate(64 << 30)
        self.everything(url)
        p = self.peer().open(":memory:")
        found = p.sql(f"SELECT walrust_verify({door.quote(url)})")
        self.assertIn("manifest-0000000000000001.json", found)
        # What lies beside it still restores.
        self.assertSound(self.restore(url)[0])

    def test_files_that_claim_to_be_huge(self):
        """Each number of an LTX file that decides a size, at its largest; the file is found damaged, the target is not touched."""
        db, url = self.replica()
        files = door.ltx_files(url)
        for level, low, high, path in (files[0], files[-1]):
            with open(path, "rb") as f:
                good = f.read()
            for at, length, what in ((8, 4, "page size"), (12, 4, "size in pages"), (24, 8, "last TXID"), (100, 4, "page number"),
                                     (106, 4, "block length"), (len(good) - 24, 8, "index length")):
                for value in (b"\xff" * length, b"\x7f" + b"\xff" * (length - 1), b"\x00" * length):
                    with self.subTest(what=what, value=value, level=level, txid=(low, high)):
                        with open(path, "wb") as f:
                            f.write(good[:at] + value + good[at + length:])
                        with open(self.path("out.db"), "w") as f:
                            f.write("mine")
                        os.unlink(self.path("out.db"))
                        self.everything(url)
                        if os.path.exists(self.path("out.db")):
                            # A field that does not matter, or a file that a restore does not need.
                            self.assertSound(self.path("out.db"))
                            os.unlink(self.path("out.db"))
                        left = [n for n in os.listdir(self.dir) if "walrust-restore" in n]
                        self.assertEqual(left, [])
            with open(path, "wb") as f:
                f.write(good)
        self.assertSameBytes(db, self.restore(url)[0])

    def test_names_and_links_that_lead_outside(self):
        db, url = self.replica()
        outside = self.path("outside")
        os.mkdir(outside)
        with open(os.path.join(outside, "0000000000000001-0000000000000009.ltx"), "w") as f:
            f.write("untouched")
        level = os.path.join(url, "ltx", "0")
        os.symlink("..", os.path.join(level, "loop"))
        os.symlink(outside, os.path.join(level, "away"))
        for name in ("..ltx", "0000000000000001-00000000000000ff.ltx.tmp", "0000000000000001-00000000000000FF.ltx", "-.ltx",
                     "ffffffffffffffff-ffffffffffffffff.LTX", "a\nb.ltx", "\x1b[31m.ltx"):
            with open(os.path.join(level, name), "w") as f:
                f.write("x")
        with open(os.path.join(os.fsencode(level), b"\xff\xfe.ltx"), "w") as f:
            f.write("x")
        before = door.tree(outside)
        self.assertSameBytes(db, self.restore(url)[0])
        done = self.run_shell(f"SELECT walrust_verify({door.quote(url)}, 'fix'); SELECT walrust_compact({door.quote(url)}, '{{\"force\":1}}');")
        self.assertNotIn("\x1b", done.stdout + done.stderr)
        self.assertEqual(door.tree(outside), before)

    def test_a_txid_at_the_end_of_the_numbers(self):
        """A file named as the last TXID there is: restore says so, and a watcher does not begin again at 1 beside it."""
        _, url = self.replica()
        last = os.path.join(url, "ltx", "0", "ffffffffffffffff-ffffffffffffffff.ltx")
        with open(door.ltx_files(url)[-1][3], "rb") as f, open(last, "wb") as to:
            to.write(f.read())
        self.everything(url)
        with self.assertRaises(door.SqlError) as caught:
            self.restore(url)
        self.assertErrorLine(str(caught.exception), "walrust_restore")


class Bucket(door.DoorTest):
    def test_a_listing_with_keys_that_lead_outside(self):
        """The server lists keys that no bucket should hold; no request leaves the prefix, and restore finds what is good."""
        s3 = door.S3(self)
        proxy = door.FaultProxy(self, s3.port)
        db, url = self.path("app.db"), s3.url("app", proxy.endpoint)
        p = self.peer(env=s3.env()).open(db)
        p.watch(url)
        p.sql("CREATE TABLE t(v)")
        p.sql("INSERT INTO t VALUES('good')")
        p.sync()
        p.end()
        forward = proxy.forward
        evil = "".join(
            f"<Contents><Key>app/{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag>"
            f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, size in zip(EVIL_KEYS, (0, 1, 18446744073709551615, 9223372036854775807, 100) * 9)
        )

        def poisoned(method, path, headers, body):
            status, answer, data = forward(method, path, headers, body)
            if method == "GET" and b"</ListBucketResult>" in data:
                data = data.replace(b"</ListBucketResult>", evil.encode() + b"</ListBucketResult>")
            return status, answer, data

        proxy.forward, proxy.seen = poisoned, []
        for call in ("SELECT count(*) FROM walrust_list", "SELECT count(*) FROM walrust_files", "SELECT walrust_verify",
                     "SELECT walrust_compact"):
            done = self.run_shell(f"{call}({door.quote(url)});", env=s3.env())
            if done.returncode:
                self.assertErrorLine(done.stderr, call.split()[-1])
        out, _ = None, None
        done = self.run_shell(f"SELECT walrust_restore({door.quote(url)}, {door.quote(self.path('out.db'))});", env=s3.env())
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertSameBytes(db, self.path("out.db"))
        for method, path, _ in proxy.seen:
            where = path.split("?")[0]
            self.assertRegex(where, r"^/bucket(/app/.*)?$", f"{method} {path}")
            self.assertNotIn("..", where)
            self.assertEqual(method, "GET" if method != "HEAD" else method, path)


class Certificates(door.DoorTest):
    """An https endpoint whose certificate nobody vouches for is refused; with SSL_CERT_FILE or AWS_CA_BUNDLE it is accepted."""

    def authority(self):
        """A CA and a certificate of 127.0.0.1, as (CA file, certificate and key file)."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        now = datetime.datetime.now(datetime.timezone.utc)
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("walrust test CA", "127.0.0.1")]

        def made(subject, key, issuer, signer, ca):
            b = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            b = b.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            b = b.not_valid_after(now + datetime.timedelta(days=30)).add_extension(x509.BasicConstraints(ca, None), True)
            b = b.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            return b.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

        ca = made(names[0], keys[0], names[0], keys[0], True)
        leaf = made(names[1], keys[1], names[0], keys[0], False)
        private = keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for name, data in (("ca.pem", ca), ("server.pem", leaf + private)):
            with open(self.path(name), "wb") as f:
                f.write(data)
        return self.path("ca.pem"), self.path("server.pem")

    def test_unknown_authorities_are_refused_and_named_ones_accepted(self):
        s3 = door.S3(self)
        ca, server = self.authority()
        proxy = door.FaultProxy(self, s3.port)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server)
        proxy.server.socket = context.wrap_socket(proxy.server.socket, server_side=True)
        url = s3.url("app", f"https://127.0.0.1:{proxy.port}")
        p = self.peer(env=s3.env(SSL_CERT_FILE=ca)).open(self.path("app.db"))
        p.watch(url)
        p.sql("CREATE TABLE t(v)")
        p.sync()
        p.end()
        call = f"SELECT walrust_restore({door.quote(url)}, 'out.db', NULL, '{{\"overwrite\":1}}');"
        for name, env, good in (
            ("the system's", {}, False),
            ("SSL_CERT_FILE", {"SSL_CERT_FILE": ca}, True),
            ("AWS_CA_BUNDLE", {"AWS_CA_BUNDLE": ca}, True),
            ("a bundle that is none", {"AWS_CA_BUNDLE": server + ".missing"}, False),
        ):
            with self.subTest(name):
                seen = len(proxy.seen)
                done = self.run_shell(call, env=s3.env(**env), timeout=120)
                if good:
                    self.assertEqual(done.returncode, 0, done.stderr)
                else:
                    self.assertNotEqual(done.returncode, 0, done.stdout)
                    self.assertErrorLine(done.stderr, "walrust_restore", "certificate|CA|bundle")
                    self.assertEqual(len(proxy.seen), seen, "a request went out all the same")
        # The right authority, another host.
        other = s3.url("app", f"https://localhost:{proxy.port}")
        done = self.run_shell(f"SELECT walrust_restore({door.quote(other)}, 'out.db', NULL, '{{\"overwrite\":1}}');", env=s3.env(SSL_CERT_FILE=ca),
                              timeout=120)
        self.assertNotEqual(done.returncode, 0)
        self.assertErrorLine(done.stderr, "certificate|name")


class Secrets(door.DoorTest):
    """I-10: secrets planted wherever one may be given; then every surface is searched for them."""

    PLANTED = {
        "session token": "planted-session-token-7f3a", "webhook secret": "planted-webhook-secret-91c2", "webhook path": "planted-path-capability-55ee",
        "profile key": "planted-profile-secret-0d4b", "config webhook": "planted-config-webhook-a6a6", "proxy password": "planted-proxy-password-3b3b",
        "page token": "planted-page-token-c4d1",
    }

    def test_no_secret_on_any_surface(self):
        s3 = door.S3(self)
        hook, seen = door.Hook(self), {}
        os.mkdir(self.path(".aws"))
        with open(self.path(".aws", "credentials"), "w") as f:
            f.write(f"[default]\naws_access_key_id = AKIAPLANTED\naws_secret_access_key = {self.PLANTED['profile key']}\n")
        port = door.free_port()
        config = door.toml(self, f'''
metrics_listen = "127.0.0.1:{port}"
metrics_token = "{self.PLANTED['page token']}"
[[webhooks]]
url = "{hook.url}/{self.PLANTED['webhook path']}"
secret = "{self.PLANTED['webhook secret']}"
[[databases]]
path = "{self.dir}/other*.db"
replica = "{self.path("other-replica")}"
[[databases.webhooks]]
url = "{hook.url}"
secret = "{self.PLANTED['config webhook']}"
''')
        env = s3.env(WALRUST_CONFIG=config, AWS_SESSION_TOKEN=None, HTTPS_PROXY=f"http://u:{self.PLANTED['proxy password']}@127.0.0.1:1")
        db = self.path("app.db")
        p = self.peer(env=env).open(db)
        p.watch(s3.url("app"), interval="0s", webhooks=[{"url": f"{hook.url}/{self.PLANTED['webhook path']}", "secret": self.PLANTED["webhook secret"]}],
                retry={"base": "5ms", "max": "20ms"})
        p.open(self.path("other1.db"), "o")
        p.sql("CREATE TABLE t(v)")
        p.sql("INSERT INTO t VALUES(1)")
        p.sync()
        p.sql("SELECT walrust_snapshot()")
        for name in ("status", "config", "files", "verify"):
            seen[f"walrust_{name}"] = p.rows(f"SELECT * FROM walrust_{name}")
        for call in ("walrust_verify()", "walrust_explain()", "walrust_compact()", "walrust_metrics()", "walrust_version()", "walrust_notify_test()"):
            seen[call] = p.rows("SELECT " + call)
        seen["walrust_list"] = p.rows(f"SELECT * FROM walrust_list({door.quote(s3.url('app'))})")
        for page in ("metrics", "health", "", "status.json"):
            def fetch(page=page):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}") as answer:
                    return answer.read().decode()
            try:
                seen["/" + page] = fetch()
            except urllib.error.HTTPError as error:
                seen["/" + page] = error.read().decode()
        # Wrong secrets make errors and events.
        wrong = s3.env(AWS_SECRET_ACCESS_KEY=self.PLANTED["profile key"], AWS_SESSION_TOKEN=self.PLANTED["session token"], WALRUST_CONFIG=config)
        q = self.peer(env=wrong).open(self.path("denied.db"))
        for call in (f"walrust_watch({door.quote(s3.url('denied'))})", f"walrust_verify({door.quote(s3.url('app'))})",
                     f"walrust_restore({door.quote(s3.url('app'))}, {door.quote(self.path('n.db'))})"):
            try:
                seen["denied " + call] = q.rows("SELECT " + call)
            except door.SqlError as error:
                seen["denied " + call] = str(error)
        seen["denied status"] = q.rows("SELECT * FROM walrust_status")
        q.kill()
        for options in ({"webhooks": [{"url": "ftp://" + self.PLANTED["webhook path"], "secret": self.PLANTED["webhook secret"]}]},
                        {"webhooks": [{"url": hook.url, "secret": self.PLANTED["webhook secret"], "event": "x"}]}):
            with self.assertRaises(door.SqlError) as caught:
                p.watch(s3.url("app2"), **options)
            seen[f"refused {list(options)}"] = str(caught.exception)
        for argv in (["verify", s3.url("app")], ["list", s3.url("app"), "--json"], ["files", s3.url("app"), "--json"], ["status", db, "--json"],
                     ["explain", db, "--json"], ["explain", db], ["--help"], ["restore", "--help"], ["restore", s3.url("nothing"), self.path("n.db")]):
            done = self.run_cli(*argv, env=env)
            seen["cli " + " ".join(argv)] = done.stdout + done.stderr
        done = self.run_shell(f".log stderr\nSELECT walrust_verify({door.quote(s3.url('app'))});\nSELECT walrust_restore({door.quote(s3.url('x'))}, 'n.db');", env=wrong)
        seen["the log"] = done.stdout + done.stderr
        self.eventually(lambda: hook.events("snapshot_complete"), what="a webhook")
        seen["webhooks"] = [(h, b.decode()) for h, b in hook.requests]
        p.end()
        seen["stderr"] = p.stderr() + q.stderr()
        for key in s3.keys():
            seen["object " + key] = s3.get(key).decode("latin-1")
        for base, _, names in os.walk(self.path("app.db-walrust")):
            for name in names:
                with open(os.path.join(base, name), "rb") as f:
                    seen["spool " + name] = f.read().decode("latin-1")
        self.assertGreater(len(seen), 40)
        self.assertTrue(any(k.endswith("lease.json") for k in seen) and any("manifest" in k for k in seen))
        secrets = {**self.PLANTED, "secret key": s3.secret_key}
        for surface, shown in seen.items():
            text = shown if isinstance(shown, str) else json.dumps(shown, default=repr)
            for name, secret in secrets.items():
                if surface == "webhooks" and name == "webhook path":
                    continue  # where it was sent to
                self.assertNotIn(secret, text, f"the {name} is in {surface}")


class Arguments(Memory):
    FUNCTIONS = [
        ("walrust_version", 0), ("walrust_watch", 2), ("walrust_unwatch", 0), ("walrust_sync", 1), ("walrust_snapshot", 1), ("walrust_restore", 4),
        ("walrust_replicate", 3), ("walrust_unreplicate", 1), ("walrust_verify", 2), ("walrust_explain", 1), ("walrust_compact", 2),
        ("walrust_metrics", 0), ("walrust_notify_test", 0), ("walrust_url", 2), ("walrust_past", 1), ("walrust_rewind", 1),
        ("walrust_last_error", 0),
    ]
    TABLES = [("walrust_status", 0), ("walrust_list", 1), ("walrust_files", 1), ("walrust_points", 1), ("walrust_changes", 3),
              ("walrust_verify", 2), ("walrust_config", 0)]
    VALUES = [
        "NULL", "x''", "x'00ff'", "zeroblob(100000)", "9223372036854775807", "-9223372036854775808", "0", "-1", "1e999", "-1e999", "1e-320", "0.0",
        "''", "' '", "char(0)", "char(10)", "'a' || char(0) || 'b'", "CAST(x'ff' AS TEXT)", "CAST(x'c0af2e2e' AS TEXT)", "CAST(x'eda080' AS TEXT)",
        "char(0x10ffff)", "char(0x202e)", "'..'", "'../..'", "'%s%n'", "'file://'", "'s3://'", "'{'", "'[]'", "'{}'", "'null'", "'latest'",
        "'{\"a\":' || printf('%.*c', 5000, '[') || '}'", "printf('%.*c', 100000, 'x')", "printf('%.*c', 3000000, 'x')", "zeroblob(3000000)",
    ]

    def test_every_type_and_size_at_every_position(self):
        """A call that succeeds is fine; one that fails says so in one line. The process lives, and the database beside it streams on."""
        home = self.path("home")
        os.mkdir(home)
        p = self.peer(cwd=home).open(self.path("app.db"))
        p.watch(self.path("replica"))
        p.sql("CREATE TABLE t(v)")
        p.open(os.path.join(home, "victim.db"), "v")
        calls = 0
        for name, most in self.FUNCTIONS + [(t, n) for t, n in self.TABLES]:
            table = (name, most) in self.TABLES
            for position in range(most):
                for value in self.VALUES:
                    least = 2 if name in ("walrust_restore", "walrust_replicate") else 0
                    arguments = ", ".join([door.quote(self.path("nowhere"))] * position + [value] + ["'x.db'"] * (least - position - 1))
                    call = f"SELECT count(*) FROM {name}({arguments})" if table else f"SELECT {name}({arguments})"
                    calls += 1
                    try:
                        p.rows(call, conn="v")
                    except door.SqlError as error:
                        self.assertEqual(len(str(error).splitlines()), 1, f"{call[:80]}: {str(error)[:300]!r}")
                        # (A path is shown as it was given.)
                        self.assertLess(len(str(error)), 110_000, call[:80])
                        # (A byte that is no text is SQLite's own complaint in Python's answer.)
                        self.assertRegex(str(error), re.compile(name + "|walrust|utf-8|no such", re.I), call[:80])
                    if p.status(database=os.path.join(home, "victim.db")):
                        p.sql("SELECT walrust_unwatch()", conn="v")
        self.assertGreater(calls, 600)
        p.sql("INSERT INTO t VALUES('still here')")
        p.sync()
        out, _ = self.restore(self.path("replica"))
        self.assertSameBytes(self.path("app.db"), out)

    def test_a_gigabyte_is_refused_without_being_copied(self):
        p = self.peer().open(":memory:")
        for value in ("zeroblob(999999999)", "CAST(zeroblob(999999999) AS TEXT)"):
            for name, most in self.FUNCTIONS:
                least = 2 if name in ("walrust_restore", "walrust_replicate") else 0
                for position in range(most):
                    arguments = ", ".join(["'x'"] * position + [value] + ["'x'"] * (least - position - 1))
                    # SQLite holds the value itself; beside that one no other may be made.
                    error = self.bounded(p, f"SELECT {name}({arguments})", most=int(1.3e9) if "CAST" not in value else int(2.3e9))
                    self.assertIsInstance(error, door.SqlError, f"{name} took {value}")
                    self.assertErrorLine(str(error), name, "bytes")


if __name__ == "__main__":
    unittest.main()
