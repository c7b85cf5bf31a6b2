"""The Go module, unpacked from its file, with Debian's Go and go-sqlite3."""

import os
import shutil
import tarfile
import unittest

import clean
import meta

PROGRAM = r"""
package main

import (
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/mattn/go-sqlite3"
	"walrust"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	dir := os.Args[1]
	path, err := walrust.Path()
	must(err)
	again, err := walrust.Path()
	must(err)
	if path != again {
		panic("two files")
	}
	sql.Register("sqlite3_walrust", &sqlite3.SQLiteDriver{Extensions: []string{path}})
	db, err := sql.Open("sqlite3_walrust", dir+"/app.db?_busy_timeout=20000")
	must(err)
	db.SetMaxOpenConns(8)
	var text string
	must(db.QueryRow("SELECT walrust_watch(?)", dir+"/replica").Scan(&text))
	_, err = db.Exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
	must(err)
	var all sync.WaitGroup
	for i := 0; i < 8; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for j := 0; j < 25; j++ {
				_, err := db.Exec("INSERT INTO t(v) VALUES(?)", j)
				must(err)
			}
		}()
	}
	all.Wait()
	var txid, restored int64
	must(db.QueryRow("SELECT walrust_sync()").Scan(&txid))
	must(db.QueryRow("SELECT walrust_restore(?, ?)", dir+"/replica", dir+"/copy.db").Scan(&restored))
	must(db.QueryRow("SELECT walrust_verify(?)", dir+"/replica").Scan(&text))
	_, err = db.Exec("INSERT INTO t(v) VALUES('the last second')")
	must(err)
	must(db.Close())
	fmt.Println(strings.TrimSpace(walrust.Version), txid == restored, strings.Contains(text, "all good"))
}
"""


class Go(clean.CleanTest):
    def test_it_streams_restores_and_verifies_and_leaves_nothing_on_disk(self):
        clean.setup("golang-go", "golang-github-mattn-go-sqlite3-dev", "libsqlite3-dev", "build-essential")
        source = self.path("path", "src")
        os.makedirs(source)
        with tarfile.open(clean.package(f"walrust-{meta.VERSION}-go.tar.gz")) as tar:
            tar.extractall(source)
        os.makedirs(os.path.join(source, "app"))
        with open(os.path.join(source, "app", "main.go"), "w") as f:
            f.write(PROGRAM)
        env = self.env(GO111MODULE="off", GOPATH=self.path("path") + ":/usr/share/gocode", GOFLAGS="-tags=libsqlite3,libsqlite3_shared",
                       GOCACHE=clean.scratch("go-cache"))
        self.run_ok("go", "vet", "walrust", env=env, timeout=600)
        self.run_ok("go", "build", "-o", self.path("app"), "app", env=env, timeout=600)
        shutil.rmtree(self.path("path"))
        before = set(os.listdir("/tmp"))
        os.mkdir(self.path("data"))
        said = self.run_ok(self.path("app"), self.path("data"))
        self.assertEqual(said.strip(), f"{meta.VERSION} true true")
        self.assertEqual({n for n in set(os.listdir("/tmp")) - before if "walrust" in n}, set())
        self.assertEqual(self.run_ok("sqlite3", self.path("data", "copy.db"), "SELECT count(*) FROM t").strip(), "200")
        # What the close shipped.
        cli = meta.host().cli
        self.run_ok(cli, "restore", self.path("data", "replica"), self.path("last.db"))
        self.assertEqual(self.run_ok("sqlite3", self.path("last.db"), "SELECT count(*) FROM t").strip(), "201")


if __name__ == "__main__":
    unittest.main()
