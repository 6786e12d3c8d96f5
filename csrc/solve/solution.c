/* Multipliers, directions and the certificate from one M × M Gram matrix.
 *
 * Both methods meet in one form: a rank-K approximation U B of the weighted differences X_m = √w_m ΔW_m, with
 * orthonormal columns U_·k and mutually orthogonal directions Σ_m B_km X_m.  The exact method has U = the leading
 * eigenvectors V_K of S = √w G √w and B = V_Kᵀ; the alternating updates bring their own U and B.  Scaling to the
 * pivot is the same for both. */
#include "solve/solution.h"

#include <math.h>

#include "base/error.h"
#include "base/memory.h"

#define RANK_SHARE 1e-9   /* σ² above this share of σ₁² count: f32 tiles give the Gram matrix about 1e-9 of noise */
#define PIVOT_SHARE 1e-6  /* inputs this close to the largest |V| tie; the first of them is the pivot */
#define WEIGHT_SHARE 1e-12 /* smallest weight against the largest: √w then costs at most half the digits of V/√w */
#define SNAP 1e-13        /* rounding of V_mk / s_k: a multiplier this close to ±1 is ±1 */

/* S scaled by a power of two to elements of about 1, and its spectrum. */
typedef struct problem {
    size_t members, rank;
    int exponent;   /* true S = s · 2^exponent */
    double *root;   /* √w[M], Σw = M */
    double *s;      /* [M × M] */
    double *values; /* σ²[M] of s, descending, ≥ 0 */
    double *vectors; /* V[M × M] */
    double total;   /* Σ σ² of s */
} problem;

static void problem_clear(problem *p)
{
    hm_release(p->root);
    hm_release(p->s);
    hm_release(p->values);
    hm_release(p->vectors);
}

static hm_status root_weights(double *root, size_t members, const double *weights, hm_error *err)
{
    if (!weights) {
        for (size_t m = 0; m < members; m++) root[m] = 1;
        return HM_OK;
    }
    double largest = 0, sum = 0;
    for (size_t m = 0; m < members; m++) {
        if (!(weights[m] > 0) || !isfinite(weights[m]))
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "weight %zu is %g: weights must be positive numbers",
                           m + 1, weights[m]);
        if (weights[m] > largest) largest = weights[m];
    }
    for (size_t m = 0; m < members; m++) {
        if (weights[m] / largest < WEIGHT_SHARE)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                           "weight %zu is %g, less than 1e-12 of the largest: leave that input out instead", m + 1,
                           weights[m]);
        sum += weights[m] / largest;
    }
    for (size_t m = 0; m < members; m++) root[m] = sqrt(weights[m] / largest * ((double)members / sum));
    return HM_OK;
}

/* Fills s and exponent. */
static hm_status scale_gram(problem *p, const double *gram, hm_error *err)
{
    size_t members = p->members;
    double largest = 0;
    for (size_t i = 0; i < members * members; i++) {
        if (!isfinite(gram[i]))
            return hm_fail(err, HM_ERR_MISMATCH, NULL, NULL,
                           "the inner product of inputs %zu and %zu is not a finite number: look for NaN, Inf or huge "
                           "values in them", i / members + 1, i % members + 1);
        if (fabs(gram[i]) > largest) largest = fabs(gram[i]);
    }
    if (largest > 0) (void)frexp(largest, &p->exponent);
    for (size_t i = 0; i < members; i++)
        for (size_t j = 0; j < members; j++) {
            double upper = ldexp(gram[i * members + j], -p->exponent);
            double lower = ldexp(gram[j * members + i], -p->exponent);
            p->s[i * members + j] = p->root[i] * p->root[j] * (0.5 * (upper + lower));
        }
    return HM_OK;
}

static hm_status problem_prepare(problem *p, const double *gram, size_t members, const double *weights, hm_error *err)
{
    size_t square = members * members;
    p->members = members;
    p->root = hm_alloc(members, sizeof(double));
    p->s = hm_alloc(square, sizeof(double));
    p->values = hm_alloc(members, sizeof(double));
    p->vectors = hm_alloc(square, sizeof(double));
    double *work = hm_alloc(square, sizeof(double));
    hm_status status = HM_OK;
    if (!p->root || !p->s || !p->values || !p->vectors || !work) status = hm_fail_memory(err, "eigenproblem");
    if (status == HM_OK) status = root_weights(p->root, members, weights, err);
    if (status == HM_OK) status = scale_gram(p, gram, err);
    if (status == HM_OK) {
        for (size_t i = 0; i < square; i++) work[i] = p->s[i];
        hm_jacobi(work, members, p->values, p->vectors);
        for (size_t k = 0; k < members; k++) {
            if (p->values[k] < 0) p->values[k] = 0; /* rounding: a Gram matrix has none */
            p->total += p->values[k];
            if (p->values[k] > RANK_SHARE * p->values[0]) p->rank++;
        }
        if (!isfinite(ldexp(p->total, p->exponent)))
            status = hm_fail(err, HM_ERR_MISMATCH, NULL, NULL, "the differences are too large: their squares overflow");
    }
    hm_release(work);
    return status;
}

