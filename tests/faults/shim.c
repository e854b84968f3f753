/* Faults of a disk, for tests: preloaded (LD_PRELOAD), it stands between a process and its file operations.

Within one folder it counts operations that change it, and does one thing at operation n:
  FAIL   that operation and all later ones fail with an error of the system; the disk is full, or broken
  KILL   the process dies by SIGKILL before that operation
  TEAR   a write writes half of its bytes, and then the process dies
  LOG    nothing; every operation is written to a file with its data, for the replay of a power loss
What removes things does not fail on a full disk. Reading is never counted.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, FAIL, KILL, TEAR, LOG };
enum { MOST = 4096 };

static char root[PATH_MAX];
static int mode = OFF, code, log_fd = -1;
static long chosen, done;
static char inside[MOST]; /* 1: open in the folder; 2: for writing */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Where a path lies, links of its folder resolved; whether that is within the root. */
static int within(int dir, const char *path, char *full) {
    char whole[PATH_MAX * 2], folder[PATH_MAX * 2], base[PATH_MAX];
    int saved = errno;
    if (mode == OFF || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else if (dir == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size < 0) { errno = saved; return 0; }
        base[size] = 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    snprintf(folder, sizeof folder, "%s", whole);
    char *slash = strrchr(folder, '/');
    if (!slash) return 0;
    *slash = 0;
    if (realpath(folder[0] ? folder : "/", base)) snprintf(full, PATH_MAX, "%s/%s", base, slash + 1);
    else snprintf(full, PATH_MAX, "%s", whole);
    errno = saved;
    size_t size = strlen(root);
    return !strncmp(full, root, size) && (full[size] == '/' || full[size] == 0);
}

static void told(const char *line, const void *data, size_t size) {
    if (mode != LOG || log_fd < 0) return;
    syscall(SYS_write, log_fd, line, strlen(line));
    if (size) syscall(SYS_write, log_fd, data, size);
}

/* One more operation, of a kind; 1: it is to fail. */
static int strikes(char kind) {
    char line[8];
    long now = __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
    int removes = kind == 'U';
    snprintf(line, sizeof line, "N %c\n", kind);
    told(line, 0, 0);
    if (mode == KILL && now == chosen) kill(getpid(), SIGKILL);
    if (mode == TEAR && now == chosen + 1) kill(getpid(), SIGKILL);
    if (mode != FAIL || now < chosen || (removes && code != EIO)) return 0;
    errno = code;
    return 1;
}

static int torn(void) { return mode == TEAR && done == chosen; }

static void die(void) { kill(getpid(), SIGKILL); }

void faults_set(const char *folder, int what, long n, int number, const char *log) {
    if (!realpath(folder, root)) abort();
    log_fd = log && log[0] ? REAL(open)(log, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    memset(inside, 0, sizeof inside);
    done = 0, chosen = n, code = number, mode = what;
}

void faults_end(void) { mode = OFF; }

long faults_done(void) { return done; }

void faults_mark(const char *what) {
    char line[PATH_MAX];
    snprintf(line, sizeof line, "M %s\n", what);
    told(line, 0, 0);
}

static int opened(int dir, const char *path, int flags, mode_t rights) {
    char full[PATH_MAX], line[PATH_MAX * 2];
    static int (*real)(int, const char *, int, ...);
    if (!real) real = REAL(openat);
    if (!within(dir, path, full)) return real(dir, path, flags, rights);
    int writes = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0 && (flags & O_TMPFILE) != O_TMPFILE;
    if (writes && strikes('O')) return -1;
    int fd = real(dir, path, flags, rights);
    if (fd >= 0 && fd < MOST) {
        struct stat about;
        long number = fstat(fd, &about) ? 0 : (long)about.st_ino;
        inside[fd] = writes ? 2 : 1;
        int creates = !!(flags & O_CREAT), cuts = !!(flags & O_TRUNC);
        snprintf(line, sizeof line, "O %d %d %d %ld %s\n", fd, creates, cuts, number, full);
        told(line, 0, 0);
    }
    return fd;
}

#define RIGHTS                                  \
    mode_t rights = 0;                          \
    if (flags & (O_CREAT | O_TMPFILE)) {        \
        va_list more;                           \
        va_start(more, flags);                  \
        rights = va_arg(more, mode_t);          \
        va_end(more);                           \
    }
int open(const char *path, int flags, ...) { RIGHTS return opened(AT_FDCWD, path, flags, rights); }
int open64(const char *path, int flags, ...) { RIGHTS return opened(AT_FDCWD, path, flags, rights); }
int openat(int dir, const char *path, int flags, ...) { RIGHTS return opened(dir, path, flags, rights); }
int openat64(int dir, const char *path, int flags, ...) { RIGHTS return opened(dir, path, flags, rights); }
int creat(const char *path, mode_t rights) {
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, rights);
}

static int ours(int fd) { return mode != OFF && fd >= 0 && fd < MOST && inside[fd]; }

static void wrote(int fd, off_t place, const void *data, ssize_t size) {
    char line[128];
    if (mode != LOG || size <= 0) return;
    snprintf(line, sizeof line, "W %d %lld %zd\n", fd, (long long)place, size);
    told(line, data, size);
}

static off_t place_of(int fd) {
    struct stat about;
    if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &about) ? 0 : about.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!ours(fd)) return syscall(SYS_write, fd, data, size);
    if (strikes('W')) return -1;
    off_t place = place_of(fd);
    if (torn()) { syscall(SYS_write, fd, data, size / 2); die(); }
    ssize_t count = syscall(SYS_write, fd, data, size);
    wrote(fd, place, data, count);
    return count;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    if (!ours(fd)) return syscall(SYS_pwrite64, fd, data, size, place);
    if (strikes('W')) return -1;
    if (torn()) { syscall(SYS_pwrite64, fd, data, size / 2, place); die(); }
    ssize_t count = syscall(SYS_pwrite64, fd, data, size, place);
    wrote(fd, place, data, count);
    return count;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) { return pwrite(fd, data, size, place); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!ours(fd)) return syscall(SYS_writev, fd, parts, count);
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t size = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (size < 0) return total ? total : -1;
        total += size;
    }
    return total;
}

