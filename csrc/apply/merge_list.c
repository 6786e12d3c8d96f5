#include "apply/merge_list.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/header_write.h"
#include "model/glob.h"

#define NAME_ROOM 1024

static bool is_ours(const char *name)
{
    return strncmp(name, HM_PREFIX, strlen(HM_PREFIX)) == 0;
}

/* Direction k (from 1) of a tensor in an opened hyper-model, or HM_ABSENT. */
static uint32_t direction_index(const hm_hyper *hyper, const char *name, size_t k)
{
    char full[NAME_ROOM];
    int length = snprintf(full, sizeof full, HM_PREFIX_DIRECTION "%zu.%s", k, name);
    return length > 0 && (size_t)length < sizeof full ? hm_source_index(hyper->file, full) : HM_ABSENT;
}

static bool has_direction(const hm_hyper *hyper, const char *name)
{
    for (size_t k = 1; k <= hyper->solution.directions; k++)
        if (direction_index(hyper, name, k) != HM_ABSENT) return true;
    return false;
}

/* A tensor by any spelling of its name that checkpoints use. */
static uint32_t index_by_any_name(const hm_source *source, const char *name)
{
    static const char old_prefix[] = "cond_stage_model.transformer.", inserted[] = "text_model.";
    char other[NAME_ROOM];
    uint32_t index = hm_source_index(source, name);
    if (index == HM_ABSENT && hm_name_canonical(name, other, sizeof other)) index = hm_source_index(source, other);
    size_t prefix = sizeof old_prefix - 1, extra = sizeof inserted - 1;
    if (index == HM_ABSENT && strncmp(name, old_prefix, prefix) == 0 && strncmp(name + prefix, inserted, extra) == 0) {
        int length = snprintf(other, sizeof other, "%s%s", old_prefix, name + prefix + extra);
        if (length > 0 && (size_t)length < sizeof other) index = hm_source_index(source, other);
    }
    return index;
}

/* The same in a stand-alone VAE file, whose names have no prefix. */
static uint32_t vae_index(const hm_source *vae, const char *name)
{
    uint32_t index = hm_source_index(vae, name);
    if (index == HM_ABSENT && strncmp(name, "first_stage_model.", 18) == 0) index = hm_source_index(vae, name + 18);
    if (index == HM_ABSENT && strncmp(name, "vae.", 4) == 0) index = hm_source_index(vae, name + 4);
    return index;
}

static bool same_shape(const hm_tensor_info *a, const hm_tensor_info *b)
{
    return a->ndim == b->ndim && memcmp(a->shape, b->shape, a->ndim * sizeof *a->shape) == 0;
}

/* ---- the tensors ------------------------------------------------------------------------------------------------------- */

static void add_blended(hm_merge_list *list, const hm_tensor_info *like, const char *name)
{
    hm_merge_tensor *tensor = &list->tensors[list->count++];
    *tensor = (hm_merge_tensor){.like = *like, .blended = true};
    tensor->like.name = name;
}

static void add_copied(hm_merge_list *list, hm_source *from, uint32_t index)
{
    list->tensors[list->count++] =
        (hm_merge_tensor){.like = from->header.tensors[index], .copy_from = from, .copy_index = index};
}

static void list_opened(hm_merge_list *list, hm_hyper *hyper)
{
    static const char first_prefix[] = HM_PREFIX_DIRECTION "1.";
    hm_source *base = hyper->base_file != NULL ? hyper->base_file : hyper->file;
    for (uint32_t i = 0; i < base->header.count; i++) {
        const hm_tensor_info *tensor = &base->header.tensors[i];
        if (is_ours(tensor->name) || hm_name_rule(tensor->name, tensor->dtype) == HM_RULE_DROP) continue;
        if (has_direction(hyper, tensor->name))
            add_blended(list, tensor, tensor->name);
        else
            add_copied(list, base, i);
    }
    if (hyper->base != HM_BASE_NONE) return;
    for (uint32_t i = 0; i < hyper->file->header.count; i++) { /* without W̃ the directions alone name what is merged */
        const hm_tensor_info *tensor = &hyper->file->header.tensors[i];
        if (strncmp(tensor->name, first_prefix, sizeof first_prefix - 1) == 0)
            add_blended(list, tensor, tensor->name + sizeof first_prefix - 1);
    }
}

