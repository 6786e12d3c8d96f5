#include "lowrank/lora_save.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apply/output.h"
#include "apply/recipe.h"
#include "base/error.h"
#include "kernels/kernels.h"
#include "lowrank/factor_crew.h"
#include "lowrank/factors.h"
#include "model/product.h"

#define BAND_ELEMENTS ((size_t)1 << 20) /* of all directions together, multiplied out at a time */
#define COLUMNS ((size_t)HM_KERNEL_COLUMNS)
#define NAME_ROOM 64u /* for what stands around a tensor's name in those of its directions */

/* One tensor that moves. */
struct moved {
    size_t plan_index;
    const hm_tensor_info *like;
    size_t rows, columns, rank; /* rank: of all products together */
    size_t at[HM_MAX_MEMBERS];  /* where a member's columns begin, if it has products here */
    bool factors;               /* stored so */
    hm_dtype dtype, down_dtype; /* of full directions; of lower factors */
};

struct pass {
    hm_hyper *hyper;
    const hm_plan *plan;
    const hm_kernels *kernels;
    size_t members, directions, count;
    struct moved *tensors;
    hm_output out;
    hm_tensor_info *infos; /* in file order; while being sorted their `offset` says what they are */
    size_t info_count;
    char *names;
    uint32_t *place;       /* [count × K × 2]: index in infos of a direction, or of its upper and its lower factor */
    double *errors;        /* [count × (M + K) × K]: ⟨L_m, e_k⟩, ⟨e_j, e_k⟩; e_k is what rounding takes from direction k */
};

bool hm_lora_save_fits(const hm_hyper *hyper)
{
    if (hyper->plan == NULL || hyper->loras != NULL || hyper->base == HM_BASE_MEAN) return false;
    for (size_t m = 0; m < hyper->plan->source_count; m++)
        if (!hyper->plan->sources[m]->is_lora) return false;
    return true;
}

/* ---- what is to be stored -------------------------------------------------------------------------------------------- */

static const hm_tensor_info *member_tensor(const struct pass *pass, const struct moved *t, size_t m, uint32_t *index)
{
    *index = pass->plan->index[t->plan_index * pass->members + m];
    return *index != HM_ABSENT ? &pass->plan->sources[m]->header.tensors[*index] : NULL;
}

/* The type in which the lower factors of two files are both exact. */
static hm_dtype wider(hm_dtype a, hm_dtype b)
{
    if (a == HM_F64 || b == HM_F64) return HM_F32; /* what is computed with */
    if (a == b || b == HM_DTYPE_KEEP) return a == HM_F8_E4M3 || a == HM_F8_E5M2 ? HM_F16 : a;
    return a == HM_DTYPE_KEEP ? wider(b, b) : HM_F32;
}

static void describe(const struct pass *pass, struct moved *t)
{
    uint32_t index;
    bool products = t->like->ndim > 1;
    t->down_dtype = HM_DTYPE_KEEP;
    t->rows = t->like->ndim > 0 ? (size_t)t->like->shape[0] : 1;
    t->columns = (size_t)t->like->elements / t->rows;
    for (size_t m = 0; m < pass->members; m++) {
        const hm_tensor_info *tensor = member_tensor(pass, t, m, &index);
        const hm_source *source = pass->plan->sources[m];
        t->at[m] = t->rank;
        if (tensor == NULL) continue;
        products = products && tensor->rank > 0;
        if (tensor->rank == 0) continue;
        t->rank += (size_t)tensor->rank;
        const hm_product *product = hm_source_product(source, index);
        for (uint32_t p = 0; p < product->count; p++) {
            const hm_factor_pair *pair = &source->pairs[product->first + p];
            hm_dtype dtype = pair->down == HM_ABSENT || pair->mid != HM_ABSENT ? HM_F32 : source->stored[pair->down].dtype;
            t->down_dtype = wider(t->down_dtype, dtype);
        }
    }
    hm_dtype asked = pass->hyper->dtype;
    if (t->like->rank > 0 && asked == HM_DTYPE_KEEP && t->down_dtype != HM_DTYPE_KEEP) asked = t->down_dtype; /* no base's type */
    t->dtype = hm_fine_dtype(hm_output_dtype(t->like, asked));
    t->factors = products && t->rank > 0 && t->rows <= INT32_MAX && t->columns <= INT32_MAX &&
                 t->rank * (t->rows * sizeof(float) + t->columns * hm_dtype_bytes(t->down_dtype)) <
                     t->rows * t->columns * hm_dtype_bytes(t->dtype);
}

