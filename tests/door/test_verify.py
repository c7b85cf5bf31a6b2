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

    def test_a_good_files_row_is_the_file(self):
        p, url = self.replica(4)
        rows = self.findings(url)
        found = {(r["file"], r["min_txid"], r["max_txid"], r["bytes"]) for r in rows if r["file"]}
        self.assertEqual(found, {(os.path.basename(f[3]), f[1], f[2], os.path.getsize(f[3])) for f in door.ltx_files(url)})
        over_all = {r["check"]: r for r in rows if not r["file"]}
        self.assertLessEqual({"existence", "continuity", "snapshot", "history"}, set(over_all))
        newest = max(f[2] for f in door.ltx_files(url))
        self.assertEqual((over_all["continuity"]["min_txid"], over_all["continuity"]["max_txid"]), (1, newest))
        self.assertTrue(all(r["message"] for r in rows))
        self.assertLessEqual({"content", "integrity"}, {r["check"] for r in self.findings(url, "deep") if not r["file"]})

    def test_what_the_database_itself_has_wrong_is_found_by_deep(self):
        """PRAGMA integrity_check of what was rebuilt: a row that its table's own CHECK forbids."""
        db, url = self.path("broken.db"), self.path("broken")
        q = door.plain_connect(db)
        for statement in ("CREATE TABLE t(id INTEGER PRIMARY KEY, v CHECK(v > 0))", "PRAGMA ignore_check_constraints=1", "INSERT INTO t(v) VALUES(-1)"):
            q.execute(statement)
        q.close()
        p, _, _ = self.watched(db, url, schema=None)
        p.sync()
        self.assertEqual(self.verify(url)[1], 0)
        text, code = self.verify(url, "deep")
        self.assertEqual(code, 2)
        self.assertRegex(text, r"(?m)^Integrity: ❌ CHECK constraint failed in t$")
        self.assertEqual([(r["severity"], r["check"]) for r in self.bad(url, "deep")], [("critical", "integrity")])

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

    def test_the_report_of_damage_is_the_promised_one(self):
        """Line by line, as in the contract."""
        url = self.copy()
        files = door.ltx_files(url, 0)
        self.flip(files[10][3], -3)
        text, code = self.verify(url)
        name, txid = os.path.basename(files[10][3]), files[10][1]
        lines = text.splitlines()
        snapshot = [f for f in door.ltx_files(url) if f[1] == 1][-1]
        increments = [f for f in door.ltx_files(url) if f[1] > 1]
        self.assertEqual(lines[0], f"Verifying backup: {os.path.basename(url)} in file://{url}")
        self.assertEqual(lines[1], "=" * 48)
        self.assertEqual(lines[2], f"Snapshot: ✅ Found TXID 1-{snapshot[2]} ({os.path.getsize(snapshot[3])} bytes)")
        self.assertEqual(lines[3], f"Incremental files: {len(increments)} files")
        for line, (_, low, high, path) in zip(lines[4:], increments):
            kb = -(-os.path.getsize(path) // 1024)
            good = f"✅ {os.path.basename(path)} ({high - low + 1} TXID{'s' * (high > low)}, {kb}KB)"
            self.assertEqual(line, f"⚠️ {name} (checksum mismatch!)" if os.path.basename(path) == name else good)
        self.assertEqual(lines[4 + len(increments):], [
            "Issues found: 1", f"- Checksum mismatch in {name}", f"Continuity: ⚠️ Gap detected: TXID {txid} corrupt",
            "Recommendation: Re-snapshot database to repair backup chain", "Exit code: 1 (issues found)"])
        self.assertEqual(code, 1)

    def test_each_rule_has_its_name_in_the_rows(self):
        """What is wrong, under which check, with which severity, of which file."""
        def remove(url):
            os.unlink(self.l0(url, 9))

        def wrong_name(url):
            path = self.l0(url, -1)
            number = int(os.path.basename(path)[:16], 16) + 1
            os.rename(path, os.path.join(os.path.dirname(path), f"{number:016x}-{number:016x}.ltx"))

        def trailer(url):
            self.flip(self.l0(url, 9), -3)

        def no_snapshot(url):
            for f in door.ltx_files(url):
                if f[1] == 1:
                    os.unlink(f[3])

        def foreign(url):
            """A file of another history, with a manifest that knows nothing of it."""
            shutil.copy(os.path.join(self.path("foreign"), os.path.relpath(self.l0(url, 9), url)), self.l0(url, 9))
            shutil.rmtree(os.path.join(url, "walrust"))

        p, _, _ = self.watched(self.path("foreign.db"), self.path("foreign"), interval="0s")
        for i in range(10):
            p.sql("INSERT INTO t(v) VALUES(randomblob(900))")
            p.sync()
        p.end()
        txid = door.ltx_files(self.url, 0)[9][1]
        for harm, file, over_all in (
            (remove, ("warning", "existence", txid), {("warning", "existence"), ("warning", "continuity")}),
            (wrong_name, ("warning", "header", door.ltx_files(self.url, 0)[-1][1] + 1), {("warning", "existence"), ("warning", "continuity")}),
            (trailer, ("warning", "checksum", txid), {("warning", "continuity")}),
            (no_snapshot, ("warning", "existence", 1), {("critical", "snapshot"), ("critical", "continuity")}),
            (foreign, ("warning", "history", txid), {("warning", "history"), ("warning", "continuity")}),
        ):
            with self.subTest(harm=harm.__name__):
                url = self.copy()
                harm(url)
                bad = self.bad(url)
                self.assertIn(file, {(r["severity"], r["check"], r["min_txid"]) for r in bad if r["file"]}, bad)
                self.assertLessEqual(over_all, {(r["severity"], r["check"]) for r in bad if not r["file"]}, bad)
                self.assertTrue(all(r["message"] for r in bad))

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

    def test_manifest_stale(self):
        """An older manifest put back: what was uploaded since is not in it."""
        url, db = self.path("young"), self.path("young.db")
        p, _, _ = self.watched(db, url, interval="0s")
        p.sync()
        old = os.path.join(self.dir, "old")
        shutil.copytree(os.path.join(url, "walrust"), old)
        for i in range(5):
            p.sql("INSERT INTO t(v) VALUES(?)", i)
            p.sync()
        p.end()
        self.assertEqual(self.verify(url)[1], 0)
        for name in os.listdir(old):
            if name.startswith("manifest"):
                shutil.copy(os.path.join(old, name), os.path.join(url, "walrust", name))
        text = self.assertFound(url)
        self.assertIn("Stale manifest", text)

    def test_manifest_damaged(self):
        url = self.copy()
        name = next(n for n in os.listdir(os.path.join(url, "walrust")) if n.startswith("manifest"))
        self.flip(os.path.join(url, "walrust", name), 300)
        self.assertIn("Damaged manifest", self.assertFound(url))


class Campaign(VerifyTest):
    """What chance does to a replica of more than 200 files, and 500 looks at one that lives (`make damage`)."""

    KINDS = ("bit", "byte", "truncate", "delete", "swap", "duplicate")

    def corrupt(self, url):
        """One random corruption. Gives (kind, file, whether it is within a page's bytes)."""
        files = [f[3] for f in door.ltx_files(url)]
        path, kind = self.random.choice(files), self.random.choice(self.KINDS)
        with open(path, "rb") as f:
            data = f.read()
        body = False

        def write(to, what):
            os.unlink(to)  # the copy's files are links to the replica's
            with open(to, "wb") as f:
                f.write(what)

        if kind in ("bit", "byte"):
            at = self.random.randrange(len(data))
            # Header, pages, six zero bytes, page index, its length, two checksums.
            body = 100 <= at < len(data) - 24 - int.from_bytes(data[-24:-16], "big") - 6
            by = 1 << self.random.randrange(8) if kind == "bit" else self.random.randrange(1, 256)
            write(path, data[:at] + bytes([data[at] ^ by]) + data[at + 1:])
        elif kind == "truncate":
            write(path, data[:self.random.randrange(len(data))])
        elif kind == "delete":
            os.unlink(path)
        elif kind == "swap":
            other = self.random.choice([f for f in files if f != path])
            os.rename(path, path + ".x")
            os.rename(other, path)
            os.rename(path + ".x", other)
        elif self.random.random() < 0.5:
            # Another file's content under this name.
            with open(self.random.choice([f for f in files if f != path]), "rb") as f:
                write(path, f.read())
        else:
            # This file once more, under a name that is free.
            newest = max(f[2] for f in door.ltx_files(url))
            low = newest + self.random.randrange(1, 3)
            write_to = os.path.join(os.path.dirname(path), f"{low:016x}-{low + self.random.randrange(2):016x}.ltx")
            shutil.copy(path, write_to)
        return kind, path, body

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_random_corruptions(self):
        """Single random corruptions: deep finds all, quick all that touch anything but page bodies."""
        p, url = self.replica(210, levels=["300ms", "1s", "3s"], snapshot_interval="1500ms", pitr_window="1h")
        p.end()
        files = door.ltx_files(url)
        self.assertGreaterEqual(len(files), 200)
        judge = self.peer().open(":memory:")
        for mode in ("quick", "deep"):
            self.assertIn("Exit code: 0", judge.sql("SELECT walrust_verify(?, ?)", url, mode))
        total, kinds = max(30, door.rounds(10)), dict.fromkeys(self.KINDS, 0)
        deep = quick = bodies = seen_bodies = 0
        missed = []
        for turn in range(total):
            copy = self.path(f"copy{turn}")
            shutil.copytree(url, copy, copy_function=os.link)
            kind, path, body = self.corrupt(copy)
            kinds[kind] += 1
            bodies += body
            found = {m: "Exit code: 0" not in judge.sql("SELECT walrust_verify(?, ?)", copy, m) for m in ("quick", "deep")}
            deep += found["deep"]
            quick += found["quick"] and not body
            seen_bodies += found["quick"] and body
            if not found["deep"] or not (found["quick"] or body):
                missed.append((turn, kind, os.path.relpath(path, copy), found))
            shutil.rmtree(copy)
        print(f"\n{total} random corruptions of a replica of {len(files)} files ({', '.join(f'{n} {k}' for k, n in kinds.items())}; "
              f"WALRUST_SEED={door.SEED}): deep found {deep} of {total}, quick {quick} of the {total - bodies} that touch anything but "
              f"page bodies ({seen_bodies} of the {bodies} that do not)", flush=True)
        self.assertEqual(missed, [])
        self.assertEqual((deep, quick), (total, total - bodies))

    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_a_live_replica_is_not_accused(self):
        """Verifies while one process commits, uploads, merges, snapshots, and retention removes files."""
        p, url = self.replica(5, levels=["200ms", "600ms", "2s"], snapshot_interval="500ms", pitr_window="3s",
                              retention={"hourly": 1, "daily": 1, "weekly": 1, "monthly": 1})
        p.code("""
import random
def write():
    c = connect(args['db'])
    r = random.Random(7)
    while not stop.is_set():
        c.execute('INSERT INTO t(v) VALUES(randomblob(?))', (r.randrange(3000),))
        if r.random() < 0.3:
            c.execute('DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY random() LIMIT 2)')
        time.sleep(0.004)
stop = threading.Event()
writer = threading.Thread(target=write)
writer.start()
conns['writer'] = (stop, writer)
""", db=self.db)
        judge, total = self.peer().open(":memory:"), max(30, door.rounds(10))
        accused, counts, gone, seen = [], {"quick": 0, "deep": 0}, set(), set()
        for turn in range(total):
            mode = "deep" if turn % 5 == 4 else "quick"
            now = {f[3] for f in door.ltx_files(url)}
            gone |= seen - now
            seen |= now
            text = judge.sql("SELECT walrust_verify(?, ?)", url, mode)
            counts[mode] += 1
            if "Exit code: 0" not in text:
                accused.append(text)
            time.sleep(0.05)
        p.code("stop, writer = conns.pop('writer')\nstop.set()\nwriter.join()")
        merges = sum(int(n) for n in re.findall(r"^walrust_merges_total\S* (\d+)", p.sql("SELECT walrust_metrics()"), re.M))
        txid = p.sync()
        print(f"\n{total} verifies ({counts['quick']} quick, {counts['deep']} deep) of a replica that was written meanwhile: {len(accused)} "
              f"reported an issue. Meanwhile: {txid} uploads, {merges} merges, {len(gone)} files seen removed by retention", flush=True)
        self.assertEqual(len(accused), 0, "\n".join(t for text in accused for t in text.splitlines() if not t.startswith("✅")))
        self.assertGreater(merges, 0)
        self.assertTrue(gone)


if __name__ == "__main__":
    unittest.main()