static void list_solved(hm_merge_list *list, const hm_hyper *hyper)
{
    const hm_plan *plan = hyper->plan;
    for (size_t t = 0; t < plan->count; t++) {
        const hm_plan_tensor *tensor = &plan->tensors[t];
        if (tensor->action == HM_ACTION_MERGE)
            add_blended(list, tensor->like, tensor->like->name);
        else
            add_copied(list, tensor->copy_from, tensor->copy_index);
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const hm_merge_tensor *)a)->like.name, ((const hm_merge_tensor *)b)->like.name);
}

/* Another carrier gives what is not blended, and adds what the hyper-model does not have at all. */
static void apply_carrier(hm_merge_list *list, hm_source *carrier)
{
    qsort(list->tensors, list->count, sizeof *list->tensors, by_name);
    size_t known = list->count;
    for (size_t i = 0; i < known; i++) {
        hm_merge_tensor *tensor = &list->tensors[i];
        uint32_t index = tensor->blended ? HM_ABSENT : index_by_any_name(carrier, tensor->like.name);
        if (index == HM_ABSENT) continue;
        const char *name = tensor->like.name;
        *tensor = (hm_merge_tensor){.like = carrier->header.tensors[index], .copy_from = carrier, .copy_index = index};
        tensor->like.name = name;
    }
    for (uint32_t i = 0; i < carrier->header.count; i++) {
        hm_merge_tensor key = {.like = carrier->header.tensors[i]};
        if (is_ours(key.like.name) || hm_name_rule(key.like.name, key.like.dtype) == HM_RULE_DROP) continue;
        char canonical[NAME_ROOM];
        const char *name = key.like.name;
        bool found = bsearch(&key, list->tensors, known, sizeof key, by_name) != NULL;
        if (!found && hm_name_canonical(name, canonical, sizeof canonical)) {
            key.like.name = canonical;
            found = bsearch(&key, list->tensors, known, sizeof key, by_name) != NULL;
        }
        if (!found) add_copied(list, carrier, i);
    }
}

static hm_status apply_vae(hm_merge_list *list, hm_source *vae, hm_error *err)
{
    size_t taken = 0, wanted = 0;
    for (size_t i = 0; i < list->count; i++) {
        hm_merge_tensor *tensor = &list->tensors[i];
        if (hm_name_component(tensor->like.name) != HM_COMPONENT_VAE) continue;
        wanted++;
        uint32_t index = vae_index(vae, tensor->like.name);
        if (index == HM_ABSENT) continue;
        const hm_tensor_info *other = &vae->header.tensors[index];
        if (!same_shape(other, &tensor->like))
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(vae), other->name,
                           "has another shape than this model's VAE; choose a VAE of the same family");
        const char *name = tensor->like.name;
        *tensor = (hm_merge_tensor){.like = *other, .copy_from = vae, .copy_index = index};
        tensor->like.name = name;
        taken++;
    }
    if (wanted == 0)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(vae), NULL,
                       "cannot be put in: this hyper-model has no VAE; give a --carrier that has one");
    if (taken < wanted)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(vae), NULL, "gives %zu of the %zu tensors of the VAE", taken,
                       wanted);
    return HM_OK;
}

static hm_status list_tensors(hm_merge_list *list, hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    size_t most = hyper->plan != NULL ? hyper->plan->count
                                      : hyper->file->header.count +
                                            (hyper->base_file != NULL ? hyper->base_file->header.count : 0);
    if (options->carrier != NULL) most += options->carrier->header.count;
    list->tensors = hm_alloc(most, sizeof *list->tensors);
    if (list->tensors == NULL) return hm_fail_memory(err, "the list of tensors");
    if (hyper->plan != NULL)
        list_solved(list, hyper);
    else
        list_opened(list, hyper);
    if (options->carrier != NULL) apply_carrier(list, options->carrier);
    if (options->vae != NULL) HM_TRY(apply_vae(list, options->vae, err));
    hm_dtype asked = options->dtype == HM_DTYPE_KEEP && hyper->plan != NULL ? hyper->dtype : options->dtype;
    for (size_t i = 0; i < list->count; i++) {
        hm_tensor_info *like = &list->tensors[i].like;
        like->dtype = hm_output_dtype(like, asked);
        like->bytes = like->elements * hm_dtype_bytes(like->dtype);
    }
    return HM_OK;
}

