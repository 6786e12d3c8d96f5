/* From the Gram matrix to multipliers, directions and the certificate: M × M arithmetic in f64, no data read.
 * Formulas: G = V diag(σ²) Vᵀ;  c_mk = V_mk / s_k;  D_k = s_k Σ_m V_mk ΔW_m;  s_k the V_mk of largest magnitude, sign
 * kept (the first input within 1e-6 of the largest is the pivot).  Weighted (Σw scaled to M):
 * V from √w G √w, c = V/(√w s), D = s Σ √w V ΔW, pivot by |V/√w|.
 * explained_k = σ_k²/Σσ²; loss = Σ_{k>K} σ_k²; residual_m = sqrt(Σ_{k>K} σ_k² V_mk² / (w_m G_mm)), 0 where G_mm = 0.
 * Below, S = √w G √w is the weighted Gram matrix (G itself without weights): that of X_m = √w_m ΔW_m. */
#ifndef HM_SOLVE_SOLUTION_H
#define HM_SOLVE_SOLUTION_H

#include "hypermerge.h"

typedef struct hm_solution {
    size_t members, directions, rank;
    hm_method method;
    double *multipliers; /* c[members × directions] */
    double *inputs;      /* a[directions × members]: D_k = Σ_m a_km ΔW_m */
    /* σ²[members], descending, ≥ 0.  ALS: the first K are the squared lengths that ALS itself found; the others are
     * those of the spectrum of S, so that a table can still show what further directions would hold. */
    double *eigenvalues;
    double *explained;   /* [members]: eigenvalues / total (0 when the total is 0) */
    double *residual;    /* [members], relative to ‖ΔW_m‖, in [0, 1] */
    double *norm;        /* [members]: ‖ΔW_m‖ = sqrt(G_mm) */
    /* total = Σ σ_k²; exact: loss = Σ_{k>K} σ_k²; ALS: loss = Σ_m w_m ‖ΔW_m − Σ_k c_mk D_k‖² of the c and D it found.
     * Both with Σw = M, like the eigenvalues. */
    double loss, total;
    size_t iterations;   /* ALS; 0 for exact */
    double *history;     /* ALS: loss after each iteration, never rising (see hm_als); NULL for exact and K = 0 */
    size_t history_count;
} hm_solution;

/* G: M × M, about the base, symmetric, M ≤ HM_MAX_MEMBERS.  weights NULL or M positive finite values, none below
 * 1e-12 of the largest.  directions 0 = min(2, rank), where rank counts σ² > 1e-9 σ₁²; more than the rank is
 * HM_ERR_ARGUMENT with the rank named.  G = 0 gives K = 0.  A G that is not finite is HM_ERR_MISMATCH.  On failure
 * `*out` is untouched; else clear it with hm_solution_clear. */
hm_status hm_solution_find(hm_solution *out, const double *gram, size_t members, const double *weights,
                           unsigned directions, hm_method method, hm_error *err);
void hm_solution_clear(hm_solution *solution); /* frees and zeroes; a zeroed solution may be cleared too */

/* Double centring with weights (NULL = equal; Σ w normalised inside): G about a reference → G about the weighted mean.
 * In place; the result is exactly symmetric and its diagonal ≥ 0. */
void hm_gram_centre(double *gram, size_t members, const double *weights);

/* Symmetric eigenproblem by cyclic Jacobi in f64: a (n × n, destroyed), values descending, vectors[i·n + k] =
 * component i of eigenvector k.  Only + − × ÷ √, never contracted: the same digits on every CPU.  Works in place,
 * cannot fail; `a` must be finite. */
void hm_jacobi(double *a, size_t n, double *values, double *vectors);

/* What the alternating updates found, as the product U B of M × K and K × M: X_m ≈ Σ_k U_mk Σ_j B_kj X_j. */
typedef struct hm_als {
    double *left;    /* U[members × directions], columns orthonormal */
    double *right;   /* B[directions × members], rows mutually orthogonal as directions: B S Bᵀ = diag(values) */
    double *values;  /* [directions], squared lengths of the directions, descending */
    size_t iterations;
    /* Loss after each iteration: the first 999 and the last one.  Each update minimises over its own unknowns, so the
     * loss cannot rise but by rounding (1e-15 of the total), which is kept out of the record. */
    double *history;
    size_t history_count;
} hm_als;

/* The alternating updates (seed formulas 1, 1b, 2 and, for K > 2, the same cycle over all K) run on S, which must
 * have at least `directions` ≥ 1 eigenvalues above 1e-9 of the largest, and elements of about 1.  A run ends when the
 * loss fell by less than 1e-13 of the total in each of ten iterations, or after 200,000 (a tiny gap σ_K² − σ_{K+1}²).
 * `optimum` is Σ_{k>K} σ_k²: a run that ends more than 1e-6 of the total above it rested on a saddle; it is begun
 * again from another start (8 at most), and iterations and history are those of the last run.  hm_solution_find calls
 * it; clear with hm_als_clear. */
hm_status hm_als_find(hm_als *out, const double *s, size_t members, size_t directions, double optimum, hm_error *err);
void hm_als_clear(hm_als *als);

/* min_c ‖b − A c‖ from inner products: gram[k × k] = AᵀA, right[k] = Aᵀb, square = bᵀb; directions whose eigenvalue
 * is below 1e-12 of the largest are left out (minimum-norm solution).  *rest = squared residual, ≥ 0.
 * HM_ERR_MISMATCH when a number is not finite. */
hm_status hm_least_squares(const double *gram, size_t k, const double *right, double square, double *c, double *rest,
                           hm_error *err);
/* The same with Σ c = 1: inner products about any one reference point; see recover. gram[k × k], right, square as
 * above. Minimum norm: equal inputs share their weight evenly.  k ≥ 1. */
hm_status hm_least_squares_affine(const double *gram, size_t k, const double *right, double square, double *c,
                                  double *rest, hm_error *err);
/* Distance of each of n points to the affine hull of the others, from a Gram about any reference: out[m] = sqrt(min
 * over affine combinations).  0 for duplicates, for a point in the hull of the others, and for n = 1 (there is no
 * other). Distances below about 1e-7 of the largest ‖point‖ cannot be told from 0 in f64 inner products, and are 0. */
hm_status hm_hull_distances(const double *gram, size_t n, double *out, hm_error *err);

#endif
