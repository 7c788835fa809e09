/* Ends or fails a program at its N-th call of some kinds on files: preloaded into the real binaries.
 *
 * FAULT_AT=N     the call to hit, counted from 1 (0: only count)
 * FAULT_CALLS    the kinds that count, a letter each: w write, f fsync, r rename, l link, m mkdir, u unlink,
 *                o open, i read
 * FAULT_MODE     kill (SIGKILL before the call); eio, enospc, edquot, emfile or eintr, with which the call and all later
 *                ones fail; short: half of what is to be read or written is;
 *                nolock, nocreate or norename: a file system that locks nothing, creates what is there, or leaves a
 *                file where it is, says yes and goes on; noshare: one that refuses locks that are held together
 * FAULT_ONCE     if set, the calls after the N-th are not hit
 * FAULT_LOG      a file that gets the calls at exit, one letter each and a newline, or "hit <call>\n" when the fault
 *                fires
 * FAULT_UNDER    only calls on files below this directory count
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 65536
static atomic_long calls;
static char kinds[MOST + 2];

static void note(const char *text) {
  const char *log = getenv("FAULT_LOG");
  if (!log) return;
  int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0) { syscall(SYS_write, fd, text, strlen(text)); syscall(SYS_close, fd); }
}

__attribute__((destructor)) static void finish(void) {
  long at = getenv("FAULT_AT") ? atol(getenv("FAULT_AT")) : 0;
  if (at && calls >= at) return; /* the hit was noted */
  kinds[calls < MOST ? calls : MOST] = '\n';
  note(kinds);
}

static int below(const char *path) {
  const char *under = getenv("FAULT_UNDER");
  return !under || strncmp(path, under, strlen(under)) == 0;
}

static int fd_below(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return path[0] == '/' && below(path);
}

static int is_mode(const char *name) {
  const char *mode = getenv("FAULT_MODE");
  return mode && !strcmp(mode, name);
}

#define HALF (-1)

/* 0 to go on, HALF to read or write only that, else the errno to fail with */
static int hit(char kind, const char *name) {
  const char *counted = getenv("FAULT_CALLS");
  if (!counted || !strchr(counted, kind)) return 0;
  long at = getenv("FAULT_AT") ? atol(getenv("FAULT_AT")) : 0;
  const char *mode = getenv("FAULT_MODE");
  long call = atomic_fetch_add(&calls, 1) + 1;
  if (call <= MOST) kinds[call - 1] = kind;
  if (!at || call < at || (call > at && getenv("FAULT_ONCE"))) return 0;
  if (call == at) {
    char text[64];
    snprintf(text, sizeof text, "hit %s\n", name);
    note(text);
  }
  if (!mode || !strcmp(mode, "kill")) { raise(SIGKILL); return 0; }
  if (kind == 'u') return 0; /* cleaning up works on a full disk */
  if (!strcmp(mode, "short")) return HALF;
  if (!strcmp(mode, "enospc")) return ENOSPC;
  if (!strcmp(mode, "edquot")) return EDQUOT;
  if (!strcmp(mode, "emfile")) return EMFILE;
  if (!strcmp(mode, "eintr")) return EINTR;
  return EIO;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define FAIL_IF(kind, name) do { int e = hit(kind, name); if (e > 0) { errno = e; return -1; } } while (0)
#define HALF_OR_FAIL_IF(kind, name) do { \
    int e = hit(kind, name); \
    if (e > 0) { errno = e; return -1; } \
    if (e == HALF && size > 1) size /= 2; \
  } while (0)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  if (fd > 2 && fd_below(fd)) HALF_OR_FAIL_IF('w', "write");
  return real(fd, data, size);
}
ssize_t read(int fd, void *data, size_t size) {
  REAL(ssize_t, "read", int, void *, size_t);
  if (fd > 2 && fd_below(fd)) HALF_OR_FAIL_IF('i', "read");
  return real(fd, data, size);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
  REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
  if (fd_below(fd)) HALF_OR_FAIL_IF('i', "read");
  return real(fd, data, size, at);
}
int fsync(int fd) {
  REAL(int, "fsync", int);
  if (fd_below(fd)) FAIL_IF('f', "fsync");
  return real(fd);
}
int fdatasync(int fd) {
  REAL(int, "fdatasync", int);
  if (fd_below(fd)) FAIL_IF('f', "fsync");
  return real(fd);
}
int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  if (below(to)) FAIL_IF('r', "rename");
  return is_mode("norename") ? 0 : real(from, to);
}
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  REAL(int, "linkat", int, const char *, int, const char *, int);
  if (below(to)) FAIL_IF('l', "link");
  return real(from_dir, from, to_dir, to, flags);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  if (below(path)) FAIL_IF('m', "mkdir");
  return real(path, mode);
}
int flock(int fd, int operation) {
  REAL(int, "flock", int, int);
  if (is_mode("noshare") && operation & LOCK_SH) { errno = EBADF; return -1; }
  return is_mode("nolock") ? 0 : real(fd, operation);
}
int open64(const char *path, int flags, ...) {
  REAL(int, "open64", const char *, int, ...);
  va_list more;
  va_start(more, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
  va_end(more);
  if (below(path)) FAIL_IF('o', "open");
  return real(path, is_mode("nocreate") ? flags & ~O_EXCL : flags, mode);
}
int unlink(const char *path) {
  REAL(int, "unlink", const char *);
  if (below(path)) FAIL_IF('u', "unlink");
  return real(path);
}
