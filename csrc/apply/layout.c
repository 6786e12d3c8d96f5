#include "apply/layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "lowrank/hyper_lora.h"

static int pass_order(const void *a, const void *b)
{
    const hm_layout_tensor *first = a, *second = b;
    hm_tensor_info x = {.name = first->like->name, .dtype = first->dtype};
    hm_tensor_info y = {.name = second->like->name, .dtype = second->dtype};
    return hm_tensor_usual_order(&x, &y);
}

/* The tensors of the pass: all that are written or that move. */
static hm_status list_tensors(hm_layout *out, const hm_hyper *hyper, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    out->tensors = hm_alloc(plan->count, sizeof *out->tensors);
    if (out->tensors == NULL) return hm_fail_memory(err, "the layout of a file");
    for (size_t t = 0; t < plan->count; t++) {
        const hm_plan_tensor *tensor = &plan->tensors[t];
        bool merged = tensor->action == HM_ACTION_MERGE;
        if (hyper->base == HM_BASE_FILE && !(merged && hyper->moves[t])) continue; /* it is in the base file */
        hm_dtype dtype = merged ? hm_output_dtype(tensor->like, hyper->dtype) : tensor->like->dtype;
        if (merged && strlen(tensor->like->name) > HM_LONGEST_MOVED_NAME)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, tensor->like->name,
                           "the tensor's name is too long to be a direction's; leave it out with --exclude");
        out->tensors[out->count++] = (hm_layout_tensor){.plan_index = t,
                                                        .like = tensor->like,
                                                        .dtype = dtype,
                                                        .fine_dtype = hm_fine_dtype(dtype),
                                                        .merged = merged,
                                                        .moves = merged && hyper->moves[t],
                                                        .base_at = HM_NOWHERE,
                                                        .low_at = HM_NOWHERE,
                                                        .direction_at = HM_NOWHERE};
    }
    qsort(out->tensors, out->count, sizeof *out->tensors, pass_order);
    return HM_OK;
}

static hm_tensor_info tensor_like(const hm_tensor_info *like, const char *name, hm_dtype dtype)
{
    hm_tensor_info tensor = *like;
    tensor.name = name;
    tensor.dtype = dtype;
    tensor.bytes = like->elements * hm_dtype_bytes(dtype);
    tensor.data = NULL;
    return tensor;
}

static hm_status list_base(hm_layout *out, const hm_hyper *hyper, hm_error *err)
{
    out->base = hm_alloc(out->count, sizeof *out->base);
    if (out->base == NULL) return hm_fail_memory(err, "the layout of a file");
    if (hyper->base == HM_BASE_FILE) return HM_OK;
    for (size_t i = 0; i < out->count; i++) {
        hm_layout_tensor *tensor = &out->tensors[i];
        if (hyper->base == HM_BASE_NONE && tensor->merged) continue;
        tensor->base_at = (uint32_t)out->base_count;
        out->base[out->base_count++] = tensor_like(tensor->like, tensor->like->name, tensor->dtype);
    }
    return HM_OK;
}

/* An entry of `extra` before sorting: which tensor, and 0 for base_low or the number of the direction. */
struct entry {
    hm_tensor_info info;
    size_t tensor, direction;
    bool down; /* the second factor of that direction */
};

static int entry_order(const void *a, const void *b)
{
    return hm_tensor_usual_order(&((const struct entry *)a)->info, &((const struct entry *)b)->info);
}

/* A mean of equal models in their own type is exact, and an f32 mean has nothing left over. */
static bool stores_low(const hm_layout *layout, const hm_layout_tensor *tensor)
{
    return layout->with_low && tensor->merged && hm_dtype_bytes(tensor->dtype) < 4 &&
           (tensor->moves || tensor->like->dtype != tensor->dtype);
}

/* The factors of a tensor's directions, and whole ones, under the names that they have already. */
static size_t add_parts(struct entry *entries, const hm_hyper_loras *loras, const hm_layout_tensor *tensor, size_t i)
{
    size_t n = 0;
    for (size_t k = 0; k < loras->directions; k++) {
        const hm_hyper_lora_part *part = &loras->parts[tensor->part_at + k];
        entries[n++] = (struct entry){.info = *part->stored_up, .tensor = i, .direction = k + 1};
        if (part->stored_down != NULL)
            entries[n++] = (struct entry){.info = *part->stored_down, .tensor = i, .direction = k + 1, .down = true};
    }
    return n;
}

