/* The search: one direction after the other, then all of them together: LoRAs, multipliers, LoRAs … until the loss hardly
 * falls. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "lowrank/hyper_lora_search.h"

#define MOST_PASSES 24u        /* for all directions together, or for the only one */
#define MOST_PASSES_FOR_ONE 6u
#define FALL 2e-4              /* a pass that takes less than this share off the loss has hardly helped; two of them end it */
#define FALL_OF_ONE 1e-4       /* the same while directions are found one by one, where one such pass is enough */
#define FALL_OF_THE_ONLY 1e-7  /* nothing comes after it */
#define NOTHING_LEFT 1e-9      /* a loss below this share of the total is rounding */
#define ROUNDING 1e-7          /* share of the total by which rounding can let the loss seem to rise or fall */
#define BETA 0.9               /* see hyper_lora.h: how far beyond the best multipliers the next LoRAs are sought */

/* ---- what the passes read --------------------------------------------------------------------------------------------- */

static hm_status make_rows(hm_hyper_search *s, hm_error *err)
{
    const hm_hyper_loras *loras = s->loras;
    const hm_plan *plan = s->hyper->plan;
    size_t members = s->members, directions = s->directions, count = loras->count;
    s->row_count = members + directions + (s->hyper->base == HM_BASE_FILE ? 1 : 0);
    s->rows = hm_alloc(s->row_count, sizeof *s->rows);
    s->index = hm_alloc(count * s->row_count, sizeof *s->index);
    s->elements = hm_alloc(count, sizeof *s->elements);
    s->names = hm_alloc(count, sizeof *s->names);
    s->blocks = hm_alloc(count, sizeof *s->blocks);
    if (s->rows == NULL || s->index == NULL || s->elements == NULL || s->names == NULL || s->blocks == NULL)
        return hm_fail_memory(err, "the list of tensors");
    for (size_t r = 0; r < s->row_count; r++) {
        hm_source *source = r < members ? plan->sources[r] : r < members + directions ? loras->source : plan->base;
        s->rows[r] = (hm_stream_row){.source = source, .index = s->index + r, .stride = s->row_count};
    }
    for (size_t t = 0; t < count; t++) {
        size_t at = loras->plan_index[t];
        uint32_t *index = s->index + t * s->row_count;
        memcpy(index, plan->index + at * members, members * sizeof *index);
        for (size_t k = 0; k < directions; k++) index[members + k] = loras->parts[t * directions + k].index;
        if (s->row_count > members + directions) index[members + directions] = plan->base_index[at];
        s->elements[t] = plan->tensors[at].like->elements;
        s->names[t] = plan->tensors[at].like->name;
        s->blocks[t] = plan->tensors[at].block;
    }
    return HM_OK;
}

/* The caller's job for one more pass; what it tells is added to his afterwards. */
static hm_job next_job(const hm_hyper_search *s)
{
    hm_job job = s->job != NULL ? *s->job : (hm_job){0};
    job.out_direct_bytes = job.out_cached_bytes = job.out_total_bytes = 0;
    job.out_seconds = 0;
    return job;
}

static void add_job(hm_hyper_search *s, const hm_job *job)
{
    if (s->job == NULL) return;
    s->job->out_direct_bytes += job->out_direct_bytes;
    s->job->out_cached_bytes += job->out_cached_bytes;
    s->job->out_total_bytes = job->out_total_bytes;
    s->job->out_seconds += job->out_seconds;
}

/* ---- LoRAs, given the multipliers --------------------------------------------------------------------------------------- */

/* Differences are from R: the base file, input 1 for a mean base, nothing without a base.  With a mean base ΔW_m = d_m −
 * Σ_j ŵ_j d_j, so P_k = Σ_m (w_m c_mk − ŵ_m Σ_j w_j c_jk) d_m. */
static void fill_combinations(const hm_hyper_search *s, size_t row_count, double *combine)
{
    double mean[HM_MAX_MEMBERS] = {0};
    if (s->hyper->base == HM_BASE_MEAN) hm_mean_weights(s->hyper, mean);
    for (size_t k = 0; k < s->directions; k++) {
        double sum = 0;
        for (size_t m = 0; m < s->members; m++) sum += s->weights[m] * s->multipliers[m * s->directions + k];
        for (size_t m = 0; m < s->members; m++)
            combine[k * row_count + m] = s->weights[m] * s->multipliers[m * s->directions + k] - mean[m] * sum;
    }
}