static hm_status choose_directions(const problem *p, unsigned asked, size_t *directions, hm_error *err)
{
    *directions = asked > 0 ? asked : p->rank < 2 ? p->rank : 2;
    if (*directions <= p->rank) return HM_OK;
    if (p->rank == 0)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                       "K = %u direction%s asked for, but nothing differs: %zu input%s equal to the base", asked,
                       asked == 1 ? "" : "s", p->members, p->members == 1 ? "" : "s, all");
    return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                   "K = %u directions asked for, but %s %zu input%s along only %zu: use --directions %zu%s", asked,
                   p->members == 1 ? "this" : "these", p->members, p->members == 1 ? " differs" : "s differ", p->rank,
                   p->rank, p->rank == 1 ? "" : " or fewer");
}

static hm_status solution_alloc(hm_solution *out, size_t members, size_t directions, hm_error *err)
{
    out->members = members;
    out->directions = directions;
    out->multipliers = hm_alloc(members * directions, sizeof(double));
    out->inputs = hm_alloc(members * directions, sizeof(double));
    out->eigenvalues = hm_alloc(members, sizeof(double));
    out->explained = hm_alloc(members, sizeof(double));
    out->residual = hm_alloc(members, sizeof(double));
    out->norm = hm_alloc(members, sizeof(double));
    if (!out->multipliers || !out->inputs || !out->eigenvalues || !out->explained || !out->residual || !out->norm)
        return hm_fail_memory(err, "multipliers");
    return HM_OK;
}

/* c_mk = u_m / s and a_km = s B_km √w_m with u = U_·k / √w and s = u at the pivot. */
static void scale_to_pivot(hm_solution *out, const problem *p, size_t k, const double *left, size_t left_stride,
                           const double *right, size_t right_stride)
{
    size_t members = p->members;
    double largest = 0, s = 0;
    for (size_t m = 0; m < members; m++) {
        double size = fabs(left[m * left_stride] / p->root[m]);
        if (size > largest) largest = size;
    }
    for (size_t m = 0; m < members && s == 0; m++) {
        double u = left[m * left_stride] / p->root[m];
        if (fabs(u) >= largest * (1 - PIVOT_SHARE)) s = u;
    }
    for (size_t m = 0; m < members; m++) {
        double c = left[m * left_stride] / p->root[m] / s;
        if (fabs(fabs(c) - 1) <= SNAP) c = copysign(1, c);
        out->multipliers[m * out->directions + k] = c;
        out->inputs[k * members + m] = s * right[m * right_stride] * p->root[m];
    }
}

/* Residual from ‖rest of X_m‖² and ‖X_m‖² = S_mm.  Above 1 only by rounding: c = 0 is always open to the method. */
static double relative_residual(double rest, double square)
{
    if (!(square > 0)) return 0;
    double share = rest / square;
    return share < 1 ? sqrt(share) : 1;
}

static void finish_exact(hm_solution *out, const problem *p)
{
    size_t members = p->members;
    for (size_t k = 0; k < out->directions; k++)
        scale_to_pivot(out, p, k, p->vectors + k, members, p->vectors + k, members);
    for (size_t m = 0; m < members; m++) {
        double rest = 0;
        for (size_t k = out->directions; k < members; k++) {
            double v = p->vectors[m * members + k];
            rest += p->values[k] * v * v;
        }
        out->residual[m] = relative_residual(rest, p->s[m * members + m]);
    }
    for (size_t k = 0; k < members; k++) {
        out->eigenvalues[k] = p->values[k];
        if (k >= out->directions) out->loss += p->values[k];
    }
}

/* ‖X_m − Σ_k U_mk Σ_j B_kj X_j‖² of every m.  With S = V diag(σ²) Vᵀ it is Σ_e σ_e² (V_me − Σ_k U_mk ⟨B_k, V_e⟩)², a
 * sum of squares; the quadratic form in S would cancel to noise of 1e-16 σ₁², which is much for an input of small
 * norm. */
