/* Metadata documents (the `hypermerge` key, recipes) read with cJSON, behind checks that cJSON alone does not make: at
 * most 4 MiB, valid UTF-8, no text after the end, no duplicate names in one object, no \u0000, numbers finite, at most
 * 16 levels.
 *
 * cJSON allocates by itself: at most about 40 bytes for each byte of text, so 160 MiB in all, and HM_ERR_MEMORY where there
 * are not so many.  It could be given our allocator (cJSON_InitHooks), but that is one setting for the whole process, in
 * which others may use the same library, and blocks of theirs would be freed by us: the core leaves it alone. */
#ifndef HM_IO_DOCUMENT_H
#define HM_IO_DOCUMENT_H

#include <cjson/cJSON.h>

#include "hypermerge.h"

#define HM_DOCUMENT_CAP ((size_t)4 << 20)

/* A tree to be freed with cJSON_Delete.  `what` names the document in messages ("hypermerge metadata"), `file` may be
 * NULL.  HM_ERR_FORMAT, HM_ERR_MEMORY. */
hm_status hm_document_parse(cJSON **out, const char *text, const char *file, const char *what, hm_error *err);
/* Members by exact name; NULL when absent, of another type, or when `object` is NULL or no object.  Linear in the
 * number of members. */
const cJSON *hm_document_object(const cJSON *object, const char *name);
const cJSON *hm_document_array(const cJSON *object, const char *name);
const char *hm_document_string(const cJSON *object, const char *name);
/* A finite number into *out. */
bool hm_document_number(const cJSON *object, const char *name, double *out);
/* An array of exactly `count` finite numbers into out[], which may be partly written on failure. */
bool hm_document_numbers(const cJSON *object, const char *name, double *out, size_t count);

#endif