/* `only`: as in hm_hyper_lora_step. */
static hm_status improve_loras(hm_hyper_search *s, size_t only, hm_error *err)
{
    size_t members = s->members, directions = s->directions;
    bool file = s->hyper->base == HM_BASE_FILE;
    hm_stream_row rows[HM_MAX_MEMBERS + 1];
    size_t row_count = members + (file ? 1 : 0);
    memcpy(rows, s->rows, members * sizeof *rows);
    if (file) rows[members] = s->rows[members + directions];
    double *normal = hm_alloc(directions * (directions + row_count), sizeof *normal);
    if (normal == NULL) return hm_fail_memory(err, "the normal equations");
    for (size_t i = 0; i < directions; i++)
        for (size_t j = 0; j < directions; j++)
            for (size_t m = 0; m < members; m++)
                normal[i * directions + j] +=
                    s->weights[m] * s->multipliers[m * directions + i] * s->multipliers[m * directions + j];
    double *combine = normal + directions * directions;
    fill_combinations(s, row_count, combine);
    hm_dense dense = {.row_count = row_count,
                      .tensor_count = s->loras->count,
                      .rows = rows,
                      .elements = s->elements,
                      .reference = s->hyper->base == HM_BASE_NONE ? HM_DENSE_NO_REFERENCE : file ? members : 0};
    hm_hyper_lora_step step = {.loras = s->loras,
                               .blas = s->blas,
                               .normal = normal,
                               .dense = &dense,
                               .combine = combine,
                               .pass = s->passes,
                               .only = only};
    hm_job job = next_job(s);
    hm_status status = hm_hyper_lora_improve(&step, &job, err);
    add_job(s, &job);
    hm_release(normal);
    return status;
}

/* ---- multipliers, given the LoRAs --------------------------------------------------------------------------------------- */

void hm_hyper_search_products(const hm_hyper_search *s, const double *full, double *gram, double *along)
{
    size_t members = s->members, directions = s->directions, n = members + directions;
    double mean[HM_MAX_MEMBERS] = {0};
    if (s->hyper->base == HM_BASE_MEAN) hm_mean_weights(s->hyper, mean);
    for (size_t k = 0; k < directions; k++) {
        double centre = 0;
        for (size_t m = 0; m < members; m++) centre += mean[m] * full[m * n + members + k];
        for (size_t m = 0; m < members; m++) along[m * directions + k] = full[m * n + members + k] - centre;
        for (size_t j = 0; j < directions; j++) gram[j * directions + k] = full[(members + j) * n + members + k];
    }
}

static hm_status measure(hm_hyper_search *s, hm_error *err)
{
    size_t members = s->members, n = members + s->directions;
    bool plain[2 * HM_MAX_MEMBERS] = {false};
    for (size_t i = members; i < n; i++) plain[i] = true;
    hm_gram_spec spec = {.row_count = s->row_count,
                         .rows = s->rows,
                         .gram_rows = n,
                         .reference = s->hyper->base == HM_BASE_MEAN   ? 0
                                      : s->hyper->base == HM_BASE_FILE ? n
                                                                       : HM_GRAM_NO_REFERENCE,
                         .reference_low = HM_GRAM_NO_REFERENCE,
                         .plain = plain,
                         .tensor_count = s->loras->count,
                         .elements = s->elements,
                         .names = s->names};
    double *full = hm_alloc(n * n, sizeof *full);
    if (full == NULL) return hm_fail_memory(err, "the Gram matrix");
    hm_gram_clear(&s->grams);
    hm_job job = next_job(s);
    hm_status status = hm_gram_measure(&s->grams, &spec, &job, err);
    add_job(s, &job);
    if (status == HM_OK) {
        hm_gram_sum(&s->grams, s->loras->count, n, NULL, 0, full);
        hm_hyper_search_products(s, full, s->loras->gram, s->along);
    }
    hm_release(full);
    return status;
}

double hm_hyper_search_left(const double *gram, const double *along, const double *c, size_t directions, double square)
{
    for (size_t k = 0; k < directions; k++) {
        double other = 0;
        for (size_t j = 0; j < directions; j++) other += gram[k * directions + j] * c[j];
        square += c[k] * (other - 2 * along[k]);
    }
    return square > 0 ? square : 0;
}

double hm_hyper_search_square(const hm_hyper_search *s, size_t m)
{
    return s->hyper->gram[m * s->members + m];
}

