"""The documents tell the truth: what they show is run as it stands there, what they list is what is loaded."""

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import unittest

import door

README = os.path.join(door.ROOT, "README.md")


def read(name):
    with open(os.path.join(door.ROOT, name)) as f:
        return f.read()


def blocks(text, name):
    """The fenced blocks that follow a `<!-- run: name -->` line."""
    return re.findall(r"<!-- run: " + name + r" -->\n```\w+\n(.*?)```", text, re.S)


def section(text, name):
    return re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.S)[1]


def calls(table):
    """name → the numbers of arguments that the calls of a table allow."""
    found = {}
    for call in re.findall(r"^\| `(\w+(?:\([^`]*\))?)`", table, re.M):
        name, arguments = re.fullmatch(r"(\w+)(?:\((.*)\))?", call).groups()
        plain = re.sub(r"\[.*", "", arguments or "")
        least = len([a for a in plain.split(",") if a.strip()])
        most = len(re.findall(r"\w+", arguments or ""))
        found[name] = set(range(least, most + 1))
    return found


def documents():
    """Name and text of what is for people who use walrust."""
    return [(name, read(name)) for name in ("README.md", "SECURITY.md", *sorted(os.path.relpath(p, door.ROOT) for p in glob.glob(os.path.join(door.ROOT, "docs", "*.md"))))]


def without_blocks(text):
    return re.sub(r"(?ms)^[ ]*```.*?^[ ]*```[ ]*$", "", text)


def code_of(text):
    """What is written as something to type: blocks, and code in a line."""
    blocks = re.findall(r"(?ms)^[ ]*```(?:sh|console|sql)\n(.*?)^[ ]*```[ ]*$", text)
    return blocks + re.findall(r"`([^`\n]+)`", without_blocks(text))


def slug(heading):
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain.strip().lower()))


