/* Opening NAME.hyper.safetensors: the document is read as strictly as the header, because multipliers decide what is
 * written into somebody's model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/document.h"
#include "solve/hyper.h"

static hm_status broken(const hm_hyper *hyper, hm_error *err, const char *what)
{
    return hm_fail(err, HM_ERR_FORMAT, hm_source_label(hyper->file), NULL, "its hypermerge metadata is damaged: %s", what);
}

static bool copy_hash(char out[65], const char *hash)
{
    out[0] = 0;
    if (hash == NULL) return true;
    if (strlen(hash) != 64 || strspn(hash, "0123456789abcdef") != 64) return false;
    memcpy(out, hash, 65);
    return true;
}

static hm_status read_member(hm_hyper *hyper, const cJSON *json, size_t m, size_t *weighted, bool *stored,
                             hm_error *err)
{
    hm_solution *solution = &hyper->solution;
    hm_member *member = &hyper->members[m];
    const char *name = hm_document_string(json, "name");
    if (name == NULL) return broken(hyper, err, "a member has no name");
    member->name = hm_copy_text(name);
    if (member->name == NULL) return hm_fail_memory(err, "a hyper-model");
    const char *kind = hm_document_string(json, "kind");
    member->is_lora = kind != NULL && strcmp(kind, "lora") == 0;
    if (!copy_hash(member->header_hash, hm_document_string(json, "header_hash")) ||
        !copy_hash(member->sha256, hm_document_string(json, "sha256")))
        return broken(hyper, err, "a hash is not 64 hexadecimal digits");
    if (!hm_document_numbers(json, "multipliers", solution->multipliers + m * solution->directions, solution->directions))
        return broken(hyper, err, "a member's multipliers are not one number per direction");
    if (!hm_document_number(json, "residual", &solution->residual[m]) ||
        !hm_document_number(json, "norm", &solution->norm[m]))
        return broken(hyper, err, "a member's residual or norm is missing");
    if (hm_document_number(json, "weight", &hyper->weights[m])) {
        if (hyper->weights[m] <= 0) return broken(hyper, err, "a weight is not positive");
        (*weighted)++;
    }
    *stored = *stored && hm_document_number(json, "residual_stored", &hyper->residual_stored[m]);
    return HM_OK;
}

/* D_k = Σ_m a_km ΔW_m with a_km = w_m c_mk / Σ_j w_j c_jk²: the formulas of solution.h turned round. */
static void inputs_from_multipliers(hm_hyper *hyper)
{
    hm_solution *solution = &hyper->solution;
    size_t members = solution->members, directions = solution->directions;
    for (size_t k = 0; k < directions; k++) {
        double square = 0;
        for (size_t m = 0; m < members; m++) {
            double c = solution->multipliers[m * directions + k];
            square += (hyper->weights != NULL ? hyper->weights[m] : 1) * c * c;
        }
        for (size_t m = 0; m < members; m++)
            solution->inputs[k * members + m] = square > 0 ? (hyper->weights != NULL ? hyper->weights[m] : 1) *
                                                                 solution->multipliers[m * directions + k] / square
                                                           : 0;
    }
}

static bool whole_number(const cJSON *object, const char *name, double least, double most, size_t *out)
{
    double value;
    if (!hm_document_number(object, name, &value) || value < least || value > most || value != floor(value)) return false;
    *out = (size_t)value;
    return true;
}

static hm_status read_texts(hm_hyper *hyper, const cJSON *array, char ***out, size_t *count, hm_error *err)
{
    size_t length = array != NULL ? (size_t)cJSON_GetArraySize(array) : 0;
    *out = hm_alloc(length, sizeof **out);
    if (*out == NULL) return hm_fail_memory(err, "a list of names");
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsString(item)) return broken(hyper, err, "a list of names holds something else");
        if (((*out)[*count] = hm_copy_text(item->valuestring)) == NULL) return hm_fail_memory(err, "a list of names");
        (*count)++;
    }
    return HM_OK;
}

