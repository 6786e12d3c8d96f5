/* What a merged checkpoint contains and where each tensor comes from: worked out before anything is read. */
#ifndef HM_APPLY_MERGE_LIST_H
#define HM_APPLY_MERGE_LIST_H

#include "solve/hyper.h"
#include "solve/stream.h"

/* How the blended tensors are put together. */
typedef enum hm_merge_way {
    HM_MERGE_STORED = 0, /* rows: base, base_low, D_1 … D_K */
    HM_MERGE_EXACT       /* rows: W_1 … W_M, base file */
} hm_merge_way;

typedef struct hm_merge_tensor {
    hm_tensor_info like;  /* name and shape of what is written; dtype as it will be stored */
    const char *own;      /* the hyper-model's name for it: a carrier may spell it otherwise */
    bool blended;
    hm_source *copy_from; /* not blended */
    uint32_t copy_index;
    const double *at;     /* [directions] multipliers of this tensor */
} hm_merge_tensor;

typedef struct hm_merge_list {
    hm_merge_way way;
    size_t count, directions;
    hm_merge_tensor *tensors;    /* in file order */
    double *multipliers;         /* [count × directions] */
    size_t blend_rows, row_count;
    hm_stream_row *rows;         /* blend rows, then one for each source of copies */
    uint32_t *index;             /* [count × row_count] */
    uint64_t *elements;
} hm_merge_list;

hm_status hm_merge_list_make(hm_merge_list *out, hm_hyper *hyper, const hm_merge_options *options, hm_error *err);
void hm_merge_list_clear(hm_merge_list *list);

#endif
