#include "apply/merge_list.h"

#include <stdlib.h>
#include <string.h>

#include "apply/multipliers.h"
#include "apply/stored.h"
#include "base/error.h"
#include "io/header_write.h"
#include "model/product.h"
#include "model/spelling.h"

static bool is_ours(const char *name)
{
    return strncmp(name, HM_PREFIX, strlen(HM_PREFIX)) == 0;
}

/* A tensor of a VAE: from a checkpoint, or from a stand-alone file, whose names have no prefix. */
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
    *tensor = (hm_merge_tensor){.like = *like, .own = name, .blended = true};
    tensor->like.name = name;
}

static void add_copied(hm_merge_list *list, hm_source *from, uint32_t index)
{
    const hm_tensor_info *tensor = &from->header.tensors[index];
    list->tensors[list->count++] =
        (hm_merge_tensor){.like = *tensor, .own = tensor->name, .copy_from = from, .copy_index = index};
}

static void list_opened(hm_merge_list *list, hm_hyper *hyper, const hm_merge_options *options)
{
    static const char first_prefix[] = HM_PREFIX_DIRECTION "1.";
    hm_source *base = hyper->base_file != NULL ? hyper->base_file : hyper->file;
    for (uint32_t i = 0; i < base->header.count; i++) {
        const hm_tensor_info *tensor = &base->header.tensors[i];
        if (is_ours(tensor->name) || hm_name_rule(tensor->name, tensor->dtype) == HM_RULE_DROP) continue;
        if (hm_stored_moves(hyper, tensor->name))
            add_blended(list, tensor, tensor->name);
        else
            add_copied(list, base, i);
    }
    if (hyper->base != HM_BASE_NONE) return;
    for (uint32_t i = 0; i < hyper->file->header.count; i++) { /* without W̃ the directions alone name what is merged */
        const hm_tensor_info *tensor = &hyper->file->header.tensors[i];
        if (strncmp(tensor->name, first_prefix, sizeof first_prefix - 1) != 0) continue;
        const char *name = tensor->name + sizeof first_prefix - 1;
        const hm_tensor_info *input = options->exact_count > 0 ? hm_source_find(options->exact[0], name) : NULL;
        hm_tensor_info like = input != NULL ? *input : *tensor; /* fp8 inputs have f16 directions */
        if (like.rank > 0) like.dtype = hm_source_up(hyper->file, i)->dtype;
        like.rank = 0;
        add_blended(list, &like, name);
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

/* Another carrier gives what is not blended, adds what the hyper-model does not have at all, and its spelling of the names
 * holds for all: a file with two spellings would be read by nobody as it is meant. */
static hm_status apply_carrier(hm_merge_list *list, hm_source *carrier, hm_error *err)
{
    hm_spelling spelling;
    HM_TRY(hm_spelling_make(&spelling, carrier, err));
    bool *used = hm_alloc(carrier->header.count, sizeof *used);
    for (size_t i = 0; used != NULL && i < list->count; i++) {
        hm_merge_tensor *tensor = &list->tensors[i];
        uint32_t index = hm_spelling_find(&spelling, tensor->own);
        if (index == HM_ABSENT) continue;
        used[index] = true;
        if (tensor->blended) {
            tensor->like.name = carrier->header.tensors[index].name;
        } else {
            tensor->like = carrier->header.tensors[index];
            tensor->copy_from = carrier;
            tensor->copy_index = index;
        }
    }
    for (uint32_t i = 0; used != NULL && i < carrier->header.count; i++) {
        const hm_tensor_info *tensor = &carrier->header.tensors[i];
        if (!used[i] && !is_ours(tensor->name) && hm_name_rule(tensor->name, tensor->dtype) != HM_RULE_DROP)
            add_copied(list, carrier, i);
    }
    hm_status status = used != NULL ? HM_OK : hm_fail_memory(err, "the list of tensors");
    hm_release(used);
    hm_spelling_clear(&spelling);
    return status;
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
        *tensor = (hm_merge_tensor){.like = *other, .own = tensor->own, .copy_from = vae, .copy_index = index};
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
        list_opened(list, hyper, options);
    if (options->carrier != NULL) HM_TRY(apply_carrier(list, options->carrier, err));
    if (options->vae != NULL) HM_TRY(apply_vae(list, options->vae, err));
    hm_dtype asked = options->dtype == HM_DTYPE_KEEP && hyper->plan != NULL ? hyper->dtype : options->dtype;
    for (size_t i = 0; i < list->count; i++) {
        const hm_merge_tensor *tensor = &list->tensors[i];
        hm_tensor_info *like = &list->tensors[i].like;
        bool equal_in_all = hyper->file != NULL && tensor->copy_from == hyper->base_file && hm_was_merged(hyper, tensor->own);
        if (tensor->blended || equal_in_all) like->dtype = hm_output_dtype(like, asked);
        like->bytes = like->elements * hm_dtype_bytes(like->dtype);
    }
    return HM_OK;
}

/* ---- multipliers ------------------------------------------------------------------------------------------------------- */

static hm_status set_multipliers(hm_merge_list *list, const hm_merge_options *options, hm_error *err)
{
    const char **names = hm_alloc(list->count, sizeof *names);
    list->multipliers = hm_alloc(list->count * list->directions, sizeof *list->multipliers);
    hm_status status = names != NULL && list->multipliers != NULL ? HM_OK : hm_fail_memory(err, "the list of tensors");
    for (size_t i = 0; status == HM_OK && i < list->count; i++) {
        hm_merge_tensor *tensor = &list->tensors[i];
        names[i] = tensor->blended ? tensor->own : NULL;
        tensor->at = list->multipliers + i * list->directions;
    }
    if (status == HM_OK)
        status = hm_multipliers_fill(list->multipliers, names, list->count, list->directions, options->at, options->at_count,
                                     options->blocks, options->block_count, err);
    hm_release(names);
    return status;
}

/* ---- rows -------------------------------------------------------------------------------------------------------------- */

static hm_status check_exact_inputs(const hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    if (options->exact_count != hyper->solution.members)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "--exact needs the %zu models that were merged, %zu were given",
                       hyper->solution.members, options->exact_count);
    for (size_t m = 0; m < options->exact_count; m++) {
        const hm_source *source = options->exact[m];
        if (hyper->members[m].is_lora)
            return hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(source), NULL,
                           "is a LoRA; what LoRAs were merged into is blended from the stored directions: leave out --exact");
        const char *expected = hyper->members[m].header_hash;
        if (source->header_hash[0] != 0 && expected[0] != 0 && strcmp(source->header_hash, expected) != 0)
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), NULL,
                           "is not the file that was merged as model %zu (%s); give the models in their order", m + 1,
                           hyper->members[m].name);
        /* Checkpoints of one program often have equal headers: then the names tell whether the order is right. */
        for (size_t other = 0; other < options->exact_count; other++)
            if (other != m && strcmp(hm_source_name(source), hyper->members[other].name) == 0 &&
                strcmp(hm_source_name(source), hyper->members[m].name) != 0)
                return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), NULL,
                               "was merged as model %zu, but is given as model %zu; give the models in their order", other + 1,
                               m + 1);
    }
    return HM_OK;
}

