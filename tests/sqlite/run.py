"""SQLite's own test suite, unmodified, with walrust as the default VFS.

    run.py --work DIR --so EXTENSION [--jobs N] [--stream] [veryquick] [PATTERN.test ...]

Fetches the source package of the system's SQLite (deb-src of the machine's own package sources), builds its test program
once with tests/sqlite/load_walrust.c linked in, and runs the chosen scripts: stock (the same program, nothing loaded), with
walrust loaded and nothing configured, and with --stream also with every database streamed to a local directory. The
failures of the second must be failures of the first; the third must neither die, hang nor damage a database. A test that
fails only with walrust gets two more tries, alone, and is reported unless it passes one: some of SQLite's tests watch the
clock. A script that dies or hangs is reported at once.

Runs as an ordinary user on a tmpfs where it can: root is never refused by a file's mode, which some tests check.
Exit status: 0, or 1 if any test fails because of walrust. The last line reads `sqlite: N passed, N failed`.
"""

import argparse
import contextlib
import glob
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
    stub = HERE / "load_walrust.c"
    program = work / "build" / "testfixture"
    stamp = work / "build" / "stub.c"
    if program.exists() and stamp.exists() and stamp.read_bytes() == stub.read_bytes():
        return program
    print(f"Building the test program of SQLite {(source / 'VERSION').read_text().strip()}", flush=True)
    tree = work / "build"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    with open(work / "build.log", "wb") as log:
        try:
            sh(source / "configure", "--enable-all", f"--with-tcl={tcl()}", cwd=tree, stdout=log, stderr=log)
            sh("make", f"-j{os.cpu_count()}", "testfixture", "OPTS=-DSQLITE_EXTRA_INIT=walrust_suite_init -O2",
               f"TESTFIXTURE_SRC1=sqlite3.c {stub}", cwd=tree, stdout=log, stderr=log)
        except subprocess.CalledProcessError:
            sys.exit(f"building failed: see {work / 'build.log'}")
    shutil.copyfile(stub, stamp)
    return program


def tcl():
    found = sorted(glob.glob("/usr/lib/*/tcl8*/tclConfig.sh")) + sorted(glob.glob("/usr/lib/tcl8*/tclConfig.sh"))
    if not found:
        sys.exit("tclConfig.sh not found: install tcl-dev")
    return os.path.dirname(found[0])


