/* The fused blend of every variant against load, axpy, store of the same variant, bit for bit, and the variants against
 * each other.  Those three have tests of their own (test_kernels.c). */
#include "kernels/kernels.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/check.h"
#include "tests/random_bits.h"

#define MAX_PARTS 8
#define TYPES 6

static const size_t type_bytes[TYPES] = {8, 4, 2, 2, 1, 1};

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* What is put into the operands. */
enum { PLAIN, SPECIAL, ANY_BITS, FILLS };

/* Zeros, subnormal numbers of every type, ties, the ends of every type's range and beyond: in f32, then rounded to the
 * operand's type. */
static const uint32_t special[] = {
    0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x33800000, 0x33000000, 0xb3000001,
    0x38800000, 0xb87fc000, 0x387fe000, 0x3f800000, 0xbf801000, 0x3f803000, 0x3f808000, 0x3f818000,
    0x43e00000, 0x43e80000, 0xc3f00000, 0x47600000, 0x47700000, 0x477fe000, 0x477fefff, 0xc77ff000,
    0x47800000, 0x7f7f8000, 0xff7fffff, 0x7f7f7fff, 0x7f800000, 0xff800000,
};

/* Blocks are exactly as long as asked for, so that a sanitizer sees any step beyond. */
typedef struct operand {
    unsigned char *block, *data;
} operand;

static operand take(size_t bytes, size_t offset)
{
    operand x = {.block = NULL};
    if (posix_memalign((void **)&x.block, 64, bytes + offset > 0 ? bytes + offset : 1) != 0) exit(2);
    x.data = x.block + offset;
    return x;
}

/* NaN of all kinds come with ANY_BITS only. */
static void fill(const hm_kernels *k, operand x, hm_dtype type, size_t n, int how)
{
    for (size_t i = 0; i < n; i++) {
        float value = (float)(int32_t)random_bits() * 0x1p-31f * (float)(1 << random_bits() % 4);
        if (how == SPECIAL && random_bits() % 4 != 0)
            value = from_bits(special[random_bits() % (sizeof special / sizeof special[0])]);
        k->store[type](&value, x.data + i * type_bytes[type], 1);
        if (how == ANY_BITS) {
            uint64_t bits = (uint64_t)random_bits() << 32 | random_bits();
            memcpy(x.data + i * type_bytes[type], &bits, type_bytes[type]);
        }
    }
}

/* One number at a time, so that no vector code is on both sides. */
static void blend_simply(const hm_kernels *k, unsigned char *out, hm_dtype to, const hm_blend_part *parts, size_t count,
                         size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x = 0, d;
        for (size_t p = 0; p < count; p++) {
            if (parts[p].data == NULL || (p > 0 && parts[p].c == 0)) continue;
            const unsigned char *from = (const unsigned char *)parts[p].data + i * type_bytes[parts[p].dtype];
            k->load[parts[p].dtype](from, p > 0 ? &d : &x, 1);
            if (p > 0) k->axpy(&x, parts[p].c, &d, 1);
        }
        k->store[to](&x, out + i * type_bytes[to], 1);
    }
}

/* Two NaN operands may give either one's payload (template.h), so with NaN about it only counts that there is one. */
static size_t differing(const hm_kernels *k, const unsigned char *a, const unsigned char *b, hm_dtype type, size_t n,
                        bool any_nan)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char *p = a + i * type_bytes[type], *q = b + i * type_bytes[type];
        if (memcmp(p, q, type_bytes[type]) == 0) continue;
        float x, y;
        k->load[type](p, &x, 1);
        k->load[type](q, &y, 1);
        count += !(any_nan && isnan(x) && isnan(y));
    }
    return count;
}

typedef struct setting {
    hm_dtype to, types[MAX_PARTS];
    size_t count, n, offset[MAX_PARTS + 1]; /* the last one is the result's */
    float c[MAX_PARTS];
    bool missing[MAX_PARTS], in_place, stream;
    int how;
} setting;

/* The result must not touch its neighbours: a fence on both sides. */
#define FENCE 64

