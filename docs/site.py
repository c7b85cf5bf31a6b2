#!/usr/bin/env python3
"""Builds the documents as a site: `docs/site.py MDBOOK TARGET` leaves TARGET/html. `make docs` calls it.

The documents are laid out as they are in the repository, so links between them are the same in both. A warning of mdBook, a document
that is not in docs/SUMMARY.md, and a link, picture or anchor that leads nowhere are errors.
"""

import html.parser
import os
import re
import shutil
import subprocess
import sys
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def lay_out(src):
    """Copies what the site is made of."""
    shutil.rmtree(src, ignore_errors=True)
    os.makedirs(os.path.join(src, "docs"))
    for name in os.listdir(ROOT):
        if name.endswith(".md") or name in ("LICENSE", "walrust.example.toml"):
            shutil.copy(os.path.join(ROOT, name), src)
    for name in os.listdir(os.path.join(ROOT, "docs")):
        if name.endswith((".md", ".png", ".svg", ".json")) and name != "SUMMARY.md":
            shutil.copy(os.path.join(ROOT, "docs", name), os.path.join(src, "docs"))
    with open(os.path.join(ROOT, "docs", "SUMMARY.md")) as f:
        summary = f.read()
    listed = re.findall(r"\]\(([^)]+)\)", summary)
    summary = re.sub(r"\]\((?!\.\./)", "](docs/", summary).replace("](../", "](")
    with open(os.path.join(src, "SUMMARY.md"), "w") as f:
        f.write(summary.rstrip("\n") + "\n- [Scripts](sql/README.md)\n")
    # The scripts on one page.
    os.makedirs(os.path.join(src, "sql"))
    with open(os.path.join(src, "sql", "README.md"), "w") as page:
        page.write("# Scripts\n\n`sqlite3 -readonly app.db < sql/verify.sql`\n")
        for name in sorted(os.listdir(os.path.join(ROOT, "sql"))):
            with open(os.path.join(ROOT, "sql", name)) as f:
                page.write(f"\n## {name}\n\n```sql\n{f.read().rstrip()}\n```\n")
    wanted = {"../" + n for n in os.listdir(ROOT) if n.endswith(".md")} | {n for n in os.listdir(os.path.join(ROOT, "docs")) if n.endswith(".md")}
    return sorted(wanted - set(listed) - {"SUMMARY.md"})


class Page(html.parser.HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.text = set(), set(), []
        with open(path) as f:
            self.feed(f.read())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.add(attrs["id"])
        for name in ("href", "src"):
            if attrs.get(name):
                self.links.add(attrs[name])


def dead_links(site):
    """Every link of the site that leads nowhere, or to somebody else for a script, a style or a picture."""
    pages = {}
    for folder, _, names in os.walk(site):
        for name in names:
            if name.endswith(".html"):
                path = os.path.join(folder, name)
                pages[os.path.realpath(path)] = Page(path)
    dead = []
    for path, page in pages.items():
        if os.path.basename(path) in ("404.html", "toc.html", "print.html"):
            continue
        for link in sorted(page.links):
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = os.path.realpath(os.path.join(os.path.dirname(path), urllib.parse.unquote(url.path))) if url.path else path
            if os.path.isdir(target):
                target = os.path.join(target, "index.html")
            if not os.path.exists(target):
                dead.append(f"{os.path.relpath(path, site)}: {link}")
            elif url.fragment and target in pages and urllib.parse.unquote(url.fragment) not in pages[target].ids:
                dead.append(f"{os.path.relpath(path, site)}: {link} has no such heading")
    return dead, len(pages)


def main():
    mdbook, target = sys.argv[1], os.path.abspath(sys.argv[2])
    os.makedirs(target, exist_ok=True)
    missing = lay_out(os.path.join(target, "src"))
    shutil.copy(os.path.join(ROOT, "docs", "book.toml"), target)
    done = subprocess.run([mdbook, "build", target], capture_output=True, text=True)
    said = done.stdout + done.stderr
    site = os.path.join(target, "html")
    wrong = [f"docs/SUMMARY.md does not have {name}" for name in missing]
    wrong += [line for line in said.splitlines() if re.search(r"\bWARN|\bERROR", line)]
    if done.returncode:
        wrong.append(said)
    else:
        dead, pages = dead_links(site)
        wrong += [f"dead link: {line}" for line in dead]
        if not any(re.fullmatch(r"searchindex.*\.js(on)?", name) for name in os.listdir(site)):
            wrong.append("there is no search index")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(f"{pages} pages: file://{site}/index.html")


if __name__ == "__main__":
    main()
