/* The solver against plain f64 arithmetic on explicit differences ΔW (M × N, N ≈ 40).  Singular values come from
 * one-sided Jacobi on ΔW itself, so nothing here shares a formula with the Gram matrix that the solver sees. */
#include <float.h>
#include <stdlib.h>

#include "solve/solution.h"
#include "tests/check.h"
#include "tests/points.h"

static double weight_scale(const points *p, const double *weights)
{
    double sum = 0;
    for (size_t i = 0; i < p->m; i++) sum += weights ? weights[i] : 1;
    return (double)p->m / sum;
}

static int descending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* σ² of √w ΔW: rows turned against each other until all are orthogonal. */
static void singular_squares(const points *p, const double *weights, double *squares)
{
    points x = *p;
    double scale = weight_scale(p, weights);
    for (size_t i = 0; i < x.m; i++)
        for (size_t j = 0; j < x.n; j++) x.x[i][j] *= sqrt((weights ? weights[i] : 1) * scale);
    int turned = 1;
    for (int sweep = 0; turned && sweep < 60; sweep++) {
        turned = 0;
        for (size_t i = 0; i < x.m; i++)
            for (size_t j = i + 1; j < x.m; j++) {
                double ii = inner(x.x[i], x.x[i], x.n), jj = inner(x.x[j], x.x[j], x.n);
                double ij = inner(x.x[i], x.x[j], x.n);
                if (fabs(ij) <= 1e-15 * sqrt(ii) * sqrt(jj) || fabs(ij) < 1e-300) continue;
                double angle = 0.5 * atan2(2 * ij, jj - ii), c = cos(angle), s = sin(angle);
                for (size_t k = 0; k < x.n; k++) {
                    double a = x.x[i][k], b = x.x[j][k];
                    x.x[i][k] = c * a - s * b;
                    x.x[j][k] = s * a + c * b;
                }
                turned = 1;
            }
    }
    for (size_t i = 0; i < x.m; i++) squares[i] = inner(x.x[i], x.x[i], x.n);
    qsort(squares, x.m, sizeof *squares, descending);
}

/* ---- what must hold of any solution, measured on the data ------------------------------------------------------- */

static void check_pivot(const hm_solution *s, size_t k)
{
    double largest = 0;
    size_t first = s->members;
    for (size_t m = 0; m < s->members; m++) largest = fmax(largest, fabs(s->multipliers[m * s->directions + k]));
    for (size_t m = 0; m < s->members && first == s->members; m++)
        if (fabs(s->multipliers[m * s->directions + k]) >= largest * (1 - 1e-6)) first = m;
    CHECK(first < s->members && s->multipliers[first * s->directions + k] == 1);
    CHECK(largest <= 1 + 1.0001e-6);
}

/* `slack` × total is what the loss may exceed the optimum by: rounding for exact, 1e-6 for ALS. */
static void check_solution(const hm_solution *s, const points *p, const double *weights, double slack)
{
    static double direction[M_MOST][N_MOST];
    double squares[M_MOST], total = 0, best = 0, loss = 0, scale = weight_scale(p, weights);
    size_t directions = s->directions;
    singular_squares(p, weights, squares);
    for (size_t k = 0; k < p->m; k++) {
        total += squares[k];
        if (k >= directions) best += squares[k];
    }
    double noise = 2e-14 * total;
    CHECK_NEAR(s->total, total, noise);
    CHECK_NEAR(s->loss, best, slack * total + noise);
    CHECK(s->loss >= best - noise);

    for (size_t k = 0; k < directions; k++) {
        check_pivot(s, k);
        for (size_t j = 0; j < p->n; j++) {
            direction[k][j] = 0;
            for (size_t m = 0; m < p->m; m++) direction[k][j] += s->inputs[k * p->m + m] * p->x[m][j];
        }
        for (size_t l = 0; l < k; l++)
            CHECK_NEAR(inner(direction[k], direction[l], p->n), 0,
                       1e-7 * sqrt(inner(direction[k], direction[k], p->n) * inner(direction[l], direction[l], p->n)));
    }
    for (size_t m = 0; m < p->m; m++) {
        double rest = 0, square = inner(p->x[m], p->x[m], p->n);
        for (size_t j = 0; j < p->n; j++) {
            double missing = p->x[m][j];
            for (size_t k = 0; k < directions; k++) missing -= s->multipliers[m * directions + k] * direction[k][j];
            rest += missing * missing;
        }
        double w = (weights ? weights[m] : 1) * scale;
        loss += w * rest;
        CHECK_NEAR(s->norm[m], sqrt(square), 1e-14 * sqrt(square));
        if (square > 0) CHECK_NEAR(s->residual[m] * s->residual[m], rest / square, 1e-12 + noise / (w * square));
        else CHECK(s->residual[m] == 0);
    }
    CHECK_NEAR(loss, s->loss, noise); /* ‖ΔW − C D‖² of the very numbers that are handed out */
    for (size_t k = 0; k < p->m; k++) {
        CHECK_NEAR(s->eigenvalues[k], squares[k], slack * total + noise);
        CHECK(k == 0 || s->eigenvalues[k] <= s->eigenvalues[k - 1]);
        CHECK_NEAR(s->explained[k] * total, squares[k], slack * total + noise);
    }
}

