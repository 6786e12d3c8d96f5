#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

/* Bits of CPUID leaves 1 and 7 (Intel SDM vol. 2, CPUID). */
#define LEAF1_ECX_SSSE3 (1u << 9)
#define LEAF1_ECX_FMA (1u << 12)
#define LEAF1_ECX_SSE41 (1u << 19)
#define LEAF1_ECX_OSXSAVE (1u << 27)
#define LEAF1_ECX_AVX (1u << 28)
#define LEAF1_ECX_F16C (1u << 29)
#define LEAF7_EBX_AVX2 (1u << 5)
#define LEAF7_EBX_SHA (1u << 29)
/* XCR0: the system saves the xmm and the ymm halves. */
#define XCR0_SSE_AVX 6u

/* Written out because the compiler's intrinsic wants a target attribute on its caller. */
static unsigned read_xcr0(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
}

static bool all(unsigned value, unsigned bits)
{
    return (value & bits) == bits;
}

static hm_cpu detect(void)
{
    hm_cpu cpu = {false, false};
    unsigned a, b, c, d, a7, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return cpu;
    cpu.avx2 = all(c, LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX | LEAF1_ECX_FMA | LEAF1_ECX_F16C) && all(b7, LEAF7_EBX_AVX2) &&
               all(read_xcr0(), XCR0_SSE_AVX);
    cpu.sha = all(c, LEAF1_ECX_SSSE3 | LEAF1_ECX_SSE41) && all(b7, LEAF7_EBX_SHA);
    return cpu;
}

#else

static hm_cpu detect(void)
{
    return (hm_cpu){false, false};
}

#endif

enum { KNOWN = 1, AVX2 = 2, SHA = 4 };

/* Threads that come here together find the same answer, so storing it twice does no harm, and nothing else hangs on it:
 * relaxed order is enough. */
static atomic_uint found;

hm_cpu hm_cpu_get(void)
{
    unsigned flags = atomic_load_explicit(&found, memory_order_relaxed);
    if (flags == 0) {
        const char *wish = getenv("HM_CPU");
        hm_cpu cpu = {false, false};
        if (wish == NULL || strcmp(wish, "portable") != 0) cpu = detect();
        flags = KNOWN | (cpu.avx2 ? AVX2 : 0u) | (cpu.sha ? SHA : 0u);
        atomic_store_explicit(&found, flags, memory_order_relaxed);
    }
    return (hm_cpu){.avx2 = (flags & AVX2) != 0, .sha = (flags & SHA) != 0};
}