/* ---- multipliers ------------------------------------------------------------------------------------------------------- */

static hm_status check_values(const double *at, size_t count, hm_error *err)
{
    for (size_t k = 0; k < count; k++)
        if (!isfinite(at[k]) || fabs(at[k]) > 1e6)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "multiplier %zu is %g; it must be a number of reasonable size", k + 1,
                           at[k]);
    return HM_OK;
}

static hm_status set_multipliers(hm_merge_list *list, const hm_merge_options *options, hm_error *err)
{
    if (options->at_count > list->directions)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu multipliers were given, but the hyper-model has %zu direction%s",
                       options->at_count, list->directions, list->directions == 1 ? "" : "s");
    HM_TRY(check_values(options->at, options->at_count, err));
    for (size_t i = 0; i < list->count; i++)
        for (size_t k = 0; k < options->at_count; k++) list->tensors[i].at[k] = options->at[k];
    for (size_t b = 0; b < options->block_count; b++) {
        const hm_block_value *block = &options->blocks[b];
        bool matched = false;
        HM_TRY(check_values(block->at, list->directions, err));
        for (size_t i = 0; i < list->count; i++) {
            hm_merge_tensor *tensor = &list->tensors[i];
            if (!tensor->blended || !hm_glob_match(block->glob, tensor->like.name)) continue;
            matched = true;
            for (size_t k = 0; k < list->directions; k++) tensor->at[k] = block->at[k];
        }
        if (!matched)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "no merged tensor matches the glob '%s'", block->glob);
    }
    return HM_OK;
}

/* ---- rows -------------------------------------------------------------------------------------------------------------- */

static hm_status check_exact_inputs(const hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    if (options->exact_count != hyper->solution.members)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "--exact needs the %zu models that were merged, %zu were given",
                       hyper->solution.members, options->exact_count);
    for (size_t m = 0; m < options->exact_count; m++) {
        const hm_source *source = options->exact[m];
        const char *expected = hyper->members[m].header_hash;
        if (source->header_hash[0] != 0 && expected[0] != 0 && strcmp(source->header_hash, expected) != 0)
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), NULL,
                           "is not the file that was merged as model %zu (%s); give the models in their order", m + 1,
                           hyper->members[m].name);
    }
    return HM_OK;
}

/* Sources of the blend rows. */
static hm_status set_blend_rows(hm_merge_list *list, hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    size_t members = hyper->solution.members;
    if (list->way == HM_MERGE_STORED) {
        list->blend_rows = 2 + list->directions;
        for (size_t r = 0; r < list->blend_rows; r++) list->rows[r].source = hyper->file;
        if (hyper->base_file != NULL) list->rows[0].source = hyper->base_file;
        return HM_OK;
    }
    list->blend_rows = members + 1;
    if (hyper->plan == NULL) HM_TRY(check_exact_inputs(hyper, options, err));
    for (size_t m = 0; m < members; m++)
        list->rows[m].source = hyper->plan != NULL ? hyper->plan->sources[m] : options->exact[m];
    hm_source *base = hyper->plan != NULL ? hyper->plan->base : hyper->base == HM_BASE_FILE ? hyper->base_file : NULL;
    list->rows[members].source = base != NULL ? base : list->rows[0].source;
    return HM_OK;
}

static hm_status find_in(const hm_source *source, const hm_tensor_info *like, uint32_t *out, hm_error *err)
{
    *out = index_by_any_name(source, like->name);
    if (*out == HM_ABSENT)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), like->name, "is missing");
    const hm_tensor_info *tensor = &source->header.tensors[*out];
    if (!same_shape(tensor, like) || !hm_dtype_is_float(tensor->dtype))
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), like->name, "has another shape or type than when merged");
    return HM_OK;
}

