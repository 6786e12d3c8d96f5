/* Faults on demand.  In the programs that include this the linker puts the functions below between the core and the C
 * library (--wrap, see the Makefile), so the core under test is the one that is shipped, to the byte.  A plan says which
 * call of the core is to fail: the n-th allocation, the n-th system call, every one from the n-th on.
 *
 * Faults happen only between faults_on and faults_off, which the tests put around one call of the core. */
#ifndef HM_TESTS_FAULTS_H
#define HM_TESTS_FAULTS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>

enum {
    FAULT_MEMORY = 1, /* malloc and its kin, and functions of the C library that allocate: realpath, fdopendir */
    FAULT_THREAD = 2, /* pthread_create */
    FAULT_CALL = 4,   /* files: open, read, write, sync, rename … */
    FAULT_TRANSFER = 8 /* pread and pwrite alone, see fault_manner */
};
typedef enum fault_manner { FAIL, INTERRUPT, SHORTEN } fault_manner; /* the latter two for FAULT_TRANSFER */

typedef struct fault_plan {
    unsigned kinds;
    size_t at;    /* the call that fails, from 1 */
    bool onwards; /* and all after it */
    fault_manner manner;
} fault_plan;

static struct {
    fault_plan plan;
    atomic_bool on;
    atomic_size_t calls, hits; /* since fault_begin */
    const char *_Atomic where; /* the function that failed last */
    atomic_long blocks;        /* that the core holds at present */
} faults;

static inline void fault_begin(fault_plan plan)
{
    faults.plan = plan;
    atomic_store(&faults.calls, 0);
    atomic_store(&faults.hits, 0);
    atomic_store(&faults.where, "none");
}

static inline void faults_on(void)
{
    atomic_store(&faults.on, true);
}

static inline void faults_off(void)
{
    atomic_store(&faults.on, false);
}

/* Is this the call that fails?  `where`: its name, without __wrap_. */
static inline bool fault_here(unsigned kind, const char *where)
{
    if (!atomic_load(&faults.on) || (faults.plan.kinds & kind) == 0) return false;
    size_t call = atomic_fetch_add(&faults.calls, 1) + 1;
    if (faults.plan.onwards ? call < faults.plan.at : call != faults.plan.at) return false;
    atomic_fetch_add(&faults.hits, 1);
    atomic_store(&faults.where, where);
    return true;
}

static inline bool fault_errno(unsigned kind, int code, const char *where)
{
    if (!fault_here(kind, where)) return false;
    errno = code;
    return true;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *block, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void *block);
char *__real_realpath(const char *path, char *out);
DIR *__real_fdopendir(int fd);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *block, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void __wrap_free(void *block);
char *__wrap_realpath(const char *path, char *out);
DIR *__wrap_fdopendir(int fd);

static inline void *counted(void *block)
{
    if (block != NULL) atomic_fetch_add(&faults.blocks, 1);
    return block;
}

void *__wrap_malloc(size_t bytes)
{
    return fault_errno(FAULT_MEMORY, ENOMEM, __func__ + 7) ? NULL : counted(__real_malloc(bytes));
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return fault_errno(FAULT_MEMORY, ENOMEM, __func__ + 7) ? NULL : counted(__real_calloc(count, bytes));
}

void *__wrap_realloc(void *block, size_t bytes)
{
    if (fault_errno(FAULT_MEMORY, ENOMEM, __func__ + 7)) return NULL;
    void *grown = __real_realloc(block, bytes);
    return block == NULL ? counted(grown) : grown;
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return fault_errno(FAULT_MEMORY, ENOMEM, __func__ + 7) ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}

void __wrap_free(void *block)
{
    if (block != NULL) atomic_fetch_sub(&faults.blocks, 1);
    __real_free(block);
}

char *__wrap_realpath(const char *path, char *out)
{
    if (fault_errno(FAULT_MEMORY, ENOMEM, __func__ + 7) || fault_errno(FAULT_CALL, EACCES, __func__ + 7)) return NULL;
    char *resolved = __real_realpath(path, out);
    return out == NULL ? counted(resolved) : resolved;
}

DIR *__wrap_fdopendir(int fd)
{
    if (fault_errno(FAULT_MEMORY, ENOMEM, __func__ + 7)) return NULL;
    return __real_fdopendir(fd);
}

/* cJSON is a library of its own and cannot be wrapped; it offers hooks.  They hold for the whole process, which is the
 * test's to decide; the core leaves them alone. */
static inline void faults_hook_cjson(void)
{
    cJSON_Hooks hooks = {.malloc_fn = __wrap_malloc, .free_fn = __wrap_free};
    cJSON_InitHooks(&hooks);
}

/* ---- threads, time ----------------------------------------------------------------------------------------------- */

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*body)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*body)(void *), void *arg);
time_t __wrap_time(time_t *out);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*body)(void *), void *arg)
{
    return fault_here(FAULT_THREAD, __func__ + 7) ? EAGAIN : __real_pthread_create(thread, how, body, arg);
}

