/* The inside of a source, for the rooms that read from it. */
#ifndef HM_MODEL_SOURCE_H
#define HM_MODEL_SOURCE_H

#include <stdatomic.h>

#include "base/os.h"
#include "io/header_scan.h"

#define HM_ABSENT UINT32_MAX
#define HM_OWN_PREFIX "hypermerge." /* of the directions and corrections in a hyper-model */

typedef struct hm_product hm_product; /* model/product.h */
typedef struct hm_factor_pair hm_factor_pair;

struct hm_source {
    atomic_uint references;
    char *name;
    char *label;            /* files: the path as it was given (links not resolved); else the name */
    char *path;             /* absolute, links resolved; NULL for borrowed tensors */
    hm_header header;       /* its tensors as they are offered: a pair of factors is one */
    uint32_t *by_name;      /* permutation of header.tensors, sorted by name */
    hm_product *products;   /* ascending by tensor */
    size_t product_count;
    hm_factor_pair *pairs;  /* what the products are made of */
    hm_tensor_info *stored; /* the tensors as they lie in the file, factors one by one; NULL without products */
    size_t stored_count;
    char *product_names;
    hm_source *view_of;     /* another face of this file, which it keeps: hm_source_as_stored owns nothing but by_name, a LoRA
                             * (is_lora) its offered tensors, products and names too */
    bool is_lora;           /* its tensors are differences from a base, and those that it lacks are 0: lowrank/lora_read.h */
    const char *lora_family; /* of that base, "lora" where none was given; static text */
    size_t lora_lacking;     /* layers that the base lacks and that were left out (--common) */
    const char *lora_first_lacking; /* the name of the first one's first tensor */
    hm_file file;           /* files only */
    hm_file_stamp stamp;    /* when opened */
    char header_hash[65];   /* sha256 of the 8 length bytes and the header; "" for borrowed tensors */
    char sha256[65];        /* "" = unknown */
};

/* What messages call it: the path, or the name of borrowed tensors. */
const char *hm_source_label(const hm_source *source);
/* The same without folders, for tables and lists: "a.safetensors". */
const char *hm_source_short_label(const hm_source *source);
/* Index in header.tensors, or HM_ABSENT. */
uint32_t hm_source_index(const hm_source *source, const char *name);
/* Index of the first tensor (by name) whose name begins with `prefix`, or HM_ABSENT.  O(log n). */
uint32_t hm_source_prefix_index(const hm_source *source, const char *prefix);
/* Fills by_name anew.  A name that stands there twice: HM_ERR_ARGUMENT (a file's header was checked before). */
hm_status hm_source_index_names(hm_source *source, hm_error *err);
/* Elements [start, start + count) as they are stored, in row-major order.  Not for tensors that have a rank. */
hm_status hm_source_read(const hm_source *source, const hm_tensor_info *tensor, uint64_t start, size_t count, void *out,
                         hm_error *err);
/* Compares the file with what it was when opened: HM_ERR_IO "… changed while being read; run again" otherwise. */
hm_status hm_source_check_unchanged(const hm_source *source, hm_error *err);
/* Copies elements [start, start + count) of a borrowed tensor in row-major order, following its strides. */
void hm_source_gather(const hm_tensor_info *tensor, uint64_t start, size_t count, void *out);
/* Does row-major order walk through memory without a gap?  Always so for tensors of files. */
bool hm_tensor_is_contiguous(const hm_tensor_info *tensor);

#endif
