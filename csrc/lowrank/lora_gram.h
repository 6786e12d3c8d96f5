/* Gram matrices of products, from their factors alone:  ⟨B₁A₁, B₂A₂⟩ = tr((B₂ᵀB₁)(A₁A₂ᵀ)), the sum of the elementwise product
 * of two small matrices.  Nothing is expanded: what the tensors would hold as wholes does not matter. */
#ifndef HM_LOWRANK_LORA_GRAM_H
#define HM_LOWRANK_LORA_GRAM_H

#include "solve/gram.h"

/* Are all that a pass multiplies for tensor t products, with nothing to be subtracted from them? */
bool hm_factor_gram_fits(const hm_gram_spec *spec, size_t tensor);

/* Fills the grams of out (by tensor of the spec, zeroed before) for the tensors chosen[count], all of which fit, in f64
 * throughout.  A factor that holds NaN or Inf: HM_ERR_MISMATCH, or with spec->allow_nonfinite the tensor's `nonfinite`.
 * Memory: the budget, however many members there are (but two members of one tensor at least, as f64); factors that it does
 * not hold at a time are read again for each group of others.
 * `later_bytes` is what the caller will still read: progress counts towards the sum. */
hm_status hm_factor_gram(const hm_gram_result *out, const hm_gram_spec *spec, const size_t *chosen, size_t count,
                         uint64_t later_bytes, hm_job *job, hm_error *err);
/* Bytes that rows of a pass take in for tensor t. */
uint64_t hm_gram_bytes(const hm_gram_spec *spec, size_t tensor);

#endif
