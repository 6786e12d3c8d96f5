/* Writing so that nothing is ever lost: a locked temporary beside the target, space reserved first, fsync, rename, fsync
 * of the folder.  A killed writer leaves its temporary; nobody holds its lock then, and the next writer of the same
 * target removes it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/os.h"

#define WRITE_AT_MOST ((size_t)1 << 30)
#define PAGE_BYTES ((size_t)4096)
#define DIRECT_AT_LEAST ((size_t)256 << 10)
#define DIRECT_BLOCK ((size_t)2 << 20)
#define TEMP_MARK ".hm-tmp-" /* .NAME.hm-tmp-PID-N */
#define NAME_MAX_BYTES 255u

/* The folder of a resolved path, without the slash (but "/" stays). */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
    return length == 0 ? hm_copy_text(".") : hm_copy_bytes(path, length);
}

/* Beginning of the temporaries' names for a target: cut where the whole would not fit into a directory entry. */
static void temp_prefix(const char *target, char out[NAME_MAX_BYTES + 1])
{
    const char *slash = strrchr(target, '/');
    snprintf(out, NAME_MAX_BYTES + 1, ".%.200s" TEMP_MARK, slash != NULL ? slash + 1 : target);
}

/* Removes what killed writers of this target left.  Failure is no error: the leftovers only cost space. */
static void remove_stale(const char *folder, const char *prefix)
{
    DIR *entries = opendir(folder);
    if (entries == NULL) return;
    int at = dirfd(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0) continue;
        int fd = openat(at, entry->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlinkat(at, entry->d_name, 0);
        close(fd);
    }
    closedir(entries);
}

