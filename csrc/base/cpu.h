/* What this CPU and this operating system can do together (CPUID says what the silicon has, XGETBV what the system
 * saves on a task switch; both are needed). */
#ifndef HM_BASE_CPU_H
#define HM_BASE_CPU_H

#include <stdbool.h>

typedef struct hm_cpu {
    bool avx2; /* AVX2, FMA and F16C, with the wide registers enabled by the system */
    bool sha;  /* SHA-NI with SSSE3 and SSE4.1 */
} hm_cpu;

/* Found once; the environment variable HM_CPU=portable switches everything off. */
hm_cpu hm_cpu_get(void);

#endif
