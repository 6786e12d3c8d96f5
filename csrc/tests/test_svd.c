/* The low-rank approximation: as good as it says for spectra that fall and for noise, exact where the matrix has fewer
 * directions than asked for, and the same bytes every time.  Singular values are known because the matrices are made of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lowrank/svd.h"
#include "tests/check.h"
#include "tests/points.h"

/* Columns of `q` [rows × columns], row-major, made orthonormal. */
static void orthonormal(double *q, size_t rows, size_t columns)
{
    for (size_t i = 0; i < rows * columns; i++) q[i] = uniform();
    for (int round = 0; round < 2; round++)
        for (size_t k = 0; k < columns; k++) {
            for (size_t j = 0; j < k; j++) {
                double dot = 0;
                for (size_t i = 0; i < rows; i++) dot += q[i * columns + k] * q[i * columns + j];
                for (size_t i = 0; i < rows; i++) q[i * columns + k] -= dot * q[i * columns + j];
            }
            double square = 0;
            for (size_t i = 0; i < rows; i++) square += q[i * columns + k] * q[i * columns + k];
            for (size_t i = 0; i < rows; i++) q[i * columns + k] /= sqrt(square);
        }
}

/* A = Σ_k sigma_k u_k v_kᵀ; the last `empty` rows are zero. */
static float *matrix_of(const double *sigma, size_t count, size_t rows, size_t columns, size_t empty)
{
    double *u = calloc(rows * count, sizeof *u), *v = calloc(columns * count, sizeof *v);
    float *a = calloc(rows * columns, sizeof *a);
    orthonormal(u, rows - empty, count);
    orthonormal(v, columns, count);
    for (size_t i = 0; i < rows - empty; i++)
        for (size_t j = 0; j < columns; j++) {
            double sum = 0;
            for (size_t k = 0; k < count; k++) sum += sigma[k] * u[i * count + k] * v[j * count + k];
            a[i * columns + j] = (float)sum;
        }
    free(u);
    free(v);
    return a;
}

static double left_over(const float *a, const hm_low_rank *found)
{
    double square = 0;
    for (size_t i = 0; i < found->rows; i++)
        for (size_t j = 0; j < found->columns; j++) {
            double value = (double)a[i * found->columns + j];
            for (size_t k = 0; k < found->rank; k++)
                value -= (double)found->up[i * found->rank + k] * (double)found->down[k * found->columns + j];
            square += value * value;
        }
    return sqrt(square);
}

enum { MOST = 96 };

static void test_decaying(const hm_blas *blas)
{
    static const size_t shapes[][3] = {{96, 200, 12}, {200, 96, 12}, {130, 130, 20}, {97, 300, 1}, {150, 97, 7}, {96, 96, 96}};
    double sigma[MOST];
    for (size_t k = 0; k < MOST; k++) sigma[k] = pow((double)(k + 1), -1.5) + 1e-3;
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        size_t rows = shapes[s][0], columns = shapes[s][1], rank = shapes[s][2];
        float *a = matrix_of(sigma, MOST, rows, columns, 0);
        hm_low_rank found, again;
        hm_error err = {0};
        double optimum = 0, square = 0;
        for (size_t k = 0; k < MOST; k++) square += sigma[k] * sigma[k];
        for (size_t k = rank; k < MOST; k++) optimum += sigma[k] * sigma[k];
        CHECK(hm_low_rank_find(&found, blas, a, rows, columns, rank, 7, "t", &err) == HM_OK);
        CHECK(found.rank == rank);
        double error = left_over(a, &found);
        CHECK(error <= 1.002 * sqrt(optimum) + 1e-6);
        CHECK_NEAR(found.square, square, 1e-6 * square);
        CHECK_NEAR(sqrt(found.rest), error, 1e-3);
        for (size_t k = 0; k < rank; k++) {
            double up = 0, down = 0;
            for (size_t i = 0; i < rows; i++) up += pow((double)found.up[i * rank + k], 2);
            for (size_t j = 0; j < columns; j++) down += pow((double)found.down[k * columns + j], 2);
            CHECK_NEAR(up, found.sigma[k], 1e-4 * found.sigma[0]);
            CHECK_NEAR(down, found.sigma[k], 1e-4 * found.sigma[0]);
            CHECK(found.sigma[k] <= sigma[k] + 2e-6 && (k == 0 || found.sigma[k] <= found.sigma[k - 1] + 2e-6));
        }
        CHECK(hm_low_rank_find(&again, blas, a, rows, columns, rank, 7, "t", &err) == HM_OK);
        CHECK(memcmp(found.up, again.up, rows * rank * sizeof *found.up) == 0 &&
              memcmp(found.down, again.down, rank * columns * sizeof *found.down) == 0);
        hm_low_rank_clear(&found);
        hm_low_rank_clear(&again);
        free(a);
    }
}

/* Fewer directions than asked for, also with rows that are all zero: the iteration runs out of directions, and what
 * rounding leaves must not be taken for more. */
static void test_too_few_directions(const hm_blas *blas)
{
    static const size_t cases[][5] = {
        /* rows, columns, directions, empty rows, rank */
        {64, 64, 24, 40, 8}, {64, 64, 8, 40, 8}, {64, 64, 3, 0, 8}, {70, 200, 1, 60, 8}, {200, 70, 9, 100, 12}, {80, 90, 30, 50, 30},
    };
    double sigma[MOST];
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        size_t rows = cases[c][0], columns = cases[c][1], directions = cases[c][2], rank = cases[c][4];
        for (size_t k = 0; k < directions; k++) sigma[k] = 1 / (double)(k + 1);
        float *a = matrix_of(sigma, directions, rows, columns, cases[c][3]);
        hm_low_rank found;
        hm_error err = {0};
        double optimum = 0;
        for (size_t k = rank; k < directions; k++) optimum += sigma[k] * sigma[k];
        CHECK(hm_low_rank_find(&found, blas, a, rows, columns, rank, 1, "t", &err) == HM_OK);
        CHECK(left_over(a, &found) <= 1.002 * sqrt(optimum) + 5e-6);
        hm_low_rank_clear(&found);
        free(a);
    }
}

