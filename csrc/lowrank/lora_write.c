/* hm_hyper_lora and hm_lora_of_pair: a difference of checkpoints as a LoRA file. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "apply/output.h"
#include "apply/recipe.h"
#include "base/error.h"
#include "kernels/kernels.h"
#include "lowrank/factor_crew.h"
#include "lowrank/factor_svd.h"
#include "lowrank/lora_list.h"
#include "lowrank/lora_report.h"
#include "lowrank/svd.h"
#include "solve/questions.h"

#define DEFAULT_RANK 64u
#define MOST_RANK 4096u
#define COLUMNS ((size_t)HM_KERNEL_COLUMNS)
/* Tensors that are products of at most this rank, or of the rank asked for, are decomposed by their factors.  Of larger ones
 * the R × R eigenproblems take longer than the whole tensor does. */
#define FACTORS_RANK ((size_t)256)

/* The tensors of one layer in the file. */
enum place { PLACE_ALPHA = 0, PLACE_DOWN, PLACE_UP, PLACES };

struct writer {
    const hm_difference *difference;
    hm_lora_list list;
    const hm_lora_options *options;
    hm_dtype dtype;
    const hm_blas *blas;
    const hm_kernels *kernels;
    hm_output out;
    hm_tensor_info *infos; /* in file order */
    size_t info_count;
    char *names;
    uint32_t *place;       /* [entries × PLACES] index in infos */
    size_t *order;         /* tensors: those decomposed by their factors first, then the others, ascending */
    size_t by_factors;
    double *square;        /* [tensors] ‖D‖² of each */
};

/* ---- layout of the file --------------------------------------------------------------------------------------------------- */

static const char *const factor_suffixes[PLACES] = {".alpha", ".lora_down.weight", ".lora_up.weight"};

/* Shape of one tensor of a layer: convolutions keep their kernel in `down`. */
static void set_shape(hm_tensor_info *info, const hm_lora_entry *entry, const hm_tensor_info *like, size_t place)
{
    if (entry->kind != HM_LORA_FACTORS) {
        info->ndim = 1;
        info->shape[0] = entry->rows;
    } else if (place == PLACE_UP) {
        info->ndim = like->ndim;
        for (unsigned d = 0; d < like->ndim; d++) info->shape[d] = 1;
        info->shape[0] = entry->rows;
        info->shape[1] = entry->rank;
    } else if (place == PLACE_DOWN) {
        info->ndim = like->ndim;
        for (unsigned d = 1; d < like->ndim; d++) info->shape[d] = like->shape[d];
        info->shape[0] = entry->rank;
    }
    info->elements = 1;
    for (unsigned d = 0; d < info->ndim; d++) info->elements *= info->shape[d];
    info->bytes = info->elements * hm_dtype_bytes(info->dtype);
}

