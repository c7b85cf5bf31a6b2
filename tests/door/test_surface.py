"""The exact names, argument counts and columns that users type, before and after loading."""

import re
import shutil
import unittest

import door

SCALARS = {
    "walrust_version": {0},
    "walrust_watch": {0, 1, 2},
    "walrust_unwatch": {0},
    "walrust_sync": {0, 1, 2},
    "walrust_snapshot": {0, 1},
    "walrust_restore": {2, 3, 4},
    "walrust_replicate": {2, 3},
    "walrust_unreplicate": {1},
    "walrust_verify": {0, 1, 2},
    "walrust_drill": {0, 1, 2},
    "walrust_explain": {0, 1},
    "walrust_url": {1, 2},
    "walrust_past": {1},
    "walrust_rewind": {1},
    "walrust_label": {1, 2, 3, 4},
    "walrust_last_error": {0},
    "walrust_compact": {0, 1, 2},
    "walrust_rekey": {0, 1, 2},
    "walrust_metrics": {0},
    "walrust_notify_test": {0},
}

TABLES = {
    "walrust_status": door.STATUS_COLUMNS,
    "walrust_list": door.LIST_COLUMNS,
    "walrust_files": door.FILES_COLUMNS,
    "walrust_points": ["txid", "time", "level", "bytes", "pages", "label", "commit_pages"],
    "walrust_changes": ["type", "name", "pages", "inserted", "deleted", "updated"],
    "walrust_verify": door.VERIFY_COLUMNS,
    "walrust_drills": ["database", "replica", "time", "txid", "seconds", "bytes", "result", "message"],
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
        for table, count in (("walrust_status", 0), ("walrust_list", 1), ("walrust_files", 1), ("walrust_points", 1), ("walrust_changes", 3),
                             ("walrust_verify", 2),
                             ("walrust_config", 0)):
            self.assertEqual(self.shell(hidden % table), str(count), table)

    def test_version_names_itself_and_sqlite(self):
        version, sqlite = self.shell("SELECT walrust_version(), sqlite_version();").split("|")
        self.assertRegex(version, r"^(walrust )?\d+\.\d+\.\d+ \([0-9a-f]{7,}[^)]*\)")
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
                            ("spool_limit", "1GB"), ("levels", "30s,5m,1h"), ("validation_interval", "0")):
            self.assertEqual(str(defaults[name]), value, name)
        for name in ("replica", "metrics_listen", "webhooks"):
            self.assertFalse(defaults[name], name)
        self.assertIn("-walrust/", defaults["spool_dir"])


