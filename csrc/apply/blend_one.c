/* hm_blend: one tensor, in place, for hosts that patch tensor by tensor. */
#include <stdatomic.h>
#include <string.h>

#include "apply/live.h"
#include "apply/multipliers.h"
#include "base/error.h"
#include "base/threads.h"
#include "model/strided.h"

#define CHUNK ((uint64_t)256 << 10)   /* elements a worker takes at a time: less than a millisecond of work */
#define WORTH_THREADS ((uint64_t)1 << 20)
#define MOST_THREADS 16u
/* Elements gathered and scattered at a time where strides demand it: three operands of them fit the second cache. */
#define BLOCK ((size_t)4 * HM_KERNEL_COLUMNS)
#define BLOCK_BYTES (BLOCK * sizeof(double))

struct blend {
    const hm_kernels *kernels;
    hm_tensor_info out;
    hm_tensor_info *operands; /* [part_count]: base, directions; data NULL where it takes no part */
    hm_blend_part *parts;     /* [part_count] */
    size_t part_count;
    size_t gathers;           /* operands that must be gathered */
    bool scatters, stream;
    unsigned char *scratch;   /* per worker: a block for the result and one for each gathered operand */
    hm_blend_part *worker_parts; /* per worker: [part_count] */
    atomic_uint_fast64_t next;   /* element */
};

/* ---- checks ------------------------------------------------------------------------------------------------------ */

/* Copies and measures an operand. */
static hm_status take(hm_tensor_info *to, const hm_tensor_info *from, const hm_tensor_info *out, const char *role,
                      hm_extent *extent, hm_error *err)
{
    const char *name = out->name;
    *to = *from;
    if ((unsigned)from->dtype >= HM_DTYPE_COUNT || !hm_dtype_is_float(from->dtype))
        return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the %s is not of a floating-point type", role);
    if (from->ndim > HM_MAX_DIMS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "the %s has %u dimensions; at most %d are supported", role,
                       from->ndim, HM_MAX_DIMS);
    if (from->ndim != out->ndim || memcmp(from->shape, out->shape, out->ndim * sizeof *out->shape) != 0)
        return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the %s has another shape than the result", role);
    if (!hm_strided_measure(to)) return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "the %s is too large", role);
    if (to->elements > 0 && to->data == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "the %s has no memory (its data address is NULL)", role);
    if (!hm_strided_extent(to, extent))
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "the %s has strides that lead out of the memory", role);
    return HM_OK;
}

static bool same_strides(const hm_tensor_info *a, const hm_tensor_info *b)
{
    for (unsigned d = 0; d < a->ndim; d++)
        if (a->shape[d] != 1 && a->strides[d] != b->strides[d]) return false;
    return true;
}

static hm_status take_all(struct blend *blend, const hm_tensor_info *out, const hm_tensor_info *base,
                          const hm_tensor_info *const *directions, const double *c, hm_extent *extents, hm_error *err)
{
    hm_extent written;
    HM_TRY(take(&blend->out, out, out, "result", &written, err));
    if (hm_strided_meets_itself(&blend->out))
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, out->name,
                       "the result shares memory between its own elements (an expanded view); make it contiguous");
    HM_TRY(hm_multipliers_check(c, blend->part_count - 1, err));
    for (size_t i = 0; i < blend->part_count; i++) {
        const hm_tensor_info *from = i == 0 ? base : directions[i - 1];
        hm_tensor_info *operand = &blend->operands[i];
        float factor = i == 0 ? 1 : (float)c[i - 1];
        if (i > 0 && from == NULL) return hm_fail(err, HM_ERR_ARGUMENT, NULL, out->name, "direction %zu is missing", i);
        blend->parts[i] = (hm_blend_part){.dtype = HM_F32, .c = factor};
        if (from == NULL) continue;
        HM_TRY(take(operand, from, out, i == 0 ? "base" : "direction", &extents[i], err));
        bool is_out = i == 0 && from->data == out->data && from->dtype == out->dtype &&
                      same_strides(operand, &blend->out);
        if (!is_out && hm_extents_meet(extents[i], written))
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, out->name,
                           i == 0 ? "the base overlaps the result without being the same tensor; clone it"
                                  : "a direction overlaps the result; clone it");
        if (factor == 0) operand->data = NULL;
        blend->parts[i] = (hm_blend_part){.data = operand->data, .dtype = operand->dtype, .c = factor};
    }
    return HM_OK;
}

/* When all operands lie in memory in one and the same gapless order, whichever that is (channels-last, transposed), the
 * order does not matter, and nothing need be gathered. */
