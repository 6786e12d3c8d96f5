#include "model/spelling.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "model/names.h"

#define NAME_ROOM 1024
/* What a canonical name may be longer than the name itself. */
#define LONGEST_PREFIX 64u

static int by_canonical(const void *a, const void *b)
{
    const hm_spelling_entry *first = a, *second = b;
    int order = strcmp(first->canonical, second->canonical);
    return order != 0 ? order : (first->index > second->index) - (first->index < second->index);
}

hm_status hm_spelling_make(hm_spelling *out, const hm_source *source, hm_error *err)
{
    size_t room = 0;
    for (size_t i = 0; i < source->header.count; i++) room += strlen(source->header.tensors[i].name) + LONGEST_PREFIX;
    *out = (hm_spelling){.names = hm_alloc(room, 1), .entries = hm_alloc(source->header.count, sizeof *out->entries)};
    if (out->names == NULL || out->entries == NULL) {
        hm_spelling_clear(out);
        return hm_fail_memory(err, "a list of names");
    }
    char *at = out->names;
    for (uint32_t i = 0; i < source->header.count; i++) {
        const char *name = source->header.tensors[i].name;
        size_t capacity = strlen(name) + LONGEST_PREFIX;
        bool fits = hm_name_canonical(name, at, capacity);
        out->entries[out->count++] = (hm_spelling_entry){.canonical = fits ? at : name, .index = i};
        at += capacity;
    }
    qsort(out->entries, out->count, sizeof *out->entries, by_canonical);
    return HM_OK;
}

static int find_canonical(const void *key, const void *entry)
{
    return strcmp(key, ((const hm_spelling_entry *)entry)->canonical);
}

uint32_t hm_spelling_find(const hm_spelling *spelling, const char *name)
{
    char canonical[NAME_ROOM];
    const char *key = hm_name_canonical(name, canonical, sizeof canonical) ? canonical : name;
    const hm_spelling_entry *found =
        spelling->count > 0 ? bsearch(key, spelling->entries, spelling->count, sizeof *found, find_canonical) : NULL;
    return found != NULL ? found->index : HM_ABSENT;
}

void hm_spelling_clear(hm_spelling *spelling)
{
    hm_release(spelling->names);
    hm_release(spelling->entries);
    *spelling = (hm_spelling){0};
}