static hm_status read_base(hm_hyper *hyper, const cJSON *json, hm_error *err)
{
    const cJSON *base = hm_document_object(json, "base");
    const char *kind = hm_document_string(base, "kind"), *name = hm_document_string(base, "name");
    if (kind == NULL) return broken(hyper, err, "base.kind is missing");
    if (strcmp(kind, "mean") == 0)
        hyper->base = HM_BASE_MEAN;
    else if (strcmp(kind, "file") == 0)
        hyper->base = HM_BASE_FILE;
    else if (strcmp(kind, "none") == 0)
        hyper->base = HM_BASE_NONE;
    else
        return broken(hyper, err, "base.kind is none of mean, file, none");
    if (name == NULL) return hyper->base == HM_BASE_FILE ? broken(hyper, err, "the base has no name") : HM_OK;
    if (hyper->base == HM_BASE_NONE) return broken(hyper, err, "it names a base and says that there is none");
    /* A name, not a path: a document must not make us open files elsewhere. */
    if (name[0] == 0 || strchr(name, '/') != NULL || strchr(name, '\\') != NULL)
        return broken(hyper, err, "the base's name is not a file name");
    double bytes = 0;
    hyper->base_name = hm_copy_text(name);
    if (hyper->base_name == NULL) return hm_fail_memory(err, "a name");
    if (!copy_hash(hyper->base_header_hash, hm_document_string(base, "header_hash")) ||
        !copy_hash(hyper->base_sha256, hm_document_string(base, "sha256")))
        return broken(hyper, err, "a hash is not 64 hexadecimal digits");
    if (hm_document_number(base, "size", &bytes) && bytes >= 0 && bytes < 9e15) hyper->base_bytes = (uint64_t)bytes;
    return HM_OK;
}

static bool all_numbers(const cJSON *array, size_t least, size_t most)
{
    size_t count = array != NULL ? (size_t)cJSON_GetArraySize(array) : 0;
    if (count < least || count > most) return false;
    const cJSON *value;
    cJSON_ArrayForEach(value, array) if (!cJSON_IsNumber(value)) return false;
    return true;
}

/* What the document of hyper-LoRAs has besides, and no other has.  Kept as text alone: tables and maps show it. */
static hm_status read_ranked(hm_hyper *hyper, const cJSON *json, hm_error *err)
{
    static const char *const keys[] = {"ranks", "losses", "direction_gram"};
    size_t directions = hyper->solution.directions;
    for (size_t i = 0; !hyper->ranked && i < 3; i++)
        if (cJSON_GetObjectItemCaseSensitive(json, keys[i]) != NULL)
            return broken(hyper, err, "it tells of hyper-LoRAs, which its method does not make");
    if (!hyper->ranked) return HM_OK;
    if (!all_numbers(hm_document_array(json, "ranks"), directions, directions))
        return broken(hyper, err, "ranks is not one number per direction");
    if (!all_numbers(hm_document_array(json, "losses"), 1, SIZE_MAX)) return broken(hyper, err, "losses are no numbers");
    const cJSON *gram = hm_document_array(json, "direction_gram"), *row;
    if (gram == NULL || (size_t)cJSON_GetArraySize(gram) != directions)
        return broken(hyper, err, "direction_gram is not K × K");
    cJSON_ArrayForEach(row, gram) if (!cJSON_IsArray(row) || !all_numbers(row, directions, directions))
        return broken(hyper, err, "direction_gram is not K × K");
    return HM_OK;
}

