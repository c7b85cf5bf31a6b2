/*
** Puts walrust under SQLite's own test programs (testfixture, mptester, threadtest3) without touching a line of SQLite.
**
** SQLite calls the function named by -DSQLITE_EXTRA_INIT at the end of sqlite3_initialize(); the linker sends calls of
** sqlite3_close() through here as well (-Wl,--wrap). What happens is said by the environment; with nothing set the same
** binary is stock SQLite, so it is its own control.
**
**   WALRUST_SO            loads the extension, as any application would, on a :memory: connection. The default VFS passes
**                         files through it from then on. Failing to load ends the program with status 90: a suite that silently ran without
**                         the extension would prove nothing.
**   WALRUST_SUITE_LATE    loads it with the first connection instead: for a test in which memory runs out at each moment of
**                         sqlite3_initialize(), where no application loads an extension.
**   WALRUST_SUITE_FOREIGN makes a VFS that is not one of SQLite's own the default before that (foreign.h), which ends the
**                         program if one of its files is tampered with. Without WALRUST_SO it is its own control.
**   WALRUST_SUITE_WAL     a part of a path. Each database whose path has it is put into WAL mode when it is opened, as
**                         walrust does with a database that it is to stream. Without WALRUST_SO this is the control of
**                         the streamed run: SQLite's tests of rollback mode fail in both, and only there may they.
**   WALRUST_SUITE_STREAM  a directory. When a connection to one of these databases closes and leaves no WAL (it was the last),
**                         and walrust_status says that the replica has all of it, the replica is restored and compared
**                         with the file, byte by byte. Each comparison is a line in <directory>/compared-<process id>.txt:
**                         "same", "differs PATH …", or "skipped WHY". (Where it goes is configured as users do it, by
**                         WALRUST_CONFIG. A replica may be behind: a close waits for what is on its way, but a database
**                         that was written past walrust, in rollback mode or with a hex editor, is read anew only when
**                         somebody opens it again.)
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "sqlite3.h"

#include "foreign.h"

int __real_sqlite3_close(sqlite3*);

static const char *zPart = 0;      /* WALRUST_SUITE_WAL */
static const char *zStream = 0;    /* WALRUST_SUITE_STREAM */
static int busy = 0;               /* a comparison is under way: its own connections are nobody's business */

static double now(void){
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec*1e-9;
}

static void note(const char *zFormat, const char *a, const char *b){
  char zLog[1000];
  FILE *f;
  snprintf(zLog, sizeof(zLog), "%s/compared-%d.txt", zStream, (int)getpid());
  f = fopen(zLog, "a");
  if( f ){
    fprintf(f, zFormat, a, b);
    fclose(f);
  }
}

/* Is this a database that the suite's WAL or streamed run means? */
static int meant(const char *zFile){
  return zPart && zFile && zFile[0] && strstr(zFile, zPart)!=0;
}

static int walOnOpen(sqlite3 *db, char **pzErr, const void *pApi){
  const char *zFile = sqlite3_db_filename(db, "main");
  (void)pzErr; (void)pApi;
  if( meant(zFile) && sqlite3_db_readonly(db, "main")==0 ){
    sqlite3_exec(db, "PRAGMA main.journal_mode=WAL", 0, 0, 0);
  }
  sqlite3_exec(db, "", 0, 0, 0);   /* an error here is not one of the open */
  return SQLITE_OK;
}

/* Runs SQL with one text parameter, gives the first column of the first row as text to be freed, or 0. */
static char *one(sqlite3 *db, const char *zSql, const char *z1, const char *z2){
  sqlite3_stmt *p = 0;
  char *z = 0;
  if( sqlite3_prepare_v2(db, zSql, -1, &p, 0)==SQLITE_OK ){
    sqlite3_bind_text(p, 1, z1, -1, SQLITE_STATIC);
    if( z2 ) sqlite3_bind_text(p, 2, z2, -1, SQLITE_STATIC);
    if( sqlite3_step(p)==SQLITE_ROW && sqlite3_column_text(p, 0) ){
      z = strdup((const char*)sqlite3_column_text(p, 0));
    }
  }
  sqlite3_finalize(p);
  return z;
}

