#include "lowrank/difference.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"

static hm_status allocate(hm_difference *out, size_t most, size_t row_count, hm_error *err)
{
    out->name = hm_alloc(most, sizeof *out->name);
    out->like = hm_alloc(most, sizeof *out->like);
    out->rows = hm_alloc(row_count, sizeof *out->rows);
    out->elements = hm_alloc(most, sizeof *out->elements);
    out->index = hm_alloc(most * row_count, sizeof *out->index);
    out->coefficients = hm_alloc(row_count, sizeof *out->coefficients);
    if (out->name == NULL || out->like == NULL || out->rows == NULL || out->elements == NULL || out->index == NULL ||
        out->coefficients == NULL)
        return hm_fail_memory(err, "the list of tensors");
    for (size_t r = 0; r < row_count; r++) out->rows[r] = (hm_stream_row){.index = out->index + r, .stride = row_count};
    out->dense = (hm_dense){.row_count = row_count,
                            .rows = out->rows,
                            .elements = out->elements,
                            .coefficients = out->coefficients,
                            .reference = HM_DENSE_NO_REFERENCE};
    return HM_OK;
}

/* The next entry's places in the rows' sources. */
static uint32_t *add(hm_difference *out, const char *name, const hm_tensor_info *like)
{
    out->name[out->count] = name;
    out->like[out->count] = like;
    out->elements[out->count] = like->elements;
    return out->index + out->count++ * out->dense.row_count;
}

/* ---- opened: the directions lie in the file ----------------------------------------------------------------------------- */

static hm_status of_opened(hm_difference *out, hm_hyper *hyper, const double *at, hm_error *err)
{
    static const char first[] = HM_PREFIX_DIRECTION "1.";
    size_t used[HM_MAX_MEMBERS], count = 0; /* directions that take part, from 0: the others need not be read */
    const hm_source *file = hyper->file;
    for (size_t k = 0; k < hyper->solution.directions; k++)
        if (at[k] != 0) used[count++] = k;
    HM_TRY(allocate(out, file->header.count, count, err));
    for (size_t r = 0; r < count; r++) {
        out->rows[r].source = hyper->file;
        out->coefficients[r] = at[used[r]];
    }
    for (size_t i = 0; i < file->header.count; i++) {
        const char *name = file->header.tensors[i].name;
        if (strncmp(name, first, sizeof first - 1) != 0) continue;
        const char *own = name + sizeof first - 1;
        const hm_tensor_info *like = &file->header.tensors[i];
        uint32_t *row = add(out, own, like);
        for (size_t r = 0; r < count; r++) {
            row[r] = hm_part_index(hyper, used[r] + 1, own);
            /* Opening has compared them with the base's, but a linked base may not have been found. */
            const hm_tensor_info *part = &file->header.tensors[row[r]];
            if (part->ndim != like->ndim || memcmp(part->shape, like->shape, like->ndim * sizeof *like->shape) != 0)
                return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), part->name,
                               "does not have the shape of the first direction");
        }
    }
    return HM_OK;
}

/* ---- solved: the directions are combinations of the inputs ---------------------------------------------------------------- */

/* With differences d_m = W_m − R (R: the base file, model 1 for a mean base, nothing without a base) and
 * b_m = Σ_k at_k a_km:  Σ_k at_k D_k = Σ_m (b_m − ŵ_m Σ_j b_j) d_m, where ŵ = 0 unless the base is the mean. */
static hm_status of_solved(hm_difference *out, hm_hyper *hyper, const double *at, hm_error *err)
{
    const hm_solution *solution = &hyper->solution;
    const hm_plan *plan = hyper->plan;
    size_t members = solution->members, directions = solution->directions;
    HM_TRY(hm_hyper_need_mixtures(hyper, err));
    bool file = hyper->base == HM_BASE_FILE;
    double weights[HM_MAX_MEMBERS] = {0}, sum = 0;
    HM_TRY(allocate(out, plan->count, members + (file ? 1 : 0), err));
    for (size_t m = 0; m < members; m++) {
        out->rows[m].source = plan->sources[m];
        for (size_t k = 0; k < directions; k++) out->coefficients[m] += at[k] * solution->inputs[k * members + m];
        sum += out->coefficients[m];
    }
    if (hyper->base == HM_BASE_MEAN) hm_mean_weights(hyper, weights);
    for (size_t m = 0; m < members; m++) out->coefficients[m] -= weights[m] * sum;
    if (file) out->rows[members].source = plan->base;
    if (hyper->base != HM_BASE_NONE) out->dense.reference = file ? members : 0;
    for (size_t t = 0; t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE || !hyper->moves[t]) continue;
        uint32_t *row = add(out, plan->tensors[t].like->name, plan->tensors[t].like);
        for (size_t m = 0; m < members; m++) row[m] = plan->index[t * members + m];
        if (file) row[members] = plan->base_index[t];
    }
    return HM_OK;
}

hm_status hm_difference_of_blend(hm_difference *out, hm_hyper *hyper, const double *at, hm_error *err)
{
    *out = (hm_difference){.hyper = hm_hyper_keep(hyper), .family = hyper->family};
    hm_status status = hyper->plan != NULL ? of_solved(out, hyper, at, err) : of_opened(out, hyper, at, err);
    out->dense.tensor_count = out->count;
    if (status != HM_OK) hm_difference_clear(out);
    return status;
}

/* ---- two checkpoints ------------------------------------------------------------------------------------------------------ */

static hm_status of_pair(hm_difference *out, hm_source *from, hm_source *to, const hm_selection *selection, hm_error *err)
{
    HM_TRY(hm_plan_make(&out->plan, &to, 1, from, NULL, selection, err));
    const hm_plan *plan = out->plan;
    out->family = plan->family;
    HM_TRY(allocate(out, plan->count, 2, err));
    out->rows[0].source = to;
    out->rows[1].source = from;
    out->coefficients[0] = 1;
    out->dense.reference = 1;
    for (size_t t = 0; t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE) continue;
        uint32_t *row = add(out, plan->tensors[t].like->name, plan->tensors[t].like);
        row[0] = plan->index[t];
        row[1] = plan->base_index[t];
    }
    return HM_OK;
}

hm_status hm_difference_of_pair(hm_difference *out, hm_source *from, hm_source *to, const hm_selection *selection,
                                hm_error *err)
{
    *out = (hm_difference){.family = "unknown"};
    hm_status status = of_pair(out, from, to, selection, err);
    out->dense.tensor_count = out->count;
    if (status != HM_OK) hm_difference_clear(out);
    return status;
}

void hm_difference_clear(hm_difference *difference)
{
    hm_release(difference->name);
    hm_release(difference->like);
    hm_release(difference->rows);
    hm_release(difference->elements);
    hm_release(difference->index);
    hm_release(difference->coefficients);
    hm_plan_free(difference->plan);
    hm_hyper_close(difference->hyper);
    *difference = (hm_difference){0};
}