/* While the tensors are being sorted their `offset` says which one of which layer they are. */
static hm_status lay_out(struct writer *writer, hm_error *err)
{
    const hm_lora_list *list = &writer->list;
    size_t most = list->count * PLACES, name_bytes = HM_LORA_NAME + 32;
    writer->infos = hm_alloc(most, sizeof *writer->infos);
    writer->names = hm_alloc(most, name_bytes);
    writer->place = hm_alloc(most, sizeof *writer->place);
    if (writer->infos == NULL || writer->names == NULL || writer->place == NULL)
        return hm_fail_memory(err, "the layout of a file");
    for (size_t e = 0; e < list->count; e++) {
        const hm_lora_entry *entry = &list->entries[e];
        size_t places = entry->kind == HM_LORA_FACTORS ? PLACES : 1;
        for (size_t p = 0; p < places && entry->rank > 0; p++) {
            const char *suffix = entry->kind == HM_LORA_FACTORS ? factor_suffixes[p]
                                 : entry->kind == HM_LORA_WHOLE ? ".diff"
                                                                : ".diff_b";
            char *name = writer->names + writer->info_count * name_bytes;
            strcat(strcpy(name, entry->part.name), suffix);
            hm_tensor_info *info = &writer->infos[writer->info_count++];
            *info = (hm_tensor_info){.name = name, .dtype = writer->dtype, .offset = e * PLACES + p};
            /* bf16 holds whole numbers to 256 only, f16 to 2048; a rounded alpha would scale the whole layer. */
            if (entry->kind == HM_LORA_FACTORS && p == PLACE_ALPHA) info->dtype = HM_F32;
            set_shape(info, entry, writer->difference->like[entry->tensor], p);
        }
    }
    qsort(writer->infos, writer->info_count, sizeof *writer->infos, hm_tensor_usual_order);
    for (size_t i = 0; i < writer->info_count; i++) {
        writer->place[writer->infos[i].offset] = (uint32_t)i;
        if (i > 0 && strcmp(writer->infos[i - 1].name, writer->infos[i].name) == 0) /* equal ones have one type: neighbours */
            return hm_fail(err, HM_ERR_MISMATCH, NULL, writer->infos[i].name, "two tensors would have this name in the LoRA");
    }
    return HM_OK;
}

/* ---- one layer ------------------------------------------------------------------------------------------------------------ */

/* Rounds `numbers` to their type in the file, writes them, and leaves in `numbers` what was stored. */
static hm_status store(struct writer *writer, size_t entry, enum place place, float *numbers, size_t count, hm_error *err)
{
    size_t at = writer->place[entry * PLACES + place];
    hm_dtype dtype = writer->infos[at].dtype;
    size_t size = hm_dtype_bytes(dtype);
    unsigned char *stored = hm_alloc(count, size);
    if (stored == NULL) return hm_fail_memory(err, "a factor");
    hm_status status = HM_OK;
    for (size_t i = 0; i < count && status == HM_OK; i += COLUMNS) {
        size_t n = count - i < COLUMNS ? count - i : COLUMNS;
        writer->kernels->store[dtype](numbers + i, stored + i * size, n);
        writer->kernels->load[dtype](stored + i * size, numbers + i, n);
        if (writer->kernels->find_nonfinite(numbers + i, n) < n)
            status = hm_fail(err, HM_ERR_MISMATCH, writer->out.file.target, writer->infos[at].name,
                             "a value does not fit into %s; use a wider type", hm_dtype_name(dtype));
    }
    if (status == HM_OK) status = hm_output_write(&writer->out, at, 0, stored, count, err);
    hm_release(stored);
    return status;
}

static double sum_squares(const struct writer *writer, const float *numbers, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i += COLUMNS)
        sum += writer->kernels->sum_squares(numbers + i, count - i < COLUMNS ? count - i : COLUMNS);
    return sum;
}

/* Leaves in `found` what was stored. */
static hm_status store_factors(struct writer *writer, size_t e, hm_low_rank *found, hm_error *err)
{
    hm_lora_entry *entry = &writer->list.entries[e];
    float alpha = (float)entry->rank;
    entry->square = found->square;
    HM_TRY(store(writer, e, PLACE_UP, found->up, entry->rows * found->rank, err));
    HM_TRY(store(writer, e, PLACE_DOWN, found->down, found->rank * entry->columns, err));
    return store(writer, e, PLACE_ALPHA, &alpha, 1, err);
}

static hm_status write_factors(struct writer *writer, size_t e, float *d, const char *name, hm_error *err)
{
    hm_lora_entry *entry = &writer->list.entries[e];
    hm_low_rank found;
    HM_TRY(hm_low_rank_find(&found, writer->blas, d, entry->rows, entry->columns, entry->rank, e, name, err));
    hm_status status = store_factors(writer, e, &found, err);
    if (status == HM_OK) {
        /* What is left, of the numbers as stored: in columns, Dᵀ −= downᵀ · upᵀ. */
        writer->blas->gemm('N', 'N', entry->columns, entry->rows, found.rank, -1, found.down, entry->columns, found.up,
                           found.rank, 1, d, entry->columns);
        entry->rest_stored = sum_squares(writer, d, entry->rows * entry->columns);
        /* Rounding takes nothing away: where ‖D‖² − Σσ² says more, it is what f32 knows of a difference of large numbers. */
        entry->rest = fmin(found.rest, entry->rest_stored);
    }
    hm_low_rank_clear(&found);
    return status;
}

