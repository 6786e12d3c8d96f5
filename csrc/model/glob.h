/* Python's fnmatch.fnmatchcase on tensor names: `*`, `?`, `[abc]`, `[a-z]`, `[!…]`; everything else literal.
 * Characters are those of UTF-8.  Time is at most the product of the two lengths, whatever the glob. */
#ifndef HM_MODEL_GLOB_H
#define HM_MODEL_GLOB_H

#include <stdbool.h>

bool hm_glob_match(const char *glob, const char *name);

#endif