static void flatten(struct blend *blend, const hm_extent *extents)
{
    hm_extent written;
    hm_tensor_info *out = &blend->out;
    if (out->elements == 0 || !hm_strided_extent(out, &written) || written.end - written.begin != out->bytes) return;
    for (size_t i = 0; i < blend->part_count; i++)
        if (blend->operands[i].data != NULL && !same_strides(out, &blend->operands[i])) return;
    for (size_t i = 0; i < blend->part_count; i++) {
        hm_tensor_info *operand = &blend->operands[i];
        if (operand->data == NULL) continue;
        operand->data = blend->parts[i].data = (const void *)extents[i].begin;
        operand->ndim = 1;
        operand->shape[0] = operand->elements;
        operand->strides[0] = 1;
    }
    out->data = (const void *)written.begin;
    out->ndim = 1;
    out->shape[0] = out->elements;
    out->strides[0] = 1;
}

/* ---- work -------------------------------------------------------------------------------------------------------- */

/* Fills parts with the numbers from `start` on; those that are gathered go to `blocks`. */
static void set_parts(const struct blend *blend, hm_blend_part *parts, uint64_t start, size_t n, unsigned char *blocks)
{
    for (size_t i = 0; i < blend->part_count; i++) {
        const hm_tensor_info *operand = &blend->operands[i];
        parts[i] = blend->parts[i];
        if (parts[i].data == NULL) continue;
        if (hm_tensor_is_contiguous(operand)) {
            parts[i].data = (const unsigned char *)parts[i].data + start * hm_dtype_bytes(operand->dtype);
        } else {
            hm_source_gather(operand, start, n, blocks);
            parts[i].data = blocks;
            blocks += BLOCK_BYTES;
        }
    }
}

static void work(void *arg, unsigned worker)
{
    struct blend *blend = arg;
    const hm_tensor_info *out = &blend->out;
    hm_blend_part *parts = blend->worker_parts + worker * blend->part_count;
    unsigned char *result = blend->scratch + worker * (1 + blend->gathers) * BLOCK_BYTES;
    uint64_t step = blend->scatters || blend->gathers > 0 ? BLOCK : CHUNK, start;
    while ((start = atomic_fetch_add(&blend->next, CHUNK)) < out->elements) {
        uint64_t end = out->elements - start < CHUNK ? out->elements : start + CHUNK;
        for (uint64_t at = start; at < end; at += step) {
            size_t n = (size_t)(end - at < step ? end - at : step);
            void *to = blend->scatters ? result : (unsigned char *)out->data + at * hm_dtype_bytes(out->dtype);
            set_parts(blend, parts, at, n, result + BLOCK_BYTES);
            blend->kernels->blend(to, out->dtype, parts, blend->part_count, n, blend->stream && !blend->scatters);
            if (blend->scatters) hm_strided_scatter(out, at, n, result);
        }
    }
}

static hm_status run(struct blend *blend, unsigned threads, hm_error *err)
{
    const hm_tensor_info *out = &blend->out;
    uint64_t chunks = (out->elements + CHUNK - 1) / CHUNK;
    if (chunks == 0) return HM_OK;
    unsigned workers = threads > 0 ? threads : out->elements < WORTH_THREADS ? 1 : hm_cpu_count();
    if (workers > MOST_THREADS) workers = MOST_THREADS;
    if (workers > chunks) workers = (unsigned)chunks;
    for (size_t i = 0; i < blend->part_count; i++)
        if (blend->parts[i].data != NULL && !hm_tensor_is_contiguous(&blend->operands[i])) blend->gathers++;
    blend->scatters = !hm_tensor_is_contiguous(out);
    blend->stream = out->bytes > HM_LIVE_STREAM_BYTES;
    bool blocks = blend->scatters || blend->gathers > 0;
    blend->worker_parts = hm_alloc(workers * blend->part_count, sizeof *blend->worker_parts);
    blend->scratch = hm_alloc_pages(blocks ? workers * (1 + blend->gathers) * BLOCK_BYTES : 0);
    hm_status status = HM_OK;
    if (blend->worker_parts == NULL || blend->scratch == NULL)
        status = hm_fail_memory(err, "a blend");
    else if (workers == 1)
        work(blend, 0);
    else
        status = hm_crew_run(workers, work, NULL, blend, err);
    hm_release_pages(blend->scratch);
    hm_release(blend->worker_parts);
    return status;
}

hm_status hm_blend(const hm_tensor_info *out, const hm_tensor_info *base, const hm_tensor_info *const *directions,
                   const double *c, size_t count, unsigned threads, hm_error *err)
{
    struct blend blend = {.kernels = hm_kernels_best(), .part_count = count + 1};
    atomic_init(&blend.next, 0);
    hm_extent *extents = hm_alloc(blend.part_count, sizeof *extents);
    blend.operands = hm_alloc(blend.part_count, sizeof *blend.operands);
    blend.parts = hm_alloc(blend.part_count, sizeof *blend.parts);
    hm_status status = extents != NULL && blend.operands != NULL && blend.parts != NULL
                           ? HM_OK
                           : hm_fail_memory(err, "a blend");
    if (status == HM_OK) status = take_all(&blend, out, base, directions, c, extents, err);
    if (status == HM_OK) {
        flatten(&blend, extents);
        status = run(&blend, threads, err);
    }
    hm_release(extents);
    hm_release(blend.operands);
    hm_release(blend.parts);
    return status;
}