static double loss_at(const hm_hyper_search *s, const double *multipliers)
{
    double loss = 0;
    for (size_t m = 0; m < s->members; m++)
        loss += s->weights[m] * hm_hyper_search_left(s->loras->gram, s->along + m * s->directions,
                                                     multipliers + m * s->directions, s->directions,
                                                     hm_hyper_search_square(s, m));
    return loss;
}

/* The best multipliers of all directions, or of direction `only` beside the others as they are. */
static hm_status fit_multipliers(hm_hyper_search *s, size_t only, hm_error *err)
{
    size_t directions = s->directions;
    const double *gram = s->loras->gram;
    memcpy(s->previous, s->multipliers, s->members * directions * sizeof *s->previous);
    for (size_t m = 0; m < s->members; m++) {
        double *c = s->multipliers + m * directions, *b = s->along + m * directions, rest;
        if (only == HM_HYPER_LORA_ALL) {
            HM_TRY(hm_least_squares(gram, directions, b, hm_hyper_search_square(s, m), c, &rest, err));
            continue;
        }
        const double *a = gram + only * directions;
        rest = b[only];
        for (size_t j = 0; j < directions; j++)
            if (j != only) rest -= a[j] * c[j];
        c[only] = a[only] > 0 ? rest / a[only] : 0;
    }
    return HM_OK;
}

/* The next LoRAs are sought beyond the best multipliers. */
static void go_beyond(hm_hyper_search *s)
{
    for (size_t i = 0; i < s->members * s->directions; i++)
        s->multipliers[i] += BETA * (s->multipliers[i] - s->previous[i]);
}

/* ---- the search --------------------------------------------------------------------------------------------------------- */

static bool any_factors(const hm_hyper_loras *loras)
{
    for (size_t i = 0; i < loras->count * loras->directions; i++)
        if (loras->parts[i].rank > 0) return true;
    return false;
}

/* Where rounding lets the loss seem to rise, that is kept out of the record. */
static void record(hm_hyper_search *s, double loss)
{
    hm_hyper_loras *loras = s->loras;
    double least = loras->loss_count > 0 ? loras->losses[loras->loss_count - 1] : INFINITY;
    loras->losses[loras->loss_count++] = loss < least ? loss : least;
}

/* One pass: new LoRAs of all directions or of `only` one, measured, recorded, and the best multipliers for them.  *loss:
 * with those. */
