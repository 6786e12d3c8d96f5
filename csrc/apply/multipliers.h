/* The multipliers of each tensor, from those of the whole blend and those of its blocks. */
#ifndef HM_APPLY_MULTIPLIERS_H
#define HM_APPLY_MULTIPLIERS_H

#include "hypermerge.h"

/* HM_ERR_ARGUMENT for a value that is not finite or that no blend can mean. */
hm_status hm_multipliers_check(const double *at, size_t count, hm_error *err);

/* out[i · directions + k] = multiplier k of tensor i.  Missing values of `at` are 0; of the blocks whose glob matches
 * names[i] the last one wins.  names[i] NULL: no glob can match.  HM_ERR_ARGUMENT for too many values and for a glob
 * that matches no name. */
hm_status hm_multipliers_fill(double *out, const char *const *names, size_t count, size_t directions, const double *at,
                              size_t at_count, const hm_block_value *blocks, size_t block_count, hm_error *err);

#endif
