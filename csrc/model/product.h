/* Product tensors: a source may hold the two factors of a matrix instead of its numbers, NAME.lora_up [out, r] and
 * NAME.lora_down [r, in…], and then offers one tensor NAME [out, in…] of type F32 and rank r.  The product is never
 * stored: lowrank/expand.h computes the numbers that are asked for.
 *
 * Only names of our own (hypermerge.*) are looked at: in a checkpoint such names are tensors like others.  LoRA files have
 * names, scales and parts of their own: lowrank/lora_read.h. */
#ifndef HM_MODEL_PRODUCT_H
#define HM_MODEL_PRODUCT_H

#include "model/source.h"

struct hm_product {
    uint32_t tensor;       /* in header.tensors */
    uint32_t first, count; /* its pairs; those of a hyper-model are one pair each */
};

/* scale · up · down in rows [row, row + rows of up) of a product.  Pairs of one product lie in different rows. */
struct hm_factor_pair {
    uint32_t up, down; /* in stored; down HM_ABSENT: 1, so that `up` itself is meant */
    uint32_t mid;      /* HM_ABSENT, or of a convolution: [p, q, kernel…], which stands between up [out, p] and down [q, in] */
    uint64_t row;
    float scale;
};

/* Replaces every pair of factors in source->header by its product, at the place of the one that lies first, and fills
 * products and stored.  HM_ERR_FORMAT: half a pair, a pair beside a tensor of its name, shapes that do not go
 * together. */
hm_status hm_products_fold(hm_source *source, hm_error *err);
/* What tensor i is computed from; it has a rank. */
const hm_product *hm_source_product(const hm_source *source, uint32_t tensor);
/* The factors of a hyper-model's tensor that has a rank, as they are stored. */
const hm_tensor_info *hm_source_up(const hm_source *source, uint32_t tensor);
const hm_tensor_info *hm_source_down(const hm_source *source, uint32_t tensor);
/* The same file with its tensors as they are stored, factors one by one: for copying it.  `source` itself where it has
 * no products. */
hm_status hm_source_as_stored(hm_source **out, hm_source *source, hm_error *err);

#endif
