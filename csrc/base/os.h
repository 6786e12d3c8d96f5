/* The one window on the operating system: files, folders, clocks, the page cache, shared libraries.  Only the _posix.c files
 * include POSIX headers for these (threads.c has the threads). */
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
/* Has the system begin to read the range into the page cache.  Only a hint: nothing depends on it. */
void hm_file_prefetch(const hm_file *file, uint64_t offset, uint64_t bytes);

/* A file being written beside its target.  Killed at any moment, the target stays as it was; the temporary is locked
 * while its writer lives, and the next writer of the same target removes temporaries that nobody holds. */
typedef struct hm_outfile {
    int fd;               /* −1 = closed */
    int direct_fd;        /* O_DIRECT twin, or −1 */
    int folder_fd;        /* where both names lie, whatever becomes of the path; open while temp is not NULL */
    char *target;         /* final path, links resolved */
    char *folder;         /* of it */
    char *temp;           /* name of the temporary in the folder; NULL = nothing is open */
    bool published;       /* the temporary has become the target */
    bool replaces;        /* there was a target at the beginning … */
    hm_file_stamp before; /* … in this state */
} hm_outfile;

/* Creates the temporary and reserves `bytes` on the disk (HM_ERR_IO, with needed and free space, when there is no room). */
hm_status hm_outfile_begin(hm_outfile *out, const char *target, uint64_t bytes, hm_error *err);
hm_status hm_outfile_write(const hm_outfile *out, const void *data, uint64_t offset, size_t bytes, hm_error *err);
hm_status hm_outfile_sync(const hm_outfile *out, hm_error *err); /* fsync */
/* True when another file than at the beginning (or any, where there was none) has the target's name now. */
bool hm_outfile_target_changed(const hm_outfile *out);
/* HM_ERR_IO when the folder was moved or removed, or the temporary taken away, since the beginning.  Needs no memory. */
hm_status hm_outfile_check(const hm_outfile *out, hm_error *err);
/* After sync and check: renames onto the target.  It is hm_outfile_close that syncs the folder, so that files which belong
 * together get their names in one go. */
hm_status hm_outfile_publish(hm_outfile *out, hm_error *err);
/* After publish: syncs the folder.  Instead of it: removes the temporary.  Harmless when zero-initialised. */
void hm_outfile_close(hm_outfile *out);

/* Absolute path with links resolved; for a file that does not exist yet, its folder is resolved.  NULL when out of memory
 * or when the folder does not exist (`err` says which). */
char *hm_path_resolve(const char *path, hm_error *err);
bool hm_path_exists(const char *path);
/* Are these two paths one file on the disk?  False when one does not exist. */
bool hm_path_same(const char *a, const char *b);

unsigned hm_cpu_count(void);    /* CPUs this process may run on, ≥ 1 */
double hm_seconds(void);        /* monotonic */
void hm_utc_date(char out[11]); /* "2026-01-31" */

/* A shared library by path or by the name that the loader knows, its symbols kept from others.  NULL: `reason` says why. */
void *hm_library_open(const char *name, char *reason, size_t reason_bytes);
void *hm_library_symbol(void *library, const char *symbol); /* NULL: it has none of that name */
void hm_library_close(void *library);
uint64_t hm_memory_available(void);   /* bytes free or in the page cache; UINT64_MAX = it cannot be told */
uint64_t hm_address_space_left(void); /* bytes that this process may still map; UINT64_MAX = no limit is set */

#endif
