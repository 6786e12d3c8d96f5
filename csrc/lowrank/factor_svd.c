/* With A = U V:  UᵀU = Q Λ Qᵀ, and (Λ^½ Qᵀ) V Vᵀ (Q Λ^½) = P Σ² Pᵀ.  Then the left singular vectors of A are U Q Λ^−½ P, and
 * Σ times the right ones (Q Λ^½ P)ᵀ V: products with small matrices. */
#include "lowrank/factor_svd.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "lowrank/factors.h"

#define NOTHING 1e-13 /* of the largest eigenvalue of a Gram matrix: f64's rounding */

/* ---- reading --------------------------------------------------------------------------------------------------------- */

static const hm_tensor_info *row_tensor(const hm_difference *difference, size_t r, size_t t, double *c, uint32_t *index)
{
    const hm_dense *dense = &difference->dense;
    *c = dense->coefficients[t * dense->coefficient_stride + r];
    *index = dense->rows[r].index[t * dense->rows[r].stride];
    return *index != HM_ABSENT && *c != 0 ? &dense->rows[r].source->header.tensors[*index] : NULL;
}

size_t hm_difference_rank(const hm_difference *difference, size_t t)
{
    const hm_dense *dense = &difference->dense;
    size_t rank = 0;
    uint32_t index;
    double c;
    if (difference->like[t]->ndim < 2 || difference->elements[t] == 0) return 0;
    for (size_t r = 0; r < dense->row_count; r++) {
        const hm_tensor_info *tensor = row_tensor(difference, r, t, &c, &index);
        /* Of a reference nothing is subtracted where all other rows are LoRAs, and directions have none. */
        if (tensor == NULL || r == dense->reference) continue;
        if (tensor->rank == 0 || (dense->reference != HM_DENSE_NO_REFERENCE && !dense->rows[r].source->is_lora)) return 0;
        rank += (size_t)tensor->rank;
    }
    return rank;
}

/* Column k of `up` and row k of `down` are made equally long, so that what is small is small in both. */
static void balance(const hm_factor_matrix *m)
{
    for (size_t k = 0; k < m->rank; k++) {
        double *down = m->down + k * m->columns, up_square = 0, down_square = 0;
        for (size_t i = 0; i < m->rows; i++) up_square += m->up[i * m->rank + k] * m->up[i * m->rank + k];
        for (size_t j = 0; j < m->columns; j++) down_square += down[j] * down[j];
        if (!(up_square > 0 && down_square > 0 && isfinite(up_square) && isfinite(down_square))) continue;
        double scale = sqrt(sqrt(down_square / up_square));
        for (size_t i = 0; i < m->rows; i++) m->up[i * m->rank + k] *= scale;
        for (size_t j = 0; j < m->columns; j++) down[j] /= scale;
    }
}

static hm_status read_row(const hm_factor_matrix *m, const hm_difference *difference, size_t r, size_t t, size_t at, hm_error *err)
{
    double c;
    uint32_t index;
    size_t rank = (size_t)row_tensor(difference, r, t, &c, &index)->rank;
    float *up = hm_alloc(rank * (m->rows + m->columns), sizeof *up);
    if (up == NULL) return hm_fail_memory(err, "factors");
    float *down = up + rank * m->rows;
    hm_status status = hm_product_read(up, down, difference->dense.rows[r].source, index, err);
    for (size_t i = 0; status == HM_OK && i < m->rows; i++)
        for (size_t k = 0; k < rank; k++) m->up[i * m->rank + at + k] = c * (double)up[i * rank + k];
    for (size_t i = 0; status == HM_OK && i < rank * m->columns; i++) m->down[at * m->columns + i] = (double)down[i];
    hm_release(up);
    return status;
}