static hm_status measure_als(hm_solution *out, const problem *p, const hm_als *als, hm_error *err)
{
    size_t members = p->members, directions = out->directions;
    double *along = hm_alloc(directions * members, sizeof(double)); /* ⟨B_k, V_e⟩ */
    if (!along) return hm_fail_memory(err, "residuals");
    for (size_t k = 0; k < directions; k++)
        for (size_t j = 0; j < members; j++)
            for (size_t e = 0; e < members; e++)
                along[k * members + e] += als->right[k * members + j] * p->vectors[j * members + e];
    for (size_t m = 0; m < members; m++) {
        double rest = 0;
        for (size_t e = 0; e < members; e++) {
            double missing = p->vectors[m * members + e];
            for (size_t k = 0; k < directions; k++) missing -= als->left[m * directions + k] * along[k * members + e];
            rest += p->values[e] * missing * missing;
        }
        out->loss += rest;
        out->residual[m] = relative_residual(rest, p->s[m * members + m]);
    }
    hm_release(along);
    return HM_OK;
}

static hm_status finish_als(hm_solution *out, const problem *p, hm_error *err)
{
    size_t members = p->members, directions = out->directions;
    double optimum = 0;
    for (size_t k = directions; k < members; k++) optimum += p->values[k];
    hm_als als = {0};
    HM_TRY(hm_als_find(&als, p->s, members, directions, optimum, err));
    for (size_t k = 0; k < directions; k++)
        scale_to_pivot(out, p, k, als.left + k, directions, als.right + k * members, 1);
    hm_status status = measure_als(out, p, &als, err);
    for (size_t k = 0; k < members; k++) {
        if (k < directions) out->eigenvalues[k] = als.values[k];
        /* A tiny gap can leave ALS a trace below the next true value; the table stays in order. */
        else out->eigenvalues[k] = fmin(p->values[k], als.values[directions - 1]);
    }
    out->iterations = als.iterations;
    out->history = als.history;
    out->history_count = als.history_count;
    als.history = NULL;
    hm_als_clear(&als);
    return status;
}

hm_status hm_solution_find(hm_solution *out, const double *gram, size_t members, const double *weights,
                           unsigned directions, hm_method method, hm_error *err)
{
    if (members == 0 || members > HM_MAX_MEMBERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu inputs given: a hyper-model takes 1 to %d", members,
                       HM_MAX_MEMBERS);
    problem p = {0};
    hm_solution found = {.method = method};
    size_t wanted = 0;
    hm_status status = problem_prepare(&p, gram, members, weights, err);
    if (status == HM_OK) status = choose_directions(&p, directions, &wanted, err);
    if (status == HM_OK) status = solution_alloc(&found, members, wanted, err);
    if (status == HM_OK) {
        if (method == HM_ALS && wanted > 0) status = finish_als(&found, &p, err);
        else finish_exact(&found, &p);
    }
    if (status == HM_OK) {
        found.rank = p.rank;
        for (size_t k = 0; k < members; k++) {
            found.explained[k] = p.total > 0 ? found.eigenvalues[k] / p.total : 0;
            found.eigenvalues[k] = ldexp(found.eigenvalues[k], p.exponent);
            double square = gram[k * members + k];
            found.norm[k] = square > 0 ? sqrt(square) : 0;
        }
        for (size_t i = 0; i < found.history_count; i++) found.history[i] = ldexp(found.history[i], p.exponent);
        found.loss = ldexp(found.loss, p.exponent);
        found.total = ldexp(p.total, p.exponent);
        *out = found;
    } else {
        hm_solution_clear(&found);
    }
    problem_clear(&p);
    return status;
}

void hm_solution_clear(hm_solution *solution)
{
    if (!solution) return;
    hm_release(solution->multipliers);
    hm_release(solution->inputs);
    hm_release(solution->eigenvalues);
    hm_release(solution->explained);
    hm_release(solution->residual);
    hm_release(solution->norm);
    hm_release(solution->history);
    *solution = (hm_solution){0};
}

/* Rows first, then columns: two passes of G_ij −= weighted mean, which needs no room for the means. */
void hm_gram_centre(double *gram, size_t members, const double *weights)
{
    double largest = 0, sum = 0;
    for (size_t m = 0; m < members; m++)
        if (weights && weights[m] > largest) largest = weights[m];
    for (size_t m = 0; m < members; m++) sum += weights ? weights[m] / largest : 1;
    for (unsigned pass = 0; pass < 2; pass++) {
        size_t line = pass == 0 ? members : 1, step = pass == 0 ? 1 : members;
        for (size_t i = 0; i < members; i++) {
            double mean = 0;
            for (size_t j = 0; j < members; j++)
                mean += (weights ? weights[j] / largest : 1) * gram[i * line + j * step];
            mean /= sum;
            for (size_t j = 0; j < members; j++) gram[i * line + j * step] -= mean;
        }
    }
    for (size_t i = 0; i < members; i++) {
        if (gram[i * members + i] < 0) gram[i * members + i] = 0; /* rounding of an input that is the mean */
        for (size_t j = 0; j < i; j++) {
            double both = 0.5 * gram[i * members + j] + 0.5 * gram[j * members + i];
            gram[i * members + j] = gram[j * members + i] = both;
        }
    }
}
