#include "lowrank/lora_gram.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "lowrank/factor_crew.h"
#include "lowrank/factors.h"

/* Most rank that is multiplied at a time, unless one member has more: two matrices of that size are small against the budget. */
#define RUN_RANK ((size_t)1024)

/* Memory of a worker, kept from one tensor to the next: the system takes longer to give it than it takes to fill it. */
enum { FIRST_RUN = 0, SECOND_RUN, ONE_MEMBER, PRODUCTS, BUFFERS };
struct buffers {
    void *block[BUFFERS];
    size_t bytes[BUFFERS];
};

struct pass {
    struct buffers *buffers; /* [HM_FACTOR_WORKERS] */
    const hm_gram_result *out;
    const hm_gram_spec *spec;
    const size_t *chosen;
    uint64_t kept_bytes; /* what a worker may keep between two tensors */
    uint64_t held_bytes; /* a run of members of one tensor takes at most so many (or is a single one); two are held */
};

static const hm_tensor_info *row_tensor(const hm_gram_spec *spec, size_t row, size_t tensor, uint32_t *index)
{
    const hm_stream_row *r = &spec->rows[row];
    *index = r->index[tensor * r->stride];
    return *index != HM_ABSENT ? &r->source->header.tensors[*index] : NULL;
}

bool hm_factor_gram_fits(const hm_gram_spec *spec, size_t t)
{
    bool any = false, subtract = false;
    uint32_t index;
    if (spec->mean_weights != NULL || spec->measure_reference) return false;
    size_t references[2] = {spec->reference, spec->reference_low};
    for (size_t i = 0; i < 2; i++)
        subtract = subtract || (references[i] != HM_GRAM_NO_REFERENCE && row_tensor(spec, references[i], t, &index) != NULL);
    for (size_t r = 0; r < spec->gram_rows; r++) {
        const hm_tensor_info *tensor = row_tensor(spec, r, t, &index);
        if (tensor == NULL) continue;
        if (tensor->rank == 0 || tensor->ndim < 2 || tensor->elements == 0) return false;
        if (subtract && (spec->plain == NULL || !spec->plain[r]) && !spec->rows[r].source->is_lora) return false;
        any = true;
    }
    return any;
}

uint64_t hm_gram_bytes(const hm_gram_spec *spec, size_t t)
{
    uint64_t bytes = 0;
    uint32_t index;
    for (size_t r = 0; r < spec->row_count; r++) {
        const hm_tensor_info *tensor = row_tensor(spec, r, t, &index);
        if (tensor == NULL) continue;
        bytes += tensor->rank > 0 ? tensor->bytes : tensor->elements * hm_dtype_bytes(tensor->dtype);
    }
    return bytes;
}

/* Room for `bytes`; what was there is lost.  NULL: out of memory. */
static void *room(struct buffers *buffers, int which, size_t bytes)
{
    if (buffers->bytes[which] >= bytes) return buffers->block[which];
    hm_release_pages(buffers->block[which]);
    buffers->block[which] = hm_alloc_pages(bytes);
    buffers->bytes[which] = buffers->block[which] != NULL ? bytes : 0;
    return buffers->block[which];
}

static void give_back(struct buffers *buffers)
{
    for (int b = 0; b < BUFFERS; b++) hm_release_pages(buffers->block[b]);
    *buffers = (struct buffers){0};
}

/* ---- one tensor -------------------------------------------------------------------------------------------------------- */

/* The rows of the pass that have a tensor, and where each one's columns of `up` would begin if all stood side by side. */
struct members {
    size_t rows, columns, count;
    size_t row[2 * HM_MAX_MEMBERS];
    size_t at[2 * HM_MAX_MEMBERS + 1]; /* and the end */
};

/* The factors of members [first, end) side by side: up [rows × rank], down [rank × columns]. */
struct factors {
    size_t first, end, rank;
    double *up, *down;
};

static void list_members(struct members *list, const hm_gram_spec *spec, size_t t)
{
    uint32_t index;
    list->count = list->at[0] = 0;
    for (size_t r = 0; r < spec->gram_rows; r++) {
        const hm_tensor_info *tensor = row_tensor(spec, r, t, &index);
        if (tensor == NULL) continue;
        list->rows = (size_t)tensor->shape[0];
        list->columns = (size_t)(tensor->elements / tensor->shape[0]);
        list->row[list->count++] = r;
        list->at[list->count] = list->at[list->count - 1] + (size_t)tensor->rank;
    }
}

/* The end of a run of members from `first` on of together at most that rank, but at least one. */
static size_t run_end(const struct members *list, size_t first, size_t rank)
{
    size_t end = first + 1;
    while (end < list->count && list->at[end + 1] - list->at[first] <= rank) end++;
    return end;
}