static void add_info(struct pass *pass, const struct moved *t, size_t k, const char *ending, hm_dtype dtype, size_t which)
{
    char *name = pass->names;
    size_t room = strlen(t->like->name) + NAME_ROOM;
    pass->names += snprintf(name, room, HM_PREFIX_DIRECTION "%zu.%s%s", k + 1, t->like->name, ending) + 1;
    hm_tensor_info *info = &pass->infos[pass->info_count];
    *info = (hm_tensor_info){.name = name, .dtype = dtype, .ndim = t->like->ndim, .offset = which, .elements = 1};
    for (unsigned d = 0; d < info->ndim; d++) info->shape[d] = t->like->shape[d];
    if (t->factors && which % 2 == 0) {
        for (unsigned d = 1; d < info->ndim; d++) info->shape[d] = d == 1 ? t->rank : 1;
    } else if (t->factors) {
        info->shape[0] = t->rank;
    }
    for (unsigned d = 0; d < info->ndim; d++) info->elements *= info->shape[d];
    info->bytes = info->elements * hm_dtype_bytes(dtype);
    pass->info_count++;
}

/* Zeros, without a base, are said to move, but there may be no direction at all. */
static bool is_moved(const struct pass *pass, size_t t)
{
    return pass->plan->tensors[t].action == HM_ACTION_MERGE && pass->hyper->moves[t] && pass->directions > 0;
}

static hm_status lay_out(struct pass *pass, char **names, hm_error *err)
{
    size_t directions = pass->directions, name_bytes = 0;
    for (size_t t = 0; t < pass->plan->count; t++) {
        const hm_plan_tensor *tensor = &pass->plan->tensors[t];
        if (!is_moved(pass, t)) continue;
        if (strlen(tensor->like->name) > HM_LONGEST_MOVED_NAME)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, tensor->like->name,
                           "the tensor's name is too long to be a direction's; leave it out with --exclude");
        name_bytes += 2 * directions * (strlen(tensor->like->name) + NAME_ROOM);
        pass->count++;
    }
    pass->tensors = hm_alloc(pass->count, sizeof *pass->tensors);
    pass->infos = hm_alloc(2 * pass->count * directions, sizeof *pass->infos);
    pass->place = hm_alloc(2 * pass->count * directions, sizeof *pass->place);
    pass->errors = hm_alloc(pass->count * (pass->members + directions), directions * sizeof *pass->errors);
    pass->names = *names = hm_alloc(name_bytes, 1);
    if (pass->tensors == NULL || pass->infos == NULL || pass->place == NULL || pass->errors == NULL || *names == NULL)
        return hm_fail_memory(err, "the layout of a file");
    for (size_t t = 0, i = 0; t < pass->plan->count; t++) {
        const hm_plan_tensor *tensor = &pass->plan->tensors[t];
        if (!is_moved(pass, t)) continue;
        struct moved *moved = &pass->tensors[i];
        *moved = (struct moved){.plan_index = t, .like = tensor->like};
        describe(pass, moved);
        for (size_t k = 0; k < directions; k++) {
            size_t which = 2 * (i * directions + k);
            add_info(pass, moved, k, moved->factors ? ".lora_up" : "", moved->factors ? HM_F32 : moved->dtype, which);
            if (moved->factors) add_info(pass, moved, k, ".lora_down", moved->down_dtype, which + 1);
        }
        i++;
    }
    qsort(pass->infos, pass->info_count, sizeof *pass->infos, hm_tensor_usual_order);
    for (size_t i = 0; i < pass->info_count; i++) pass->place[pass->infos[i].offset] = (uint32_t)i;
    return HM_OK;
}

