/*
** Many commits from several connections of one process, with spills, savepoints and rollbacks.
**
**   commits EXTENSION DATABASE REPLICA COMMITS CONNECTIONS
**
** Prints: commits, rolled back, errors, seconds, the TXID that the final walrust_sync returned. An error is anything but a
** lock that was waited for.
*/
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *database;
static int per_thread;
static int errors, rolled_back, committed;

static int waiting(void *unused, int n){
  (void)unused; (void)n;
  usleep(30);
  return 1;
}

static int step(sqlite3 *db, const char *sql){
  char *message = 0;
  int rc = sqlite3_exec(db, sql, 0, 0, &message);
  if( rc!=SQLITE_OK ){
    if( __atomic_add_fetch(&errors, 1, __ATOMIC_RELAXED)<=5 ) fprintf(stderr, "%s: %s\n", sql, message ? message : "?");
    sqlite3_free(message);
  }
  return rc;
}

static void *writer(void *arg){
  long me = (long)arg;
  sqlite3 *db;
  char sql[300];
  if( sqlite3_open(database, &db)!=SQLITE_OK ){ errors++; return 0; }
  sqlite3_busy_handler(db, waiting, 0);
  step(db, "PRAGMA synchronous=NORMAL");
  step(db, "PRAGMA cache_size=20");
  for(int i=0; i<per_thread; i++){
    if( i%97==13 ){
      /* Spills far past the cache, then is rolled back: frames in the WAL that are nobody's commit. */
      step(db, "BEGIN IMMEDIATE");
      step(db, "INSERT INTO row(who, n, v) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<60) SELECT -1, i, randomblob(3000) FROM c");
      step(db, "ROLLBACK");
      __atomic_add_fetch(&rolled_back, 1, __ATOMIC_RELAXED);
    }
    snprintf(sql, sizeof sql, "INSERT INTO row(who, n, v) VALUES(%ld, %d, randomblob(%d))", me, i, i%151);
    if( i%211==7 ){
      /* Spills and commits, with a savepoint taken back on the way. */
      step(db, "BEGIN IMMEDIATE");
      step(db, "UPDATE page SET v = randomblob(3000) WHERE id <= 50");
      step(db, "SAVEPOINT s");
      step(db, "DELETE FROM page");
      step(db, "ROLLBACK TO s");
      step(db, "RELEASE s");
      step(db, sql);
      step(db, "COMMIT");
    }else{
      step(db, sql);
    }
    __atomic_add_fetch(&committed, 1, __ATOMIC_RELAXED);
  }
  sqlite3_close(db);
  return 0;
}

static int text(void *out, int n, char **values, char **names){
  (void)n; (void)names;
  snprintf(out, 100, "%s", values[0] ? values[0] : "");
  return 0;
}

int main(int argc, char **argv){
  sqlite3 *db;
  char sql[1200], txid[100] = "";
  pthread_t threads[64];
  struct timespec a, b;
  if( argc!=6 || atoi(argv[5])<1 || atoi(argv[5])>64 ){
    fprintf(stderr, "usage: commits EXTENSION DATABASE REPLICA COMMITS CONNECTIONS\n");
    return 2;
  }
  database = argv[2];
  int n = atoi(argv[5]);
  per_thread = atoi(argv[4])/n;
  if( sqlite3_open(database, &db) ) return 1;
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0);
  if( sqlite3_load_extension(db, argv[1], 0, 0) ){ fprintf(stderr, "%s\n", sqlite3_errmsg(db)); return 1; }
  sqlite3_busy_handler(db, waiting, 0);
  snprintf(sql, sizeof sql, "SELECT walrust_watch('%s')", argv[3]);
  step(db, sql);
  step(db, "CREATE TABLE row(id INTEGER PRIMARY KEY, who INT, n INT, v BLOB); CREATE INDEX row_who ON row(who, n)");
  step(db, "CREATE TABLE page(id INTEGER PRIMARY KEY, v BLOB)");
  step(db, "INSERT INTO page(v) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<200) SELECT randomblob(3000) FROM c");
  clock_gettime(CLOCK_MONOTONIC, &a);
  for(long i=0; i<n; i++) pthread_create(&threads[i], 0, writer, (void*)i);
  for(int i=0; i<n; i++) pthread_join(threads[i], 0);
  clock_gettime(CLOCK_MONOTONIC, &b);
  char *message = 0;
  if( sqlite3_exec(db, "SELECT walrust_sync(900)", text, txid, &message) ){ fprintf(stderr, "%s\n", message); errors++; }
  printf("%d %d %d %.1f %s\n", committed, rolled_back, errors, (b.tv_sec-a.tv_sec) + (b.tv_nsec-a.tv_nsec)/1e9, txid);
  sqlite3_close(db);
  return errors!=0;
}
