#include "lowrank/expand.h"

#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "lowrank/blas.h"

/* OpenBLAS copies `down` into an order of its own at every call, which must pay off: sixteen rows reach two thirds of
 * the speed of a matrix, sixty-four nine tenths.  Against that stands what lies in a core's cache, and what is computed
 * in vain where a piece ends within a band. */
#define LEAST_ROWS ((uint64_t)16)
#define LEAST_ELEMENTS ((uint64_t)128 << 10)
#define MOST_ELEMENTS ((uint64_t)1 << 20)

/* ---- bands ----------------------------------------------------------------------------------------------------- */

typedef struct shape {
    uint64_t rows, columns;           /* of the tensor */
    uint64_t band_rows, band_columns; /* band_columns < columns: bands are parts of single rows */
} shape;

typedef struct band {
    uint64_t first; /* element */
    size_t row, rows, column, columns;
} band;

static uint64_t round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

static shape shape_of(const hm_tensor_info *tensor)
{
    shape s = {.rows = tensor->shape[0], .columns = tensor->elements / tensor->shape[0]};
    s.band_columns = s.columns;
    if (s.columns > MOST_ELEMENTS) {
        s.band_columns = MOST_ELEMENTS;
        s.band_rows = 1;
        return s;
    }
    uint64_t whole = HM_BAND_CUT; /* rows that make up a multiple of HM_BAND_CUT, which is a power of two */
    for (uint64_t columns = s.columns; whole > 1 && columns % 2 == 0; columns /= 2) whole /= 2;
    uint64_t wanted = (LEAST_ELEMENTS + s.columns - 1) / s.columns;
    if (wanted < LEAST_ROWS) wanted = LEAST_ROWS;
    s.band_rows = round_up(wanted, whole);
    if (s.band_rows * s.columns > MOST_ELEMENTS) s.band_rows = wanted;
    if (s.band_rows * s.columns > MOST_ELEMENTS) s.band_rows = MOST_ELEMENTS / s.columns;
    return s;
}

uint64_t hm_band_elements(const hm_tensor_info *tensor)
{
    shape s = shape_of(tensor);
    return s.band_rows * s.band_columns;
}

static size_t least(uint64_t a, uint64_t b)
{
    return (size_t)(a < b ? a : b);
}

static band band_at(const shape *s, uint64_t element)
{
    uint64_t row = element / s->columns, column = element % s->columns;
    row -= row % s->band_rows;
    column = s->band_columns < s->columns ? column - column % s->band_columns : 0;
    return (band){.first = row * s->columns + column,
                  .row = (size_t)row,
                  .rows = least(s->band_rows, s->rows - row),
                  .column = (size_t)column,
                  .columns = least(s->band_columns, s->columns - column)};
}

/* ---- seats ----------------------------------------------------------------------------------------------------- */

struct buffer {
    float *numbers;
    size_t capacity;
};

/* What one worker computes of one product. */
struct seat {
    uint64_t serial, first; /* of the factors and of the band that `band` holds; serial 0: nothing */
    struct buffer band;
    struct buffer joined; /* a piece of more than one band */
};

struct hm_expansion {
    const hm_blas *blas;
    struct seat *seats; /* [seats × rows] */
    size_t count, rows;
};

hm_status hm_expansion_open(hm_expansion **out, unsigned seats, size_t rows, hm_error *err)
{
    const hm_blas *blas;
    HM_TRY(hm_blas_begin(&blas, err));
    hm_expansion *expansion = hm_alloc(1, sizeof *expansion);
    struct seat *table = hm_alloc(seats * rows, sizeof *table);
    if (expansion == NULL || table == NULL) {
        hm_release(expansion);
        hm_release(table);
        hm_blas_end();
        return hm_fail_memory(err, "products");
    }
    *expansion = (hm_expansion){.blas = blas, .seats = table, .count = seats * rows, .rows = rows};
    *out = expansion;
    return HM_OK;
}

