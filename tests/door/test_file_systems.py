"""A replica in a directory whose file system fails, or cannot do what the local ones can."""

import errno
import os
import subprocess
import unittest

import door


class FileSystems(door.DoorTest):
    def setUp(self):
        super().setUp()
        self.shim, self.log = self.path("failfs.so"), self.path("failfs.log")
        source = os.path.join(door.ROOT, "tests", "support", "failfs.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.shim, source, "-ldl"], check=True)
        self.replica = self.path("replica")

    def failing(self, below="", **env):
        env = {f"FAILFS_{k.upper()}": str(v) for k, v in env.items()}
        env.update(LD_PRELOAD=self.shim, FAILFS_DIR=os.path.join(self.replica, below), FAILFS_LOG=self.log)
        return self.peer(env=env).open(self.path("app.db"))

    def syncs(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            return f.read().split()

    RETRY = {"base": "10ms", "max": "50ms"}

    def test_a_write_is_not_acknowledged_before_its_directory_was_synced(self):
        """The first try puts the file and fails in the sync; the second finds the file there, as its own."""
        os.makedirs(os.path.join(self.replica, "ltx", "0"))
        for code in (errno.EIO, errno.ENOSPC):
            with self.subTest(errno.errorcode[code]):
                p = self.failing("ltx/0", sync=code)
                p.watch(self.replica, retry=self.RETRY)
                p.sql("CREATE TABLE IF NOT EXISTS t(x)")
                p.sql("INSERT INTO t VALUES(1)")
                with self.assertRaises(door.SqlError):
                    p.sync(2)
                self.assertIn(os.strerror(code), p.status()["last_error"])
                self.assertNotIn("synced", self.syncs())
                p.kill()

    def test_a_directory_sync_that_failed_is_made_up_for(self):
        for times in (1, 2, 3, 5):
            with self.subTest(times=times):
                self.replica = self.path(f"replica{times}")
                os.makedirs(os.path.join(self.replica, "ltx", "0"))
                if os.path.exists(self.log):
                    os.unlink(self.log)
                p = self.failing("ltx/0", sync=errno.EIO, times=times)
                p.open(self.path(f"{times}.db"))
                p.watch(self.replica, retry=self.RETRY, interval="0s")
                p.sql("CREATE TABLE t(x)")
                p.sync()
                found = self.syncs()
                self.assertEqual(found.count("failed"), times)
                self.assertIn("synced", found[max(i for i, s in enumerate(found) if s == "failed"):])
                p.end()
                self.assertEqual(self.restore(self.replica)[1] > 0, True)

    def test_a_directory_made_by_a_try_that_failed_is_synced_by_the_next(self):
        """ltx/9 is made, its name in ltx not synced, and it is there at the next try."""
        p = self.failing("ltx", sync=errno.EIO, times=4)
        p.watch(self.replica, retry=self.RETRY)
        p.sql("CREATE TABLE t(x)")
        p.sync()
        found = self.syncs()
        self.assertEqual(found.count("failed"), 4)
        # The names of ltx/9 and ltx/0, and that of a file in each.
        self.assertGreaterEqual(found.count("synced"), 4)

    def test_file_systems_that_cannot_sync_directories(self):
        for code in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            with self.subTest(errno.errorcode[code]):
                self.replica = self.path(errno.errorcode[code])
                p = self.failing(sync=code)
                p.open(self.path(errno.errorcode[code] + ".db"))
                p.watch(self.replica)
                p.sql("CREATE TABLE t(x)")
                txid = p.sync()
                p.end()
                self.assertEqual(self.restore(self.replica)[1], txid)

    def test_file_systems_that_make_no_links(self):
        for code in (errno.EPERM, errno.EINVAL, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            with self.subTest(errno.errorcode[code]):
                self.replica = self.path(errno.errorcode[code])
                p = self.failing(link=code)
                p.open(self.path(errno.errorcode[code] + ".db"))
                p.watch(self.replica)
                p.sql("CREATE TABLE t(x)")
                txid = p.sync()
                p.end()
                self.assertEqual(self.restore(self.replica)[1], txid)


if __name__ == "__main__":
    unittest.main()
