#include "solve/gram.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "lowrank/lora_gram.h"

struct gram_pass {
    const hm_gram_spec *spec;
    const hm_gram_result *out;
    const hm_kernels *kernels;
    size_t m, triangle;
    size_t first;   /* 1 where row 0 is the reference: its differences are zero and need no arithmetic */
    size_t columns; /* f32 rows of this many numbers fit the cache */
    float mean_weights[2 * HM_MAX_MEMBERS];
    uint64_t *sampled; /* [tensor_count]: columns of which the reference was measured */
};

/* Scratch of a worker, in rows of `columns` f32 numbers. */
struct gram_scratch {
    float *rows;      /* m */
    float *reference; /* 1 */
    float *mean;      /* 2 */
    float *stored;    /* 2: bytes as they would be written, any dtype */
};

/* Results of a cut: the triangle, then this. */
struct gram_tail {
    double rounding;
    double reference; /* Σ R² over the columns that were sampled, and how many those were */
    uint64_t sampled;
    uint64_t nonfinite;
};

static struct gram_scratch scratch_of(const struct gram_pass *pass, void *scratch)
{
    float *base = scratch;
    return (struct gram_scratch){.rows = base,
                                 .reference = base + pass->m * pass->columns,
                                 .mean = base + (pass->m + 1) * pass->columns,
                                 .stored = base + (pass->m + 3) * pass->columns};
}

static size_t cut_bytes(const struct gram_pass *pass)
{
    return pass->triangle * sizeof(double) + sizeof(struct gram_tail);
}

static double *triangle_of(const struct gram_pass *pass, const hm_segment *segment, size_t cut)
{
    return (double *)((unsigned char *)segment->result + cut * cut_bytes(pass));
}

static struct gram_tail *tail_of(const struct gram_pass *pass, double *triangle)
{
    return (struct gram_tail *)(triangle + pass->triangle);
}

/* Fills scratch.reference with columns [at, at + n); false where the pass or this tensor has none. */
static bool load_reference(const struct gram_pass *pass, const hm_piece *piece, size_t at, size_t n,
                           struct gram_scratch scratch)
{
    size_t rows[2] = {pass->spec->reference, pass->spec->reference_low};
    bool loaded = false;
    for (size_t i = 0; i < 2; i++) {
        size_t r = rows[i];
        if (r == HM_GRAM_NO_REFERENCE || piece->raw[r] == NULL) continue;
        hm_dtype dtype = piece->as[r]->dtype;
        const char *from = (const char *)piece->raw[r] + at * hm_dtype_bytes(dtype);
        if (!loaded) {
            pass->kernels->load[dtype](from, scratch.reference, n);
        } else {
            pass->kernels->load[dtype](from, scratch.mean, n);
            pass->kernels->axpy(scratch.reference, 1.0f, scratch.mean, n);
        }
        loaded = true;
    }
    return loaded;
}

static void load_rows(const struct gram_pass *pass, const hm_piece *piece, size_t at, size_t n,
                      struct gram_scratch scratch)
{
    const hm_gram_spec *spec = pass->spec;
    bool subtract = load_reference(pass, piece, at, n, scratch);
    for (size_t i = pass->first; i < pass->m; i++) {
        float *row = scratch.rows + i * pass->columns;
        bool plain = !subtract || (spec->plain != NULL && spec->plain[i]) || spec->rows[i].source->is_lora;
        if (piece->raw[i] == NULL) {
            /* Absent counts as zero; of a model that means: no difference, of a direction: none. */
            memset(row, 0, n * sizeof *row);
            continue;
        }
        hm_dtype dtype = piece->as[i]->dtype;
        const char *from = (const char *)piece->raw[i] + at * hm_dtype_bytes(dtype);
        if (plain)
            pass->kernels->load[dtype](from, row, n);
        else
            pass->kernels->load_sub[dtype](from, scratch.reference, row, n);
    }
}

/* Squared error of storing the mean of these columns. */
static double mean_rounding(const struct gram_pass *pass, hm_dtype dtype, size_t n, struct gram_scratch scratch)
{
    const hm_kernels *kernels = pass->kernels;
    float *mean = scratch.mean, *error = scratch.mean + pass->columns;
    kernels->combine(scratch.rows + pass->first * pass->columns, pass->columns, pass->m - pass->first, n,
                     pass->mean_weights + pass->first, 1, mean, pass->columns);
    kernels->axpy(mean, 1.0f, scratch.reference, n);
    kernels->store[dtype](mean, scratch.stored, n);
    kernels->load_sub[dtype](scratch.stored, mean, error, n);
    return kernels->sum_squares(error, n);
}