/* Python copies files by it. */
ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    static char data[1 << 16];
    if (!ours(to)) return syscall(SYS_sendfile, to, from, place, size);
    if (size > sizeof data) size = sizeof data;
    ssize_t count = place ? syscall(SYS_pread64, from, data, size, *place) : syscall(SYS_read, from, data, size);
    if (count <= 0) return count;
    ssize_t sent = write(to, data, count);
    if (place && sent > 0) *place += sent;
    return sent;
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) { return sendfile(to, from, place, size); }

static int synced(int fd, long call) {
    char line[64];
    if (!ours(fd)) return syscall(call, fd);
    if (strikes('S')) return -1;
    int result = syscall(call, fd);
    snprintf(line, sizeof line, "S %d\n", fd);
    told(line, 0, 0);
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int ftruncate(int fd, off_t size) {
    char line[64];
    if (!ours(fd)) return syscall(SYS_ftruncate, fd, size);
    if (strikes('T')) return -1;
    int result = syscall(SYS_ftruncate, fd, size);
    snprintf(line, sizeof line, "T %d %lld\n", fd, (long long)size);
    told(line, 0, 0);
    return result;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int close(int fd) {
    char line[64];
    if (!ours(fd)) return syscall(SYS_close, fd);
    int writes = inside[fd] == 2, fails = writes && strikes('C'), number = errno;
    inside[fd] = 0;
    snprintf(line, sizeof line, "C %d\n", fd);
    told(line, 0, 0);
    int result = syscall(SYS_close, fd);
    if (!fails) return result;
    errno = number;
    return -1;
}

static int renamed(int from, const char *one, int to, const char *other, unsigned flags) {
    char a[PATH_MAX], b[PATH_MAX], line[PATH_MAX * 2 + 8];
    int here = within(from, one, a), there = within(to, other, b);
    if (!here && !there) return syscall(SYS_renameat2, from, one, to, other, flags);
    if (strikes('R')) return -1;
    int result = syscall(SYS_renameat2, from, one, to, other, flags);
    snprintf(line, sizeof line, "R %s\t%s\n", a, b);
    if (!result) told(line, 0, 0);
    return result;
}
int rename(const char *one, const char *other) { return renamed(AT_FDCWD, one, AT_FDCWD, other, 0); }
int renameat(int from, const char *one, int to, const char *other) { return renamed(from, one, to, other, 0); }
int renameat2(int from, const char *one, int to, const char *other, unsigned flags) {
    return renamed(from, one, to, other, flags);
}

static int removed(int dir, const char *path, int flags) {
    char full[PATH_MAX], line[PATH_MAX + 8];
    if (!within(dir, path, full)) return syscall(SYS_unlinkat, dir, path, flags);
    if (strikes('U')) return -1;
    int result = syscall(SYS_unlinkat, dir, path, flags);
    snprintf(line, sizeof line, "%s %s\n", flags & AT_REMOVEDIR ? "X" : "U", full);
    if (!result) told(line, 0, 0);
    return result;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dir, const char *path, int flags) { return removed(dir, path, flags); }

static int made(int dir, const char *path, mode_t rights) {
    char full[PATH_MAX], line[PATH_MAX + 8];
    if (!within(dir, path, full)) return syscall(SYS_mkdirat, dir, path, rights);
    if (strikes('D')) return -1;
    int result = syscall(SYS_mkdirat, dir, path, rights);
    snprintf(line, sizeof line, "D %s\n", full);
    if (!result) told(line, 0, 0);
    return result;
}
int mkdir(const char *path, mode_t rights) { return made(AT_FDCWD, path, rights); }
int mkdirat(int dir, const char *path, mode_t rights) { return made(dir, path, rights); }

int chmod(const char *path, mode_t rights) {
    char full[PATH_MAX];
    if (within(AT_FDCWD, path, full) && strikes('P')) return -1;
    return syscall(SYS_fchmodat, AT_FDCWD, path, rights, 0);
}
