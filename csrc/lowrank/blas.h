/* OpenBLAS, for the dense products and factorisations of this room only.
 *
 * It is not linked: a process that never asks for a LoRA must not pay for it, and with little address space it hangs or
 * exits while it loads.  The first hm_blas_begin looks for it, checks the limits first, and keeps it for the process. */
#ifndef HM_LOWRANK_BLAS_H
#define HM_LOWRANK_BLAS_H

#include "hypermerge.h"

/* Column-major, Fortran calling convention behind plain C arguments: every call works in 32-bit sizes.  A row-major matrix is
 * the transposed column-major one: C = A·B in rows is Cᵀ = Bᵀ·Aᵀ in columns. */
typedef struct hm_blas {
    /* C[m × n] = alpha · op(A)[m × k] · op(B)[k × n] + beta · C; `trans` is 'N' or 'T'; lda, ldb, ldc: leading dimensions */
    void (*gemm)(char trans_a, char trans_b, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                 const float *b, size_t ldb, float beta, float *c, size_t ldc);
    /* triangle `uplo` of C[n × n] = alpha · A·Aᵀ (trans 'N', A is n × k) or alpha · Aᵀ·A ('T', A is k × n) + beta · C */
    void (*syrk)(char uplo, char trans, size_t n, size_t k, float alpha, const float *a, size_t lda, float beta, float *c,
                 size_t ldc);
    /* The same two in f64, and what orthonormalising takes: B[m × n] = alpha · op(T)⁻¹ · B (side 'L') or alpha · B · op(T)⁻¹
     * ('R') for a triangle T, */
    void (*gemm_f64)(char trans_a, char trans_b, size_t m, size_t n, size_t k, double alpha, const double *a, size_t lda,
                     const double *b, size_t ldb, double beta, double *c, size_t ldc);
    void (*syrk_f64)(char uplo, char trans, size_t n, size_t k, double alpha, const double *a, size_t lda, double beta,
                     double *c, size_t ldc);
    void (*trsm_f64)(char side, char uplo, char trans, char diag, size_t m, size_t n, double alpha, const double *t,
                     size_t ldt, double *b, size_t ldb);
    /* Cholesky: 0, or the order of the leading minor that is not positive definite, */
    int (*potrf_f64)(char uplo, size_t n, double *a, size_t lda);
    /* eigenvalues (ascending) and vectors (in `a`) of a symmetric matrix: 0, or how many did not converge; work_count ≥ 64 · n */
    int (*syev_f64)(char uplo, size_t n, double *a, size_t lda, double *values, double *work, size_t work_count);
} hm_blas;

/* Gives the calls, one thread each until hm_blas_end: work is shared out by our own crews.  Nested and concurrent pairs are
 * counted under a lock; the last hm_blas_end gives OpenBLAS back the number of threads that it had.  HM_ERR_ARGUMENT when it
 * cannot be found (the message says how to install it), HM_ERR_MEMORY when the limits of the process are too tight to load
 * it.  Every hm_blas_begin that returns HM_OK needs one hm_blas_end. */
hm_status hm_blas_begin(const hm_blas **out, hm_error *err);
void hm_blas_end(void);

#endif
