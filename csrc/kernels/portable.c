/* The kernels for every machine: four lanes of GNU C vectors, which are what SSE2 and NEON hold, or plain C (which a
 * compiler may vectorise by itself).  Never fused: baseline x86-64 has no such instruction. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/variants.h"

#if (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 9)) && !defined(HM_PLAIN_C_KERNELS)

#define LANES 4
#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));
typedef int32_t vs __attribute__((vector_size(16)));
typedef uint64_t vu64 __attribute__((vector_size(16)));
typedef uint16_t vu16 __attribute__((vector_size(8)));
typedef uint8_t vu8 __attribute__((vector_size(4)));

INLINE vu vf_bits(vf a) { return (vu)a; }
INLINE vf vf_from_bits(vu a) { return (vf)a; }
INLINE vu vu_greater(vu a, vu b) { return (vu)((vs)a > (vs)b); }

INLINE bool vu_any(vu a)
{
    vu64 halves = (vu64)a;
    return (halves[0] | halves[1]) != 0;
}

INLINE double vf_sum(vf a)
{
    return ((double)a[0] + (double)a[1]) + ((double)a[2] + (double)a[3]);
}

INLINE vu vu_load_u8(const unsigned char *p)
{
    vu8 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vu);
}

INLINE vu vu_load_u16(const unsigned char *p)
{
    vu16 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, vu);
}

INLINE void vu_store_u8(unsigned char *p, vu a)
{
    vu8 v = __builtin_convertvector(a, vu8);
    memcpy(p, &v, sizeof v);
}

INLINE void vu_store_u16(unsigned char *p, vu a)
{
    vu16 v = __builtin_convertvector(a, vu16);
    memcpy(p, &v, sizeof v);
}

INLINE vf vf_load_f64(const unsigned char *p)
{
    double v[LANES];
    memcpy(v, p, sizeof v);
    return (vf){(float)v[0], (float)v[1], (float)v[2], (float)v[3]};
}

INLINE void vf_store_f64(unsigned char *p, vf a)
{
    const double v[LANES] = {(double)a[0], (double)a[1], (double)a[2], (double)a[3]};
    memcpy(p, v, sizeof v);
}

#else

#define LANES 1
#define INLINE static inline

typedef float vf;
typedef uint32_t vu;

INLINE vu vf_bits(vf a)
{
    vu b;
    memcpy(&b, &a, sizeof b);
    return b;
}

INLINE vf vf_from_bits(vu a)
{
    vf b;
    memcpy(&b, &a, sizeof b);
    return b;
}

INLINE vu vu_greater(vu a, vu b) { return a > b ? UINT32_MAX : 0; }
INLINE bool vu_any(vu a) { return a != 0; }
INLINE double vf_sum(vf a) { return (double)a; }
INLINE vu vu_load_u8(const unsigned char *p) { return *p; }
INLINE void vu_store_u8(unsigned char *p, vu a) { *p = (unsigned char)a; }

INLINE vu vu_load_u16(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void vu_store_u16(unsigned char *p, vu a)
{
    const uint16_t v = (uint16_t)a;
    memcpy(p, &v, sizeof v);
}

INLINE vf vf_load_f64(const unsigned char *p)
{
    double v;
    memcpy(&v, p, sizeof v);
    return (float)v;
}

INLINE void vf_store_f64(unsigned char *p, vf a)
{
    const double v = (double)a;
    memcpy(p, &v, sizeof v);
}

#endif

INLINE vu vu_if_nan(vf v, vu yes, vu no)
{
    vu is_nan = vu_greater(vf_bits(v) & 0x7fffffffu, (vu){0} + 0x7f800000u);
    return (is_nan & yes) | (~is_nan & no);
}

INLINE vf vf_load_once(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE vf vf_fma(vf a, vf b, vf c) { return c + a * b; }
INLINE vf vf_fnma(vf a, vf b, vf c) { return c - a * b; }

#define KERNEL_TABLE hm_kernels_portable
#define KERNEL_NAME "portable"
#include "kernels/template.h"
#include "kernels/stream_stores.h"
#include "kernels/blend_template.h"
