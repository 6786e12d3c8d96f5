/* Binding by name: which target is which tensor of the hyper-model, and which of them any direction moves. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "apply/live.h"
#include "base/error.h"
#include "model/strided.h"

/* ---- names and shapes -------------------------------------------------------------------------------------------- */

/* What the hyper-model says of a tensor: of W̃, or where there is none, of its first direction.  NULL: nothing. */
static const hm_tensor_info *find_tensor(const hm_hyper *hyper, const char *name)
{
    if (strncmp(name, HM_PREFIX, strlen(HM_PREFIX)) == 0) return NULL;
    const hm_tensor_info *tensor = hm_source_find(hm_stored_source(hyper, HM_STORED_BASE), name);
    for (size_t k = 1; tensor == NULL && k <= hyper->solution.directions; k++) {
        uint32_t index = hm_part_index(hyper, k, name);
        if (index != HM_ABSENT) tensor = &hyper->file->header.tensors[index];
    }
    return tensor;
}

const char *hm_live_part_of(const char *stored)
{
    static const char low[] = HM_PREFIX_BASE_LOW, direction[] = HM_PREFIX_DIRECTION;
    if (strncmp(stored, low, sizeof low - 1) == 0) return stored + sizeof low - 1;
    if (strncmp(stored, direction, sizeof direction - 1) != 0) return NULL;
    const char *dot = strchr(stored + sizeof direction - 1, '.');
    return dot != NULL ? dot + 1 : NULL;
}

static void put_shape(hm_text *text, const hm_tensor_info *tensor)
{
    hm_text_put(text, "[");
    for (unsigned d = 0; d < tensor->ndim; d++) hm_text_format(text, "%s%" PRIu64, d > 0 ? ", " : "", tensor->shape[d]);
    hm_text_put(text, "]");
}

static hm_status fail_shape(const hm_live *live, const hm_tensor_info *target, const hm_tensor_info *stored,
                            const char *name, hm_error *err)
{
    hm_text text = {0};
    hm_text_put(&text, "has the shape ");
    put_shape(&text, target);
    hm_text_put(&text, ", in the hyper-model ");
    put_shape(&text, stored);
    hm_text_put(&text, "; it belongs to another model");
    hm_status status = text.failed
                           ? hm_fail_memory(err, "a message")
                           : hm_fail(err, HM_ERR_MISMATCH, hm_source_label(live->hyper->file), name, "%s", text.data);
    hm_text_clear(&text);
    return status;
}

static hm_status bind_target(hm_live *live, size_t i, const hm_tensor_info *target, const char *name, bool *moves,
                             hm_error *err)
{
    const char *file = hm_source_label(live->hyper->file);
    if (name == NULL) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "target %zu has no name", i + 1);
    const hm_tensor_info *stored = find_tensor(live->hyper, name);
    if (stored == NULL)
        return hm_fail(err, HM_ERR_MISMATCH, file, name, "the hyper-model has no such tensor; bind only what it has");
    if (target->ndim > HM_MAX_DIMS || target->ndim != stored->ndim ||
        memcmp(target->shape, stored->shape, stored->ndim * sizeof *stored->shape) != 0) {
        hm_tensor_info shown = *target;
        if (shown.ndim > HM_MAX_DIMS) shown.ndim = HM_MAX_DIMS;
        return fail_shape(live, &shown, stored, name, err);
    }
    *moves = hm_stored_moves(live->hyper, name);
    if ((unsigned)target->dtype >= HM_DTYPE_COUNT || (*moves && !hm_dtype_is_float(target->dtype)))
        return hm_fail(err, HM_ERR_MISMATCH, file, name,
                       "its target is of type %s; only floating-point tensors can hold a blend",
                       hm_dtype_name(target->dtype));
    hm_tensor_info *bound = &live->bound[i];
    *bound = (hm_tensor_info){.dtype = target->dtype, .ndim = target->ndim};
    memcpy(bound->shape, target->shape, sizeof bound->shape);
    hm_strided_measure(bound); /* fits: a file's header has this shape, and fp8 … f64 were allowed for there */
    /* Not the caller's text: it must live as long as the hyper-model, which has it in its header. */
    bound->name = hm_live_part_of(stored->name) != NULL ? hm_live_part_of(stored->name) : stored->name;
    return HM_OK;
}