static hm_status write_whole(struct writer *writer, size_t e, float *d, const char *name, hm_error *err)
{
    hm_lora_entry *entry = &writer->list.entries[e];
    float *stored = hm_alloc(entry->rows, sizeof *stored);
    if (stored == NULL) return hm_fail_memory(err, "a difference");
    memcpy(stored, d, entry->rows * sizeof *stored);
    entry->square = sum_squares(writer, d, entry->rows);
    hm_status status = HM_OK;
    if (!isfinite(entry->square)) status = hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the difference holds NaN or Inf");
    if (status == HM_OK) status = store(writer, e, PLACE_ALPHA, stored, entry->rows, err);
    for (size_t i = 0; i < entry->rows; i++) d[i] -= stored[i];
    entry->rest_stored = sum_squares(writer, d, entry->rows);
    hm_release(stored);
    return status;
}

static bool is_carried(const hm_lora_list *list, size_t tensor)
{
    return list->first[tensor] < list->first[tensor + 1];
}

/* In the order of the tensors, not in that in which threads came to their ends: so the last digits are always the same. */
static hm_lora_sums add_up(const struct writer *writer)
{
    hm_lora_sums sums = {0};
    for (size_t t = 0; t < writer->difference->count; t++) {
        sums.square += writer->square[t];
        if (is_carried(&writer->list, t)) continue;
        sums.lost_square += writer->square[t];
        sums.lost++;
    }
    return sums;
}

static hm_status write_tensor(void *user, size_t tensor, float *numbers, hm_error *err)
{
    struct writer *writer = user;
    const hm_lora_list *list = &writer->list;
    const char *name = writer->difference->name[tensor];
    double square = 0;
    if (!is_carried(list, tensor)) square = sum_squares(writer, numbers, (size_t)writer->difference->elements[tensor]);
    for (size_t e = list->first[tensor]; e < list->first[tensor + 1]; e++) {
        hm_lora_entry *entry = &list->entries[e];
        size_t count = entry->rows * entry->columns;
        float *d = numbers + entry->part.index * count;
        if (entry->rank == 0)
            entry->square = entry->rest = entry->rest_stored = sum_squares(writer, d, count);
        else if (entry->kind == HM_LORA_FACTORS)
            HM_TRY(write_factors(writer, e, d, name, err));
        else
            HM_TRY(write_whole(writer, e, d, name, err));
        square += entry->square;
    }
    if (!isfinite(square)) return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the difference holds NaN or Inf");
    writer->square[tensor] = square;
    return HM_OK;
}

/* ---- the same by the factors of a tensor ----------------------------------------------------------------------------------- */

static hm_status decompose_factors(struct writer *writer, const hm_blas *blas, const hm_factor_matrix *matrix, size_t e,
                                   const char *name, hm_error *err)
{
    hm_lora_entry *entry = &writer->list.entries[e];
    size_t first = entry->part.index * entry->rows;
    hm_low_rank found;
    HM_TRY(hm_low_rank_of_factors(&found, blas, matrix, first, entry->rows, entry->rank, name, err));
    hm_status status = HM_OK;
    entry->square = entry->rest = entry->rest_stored = found.square;
    if (entry->rank > 0) status = store_factors(writer, e, &found, err);
    if (status == HM_OK && entry->rank > 0) status = hm_factor_rest(&entry->rest_stored, blas, matrix, first, &found, err);
    if (entry->rank > 0) entry->rest = fmin(found.rest, entry->rest_stored);
    hm_low_rank_clear(&found);
    return status;
}

