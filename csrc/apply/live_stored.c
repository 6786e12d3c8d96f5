/* What a hyper-model stores, tensor by tensor and as numbers: for hosts that blend by other means than hm_live_set. */
#include <string.h>

#include "apply/live.h"
#include "base/error.h"
#include "lowrank/expand.h"
#include "model/product.h"

static hm_status need_file(const hm_hyper *hyper, hm_error *err)
{
    if (hyper->file == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the hyper-model is not saved yet; save it first, then bind");
    return hm_hyper_need_base(hyper, err);
}

static hm_status describe(hm_stored_tensor *out, const hm_hyper *hyper, const hm_tensor_info *like, hm_error *err)
{
    uint32_t index[HM_STORED_DIRECTION + HM_MAX_MEMBERS];
    *out = (hm_stored_tensor){.name = like->name, .ndim = like->ndim, .moves = hm_stored_moves(hyper, like->name)};
    memcpy(out->shape, like->shape, sizeof out->shape);
    if (!out->moves) return HM_OK;
    HM_TRY(hm_stored_index(hyper, like, index, err));
    for (size_t r = 0; r < hm_stored_rows(hyper); r++) {
        out->rows[r] = HM_DTYPE_KEEP;
        if (index[r] == HM_ABSENT) continue;
        const hm_tensor_info *row = &hm_stored_source(hyper, r)->header.tensors[index[r]];
        out->rows[r] = row->dtype;
        out->ranks[r] = row->rank;
    }
    return HM_OK;
}

/* T, when this entry of the file is the first direction of a tensor T that has no base value; else NULL. */
static const char *only_moved(const hm_hyper *hyper, const hm_source *base, uint32_t entry)
{
    const char *name = hm_live_part_of(hyper->file->header.tensors[entry].name);
    if (name == NULL || hm_source_find(base, name) != NULL) return NULL;
    uint32_t first = HM_ABSENT;
    for (size_t k = 1; first == HM_ABSENT && k <= hyper->solution.directions; k++) first = hm_part_index(hyper, k, name);
    return first == entry ? name : NULL;
}

static hm_status describe_all(hm_stored_tensor *out, size_t *count, const hm_hyper *hyper, hm_error *err)
{
    const hm_source *base = hm_stored_source(hyper, HM_STORED_BASE);
    for (uint32_t i = 0; i < base->header.count; i++) {
        const hm_tensor_info *tensor = &base->header.tensors[i];
        if (strncmp(tensor->name, HM_PREFIX, strlen(HM_PREFIX)) != 0)
            HM_TRY(describe(&out[(*count)++], hyper, tensor, err));
    }
    for (uint32_t i = 0; i < hyper->file->header.count; i++) {
        hm_tensor_info tensor = hyper->file->header.tensors[i];
        tensor.name = only_moved(hyper, base, i);
        if (tensor.name != NULL) HM_TRY(describe(&out[(*count)++], hyper, &tensor, err));
    }
    return HM_OK;
}

hm_status hm_hyper_stored(hm_hyper *hyper, hm_stored_tensor **out, size_t *count, hm_error *err)
{
    HM_TRY(need_file(hyper, err));
    size_t most = hm_stored_source(hyper, HM_STORED_BASE)->header.count + hyper->file->header.count, found = 0;
    hm_stored_tensor *tensors = hm_alloc(most, sizeof *tensors);
    if (tensors == NULL) return hm_fail_memory(err, "the list of tensors");
    hm_status status = describe_all(tensors, &found, hyper, err);
    if (status != HM_OK) {
        hm_release(tensors);
        return status;
    }
    *out = tensors;
    *count = found;
    return HM_OK;
}

static uint32_t index_of_row(const hm_hyper *hyper, const char *name, size_t row)
{
    if (row >= hm_stored_rows(hyper)) return HM_ABSENT;
    if (row != HM_STORED_BASE) return hm_part_index(hyper, row - HM_STORED_LOW, name); /* 0: base_low */
    return hyper->base_file != NULL ? hm_source_index(hyper->base_file, name) : HM_ABSENT;
}

hm_status hm_hyper_read(hm_hyper *hyper, const char *name, size_t row, uint64_t start, uint64_t count, void *out,
                        hm_error *err)
{
    HM_TRY(need_file(hyper, err));
    uint32_t index = index_of_row(hyper, name, row);
    if (index == HM_ABSENT) return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "row %zu is not stored", row);
    const hm_source *source = hm_stored_source(hyper, row);
    const hm_tensor_info *tensor = &source->header.tensors[index];
    if (start > tensor->elements || count > tensor->elements - start)
        return hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(source), name, "has no such elements");
    if (tensor->rank > 0)
        HM_TRY(hm_expand_alone(out, source, index, start, count, err));
    else
        HM_TRY(hm_source_read(source, tensor, start, (size_t)count, out, err));
    return hm_source_check_unchanged(source, err);
}

hm_status hm_hyper_read_factors(hm_hyper *hyper, const char *name, size_t row, float *up, float *down, hm_error *err)
{
    HM_TRY(need_file(hyper, err));
    uint32_t index = index_of_row(hyper, name, row);
    const hm_source *source = index != HM_ABSENT ? hm_stored_source(hyper, row) : NULL;
    if (source == NULL || source->header.tensors[index].rank == 0)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, name, "row %zu is not kept as factors", row);
    HM_TRY(hm_factor_read(up, source, hm_source_up(source, index), err));
    HM_TRY(hm_factor_read(down, source, hm_source_down(source, index), err));
    return hm_source_check_unchanged(source, err);
}
