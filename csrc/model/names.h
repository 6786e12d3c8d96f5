/* What is known of tensor names: families, components, blocks, and what must never be averaged.  Everything here is a
 * table of data; a network that no table knows is welcome too (family "unknown", one component). */
#ifndef HM_MODEL_NAMES_H
#define HM_MODEL_NAMES_H

#include "hypermerge.h"

typedef enum hm_component {
    HM_COMPONENT_UNET = 0, /* the denoiser: UNet, MMDiT, DiT; also everything of an unknown network */
    HM_COMPONENT_TEXT,     /* CLIP and other text encoders */
    HM_COMPONENT_T5,
    HM_COMPONENT_VAE,
    HM_COMPONENT_EMA,      /* shadow copies of the denoiser */
    HM_COMPONENT_OTHER,    /* scheduler buffers, flags */
    HM_COMPONENT_COUNT
} hm_component;
const char *hm_component_name(hm_component component); /* "unet", "text_encoder", "t5", "vae", "ema", "other" */

typedef enum hm_rule {
    HM_RULE_MERGE = 0,
    HM_RULE_COPY,      /* from the carrier, never averaged: integers, position_ids, logit_scale, scheduler buffers */
    HM_RULE_DROP,      /* EMA copies */
    HM_RULE_VPRED,     /* a flag that marks the whole model (v_pred, …): copied, and all inputs must agree */
    HM_RULE_SCALED_FP8 /* companions of scaled fp8 weights, and other quantised layouts: refused by name */
} hm_rule;

hm_component hm_name_component(const char *name);
/* Rule by name and dtype alone. */
hm_rule hm_name_rule(const char *name, hm_dtype dtype);
/* What programs leave out or add at will (text_projection): merged where all inputs have it, else copied and no reason
 * to refuse. */
bool hm_name_is_optional(const char *name);
/* Does a table know where this name belongs?  What it does not know is part of an unknown network, or an extra which
 * some program left in a file of a known family. */
bool hm_name_is_known(const char *name);
/* Writes the block a tensor belongs to into out (capacity bytes, always NUL-terminated, cut where too long): a short
 * name that people who merge know.  "input_blocks.4", "middle_block", "double_blocks.7", "time_embed"; "text_encoder"
 * (SD1, SD2), "text_encoder_1" (SDXL's first, clip_l), "text_encoder_2" (clip_g), "text_encoder_NAME" (others), "t5",
 * "vae", "ema", "other".  Unknown networks: the name up to its first number ("layers.3"), or its first part. */
void hm_name_block(const char *name, char *out, size_t capacity);
/* Reading order of blocks of one component: input, middle, output; numbers as numbers.  < 0, 0 or > 0. */
int hm_name_block_order(const char *a, const char *b);
/* The name under which tensors of different spellings meet, that of a full checkpoint: old SD1 files lack "text_model."
 * after "cond_stage_model.transformer.", files with a denoiser alone lack "model.diffusion_model.", "vae." is
 * "first_stage_model.".  Writes `name` itself when nothing applies.  False if it does not fit. */
bool hm_name_canonical(const char *name, char *out, size_t capacity);

/* "sd1", "sd2", "sdxl" (each also with "-inpainting"), "sdxl-refiner", "sd3", "flux", "vae", "lora", "diffusers",
 * "unknown"; known by a few telling names and shapes.  Static text. */
const char *hm_family(const hm_source *source);
/* modelspec architecture for a family ("stable-diffusion-v1", …), or NULL. */
const char *hm_family_architecture(const char *family);
/* What the number of input channels of a denoiser says about it, as "an inpainting model"; NULL when nothing special.
 * `canonical` is the tensor's canonical name. */
const char *hm_family_input_kind(const char *canonical, uint64_t channels);

#endif