static hm_status set_blend_index(const hm_merge_list *list, const hm_hyper *hyper, const hm_merge_tensor *tensor,
                                 uint32_t *index, hm_error *err)
{
    const char *name = tensor->like.name;
    if (list->way == HM_MERGE_EXACT) {
        for (size_t m = 0; m + 1 < list->blend_rows; m++)
            HM_TRY(find_in(list->rows[m].source, &tensor->like, &index[m], err));
        size_t base = list->blend_rows - 1;
        return hyper->base == HM_BASE_FILE ? find_in(list->rows[base].source, &tensor->like, &index[base], err) : HM_OK;
    }
    char low[NAME_ROOM];
    int length = snprintf(low, sizeof low, HM_PREFIX_BASE_LOW "%s", name);
    if (hyper->base != HM_BASE_NONE) index[0] = hm_source_index(hyper->base_file, name);
    if (length > 0 && (size_t)length < sizeof low) index[1] = hm_source_index(hyper->file, low);
    for (size_t k = 1; k <= list->directions; k++) index[1 + k] = direction_index(hyper, name, k);
    for (size_t r = 1; r < list->blend_rows; r++) {
        const hm_tensor_info *part = index[r] != HM_ABSENT ? &hyper->file->header.tensors[index[r]] : NULL;
        if (part != NULL && (!same_shape(part, &tensor->like) || !hm_dtype_is_float(part->dtype)))
            return hm_fail(err, HM_ERR_FORMAT, hm_source_label(hyper->file), part->name,
                           "does not have the shape of the tensor it belongs to");
    }
    return HM_OK;
}

static hm_status set_rows(hm_merge_list *list, hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    list->rows = hm_alloc(HM_STREAM_ROWS, sizeof *list->rows);
    list->elements = hm_alloc(list->count, sizeof *list->elements);
    if (list->rows == NULL || list->elements == NULL) return hm_fail_memory(err, "the list of tensors");
    HM_TRY(set_blend_rows(list, hyper, options, err));
    list->row_count = list->blend_rows;
    for (size_t i = 0; i < list->count; i++) {
        hm_source *from = list->tensors[i].copy_from;
        size_t r = list->blend_rows;
        list->elements[i] = list->tensors[i].like.elements;
        if (from == NULL) continue;
        while (r < list->row_count && list->rows[r].source != from) r++;
        if (r < list->row_count) continue;
        if (r == HM_STREAM_ROWS) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "tensors are copied from too many files");
        list->rows[list->row_count++].source = from;
    }
    list->index = hm_alloc(list->count * list->row_count, sizeof *list->index);
    if (list->index == NULL) return hm_fail_memory(err, "the list of tensors");
    for (size_t r = 0; r < list->row_count; r++) {
        list->rows[r].index = list->index + r;
        list->rows[r].stride = list->row_count;
    }
    for (size_t i = 0; i < list->count; i++) {
        const hm_merge_tensor *tensor = &list->tensors[i];
        uint32_t *index = list->index + i * list->row_count;
        for (size_t r = 0; r < list->row_count; r++) index[r] = HM_ABSENT;
        if (tensor->blended)
            HM_TRY(set_blend_index(list, hyper, tensor, index, err));
        for (size_t r = list->blend_rows; !tensor->blended && r < list->row_count; r++)
            if (list->rows[r].source == tensor->copy_from) index[r] = tensor->copy_index;
    }
    return HM_OK;
}

static int usual_order(const void *a, const void *b)
{
    return hm_tensor_usual_order(&((const hm_merge_tensor *)a)->like, &((const hm_merge_tensor *)b)->like);
}

hm_status hm_merge_list_make(hm_merge_list *out, hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    *out = (hm_merge_list){.way = hyper->plan != NULL || options->exact_count > 0 ? HM_MERGE_EXACT : HM_MERGE_STORED,
                           .directions = hyper->solution.directions};
    hm_status status = list_tensors(out, hyper, options, err);
    if (status == HM_OK) qsort(out->tensors, out->count, sizeof *out->tensors, usual_order);
    if (status == HM_OK) status = set_multipliers(out, options, err);
    if (status == HM_OK) status = set_rows(out, hyper, options, err);
    if (status != HM_OK) hm_merge_list_clear(out);
    return status;
}

void hm_merge_list_clear(hm_merge_list *list)
{
    hm_release(list->tensors);
    hm_release(list->rows);
    hm_release(list->index);
    hm_release(list->elements);
    *list = (hm_merge_list){0};
}
