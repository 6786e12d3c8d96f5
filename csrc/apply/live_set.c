/* hm_live_set and hm_live_restore: one pass that reads what is stored and writes into the targets. */
#include <string.h>

#include "apply/live.h"
#include "apply/multipliers.h"
#include "base/error.h"
#include "model/strided.h"

/* Buffers of a pass.  More brings nothing: two workers per CPU read ahead by a few MiB each. */
#define BUDGET ((uint64_t)48 << 20)
/* Blended at a time for a target that must be scattered: as f64, 64 KiB. */
#define BLOCK ((size_t)8 * HM_KERNEL_COLUMNS)

struct live_pass {
    const hm_live *live;
    const hm_kernels *kernels;
    const hm_tensor_info *targets; /* [moved_count] */
    const double *at;              /* set: [moved_count × K] */
    bool stream;
};

hm_status hm_live_stream(const hm_stream *stream, hm_job *job, hm_error *err)
{
    hm_job capped = job != NULL ? *job : (hm_job){0};
    if (capped.memory_budget == 0 || capped.memory_budget > BUDGET) capped.memory_budget = BUDGET;
    hm_status status = hm_stream_run(stream, &capped, err);
    if (job != NULL) {
        capped.memory_budget = job->memory_budget;
        *job = capped; /* what the pass says of itself */
    }
    return status;
}

void hm_live_cast(const hm_kernels *kernels, hm_dtype dtype, void *out, hm_dtype from, const void *numbers, size_t n)
{
    if (from == dtype) {
        memcpy(out, numbers, n * hm_dtype_bytes(dtype)); /* also what f32 cannot hold: f64, the payload of a NaN */
        return;
    }
    const hm_blend_part part = {.data = numbers, .dtype = from, .c = 1};
    kernels->blend(out, dtype, &part, 1, n, false);
}

static unsigned char *address_of(const hm_tensor_info *target, uint64_t start)
{
    return (unsigned char *)target->data + start * hm_dtype_bytes(target->dtype);
}

/* ---- set --------------------------------------------------------------------------------------------------------- */

static hm_status set_work(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch, hm_error *err)
{
    const struct live_pass *pass = user;
    const hm_tensor_info *target = &pass->targets[piece->tensor];
    size_t directions = pass->live->hyper->solution.directions, part_count = pass->live->row_count;
    const double *at = pass->at + piece->tensor * directions;
    hm_blend_part parts[HM_STREAM_ROWS];
    (void)segment;
    (void)err;
    for (size_t r = 0; r < part_count; r++)
        parts[r] = (hm_blend_part){.data = piece->raw[r],
                                   .dtype = piece->as[r] != NULL ? piece->as[r]->dtype : HM_F32,
                                   .c = r < HM_STORED_DIRECTION ? 1 : (float)at[r - HM_STORED_DIRECTION]};
    if (hm_tensor_is_contiguous(target)) {
        pass->kernels->blend(address_of(target, piece->start), target->dtype, parts, part_count, piece->count,
                             pass->stream);
        return HM_OK;
    }
    for (size_t done = 0; done < piece->count; done += BLOCK) {
        size_t n = piece->count - done < BLOCK ? piece->count - done : BLOCK;
        for (size_t r = 0; r < part_count; r++)
            if (piece->raw[r] != NULL)
                parts[r].data = (const unsigned char *)piece->raw[r] + done * hm_dtype_bytes(parts[r].dtype);
        pass->kernels->blend(scratch, target->dtype, parts, part_count, n, false);
        hm_strided_scatter(target, piece->start + done, n, scratch);
    }
    return HM_OK;
}

/* ---- restore ----------------------------------------------------------------------------------------------------- */

/* Rows: W̃, the kept copies; one of them is there. */
static hm_status restore_work(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch,
                              hm_error *err)
{
    const struct live_pass *pass = user;
    const hm_tensor_info *target = &pass->targets[piece->tensor];
    size_t row = piece->raw[0] != NULL ? 0 : 1, size = hm_dtype_bytes(piece->as[row]->dtype);
    const unsigned char *numbers = piece->raw[row];
    bool contiguous = hm_tensor_is_contiguous(target);
    (void)segment;
    (void)err;
    for (size_t done = 0; done < piece->count; done += BLOCK) {
        size_t n = piece->count - done < BLOCK ? piece->count - done : BLOCK;
        void *to = contiguous ? address_of(target, piece->start + done) : scratch;
        hm_live_cast(pass->kernels, target->dtype, to, piece->as[row]->dtype, numbers + done * size, n);
        if (!contiguous) hm_strided_scatter(target, piece->start + done, n, scratch);
    }
    return HM_OK;
}

/* ---- the passes -------------------------------------------------------------------------------------------------- */