/* Sources of the blend rows. */
static hm_status set_blend_rows(hm_merge_list *list, hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    size_t members = hyper->solution.members;
    if (list->way == HM_MERGE_STORED) {
        list->blend_rows = hm_stored_rows(hyper);
        for (size_t r = 0; r < list->blend_rows; r++) list->rows[r].source = hm_stored_source(hyper, r);
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

static hm_status find_in(const hm_source *source, const hm_spelling *spelling, const hm_merge_tensor *tensor, uint32_t *out,
                         hm_error *err)
{
    *out = hm_spelling_find(spelling, tensor->own);
    if (*out == HM_ABSENT && source->is_lora) return HM_OK;
    if (*out == HM_ABSENT) return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), tensor->own, "is missing");
    const hm_tensor_info *found = &source->header.tensors[*out];
    if (!same_shape(found, &tensor->like) || !hm_dtype_is_float(found->dtype))
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(source), tensor->own, "has another shape or type than when merged");
    return HM_OK;
}

/* Row r of every blended tensor, looked up in that row's source. */
static hm_status set_exact_row(hm_merge_list *list, size_t r, hm_error *err)
{
    hm_spelling spelling;
    HM_TRY(hm_spelling_make(&spelling, list->rows[r].source, err));
    hm_status status = HM_OK;
    for (size_t i = 0; status == HM_OK && i < list->count; i++)
        if (list->tensors[i].blended)
            status = find_in(list->rows[r].source, &spelling, &list->tensors[i], &list->index[i * list->row_count + r], err);
    hm_spelling_clear(&spelling);
    return status;
}

static hm_status set_blend_index(hm_merge_list *list, const hm_hyper *hyper, hm_error *err)
{
    if (list->way == HM_MERGE_EXACT) {
        size_t rows = list->blend_rows - (hyper->base == HM_BASE_FILE ? 0 : 1);
        for (size_t r = 0; r < rows; r++) HM_TRY(set_exact_row(list, r, err));
        return HM_OK;
    }
    for (size_t i = 0; i < list->count; i++) {
        if (!list->tensors[i].blended) continue;
        hm_tensor_info own = list->tensors[i].like;
        own.name = list->tensors[i].own;
        uint32_t *index = list->index + i * list->row_count;
        HM_TRY(hm_stored_index(hyper, &own, index, err));
        for (size_t k = 0; k < list->directions; k++) /* what takes no part need not be read */
            if ((float)list->tensors[i].at[k] == 0) index[HM_STORED_DIRECTION + k] = HM_ABSENT;
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
        for (size_t r = list->blend_rows; !tensor->blended && r < list->row_count; r++)
            if (list->rows[r].source == tensor->copy_from) index[r] = tensor->copy_index;
    }
    return set_blend_index(list, hyper, err);
}

static int usual_order(const void *a, const void *b)
{
    return hm_tensor_usual_order(&((const hm_merge_tensor *)a)->like, &((const hm_merge_tensor *)b)->like);
}

hm_status hm_merge_list_make(hm_merge_list *out, hm_hyper *hyper, const hm_merge_options *options, hm_error *err)
{
    *out = (hm_merge_list){.way = hyper->plan != NULL || options->exact_count > 0 ? HM_MERGE_EXACT : HM_MERGE_STORED,
                           .directions = hyper->solution.directions};
    if (out->way == HM_MERGE_EXACT) HM_TRY(hm_hyper_need_mixtures(hyper, err));
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
    hm_release(list->multipliers);
    hm_release(list->rows);
    hm_release(list->index);
    hm_release(list->elements);
    *list = (hm_merge_list){0};
}