static void check_history(const hm_solution *s)
{
    CHECK(s->iterations > 0 && s->iterations <= 200000);
    CHECK(s->history && s->history_count == (s->iterations < 1000 ? s->iterations : 1000));
    for (size_t i = 1; i < s->history_count; i++) CHECK(s->history[i] <= s->history[i - 1]);
    CHECK_NEAR(s->history[s->history_count - 1], s->loss, 1e-13 * s->total);
    CHECK(s->history[s->history_count - 1] >= 0);
}

static void solve_both(const points *p, const double *weights, unsigned directions)
{
    double gram[M_MOST * M_MOST];
    gram_of(p, gram);
    for (int method = HM_EXACT; method <= HM_ALS; method++) {
        hm_error err = {0};
        hm_solution s = {0};
        if (!CHECK(hm_solution_find(&s, gram, p->m, weights, directions, (hm_method)method, &err) == HM_OK)) {
            CHECK_TEXT(err.message, "");
            continue;
        }
        CHECK(directions == 0 || s.directions == directions);
        check_solution(&s, p, weights, method == HM_ALS ? 1e-6 : 0);
        if (method == HM_ALS && s.directions > 0) check_history(&s);
        else CHECK(s.iterations == 0 && s.history == NULL && s.history_count == 0);
        hm_solution_clear(&s);
        CHECK(s.multipliers == NULL && s.members == 0);
    }
}

/* ---- Jacobi ----------------------------------------------------------------------------------------------------- */

static void check_eigen(const double *a, size_t n, const double *known, double tolerance)
{
    static double work[64 * 64], values[64], vectors[64 * 64];
    double norm = 0;
    for (size_t i = 0; i < n * n; i++) norm = fmax(norm, fabs(a[i]));
    memcpy(work, a, n * n * sizeof *a);
    hm_jacobi(work, n, values, vectors);
    for (size_t k = 0; k < n; k++) {
        CHECK(k == 0 || values[k] <= values[k - 1]);
        if (known) CHECK_NEAR(values[k], known[k], tolerance);
        for (size_t l = 0; l <= k; l++) {
            double product = 0;
            for (size_t i = 0; i < n; i++) product += vectors[i * n + k] * vectors[i * n + l];
            CHECK_NEAR(product, k == l ? 1 : 0, 1e-13);
        }
        for (size_t i = 0; i < n; i++) {
            double image = 0;
            for (size_t j = 0; j < n; j++) image += a[i * n + j] * vectors[j * n + k];
            CHECK_NEAR(image, values[k] * vectors[i * n + k], 1e-14 * (double)(n + 4) * norm);
        }
    }
}

/* Q diag(values) Qᵀ with Q a product of n Householder reflections, all in long double, so that the values are known. */
static void known_spectrum(double *a, size_t n, const double *values)
{
    static long double x[64][64];
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) x[i][j] = i == j ? (long double)values[i] : 0;
    for (size_t round = 0; round < 4; round++) {
        long double v[64], square = 0;
        for (size_t i = 0; i < n; i++) {
            v[i] = uniform();
            square += v[i] * v[i];
        }
        for (int side = 0; side < 2; side++)
            for (size_t i = 0; i < n; i++) {
                long double product = 0;
                for (size_t j = 0; j < n; j++) product += v[j] * (side ? x[j][i] : x[i][j]);
                for (size_t j = 0; j < n; j++) *(side ? &x[j][i] : &x[i][j]) -= 2 * product / square * v[j];
            }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) a[i * n + j] = (double)(0.5L * (x[i][j] + x[j][i]));
}

