#include "lowrank/lora_targets.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "lowrank/transformer_names.h"
#include "model/names.h"

#define WEIGHT "weight"
#define UNET "model.diffusion_model."

struct spelling {
    char *name;
    hm_lora_target target;
};

struct hm_lora_targets {
    const hm_source *base;
    struct spelling *spellings; /* sorted by name */
    size_t count, capacity;
};

/* Layers of the UNet outside its blocks, in diffusers' words: few LoRAs have them, and none of ours. */
static const struct {
    const char *own, *diffusers;
} outer_names[] = {
    {"input_blocks.0.0", "conv_in"},
    {"out.0", "conv_norm_out"},
    {"out.2", "conv_out"},
    {"time_embed.0", "time_embedding.linear_1"},
    {"time_embed.2", "time_embedding.linear_2"},
    {"label_emb.0.0", "add_embedding.linear_1"},
    {"label_emb.0.2", "add_embedding.linear_2"},
};

/* What a name from the table of a format begins with, and what else files have in that place; `flat`: dots become underscores. */
static const struct {
    hm_lora_format format;
    const char *begins, *instead;
    bool flat;
} other_beginnings[] = {
    {HM_LORA_KOHYA, "lora_te_", "lora_te1_", false},               /* SD 1 as the first of several encoders */
    {HM_LORA_DIFFUSERS, "unet.", "", false},                       /* the denoiser alone */
    {HM_LORA_DIFFUSERS, "unet.", "base_model.model.", false},      /* as PEFT itself saves it */
    {HM_LORA_DIFFUSERS, "unet.", "lora_unet_", true},              /* SDXL with diffusers' names */
    {HM_LORA_DIFFUSERS, "unet.", "lycoris_", true},
    {HM_LORA_DIFFUSERS, "transformer.", "", false},                /* Flux and SD 3 */
    {HM_LORA_DIFFUSERS, "transformer.", "base_model.model.", false},
    {HM_LORA_DIFFUSERS, "transformer.", "lora_transformer_", true},
    {HM_LORA_DIFFUSERS, "transformer.", "lycoris_", true},
    {HM_LORA_COMFYUI, "diffusion_model.", "lora_unet_", true},     /* the network's own names: SDXL, SD3, Flux … */
    {HM_LORA_COMFYUI, "diffusion_model.", "", false},
    {HM_LORA_COMFYUI, "diffusion_model.", "model.diffusion_model.", false},
};

static hm_status add(hm_lora_targets *targets, hm_lora_target target, const char *name, hm_error *err)
{
    if (targets->count == targets->capacity) {
        size_t capacity = targets->capacity > 0 ? 2 * targets->capacity : 4096;
        struct spelling *grown = hm_grow(targets->spellings, capacity, sizeof *grown);
        if (grown == NULL) return hm_fail_memory(err, "layer names");
        targets->spellings = grown;
        targets->capacity = capacity;
    }
    char *copy = hm_copy_text(name);
    if (copy == NULL) return hm_fail_memory(err, "layer names");
    targets->spellings[targets->count++] = (struct spelling){.name = copy, .target = target};
    return HM_OK;
}

static void flatten(char *name)
{
    for (; *name != 0; name++)
        if (*name == '.') *name = '_';
}

/* The name that a table gives, and those with other beginnings. */
static hm_status add_with_others(hm_lora_targets *targets, hm_lora_target target, hm_lora_format format, const char *name,
                                 hm_error *err)
{
    char other[2 * HM_LORA_NAME];
    HM_TRY(add(targets, target, name, err));
    for (size_t i = 0; i < sizeof other_beginnings / sizeof other_beginnings[0]; i++) {
        size_t length = strlen(other_beginnings[i].begins);
        if (other_beginnings[i].format != format || strncmp(name, other_beginnings[i].begins, length) != 0) continue;
        snprintf(other, sizeof other, "%s%s", other_beginnings[i].instead, name + length);
        if (other_beginnings[i].flat) flatten(other);
        HM_TRY(add(targets, target, other, err));
    }
    /* Attention processors, as diffusers once had them: "attn1.processor.to_q", and "to_out" without its number. */
    const char *to = format == HM_LORA_DIFFUSERS ? strstr(name, ".to_") : NULL;
    if (to == NULL) return HM_OK;
    size_t prefix = strncmp(name, "unet.", 5) == 0 ? 5 : 0, ending = strlen(to);
    int kept = (int)(ending > 2 && strcmp(to + ending - 2, ".0") == 0 ? ending - 2 : ending);
    for (size_t skip = 0; skip <= prefix; skip += prefix > 0 ? prefix : 1) {
        snprintf(other, sizeof other, "%.*s.processor%.*s", (int)(to - name - (ptrdiff_t)skip), name + skip, kept, to);
        HM_TRY(add(targets, target, other, err));
    }
    return HM_OK;
}

static hm_status add_outer(hm_lora_targets *targets, uint32_t tensor, const char *own, hm_error *err)
{
    char name[HM_LORA_NAME];
    hm_lora_target target = {.tensor = tensor, .span = 1, .parts = 1};
    size_t length = strlen(own) - strlen("." WEIGHT);
    for (size_t i = 0; i < sizeof outer_names / sizeof outer_names[0]; i++) {
        if (strlen(outer_names[i].own) != length || memcmp(outer_names[i].own, own, length) != 0) continue;
        snprintf(name, sizeof name, "unet.%s", outer_names[i].diffusers);
        HM_TRY(add_with_others(targets, target, HM_LORA_DIFFUSERS, name, err));
    }
    return HM_OK;
}

static bool is_weight(const char *name)
{
    size_t length = strlen(name), ending = strlen(WEIGHT);
    return length > ending && strcmp(name + length - ending, WEIGHT) == 0 &&
           (name[length - ending - 1] == '.' || name[length - ending - 1] == '_');
}

