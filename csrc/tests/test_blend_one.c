/* hm_blend against the plain loop, and writing by strides against addresses worked out one by one. */
#include <stdlib.h>

#include "kernels/kernels.h"
#include "model/strided.h"
#include "tests/check.h"
#include "tests/points.h"

enum { OPERANDS = 7 };

static const hm_dtype dtypes[] = {HM_F32, HM_F16, HM_BF16, HM_F8_E4M3, HM_F8_E5M2, HM_F64};

typedef struct operand {
    hm_tensor_info info;
    unsigned char *memory;
    size_t bytes;
} operand;

static unsigned char *element_at(const hm_tensor_info *info, uint64_t e)
{
    int64_t at = 0;
    for (unsigned d = info->ndim; d-- > 0; e /= info->shape[d]) at += (int64_t)(e % info->shape[d]) * info->strides[d];
    return (unsigned char *)info->data + at * (int64_t)hm_dtype_bytes(info->dtype);
}

/* how: 0 row-major, 1 transposed (gapless), 2 with gaps, 3 reversed */
static operand make_operand(hm_dtype dtype, unsigned ndim, const uint64_t *shape, unsigned how, bool special)
{
    static const float specials[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-7f, 65504.0f, 7e4f, 1e38f, 6e-8f};
    operand o = {.info = {.dtype = dtype, .ndim = ndim, .elements = 1}};
    uint64_t stride = how == 2 ? 2 : 1, back = 0;
    for (unsigned i = 0; i < ndim; i++) {
        unsigned d = how == 1 ? i : ndim - 1 - i;
        o.info.shape[d] = shape[d];
        o.info.strides[d] = (int64_t)stride;
        stride = stride * shape[d] + (how == 2);
        o.info.elements *= shape[d];
    }
    size_t size = hm_dtype_bytes(dtype);
    o.bytes = (stride + 2) * size;
    o.memory = malloc(o.bytes);
    memset(o.memory, 0xee, o.bytes);
    if (how == 3)
        for (unsigned d = 0; d < ndim; d++) {
            if (shape[d] > 0) back += (uint64_t)o.info.strides[d] * (shape[d] - 1);
            o.info.strides[d] = -o.info.strides[d];
        }
    o.info.data = o.memory + back * size;
    for (uint64_t e = 0; e < o.info.elements; e++) {
        float x = special && e % 7 == 0 ? specials[e / 7 % 10] : (float)uniform();
        hm_kernels_best()->store[dtype](&x, element_at(&o.info, e), 1);
    }
    return o;
}

/* load, axpy, store: one number at a time */
static void expected_of(unsigned char *out, hm_dtype dtype, const hm_tensor_info *base, const operand *directions,
                        const double *c, size_t count, uint64_t elements)
{
    const hm_kernels *kernels = hm_kernels_best();
    for (uint64_t e = 0; e < elements; e++) {
        float x = 0, y;
        if (base != NULL) kernels->load[base->dtype](element_at(base, e), &x, 1);
        for (size_t k = 0; k < count; k++) {
            if ((float)c[k] == 0) continue;
            kernels->load[directions[k].info.dtype](element_at(&directions[k].info, e), &y, 1);
            kernels->axpy(&x, (float)c[k], &y, 1);
        }
        kernels->store[dtype](&x, out + e * hm_dtype_bytes(dtype), 1);
    }
}

/* Of two NaNs that meet, no rule says which one is left. */
static int same_number(hm_dtype dtype, const void *a, const void *b)
{
    float x, y;
    if (memcmp(a, b, hm_dtype_bytes(dtype)) == 0) return 1;
    hm_kernels_best()->load[dtype](a, &x, 1);
    hm_kernels_best()->load[dtype](b, &y, 1);
    return isnan(x) && isnan(y);
}