static void test_jacobi(void)
{
    static double a[64 * 64], b[64 * 64], va[64], vb[64], xa[64 * 64], xb[64 * 64];
    double values[64];
    for (size_t n = 1; n <= 64; n = n < 10 ? n + 1 : n + 9) {
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j <= i; j++) a[i * n + j] = a[j * n + i] = uniform();
        check_eigen(a, n, NULL, 0);
        for (size_t i = 0; i < n; i++) values[i] = pow(2, -(double)i); /* down to 1e-19 of the largest */
        known_spectrum(a, n, values);
        check_eigen(a, n, values, 1e-15 * sqrt((double)n + 8));
        for (size_t i = 0; i < n; i++) values[i] = i < n / 2 ? 3 : i < n - 1 ? 1 : 0; /* repeated, and a zero */
        known_spectrum(a, n, values);
        check_eigen(a, n, values, 3e-15 * sqrt((double)n + 8));
        for (size_t i = 0; i < n * n; i++) a[i] = 0;
        for (size_t i = 0; i < n; i++) values[i] = 0;
        check_eigen(a, n, values, 0);
    }
    /* Graded: a scaled matrix keeps the relative accuracy of its small values. [[1, d], [d, 3d²]] with d = 1e-100. */
    double graded[4] = {1, 1e-100, 1e-100, 3e-200}, two[2], turn[4];
    hm_jacobi(graded, 2, two, turn);
    CHECK(two[0] == 1);
    CHECK_NEAR(two[1] / 2e-200, 1, 1e-14);
    /* Indefinite, 2 × 2, closed form; and equal diagonal, where both components are exactly the same. */
    double swap[4] = {0, 1, 1, 0};
    hm_jacobi(swap, 2, two, turn);
    CHECK(two[0] == 1 && two[1] == -1 && fabs(turn[0]) == fabs(turn[2]));
    /* Any power of two as scale gives the same digits; extreme scales neither overflow nor vanish. */
    for (size_t i = 0; i < 20; i++)
        for (size_t j = 0; j <= i; j++) b[i * 20 + j] = b[j * 20 + i] = uniform();
    for (int e = -980; e <= 980; e += 490) {
        for (size_t i = 0; i < 400; i++) {
            a[i] = b[i];
            xb[i] = ldexp(b[i], e);
        }
        hm_jacobi(a, 20, va, xa);
        memcpy(a, xb, sizeof(double) * 400);
        hm_jacobi(a, 20, vb, xb);
        CHECK(memcmp(xa, xb, sizeof(double) * 400) == 0);
        for (size_t i = 0; i < 20; i++) CHECK(ldexp(va[i], e) == vb[i]);
    }
}

/* ---- solutions -------------------------------------------------------------------------------------------------- */

static void test_random(void)
{
    double weights[M_MOST];
    size_t sizes[] = {1, 2, 3, 6, 13};
    for (size_t at = 0; at < sizeof sizes / sizeof *sizes; at++) {
        size_t m = sizes[at];
        for (size_t i = 0; i < m; i++) weights[i] = 0.3 + 2 * fabs(uniform());
        points none = random_points(m, 40, 0.9), mean = none, weighted = none;
        about_mean(&mean, NULL);
        about_mean(&weighted, weights);
        for (unsigned k = 0; k <= m; k++) {
            solve_both(&none, NULL, k);
            solve_both(&none, weights, k);
            if (k < m) solve_both(&mean, NULL, k);
            if (k < m) solve_both(&weighted, weights, k);
        }
    }
    points large = random_points(64, 150, 0.97);
    solve_both(&large, NULL, 2);
    about_mean(&large, NULL);
    solve_both(&large, NULL, 63);
}

