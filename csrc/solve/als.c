/* The seeds' alternating updates, run on the M × M Gram matrix instead of on the weights.
 *
 * A direction is kept as its coefficients over the inputs, D_k = Σ_m a_km X_m, so every inner product that the update
 * equations ask for is an element of S a_k or of a_kᵀ S a_l, and one iteration costs no pass over the files.
 * For K = 2, with c_m1 = λ_m, c_m2 = κ_m, D_1 = δW, D_2 = δQ, one iteration is the seeds' cycle λ, κ, δW, δQ:
 *     c_mk = ⟨D_k, X_m − Σ_{l≠k} c_ml D_l⟩ / ⟨D_k, D_k⟩
 *     D_k = Σ_m c_mk (X_m − Σ_{l≠k} c_ml D_l) / Σ_m c_mk²
 *
 * The start.  λ = 1 for every input, as one might begin, makes δW the mean of X: zero around the mean, and 0/0 next.
 * A single input as direction, or equal coefficients, can lie in an invariant subspace (orthogonal groups of inputs),
 * where the updates stay for ever.  Dense coefficients without any pattern do neither, but by chance they can still be
 * nearly orthogonal to what is sought; the updates then creep along a saddle and seem to rest there.  All points of
 * rest but the optimum are saddles, and the optimal loss is known from the spectrum: a run that ends above it is
 * thrown away and begun again from other coefficients. */
#include "solve/solution.h"

#include <math.h>

#include "base/error.h"
#include "base/memory.h"

#define ITERATIONS_MOST 200000
#define HISTORY_MOST 1000
#define FALL_LEAST 1e-13 /* of the total, per iteration */
#define QUIET_ITERATIONS 10
#define STARTS_MOST 8
#define EXCESS_MOST 1e-6 /* of the total, over the optimal loss: what DESIGN asks of the method */

typedef struct state {
    size_t members, directions; /* M, K */
    const double *s;            /* S[M × M] */
    double *c;                  /* multipliers, one direction after the other: c_mk at [k × M + m] */
    double *a;                  /* coefficients a_km at [k × M + m] */
    double *sa;                 /* ⟨D_k, X_m⟩ at [k × M + m] */
    double *dd;                 /* ⟨D_k, D_l⟩[K × K] */
    double *cc;                 /* Σ_m c_mk c_ml [K × K] */
    double total;               /* trace of S */
    uint32_t random;
} state;