/* ---- one tensor ------------------------------------------------------------------------------------------------------ */

/* What a worker holds of one: factors of all members side by side, scales in `up`. */
struct held {
    const struct moved *tensor;
    size_t number;
    float *up, *down;   /* [rows × rank], [rank × columns] */
    float *scaled;      /* [rows of a band × rank] */
    float *numbers;     /* [K × band] */
    float *whole, *products;
    unsigned char *stored;
    size_t band_rows;
};

static size_t band_rows(const struct pass *pass, const struct moved *t)
{
    if (t->factors) return t->rows;
    size_t rows = BAND_ELEMENTS / (t->columns * pass->directions);
    return rows < 1 ? 1 : rows < t->rows ? rows : t->rows;
}

static uint64_t memory_of(void *user, size_t i)
{
    const struct pass *pass = user;
    const struct moved *t = &pass->tensors[i];
    uint64_t band = band_rows(pass, t), numbers = t->factors ? 0 : pass->directions + 2;
    return (t->rank * (t->rows + t->columns + 2 * band) + band * t->columns * numbers) * sizeof(float);
}

static uint64_t bytes_of(void *user, size_t i)
{
    const struct pass *pass = user;
    uint64_t bytes = 0;
    uint32_t index;
    for (size_t m = 0; m < pass->members; m++) {
        const hm_tensor_info *tensor = member_tensor(pass, &pass->tensors[i], m, &index);
        bytes += tensor != NULL ? tensor->bytes : 0;
    }
    return bytes;
}

static hm_status load(struct pass *pass, struct held *held, hm_error *err)
{
    const struct moved *t = held->tensor;
    uint32_t index;
    for (size_t m = 0; m < pass->members; m++) {
        const hm_tensor_info *tensor = member_tensor(pass, t, m, &index);
        if (tensor == NULL || tensor->rank == 0) continue;
        size_t rank = (size_t)tensor->rank;
        float *up = hm_alloc(t->rows * rank, sizeof *up);
        if (up == NULL) return hm_fail_memory(err, "factors");
        hm_status status = hm_product_read(up, held->down + t->at[m] * t->columns, pass->plan->sources[m], index, err);
        for (size_t row = 0; status == HM_OK && row < t->rows; row++)
            memcpy(held->up + row * t->rank + t->at[m], up + row * rank, rank * sizeof *up);
        hm_release(up);
        HM_TRY(status);
    }
    return HM_OK;
}

/* Rows [row, row + count) of the upper factor of direction k. */
static void scale_up(const struct pass *pass, const struct held *held, size_t k, size_t row, size_t count)
{
    const struct moved *t = held->tensor;
    const double *inputs = pass->hyper->solution.inputs + k * pass->members;
    for (size_t m = 0; m < pass->members; m++) {
        size_t end = m + 1 < pass->members ? t->at[m + 1] : t->rank;
        for (size_t i = 0; i < count; i++)
            for (size_t j = t->at[m]; j < end; j++)
                held->scaled[i * t->rank + j] = (float)(inputs[m] * (double)held->up[(row + i) * t->rank + j]);
    }
}

/* Rounds `numbers` to their type in the file, writes them from element `start` on, and leaves what was stored. */
static hm_status store(struct pass *pass, const struct held *held, size_t place, uint64_t start, float *numbers, size_t count,
                       hm_error *err)
{
    const hm_tensor_info *info = &pass->infos[pass->place[place]];
    size_t size = hm_dtype_bytes(info->dtype);
    for (size_t at = 0; at < count; at += COLUMNS) {
        size_t n = count - at < COLUMNS ? count - at : COLUMNS;
        pass->kernels->store[info->dtype](numbers + at, held->stored + at * size, n);
        pass->kernels->load[info->dtype](held->stored + at * size, numbers + at, n);
        size_t bad = pass->kernels->find_nonfinite(numbers + at, n);
        if (bad < n)
            return hm_fail(err, HM_ERR_MISMATCH, pass->out.file.target, info->name,
                           "its value at index %llu does not fit into %s; use a wider --dtype",
                           (unsigned long long)(start + at + bad), hm_dtype_name(info->dtype));
    }
    return hm_output_write(&pass->out, (size_t)(info - pass->infos), start, held->stored, count, err);
}