/* ALS against exact where it is hard: small gaps, steep spectra, K anywhere. */
static void test_als_random(void)
{
    for (int trial = 0; trial < 200; trial++) {
        size_t m = 2 + (size_t)trial % 11;
        points p = random_points(m, 40, trial % 3 == 0 ? 1 : trial % 3 == 1 ? 0.9 : 0.7);
        if (trial % 4 == 3) /* all norms equal, nearly orthogonal: every gap is small */
            for (size_t i = 0; i < m; i++) p.x[i][i] += 30;
        if (trial % 2) about_mean(&p, NULL);
        solve_both(&p, NULL, 1 + (unsigned)trial % (unsigned)(m - 1));
    }
}

/* Diagonal G with a gap that 200,000 iterations cannot resolve: the certificate holds all the same. */
static void test_als_tiny_gap(void)
{
    double gaps[] = {1e-3, 1e-5, 1.25e-6, 1e-9, 0};
    for (size_t g = 0; g < 5; g++) {
        points p = {.m = 4, .n = 4};
        for (size_t i = 0; i < 4; i++) p.x[i][i] = sqrt(1 - gaps[g] * (double)i);
        solve_both(&p, NULL, 1);
        solve_both(&p, NULL, 2);
    }
}

/* Where a simple start (λ = 1, or one input) sits on a saddle or on nothing at all. */
static void test_als_start(void)
{
    points groups = {.m = 5, .n = 5}; /* input 1 is the longest, but the group of the others explains more */
    groups.x[0][0] = 2;
    for (size_t i = 1; i < 5; i++) {
        groups.x[i][1] = 1.5;
        groups.x[i][i] += 0.1;
    }
    solve_both(&groups, NULL, 1);
    solve_both(&groups, NULL, 2);

    points pair = {.m = 2, .n = 3, .x = {{1, 2, 3}, {-1, -2, -3}}}; /* coefficients 1, 1 give nothing */
    solve_both(&pair, NULL, 1);
    points same = {.m = 4, .n = 2, .x = {{1, 2}, {1, 2}, {1, 2}, {1, 2}}};
    solve_both(&same, NULL, 1);
    points opposite = {.m = 4, .n = 2, .x = {{1, 0}, {-1, 0}, {0, 1}, {0, -1}}};
    solve_both(&opposite, NULL, 1);
    solve_both(&opposite, NULL, 2);
}

/* Whatever the fixed start is, at some angle the best direction is at right angles to it, and the updates rest on the
 * saddle next to it.  Gaps of 1e-2 … 1e-4 make the neighbourhood of that angle wide enough to be met. */
static void test_als_saddle(void)
{
    for (int gap = 2; gap <= 4; gap++)
        for (int step = 0; step < 500; step++) {
            double c = cos(step * 3.14159265358979 / 500), s = sin(step * 3.14159265358979 / 500), less = pow(10, -gap);
            double gram[] = {1 - less * s * s, less * s * c, less * s * c, 1 - less * c * c};
            hm_solution found = {0};
            CHECK(hm_solution_find(&found, gram, 2, NULL, 1, HM_ALS, NULL) == HM_OK);
            CHECK(found.loss - (1 - less) <= 1e-6 * found.total);
            hm_solution_clear(&found);
        }
}

static void test_scales(void)
{
    double scales[] = {0x1p-500, 0x1p510}, gram[36], reference[36]; /* G of 1e-301 and 1e307 */
    points p = random_points(6, 40, 0.9);
    gram_of(&p, reference);
    for (int method = HM_EXACT; method <= HM_ALS; method++) {
        hm_solution plain = {0}, scaled = {0};
        CHECK(hm_solution_find(&plain, reference, 6, NULL, 3, (hm_method)method, NULL) == HM_OK);
        for (size_t at = 0; at < 2; at++) {
            for (size_t i = 0; i < 36; i++) gram[i] = reference[i] * scales[at] * scales[at];
            CHECK(hm_solution_find(&scaled, gram, 6, NULL, 3, (hm_method)method, NULL) == HM_OK);
            CHECK(memcmp(plain.multipliers, scaled.multipliers, 18 * sizeof(double)) == 0);
            CHECK(memcmp(plain.residual, scaled.residual, 6 * sizeof(double)) == 0);
            CHECK(scaled.loss / scales[at] / scales[at] == plain.loss);
            CHECK(scaled.norm[5] == plain.norm[5] * scales[at]);
            hm_solution_clear(&scaled);
        }
        hm_solution_clear(&plain);
    }
    /* Norms that differ by 1e6: a small input on its own direction keeps its residual. */
    points graded = {.m = 3, .n = 3, .x = {{1e3, 0, 0}, {0, 1, 0}, {1e-3, 0, 2e-3}}};
    solve_both(&graded, NULL, 2);
}

