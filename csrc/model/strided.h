/* Tensors in somebody else's memory that are written to: which bytes they may touch, and writing by their strides.  The
 * reading side is hm_source_gather. */
#ifndef HM_MODEL_STRIDED_H
#define HM_MODEL_STRIDED_H

#include "hypermerge.h"

/* Addresses [begin, end) from the lowest to the highest byte of a tensor; begin == end: it has none. */
typedef struct hm_extent {
    uintptr_t begin, end;
} hm_extent;

/* Fills elements and bytes from dtype and shape (at most HM_MAX_DIMS dimensions); false on overflow. */
bool hm_strided_measure(hm_tensor_info *tensor);
/* Of a measured tensor.  False when its strides lead out of the address space, so that no offset can be trusted. */
bool hm_strided_extent(const hm_tensor_info *tensor, hm_extent *out);
bool hm_extents_meet(hm_extent a, hm_extent b);
/* May two elements lie at one address?  True also for the few odd interleavings that do not in fact collide: what this
 * lets pass can be written in any order. */
bool hm_strided_meets_itself(const hm_tensor_info *tensor);
/* Writes elements [start, start + count), in row-major order, from `from` to where the strides say.  The tensor has an
 * extent.  Different ranges may be written by different threads. */
void hm_strided_scatter(const hm_tensor_info *tensor, uint64_t start, size_t count, const void *from);

#endif
