"""walrust_verify: each kind of damage is found, an untouched or live replica is never accused."""

import os
import re
import shutil
import time
import unittest

import pytest

import door

RANK = {"ok": 0, "warning": 1, "critical": 2}


class VerifyTest(door.DoorTest):
    def replica(self, commits=25, **options):
        p, db, url = self.watched(interval="0s", **options)
        for i in range(commits):
            p.sql("INSERT INTO t(v) VALUES(randomblob(?))", 200 + i * 97 % 3000)
            p.sync()
        self.db = db
        return p, url

    def verify(self, url, mode="quick", env=None):
        """The scalar report and the exit code it ends with."""
        text = self.shell(f"SELECT walrust_verify({door.quote(url)}, {door.quote(mode)});", env=env)
        return text, int(re.search(r"Exit code: (\d)", text).group(1))

    def findings(self, url, mode="quick"):
        columns = ", ".join(f'"{c}"' for c in door.VERIFY_COLUMNS)
        p = self.peer().open(":memory:")
        rows = [dict(zip(door.VERIFY_COLUMNS, r)) for r in p.rows(f"SELECT {columns} FROM walrust_verify(?, ?)", url, mode)]
        p.end()
        return rows

    def bad(self, url, mode="quick"):
        return [r for r in self.findings(url, mode) if r["severity"] != "ok"]


class Good(VerifyTest):
    def test_report_shape(self):
        p, url = self.replica(8)
        for mode in ("quick", "deep"):
            text, code = self.verify(url, mode)
            lines = text.splitlines()
            self.assertRegex(lines[0], r"^Verifying backup: \S+ in \S+$")
            self.assertIn(url, lines[0])
            self.assertRegex(lines[1], r"^=+$")
            self.assertRegex(lines[2], r"^Snapshot: ✅ Found TXID \d+-\d+ \(\d+ bytes\)")
            self.assertRegex(lines[3], r"^Incremental files: \d+ files$")
            for line in lines[4:4 + int(lines[3].split()[2])]:
                self.assertRegex(line, r"^✅ [0-9a-f]{16}-[0-9a-f]{16}\.ltx \(\d+ TXIDs?, .+\)$")
            self.assertIn("Issues found: 0", lines)
            self.assertTrue(any(x.startswith("Continuity: ✅") for x in lines), text)
            self.assertRegex(lines[-1], r"^Exit code: 0 \(.+\)$")
            self.assertEqual(code, 0)

    def test_rows(self):
        p, url = self.replica(8)
        rows = self.findings(url)
        self.assertEqual({r["severity"] for r in rows}, {"ok"})
        files = [r for r in rows if r["file"]]
        self.assertGreaterEqual(len({r["file"] for r in files}), len(door.ltx_files(url)))
        rules = {r["check"] for r in rows if not r["file"]}
        self.assertTrue(rules & {"continuity", "snapshot", "history"}, {r["check"] for r in rows})

    def test_without_arguments_it_is_this_connections_replica(self):
        p, url = self.replica(3)
        self.assertIn(url, p.sql("SELECT walrust_verify()").splitlines()[0])

    def test_an_empty_replica(self):
        os.mkdir(self.path("empty"))
        text, code = self.verify(self.path("empty"))
        self.assertEqual(code, 2, text)
        self.assertIn("Snapshot: ", text)

    def test_after_merging(self):
        p, url = self.replica(20, levels=["150ms", "400ms", "1s"], snapshot_interval="500ms")
        time.sleep(1)
        for mode in ("quick", "deep"):
            text, code = self.verify(url, mode)
            self.assertEqual(code, 0, text)

    def test_foreign_files_are_ignored(self):
        p, url = self.replica(5)
        for name in ("README.txt", "ltx/notes.txt", "ltx/0/backup.zip", "ltx/0/0001.ltx.tmp"):
            with open(os.path.join(url, name), "w") as f:
                f.write("not ours")
        text, code = self.verify(url, "deep")
        self.assertEqual(code, 0, text)

    def test_a_live_replica_is_never_accused(self):
        """Verify runs in a loop while the replica is written, merged and snapshotted."""
        p, url = self.replica(5, levels=["200ms", "500ms", "1s"], snapshot_interval="700ms")
        seconds = 4 * min(door.ROUNDS, 5)
        p.send(op="code", code="""
end = time.time() + args['seconds']
n = 0
while time.time() < end:
    conns['main'].execute('INSERT INTO t(v) VALUES(randomblob(700))')
    n += 1
    time.sleep(0.004)
result = n
""", args={"seconds": seconds})
        judge, count = self.peer().open(":memory:"), 0
        end = time.monotonic() + seconds - 0.5
        while time.monotonic() < end:
            mode = "deep" if count % 4 == 3 else "quick"
            text = judge.sql("SELECT walrust_verify(?, ?)", url, mode)
            self.assertIn("Exit code: 0", text, text)
            count += 1
        self.assertGreater(p.wait(), 100)
        self.assertGreater(count, 5)

    def test_litestreams_files_are_checked_as_far_as_they_allow(self):
        from test_litestream import Daemon

        db, url = self.path("ls.db"), self.path("ls")
        q = self.peer(so=None).open(db)
        q.rows("PRAGMA journal_mode=wal")
        q.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        daemon = Daemon(self, db, f"file://{url}")
        for i in range(4):
            q.sql("INSERT INTO t(v) VALUES(?)", i)
            time.sleep(0.3)
        time.sleep(2)
        daemon.stop()
        text, code = self.verify(url, "deep")
        self.assertLess(code, 2, text)
        self.assertRegex(text, re.compile("unattested|not attested", re.I))


