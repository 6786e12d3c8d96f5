#include "lowrank/lora_list.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "model/names.h"

hm_status hm_lora_format_for(const char *family, hm_lora_format asked, hm_lora_format *out, hm_error *err)
{
    static const char layer[] = "model.diffusion_model.middle_block.0.in_layers.2.weight"; /* of every UNet */
    hm_lora_part parts[HM_LORA_PARTS];
    if (strcmp(family, "lora") == 0) {
        if (asked != HM_LORA_AUTO)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                           "LoRAs that were solved without a base keep their layers' names; leave out the format, or solve them "
                           "with --base FILE");
        *out = HM_LORA_AUTO;
        return HM_OK;
    }
    bool kohya = hm_lora_parts(family, HM_LORA_KOHYA, layer, parts) > 0;
    if (asked == HM_LORA_DIFFUSERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "LoRAs are not written with diffusers' names; use format %s",
                       kohya ? "kohya (diffusers reads it) or comfyui" : "comfyui");
    if (asked == HM_LORA_KOHYA && !kohya)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                       "kohya's names are known for SD1, SD2 and SDXL, this family is %s; use format comfyui", family);
    *out = asked != HM_LORA_AUTO ? asked : kohya ? HM_LORA_KOHYA : HM_LORA_COMFYUI;
    return HM_OK;
}

static bool ends(const char *name, const char *ending)
{
    size_t length = strlen(name), n = strlen(ending);
    return length >= n && strcmp(name + length - n, ending) == 0;
}

/* A bias has the name of its weight: "….bias" and "….in_proj_bias" become "…weight". */
static bool weight_of_bias(const char *name, char out[HM_LORA_NAME])
{
    size_t length = strlen(name);
    if ((!ends(name, ".bias") && !ends(name, "_bias")) || length + 3 > HM_LORA_NAME) return false;
    memcpy(out, name, length - 4);
    memcpy(out + length - 4, "weight", sizeof "weight");
    return true;
}

/* Fills up to HM_LORA_PARTS entries for a tensor; 0: it is not carried. */
static size_t entries_of(const hm_lora_list *list, size_t t, bool whole, size_t rank, hm_lora_entry *entries)
{
    const hm_tensor_info *like = list->difference->like[t];
    char name[HM_LORA_NAME], weight[HM_LORA_NAME];
    hm_lora_part parts[HM_LORA_PARTS];
    if (like->elements == 0 || strlen(list->difference->name[t]) >= sizeof name) return 0;
    if (strcmp(list->difference->family, "lora") == 0)
        strcpy(name, list->difference->name[t]);
    else if (!hm_name_canonical(list->difference->name[t], name, sizeof name))
        return 0;
    bool matrix = like->ndim == 2 || like->ndim == 4, bias = !matrix && weight_of_bias(name, weight);
    if (!matrix && (!whole || like->ndim != 1)) return 0;
    size_t count = hm_lora_parts(list->difference->family, list->format, bias ? weight : name, parts);
    for (size_t i = 0; i < count; i++) {
        if (like->shape[0] % parts[i].count != 0) return 0;
        hm_lora_entry *entry = &entries[i];
        *entry = (hm_lora_entry){.tensor = t, .part = parts[i], .rows = (size_t)(like->shape[0] / parts[i].count)};
        entry->kind = matrix ? HM_LORA_FACTORS : bias ? HM_LORA_BIAS : HM_LORA_WHOLE;
        entry->columns = matrix ? (size_t)(like->elements / like->shape[0]) : 1;
        size_t least = entry->rows < entry->columns ? entry->rows : entry->columns;
        entry->rank = matrix ? (rank < least ? rank : least) : 1;
    }
    return count;
}

hm_status hm_lora_list_make(hm_lora_list *out, const hm_difference *difference, hm_lora_format format, bool whole,
                            size_t rank, hm_error *err)
{
    *out = (hm_lora_list){.difference = difference, .format = format};
    out->entries = hm_alloc(difference->count * HM_LORA_PARTS, sizeof *out->entries);
    out->first = hm_alloc(difference->count + 1, sizeof *out->first);
    hm_status status = out->entries != NULL && out->first != NULL ? HM_OK : hm_fail_memory(err, "the list of layers");
    for (size_t t = 0; status == HM_OK && t < difference->count; t++) {
        out->first[t] = out->count;
        out->count += entries_of(out, t, whole, rank, out->entries + out->count);
        out->first[t + 1] = out->count;
    }
    if (status == HM_OK && out->count == 0)
        status = hm_fail(err, HM_ERR_MISMATCH, NULL, NULL,
                         "none of the tensors that differ has a place in a LoRA with %s names%s",
                         hm_lora_format_name(format), format == HM_LORA_COMFYUI ? "" : "; try format comfyui");
    if (status != HM_OK) hm_lora_list_clear(out);
    return status;
}

void hm_lora_list_clear(hm_lora_list *list)
{
    hm_release(list->entries);
    hm_release(list->first);
    *list = (hm_lora_list){0};
}

size_t hm_lora_overhead(const hm_lora_entry *entry)
{
    /* Three times: "NAME.lora_down.weight":{"dtype":"BF16","shape":[d,d,d,d],"data_offsets":[o,o]}, with 20 digits each. */
    return 3 * (strlen(entry->part.name) + 200) + sizeof(float);
}
