"""walrust: streams a SQLite database in WAL mode to S3, Google Cloud Storage, Azure or a directory, and restores it from there.

    import walrust

    walrust.load()                                  # once per process, before the program opens its databases
    walrust.watch("app.db", "s3://bucket/app")      # or name them in walrust.toml or WALRUST_REPLICA
    walrust.sync("app.db")                          # returns when every commit made so far is in the replica
    walrust.restore("s3://bucket/app", "copy.db")

Where a function takes a database it takes a path, or an open connection (sqlite3 or apsw). A database that is given as a path is
opened by the function, and by watch() is kept open until unwatch() or the end of the process.

Every function raises walrust.Error, and only that, when walrust or SQLite refuses. The text is one line: what was given, what is
allowed, what to do.
"""

import os

from . import _api, _load
from ._api import Finding, Status, Verification
from ._load import Error

__all__ = [
    "Error", "Finding", "Status", "Verification", "connect", "load", "loadable_path", "restore", "snapshot", "status", "sync", "unwatch",
    "same_file", "verify", "watch",
]

load = _load.load
loadable_path = _load.loadable_path
connect = _api.connect
restore = _api.restore
same_file = _api.same_file
snapshot = _api.snapshot
status = _api.status
sync = _api.sync
unwatch = _api.unwatch
verify = _api.verify
watch = _api.watch

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "VERSION")) as _file:
    __version__ = _file.read().strip()
del os, _file