hm_status hm_difference_factors(hm_factor_matrix *out, const hm_difference *difference, size_t t, hm_error *err)
{
    const hm_tensor_info *like = difference->like[t];
    hm_factor_matrix m = {.rows = (size_t)like->shape[0], .rank = hm_difference_rank(difference, t)};
    size_t at = 0;
    m.columns = (size_t)(difference->elements[t] / like->shape[0]);
    m.up = hm_alloc(m.rank * (m.rows + m.columns), sizeof *m.up);
    if (m.up == NULL) return hm_fail_memory(err, "factors");
    m.down = m.up + m.rank * m.rows;
    hm_status status = HM_OK;
    for (size_t r = 0; status == HM_OK && r < difference->dense.row_count; r++) {
        double c;
        uint32_t index;
        const hm_tensor_info *tensor = row_tensor(difference, r, t, &c, &index);
        if (tensor == NULL || r == difference->dense.reference) continue;
        status = read_row(&m, difference, r, t, at, err);
        at += (size_t)tensor->rank;
    }
    if (status != HM_OK) {
        hm_release(m.up);
        return status;
    }
    balance(&m);
    *out = m;
    return HM_OK;
}

void hm_factor_matrix_clear(hm_factor_matrix *matrix)
{
    hm_release(matrix->up);
    *matrix = (hm_factor_matrix){0};
}

/* ---- decomposing ----------------------------------------------------------------------------------------------------- */

/* R × R matrices, column-major. */
struct small {
    size_t n;
    double *upper, *lower; /* UᵀU, then Q; V Vᵀ */
    double *inner, *half;  /* Λ^½QᵀVVᵀQΛ^½, then P; scratch */
    double *lambda, *sigma, *work;
};

static void mirror(double *matrix, size_t n)
{
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < j; i++) matrix[i * n + j] = matrix[j * n + i];
}

static hm_status decompose(const struct small *s, const hm_blas *blas, const char *name, double *square, hm_error *err)
{
    size_t n = s->n;
    *square = 0;
    for (size_t i = 0; i < n * n; i++) *square += s->upper[i] * s->lower[i];
    if (!isfinite(*square)) return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "the difference holds NaN or Inf, or is too large");
    bool found = blas->syev_f64('U', n, s->upper, n, s->lambda, s->work, 64 * n) == 0;
    for (size_t j = 0; j < n; j++) s->lambda[j] = s->lambda[j] > NOTHING * s->lambda[n - 1] ? s->lambda[j] : 0;
    if (found) {
        blas->gemm_f64('N', 'N', n, n, n, 1, s->lower, n, s->upper, n, 0, s->half, n);
        blas->gemm_f64('T', 'N', n, n, n, 1, s->upper, n, s->half, n, 0, s->inner, n);
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < n; i++) s->inner[j * n + i] *= sqrt(s->lambda[i]) * sqrt(s->lambda[j]);
        found = blas->syev_f64('U', n, s->inner, n, s->sigma, s->work, 64 * n) == 0;
    }
    if (!found) return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "its singular values were not found");
    return HM_OK;
}

/* half[n × rank] = Q Λ^power P for the largest σ first, each times its σ^scale. */
static void combine(const struct small *s, const hm_blas *blas, size_t rank, double power, double scale, double *scaled)
{
    size_t n = s->n;
    for (size_t k = 0; k < rank; k++) {
        const double *p = s->inner + (n - 1 - k) * n;
        double sigma = s->sigma[n - 1 - k], factor = sigma > NOTHING * s->sigma[n - 1] ? pow(sigma, scale / 2) : 0;
        for (size_t i = 0; i < n; i++) scaled[k * n + i] = s->lambda[i] > 0 ? pow(s->lambda[i], power) * p[i] * factor : 0;
    }
    blas->gemm_f64('N', 'N', n, rank, n, 1, s->upper, n, scaled, n, 0, s->half, n);
}

static hm_status fill(hm_low_rank *out, const struct small *s, const hm_blas *blas, const hm_factor_matrix *m, size_t first,
                      size_t rank, hm_error *err)
{
    size_t n = s->n, taken = rank < n ? rank : n, larger = out->rows > out->columns ? out->rows : out->columns;
    double *product = hm_alloc(taken * larger, sizeof *product);
    if (product == NULL) return hm_fail_memory(err, "a decomposition");
    combine(s, blas, taken, -0.5, 0.5, s->lower);
    blas->gemm_f64('T', 'N', taken, out->rows, n, 1, s->half, n, m->up + first * n, n, 0, product, taken);
    for (size_t i = 0; i < out->rows; i++)
        for (size_t k = 0; k < taken; k++) out->up[i * rank + k] = (float)product[i * taken + k];
    combine(s, blas, taken, 0.5, -0.5, s->lower);
    blas->gemm_f64('N', 'N', out->columns, taken, n, 1, m->down, out->columns, s->half, n, 0, product, out->columns);
    for (size_t i = 0; i < taken * out->columns; i++) out->down[i] = (float)product[i];
    out->rest = out->square;
    for (size_t k = 0; k < taken; k++) {
        double square = s->sigma[n - 1 - k];
        out->sigma[k] = square > NOTHING * s->sigma[n - 1] ? sqrt(square) : 0;
        out->rest -= out->sigma[k] * out->sigma[k];
    }
    if (out->rest < 0) out->rest = 0;
    hm_release(product);
    return HM_OK;
}

