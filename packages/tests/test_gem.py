"""The gem, installed from its file into a gem home of its own, in Debian's Ruby."""

import os
import unittest

import clean
import meta

PROGRAM = r"""
require "sqlite3"; require "walrust"; require "json"
dir = ARGV[0]; url = dir + "/replica"
raise "path" unless File.exist?(Walrust.to_path)
Walrust.load; Walrust.load
db = SQLite3::Database.new(dir + "/app.db")
one = ->(sql, *p) { db.get_first_value(sql, p) }
one.("SELECT walrust_watch(?)", url)
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
200.times { |i| db.execute("INSERT INTO t(v) VALUES(?)", ["row #{i}"]) }
txid = one.("SELECT walrust_sync()")
restored = one.("SELECT walrust_restore(?, ?)", url, dir + "/copy.db")
report = one.("SELECT walrust_verify(?)", url)
puts JSON.dump({version: Walrust::VERSION, same: txid == restored, good: report.include?("all good")})
"""


class Gem(clean.CleanTest):
    def setUp(self):
        super().setUp()
        clean.setup("ruby", "ruby-sqlite3")
        path = clean.package(f"walrust-{meta.VERSION}-{meta.host().ruby}.gem")
        # The system's gems stay visible: ruby-sqlite3 is Debian's.
        self.ruby = self.env(GEM_PATH=self.path("gems") + ":/usr/share/rubygems-integration/all:/usr/lib/ruby/gems/3.1.0")
        self.run_ok("/usr/bin/gem", "install", "--silent", "--local", "--no-document", "--install-dir", self.path("gems"), path)

    def test_it_streams_restores_and_verifies(self):
        said = self.run_ok("/usr/bin/ruby", self.file("a.rb", PROGRAM), self.dir, env=self.ruby)
        self.assertEqual(said.strip(), f'{{"version":"{meta.VERSION}","same":true,"good":true}}')
        self.assertEqual(self.run_ok("sqlite3", self.path("copy.db"), "SELECT count(*) FROM t").strip(), "200")

    def test_the_railtie_loads_before_active_record(self):
        """The railtie asks for its place in a Rails of three lines; the real one runs in test_frameworks.py."""
        code = (
            'module Rails; class Railtie; def self.initializer(n, o, &b); $given = [n, o]; b.call; end; end; end\n'
            'require "walrust"; p $given; require "sqlite3"\n'
            'puts SQLite3::Database.new(":memory:").get_first_value("SELECT walrust_version()")\n'
        )
        said = self.run_ok("/usr/bin/ruby", self.file("b.rb", code), env=self.ruby)
        self.assertIn("active_record.initialize_database", said)
        self.assertIn(f"walrust {meta.VERSION}", said)


if __name__ == "__main__":
    unittest.main()
