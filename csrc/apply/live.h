/* The inside of a live binding: which targets move, where the numbers for them come from, what restore needs.  Nothing
 * in it changes after hm_live_bind, so several threads may set different targets through one binding.
 *
 * Three tables have one entry per moved target, in the order in which the pass reads them: target, elements, index. */
#ifndef HM_APPLY_LIVE_H
#define HM_APPLY_LIVE_H

#include "apply/stored.h"
#include "kernels/kernels.h"
#include "solve/stream.h"

struct hm_live {
    hm_hyper *hyper;
    bool partial;           /* of hm_live_options */
    size_t count;           /* targets that were bound */
    hm_tensor_info *bound;  /* [count] as bound: the hyper-model's name, dtype, shape; no address */
    size_t moved_count;
    uint32_t *target;       /* [moved_count] index in bound */
    uint64_t *elements;     /* [moved_count] */
    size_t row_count;       /* hm_stored_rows */
    uint32_t *index;        /* [moved_count × row_count] in source[row] */
    hm_source *source[HM_STREAM_ROWS]; /* borrowed: the files, or `memory` */
    const char **names;     /* the moved targets, then what else the hyper-model moves: for globs */
    size_t name_count;
    hm_source *memory;      /* in_memory: W̃, base_low and directions of the moved targets, else NULL */
    unsigned char *memory_block;
    hm_source *kept;        /* copies of the targets that did not hold cast(W̃), or NULL */
    unsigned char *kept_block;
    uint32_t *kept_index;   /* [moved_count] in kept, or HM_ABSENT */
};

/* Blends that write more than this go past the caches: nobody will find the numbers there again.  Smaller ones stay. */
#define HM_LIVE_STREAM_BYTES ((uint64_t)16 << 20)

/* Finds the targets' tensors by name and fills bound, the three tables, names and kept_index (its room only).  `live`
 * has hyper, count, row_count, source and room for bound. */
hm_status hm_live_name(hm_live *live, const hm_tensor_info *targets, const char *const *names, hm_error *err);

/* Are these the targets that were bound, may they be written, and does none touch another?  Gives the moved ones, with
 * elements and bytes filled in, as a block of [moved_count] (hm_release).  `live` needs bound, target, their counts. */
hm_status hm_live_check(const hm_live *live, const hm_tensor_info *targets, size_t count, hm_tensor_info **out,
                        hm_error *err);

/* A binding of the same targets as `live` that moves only those which have memory: targets[i].data is not NULL.  The others
 * are left as they are, but their names still count for globs.  Shares everything with `live`, which must outlive it. */
hm_status hm_live_part(hm_live **out, const hm_live *live, const hm_tensor_info *targets, size_t count, hm_error *err);
void hm_live_part_close(hm_live *part); /* not hm_live_close: most of it belongs to `live` */

/* T of "hypermerge.direction.k.T" and of "hypermerge.base_low.T", else NULL.  Such names were checked when the file was
 * opened. */
const char *hm_live_part_of(const char *stored);

/* Runs a pass with buffers that stay far below the 64 MiB which a live blend may take. */
hm_status hm_live_stream(const hm_stream *stream, hm_job *job, hm_error *err);

/* Has the pass nothing to read from files and nothing to gather? */
bool hm_live_is_in_memory(const hm_stream *stream);
/* Runs such a pass, of which only rows, elements, scratch_bytes, work and user count: hm_piece.offset is 0, and segments have
 * no results.  Progress and cancel are those of hm_stream_run. */
hm_status hm_live_run_in_memory(const hm_stream *stream, hm_job *job, hm_error *err);

/* out[0 … n) = the stored numbers converted to `dtype` with one rounding: cast(W̃). */
void hm_live_cast(const hm_kernels *kernels, hm_dtype dtype, void *out, hm_dtype from, const void *numbers, size_t n);

#endif