static unsigned char *slurp(const char *zFile, long *pn){
  unsigned char *a = 0;
  FILE *f = fopen(zFile, "rb");
  *pn = -1;
  if( f==0 ) return 0;
  fseek(f, 0, SEEK_END);
  *pn = ftell(f);
  rewind(f);
  a = malloc(*pn>0 ? *pn : 1);
  if( a && fread(a, 1, *pn, f)!=(size_t)*pn ) *pn = -1;
  fclose(f);
  return a;
}

/* The replica of zFile if walrust_status says that it has all of it, else 0. */
static char *claimed(sqlite3 *db, const char *zFile){
  return one(db, "SELECT replica FROM walrust_status WHERE database=?1 AND state='streaming'"
                 " AND txid=replicated_txid AND pending_bytes=0 AND last_error IS NULL", zFile, 0);
}

/* Restores zReplica and holds it against zFile. Writes to zWhy how they differ; "" if they do not. */
static void difference(sqlite3 *db, const char *zFile, const char *zReplica, char *zWhy, size_t nWhy){
  char zTarget[1000];
  unsigned char *a, *b = 0;
  long na = 0, nb = 0, i = 0, n, pgsz, whole, inHeader, lock;
  sqlite3_stmt *p = 0;

  zWhy[0] = 0;
  a = slurp(zFile, &na);
  snprintf(zTarget, sizeof(zTarget), "%s/restored-%d.db", zStream, (int)getpid());
  sqlite3_prepare_v2(db, "SELECT walrust_restore(?1, ?2, NULL, '{\"overwrite\":1,\"check\":\"none\"}')", -1, &p, 0);
  sqlite3_bind_text(p, 1, zReplica, -1, SQLITE_STATIC);
  sqlite3_bind_text(p, 2, zTarget, -1, SQLITE_STATIC);
  if( sqlite3_step(p)!=SQLITE_ROW ) snprintf(zWhy, nWhy, "%s", sqlite3_errmsg(db));
  sqlite3_finalize(p);
  if( zWhy[0]==0 && (b = slurp(zTarget, &nb))==0 ) snprintf(zWhy, nWhy, "the restored file cannot be read");
  if( zWhy[0]==0 && a!=0 && na>=100 ){
    pgsz = (a[16]<<8) | a[17];
    if( pgsz<512 ) pgsz = pgsz==1 ? 65536 : 512;
    lock = 0x40000000L/pgsz;
    /* A file may be longer than its database, by SQLITE_FCNTL_CHUNK_SIZE or because something was written to it past SQLite.
    ** Then a commit, and so the replica, may have the length of either. Part of a page counts as one. */
    whole = (na+pgsz-1)/pgsz*pgsz;
    inHeader = (((long)a[28]<<24) | (a[29]<<16) | (a[30]<<8) | a[31])*pgsz;
    if( nb!=na && nb!=whole && (nb!=inHeader || nb>na || nb==0) ){
      snprintf(zWhy, nWhy, "%ld bytes (%ld by its header), restored %ld", na, inHeader, nb);
    }else{
      n = na<nb ? na : nb;
      for(i=0; i<n && (a[i]==b[i] || i/pgsz==lock); i++){}
      if( i<n ) snprintf(zWhy, nWhy, "at byte %ld of %ld", i, n);
    }
  }
  free(a);
  free(b);
  unlink(zTarget);
}