static size_t make_entries(hm_layout *out, const hm_hyper_loras *loras, struct entry *entries, char *names)
{
    size_t n = 0;
    for (size_t i = 0; i < out->count; i++) {
        const hm_layout_tensor *tensor = &out->tensors[i];
        size_t length = strlen(tensor->like->name), last = tensor->moves && loras == NULL ? out->directions : 0;
        if (tensor->moves && loras != NULL) n += add_parts(entries + n, loras, tensor, i);
        for (size_t k = stores_low(out, tensor) ? 0 : 1; k <= last; k++) {
            char *name = names;
            size_t room = strlen(HM_PREFIX_DIRECTION) + 24 + length;
            int written = k == 0 ? snprintf(name, room, HM_PREFIX_BASE_LOW "%s", tensor->like->name)
                                 : snprintf(name, room, HM_PREFIX_DIRECTION "%zu.%s", k, tensor->like->name);
            names += (size_t)written + 1;
            entries[n++] = (struct entry){
                .info = tensor_like(tensor->like, name, tensor->fine_dtype), .tensor = i, .direction = k};
        }
    }
    return n;
}

/* The plan's tensors are in one order, those of the layout in another. */
static void find_parts(hm_layout *out, const hm_hyper_loras *loras)
{
    for (size_t i = 0; i < out->count; i++) {
        size_t low = 0, high = loras->count;
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (loras->plan_index[middle] < out->tensors[i].plan_index)
                low = middle + 1;
            else
                high = middle;
        }
        out->tensors[i].part_at = low * loras->directions; /* means something where the tensor moves */
    }
}

static hm_status list_extra(hm_layout *out, const hm_hyper_loras *loras, bool split, hm_error *err)
{
    size_t most = 0, names = 0;
    for (size_t i = 0; i < out->count; i++)
        if (out->tensors[i].merged) {
            most += (loras != NULL ? 2 : 1) * out->directions + 1;
            names += (out->directions + 1) * (strlen(out->tensors[i].like->name) + strlen(HM_PREFIX_DIRECTION) + 24);
        }
    struct entry *entries = hm_alloc(most, sizeof *entries);
    out->extra = hm_alloc(most + 1, sizeof *out->extra);
    out->order = hm_alloc(out->count * (out->directions + 1), sizeof *out->order);
    out->down_order = hm_alloc(out->count * (out->directions + 1), sizeof *out->down_order);
    out->names = hm_alloc(names, 1);
    if (entries == NULL || out->extra == NULL || out->order == NULL ||
        out->down_order == NULL || out->names == NULL) {
        hm_release(entries);
        return hm_fail_memory(err, "the layout of a file");
    }
    if (loras != NULL) find_parts(out, loras);
    for (size_t i = 0; i < out->count * (out->directions + 1); i++) out->down_order[i] = HM_NOWHERE;
    size_t count = make_entries(out, loras, entries, out->names);
    qsort(entries, count, sizeof *entries, entry_order);

    /* Readers that map the file want every tensor at a multiple of its element size.  Within each area the order by size
     * sees to that; between W̃ and the directions a few bytes may be missing. */
    uint64_t base_bytes = 0;
    for (size_t i = 0; i < out->base_count && !split; i++) base_bytes += out->base[i].bytes;
    size_t size = count > 0 ? hm_dtype_bytes(entries[0].info.dtype) : 1, pad = (size_t)((size - base_bytes % size) % size);
    if (pad > 0)
        out->extra[out->extra_count++] = (hm_tensor_info){
            .name = HM_PREFIX "pad", .dtype = HM_U8, .ndim = 1, .shape = {pad}, .elements = pad, .bytes = pad};
    for (size_t i = 0; i < count; i++) {
        uint32_t at = (uint32_t)out->extra_count;
        hm_layout_tensor *tensor = &out->tensors[entries[i].tensor];
        out->extra[out->extra_count++] = entries[i].info;
        if (entries[i].direction == 0) {
            tensor->low_at = at;
        } else {
            tensor->direction_at = (uint32_t)(entries[i].tensor * out->directions);
            (entries[i].down ? out->down_order : out->order)[tensor->direction_at + entries[i].direction - 1] = at;
        }
    }
    hm_release(entries);
    return HM_OK;
}

hm_status hm_layout_make(hm_layout *out, const hm_hyper *hyper, bool with_low, bool split, hm_error *err)
{
    *out = (hm_layout){.directions = hyper->solution.directions, .with_low = with_low};
    hm_status status = list_tensors(out, hyper, err);
    if (status == HM_OK) status = list_base(out, hyper, err);
    if (status == HM_OK) status = list_extra(out, hyper->loras, split, err);
    if (status != HM_OK) hm_layout_clear(out);
    return status;
}

void hm_layout_clear(hm_layout *layout)
{
    hm_release(layout->tensors);
    hm_release(layout->base);
    hm_release(layout->extra);
    hm_release(layout->order);
    hm_release(layout->down_order);
    hm_release(layout->names);
    *layout = (hm_layout){0};
}
