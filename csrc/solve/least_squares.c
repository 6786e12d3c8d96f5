/* Least squares from inner products alone: what a newcomer's coordinates, a recovered recipe and the distance of an
 * input to the hull of the others have in common.  The points themselves are gigabytes and are never seen here. */
#include "solve/solution.h"

#include <float.h>
#include <math.h>

#include "base/error.h"
#include "base/memory.h"

#define EIGENVALUE_SHARE 1e-12 /* of the largest: smaller ones are left out */

static bool all_finite(const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

static hm_status fail_not_finite(hm_error *err)
{
    return hm_fail(err, HM_ERR_MISMATCH, NULL, NULL,
                   "an inner product is not a finite number: look for NaN, Inf or huge values in the inputs");
}

static double largest_size(const double *x, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        if (fabs(x[i]) > largest) largest = fabs(x[i]);
    return largest;
}

/* c = pseudo-inverse of gram × right.  Eigenvalues ≤ floor are noise of what gram was computed from. */
static hm_status solve(const double *gram, size_t k, const double *right, double square, double floor, double *c,
                       double *rest, hm_error *err)
{
    double *work = hm_alloc(2 * k * k + k, sizeof(double));
    if (!work) return hm_fail_memory(err, "least squares");
    double *vectors = work + k * k, *values = vectors + k * k;
    for (size_t i = 0; i < k * k; i++) work[i] = gram[i];
    hm_jacobi(work, k, values, vectors);

    double left = square;
    for (size_t i = 0; i < k; i++) c[i] = 0;
    for (size_t e = 0; e < k; e++) {
        if (!(values[e] > EIGENVALUE_SHARE * values[0]) || !(values[e] > floor)) break;
        double product = 0;
        for (size_t i = 0; i < k; i++) product += vectors[i * k + e] * right[i];
        double coordinate = product / values[e]; /* divided before it is multiplied: squares could overflow */
        left -= coordinate * product;
        for (size_t i = 0; i < k; i++) c[i] += vectors[i * k + e] * coordinate;
    }
    *rest = left > 0 ? left : 0;
    hm_release(work);
    return HM_OK;
}

hm_status hm_least_squares(const double *gram, size_t k, const double *right, double square, double *c, double *rest,
                           hm_error *err)
{
    if (!all_finite(gram, k * k) || !all_finite(right, k) || !isfinite(square)) return fail_not_finite(err);
    return solve(gram, k, right, square, 0, c, rest, err);
}

/* With c = 1/k + d, Σ d = 0, the problem becomes plain least squares about the centroid.  The centred Gram has the
 * constant vector in its null space, so the minimum-norm d sums to zero by itself, and the minimum-norm d gives the
 * minimum-norm c. */
hm_status hm_least_squares_affine(const double *gram, size_t k, const double *right, double square, double *c,
                                  double *rest, hm_error *err)
{
    if (k == 0) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "no inputs to mix: give one or more");
    if (!all_finite(gram, k * k) || !all_finite(right, k) || !isfinite(square)) return fail_not_finite(err);
    double *centred = hm_alloc(k * k + k, sizeof(double));
    if (!centred) return hm_fail_memory(err, "least squares");
    double *centred_right = centred + k * k;
    double count = (double)k, mean_right = 0, mean_gram = 0; /* ⟨p̄, b⟩ and ⟨p̄, p̄⟩ */
    for (size_t i = 0; i < k; i++) {
        double mean_row = 0; /* ⟨p_i, p̄⟩ */
        for (size_t j = 0; j < k; j++) {
            centred[i * k + j] = gram[i * k + j];
            mean_row += gram[i * k + j] / count;
        }
        centred_right[i] = right[i] - mean_row;
        mean_right += right[i] / count;
        mean_gram += mean_row / count;
    }
    for (size_t i = 0; i < k; i++) centred_right[i] += mean_gram - mean_right;
    hm_gram_centre(centred, k, NULL);
    double floor = 4 * count * DBL_EPSILON * largest_size(gram, k * k);
    hm_status status = solve(centred, k, centred_right, square - 2 * mean_right + mean_gram, floor, c, rest, err);
    if (status == HM_OK)
        for (size_t i = 0; i < k; i++) c[i] += 1 / count;
    hm_release(centred);
    return status;
}

/* One constrained least squares per point rather than 1/(inverse of [[G,1],[1ᵀ,0]])_mm: that inverse does not exist
 * when any points coincide or depend on each other, which is a normal case. */
hm_status hm_hull_distances(const double *gram, size_t n, double *out, hm_error *err)
{
    if (!all_finite(gram, n * n)) return fail_not_finite(err);
    if (n == 0) return HM_OK;
    size_t others = n - 1;
    double *work = hm_alloc(others * others + 2 * others + n, sizeof(double));
    if (!work) return hm_fail_memory(err, "distances");
    double *right = work + others * others, *c = right + others, *distance = c + others;
    double noise = 16 * (double)n * DBL_EPSILON * largest_size(gram, n * n);
    hm_status status = HM_OK;
    for (size_t m = 0; others > 0 && m < n && status == HM_OK; m++) {
        double rest = 0;
        for (size_t i = 0; i < others; i++) {
            size_t row = i < m ? i : i + 1;
            for (size_t j = 0; j < others; j++) work[i * others + j] = gram[row * n + (j < m ? j : j + 1)];
            right[i] = gram[row * n + m];
        }
        status = hm_least_squares_affine(work, others, right, gram[m * n + m], c, &rest, err);
        distance[m] = rest > noise ? sqrt(rest) : 0;
    }
    for (size_t m = 0; m < n && status == HM_OK; m++) out[m] = distance[m];
    hm_release(work);
    return status;
}
