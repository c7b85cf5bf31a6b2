/* What a power cut would leave, written down while a program runs: preloaded into a process, this notes every change to
 * the files below $POWERCUT_DIR and every sync, in order, in $POWERCUT_LOG. tests/door/powercut.py replays the notes up to a
 * kill and leaves out what was not synced.
 *
 * Shared memory (SQLite's wal-index) is not noted: it is gone after a power cut. A note is made after its change, under one
 * mutex; a kill in between loses the note of a change that nobody could rely on yet.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 65536
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static char root[4096];
static size_t root_length;
static int log_fd = -1;
static uint64_t inode_of[FDS]; /* 0: not ours */

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("POWERCUT_DIR"), *log = getenv("POWERCUT_LOG");
    if (!dir || !log || strlen(dir) >= sizeof root) return;
    strcpy(root, dir);
    root_length = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int ours(const char *path) {
    return log_fd >= 0 && path && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static int known(int fd) { return fd >= 0 && fd < FDS && inode_of[fd] != 0; }

struct head { uint32_t op, path, path2, thread; uint64_t inode, offset, length; };

static void note(char op, uint64_t inode, const char *path, const char *path2, uint64_t offset, uint64_t length, const void *data) {
    struct head h = {(uint32_t)op, path ? strlen(path) : 0, path2 ? strlen(path2) : 0, syscall(SYS_gettid), inode, offset, length};
    struct iovec v[4] = {
        {&h, sizeof h}, {(void *)path, h.path}, {(void *)path2, h.path2}, {(void *)data, data ? length : 0},
    };
    if (syscall(SYS_writev, log_fd, v, 4) < 0) abort();
}

static uint64_t inode(int fd) {
    struct stat s;
    return fstat(fd, &s) == 0 ? s.st_ino : 0;
}

static int is_there(const char *path) {
    struct stat s;
    return lstat(path, &s) == 0;
}

static int opened(int fd, const char *path, int flags, int was_there) {
    if (fd >= 0 && fd < FDS) {
        inode_of[fd] = inode(fd);
        if ((flags & O_CREAT) && !was_there) note('C', inode_of[fd], path, 0, 0, 0, 0);
        else if (flags & O_TRUNC) note('T', inode_of[fd], 0, 0, 0, 0, 0);
    }
    return fd;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                   \
        va_list a;                                                                                 \
        va_start(a, flags);                                                                        \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(a, mode_t) : 0;                     \
        va_end(a);                                                                                 \
        if (!ours(path)) return REAL(name)(path, flags, mode);                                     \
        pthread_mutex_lock(&one);                                                                  \
        int was = is_there(path);                                                                  \
        int fd = opened(REAL(name)(path, flags, mode), path, flags, was);                          \
        int e = errno;                                                                             \
        pthread_mutex_unlock(&one);                                                                \
        errno = e;                                                                                 \
        return fd;                                                                                 \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (fd >= 0 && fd < FDS) inode_of[fd] = 0;
    return REAL(close)(fd);
}

static void wrote(int fd, const void *data, ssize_t n, off64_t at) {
    if (n > 0) note('W', inode_of[fd], 0, 0, at, n, data);
}

ssize_t write(int fd, const void *data, size_t n) {
    if (!known(fd)) return REAL(write)(fd, data, n);
    pthread_mutex_lock(&one);
    off64_t at = (fcntl(fd, F_GETFL) & O_APPEND) ? lseek64(fd, 0, SEEK_END) : lseek64(fd, 0, SEEK_CUR);
    ssize_t done = REAL(write)(fd, data, n);
    int e = errno;
    wrote(fd, data, done, at);
    pthread_mutex_unlock(&one);
    errno = e;
    return done;
}

ssize_t writev(int fd, const struct iovec *v, int count) {
    if (!known(fd)) return REAL(writev)(fd, v, count);
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = write(fd, v[i].iov_base, v[i].iov_len);
        if (n < 0) return all ? all : n;
        all += n;
        if ((size_t)n < v[i].iov_len) break;
    }
    return all;
}

