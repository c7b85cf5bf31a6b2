"""The release workflow, as far as it can be judged without the place that runs it: its platforms, its commands, its order."""

import os
import re
import subprocess
import sys
import unittest

import clean
import meta

WORKFLOW = os.path.join(meta.ROOT, ".github", "workflows", "release.yml")


class Release(clean.CleanTest):
    def setUp(self):
        super().setUp()
        clean.setup("python3-yaml")
        import yaml

        with open(WORKFLOW) as f:
            self.jobs = yaml.safe_load(f)["jobs"]

    def test_the_matrix_is_the_targets_of_the_packages(self):
        rows = self.jobs["binaries"]["strategy"]["matrix"]["include"]
        self.assertEqual({(r["name"], r["triple"]) for r in rows}, {(t.name, t.triple) for t in meta.ALL})
        with open(os.path.join(meta.HERE, "cross")) as f:
            known = dict(re.findall(r"^    (linux-\S+)\) triple=(\S+) ;;", f.read(), re.M))
        self.assertEqual(known, {t.name: t.triple for t in meta.ALL})

    def test_each_job_waits_for_what_it_needs(self):
        self.assertEqual({n: j.get("needs") for n, j in self.jobs.items()}, {"version": None, "binaries": "version", "packages": "binaries"})

    def test_its_commands_are_commands(self):
        for name, job in self.jobs.items():
            for step in job["steps"]:
                if "run" in step:
                    text = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
                    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
                    for script in re.findall(r"packages/\S+(?=\s|$)", text):
                        if not script.startswith("packages/*"):
                            self.assertTrue(os.path.exists(os.path.join(meta.ROOT, script.rstrip(')"'))), f"{name}: {script}")
                    for goal in re.findall(r"\bmake (\S+)", text):
                        with open(os.path.join(meta.ROOT, "Makefile")) as f:
                            self.assertIn(f"\n{goal}:", f.read())
        order = [s.get("run", s.get("uses", "")) for s in self.jobs["packages"]["steps"]]
        place = {k: next(i for i, s in enumerate(order) if k in s) for k in ("build.py", "test-packages", "attest-build-provenance", "gh release")}
        self.assertEqual(sorted(place, key=place.get), ["build.py", "test-packages", "attest-build-provenance", "gh release"])

    def test_the_version_is_that_of_the_crate(self):
        said = subprocess.run([sys.executable, os.path.join(meta.HERE, "meta.py"), "version"], text=True, capture_output=True, check=True).stdout
        with open(os.path.join(meta.ROOT, "Cargo.toml")) as f:
            self.assertIn(f'\nversion = "{said.strip()}"\n', f.read())


class Documents(clean.CleanTest):
    def test_each_test_that_the_drivers_document_names_is_there_and_each_driver_has_its_row(self):
        with open(os.path.join(meta.ROOT, "docs", "drivers.md")) as f:
            named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", f.read()))
        self.assertGreater(len(named), 25)
        there = set()
        for name in os.listdir(clean.HERE):
            if name.startswith("test_") and name.endswith(".py"):
                with open(os.path.join(clean.HERE, name)) as f:
                    there |= {(name, test) for test in re.findall(r"^    def (test_\w+)", f.read(), re.M)}
        self.assertEqual(named - there, set())
        self.assertEqual({t for t in there if t[0] in ("test_drivers.py", "test_frameworks.py")} - named, set())


    def test_the_readme_names_the_packages_of_this_version(self):
        with open(os.path.join(meta.ROOT, "README.md")) as f:
            named = re.findall(r"walrust[-_][\w.-]*?(\d+\.\d+\.\d+)", f.read().split("## Install", 1)[1].split("\n## ", 1)[0])
        self.assertEqual(set(named), {meta.VERSION})


class Limits(clean.CleanTest):
    """Of what `make packages` builds for release: sizes, symbols, what is needed of a system."""

    def test_sizes_and_symbols(self):
        for target in meta.built():
            with self.subTest(target.name):
                names = self.run_ok("nm", "-D", "--defined-only", target.so)
                self.assertEqual({line.split()[-1] for line in names.splitlines()},
                                 {"sqlite3_walrust_init", "sqlite3_extension_init", "sqlite3_walrust_auto_init"})
                if os.path.getsize(target.so) > 10_000_000:
                    self.skipTest("a build with a fast link (QUICK=1)")
                self.assertLessEqual(os.path.getsize(target.so), 8_000_000)
                if target.libc == "glibc":
                    self.assertLessEqual(target.glibc, (2, 17))
                for name in os.listdir(clean.OUT):
                    if name.endswith(".whl"):
                        self.assertLessEqual(os.path.getsize(os.path.join(clean.OUT, name)), 4_000_000, name)


if __name__ == "__main__":
    unittest.main()
