/* hm_hyper_project: where a model that was not merged lies in the space of the directions.
 * With D the K directions and x = X − B:  c minimises ‖x − Σ c_k D_k‖², so ⟨D_j, D_k⟩ c = ⟨D_j, x⟩; one Gram matrix of
 * (D_1 … D_K, x) holds all of it. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "io/header_write.h"
#include "lowrank/lora_read.h"
#include "solve/gram.h"
#include "solve/hyper.h"
#include "solve/questions.h"

struct projection {
    size_t directions;
    double gram[(HM_MAX_MEMBERS + 1) * (HM_MAX_MEMBERS + 1)]; /* (K + 1)², x last */
};

static hm_selection selection_of(const hm_hyper *hyper)
{
    return (hm_selection){.include = (const char *const *)hyper->include,
                          .includes = hyper->include_count,
                          .exclude = (const char *const *)hyper->exclude,
                          .excludes = hyper->exclude_count,
                          .common = hyper->common};
}

/* ---- opened: the directions lie in the file ---------------------------------------------------------------------------- */

static const char prefix[] = HM_PREFIX_DIRECTION "1."; /* what all that moves has */

/* Without a base nothing else checks that X has what the directions move. */
static hm_status check_has_all(const hm_hyper *hyper, const hm_source *x, hm_error *err)
{
    for (size_t i = 0; i < hyper->file->header.count; i++) {
        const hm_tensor_info *direction = &hyper->file->header.tensors[i];
        if (strncmp(direction->name, prefix, sizeof prefix - 1) != 0) continue;
        const hm_tensor_info *tensor = hm_source_find(x, direction->name + sizeof prefix - 1);
        if (tensor == NULL && x->is_lora) continue; /* it changes nothing there */
        if (tensor == NULL || tensor->ndim != direction->ndim ||
            memcmp(tensor->shape, direction->shape, tensor->ndim * sizeof *tensor->shape) != 0)
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(x), direction->name + sizeof prefix - 1,
                           "is missing or has another shape than the hyper-model's direction");
    }
    return HM_OK;
}

/* What a pass over the directions, X, its base and that one's base_low reads: [columns] indices for each tensor. */
struct table {
    size_t count, columns;
    uint32_t *index;
    uint64_t *elements;
    const char **names;
};

/* The next tensor, with the directions' places in it. */
static uint32_t *add_tensor(struct table *table, const hm_hyper *hyper, const char *name, uint64_t elements)
{
    uint32_t *row = table->index + table->count * table->columns;
    size_t directions = hyper->solution.directions;
    for (size_t k = 0; k < table->columns; k++) row[k] = k < directions ? hm_part_index(hyper, k + 1, name) : HM_ABSENT;
    table->elements[table->count] = elements;
    table->names[table->count++] = name;
    return row;
}

/* Without a base only X's own tensors have been planned.  Where a LoRA has none it changes nothing, but directions do. */
static void add_lacking(struct table *table, const hm_hyper *hyper, const hm_source *x)
{
    for (size_t i = 0; i < hyper->file->header.count; i++) {
        const hm_tensor_info *direction = &hyper->file->header.tensors[i];
        if (strncmp(direction->name, prefix, sizeof prefix - 1) != 0) continue;
        const char *name = direction->name + sizeof prefix - 1;
        if (hm_source_find(x, name) == NULL) add_tensor(table, hyper, name, direction->elements);
    }
}

