/* hm_hyper_merge: one checkpoint out of a hyper-model, from the stored directions or straight from the inputs. */
#include <math.h>
#include <string.h>

#include "apply/merge_list.h"
#include "apply/output.h"
#include "apply/recipe.h"
#include "base/error.h"
#include "kernels/kernels.h"

#define COLUMNS ((size_t)HM_KERNEL_COLUMNS)

struct merge_pass {
    const hm_hyper *hyper;
    const hm_merge_list *list;
    const hm_kernels *kernels;
    hm_output *out;
    double *exact; /* HM_MERGE_EXACT: [count × members], coefficients of the differences from the reference */
};

/* ---- coefficients of the inputs ------------------------------------------------------------------------------------------ */

/* B + Σ_k c_k D_k = R + Σ_m coefficient_m (W_m − R).  With b_m = Σ_k c_k a_km:
 *   base file, R = B:     b_m   (of a LoRA, whose numbers are W_m − B already, too)
 *   no base,   R = 0:     b_m
 *   mean base, R = W_1:   b_m + ŵ_m (1 − Σ b)   (the mean is itself a mixture of the inputs) */
static void input_coefficients(const hm_hyper *hyper, const double *at, double *out)
{
    const hm_solution *solution = &hyper->solution;
    size_t members = solution->members;
    double weights[HM_MAX_MEMBERS], sum = 0;
    for (size_t m = 0; m < members; m++) {
        out[m] = 0;
        for (size_t k = 0; k < solution->directions; k++) out[m] += at[k] * solution->inputs[k * members + m];
        sum += out[m];
    }
    if (hyper->base != HM_BASE_MEAN) return;
    hm_mean_weights(hyper, weights);
    for (size_t m = 0; m < members; m++) out[m] += weights[m] * (1 - sum);
}

/* ---- work ---------------------------------------------------------------------------------------------------------------- */

static const void *numbers_at(const hm_piece *piece, size_t row, size_t at)
{
    return (const char *)piece->raw[row] + at * hm_dtype_bytes(piece->as[row]->dtype);
}

/* The arithmetic that every full-rank blend shares (hypermerge.h, hm_hyper_merge). */
static void blend_stored(const struct merge_pass *pass, const hm_merge_tensor *tensor, const hm_piece *piece, size_t at,
                         size_t n, float *x)
{
    size_t rows = pass->list->blend_rows;
    hm_blend_part parts[HM_STREAM_ROWS];
    for (size_t r = 0; r < rows; r++) {
        parts[r] = (hm_blend_part){.dtype = HM_F32, .c = r < 2 ? 1.0f : (float)tensor->at[r - 2]};
        if (piece->raw[r] == NULL) continue;
        parts[r].data = numbers_at(piece, r, at);
        parts[r].dtype = piece->as[r]->dtype;
    }
    pass->kernels->blend(x, HM_F32, parts, rows, n, false);
}

static void blend_exact(const struct merge_pass *pass, const hm_piece *piece, size_t at, size_t n, float *x, float *scratch)
{
    const hm_kernels *kernels = pass->kernels;
    size_t members = pass->hyper->solution.members;
    float *rows = scratch + COLUMNS, coefficients[HM_MAX_MEMBERS];
    const double *exact = pass->exact + piece->tensor * members;
    for (size_t m = 0; m < members; m++) coefficients[m] = (float)exact[m];
    size_t reference = pass->hyper->base == HM_BASE_FILE ? members : 0;
    bool subtract = pass->hyper->base != HM_BASE_NONE;
    if (subtract) kernels->load[piece->as[reference]->dtype](numbers_at(piece, reference, at), scratch, n);
    for (size_t m = 0; m < members; m++) {
        if (piece->raw[m] == NULL) /* a LoRA that does not change this tensor */
            memset(rows + m * COLUMNS, 0, n * sizeof *rows);
        else if (subtract && !pass->list->rows[m].source->is_lora)
            kernels->load_sub[piece->as[m]->dtype](numbers_at(piece, m, at), scratch, rows + m * COLUMNS, n);
        else
            kernels->load[piece->as[m]->dtype](numbers_at(piece, m, at), rows + m * COLUMNS, n);
    }
    kernels->combine(rows, COLUMNS, members, n, coefficients, 1, x, COLUMNS);
    if (subtract) kernels->axpy(x, 1.0f, scratch, n);
}