/* The result's elements are as expected, and the bytes between them as they were. */
static int is_expected(const operand *out, const unsigned char *expected)
{
    size_t size = hm_dtype_bytes(out->info.dtype), guards = 0;
    unsigned char *copy = malloc(out->bytes);
    int same = 1;
    memcpy(copy, out->memory, out->bytes);
    for (uint64_t e = 0; same && e < out->info.elements; e++) {
        same = same_number(out->info.dtype, element_at(&out->info, e), expected + e * size);
        memset(copy + (element_at(&out->info, e) - out->memory), 0xee, size);
    }
    while (guards < out->bytes && copy[guards] == 0xee) guards++;
    free(copy);
    return same && guards == out->bytes;
}

static void check_blend(unsigned ndim, const uint64_t *shape, size_t count, unsigned seed, unsigned threads,
                        int in_place)
{
    static const double factors[] = {0.5, -1.25, 0, 3e-5, 1, -0.75};
    operand out, base, directions[OPERANDS];
    const hm_tensor_info *infos[OPERANDS];
    double c[OPERANDS];
    hm_error err = {0};
    out = make_operand(dtypes[seed % 6], ndim, shape, seed % 4, false);
    base = make_operand(dtypes[seed / 6 % 6], ndim, shape, seed / 3 % 4, true);
    for (size_t k = 0; k < count; k++) {
        directions[k] = make_operand(dtypes[(seed + k) % 5], ndim, shape, (unsigned)(seed / 2 + k * (seed % 2)) % 4,
                                     k == 1);
        infos[k] = &directions[k].info;
        c[k] = factors[k % 6];
    }
    unsigned char *expected = malloc((out.info.elements + 1) * 8);
    const hm_tensor_info *from = in_place == 1 ? &out.info : in_place == 2 ? NULL : &base.info;
    expected_of(expected, out.info.dtype, from, directions, c, count, out.info.elements);
    if (!CHECK(hm_blend(&out.info, from, infos, c, count, threads, &err) == HM_OK))
        fprintf(stderr, "    %s\n", err.message);
    if (!CHECK(is_expected(&out, expected)))
        fprintf(stderr, "    %u dimensions, %zu directions, seed %u, in place %d\n", ndim, count, seed, in_place);
    free(expected);
    free(out.memory);
    free(base.memory);
    for (size_t k = 0; k < count; k++) free(directions[k].memory);
}

static void test_blends(void)
{
    static const uint64_t small[4] = {3, 5, 3, 3}, odd[2] = {61, 97}, row[1] = {9001};
    static const uint64_t large[2] = {600, 1000}, none[2] = {4, 0};
    for (unsigned seed = 0; seed < 144; seed++) {
        check_blend(4, small, seed % OPERANDS, seed, seed % 3, (int)(seed % 5 % 3));
        check_blend(2, odd, seed % 4, seed, 1, (int)(seed % 7 % 3));
    }
    for (unsigned seed = 0; seed < 12; seed++) {
        check_blend(1, row, 2, seed, 0, (int)(seed % 3));
        check_blend(0, NULL, 3, seed, 2, (int)(seed % 3));
        check_blend(2, none, 2, seed, 2, 0);
    }
    for (unsigned seed = 0; seed < 4; seed++) check_blend(2, large, 2, 5 * seed, 1 + seed, (int)(seed % 3));
}