static void test_two_about_mean(void)
{
    points p = random_points(2, 40, 1);
    double gram[4], raw = 0, weights[] = {1, 3};
    for (size_t j = 0; j < 40; j++) raw += (p.x[1][j] - p.x[0][j]) * (p.x[1][j] - p.x[0][j]);
    for (int method = HM_EXACT; method <= HM_ALS; method++) {
        hm_solution s = {0};
        double about_first[] = {0, 0, 0, raw}; /* what the pass measures: model 1 subtracted */
        hm_gram_centre(about_first, 2, NULL);
        CHECK(hm_solution_find(&s, about_first, 2, NULL, 0, (hm_method)method, NULL) == HM_OK);
        CHECK(s.directions == 1 && s.rank == 1);
        CHECK(s.multipliers[0] == 1 && s.multipliers[1] == -1);
        CHECK_NEAR(s.inputs[0], 0.5, 1e-15);
        CHECK_NEAR(s.inputs[1], -0.5, 1e-15);
        CHECK(s.loss <= 1e-15 * s.total && s.residual[0] <= 1e-7 && s.residual[1] <= 1e-7);
        hm_solution_clear(&s);

        about_mean(&p, NULL); /* the same with the rounding of explicit differences */
        gram_of(&p, gram);
        CHECK(hm_solution_find(&s, gram, 2, NULL, 1, (hm_method)method, NULL) == HM_OK);
        CHECK(s.multipliers[0] == 1 && s.multipliers[1] == -1);
        hm_solution_clear(&s);

        double rounded[] = {1, -1, -1, 1 + 16 * DBL_EPSILON};
        CHECK(hm_solution_find(&s, rounded, 2, NULL, 1, (hm_method)method, NULL) == HM_OK);
        CHECK(s.multipliers[0] == 1 && s.multipliers[1] == -1);
        hm_solution_clear(&s);

        double weighted[] = {0, 0, 0, raw}; /* the mean lies at 3/4: Δ1 = −3 Δ2 */
        hm_gram_centre(weighted, 2, weights);
        CHECK(hm_solution_find(&s, weighted, 2, weights, 1, (hm_method)method, NULL) == HM_OK);
        CHECK(s.multipliers[0] == 1);
        CHECK_NEAR(s.multipliers[1], -1.0 / 3, 1e-14);
        hm_solution_clear(&s);
    }
}

static void test_degenerate(void)
{
    hm_error err = {0};
    hm_solution s = {0};
    double zero[16] = {0};
    for (int method = HM_EXACT; method <= HM_ALS; method++) {
        CHECK(hm_solution_find(&s, zero, 4, NULL, 0, (hm_method)method, &err) == HM_OK);
        CHECK(s.directions == 0 && s.rank == 0 && s.total == 0 && s.loss == 0);
        for (size_t m = 0; m < 4; m++)
            CHECK(s.residual[m] == 0 && s.norm[m] == 0 && s.explained[m] == 0 && s.eigenvalues[m] == 0);
        hm_solution_clear(&s);
    }
    CHECK(hm_solution_find(&s, zero, 4, NULL, 2, HM_EXACT, &err) == HM_ERR_ARGUMENT);
    CHECK_TEXT(err.message, "K = 2 directions asked for, but nothing differs: 4 inputs, all equal to the base");
    CHECK(s.multipliers == NULL);

    points p = random_points(6, 40, 0.9); /* the base is an input, and two inputs are equal */
    for (size_t j = 0; j < 40; j++) {
        p.x[2][j] = 0;
        p.x[4][j] = p.x[1][j];
    }
    for (unsigned k = 0; k <= 4; k++) solve_both(&p, NULL, k);
    double gram[36];
    gram_of(&p, gram);
    CHECK(hm_solution_find(&s, gram, 6, NULL, 2, HM_EXACT, &err) == HM_OK);
    CHECK(s.rank == 4 && s.residual[2] == 0 && s.multipliers[4] == 0 && s.multipliers[5] == 0);
    CHECK_NEAR(s.multipliers[2], s.multipliers[8], 1e-14);
    hm_solution_clear(&s);

    points four = random_points(4, 40, 0.9);
    about_mean(&four, NULL);
    gram_of(&four, gram);
    CHECK(hm_solution_find(&s, gram, 4, NULL, 5, HM_EXACT, &err) == HM_ERR_ARGUMENT);
    CHECK_TEXT(err.message,
               "K = 5 directions asked for, but these 4 inputs differ along only 3: use --directions 3 or fewer");
    CHECK(hm_solution_find(&s, gram, 1, NULL, 2, HM_ALS, &err) == HM_ERR_ARGUMENT);
    CHECK_TEXT(err.message, "K = 2 directions asked for, but this 1 input differs along only 1: use --directions 1");
}

