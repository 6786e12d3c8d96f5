/* What the disk and the page cache give without any arithmetic: the denominators of the benchmark.
 *
 *   raw_io read direct|cached THREADS PIECE LIST           reads what LIST names: lines "offset bytes path"
 *   raw_io write direct|cached THREADS PIECE PATH BYTES    writes a file, then fsync; the file stays
 *   raw_io evict FILE...                                   drops the files from the page cache
 *   raw_io resident FILE...                                changes nothing
 *
 * PIECE is the bytes of one call.  read and write print "bytes seconds", evict and resident the share of the files'
 * pages that is in the page cache. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define EXTENTS_MOST 4096
#define THREADS_MOST 64

typedef struct extent {
    int fd;
    uint64_t start, end; /* where in the file; direct: multiples of PAGE */
    uint64_t before;     /* pieces of the extents before this one */
} extent;

static extent extents[EXTENTS_MOST];
static size_t extent_count;
static uint64_t piece_bytes, pieces;
static _Atomic uint64_t next_piece, moved;
static int writing;

static void fail(const char *what, const char *which)
{
    fprintf(stderr, "raw_io: %s: ", which);
    perror(what);
    exit(1);
}

static void add_extent(const char *path, int flags, uint64_t start, uint64_t end)
{
    if (extent_count == EXTENTS_MOST) {
        fprintf(stderr, "raw_io: more than %d extents\n", EXTENTS_MOST);
        exit(1);
    }
    int fd = open(path, flags, 0644);
    if (fd < 0) fail("open", path);
    if (flags & O_DIRECT) {
        start = start / PAGE * PAGE;
        end = (end + PAGE - 1) / PAGE * PAGE;
    }
    extents[extent_count++] = (extent){fd, start, end, pieces};
    pieces += (end - start + piece_bytes - 1) / piece_bytes;
}

static void *work(void *unused)
{
    (void)unused;
    unsigned char *buffer = mmap(NULL, piece_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) fail("mmap", "buffer");
    for (uint64_t i = 0; i < piece_bytes; i++) buffer[i] = (unsigned char)(i * 2654435761u >> 13);
    size_t e = 0;
    for (uint64_t piece; (piece = atomic_fetch_add(&next_piece, 1)) < pieces;) {
        while (e + 1 < extent_count && extents[e + 1].before <= piece) e++;
        uint64_t at = extents[e].start + (piece - extents[e].before) * piece_bytes;
        uint64_t end = at + piece_bytes < extents[e].end ? at + piece_bytes : extents[e].end;
        while (at < end) {
            ssize_t done = writing ? pwrite(extents[e].fd, buffer, end - at, (off_t)at)
                                   : pread(extents[e].fd, buffer, end - at, (off_t)at);
            if (done < 0) fail(writing ? "pwrite" : "pread", "file");
            if (done == 0) break; /* a last page that the file does not fill */
            at += (uint64_t)done;
            atomic_fetch_add(&moved, (uint64_t)done);
        }
    }
    munmap(buffer, piece_bytes);
    return NULL;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_threads(unsigned threads)
{
    pthread_t ids[THREADS_MOST];
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, work, NULL) != 0) fail("pthread_create", "thread");
    for (unsigned i = 0; i < threads; i++) pthread_join(ids[i], NULL);
}

/* Files are opened before the clock starts. */
static void read_list(const char *list, int flags, unsigned threads)
{
    char line[5000];
    FILE *file = fopen(list, "r");
    if (file == NULL) fail("open", list);
    while (fgets(line, sizeof line, file) != NULL) {
        unsigned long long offset, bytes;
        int path = 0;
        line[strcspn(line, "\n")] = '\0';
        if (sscanf(line, "%llu %llu %n", &offset, &bytes, &path) < 2 || path == 0) fail("a line", list);
        add_extent(line + path, O_RDONLY | flags, offset, offset + bytes);
    }
    fclose(file);
    double begun = now();
    run_threads(threads);
    printf("%llu %.6f\n", (unsigned long long)moved, now() - begun);
}

static void write_file(const char *path, int flags, unsigned threads, uint64_t bytes)
{
    writing = 1;
    unlink(path);
    double begun = now();
    add_extent(path, O_WRONLY | O_CREAT | flags, 0, bytes);
    run_threads(threads);
    if (fsync(extents[0].fd) != 0) fail("fsync", path);
    printf("%llu %.6f\n", (unsigned long long)moved, now() - begun);
}

/* Share of the pages of these files that is in the page cache. */
static double resident(char **paths, int count, int evict)
{
    uint64_t here = 0, all = 0;
    for (int i = 0; i < count; i++) {
        struct stat info;
        int fd = open(paths[i], O_RDONLY);
        if (fd < 0 || fstat(fd, &info) != 0) fail("open", paths[i]);
        if (evict) { /* dirty pages would stay */
            fsync(fd);
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        }
        size_t size = (size_t)info.st_size, count_here = (size + PAGE - 1) / PAGE;
        void *map = size > 0 ? mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0) : NULL;
        unsigned char *present = malloc(count_here + 1);
        if (map == MAP_FAILED || present == NULL) fail("mmap", paths[i]);
        if (size > 0 && mincore(map, size, present) != 0) fail("mincore", paths[i]);
        for (size_t p = 0; p < count_here; p++) here += present[p] & 1u;
        all += count_here;
        if (size > 0) munmap(map, size);
        free(present);
        close(fd);
    }
    return all > 0 ? (double)here / (double)all : 0;
}

int main(int argc, char **argv)
{
    if (argc > 2 && (strcmp(argv[1], "evict") == 0 || strcmp(argv[1], "resident") == 0)) {
        printf("%.6f\n", resident(argv + 2, argc - 2, argv[1][0] == 'e'));
        return 0;
    }
    int wants_write = argc == 7 && strcmp(argv[1], "write") == 0;
    if (!wants_write && !(argc == 6 && strcmp(argv[1], "read") == 0)) {
        fprintf(stderr, "raw_io: see the top of raw_io.c\n");
        return 2;
    }
    int flags = strcmp(argv[2], "direct") == 0 ? O_DIRECT : 0;
    unsigned threads = (unsigned)atoi(argv[3]);
    piece_bytes = strtoull(argv[4], NULL, 10) / PAGE * PAGE;
    if (threads == 0 || threads > THREADS_MOST || piece_bytes == 0) return 2;
    if (wants_write)
        write_file(argv[5], flags, threads, strtoull(argv[6], NULL, 10));
    else
        read_list(argv[5], flags, threads);
    return 0;
}
