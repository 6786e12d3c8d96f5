/* Files on POSIX systems.  User files are read from a held descriptor and never through a mapping: touching a mapped page
 * of a file that somebody truncates kills the process, and that process may be a UI with hours of work in it. */
#include "base/os.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/memory.h"

#define PAGE_BYTES 4096u
#define READ_AT_MOST ((size_t)1 << 30) /* Linux moves at most 2 GiB − 4 KiB per call */

hm_status hm_file_open(hm_file *file, const char *path, hm_error *err)
{
    char *full = hm_path_resolve(path, err);
    if (full == NULL) return err != NULL && err->status != HM_OK ? err->status : HM_ERR_IO;
    /* O_NONBLOCK: opening a named pipe must not hang; regular files do not care. */
    int fd = open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        hm_status status = hm_fail_errno(err, path, "cannot be opened", errno);
        hm_release(full);
        return status;
    }
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        hm_release(full);
        return hm_fail(err, HM_ERR_IO, path, NULL, "is not a file");
    }
    *file = (hm_file){.fd = fd, .direct_fd = -1, .path = full};
#if defined(O_DIRECT)
    file->direct_fd = open(full, O_RDONLY | O_CLOEXEC | O_DIRECT);
    struct stat twin;
    if (file->direct_fd >= 0 && (fstat(file->direct_fd, &twin) != 0 || twin.st_ino != info.st_ino ||
                                 twin.st_dev != info.st_dev)) { /* replaced between the two opens */
        close(file->direct_fd);
        file->direct_fd = -1;
    }
#endif
    return HM_OK;
}

void hm_file_close(hm_file *file)
{
    if (file->fd >= 0) close(file->fd);
    if (file->direct_fd >= 0) close(file->direct_fd);
    hm_release(file->path);
    *file = (hm_file){.fd = -1, .direct_fd = -1};
}

hm_status hm_file_stamp_get(const hm_file *file, hm_file_stamp *out, hm_error *err)
{
    struct stat info;
    if (fstat(file->fd, &info) != 0) return hm_fail_errno(err, file->path, "cannot be examined", errno);
    *out = (hm_file_stamp){.size = (uint64_t)info.st_size,
                           .mtime_s = (int64_t)info.st_mtim.tv_sec,
                           .mtime_ns = (int64_t)info.st_mtim.tv_nsec,
                           .device = (uint64_t)info.st_dev,
                           .inode = (uint64_t)info.st_ino};
    return HM_OK;
}

static hm_status fail_truncated(const hm_file *file, hm_error *err)
{
    return hm_fail(err, HM_ERR_IO, file->path, NULL, "was truncated while being read; check the file and run again");
}