#define PWRITE(name, off)                                                                          \
    ssize_t name(int fd, const void *data, size_t n, off at) {                                     \
        if (!known(fd)) return REAL(name)(fd, data, n, at);                                        \
        pthread_mutex_lock(&one);                                                                  \
        ssize_t done = REAL(name)(fd, data, n, at);                                                \
        int e = errno;                                                                             \
        wrote(fd, data, done, at);                                                                 \
        pthread_mutex_unlock(&one);                                                                \
        errno = e;                                                                                 \
        return done;                                                                               \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(name, off)                                                                        \
    int name(int fd, off size) {                                                                   \
        if (!known(fd)) return REAL(name)(fd, size);                                               \
        pthread_mutex_lock(&one);                                                                  \
        int rc = REAL(name)(fd, size);                                                             \
        int e = errno;                                                                             \
        if (rc == 0) note('T', inode_of[fd], 0, 0, 0, size, 0);                                    \
        pthread_mutex_unlock(&one);                                                                \
        errno = e;                                                                                 \
        return rc;                                                                                 \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

/* The note comes before the sync: what is written meanwhile by others is not covered by it, but a kill within the sync must
 * not look as if nothing had been synced that had. A sync that was cut short is replayed as one that was done, which is one
 * of the things that may happen. */
#define SYNC(name)                                                                                 \
    int name(int fd) {                                                                             \
        if (!known(fd)) return REAL(name)(fd);                                                     \
        pthread_mutex_lock(&one);                                                                  \
        note('S', inode_of[fd], 0, 0, 0, 0, 0);                                                    \
        pthread_mutex_unlock(&one);                                                                \
        return 0;                                                                                  \
    }
SYNC(fsync)
SYNC(fdatasync)

#define NAMES(name, op)                                                                            \
    int name(const char *from, const char *to) {                                                   \
        if (!ours(from) && !ours(to)) return REAL(name)(from, to);                                 \
        pthread_mutex_lock(&one);                                                                  \
        int rc = REAL(name)(from, to);                                                             \
        int e = errno;                                                                             \
        if (rc == 0) note(op, 0, from, to, 0, 0, 0);                                               \
        pthread_mutex_unlock(&one);                                                                \
        errno = e;                                                                                 \
        return rc;                                                                                 \
    }
NAMES(rename, 'R')
NAMES(link, 'L')

static int forget(const char *path, int rc) {
    int e = errno;
    if (rc == 0) note('U', 0, path, 0, 0, 0, 0);
    errno = e;
    return rc;
}

int unlink(const char *path) {
    if (!ours(path)) return REAL(unlink)(path);
    pthread_mutex_lock(&one);
    int rc = forget(path, REAL(unlink)(path));
    pthread_mutex_unlock(&one);
    return rc;
}

int rmdir(const char *path) {
    if (!ours(path)) return REAL(rmdir)(path);
    pthread_mutex_lock(&one);
    int rc = forget(path, REAL(rmdir)(path));
    pthread_mutex_unlock(&one);
    return rc;
}

int unlinkat(int dir, const char *path, int flags) {
    char full[8192], link[64];
    if (dir == AT_FDCWD || path[0] == '/') {
        snprintf(full, sizeof full, "%s", path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, full, sizeof full - strlen(path) - 2);
        if (n < 0) return REAL(unlinkat)(dir, path, flags);
        snprintf(full + n, sizeof full - n, "/%s", path);
    }
    if (!ours(full)) return REAL(unlinkat)(dir, path, flags);
    pthread_mutex_lock(&one);
    int rc = forget(full, REAL(unlinkat)(dir, path, flags));
    pthread_mutex_unlock(&one);
    return rc;
}

int mkdir(const char *path, mode_t mode) {
    if (!ours(path)) return REAL(mkdir)(path, mode);
    pthread_mutex_lock(&one);
    int rc = REAL(mkdir)(path, mode);
    int e = errno;
    struct stat made;
    if (rc == 0) note('M', stat(path, &made) == 0 ? made.st_ino : 0, path, 0, 0, 0, 0);
    pthread_mutex_unlock(&one);
    errno = e;
    return rc;
}
