/* Randomised block Krylov iteration.
 *
 * With M: small side → large side (A or Aᵀ), it builds an orthonormal basis V of span{MᵀΩ, (MᵀM)MᵀΩ, (MᵀM)²MᵀΩ, …} and
 * takes the singular value decomposition of M·V.  Keeping all blocks instead of the last one, as subspace iteration does,
 * reaches the same error with narrower blocks: 8 products of width 0.56 r instead of 6 of width r + 16 (and M·V costs one
 * more product only, since the iteration made the others).
 * Where factors are known that are nearly right, they are the first block, and one product with MᵀM more is enough.
 * Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate singular value decomposition", 2015.
 *
 * Blocks are orthonormalised by Cholesky: it is all matrix products.  In f64, because a block of a decaying spectrum is close
 * to dependent: f32 loses directions, and with them accuracy, where the squared condition number passes 1e7.  Where even
 * f64 cannot tell (the matrix has fewer directions than the block columns) the eigenvectors of the block's Gram matrix say
 * which directions are there; the others become columns of zeros, which change nothing. */
#include "lowrank/svd.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"

#define BLOCKS 4u      /* of the basis: the first one, and three products with MᵀM */
#define SMALL_SIDE 64u /* up to here the whole decomposition costs no more, and is exact */
#define NEAR_BLOCKS 2u /* where the first block is a good one already; it is wider by NEAR_MORE columns than the rank */
#define NEAR_MORE 8u
/* Below it all products with the matrix scaled by 1/‖A‖ would leave the range of f32. */
#define SMALLEST_SQUARE 1e-60
#define LARGEST_SQUARE 1e60

/* M as the iteration sees it; `a` is row-major rows × columns, that is column-major columns × rows. */
struct matrix {
    const hm_blas *blas;
    const float *a;
    size_t leading;      /* columns */
    size_t small, large; /* sides */
    bool rows_are_small;
    float scale; /* 1/‖A‖: keeps powers of MᵀM in range */
    const float *up, *down; /* NULL, or factors of a matrix that is near */
};

struct work {
    size_t width, block;  /* columns of the basis, of one block */
    size_t blocks;
    float *basis;         /* V [small × width] */
    float *image;         /* M·V/‖A‖ [large × width] */
    double *exact;        /* V in f64 [small × width], and behind it a second block of scratch */
    float *coefficients;  /* [width × width] */
    double *gram;         /* [width × width] */
    double *values, *eigen_work; /* [width], [64 · width] */
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* out[large × n] = M · x[small × n] / ‖A‖ */
static void to_large(const struct matrix *m, const float *x, size_t n, float *out)
{
    m->blas->gemm(m->rows_are_small ? 'N' : 'T', 'N', m->large, n, m->small, m->scale, m->a, m->leading, x, m->small, 0, out,
                  m->large);
}

/* out[small × n] = Mᵀ · y[large × n] / ‖A‖ */
static void to_small(const struct matrix *m, const float *y, size_t n, float *out)
{
    m->blas->gemm(m->rows_are_small ? 'T' : 'N', 'N', m->small, n, m->large, m->scale, m->a, m->leading, y, m->large, 0, out,
                  m->small);
}

/* Signs from a counter: as good a start as normal numbers, and the same everywhere. */
static void random_signs(float *out, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i += 64) {
        uint64_t z = seed + (i / 64 + 1) * 0x9E3779B97F4A7C15u; /* splitmix64 */
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        z ^= z >> 31;
        for (size_t j = 0; j < 64 && i + j < count; j++) out[i + j] = (z >> j & 1) != 0 ? 1.0f : -1.0f;
    }
}

/* x −= V Vᵀ x for the `before` columns of V that are there. */
static void project_out(const struct matrix *m, const struct work *w, size_t before, double *x)
{
    if (before == 0) return;
    m->blas->gemm_f64('T', 'N', before, w->block, m->small, 1, w->exact, m->small, x, m->small, 0, w->gram, before);
    m->blas->gemm_f64('N', 'N', m->small, w->block, before, -1, w->exact, m->small, w->gram, before, 1, x, m->small);
}

