/* Every variant of the kernels against loops that are too simple to be wrong. */
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "tests/check.h"
#include "tests/random_bits.h"

#define UNIT 0x1p-24 /* half the distance of f32 numbers at 1 */

static const size_t type_bytes[6] = {8, 4, 2, 2, 1, 1};

/* In (−1, 1), of all magnitudes down to 2^-20 or so. */
static float random_value(void)
{
    float x = (float)(int32_t)random_bits() * 0x1p-31f;
    return ldexpf(x, -(int)(random_bits() % 8));
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Blocks are exactly as long as asked for, so that a sanitizer sees any step beyond. */
static void *take(size_t bytes)
{
    void *block = malloc(bytes > 0 ? bytes : 1);
    if (block == NULL) exit(2);
    return block;
}

static float *take_values(size_t n)
{
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_value();
    return x;
}

/* ---- reference conversions, in f64 --------------------------------------------------------------------------- */

typedef struct format {
    int mantissa, exponent; /* bits */
    bool ieee;              /* the highest exponent means Inf and NaN */
    bool saturate;
} format;

static const format formats[6] = {
    [HM_F16] = {10, 5, true, false},
    [HM_BF16] = {7, 8, true, false},
    [HM_F8_E4M3] = {3, 4, false, true},
    [HM_F8_E5M2] = {2, 5, true, true},
};

static uint32_t largest_code(const format *f)
{
    uint32_t all = ((uint32_t)1 << (f->mantissa + f->exponent)) - 1;
    return f->ieee ? all - ((uint32_t)1 << f->mantissa) : all - 1;
}

/* Value of a code without sign; the codes above the largest finite one are not asked for. */
static double decode_size(const format *f, uint32_t code)
{
    int bias = (1 << (f->exponent - 1)) - 1, e = (int)(code >> f->mantissa);
    double fraction = (double)(code & (((uint32_t)1 << f->mantissa) - 1));
    if (e == 0) return ldexp(fraction, 1 - bias - f->mantissa);
    return ldexp(fraction + ldexp(1, f->mantissa), e - bias - f->mantissa);
}

static float decode(const format *f, uint32_t code)
{
    const uint32_t sign_bit = (uint32_t)1 << (f->mantissa + f->exponent), sign = code & sign_bit, size = code ^ sign;
    double x = NAN;
    if (size <= largest_code(f)) x = decode_size(f, size);
    else if (f->ieee && size == largest_code(f) + 1) x = HUGE_VAL;
    return copysignf((float)x, sign ? -1.0f : 1.0f);
}

static uint32_t encode(hm_dtype type, float x)
{
    const format *f = &formats[type];
    const int bias = (1 << (f->exponent - 1)) - 1;
    const uint32_t sign = bits_of(x) >> 31 << (f->mantissa + f->exponent);
    if (isnan(x)) {
        if (type == HM_BF16) return bits_of(x) >> 16 | 0x40;
        return sign | (type == HM_F16 ? 0x7e00 : type == HM_F8_E4M3 ? 0x7f : 0x7e);
    }
    const double size = fabs((double)x);
    uint32_t overflow = largest_code(f) + (f->saturate ? 0 : 1);
    if (isinf(x)) return sign | overflow;
    int e;
    frexp(size, &e); /* size < 2^e */
    if (e - 1 < 1 - bias) e = 2 - bias;
    const double unit = ldexp(1, e - 1 - f->mantissa);
    const double rounded = nearbyint(size / unit) * unit;
    if (rounded > decode_size(f, largest_code(f))) return sign | overflow;
    if (rounded < ldexp(1, 1 - bias)) return sign | (uint32_t)(rounded / ldexp(1, 1 - bias - f->mantissa));
    frexp(rounded, &e);
    double fraction = ldexp(rounded, f->mantissa - (e - 1)) - ldexp(1, f->mantissa);
    return sign | (uint32_t)(e - 1 + bias) << f->mantissa | (uint32_t)fraction;
}

/* ---- conversions --------------------------------------------------------------------------------------------- */

/* All codes of a format; NaN must stay NaN with its sign, and come out the same in all variants. */
static void test_load_all_codes(const hm_kernels *k, hm_dtype type)
{
    const format *f = &formats[type];
    const size_t n = (size_t)1 << (8 * type_bytes[type]);
    unsigned char *src = take(n * type_bytes[type]);
    float *dst = take(n * sizeof *dst), *same = take(n * sizeof *dst);
    for (size_t i = 0; i < n; i++) {
        src[i * type_bytes[type]] = (unsigned char)i;
        if (type_bytes[type] == 2) src[2 * i + 1] = (unsigned char)(i >> 8);
    }
    k->load[type](src, dst, n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        float expected = decode(f, (uint32_t)i);
        if (isnan(expected)) wrong += !isnan(dst[i]) || signbit(dst[i]) != signbit(expected);
        else wrong += bits_of(dst[i]) != bits_of(expected);
    }
    CHECK(wrong == 0);
    const hm_kernels *const *last = hm_kernels_all();
    while (last[1] != NULL) last++;
    (*last)->load[type](src, same, n);
    CHECK(memcmp(dst, same, n * sizeof *dst) == 0);

    /* Back again: every code survives, NaN as NaN. */
    unsigned char *back = take(n * type_bytes[type]);
    k->store[type](dst, back, n);
    wrong = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t code = back[i * type_bytes[type]];
        if (type_bytes[type] == 2) code |= (uint32_t)back[2 * i + 1] << 8;
        wrong += code != (isfinite(dst[i]) ? (uint32_t)i : encode(type, dst[i]));
    }
    CHECK(wrong == 0);
    free(back), free(same), free(dst), free(src);
}