static void test_refused(void)
{
    const uint64_t shape[2] = {6, 8};
    const double c[2] = {1, 2}, bad[2] = {1, NAN};
    operand out = make_operand(HM_F16, 2, shape, 0, false), base = make_operand(HM_F16, 2, shape, 1, false);
    operand direction = make_operand(HM_F32, 2, shape, 0, false);
    const hm_tensor_info *two[2] = {&direction.info, &direction.info};
    unsigned char *before = malloc(out.bytes);
    memcpy(before, out.memory, out.bytes);
    hm_error err = {0};
    hm_tensor_info t;

    CHECK(hm_blend(&out.info, &base.info, two, bad, 2, 1, &err) == HM_ERR_ARGUMENT);
    t = base.info, t.shape[0] = 8, t.shape[1] = 6;
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_MISMATCH);
    CHECK_HAS(err.message, "the base has another shape");
    t = base.info, t.dtype = HM_I16;
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_MISMATCH);
    t = base.info, t.data = NULL;
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    t = base.info, t.ndim = HM_MAX_DIMS + 1;
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    t = base.info, t.strides[0] = INT64_MIN;
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    t = out.info, t.data = (const char *)t.data + 2; /* one number further */
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "the base overlaps");
    t = out.info, t.dtype = HM_BF16; /* the same bytes, read otherwise */
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    t = out.info, t.strides[0] = 1, t.strides[1] = 6; /* the same bytes, transposed */
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    t = out.info, t.strides[0] = 0;
    CHECK(hm_blend(&t, &base.info, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    two[1] = &out.info;
    CHECK(hm_blend(&out.info, &base.info, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "a direction overlaps");
    two[1] = NULL;
    CHECK(hm_blend(&out.info, &base.info, two, c, 2, 1, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "direction 2 is missing");
    CHECK(memcmp(before, out.memory, out.bytes) == 0);
    t = base.info, t.strides[0] = 0, two[1] = &direction.info; /* an expanded view may well be read */
    CHECK(hm_blend(&out.info, &t, two, c, 2, 1, &err) == HM_OK);
    free(before);
    free(out.memory);
    free(base.memory);
    free(direction.memory);
}

/* ---- strided.h --------------------------------------------------------------------------------------------------- */

static void check_scatter(const operand *o)
{
    size_t size = hm_dtype_bytes(o->info.dtype), all = (size_t)o->info.elements;
    unsigned char numbers[64 * 8], *expected = malloc(o->bytes);
    for (size_t i = 0; i < all * size; i++) numbers[i] = (unsigned char)(i * 37 + 11);
    for (size_t start = 0; start <= all; start++)
        for (size_t count = 0; start + count <= all; count++) {
            memset(o->memory, 0xee, o->bytes);
            for (size_t e = 0; e < count; e++) memcpy(element_at(&o->info, start + e), numbers + e * size, size);
            memcpy(expected, o->memory, o->bytes);
            memset(o->memory, 0xee, o->bytes);
            hm_strided_scatter(&o->info, start, count, numbers);
            if (!CHECK(memcmp(expected, o->memory, o->bytes) == 0)) count = start = all;
        }
    free(expected);
}

static void test_strided(void)
{
    static const uint64_t shape[4] = {2, 3, 2, 4}, flat[4] = {1, 5, 1, 3};
    for (size_t d = 0; d < 6; d++)
        for (unsigned how = 0; how < 4; how++)
            for (unsigned ndim = 0; ndim <= 4; ndim++) {
                operand o = make_operand(dtypes[d], ndim, ndim % 2 == 0 ? shape : flat, how, false);
                CHECK(!hm_strided_meets_itself(&o.info));
                check_scatter(&o);
                hm_extent extent;
                CHECK(hm_strided_extent(&o.info, &extent));
                CHECK(extent.begin == (uintptr_t)o.memory && extent.end <= (uintptr_t)o.memory + o.bytes);
                CHECK(extent.end > (uintptr_t)element_at(&o.info, o.info.elements - 1));
                free(o.memory);
            }
    hm_tensor_info t = {.dtype = HM_F32, .ndim = 2, .shape = {3, 4}, .strides = {4, 1}, .elements = 12, .data = &t};
    t.strides[0] = 3;
    CHECK(hm_strided_meets_itself(&t));
    t.strides[0] = -4;
    CHECK(!hm_strided_meets_itself(&t));
    t.shape[0] = 1, t.strides[0] = 0;
    CHECK(!hm_strided_meets_itself(&t));
    t.ndim = 3, t.shape[2] = UINT64_MAX / 4;
    CHECK(!hm_strided_measure(&t));
    t.shape[0] = 0;
    CHECK(hm_strided_measure(&t) == false || t.elements == 0);
    CHECK(!hm_extents_meet((hm_extent){8, 16}, (hm_extent){16, 24}) &&
          hm_extents_meet((hm_extent){8, 17}, (hm_extent){16, 24}));
    CHECK(!hm_extents_meet((hm_extent){12, 12}, (hm_extent){8, 24}));
}

int main(void)
{
    test_strided();
    test_blends();
    test_refused();
    return check_report("blend of one tensor");
}
