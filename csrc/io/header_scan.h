/* The strict scanner of a safetensors header.
 *
 * A general JSON parser cannot enforce the format: it takes 2^53 + 1 for 2^53, 01 for 1, the same name twice, NUL
 * inside a name and text after the end, and it builds a tree forty times the size of the text.  This one walks the
 * bytes once, accepts exactly what the format allows, and keeps nothing but a table.
 *
 * Rules, all checked before a byte of data is read
 *   file     8 bytes little-endian header length N; N ≤ 32 MiB; 8 + N ≤ file size
 *   text     valid UTF-8 (no overlong forms, no surrogates); begins with '{'; one object; after it only spaces (0x20)
 *   JSON     RFC 8259; nesting at most 4; no duplicate names within an object; no control bytes in strings;
 *            \u0000 refused in tensor names and metadata keys
 *   tensor   exactly the members dtype, shape, data_offsets, in any order; dtype one we know (the refusal names it);
 *            at most HM_MAX_DIMS dimensions; integers without sign, fraction, exponent or leading zero, < 2^63
 *   extents  begin ≤ end; shape product × dtype size = end − begin (checked arithmetic, in which a 0 hides no overflow
 *            of the other dimensions); sorted by begin they cover the data area without overlap or hole; the last one
 *            ends at the end of the file
 *   __metadata__   at most once; an object of strings
 */
#ifndef HM_IO_HEADER_SCAN_H
#define HM_IO_HEADER_SCAN_H

#include "hypermerge.h"

#define HM_HEADER_CAP ((uint64_t)32 << 20)

typedef struct hm_header {
    hm_tensor_info *tensors; /* in file order (by begin, end, name); `offset` counted from the start of the file */
    size_t count;
    char **meta_keys, **meta_values; /* unescaped, in the order of the file; a value that holds \u0000 ends there */
    size_t meta_count;
    char *names; /* one block that holds all names, keys and values */
} hm_header;

/* Reads the header length N out of the first `prefix_bytes` of a file (8, or fewer of a shorter file) and checks it
 * against the rules above, so that the text can be allocated and read.  HM_ERR_FORMAT. */
hm_status hm_header_length(uint64_t *text_bytes, const unsigned char *prefix, size_t prefix_bytes, uint64_t file_bytes,
                           const char *file, hm_error *err);

/* `text` is the header without the 8 length bytes; it is not kept.  `file` is for messages.  The caller clears *out
 * after success.  HM_ERR_FORMAT, HM_ERR_MEMORY. */
hm_status hm_header_scan(hm_header *out, const char *text, uint64_t text_bytes, uint64_t file_bytes, const char *file,
                         hm_error *err);
void hm_header_clear(hm_header *header);

#endif