static void check_stored(const hm_kernels *k, hm_dtype type, const float *x, size_t n)
{
    unsigned char *out = take(n * type_bytes[type]);
    k->store[type](x, out, n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t code = out[i * type_bytes[type]];
        if (type_bytes[type] == 2) code |= (uint32_t)out[2 * i + 1] << 8;
        if (code != encode(type, x[i])) {
            if (wrong == 0) fprintf(stderr, "%s type %d: %a gives %#x\n", k->name, (int)type, (double)x[i], code);
            wrong++;
        }
    }
    CHECK(wrong == 0);
    free(out);
}

/* Each value of the format, the midpoint to the next one, and the f32 neighbours of both, with both signs. */
static void test_store_ties(const hm_kernels *k, hm_dtype type)
{
    const format *f = &formats[type];
    const uint32_t codes = largest_code(f) + 1;
    float *x = take(codes * 12 * sizeof *x);
    size_t n = 0;
    for (uint32_t code = 0; code < codes; code++) {
        double here = decode_size(f, code);
        double next = code + 1 < codes ? decode_size(f, code + 1) : 2 * here - decode_size(f, code - 1);
        const float points[2] = {(float)here, (float)((here + next) / 2)};
        for (int i = 0; i < 2; i++) {
            const float around[3] = {points[i], nextafterf(points[i], -FLT_MAX), nextafterf(points[i], HUGE_VALF)};
            for (int j = 0; j < 3; j++) x[n++] = around[j], x[n++] = -around[j];
        }
    }
    check_stored(k, type, x, n);
    free(x);
}

static const uint32_t edge_bits[] = {
    0,          0x80000000, 1,          0x80000001, 0x007fffff, 0x00800000, 0x33000000, 0x33000001, 0x477fefff,
    0x477ff000, 0x477fe000, 0x43e00000, 0x43e80000, 0x43e80001, 0x47600000, 0x47700000, 0x7f7f7fff, 0x7f7f8000,
    0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0xff800001, 0x7fc00000, 0xffc00000, 0x7fffffff,
    0xffffffff, 0x7f80ffff, 0x3f800000, 0x3f808000, 0x3f818000, 0x38800000, 0x387fffff, 0x3c800000, 0x3c7fffff,
};
#define EDGES (sizeof edge_bits / sizeof edge_bits[0])

static void test_store_anything(const hm_kernels *k, hm_dtype type)
{
    const size_t n = (size_t)1 << 17;
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = from_bits(i < EDGES ? edge_bits[i] : random_bits());
    /* Half of them where fp8 and f16 live. */
    for (size_t i = n / 2; i < n; i++) x[i] = ldexpf(random_value(), (int)(random_bits() % 48) - 28);
    check_stored(k, type, x, n);
    free(x);
}