/* What was just stored must be numbers: a value beyond the range of the type would silently become Inf, and a model with it
 * gives black pictures. */
static hm_status check_fits(const struct merge_pass *pass, const hm_merge_tensor *tensor, uint64_t start, size_t n,
                            const void *stored, float *scratch, hm_error *err)
{
    hm_dtype dtype = tensor->like.dtype;
    pass->kernels->load[dtype](stored, scratch, n);
    size_t bad = pass->kernels->find_nonfinite(scratch, n);
    if (bad == n) return HM_OK;
    return hm_fail(err, HM_ERR_MISMATCH, pass->out->file.target, tensor->like.name,
                   "its value at index %llu does not fit into %s; use a wider --dtype or smaller multipliers",
                   (unsigned long long)(start + bad), hm_dtype_name(dtype));
}

static hm_status copy_piece(const struct merge_pass *pass, const hm_merge_tensor *tensor, const hm_piece *piece,
                            unsigned char *to, float *scratch, hm_error *err)
{
    size_t row = pass->list->blend_rows;
    while (piece->raw[row] == NULL) row++;
    hm_dtype from = piece->as[row]->dtype;
    size_t size = hm_dtype_bytes(tensor->like.dtype);
    if (from == tensor->like.dtype) {
        memcpy(to, piece->raw[row], piece->count * size);
        return HM_OK;
    }
    for (size_t at = 0; at < piece->count; at += COLUMNS) {
        size_t n = piece->count - at < COLUMNS ? piece->count - at : COLUMNS;
        pass->kernels->load[from](numbers_at(piece, row, at), scratch, n);
        pass->kernels->store[tensor->like.dtype](scratch, to + at * size, n);
        HM_TRY(check_fits(pass, tensor, piece->start + at, n, to + at * size, scratch, err));
    }
    return HM_OK;
}

static hm_status merge_work(void *user, const hm_piece *piece, const hm_segment *segment, void *block, hm_error *err)
{
    const struct merge_pass *pass = user;
    const hm_merge_tensor *tensor = &pass->list->tensors[piece->tensor];
    size_t size = hm_dtype_bytes(tensor->like.dtype);
    unsigned char *to = (unsigned char *)segment->result + piece->offset * size;
    float *x = block, *scratch = x + COLUMNS;
    if (!tensor->blended) return copy_piece(pass, tensor, piece, to, scratch, err);
    for (size_t at = 0; at < piece->count; at += COLUMNS) {
        size_t n = piece->count - at < COLUMNS ? piece->count - at : COLUMNS;
        if (pass->list->way == HM_MERGE_STORED)
            blend_stored(pass, tensor, piece, at, n, x);
        else
            blend_exact(pass, piece, at, n, x, scratch);
        pass->kernels->store[tensor->like.dtype](x, to + at * size, n);
        HM_TRY(check_fits(pass, tensor, piece->start + at, n, to + at * size, x, err));
    }
    return HM_OK;
}

static hm_status merge_finish(void *user, const hm_segment *segment, hm_error *err)
{
    const struct merge_pass *pass = user;
    return hm_output_write(pass->out, segment->tensor, segment->start, segment->result, segment->count, err);
}

static hm_status merge_commit(void *user, const hm_segment *segment, hm_error *err)
{
    const struct merge_pass *pass = user;
    (void)err;
    hm_output_hash(pass->out, segment->tensor, segment->start, segment->result, segment->count);
    return HM_OK;
}

/* ---- the recipe ------------------------------------------------------------------------------------------------------------ */

