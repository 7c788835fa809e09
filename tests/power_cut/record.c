/* Records what a program does to files and directories, in order: preloaded into the real binaries.
 *
 * RECORD_LOG     the file that gets the records
 * RECORD_UNDER   only what lies below this directory counts
 *
 * A record is `struct head`, then `one` and `two`; log.rs reads them. Each call and its record happen under one lock, so that
 * the order of the records is the order of the calls. What is not known here shows: the test compares what the records add up
 * to with what the program left.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
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

struct head {
  uint64_t kind, inode, number, one, two; /* kind: the letter of the call; number: an offset or flags; lengths */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;

static void put(const void *data, size_t size) {
  while (size > 0) {
    ssize_t n = syscall(SYS_write, log_fd, data, size);
    if (n <= 0) abort();
    data = (const char *)data + n;
    size -= n;
  }
}

static void record(char kind, uint64_t inode, uint64_t number, const void *one, size_t one_size, const char *two) {
  if (log_fd < 0) log_fd = syscall(SYS_openat, AT_FDCWD, getenv("RECORD_LOG"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (log_fd < 0) abort();
  struct head head = {kind, inode, number, one_size, two ? strlen(two) : 0};
  put(&head, sizeof head);
  put(one, one_size);
  if (two) put(two, head.two);
}

static int below(const char *path) {
  const char *under = getenv("RECORD_UNDER");
  return under && strncmp(path, under, strlen(under)) == 0;
}

/* The path of an open file or directory, and `rest` in it; whether it counts. */
static int path_of(int fd, const char *rest, char *path) {
  if (rest && rest[0] == '/') { snprintf(path, 4096, "%s", rest); return below(path); }
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, 4095);
  if (n < 0) return 0;
  path[n] = 0;
  if (rest) snprintf(path + n, 4096 - n, "/%s", rest);
  return below(path);
}

static uint64_t inode_of(int fd) {
  struct stat found;
  return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

static uint64_t inode_at(const char *path) {
  struct stat found;
  return lstat(path, &found) == 0 ? found.st_ino : 0;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define BEGIN pthread_mutex_lock(&lock)
#define END pthread_mutex_unlock(&lock)

static void opened(int fd, const char *path, int flags) {
  if (fd >= 0 && flags & (O_CREAT | O_TRUNC) && below(path)) record('o', inode_of(fd), flags & (O_TRUNC | O_APPEND), path, strlen(path), 0);
}

#define OPEN(name)                                                                       \
  int name(const char *path, int flags, ...) {                                           \
    REAL(int, #name, const char *, int, ...);                                            \
    va_list more;                                                                        \
    va_start(more, flags);                                                               \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;              \
    va_end(more);                                                                        \
    BEGIN;                                                                               \
    int fd = real(path, flags, mode);                                                    \
    opened(fd, path, flags);                                                             \
    END;                                                                                 \
    return fd;                                                                           \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  char path[4096];
  if (fd <= 2 || !path_of(fd, 0, path)) return real(fd, data, size);
  BEGIN;
  ssize_t n = real(fd, data, size);
  if (n > 0) record('w', inode_of(fd), lseek(fd, 0, SEEK_CUR) - n, data, n, 0);
  END;
  return n;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  char path[4096];
  if (fd <= 2 || !path_of(fd, 0, path)) return real(fd, parts, count);
  BEGIN;
  ssize_t written = real(fd, parts, count);
  uint64_t at = written > 0 ? lseek(fd, 0, SEEK_CUR) - written : 0;
  size_t left = written > 0 ? written : 0;
  for (int i = 0; i < count && left > 0; i++) {
    size_t size = parts[i].iov_len < left ? parts[i].iov_len : left;
    record('w', inode_of(fd), at, parts[i].iov_base, size, 0);
    at += size;
    left -= size;
  }
  END;
  return written;
}

int fsync(int fd) {
  REAL(int, "fsync", int);
  char path[4096];
  BEGIN;
  int failed = real(fd);
  if (!failed && path_of(fd, 0, path)) record('s', inode_of(fd), 0, path, strlen(path), 0);
  END;
  return failed;
}

int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  BEGIN;
  int failed = real(path, mode);
  if (!failed && below(path)) record('m', inode_at(path), 0, path, strlen(path), 0);
  END;
  return failed;
}

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  BEGIN;
  int failed = real(from, to);
  if (!failed && below(to)) record('r', 0, 0, from, strlen(from), to);
  END;
  return failed;
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  REAL(int, "linkat", int, const char *, int, const char *, int);
  BEGIN;
  int failed = real(from_dir, from, to_dir, to, flags);
  if (!failed && below(to)) record('h', 0, 0, from, strlen(from), to);
  END;
  return failed;
}

int symlink(const char *target, const char *path) {
  REAL(int, "symlink", const char *, const char *);
  BEGIN;
  int failed = real(target, path);
  if (!failed && below(path)) record('l', inode_at(path), 0, path, strlen(path), target);
  END;
  return failed;
}

int unlink(const char *path) {
  REAL(int, "unlink", const char *);
  BEGIN;
  int failed = real(path);
  if (!failed && below(path)) record('u', 0, 0, path, strlen(path), 0);
  END;
  return failed;
}

int unlinkat(int dir, const char *name, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  char path[4096];
  BEGIN;
  int counts = path_of(dir, name, path);
  int failed = real(dir, name, flags);
  if (!failed && counts) record('u', 0, 0, path, strlen(path), 0);
  END;
  return failed;
}
