/* Finding a tensor by any spelling of its name: with or without prefix, old or new text encoder (hm_name_canonical). */
#ifndef HM_MODEL_SPELLING_H
#define HM_MODEL_SPELLING_H

#include "model/source.h"

typedef struct hm_spelling_entry {
    const char *canonical;
    uint32_t index;
} hm_spelling_entry;

typedef struct hm_spelling {
    char *names;
    hm_spelling_entry *entries; /* sorted by canonical name */
    size_t count;
} hm_spelling;

hm_status hm_spelling_make(hm_spelling *out, const hm_source *source, hm_error *err);
/* Index in the source of the tensor that `name`, in whatever spelling, stands for; HM_ABSENT when it has none. */
uint32_t hm_spelling_find(const hm_spelling *spelling, const char *name);
void hm_spelling_clear(hm_spelling *spelling);

#endif
