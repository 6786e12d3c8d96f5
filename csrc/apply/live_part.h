/* Some targets of a live binding: for hosts that move tensors between the CPU and other devices while they are bound. */
#ifndef HM_APPLY_LIVE_PART_H
#define HM_APPLY_LIVE_PART_H

#include "hypermerge.h"

/* A binding of the same targets as `live` that moves only those which have memory: targets[i].data is not NULL.  The
 * others are left as they are, but their names still count for globs.  Shares everything with `live`, which must outlive
 * it.  HM_ERR_ARGUMENT when `count` is not that of `live`. */
hm_status hm_live_part(hm_live **out, const hm_live *live, const hm_tensor_info *targets, size_t count, hm_error *err);
void hm_live_part_close(hm_live *part); /* not hm_live_close: most of it belongs to `live` */

#endif