static hm_status write_by_factors(void *user, size_t i, unsigned worker, const hm_blas *blas, hm_error *err)
{
    struct writer *writer = user;
    (void)worker;
    const hm_lora_list *list = &writer->list;
    size_t tensor = writer->order[i];
    const char *name = writer->difference->name[tensor];
    hm_factor_matrix matrix;
    double square = 0;
    HM_TRY(hm_difference_factors(&matrix, writer->difference, tensor, err));
    hm_status status = HM_OK;
    for (size_t e = list->first[tensor]; status == HM_OK && e < list->first[tensor + 1]; e++) {
        status = decompose_factors(writer, blas, &matrix, e, name, err);
        square += list->entries[e].square;
    }
    if (!is_carried(list, tensor)) {
        hm_low_rank found;
        status = hm_low_rank_of_factors(&found, blas, &matrix, 0, matrix.rows, 0, name, err);
        if (status == HM_OK) square = found.square;
        if (status == HM_OK) hm_low_rank_clear(&found);
    }
    hm_factor_matrix_clear(&matrix);
    writer->square[tensor] = square;
    return status;
}

static uint64_t factors_memory(void *user, size_t i)
{
    const struct writer *writer = user;
    const hm_difference *difference = writer->difference;
    size_t tensor = writer->order[i], rank = hm_difference_rank(difference, tensor);
    uint64_t rows = difference->like[tensor]->shape[0], columns = difference->elements[tensor] / rows;
    return rank * (3 * (rows + columns) + 5 * rank) * sizeof(double);
}

/* Counted as a dense pass counts: read, and visited. */
static uint64_t factors_bytes(void *user, size_t i)
{
    const struct writer *writer = user;
    const hm_dense *dense = &writer->difference->dense;
    uint64_t bytes = 0;
    for (size_t r = 0; r < dense->row_count; r++) {
        uint32_t index = dense->rows[r].index[writer->order[i] * dense->rows[r].stride];
        if (index != HM_ABSENT) bytes += 2 * dense->rows[r].source->header.tensors[index].bytes;
    }
    return bytes;
}

static bool goes_by_factors(const struct writer *writer, size_t tensor)
{
    const hm_lora_list *list = &writer->list;
    const hm_tensor_info *like = writer->difference->like[tensor];
    size_t rank = hm_difference_rank(writer->difference, tensor), asked = 0;
    if (rank == 0) return false;
    for (size_t e = list->first[tensor]; e < list->first[tensor + 1]; e++) {
        if (list->entries[e].kind != HM_LORA_FACTORS) return false;
        if (list->entries[e].rank > asked) asked = list->entries[e].rank;
    }
    return rank <= like->shape[0] && rank <= writer->difference->elements[tensor] / like->shape[0] &&
           (rank <= FACTORS_RANK || rank <= asked);
}

/* Fills order and by_factors, and makes room for the squares. */
static hm_status share_out(struct writer *writer, hm_error *err)
{
    size_t count = writer->difference->count, rest = 0;
    writer->order = hm_alloc(2 * count, sizeof *writer->order);
    writer->square = hm_alloc(count, sizeof *writer->square);
    if (writer->order == NULL || writer->square == NULL) return hm_fail_memory(err, "the list of tensors");
    for (size_t t = 0; t < count; t++) {
        if (goes_by_factors(writer, t))
            writer->order[writer->by_factors++] = t;
        else
            writer->order[count + rest++] = t;
    }
    memmove(writer->order + writer->by_factors, writer->order + count, rest * sizeof *writer->order);
    return HM_OK;
}

/* ---- what is said in the file -------------------------------------------------------------------------------------------- */

/* What made it: {"type":"hyper-merge","lora":{…}}; for a blend the hyper-model and the multipliers, else the two files. */
struct origin {
    const hm_hyper *hyper;
    const double *at;
    const hm_source *from, *to;
};

