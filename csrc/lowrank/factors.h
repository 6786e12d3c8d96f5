/* The factors of product tensors as f32, loaded when the first worker needs them and shared by all that do.
 *
 * Only what is in use is kept, and what was in use last until something else is loaded: work comes in the order of the
 * tensors, so factors that nobody uses any more are not going to be used again. */
#ifndef HM_LOWRANK_FACTORS_H
#define HM_LOWRANK_FACTORS_H

#include "model/source.h"

typedef struct hm_factor_cache hm_factor_cache;

typedef struct hm_factors {
    const hm_source *source;
    uint32_t tensor;
    uint64_t serial;              /* of the cache's; never 0, never used again */
    size_t rows, columns, rank;   /* [rows × columns] = up [rows × rank] · down [rank × columns] */
    float *up, *down;             /* one block, at up */
    unsigned users;
    struct hm_factors *next;
} hm_factors;

hm_status hm_factor_cache_open(hm_factor_cache **out, hm_error *err);
void hm_factor_cache_close(hm_factor_cache *cache); /* nothing is in use any more */

/* `tensor` of `source` is a product.  Every hm_factors_take that returns HM_OK needs one hm_factors_return. */
hm_status hm_factors_take(hm_factors **out, hm_factor_cache *cache, const hm_source *source, uint32_t tensor,
                          hm_error *err);
void hm_factors_return(hm_factor_cache *cache, hm_factors *factors);

/* Both factors of a product as one pair: up [rows × rank], down [rank × columns], scales in `up`; where it is made of several
 * pairs, one behind the other. */
hm_status hm_product_read(float *up, float *down, const hm_source *source, uint32_t tensor, hm_error *err);
/* All numbers of a stored factor, as f32. */
hm_status hm_factor_read(float *out, const hm_source *source, const hm_tensor_info *factor, hm_error *err);
/* Bytes that the factors of a product take here. */
uint64_t hm_factors_bytes(const hm_source *source, uint32_t tensor);

#endif