static void test_refusals(void)
{
    hm_error err = {0};
    hm_solution s = {0};
    double gram[4] = {1, 0, 0, 1};
    CHECK(hm_solution_find(&s, gram, 0, NULL, 0, HM_EXACT, &err) == HM_ERR_ARGUMENT);
    CHECK(hm_solution_find(&s, gram, 65, NULL, 0, HM_EXACT, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "1 to 64");
    double bad[][2] = {{1, 0}, {1, -1}, {1, NAN}, {INFINITY, 1}};
    for (size_t i = 0; i < 4; i++) {
        CHECK(hm_solution_find(&s, gram, 2, bad[i], 0, HM_EXACT, &err) == HM_ERR_ARGUMENT);
        CHECK_HAS(err.message, "must be positive");
    }
    double vanishing[] = {1e-13, 1};
    CHECK(hm_solution_find(&s, gram, 2, vanishing, 0, HM_EXACT, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "leave that input out");
    double huge[] = {1e308, 1e308}; /* their sum overflows, their ratio does not */
    CHECK(hm_solution_find(&s, gram, 2, huge, 1, HM_EXACT, &err) == HM_OK);
    hm_solution_clear(&s);
    double broken[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        gram[3] = broken[i];
        CHECK(hm_solution_find(&s, gram, 2, NULL, 0, HM_ALS, &err) == HM_ERR_MISMATCH);
        CHECK_HAS(err.message, "inputs 2 and 2");
    }
    double overflow[] = {1.5e308, 0, 0, 1.5e308};
    CHECK(hm_solution_find(&s, overflow, 2, NULL, 0, HM_EXACT, &err) == HM_ERR_MISMATCH);
    CHECK_HAS(err.message, "too large");
    CHECK(s.multipliers == NULL);
    hm_solution_clear(NULL);
}

static void test_centre(void)
{
    double weights[] = {1, 2, 3, 0.5, 1, 4, 0.1}, gram[49], explicit_gram[49];
    for (int weighted = 0; weighted < 2; weighted++) {
        points p = random_points(7, 40, 1), first = p;
        const double *w = weighted ? weights : NULL;
        for (size_t i = 0; i < 7; i++)
            for (size_t j = 0; j < 40; j++) first.x[i][j] -= p.x[0][j];
        gram_of(&first, gram);
        hm_gram_centre(gram, 7, w);
        about_mean(&p, w);
        gram_of(&p, explicit_gram);
        for (size_t i = 0; i < 7; i++)
            for (size_t j = 0; j < 7; j++) {
                CHECK_NEAR(gram[i * 7 + j], explicit_gram[i * 7 + j], 1e-13);
                CHECK(gram[i * 7 + j] == gram[j * 7 + i]);
            }
    }
    for (int trial = 0; trial < 50; trial++) { /* an input that is the mean: its square must not come out negative */
        points p = random_points(3, 40, 1);
        for (size_t j = 0; j < 40; j++) p.x[2][j] = (p.x[0][j] + p.x[1][j]) / 2;
        gram_of(&p, gram);
        hm_gram_centre(gram, 3, NULL);
        CHECK(gram[8] >= 0 && gram[8] < 1e-14);
    }
    double one = 5;
    hm_gram_centre(&one, 1, NULL);
    CHECK(one == 0);
}

int main(void)
{
    test_jacobi();
    test_random();
    test_als_random();
    test_als_tiny_gap();
    test_als_start();
    test_als_saddle();
    test_scales();
    test_two_about_mean();
    test_degenerate();
    test_refusals();
    test_centre();
    return check_report("solution");
}
