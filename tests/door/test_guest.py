"""walrust as a guest in a process that it does not own: the program's signals."""

import subprocess
import sys
import unittest

import door

# A server that blocks its signals after everything is loaded, and waits for them.
SIGNALS = """
import os, signal, sqlite3, sys, time
so, d = sys.argv[1:]
a = sqlite3.connect(d + "/app.db", isolation_level=None); a.enable_load_extension(True); a.load_extension(so)
a.execute("SELECT walrust_watch(?, ?)", (d + "/replica", '{}')).fetchone()
a.execute("CREATE TABLE t(x)"); a.execute("SELECT walrust_sync(30)").fetchone()
a.execute("SELECT walrust_replicate(?, ?)", (d + "/replica", d + "/copy.db")).fetchone()
def threads():
    for tid in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{tid}/status") as f: status = f.read()
        fields = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
        if int(tid) != os.getpid(): yield fields["Name"], fields["SigBlk"]
end = time.time() + 20
while not {"walrust-seal", "walrust-ship", "walrust-follow"} <= {n for n, _ in threads()} and time.time() < end: time.sleep(0.02)
time.sleep(0.2)  # one that was made just now gives itself its name, and closes its mask
for name, mask in threads(): print("thread", name, mask)
wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
for s in sorted(wanted):
    os.kill(os.getpid(), s); print("got", signal.Signals(signal.sigwait({s})).name)
print("mask", sorted(signal.Signals(s).name for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])) == sorted(s.name for s in wanted))
"""

class Signals(door.DoorTest):
    def test_the_programs_signals_stay_the_programs(self):
        done = subprocess.run([sys.executable, "-c", SIGNALS, door.SO, self.dir], text=True, capture_output=True, timeout=120,
                              env=door.clean_env(self.dir), cwd=self.dir)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        lines = done.stdout.splitlines()
        self.assertEqual([x for x in lines if x.startswith("got")], ["got SIGINT", "got SIGUSR1", "got SIGTERM", "got SIGCHLD"])
        self.assertEqual(lines[-1], "mask True")
        threads = [x.split()[1:] for x in lines if x.startswith("thread")]
        names = {name for name, _ in threads}
        self.assertTrue({"walrust-seal", "walrust-ship", "walrust-follow"} <= names, names)
        # All but the faults that a thread raises itself.
        faults = {4, 5, 7, 8, 11, 31}
        unblockable = {9, 19, 32, 33}
        for name, mask in threads:
            open_ones = {n for n in range(1, 65) if not int(mask, 16) >> (n - 1) & 1} - unblockable
            self.assertEqual(open_ones, faults, name)


if __name__ == "__main__":
    unittest.main()
