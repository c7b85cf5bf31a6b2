"""The campaigns of kill.py and race.py: a share in `make test`, all of it in `make crash`."""

import os
import subprocess
import sys
import unittest

import pytest

import door


@unittest.skipUnless(os.path.exists(door.CRASH_SO), "needs `make crash-lib`")
class Campaigns(door.DoorTest):
    def run_it(self, program, *args):
        done = subprocess.run(
            [sys.executable, os.path.join(door.HERE, program), "--so", door.CRASH_SO, "--seed", str(door.SEED), *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        print("\n" + done.stdout, flush=True)
        self.assertEqual(done.returncode, 0, done.stdout)

    @pytest.mark.campaign
    def test_kills(self):
        self.run_it("kill.py", "--kills", door.rounds(200), "--points", door.rounds(30), "--crash-so", door.CRASH_SO)

    @pytest.mark.campaign
    def test_kills_with_the_replica_in_s3(self):
        self.run_it("kill.py", "--s3", "--kills", door.rounds(20), "--crash-so", door.CRASH_SO)

    @pytest.mark.campaign
    def test_two_machines_race(self):
        self.run_it("race.py", "--rounds", door.rounds(20))


if __name__ == "__main__":
    unittest.main()
