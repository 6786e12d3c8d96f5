/* Element types by name.  hm_dtype_name and its companions are public: hypermerge.h. */
#ifndef HM_IO_DTYPE_H
#define HM_IO_DTYPE_H

#include "hypermerge.h"

/* The type that safetensors calls `name` ("BF16"), into *out; false when there is none that we read. */
bool hm_dtype_find(const char *name, hm_dtype *out);
/* Does safetensors know this name, though we cannot compute with it (packed 4 and 6 bit types, complex numbers …)? */
bool hm_dtype_is_foreign(const char *name);
/* The place of a type in the safetensors library's own order, in which wider elements come first and types of one width
 * have a fixed order too.  A smaller number is written earlier. */
int hm_dtype_write_rank(hm_dtype dtype);

#endif
