#include "solve/hyper.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "lowrank/hyper_lora.h"

hm_hyper *hm_hyper_keep(hm_hyper *hyper)
{
    if (hyper != NULL) atomic_fetch_add(&hyper->references, 1);
    return hyper;
}

static void release_texts(char **texts, size_t count)
{
    for (size_t i = 0; texts != NULL && i < count; i++) hm_release(texts[i]);
    hm_release(texts);
}

void hm_hyper_close(hm_hyper *hyper)
{
    if (hyper == NULL || atomic_fetch_sub(&hyper->references, 1) != 1) return;
    for (size_t i = 0; hyper->members != NULL && i < hyper->solution.members; i++) hm_release(hyper->members[i].name);
    for (size_t i = 0; hyper->blocks != NULL && i < hyper->block_count; i++) {
        hm_release(hyper->blocks[i].name);
        hm_release(hyper->blocks[i].gram);
        hm_release(hyper->blocks[i].explained);
    }
    hm_release(hyper->members);
    hm_release(hyper->blocks);
    hm_solution_clear(&hyper->solution);
    hm_release(hyper->gram);
    hm_release(hyper->weights);
    hm_release(hyper->residual_stored);
    hm_release(hyper->family);
    release_texts(hyper->include, hyper->include_count);
    release_texts(hyper->exclude, hyper->exclude_count);
    release_texts(hyper->unmoved, hyper->unmoved_count);
    hm_release(hyper->base_name);
    hm_hyper_loras_free(hyper->loras);
    hm_plan_free(hyper->plan);
    hm_release(hyper->moves);
    hm_source_close(hyper->base_file);
    hm_source_close(hyper->file);
    hm_release(hyper->document);
    hm_release(hyper);
}

size_t hm_hyper_members(const hm_hyper *hyper)
{
    return hyper->solution.members;
}

size_t hm_hyper_directions(const hm_hyper *hyper)
{
    return hyper->solution.directions;
}

hm_status hm_hyper_document(hm_hyper *hyper, char **out_json, hm_error *err)
{
    hm_text text = {0};
    hm_status status = HM_OK;
    if (hyper->document != NULL)
        hm_text_put(&text, hyper->document);
    else
        status = hm_document_write(hyper, hyper->residual_stored, &text, err);
    if (status == HM_OK && text.failed) status = hm_fail_memory(err, "the document");
    if (status == HM_OK)
        *out_json = text.data;
    else
        hm_text_clear(&text);
    return status;
}

bool hm_hyper_is_lora(const hm_hyper *hyper)
{
    return hyper->base == HM_BASE_NONE && strcmp(hyper->family, "lora") == 0;
}

void hm_mean_weights(const hm_hyper *hyper, double *out)
{
    size_t members = hyper->solution.members;
    for (size_t m = 0; m < members; m++)
        out[m] = (hyper->weights != NULL ? hyper->weights[m] : 1.0) / (double)members;
}

hm_dtype hm_output_dtype(const hm_tensor_info *like, hm_dtype asked)
{
    return asked == HM_DTYPE_KEEP || !hm_dtype_is_float(like->dtype) ? like->dtype : asked;
}

hm_dtype hm_fine_dtype(hm_dtype stored)
{
    return stored == HM_F8_E4M3 || stored == HM_F8_E5M2 ? HM_F16 : stored;
}

int hm_text_order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

uint32_t hm_part_index(const hm_hyper *hyper, size_t k, const char *name)
{
    char full[1024]; /* longer names cannot have parts: their own would not be found either */
    int length = k == 0 ? snprintf(full, sizeof full, HM_PREFIX_BASE_LOW "%s", name)
                        : snprintf(full, sizeof full, HM_PREFIX_DIRECTION "%zu.%s", k, name);
    return length > 0 && (size_t)length < sizeof full ? hm_source_index(hyper->file, full) : HM_ABSENT;
}

bool hm_was_merged(const hm_hyper *hyper, const char *name)
{
    return hm_part_index(hyper, 1, name) != HM_ABSENT || hm_part_index(hyper, 0, name) != HM_ABSENT ||
           bsearch(&name, hyper->unmoved, hyper->unmoved_count, sizeof *hyper->unmoved, hm_text_order) != NULL;
}

hm_status hm_hyper_need_mixtures(const hm_hyper *hyper, hm_error *err)
{
    if (!hyper->ranked) return HM_OK;
    bool saved = hyper->file != NULL;
    return hm_fail(err, HM_ERR_ARGUMENT, saved ? hm_source_label(hyper->file) : NULL, NULL,
                   "its directions are hyper-LoRAs, which cannot be put together from the models: %s",
                   saved ? "leave out --exact" : "save it first, and use the file");
}

hm_status hm_hyper_need_base(const hm_hyper *hyper, hm_error *err)
{
    if (hyper->base == HM_BASE_NONE || hyper->base_file != NULL || hyper->file == NULL) return HM_OK;
    return hm_fail(err, HM_ERR_IO, hm_source_label(hyper->file), NULL,
                   "its base %s was not found; put that file (header hash %.10s…) beside it", hyper->base_name,
                   hyper->base_header_hash);
}
