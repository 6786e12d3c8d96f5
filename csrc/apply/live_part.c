/* Some targets of a live binding: for hosts that move tensors between the CPU and other devices while they are bound. */
#include <string.h>

#include "apply/live.h"
#include "base/error.h"

/* Copies entry `from` of the tables of moved targets to the end of those of `part`. */
static void take(hm_live *part, const hm_live *live, size_t from)
{
    size_t to = part->moved_count++, rows = live->row_count;
    part->target[to] = live->target[from];
    part->elements[to] = live->elements[from];
    part->kept_index[to] = live->kept_index[from];
    part->names[to] = live->names[from];
    memcpy(part->index + to * rows, live->index + from * rows, rows * sizeof *part->index);
}

hm_status hm_live_part(hm_live **out, const hm_live *live, const hm_tensor_info *targets, size_t count, hm_error *err)
{
    if (count != live->count)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu targets were given, but %zu were bound", count,
                       live->count);
    hm_live *part = hm_alloc(1, sizeof *part);
    if (part == NULL) return hm_fail_memory(err, "a live binding");
    *part = *live;
    part->moved_count = 0;
    part->target = hm_alloc(live->moved_count, sizeof *part->target);
    part->elements = hm_alloc(live->moved_count, sizeof *part->elements);
    part->index = hm_alloc(live->moved_count * live->row_count, sizeof *part->index);
    part->kept_index = hm_alloc(live->moved_count, sizeof *part->kept_index);
    part->names = hm_alloc(live->name_count, sizeof *part->names);
    if (part->target == NULL || part->elements == NULL || part->index == NULL || part->kept_index == NULL ||
        part->names == NULL) {
        hm_live_part_close(part);
        return hm_fail_memory(err, "the list of targets");
    }
    for (size_t t = 0; t < live->moved_count; t++)
        if (targets[live->target[t]].data != NULL) take(part, live, t);
    size_t names = part->moved_count;
    for (size_t t = 0; t < live->name_count; t++)
        if (t >= live->moved_count || targets[live->target[t]].data == NULL) part->names[names++] = live->names[t];
    *out = part;
    return HM_OK;
}

void hm_live_part_close(hm_live *part)
{
    if (part == NULL) return;
    hm_release(part->target);
    hm_release(part->elements);
    hm_release(part->index);
    hm_release(part->kept_index);
    hm_release(part->names);
    hm_release(part);
}