hm_status hm_low_rank_of_factors(hm_low_rank *out, const hm_blas *blas, const hm_factor_matrix *m, size_t first, size_t rows,
                                 size_t rank, const char *name, hm_error *err)
{
    size_t n = m->rank, least = rows < m->columns ? rows : m->columns;
    if (rank > least) rank = least;
    hm_low_rank found = {.rows = rows, .columns = m->columns, .rank = rank};
    found.up = hm_alloc(rows * rank, sizeof *found.up);
    found.down = hm_alloc(rank * m->columns, sizeof *found.down);
    found.sigma = hm_alloc(rank, sizeof *found.sigma);
    double *block = hm_alloc(n * (4 * n + 66), sizeof *block);
    struct small s = {.n = n, .upper = block};
    hm_status status = found.up != NULL && found.down != NULL && found.sigma != NULL && block != NULL
                           ? HM_OK
                           : hm_fail_memory(err, "a decomposition");
    if (status == HM_OK) {
        s.lower = block + n * n;
        s.inner = s.lower + n * n;
        s.half = s.inner + n * n;
        s.lambda = s.half + n * n;
        s.sigma = s.lambda + n;
        s.work = s.sigma + n;
        blas->syrk_f64('U', 'N', n, rows, 1, m->up + first * n, n, 0, s.upper, n);
        blas->syrk_f64('U', 'T', n, m->columns, 1, m->down, m->columns, 0, s.lower, n);
        mirror(s.upper, n);
        mirror(s.lower, n);
        status = decompose(&s, blas, name, &found.square, err);
    }
    if (status == HM_OK) status = fill(&found, &s, blas, m, first, rank, err);
    hm_release(block);
    if (status == HM_OK)
        *out = found;
    else
        hm_low_rank_clear(&found);
    return status;
}

/* ---- what is left ---------------------------------------------------------------------------------------------------- */

/* ⟨U V, X Y⟩ = Σ (UᵀX) ∘ (V Yᵀ); `room` holds 2 · n · r numbers. */
static double inner(const hm_blas *blas, const double *up, const double *down, size_t n, const double *other_up,
                    const double *other_down, size_t r, size_t rows, size_t columns, double *room)
{
    double sum = 0, *ups = room, *downs = room + n * r;
    blas->gemm_f64('N', 'T', n, r, rows, 1, up, n, other_up, r, 0, ups, n);
    blas->gemm_f64('T', 'N', n, r, columns, 1, down, columns, other_down, columns, 0, downs, n);
    for (size_t i = 0; i < n * r; i++) sum += ups[i] * downs[i];
    return sum;
}

hm_status hm_factor_rest(double *out, const hm_blas *blas, const hm_factor_matrix *m, size_t first, const hm_low_rank *low_rank,
                         hm_error *err)
{
    size_t n = m->rank, r = low_rank->rank, rows = low_rank->rows, columns = low_rank->columns, most = n > r ? n : r;
    double *up = hm_alloc(r * (rows + columns) + 2 * most * r, sizeof *up);
    if (up == NULL) return hm_fail_memory(err, "a decomposition");
    double *down = up + r * rows, *room = down + r * columns;
    for (size_t i = 0; i < r * rows; i++) up[i] = (double)low_rank->up[i];
    for (size_t i = 0; i < r * columns; i++) down[i] = (double)low_rank->down[i];
    double both = inner(blas, m->up + first * n, m->down, n, up, down, r, rows, columns, room);
    double own = inner(blas, up, down, r, up, down, r, rows, columns, room);
    *out = fmax(low_rank->square - 2 * both + own, 0);
    hm_release(up);
    return HM_OK;
}
