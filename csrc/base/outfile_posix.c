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

/* The target's name in its folder. */
static const char *name_of(const char *target)
{
    const char *slash = strrchr(target, '/');
    return slash != NULL ? slash + 1 : target;
}

/* Beginning of the temporaries' names for a target: cut where the whole would not fit into a directory entry. */
static void temp_prefix(const char *target, char out[NAME_MAX_BYTES + 1])
{
    snprintf(out, NAME_MAX_BYTES + 1, ".%.200s" TEMP_MARK, name_of(target));
}

/* Does this name in the folder stand for the open file? */
static bool is_named(int folder_fd, const char *name, int fd)
{
    struct stat named, opened;
    return fstatat(folder_fd, name, &named, AT_SYMLINK_NOFOLLOW) == 0 && fstat(fd, &opened) == 0 &&
           named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
}

/* Removes what killed writers of this target left.  Failure is no error: the leftovers only cost space. */
static void remove_stale(int folder_fd, const char *prefix)
{
    int again = openat(folder_fd, ".", O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    DIR *entries = again >= 0 ? fdopendir(again) : NULL;
    if (entries == NULL) {
        if (again >= 0) close(again);
        return;
    }
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0) continue;
        int fd = openat(folder_fd, entry->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0) continue;
        /* Opened just before its writer put it in place, it is unlocked now, and the name may be the next writer's. */
        if (flock(fd, LOCK_EX | LOCK_NB) == 0 && is_named(folder_fd, entry->d_name, fd))
            unlinkat(folder_fd, entry->d_name, 0);
        close(fd);
    }
    closedir(entries);
}

static void stamp_from(hm_file_stamp *out, const struct stat *info)
{
    *out = (hm_file_stamp){.size = (uint64_t)info->st_size,
                           .mtime_s = (int64_t)info->st_mtim.tv_sec,
                           .mtime_ns = (int64_t)info->st_mtim.tv_nsec,
                           .device = (uint64_t)info->st_dev,
                           .inode = (uint64_t)info->st_ino};
}

