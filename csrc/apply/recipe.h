/* The metadata that other programs look for in what we write: modelspec.*, sd_merge_recipe, sd_merge_models, format. */
#ifndef HM_APPLY_RECIPE_H
#define HM_APPLY_RECIPE_H

#include "io/header_write.h"
#include "solve/hyper.h"

/* Stands for a hash that is not known yet: as long as the real one. */
#define HM_HASH_PLACEHOLDER "0000000000000000000000000000000000000000000000000000000000000000"
/* As long as a number in JSON can get. */
#define HM_NUMBER_PLACEHOLDER (-1.2345678901234567e-100)

#define HM_META_MAX 16

/* Metadata entries; values are owned. */
typedef struct hm_meta_list {
    hm_meta entries[HM_META_MAX];
    char *owned[HM_META_MAX];
    size_t count;
    bool failed;
} hm_meta_list;

void hm_meta_add(hm_meta_list *list, const char *key, const char *value);
void hm_meta_clear(hm_meta_list *list);

/* format, modelspec.* (for families that have a name there) and sd_merge_models.  `title`: what the file is called in lists;
 * `data_hash`: sha256 of the data area, NULL = not known, left out. */
void hm_meta_add_standard(hm_meta_list *list, const hm_hyper *hyper, const char *title, const char *data_hash);

/* All metadata of a hyper-model file, the document (unless it is a split-off base) with residual_stored[M]: save.c. */
hm_status hm_hyper_meta(hm_meta_list *meta, const hm_hyper *hyper, const char *path, const double *residual_stored,
                        const char *data_hash, bool with_document, hm_error *err);

/* modelspec resolution of a family: what it was trained at. */
const char *hm_family_resolution(const char *family);

/* File name of a path without folder and without .safetensors, as title; owned by the caller, NULL when out of memory. */
char *hm_title_of(const char *path);

#endif
