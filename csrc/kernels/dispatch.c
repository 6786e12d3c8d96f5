/* Which kernels run here. */
#include "kernels/kernels.h"

#include "base/cpu.h"
#include "kernels/variants.h"

/* Best first; a machine runs a suffix of this list. */
static const hm_kernels *const variants[] = {
#if defined(HM_HAVE_AVX2_KERNELS)
    &hm_kernels_avx2,
#endif
    &hm_kernels_portable,
    NULL,
};

const hm_kernels *const *hm_kernels_all(void)
{
#if defined(HM_HAVE_AVX2_KERNELS)
    if (!hm_cpu_get().avx2) return variants + 1;
#endif
    return variants;
}

const hm_kernels *hm_kernels_best(void)
{
    return hm_kernels_all()[0];
}

const char *hm_kernel_name(void)
{
    return hm_kernels_best()->name;
}