/* Four sums side by side: one alone waits for each addition to finish.  The order is fixed, so the digits are too. */
static double dot(const double *x, const double *y, size_t n)
{
    double sum[4] = {0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t lane = 0; lane < 4; lane++) sum[lane] += x[i + lane] * y[i + lane];
    for (; i < n; i++) sum[0] += x[i] * y[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* out −= factor × x */
static void subtract(double *out, double factor, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) out[i] -= factor * x[i];
}

static void apply_gram(const state *z, const double *x, double *out)
{
    for (size_t m = 0; m < z->members; m++) out[m] = dot(z->s + m * z->members, x, z->members);
}

/* Random-looking numbers in [−1, 1), the same everywhere; then D_k made orthogonal to the D before it, so that the
 * first multipliers are not those of nearly parallel directions.  Twice, because once leaves rounding behind. */
static void start(state *z)
{
    size_t members = z->members;
    for (size_t k = 0; k < z->directions; k++) {
        double *a = z->a + k * members;
        for (size_t m = 0; m < members; m++) {
            z->random = z->random * 1664525u + 1013904223u;
            a[m] = (double)(z->random >> 8) / 8388608.0 - 1;
            z->c[k * members + m] = 0;
        }
        for (unsigned pass = 0; pass < 2; pass++)
            for (size_t l = 0; l < k; l++) {
                const double *sl = z->sa + l * members, *al = z->a + l * members;
                subtract(a, dot(sl, a, members) / dot(sl, al, members), al, members);
            }
        apply_gram(z, a, z->sa + k * members);
    }
}

/* out[K × K] = inner products of the rows of x and y [K × M]; symmetric. */
static void multiply(const state *z, const double *x, const double *y, double *out)
{
    for (size_t k = 0; k < z->directions; k++)
        for (size_t l = 0; l <= k; l++)
            out[k * z->directions + l] = out[l * z->directions + k] =
                dot(x + k * z->members, y + l * z->members, z->members);
}

static void measure_directions(state *z)
{
    for (size_t k = 0; k < z->directions; k++) apply_gram(z, z->a + k * z->members, z->sa + k * z->members);
    multiply(z, z->sa, z->a, z->dd);
}

/* Both updates have one shape: row k of x becomes (row k of `from` − Σ_{l≠k} products_kl row l of x) / products_kk,
 * with the rows l < k already new.  For c, `from` is ⟨D_k, X_m⟩; for the coefficients of D, Σ_m c_mk X_m has the
 * coefficients c. */
static void update(const state *z, double *x, const double *from, const double *products)
{
    size_t members = z->members, directions = z->directions;
    for (size_t k = 0; k < directions; k++) {
        double *row = x + k * members, square = products[k * directions + k];
        for (size_t m = 0; m < members; m++) row[m] = from[k * members + m];
        for (size_t l = 0; l < directions; l++)
            if (l != k) subtract(row, products[k * directions + l], x + l * members, members);
        for (size_t m = 0; m < members; m++) row[m] /= square;
    }
}

/* Σ_m ‖X_m − Σ_k c_mk D_k‖², expanded. */
static double measure_loss(const state *z)
{
    double cross = dot(z->c, z->sa, z->directions * z->members);
    return z->total - 2 * cross + dot(z->cc, z->dd, z->directions * z->directions);
}

/* C = Q R by Gram–Schmidt, twice for orthogonality; Q replaces c, and R A replaces a: the product C A is unchanged. */
static void orthonormalise(state *z)
{
    size_t members = z->members;
    for (size_t k = 0; k < z->directions; k++) {
        double *c = z->c + k * members, *a = z->a + k * members;
        for (unsigned pass = 0; pass < 2; pass++)
            for (size_t l = 0; l < k; l++) {
                double share = dot(z->c + l * members, c, members);
                subtract(c, share, z->c + l * members, members);
                subtract(z->a + l * members, -share, a, members);
            }
        double length = sqrt(dot(c, c, members));
        for (size_t m = 0; m < members; m++) {
            c[m] /= length;
            a[m] *= length;
        }
    }
}

/* Q (R A) turned by the eigenvectors Z of ⟨D_k, D_l⟩: U = Q Z, B = Zᵀ (R A).  The sum Σ_k c_mk D_k stays what the
 * updates found; only its axes become orthogonal, the longest first.  `vectors` holds K × K. */
static void canonicalise(hm_als *out, state *z, double *vectors)
{
    size_t directions = z->directions, members = z->members;
    orthonormalise(z);
    measure_directions(z);
    hm_jacobi(z->dd, directions, out->values, vectors);
    for (size_t k = 0; k < directions; k++) {
        if (out->values[k] < 0) out->values[k] = 0;
        for (size_t l = 0; l < directions; l++)
            for (size_t m = 0; m < members; m++) {
                out->left[m * directions + k] += z->c[l * members + m] * vectors[l * directions + k];
                out->right[k * members + m] += z->a[l * members + m] * vectors[l * directions + k];
            }
    }
}

/* One run; returns its last loss. */
static double iterate(hm_als *out, state *z)
{
    double best = z->total;
    unsigned quiet = 0;
    out->iterations = out->history_count = 0;
    start(z);
    measure_directions(z);
    while (quiet < QUIET_ITERATIONS && out->iterations < ITERATIONS_MOST) {
        update(z, z->c, z->sa, z->dd);
        multiply(z, z->c, z->c, z->cc);
        update(z, z->a, z->c, z->cc);
        measure_directions(z);
        double loss = measure_loss(z);
        if (loss < 0) loss = 0; /* rounding of a perfect fit */
        quiet = best - loss < FALL_LEAST * z->total ? quiet + 1 : 0;
        if (loss < best) best = loss;
        if (out->history_count < HISTORY_MOST) out->history_count++;
        out->history[out->history_count - 1] = best;
        out->iterations++;
    }
    return best;
}

hm_status hm_als_find(hm_als *out, const double *s, size_t members, size_t directions, double optimum,
                      hm_error *err)
{
    size_t product = members * directions, square = directions * directions;
    hm_als found = {
        .left = hm_alloc(product, sizeof(double)),
        .right = hm_alloc(product, sizeof(double)),
        .values = hm_alloc(directions, sizeof(double)),
        .history = hm_alloc(HISTORY_MOST, sizeof(double)),
    };
    double *work = hm_alloc(3 * product + 3 * square, sizeof(double));
    if (!found.left || !found.right || !found.values || !found.history || !work) {
        hm_als_clear(&found);
        hm_release(work);
        return hm_fail_memory(err, "alternating updates");
    }
    state z = {.members = members, .directions = directions, .s = s, .random = 1};
    z.c = work;
    z.a = z.c + product;
    z.sa = z.a + product;
    z.dd = z.sa + product;
    z.cc = z.dd + square;
    for (size_t m = 0; m < members; m++) z.total += s[m * members + m];
    for (unsigned run = 0; run < STARTS_MOST && iterate(&found, &z) - optimum > EXCESS_MOST * z.total;) run++;
    canonicalise(&found, &z, z.cc + square);
    hm_release(work);
    *out = found;
    return HM_OK;
}

void hm_als_clear(hm_als *als)
{
    if (!als) return;
    hm_release(als->left);
    hm_release(als->right);
    hm_release(als->values);
    hm_release(als->history);
    *als = (hm_als){0};
}
