"""manage.py walrust status|verify|restore"""

import argparse
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

import walrust


class Command(BaseCommand):
    help = "Shows how far the streaming of a database is, whether its backup works, or restores it."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--database", default="default", help="the database's alias in DATABASES (default: default)")
        what = parser.add_subparsers(dest="what", required=True)
        what.add_parser("status", help="how far the streaming is")
        verify = what.add_parser("verify", help="whether the backup works")
        verify.add_argument("--mode", choices=["quick", "deep", "fix"], default="quick")
        restore = what.add_parser("restore", help="write the database as it was to a file")
        restore.add_argument("path", help="where; never the database in use")
        restore.add_argument("--point", help="a TXID, a time, or e.g. '5 minutes ago'")

    def handle(self, *_: Any, **options: Any) -> None:
        try:
            getattr(self, options["what"])(self.watched(options["database"]), options)
        except walrust.Error as e:
            raise CommandError(str(e)) from e

    def watched(self, alias: str) -> walrust.Status:
        connection = connections[alias]
        connection.ensure_connection()
        if connection.vendor != "sqlite":
            raise CommandError(f"the database {alias!r} is no SQLite database")
        connection.cursor().execute("SELECT count(*) FROM sqlite_master")  # the first use begins a configured watch
        path = connection.settings_dict["NAME"]
        for row in walrust.status():
            if walrust.same_file(row.database, path):
                return row
        raise CommandError(f"{path} is not watched: name it in WALRUST of the settings, in walrust.toml, or in WALRUST_REPLICA")

    def status(self, row: walrust.Status, options: Any) -> None:
        for name, value in row._asdict().items():
            self.stdout.write(f"{name}: {'-' if value is None else value}")

    def verify(self, row: walrust.Status, options: Any) -> None:
        found = walrust.verify(str(row.replica), options["mode"])
        for finding in found.findings:
            self.stdout.write(f"{finding.severity}: {finding.message if finding.file is None else finding.file + ': ' + finding.message}")
        if not found.ok:
            raise CommandError(f"{len(found.issues)} issues")

    def restore(self, row: walrust.Status, options: Any) -> None:
        txid = walrust.restore(str(row.replica), options["path"], options["point"])
        self.stdout.write(f"{options['path']}: TXID {txid}")