static hm_status read_document(hm_hyper *hyper, const cJSON *json, hm_error *err)
{
    hm_solution *solution = &hyper->solution;
    double version;
    if (!hm_document_number(json, "version", &version)) return broken(hyper, err, "version is missing");
    if (version != HM_DOCUMENT_VERSION)
        return hm_fail(err, HM_ERR_FORMAT, hm_source_label(hyper->file), NULL,
                       "was written in version %g of the hyper-model format, this program reads version %d: update it",
                       version, HM_DOCUMENT_VERSION);
    const cJSON *members = hm_document_array(json, "members");
    size_t count = members != NULL ? (size_t)cJSON_GetArraySize(members) : 0, directions;
    if (count == 0 || count > HM_MAX_MEMBERS) return broken(hyper, err, "members are missing or too many");
    if (!whole_number(json, "directions", 0, (double)count, &directions))
        return broken(hyper, err, "directions is not a whole number");

    hyper->members = hm_alloc(count, sizeof *hyper->members);
    if (hyper->members == NULL) return hm_fail_memory(err, "a hyper-model");
    *solution = (hm_solution){.members = count, .directions = directions};
    solution->multipliers = hm_alloc(count * directions, sizeof(double));
    solution->inputs = hm_alloc(count * directions, sizeof(double));
    solution->eigenvalues = hm_alloc(count, sizeof(double));
    solution->explained = hm_alloc(count, sizeof(double));
    solution->residual = hm_alloc(count, sizeof(double));
    solution->norm = hm_alloc(count, sizeof(double));
    hyper->weights = hm_alloc(count, sizeof(double));
    hyper->residual_stored = hm_alloc(count, sizeof(double));
    hyper->gram = hm_alloc(count * count, sizeof(double));
    const char *family = hm_document_string(json, "family"), *method = hm_document_string(json, "method");
    hyper->family = hm_copy_text(family != NULL ? family : "unknown");
    if (solution->multipliers == NULL || solution->inputs == NULL || solution->eigenvalues == NULL ||
        solution->explained == NULL || solution->residual == NULL || solution->norm == NULL || hyper->weights == NULL ||
        hyper->residual_stored == NULL || hyper->gram == NULL || hyper->family == NULL)
        return hm_fail_memory(err, "a hyper-model");

    size_t weighted = 0;
    bool stored = true;
    for (size_t m = 0; m < count; m++)
        HM_TRY(read_member(hyper, cJSON_GetArrayItem(members, (int)m), m, &weighted, &stored, err));
    double sum = 0;
    for (size_t m = 0; m < weighted; m++) sum += hyper->weights[m];
    if (weighted == 0) {
        hm_release(hyper->weights);
        hyper->weights = NULL;
    } else if (weighted < count || fabs(sum - (double)count) > 1e-6 * (double)count) {
        return broken(hyper, err, "the weights are not one per member with sum M");
    }
    if (!stored) {
        hm_release(hyper->residual_stored);
        hyper->residual_stored = NULL;
    }
    if (!hm_document_numbers(json, "explained_variance_ratio", solution->explained, directions))
        return broken(hyper, err, "explained_variance_ratio is not one number per direction");
    if (!hm_document_number(json, "loss", &solution->loss) || !hm_document_number(json, "total", &solution->total))
        return broken(hyper, err, "loss or total is missing");
    const cJSON *gram = hm_document_array(json, "gram");
    if (gram == NULL || (size_t)cJSON_GetArraySize(gram) != count) return broken(hyper, err, "gram is not M × M");
    const cJSON *row;
    size_t i = 0;
    cJSON_ArrayForEach(row, gram)
    {
        if (!cJSON_IsArray(row) || (size_t)cJSON_GetArraySize(row) != count) return broken(hyper, err, "gram is not M × M");
        const cJSON *value;
        size_t j = 0;
        cJSON_ArrayForEach(value, row)
        {
            if (!cJSON_IsNumber(value)) return broken(hyper, err, "gram is not M × M");
            hyper->gram[i * count + j++] = value->valuedouble;
        }
        i++;
    }
    solution->method = method != NULL && strcmp(method, "als") == 0 ? HM_ALS : HM_EXACT;
    hyper->ranked = method != NULL && strcmp(method, HM_METHOD_RANKED) == 0;
    HM_TRY(read_ranked(hyper, json, err));
    inputs_from_multipliers(hyper);
    const cJSON *selection = hm_document_object(json, "selection");
    HM_TRY(read_texts(hyper, hm_document_array(selection, "include"), &hyper->include, &hyper->include_count, err));
    HM_TRY(read_texts(hyper, hm_document_array(selection, "exclude"), &hyper->exclude, &hyper->exclude_count, err));
    hyper->common = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(selection, "common"));
    HM_TRY(read_texts(hyper, hm_document_array(json, "unmoved"), &hyper->unmoved, &hyper->unmoved_count, err));
    qsort(hyper->unmoved, hyper->unmoved_count, sizeof *hyper->unmoved, hm_text_order);
    return read_base(hyper, json, err);
}

