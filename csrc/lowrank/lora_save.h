/* Saving a hyper-model of LoRAs alone: no streaming pass, no whole tensors beyond a band of rows.
 *
 * D_k = Σ_m a_km B_m A_m = [a_k1 B_1, a_k2 B_2, …] [A_1; A_2; …]: the factors of all inputs side by side are those of each
 * direction, exactly.  They are stored where that takes fewer bytes than the numbers themselves: the upper ones as f32, since
 * what they are scaled by may leave little of f16, the lower ones in the type that the files have, unchanged; so nothing is
 * rounded that could be told apart from f32's own rounding.  Other tensors are multiplied out and stored in full, in the type of
 * full directions, and what rounding them takes from each input is measured.
 *
 * Memory: the factors of the tensors in work, those of all inputs together, as f32; as many tensors at a time as the budget
 * holds, at least one. */
#ifndef HM_LOWRANK_LORA_SAVE_H
#define HM_LOWRANK_LORA_SAVE_H

#include "solve/hyper.h"

/* Is every input a LoRA, and every direction a combination of them? */
bool hm_lora_save_fits(const hm_hyper *hyper);
/* As hm_hyper_save, whose checks of options were made; fills hyper->residual_stored. */
hm_status hm_lora_save(hm_hyper *hyper, const char *path, const hm_save_options *options, hm_job *job, hm_error *err);

#endif