static hm_status measure_opened(struct projection *out, hm_hyper *hyper, hm_source *x, hm_job *job, hm_error *err)
{
    hm_source *base = hyper->base == HM_BASE_NONE ? NULL : hyper->base_file;
    if (base == NULL) HM_TRY(check_has_all(hyper, x, err));
    hm_selection selection = selection_of(hyper);
    hm_plan *plan = NULL;
    HM_TRY(hm_plan_make(&plan, &x, 1, base, NULL, &selection, err));

    size_t directions = out->directions, columns = directions + 3;
    size_t most = plan->merged_count + (base == NULL && x->is_lora ? hyper->file->header.count : 0);
    hm_stream_row rows[HM_MAX_MEMBERS + 3];
    bool plain[HM_MAX_MEMBERS + 1] = {false};
    struct table table = {.columns = columns,
                          .index = hm_alloc(most * columns, sizeof *table.index),
                          .elements = hm_alloc(most, sizeof *table.elements),
                          .names = hm_alloc(most, sizeof *table.names)};
    hm_gram_result grams = {0};
    hm_status status = HM_OK;
    if (table.index == NULL || table.elements == NULL || table.names == NULL)
        status = hm_fail_memory(err, "the list of tensors");
    for (size_t t = 0; status == HM_OK && t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE) continue;
        const char *name = plan->tensors[t].like->name;
        if (!hm_was_merged(hyper, name) && !hm_hyper_is_lora(hyper)) continue; /* a LoRA's further layers count as missed */
        uint32_t *row = add_tensor(&table, hyper, name, plan->tensors[t].like->elements);
        row[directions] = plan->index[t];
        row[directions + 1] = plan->base_index[t];
        if (base != NULL) row[directions + 2] = hm_part_index(hyper, 0, name);
    }
    if (status == HM_OK && base == NULL && x->is_lora) add_lacking(&table, hyper, x);
    for (size_t r = 0; r < columns; r++)
        rows[r] = (hm_stream_row){.source = hyper->file, .index = table.index + r, .stride = columns};
    rows[directions].source = x;
    if (base != NULL) rows[directions + 1].source = base;
    for (size_t k = 0; k < HM_MAX_MEMBERS; k++) plain[k] = k < directions;
    hm_gram_spec spec = {.row_count = columns,
                         .rows = rows,
                         .gram_rows = directions + 1,
                         .reference = base != NULL ? directions + 1 : HM_GRAM_NO_REFERENCE,
                         .reference_low = base != NULL ? directions + 2 : HM_GRAM_NO_REFERENCE,
                         .plain = plain,
                         .tensor_count = table.count,
                         .elements = table.elements,
                         .names = table.names};
    if (status == HM_OK) status = hm_gram_measure(&grams, &spec, job, err);
    if (status == HM_OK) hm_gram_sum(&grams, table.count, directions + 1, NULL, 0, out->gram);
    hm_gram_clear(&grams);
    hm_release(table.index);
    hm_release(table.elements);
    hm_release(table.names);
    hm_plan_free(plan);
    return status;
}

/* ---- solved: the directions are combinations of the inputs -------------------------------------------------------------- */

/* With d_m = W_m − R and d_X = X − R (R = W_1 for a mean base, else B):  D_k = Σ_m (a_km − ŵ_m Σ_j a_kj) d_m and
 * x = d_X − Σ ŵ_m d_m, where ŵ = 0 unless the base is the mean.  Row by row that is T, and the Gram wanted is T G Tᵀ. */
static void transform(struct projection *out, const hm_hyper *hyper, const double *gram)
{
    const hm_solution *solution = &hyper->solution;
    size_t members = solution->members, m = members + 1, k1 = solution->directions + 1;
    double weights[HM_MAX_MEMBERS] = {0}, row[2][HM_MAX_MEMBERS + 1];
    if (hyper->base == HM_BASE_MEAN) hm_mean_weights(hyper, weights);
    for (size_t p = 0; p < k1; p++)
        for (size_t q = 0; q <= p; q++) {
            size_t which[2] = {p, q};
            for (size_t side = 0; side < 2; side++) {
                bool is_x = which[side] == solution->directions;
                const double *a = solution->inputs + which[side] * members;
                double sum = 0;
                for (size_t i = 0; i < members; i++) sum += is_x ? 0 : a[i];
                for (size_t i = 0; i < members; i++) row[side][i] = is_x ? -weights[i] : a[i] - weights[i] * sum;
                row[side][members] = is_x ? 1 : 0;
            }
            double value = 0;
            for (size_t i = 0; i < m; i++)
                for (size_t j = 0; j < m; j++) value += row[0][i] * gram[i * m + j] * row[1][j];
            out->gram[p * k1 + q] = out->gram[q * k1 + p] = value;
        }
}