class Documents(door.DoorTest):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("dist"))
        os.symlink(door.SO, self.path("dist", "walrust" + door.SUFFIX))

    def test_the_drill_runs_as_written(self):
        parts = blocks(read("docs/disaster-recovery.md"), "drill")
        self.assertGreater(len(parts), 4)
        script = "set -euo pipefail\nsqlite3() { command sqlite3 -batch -bail \"$@\"; }\n" + "\n".join(parts)
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.dir, env=door.clean_env(self.dir), text=True, capture_output=True, timeout=120
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("Exit code: 0", done.stdout)
        self.assertIn("before the mistake: TXID 0000000000000003", done.stdout)

    def test_the_transcript_of_the_readme_is_what_happens(self):
        (text,) = blocks(read("README.md"), "shell")
        first, *lines = text.replace("/data", self.dir).splitlines()
        database = re.fullmatch(r"\$ sqlite3 (\S+)", first)[1]
        typed = [line.removeprefix("sqlite> ") for line in lines if line.startswith("sqlite> ")]
        shown = [line for line in lines if not line.startswith("sqlite> ")]
        done = subprocess.run(
            [door.SHELL, "-batch", "-bail", database], input="\n".join(typed) + "\n", text=True, capture_output=True,
            cwd=self.dir, env=door.clean_env(self.dir), timeout=60,
        )
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout.splitlines(), shown)

    def test_the_document_lists_every_function(self):
        loaded = {}
        for line in self.shell("SELECT name, narg FROM pragma_function_list WHERE name LIKE 'walrust%';").splitlines():
            name, count = line.split("|")
            loaded.setdefault(name, set()).add(int(count))
        self.assertEqual(calls(section(read("docs/functions.md"), "functions")), loaded)

    def test_the_document_lists_every_table(self):
        loaded = set(self.shell("SELECT name FROM pragma_module_list WHERE name LIKE 'walrust%';").split())
        documented = calls(section(read("docs/functions.md"), "tables"))
        self.assertEqual(set(documented), loaded)
        for name, counts in documented.items():
            hidden = self.shell(f"SELECT count(*) FROM pragma_table_xinfo('{name}') WHERE hidden = 1;")
            self.assertEqual(max(counts), int(hidden), name)

    def test_the_events_are_those_of_the_webhooks_document(self):
        listed = set(re.findall(r"^\| `(\w+)` \| (?:info|warning|critical) ", read("docs/webhooks.md"), re.M))
        with open(os.path.join(door.ROOT, "src", "base", "event.rs")) as f:
            known = set(re.findall(r'EventKind::\w+ => "(\w+)"', f.read()))
        self.assertEqual(listed, known)

    def test_the_threads_are_those_of_the_host_document(self):
        listed = set(re.findall(r"`(walrust-[a-z]+)`", section_of(read("docs/host.md"), "## Threads")))
        named = set()
        for path in glob.glob(os.path.join(door.ROOT, "src", "**", "*.rs"), recursive=True):
            # (The command line is a process of its own; debug.rs is in no released library.)
            if os.sep + "bin" + os.sep in path or path.endswith("debug.rs"):
                continue
            with open(path) as f:
                named |= set(re.findall(r'"(walrust-[a-z]+)"', f.read()))
        self.assertEqual(listed, named)

    def test_the_series_are_those_of_the_metrics_document(self):
        p, _, url = self.watched(interval="0s", mirrors=[self.path("mirror")])
        p.sync()
        p.sql("SELECT walrust_replicate(?, ?)", url, self.path("copy.db"))
        listed = set(re.findall(r"`(walrust_\w+)`", re.search(r"\| series.*?\n\n", read("docs/metrics.md"), re.S)[0]))
        shown = set(re.findall(r"^# TYPE (\w+) ", p.sql("SELECT walrust_metrics()"), re.M))
        self.assertEqual(listed, shown)

    def test_every_block_of_commands_is_run_or_called_an_example(self):
        """And those that are called so are run: nothing marked is left out."""
        marked = {}
        for name, text in documents():
            for before, kind in re.findall(r"(?m)(.*)\n[ ]*```(\w+)\n", text):
                mark = re.fullmatch(r"\s*<!-- (?:run: (\w+)|example) -->", before)
                if kind in ("sh", "console", "sql", "python"):
                    self.assertTrue(mark, f"{name}: a block of {kind} has neither `<!-- run: name -->` nor `<!-- example -->` above it")
                if mark and mark[1]:
                    marked.setdefault(mark[1], set()).add(name)
        self.assertEqual(marked, {"drill": {"docs/disaster-recovery.md"}, "shell": {"README.md"}})

    def test_the_commands_that_documents_name_exist(self):
        """Each `walrust COMMAND` with its options, wherever one is written; each function that is called."""
        helps = {"": self.run_cli("--help").stdout}
        commands = set(re.findall(r"(?m)^  ([a-z-]+)  ", helps[""].split("Commands:")[1].split("Options:")[0]))
        self.assertGreater(len(commands), 20)
        loaded = set(self.shell("SELECT name FROM pragma_function_list WHERE name LIKE 'walrust%' UNION SELECT name FROM pragma_module_list WHERE name LIKE 'walrust%';").split())
        seen = calls = 0
        for name, text in documents():
            for written in code_of(text):
                for line in written.replace("\\\n", " ").splitlines():
                    for command, rest in re.findall(r"(?:^|[|;&$] *|\$\()walrust ((?!for |is |in |on )[a-z-]+)((?: [^|;&]*)?)", line.strip()):
                        if command.startswith("-"):
                            continue
                        for one in command.split("|"):
                            self.assertIn(one, commands, f"{name}: {line}")
                            helps.setdefault(one, self.run_cli(one, "--help").stdout)
                            seen += 1
                            for option in re.findall(r"(?<!\S)--[a-z-]+", rest.split("#")[0]):
                                self.assertIn(option, re.findall(r"--[a-z-]+", helps[one]), f"{name}: {line}")
                for function in re.findall(r"\b(walrust_[a-z_]+)\(", written):
                    self.assertIn(function, loaded, f"{name}: {written}")
                    calls += 1
        self.assertGreater(seen, 30)
        self.assertGreater(calls, 100)

    def test_the_headings_that_documents_link_to_exist(self):
        """As `make docs` finds it, which needs a program that is built first: the names of headings are mdBook's and GitHub's."""
        ids = {name: {slug(h) for h in re.findall(r"(?m)^#+ (.*)$", without_blocks(text))} for name, text in documents()}
        seen = 0
        for name, text in documents():
            for target in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", without_blocks(text)):
                if "://" in target:
                    continue
                path, _, anchor = target.partition("#")
                to = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
                self.assertIn(anchor, ids.get(to, set()), f"{name} links to {target}")
                seen += 1
        self.assertGreater(seen, 5)

    def site(self):
        spec = importlib.util.spec_from_file_location("site_of_docs", os.path.join(door.ROOT, "docs", "site.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_every_document_is_on_the_site(self):
        self.assertEqual(self.site().lay_out(self.path("src")), [])
        self.assertTrue(os.path.exists(self.path("src", "docs", "commit.svg")))
        with open(self.path("src", "SUMMARY.md")) as f:
            for link in re.findall(r"\]\(([^)]+)\)", f.read()):
                self.assertTrue(os.path.exists(self.path("src", link)), link)

    def test_a_link_of_the_site_that_leads_nowhere_is_found(self):
        os.mkdir(self.path("site"))
        for name, body in (("index", '<h2 id="a">A</h2><a href="b.html#here">x</a><a href="#a">y</a><a href="https://example.com/">z</a>'),
                           ("b", '<p id="here"></p><a href="gone.html">x</a><a href="index.html#b">y</a><img src="no.png">')):
            with open(self.path("site", f"{name}.html"), "w") as f:
                f.write(body)
        dead, pages = self.site().dead_links(self.path("site"))
        self.assertEqual((sorted(dead), pages), (["b.html: gone.html", "b.html: index.html#b has no such heading", "b.html: no.png"], 2))


def section_of(text, heading):
    return text.split(heading + "\n", 1)[1].split("\n## ", 1)[0]


if __name__ == "__main__":
    unittest.main()
