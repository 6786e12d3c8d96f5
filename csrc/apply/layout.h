/* What a saved hyper-model contains: for every tensor, where its base value, its base_low and its K directions go. */
#ifndef HM_APPLY_LAYOUT_H
#define HM_APPLY_LAYOUT_H

#include "apply/output.h"
#include "solve/hyper.h"

#define HM_NOWHERE UINT32_MAX

/* One tensor of the writing pass. */
typedef struct hm_layout_tensor {
    size_t plan_index;
    const hm_tensor_info *like;
    hm_dtype dtype;       /* of the base value */
    hm_dtype fine_dtype;  /* of base_low and the directions */
    bool merged, moves;
    uint32_t base_at;      /* index in `base`, or HM_NOWHERE */
    uint32_t low_at;       /* index in `extra` */
    uint32_t direction_at; /* index in `order` of direction 1; direction k is k − 1 further */
    size_t part_at;        /* of a hyper-LoRA: where its parts begin in hyper->loras->parts */
} hm_layout_tensor;

typedef struct hm_layout {
    size_t count;
    hm_layout_tensor *tensors; /* in the order of the pass */
    size_t directions;
    bool with_low;
    hm_tensor_info *base;      /* the W̃ area, in file order */
    size_t base_count;
    hm_tensor_info *extra;     /* pad, base_low, directions, in file order */
    size_t extra_count;
    uint32_t *order;           /* [count × directions]: where in `extra` a direction lies, or its first factor */
    uint32_t *down_order;      /* [count × directions]: the second factor, or HM_NOWHERE */
    char *names;               /* block of the names of `extra`, but for those of hyper-LoRAs */
} hm_layout;

hm_status hm_layout_make(hm_layout *out, const hm_hyper *hyper, bool with_low, bool split, hm_error *err);
void hm_layout_clear(hm_layout *layout);

#endif
