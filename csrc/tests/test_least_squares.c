/* Least squares and hull distances from inner products, against Gram–Schmidt on the explicit points. */
#include <float.h>

#include "solve/solution.h"
#include "tests/check.h"
#include "tests/points.h"

/* Squared distance of b to origin + span of (rows − origin), by Gram–Schmidt on the vectors; origin NULL = 0. */
static double distance_square(const points *p, const double *origin, const double *b, size_t skip)
{
    static double q[M_MOST][N_MOST];
    double rest[N_MOST];
    size_t count = 0;
    for (size_t i = 0; i <= p->m; i++) {
        if (i == skip && i < p->m) continue;
        double *v = i < p->m ? q[count] : rest;
        for (size_t j = 0; j < p->n; j++) v[j] = (i < p->m ? p->x[i][j] : b[j]) - (origin ? origin[j] : 0);
        double before = inner(v, v, p->n);
        for (int pass = 0; pass < 2; pass++)
            for (size_t l = 0; l < count; l++) {
                double share = inner(v, q[l], p->n);
                for (size_t j = 0; j < p->n; j++) v[j] -= share * q[l][j];
            }
        double after = inner(v, v, p->n);
        if (i == p->m || after <= 1e-20 * before || after == 0) continue;
        for (size_t j = 0; j < p->n; j++) v[j] /= sqrt(after);
        count++;
    }
    return inner(rest, rest, p->n);
}

static void products(const points *p, const double *b, double *gram, double *right, double *square)
{
    gram_of(p, gram);
    for (size_t i = 0; i < p->m; i++) right[i] = inner(p->x[i], b, p->n);
    *square = inner(b, b, p->n);
}

static void test_least_squares(void)
{
    double gram[64], right[8], square, c[8], rest, b[N_MOST], sum;
    for (size_t m = 1; m <= 8; m++) {
        points p = random_points(m, 40, 1), target = random_points(1, 40, 1);
        products(&p, target.x[0], gram, right, &square);
        CHECK(hm_least_squares(gram, m, right, square, c, &rest, NULL) == HM_OK);
        CHECK_NEAR(rest, distance_square(&p, NULL, target.x[0], m), 1e-12);
        for (size_t i = 0; i < m; i++) /* normal equations */
            CHECK_NEAR(inner(gram + i * m, c, m), right[i], 1e-12);

        CHECK(hm_least_squares_affine(gram, m, right, square, c, &rest, NULL) == HM_OK);
        CHECK_NEAR(rest, distance_square(&p, p.x[0], target.x[0], 0), 1e-12);
        sum = 0;
        for (size_t i = 0; i < m; i++) sum += c[i];
        CHECK_NEAR(sum, 1, 1e-13);
        for (size_t j = 0; j < 40; j++) { /* the rest is what the weights leave, at right angles to all differences */
            b[j] = target.x[0][j];
            for (size_t i = 0; i < m; i++) b[j] -= c[i] * p.x[i][j];
        }
        CHECK_NEAR(inner(b, b, 40), rest, 1e-12);
        for (size_t i = 1; i < m; i++)
            CHECK_NEAR(inner(b, p.x[i], 40) - inner(b, p.x[0], 40), 0, 1e-12);
    }

    /* A known recipe, from far away: the differences are 1e-3 of the weights. */
    double recipe[] = {0.2, 0.5, -0.1, 0.4};
    points p = random_points(4, 40, 1), far = random_points(1, 40, 1);
    for (size_t j = 0; j < 40; j++) {
        b[j] = 0;
        for (size_t i = 0; i < 4; i++) {
            p.x[i][j] = 1e-3 * p.x[i][j] + far.x[0][j];
            b[j] += recipe[i] * p.x[i][j];
        }
    }
    products(&p, b, gram, right, &square);
    CHECK(hm_least_squares_affine(gram, 4, right, square, c, &rest, NULL) == HM_OK);
    for (size_t i = 0; i < 4; i++) CHECK_NEAR(c[i], recipe[i], 1e-8);
    CHECK_NEAR(rest, 0, 1e-13);

    /* Equal inputs share; all equal is a mixture of equal parts; with and without the sum forced. */
    points twins = random_points(3, 40, 1);
    memcpy(twins.x[2], twins.x[0], sizeof twins.x[0]);
    for (size_t j = 0; j < 40; j++) b[j] = 0.6 * twins.x[0][j] + 0.4 * twins.x[1][j];
    products(&twins, b, gram, right, &square);
    for (int affine = 0; affine < 2; affine++) {
        CHECK((affine ? hm_least_squares_affine : hm_least_squares)(gram, 3, right, square, c, &rest, NULL) == HM_OK);
        CHECK_NEAR(c[0], 0.3, 1e-13);
        CHECK_NEAR(c[1], 0.4, 1e-13);
        CHECK_NEAR(c[2], 0.3, 1e-13);
    }
    memcpy(twins.x[1], twins.x[0], sizeof twins.x[0]);
    products(&twins, b, gram, right, &square);
    CHECK(hm_least_squares_affine(gram, 3, right, square, c, &rest, NULL) == HM_OK);
    for (size_t i = 0; i < 3; i++) CHECK_NEAR(c[i], 1.0 / 3, 1e-15);

    /* Equal but for rounding: their differences mean nothing. */
    double near[9], noise[] = {0, 2, -1, 2, 1, -2, -1, -2, 2};
    double near_right[] = {5 + 4 * DBL_EPSILON, 5, 5 - 4 * DBL_EPSILON};
    for (size_t i = 0; i < 9; i++) near[i] = 4 + 4 * DBL_EPSILON * noise[i];
    CHECK(hm_least_squares_affine(near, 3, near_right, 7, c, &rest, NULL) == HM_OK);
    for (size_t i = 0; i < 3; i++) CHECK_NEAR(c[i], 1.0 / 3, 1e-15);
    CHECK_NEAR(rest, 1, 1e-14);

    double nothing[4] = {0}, flat[2] = {0};
    CHECK(hm_least_squares(nothing, 2, flat, 7, c, &rest, NULL) == HM_OK);
    CHECK(c[0] == 0 && c[1] == 0 && rest == 7);
    CHECK(hm_least_squares(gram, 0, right, 7, c, &rest, NULL) == HM_OK && rest == 7);
    CHECK(hm_least_squares_affine(gram, 0, right, 7, c, &rest, NULL) == HM_ERR_ARGUMENT);

    double big[] = {4e300, 0, 0, 1e300}, big_right[] = {2e300, 1e300};
    CHECK(hm_least_squares(big, 2, big_right, 5e300, c, &rest, NULL) == HM_OK);
    CHECK_NEAR(c[0], 0.5, 1e-15);
    CHECK_NEAR(c[1], 1, 1e-15);
    CHECK_NEAR(rest / 3e300, 1, 1e-14);
    big[3] = NAN;
    hm_error err = {0};
    CHECK(hm_least_squares(big, 2, big_right, 5e300, c, &rest, &err) == HM_ERR_MISMATCH);
    CHECK_HAS(err.message, "not a finite number");
    CHECK(hm_least_squares_affine(big, 2, big_right, 5e300, c, &rest, NULL) == HM_ERR_MISMATCH);
    CHECK(hm_hull_distances(big, 2, c, NULL) == HM_ERR_MISMATCH);
}

