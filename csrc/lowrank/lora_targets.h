/* Which tensor of a base a layer of a LoRA file is meant for: the names of all formats for all tensors of the base, made
 * beforehand and looked up. */
#ifndef HM_LOWRANK_LORA_TARGETS_H
#define HM_LOWRANK_LORA_TARGETS_H

#include "lowrank/lora_names.h"
#include "model/source.h"

/* Rows [part · rows/parts, (part + span) · rows/parts) of a tensor of the base. */
typedef struct hm_lora_target {
    uint32_t tensor;
    unsigned part, span, parts;
} hm_lora_target;

typedef struct hm_lora_targets hm_lora_targets;

hm_status hm_lora_targets_make(hm_lora_targets **out, const hm_source *base, hm_error *err);
/* Is there a place of that name, `length` bytes of it? */
bool hm_lora_target_known(const hm_lora_targets *targets, const char *layer, size_t length);
/* Looks a layer up by its name without suffix, `length` bytes of it.  HM_ERR_MISMATCH, with `file` named: nothing in the base
 * is called so, or two things are. */
hm_status hm_lora_target_find(hm_lora_target *out, const hm_lora_targets *targets, const char *file, const char *layer,
                              size_t length, hm_error *err);
/* The bias that belongs to a weight: the same part of "….bias" for "….weight"; tensor HM_ABSENT where there is none. */
hm_lora_target hm_lora_target_bias(const hm_lora_targets *targets, hm_lora_target weight);
void hm_lora_targets_free(hm_lora_targets *targets);

#endif
