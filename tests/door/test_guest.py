"""walrust as a guest in a process that it does not own: the program's signals, and the program's SQLite going away."""

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

# A host that brings its SQLite as a library of its own and unloads it, as PHP does with its module and Lua with its state.
UNLOAD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
typedef struct sqlite3 sqlite3;
int main(int argc, char **argv){
  /* EXTENSION DATABASE SQL: loads, runs the SQL, closes everything, unloads SQLite; once more; waits a moment; ends. */
  int round, rc = 0;
  for(round=0; round<2; round++){
    void *lib = dlopen("libsqlite3.so.0", RTLD_NOW|RTLD_LOCAL);
    int (*open)(const char*, sqlite3**), (*enable)(sqlite3*, int), (*close)(sqlite3*);
    int (*load)(sqlite3*, const char*, const char*, char**), (*exec)(sqlite3*, const char*, void*, void*, char**);
    sqlite3 *db = 0;
    char *err = 0;
    if( !lib ) return 3;
    *(void**)&open = dlsym(lib, "sqlite3_open"); *(void**)&enable = dlsym(lib, "sqlite3_enable_load_extension");
    *(void**)&load = dlsym(lib, "sqlite3_load_extension"); *(void**)&exec = dlsym(lib, "sqlite3_exec");
    *(void**)&close = dlsym(lib, "sqlite3_close");
    open(argv[2], &db); enable(db, 1);
    if( load(db, argv[1], 0, &err) ){ printf("load: %s\n", err); rc = 4; }
    else if( exec(db, argv[3], 0, 0, &err) ){ printf("exec: %s\n", err); rc = 5; }
    if( close(db) ){ puts("close"); rc = 6; }
    if( dlclose(lib) ){ puts("dlclose"); rc = 7; }
  }
  usleep(30000);
  return rc;
}
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


class Unloading(door.DoorTest):
    def test_a_host_may_unload_its_sqlite(self):
        source, program = self.path("host.c"), self.path("host")
        with open(source, "w") as f:
            f.write(UNLOAD)
        subprocess.run(["cc", "-O1", "-w", "-o", program, source, "-ldl"], check=True)
        p, _, url = self.watched()
        p.sql("INSERT INTO t VALUES(1, 'x')")
        p.sync()
        follow = f"SELECT walrust_replicate({door.quote(url)}, {door.quote(self.path('copy.db'))}, '{{\"interval\":\"10ms\"}}')"
        mine = f"SELECT walrust_watch({door.quote(self.path('mine-replica'))}); CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES(1)"
        for sql in (follow, mine):
            for _ in range(door.rounds(20)):
                done = subprocess.run([program, door.SO, self.path("mine.db"), sql], text=True, capture_output=True, timeout=60,
                                      env=door.clean_env(self.dir), cwd=self.dir)
                self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))


if __name__ == "__main__":
    unittest.main()