static hm_status store_factors(struct pass *pass, const struct held *held, hm_error *err)
{
    const struct moved *t = held->tensor;
    for (size_t k = 0; k < pass->directions; k++) {
        size_t place = 2 * (held->number * pass->directions + k);
        scale_up(pass, held, k, 0, t->rows);
        HM_TRY(store(pass, held, place, 0, held->scaled, t->rows * t->rank, err));
        HM_TRY(store(pass, held, place + 1, 0, held->down, t->rank * t->columns, err)); /* exact, so they stay as they are */
    }
    return HM_OK;
}

/* numbers[k] += a_km · whole difference of member m, in rows [row, row + count). */
static hm_status add_wholes(struct pass *pass, const struct held *held, size_t row, size_t count, hm_error *err)
{
    const struct moved *t = held->tensor;
    size_t elements = count * t->columns;
    uint32_t index;
    for (size_t m = 0; m < pass->members; m++) {
        const hm_tensor_info *tensor = member_tensor(pass, t, m, &index);
        if (tensor == NULL || tensor->rank > 0) continue;
        HM_TRY(hm_source_read(pass->plan->sources[m], tensor, row * t->columns, elements, held->stored, err));
        pass->kernels->load[tensor->dtype](held->stored, held->whole, elements);
        for (size_t k = 0; k < pass->directions; k++)
            pass->kernels->axpy(held->numbers + k * elements, (float)pass->hyper->solution.inputs[k * pass->members + m],
                                held->whole, elements);
    }
    return HM_OK;
}