class Damage(VerifyTest):
    """Each in a copy of one replica: what quick must see, what only deep can."""

    def setUp(self):
        super().setUp()
        self.p, self.url = self.replica(25)
        self.p.end()
        self.turn = 0

    def copy(self):
        self.turn += 1
        to = self.path(f"copy{self.turn}")
        shutil.copytree(self.url, to)
        return to

    def l0(self, url, index):
        return door.ltx_files(url, 0)[index][3]

    def assertFound(self, url, name=None, modes=("quick", "deep"), least=1):
        for mode in modes:
            text, code = self.verify(url, mode)
            self.assertGreaterEqual(code, least, f"{mode}: {text}")
            self.assertNotIn("Issues found: 0", text)
            if name:
                self.assertIn(name, text, mode)
        return text

    def flip(self, path, at, mask=0x40):
        with open(path, "r+b") as f:
            at = at if at >= 0 else os.path.getsize(path) + at
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ mask]))

    def test_missing_first_middle_last(self):
        for index in (0, 12, -1):
            with self.subTest(index=index):
                url = self.copy()
                path = self.l0(url, index)
                os.unlink(path)
                self.assertFound(url, os.path.basename(path))

    def test_truncated(self):
        url = self.copy()
        path = self.l0(url, 9)
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) // 2)
        self.assertFound(url, os.path.basename(path))

    def test_emptied(self):
        url = self.copy()
        path = self.l0(url, 9)
        open(path, "w").close()
        self.assertFound(url, os.path.basename(path))

    def test_longer(self):
        url = self.copy()
        path = self.l0(url, 9)
        with open(path, "ab") as f:
            f.write(b"\0")
        self.assertFound(url, os.path.basename(path))

    def test_flipped_header(self):
        for at in (0, 5, 9, 15, 23, 31, 39, 60, 75, 82, 95):
            with self.subTest(at=at):
                url = self.copy()
                path = self.l0(url, 7)
                self.flip(path, at)
                self.assertFound(url, os.path.basename(path))

    def test_flipped_index_and_trailer(self):
        for at in (-1, -8, -12, -20, -26):
            with self.subTest(at=at):
                url = self.copy()
                path = self.l0(url, 7)
                self.flip(path, at)
                self.assertFound(url, os.path.basename(path))

    def test_flipped_body_is_found_by_deep(self):
        url = self.copy()
        path = self.l0(url, 7)
        self.flip(path, 150)
        text, code = self.verify(url, "deep")
        self.assertGreaterEqual(code, 1, text)
        self.assertIn(os.path.basename(path), text)
        self.assertIn("⚠️", text)
        self.assertRegex(text, "Recommendation: ")

    def test_flipped_snapshot_body(self):
        url = self.copy()
        path = [f for f in door.ltx_files(url) if f[1] == 1][-1][3]
        self.flip(path, 200)
        self.assertFound(url, os.path.basename(path), modes=("deep",))

    def test_another_databases_file_of_the_same_txid(self):
        """Litestream restores this silently."""
        other_db, other_url = self.path("other.db"), self.path("other")
        p, _, _ = self.watched(other_db, other_url, interval="0s")
        for i in range(25):
            p.sql("INSERT INTO t(v) VALUES(randomblob(?))", 200 + i * 97 % 3000)
            p.sync()
        p.end()
        url = self.copy()
        path = self.l0(url, 10)
        shutil.copy(os.path.join(other_url, os.path.relpath(path, url)), path)
        self.assertFound(url, os.path.basename(path))

    def test_two_files_swapped(self):
        url = self.copy()
        a, b = self.l0(url, 5), self.l0(url, 6)
        os.rename(a, a + ".x")
        os.rename(b, a)
        os.rename(a + ".x", b)
        self.assertFound(url, os.path.basename(a))

    def test_a_wrong_name(self):
        url = self.copy()
        path = self.l0(url, -1)
        number = int(os.path.basename(path)[:16], 16)
        os.rename(path, os.path.join(os.path.dirname(path), f"{number + 5:016x}-{number + 5:016x}.ltx"))
        self.assertFound(url)

    def test_a_duplicate_under_another_txid(self):
        url = self.copy()
        path = self.l0(url, -1)
        number = int(os.path.basename(path)[:16], 16)
        shutil.copy(path, os.path.join(os.path.dirname(path), f"{number + 1:016x}-{number + 1:016x}.ltx"))
        self.assertFound(url)

    def test_no_snapshot_is_critical(self):
        url = self.copy()
        for level, low, high, path in door.ltx_files(url):
            if low == 1:
                os.unlink(path)
        text = self.assertFound(url, least=2)
        self.assertRegex(text, r"Snapshot: (❌|⚠️)")

    def test_manifest_lost(self):
        """The files alone still make a restorable chain: said, but not critical."""
        url = self.copy()
        shutil.rmtree(os.path.join(url, "walrust"), ignore_errors=True)
        text, code = self.verify(url, "quick")
        self.assertLess(code, 2, text)
        out, _ = self.restore(url)
        self.assertSameBytes(self.db, out)

    def test_fix_removes_entries_without_an_object_and_no_object(self):
        url = self.copy()
        path = self.l0(url, -1)
        os.unlink(path)
        before = {k: v for k, v in door.tree(url).items() if k.endswith(".ltx")}
        text, code = self.verify(url, "fix")
        self.assertIn(os.path.basename(path), text)
        self.assertRegex(text, re.compile("removed", re.I))
        self.assertEqual({k: v for k, v in door.tree(url).items() if k.endswith(".ltx")}, before)
        text, code = self.verify(url, "quick")
        self.assertEqual(code, 0, text)
        self.restore(url)

    def test_quick_and_deep_change_nothing(self):
        url = self.copy()
        os.unlink(self.l0(url, 3))
        before = door.tree(url)
        for mode in ("quick", "deep"):
            self.verify(url, mode)
        self.assertEqual(door.tree(url), before)

    @pytest.mark.campaign
    def test_random_corruptions(self):
        """Single random corruptions of a replica: deep finds all, quick all that touch anything but page bodies."""
        counts = {"deep": 0, "quick": 0, "body": 0}
        judge = self.peer().open(":memory:")
        total = door.rounds(30)
        for turn in range(total):
            url = self.copy()
            files = door.ltx_files(url)
            path = self.random.choice(files)[3]
            with open(path, "rb") as f:
                data = f.read()
            kind = self.random.choice(("bit", "byte", "truncate", "delete", "swap", "duplicate"))
            body = False
            if kind in ("bit", "byte"):
                at = self.random.randrange(len(data))
                index_at = len(data) - 24 - int.from_bytes(data[-24:-16], "big")
                body = 100 <= at < index_at
                with open(path, "r+b") as f:
                    f.seek(at)
                    f.write(bytes([data[at] ^ (1 << self.random.randrange(8) if kind == "bit" else self.random.randrange(1, 256))]))
            elif kind == "truncate":
                with open(path, "r+b") as f:
                    f.truncate(self.random.randrange(len(data)))
            elif kind == "delete":
                os.unlink(path)
            else:
                other = self.random.choice([f[3] for f in files if f[3] != path])
                with open(other, "rb") as f:
                    theirs = f.read()
                if kind == "swap":
                    with open(path, "wb") as f:
                        f.write(theirs)
                    with open(other, "wb") as f:
                        f.write(data)
                else:
                    with open(path, "wb") as f:
                        f.write(theirs)
            said = judge.sql("SELECT walrust_verify(?, 'deep')", url)
            self.assertNotIn("Exit code: 0", said, f"deep missed {kind} in {path}\n{said}")
            counts["deep"] += 1
            if body:
                counts["body"] += 1
            else:
                said = judge.sql("SELECT walrust_verify(?, 'quick')", url)
                self.assertNotIn("Exit code: 0", said, f"quick missed {kind} in {path}\n{said}")
                counts["quick"] += 1
            shutil.rmtree(url)
        for _ in range(door.rounds(10)):
            self.assertIn("Exit code: 0", judge.sql("SELECT walrust_verify(?, 'quick')", self.url))
        print(f"\n{total} random corruptions: deep found {counts['deep']}, quick found {counts['quick']} of {counts['quick']} "
              f"outside page bodies ({counts['body']} in bodies)", flush=True)


if __name__ == "__main__":
    unittest.main()
