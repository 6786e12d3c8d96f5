/* hm_recover: the mixture of known parents that best explains a checkpoint. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "io/header_write.h"
#include "lowrank/lora_read.h"
#include "solve/questions.h"
#include "solve/solution.h"

/* The last row of `gram` ((n + 1) × (n + 1)) is X. */
static hm_status solve_mixture(const double *gram, size_t n, bool free_sum, double *weights, double *rest, hm_error *err)
{
    double parents[HM_MAX_MEMBERS * HM_MAX_MEMBERS], right[HM_MAX_MEMBERS];
    size_t m = n + 1;
    for (size_t i = 0; i < n; i++) {
        right[i] = gram[i * m + n];
        for (size_t j = 0; j < n; j++) parents[i * n + j] = gram[i * m + j];
    }
    double square = gram[n * m + n];
    return free_sum ? hm_least_squares(parents, n, right, square, weights, rest, err)
                    : hm_least_squares_affine(parents, n, right, square, weights, rest, err);
}

/* ‖X − mean of the parents‖². */
static double square_about_mean(const double *gram, size_t n)
{
    size_t m = n + 1;
    double square = gram[n * m + n], count = (double)n;
    for (size_t i = 0; i < n; i++) {
        square -= 2 * gram[i * m + n] / count;
        for (size_t j = 0; j < n; j++) square += gram[i * m + j] / (count * count);
    }
    return fmax(square, 0);
}

static void put_residual(hm_text *text, double rest, double square)
{
    hm_text_put(text, ",\"residual\":");
    hm_json_number(text, square > 0 ? sqrt(rest / square) : 0);
}

static hm_status put_blocks(hm_text *text, const hm_plan *plan, const double *blocks, bool free_sum, hm_error *err)
{
    size_t n = plan->source_count - 1, m = n + 1;
    double weights[HM_MAX_MEMBERS], rest;
    bool any = false;
    hm_text_put(text, ",\"blocks\":{");
    for (size_t b = 0; b < plan->block_count; b++) {
        const double *gram = blocks + b * m * m;
        double trace = 0;
        for (size_t i = 0; i < m; i++) trace += gram[i * m + i];
        if (trace <= 0) continue; /* nothing to tell the parents apart by */
        HM_TRY(solve_mixture(gram, n, free_sum, weights, &rest, err));
        if (any) hm_text_put(text, ",");
        any = true;
        hm_json_string(text, plan->block_names[b]);
        hm_text_put(text, ":{");
        hm_put_vector(text, "weights", weights, n);
        put_residual(text, rest, square_about_mean(gram, n));
        hm_text_put(text, "}");
    }
    hm_text_put(text, "}");
    return HM_OK;
}

static hm_status answer(hm_text *text, const hm_plan *plan, const double *total, const double *blocks, bool free_sum,
                        hm_error *err)
{
    size_t n = plan->source_count - 1;
    double weights[HM_MAX_MEMBERS], rest;
    HM_TRY(solve_mixture(total, n, free_sum, weights, &rest, err));
    hm_text_put(text, "{\"name\":");
    hm_json_string(text, hm_source_name(plan->sources[n]));
    hm_text_put(text, ",\"parents\":[");
    for (size_t i = 0; i < n; i++) {
        if (i > 0) hm_text_put(text, ",");
        hm_json_string(text, hm_source_name(plan->sources[i]));
    }
    hm_text_put(text, "]");
    hm_put_vector(text, "weights", weights, n);
    put_residual(text, rest, square_about_mean(total, n));
    hm_text_put(text, ",\"rms\":");
    hm_json_number(text, plan->merged_elements > 0 ? sqrt(rest / (double)plan->merged_elements) : 0);
    if (blocks != NULL) HM_TRY(put_blocks(text, plan, blocks, free_sum, err));
    hm_text_put(text, "}");
    return HM_OK;
}

hm_status hm_recover(hm_source *x, hm_source *const *parents, size_t count, const hm_recover_options *options,
                     char **out_json, hm_job *job, hm_error *err)
{
    static const hm_recover_options defaults = {0};
    if (options == NULL) options = &defaults;
    if (count < 1 || count >= HM_MAX_MEMBERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu parents were given; recover takes 1 to %d", count,
                       HM_MAX_MEMBERS - 1);
    for (size_t i = 0; i < count; i++)
        if (x == NULL || parents[i] == NULL) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a model is missing");
    hm_source *all[HM_MAX_MEMBERS], *read[HM_MAX_MEMBERS];
    memcpy(all, parents, count * sizeof *all);
    all[count] = x;
    hm_plan *plan = NULL;
    HM_TRY(hm_lora_read_all(read, all, count + 1, NULL, false, err));
    hm_status planned = hm_plan_make(&plan, read, count + 1, NULL, read[0], &options->selection, err);
    for (size_t i = 0; i <= count; i++) hm_source_close(read[i]);
    HM_TRY(planned);
    size_t square = (count + 1) * (count + 1);
    double *total = hm_alloc(square, sizeof(double));
    double *blocks = options->blocks ? hm_alloc(plan->block_count * square, sizeof(double)) : NULL;
    hm_status status = HM_OK;
    if (total == NULL || (options->blocks && blocks == NULL)) status = hm_fail_memory(err, "the Gram matrix");
    /* With weights that sum to 1 only differences count, so the first parent is subtracted; without, nothing may be. */
    if (status == HM_OK)
        status = hm_measure_plan(plan, !options->free_sum, options->selection.allow_nonfinite, total, blocks, NULL, job,
                                 err);
    if (status == HM_OK) {
        hm_text text = {0};
        status = answer(&text, plan, total, blocks, options->free_sum, err);
        if (status == HM_OK)
            status = hm_give_text(&text, out_json, err);
        else
            hm_text_clear(&text);
    }
    hm_release(total);
    hm_release(blocks);
    hm_plan_free(plan);
    return status;
}