static size_t wrong_numbers(const setting *s, const hm_kernels *k, unsigned char *first_result)
{
    operand data[MAX_PARTS], expected = take(s->n * type_bytes[s->to], 0);
    operand out = take(s->n * type_bytes[s->to] + FENCE, s->offset[MAX_PARTS] + FENCE);
    hm_blend_part parts[MAX_PARTS];
    memset(out.block, 0xa5, s->n * type_bytes[s->to] + s->offset[MAX_PARTS] + 2 * FENCE);
    for (size_t p = 0; p < s->count; p++) {
        data[p] = take(s->n * type_bytes[s->types[p]], s->offset[p]);
        fill(k, data[p], s->types[p], s->n, s->how);
        parts[p] = (hm_blend_part){s->missing[p] ? NULL : data[p].data, s->types[p], s->c[p]};
    }
    blend_simply(k, expected.data, s->to, parts, s->count, s->n);
    if (s->in_place) {
        memcpy(out.data, data[0].data, s->n * type_bytes[s->to]);
        parts[0].data = out.data;
    }
    k->blend(out.data, s->to, parts, s->count, s->n, s->stream);
    size_t wrong = differing(k, out.data, expected.data, s->to, s->n, s->how == ANY_BITS);
    if (first_result != NULL) memcpy(first_result, out.data, s->n * type_bytes[s->to]);
    const unsigned char *behind = out.data + s->n * type_bytes[s->to];
    for (size_t i = 0; i < FENCE; i++) wrong += behind[i] != 0xa5;
    for (const unsigned char *p = out.block; p < out.data; p++) wrong += *p != 0xa5;
    for (size_t p = 0; p < s->count; p++) free(data[p].block);
    free(out.block), free(expected.block);
    return wrong;
}

static void test_setting(const setting *s)
{
    unsigned char *results[4] = {NULL};
    const uint64_t seed = random_state;
    size_t variants = 0;
    for (const hm_kernels *const *k = hm_kernels_all(); *k != NULL && variants < 4; k++, variants++) {
        random_state = seed;
        results[variants] = take(s->n * type_bytes[s->to], 0).block;
        if (!CHECK(wrong_numbers(s, *k, results[variants]) == 0))
            fprintf(stderr, "    %s: to %d from %d, %zu parts, n %zu, offset %zu, fill %d, in place %d, stream %d\n",
                    (*k)->name, s->to, s->types[0], s->count, s->n, s->offset[MAX_PARTS], s->how, s->in_place,
                    s->stream);
        if (variants > 0)
            CHECK(differing(*k, results[variants], results[0], s->to, s->n, s->how == ANY_BITS) == 0);
    }
    for (size_t v = 0; v < variants; v++) free(results[v]);
}

/* All but n, to, types and count at random. */
static void vary(setting *s)
{
    static const float multipliers[] = {1, -1, 0.5f, 0.7f, -1.3f, 1e-3f, 3e4f, 0x1p-126f, 0.1f};
    const bool aligned = random_bits() % 2 == 0;
    for (size_t p = 0; p <= MAX_PARTS; p++) s->offset[p] = aligned ? random_bits() % 16 * 8 : random_bits() % 64;
    for (size_t p = 0; p < MAX_PARTS; p++) {
        s->c[p] = multipliers[random_bits() % (sizeof multipliers / sizeof multipliers[0])];
        s->missing[p] = random_bits() % 12 == 0;
        if (random_bits() % 12 == 0) s->c[p] = random_bits() % 2 == 0 ? 0.0f : -0.0f;
    }
    s->how = (int)(random_bits() % FILLS);
    s->stream = random_bits() % 2 == 0;
    s->in_place = s->count > 0 && s->types[0] == s->to && !s->missing[0] && random_bits() % 2 == 0;
}

/* Every pair of types, every number of parts, every short length, and some long ones. */
static void test_one_type(void)
{
    static const size_t lengths[] = {1000, 1023, 1024, 1025, 1057, 2048, 2079, 3000};
    for (int to = 0; to < TYPES; to++) {
        for (int from = 0; from < TYPES; from++) {
            for (size_t count = 0; count <= MAX_PARTS; count++) {
                setting s = {.to = (hm_dtype)to, .count = count};
                for (size_t p = 0; p < MAX_PARTS; p++) s.types[p] = (hm_dtype)from;
                for (s.n = 0; s.n <= 67; s.n++) vary(&s), test_setting(&s);
                for (size_t i = 0; i < 2; i++) {
                    s.n = lengths[random_bits() % (sizeof lengths / sizeof lengths[0])];
                    vary(&s);
                    test_setting(&s);
                }
            }
        }
    }
}

static void test_mixed_types(void)
{
    for (int trial = 0; trial < 3000; trial++) {
        setting s = {.to = (hm_dtype)(random_bits() % TYPES), .count = random_bits() % (MAX_PARTS + 1)};
        for (size_t p = 0; p < MAX_PARTS; p++) s.types[p] = (hm_dtype)(random_bits() % TYPES);
        s.n = random_bits() % 10 != 0 ? random_bits() % 68 : 1000 + random_bits() % 2001;
        vary(&s);
        test_setting(&s);
    }
}

