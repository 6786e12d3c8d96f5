/* What diffusers calls the layers of the denoisers that it takes apart: Flux and SD 3.  A checkpoint keeps query, key and value
 * in one tensor, and in Flux's single blocks the first half of the MLP with them; diffusers has a layer for each. */
#ifndef HM_LOWRANK_TRANSFORMER_NAMES_H
#define HM_LOWRANK_TRANSFORMER_NAMES_H

#include "lowrank/lora_names.h"

#define HM_TRANSFORMER_NAMES 4 /* most names that one tensor has */

/* A name without the suffix, and the rows that it stands for: [part · rows/parts, (part + span) · rows/parts). */
typedef struct hm_transformer_name {
    char name[HM_LORA_NAME];
    unsigned part, span, parts;
} hm_transformer_name;

/* The names of a weight, given in its canonical spelling (hm_name_canonical), in a checkpoint of that family (hm_family); 0 where
 * diffusers has none, or keeps the rows in another order (the modulation before the last layer, and SD 3's of the text). */
size_t hm_transformer_names(const char *family, const char *name, hm_transformer_name out[HM_TRANSFORMER_NAMES]);

#endif
