/* LoRA files as inputs: the difference from a base that a file stands for, as a source.
 *
 * What is read: the names of kohya, diffusers and PEFT, ComfyUI; plain LoRA and LoCon, also with a middle factor; alpha (scale
 * alpha/rank, 1 without it); whole differences .diff and .diff_b.  Every other suffix (LoHa, LoKr, DoRA, norms …) refuses the
 * file: half of it would be another LoRA. */
#ifndef HM_LOWRANK_LORA_READ_H
#define HM_LOWRANK_LORA_READ_H

#include "model/source.h"

/* Is this a LoRA file as it was opened: names of layers, factors one by one? */
bool hm_is_lora_file(const hm_source *source);

/* *out: the same file with the tensors of `base` that it changes, each a product of the layer's factors, or a whole difference,
 * under the base's name and in its shape.  base NULL: under the layers' own names; then files meet by these, and only factors
 * are taken.  `base` is used during the call only.
 * `common`: layers that the base lacks are left out, and counted (lora_lacking); one of them must have a place.
 * HM_ERR_MISMATCH: an unknown suffix; a layer that the base lacks or has in another shape; HM_ERR_FORMAT: factors that do not go
 * together, an alpha that is no number. */
hm_status hm_lora_read(hm_source **out, hm_source *file, const hm_source *base, bool common, hm_error *err);

/* LoRA files among `sources` as hm_lora_read gives them, the others as they are; each of out[count] is a reference to close.
 * Without a base all must be LoRAs, and with names of one kind, or none. */
hm_status hm_lora_read_all(hm_source **out, hm_source *const *sources, size_t count, const hm_source *base, bool common,
                           hm_error *err);

/* HM_ERR_MISMATCH where a LoRA that was read without a base names its layers in another way than those tensors of `other` whose
 * names begin with `prefix`: they would not meet. */
hm_status hm_lora_kinds_agree(const hm_source *view, const hm_source *other, const char *prefix, hm_error *err);

#endif
