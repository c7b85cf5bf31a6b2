"""What only the process that ships can do, any other process of the machine asks it for: snapshots, copies, retention, repair."""

import os
import threading
import time
import unittest

import door


class Asked(door.DoorTest):
    """Two processes with the database; the second is the standby."""

    def setUp(self):
        super().setUp()
        self.db, self.url = self.path("app.db"), self.path("replica")
        self.shipper = self.peer().open(self.db)
        self.shipper.watch(self.url, interval="0s", snapshot_interval="0s")
        self.shipper.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        self.shipper.sync()
        self.other = self.peer().open(self.db)
        self.other.watch(self.url, interval="0s", snapshot_interval="0s", pitr_window="0s")
        self.other.sql("INSERT INTO t(v) VALUES('one')")
        self.other.sync()
        self.assertEqual(self.other.status()["state"], "standby")

    def snapshots(self, url=None):
        return [f[2] for f in door.ltx_files(url or self.url, 9)]

    def left(self):
        """What lies in the folder of requests."""
        folder = self.db + "-walrust/requests"
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def test_a_standby_gets_its_snapshot(self):
        before = self.snapshots()
        txid = self.other.sql("SELECT walrust_snapshot()")
        self.assertIn(txid, self.snapshots())
        self.assertNotIn(txid, before)
        self.assertEqual(self.left(), [])
        out, at = self.restore(self.url)
        self.assertEqual(at, self.shipper.sync())
        self.assertSameBytes(self.db, out)

    def test_a_standby_gets_a_copy_elsewhere(self):
        there = self.path("copy")
        txid = self.other.sql(f"SELECT walrust_snapshot('{there}')")
        self.assertEqual(self.snapshots(there), [txid])
        with self.assertRaisesRegex(door.SqlError, "another history"):
            self.assertIsNone(self.other.sql(f"SELECT walrust_snapshot('{self.foreign()}')"))
        self.assertEqual(self.left(), [])

    def foreign(self):
        """A replica of another database."""
        db, url = self.path("foreign.db"), self.path("foreign")
        p = self.peer().open(db)
        p.watch(url, interval="0s")
        p.sql("CREATE TABLE f(a)")
        p.sync()
        p.end()
        return url

    def test_the_command_line_asks_the_process_that_streams(self):
        self.other.close()
        before = self.snapshots()
        self.shipper.sql("INSERT INTO t(v) VALUES('two')")
        self.assertEqual(self.run_cli("snapshot", self.db, self.url).returncode, 0)
        after = self.snapshots()
        self.assertEqual(len(after), len(before) + 1)
        self.assertEqual(after[-1], self.shipper.sync())

    def superfluous(self):
        """Files that the shipper's settings keep, and those of the asker do not."""
        for n in range(3):
            self.shipper.sql(f"INSERT INTO t(v) VALUES('s{n}')")
            self.shipper.sync()
            self.shipper.sql("SELECT walrust_snapshot()")
        return len(door.ltx_files(self.url, 0))

    def test_a_standby_compacts(self):
        most = self.superfluous()
        told = self.other.sql("SELECT walrust_compact(NULL, json('{\"force\":true}'))")
        self.assertIn("removed", told)
        self.assertLess(len(door.ltx_files(self.url, 0)), most)
        self.assertEqual(self.left(), [])
        self.shipper.sql("INSERT INTO t(v) VALUES('after')")
        self.shipper.sync()
        self.assertIn("Exit code: 0", self.shipper.sql("SELECT walrust_verify()"))

    def test_a_process_that_does_not_stream_compacts(self):
        self.other.close()
        most = self.superfluous()
        sql = f"SELECT walrust_compact('{self.url}', '{{\"force\":true}}');"
        self.assertIn("removed", self.shell(sql, db=self.db, env={"WALRUST_PITR_WINDOW": "0s"}))
        self.assertLess(len(door.ltx_files(self.url, 0)), most)
        self.shipper.sql("INSERT INTO t(v) VALUES('after')")
        self.shipper.sync()
        self.assertIn("Exit code: 0", self.shipper.sql("SELECT walrust_verify()"))

    def test_a_standby_repairs(self):
        listed = door.ltx_files(self.url, 0)
        os.remove(listed[1][3])
        self.assertIn("Removed from the manifest", self.other.sql("SELECT walrust_verify(NULL, 'fix')"))
        self.assertEqual(self.left(), [])

    def test_an_asker_that_is_killed_leaves_nothing(self):
        os.kill(self.shipper.pid, 19)  # SIGSTOP: nobody answers
        try:
            self.other.send(op="sql", conn="main", sql="SELECT walrust_snapshot()", params=[])
            end = time.time() + 10
            while not any(n.endswith(".json") for n in self.left()) and time.time() < end:
                time.sleep(0.01)
            self.assertTrue(any(n.endswith(".json") for n in self.left()))
            self.other.kill()
        finally:
            os.kill(self.shipper.pid, 18)
        end = time.time() + 20
        while self.left() and time.time() < end:
            time.sleep(0.05)
        self.assertEqual(self.left(), [])
        self.assertEqual(self.shipper.status()["state"], "streaming")

    def test_a_shipper_that_dies_leaves_the_request_to_the_next(self):
        os.kill(self.shipper.pid, 19)
        self.other.send(op="sql", conn="main", sql="SELECT walrust_snapshot()", params=[])
        time.sleep(0.5)
        self.shipper.kill()
        txid = self.other.wait()[0][0]
        self.assertIn(txid, self.snapshots())
        self.assertEqual(self.left(), [])
        self.assertEqual(self.other.status()["state"], "streaming")


if __name__ == "__main__":
    unittest.main()
