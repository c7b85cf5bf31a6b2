"""The oracle: the database as it was at every TXID, and every TXID restored, bit for bit (the lock page aside)."""

import os
import unittest

import pytest

import door

SCHEMA = """
CREATE TABLE account(id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL);
CREATE INDEX account_owner ON account(owner);
CREATE TABLE entry(id INTEGER PRIMARY KEY, account INTEGER REFERENCES account, amount INTEGER, memo BLOB);
CREATE INDEX entry_account ON entry(account, amount DESC);
CREATE TABLE audit(n INTEGER PRIMARY KEY, what TEXT);
CREATE TABLE kv(k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID;
CREATE TRIGGER entry_added AFTER INSERT ON entry BEGIN
  UPDATE account SET balance = balance + new.amount WHERE id = new.account@
  INSERT INTO audit(what) VALUES('entry ' || new.id)@
END;
CREATE VIEW rich AS SELECT * FROM account WHERE balance > 1000
"""


def step(rng, p):
    """One random transaction (or a VACUUM). Everything that changes pages in a way of its own."""
    kind = rng.randrange(14)
    if kind == 0:
        p.sql("VACUUM")
        return
    if kind == 1:
        p.rows(f"PRAGMA wal_checkpoint({rng.choice(['PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'])})")
    p.sql("BEGIN IMMEDIATE")
    for _ in range(rng.randrange(1, 12)):
        what = rng.randrange(9)
        if what <= 2:
            p.sql("INSERT INTO account(owner, balance) VALUES(?, ?)", f"owner{rng.randrange(40)}", rng.randrange(5000))
        elif what <= 4:
            size = rng.choice((10, 300, 5000, 40_000))
            p.sql("INSERT INTO entry(account, amount, memo) VALUES(?, ?, randomblob(?))", rng.randrange(60), rng.randrange(-90, 90), size)
        elif what == 5:
            p.sql("DELETE FROM entry WHERE id % 5 = ?", rng.randrange(5))
        elif what == 6:
            p.sql("UPDATE account SET owner = owner || 'x' WHERE id % 3 = ?", rng.randrange(3))
        elif what == 7:
            p.sql("REPLACE INTO kv VALUES(?, randomblob(?))", f"key{rng.randrange(30)}", rng.randrange(3000))
        else:
            p.sql("SAVEPOINT s")
            p.sql("INSERT INTO audit(what) SELECT hex(randomblob(200)) FROM entry LIMIT 20")
            p.sql("ROLLBACK TO s")
            p.sql("RELEASE s")
    if kind == 2:
        p.sql("ROLLBACK")
    else:
        p.sql("COMMIT")


class Oracle(door.DoorTest):
    def drive(self, page_size, steps, cache=None, interval="0s", **options):
        db, url = self.path("app.db"), self.path("replica")
        p = self.peer().open(db)
        p.sql(f"PRAGMA page_size={page_size}")
        p.sql("PRAGMA wal_autocheckpoint=50")
        if cache:
            p.sql(f"PRAGMA cache_size={cache}")
        p.watch(url, interval=interval, **options)
        for statement in SCHEMA.split(";"):
            p.sql(statement.replace("@", ";"))
        kept = {}
        for _ in range(steps):
            step(self.random, p)
            txid = p.sync()
            kept[txid] = door.image(db)
        self.assertGreater(len(kept), steps // 2)
        p.end()
        restorer = self.peer().open(":memory:")
        for txid, was in kept.items():
            out = self.path(f"at-{txid}.db")
            self.assertEqual(restorer.sql("SELECT walrust_restore(?, ?, ?)", url, out, txid), txid)
            with open(out, "rb") as f:
                found = f.read()
            if found != was:
                self.fail(f"page size {page_size}: TXID {txid} of {max(kept)}: {door.difference(found, was)}")
            os.unlink(out)
        return kept, url

    def test_every_txid_at_page_size_4096(self):
        kept, url = self.drive(4096, door.rounds(70))
        self.assertSound(self.restore(url)[0])

    def test_every_txid_with_a_cache_that_spills(self):
        self.drive(4096, door.rounds(30), cache=8)

    def test_every_txid_at_other_page_sizes(self):
        for page_size in (512, 1024, 65536):
            with self.subTest(page_size=page_size):
                self.dir_of(page_size)
                self.drive(page_size, door.rounds(18))

    def dir_of(self, name):
        self.dir = self.path(f"size{name}")
        os.mkdir(self.dir)

    def test_every_txid_while_merging(self):
        """Levels and snapshots on a very short schedule: merged files restore the same bytes."""
        kept, url = self.drive(1024, door.rounds(40), levels=["200ms", "600ms", "2s"], snapshot_interval="1s")
        levels = {level for level, _, _, _ in door.ltx_files(url)}
        self.assertIn(9, levels)
        self.assertTrue(levels & {1, 2, 3}, levels)

    def test_litestream_restores_the_same_bytes_at_every_txid(self):
        kept, url = self.drive(4096, 12)
        for txid, was in kept.items():
            out = self.path(f"ls-{txid}.db")
            self.litestream("restore", "-o", out, "-txid", f"{txid:016x}", f"file://{url}")
            self.assertEqual(door.digest(door.image(out)), door.digest(was), txid)

    @pytest.mark.campaign
    def test_random_page_sizes_and_caches(self):
        for turn in range(door.rounds(2)):
            self.dir_of(f"turn{turn}")
            size = self.random.choice((512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))
            self.drive(size, 15, cache=self.random.choice((None, 5, 40)))


class BeyondOneGiB(door.DoorTest):
    def test_the_lock_page(self):
        """A database that crosses 1 GiB skips the page there; so does every file of the replica. 64 KiB pages: page 16385."""
        db, url = self.path("big.db"), self.path("r")
        if os.statvfs(self.dir).f_bavail * os.statvfs(self.dir).f_frsize < 6 << 30:
            self.skipTest("less than 6 GB free")
        p = self.peer().open(db)
        p.sql("PRAGMA page_size=65536")
        p.watch(url, interval="0s")
        p.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for _ in range(17):
            p.sql("INSERT INTO t(v) VALUES(zeroblob(?))", 63 << 20)
            p.rows("PRAGMA wal_checkpoint(PASSIVE)")
        p.sql("INSERT INTO t(v) VALUES(randomblob(200000))")
        txid = p.sync(120)
        self.assertGreater(p.sql("PRAGMA page_count"), 16385)
        out, at = self.restore(url)
        self.assertEqual(at, txid)
        self.assertSameBytes(db, out)


if __name__ == "__main__":
    unittest.main()