static void put_origin_file(hm_text *text, const char *key, const hm_source *source)
{
    hm_text_format(text, ",\"%s\":{\"name\":", key);
    hm_json_string(text, hm_source_name(source));
    hm_text_put(text, ",\"header_hash\":");
    hm_json_string(text, source->header_hash);
    hm_text_put(text, "}");
}

static void put_recipe(hm_text *text, const struct origin *origin)
{
    hm_text_put(text, "{\"type\":\"hyper-merge\",\"version\":1,\"lora\":true");
    if (origin->hyper != NULL) {
        if (origin->hyper->file != NULL) put_origin_file(text, "hyper", origin->hyper->file);
        hm_text_put(text, ",\"at\":");
        hm_json_numbers(text, origin->at, origin->hyper->solution.directions);
    } else {
        put_origin_file(text, "from", origin->from);
        put_origin_file(text, "to", origin->to);
    }
    hm_text_put(text, "}");
}

/* What trainers and hosts call a family in ss_base_model_version. */
static const char *base_version(const char *family)
{
    return strncmp(family, "sdxl", 4) == 0  ? "sdxl_base_v1-0"
           : strncmp(family, "sd1", 3) == 0 ? "sd_v1"
           : strncmp(family, "sd2", 3) == 0 ? "sd_v2"
                                            : family;
}

static hm_status make_meta(hm_meta_list *meta, const struct writer *writer, const struct origin *origin, const char *path,
                           const char *data_hash, hm_error *err)
{
    hm_lora_ranks ranks = hm_lora_ranks_of(&writer->list);
    const char *family = writer->difference->family, *architecture = hm_family_architecture(family);
    hm_text text = {0}, dimension = {0}, hash = {0};
    char *title = hm_title_of(path), date[11];
    put_recipe(&text, origin);
    if (ranks.least == ranks.most)
        hm_text_format(&dimension, "%zu", ranks.most);
    else
        hm_text_put(&dimension, "Dynamic");
    hm_text_format(&hash, "0x%s", data_hash);
    if (title == NULL || text.failed || dimension.failed || hash.failed) {
        meta->failed = true;
    } else {
        hm_utc_date(date);
        hm_meta_add(meta, "format", "pt");
        if (strcmp(family, "lora") != 0) { /* else nobody knows for which model it is */
            hm_meta_add(meta, "ss_v2", strncmp(family, "sd2", 3) == 0 ? "True" : "False");
            hm_meta_add(meta, "ss_base_model_version", base_version(family));
        }
        hm_meta_add(meta, "ss_network_module", "networks.lora");
        hm_meta_add(meta, "ss_network_dim", dimension.data);
        hm_meta_add(meta, "ss_network_alpha", dimension.data);
        hm_text_clear(&dimension);
        hm_text_format(&dimension, "{\"conv_dim\":\"%zu\",\"conv_alpha\":\"%zu\"}", ranks.most, ranks.most);
        hm_meta_add(meta, "ss_network_args", dimension.data);
        if (architecture != NULL) {
            hm_text_clear(&dimension);
            hm_text_format(&dimension, "%s/lora", architecture);
            hm_meta_add(meta, "modelspec.sai_model_spec", "1.0.1");
            hm_meta_add(meta, "modelspec.architecture", dimension.data);
            hm_meta_add(meta, "modelspec.implementation", "hyper-merge");
            hm_meta_add(meta, "modelspec.title", title);
            hm_meta_add(meta, "modelspec.resolution", hm_family_resolution(family));
            hm_meta_add(meta, "modelspec.date", date);
            hm_meta_add(meta, "modelspec.hash_sha256", hash.data);
        }
        hm_meta_add(meta, "sshs_model_hash", data_hash);
        hm_meta_add(meta, "sd_merge_recipe", text.data);
    }
    hm_release(title);
    hm_text_clear(&text);
    hm_text_clear(&dimension);
    hm_text_clear(&hash);
    return meta->failed ? hm_fail_memory(err, "metadata") : HM_OK;
}