static hm_status measure_solved(struct projection *out, hm_hyper *hyper, hm_source *x, hm_job *job, hm_error *err)
{
    size_t members = hyper->solution.members;
    bool file = hyper->base == HM_BASE_FILE;
    HM_TRY(hm_hyper_need_mixtures(hyper, err));
    if (members + 1 + (file ? 1 : 0) > HM_MAX_MEMBERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "save the hyper-model first, then project on the saved file");
    hm_source *all[HM_MAX_MEMBERS];
    memcpy(all, hyper->plan->sources, members * sizeof *all);
    all[members] = x;
    size_t count = members + 1;
    /* With a base file: measured about it by making it the first of the sources and dropping its row afterwards. */
    if (file) {
        memmove(all + 1, all, count * sizeof *all);
        all[0] = hyper->plan->base;
        count++;
    }
    hm_selection selection = selection_of(hyper);
    hm_plan *plan = NULL;
    HM_TRY(hm_plan_make(&plan, all, count, NULL, hyper->plan->carrier, &selection, err));
    double *gram = hm_alloc(2 * count * count, sizeof(double));
    hm_status status = gram != NULL ? HM_OK : hm_fail_memory(err, "the Gram matrix");
    if (status == HM_OK)
        status = hm_measure_plan(plan, hyper->base != HM_BASE_NONE, hyper->allow_nonfinite, gram, NULL, NULL, job, err);
    if (status == HM_OK) {
        double *inner = gram + count * count;
        size_t skip = file ? 1 : 0, m = count - skip;
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < m; j++) inner[i * m + j] = gram[(i + skip) * count + j + skip];
        transform(out, hyper, inner);
    }
    hm_release(gram);
    hm_plan_free(plan);
    return status;
}

/* Without a base a LoRA meets the directions by the names of its layers. */
static hm_status check_names(const hm_hyper *hyper, const hm_source *lora, hm_error *err)
{
    if (hyper->plan == NULL) return hm_lora_kinds_agree(lora, hyper->file, prefix, err);
    for (size_t m = 0; m < hyper->plan->source_count; m++)
        HM_TRY(hm_lora_kinds_agree(lora, hyper->plan->sources[m], "", err));
    return HM_OK;
}

/* A LoRA stands for the base with it. */
static hm_status read_newcomer(hm_source **out, const hm_hyper *hyper, hm_source *x, hm_error *err)
{
    hm_source *base = hyper->plan != NULL ? hyper->plan->base : hyper->base == HM_BASE_NONE ? NULL : hyper->base_file;
    bool lora = hm_is_lora_file(x);
    if (lora && base == NULL && !hm_hyper_is_lora(hyper))
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(x), NULL,
                       "is a LoRA, and this hyper-model has no base that it could be added to");
    if (lora) {
        HM_TRY(hm_lora_read(out, x, base, hyper->common, err));
        hm_status status = base == NULL ? check_names(hyper, *out, err) : HM_OK;
        if (status != HM_OK) {
            hm_source_close(*out);
            *out = NULL;
        }
        return status;
    }
    *out = hm_source_keep(x);
    return HM_OK;
}

hm_status hm_hyper_project(hm_hyper *hyper, hm_source *x, char **out_json, hm_job *job, hm_error *err)
{
    hm_source *read = NULL;
    if (hyper->plan == NULL) HM_TRY(hm_hyper_need_base(hyper, err));
    struct projection *projection = hm_alloc(1, sizeof *projection);
    if (projection == NULL) return hm_fail_memory(err, "a projection");
    size_t k = projection->directions = hyper->solution.directions, k1 = k + 1;
    hm_status status = read_newcomer(&read, hyper, x, err);
    if (status == HM_OK)
        status = hyper->plan != NULL ? measure_solved(projection, hyper, read, job, err)
                                     : measure_opened(projection, hyper, read, job, err);
    hm_source_close(read);
    double directions[HM_MAX_MEMBERS * HM_MAX_MEMBERS], right[HM_MAX_MEMBERS], c[HM_MAX_MEMBERS] = {0};
    double square = projection->gram[k * k1 + k], rest = square;
    for (size_t i = 0; i < k; i++) {
        right[i] = projection->gram[i * k1 + k];
        for (size_t j = 0; j < k; j++) directions[i * k + j] = projection->gram[i * k1 + j];
    }
    if (status == HM_OK && k > 0) status = hm_least_squares(directions, k, right, square, c, &rest, err);
    if (status == HM_OK) {
        hm_text text = {0};
        hm_text_put(&text, "{\"name\":");
        hm_json_string(&text, hm_source_name(x));
        hm_put_vector(&text, "multipliers", c, k);
        hm_text_put(&text, ",\"residual\":");
        hm_json_number(&text, square > 0 ? sqrt(rest / square) : 0);
        hm_text_put(&text, ",\"norm\":");
        hm_json_number(&text, sqrt(fmax(square, 0)));
        hm_text_put(&text, "}");
        status = hm_give_text(&text, out_json, err);
    }
    hm_release(projection);
    return status;
}
