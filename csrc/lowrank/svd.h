/* The best approximation of rank r to a dense matrix: a LoRA of one tensor. */
#ifndef HM_LOWRANK_SVD_H
#define HM_LOWRANK_SVD_H

#include "lowrank/blas.h"

/* A[rows × columns] ≈ up[rows × rank] · down[rank × columns], all row-major.  The singular values are split evenly: column k
 * of `up` and row k of `down` have the norm √σ_k, so neither overflows f16 before the matrix itself would. */
typedef struct hm_low_rank {
    size_t rows, columns, rank; /* rank: as asked, at most min(rows, columns) */
    float *up, *down;
    double *sigma;  /* [rank], descending */
    double square;  /* ‖A‖² */
    double rest;    /* ‖A‖² − Σσ² = ‖A − up·down‖², before any rounding of the factors */
} hm_low_rank;

/* Finds it.  `a` is only read.  `name` is the tensor's, for errors.  The same bytes for the same seed on one CPU.  The error
 * is that of the truncated singular value decomposition times at most 1.002 for decaying spectra, 1.02 for white noise, as
 * far as f32 can tell: directions below 3e-4 ‖A‖ are not told apart.  A matrix of zeros has factors of zeros.
 * HM_ERR_MISMATCH for a matrix that holds NaN or Inf or is too large, HM_ERR_MEMORY.  Free with hm_low_rank_clear. */
hm_status hm_low_rank_find(hm_low_rank *out, const hm_blas *blas, const float *a, size_t rows, size_t columns, size_t rank,
                           uint64_t seed, const char *name, hm_error *err);
/* The same, begun at the factors of a matrix that was nearly this one, rank of them and none of zeros: less than half the
 * work, with an error that is that of hm_low_rank_find where they were near. */
hm_status hm_low_rank_refine(hm_low_rank *out, const hm_blas *blas, const float *a, size_t rows, size_t columns, size_t rank,
                             const float *up, const float *down, uint64_t seed, const char *name, hm_error *err);
void hm_low_rank_clear(hm_low_rank *low_rank);

#endif