/* A sum came out as NaN or Inf.  Either some input holds NaN or Inf: says which and where; or the numbers are so large that
 * their squares leave the f32 range: then *found stays false. */
static hm_status find_culprit(const struct gram_pass *pass, const hm_piece *piece, size_t at, size_t n, float *row,
                              bool *found, hm_error *err)
{
    const hm_gram_spec *spec = pass->spec;
    *found = false;
    for (size_t r = 0; r < spec->row_count; r++) {
        if (piece->raw[r] == NULL) continue;
        hm_dtype dtype = piece->as[r]->dtype;
        pass->kernels->load[dtype]((const char *)piece->raw[r] + at * hm_dtype_bytes(dtype), row, n);
        size_t bad = pass->kernels->find_nonfinite(row, n);
        if (bad == n) continue;
        *found = true;
        if (spec->allow_nonfinite) return HM_OK;
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(spec->rows[r].source), spec->names[piece->tensor],
                       "holds %s at index %llu; repair or leave out this model, or use --allow-nonfinite",
                       isnan(row[bad]) ? "NaN" : "Inf", (unsigned long long)(piece->start + at + bad));
    }
    return HM_OK;
}

/* The same sums in f64, for numbers whose squares leave the f32 range. */
static void gram_in_f64(const float *rows, size_t stride, size_t m, size_t n, double *g)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = 0;
            for (size_t t = 0; t < n; t++) sum += (double)rows[i * stride + t] * (double)rows[j * stride + t];
            g[HM_TRIANGLE(i, j)] += sum;
        }
}

static bool diagonal_is_finite(const double *g, size_t m)
{
    for (size_t i = 0; i < m; i++)
        if (!isfinite(g[HM_TRIANGLE(i, i)])) return false;
    return true;
}

static hm_status gram_work(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch_block,
                           hm_error *err)
{
    struct gram_pass *pass = user;
    struct gram_scratch scratch = scratch_of(pass, scratch_block);
    double here[HM_TRIANGLE(2 * HM_MAX_MEMBERS, 0)];
    size_t first = pass->first, m = pass->m - first, pairs = HM_TRIANGLE(m, 0);
    const float *rows = scratch.rows + first * pass->columns;
    for (size_t at = 0; at < piece->count; at += pass->columns) {
        size_t n = piece->count - at < pass->columns ? piece->count - at : pass->columns;
        double *triangle = triangle_of(pass, segment, (size_t)(piece->offset + at) / HM_STREAM_CUT);
        struct gram_tail *tail = tail_of(pass, triangle);
        load_rows(pass, piece, at, n, scratch);
        memset(here, 0, pairs * sizeof *here);
        pass->kernels->gram(rows, pass->columns, m, n, here);
        if (!diagonal_is_finite(here, m)) {
            bool found;
            HM_TRY(find_culprit(pass, piece, at, n, scratch.mean, &found, err));
            if (found) {
                tail->nonfinite = 1; /* the whole tensor is left out: no matter what the other cuts hold */
                return HM_OK;
            }
            memset(here, 0, pairs * sizeof *here);
            gram_in_f64(rows, pass->columns, m, n, here);
        }
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j <= i; j++) triangle[HM_TRIANGLE(i + first, j + first)] += here[HM_TRIANGLE(i, j)];
        if (pass->spec->mean_weights != NULL)
            tail->rounding += mean_rounding(pass, pass->spec->mean_dtypes[piece->tensor], n, scratch);
        if (pass->spec->measure_reference && tail->sampled == 0 && piece->raw[pass->spec->reference] != NULL) {
            tail->reference = pass->kernels->sum_squares(scratch.reference, n);
            tail->sampled = n;
        }
    }
    return HM_OK;
}

static hm_status gram_commit(void *user, const hm_segment *segment, hm_error *err)
{
    struct gram_pass *pass = user;
    double *sum = pass->out->grams + segment->tensor * pass->triangle;
    (void)err;
    for (size_t cut = 0; cut < hm_stream_cuts(segment->count); cut++) {
        double *triangle = triangle_of(pass, segment, cut);
        const struct gram_tail *tail = tail_of(pass, triangle);
        if (tail->nonfinite != 0) pass->out->nonfinite[segment->tensor] = true;
        for (size_t i = 0; i < pass->triangle; i++) sum[i] += triangle[i];
        pass->out->rounding[segment->tensor] += tail->rounding;
        pass->out->reference[segment->tensor] += tail->reference;
        pass->sampled[segment->tensor] += tail->sampled;
    }
    return HM_OK;
}