/* Begun at the factors of a matrix that differs by a twentieth, or of one that has fewer directions. */
static void test_begun_nearby(const hm_blas *blas)
{
    static const size_t shapes[][3] = {{96, 200, 12}, {200, 96, 12}, {130, 130, 20}, {97, 300, 1}, {96, 96, 96}};
    double sigma[MOST], few[4] = {1, 0.5, 0.25, 0.125};
    for (size_t k = 0; k < MOST; k++) sigma[k] = pow((double)(k + 1), -0.7);
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int poor = 0; poor < 2; poor++) {
            size_t rows = shapes[s][0], columns = shapes[s][1], rank = shapes[s][2];
            float *a = matrix_of(sigma, MOST, rows, columns, 0), *change = matrix_of(sigma, MOST, columns, rows, 0);
            float *other = matrix_of(few, 4, rows, columns, 0);
            hm_low_rank near, anew, refined;
            hm_error err = {0};
            CHECK(hm_low_rank_find(&near, blas, poor ? other : a, rows, columns, rank, 7, "t", &err) == HM_OK);
            for (size_t i = 0; i < rows * columns; i++) a[i] += 0.05f * change[i];
            CHECK(hm_low_rank_find(&anew, blas, a, rows, columns, rank, 7, "t", &err) == HM_OK);
            CHECK(hm_low_rank_refine(&refined, blas, a, rows, columns, rank, near.up, near.down, 7, "t", &err) == HM_OK);
            CHECK(left_over(a, &refined) <= (poor ? 1.1 : 1.002) * left_over(a, &anew) + 1e-5);
            hm_low_rank_clear(&near);
            hm_low_rank_clear(&anew);
            hm_low_rank_clear(&refined);
            free(a);
            free(change);
            free(other);
        }
}

static void test_edges(const hm_blas *blas)
{
    hm_low_rank found;
    hm_error err = {0};
    float zeros[6] = {0}, one[1] = {-3}, wide[5] = {1, 2, 3, 4, 5};
    CHECK(hm_low_rank_find(&found, blas, zeros, 2, 3, 4, 0, "t", &err) == HM_OK);
    CHECK(found.rank == 2 && found.square == 0 && found.rest == 0 && found.up[0] == 0 && found.down[5] == 0);
    hm_low_rank_clear(&found);
    CHECK(hm_low_rank_find(&found, blas, one, 1, 1, 4, 0, "t", &err) == HM_OK);
    CHECK(found.rank == 1);
    CHECK_NEAR((double)(found.up[0] * found.down[0]), -3, 1e-6);
    hm_low_rank_clear(&found);
    for (int turned = 0; turned < 2; turned++) {
        CHECK(hm_low_rank_find(&found, blas, wide, turned ? 5 : 1, turned ? 1 : 5, 4, 0, "t", &err) == HM_OK);
        CHECK(found.rank == 1 && left_over(wide, &found) < 1e-5);
        hm_low_rank_clear(&found);
    }
    wide[3] = NAN;
    CHECK(hm_low_rank_find(&found, blas, wide, 1, 5, 1, 0, "layer", &err) == HM_ERR_MISMATCH);
    CHECK_TEXT(err.message, "layer: the difference holds NaN or Inf");
    CHECK(hm_low_rank_find(&found, blas, wide, 1, (size_t)INT32_MAX + 1, 1, 0, "layer", &err) == HM_ERR_MISMATCH);
    CHECK_TEXT(err.message, "layer: has a side of more than 2147483647 numbers, too many to decompose");
    wide[3] = 3e38f;
    CHECK(hm_low_rank_find(&found, blas, wide, 1, 5, 1, 0, "layer", &err) == HM_ERR_MISMATCH);
}

/* Scaling by powers of two changes nothing but the scale, from the smallest differences to the largest. */
static void test_scales(const hm_blas *blas)
{
    double sigma[MOST];
    for (size_t k = 0; k < MOST; k++) sigma[k] = 1 / (double)(k + 1);
    float *a = matrix_of(sigma, MOST, 96, 128, 0);
    for (int power = -60; power <= 60; power += 40) {
        float *b = calloc(96 * 128, sizeof *b);
        for (size_t i = 0; i < 96 * 128; i++) b[i] = ldexpf(a[i], power);
        hm_low_rank found;
        hm_error err = {0};
        double optimum = 0;
        for (size_t k = 10; k < MOST; k++) optimum += sigma[k] * sigma[k];
        CHECK(hm_low_rank_find(&found, blas, b, 96, 128, 10, 0, "t", &err) == HM_OK);
        CHECK_NEAR(ldexp(left_over(b, &found), -power), sqrt(optimum), 2e-3 * sqrt(optimum));
        hm_low_rank_clear(&found);
        free(b);
    }
    free(a);
}

int main(void)
{
    const hm_blas *blas = NULL;
    hm_error err = {0};
    CHECK(hm_blas_begin(&blas, &err) == HM_OK);
    if (blas == NULL) return check_report("svd");
    test_decaying(blas);
    test_too_few_directions(blas);
    test_begun_nearby(blas);
    test_edges(blas);
    test_scales(blas);
    hm_blas_end();
    return check_report("svd");
}