hm_status hm_file_read(const hm_file *file, void *out, uint64_t offset, size_t bytes, hm_error *err)
{
    char *to = out;
    while (bytes > 0) {
        ssize_t got = pread(file->fd, to, bytes < READ_AT_MOST ? bytes : READ_AT_MOST, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return hm_fail_errno(err, file->path, "cannot be read", errno);
        if (got == 0) return fail_truncated(file, err);
        to += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return HM_OK;
}

hm_status hm_file_read_direct(const hm_file *file, void *buffer, uint64_t offset, size_t bytes, const void **out,
                              bool *was_direct, hm_error *err)
{
    uint64_t first = offset / PAGE_BYTES * PAGE_BYTES;
    size_t head = (size_t)(offset - first), wanted = head + bytes;
    size_t whole = (wanted + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES, done = 0;
    *out = (const char *)buffer + head;
    *was_direct = file->direct_fd >= 0;
    while (*was_direct && done < wanted) {
        size_t step = whole - done < READ_AT_MOST ? whole - done : READ_AT_MOST;
        ssize_t got = pread(file->direct_fd, (char *)buffer + done, step, (off_t)(first + done));
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) return fail_truncated(file, err);
        if (got < 0 || (got % PAGE_BYTES != 0 && done + (size_t)got < wanted))
            *was_direct = false; /* refused, or a short read in the middle: the plain way knows what is the matter */
        else
            done += (size_t)got;
    }
    if (!*was_direct) return hm_file_read(file, (char *)buffer + head, offset, bytes, err);
    return HM_OK;
}

#if defined(__linux__)
/* Linux 6.5 counts the cached pages of a range in a microsecond; headers may not know the call yet. */
#define CACHESTAT_CALL 451
struct cachestat_range {
    uint64_t offset, length;
};
struct cachestat_counts {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

/* Before: mincore, which takes a mapping.  It asks about pages and touches none, so nothing of what makes mappings of user
 * files dangerous can happen.  False when this cannot be told. */
static bool count_by_mincore(const hm_file *file, uint64_t first, size_t length, size_t *cached)
{
    unsigned char present[4096];
    size_t pages = (length + PAGE_BYTES - 1) / PAGE_BYTES;
    *cached = 0;
    if (pages > sizeof present) return true; /* larger than any of our reads: treat as cold */
    void *map = mmap(NULL, length, PROT_READ, MAP_SHARED, file->fd, (off_t)first);
    if (map == MAP_FAILED) return false;
    bool known = mincore(map, length, present) == 0;
    munmap(map, length);
    for (size_t i = 0; known && i < pages; i++) *cached += present[i] & 1u;
    return known;
}
#endif

bool hm_file_is_cached(const hm_file *file, uint64_t offset, uint64_t bytes)
{
#if defined(__linux__)
    uint64_t first = offset / PAGE_BYTES * PAGE_BYTES;
    size_t length = (size_t)(offset + bytes - first), pages = (length + PAGE_BYTES - 1) / PAGE_BYTES, cached;
    if (pages == 0) return true;
    struct cachestat_range range = {first, length};
    struct cachestat_counts counts;
    if (syscall(CACHESTAT_CALL, file->fd, &range, &counts, 0) == 0)
        cached = (size_t)counts.cached;
    else if (!count_by_mincore(file, first, length, &cached))
        return true;
    return cached * 10 >= pages * 9;
#else
    (void)file, (void)offset, (void)bytes;
    return true;
#endif
}

void hm_file_prefetch(const hm_file *file, uint64_t offset, uint64_t bytes)
{
#if defined(POSIX_FADV_WILLNEED)
    (void)posix_fadvise(file->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
#else
    (void)file, (void)offset, (void)bytes;
#endif
}

/* ---- paths ---------------------------------------------------------------------------------------------------------- */

/* Where the last component of a path begins. */
static const char *last_component(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* folder/name, or NULL when out of memory. */
static char *join(const char *folder, const char *name, hm_error *err)
{
    hm_text text = {0};
    hm_text_put(&text, folder);
    if (text.length > 0 && text.data[text.length - 1] != '/') hm_text_put(&text, "/");
    hm_text_put(&text, name);
    if (!text.failed) return text.data;
    hm_text_clear(&text);
    hm_fail_memory(err, "a path");
    return NULL;
}

/* Where a path leads that does not exist yet: its folder resolved, and a dangling link followed to where it points. */
static char *resolve_new(const char *path, unsigned depth, hm_error *err)
{
    const char *base = last_component(path);
    char *folder = base == path ? hm_copy_text(".") : hm_copy_bytes(path, (size_t)(base - path));
    char *real_folder = folder != NULL ? realpath(folder, NULL) : NULL, *full = NULL, to[PATH_MAX];
    if (folder == NULL)
        hm_fail_memory(err, "a path");
    else if (real_folder == NULL)
        hm_fail_errno(err, path, "its folder cannot be opened", errno);
    else
        full = join(real_folder, base, err);
    ssize_t length = full != NULL ? readlink(full, to, sizeof to - 1) : -1;
    if (length > 0 && depth < 16) {
        to[length] = 0;
        char *next = to[0] == '/' ? hm_copy_text(to) : join(real_folder, to, err);
        hm_release(full);
        full = next != NULL ? resolve_new(next, depth + 1, err) : NULL;
        hm_release(next);
    }
    hm_release(folder);
    free(real_folder);
    return full;
}

char *hm_path_resolve(const char *path, hm_error *err)
{
    if (path == NULL || path[0] == 0) {
        hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "an empty file name was given");
        return NULL;
    }
    char *full = realpath(path, NULL);
    if (full != NULL) return full;
    if (errno == ENOENT) return resolve_new(path, 0, err);
    hm_fail_errno(err, path, "cannot be opened", errno);
    return NULL;
}

bool hm_path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool hm_path_same(const char *a, const char *b)
{
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

/* ---- machine --------------------------------------------------------------------------------------------------------- */

unsigned hm_cpu_count(void)
{
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return (unsigned)CPU_COUNT(&set);
#endif
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (unsigned)count : 1;
}

/* "MemAvailable:   24061204 kB" is what the kernel itself thinks it could give without swapping. */
uint64_t hm_memory_available(void)
{
    char text[1024]; /* the line is the third one */
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return UINT64_MAX;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return UINT64_MAX;
    text[got] = 0;
    const char *line = strstr(text, "\nMemAvailable:");
    return line != NULL ? (uint64_t)strtoull(strchr(line, ':') + 1, NULL, 10) << 10 : UINT64_MAX;
}

double hm_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void hm_utc_date(char out[11])
{
    time_t now = time(NULL);
    struct tm parts;
    if (gmtime_r(&now, &parts) == NULL || strftime(out, 11, "%Y-%m-%d", &parts) != 10) strcpy(out, "1970-01-01");
}