/* x = x·R⁻¹ with xᵀx = RᵀR.  False, with x as it was, where x has (nearly) dependent columns or ones whose square is not
 * above `floor`; *again where the loss of orthogonality, which grows with the square of the condition number, asks for a
 * second round. */
static bool by_cholesky(const struct matrix *m, const struct work *w, double *x, double floor, bool *again)
{
    size_t n = w->block;
    double largest = 0, smallest = INFINITY;
    m->blas->syrk_f64('U', 'T', n, m->small, 1, x, m->small, 0, w->gram, n);
    if (m->blas->potrf_f64('U', n, w->gram, n) != 0) return false;
    for (size_t i = 0; i < n; i++) {
        largest = fmax(largest, w->gram[i * n + i]);
        smallest = fmin(smallest, w->gram[i * n + i]);
    }
    if (!(smallest > largest * 1e-6 && smallest * smallest > floor)) return false;
    *again = *again || smallest < largest * 1e-3;
    m->blas->trsm_f64('R', 'U', 'N', 'N', m->small, n, 1, w->gram, n, x, m->small);
    return true;
}

/* The same by xᵀx = Q diag(λ) Qᵀ: x = x·Q·λ^(−1/2) for the directions that are more than rounding of f32, zeros for the rest. */
static bool by_eigenvectors(const struct matrix *m, const struct work *w, double *x, double floor)
{
    size_t n = w->block;
    double *copy = w->exact + m->small * w->width;
    m->blas->syrk_f64('U', 'T', n, m->small, 1, x, m->small, 0, w->gram, n);
    if (m->blas->syev_f64('U', n, w->gram, n, w->values, w->eigen_work, 64 * n) != 0) return false;
    for (size_t j = 0; j < n; j++) {
        double value = w->values[j], scale = value > fmax(1e-12 * w->values[n - 1], floor) ? 1 / sqrt(value) : 0;
        for (size_t i = 0; i < n; i++) w->gram[j * n + i] *= scale;
    }
    memcpy(copy, x, m->small * n * sizeof *x);
    m->blas->gemm_f64('N', 'N', m->small, n, n, 1, copy, m->small, w->gram, n, 0, x, m->small);
    return true;
}

static double sum_squares(const double *x, size_t count)
{
    double square = 0;
    for (size_t i = 0; i < count; i++) square += x[i] * x[i];
    return square;
}

/* Makes block b of the basis orthonormal, and orthogonal to the blocks before it.
 *
 * Where those hold nearly all that the block has, projection leaves little but the error of the projection, and a second
 * round has to tell: a direction that loses most of its length again was never more than error, and becomes zeros. */
static bool orthonormalise(const struct matrix *m, const struct work *w, size_t b)
{
    size_t before = b * w->block, numbers = m->small * w->block;
    float *block = w->basis + before * m->small;
    double *x = w->exact + before * m->small;
    for (size_t i = 0; i < numbers; i++) x[i] = (double)block[i];
    bool again = true;
    for (int round = 0; round < 2 && again; round++) {
        double whole = sum_squares(x, numbers), floor = (round == 0 ? 1e-30 : 1e-2) * whole / (double)w->block;
        project_out(m, w, before, x);
        again = sum_squares(x, numbers) < 1e-8 * whole;
        if (by_cholesky(m, w, x, floor, &again)) continue;
        if (!by_eigenvectors(m, w, x, floor)) return false;
        again = true;
    }
    for (size_t i = 0; i < numbers; i++) block[i] = (float)x[i];
    return true;
}

/* The first block of the basis: what is known of a matrix nearby, and random combinations, which pass through `image`. */
static void begin(const struct matrix *m, const struct work *w, size_t rank, uint64_t seed)
{
    size_t known = m->up != NULL ? rank : 0;
    if (known > 0 && !m->rows_are_small) memcpy(w->basis, m->down, known * m->small * sizeof *w->basis);
    for (size_t k = 0; k < known && m->rows_are_small; k++)
        for (size_t i = 0; i < m->small; i++) w->basis[k * m->small + i] = m->up[i * rank + k];
    random_signs(w->image, m->large * (w->block - known), seed);
    to_small(m, w->image, w->block - known, w->basis + known * m->small);
}