/* Splits "hypermerge.direction.K.NAME" or "hypermerge.base_low.NAME"; *k is 0 for base_low.  NULL: another name. */
static const char *tensor_of_part(const char *name, size_t directions, size_t *k)
{
    size_t low = strlen(HM_PREFIX_BASE_LOW);
    *k = 0;
    if (strncmp(name, HM_PREFIX_BASE_LOW, low) == 0) return name[low] != 0 ? name + low : NULL;
    if (strncmp(name, HM_PREFIX_DIRECTION, strlen(HM_PREFIX_DIRECTION)) != 0) return NULL;
    const char *digits = name + strlen(HM_PREFIX_DIRECTION);
    size_t length = strspn(digits, "0123456789");
    for (size_t d = 0; d < length && d < 3; d++) *k = *k * 10 + (size_t)(digits[d] - '0');
    if (length == 0 || length > 2 || digits[0] == '0' || digits[length] != '.' || digits[length + 1] == 0 || *k > directions)
        return NULL;
    return digits + length + 1;
}

static bool has_all_directions(const hm_hyper *hyper, const char *name)
{
    for (size_t k = 1; k <= hyper->solution.directions; k++)
        if (hm_part_index(hyper, k, name) == HM_ABSENT) return false;
    return true;
}

/* What the tensors named hypermerge.* say must agree with the base and with the document, since it decides what is written
 * where: floating point on both sides, one shape, every direction for every tensor that moves.  Whether a direction is stored
 * in full or as factors makes no difference: of factors the source offers the product. */
static hm_status check_parts(const hm_hyper *hyper, hm_error *err)
{
    const char *file = hm_source_label(hyper->file);
    size_t moving = 0;
    for (size_t i = 0; i < hyper->file->header.count; i++) {
        const hm_tensor_info *part = &hyper->file->header.tensors[i];
        if (strncmp(part->name, HM_PREFIX, strlen(HM_PREFIX)) != 0 || strcmp(part->name, HM_PREFIX "pad") == 0) continue;
        size_t k;
        const char *of = tensor_of_part(part->name, hyper->solution.directions, &k);
        if (of == NULL)
            return hm_fail(err, HM_ERR_FORMAT, file, part->name, "is no part of a hyper-model as the metadata describes it");
        if (!hm_dtype_is_float(part->dtype))
            return hm_fail(err, HM_ERR_FORMAT, file, part->name, "is not of a floating-point type");
        if (k == 0 && part->rank > 0)
            return hm_fail(err, HM_ERR_FORMAT, file, part->name, "is low-rank, which only directions can be");
        if (k > 0 && !has_all_directions(hyper, of))
            return hm_fail(err, HM_ERR_FORMAT, file, of, "does not have all %zu directions", hyper->solution.directions);
        moving += k > 0 ? 1 : 0;
        if (k > 0) { /* of a base that is absent or not found nothing else is known */
            const hm_tensor_info *first = &hyper->file->header.tensors[hm_part_index(hyper, 1, of)];
            if (first->ndim != part->ndim || memcmp(first->shape, part->shape, first->ndim * sizeof *first->shape) != 0)
                return hm_fail(err, HM_ERR_FORMAT, file, part->name, "does not have the shape of the first direction");
        }
        if (hyper->base == HM_BASE_NONE) {
            if (k == 0 || hm_source_find(hyper->file, of) != NULL)
                return hm_fail(err, HM_ERR_FORMAT, file, of, "has a base value in a hyper-model without base");
            continue;
        }
        if (hyper->base_file == NULL) continue; /* not found: nothing can be written either */
        const hm_tensor_info *base = hm_source_find(hyper->base_file, of);
        if (base == NULL) return hm_fail(err, HM_ERR_FORMAT, file, part->name, "moves a tensor that the base lacks");
        if (!hm_dtype_is_float(base->dtype) || base->ndim != part->ndim ||
            memcmp(base->shape, part->shape, base->ndim * sizeof *base->shape) != 0)
            return hm_fail(err, HM_ERR_FORMAT, file, part->name, "does not have the shape and kind of the tensor it moves");
    }
    if (moving == 0 && hyper->solution.directions > 0) return broken(hyper, err, "it speaks of directions that are not there");
    return HM_OK;
}