/* Streaming and an operand under the result: the case in which a store could hit what is still to be read. */
static void test_in_place(void)
{
    static const hm_dtype types[] = {HM_F32, HM_F16, HM_BF16, HM_F8_E4M3, HM_F64};
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        for (size_t offset = 0; offset < 64; offset++) {
            setting s = {.to = types[t], .count = 3, .n = 500 + offset * 41, .in_place = true};
            for (size_t p = 0; p < MAX_PARTS; p++) s.types[p] = types[t], s.c[p] = 0.3f * (float)p;
            s.offset[MAX_PARTS] = offset;
            test_setting(&s);
            s.stream = true;
            test_setting(&s);
            s.types[2] = HM_F8_E5M2;
            test_setting(&s);
        }
    }
}

/* What the arithmetic must give, in numbers written out. */
static void test_values(const hm_kernels *k)
{
    const float base[] = {-0.0f, 65504, 65504, 1, from_bits(0x7f800000), 0x1p-149f, 1};
    const float d[] = {0, 1, 16, 0x1p-11f, 1, 1, NAN};
    const float not_fused_x[] = {-1}, not_fused_d[] = {1 + 0x1p-13f};
    uint16_t half[7];
    float x[7];
    hm_blend_part parts[2] = {{base, HM_F32, 99}, {d, HM_F32, 1}};
    k->blend(half, HM_F16, parts, 2, 7, false);
    const uint16_t expected[] = {0x0000, 0x7bff, 0x7c00, 0x3c00, 0x7c00, 0x3c00};
    for (size_t i = 0; i < 6; i++) CHECK(half[i] == expected[i]);
    CHECK((half[6] & 0x7fff) == 0x7e00);
    parts[1].c = 0; /* skipped: no NaN from it, and −0 stays */
    k->blend(x, HM_F32, parts, 2, 7, true);
    CHECK(memcmp(x, base, sizeof base) == 0);
    parts[0].data = NULL, parts[1].c = -1; /* 0 + (−1)·0 = 0 + −0 = +0 */
    k->blend(x, HM_F32, parts, 2, 6, false);
    CHECK(x[0] == 0 && !signbit(x[0]) && x[2] == -16);
    uint8_t f8[7];
    parts[1].c = 1000;
    k->blend(f8, HM_F8_E4M3, parts, 2, 6, false);
    CHECK(f8[0] == 0 && f8[1] == 0x7e && f8[2] == 0x7e); /* saturated */
    parts[1].data = NULL; /* nothing at all */
    memset(half, 0xff, sizeof half);
    k->blend(half, HM_BF16, parts, 2, 6, true);
    for (size_t i = 0; i < 6; i++) CHECK(half[i] == 0);
    CHECK(half[6] == 0xffff);
    hm_blend_part product[2] = {{not_fused_x, HM_F32, 0}, {not_fused_d, HM_F32, 1 - 0x1p-13f}};
    k->blend(x, HM_F32, product, 2, 1, false); /* (1 + ε)(1 − ε) rounds to 1: fused it would leave −ε² */
    CHECK(x[0] == 0);
}

/* Any split of n gives the same bytes. */
static void test_splits(const hm_kernels *k)
{
    enum { N = 5000 };
    operand base = take(N * 2, 2), d = take(N * 2, 6), whole = take(N * 2, 0), pieces = take(N * 2, 0);
    fill(k, base, HM_F16, N, SPECIAL);
    fill(k, d, HM_F16, N, SPECIAL);
    hm_blend_part parts[2] = {{base.data, HM_F16, 0}, {d.data, HM_F16, 0.37f}};
    k->blend(whole.data, HM_F16, parts, 2, N, true);
    for (size_t at = 0, n; at < N; at += n) {
        n = 1 + random_bits() % 300;
        if (n > N - at) n = N - at;
        hm_blend_part piece[2] = {parts[0], parts[1]};
        piece[0].data = base.data + at * 2, piece[1].data = d.data + at * 2;
        k->blend(pieces.data + at * 2, HM_F16, piece, 2, n, random_bits() % 2 == 0);
    }
    CHECK(memcmp(whole.data, pieces.data, N * 2) == 0);
    free(base.block), free(d.block), free(whole.block), free(pieces.block);
}

int main(void)
{
    for (const hm_kernels *const *k = hm_kernels_all(); *k != NULL; k++) {
        test_values(*k);
        test_splits(*k);
    }
    test_one_type();
    test_mixed_types();
    test_in_place();
    return check_report("blend kernel");
}
