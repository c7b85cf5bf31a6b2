/* A file system that fails, for one process (LD_PRELOAD).
 *
 * FAILFS_DIR    directories at or below it are meant
 * FAILFS_SYNC   errno of fsync() of a directory there; FAILFS_TIMES: only of the first so many
 * FAILFS_LINK   errno of link() to a name there
 * FAILFS_RENAME milliseconds before each rename() to a name there
 * FAILFS_LOG    "failed" or "synced" for each fsync() of a directory there; "renaming" before that wait
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int number(const char *name) {
    const char *v = getenv(name);
    return v ? atoi(v) : 0;
}

static int is_below(const char *path) {
    const char *dir = getenv("FAILFS_DIR");
    return dir && strncmp(path, dir, strlen(dir)) == 0;
}

static void note(const char *what) {
    const char *log = getenv("FAILFS_LOG");
    int fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    if (fd >= 0) {
        if (write(fd, what, strlen(what)) < 0) abort();
        close(fd);
    }
}

int fsync(int fd) {
    static int failed;
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    struct stat st;
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, path, sizeof path - 1);
    if (n > 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        path[n] = 0;
        if (is_below(path)) {
            int e = number("FAILFS_SYNC"), times = number("FAILFS_TIMES");
            if (e && (!times || __sync_fetch_and_add(&failed, 1) < times)) {
                note("failed\n");
                errno = e;
                return -1;
            }
            note("synced\n");
        }
    }
    return real(fd);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    static int (*real)(int, const char *, int, const char *, int);
    if (!real) real = (int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat");
    if (number("FAILFS_LINK") && is_below(to)) {
        errno = number("FAILFS_LINK");
        return -1;
    }
    return real(from_dir, from, to_dir, to, flags);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    int wait = number("FAILFS_RENAME");
    if (wait && is_below(to)) {
        note("renaming\n");
        usleep(wait * 1000);
    }
    return real(from, to);
}

int link(const char *from, const char *to) {
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}
