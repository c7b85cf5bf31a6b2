"""Build packages out of the binaries in dist/targets: build.py [wheel|npm|deb|tarball|gem|go ...], all by default.

A kind whose tools are not on this machine is left out with a line that says which tool; named on the command line, it fails.
"""

import importlib
import os
import shutil
import sys

import meta

# kind: the programs it needs
KINDS = {"wheel": ["readelf"], "npm": ["npm"], "deb": ["dpkg-deb", "gzip"], "tarball": [], "gem": ["gem"], "go": []}


def main(kinds):
    os.makedirs(meta.OUT, exist_ok=True)
    targets = meta.built()
    if not targets:
        sys.exit(f"packages: no binaries in {meta.TARGETS}: run `make packages`, or packages/cross TARGET")
    for kind in kinds or KINDS:
        if kind not in KINDS:
            sys.exit(f"packages: {kind!r} is no kind of package; allowed: {', '.join(KINDS)}")
        missing = [tool for tool in KINDS[kind] if not shutil.which(tool)]
        if missing:
            text = f"packages: {kind} is not built: {', '.join(missing)} is not installed"
            if kinds:
                sys.exit(text)
            print(text)
            continue
        module = importlib.import_module(f"build_{kind}")
        paths = [p for t in targets for p in module.build(t)]
        paths += module.build_common(targets) if hasattr(module, "build_common") else []
        for path in paths:
            print(f"{os.path.getsize(path):>9}  {os.path.relpath(path, meta.ROOT)}")
    importlib.import_module("build_tarball").sums()


if __name__ == "__main__":
    main(sys.argv[1:])