/* ---- the calls ------------------------------------------------------------------------------------------------------------ */

static hm_status check_options(const hm_lora_options *options, hm_error *err)
{
    int given = (options->rank > 0) + (options->error > 0) + (options->bytes > 0);
    if (given > 1) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "rank, error and size exclude one another; give one");
    if (options->rank > MOST_RANK)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a rank of %u is too large, the most is %u", options->rank, MOST_RANK);
    if (!isfinite(options->error) || options->error < 0 || options->error >= 1)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a relative error lies between 0 and 1");
    if (options->dtype != HM_DTYPE_KEEP && options->dtype != HM_F16 && options->dtype != HM_BF16 && options->dtype != HM_F32)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a LoRA is written in f16, bf16 or f32");
    return HM_OK;
}

static hm_status decompose_and_write(struct writer *writer, hm_job *job, hm_error *err)
{
    hm_dense dense = writer->difference->dense;
    dense.visit = write_tensor;
    dense.user = writer;
    HM_TRY(share_out(writer, err));
    hm_second_pass second = {.job = job};
    hm_job own = job != NULL ? *job : (hm_job){0};
    size_t count = writer->difference->count, by_factors = writer->by_factors;
    if (by_factors > 0) {
        hm_factor_work work = {.count = by_factors, .memory = factors_memory, .bytes = factors_bytes, .run = write_by_factors,
                               .user = writer};
        for (size_t i = 0; i < by_factors; i++) second.before += factors_bytes(writer, i);
        for (size_t i = by_factors; i < count; i++) work.later_bytes += factors_bytes(writer, i);
        HM_TRY(hm_factor_crew_run(&work, &own, err));
        own.out_cached_bytes -= second.before / 2; /* they were read once */
        dense.chosen = writer->order + by_factors;
        dense.chosen_count = count - by_factors;
        if (own.progress != NULL) own.progress = hm_second_progress;
        own.user = &second;
    }
    HM_TRY(hm_blas_begin(&writer->blas, err));
    hm_status status = by_factors < count ? hm_dense_run(&dense, &own, err) : HM_OK;
    hm_blas_end();
    if (job != NULL) {
        job->out_direct_bytes = own.out_direct_bytes;
        job->out_cached_bytes = own.out_cached_bytes;
        job->out_total_bytes = second.before + (by_factors < count ? own.out_total_bytes : 0);
        job->out_seconds = own.out_seconds;
    }
    return status;
}

static hm_status write_file(struct writer *writer, const struct origin *origin, const char *path, char **out_json,
                            hm_job *job, hm_error *err)
{
    hm_meta_list meta = {0};
    char hash[65];
    hm_status status = make_meta(&meta, writer, origin, path, HM_HASH_PLACEHOLDER, err);
    if (status == HM_OK)
        status = hm_output_begin(&writer->out, path, writer->infos, writer->info_count, meta.entries, meta.count, err);
    hm_meta_clear(&meta);
    if (status == HM_OK) status = decompose_and_write(writer, job, err);
    if (status == HM_OK) status = hm_output_data_hash(&writer->out, hash, job, err);
    if (status == HM_OK) status = make_meta(&meta, writer, origin, path, hash, err);
    if (status == HM_OK) status = hm_output_finish(&writer->out, meta.entries, meta.count, NULL, err);
    hm_meta_clear(&meta);
    hm_text report = {0};
    char *json = NULL;
    if (status == HM_OK && out_json != NULL) {
        hm_lora_sums sums = add_up(writer);
        hm_lora_put_report(&report, &writer->list, &sums, writer->out.end);
        status = hm_give_text(&report, &json, err);
    }
    if (status == HM_OK) status = hm_output_publish(&writer->out, err);
    if (status == HM_OK && out_json != NULL)
        *out_json = json;
    else
        hm_free(json);
    hm_output_close(&writer->out);
    return status;
}

