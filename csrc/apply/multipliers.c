#include "apply/multipliers.h"

#include <math.h>

#include "base/error.h"
#include "model/glob.h"

hm_status hm_multipliers_check(const double *at, size_t count, hm_error *err)
{
    for (size_t k = 0; k < count; k++)
        if (!isfinite(at[k]) || fabs(at[k]) > 1e6)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                           "multiplier %zu is %g; it must be a number of reasonable size", k + 1, at[k]);
    return HM_OK;
}

hm_status hm_multipliers_fill(double *out, const char *const *names, size_t count, size_t directions, const double *at,
                              size_t at_count, const hm_block_value *blocks, size_t block_count, hm_error *err)
{
    if (at_count > directions)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                       "%zu multipliers were given, but the hyper-model has %zu direction%s", at_count, directions,
                       directions == 1 ? "" : "s");
    HM_TRY(hm_multipliers_check(at, at_count, err));
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < directions; k++) out[i * directions + k] = k < at_count ? at[k] : 0;
    for (size_t b = 0; b < block_count; b++) {
        const hm_block_value *block = &blocks[b];
        bool matched = false;
        HM_TRY(hm_multipliers_check(block->at, directions, err));
        for (size_t i = 0; i < count; i++) {
            if (names[i] == NULL || !hm_glob_match(block->glob, names[i])) continue;
            matched = true;
            for (size_t k = 0; k < directions; k++) out[i * directions + k] = block->at[k];
        }
        if (!matched)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "no merged tensor matches the glob '%s'", block->glob);
    }
    return HM_OK;
}
