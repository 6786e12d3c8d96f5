/* The alignment of M sources: which tensor of which file meets which, what is merged, what is copied, and why.
 * Everything that makes inputs unfit is found here, before any data is read. */
#ifndef HM_MODEL_PLAN_H
#define HM_MODEL_PLAN_H

#include "base/error.h"
#include "model/names.h"
#include "model/source.h"

#define HM_PLAN_BLOCKS 256 /* a network with more blocks than this gets one block per component instead */

typedef enum hm_action { HM_ACTION_MERGE = 0, HM_ACTION_COPY } hm_action;

typedef struct hm_plan_tensor {
    const hm_tensor_info *like;  /* name, shape, dtype as in the carrier (or, merged and absent there, in source 0) */
    hm_action action;
    hm_component component;
    unsigned block;              /* index in block_names */
    hm_source *copy_from;        /* HM_ACTION_COPY: who gives it (usually the carrier); a reference of the plan */
    uint32_t copy_index;
} hm_plan_tensor;

typedef struct hm_plan {
    size_t source_count;
    hm_source **sources;   /* references held */
    hm_source *base;       /* HM_BASE_FILE, else NULL; reference held */
    hm_source *carrier;    /* base, or one of the sources, or a file of its own; reference held */
    size_t count;
    hm_plan_tensor *tensors;   /* merged and copied, in the usual order (hm_tensor_usual_order) */
    uint32_t *index;           /* [count × source_count]: tensor t in source s, HM_ABSENT unless merged; also where a LoRA
                                * (is_lora) does not change it */
    uint32_t *base_index;      /* [count]; all HM_ABSENT without a base file */
    size_t merged_count;
    uint64_t merged_elements;
    size_t block_count;        /* at most HM_PLAN_BLOCKS + HM_COMPONENT_COUNT */
    char **block_names;        /* all different, in reading order (input 0 … output 11, text encoders, vae) */
    hm_component *block_components;
    size_t note_count;
    char **notes;              /* one line each: "vae: copied from a.safetensors (absent in b.safetensors)" */
    const char *family;        /* static text */
} hm_plan;

/* carrier: NULL = base, else sources[0]; it may also be a further file, which then need not fit.  With one source and
 * no base the plan is that file alone.  Tensors whose name begins with HM_OWN_PREFIX take no part (the base may be a
 * hyper-model); a merged tensor is float, not empty, and of one shape in all sources and the base.
 * Refusals (HM_ERR_MISMATCH unless said otherwise; each names files and, for lists, the first few tensors):
 *   another family; a LoRA as it was opened (lowrank/lora_read.h makes sources of them); a diffusers shard; a merged
 *   tensor whose shape differs (9 input channels are called what they are: an inpainting model) or that some input
 *   lacks, unless selection->common; a whole component absent in some inputs is no error (but the denoiser, without
 *   `common`): it is copied, with a note; v_pred in some but not all; scaled fp8 in a component that is to be merged; a
 *   hyper-model as source; nothing left to merge; a glob without a match in the carrier, or no or more than
 *   HM_MAX_MEMBERS sources (HM_ERR_ARGUMENT). */
hm_status hm_plan_make(hm_plan **out, hm_source *const *sources, size_t count, hm_source *base, hm_source *carrier,
                       const hm_selection *selection, hm_error *err);
/* Adds a line; control characters in it are shown as '?'. */
hm_status hm_plan_note(hm_plan *plan, hm_error *err, const char *format, ...) HM_PRINTF(3, 4);
/* Turns a merged tensor into a copied one (it holds NaN and --allow-nonfinite was given). */
void hm_plan_copy_instead(hm_plan *plan, size_t tensor);
void hm_plan_free(hm_plan *plan);

#endif
