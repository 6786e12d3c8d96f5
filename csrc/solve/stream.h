/* One pass over aligned tensors of many sources, in constant memory.
 *
 * A pass has rows (one per source that takes part) and tensors; row r, tensor t is a tensor of row r's source, or absent.
 * The pass cuts the tensors into items of a few MiB, whole runs of small tensors together.  Each worker takes the next
 * item, reads it from all rows, computes, writes what there is to write, and hands its results over; results are committed
 * in the order of the items, so sums come out the same for any number of threads.
 *
 * Reading and arithmetic overlap because there are more workers than CPUs and only about as many of them compute at a time
 * as there are CPUs (they have a seat); the others wait in reads.  No barriers, nobody spins.
 * A range that lies in the page cache is read from there in small steps that stay in the CPU's cache; a cold one by
 * direct I/O in one piece (buffered reads of files larger than the memory collapse: the kernel spends its time evicting),
 * unless the pass will be run again over the same numbers: then they are left in the page cache for it.
 * Products (model/product.h) are rows like others, of type F32: their factors are loaded once for all workers, and the
 * numbers computed where they are needed. */
#ifndef HM_SOLVE_STREAM_H
#define HM_SOLVE_STREAM_H

#include "model/source.h"

#define HM_STREAM_ROWS (2 * HM_MAX_MEMBERS + 8)
/* Segments begin at multiples of this many elements of their tensor, and sums are kept for each such cut by itself: however
 * large the items are, the same numbers are added in the same order. */
#define HM_STREAM_CUT ((size_t)4096)

typedef struct hm_stream_row {
    hm_source *source;
    const uint32_t *index; /* tensor t of the pass is tensor index[t · stride] of the source; HM_ABSENT allowed */
    size_t stride;
} hm_stream_row;

/* A run of elements of one tensor, as the work function gets it. */
typedef struct hm_piece {
    size_t tensor;
    uint64_t start; /* first element, within the tensor */
    size_t count;
    uint64_t offset; /* of `start` within the item's segment: where its results go */
    const void *const *raw;          /* [rows] the numbers as stored; NULL = absent */
    const hm_tensor_info *const *as; /* [rows] dtype and so on; NULL = absent */
} hm_piece;

/* A run of elements of one tensor within one item: the unit of results. */
typedef struct hm_segment {
    size_t tensor;
    uint64_t start;
    size_t count;
    void *result; /* cut_bytes for each cut, then count · result_element_bytes; zeroed before the first piece; 64-byte aligned */
} hm_segment;

typedef struct hm_stream {
    size_t row_count, tensor_count;
    const hm_stream_row *rows;
    const uint64_t *elements;       /* [tensor_count] */
    size_t cut_bytes;               /* results per cut of a segment: sums */
    size_t result_element_bytes;    /* results per element: what is to be written */
    size_t scratch_bytes;           /* per worker, 64-byte aligned, not zeroed */
    bool again;                     /* soon: what is cold comes into the page cache, if the memory has room for all of it */
    /* Called for consecutive pieces of a segment, in a worker thread. */
    hm_status (*work)(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch, hm_error *err);
    /* Called once per segment after its last piece, in a worker thread, in no fixed order: writing.  May be NULL. */
    hm_status (*finish)(void *user, const hm_segment *segment, hm_error *err);
    /* Called once per segment, one at a time, in the order of the tensors.  May be NULL. */
    hm_status (*commit)(void *user, const hm_segment *segment, hm_error *err);
    void *user;
} hm_stream;

/* Cuts of a segment of `count` elements. */
static inline size_t hm_stream_cuts(size_t count)
{
    return (count + HM_STREAM_CUT - 1) / HM_STREAM_CUT;
}

/* Checks that all files are still what they were when opened, runs the pass, and checks again. */
hm_status hm_stream_run(const hm_stream *stream, hm_job *job, hm_error *err);

/* Where something else was done before a pass, `before` bytes of it, the two report progress as one: the pass gets a job whose
 * progress is hm_second_progress and whose user is this. */
typedef struct hm_second_pass {
    const hm_job *job; /* the caller's, with a progress function */
    uint64_t before;
} hm_second_pass;
int hm_second_progress(void *user, uint64_t done, uint64_t total);

#endif
