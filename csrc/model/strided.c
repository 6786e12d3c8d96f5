#include "model/strided.h"

#include <string.h>

#include "base/memory.h"

static uint64_t magnitude(int64_t stride)
{
    return stride < 0 ? 0 - (uint64_t)stride : (uint64_t)stride;
}

bool hm_strided_measure(hm_tensor_info *tensor)
{
    uint64_t elements = 1;
    bool fits = true, empty = false;
    for (unsigned d = 0; d < tensor->ndim; d++) {
        empty = empty || tensor->shape[d] == 0;
        fits = fits && (tensor->shape[d] == 0 || hm_mul_u64(elements, tensor->shape[d], &elements));
    }
    fits = fits && hm_mul_u64(elements, hm_dtype_bytes(tensor->dtype), &tensor->bytes);
    tensor->elements = empty ? 0 : elements;
    if (empty) tensor->bytes = 0;
    return fits;
}

bool hm_strided_extent(const hm_tensor_info *tensor, hm_extent *out)
{
    uint64_t size = hm_dtype_bytes(tensor->dtype), below = 0, above = size;
    uintptr_t at = (uintptr_t)tensor->data;
    *out = (hm_extent){at, at};
    if (tensor->elements == 0) return true;
    for (unsigned d = 0; d < tensor->ndim; d++) {
        uint64_t bytes, *side = tensor->strides[d] < 0 ? &below : &above;
        if (!hm_mul_u64(magnitude(tensor->strides[d]), size, &bytes) ||
            !hm_mul_u64(bytes, tensor->shape[d] - 1, &bytes) || !hm_add_u64(*side, bytes, side))
            return false;
    }
    /* Half of what a pointer difference can hold: so a stride times its whole dimension fits as well. */
    uint64_t most = PTRDIFF_MAX / 2;
    if (below > most || above > most || below > at || above > UINTPTR_MAX - at) return false;
    *out = (hm_extent){at - (uintptr_t)below, at + (uintptr_t)above};
    return true;
}

bool hm_extents_meet(hm_extent a, hm_extent b)
{
    return a.begin < a.end && b.begin < b.end && a.begin < b.end && b.begin < a.end;
}

/* From the smallest stride up, each one must step over everything that the smaller ones reach. */
bool hm_strided_meets_itself(const hm_tensor_info *tensor)
{
    bool used[HM_MAX_DIMS] = {false};
    uint64_t reach = 0; /* largest offset so far, in elements; fits where the tensor has an extent */
    if (tensor->elements == 0) return false;
    for (;;) {
        unsigned next = HM_MAX_DIMS;
        for (unsigned d = 0; d < tensor->ndim; d++) {
            if (used[d] || tensor->shape[d] == 1) continue;
            if (next == HM_MAX_DIMS || magnitude(tensor->strides[d]) < magnitude(tensor->strides[next])) next = d;
        }
        if (next == HM_MAX_DIMS) return false;
        uint64_t stride = magnitude(tensor->strides[next]);
        if (stride <= reach) return true;
        reach += stride * (tensor->shape[next] - 1);
        used[next] = true;
    }
}

/* ---- scatter ----------------------------------------------------------------------------------------------------- */

/* The dimensions that matter: those of one element are left out, neighbours that make one even row become one.  The
 * height and width of a channels-last picture are such neighbours. */
struct walk {
    unsigned ndim;
    uint64_t shape[HM_MAX_DIMS];
    int64_t step[HM_MAX_DIMS]; /* bytes */
};

static struct walk walk_of(const hm_tensor_info *tensor)
{
    struct walk walk = {.ndim = 0};
    int64_t size = (int64_t)hm_dtype_bytes(tensor->dtype);
    for (unsigned d = 0; d < tensor->ndim; d++) {
        if (tensor->shape[d] == 1) continue;
        int64_t step = tensor->strides[d] * size;
        unsigned last = walk.ndim - 1;
        if (walk.ndim > 0 && walk.step[last] == step * (int64_t)tensor->shape[d]) {
            walk.shape[last] *= tensor->shape[d];
            walk.step[last] = step;
        } else {
            walk.shape[walk.ndim] = tensor->shape[d];
            walk.step[walk.ndim++] = step;
        }
    }
    if (walk.ndim == 0) walk = (struct walk){.ndim = 1, .shape = {1}, .step = {size}};
    return walk;
}

/* memcpy of a constant size is one load and one store. */
static void scatter_run(char *to, const char *from, size_t count, int64_t step, size_t size)
{
    if (step == (int64_t)size) {
        memcpy(to, from, count * size);
        return;
    }
    switch (size) {
    case 1:
        for (size_t i = 0; i < count; i++) to[(int64_t)i * step] = from[i];
        break;
    case 2:
        for (size_t i = 0; i < count; i++) memcpy(to + (int64_t)i * step, from + 2 * i, 2);
        break;
    case 4:
        for (size_t i = 0; i < count; i++) memcpy(to + (int64_t)i * step, from + 4 * i, 4);
        break;
    default:
        for (size_t i = 0; i < count; i++) memcpy(to + (int64_t)i * step, from + size * i, size);
        break;
    }
}

void hm_strided_scatter(const hm_tensor_info *tensor, uint64_t start, size_t count, const void *from)
{
    if (count == 0) return;
    const struct walk walk = walk_of(tensor);
    size_t size = hm_dtype_bytes(tensor->dtype);
    unsigned last = walk.ndim - 1;
    char *base = (char *)tensor->data; /* `data` is const for the sake of sources; targets are written to */
    const char *next = from;
    uint64_t at[HM_MAX_DIMS], rest = start;
    int64_t offset = 0; /* of element at[], bytes */
    for (unsigned d = walk.ndim; d-- > 0;) {
        at[d] = rest % walk.shape[d];
        rest /= walk.shape[d];
        offset += (int64_t)at[d] * walk.step[d];
    }
    for (;;) {
        uint64_t left = walk.shape[last] - at[last];
        size_t run = left < count ? (size_t)left : count;
        scatter_run(base + offset, next, run, walk.step[last], size);
        next += run * size;
        count -= run;
        if (count == 0) return;
        offset -= (int64_t)at[last] * walk.step[last];
        at[last] = 0;
        for (unsigned d = last; d-- > 0;) {
            offset += walk.step[d];
            if (++at[d] < walk.shape[d]) break;
            offset -= (int64_t)walk.shape[d] * walk.step[d];
            at[d] = 0;
        }
    }
}
