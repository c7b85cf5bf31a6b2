/*
** What a commit costs with walrust and without, side by side.
**
**   commit_cost EXTENSION DIRECTORY SYNCHRONOUS ROUNDS
**
** Two processes, one with the extension loaded and its database watched (replica: a directory beside it), one stock.
** They take turns: in each round both commit the same transactions, the one that begins alternating, with a pause after
** each turn so that the background work of one is not billed to the other. What is printed is the median over all rounds
** of a turn's wall time, and the median of the rounds' ratios: short alternating turns see the same disk and clock.
**
** Two loads: one-row inserts in autocommit, and transactions that change 100 pages (4 KiB pages, one row on each).
*/
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROWS = 3000, ROW_BYTES = 3500, PAGES_PER_COMMIT = 100 };

static void die(const char *what, sqlite3 *db){
  fprintf(stderr, "commit_cost: %s: %s\n", what, db ? sqlite3_errmsg(db) : "");
  exit(1);
}

static void run(sqlite3 *db, const char *sql){
  if( sqlite3_exec(db, sql, 0, 0, 0)!=SQLITE_OK ) die(sql, db);
}

static double now_us(void){
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec*1e6 + t.tv_nsec/1e3;
}

static int compare(const void *a, const void *b){
  double x = *(const double*)a, y = *(const double*)b;
  return (x>y) - (x<y);
}

static double percentile(const double *v, int n, double p){
  double *s = malloc(n*sizeof(double));
  memcpy(s, v, n*sizeof(double));
  qsort(s, n, sizeof(double), compare);
  double r = s[(int)((n-1)*p)];
  free(s);
  return r;
}

/* One turn's answer: wall time of the whole turn, median and 99th percentile of its commits; microseconds. */
typedef struct { double total, p50, p99; } Turn;

typedef struct { pid_t pid; int to, from; } Worker;

static void work(const char *so, const char *dir, const char *synchronous, int in, int out){
  char sql[1200];
  sqlite3 *db = 0;
  sqlite3_stmt *insert, *update, *begin, *commit;
  snprintf(sql, sizeof sql, "%s/%s.db", dir, so ? "with" : "without");
  if( sqlite3_open(sql, &db)!=SQLITE_OK ) die(sql, db);
  if( so ){
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0);
    if( sqlite3_load_extension(db, so, 0, 0)!=SQLITE_OK ) die(so, db);
  }
  run(db, "PRAGMA journal_mode=wal");
  snprintf(sql, sizeof sql, "PRAGMA synchronous=%s", synchronous);
  run(db, sql);
  if( so ){
    snprintf(sql, sizeof sql, "SELECT walrust_watch('%s/replica')", dir);
    run(db, sql);
  }
  run(db, "CREATE TABLE small(id INTEGER PRIMARY KEY, v TEXT)");
  run(db, "CREATE TABLE wide(id INTEGER PRIMARY KEY, v BLOB)");
  snprintf(sql, sizeof sql, "INSERT INTO wide(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%d)"
           " SELECT randomblob(%d) FROM n", ROWS, ROW_BYTES);
  run(db, sql);
  run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
  if( sqlite3_prepare_v2(db, "INSERT INTO small(v) VALUES(?1)", -1, &insert, 0)
   || sqlite3_prepare_v2(db, "UPDATE wide SET v=?2 WHERE id=?1", -1, &update, 0)
   || sqlite3_prepare_v2(db, "BEGIN IMMEDIATE", -1, &begin, 0)
   || sqlite3_prepare_v2(db, "COMMIT", -1, &commit, 0) ) die("prepare", db);
  static char blob[ROW_BYTES];
  unsigned seed = 7;
  char ask[2] = {0, 0};
  if( write(out, "+", 1)!=1 ) exit(1);
  while( read(in, ask, 2)==2 ){
    int count = (unsigned char)ask[1];
    double times[256];
    double begun = now_us();
    for(int i=0; i<count; i++){
      double t = now_us();
      if( ask[0]=='s' ){
        sqlite3_bind_text(insert, 1, "a row of an ordinary table, about one hundred bytes long, as in many an application's log", -1, SQLITE_STATIC);
        if( sqlite3_step(insert)!=SQLITE_DONE ) die("insert", db);
        sqlite3_reset(insert);
      }else{
        sqlite3_step(begin); sqlite3_reset(begin);
        int first = rand_r(&seed) % (ROWS - PAGES_PER_COMMIT);
        for(int k=0; k<PAGES_PER_COMMIT; k++){
          blob[rand_r(&seed) % ROW_BYTES]++;
          sqlite3_bind_int(update, 1, first + k + 1);
          sqlite3_bind_blob(update, 2, blob, ROW_BYTES, SQLITE_STATIC);
          if( sqlite3_step(update)!=SQLITE_DONE ) die("update", db);
          sqlite3_reset(update);
        }
        if( sqlite3_step(commit)!=SQLITE_DONE ) die("commit", db);
        sqlite3_reset(commit);
      }
      times[i] = now_us() - t;
    }
    Turn turn = { now_us() - begun, percentile(times, count, .5), percentile(times, count, .99) };
    if( write(out, &turn, sizeof turn)!=sizeof turn ) exit(1);
  }
  sqlite3_finalize(insert); sqlite3_finalize(update); sqlite3_finalize(begin); sqlite3_finalize(commit);
  if( so ) run(db, "SELECT walrust_sync(120)");
  sqlite3_close(db);
  exit(0);
}

