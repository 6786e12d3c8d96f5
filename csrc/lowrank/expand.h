/* Numbers of a product tensor, computed piece by piece when they are asked for.
 *
 * A tensor is cut into bands of whole rows, once and for all, by its shape alone; a band is always computed whole, by one
 * call of OpenBLAS on one thread.  So a number does not depend on which piece it was asked for in (OpenBLAS may round
 * otherwise at the edges of a matrix than inside), nor on threads or budgets. */
#ifndef HM_LOWRANK_EXPAND_H
#define HM_LOWRANK_EXPAND_H

#include "lowrank/factors.h"

/* Bands are multiples of this many elements where that costs little: pieces that end there cut no band in two. */
#define HM_BAND_CUT ((size_t)4096)

/* Elements of the tensor's bands (the last ones may be shorter).  It has at least one element. */
uint64_t hm_band_elements(const hm_tensor_info *tensor);

/* Where some workers, one in each seat, compute.  Holds OpenBLAS while it is open. */
typedef struct hm_expansion hm_expansion;

/* `rows`: products that a worker needs at a time.  HM_ERR_ARGUMENT or HM_ERR_MEMORY from hm_blas_begin. */
hm_status hm_expansion_open(hm_expansion **out, unsigned seats, size_t rows, hm_error *err);
void hm_expansion_close(hm_expansion *expansion);

/* *out: elements [start, start + count) of the product, valid until the next call for the same seat and row. */
hm_status hm_expand(const float **out, hm_expansion *expansion, unsigned seat, size_t row, const hm_tensor_info *tensor,
                    const hm_factors *factors, uint64_t start, size_t count, hm_error *err);

/* The same for one caller and one piece, into memory of the caller's. */
hm_status hm_expand_alone(float *out, const hm_source *source, uint32_t tensor, uint64_t start, uint64_t count,
                          hm_error *err);

#endif
