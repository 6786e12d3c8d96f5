/* The inner loops of kernels.h, included once per instruction set: no include guard, everything static but the table.
 *
 * The including file defines
 *   KERNEL_TABLE, KERNEL_NAME     the symbol of the table and the name of the variant
 *   LANES                         numbers per vector
 *   vf, vu                        LANES floats, LANES uint32_t: types on which + - * & | ^ << >> work lane by
 *                                 lane (vectors of GNU C, or plain numbers where LANES is 1)
 *   INLINE                        static, and really inlined: the blocks below live on constants reaching them
 *   vf_fma, vf_fnma(a, b, c)      c + a·b and c − a·b, fused or not
 *   vf_sum(a)                     the sum of the lanes in f64
 *   vf_bits, vf_from_bits         the same bits as the other type
 *   vu_greater(a, b)              all ones where a > b, for values below 2³¹
 *   vu_if_nan(v, yes, no)         the lanes of `yes` where v is NaN, of `no` elsewhere
 *   vu_any(a)                     whether any lane is not zero
 *   vu_load_u8, vu_load_u16, vf_load_f64, vu_store_u8, vu_store_u16, vf_store_f64
 *                                 LANES numbers of that width from or to an unaligned address; values fit
 *   vf_load_once(p)               vf_load for a value used several times: kept in a register, not read again
 *   NATIVE_F16                    if there are also vf_load_f16 and vf_store_f16 (NaN need not be canonical)
 *
 * Bit-for-bit agreement of the variants rests on two rules: outside vf_fma a product is never fused with the sum that
 * takes it (-ffp-contract=off), and no step depends on LANES.  One thing stays open, because compilers may swap the
 * operands of a sum: which of two NaN operands survives. */

#include <string.h>

#include "kernels/kernels.h"

/* Vectors one f32 sum runs over before it goes to f64: the bound in kernels.h, whatever LANES is. */
#define CHAIN 128
#define SPAN ((size_t)CHAIN * LANES)

INLINE vf vf_set(float x) { return x - (vf){0}; }
INLINE vu vu_set(uint32_t x) { return x + (vu){0}; }

INLINE vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

INLINE vu vu_select(vu mask, vu yes, vu no)
{
    return (mask & yes) | (~mask & no);
}

/* ---- small floats -------------------------------------------------------------------------------------------- */

/* Codes are without the sign bit. */
typedef struct small_float {
    unsigned mantissa, exponent; /* bits */
    uint32_t finite;             /* largest finite number */
    uint32_t overflow;           /* what too large numbers and infinity become */
    uint32_t nan;
} small_float;

#if !defined(NATIVE_F16)
static const small_float f16 = {10, 5, 0x7bff, 0x7c00, 0x7e00};
#endif
static const small_float f8_e4m3 = {3, 4, 0x7e, 0x7e, 0x7f};
static const small_float f8_e5m2 = {2, 5, 0x7b, 0x7b, 0x7e};

/* Normal numbers: shift the fields into place, add the difference of the biases to the exponent.  Subnormal ones have
 * no hidden bit: put in the one of the smallest normal number, then subtract it as a float; operands and result are
 * normal f32, so no flush-to-zero mode can touch them.  From the others 0 is subtracted, which turns a signalling NaN
 * into a quiet one, as F16C does, and changes nothing else. */
INLINE vf widen(vu x, small_float f)
{
    const unsigned shift = 23 - f.mantissa, above = 31 - f.mantissa - f.exponent;
    const uint32_t sign_bit = (uint32_t)1 << (f.mantissa + f.exponent);
    const uint32_t rebias = (uint32_t)(128 - (1 << (f.exponent - 1))) << 23, one = (uint32_t)1 << 23;
    vu code = x & (sign_bit - 1);
    vu subnormal = vu_greater(vu_set((uint32_t)1 << f.mantissa), code);
    vu fields = (code << shift) + rebias + (subnormal & one);
    fields |= vu_greater(code, vu_set(f.finite)) & 0x7f800000u;
    vf size = vf_from_bits(fields) - vf_from_bits(subnormal & (rebias + one));
    return vf_from_bits(vf_bits(size) | (x & sign_bit) << above);
}