static hm_status make_pass(hm_hyper_search *s, size_t only, double *loss, hm_error *err)
{
    const hm_solve_options *options = s->options;
    HM_TRY(improve_loras(s, only, err));
    HM_TRY(measure(s, err));
    record(s, loss_at(s, s->multipliers));
    HM_TRY(fit_multipliers(s, only, err));
    *loss = loss_at(s, s->multipliers);
    s->passes++;
    if (options->pass != NULL && options->pass(options->pass_user, s->passes, *loss, s->total) != 0)
        return hm_fail(err, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    return HM_OK;
}

/* Multipliers of direction k along which the directions before it leave most, the largest +1: the first eigenvector of the
 * Gram matrix of √w_m (ΔW_m − Σ_j c_mj L_j). */
static hm_status begin_direction(hm_hyper_search *s, size_t k, hm_error *err)
{
    size_t members = s->members, directions = s->directions;
    double *rest = hm_alloc(2 * members * members + members, sizeof *rest);
    if (rest == NULL) return hm_fail_memory(err, "the Gram matrix");
    double *vectors = rest + members * members;
    for (size_t m = 0; m < members; m++)
        for (size_t n = 0; n < members; n++) {
            const double *cm = s->multipliers + m * directions, *cn = s->multipliers + n * directions;
            double value = s->hyper->gram[m * members + n];
            for (size_t j = 0; j < k; j++) {
                value -= cm[j] * s->along[n * directions + j] + cn[j] * s->along[m * directions + j];
                for (size_t i = 0; i < k; i++) value += cm[j] * s->loras->gram[j * directions + i] * cn[i];
            }
            rest[m * members + n] = sqrt(s->weights[m] * s->weights[n]) * value;
        }
    hm_jacobi(rest, members, vectors + members * members, vectors);
    double largest = 0;
    for (size_t m = 0; m < members; m++) {
        double c = vectors[m * members] / sqrt(s->weights[m]);
        s->multipliers[m * directions + k] = c;
        if (fabs(c) > fabs(largest)) largest = c;
    }
    for (size_t m = 0; m < members; m++) s->multipliers[m * directions + k] /= largest;
    hm_release(rest);
    return HM_OK;
}

static bool nothing_left(const hm_hyper_search *s, double loss)
{
    return loss <= NOTHING_LEFT * s->total;
}

/* One direction after the other in what those before it leave, which stay as they are. */
static hm_status deflate(hm_hyper_search *s, double *loss, hm_error *err)
{
    bool only_one = s->directions == 1;
    unsigned most = !any_factors(s->loras) ? 1 : only_one ? MOST_PASSES : MOST_PASSES_FOR_ONE;
    for (size_t k = 0; k < s->directions; k++) {
        HM_TRY(begin_direction(s, k, err));
        for (unsigned pass = 0; pass < most; pass++) {
            double before = *loss;
            if (pass > 0) go_beyond(s);
            HM_TRY(make_pass(s, k, loss, err));
            bool hardly = before - *loss <= (only_one ? FALL_OF_THE_ONLY : FALL_OF_ONE) * *loss;
            if ((pass > 0 && hardly) || nothing_left(s, *loss)) break;
        }
    }
    return HM_OK;
}

/* Alternates over all directions, whose best multipliers there are, until the loss hardly falls.  What deflation found can be
 * nearly a saddle, from where the falls begin small and grow: as long as they do, it is not at rest. */
static hm_status alternate(hm_hyper_search *s, double *loss, hm_error *err)
{
    double fall = INFINITY;
    unsigned small_falls = 0, wanted = any_factors(s->loras) ? 2 : 1;
    for (unsigned pass = 0; pass < MOST_PASSES && !nothing_left(s, *loss); pass++) {
        double before = *loss, last = fall;
        go_beyond(s);
        HM_TRY(make_pass(s, HM_HYPER_LORA_ALL, loss, err));
        fall = before - *loss;
        small_falls = fall <= FALL * *loss ? small_falls + 1 : 0;
        if (small_falls >= wanted && (fall <= last || fall <= ROUNDING * s->total)) break;
    }
    return HM_OK;
}

static hm_status find_all(hm_hyper_search *s, hm_error *err)
{
    double loss = s->total;
    size_t most = s->directions * MOST_PASSES_FOR_ONE + MOST_PASSES + 1;
    s->loras->losses = hm_alloc(most, sizeof *s->loras->losses);
    if (s->loras->losses == NULL) return hm_fail_memory(err, "the losses");
    HM_TRY(deflate(s, &loss, err));
    if (s->directions > 1) {
        HM_TRY(fit_multipliers(s, HM_HYPER_LORA_ALL, err));
        loss = loss_at(s, s->multipliers);
        HM_TRY(alternate(s, &loss, err));
    }
    record(s, loss);
    return HM_OK;
}

/* ---- the call ---------------------------------------------------------------------------------------------------------------- */

static hm_status search_all(hm_hyper_search *s, hm_error *err)
{
    size_t numbers = s->members * s->directions;
    for (size_t m = 0; m < s->members; m++) {
        s->weights[m] = s->hyper->weights != NULL ? s->hyper->weights[m] : 1;
        s->total += s->weights[m] * hm_hyper_search_square(s, m);
    }
    s->multipliers = hm_alloc(numbers, sizeof(double));
    s->previous = hm_alloc(numbers, sizeof(double));
    s->along = hm_alloc(numbers, sizeof(double));
    if (s->multipliers == NULL || s->previous == NULL || s->along == NULL) return hm_fail_memory(err, "the multipliers");
    HM_TRY(make_rows(s, err));
    HM_TRY(find_all(s, err));
    return hm_hyper_search_conclude(s, err);
}

hm_status hm_hyper_lora_find(hm_hyper *hyper, const hm_solve_options *options, hm_job *job, hm_error *err)
{
    hm_hyper_search s = {.hyper = hyper,
                         .options = options,
                         .members = hyper->solution.members,
                         .directions = hyper->solution.directions,
                         .job = job};
    for (size_t k = 0; k < s.directions; k++)
        if (options->ranks[k] == 0) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the rank of a hyper-LoRA is at least 1");
    HM_TRY(hm_hyper_loras_make(&hyper->loras, hyper, options->ranks, err));
    hyper->ranked = true;
    s.loras = hyper->loras;
    hm_status status = hm_blas_begin(&s.blas, err);
    if (status == HM_OK) {
        status = search_all(&s, err);
        hm_blas_end();
    }
    hm_gram_clear(&s.grams);
    hm_release(s.rows);
    hm_release(s.index);
    hm_release(s.elements);
    hm_release(s.names);
    hm_release(s.blocks);
    hm_release(s.multipliers);
    hm_release(s.previous);
    hm_release(s.along);
    return status;
}