class Suite:
    """The files of one run, copied to where an ordinary user may read and write them."""

    def __init__(self, program, source, so):
        shm = "/dev/shm"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="sqlite-suite-", dir=shm if os.path.isdir(shm) else None))
        self.dir.chmod(0o755)
        self.program, self.so = self.dir / "testfixture", self.dir / so.name
        shutil.copy(program, self.program)
        shutil.copy(so, self.so)
        for part in ("test", "ext"):
            shutil.copytree(source / part, self.dir / part)
        for f in ("VERSION", "manifest", "manifest.uuid"):
            shutil.copy(source / f, self.dir)

    def env(self, mode):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("WALRUST_", "AWS_"))}
        if mode != "stock":
            env["WALRUST_SO"] = str(self.so)
        if mode == "streamed":
            env["WALRUST_SUITE_STREAM"] = str(self.dir / "replicas")
        return env

    def run(self, mode, patterns, jobs):
        """Run scripts in one mode. Gives {script: (errors, tests, set of failed tests)} and the seconds it took."""
        where = self.dir / mode
        shutil.rmtree(where, ignore_errors=True)
        for d in (where, self.dir / "replicas"):
            shutil.rmtree(d, ignore_errors=True)
            d.mkdir()
            d.chmod(0o777)
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        begin = time.monotonic()
        with open(where / "out.txt", "wb") as out:
            subprocess.run(
                [*as_nobody, self.program, self.dir / "test" / "testrunner.tcl", "--jobs", str(jobs), *patterns],
                cwd=where, env=self.env(mode), stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=5400,
            )
        found = {}
        with contextlib.closing(sqlite3.connect(where / "testrunner.db")) as db:
            query = "SELECT filename, config, state, nerr, ntest, output FROM script"
            for name, config, state, errors, tests, output in db.execute(query):
                failed = set(re.findall(r"(?m)^! (\S+) (?:expected|got)", output or ""))
                failed |= set(re.findall(r"(\S+)\.\.\.\s*\nError:", output or ""))
                if state != "done" or tests is None:
                    errors, tests, failed = max(1, errors or 0), tests or 0, failed | {"(did not finish)"}
                elif errors and not failed:
                    failed = {"(error outside a test)"}
                found[os.path.basename(name)] = (errors or 0, tests, failed)
        if not found:
            sys.exit(f"{mode}: no test was run:\n{(where / 'out.txt').read_text(errors='replace')[-2000:]}")
        return found, time.monotonic() - begin

    def output(self, mode, script):
        with contextlib.closing(sqlite3.connect(self.dir / mode / "testrunner.db")) as db:
            row = db.execute("SELECT output FROM script WHERE filename LIKE '%/' || ?", (script,)).fetchone()
        lines = (row[0] or "").splitlines() if row else []
        bad = [i for i, line in enumerate(lines) if line.startswith("! ") or "rror" in line]
        return "\n".join("    " + lines[i] for i in bad[:12]) or "\n".join("    " + x for x in lines[-6:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--so", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("patterns", nargs="+")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = fetch(work)
    suite = Suite(build(work, source), source, args.so.resolve())
    passed, blamed, differing = 0, 0, 0
    try:
        stock, seconds = suite.run("stock", args.patterns, args.jobs)
        report("stock", stock, seconds)
        for mode in ["loaded"] + (["streamed"] if args.stream else []):
            found, seconds = suite.run(mode, args.patterns, args.jobs)
            report(mode, found, seconds)
            missing = set(stock) - set(found)
            for script in sorted(missing):
                print(f"  {mode}: {script} did not run")
                blamed += 1
            for script in sorted(found):
                new = found[script][2] - stock.get(script, (0, 0, set()))[2]
                if mode == "streamed":
                    new, other = serious(suite, script, new)
                    differing += other
                if new:
                    text = suite.output(mode, script)
                if new and "(did not finish)" not in new:
                    new = still_failing(suite, mode, script, new)
                if new:
                    print(f"  {mode}: {script}: {', '.join(sorted(new))}\n{text}", flush=True)
                blamed += len(new)
                passed += found[script][1] - len(found[script][2])
    finally:
        shutil.rmtree(suite.dir, ignore_errors=True)
    if differing:
        print(f"{differing} tests see that a streamed database is in WAL mode and may not be locked EXCLUSIVE")
    print(f"sqlite: {passed} passed, {blamed} failed", flush=True)
    sys.exit(1 if blamed else 0)


def serious(suite, script, new):
    """Streaming turns WAL mode on and refuses locking_mode=EXCLUSIVE, so tests of rollback mode and of that lock fail by
    design. What must not happen is a program that dies or hangs, or a database that is damaged."""
    if not new or "(did not finish)" in new:
        return new, 0
    damaged = re.search(r"malformed|not a database|disk I/O|corrupt(?!ion)", suite.output("streamed", script))
    return (new, 0) if damaged else (set(), len(new))


def still_failing(suite, mode, script, new):
    """What of `new` fails in each of two more runs of this script alone."""
    for _ in range(2):
        again, _ = retry(suite, mode, script)
        new = new & again.get(script, (0, 0, set()))[2]
        if not new:
            print(f"  {mode}: {script}: passed when run alone", flush=True)
            break
    return new


def retry(suite, mode, script):
    keep = suite.dir / (mode + "-kept")
    (suite.dir / mode).rename(keep)
    try:
        return suite.run(mode, [script], 1)
    finally:
        shutil.rmtree(suite.dir / mode, ignore_errors=True)
        keep.rename(suite.dir / mode)


def report(mode, found, seconds):
    errors, tests = sum(e for e, _, _ in found.values()), sum(t for _, t, _ in found.values())
    failed = sorted(n for _, _, names in found.values() for n in names)
    print(f"{mode}: {len(found)} scripts, {tests} tests, {errors} errors, {seconds:.0f} s"
          + (f" ({', '.join(failed[:12])})" if failed else ""), flush=True)


main()
