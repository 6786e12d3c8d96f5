#include "apply/stored.h"

#include <string.h>

#include "base/error.h"

size_t hm_stored_rows(const hm_hyper *hyper)
{
    return HM_STORED_DIRECTION + hyper->solution.directions;
}

hm_source *hm_stored_source(const hm_hyper *hyper, size_t row)
{
    return row == HM_STORED_BASE && hyper->base_file != NULL ? hyper->base_file : hyper->file;
}

bool hm_stored_moves(const hm_hyper *hyper, const char *name)
{
    for (size_t k = 0; k <= hyper->solution.directions; k++)
        if (hm_part_index(hyper, k, name) != HM_ABSENT) return true;
    return false;
}

hm_status hm_stored_index(const hm_hyper *hyper, const hm_tensor_info *like, uint32_t *index, hm_error *err)
{
    bool has_base = hyper->base != HM_BASE_NONE;
    index[HM_STORED_BASE] = has_base ? hm_source_index(hyper->base_file, like->name) : HM_ABSENT;
    index[HM_STORED_LOW] = hm_part_index(hyper, 0, like->name);
    for (size_t k = 1; k <= hyper->solution.directions; k++)
        index[HM_STORED_DIRECTION + k - 1] = hm_part_index(hyper, k, like->name);
    for (size_t r = 0; r < hm_stored_rows(hyper); r++) {
        if (index[r] == HM_ABSENT) continue;
        const hm_source *source = hm_stored_source(hyper, r);
        const hm_tensor_info *part = &source->header.tensors[index[r]];
        if (part->ndim != like->ndim || memcmp(part->shape, like->shape, like->ndim * sizeof *like->shape) != 0)
            return hm_fail(err, HM_ERR_FORMAT, hm_source_label(source), part->name,
                           "does not have the shape of the tensor it belongs to");
        if (!hm_dtype_is_float(part->dtype))
            return hm_fail(err, HM_ERR_FORMAT, hm_source_label(source), part->name,
                           "is moved by a direction, but is not of a floating-point type");
    }
    return HM_OK;
}