/* A file that is absent, unreadable or another one of that name is not the base; one that memory was lacking for may be. */
static hm_status open_if_right(hm_hyper *hyper, const char *folder, size_t folder_length, hm_error *err)
{
    hm_text path = {0};
    hm_source *source = NULL;
    hm_error reason = {0};
    hm_text_add(&path, folder, folder_length);
    if (folder_length > 0 && folder[folder_length - 1] != '/') hm_text_put(&path, "/");
    hm_text_put(&path, hyper->base_name);
    hm_status status = path.failed ? hm_fail_memory(&reason, "a path") : HM_OK;
    if (status == HM_OK && hm_path_exists(path.data)) status = hm_source_open(&source, path.data, &reason);
    hm_text_clear(&path);
    if (source != NULL && strcmp(source->header_hash, hyper->base_header_hash) == 0)
        hyper->base_file = source;
    else
        hm_source_close(source);
    if (status != HM_ERR_MEMORY) return HM_OK;
    if (err != NULL) *err = reason;
    return status;
}

static hm_status find_base(hm_hyper *hyper, const char *const *folders, size_t folder_count, hm_error *err)
{
    if (hyper->base_name == NULL) {
        if (hyper->base == HM_BASE_MEAN) hyper->base_file = hm_source_keep(hyper->file);
        return HM_OK;
    }
    const char *path = hm_source_path(hyper->file), *slash = strrchr(path, '/');
    HM_TRY(open_if_right(hyper, path, slash != NULL ? (size_t)(slash - path) + 1 : 0, err));
    for (size_t i = 0; hyper->base_file == NULL && i < folder_count; i++)
        HM_TRY(open_if_right(hyper, folders[i], strlen(folders[i]), err));
    return HM_OK;
}

static hm_status open_into(hm_hyper *hyper, const char *path, const char *const *folders, size_t folder_count, hm_error *err)
{
    HM_TRY(hm_source_open(&hyper->file, path, err));
    const char *text = hm_source_metadata(hyper->file, "hypermerge");
    if (text == NULL)
        return hm_fail(err, HM_ERR_FORMAT, path, NULL,
                       "is not a hyper-model (no hypermerge metadata); make one with: hyper-merge solve MODEL… -o NAME");
    cJSON *json = NULL;
    HM_TRY(hm_document_parse(&json, text, hm_source_label(hyper->file), "hypermerge metadata", err));
    hm_status status = read_document(hyper, json, err);
    cJSON_Delete(json);
    HM_TRY(status);
    hyper->document = hm_copy_text(text);
    if (hyper->document == NULL) return hm_fail_memory(err, "a hyper-model");
    HM_TRY(find_base(hyper, folders, folder_count, err));
    return check_parts(hyper, err);
}

hm_status hm_hyper_open(hm_hyper **out, const char *path, const char *const *folders, size_t folder_count, hm_error *err)
{
    hm_hyper *hyper = hm_alloc(1, sizeof *hyper);
    if (hyper == NULL) return hm_fail_memory(err, "a hyper-model");
    atomic_init(&hyper->references, 1);
    hm_status status = open_into(hyper, path, folders, folder_count, err);
    if (status == HM_OK)
        *out = hyper;
    else
        hm_hyper_close(hyper);
    return status;
}
