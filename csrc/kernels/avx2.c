/* The kernels for x86-64 with AVX2, FMA and F16C: eight lanes.  The target is set for the functions of this file,
 * after the system headers, so that the same compiler flags build everything and nothing else can pick up these
 * instructions. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/variants.h"

#if defined(HM_HAVE_AVX2_KERNELS)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define LANES 8
#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));
typedef int32_t vs __attribute__((vector_size(32)));

INLINE vu vf_bits(vf a) { return (vu)a; }
INLINE vf vf_from_bits(vu a) { return (vf)a; }
INLINE vu vu_greater(vu a, vu b) { return (vu)((vs)a > (vs)b); }
INLINE vu vu_if_nan(vf v, vu yes, vu no)
{
    __m256 is_nan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
    return (vu)_mm256_blendv_ps((__m256)no, (__m256)yes, is_nan);
}

INLINE bool vu_any(vu a) { return !_mm256_testz_si256((__m256i)a, (__m256i)a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }

/* gcc would fold the load into each instruction that uses it, and then the load ports are the limit: the empty asm
 * hides that the register came from memory. */
INLINE vf vf_load_once(const float *p)
{
    __m256 v = _mm256_loadu_ps(p);
    __asm__("" : "+x"(v));
    return (vf)v;
}

INLINE double vf_sum(vf a)
{
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a));
    __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1));
    __m256d four = _mm256_add_pd(low, high);
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

INLINE vu vu_load_u8(const unsigned char *p)
{
    return (vu)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

INLINE vu vu_load_u16(const unsigned char *p)
{
    return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* The packing instructions saturate, which does nothing to values that fit. */
INLINE __m128i pack_u16(vu a)
{
    __m256i v = (__m256i)a;
    return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

INLINE void vu_store_u8(unsigned char *p, vu a)
{
    __m128i words = pack_u16(a);
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(words, words));
}

INLINE void vu_store_u16(unsigned char *p, vu a) { _mm_storeu_si128((__m128i *)(void *)p, pack_u16(a)); }

INLINE vf vf_load_f64(const unsigned char *p)
{
    const double *d = (const double *)(const void *)p;
    return (vf)_mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(d + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(d)));
}

INLINE void vf_store_f64(unsigned char *p, vf a)
{
    double *d = (double *)(void *)p;
    _mm256_storeu_pd(d, _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a)));
    _mm256_storeu_pd(d + 4, _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1)));
}

INLINE vf vf_load_f16(const unsigned char *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE void vf_store_f16(unsigned char *p, vf a)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT));
}

#define NATIVE_F16
#define KERNEL_TABLE hm_kernels_avx2
#define KERNEL_NAME "avx2"
#include "kernels/template.h"
#include "kernels/stream_stores.h"
#include "kernels/blend_template.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
