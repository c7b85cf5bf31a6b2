"""Databases that SQLite cannot read without a key: what is right is not called broken, and what is not checked is said."""

import json
import os
import unittest

import door

CIPHERS = os.path.join(os.path.dirname(door.BIN), "ciphers")


class Encrypted(door.DoorTest):
    """SQLCipher, which encrypts each page; with the first 32 bytes in the clear, too."""

    def setUp(self):
        super().setUp()
        self.hook = door.Hook(self)

    def peer(self, **kwargs):
        env = {"PYTHONPATH": CIPHERS, **(kwargs.pop("env", None) or {})}
        return super().peer(module="sqlcipher3", env=env, **kwargs)

    def keyed(self, p, path, conn="main", clear=0):
        p.open(path, conn)
        p.rows("PRAGMA key='secret'", conn=conn)
        if clear:
            p.rows(f"PRAGMA cipher_plaintext_header_size={clear}", conn=conn)
            p.rows("PRAGMA cipher_salt=\"x'000102030405060708090a0b0c0d0e0f'\"", conn=conn)
        return p

    def streamed(self, name, clear=0):
        p = self.peer()
        db, url = self.path(name + ".db"), self.path(name)
        self.keyed(p, db, clear=clear)
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        p.watch(url, webhooks=self.hook.url, interval="0s")
        for i in range(20):
            p.sql("INSERT INTO t(v) VALUES(?)", f"row {i}")
        return p, db, url, p.sync()

    def rows_of(self, path, clear=0):
        q = self.peer(so=None)
        self.keyed(q, path, clear=clear)
        self.assertEqual(q.sql("PRAGMA integrity_check"), "ok")
        rows = q.rows("SELECT v FROM t ORDER BY id")
        q.end()
        return [v for v, in rows]

    def test_restore_verify_and_no_alarm(self):
        for name, clear in (("all", 0), ("header", 32)):
            with self.subTest(name):
                p, db, url, txid = self.streamed(name, clear)
                with open(db, "rb") as f:
                    self.assertEqual(f.read(15) == b"SQLite format 3", bool(clear))
                wanted = [f"row {i}" for i in range(20)]
                for check in ("quick", "full", "none"):
                    out = self.path(f"{name}-{check}.db")
                    self.assertEqual(p.sql("SELECT walrust_restore(?, ?, NULL, ?)", url, out, json.dumps({"check": check})), txid)
                    self.assertEqual(self.rows_of(out, clear), wanted)
                # In SQLites that know of no cipher.
                self.assertEqual(self.rows_of(self.restore(url)[0], clear), wanted)
                done = self.run_cli("restore", url, self.path(f"{name}-cli.db"))
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn("structure not checked", done.stdout)
                done = self.run_cli("restore", "--json", url, self.path(f"{name}-json.db"))
                self.assertEqual(json.loads(done.stdout)["note"], "encrypted: structure not checked")
                self.assertEqual(self.rows_of(self.path(f"{name}-cli.db"), clear), wanted)
                for mode in ("quick", "deep"):
                    done = self.run_cli("verify", url, "--mode", mode)
                    self.assertEqual(done.returncode, 0, done.stdout)
                    self.assertEqual("not checked: the database is encrypted" in done.stdout, mode == "deep")
                    self.assertIn("Exit code: 0", p.sql("SELECT walrust_verify(?, ?)", url, mode))
                self.assertIsNone(p.status()["last_error"])
                p.end()
                self.assertEqual(self.hook.events("corruption_detected"), [])

    def test_damage_to_one_is_damage(self):
        p, db, url, txid = self.streamed("app")
        p.end()
        level0 = door.ltx_files(url, 0)
        with open(level0[-1][3], "r+b") as f:
            f.seek(150)
            byte = f.read(1)
            f.seek(150)
            f.write(bytes([byte[0] ^ 0x40]))
        self.assertNotEqual(self.run_cli("verify", url, "--mode", "deep").returncode, 0)


if __name__ == "__main__":
    unittest.main()
