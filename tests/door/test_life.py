"""A share of life.py in `make test`; ten minutes of it in `make life`."""

import pytest

import door
import life


class Day(door.DoorTest):
    @pytest.mark.campaign
    @pytest.mark.timeout(3600)
    def test_no_word_is_untrue(self):
        untrue, counts = life.Life(self, door.rounds(40)).run()
        print({k: counts[k] for k in sorted(counts)})
        self.assertEqual(untrue, [], "\n".join(untrue))
        self.assertGreater(counts["restores"], 3)


if __name__ == "__main__":
    import unittest

    unittest.main()
