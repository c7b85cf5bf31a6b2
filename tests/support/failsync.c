/*
** For LD_PRELOAD: while the file named by FAILSYNC exists, syncing a file whose name ends in "-wal" fails with EIO.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd){
  const char *zFlag = getenv("FAILSYNC");
  char zLink[64], zName[4096];
  ssize_t n;
  if( zFlag==0 || access(zFlag, F_OK)!=0 ) return 0;
  snprintf(zLink, sizeof(zLink), "/proc/self/fd/%d", fd);
  n = readlink(zLink, zName, sizeof(zName)-1);
  return n>4 && memcmp(zName+n-4, "-wal", 4)==0;
}

#define WRAP(name) \
  int name(int fd){ \
    int (*real)(int) = (int(*)(int))dlsym(RTLD_NEXT, #name); \
    if( fails(fd) ){ errno = EIO; return -1; } \
    return real(fd); \
  }
WRAP(fsync)
WRAP(fdatasync)