/* {"type":"hyper-merge","hyper":name,"base":{…},"at":[…],"blocks":[{"glob","at"}…],"exact":bool,
 *  "models":[{"name","header_hash","weight"}…]}: `weight` is the model's share in the mixture at `at`. */
static void put_recipe(hm_text *text, const hm_hyper *hyper, const hm_merge_options *options, bool exact)
{
    size_t directions = hyper->solution.directions, members = hyper->solution.members;
    double at[HM_MAX_MEMBERS] = {0}, weights[HM_MAX_MEMBERS];
    for (size_t k = 0; k < options->at_count; k++) at[k] = options->at[k];
    input_coefficients(hyper, at, weights);
    hm_text_put(text, "{\"type\":\"hyper-merge\",\"version\":1");
    if (hyper->file != NULL) {
        hm_text_put(text, ",\"hyper\":{\"name\":");
        hm_json_string(text, hm_source_name(hyper->file));
        hm_text_put(text, ",\"header_hash\":");
        hm_json_string(text, hyper->file->header_hash);
        hm_text_put(text, "}");
    }
    if (hyper->base == HM_BASE_FILE) {
        hm_text_put(text, ",\"base\":{\"name\":");
        hm_json_string(text, hyper->base_name);
        hm_text_put(text, ",\"header_hash\":");
        hm_json_string(text, hyper->base_header_hash);
        hm_text_put(text, "}");
    }
    hm_text_put(text, ",\"at\":");
    hm_json_numbers(text, at, directions);
    hm_text_put(text, ",\"blocks\":[");
    for (size_t b = 0; b < options->block_count; b++) {
        hm_text_put(text, b > 0 ? ",{\"glob\":" : "{\"glob\":");
        hm_json_string(text, options->blocks[b].glob);
        hm_text_put(text, ",\"at\":");
        hm_json_numbers(text, options->blocks[b].at, directions);
        hm_text_put(text, "}");
    }
    hm_text_format(text, "],\"exact\":%s,\"models\":[", exact ? "true" : "false");
    for (size_t m = 0; m < members; m++) {
        hm_text_put(text, m > 0 ? ",{\"name\":" : "{\"name\":");
        hm_json_string(text, hyper->members[m].name);
        if (hyper->members[m].header_hash[0] != 0) {
            hm_text_put(text, ",\"header_hash\":");
            hm_json_string(text, hyper->members[m].header_hash);
        }
        hm_text_put(text, ",\"weight\":");
        hm_json_number(text, weights[m]);
        hm_text_put(text, "}");
    }
    hm_text_put(text, "]}");
}

static hm_status make_meta(hm_meta_list *meta, const hm_hyper *hyper, const hm_merge_options *options, bool exact,
                           const char *path, const char *data_hash, hm_error *err)
{
    char *title = hm_title_of(path);
    hm_text recipe = {0};
    put_recipe(&recipe, hyper, options, exact);
    if (title != NULL && !recipe.failed) {
        hm_meta_add_standard(meta, hyper, title, data_hash);
        hm_meta_add(meta, "sd_merge_recipe", recipe.data);
        const hm_source *base = hyper->base_file != NULL ? hyper->base_file : hyper->plan != NULL ? hyper->plan->carrier : NULL;
        const char *prediction = base != NULL ? hm_source_metadata(base, "modelspec.prediction_type") : NULL;
        if (prediction != NULL) hm_meta_add(meta, "modelspec.prediction_type", prediction);
    } else {
        meta->failed = true;
    }
    hm_release(title);
    hm_text_clear(&recipe);
    return meta->failed ? hm_fail_memory(err, "metadata") : HM_OK;
}

/* ---- the call -------------------------------------------------------------------------------------------------------------- */

