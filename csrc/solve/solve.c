/* hm_solve: align, measure, find the directions.  One read of every input. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "kernels/kernels.h"
#include "lowrank/lora_read.h"
#include "lowrank/hyper_lora.h"
#include "solve/gram.h"
#include "solve/hyper.h"

/* Rows, lengths and names of the merged tensors of a plan, as a measuring pass wants them. */
struct merged_view {
    size_t count;
    size_t *plan_index;  /* [count] */
    uint32_t *index;     /* [count × (source_count + 1)]: sources, then base */
    uint64_t *elements;
    const char **names;
    hm_dtype *dtypes;    /* under which the mean would be stored */
    unsigned *blocks;
};

static void merged_clear(struct merged_view *view)
{
    hm_release(view->plan_index);
    hm_release(view->index);
    hm_release(view->elements);
    hm_release(view->names);
    hm_release(view->dtypes);
    hm_release(view->blocks);
}

static hm_status merged_make(struct merged_view *view, const hm_plan *plan, hm_dtype asked, hm_error *err)
{
    size_t n = plan->merged_count, columns = plan->source_count + 1;
    *view = (struct merged_view){.plan_index = hm_alloc(n, sizeof(size_t)),
                                 .index = hm_alloc(n * columns, sizeof(uint32_t)),
                                 .elements = hm_alloc(n, sizeof(uint64_t)),
                                 .names = hm_alloc(n, sizeof(char *)),
                                 .dtypes = hm_alloc(n, sizeof(hm_dtype)),
                                 .blocks = hm_alloc(n, sizeof(unsigned))};
    if (view->plan_index == NULL || view->index == NULL || view->elements == NULL || view->names == NULL ||
        view->dtypes == NULL || view->blocks == NULL) {
        merged_clear(view);
        return hm_fail_memory(err, "the list of tensors");
    }
    for (size_t t = 0; t < plan->count; t++) {
        const hm_plan_tensor *tensor = &plan->tensors[t];
        if (tensor->action != HM_ACTION_MERGE) continue;
        size_t i = view->count++;
        view->plan_index[i] = t;
        memcpy(view->index + i * columns, plan->index + t * plan->source_count, plan->source_count * sizeof(uint32_t));
        view->index[i * columns + plan->source_count] = plan->base_index[t];
        view->elements[i] = tensor->like->elements;
        view->names[i] = tensor->like->name;
        view->dtypes[i] = hm_output_dtype(tensor->like, asked);
        view->blocks[i] = tensor->block;
    }
    return HM_OK;
}

static hm_status measure(hm_gram_result *out, const hm_hyper *hyper, const struct merged_view *view, bool allow_nonfinite,
                         hm_job *job, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    size_t members = plan->source_count, columns = members + 1;
    hm_stream_row rows[HM_MAX_MEMBERS + 1];
    double mean_weights[HM_MAX_MEMBERS];
    for (size_t m = 0; m < members; m++)
        rows[m] = (hm_stream_row){.source = plan->sources[m], .index = view->index + m, .stride = columns};
    hm_gram_spec spec = {.row_count = members,
                         .rows = rows,
                         .gram_rows = members,
                         .reference = HM_GRAM_NO_REFERENCE,
                         .reference_low = HM_GRAM_NO_REFERENCE,
                         .tensor_count = view->count,
                         .elements = view->elements,
                         .names = view->names,
                         .allow_nonfinite = allow_nonfinite};
    if (hyper->base == HM_BASE_FILE) {
        rows[members] = (hm_stream_row){.source = plan->base, .index = view->index + members, .stride = columns};
        spec.row_count = members + 1;
        spec.reference = members;
    } else if (hyper->base == HM_BASE_MEAN) {
        hm_mean_weights(hyper, mean_weights);
        spec.reference = 0;
        spec.mean_weights = mean_weights;
        spec.mean_dtypes = view->dtypes;
    }
    return hm_gram_measure(out, &spec, job, err);
}