static hm_status make_result(hm_gram_result *out, const hm_gram_spec *spec, hm_error *err)
{
    *out = (hm_gram_result){.grams = hm_alloc(spec->tensor_count * HM_TRIANGLE(spec->gram_rows, 0), sizeof(double)),
                            .rounding = hm_alloc(spec->tensor_count, sizeof(double)),
                            .reference = hm_alloc(spec->tensor_count, sizeof(double)),
                            .nonfinite = hm_alloc(spec->tensor_count, sizeof(bool))};
    if (out->grams != NULL && out->rounding != NULL && out->reference != NULL && out->nonfinite != NULL) return HM_OK;
    hm_gram_clear(out);
    return hm_fail_memory(err, "the Gram matrices");
}

static hm_status measure_numbers(hm_gram_result *out, const hm_gram_spec *spec, hm_job *job, hm_error *err)
{
    size_t m = spec->gram_rows, triangle = HM_TRIANGLE(m, 0);
    hm_gram_result result;
    HM_TRY(make_result(&result, spec, err));
    uint64_t *sampled = hm_alloc(spec->tensor_count, sizeof *sampled);
    if (sampled == NULL) {
        hm_gram_clear(&result);
        return hm_fail_memory(err, "the Gram matrices");
    }
    struct gram_pass pass = {.spec = spec,
                             .out = &result,
                             .kernels = hm_kernels_best(),
                             .m = m,
                             .triangle = triangle,
                             .sampled = sampled};
    pass.first = spec->reference == 0 && spec->plain == NULL && m > 1 ? 1 : 0;
    pass.columns = m <= 8 ? HM_KERNEL_COLUMNS : m <= 16 ? HM_KERNEL_COLUMNS / 2 : HM_KERNEL_COLUMNS / 4;
    for (size_t i = 0; spec->mean_weights != NULL && i < m; i++) pass.mean_weights[i] = (float)spec->mean_weights[i];

    hm_stream stream = {.row_count = spec->row_count,
                        .tensor_count = spec->tensor_count,
                        .rows = spec->rows,
                        .elements = spec->elements,
                        .cut_bytes = cut_bytes(&pass),
                        .scratch_bytes = (m + 5) * pass.columns * sizeof(float),
                        .work = gram_work,
                        .commit = gram_commit,
                        .user = &pass};
    hm_status status = hm_stream_run(&stream, job, err);
    for (size_t t = 0; t < spec->tensor_count; t++) {
        if (sampled[t] > 0) result.reference[t] *= (double)spec->elements[t] / (double)sampled[t];
        if (result.nonfinite[t]) {
            memset(result.grams + t * triangle, 0, triangle * sizeof(double));
            result.rounding[t] = result.reference[t] = 0;
        }
    }
    hm_release(sampled);
    if (status != HM_OK) {
        hm_gram_clear(&result);
        return status;
    }
    *out = result;
    return HM_OK;
}

/* ---- some tensors by their factors, the others by their numbers --------------------------------------------------------- */

/* The spec of the tensors rest[count] alone; `index` has room for all rows of them. */
static void narrow(hm_gram_spec *spec, const size_t *rest, size_t count, hm_stream_row *rows, uint32_t *index,
                   uint64_t *elements, const char **names, hm_dtype *dtypes)
{
    const hm_gram_spec all = *spec;
    for (size_t i = 0; i < count; i++) {
        elements[i] = all.elements[rest[i]];
        names[i] = all.names[rest[i]];
        if (all.mean_dtypes != NULL) dtypes[i] = all.mean_dtypes[rest[i]];
        for (size_t r = 0; r < all.row_count; r++)
            index[i * all.row_count + r] = all.rows[r].index[rest[i] * all.rows[r].stride];
    }
    for (size_t r = 0; r < all.row_count; r++)
        rows[r] = (hm_stream_row){.source = all.rows[r].source, .index = index + r, .stride = all.row_count};
    spec->rows = rows;
    spec->tensor_count = count;
    spec->elements = elements;
    spec->names = names;
    if (all.mean_dtypes != NULL) spec->mean_dtypes = dtypes;
}