static hm_status reserve(const hm_outfile *out, uint64_t bytes, hm_error *err)
{
    struct statvfs disk;
    if (fstatvfs(out->fd, &disk) == 0) {
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

/* Creates and locks the temporary, under a name that nobody else has. */
static hm_status make_temp(hm_outfile *out, hm_error *err)
{
    char prefix[NAME_MAX_BYTES + 1];
    hm_text temp = {0};
    temp_prefix(out->target, prefix);
    remove_stale(out->folder_fd, prefix);
    for (unsigned attempt = 0; attempt <= 1000; attempt++) {
        hm_text_clear(&temp);
        hm_text_format(&temp, "%s%ld-%u", prefix, (long)getpid(), attempt);
        if (temp.failed) {
            hm_text_clear(&temp);
            return hm_fail_memory(err, "a path");
        }
        out->fd = openat(out->folder_fd, temp.data, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (out->fd < 0 && errno == EEXIST) continue;
        if (out->fd < 0) {
            int code = errno;
            hm_text_clear(&temp);
            return hm_fail_errno(err, out->target, "cannot be written", code);
        }
        /* Another writer's clean-up may come between creating and locking; then the name is gone and we take a new one.
         * Where the file system has no locks, no clean-up can take ours for stale either. */
        bool taken = flock(out->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (!taken && is_named(out->folder_fd, temp.data, out->fd)) {
            out->temp = temp.data;
            return HM_OK;
        }
        close(out->fd);
        out->fd = -1;
    }
    hm_text_clear(&temp);
    return hm_fail(err, HM_ERR_IO, out->target, NULL, "no temporary file can be made beside it");
}

/* Opens the folder and looks at what has the target's name. */
static hm_status open_folder(hm_outfile *out, hm_error *err)
{
    out->folder = folder_of(out->target);
    if (out->folder == NULL) return hm_fail_memory(err, "a path");
#if defined(O_PATH)
    out->folder_fd = open(out->folder, O_PATH | O_CLOEXEC | O_DIRECTORY); /* it need not be readable to be written to */
#else
    out->folder_fd = open(out->folder, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
#endif
    if (out->folder_fd < 0) return hm_fail_errno(err, out->target, "its folder cannot be opened", errno);
    struct stat info;
    out->replaces = fstatat(out->folder_fd, name_of(out->target), &info, 0) == 0;
    if (out->replaces && !S_ISREG(info.st_mode))
        return hm_fail(err, HM_ERR_IO, out->target, NULL, "exists and is not a file; choose another name");
    if (out->replaces) stamp_from(&out->before, &info);
    return HM_OK;
}

static void close_all(hm_outfile *out)
{
    if (out->fd >= 0) close(out->fd);
    if (out->direct_fd >= 0) close(out->direct_fd);
    if (out->folder_fd >= 0) close(out->folder_fd);
    hm_release(out->temp);
    hm_release(out->folder);
    hm_release(out->target);
    *out = (hm_outfile){.fd = -1, .direct_fd = -1};
}

hm_status hm_outfile_begin(hm_outfile *out, const char *target, uint64_t bytes, hm_error *err)
{
    *out = (hm_outfile){.fd = -1, .direct_fd = -1, .folder_fd = -1, .target = hm_path_resolve(target, err)};
    hm_status status = HM_OK;
    if (out->target == NULL) status = err != NULL && err->status != HM_OK ? err->status : HM_ERR_IO;
    if (status == HM_OK) status = open_folder(out, err);
    if (status == HM_OK) status = make_temp(out, err);
    if (status != HM_OK) {
        close_all(out);
        return status;
    }
#if defined(O_DIRECT)
    out->direct_fd = openat(out->folder_fd, out->temp, O_WRONLY | O_CLOEXEC | O_DIRECT);
#endif
    status = reserve(out, bytes, err);
    if (status != HM_OK) hm_outfile_close(out);
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

bool hm_outfile_target_changed(const hm_outfile *out)
{
    struct stat info;
    hm_file_stamp now;
    if (fstatat(out->folder_fd, name_of(out->target), &info, 0) != 0) return false; /* nothing there that could be lost */
    if (!out->replaces) return true;
    stamp_from(&now, &info);
    return now.device != out->before.device || now.inode != out->before.inode || now.size != out->before.size ||
           now.mtime_s != out->before.mtime_s || now.mtime_ns != out->before.mtime_ns;
}

hm_status hm_outfile_check(const hm_outfile *out, hm_error *err)
{
    struct stat here, there;
    if (stat(out->folder, &there) != 0 || fstat(out->folder_fd, &here) != 0 || here.st_ino != there.st_ino ||
        here.st_dev != there.st_dev)
        return hm_fail(err, HM_ERR_IO, out->target, NULL,
                       "its folder was moved or removed while it was being written; run again");
    if (!is_named(out->folder_fd, out->temp, out->fd))
        return hm_fail(err, HM_ERR_IO, out->target, NULL,
                       "its temporary file %s was taken away while it was being written; run again", out->temp);
    return HM_OK;
}

hm_status hm_outfile_publish(hm_outfile *out, hm_error *err)
{
    if (renameat(out->folder_fd, out->temp, out->folder_fd, name_of(out->target)) != 0)
        return hm_fail_errno(err, out->target, "cannot be put in place", errno);
    out->published = true;
    return HM_OK;
}

void hm_outfile_close(hm_outfile *out)
{
    if (out->temp == NULL) {
        *out = (hm_outfile){.fd = -1, .direct_fd = -1};
        return;
    }
    if (out->published) {
        int fd = openat(out->folder_fd, ".", O_RDONLY | O_CLOEXEC | O_DIRECTORY);
        /* The name is in place; a folder that cannot be synced (some network disks) is no reason to report failure. */
        if (fd >= 0) {
            (void)fsync(fd);
            close(fd);
        }
    } else if (is_named(out->folder_fd, out->temp, out->fd)) {
        unlinkat(out->folder_fd, out->temp, 0);
    }
    close_all(out);
}
