/* Checking targets, before anything is written to them. */
#include <stdlib.h>
#include <string.h>

#include "apply/live.h"
#include "base/error.h"
#include "model/strided.h"

/* A target's bytes, for finding those that touch. */
struct range {
    hm_extent extent;
    const char *name;
    bool moved;
};

static int by_address(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    if (x->extent.begin != y->extent.begin) return x->extent.begin < y->extent.begin ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Walks up the addresses and remembers which range reaches farthest, of all and of those that are written to.  Two that
 * nobody writes may share their memory. */
static hm_status check_ranges(struct range *ranges, size_t count, hm_error *err)
{
    const struct range *farthest = NULL, *farthest_moved = NULL;
    if (count > 0) qsort(ranges, count, sizeof *ranges, by_address);
    for (size_t i = 0; i < count; i++) {
        const struct range *range = &ranges[i], *other = range->moved ? farthest : farthest_moved;
        if (other != NULL && hm_extents_meet(other->extent, range->extent))
            return hm_fail(err, HM_ERR_MISMATCH, NULL, range->name,
                           "lies in the same memory as %.200s; give every tensor memory of its own (clone one of them)",
                           other->name);
        if (farthest == NULL || range->extent.end > farthest->extent.end) farthest = range;
        if (range->moved && (farthest_moved == NULL || range->extent.end > farthest_moved->extent.end))
            farthest_moved = range;
    }
    return HM_OK;
}

static hm_status check_as_bound(const hm_tensor_info *target, const hm_tensor_info *bound, hm_error *err)
{
    if (target->dtype != bound->dtype)
        return hm_fail(err, HM_ERR_MISMATCH, NULL, bound->name,
                       "was %s when it was bound and has another type now; bind the model again",
                       hm_dtype_name(bound->dtype));
    if (target->ndim != bound->ndim || memcmp(target->shape, bound->shape, bound->ndim * sizeof *bound->shape) != 0)
        return hm_fail(err, HM_ERR_MISMATCH, NULL, bound->name,
                       "has another shape than when it was bound; bind the model again");
    return HM_OK;
}

/* Where a target lies; `range` stays empty where nothing has to be known of it. */
static hm_status check_memory(const hm_tensor_info *target, const char *name, bool moved, struct range *range,
                              hm_error *err)
{
    *range = (struct range){.name = name, .moved = moved};
    if (target->data == NULL || target->elements == 0) {
        if (!moved || target->elements == 0) return HM_OK;
        return hm_fail(err, HM_ERR_MISMATCH, NULL, name,
                       "has no memory (its data address is NULL), so it cannot be written");
    }
    if (!hm_strided_extent(target, &range->extent)) {
        if (!moved) return HM_OK;
        return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "has strides that lead out of the memory");
    }
    if (moved && hm_strided_meets_itself(target))
        return hm_fail(err, HM_ERR_MISMATCH, NULL, name,
                       "shares memory between its own elements (an expanded view); make it contiguous first");
    return HM_OK;
}

static hm_status check_all(const hm_live *live, const hm_tensor_info *targets, struct range *ranges, bool *moves,
                           hm_tensor_info *out, hm_error *err)
{
    for (size_t t = 0; t < live->moved_count; t++) moves[live->target[t]] = true;
    for (size_t i = 0; i < live->count; i++) {
        HM_TRY(check_as_bound(&targets[i], &live->bound[i], err));
        hm_tensor_info target = targets[i];
        target.elements = live->bound[i].elements;
        HM_TRY(check_memory(&target, live->bound[i].name, moves[i], &ranges[i], err));
    }
    HM_TRY(check_ranges(ranges, live->count, err));
    for (size_t t = 0; t < live->moved_count; t++) {
        const hm_tensor_info *bound = &live->bound[live->target[t]], *target = &targets[live->target[t]];
        out[t] = *bound;
        out[t].data = target->data;
        memcpy(out[t].strides, target->strides, sizeof out[t].strides);
    }
    return HM_OK;
}

hm_status hm_live_check(const hm_live *live, const hm_tensor_info *targets, size_t count, hm_tensor_info **out,
                        hm_error *err)
{
    if (count != live->count)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu targets were given, but %zu were bound", count,
                       live->count);
    struct range *ranges = hm_alloc(count, sizeof *ranges);
    bool *moves = hm_alloc(count, sizeof *moves);
    hm_tensor_info *moved = hm_alloc(live->moved_count, sizeof *moved);
    hm_status status = ranges != NULL && moves != NULL && moved != NULL ? HM_OK
                                                                        : hm_fail_memory(err, "the list of targets");
    if (status == HM_OK) status = check_all(live, targets, ranges, moves, moved, err);
    hm_release(ranges);
    hm_release(moves);
    if (status == HM_OK)
        *out = moved;
    else
        hm_release(moved);
    return status;
}
