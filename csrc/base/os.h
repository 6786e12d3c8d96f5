/* The one window on the operating system: files, folders, clocks, the page cache.  os_posix.c is the only file that
 * includes POSIX headers for these (threads.c has the threads). */
#ifndef HM_BASE_OS_H
#define HM_BASE_OS_H

#include "hypermerge.h"

/* What tells one state of a file from another. */
typedef struct hm_file_stamp {
    uint64_t size;           /* bytes */
    int64_t mtime_s, mtime_ns;
    uint64_t device, inode;
} hm_file_stamp;

typedef struct hm_file {
    int fd;        /* buffered descriptor; −1 = closed */
    int direct_fd; /* O_DIRECT twin, or −1 where the file system has none */
    char *path;    /* as given, made absolute, links resolved */
} hm_file;

hm_status hm_file_open(hm_file *file, const char *path, hm_error *err);
void hm_file_close(hm_file *file);
hm_status hm_file_stamp_get(const hm_file *file, hm_file_stamp *out, hm_error *err);
/* Reads exactly [offset, offset + bytes).  A file that ends before is HM_ERR_IO "… was truncated while being read". */
hm_status hm_file_read(const hm_file *file, void *out, uint64_t offset, size_t bytes, hm_error *err);
/* The same past the page cache.  `buffer` is 4096-aligned and holds at least bytes + 8192; the wanted bytes begin at
 * *out inside it.  Falls back to plain reads where direct I/O is refused.  *was_direct tells which it was. */
hm_status hm_file_read_direct(const hm_file *file, void *buffer, uint64_t offset, size_t bytes, const void **out,
                              bool *was_direct, hm_error *err);
/* True when at least nine tenths of the range lie in the page cache (or when this cannot be told). */
bool hm_file_is_cached(const hm_file *file, uint64_t offset, uint64_t bytes);

/* A file being written beside its target.  Killed at any moment, the target stays as it was; the temporary is locked
 * while its writer lives, and the next writer of the same target removes temporaries that nobody holds. */
typedef struct hm_outfile {
    int fd;        /* −1 = closed */
    int direct_fd; /* O_DIRECT twin, or −1 */
    char *target;  /* final path, links resolved */
    char *temp;    /* in the same folder */
} hm_outfile;

/* Creates the temporary and reserves `bytes` on the disk (HM_ERR_IO, with needed and free space, when there is no room). */
hm_status hm_outfile_begin(hm_outfile *out, const char *target, uint64_t bytes, hm_error *err);
hm_status hm_outfile_write(const hm_outfile *out, const void *data, uint64_t offset, size_t bytes, hm_error *err);
hm_status hm_outfile_sync(const hm_outfile *out, hm_error *err); /* fsync */
/* After sync: renames onto the target and syncs the folder. */
hm_status hm_outfile_publish(hm_outfile *out, hm_error *err);
void hm_outfile_abandon(hm_outfile *out); /* removes the temporary; harmless after publish and when zero-initialised */

/* Absolute path with links resolved; for a file that does not exist yet, its folder is resolved.  NULL when out of memory
 * or when the folder does not exist (`err` says which). */
char *hm_path_resolve(const char *path, hm_error *err);
bool hm_path_exists(const char *path);
/* Are these two paths one file on the disk?  False when one does not exist. */
bool hm_path_same(const char *a, const char *b);

unsigned hm_cpu_count(void);    /* CPUs this process may run on, ≥ 1 */
double hm_seconds(void);        /* monotonic */
void hm_utc_date(char out[11]); /* "2026-01-31" */

#endif