/* Fills basis and image. */
static bool iterate(const struct matrix *m, const struct work *w, size_t rank, uint64_t seed)
{
    begin(m, w, rank, seed);
    for (size_t b = 0; b < w->blocks; b++) {
        float *v = w->basis + b * w->block * m->small, *y = w->image + b * w->block * m->large;
        if (b > 0) to_small(m, y - w->block * m->large, w->block, v);
        if (!orthonormalise(m, w, b)) return false;
        to_large(m, v, w->block, y);
    }
    return true;
}

/* The whole small side as basis: V = 1, M·V = M.  Then `image` is M itself, /‖A‖. */
static void take_all(const struct matrix *m, const struct work *w)
{
    for (size_t i = 0; i < m->small; i++)
        for (size_t j = 0; j < m->small; j++) w->basis[j * m->small + i] = i == j ? 1.0f : 0.0f;
    for (size_t j = 0; j < m->small; j++)
        for (size_t i = 0; i < m->large; i++)
            w->image[j * m->large + i] = m->scale * (m->rows_are_small ? m->a[j * m->leading + i] : m->a[i * m->leading + j]);
}

/* gram = (M·V)ᵀ(M·V)/‖A‖² = Q diag(values) Qᵀ; the eigenvectors end in gram, ascending. */
static bool diagonalise(const struct matrix *m, const struct work *w)
{
    size_t n = w->width;
    m->blas->syrk('U', 'T', n, m->large, 1, w->image, m->large, 0, w->coefficients, n);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i <= j; i++) w->gram[j * n + i] = (double)w->coefficients[j * n + i];
    return m->blas->syev_f64('U', n, w->gram, n, w->values, w->eigen_work, 64 * n) == 0;
}

static void transpose(const float *from, size_t rows, size_t columns, float *to)
{
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < rows; i++) to[i * columns + j] = from[j * rows + i];
}

/* Left factor M·V·Q and right factor V·Q for the largest `rank` values; what the norms say goes half to either side. */
static hm_status take_factors(const struct matrix *m, const struct work *w, hm_low_rank *out, hm_error *err)
{
    size_t n = w->width, rank = out->rank;
    float *chosen = w->coefficients; /* [width × rank] ≤ width × width */
    for (size_t k = 0; k < rank; k++)
        for (size_t i = 0; i < n; i++) chosen[k * n + i] = (float)w->gram[(n - 1 - k) * n + i];
    float *turned = hm_alloc((m->rows_are_small ? m->small : m->large) * rank, sizeof *turned);
    if (turned == NULL) return hm_fail_memory(err, "a low-rank factor");
    float *left = m->rows_are_small ? out->down : turned, *right = m->rows_are_small ? turned : out->down;
    m->blas->gemm('N', 'N', m->large, rank, n, 1, w->image, m->large, chosen, n, 0, left, m->large);
    m->blas->gemm('N', 'N', m->small, rank, n, 1, w->basis, m->small, chosen, n, 0, right, m->small);
    double norm = sqrt(out->square), kept = 0;
    for (size_t k = 0; k < rank; k++) {
        double square = 0;
        for (size_t i = 0; i < m->large; i++) square += (double)left[k * m->large + i] * (double)left[k * m->large + i];
        double sigma = sqrt(square) * norm, half = sqrt(sigma);
        for (size_t i = 0; i < m->large; i++) left[k * m->large + i] *= (float)(half > 0 ? norm / half : 0);
        for (size_t i = 0; i < m->small; i++) right[k * m->small + i] *= (float)half;
        out->sigma[k] = sigma;
        kept += sigma * sigma;
    }
    transpose(turned, m->rows_are_small ? m->small : m->large, rank, out->up);
    hm_release(turned);
    /* The singular values carry the rounding of f32 products: of a matrix of rank ≤ r the difference may be −1e-7 ‖A‖². */
    out->rest = out->square > kept ? out->square - kept : 0;
    return HM_OK;
}

static void release(struct work *w)
{
    hm_release_pages(w->image);
    hm_release_pages(w->basis);
    hm_release(w->coefficients);
    hm_release_pages(w->exact);
    hm_release(w->gram);
    hm_release(w->values);
    hm_release(w->eigen_work);
}