static size_t rank_held(const struct pass *pass, const struct members *list)
{
    uint64_t rank = pass->held_bytes / ((list->rows + list->columns) * sizeof(double));
    return rank < RUN_RANK ? (size_t)rank : RUN_RANK;
}

static uint64_t memory_of(void *user, size_t i)
{
    const struct pass *pass = user;
    struct members list;
    uint64_t most = 0, second = 0; /* two runs are held at a time */
    list_members(&list, pass->spec, pass->chosen[i]);
    for (size_t first = 0, end; first < list.count; first = end) {
        end = run_end(&list, first, rank_held(pass, &list));
        uint64_t rank = list.at[end] - list.at[first], bytes = rank * (list.rows + list.columns + rank) * sizeof(double);
        if (bytes > second) second = bytes;
        if (second > most) {
            uint64_t larger = second;
            second = most;
            most = larger;
        }
    }
    return most + second;
}

static uint64_t bytes_of(void *user, size_t i)
{
    const struct pass *pass = user;
    return hm_gram_bytes(pass->spec, pass->chosen[i]);
}

/* Reads member m and puts it in its place; *finite says whether all its numbers are. */
static hm_status load_member(const struct factors *f, struct buffers *buffers, const struct members *list,
                             const hm_gram_spec *spec, size_t t, size_t m, bool *finite, hm_error *err)
{
    const hm_kernels *kernels = hm_kernels_best();
    size_t rank = list->at[m + 1] - list->at[m], at = list->at[m] - list->at[f->first];
    size_t count = rank * (list->rows + list->columns);
    uint32_t index;
    hm_source *source = spec->rows[list->row[m]].source;
    float *numbers = room(buffers, ONE_MEMBER, count * sizeof *numbers);
    if (numbers == NULL) return hm_fail_memory(err, "factors");
    float *down = numbers + rank * list->rows;
    row_tensor(spec, list->row[m], t, &index);
    hm_status status = hm_product_read(numbers, down, source, index, err);
    for (size_t i = 0; status == HM_OK && *finite && i < count; i += HM_KERNEL_COLUMNS) {
        size_t n = count - i < HM_KERNEL_COLUMNS ? count - i : HM_KERNEL_COLUMNS, bad = kernels->find_nonfinite(numbers + i, n);
        if (bad == n) continue;
        *finite = false;
        if (!spec->allow_nonfinite)
            status = hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), spec->names[t],
                             "its factors hold %s; repair or leave out this model, or use --allow-nonfinite",
                             isnan(numbers[i + bad]) ? "NaN" : "Inf");
    }
    for (size_t row = 0; status == HM_OK && row < list->rows; row++)
        for (size_t k = 0; k < rank; k++) f->up[row * f->rank + at + k] = numbers[row * rank + k];
    double *to = f->down + at * list->columns;
    for (size_t k = 0; status == HM_OK && k < rank * list->columns; k++) to[k] = down[k];
    return status;
}

static hm_status load(struct factors *f, int which, struct buffers *buffers, const struct pass *pass, const struct members *list,
                      size_t t, size_t first, size_t end, bool *finite, hm_error *err)
{
    *f = (struct factors){.first = first, .end = end, .rank = list->at[end] - list->at[first]};
    f->up = room(buffers, which, f->rank * (list->rows + list->columns) * sizeof *f->up);
    if (f->up == NULL) return hm_fail(err, HM_ERR_MEMORY, NULL, pass->spec->names[t], "out of memory (its factors)");
    f->down = f->up + f->rank * list->rows;
    hm_status status = HM_OK;
    for (size_t m = first; status == HM_OK && *finite && m < end; m++)
        status = load_member(f, buffers, list, pass->spec, t, m, finite, err);
    return status;
}

/* Σ over the pairs of columns of members x ≥ y of products[m × n], column-major; of one with itself only the lower triangle is
 * there. */
static double sum_pairs(const struct members *list, const struct factors *f, size_t x, const struct factors *g, size_t y,
                        const double *products)
{
    size_t first = list->at[f->first], second = list->at[g->first];
    double sum = 0;
    for (size_t j = list->at[y] - second; j < list->at[y + 1] - second; j++) {
        const double *column = products + j * f->rank;
        size_t end = list->at[x + 1] - first;
        if (x != y) {
            for (size_t i = list->at[x] - first; i < end; i++) sum += column[i];
            continue;
        }
        double below = 0;
        for (size_t i = j + 1; i < end; i++) below += column[i];
        sum += column[j] + 2 * below;
    }
    return sum;
}