static hm_status check_target(const struct writer *writer, const struct origin *origin, const char *path, hm_error *err)
{
    hm_source *of_hyper[] = {origin->hyper != NULL ? origin->hyper->file : NULL,
                             origin->hyper != NULL ? origin->hyper->base_file : NULL};
    bool force = writer->options->force;
    for (size_t r = 0; r < writer->difference->dense.row_count; r++)
        HM_TRY(hm_output_check_target(path, &writer->difference->rows[r].source, 1, force, err));
    return hm_output_check_target(path, of_hyper, 2, force, err);
}

static hm_status write_lora(const hm_difference *difference, const struct origin *origin, const char *path,
                            const hm_lora_options *options, char **out_json, hm_job *job, hm_error *err)
{
    struct writer writer = {.difference = difference, .options = options, .kernels = hm_kernels_best(),
                            .out = HM_OUTPUT_CLOSED,
                            .dtype = options->dtype == HM_DTYPE_KEEP ? HM_F16 : options->dtype};
    size_t size = hm_dtype_bytes(writer.dtype), rank = options->rank > 0 ? options->rank : DEFAULT_RANK;
    hm_lora_format format;
    HM_TRY(hm_lora_format_for(difference->family, options->format, &format, err));
    HM_TRY(check_target(&writer, origin, path, err));
    HM_TRY(hm_lora_list_make(&writer.list, difference, format, options->whole, rank, err));
    hm_status status = HM_OK;
    if (options->bytes > 0 || options->error > 0)
        status = hm_lora_choose_ranks(&writer.list, options->bytes, options->error, size, job, err);
    if (status == HM_OK) status = lay_out(&writer, err);
    if (status == HM_OK) status = write_file(&writer, origin, path, out_json, job, err);
    hm_lora_list_clear(&writer.list);
    hm_release(writer.infos);
    hm_release(writer.names);
    hm_release(writer.place);
    hm_release(writer.order);
    hm_release(writer.square);
    return status;
}

static const hm_lora_options defaults = {.dtype = HM_DTYPE_KEEP, .format = HM_LORA_AUTO};

hm_status hm_hyper_lora(hm_hyper *hyper, const double *at, size_t at_count, const char *path, const hm_lora_options *options,
                        char **out_json, hm_job *job, hm_error *err)
{
    double all[HM_MAX_MEMBERS] = {0};
    size_t directions = hyper->solution.directions;
    if (options == NULL) options = &defaults;
    HM_TRY(check_options(options, err));
    if (at_count > directions)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu multipliers for %zu directions", at_count, directions);
    bool any = false;
    for (size_t k = 0; k < at_count; k++) {
        if (!isfinite(at[k])) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a multiplier is not a finite number");
        all[k] = at[k];
        any = any || at[k] != 0;
    }
    if (!any) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "all multipliers are 0: the LoRA would change nothing");
    hm_difference difference;
    HM_TRY(hm_difference_of_blend(&difference, hyper, all, err));
    struct origin origin = {.hyper = hyper, .at = all};
    hm_status status = write_lora(&difference, &origin, path, options, out_json, job, err);
    hm_difference_clear(&difference);
    return status;
}

hm_status hm_lora_of_pair(hm_source *from, hm_source *to, const char *path, const hm_lora_options *options, char **out_json,
                          hm_job *job, hm_error *err)
{
    if (options == NULL) options = &defaults;
    HM_TRY(check_options(options, err));
    hm_difference difference;
    HM_TRY(hm_difference_of_pair(&difference, from, to, &options->selection, err));
    struct origin origin = {.from = from, .to = to};
    hm_status status = write_lora(&difference, &origin, path, options, out_json, job, err);
    hm_difference_clear(&difference);
    return status;
}