static void test_wide_types(const hm_kernels *k)
{
    const size_t n = (size_t)1 << 14;
    float *x = take(n * sizeof *x), *y = take(n * sizeof *x);
    double *d = take(n * sizeof *d), *e = take(n * sizeof *d);
    for (size_t i = 0; i < n; i++) x[i] = from_bits(i < EDGES ? edge_bits[i] : random_bits());
    for (size_t i = 0; i < n; i++) e[i] = (double)x[i];
    k->store[HM_F32](x, y, n);
    CHECK(memcmp(x, y, n * sizeof *x) == 0);
    memset(y, 0, n * sizeof *y);
    k->load[HM_F32](x, y, n);
    CHECK(memcmp(x, y, n * sizeof *x) == 0);
    k->store[HM_F64](x, d, n);
    CHECK(memcmp(d, e, n * sizeof *d) == 0);

    /* f64 to f32: the halves between two f32 and what lies beside them. */
    for (size_t i = 0; i < n; i++) {
        float low = random_value();
        double middle = ((double)low + (double)nextafterf(low, HUGE_VALF)) / 2;
        d[i] = i % 3 == 0 ? middle : nextafter(middle, i % 3 == 1 ? -HUGE_VAL : HUGE_VAL);
    }
    const double edges[] = {0.0,    -0.0,   HUGE_VAL,         -HUGE_VAL,       1e300,    -1e300,
                            1e-300, -1e-45, 0x1.fffffefp127, 0x1.ffffffp127, 0x1p-150, 0x1.8p-150};
    memcpy(d, edges, sizeof edges);
    k->load[HM_F64](d, y, n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += bits_of(y[i]) != bits_of((float)d[i]);
    CHECK(wrong == 0);
    d[0] = NAN;
    k->load[HM_F64](d, y, 1);
    CHECK(isnan(y[0]));
    free(e), free(d), free(y), free(x);
}

/* Lengths and addresses: every tail, no byte read or written outside. */
static void test_tails(const hm_kernels *k, hm_dtype type, size_t n, size_t offset)
{
    const size_t bytes = type_bytes[type];
    unsigned char *src = take(n * bytes + offset), *out = take(n * bytes + offset + 1);
    float *x = take_values(n), *ref = take_values(n), *dst = take((n + 1) * sizeof *dst);
    k->store[type](x, src + offset, n);

    dst[n] = 42;
    k->load[type](src + offset, dst, n);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        double value;
        uint16_t two;
        float four;
        switch (bytes) {
        case 8: memcpy(&value, src + offset + i * 8, 8); break;
        case 4: memcpy(&four, src + offset + i * 4, 4), value = (double)four; break;
        case 2: memcpy(&two, src + offset + i * 2, 2), value = (double)decode(&formats[type], two); break;
        default: value = (double)decode(&formats[type], src[offset + i]); break;
        }
        wrong += bits_of(dst[i]) != bits_of((float)value);
    }
    memset(out, 0xa5, n * bytes + offset + 1);
    k->store[type](dst, out + offset, n);
    wrong += memcmp(out + offset, src + offset, n * bytes) != 0;
    for (size_t i = 0; i < offset; i++) wrong += out[i] != 0xa5;
    wrong += out[n * bytes + offset] != 0xa5;
    memcpy(x, dst, n * sizeof *x);
    k->load_sub[type](src + offset, ref, dst, n);
    for (size_t i = 0; i < n; i++) wrong += bits_of(dst[i]) != bits_of(x[i] - ref[i]);
    wrong += dst[n] != 42.0f;
    CHECK(wrong == 0);
    free(dst), free(ref), free(x), free(out), free(src);
}

static void test_conversions(const hm_kernels *k)
{
    for (hm_dtype type = HM_F16; type <= HM_F8_E5M2; type++) {
        test_load_all_codes(k, type);
        test_store_ties(k, type);
        test_store_anything(k, type);
    }
    test_wide_types(k);
    for (hm_dtype type = HM_F64; type <= HM_F8_E5M2; type++)
        for (size_t n = 0; n <= 1024; n = n == 67 ? 1000 : n + 1) test_tails(k, type, n, n % 5);
}

/* ---- arithmetic ---------------------------------------------------------------------------------------------- */

static void test_axpy(const hm_kernels *k, size_t n)
{
    float *x = take_values(n), *y = take_values(n), *d = take_values(n);
    const float c = random_value();
    for (size_t i = 0; i < n; i++) {
        float product = c * d[i];
        y[i] = x[i] + product;
    }
    k->axpy(x, c, d, n);
    CHECK(memcmp(x, y, n * sizeof *x) == 0);
    free(d), free(y), free(x);
}