static Worker start(const char *so, const char *dir, const char *synchronous){
  int down[2], up[2];
  char ready;
  if( pipe(down) || pipe(up) ) die("pipe", 0);
  Worker w = { fork(), down[1], up[0] };
  if( w.pid==0 ){
    close(down[1]); close(up[0]);
    work(so, dir, synchronous, down[0], up[1]);
  }
  close(down[0]); close(up[1]);
  fcntl(w.to, F_SETFD, FD_CLOEXEC);
  if( read(w.from, &ready, 1)!=1 ) die("a worker did not start", 0);
  return w;
}

static Turn turn(Worker *w, char load, int count){
  char ask[2] = { load, (char)count };
  Turn t;
  if( write(w->to, ask, 2)!=2 || read(w->from, &t, sizeof t)!=sizeof t ) die("a worker died", 0);
  usleep(15000);
  return t;
}

static double measure(Worker *with, Worker *without, char load, int count, int rounds, const char *name){
  double *a = malloc(rounds*sizeof(double)), *b = malloc(rounds*sizeof(double)), *r = malloc(rounds*sizeof(double));
  double *pa = malloc(rounds*sizeof(double)), *pb = malloc(rounds*sizeof(double));
  for(int i=0; i<5; i++){ turn(with, load, count); turn(without, load, count); }
  for(int i=0; i<rounds; i++){
    Turn x, y;
    if( i%2 ){ x = turn(with, load, count); y = turn(without, load, count); }
    else{ y = turn(without, load, count); x = turn(with, load, count); }
    a[i] = x.total/count; b[i] = y.total/count; r[i] = x.total/y.total; pa[i] = x.p99; pb[i] = y.p99;
  }
  double ratio = percentile(a, rounds, .5)/percentile(b, rounds, .5);
  printf("  %-9s with %8.1f us  without %8.1f us  ratio of medians %.3f  median of ratios %.3f  (p99 %.0f / %.0f us)\n",
         name, percentile(a, rounds, .5), percentile(b, rounds, .5), ratio, percentile(r, rounds, .5),
         percentile(pa, rounds, .5), percentile(pb, rounds, .5));
  fflush(stdout);
  free(a); free(b); free(r); free(pa); free(pb);
  return ratio;
}

int main(int argc, char **argv){
  if( argc!=5 ){ fprintf(stderr, "usage: commit_cost EXTENSION DIRECTORY NORMAL|FULL ROUNDS\n"); return 2; }
  int rounds = atoi(argv[4]), full = strcmp(argv[3], "FULL")==0;
  Worker without = start(0, argv[2], argv[3]);
  Worker with = start(argv[1], argv[2], argv[3]);
  measure(&with, &without, 's', full ? 20 : 200, rounds, "one row");
  measure(&with, &without, 'w', full ? 5 : 10, rounds, "100 pages");
  int failed = 0;
  Worker *both[2] = { &with, &without };
  for(int i=0; i<2; i++){
    int status = 0;
    close(both[i]->to);
    if( waitpid(both[i]->pid, &status, 0)<0 || status!=0 ) failed = 1;
  }
  return failed;
}