static hm_status refuse_twins(const char *const *names, size_t count, hm_error *err)
{
    const char **sorted = hm_alloc(count, sizeof *sorted);
    if (sorted == NULL) return hm_fail_memory(err, "tensor names");
    hm_status status = HM_OK;
    if (count > 0) {
        memcpy(sorted, names, count * sizeof *sorted);
        qsort(sorted, count, sizeof *sorted, hm_text_order);
    }
    for (size_t i = 1; status == HM_OK && i < count; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0)
            status = hm_fail(err, HM_ERR_MISMATCH, NULL, sorted[i], "was bound twice");
    hm_release(sorted);
    return status;
}

/* ---- the moved targets ------------------------------------------------------------------------------------------- */

struct place {
    uint64_t offset; /* in the file: of W̃, or of the first part there is */
    uint32_t target;
};

static int file_order(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->target < y->target ? -1 : x->target > y->target;
}

static hm_status index_moved(hm_live *live, struct place *places, hm_error *err)
{
    uint32_t index[HM_STREAM_ROWS];
    for (size_t t = 0; t < live->moved_count; t++) {
        size_t r = 0;
        HM_TRY(hm_stored_index(live->hyper, &live->bound[places[t].target], index, err));
        while (index[r] == HM_ABSENT) r++; /* a direction is there: it moves */
        places[t].offset = live->source[r]->header.tensors[index[r]].offset;
    }
    if (live->moved_count > 0) qsort(places, live->moved_count, sizeof *places, file_order);
    for (size_t t = 0; t < live->moved_count; t++) {
        const hm_tensor_info *bound = &live->bound[places[t].target];
        live->target[t] = places[t].target;
        live->elements[t] = bound->elements;
        live->names[t] = bound->name;
        HM_TRY(hm_stored_index(live->hyper, bound, live->index + t * live->row_count, err));
    }
    return HM_OK;
}

/* What the hyper-model moves beyond the targets: each tensor once, with the first part of it. */
static hm_status add_other_names(hm_live *live, hm_error *err)
{
    const hm_header *header = &live->hyper->file->header;
    const char **bound = hm_alloc(live->moved_count, sizeof *bound);
    if (bound == NULL) return hm_fail_memory(err, "tensor names");
    if (live->moved_count > 0) {
        memcpy(bound, live->names, live->moved_count * sizeof *bound);
        qsort(bound, live->moved_count, sizeof *bound, hm_text_order);
    }
    live->name_count = live->moved_count;
    for (uint32_t i = 0; i < header->count; i++) {
        const char *name = hm_live_part_of(header->tensors[i].name);
        if (name == NULL || bsearch(&name, bound, live->moved_count, sizeof *bound, hm_text_order) != NULL) continue;
        uint32_t first = HM_ABSENT;
        for (size_t k = 0; first == HM_ABSENT && k <= live->hyper->solution.directions; k++)
            first = hm_part_index(live->hyper, k, name);
        if (first == i) live->names[live->name_count++] = name;
    }
    hm_release(bound);
    return HM_OK;
}

hm_status hm_live_name(hm_live *live, const hm_tensor_info *targets, const char *const *names, hm_error *err)
{
    size_t most = live->hyper->file->header.count;
    bool moves = false;
    struct place *places = hm_alloc(live->count, sizeof *places);
    hm_status status = places != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    for (size_t i = 0; status == HM_OK && i < live->count; i++) {
        status = bind_target(live, i, &targets[i], names[i], &moves, err);
        if (status == HM_OK && moves) places[live->moved_count++].target = (uint32_t)i;
    }
    if (status == HM_OK) status = refuse_twins(names, live->count, err);
    if (status == HM_OK) {
        live->target = hm_alloc(live->moved_count, sizeof *live->target);
        live->elements = hm_alloc(live->moved_count, sizeof *live->elements);
        live->index = hm_alloc(live->moved_count * live->row_count, sizeof *live->index);
        live->kept_index = hm_alloc(live->moved_count, sizeof *live->kept_index);
        live->names = hm_alloc(live->moved_count + most, sizeof *live->names);
        if (live->target == NULL || live->elements == NULL || live->index == NULL || live->kept_index == NULL ||
            live->names == NULL)
            status = hm_fail_memory(err, "the list of targets");
    }
    if (status == HM_OK) status = index_moved(live, places, err);
    if (status == HM_OK) status = add_other_names(live, err);
    hm_release(places);
    return status;
}