/* index: [moved_count × row_count]. */
static hm_status run(struct live_pass *pass, hm_source *const *sources, size_t row_count, const uint32_t *index,
                     hm_status (*work)(void *, const hm_piece *, const hm_segment *, void *, hm_error *), hm_job *job,
                     hm_error *err)
{
    hm_stream_row rows[HM_STREAM_ROWS];
    uint64_t bytes = 0;
    for (size_t r = 0; r < row_count; r++)
        rows[r] = (hm_stream_row){.source = sources[r], .index = index + r, .stride = row_count};
    for (size_t t = 0; t < pass->live->moved_count; t++) bytes += pass->targets[t].bytes;
    pass->kernels = hm_kernels_best();
    pass->stream = bytes > HM_LIVE_STREAM_BYTES;
    const hm_stream stream = {.row_count = row_count,
                              .tensor_count = pass->live->moved_count,
                              .rows = rows,
                              .elements = pass->live->elements,
                              .scratch_bytes = BLOCK * sizeof(double),
                              .again = true,
                              .work = work,
                              .user = pass};
    hm_status status = hm_live_is_in_memory(&stream) ? hm_live_run_in_memory(&stream, job, err)
                                                     : hm_live_stream(&stream, job, err);
    if (status == HM_ERR_CANCELLED)
        return hm_fail(err, status, NULL, NULL,
                       "cancelled; some tensors may hold their new values and others the old ones until the next call");
    return status;
}

static hm_status set(const hm_live *live, const hm_tensor_info *targets, size_t count, const double *at, size_t at_count,
                     const hm_block_value *blocks, size_t block_count, hm_job *job, hm_error *err)
{
    size_t directions = live->hyper->solution.directions, cells = live->moved_count * live->row_count;
    hm_tensor_info *moved = NULL;
    HM_TRY(hm_live_check(live, targets, count, &moved, err));
    double *multipliers = hm_alloc(live->name_count * directions, sizeof *multipliers);
    uint32_t *index = hm_alloc(cells, sizeof *index);
    hm_status status = multipliers != NULL && index != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    if (status == HM_OK)
        status = hm_multipliers_fill(multipliers, live->names, live->name_count, directions, at, at_count, blocks,
                                     block_count, err);
    if (status == HM_OK) {
        memcpy(index, live->index, cells * sizeof *index);
        for (size_t t = 0; t < live->moved_count; t++) /* what takes no part need not be read */
            for (size_t k = 0; k < directions; k++)
                if ((float)multipliers[t * directions + k] == 0)
                    index[t * live->row_count + HM_STORED_DIRECTION + k] = HM_ABSENT;
        struct live_pass pass = {.live = live, .targets = moved, .at = multipliers};
        status = run(&pass, live->source, live->row_count, index, set_work, job, err);
    }
    hm_release(index);
    hm_release(multipliers);
    hm_release(moved);
    return status;
}

static hm_status restore(const hm_live *live, const hm_tensor_info *targets, size_t count, hm_job *job, hm_error *err)
{
    hm_tensor_info *moved = NULL;
    HM_TRY(hm_live_check(live, targets, count, &moved, err));
    uint32_t *index = hm_alloc(2 * live->moved_count, sizeof *index);
    hm_status status = index != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    if (status == HM_OK) {
        hm_source *sources[2] = {live->source[HM_STORED_BASE],
                                 live->kept != NULL ? live->kept : live->source[HM_STORED_BASE]};
        for (size_t t = 0; t < live->moved_count; t++) {
            bool kept = live->kept_index[t] != HM_ABSENT;
            index[2 * t] = kept ? HM_ABSENT : live->index[t * live->row_count + HM_STORED_BASE];
            index[2 * t + 1] = live->kept_index[t];
        }
        struct live_pass pass = {.live = live, .targets = moved};
        status = run(&pass, sources, 2, index, restore_work, job, err);
    }
    hm_release(index);
    hm_release(moved);
    return status;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

hm_status hm_live_set(hm_live *live, const hm_tensor_info *targets, size_t count, const double *at, size_t at_count,
                      const hm_block_value *blocks, size_t block_count, hm_job *job, hm_error *err)
{
    hm_live *part = NULL;
    if (live->partial) HM_TRY(hm_live_part(&part, live, targets, count, err));
    hm_status status =
        set(part != NULL ? part : live, targets, count, at, at_count, blocks, block_count, job, err);
    hm_live_part_close(part);
    return status;
}

hm_status hm_live_restore(hm_live *live, const hm_tensor_info *targets, size_t count, hm_job *job, hm_error *err)
{
    hm_live *part = NULL;
    if (live->partial) HM_TRY(hm_live_part(&part, live, targets, count, err));
    hm_status status = restore(part != NULL ? part : live, targets, count, job, err);
    hm_live_part_close(part);
    return status;
}