static hm_status add_tensor(hm_lora_targets *targets, const char *family, uint32_t tensor, hm_error *err)
{
    const char *name = targets->base->header.tensors[tensor].name;
    char canonical[HM_LORA_NAME];
    hm_lora_part parts[HM_LORA_PARTS];
    if (!is_weight(name) || !hm_name_canonical(name, canonical, sizeof canonical)) return HM_OK;
    for (int format = 0; format < HM_LORA_FORMAT_COUNT; format++) {
        size_t count = hm_lora_parts(family, (hm_lora_format)format, canonical, parts);
        for (size_t i = 0; i < count; i++) {
            hm_lora_target target = {.tensor = tensor, .part = parts[i].index, .span = 1, .parts = parts[i].count};
            HM_TRY(add_with_others(targets, target, (hm_lora_format)format, parts[i].name, err));
        }
    }
    hm_transformer_name names[HM_TRANSFORMER_NAMES];
    size_t count = hm_transformer_names(family, canonical, names);
    for (size_t i = 0; i < count; i++) {
        hm_lora_target target = {.tensor = tensor, .part = names[i].part, .span = names[i].span, .parts = names[i].parts};
        HM_TRY(add_with_others(targets, target, HM_LORA_DIFFUSERS, names[i].name, err));
    }
    size_t prefix = strlen(UNET);
    return strncmp(canonical, UNET, prefix) == 0 ? add_outer(targets, tensor, canonical + prefix, err) : HM_OK;
}

static int spelling_order(const void *a, const void *b)
{
    const struct spelling *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    if (order != 0) return order;
    if (x->target.tensor != y->target.tensor) return x->target.tensor < y->target.tensor ? -1 : 1;
    return x->target.part < y->target.part ? -1 : x->target.part > y->target.part;
}

hm_status hm_lora_targets_make(hm_lora_targets **out, const hm_source *base, hm_error *err)
{
    hm_lora_targets *targets = hm_alloc(1, sizeof *targets);
    if (targets == NULL) return hm_fail_memory(err, "layer names");
    targets->base = base;
    const char *family = hm_family(base);
    hm_status status = HM_OK;
    for (uint32_t i = 0; status == HM_OK && i < base->header.count; i++) {
        const hm_tensor_info *tensor = &base->header.tensors[i];
        if (strncmp(tensor->name, HM_OWN_PREFIX, strlen(HM_OWN_PREFIX)) == 0 || !hm_dtype_is_float(tensor->dtype)) continue;
        if (hm_name_rule(tensor->name, tensor->dtype) == HM_RULE_MERGE) status = add_tensor(targets, family, i, err);
    }
    if (status != HM_OK) {
        hm_lora_targets_free(targets);
        return status;
    }
    if (targets->count > 0) qsort(targets->spellings, targets->count, sizeof *targets->spellings, spelling_order);
    *out = targets;
    return HM_OK;
}

/* Compares a name with the first `length` bytes of a layer's. */
static int compare_with(const char *name, const char *layer, size_t length)
{
    int order = strncmp(name, layer, length);
    return order != 0 ? order : name[length] != 0;
}

/* The first place of that name; the count where there is none. */
static size_t first_of(const hm_lora_targets *targets, const char *layer, size_t length)
{
    size_t low = 0, high = targets->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_with(targets->spellings[middle].name, layer, length) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    bool found = low < targets->count && compare_with(targets->spellings[low].name, layer, length) == 0;
    return found ? low : targets->count;
}

bool hm_lora_target_known(const hm_lora_targets *targets, const char *layer, size_t length)
{
    return first_of(targets, layer, length) < targets->count;
}

hm_status hm_lora_target_find(hm_lora_target *out, const hm_lora_targets *targets, const char *file, const char *layer,
                              size_t length, hm_error *err)
{
    const char *base = hm_source_short_label(targets->base);
    int shown = length < 200 ? (int)length : 200;
    size_t low = first_of(targets, layer, length);
    if (low == targets->count)
        return hm_fail(err, HM_ERR_MISMATCH, file, NULL,
                       "its layer %.*s has no place in %.200s; it is a LoRA for another model, or its names are unknown; --common "
                       "leaves such layers out",
                       shown, layer, base);
    const hm_lora_target *found = &targets->spellings[low].target;
    for (size_t i = low + 1; i < targets->count && compare_with(targets->spellings[i].name, layer, length) == 0; i++)
        if (targets->spellings[i].target.tensor != found->tensor || targets->spellings[i].target.part != found->part)
            return hm_fail(err, HM_ERR_MISMATCH, file, NULL, "its layer %.*s could be two tensors of %.200s: %.200s and %.200s",
                           shown, layer, base, targets->base->header.tensors[found->tensor].name,
                           targets->base->header.tensors[targets->spellings[i].target.tensor].name);
    *out = *found;
    return HM_OK;
}

hm_lora_target hm_lora_target_bias(const hm_lora_targets *targets, hm_lora_target weight)
{
    const char *name = targets->base->header.tensors[weight.tensor].name;
    size_t length = strlen(name) - strlen(WEIGHT);
    char bias[2 * HM_LORA_NAME];
    hm_lora_target found = weight;
    int written = snprintf(bias, sizeof bias, "%.*sbias", (int)length, name);
    found.tensor = written > 0 && (size_t)written < sizeof bias ? hm_source_index(targets->base, bias) : HM_ABSENT;
    return found;
}

void hm_lora_targets_free(hm_lora_targets *targets)
{
    if (targets == NULL) return;
    for (size_t i = 0; i < targets->count; i++) hm_release(targets->spellings[i].name);
    hm_release(targets->spellings);
    hm_release(targets);
}