static hm_status reserve(const hm_outfile *out, const char *folder, uint64_t bytes, hm_error *err)
{
    struct statvfs disk;
    if (statvfs(folder, &disk) == 0) {
        uint64_t free_bytes = (uint64_t)disk.f_bavail * (uint64_t)disk.f_frsize;
        if (free_bytes < bytes)
            return hm_fail(err, HM_ERR_IO, out->target, NULL,
                           "not enough room on the disk: %.2f GB needed, %.2f GB free; free some space or write elsewhere",
                           (double)bytes * 1e-9, (double)free_bytes * 1e-9);
    }
#if defined(__linux__)
    /* Holds the blocks for us and keeps the file in one piece; where the file system cannot, writing finds out. */
    if (bytes > 0 && fallocate(out->fd, 0, 0, (off_t)bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS &&
        errno != EINTR)
        return hm_fail_errno(err, out->target, "its space cannot be reserved", errno);
#endif
    return HM_OK;
}

hm_status hm_outfile_begin(hm_outfile *out, const char *target, uint64_t bytes, hm_error *err)
{
    *out = (hm_outfile){.fd = -1, .direct_fd = -1};
    char *full = hm_path_resolve(target, err);
    if (full == NULL) return err != NULL && err->status != HM_OK ? err->status : HM_ERR_IO;
    struct stat info;
    if (stat(full, &info) == 0 && !S_ISREG(info.st_mode)) {
        hm_release(full);
        return hm_fail(err, HM_ERR_IO, target, NULL, "exists and is not a file; choose another name");
    }
    char *folder = folder_of(full);
    char prefix[NAME_MAX_BYTES + 1];
    temp_prefix(full, prefix);
    hm_text temp = {0};
    hm_status status = HM_OK;
    if (folder == NULL) status = hm_fail_memory(err, "a path");
    if (status == HM_OK) remove_stale(folder, prefix);

    for (unsigned attempt = 0; status == HM_OK && out->fd < 0; attempt++) {
        hm_text_clear(&temp);
        hm_text_put(&temp, folder);
        hm_text_put(&temp, "/");
        hm_text_put(&temp, prefix);
        hm_text_format(&temp, "%ld-%u", (long)getpid(), attempt);
        if (temp.failed) {
            status = hm_fail_memory(err, "a path");
            break;
        }
        out->fd = open(temp.data, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (out->fd < 0 && errno != EEXIST)
            status = hm_fail_errno(err, target, "cannot be written", errno);
        /* Another writer's clean-up may come between creating and locking; then the name is gone and we take a new one.
         * Where the file system has no locks, no clean-up can take ours for stale either. */
        bool taken = out->fd >= 0 && flock(out->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (out->fd >= 0 && (taken || fstat(out->fd, &info) != 0 || info.st_nlink == 0)) {
            close(out->fd);
            out->fd = -1;
        }
        if (out->fd < 0 && attempt > 1000 && status == HM_OK)
            status = hm_fail(err, HM_ERR_IO, target, NULL, "no temporary file can be made beside it");
    }
    if (status == HM_OK) {
        out->target = full;
        out->temp = temp.data;
#if defined(O_DIRECT)
        out->direct_fd = open(temp.data, O_WRONLY | O_CLOEXEC | O_DIRECT);
#endif
        status = reserve(out, folder, bytes, err);
        if (status != HM_OK) hm_outfile_abandon(out);
    } else {
        hm_release(full);
        hm_text_clear(&temp);
    }
    hm_release(folder);
    return status;
}

static hm_status write_to(const hm_outfile *out, int fd, const void *data, uint64_t offset, size_t bytes, hm_error *err)
{
    const char *from = data;
    while (bytes > 0) {
        ssize_t done = pwrite(fd, from, bytes < WRITE_AT_MOST ? bytes : WRITE_AT_MOST, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return hm_fail_errno(err, out->target, "cannot be written", done < 0 ? errno : ENOSPC);
        from += done;
        offset += (uint64_t)done;
        bytes -= (size_t)done;
    }
    return HM_OK;
}

/* Whole pages of a large write, past the page cache: gigabytes written through it fill the memory with dirty pages and
 * then wait for their write-back, at a fraction of the disk's speed.  Returns the bytes written this way from `offset` on
 * (which begins a page); the rest is for the plain way. */
static size_t write_direct(const hm_outfile *out, const void *data, uint64_t offset, size_t bytes)
{
    size_t whole = bytes / PAGE_BYTES * PAGE_BYTES, done = 0;
    if (out->direct_fd < 0 || whole < DIRECT_AT_LEAST) return 0;
    char *block = hm_alloc_pages(whole < DIRECT_BLOCK ? whole : DIRECT_BLOCK); /* direct writes want aligned memory */
    while (block != NULL && done < whole) {
        size_t step = whole - done < DIRECT_BLOCK ? whole - done : DIRECT_BLOCK;
        memcpy(block, (const char *)data + done, step);
        ssize_t wrote = pwrite(out->direct_fd, block, step, (off_t)(offset + done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < (ssize_t)step) break; /* refused or cut short: the plain way goes on from here, or says why not */
        done += step;
    }
    hm_release_pages(block);
    return done;
}

hm_status hm_outfile_write(const hm_outfile *out, const void *data, uint64_t offset, size_t bytes, hm_error *err)
{
    size_t head = (size_t)((PAGE_BYTES - offset % PAGE_BYTES) % PAGE_BYTES);
    if (head > bytes) head = bytes;
    HM_TRY(write_to(out, out->fd, data, offset, head, err));
    size_t direct = write_direct(out, (const char *)data + head, offset + head, bytes - head);
    return write_to(out, out->fd, (const char *)data + head + direct, offset + head + direct, bytes - head - direct, err);
}

hm_status hm_outfile_sync(const hm_outfile *out, hm_error *err)
{
    return fsync(out->fd) == 0 ? HM_OK : hm_fail_errno(err, out->target, "cannot be written", errno);
}

static void close_all(hm_outfile *out)
{
    if (out->fd >= 0) close(out->fd);
    if (out->direct_fd >= 0) close(out->direct_fd);
    hm_release(out->temp);
    hm_release(out->target);
    *out = (hm_outfile){.fd = -1, .direct_fd = -1};
}

hm_status hm_outfile_publish(hm_outfile *out, hm_error *err)
{
    char *folder = folder_of(out->target);
    if (folder == NULL) return hm_fail_memory(err, "a path");
    hm_status status = HM_OK;
    if (rename(out->temp, out->target) != 0)
        status = hm_fail_errno(err, out->target, "cannot be put in place", errno);
    if (status == HM_OK) {
        int fd = open(folder, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
        /* The name is in place; a folder that cannot be synced (some network disks) is no reason to report failure. */
        if (fd >= 0) {
            (void)fsync(fd);
            close(fd);
        }
        close_all(out);
    }
    hm_release(folder);
    return status;
}

void hm_outfile_abandon(hm_outfile *out)
{
    if (out->temp == NULL) {
        *out = (hm_outfile){.fd = -1, .direct_fd = -1};
        return;
    }
    unlink(out->temp);
    close_all(out);
}
