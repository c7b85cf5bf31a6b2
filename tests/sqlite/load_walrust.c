/*
** Makes walrust the default VFS of SQLite's own test program (testfixture), without touching a line of SQLite.
**
** SQLite calls the function named by -DSQLITE_EXTRA_INIT at the end of sqlite3_initialize(). With WALRUST_SO unset
** this one does nothing, so the same binary is its own control: the stock run. With WALRUST_SO set to the path of the
** extension it loads it on a :memory: connection, as any application would, and closes that connection again.
**
** With WALRUST_SUITE_STREAM set to a directory as well, every database of the process is streamed to a replica of its own
** below <directory>/<process id>/.
**
** A failure to load ends the program with status 90: a suite that silently ran without the extension would prove nothing.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "sqlite3.h"

int walrust_suite_init(const char *unused){
  const char *so = getenv("WALRUST_SO");
  const char *stream = getenv("WALRUST_SUITE_STREAM");
  sqlite3 *db = 0;
  char *err = 0;
  sqlite3_vfs *vfs;
  (void)unused;
  if( so==0 || so[0]==0 ) return SQLITE_OK;
  if( stream && stream[0] ){
    char url[1000];
    snprintf(url, sizeof(url), "%s/%d/{name}", stream, (int)getpid());
    setenv("WALRUST_REPLICA", url, 1);
  }
  if( sqlite3_open(":memory:", &db)!=SQLITE_OK
   || sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0)!=SQLITE_OK
   || sqlite3_load_extension(db, so, 0, &err)!=SQLITE_OK ){
    fprintf(stderr, "load_walrust: %s: %s\n", so, err ? err : sqlite3_errmsg(db));
    exit(90);
  }
  sqlite3_close(db);
  vfs = sqlite3_vfs_find(0);
  if( vfs==0 || strcmp(vfs->zName, "walrust")!=0 ){
    fprintf(stderr, "load_walrust: the default VFS is %s, not walrust\n", vfs ? vfs->zName : "missing");
    exit(90);
  }
  return SQLITE_OK;
}
