"""The exact names, argument counts and columns that users type, before and after loading."""

import unittest

import door

SCALARS = {
    "walrust_version": {0},
    "walrust_watch": {0, 1, 2},
    "walrust_unwatch": {0},
    "walrust_sync": {0, 1},
    "walrust_snapshot": {0, 1},
    "walrust_restore": {2, 3, 4},
    "walrust_replicate": {2, 3},
    "walrust_unreplicate": {1},
    "walrust_verify": {0, 1, 2},
    "walrust_explain": {0, 1},
    "walrust_compact": {0, 1, 2},
    "walrust_metrics": {0},
    "walrust_notify_test": {0},
}

TABLES = {
    "walrust_status": door.STATUS_COLUMNS,
    "walrust_list": door.LIST_COLUMNS,
    "walrust_files": door.FILES_COLUMNS,
    "walrust_verify": door.VERIFY_COLUMNS,
    "walrust_config": door.CONFIG_COLUMNS,
}

FUNCTIONS = "SELECT name, narg FROM pragma_function_list WHERE name LIKE 'walrust%'"
MODULES = "SELECT name FROM pragma_module_list WHERE name LIKE 'walrust%' ORDER BY name"


class Surface(door.DoorTest):
    def test_nothing_is_there_before_loading(self):
        self.assertEqual(self.shell(FUNCTIONS + ";" + MODULES + ";", load=False), "")

    def test_scalar_functions_and_argument_counts(self):
        found = {}
        for line in self.shell(FUNCTIONS + ";").splitlines():
            name, count = line.split("|")
            found.setdefault(name, set()).add(int(count))
        self.assertEqual(set(found), set(SCALARS))
        for name, counts in SCALARS.items():
            if -1 not in found[name]:
                self.assertEqual(found[name], counts, name)

    def test_a_wrong_argument_count_is_refused(self):
        for name, counts in SCALARS.items():
            for count in (c for c in range(6) if c not in counts):
                done = self.run_shell(f"SELECT {name}({', '.join(['NULL'] * count)});")
                self.assertNotEqual(done.returncode, 0, f"{name} with {count} arguments")
                self.assertIn(name, done.stderr)

    def test_table_valued_functions(self):
        self.assertEqual(self.shell(MODULES + ";").split(), sorted(TABLES))

    def test_columns(self):
        for table, columns in TABLES.items():
            query = f"SELECT name FROM pragma_table_xinfo('{table}') WHERE hidden = 0 ORDER BY cid;"
            self.assertEqual(self.shell(query).split(), columns, table)

    def test_columns_of_select_star(self):
        for table in ("walrust_status", "walrust_config"):
            header = self.shell(f".headers on\nSELECT * FROM {table} UNION ALL SELECT {', '.join(['NULL'] * len(TABLES[table]))} "
                                "LIMIT 1;").splitlines()[0]
            self.assertEqual(header.split("|"), TABLES[table])

    def test_hidden_columns_are_arguments_only(self):
        hidden = "SELECT count(*) FROM pragma_table_xinfo('%s') WHERE hidden <> 0;"
        for table, count in (("walrust_status", 0), ("walrust_list", 1), ("walrust_files", 1), ("walrust_verify", 2),
                             ("walrust_config", 0)):
            self.assertEqual(self.shell(hidden % table), str(count), table)

    def test_version_names_itself_and_sqlite(self):
        version, sqlite = self.shell("SELECT walrust_version(), sqlite_version();").split("|")
        self.assertRegex(version, r"^(walrust )?\d+\.\d+\.\d+")
        self.assertIn(sqlite, version)

    def test_status_is_empty_when_nothing_is_watched(self):
        self.assertEqual(self.shell("SELECT count(*) FROM walrust_status;"), "0")

    def test_functions_are_on_later_connections(self):
        p = self.peer().open(self.path("later.db"))
        self.assertIn(p.sqlite_version, p.sql("SELECT walrust_version()"))
        self.assertEqual(p.sql("SELECT count(*) FROM walrust_status"), 0)

    def test_config_rows_have_a_source_and_a_description(self):
        p = self.peer().open(":memory:")
        rows = p.rows("SELECT name, value, source, default_value, description FROM walrust_config")
        names = {r[0] for r in rows}
        for name in ("replica", "interval", "durability", "sync_timeout", "snapshot_interval", "levels", "pitr_window",
                     "validation_interval", "spool_dir", "spool_limit", "metrics_listen"):
            self.assertIn(name, names)
        for group, keys in (("retention", ("hourly", "daily", "weekly", "monthly")),
                            ("retry", ("base", "max", "breaker_threshold", "breaker_cooldown"))):
            for key in keys:
                self.assertIn(f"{group}_{key}", names)
        for name, _, source, _, description in rows:
            self.assertTrue(source, name)
            self.assertTrue(description, name)

    def test_defaults(self):
        p = self.peer().open(":memory:")
        defaults = dict(p.rows("SELECT name, default_value FROM walrust_config"))
        for name, value in (("interval", "1s"), ("durability", "async"), ("sync_timeout", "10s"), ("snapshot_interval", "1h"),
                            ("pitr_window", "24h"), ("retention_hourly", "24"), ("retention_daily", "7"),
                            ("retention_weekly", "12"), ("retention_monthly", "12"), ("retry_base", "100ms"),
                            ("retry_max", "30s"), ("retry_breaker_threshold", "5"), ("retry_breaker_cooldown", "60s"),
                            ("spool_limit", "1GB")):
            self.assertEqual(str(defaults[name]), value, name)


if __name__ == "__main__":
    unittest.main()
