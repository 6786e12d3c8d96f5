/* How LoRA files call the tensors of a checkpoint.
 *
 * Names are always made from the checkpoint's, never taken apart: kohya's have their dots replaced by underscores, and
 * "to_out_0" could be two things.  Reading a LoRA file makes the names of all tensors of the base and looks them up. */
#ifndef HM_LOWRANK_LORA_NAMES_H
#define HM_LOWRANK_LORA_NAMES_H

#include "hypermerge.h"

#define HM_LORA_NAME 256  /* bytes of a name with its NUL */
#define HM_LORA_PARTS 3   /* most names that one tensor has in one format */

/* One name, without the suffix (".lora_up.weight"), and the output rows of the tensor that it stands for. */
typedef struct hm_lora_part {
    char name[HM_LORA_NAME];
    unsigned index, count; /* rows [index · rows/count, (index + 1) · rows/count): CLIP-G keeps q, k and v in one tensor */
} hm_lora_part;

/* The parts that a layer has in a format, most often one; 0 where the format has no place for it (or the name is too long).
 * `name` is that of the layer's weight in a checkpoint of that family (hm_family), in its canonical spelling
 * (hm_name_canonical).  HM_LORA_AUTO: that name itself, as it is with LoRAs that have no base.  Norms have names too: only
 * whole differences (".diff") fit there, which the caller sees by the shape. */
size_t hm_lora_parts(const char *family, hm_lora_format format, const char *name, hm_lora_part parts[HM_LORA_PARTS]);

#endif