/* Nobody in this process has zFile open any more, and it has no WAL. */
static void compare(const char *zFile){
  static double spent = 0, start = 0;
  double begin = now();
  sqlite3 *db = 0;
  char *zReplica = 0;
  char zWhy[400];
  unsigned char aHead[20];
  FILE *f;
  int i, inWal;

  if( start==0 ) start = begin;
  if( spent > 1 && spent > (begin-start)*0.3 ){
    note("skipped for time\n", "", "");
    return;
  }
  busy = 1;
  f = fopen(zFile, "rb");
  inWal = f && fread(aHead, 1, 20, f)==20 && aHead[18]==2;
  if( f ) fclose(f);
  if( sqlite3_open(":memory:", &db)==SQLITE_OK ) zReplica = claimed(db, zFile);
  if( !inWal ){
    note("skipped not a database in WAL mode\n", "", "");
  }else if( zReplica==0 ){
    note("skipped the replica does not claim to have it\n", "", "");
  }else{
    difference(db, zFile, zReplica, zWhy, sizeof(zWhy));
    /* What was written to the file past SQLite is noticed at the next look, within a second; then the claim is gone. */
    for(i=0; i<20 && zWhy[0] && zReplica; i++){
      usleep(50000);
      free(zReplica);
      zReplica = claimed(db, zFile);
    }
    if( zWhy[0]==0 ){
      note("same\n", "", "");
    }else if( zReplica==0 ){
      note("skipped it was changed past SQLite, and that was noticed\n", "", "");
    }else{
      /* Whether it is the replica that is wrong, or was the claim too early: what is there a second later tells. */
      char zAll[1000], zThen[400], *zClaim = one(db, "SELECT state || ' ' || txid || ' ' || replicated_txid FROM walrust_status"
                                                " WHERE database=?1", zFile, 0);
      difference(db, zFile, zReplica, zThen, sizeof(zThen));
      snprintf(zAll, sizeof(zAll), "%s; a second later: %s (%s)", zWhy, zThen[0] ? zThen : "the same", zClaim ? zClaim : "no row");
      note("differs %s: %s\n", zFile, zAll);
      free(zClaim);
    }
  }
  sqlite3_close(db);
  free(zReplica);
  busy = 0;
  spent += now() - begin;
}

int __wrap_sqlite3_close(sqlite3 *db){
  char *zFile = 0, *zWal = 0;
  const char *z;
  int rc;
  if( zStream && !busy && db && (z = sqlite3_db_filename(db, "main"))!=0 && meant(z) ){
    char *zVfs = 0;
    if( sqlite3_file_control(db, "main", SQLITE_FCNTL_VFSNAME, &zVfs)==SQLITE_OK && zVfs && strncmp(zVfs, "walrust/unix", 12)==0 ){
      zFile = strdup(z);
    }
    sqlite3_free(zVfs);
    zWal = malloc(strlen(z)+5);
    if( zWal ) sprintf(zWal, "%s-wal", z);
  }
  /* (Under a VFS of the suite's own, such as one that cuts files into pieces, a path means something else.) */
  rc = __real_sqlite3_close(db);
  if( rc==SQLITE_OK && zFile && zWal && access(zWal, F_OK)!=0 && access(zFile, R_OK)==0 ){
    compare(zFile);
  }
  free(zFile);
  free(zWal);
  return rc;
}

static int loadOnOpen(sqlite3 *db, char **pzErr, const void *pApi){
  const char *so = getenv("WALRUST_SO");
  (void)pApi;
  if( sqlite3_vfs_find("walrust") ) return SQLITE_OK;
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0);
  return sqlite3_load_extension(db, so, 0, pzErr);
}

int walrust_suite_init(const char *unused){
  const char *so = getenv("WALRUST_SO");
  sqlite3 *db = 0;
  char *err = 0;
  sqlite3_vfs *before;
  int rc;
  (void)unused;
  zPart = getenv("WALRUST_SUITE_WAL");
  zStream = getenv("WALRUST_SUITE_STREAM");
  if( zPart ) sqlite3_auto_extension((void(*)(void))walOnOpen);
  if( getenv("WALRUST_SUITE_FOREIGN") && (rc = foreignRegister())!=SQLITE_OK ) return rc;
  if( so==0 || so[0]==0 ) return SQLITE_OK;
  if( getenv("WALRUST_SUITE_LATE") ) return sqlite3_auto_extension((void(*)(void))loadOnOpen);
  before = sqlite3_vfs_find(0);
  if( (rc = sqlite3_open(":memory:", &db))!=SQLITE_OK
   || (rc = sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0))!=SQLITE_OK
   || (rc = sqlite3_load_extension(db, so, 0, &err))!=SQLITE_OK ){
    fprintf(stderr, "load_walrust: %s: %s\n", so, err ? err : sqlite3_errmsg(db));
    exit(90);
  }
  __real_sqlite3_close(db);
  if( sqlite3_vfs_find(0)!=before || sqlite3_vfs_find("walrust")==0 ){
    fprintf(stderr, "load_walrust: another default VFS than before, or no VFS walrust\n");
    exit(90);
  }
  return SQLITE_OK;
}
