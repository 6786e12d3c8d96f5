/* The tables that dispatch.c chooses from, one per inclusion of template.h. */
#ifndef HM_KERNELS_VARIANTS_H
#define HM_KERNELS_VARIANTS_H

#include "kernels/kernels.h"

extern const hm_kernels hm_kernels_portable;

#if defined(__x86_64__) && defined(__GNUC__)
#define HM_HAVE_AVX2_KERNELS 1
extern const hm_kernels hm_kernels_avx2;
#endif

#endif