/* 36 columns for rank 64; multiples of 4 suit the product kernels, and very narrow blocks find the last directions late. */
static size_t block_of(size_t rank)
{
    size_t width = (rank * 9 / 16 + 3) / 4 * 4;
    return width < 8 ? 8 : width;
}

static hm_status decompose(const struct matrix *m, uint64_t seed, const char *name, hm_low_rank *out, hm_error *err)
{
    struct work w = {.block = block_of(out->rank), .blocks = BLOCKS};
    if (m->up != NULL) w = (struct work){.block = (out->rank + NEAR_MORE + 3) / 4 * 4, .blocks = NEAR_BLOCKS};
    bool all = m->small <= w.blocks * w.block || m->small <= SMALL_SIDE;
    w.width = all ? m->small : w.blocks * w.block;
    w.image = hm_alloc_pages(m->large * w.width * sizeof *w.image);
    w.basis = hm_alloc_pages(m->small * w.width * sizeof *w.basis);
    w.coefficients = hm_alloc(w.width * w.width, sizeof *w.coefficients);
    w.exact = hm_alloc_pages(m->small * (w.width + w.block) * sizeof *w.exact);
    w.gram = hm_alloc(w.width * w.width, sizeof *w.gram);
    w.values = hm_alloc(w.width, sizeof *w.values);
    w.eigen_work = hm_alloc(64 * w.width, sizeof *w.eigen_work);
    hm_status status = HM_OK;
    if (w.image == NULL || w.basis == NULL || w.coefficients == NULL || w.exact == NULL || w.gram == NULL ||
        w.values == NULL || w.eigen_work == NULL) {
        status = hm_fail_memory(err, "a low-rank decomposition");
    } else {
        if (all) take_all(m, &w);
        if ((!all && !iterate(m, &w, out->rank, seed)) || !diagonalise(m, &w))
            status = hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the low-rank decomposition did not converge");
        else
            status = take_factors(m, &w, out, err);
    }
    release(&w);
    return status;
}

hm_status hm_low_rank_find(hm_low_rank *out, const hm_blas *blas, const float *a, size_t rows, size_t columns, size_t rank,
                           uint64_t seed, const char *name, hm_error *err)
{
    return hm_low_rank_refine(out, blas, a, rows, columns, rank, NULL, NULL, seed, name, err);
}

hm_status hm_low_rank_refine(hm_low_rank *out, const hm_blas *blas, const float *a, size_t rows, size_t columns, size_t rank,
                             const float *up, const float *down, uint64_t seed, const char *name, hm_error *err)
{
    if (rows > INT_MAX || columns > INT_MAX) /* OpenBLAS counts so */
        return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "has a side of more than %d numbers, too many to decompose", INT_MAX);
    hm_low_rank found = {.rows = rows, .columns = columns, .rank = least(rank, least(rows, columns))};
    for (size_t i = 0; i < rows * columns; i++) found.square += (double)a[i] * (double)a[i];
    if (!isfinite(found.square)) return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the difference holds NaN or Inf");
    if (found.square > LARGEST_SQUARE) return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the difference is too large");
    found.up = hm_alloc(rows * found.rank, sizeof *found.up);
    found.down = hm_alloc(found.rank * columns, sizeof *found.down);
    found.sigma = hm_alloc(found.rank, sizeof *found.sigma);
    hm_status status = HM_OK;
    if (found.up == NULL || found.down == NULL || found.sigma == NULL) {
        status = hm_fail_memory(err, "a low-rank factor");
    } else if (found.square < SMALLEST_SQUARE || found.rank == 0) {
        found.rest = found.square;
    } else {
        struct matrix m = {.blas = blas, .a = a, .leading = columns, .small = least(rows, columns),
                           .large = rows < columns ? columns : rows, .rows_are_small = rows <= columns,
                           .scale = (float)(1 / sqrt(found.square)), .up = up, .down = down};
        status = decompose(&m, seed, name, &found, err);
    }
    if (status == HM_OK)
        *out = found;
    else
        hm_low_rank_clear(&found);
    return status;
}

void hm_low_rank_clear(hm_low_rank *low_rank)
{
    hm_release(low_rank->up);
    hm_release(low_rank->down);
    hm_release(low_rank->sigma);
    *low_rank = (hm_low_rank){0};
}