static hm_status run_pass(struct merge_pass *pass, hm_job *job, hm_error *err)
{
    const hm_merge_list *list = pass->list;
    size_t widest = 1, members = pass->hyper->solution.members;
    for (size_t i = 0; i < list->count; i++)
        if (hm_dtype_bytes(list->tensors[i].like.dtype) > widest) widest = hm_dtype_bytes(list->tensors[i].like.dtype);
    if (list->way == HM_MERGE_EXACT) {
        pass->exact = hm_alloc(list->count * members, sizeof(double));
        if (pass->exact == NULL) return hm_fail_memory(err, "the coefficients");
        for (size_t i = 0; i < list->count; i++)
            input_coefficients(pass->hyper, list->tensors[i].at, pass->exact + i * members);
    }
    hm_stream stream = {.row_count = list->row_count,
                        .tensor_count = list->count,
                        .rows = list->rows,
                        .elements = list->elements,
                        .result_element_bytes = widest,
                        .scratch_bytes = (2 + (list->way == HM_MERGE_EXACT ? members : 0)) * COLUMNS * sizeof(float),
                        .work = merge_work,
                        .finish = merge_finish,
                        .commit = merge_commit,
                        .user = pass};
    hm_status status = hm_stream_run(&stream, job, err);
    hm_release(pass->exact);
    return status;
}

static hm_status check_target(const hm_merge_list *list, const hm_hyper *hyper, const char *path,
                              const hm_merge_options *options, hm_error *err)
{
    hm_source *others[] = {hyper->file, hyper->base_file, options->carrier, options->vae};
    bool force = options->force;
    for (size_t r = 0; r < list->row_count; r++)
        HM_TRY(hm_output_check_target(path, &list->rows[r].source, 1, force, err));
    return hm_output_check_target(path, others, 4, force, err);
}

hm_status hm_hyper_merge(hm_hyper *hyper, const char *path, const hm_merge_options *options, hm_job *job, hm_error *err)
{
    static const hm_merge_options defaults = {.dtype = HM_DTYPE_KEEP};
    if (options == NULL) options = &defaults;
    if (options->dtype != HM_DTYPE_KEEP && !hm_dtype_is_float(options->dtype))
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the output type must be a floating-point type");
    HM_TRY(hm_hyper_need_base(hyper, err));
    if (hm_hyper_is_lora(hyper))
        return hm_fail(err, HM_ERR_ARGUMENT, hyper->file != NULL ? hm_source_label(hyper->file) : NULL, NULL,
                       "is made of LoRAs without a base, so there is no checkpoint to write; write a LoRA (hyper-merge lora), or "
                       "solve it with --base FILE");

    hm_merge_list list;
    HM_TRY(hm_merge_list_make(&list, hyper, options, err));
    bool exact = list.way == HM_MERGE_EXACT;
    hm_output out = HM_OUTPUT_CLOSED;
    hm_meta_list meta = {0};
    struct merge_pass pass = {.hyper = hyper, .list = &list, .kernels = hm_kernels_best(), .out = &out};
    hm_tensor_info *infos = hm_alloc(list.count, sizeof *infos);
    hm_status status = infos != NULL ? HM_OK : hm_fail_memory(err, "the layout of a file");
    for (size_t i = 0; status == HM_OK && i < list.count; i++) infos[i] = list.tensors[i].like;
    if (status == HM_OK) status = check_target(&list, hyper, path, options, err);
    if (status == HM_OK) status = make_meta(&meta, hyper, options, exact, path, HM_HASH_PLACEHOLDER, err);
    if (status == HM_OK) status = hm_output_begin(&out, path, infos, list.count, meta.entries, meta.count, err);
    hm_meta_clear(&meta);
    if (status == HM_OK) status = run_pass(&pass, job, err);
    char hash[65];
    if (status == HM_OK) status = hm_output_data_hash(&out, hash, job, err);
    if (status == HM_OK) status = make_meta(&meta, hyper, options, exact, path, hash, err);
    if (status == HM_OK) status = hm_output_finish(&out, meta.entries, meta.count, NULL, err);
    if (status == HM_OK) status = hm_output_publish(&out, err);
    hm_output_close(&out);
    hm_meta_clear(&meta);
    hm_release(infos);
    hm_merge_list_clear(&list);
    return status;
}