/* Block Grams, total Gram, the tensors that move; all about the base. */
static hm_status collect(hm_hyper *hyper, const struct merged_view *view, const hm_gram_result *grams, hm_error *err)
{
    hm_plan *plan = hyper->plan;
    size_t members = plan->source_count, triangle = HM_TRIANGLE(members, 0);
    hyper->gram = hm_alloc(members * members, sizeof(double));
    hyper->moves = hm_alloc(plan->count, sizeof(bool));
    hyper->blocks = hm_alloc(plan->block_count, sizeof *hyper->blocks);
    if (hyper->gram == NULL || hyper->moves == NULL || hyper->blocks == NULL) return hm_fail_memory(err, "the solution");

    for (size_t i = 0; i < view->count; i++) {
        const double *part = grams->grams + i * triangle;
        double trace = 0;
        for (size_t m = 0; m < members; m++) trace += part[HM_TRIANGLE(m, m)];
        /* Without a base even a tensor that is zero everywhere needs a direction: nothing else would write it. */
        hyper->moves[view->plan_index[i]] = (trace > 0 || hyper->base == HM_BASE_NONE) && !grams->nonfinite[i];
        hyper->rounding += grams->rounding[i];
        if (grams->nonfinite[i] && plan->carrier->is_lora)
            return hm_fail(err, HM_ERR_MISMATCH, NULL, view->names[i],
                           "holds NaN or Inf in one of the LoRAs, and without a base there is nothing to copy instead");
        if (grams->nonfinite[i]) {
            hm_plan_copy_instead(plan, view->plan_index[i]);
            HM_TRY(hm_plan_note(plan, err, "%s: holds NaN or Inf, copied from %s", view->names[i],
                                hm_source_name(plan->carrier)));
        }
    }
    for (size_t b = 0; b < plan->block_count; b++) {
        hm_block_share *block = &hyper->blocks[hyper->block_count];
        double *gram = hm_alloc(members * members, sizeof(double));
        if (gram == NULL) return hm_fail_memory(err, "the solution");
        hm_gram_sum(grams, view->count, members, view->blocks, (unsigned)b, gram);
        if (hyper->base == HM_BASE_MEAN) hm_gram_centre(gram, members, hyper->weights);
        for (size_t i = 0; i < members * members; i++) hyper->gram[i] += gram[i];
        double trace = 0;
        for (size_t m = 0; m < members; m++) trace += gram[m * members + m];
        block->name = hm_copy_text(plan->block_names[b]);
        if (trace <= 0 || block->name == NULL) { /* nothing merged there, or no difference */
            hm_release(gram);
            hm_release(block->name);
            if (trace > 0) return hm_fail_memory(err, "the solution");
            block->name = NULL;
            continue;
        }
        block->gram = gram;
        block->component = plan->block_components[b];
        hyper->block_count++;
    }
    return HM_OK;
}

static hm_status copy_globs(char ***out, size_t *out_count, const char *const *globs, size_t count, hm_error *err)
{
    *out = hm_alloc(count, sizeof **out);
    if (*out == NULL) return hm_fail_memory(err, "the globs");
    for (*out_count = 0; *out_count < count; (*out_count)++)
        if (((*out)[*out_count] = hm_copy_text(globs[*out_count])) == NULL) return hm_fail_memory(err, "the globs");
    return HM_OK;
}

static hm_status list_unmoved(hm_hyper *hyper, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    hyper->unmoved = hm_alloc(plan->count, sizeof *hyper->unmoved);
    if (hyper->unmoved == NULL) return hm_fail_memory(err, "a list of names");
    for (size_t t = 0; t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE || hyper->moves[t]) continue;
        char *name = hm_copy_text(plan->tensors[t].like->name);
        if (name == NULL) return hm_fail_memory(err, "a list of names");
        hyper->unmoved[hyper->unmoved_count++] = name;
    }
    qsort(hyper->unmoved, hyper->unmoved_count, sizeof *hyper->unmoved, hm_text_order);
    return HM_OK;
}

static hm_status copy_weights(hm_hyper *hyper, const double *weights, size_t members, hm_error *err)
{
    double sum = 0;
    for (size_t m = 0; m < members; m++) {
        if (!isfinite(weights[m]) || weights[m] <= 0)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "weight %zu is %g; every weight must be a number above 0", m + 1,
                           weights[m]);
        sum += weights[m];
    }
    hyper->weights = hm_alloc(members, sizeof(double));
    if (hyper->weights == NULL) return hm_fail_memory(err, "the weights");
    if (!isfinite(sum)) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the weights are too large");
    for (size_t m = 0; m < members; m++) hyper->weights[m] = weights[m] * (double)members / sum;
    return HM_OK;
}

static hm_status describe_members(hm_hyper *hyper, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    hyper->members = hm_alloc(plan->source_count, sizeof *hyper->members);
    hyper->family = hm_copy_text(plan->family);
    if (hyper->members == NULL || hyper->family == NULL) return hm_fail_memory(err, "the members");
    hyper->solution.members = plan->source_count; /* what hm_hyper_close goes by, should anything fail from here on */
    for (size_t m = 0; m < plan->source_count; m++) {
        const hm_source *source = plan->sources[m];
        hyper->members[m].name = hm_copy_text(hm_source_name(source));
        if (hyper->members[m].name == NULL) return hm_fail_memory(err, "the members");
        hyper->members[m].is_lora = source->is_lora;
        memcpy(hyper->members[m].header_hash, source->header_hash, sizeof source->header_hash);
        memcpy(hyper->members[m].sha256, source->sha256, sizeof source->sha256);
    }
    if (hyper->base == HM_BASE_FILE) {
        const char *slash = plan->base->path != NULL ? strrchr(plan->base->path, '/') : NULL;
        hyper->base_name = hm_copy_text(slash != NULL ? slash + 1 : hm_source_name(plan->base));
        if (hyper->base_name == NULL) return hm_fail_memory(err, "the members");
        memcpy(hyper->base_header_hash, plan->base->header_hash, sizeof hyper->base_header_hash);
        memcpy(hyper->base_sha256, plan->base->sha256, sizeof hyper->base_sha256);
        hyper->base_bytes = plan->base->stamp.size;
    }
    return HM_OK;
}