static double product(const float *x, const float *y, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/* With numbers[k] = e_k in these rows: adds ⟨L_m, e_k⟩ and ⟨e_j, e_k⟩ to the tensor's errors. */
static hm_status measure_errors(struct pass *pass, const struct held *held, const hm_blas *blas, size_t row, size_t count,
                                hm_error *err)
{
    const struct moved *t = held->tensor;
    size_t elements = count * t->columns, directions = pass->directions;
    double *errors = pass->errors + held->number * (pass->members + directions) * directions;
    uint32_t index;
    for (size_t k = 0; k < directions; k++) {
        const float *e = held->numbers + k * elements;
        for (size_t j = 0; j <= k; j++) {
            double sum = product(held->numbers + j * elements, e, elements);
            errors[(pass->members + j) * directions + k] += sum;
            if (j != k) errors[(pass->members + k) * directions + j] += sum;
        }
        if (t->rank == 0) continue;
        /* e_k Aᵀ, in columns: [rank × rows]. */
        blas->gemm('T', 'N', t->rank, count, t->columns, 1, held->down, t->columns, e, t->columns, 0, held->products, t->rank);
        for (size_t m = 0; m < pass->members; m++) {
            size_t end = m + 1 < pass->members ? t->at[m + 1] : t->rank;
            for (size_t i = 0; i < count && end > t->at[m]; i++)
                errors[m * directions + k] += product(held->up + (row + i) * t->rank + t->at[m],
                                                      held->products + i * t->rank + t->at[m], end - t->at[m]);
        }
    }
    for (size_t m = 0; m < pass->members; m++) {
        const hm_tensor_info *tensor = member_tensor(pass, t, m, &index);
        if (tensor == NULL || tensor->rank > 0) continue;
        HM_TRY(hm_source_read(pass->plan->sources[m], tensor, row * t->columns, elements, held->stored, err));
        pass->kernels->load[tensor->dtype](held->stored, held->whole, elements);
        for (size_t k = 0; k < directions; k++)
            errors[m * directions + k] += product(held->whole, held->numbers + k * elements, elements);
    }
    return HM_OK;
}

static hm_status store_band(struct pass *pass, const struct held *held, const hm_blas *blas, size_t row, size_t count,
                            hm_error *err)
{
    const struct moved *t = held->tensor;
    size_t elements = count * t->columns;
    for (size_t k = 0; k < pass->directions; k++) {
        float *to = held->numbers + k * elements;
        memset(to, 0, elements * sizeof *to);
        if (t->rank == 0) continue;
        scale_up(pass, held, k, row, count);
        blas->gemm('N', 'N', t->columns, count, t->rank, 1, held->down, t->columns, held->scaled, t->rank, 0, to, t->columns);
    }
    HM_TRY(add_wholes(pass, held, row, count, err));
    for (size_t k = 0; k < pass->directions; k++) {
        float *numbers = held->numbers + k * elements;
        memcpy(held->whole, numbers, elements * sizeof *numbers);
        HM_TRY(store(pass, held, 2 * (held->number * pass->directions + k), row * t->columns, numbers, elements, err));
        for (size_t i = 0; i < elements; i++) numbers[i] -= held->whole[i];
    }
    return measure_errors(pass, held, blas, row, count, err);
}

static hm_status store_numbers(struct pass *pass, const struct held *held, const hm_blas *blas, hm_error *err)
{
    for (size_t row = 0; row < held->tensor->rows; row += held->band_rows) {
        size_t left = held->tensor->rows - row;
        HM_TRY(store_band(pass, held, blas, row, left < held->band_rows ? left : held->band_rows, err));
    }
    return HM_OK;
}

static hm_status run(void *user, size_t i, unsigned worker, const hm_blas *blas, hm_error *err)
{
    struct pass *pass = user;
    (void)worker;
    const struct moved *t = &pass->tensors[i];
    struct held held = {.tensor = t, .number = i, .band_rows = band_rows(pass, t)};
    size_t band = held.band_rows * t->columns, factors = t->rank * (held.band_rows > t->columns ? held.band_rows : t->columns);
    held.up = hm_alloc(t->rank * (t->rows + t->columns), sizeof *held.up);
    held.scaled = hm_alloc(t->rank * held.band_rows, sizeof *held.scaled);
    held.stored = hm_alloc(t->factors ? factors : band, sizeof(double));
    held.numbers = hm_alloc(t->factors ? 0 : pass->directions * band, sizeof *held.numbers);
    held.whole = hm_alloc(t->factors ? 0 : band, sizeof *held.whole);
    held.products = hm_alloc(t->factors ? 0 : t->rank * held.band_rows, sizeof *held.products);
    hm_status status = HM_OK;
    if (held.up == NULL || held.scaled == NULL || held.stored == NULL || held.numbers == NULL || held.whole == NULL ||
        held.products == NULL)
        status = hm_fail(err, HM_ERR_MEMORY, NULL, t->like->name, "out of memory (its factors)");
    held.down = held.up + t->rank * t->rows;
    if (status == HM_OK) status = load(pass, &held, err);
    if (status == HM_OK) status = t->factors ? store_factors(pass, &held, err) : store_numbers(pass, &held, blas, err);
    hm_release(held.up);
    hm_release(held.scaled);
    hm_release(held.stored);
    hm_release(held.numbers);
    hm_release(held.whole);
    hm_release(held.products);
    return status;
}

/* ---- the file -------------------------------------------------------------------------------------------------------- */

/* ‖L_m − Σ c (D + e)‖² = residual² − 2 Σ_k c_k ⟨L_m − Σ_j c_j D_j, e_k⟩ + Σ_jk c_j c_k ⟨e_j, e_k⟩. */
static double residual_stored(const struct pass *pass, const double *errors, size_t m)
{
    const hm_solution *solution = &pass->hyper->solution;
    size_t members = pass->members, directions = pass->directions;
    const double *c = solution->multipliers + m * directions;
    double norm = solution->norm[m], left = solution->residual[m] * norm;
    left *= left;
    for (size_t k = 0; k < directions; k++) {
        double along = errors[m * directions + k];
        for (size_t j = 0; j < directions; j++)
            for (size_t i = 0; i < members; i++) along -= c[j] * solution->inputs[j * members + i] * errors[i * directions + k];
        left -= 2 * c[k] * along;
        for (size_t j = 0; j < directions; j++) left += c[j] * c[k] * errors[(members + j) * directions + k];
    }
    return norm > 0 && left > 0 ? sqrt(left) / norm : 0;
}

/* The errors of all tensors, in their order, so that threads change nothing. */
static void sum_errors(const struct pass *pass, double *sum)
{
    size_t each = (pass->members + pass->directions) * pass->directions;
    for (size_t t = 0; t < pass->count; t++)
        for (size_t i = 0; i < each; i++) sum[i] += pass->errors[t * each + i];
}

static hm_status compute(struct pass *pass, hm_job *job, hm_error *err)
{
    hm_factor_work work = {.count = pass->count, .memory = memory_of, .bytes = bytes_of, .run = run, .user = pass};
    for (size_t m = 0; m < pass->members; m++) HM_TRY(hm_source_check_unchanged(pass->plan->sources[m], err));
    HM_TRY(hm_factor_crew_run(&work, job, err));
    for (size_t m = 0; m < pass->members; m++) HM_TRY(hm_source_check_unchanged(pass->plan->sources[m], err));
    return HM_OK;
}

static hm_status write_file(struct pass *pass, const char *path, const hm_save_options *options, double *stored, hm_job *job,
                            hm_error *err)
{
    hm_meta_list meta = {0};
    char hash[65];
    double *sum = hm_alloc((pass->members + pass->directions) * (pass->directions + 1), sizeof *sum);
    if (sum == NULL) return hm_fail_memory(err, "the residuals");
    for (size_t m = 0; m < pass->members; m++) stored[m] = HM_NUMBER_PLACEHOLDER;
    hm_status status = hm_hyper_meta(&meta, pass->hyper, path, stored, options->hash ? HM_HASH_PLACEHOLDER : NULL, true, err);
    if (status == HM_OK)
        status = hm_output_begin(&pass->out, path, pass->infos, pass->info_count, meta.entries, meta.count, err);
    hm_meta_clear(&meta);
    if (status == HM_OK) status = compute(pass, job, err);
    if (status == HM_OK && options->hash) status = hm_output_data_hash(&pass->out, hash, job, err);
    if (status == HM_OK) {
        sum_errors(pass, sum);
        for (size_t m = 0; m < pass->members; m++) stored[m] = residual_stored(pass, sum, m);
        status = hm_hyper_meta(&meta, pass->hyper, path, stored, options->hash ? hash : NULL, true, err);
    }
    if (status == HM_OK) status = hm_output_finish(&pass->out, meta.entries, meta.count, NULL, err);
    hm_meta_clear(&meta);
    if (status == HM_OK) status = hm_output_publish(&pass->out, err);
    hm_output_close(&pass->out);
    hm_release(sum);
    return status;
}

hm_status hm_lora_save(hm_hyper *hyper, const char *path, const hm_save_options *options, hm_job *job, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    struct pass pass = {.hyper = hyper,
                        .plan = plan,
                        .kernels = hm_kernels_best(),
                        .members = plan->source_count,
                        .directions = hyper->solution.directions,
                        .out = HM_OUTPUT_CLOSED};
    char *names = NULL;
    double *stored = hm_alloc(pass.members, sizeof *stored);
    hm_status status = stored != NULL ? HM_OK : hm_fail_memory(err, "the residuals");
    if (status == HM_OK) status = hm_output_check_target(path, plan->sources, plan->source_count, options->force, err);
    if (status == HM_OK) status = hm_output_check_target(path, &plan->base, 1, options->force, err);
    if (status == HM_OK) status = lay_out(&pass, &names, err);
    if (status == HM_OK) status = write_file(&pass, path, options, stored, job, err);
    if (status == HM_OK) {
        hm_release(hyper->residual_stored);
        hyper->residual_stored = stored;
        stored = NULL;
    }
    hm_release(stored);
    hm_release(names);
    hm_release(pass.tensors);
    hm_release(pass.infos);
    hm_release(pass.place);
    hm_release(pass.errors);
    return status;
}