/* All of f with all of g, which comes before it, or is f itself.  In columns `up` is [rank × rows], `down` [columns × rank]. */
static hm_status multiply(const struct members *list, struct buffers *buffers, const hm_blas *blas, const struct factors *f,
                          const struct factors *g, double *triangle, hm_error *err)
{
    size_t m = f->rank, n = g->rank, rows = list->rows, columns = list->columns;
    double *products = room(buffers, PRODUCTS, 2 * m * n * sizeof *products);
    if (products == NULL) return hm_fail_memory(err, "products of factors");
    double *downs = products + m * n;
    if (f == g) {
        blas->syrk_f64('L', 'N', m, rows, 1, f->up, m, 0, products, m);
        blas->syrk_f64('L', 'T', m, columns, 1, f->down, columns, 0, downs, m);
    } else {
        blas->gemm_f64('N', 'T', m, n, rows, 1, f->up, m, g->up, n, 0, products, m);
        blas->gemm_f64('T', 'N', m, n, columns, 1, f->down, columns, g->down, columns, 0, downs, m);
    }
    for (size_t j = 0; j < n; j++) /* above the diagonal of a triangle nothing was written */
        for (size_t i = f == g ? j : 0; i < m; i++) products[j * m + i] *= downs[j * m + i];
    for (size_t x = f->first; x < f->end; x++)
        for (size_t y = g->first; y < g->end && y <= x; y++)
            triangle[HM_TRIANGLE(list->row[x], list->row[y])] = sum_pairs(list, f, x, g, y, products);
    return HM_OK;
}

/* Members [first, end) with themselves and with all before them. */
static hm_status multiply_run(const struct pass *pass, struct buffers *buffers, const struct members *list, const hm_blas *blas,
                              size_t t, size_t first, size_t end, bool *finite, hm_error *err)
{
    struct factors f, g;
    double *triangle = pass->out->grams + t * HM_TRIANGLE(pass->spec->gram_rows, 0);
    hm_status status = load(&f, FIRST_RUN, buffers, pass, list, t, first, end, finite, err);
    if (status == HM_OK && *finite) status = multiply(list, buffers, blas, &f, &f, triangle, err);
    for (size_t y = 0, y_end; status == HM_OK && *finite && y < first; y = y_end) {
        y_end = run_end(list, y, rank_held(pass, list));
        status = load(&g, SECOND_RUN, buffers, pass, list, t, y, y_end, finite, err);
        if (status == HM_OK && *finite) status = multiply(list, buffers, blas, &f, &g, triangle, err);
    }
    return status;
}

static hm_status run(void *user, size_t i, unsigned worker, const hm_blas *blas, hm_error *err)
{
    const struct pass *pass = user;
    size_t t = pass->chosen[i];
    bool finite = true;
    struct members list;
    hm_status status = HM_OK;
    list_members(&list, pass->spec, t);
    for (size_t first = 0, end; status == HM_OK && finite && first < list.count; first = end) {
        end = run_end(&list, first, rank_held(pass, &list));
        status = multiply_run(pass, &pass->buffers[worker], &list, blas, t, first, end, &finite, err);
    }
    pass->out->nonfinite[t] = !finite;
    uint64_t kept = 0;
    for (int b = 0; b < BUFFERS; b++) kept += pass->buffers[worker].bytes[b];
    if (kept > pass->kept_bytes) give_back(&pass->buffers[worker]);
    return status;
}

hm_status hm_factor_gram(const hm_gram_result *out, const hm_gram_spec *spec, const size_t *chosen, size_t count,
                         uint64_t later_bytes, hm_job *job, hm_error *err)
{
    struct pass pass = {.out = out,
                        .spec = spec,
                        .chosen = chosen,
                        .held_bytes = hm_factor_budget(job) / 4,
                        .kept_bytes = hm_factor_budget(job) / hm_factor_threads(job)};
    hm_factor_work work = {.count = count, .memory = memory_of, .bytes = bytes_of, .run = run, .user = &pass,
                           .later_bytes = later_bytes};
    for (size_t r = 0; r < spec->gram_rows; r++) HM_TRY(hm_source_check_unchanged(spec->rows[r].source, err));
    pass.buffers = hm_alloc(HM_FACTOR_WORKERS, sizeof *pass.buffers);
    if (pass.buffers == NULL) return hm_fail_memory(err, "factors");
    hm_status status = hm_factor_crew_run(&work, job, err);
    for (unsigned w = 0; w < HM_FACTOR_WORKERS; w++) give_back(&pass.buffers[w]);
    hm_release(pass.buffers);
    for (size_t r = 0; status == HM_OK && r < spec->gram_rows; r++)
        status = hm_source_check_unchanged(spec->rows[r].source, err);
    return status;
}
