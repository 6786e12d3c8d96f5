/* The rows of a pass whose numbers are not stored but computed from factors: what they need besides buffers for reads. */
#ifndef HM_SOLVE_STREAM_PRODUCTS_H
#define HM_SOLVE_STREAM_PRODUCTS_H

#include "lowrank/expand.h"
#include "solve/stream_plan.h"

typedef struct hm_stream_products {
    bool any;
    uint64_t bytes;           /* of memory, about: factors of two tensors, and what the workers compute */
    hm_factor_cache *cache;
    hm_expansion *expansion;
} hm_stream_products;

/* Looks whether there are any, and only then loads OpenBLAS.  `seats`: workers that compute at a time. */
hm_status hm_stream_products_open(hm_stream_products *out, const hm_stream *stream, unsigned seats, hm_error *err);
void hm_stream_products_close(hm_stream_products *products);

/* held: [HM_ITEM_SEGMENTS × rows], NULL where there is no product.  To be returned also when taking them failed. */
hm_status hm_item_take_factors(hm_stream_products *products, const hm_stream *stream, const hm_item *item,
                               hm_factors **held, hm_error *err);
void hm_item_return_factors(hm_stream_products *products, const hm_stream *stream, const hm_item *item,
                            hm_factors **held);

#endif
