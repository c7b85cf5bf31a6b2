"""200,000 commits from 4 connections, with spills, savepoints and rollbacks: all of them in the replica?

    commits200k.py --so EXTENSION [--commits 200000] [--connections 4] [--dir DIRECTORY] [--program PROGRAM]

The database then, and what walrust_restore and `litestream restore` make of the replica, must be the same bytes (the lock
page aside), hold every row of every connection, and pass integrity_check; walrust_verify must find nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "door"))
import door  # noqa: E402


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--so", required=True)
    parser.add_argument("--commits", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--dir", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    parser.add_argument("--program", required=True)
    args = parser.parse_args()
    so = os.path.abspath(args.so)
    work = tempfile.mkdtemp(prefix="commits-", dir=args.dir)
    try:
        db, replica, out = (os.path.join(work, n) for n in ("app.db", "replica", "restored.db"))
        env = door.clean_env(work)
        done = subprocess.run([args.program, so, db, replica, str(args.commits), str(args.connections)], text=True,
                              capture_output=True, env=env)
        if not done.stdout:
            sys.exit(f"the writers failed: {done.stderr}")
        committed, rolled_back, errors, seconds, txid = done.stdout.split()
        print(f"{committed} commits from {args.connections} connections in {seconds} s "
              f"({int(committed) / float(seconds):.0f}/s), {rolled_back} rolled back, {errors} errors; replica at TXID {txid}")
        begin = time.monotonic()
        script = (f'.load "{so}"\nSELECT walrust_restore({door.quote(replica)}, {door.quote(out)});\n'
                  f"SELECT walrust_verify({door.quote(replica)}, 'quick');\n")
        shell = subprocess.run([door.SHELL, "-batch", "-bail", ":memory:"], input=script, text=True, capture_output=True, env=env)
        if shell.returncode:
            sys.exit(f"restore failed: {shell.stderr}")
        at, *report = shell.stdout.strip().splitlines()
        print(f"restored TXID {at} and verified in {time.monotonic() - begin:.1f} s; {report[-1]}")
        same = door.image(db) == door.image(out)
        rows = door.plain_rows(out, "SELECT count(*), count(DISTINCT who * 10000000 + n) FROM row WHERE who >= 0")[0]
        sound = door.plain_rows(out, "PRAGMA integrity_check")
        sums = [subprocess.run([door.SHELL, p, ".sha3sum --schema"], text=True, capture_output=True).stdout for p in (db, out)]
        print(f"rows {rows[0]} of {committed}, distinct {rows[1]}; bytes {'equal' if same else 'DIFFER'}; "
              f"sha3sum {'equal' if sums[0] == sums[1] and sums[0] else 'DIFFERS'}; integrity_check {sound[0][0]}")
        good = same and sums[0] == sums[1] and rows == (int(committed), int(committed)) and errors == "0" and at == txid
        good = good and sound == [("ok",)] and "Exit code: 0" in report[-1]
        if os.path.exists(door.LITESTREAM):
            ls = os.path.join(work, "litestream.db")
            begin = time.monotonic()
            answer = subprocess.run([door.LITESTREAM, "restore", "-o", ls, f"file://{replica}"], text=True, capture_output=True, env=env)
            equal = answer.returncode == 0 and door.image(ls) == door.image(db)
            print(f"litestream restores {'the same bytes' if equal else 'SOMETHING ELSE: ' + answer.stderr[-300:]} "
                  f"in {time.monotonic() - begin:.1f} s")
            good = good and equal
        print(f"{1 if good else 0} passed, {0 if good else 1} failed")
        sys.exit(0 if good else 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


main()
