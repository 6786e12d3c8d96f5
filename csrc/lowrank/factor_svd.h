/* The singular value decomposition of a product, from its factors: what LoRAs of LoRAs are made with, exactly where ranks
 * allow.  The product itself is never there. */
#ifndef HM_LOWRANK_FACTOR_SVD_H
#define HM_LOWRANK_FACTOR_SVD_H

#include "lowrank/difference.h"
#include "lowrank/svd.h"

/* up[rows × rank] · down[rank × columns], row-major, in f64. */
typedef struct hm_factor_matrix {
    size_t rows, columns, rank;
    double *up, *down; /* one block, at up */
} hm_factor_matrix;

/* The rank that tensor t of a difference has as a product of stored factors, side by side; 0 where some of what it is made of
 * lies there in full. */
size_t hm_difference_rank(const hm_difference *difference, size_t tensor);
/* Reads them, coefficients in `up`, factors of one pair made equally long.  Free with hm_factor_matrix_clear. */
hm_status hm_difference_factors(hm_factor_matrix *out, const hm_difference *difference, size_t tensor, hm_error *err);
void hm_factor_matrix_clear(hm_factor_matrix *matrix);

/* As hm_low_rank_find for rows [first, first + rows of it) of the product.  Singular values below 3e-7 of the largest are not
 * told from 0, and have factors of zeros. */
hm_status hm_low_rank_of_factors(hm_low_rank *out, const hm_blas *blas, const hm_factor_matrix *matrix, size_t first,
                                 size_t rows, size_t rank, const char *name, hm_error *err);
/* ‖those rows − low_rank->up · low_rank->down‖², of the numbers as they stand there now. */
hm_status hm_factor_rest(double *out, const hm_blas *blas, const hm_factor_matrix *matrix, size_t first,
                         const hm_low_rank *low_rank, hm_error *err);

#endif
