"""The crate in a Rust program: walrust::install(), beside rusqlite, without the C entry points."""

import os
import subprocess
import unittest

import clean
import meta


class Crate(clean.CleanTest):
    def build(self):
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(meta.ROOT, "target"))
        build = ["cargo", "build", "--quiet", "--example", "program", "--no-default-features", "--features", "install", "--target-dir", target]
        subprocess.run(build, cwd=meta.ROOT, check=True)
        return os.path.join(target, "debug", "examples", "program")

    def test_a_program_with_rusqlite(self):
        program = self.build()
        said = self.run_ok(program, self.path("app.db"), self.path("replica"))
        self.assertRegex(said, r"TXID (\d+), restored \1: 100 of 100 rows")
        symbols = self.run_ok("nm", "--defined-only", program)
        self.assertNotIn(" T sqlite3_walrust_init", symbols)
        self.run_ok(meta.host().cli, "verify", self.path("replica"))


if __name__ == "__main__":
    unittest.main()
