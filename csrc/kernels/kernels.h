/* The inner loops, each written once (template.h) and compiled once per instruction set.  All work on at most
 * HM_KERNEL_COLUMNS numbers at a time, which keeps the f32 rows in the first two cache levels and bounds the f32
 * sums. */
#ifndef HM_KERNELS_KERNELS_H
#define HM_KERNELS_KERNELS_H

#include "hypermerge.h"

/* Longest f32 sum: a multiple of 64.  With 8 lanes a lane adds at most 128 products: |error| ≤ 128·2⁻²⁴ Σ|xy| ≈ 8e-6
 * in the worst case and about 1e-7 as errors fall, before the f64 sum takes over. */
#define HM_KERNEL_COLUMNS 1024

/* Index of (i, j), i ≥ j, in a packed lower triangle. */
#define HM_TRIANGLE(i, j) ((size_t)(i) * ((size_t)(i) + 1) / 2 + (size_t)(j))

/* One operand of a blend. */
typedef struct hm_blend_part {
    const void *data;
    hm_dtype dtype;
    float c;
} hm_blend_part;

typedef struct hm_kernels {
    const char *name; /* "portable", "avx2" */

    /* dst[i] = (f32) src[i].  Indexed by hm_dtype, floating-point types only (others are NULL).  `src` need not be
     * aligned.  F64 rounds to nearest even; the others are exact.  F8_E4M3 is the OCP "fn" format: no infinity, 0x7f
     * and 0xff are NaN. */
    void (*load[6])(const void *src, float *dst, size_t n);
    /* dst[i] = (f32) src[i] − ref[i], one f32 rounding. */
    void (*load_sub[6])(const void *src, const float *ref, float *dst, size_t n);
    /* dst[i] = src[i] rounded to nearest even.  F16/BF16: overflow gives Inf; NaN stays NaN.  F8: overflow and Inf
     * saturate to the largest finite value, NaN stays NaN.  `dst` need not be aligned. */
    void (*store[6])(const float *src, void *dst, size_t n);

    /* x[i] = round(x[i] + round(c · d[i])): never contracted, so that all instruction sets agree bit for bit. */
    void (*axpy)(float *x, float c, const float *d, size_t n);

    /* The arithmetic of every full-rank blend, fused: x = parts[0]; x = round(x + round(c · part)) for the others in order;
     * out = round(x) to nearest even.  parts[0].c is not used; parts[0].data NULL stands for 0; a part with c == 0 or data
     * NULL is skipped.  The same bytes as load, axpy, store, for all variants and any split of n.  `stream`: write past
     * the caches (for tensors much larger than them); `out` may be parts[0].data. Any n, any alignment. */
    void (*blend)(void *out, hm_dtype out_dtype, const hm_blend_part *parts, size_t part_count, size_t n, bool stream);

    /* g[HM_TRIANGLE(i, j)] += Σ_t rows[i·stride + t] · rows[j·stride + t] for all m (m+1)/2 pairs; n ≤
     * HM_KERNEL_COLUMNS, products and lane sums in f32 (fused where the CPU can), the lanes added up in f64. stride ≥
     * n, rows 32-byte aligned, stride a multiple of 8. */
    void (*gram)(const float *rows, size_t stride, size_t m, size_t n, double *g);

    /* out[k·out_stride + t] = Σ_i a[k·m + i] · rows[i·stride + t] for k < outputs; products and sums rounded
     * separately, in the order of i, starting from +0. */
    void (*combine)(const float *rows, size_t stride, size_t m, size_t n, const float *a, size_t outputs, float *out,
                    size_t out_stride);

    /* sums[i] += Σ_t (rows[i·stride + t] − shift[t] − Σ_k c[i·k_count + k] · dirs[k·dir_stride + t])² for i < m: what
     * is left of each row.  shift may be NULL. f32 within the call, f64 across calls. */
    void (*residual)(const float *rows, size_t stride, size_t m, size_t n, const float *shift, const float *dirs,
                     size_t dir_stride, size_t k_count, const float *c, double *sums);

    /* Σ_t x[t]², as above. */
    double (*sum_squares)(const float *x, size_t n);
    /* Index of the first NaN or Inf, or n. */
    size_t (*find_nonfinite)(const float *x, size_t n);
} hm_kernels;

/* The best variant for this machine (hm_cpu_get). */
const hm_kernels *hm_kernels_best(void);
/* All variants this machine can run, best first, NULL-terminated: for tests. */
const hm_kernels *const *hm_kernels_all(void);

#endif