static void check_hull(const points *p)
{
    double gram[M_MOST * M_MOST], out[M_MOST];
    gram_of(p, gram);
    CHECK(hm_hull_distances(gram, p->m, out, NULL) == HM_OK);
    for (size_t m = 0; m < p->m; m++) {
        double true_distance = sqrt(distance_square(p, p->x[m == 0 ? 1 : 0], p->x[m], m));
        CHECK_NEAR(out[m], true_distance, 1e-6);
    }
}

static void test_hull(void)
{
    size_t sizes[] = {2, 3, 4, 9, 30};
    for (size_t at = 0; at < 5; at++) {
        points p = random_points(sizes[at], 40, 1);
        check_hull(&p);
        about_mean(&p, NULL);
        check_hull(&p);
    }
    points p = random_points(6, 40, 1), line;
    double gram[36], out[6];
    memcpy(p.x[3], p.x[0], sizeof p.x[0]); /* duplicates; the others keep their distance */
    check_hull(&p);
    gram_of(&p, gram);
    CHECK(hm_hull_distances(gram, 6, out, NULL) == HM_OK);
    CHECK(out[0] == 0 && out[3] == 0 && out[1] > 1 && out[5] > 1);

    line = random_points(4, 40, 1); /* three on a line: each is on the line of the other two; the fourth is not */
    for (size_t j = 0; j < 40; j++) line.x[1][j] = 0.25 * line.x[0][j] + 0.75 * line.x[2][j];
    check_hull(&line);
    gram_of(&line, gram);
    CHECK(hm_hull_distances(gram, 4, out, NULL) == HM_OK);
    CHECK(out[0] == 0 && out[1] == 0 && out[2] == 0 && out[3] > 1);

    double one = 4, two[] = {0, 0, 0, 9}, same[] = {4, 4, 4, 4};
    CHECK(hm_hull_distances(&one, 1, out, NULL) == HM_OK && out[0] == 0);
    CHECK(hm_hull_distances(two, 2, out, NULL) == HM_OK);
    CHECK_NEAR(out[0], 3, 1e-14);
    CHECK_NEAR(out[1], 3, 1e-14);
    CHECK(hm_hull_distances(same, 2, out, NULL) == HM_OK && out[0] == 0 && out[1] == 0);
}

int main(void)
{
    test_least_squares();
    test_hull();
    return check_report("least squares");
}
