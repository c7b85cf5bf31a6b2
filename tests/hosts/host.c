/*
** The smallest program with an SQLite in it: runs a script against whatever amalgamation it is compiled with.
**
** Each line of standard input is one of
**   .load FILE      sqlite3_load_extension on the current connection
**   .open NAME FILE a new connection, which becomes the current one
**   .use NAME       that connection becomes the current one
**   .close          close the current connection
**   SQL             printed as rows of values with | between
** An error is printed as "error: ..." and the script goes on.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sqlite3.h"

static struct { char name[32]; sqlite3 *db; } conns[16];
static int current = -1;

static int row(void *u, int n, char **v, char **names){
  int i;
  (void)u; (void)names;
  for(i = 0; i < n; i++) printf("%s%s", i ? "|" : "", v[i] ? v[i] : "NULL");
  printf("\n");
  return 0;
}

static int find(const char *name){
  int i;
  for(i = 0; i < 16; i++) if( strcmp(conns[i].name, name)==0 ) return i;
  return -1;
}

static void run(char *line){
  char *err = 0;
  char name[32], file[900];
  sqlite3 *db = current >= 0 ? conns[current].db : 0;
  if( sscanf(line, ".open %31s %899s", name, file)==2 ){
    current = find("");
    strcpy(conns[current].name, name);
    if( sqlite3_open_v2(file, &conns[current].db, SQLITE_OPEN_READWRITE|SQLITE_OPEN_CREATE|SQLITE_OPEN_URI
#ifdef SQLITE_OPEN_EXRESCODE
        |SQLITE_OPEN_EXRESCODE
#endif
        , 0)!=SQLITE_OK ) printf("error: open: %s\n", sqlite3_errmsg(conns[current].db));
    sqlite3_busy_timeout(conns[current].db, 5000);
  }else if( sscanf(line, ".use %31s", name)==1 ){
    current = find(name);
  }else if( sscanf(line, ".load %899s", file)==1 ){
    sqlite3_enable_load_extension(db, 1);
    if( sqlite3_load_extension(db, file, 0, &err)!=SQLITE_OK ) printf("error: %s\n", err ? err : "none given");
  }else if( strcmp(line, ".close")==0 ){
    if( sqlite3_close(db)!=SQLITE_OK ) printf("error: close: %s\n", sqlite3_errmsg(db));
    conns[current].name[0] = 0;
    current = -1;
  }else if( sqlite3_exec(db, line, row, 0, &err)!=SQLITE_OK ){
    printf("error: %s\n", err);
  }
  sqlite3_free(err);
  fflush(stdout);
}

int main(void){
  char line[100000];
  while( fgets(line, sizeof(line), stdin) ){
    line[strcspn(line, "\n")] = 0;
    if( line[0] ) run(line);
  }
  return 0;
}
