/* Symmetric eigenproblem by cyclic Jacobi rotations.
 *
 * Why Jacobi and not LAPACK: M ≤ 64, it is short, it gives the same digits on every CPU, and on a Gram matrix whose
 * inputs differ greatly in norm it finds the small eigenvalues with relative accuracy where a tridiagonal reduction
 * finds noise. */
#include "solve/solution.h"

#include <float.h>
#include <math.h>

/* Convergence is quadratic: 6 to 10 sweeps are normal at n = 64.  The limit only guards against endless work on input
 * that breaks the contract (NaN). */
#define SWEEPS 60
/* After scaling to |a| ≤ 1; an element below this matters to no diagonal element that is not itself noise. */
#define TINY 1e-290

/* An off-diagonal element is done with when it is far below rounding against the geometric mean of its two diagonal
 * elements.  Measuring it against the norm of the matrix instead would lose the small values of a graded matrix. */
static bool negligible(double pq, double pp, double qq)
{
    double size = fabs(pq);
    return size <= TINY || size <= 0x1p-60 * (sqrt(fabs(pp)) * sqrt(fabs(qq)));
}

/* Zeroes a[p][q] by a rotation in the plane of p and q, p < q, and turns the vectors along. */
static void rotate(double *a, size_t n, size_t p, size_t q, double *vectors)
{
    double pq = a[p * n + q];
    double theta = (a[q * n + q] - a[p * n + p]) / 2 / pq;
    /* t = tan of the smaller of the two angles; θ = 0 (equal diagonal) gives t = 1, hence cosine == sine exactly, which
     * keeps two inputs about their mean exactly opposite.  Where θ² overflows t becomes 0: what that loses of a
     * semi-definite matrix is below 1e-300. */
    double t = copysign(1 / (fabs(theta) + sqrt(theta * theta + 1)), theta);
    double cosine = 1 / sqrt(t * t + 1), sine = t * cosine;

    a[p * n + p] -= t * pq;
    a[q * n + q] += t * pq;
    a[p * n + q] = a[q * n + p] = 0;
    for (size_t r = 0; r < n; r++) {
        if (r != p && r != q) {
            double rp = a[r * n + p], rq = a[r * n + q];
            a[r * n + p] = a[p * n + r] = cosine * rp - sine * rq;
            a[r * n + q] = a[q * n + r] = sine * rp + cosine * rq;
        }
        double vp = vectors[r * n + p], vq = vectors[r * n + q];
        vectors[r * n + p] = cosine * vp - sine * vq;
        vectors[r * n + q] = sine * vp + cosine * vq;
    }
}

static void sort_descending(double *values, double *vectors, size_t n)
{
    for (size_t k = 0; k + 1 < n; k++) {
        size_t best = k;
        for (size_t j = k + 1; j < n; j++)
            if (values[j] > values[best]) best = j;
        if (best == k) continue;
        double value = values[k];
        values[k] = values[best];
        values[best] = value;
        for (size_t r = 0; r < n; r++) {
            double component = vectors[r * n + k];
            vectors[r * n + k] = vectors[r * n + best];
            vectors[r * n + best] = component;
        }
    }
}

void hm_jacobi(double *a, size_t n, double *values, double *vectors)
{
    double largest = 0;
    for (size_t i = 0; i < n * n; i++) {
        if (fabs(a[i]) > largest) largest = fabs(a[i]);
        vectors[i] = 0;
    }
    /* A power of two: scaling is exact, and squares and products can neither overflow nor all underflow. */
    int exponent = 0;
    if (largest > 0 && largest <= DBL_MAX) (void)frexp(largest, &exponent);
    for (size_t i = 0; i < n * n; i++) a[i] = ldexp(a[i], -exponent);
    for (size_t i = 0; i < n; i++) vectors[i * n + i] = 1;

    bool rotated = true;
    for (unsigned sweep = 0; rotated && sweep < SWEEPS; sweep++) {
        rotated = false;
        for (size_t p = 0; p < n; p++)
            for (size_t q = p + 1; q < n; q++) {
                if (negligible(a[p * n + q], a[p * n + p], a[q * n + q])) continue;
                rotate(a, n, p, q, vectors);
                rotated = true;
            }
    }
    for (size_t k = 0; k < n; k++) values[k] = ldexp(a[k * n + k], exponent);
    sort_descending(values, vectors, n);
}