class Calls(door.DoorTest):
    """Each call of the contract once, in the stock shell: the type of its result and what it is."""

    def ask(self, *statements, **kwargs):
        return self.shell("\n".join(s + ";" for s in statements), self.path("app.db"), **kwargs).splitlines()

    def test_every_scalar_function_in_one_session(self):
        answers = self.ask(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
            "SELECT typeof(w), w FROM (SELECT walrust_watch('replica', json_object('interval', '0s')) AS w)",
            "INSERT INTO t(v) VALUES('one')",
            "SELECT typeof(n), n FROM (SELECT walrust_sync() AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_sync(10) AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_sync(NULL) AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_sync('5s') AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_snapshot() AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_snapshot('copy') AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_restore('replica', 'out.db') AS n)",
            "SELECT typeof(n), n FROM (SELECT walrust_restore('replica', 'out.db', NULL, json_object('overwrite', 1, 'check', 'full', "
            "'parallel', 2)) AS n)",
            "SELECT typeof(r), r LIKE '%follow.db%' FROM (SELECT walrust_replicate('replica', 'follow.db') AS r)",
            "SELECT typeof(r) FROM (SELECT walrust_unreplicate('follow.db') AS r)",
            "SELECT typeof(r), substr(r, 1, 17) FROM (SELECT walrust_verify('replica', 'quick') AS r)",
            "SELECT typeof(r), substr(r, 1, 29) FROM (SELECT walrust_explain() AS r)",
            "SELECT typeof(r), r LIKE '%Dry run%' FROM (SELECT walrust_compact() AS r)",
            "SELECT typeof(r), r LIKE '%Dry run%' FROM (SELECT walrust_compact(NULL, '{\"force\":true}') AS r)",
            "SELECT typeof(r), r LIKE '%walrust_txid{%' FROM (SELECT walrust_metrics() AS r)",
            "SELECT typeof(r), r LIKE 'no webhook%' FROM (SELECT walrust_notify_test() AS r)",
            "SELECT typeof(n), n FROM (SELECT walrust_unwatch() AS n)",
        )
        watched = answers.pop(0)
        self.assertTrue(watched.startswith("text|" + self.path("app.db") + " -> file://"), watched)
        first = int(answers[0].split("|")[1])
        self.assertGreater(first, 1)
        self.assertEqual(answers[:4], [f"integer|{first}"] * 4)
        snapshot = int(answers[4].split("|")[1])
        self.assertGreaterEqual(snapshot, first)
        self.assertEqual(answers[4:8], [f"integer|{snapshot}"] * 4)
        self.assertEqual(answers[8:], ["text|1", "integer", "text|Verifying backup:", "text|Walrust Configuration Preview", "text|1", "text|0",
                                       "text|1", "text|1", f"integer|{snapshot}"])
        self.assertEqual(door.plain_rows(self.path("out.db"), "SELECT v FROM t"), [("one",)])
        self.assertEqual(door.plain_rows(self.path("follow.db"), "SELECT v FROM t"), [("one",)])

    def test_types_of_the_tables_columns(self):
        """In each table's row: INTEGER, REAL, TEXT or NULL, as a user's comparisons expect them."""
        self.ask("CREATE TABLE t(v)", "SELECT walrust_watch('all/app')", "INSERT INTO t VALUES(1)", "SELECT walrust_sync()")
        for table, before, types in (
            ("walrust_status", "SELECT walrust_watch('all/app');SELECT walrust_sync();",
             "text text text integer integer real integer integer integer text text null text"),
            ("walrust_list('all')", "", "text text integer integer integer integer integer text text"),
            ("walrust_list('all/')", "", "text text integer integer integer integer integer text text"),
            ("walrust_files('all/app')", "", "integer integer integer integer text integer integer text text"),
            ("walrust_verify('all/app')", "", "text text text integer integer integer text"),
            ("walrust_config WHERE name = 'interval'", "", "text text text text text"),
        ):
            columns = TABLES[re.match(r"\w+", table).group()]
            query = f"SELECT {', '.join(f'typeof({c!r})'.replace(chr(39), chr(34)) for c in columns)} FROM {table} LIMIT 1"
            self.assertEqual(self.ask(before + query)[-1].split("|"), types.split(), table)

    def test_a_missing_url_is_this_connections(self):
        """NULL, an omitted argument and the replica's own URL are one and the same."""
        out = self.ask(
            "CREATE TABLE t(v)", "SELECT walrust_watch('replica') IS NULL", "INSERT INTO t VALUES(1)", "SELECT walrust_sync() > 0",
            "SELECT count(*) FROM walrust_files", "SELECT count(*) FROM walrust_files(NULL)", "SELECT count(*) FROM walrust_files('replica/')",
            "SELECT count(*) FROM walrust_files WHERE level = 9",
            "SELECT count(*) FROM walrust_verify WHERE file IS NOT NULL", "SELECT count(*) FROM walrust_verify(NULL, NULL) WHERE file IS NOT NULL",
            "SELECT walrust_verify() = walrust_verify(NULL), walrust_verify(NULL, NULL) = walrust_verify('./replica', 'quick')",
            "SELECT walrust_compact() = walrust_compact(NULL, NULL)", "SELECT walrust_explain() = walrust_explain(NULL)",
            "SELECT walrust_watch() LIKE '%(already streaming)', walrust_watch(NULL, NULL) LIKE '%(already streaming)'",
        )
        files = int(out[2])
        self.assertGreaterEqual(files, 2)
        self.assertEqual(out[2:], [str(files)] * 3 + ["1"] + [str(files)] * 2 + ["1|1", "1", "1", "1|1"])

    def test_names_with_spaces_quotes_and_letters_of_all_kinds(self):
        """Paths as people have them: each name goes in, and comes out as it went in."""
        for n, name in enumerate(("with space", "ünï-ñämé", "日本語", "quote's", "per%41cent", "hash#and?mark", "semi;colon", "a&b=c", "[x]", "plus+")):
            with self.subTest(name=name):
                db, folder, out = self.path(f"{name}.db"), f"{name} replica", f"out of {name}.db"
                rows = self.shell(
                    f"CREATE TABLE t(v);SELECT walrust_watch({door.quote(folder + '/')}) IS NULL;INSERT INTO t VALUES({n});"
                    f"SELECT walrust_sync() > 0;SELECT database FROM walrust_status;SELECT name FROM walrust_list('.') WHERE files > 0;"
                    f"SELECT walrust_restore({door.quote('./' + folder)}, {door.quote(out)}) > 0;"
                    f"SELECT substr(walrust_verify(), 1, instr(walrust_verify(), ' in ') - 1);"
                    f"SELECT walrust_restore(replica, {door.quote(out)}, NULL, json_object('overwrite', 1)) > 0 FROM walrust_status;", db).splitlines()
                self.assertEqual(rows, ["0", "1", db, folder, "1", f"Verifying backup: {folder}", "1"])
                self.assertEqual(door.plain_rows(self.path(out), "SELECT v FROM t"), [(n,)])
                shutil.rmtree(self.path(folder))

    def test_one_directory_in_many_spellings(self):
        out = self.ask(
            "CREATE TABLE t(v)", "SELECT walrust_watch('./replica') IS NULL", "INSERT INTO t VALUES(1)", "SELECT walrust_sync() > 0",
            *(f"SELECT walrust_watch({door.quote(u)}) LIKE '%(already streaming)'"
              for u in ("replica", "replica/", "./replica//", self.path("replica"), "file://" + self.path("replica"), "file://" + self.path("replica") + "/")),
        )
        self.assertEqual(out[2:], ["1"] * 6)


if __name__ == "__main__":
    unittest.main()