/* Files carry the date: a test that runs at midnight must not see them differ. */
time_t __wrap_time(time_t *out)
{
    if (out != NULL) *out = 0;
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

int __real_open(const char *path, int flags, ...);
int __real_openat(int folder, const char *path, int flags, ...);
ssize_t __real_pread(int fd, void *out, size_t bytes, off_t offset);
ssize_t __real_pwrite(int fd, const void *data, size_t bytes, off_t offset);
int __wrap_open(const char *path, int flags, ...);
int __wrap_openat(int folder, const char *path, int flags, ...);
int __wrap_fsync(int fd);
ssize_t __wrap_pread(int fd, void *out, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset);

int __wrap_open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = (flags & O_CREAT) != 0 ? va_arg(args, int) : 0;
    va_end(args);
    return fault_errno(FAULT_CALL, EMFILE, __func__ + 7) ? -1 : __real_open(path, flags, mode);
}

int __wrap_openat(int folder, const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = (flags & O_CREAT) != 0 ? va_arg(args, int) : 0;
    va_end(args);
    return fault_errno(FAULT_CALL, EMFILE, __func__ + 7) ? -1 : __real_openat(folder, path, flags, mode);
}

/* What the disk does is not looked at here, and waiting for it would take most of the time. */
int __wrap_fsync(int fd)
{
    (void)fd;
    return fault_errno(FAULT_CALL, EIO, __func__ + 7) ? -1 : 0;
}

#define FALLIBLE(name, code, parameters, arguments)                                                   \
    int __real_##name parameters;                                                                     \
    int __wrap_##name parameters;                                                                     \
    int __wrap_##name parameters                                                                      \
    {                                                                                                 \
        return fault_errno(FAULT_CALL, code, __func__ + 7) ? -1 : __real_##name arguments;            \
    }
FALLIBLE(stat, EACCES, (const char *path, struct stat *out), (path, out))
FALLIBLE(fstat, EIO, (int fd, struct stat *out), (fd, out))
FALLIBLE(fstatat, EIO, (int folder, const char *path, struct stat *out, int flags), (folder, path, out, flags))
FALLIBLE(fstatvfs, EIO, (int fd, struct statvfs *out), (fd, out))
FALLIBLE(fallocate, ENOSPC, (int fd, int mode, off_t offset, off_t bytes), (fd, mode, offset, bytes))
FALLIBLE(flock, ENOLCK, (int fd, int operation), (fd, operation))
FALLIBLE(renameat, EIO, (int from_folder, const char *from, int to_folder, const char *to), (from_folder, from, to_folder, to))

/* The bytes that a transfer shall move: fewer, none (errno is set), or all. */
static inline size_t transfer(size_t bytes, int code, const char *where, bool *fails)
{
    *fails = fault_errno(FAULT_CALL, code, where);
    if (*fails || !fault_here(FAULT_TRANSFER, where)) return bytes;
    *fails = faults.plan.manner == INTERRUPT;
    if (*fails) errno = EINTR;
    return *fails || bytes < 2 ? bytes : bytes / 2;
}

ssize_t __wrap_pread(int fd, void *out, size_t bytes, off_t offset)
{
    bool fails;
    size_t step = transfer(bytes, EIO, __func__ + 7, &fails);
    return fails ? -1 : __real_pread(fd, out, step, offset);
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    bool fails;
    size_t step = transfer(bytes, ENOSPC, __func__ + 7, &fails);
    return fails ? -1 : __real_pwrite(fd, data, step, offset);
}

/* ---- what a failure must leave as it was ------------------------------------------------------------------------- */

typedef struct digest {
    uint64_t value;
} digest;

static inline void digest_add(digest *d, const void *bytes, size_t count)
{
    const unsigned char *s = bytes;
    if (d->value == 0) d->value = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < count; i++) d->value = (d->value ^ s[i]) * 1099511628211u;
}

static inline void digest_text(digest *d, const char *text)
{
    digest_add(d, text, strlen(text) + 1);
}

/* Names and bytes of all files in a folder, in any order; those of temporaries are only counted. */
static inline uint64_t digest_folder(const char *folder, size_t *temporaries)
{
    uint64_t sum = 0;
    *temporaries = 0;
    DIR *entries = opendir(folder);
    for (struct dirent *entry; entries != NULL && (entry = readdir(entries)) != NULL;) {
        char path[512], block[4096];
        digest one = {0};
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (strstr(entry->d_name, ".hm-tmp-") != NULL) {
            ++*temporaries;
            continue;
        }
        digest_text(&one, entry->d_name);
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "rb");
        for (size_t got; file != NULL && (got = fread(block, 1, sizeof block, file)) > 0;) digest_add(&one, block, got);
        if (file != NULL) fclose(file);
        sum += one.value;
    }
    if (entries != NULL) closedir(entries);
    return sum;
}

static inline size_t open_files(void)
{
    size_t count = 0;
    DIR *entries = opendir("/proc/self/fd");
    while (entries != NULL && readdir(entries) != NULL) count++;
    if (entries != NULL) closedir(entries);
    return count;
}

#endif
