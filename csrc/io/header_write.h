/* The text of a safetensors header: `__metadata__` first, then the tensors in the given order with consecutive extents,
 * padded with spaces so that the data area begins at a multiple of 8. */
#ifndef HM_IO_HEADER_WRITE_H
#define HM_IO_HEADER_WRITE_H

#include "base/memory.h"
#include "hypermerge.h"

typedef struct hm_meta {
    const char *key, *value;
} hm_meta;

/* Appends the whole header including its 8 length bytes.  `tensors[i].name, dtype, ndim, shape, bytes` are read;
 * extents follow one another from 0.  `total_bytes` ≠ 0 asks for exactly that many bytes in all (a multiple of 8, from
 * an earlier call with longer values): the text is padded to it.  HM_ERR_ARGUMENT when it does not fit or when it is
 * more than HM_HEADER_CAP; HM_ERR_MEMORY.  On failure `out` keeps what it held. */
hm_status hm_header_write(hm_text *out, const hm_tensor_info *tensors, size_t count, const hm_meta *meta,
                          size_t meta_count, uint64_t total_bytes, hm_error *err);

/* Appends a JSON string literal, quotes included: `"`, `\` and control characters escaped, bytes that are no UTF-8
 * (file names may hold any) replaced by U+FFFD, the rest as it is. */
void hm_json_string(hm_text *out, const char *value);
/* Appends the shortest of %.15g … %.17g that reads back as `value`; "null" when it is not finite.  Independent of the
 * locale. */
void hm_json_number(hm_text *out, double value);
/* Appends "[a,b,…]" of such numbers. */
void hm_json_numbers(hm_text *out, const double *values, size_t count);
/* The usual order of tensors: element size descending, within one size the library's order of types (F32 before I32,
 * BF16 before F16), then name: as the safetensors library writes, so that hashes over the data area agree.  For qsort
 * on hm_tensor_info. */
int hm_tensor_usual_order(const void *a, const void *b);

#endif