/* A product and a sum that a fused multiply-add would not round the same way, and overflow on the way. */
static void test_axpy_is_not_fused(const hm_kernels *k)
{
    float x[16], d[16];
    for (size_t i = 0; i < 16; i++) x[i] = -1, d[i] = 1 + 0x1p-12f;
    k->axpy(x, 1 + 0x1p-12f, d, 16); /* (1+u)² = 1 + 2u + u²; u² is lost */
    for (size_t i = 0; i < 16; i++) CHECK(x[i] == 0x1p-11f);
    for (size_t i = 0; i < 16; i++) x[i] = -FLT_MAX, d[i] = FLT_MAX;
    k->axpy(x, 2, d, 16);
    for (size_t i = 0; i < 16; i++) CHECK(isinf(x[i]));
}

static float *take_rows(size_t m, size_t stride)
{
    float *rows = NULL;
    if (posix_memalign((void **)&rows, 32, m * stride * sizeof *rows) != 0) exit(2);
    for (size_t i = 0; i < m * stride; i++) rows[i] = NAN; /* what lies between the rows must not matter */
    return rows;
}

static float *take_random_rows(size_t m, size_t stride, size_t n)
{
    float *rows = take_rows(m, stride);
    for (size_t i = 0; i < m; i++)
        for (size_t t = 0; t < n; t++) rows[i * stride + t] = random_value();
    return rows;
}

/* Each lane adds at most 128 products in f32, each rounded once more where they are not fused; f64 adds nothing to
 * speak of: |error| ≤ 130·2⁻²⁴ Σ|xy|. */
static void test_gram(const hm_kernels *k, size_t m, size_t n)
{
    const size_t stride = (n + 7) / 8 * 8 + 8;
    float *rows = take_random_rows(m, stride, n);
    double *g = take(HM_TRIANGLE(m, 0) * sizeof *g);
    for (size_t i = 0; i < HM_TRIANGLE(m, 0); i++) g[i] = (double)i; /* the result is added */
    k->gram(rows, stride, m, n, g);
    size_t wrong = 0;
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j <= i; j++) {
            double sum = 0, size = 0;
            for (size_t t = 0; t < n; t++) {
                double product = (double)rows[i * stride + t] * (double)rows[j * stride + t];
                sum += product;
                size += fabs(product);
            }
            double got = g[HM_TRIANGLE(i, j)] - (double)HM_TRIANGLE(i, j);
            wrong += !(fabs(got - sum) <= 130 * UNIT * size + 1e-12 * (double)HM_TRIANGLE(i, j));
        }
    }
    CHECK(wrong == 0);
    free(g), free(rows);
}

static void test_combine(const hm_kernels *k, size_t m, size_t outputs, size_t n)
{
    const size_t stride = n + 3, out_stride = n + 1;
    float *rows = take_random_rows(m, stride, n), *a = take_values(outputs * m);
    float *out = take(outputs * out_stride * sizeof *out);
    for (size_t i = 0; i < outputs * out_stride; i++) out[i] = 42;
    k->combine(rows, stride, m, n, a, outputs, out, out_stride);
    size_t wrong = 0;
    for (size_t r = 0; r < outputs; r++) {
        for (size_t t = 0; t < n; t++) {
            float sum = 0;
            for (size_t i = 0; i < m; i++) {
                float product = a[r * m + i] * rows[i * stride + t];
                sum = sum + product;
            }
            wrong += bits_of(out[r * out_stride + t]) != bits_of(sum);
        }
        wrong += out[r * out_stride + n] != 42.0f;
    }
    CHECK(wrong == 0);
    free(out), free(a), free(rows);
}

static void test_combine_starts_from_zero(const hm_kernels *k)
{
    float row[19], out[19];
    const float one = 1;
    for (size_t i = 0; i < 19; i++) row[i] = -0.0f;
    k->combine(row, 19, 1, 19, &one, 1, out, 19);
    for (size_t i = 0; i < 19; i++) CHECK(out[i] == 0 && !signbit(out[i]));
}

/* x = row − shift − Σ c·d is off by at most (2k + 1)·2⁻²⁴ (|row| + |shift| + Σ|c d|) =: e, its square by 2|x|e + e²,
 * and the sum of the squares by 130·2⁻²⁴ of itself. */