static hm_status measure_rest(const hm_gram_result *out, const hm_gram_spec *spec, const size_t *rest, size_t count,
                              uint64_t before, hm_job *job, hm_error *err)
{
    size_t triangle = HM_TRIANGLE(spec->gram_rows, 0);
    hm_stream_row rows[HM_STREAM_ROWS];
    uint32_t *index = hm_alloc(count * spec->row_count, sizeof *index);
    uint64_t *elements = hm_alloc(count, sizeof *elements);
    const char **names = hm_alloc(count, sizeof *names);
    hm_dtype *dtypes = hm_alloc(count, sizeof *dtypes);
    hm_gram_spec narrowed = *spec;
    hm_gram_result part = {0};
    hm_status status = index != NULL && elements != NULL && names != NULL && dtypes != NULL
                           ? HM_OK
                           : hm_fail_memory(err, "the list of tensors");
    if (status == HM_OK) {
        hm_second_pass second = {.job = job, .before = before};
        hm_job own = job != NULL ? *job : (hm_job){0};
        if (own.progress != NULL) own.progress = hm_second_progress;
        own.user = &second;
        own.out_direct_bytes = own.out_cached_bytes = 0;
        own.out_seconds = 0;
        narrow(&narrowed, rest, count, rows, index, elements, names, dtypes);
        status = measure_numbers(&part, &narrowed, &own, err);
        if (job != NULL) {
            job->out_direct_bytes += own.out_direct_bytes;
            job->out_cached_bytes += own.out_cached_bytes;
            job->out_seconds += own.out_seconds;
        }
    }
    for (size_t i = 0; status == HM_OK && i < count; i++) {
        memcpy(out->grams + rest[i] * triangle, part.grams + i * triangle, triangle * sizeof *part.grams);
        out->rounding[rest[i]] = part.rounding[i];
        out->reference[rest[i]] = part.reference[i];
        out->nonfinite[rest[i]] = part.nonfinite[i];
    }
    hm_gram_clear(&part);
    hm_release(index);
    hm_release(elements);
    hm_release(names);
    hm_release(dtypes);
    return status;
}

hm_status hm_gram_measure(hm_gram_result *out, const hm_gram_spec *spec, hm_job *job, hm_error *err)
{
    size_t *order = hm_alloc(spec->tensor_count, sizeof *order), factors = 0, rest = 0;
    uint64_t factor_bytes = 0, rest_bytes = 0;
    if (order == NULL) return hm_fail_memory(err, "the list of tensors");
    for (size_t t = 0; t < spec->tensor_count; t++) /* those of factors from the front, the others from the end */
        if (hm_factor_gram_fits(spec, t)) {
            order[factors++] = t;
            factor_bytes += hm_gram_bytes(spec, t);
        } else {
            order[spec->tensor_count - ++rest] = t;
            rest_bytes += hm_gram_bytes(spec, t);
        }
    if (factors == 0) {
        hm_release(order);
        return measure_numbers(out, spec, job, err);
    }
    hm_gram_result result;
    hm_status status = make_result(&result, spec, err);
    if (status == HM_OK) {
        status = hm_factor_gram(&result, spec, order, factors, rest_bytes, job, err);
        if (status == HM_OK && rest > 0) status = measure_rest(&result, spec, order + factors, rest, factor_bytes, job, err);
        for (size_t i = 0; i < factors; i++)
            if (result.nonfinite[order[i]])
                memset(result.grams + order[i] * HM_TRIANGLE(spec->gram_rows, 0), 0,
                       HM_TRIANGLE(spec->gram_rows, 0) * sizeof *result.grams);
    }
    hm_release(order);
    if (status == HM_OK)
        *out = result;
    else
        hm_gram_clear(&result);
    return status;
}

void hm_gram_clear(hm_gram_result *result)
{
    hm_release(result->grams);
    hm_release(result->rounding);
    hm_release(result->reference);
    hm_release(result->nonfinite);
    *result = (hm_gram_result){0};
}

void hm_gram_sum(const hm_gram_result *result, size_t tensor_count, size_t m, const unsigned *pick, unsigned which,
                 double *full)
{
    memset(full, 0, m * m * sizeof *full);
    size_t triangle = HM_TRIANGLE(m, 0);
    for (size_t t = 0; t < tensor_count; t++) {
        if (pick != NULL && pick[t] != which) continue;
        const double *part = result->grams + t * triangle;
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j <= i; j++) full[i * m + j] += part[HM_TRIANGLE(i, j)];
    }
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < i; j++) full[j * m + i] = full[i * m + j];
}
