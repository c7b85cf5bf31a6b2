// Package walrust streams a SQLite database in WAL mode to S3, Google Cloud Storage, Azure or a directory, and restores it from there.
//
// It is a loadable extension, which this package holds inside: nothing is installed beside the program. It serves drivers that load
// extensions, which are those of C (github.com/mattn/go-sqlite3); one written in Go cannot load any.
//
//	import (
//		"database/sql"
//		"github.com/mattn/go-sqlite3"
//		"walrust"
//	)
//
//	path, err := walrust.Path()
//	sql.Register("sqlite3_walrust", &sqlite3.SQLiteDriver{Extensions: []string{path}})
//	db, err := sql.Open("sqlite3_walrust", "app.db")
//	db.Exec("SELECT walrust_watch(?)", "s3://bucket/app") // or name it in walrust.toml, or in WALRUST_REPLICA
//	defer db.Close()                                      // ships what is pending: Go runs nothing else at its end
package walrust

import (
	_ "embed"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

// Version of walrust.
//
//go:embed VERSION
var Version string

var (
	once sync.Once
	path string
	fail error
)

// Path gives the extension's file, as a driver takes it. The file is one in memory, without a name on any disk, and lives as long as the
// process. It is the same one at every call. The error is that of the kernel, where it gives no such file (before Linux 3.17).
func Path() (string, error) {
	once.Do(func() { path, fail = inMemory() })
	return path, fail
}

func inMemory() (string, error) {
	name := []byte("walrust\x00")
	fd, _, e := syscall.Syscall(memfdCreate, uintptr(unsafe.Pointer(&name[0])), closeOnExec, 0)
	if e != 0 {
		return "", fmt.Errorf("walrust: a file in memory cannot be made on %s/%s: %w", runtime.GOOS, runtime.GOARCH, e)
	}
	file := os.NewFile(fd, "walrust.so")
	if _, err := file.Write(library); err != nil {
		file.Close()
		return "", fmt.Errorf("walrust: the extension cannot be written into a file in memory: %w", err)
	}
	// The finalizer would close it: it is to stay.
	kept = file
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}

var kept *os.File

const closeOnExec = 1