static void test_residual(const hm_kernels *k, size_t m, size_t k_count, size_t n, bool shifted)
{
    const size_t stride = n + 5, dir_stride = n + 2;
    float *rows = take_random_rows(m, stride, n), *shift = shifted ? take_values(n) : NULL;
    float *dirs = k_count > 0 ? take_random_rows(k_count, dir_stride, n) : NULL;
    float *c = k_count > 0 ? take_values(m * k_count) : NULL;
    double *sums = take(m * sizeof *sums);
    for (size_t i = 0; i < m; i++) sums[i] = (double)i;
    k->residual(rows, stride, m, n, shift, dirs, dir_stride, k_count, c, sums);
    for (size_t i = 0; i < m; i++) {
        double sum = 0, error = 0;
        for (size_t t = 0; t < n; t++) {
            double x = (double)rows[i * stride + t], size = fabs(x);
            if (shifted) x -= (double)shift[t], size += fabs((double)shift[t]);
            for (size_t j = 0; j < k_count; j++) {
                double term = (double)c[i * k_count + j] * (double)dirs[j * dir_stride + t];
                x -= term;
                size += fabs(term);
            }
            double e = (double)(2 * k_count + 1) * UNIT * size;
            sum += x * x;
            error += 2 * fabs(x) * e + e * e;
        }
        CHECK_NEAR(sums[i] - (double)i, sum, error + 130 * UNIT * sum + 1e-13 * (double)i);
    }
    free(sums), free(c), free(dirs), free(shift), free(rows);
}

static void test_sum_squares(const hm_kernels *k, size_t n)
{
    float *x = take_values(n);
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    CHECK_NEAR(k->sum_squares(x, n), sum, 130 * UNIT * sum);
    free(x);
}

static void test_find_nonfinite(const hm_kernels *k, size_t n)
{
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7f800001, 0xffc00000, 0x7fffffff};
    static const uint32_t good[] = {0x7f7fffff, 0xff7fffff, 0, 0x80000000, 1, 0x3f800000};
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = from_bits(good[i % 6]);
    CHECK(k->find_nonfinite(x, n) == n);
    size_t wrong = 0;
    for (size_t i = n; i-- > 0;) { /* those behind it are bad already: the first one counts */
        x[i] = from_bits(bad[i % 5]);
        wrong += k->find_nonfinite(x, n) != i;
    }
    CHECK(wrong == 0);
    free(x);
}

static void test_arithmetic(const hm_kernels *k)
{
    test_axpy_is_not_fused(k);
    test_combine_starts_from_zero(k);
    for (size_t n = 0; n <= 1024; n = n == 67 ? 1000 : n + 1) {
        test_axpy(k, n);
        test_sum_squares(k, n);
        test_find_nonfinite(k, n);
        test_combine(k, 8, 3, n);
        test_residual(k, 8, 2, n, true);
        test_gram(k, 8, n);
    }
    static const size_t heights[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 31, 64, 65};
    static const size_t lengths[] = {1, 8, 37, 1003, 1024};
    for (size_t i = 0; i < sizeof heights / sizeof heights[0]; i++) {
        for (size_t j = 0; j < sizeof lengths / sizeof lengths[0]; j++) {
            const size_t m = heights[i], n = lengths[j];
            test_gram(k, m, n);
            for (size_t few = 0; few < 6; few++) test_combine(k, m, few, n);
            for (size_t few = 0; few < 4; few++) test_residual(k, m, few, n, few % 2 == 0);
        }
    }
    test_combine(k, 9, 64, 131);
    test_combine(k, 0, 2, 40);
    test_sum_squares(k, 100003);
    test_gram(k, 5, 3001); /* longer than promised: still right, f64 takes over in time */
}

int main(void)
{
    const hm_kernels *const *all = hm_kernels_all();
    CHECK(all[0] == hm_kernels_best());
    CHECK_TEXT(hm_kernel_name(), all[0]->name);
    size_t count = 0;
    for (; all[count] != NULL; count++) {
        test_conversions(all[count]);
        test_arithmetic(all[count]);
    }
    CHECK(count >= 1);
    CHECK_TEXT(all[count - 1]->name, "portable");
    CHECK((count == 2) == hm_cpu_get().avx2);
    const char *wish = getenv("HM_CPU");
    if (wish != NULL && strcmp(wish, "portable") == 0) CHECK_TEXT(hm_kernel_name(), "portable");
    return check_report("kernels");
}