void hm_expansion_close(hm_expansion *expansion)
{
    if (expansion == NULL) return;
    for (size_t i = 0; i < expansion->count; i++) {
        hm_release_pages(expansion->seats[i].band.numbers);
        hm_release_pages(expansion->seats[i].joined.numbers);
    }
    hm_release(expansion->seats);
    hm_release(expansion);
    hm_blas_end();
}

/* Room for `count` numbers; what was there is lost. */
static hm_status make_room(struct buffer *buffer, size_t count, hm_error *err)
{
    if (buffer->capacity >= count) return HM_OK;
    hm_release_pages(buffer->numbers);
    buffer->numbers = hm_alloc_pages(count * sizeof(float));
    buffer->capacity = buffer->numbers != NULL ? count : 0;
    return buffer->numbers != NULL ? HM_OK : hm_fail_memory(err, "products");
}

/* In columns, as OpenBLAS has it: bandᵀ = downᵀ · upᵀ. */
static hm_status compute(struct seat *seat, const hm_blas *blas, const hm_factors *factors, const band *b,
                         hm_error *err)
{
    if (seat->serial == factors->serial && seat->first == b->first) return HM_OK;
    seat->serial = 0;
    HM_TRY(make_room(&seat->band, b->rows * b->columns, err));
    blas->gemm('N', 'N', b->columns, b->rows, factors->rank, 1, factors->down + b->column, factors->columns,
               factors->up + b->row * factors->rank, factors->rank, 0, seat->band.numbers, b->columns);
    seat->serial = factors->serial;
    seat->first = b->first;
    return HM_OK;
}

hm_status hm_expand(const float **out, hm_expansion *expansion, unsigned seat_number, size_t row,
                    const hm_tensor_info *tensor, const hm_factors *factors, uint64_t start, size_t count,
                    hm_error *err)
{
    struct seat *seat = &expansion->seats[seat_number * expansion->rows + row];
    const shape s = shape_of(tensor);
    band b = band_at(&s, start);
    if (start + count <= b.first + b.rows * b.columns) {
        HM_TRY(compute(seat, expansion->blas, factors, &b, err));
        *out = seat->band.numbers + (start - b.first);
        return HM_OK;
    }
    HM_TRY(make_room(&seat->joined, count, err));
    for (size_t done = 0; done < count;) {
        b = band_at(&s, start + done);
        HM_TRY(compute(seat, expansion->blas, factors, &b, err));
        size_t skip = (size_t)(start + done - b.first), n = least(b.rows * b.columns - skip, count - done);
        memcpy(seat->joined.numbers + done, seat->band.numbers + skip, n * sizeof(float));
        done += n;
    }
    *out = seat->joined.numbers;
    return HM_OK;
}

#define ALONE ((size_t)64 << 10) /* elements at a time: of a band, or joined from two */

static hm_status expand_into(float *out, hm_expansion *expansion, const hm_tensor_info *tensor,
                             const hm_factors *factors, uint64_t start, uint64_t count, hm_error *err)
{
    const float *numbers = NULL;
    for (uint64_t done = 0; done < count;) {
        size_t n = least(count - done, ALONE);
        HM_TRY(hm_expand(&numbers, expansion, 0, 0, tensor, factors, start + done, n, err));
        memcpy(out + done, numbers, n * sizeof *out);
        done += n;
    }
    return HM_OK;
}

hm_status hm_expand_alone(float *out, const hm_source *source, uint32_t tensor, uint64_t start, uint64_t count,
                          hm_error *err)
{
    hm_expansion *expansion = NULL;
    hm_factor_cache *cache = NULL;
    hm_factors *factors = NULL;
    hm_status status = hm_expansion_open(&expansion, 1, 1, err);
    if (status == HM_OK) status = hm_factor_cache_open(&cache, err);
    if (status == HM_OK) status = hm_factors_take(&factors, cache, source, tensor, err);
    if (status == HM_OK)
        status = expand_into(out, expansion, &source->header.tensors[tensor], factors, start, count, err);
    if (factors != NULL) hm_factors_return(cache, factors);
    hm_factor_cache_close(cache);
    hm_expansion_close(expansion);
    return status;
}