static hm_status check_options(hm_source *const *sources, size_t count, const hm_solve_options *options, hm_error *err)
{
    if (count == 0) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "no models were given");
    if (count > HM_MAX_MEMBERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu models were given, at most %d can be merged at a time", count,
                       HM_MAX_MEMBERS);
    for (size_t i = 0; i < count; i++)
        if (sources[i] == NULL) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "model %zu is missing", i + 1);
    if ((options->base == HM_BASE_FILE) != (options->base_source != NULL))
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a base file goes with base \"file\" and with no other");
    if (options->directions > count || options->rank_count > count)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu directions asked for, but %zu model%s differ along at most %zu",
                       options->rank_count > 0 ? options->rank_count : options->directions, count, count == 1 ? "" : "s",
                       options->base == HM_BASE_MEAN ? count - 1 : count);
    if (options->rank_count > 0 && options->method != HM_EXACT)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "ranks and the method als exclude one another");
    if (options->rank_count > 0 && options->directions > 0 && options->directions != options->rank_count)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu ranks were given for %u directions", options->rank_count,
                       options->directions);
    if (options->carrier >= count)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "carrier %u of %zu models does not exist", options->carrier + 1, count);
    if (options->dtype != HM_DTYPE_KEEP && !hm_dtype_is_float(options->dtype))
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the output type must be a floating-point type");
    return HM_OK;
}

/* LoRAs take part as differences: from the base file, or, all of them LoRAs, from zero. */
static hm_status make_plan(hm_hyper *hyper, hm_source *const *sources, size_t count, const hm_solve_options *options,
                           hm_error *err)
{
    hm_source *read[HM_MAX_MEMBERS], *base = options->base_source;
    HM_TRY(hm_lora_read_all(read, sources, count, base, options->selection.common, err));
    hm_status status = HM_OK;
    hm_source *carrier = base != NULL ? base : read[options->carrier];
    if (base == NULL && carrier->is_lora && options->base == HM_BASE_MEAN)
        status = hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(carrier), NULL,
                         "is a LoRA, like all inputs: give the checkpoint that they are for as --base, or --base none; what they "
                         "are taken from is not their mean");
    if (status == HM_OK) status = hm_plan_make(&hyper->plan, read, count, base, carrier, &options->selection, err);
    for (size_t i = 0; i < count && status == HM_OK; i++)
        if (read[i]->lora_lacking > 0)
            status = hm_plan_note(hyper->plan, err, "%zu layer%s of %.120s that %.120s lacks, left out (the first is %.200s)",
                                  read[i]->lora_lacking, read[i]->lora_lacking == 1 ? "" : "s",
                                  hm_source_short_label(read[i]), hm_source_short_label(base), read[i]->lora_first_lacking);
    for (size_t i = 0; i < count; i++) hm_source_close(read[i]);
    return status;
}

static hm_status solve_into(hm_hyper *hyper, hm_source *const *sources, size_t count, const hm_solve_options *options,
                            hm_job *job, hm_error *err)
{
    hyper->base = options->base;
    hyper->dtype = options->dtype;
    hyper->common = options->selection.common;
    hyper->allow_nonfinite = options->selection.allow_nonfinite;
    if (options->weights != NULL) HM_TRY(copy_weights(hyper, options->weights, count, err));
    HM_TRY(copy_globs(&hyper->include, &hyper->include_count, options->selection.include, options->selection.includes, err));
    HM_TRY(copy_globs(&hyper->exclude, &hyper->exclude_count, options->selection.exclude, options->selection.excludes, err));
    HM_TRY(make_plan(hyper, sources, count, options, err));
    HM_TRY(describe_members(hyper, err));

    struct merged_view view;
    HM_TRY(merged_make(&view, hyper->plan, options->dtype, err));
    hm_gram_result grams = {0};
    hm_status status = measure(&grams, hyper, &view, options->selection.allow_nonfinite, job, err);
    if (status == HM_OK) status = collect(hyper, &view, &grams, err);
    hm_gram_clear(&grams);
    merged_clear(&view);
    if (status == HM_OK) status = list_unmoved(hyper, err);
    HM_TRY(status);
    hm_solution found = {0};
    unsigned directions = options->rank_count > 0 ? (unsigned)options->rank_count : options->directions;
    HM_TRY(hm_solution_find(&found, hyper->gram, count, hyper->weights, directions, options->method, err));
    hyper->solution = found;
    return options->rank_count > 0 ? hm_hyper_lora_find(hyper, options, job, err) : HM_OK;
}

hm_status hm_solve(hm_hyper **out, hm_source *const *sources, size_t count, const hm_solve_options *options, hm_job *job,
                   hm_error *err)
{
    static const hm_solve_options defaults = {.dtype = HM_DTYPE_KEEP};
    if (options == NULL) options = &defaults;
    HM_TRY(check_options(sources, count, options, err));
    hm_hyper *hyper = hm_alloc(1, sizeof *hyper);
    if (hyper == NULL) return hm_fail_memory(err, "a hyper-model");
    atomic_init(&hyper->references, 1);
    hm_status status = solve_into(hyper, sources, count, options, job, err);
    if (status == HM_OK)
        *out = hyper;
    else
        hm_hyper_close(hyper);
    return status;
}
