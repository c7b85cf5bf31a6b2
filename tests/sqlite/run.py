"""SQLite's own test programs, unmodified, with walrust under them.

    run.py --work DIR --so EXTENSION [--jobs N] [--stream] [--foreign] [--programs] [--reuse] [veryquick] [PATTERN.test ...]

Fetches the source package of the system's SQLite (deb-src of the machine's own package sources), builds its test program
once with tests/sqlite/load_walrust.c linked in, and runs the chosen scripts up to six times:

    stock      nothing loaded
    loaded     walrust loaded, nothing configured     each failure must be one of stock, or expected
    wal        nothing loaded, every database put into WAL mode when it is opened
    streamed   walrust loaded, every database streamed to a directory, and compared with a restore when it is closed
    shim       nothing loaded, over a default VFS that is not one of SQLite's own (--foreign)
    foreign    walrust loaded, over that VFS, which ends the program if a file of its is tampered with
                                                       each failure must be one of shim, or expected

Streaming means WAL mode, and many of SQLite's tests are about rollback mode, so what fails in the last is run once more as `wal`:
each failure must be one there, too, or expected. tests/sqlite/expected.txt says what is, and why. A replica that says it has all of
a database and restores to something else is a failure of its own.

--programs: mptester (several processes on one database, some of which die in the middle) and threadtest3 (many threads), too.

A test that fails only with walrust gets two more tries, alone, and is reported unless it passes one: some of SQLite's tests
watch the clock. A script that dies or hangs is reported at once. --reuse takes stock and wal from the last run of the same
program and scripts.

Runs as an ordinary user on a tmpfs where it can: root is never refused by a file's mode, which some tests check.
Exit status: 0, or 1 if any test fails because of walrust. The last line reads `sqlite: N passed, N failed`.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import fnmatch
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
NOBODY = 65534
LONGEST = 600  # seconds for one script; the slowest takes a minute alone on an idle machine
DIED = "(did not finish)"
OUTSIDE = "(error outside a test)"
DIFFERS = "(a replica differs)"


def sh(*argv, **kwargs):
    return subprocess.run([str(a) for a in argv], check=True, **kwargs)


def deb_src(into):
    """The machine's own package sources, asked for source packages instead of binaries."""
    parts = into / "sources.list.d"
    parts.mkdir(parents=True, exist_ok=True)
    for f in glob.glob("/etc/apt/sources.list.d/*.sources"):
        text = pathlib.Path(f).read_text()
        (parts / pathlib.Path(f).name).write_text(re.sub(r"(?m)^Types:.*$", "Types: deb-src", text))
    lines = []
    for f in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.list")]:
        with contextlib.suppress(FileNotFoundError):
            lines += [re.sub(r"^deb\s", "deb-src ", x) for x in pathlib.Path(f).read_text().splitlines() if x.startswith("deb ")]
    (parts / "binary.list").write_text("\n".join(lines) + "\n")
    (into / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    return ["-o", "Dir::Etc::sourcelist=-", "-o", f"Dir::Etc::sourceparts={parts}", "-o", f"Dir::State::lists={into / 'lists'}"]


def fetch(work):
    source = work / "source"
    if (source / "VERSION").exists():
        return source
    print("Fetching the source package of SQLite", flush=True)
    options = deb_src(work)
    sh("apt-get", "-qq", *options, "update", stderr=subprocess.DEVNULL)
    sh("apt-get", "-qq", *options, "source", "--download-only", "sqlite3", cwd=work, stderr=subprocess.DEVNULL)
    archive = next(p for p in work.glob("sqlite3_*.orig.tar.*") if "www" not in p.name)
    unpacked = work / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    sh("tar", "-xf", archive, "-C", unpacked, "--strip-components=1")
    shutil.rmtree(source, ignore_errors=True)
    unpacked.rename(source)
    return source


def build(work, source):
    """The test programs; built again when load_walrust.c changed."""
    stub, parts = HERE / "load_walrust.c", b"".join((HERE / name).read_bytes() for name in ("load_walrust.c", "foreign.h"))
    tree = work / "build"
    stamp = tree / "stub.c"
    programs = [tree / name for name in ("testfixture", "mptester", "threadtest3")]
    if all(p.exists() for p in programs) and stamp.exists() and stamp.read_bytes() == parts:
        return tree
    print(f"Building the test programs of SQLite {(source / 'VERSION').read_text().strip()}", flush=True)
    tree.mkdir(exist_ok=True)
    ours = ["-O2", "-DSQLITE_EXTRA_INIT=walrust_suite_init", "-Wl,--wrap=sqlite3_close"]
    plain = ["cc", *ours, "-DSQLITE_THREADSAFE=1", "-DSQLITE_NO_SYNC=1", "-DHAVE_USLEEP=1", f"-I{tree}", f"-I{source / 'src'}"]
    libraries = ["-lpthread", "-ldl", "-lm"]
    with open(work / "build.log", "wb") as log:
        try:
            if not (tree / "Makefile").exists():
                sh(source / "configure", "--enable-all", f"--with-tcl={tcl()}", cwd=tree, stdout=log, stderr=log)
            for p in programs:
                p.unlink(missing_ok=True)
            sh("make", f"-j{os.cpu_count()}", "testfixture", "OPTS=" + " ".join(ours), f"TESTFIXTURE_SRC1=sqlite3.c {stub}",
               cwd=tree, stdout=log, stderr=log)
            sh(*plain, "-c", "sqlite3.c", "-o", "plain.o", cwd=tree, stdout=log, stderr=log)
            sh(*plain, stub, "plain.o", source / "mptest" / "mptest.c", "-o", "mptester", *libraries, cwd=tree, stdout=log, stderr=log)
            sh(*plain, stub, "plain.o", source / "test" / "threadtest3.c", source / "src" / "test_multiplex.c", "-o", "threadtest3",
               *libraries, cwd=tree, stdout=log, stderr=log)
        except subprocess.CalledProcessError:
            sys.exit(f"building failed: see {work / 'build.log'}")
    stamp.write_bytes(parts)
    return tree


def tcl():
    found = sorted(glob.glob("/usr/lib/*/tcl8*/tclConfig.sh")) + sorted(glob.glob("/usr/lib/tcl8*/tclConfig.sh"))
    if not found:
        sys.exit("tclConfig.sh not found: install tcl-dev")
    return os.path.dirname(found[0])


class Suite:
    """The files of one run, copied to where an ordinary user may read and write them."""

    def __init__(self, tree, source, so, keep):
        self.keep, self.kinds = keep, collections.Counter()
        shm = "/dev/shm"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="sqlite-suite-", dir=shm if os.path.isdir(shm) else None))
        self.dir.chmod(0o755)
        self.so = self.dir / so.name
        shutil.copy(so, self.so)
        for name in ("testfixture", "mptester", "threadtest3"):
            shutil.copy(tree / name, self.dir)
        for part in ("test", "ext", "mptest"):
            shutil.copytree(source / part, self.dir / part)
        for f in ("VERSION", "manifest", "manifest.uuid"):
            shutil.copy(source / f, self.dir)
        # Two runs are alike if these are.
        self.key = hashlib.sha256((self.dir / "testfixture").read_bytes()).hexdigest()[:16]
        self.as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []

    def env(self, mode):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("WALRUST_", "AWS_"))}
        if mode in ("shim", "foreign"):
            env["WALRUST_SUITE_FOREIGN"] = "1"
        if mode in ("loaded", "streamed", "foreign"):
            env["WALRUST_SO"] = str(self.so)
        if mode in ("wal", "streamed"):
            # Where SQLite's scripts keep their databases.
            env["WALRUST_SUITE_WAL"] = "/testdir"
        return env

    def fresh(self, mode):
        where = self.dir / mode
        for d in (where, self.dir / "replicas"):
            shutil.rmtree(d, ignore_errors=True)
            d.mkdir()
            d.chmod(0o777)
        return where

    def scripts(self, patterns):
        """The scripts that SQLite's permutation `veryquick` has, or those of all that fit a pattern."""
        where = self.fresh("list")
        (where / "list.tcl").write_text(
            "set testdir [lindex $argv 0]\nset argv0 $testdir/list.tcl\nset argv [list]\nsource $testdir/permutations.test\n"
            "foreach {key value} $::testspec(veryquick) { if {$key eq {-files}} { foreach f $value { puts [file tail $f] } } }\n"
            "puts --\nforeach f $::alltests { puts [file tail $f] }\n")
        out = subprocess.run([self.dir / "testfixture", "list.tcl", self.dir / "test"], cwd=where, env=self.env("stock"),
                             stdout=subprocess.PIPE, text=True, check=True).stdout
        veryquick, _, every = out.partition("--\n")
        chosen = []
        for pattern in patterns:
            chosen += veryquick.split() if pattern == "veryquick" else fnmatch.filter(every.split(), pattern)
        if not chosen:
            sys.exit(f"no script of SQLite's is called {' or '.join(patterns)}")
        return sorted(set(chosen))

    def run(self, mode, scripts, jobs):
        """Run scripts in one mode, each in a process and a directory of its own: one that dies takes no other along.
        Gives {script: (errors, tests, list of failed tests)} and the seconds it took."""
        where = self.fresh(mode)
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            found = dict(zip(scripts, pool.map(lambda s: self.script(mode, where, s), scripts)))
        return found, time.monotonic() - begin

    def script(self, mode, where, script):
        cwd, replicas = where / script, self.dir / "replicas" / script
        for d in (cwd, replicas):
            d.mkdir()
            d.chmod(0o777)
        env = self.env(mode)
        if script == "init.test":
            env["WALRUST_SUITE_LATE"] = "1"
        if mode == "streamed":
            config = replicas / "walrust.toml"
            config.write_text(f'interval = "50ms"\n[[databases]]\npath = "{cwd}/testdir/**/*"\n'
                              f'replica = "{replicas}/{{dir}}/{{file}}"\nspool_dir = "{replicas}/spool/{{dir}}/{{file}}"\n')
            env.update(WALRUST_SUITE_STREAM=str(replicas), WALRUST_CONFIG=str(config))
        with open(cwd / "out.txt", "wb") as out:
            running = subprocess.Popen([*self.as_user, self.dir / "testfixture", self.dir / "test" / "permutations.test", "veryquick", script],
                                       cwd=cwd, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                code = running.wait(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                code = "none: it hung"
                os.killpg(running.pid, 9)
                running.wait()
        text = (cwd / "out.txt").read_text(errors="replace")
        ends = re.findall(r"(?m)^(\d+) errors out of (\d+) tests", text)
        errors, tests = (int(ends[-1][0]), int(ends[-1][1])) if ends else (1, 0)
        failed = set(re.findall(r"(?m)^! (\S+) (?:expected|got)", text)) | set(re.findall(r"(?m)^(\S+)\.\.\.\s*\nError:", text))
        if not ends and code == 1:
            # A statement that a script needs and no test of it was refused.
            failed |= {OUTSIDE}
        elif not ends or not isinstance(code, int) or code < 0:
            with open(cwd / "out.txt", "a") as out:
                out.write(f"\nError: exit status {code}\n")
            errors, failed = max(1, errors), failed | {DIED}
        elif errors and not failed:
            failed = {OUTSIDE}
        if mode == "streamed":
            for line in "".join(f.read_text(errors="replace") for f in replicas.glob("compared-*.txt")).splitlines():
                kind = line if line.startswith("skipped") else line.split(" ")[0]
                self.kinds[kind] += 1
                if kind == "differs":
                    failed.add(DIFFERS)
                    with open(cwd / "out.txt", "a") as out:
                        out.write(f"! {line.replace(str(self.dir), '')}\n")
        if not self.keep:
            for d in (replicas, cwd / "testdir"):
                shutil.rmtree(d, ignore_errors=True)
        return errors, tests, failed

    def output(self, mode, script):
        lines = (self.dir / mode / script / "out.txt").read_text(errors="replace").splitlines()
        bad = [i for i, line in enumerate(lines) if line.startswith("! ") or "rror" in line and "0 errors" not in line]
        # (A replica that differs is told whatever else there is.)
        bad = sorted(bad, key=lambda i: not lines[i].startswith("! differs"))
        return "\n".join("    " + lines[i][:300] for i in bad[:12]) or "\n".join("    " + x for x in lines[-6:])


def expected(mode):
    """Lines of expected.txt: a mode, a script, a test (both may be patterns), and why it fails in that mode."""
    rules = []
    for line in (HERE / "expected.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            of, script, test, why = line.split(None, 3)
            if of in (mode, "both"):
                rules.append((script, test, why))
    return rules


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--so", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--programs", action="store_true")
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--only", action="append", choices=["loaded", "streamed", "foreign"])
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("patterns", nargs="*")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not args.so.exists():
        sys.exit(f"{args.so} does not exist")
    source = fetch(work)
    suite = Suite(build(work, source), source, args.so.resolve(), args.keep)
    modes = args.only or (["loaded"] + ["streamed"] * args.stream + ["foreign"] * args.foreign)
    passed, blamed = 0, 0
    try:
        scripts = suite.scripts(args.patterns) if args.patterns else []
        for mode in modes if scripts else []:
            p, b = judge(suite, work, mode, scripts, args)
            passed, blamed = passed + p, blamed + b
        if args.programs:
            p, b = programs(suite)
            passed, blamed = passed + p, blamed + b
    finally:
        if args.keep:
            print(f"kept: {suite.dir}")
        else:
            shutil.rmtree(suite.dir, ignore_errors=True)
    print(f"sqlite: {passed} passed, {blamed} failed", flush=True)
    sys.exit(1 if blamed else 0)


def control(suite, work, mode, scripts, args):
    """The run that `mode` is held against, of these scripts."""
    name = {"loaded": "stock", "streamed": "wal", "foreign": "shim"}[mode]
    key = hashlib.sha256(f"{suite.key} {scripts}".encode()).hexdigest()[:16]
    kept = work / f"{name}-{key}.json"
    if args.reuse and kept.exists():
        found = {k: (e, t, set(f)) for k, (e, t, f) in json.loads(kept.read_text()).items()}
        report(name + " (kept)", found, None)
        return found
    found, seconds = suite.run(name, scripts, args.jobs)
    report(name, found, seconds)
    kept.write_text(json.dumps({k: (e, t, sorted(f)) for k, (e, t, f) in found.items()}))
    return found


def judge(suite, work, mode, scripts, args):
    """Runs one mode and its control. Gives how many tests passed and how many failed because of walrust."""
    # Stock first and whole, to know how many tests there are. SQLite in WAL mode only where that is asked: some of its scripts
    # wait for ever then.
    against = control(suite, work, mode, scripts, args) if mode != "streamed" else {}
    found, seconds = suite.run(mode, scripts, args.jobs)
    report(mode, found, seconds)
    passed, blamed, excused = 0, 0, collections.Counter()
    rules = expected(mode)
    if mode == "streamed":
        for script in scripts:
            if DIED in found[script][2]:
                print(f"  streamed: {script} did not finish", flush=True)
        against = control(suite, work, mode, [s for s in scripts if found[s][2]], args)
        print("compared at close: " + ", ".join(f"{n} {kind}" for kind, n in sorted(suite.kinds.items())), flush=True)
        if not suite.kinds["same"]:
            print("  streamed: no database was compared")
            blamed += 1
    for script in scripts:
        before = against.get(script, (0, 0, set()))
        new = found[script][2] - before[2]
        if mode != "streamed" and found[script][1] != before[1] and not new:
            print(f"  {mode}: {script}: {found[script][1]} tests, without walrust {before[1]}")
        # A script that died in both runs says little; one that went further in one of them, less.
        if before[2] & {DIED, OUTSIDE}:
            new = set()
        for test in sorted(new):
            rule = next((r for r in rules if fnmatch.fnmatch(script, r[0]) and fnmatch.fnmatch(test, r[1])), None)
            if rule and test not in (DIED, DIFFERS):
                excused[rule] += 1
                new = new - {test}
        text = suite.output(mode, script) if new else ""
        if new and not new & {DIED, DIFFERS}:
            new = still_failing(suite, mode, script, new)
        if new:
            print(f"  {mode}: {script}: {', '.join(sorted(new)[:20])}\n{text}", flush=True)
        blamed += len(new)
        passed += max(0, found[script][1] - len(found[script][2]))
    for rule, n in excused.items():
        print(f"  {mode}: {n} as expected of {rule[0]} {rule[1]}: {rule[2]}")
    for rule in rules:
        if not excused[rule] and any(fnmatch.fnmatch(s, rule[0]) for s in scripts):
            print(f"  {mode}: nothing fails as expected of {rule[0]} {rule[1]}")
    return passed, blamed


def programs(suite):
    """mptester and threadtest3: stock, loaded, streamed. They judge themselves; a streamed database must restore to itself."""
    passed = failed = 0
    for mode in ("stock", "loaded", "streamed"):
        for name, argv in (
            ("mptester crash01", ["mptester", "mptest.db", suite.dir / "mptest" / "crash01.test", "--repeat", "4", "--journalmode", "WAL"]),
            ("mptester multiwrite01", ["mptester", "mptest.db", suite.dir / "mptest" / "multiwrite01.test", "--repeat", "4", "--journalmode", "WAL"]),
            ("threadtest3", ["threadtest3"]),
        ):
            where = suite.fresh(mode)
            env = suite.env("loaded" if mode == "streamed" else mode)
            if mode == "streamed":
                env.update(WALRUST_REPLICA=f"{suite.dir}/replicas/{{file}}", WALRUST_INTERVAL="50ms")
            begin = time.monotonic()
            try:
                done = subprocess.run([*suite.as_user, suite.dir / argv[0], *argv[1:]], cwd=where, env=env, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=1200)
                text, code = done.stdout, done.returncode
            except subprocess.TimeoutExpired as e:
                text, code = (e.stdout or b"").decode(errors="replace"), "none: it hung"
            found = re.findall(r"(\d+) errors (?:in|out of) (\d+) tests", text)
            bad, tests = (sum(int(a) for a, _ in found), sum(int(b) for _, b in found)) if found else (1, 0)
            if code != 0 and bad == 0:
                bad = 1
            differing = restored_differs(suite, where, env) if mode == "streamed" else []
            print(f"{name}: {mode}: {tests} tests, {bad} errors, exit status {code}, {time.monotonic() - begin:.0f} s", flush=True)
            if bad:
                print("\n".join("    " + x[:200] for x in text.splitlines()[-12:]))
            for line in differing:
                print("    " + line)
            if mode != "stock":
                failed += bad + len(differing)
                passed += tests - min(tests, bad)
    return passed, failed


def restored_differs(suite, where, env):
    """Restores the replica of each database that the program left and compares. One line for each that differs."""
    wrong, seen = [], 0
    script = (
        "import sqlite3, sys\nso, url, db, out = sys.argv[1:]\nc = sqlite3.connect(db)\nc.enable_load_extension(True)\n"
        "c.load_extension(so)\nc.execute('SELECT count(*) FROM sqlite_schema').fetchone()\n"
        "c.execute('SELECT walrust_watch(?)', (url,))\nc.execute('SELECT walrust_sync(60)')\n"
        "c.execute('SELECT walrust_restore(?, ?)', (url, out))\nprint(c.execute('PRAGMA integrity_check').fetchone()[0])\nc.close()\n"
    )
    for replica in sorted((suite.dir / "replicas").iterdir()):
        db = where / replica.name
        if not db.exists() or db.stat().st_size == 0:
            continue
        out = suite.dir / "restored.db"
        out.unlink(missing_ok=True)
        bare = {k: v for k, v in env.items() if k not in ("WALRUST_REPLICA", "WALRUST_SO")}
        done = subprocess.run([sys.executable, "-c", script, suite.so, str(replica), db, out], env=bare,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        if done.returncode or done.stdout.strip() != "ok":
            wrong.append(f"{replica.name}: {done.stdout.strip()[-300:]}")
            continue
        seen += 1
        a, b = db.read_bytes(), out.read_bytes()
        if a != b:
            wrong.append(f"{replica.name}: differs from its restore ({len(a)} and {len(b)} bytes)")
    return wrong if seen or wrong else ["nothing was streamed"]


def still_failing(suite, mode, script, new):
    """What of `new` fails in each of two more runs of this script alone."""
    for _ in range(2):
        keep = suite.dir / (mode + "-kept")
        (suite.dir / mode).rename(keep)
        again, _ = suite.run(mode, [script], 1)
        shutil.rmtree(suite.dir / mode, ignore_errors=True)
        keep.rename(suite.dir / mode)
        new = new & again[script][2]
        if not new:
            print(f"  {mode}: {script}: passed when run alone", flush=True)
            break
    return new


def report(mode, found, seconds):
    errors, tests = sum(e for e, _, _ in found.values()), sum(t for _, t, _ in found.values())
    failed = sorted(n for _, _, names in found.values() for n in names)
    print(f"{mode}: {len(found)} scripts, {tests} tests, {errors} errors" + (f", {seconds:.0f} s" if seconds else "")
          + (f" ({', '.join(failed[:12])}{', …' if len(failed) > 12 else ''})" if failed else ""), flush=True)


main()
