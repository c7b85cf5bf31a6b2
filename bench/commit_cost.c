/*
** What a commit costs with walrust and without, side by side.
**
**   commit_cost EXTENSION DIRECTORY SYNCHRONOUS ROUNDS
**
** Three processes: one with the extension loaded and its database watched (replica: a directory beside it), one stock, and
** one stock with a second thread that sleeps. The third is there because Linux spares a process with a single thread a
** reference count at each system call: what any thread costs, an application with threads has paid already.
** They take turns: in each round all commit the same transactions, the one that begins alternating, with a pause after
** each turn so that the background work of one is not billed to the other: short alternating turns see the same disk and
** clock.
**
** Two loads: one-row inserts in autocommit, and transactions that change 100 pages (4 KiB pages, one row on each).
*/
#include <fcntl.h>
#include <pthread.h>
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

/* One turn's answer: wall time of the whole turn and the median of its commits; microseconds. */
typedef struct { double total, p50; } Turn;

typedef struct { pid_t pid; int to, from; } Worker;

static void *asleep(void *unused){
  for(;;) pause();
  return unused;
}

static void work(const char *name, const char *so, const char *dir, const char *synchronous, int in, int out){
  char sql[1200];
  pthread_t thread;
  if( strcmp(name, "threaded")==0 && pthread_create(&thread, 0, asleep, 0) ) die("pthread_create", 0);
  sqlite3 *db = 0;
  sqlite3_stmt *insert, *update, *begin, *commit;
  snprintf(sql, sizeof sql, "%s/%s.db", dir, name);
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
    Turn turn = { now_us() - begun, percentile(times, count, .5) };
    if( write(out, &turn, sizeof turn)!=sizeof turn ) exit(1);
  }
  sqlite3_finalize(insert); sqlite3_finalize(update); sqlite3_finalize(begin); sqlite3_finalize(commit);
  if( so ) run(db, "SELECT walrust_sync(120)");
  sqlite3_close(db);
  exit(0);
}

static Worker start(const char *name, const char *so, const char *dir, const char *synchronous){
  int down[2], up[2];
  char ready;
  if( pipe(down) || pipe(up) ) die("pipe", 0);
  Worker w = { fork(), down[1], up[0] };
  if( w.pid==0 ){
    close(down[1]); close(up[0]);
    work(name, so, dir, synchronous, down[0], up[1]);
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

/* Ended in this order: a worker holds the pipes of those started before it. */
enum { WITH, THREADED, STOCK, KINDS };

/* For each process the median over the rounds of its median commit and of its whole turn (checkpoints and resets included),
** in microseconds; behind a stock process's the median of the rounds' ratios, with walrust to it. */
static void measure(Worker *w, char load, int count, int rounds, const char *name){
  static const char *kinds[KINDS] = { "with walrust", "stock, 2 threads", "stock" };
  double *commit[KINDS], *total[KINDS], *rc[KINDS], *rt[KINDS];
  for(int k=0; k<KINDS; k++){
    commit[k] = malloc(rounds*sizeof(double)); total[k] = malloc(rounds*sizeof(double));
    rc[k] = malloc(rounds*sizeof(double)); rt[k] = malloc(rounds*sizeof(double));
  }
  for(int i=0; i<5; i++) for(int k=0; k<KINDS; k++) turn(&w[k], load, count);
  for(int i=0; i<rounds; i++){
    Turn t[KINDS];
    for(int k=0; k<KINDS; k++){ int who = (k+i)%KINDS; t[who] = turn(&w[who], load, count); }
    for(int k=0; k<KINDS; k++){
      commit[k][i] = t[k].p50; total[k][i] = t[k].total/count;
      rc[k][i] = t[WITH].p50/t[k].p50; rt[k][i] = t[WITH].total/t[k].total;
    }
  }
  for(int k=0; k<KINDS; k++){
    printf("  %-9s %-17s median commit %8.1f us", k==0 ? name : "", kinds[k], percentile(commit[k], rounds, .5));
    if( k!=WITH ) printf("  ratio %.3f", percentile(rc[k], rounds, .5));
    else printf("             ");
    printf("   mean %8.1f us", percentile(total[k], rounds, .5));
    if( k!=WITH ) printf("  ratio %.3f", percentile(rt[k], rounds, .5));
    printf("\n");
    free(commit[k]); free(total[k]); free(rc[k]); free(rt[k]);
  }
  fflush(stdout);
}

int main(int argc, char **argv){
  if( argc!=5 ){ fprintf(stderr, "usage: commit_cost EXTENSION DIRECTORY NORMAL|FULL ROUNDS\n"); return 2; }
  int rounds = atoi(argv[4]), full = strcmp(argv[3], "FULL")==0;
  Worker all[KINDS];
  all[STOCK] = start("stock", 0, argv[2], argv[3]);
  all[THREADED] = start("threaded", 0, argv[2], argv[3]);
  all[WITH] = start("with", argv[1], argv[2], argv[3]);
  measure(all, 's', full ? 20 : 200, rounds, "one row");
  measure(all, 'w', full ? 5 : 10, rounds, "100 pages");
  int failed = 0;
  for(int k=0; k<KINDS; k++){
    int status = 0;
    close(all[k].to);
    if( waitpid(all[k].pid, &status, 0)<0 || status!=0 ) failed = 1;
  }
  return failed;
}