/* Normal numbers: round the code to nearest even by adding just under a half, plus the last bit kept; a carry out of
 * the mantissa makes the next binade, as it should.  Subnormal ones: adding 2^23 units of the last place lets the f32
 * adder round; below 2^-126 the result is 0 either way. */
INLINE vu narrow(vf v, small_float f)
{
    const unsigned shift = 23 - f.mantissa, above = 31 - f.mantissa - f.exponent;
    const int bias = (1 << (f.exponent - 1)) - 1;
    const uint32_t rebias = (uint32_t)(127 - bias) << 23;
    const uint32_t normal_from = (uint32_t)(128 - bias) << 23;
    const uint32_t magic = (uint32_t)(127 + 24 - bias - (int)f.mantissa) << 23;
    vu bits = vf_bits(v);
    vu size = bits & 0x7fffffffu;
    vu normal = (size + (((uint32_t)1 << (shift - 1)) - 1 - rebias) + ((size >> shift) & 1)) >> shift;
    vu subnormal = vf_bits(vf_from_bits(size) + vf_from_bits(vu_set(magic))) - magic;
    vu code = vu_select(vu_greater(vu_set(normal_from), size), subnormal, normal);
    vu special = (vu_greater(size, vu_set(0x7f800000u)) & (f.overflow ^ f.nan)) ^ f.overflow;
    code = vu_select(vu_greater(code, vu_set(f.overflow)), special, code);
    return code | (bits ^ size) >> above;
}

/* ---- load, load_sub, store ----------------------------------------------------------------------------------- */

INLINE vf get_F64(const unsigned char *p) { return vf_load_f64(p); }
INLINE void put_F64(unsigned char *p, vf v) { vf_store_f64(p, v); }

INLINE vf get_F32(const unsigned char *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void put_F32(unsigned char *p, vf v) { memcpy(p, &v, sizeof v); }

#if defined(NATIVE_F16)
INLINE vf get_F16(const unsigned char *p) { return vf_load_f16(p); }
INLINE void put_F16(unsigned char *p, vf v)
{
    vu bits = vf_bits(v);
    vf_store_f16(p, vf_from_bits(vu_if_nan(v, (bits & 0x80000000u) | 0x7fc00000u, bits)));
}
#else
INLINE vf get_F16(const unsigned char *p) { return widen(vu_load_u16(p), f16); }
INLINE void put_F16(unsigned char *p, vf v) { vu_store_u16(p, narrow(v, f16)); }
#endif

INLINE vf get_BF16(const unsigned char *p) { return vf_from_bits(vu_load_u16(p) << 16); }
INLINE void put_BF16(unsigned char *p, vf v)
{
    vu bits = vf_bits(v);
    vu rounded = bits + 0x7fffu + ((bits >> 16) & 1);
    vu_store_u16(p, vu_if_nan(v, bits | 0x00400000u, rounded) >> 16);
}

INLINE vf get_F8_E4M3(const unsigned char *p) { return widen(vu_load_u8(p), f8_e4m3); }
INLINE void put_F8_E4M3(unsigned char *p, vf v) { vu_store_u8(p, narrow(v, f8_e4m3)); }
INLINE vf get_F8_E5M2(const unsigned char *p) { return widen(vu_load_u8(p), f8_e5m2); }
INLINE void put_F8_E5M2(unsigned char *p, vf v) { vu_store_u8(p, narrow(v, f8_e5m2)); }

/* Sources are read a cache line at a time.  A caller that streams comes back for the n numbers behind these after it
 * has worked on these: asking for them now, into the second-level cache, hides their way from memory behind that work
 * (solving pass: +40 %).  Beyond the end of a buffer the request does nothing; no pointer is formed for it.  The last
 * n % LANES numbers go through a padded copy and the same vector code. */
#define LINE(bytes) ((size_t)64 / (bytes))
#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch((const void *)(address), 0, 2)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define PREFETCH(address) (void)(address)
#define UNROLL
#endif
#define CONVERSIONS(dtype, bytes)                                                                       \
    static void load_##dtype(const void *src, float *dst, size_t n)                                     \
    {                                                                                                   \
        const unsigned char *s = src;                                                                   \
        size_t i = 0;                                                                                   \
        for (; n - i >= LINE(bytes); i += LINE(bytes)) {                                                \
            PREFETCH((uintptr_t)s + (i + n) * (bytes));                                                 \
            UNROLL for (size_t e = i; e < i + LINE(bytes); e += LANES)                                  \
                vf_store(dst + e, get_##dtype(s + e * (bytes)));                                        \
        }                                                                                               \
        for (; n - i >= LANES; i += LANES) vf_store(dst + i, get_##dtype(s + i * (bytes)));             \
        if (i < n) {                                                                                    \
            unsigned char in[LANES * (bytes)] = {0};                                                    \
            memcpy(in, s + i * (bytes), (n - i) * (bytes));                                             \
            vf v = get_##dtype(in);                                                                     \
            memcpy(dst + i, &v, (n - i) * sizeof(float));                                               \
        }                                                                                               \
    }                                                                                                   \
    static void load_sub_##dtype(const void *src, const float *ref, float *dst, size_t n)               \
    {                                                                                                   \
        const unsigned char *s = src;                                                                   \
        size_t i = 0;                                                                                   \
        for (; n - i >= LINE(bytes); i += LINE(bytes)) {                                                \
            PREFETCH((uintptr_t)s + (i + n) * (bytes));                                                 \
            UNROLL for (size_t e = i; e < i + LINE(bytes); e += LANES)                                  \
                vf_store(dst + e, get_##dtype(s + e * (bytes)) - vf_load(ref + e));                     \
        }                                                                                               \
        for (; n - i >= LANES; i += LANES)                                                              \
            vf_store(dst + i, get_##dtype(s + i * (bytes)) - vf_load(ref + i));                         \
        if (i < n) {                                                                                    \
            unsigned char in[LANES * (bytes)] = {0};                                                    \
            vf r = {0};                                                                                 \
            memcpy(in, s + i * (bytes), (n - i) * (bytes));                                             \
            memcpy(&r, ref + i, (n - i) * sizeof(float));                                               \
            vf v = get_##dtype(in) - r;                                                                 \
            memcpy(dst + i, &v, (n - i) * sizeof(float));                                               \
        }                                                                                               \
    }                                                                                                   \
    static void store_##dtype(const float *src, void *dst, size_t n)                                    \
    {                                                                                                   \
        unsigned char *d = dst;                                                                         \
        size_t i = 0;                                                                                   \
        for (; n - i >= LANES; i += LANES) put_##dtype(d + i * (bytes), vf_load(src + i));              \
        if (i < n) {                                                                                    \
            unsigned char out[LANES * (bytes)];                                                         \
            vf v = {0};                                                                                 \
            memcpy(&v, src + i, (n - i) * sizeof(float));                                               \
            put_##dtype(out, v);                                                                        \
            memcpy(d + i * (bytes), out, (n - i) * (bytes));                                            \
        }                                                                                               \
    }

CONVERSIONS(F64, 8)
CONVERSIONS(F32, 4)
CONVERSIONS(F16, 2)
CONVERSIONS(BF16, 2)
CONVERSIONS(F8_E4M3, 1)
CONVERSIONS(F8_E5M2, 1)
#undef CONVERSIONS

/* ---- x + c·d ------------------------------------------------------------------------------------------------- */

static void axpy(float *x, float c, const float *d, size_t n)
{
    size_t t = 0;
    for (; n - t >= LANES; t += LANES) {
        vf product = vf_set(c) * vf_load(d + t);
        vf_store(x + t, vf_load(x + t) + product);
    }
    for (; t < n; t++) {
        float product = c * d[t];
        x[t] = x[t] + product;
    }
}

/* ---- Gram matrix --------------------------------------------------------------------------------------------- */

/* The ten products of four rows with each other, in the order of HM_TRIANGLE: 10 sums and 4 rows in 16 registers, and
 * enough independent sums to hide the latency of a fused multiply-add (4 cycles, 2 a cycle). */
static void products_triangle(const float *const row[4], size_t n, double *sums)
{
    const float *p0 = row[0], *p1 = row[1], *p2 = row[2], *p3 = row[3];
    vf s00 = {0}, s10 = {0}, s11 = {0}, s20 = {0}, s21 = {0}, s22 = {0}, s30 = {0}, s31 = {0}, s32 = {0}, s33 = {0};
    for (size_t t = 0; t < n; t += LANES) {
        vf x0 = vf_load(p0 + t), x1 = vf_load(p1 + t), x2 = vf_load(p2 + t), x3 = vf_load(p3 + t);
        s00 = vf_fma(x0, x0, s00);
        s10 = vf_fma(x1, x0, s10);
        s11 = vf_fma(x1, x1, s11);
        s20 = vf_fma(x2, x0, s20);
        s21 = vf_fma(x2, x1, s21);
        s22 = vf_fma(x2, x2, s22);
        s30 = vf_fma(x3, x0, s30);
        s31 = vf_fma(x3, x1, s31);
        s32 = vf_fma(x3, x2, s32);
        s33 = vf_fma(x3, x3, s33);
    }
    const vf s[10] = {s00, s10, s11, s20, s21, s22, s30, s31, s32, s33};
    for (size_t i = 0; i < 10; i++) sums[i] = vf_sum(s[i]);
}

/* `count` (1 to 3) rows against four others, count × 4 sums; at most 12 of them, 3 rows and the one being read. */
INLINE void products_block(const float *const *a, const float *const b[4], size_t n, double *sums, int count)
{
    const float *a0 = a[0], *a1 = a[count > 1 ? 1 : 0], *a2 = a[count > 2 ? 2 : 0];
    const float *b0 = b[0], *b1 = b[1], *b2 = b[2], *b3 = b[3];
    vf s00 = {0}, s01 = {0}, s02 = {0}, s03 = {0};
    vf s10 = {0}, s11 = {0}, s12 = {0}, s13 = {0};
    vf s20 = {0}, s21 = {0}, s22 = {0}, s23 = {0};
    for (size_t t = 0; t < n; t += LANES) {
        vf x0 = vf_load(a0 + t), x1 = x0, x2 = x0;
        if (count > 1) x1 = vf_load(a1 + t);
        if (count > 2) x2 = vf_load(a2 + t);
        vf y = vf_load_once(b0 + t);
        s00 = vf_fma(x0, y, s00);
        if (count > 1) s10 = vf_fma(x1, y, s10);
        if (count > 2) s20 = vf_fma(x2, y, s20);
        y = vf_load_once(b1 + t);
        s01 = vf_fma(x0, y, s01);
        if (count > 1) s11 = vf_fma(x1, y, s11);
        if (count > 2) s21 = vf_fma(x2, y, s21);
        y = vf_load_once(b2 + t);
        s02 = vf_fma(x0, y, s02);
        if (count > 1) s12 = vf_fma(x1, y, s12);
        if (count > 2) s22 = vf_fma(x2, y, s22);
        y = vf_load_once(b3 + t);
        s03 = vf_fma(x0, y, s03);
        if (count > 1) s13 = vf_fma(x1, y, s13);
        if (count > 2) s23 = vf_fma(x2, y, s23);
    }
    const vf s[12] = {s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23};
    for (int i = 0; i < count * 4; i++) sums[i] = vf_sum(s[i]);
}

static void products_1x4(const float *const *a, const float *const *b, size_t n, double *sums)
{
    products_block(a, b, n, sums, 1);
}

static void products_2x4(const float *const *a, const float *const *b, size_t n, double *sums)
{
    products_block(a, b, n, sums, 2);
}

static void products_3x4(const float *const *a, const float *const *b, size_t n, double *sums)
{
    products_block(a, b, n, sums, 3);
}

/* Rows in groups of four; the last group may be short.  Its triangle repeats the last row to fill up (the surplus
 * costs less than a short triangle's waiting for its few sums), its blocks have the true height.  n is a multiple of
 * LANES. */
static void gram_span(const float *rows, size_t stride, size_t m, size_t n, double *g)
{
    for (size_t i = 0; i < m; i += 4) {
        const size_t height = m - i < 4 ? m - i : 4;
        const float *a[4], *b[4];
        double sums[12];
        for (size_t r = 0; r < 4; r++) a[r] = rows + (i + (r < height ? r : height - 1)) * stride;
        products_triangle(a, n, sums);
        for (size_t r = 0; r < height; r++)
            for (size_t c = 0; c <= r; c++) g[HM_TRIANGLE(i + r, i + c)] += sums[HM_TRIANGLE(r, c)];
        for (size_t j = 0; j < i; j += 4) {
            for (size_t c = 0; c < 4; c++) b[c] = rows + (j + c) * stride;
            const size_t step = height == 4 ? 2 : height;
            for (size_t top = 0; top < height; top += step) {
                (step == 1 ? products_1x4 : step == 2 ? products_2x4 : products_3x4)(a + top, b, n, sums);
                for (size_t r = 0; r < step; r++)
                    for (size_t c = 0; c < 4; c++) g[HM_TRIANGLE(i + top + r, j + c)] += sums[r * 4 + c];
            }
        }
    }
}

static void gram(const float *rows, size_t stride, size_t m, size_t n, double *g)
{
    const size_t whole = n - n % LANES;
    for (size_t t = 0; t < whole; t += SPAN) gram_span(rows + t, stride, m, whole - t < SPAN ? whole - t : SPAN, g);
    for (size_t t = whole; t < n; t++)
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j <= i; j++) g[HM_TRIANGLE(i, j)] += (double)rows[i * stride + t] * rows[j * stride + t];
}

/* ---- linear combinations ------------------------------------------------------------------------------------- */

/* `count` (1 to 4) outputs, two vectors of each at a time: 8 sums in registers over all rows. */
INLINE size_t combine_block(const float *rows, size_t stride, size_t m, size_t n, const float *a, float *out,
                            size_t out_stride, int count)
{
    const float *a1 = a + (count > 1 ? m : 0), *a2 = a + (count > 2 ? 2 * m : 0), *a3 = a + (count > 3 ? 3 * m : 0);
    size_t t = 0;
    for (; n - t >= 2 * LANES; t += 2 * LANES) {
        vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, u0 = {0}, u1 = {0}, u2 = {0}, u3 = {0};
        const float *row = rows + t;
        for (size_t i = 0; i < m; i++, row += stride) {
            vf x = vf_load_once(row), y = vf_load_once(row + LANES), c = vf_set(a[i]);
            s0 = s0 + c * x;
            u0 = u0 + c * y;
            if (count > 1) {
                c = vf_set(a1[i]);
                s1 = s1 + c * x;
                u1 = u1 + c * y;
            }
            if (count > 2) {
                c = vf_set(a2[i]);
                s2 = s2 + c * x;
                u2 = u2 + c * y;
            }
            if (count > 3) {
                c = vf_set(a3[i]);
                s3 = s3 + c * x;
                u3 = u3 + c * y;
            }
        }
        const vf s[4] = {s0, s1, s2, s3}, u[4] = {u0, u1, u2, u3};
        UNROLL for (int r = 0; r < count; r++) {
            vf_store(out + (size_t)r * out_stride + t, s[r]);
            vf_store(out + (size_t)r * out_stride + t + LANES, u[r]);
        }
    }
    return t;
}

static void combine(const float *rows, size_t stride, size_t m, size_t n, const float *a, size_t outputs, float *out,
                    size_t out_stride)
{
    for (size_t k = 0; k < outputs; k += 4) {
        const float *ak = a + k * m;
        float *ok = out + k * out_stride;
        const size_t count = outputs - k < 4 ? outputs - k : 4;
        size_t done;
        switch (count) {
        case 1: done = combine_block(rows, stride, m, n, ak, ok, out_stride, 1); break;
        case 2: done = combine_block(rows, stride, m, n, ak, ok, out_stride, 2); break;
        case 3: done = combine_block(rows, stride, m, n, ak, ok, out_stride, 3); break;
        default: done = combine_block(rows, stride, m, n, ak, ok, out_stride, 4); break;
        }
        for (size_t r = 0; r < count; r++) {
            for (size_t t = done; t < n; t++) {
                float sum = 0;
                for (size_t i = 0; i < m; i++) {
                    float product = ak[r * m + i] * rows[i * stride + t];
                    sum = sum + product;
                }
                ok[r * out_stride + t] = sum;
            }
        }
    }
}

/* ---- what is left of the rows -------------------------------------------------------------------------------- */

/* `count` (1 to 4) rows share the reads of shift and directions.  n is a multiple of LANES. */
INLINE void residual_block(const float *rows, size_t stride, size_t n, const float *shift, const float *dirs,
                           size_t dir_stride, size_t k_count, const float *c, double *sums, int count)
{
    const float *p1 = rows + (count > 1 ? stride : 0), *c1 = c + (count > 1 ? k_count : 0);
    const float *p2 = rows + (count > 2 ? 2 * stride : 0), *c2 = c + (count > 2 ? 2 * k_count : 0);
    const float *p3 = rows + (count > 3 ? 3 * stride : 0), *c3 = c + (count > 3 ? 3 * k_count : 0);
    vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (size_t t = 0; t < n; t += LANES) {
        vf y = shift != NULL ? vf_load_once(shift + t) : (vf){0};
        vf x0 = vf_load(rows + t) - y, x1 = x0, x2 = x0, x3 = x0;
        if (count > 1) x1 = vf_load(p1 + t) - y;
        if (count > 2) x2 = vf_load(p2 + t) - y;
        if (count > 3) x3 = vf_load(p3 + t) - y;
        const float *d = dirs + t;
        for (size_t k = 0; k < k_count; k++, d += dir_stride) {
            y = vf_load_once(d);
            x0 = vf_fnma(vf_set(c[k]), y, x0);
            if (count > 1) x1 = vf_fnma(vf_set(c1[k]), y, x1);
            if (count > 2) x2 = vf_fnma(vf_set(c2[k]), y, x2);
            if (count > 3) x3 = vf_fnma(vf_set(c3[k]), y, x3);
        }
        s0 = vf_fma(x0, x0, s0);
        if (count > 1) s1 = vf_fma(x1, x1, s1);
        if (count > 2) s2 = vf_fma(x2, x2, s2);
        if (count > 3) s3 = vf_fma(x3, x3, s3);
    }
    sums[0] += vf_sum(s0);
    if (count > 1) sums[1] += vf_sum(s1);
    if (count > 2) sums[2] += vf_sum(s2);
    if (count > 3) sums[3] += vf_sum(s3);
}

static void residual_span(const float *rows, size_t stride, size_t m, size_t n, const float *shift, const float *dirs,
                          size_t dir_stride, size_t k_count, const float *c, double *sums)
{
    for (size_t i = 0; i < m; i += 4) {
        const float *row = rows + i * stride, *ci = c + i * k_count;
        switch (m - i) {
        case 1: residual_block(row, stride, n, shift, dirs, dir_stride, k_count, ci, sums + i, 1); break;
        case 2: residual_block(row, stride, n, shift, dirs, dir_stride, k_count, ci, sums + i, 2); break;
        case 3: residual_block(row, stride, n, shift, dirs, dir_stride, k_count, ci, sums + i, 3); break;
        default: residual_block(row, stride, n, shift, dirs, dir_stride, k_count, ci, sums + i, 4); break;
        }
    }
}

static void residual(const float *rows, size_t stride, size_t m, size_t n, const float *shift, const float *dirs,
                     size_t dir_stride, size_t k_count, const float *c, double *sums)
{
    const size_t whole = n - n % LANES;
    if (k_count == 0) dirs = c = rows; /* not read, but stepped over: arithmetic on NULL is undefined */
    for (size_t t = 0; t < whole; t += SPAN) {
        const size_t span = whole - t < SPAN ? whole - t : SPAN;
        const float *shift_t = shift != NULL ? shift + t : NULL;
        residual_span(rows + t, stride, m, span, shift_t, dirs + t, dir_stride, k_count, c, sums);
    }
    for (size_t t = whole; t < n; t++) {
        for (size_t i = 0; i < m; i++) {
            float x = rows[i * stride + t] - (shift != NULL ? shift[t] : 0.0f);
            for (size_t k = 0; k < k_count; k++) x = x - c[i * k_count + k] * dirs[k * dir_stride + t];
            sums[i] += (double)x * x;
        }
    }
}

static double sum_squares(const float *x, size_t n)
{
    const size_t whole = n - n % (4 * LANES);
    double sum = 0;
    for (size_t start = 0; start < whole; start += 4 * SPAN) {
        const size_t end = whole - start < 4 * SPAN ? whole : start + 4 * SPAN;
        vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (size_t t = start; t < end; t += 4 * LANES) {
            vf x0 = vf_load(x + t), x1 = vf_load(x + t + LANES);
            vf x2 = vf_load(x + t + 2 * LANES), x3 = vf_load(x + t + 3 * LANES);
            s0 = vf_fma(x0, x0, s0);
            s1 = vf_fma(x1, x1, s1);
            s2 = vf_fma(x2, x2, s2);
            s3 = vf_fma(x3, x3, s3);
        }
        sum += vf_sum(s0) + vf_sum(s1) + vf_sum(s2) + vf_sum(s3);
    }
    for (size_t t = whole; t < n; t++) sum += (double)x[t] * x[t];
    return sum;
}

static size_t find_nonfinite(const float *x, size_t n)
{
    const vu exponent = vu_set(0x7f800000u), below = vu_set(0x7f7fffffu);
    size_t t = 0;
    for (; n - t >= 4 * LANES; t += 4 * LANES) {
        vu a = vu_greater(vf_bits(vf_load(x + t)) & exponent, below);
        vu b = vu_greater(vf_bits(vf_load(x + t + LANES)) & exponent, below);
        vu c = vu_greater(vf_bits(vf_load(x + t + 2 * LANES)) & exponent, below);
        vu d = vu_greater(vf_bits(vf_load(x + t + 3 * LANES)) & exponent, below);
        if (vu_any((a | b) | (c | d))) break;
    }
    for (; t < n; t++) {
        uint32_t bits;
        memcpy(&bits, x + t, sizeof bits);
        if ((bits & 0x7f800000u) == 0x7f800000u) return t;
    }
    return n;
}

/* ---- the table ----------------------------------------------------------------------------------------------- */

#define ALL_FLOATS(prefix)                                                                                  \
    {                                                                                                       \
        [HM_F64] = prefix##_F64, [HM_F32] = prefix##_F32, [HM_F16] = prefix##_F16, [HM_BF16] = prefix##_BF16, \
        [HM_F8_E4M3] = prefix##_F8_E4M3, [HM_F8_E5M2] = prefix##_F8_E5M2                                    \
    }

static void blend(void *out, hm_dtype out_dtype, const hm_blend_part *parts, size_t part_count, size_t n, bool stream);

const hm_kernels KERNEL_TABLE = {
    .name = KERNEL_NAME,
    .load = ALL_FLOATS(load),
    .load_sub = ALL_FLOATS(load_sub),
    .store = ALL_FLOATS(store),
    .axpy = axpy,
    .blend = blend, /* in blend_template.h, which comes next */
    .gram = gram,
    .combine = combine,
    .residual = residual,
    .sum_squares = sum_squares,
    .find_nonfinite = find_nonfinite,
};

#undef ALL_FLOATS
