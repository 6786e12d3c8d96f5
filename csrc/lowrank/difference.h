/* The differences that LoRAs are made of: a blend of a hyper-model's directions, or one checkpoint minus another, as a list
 * of tensors and the rows and coefficients of a dense pass. */
#ifndef HM_LOWRANK_DIFFERENCE_H
#define HM_LOWRANK_DIFFERENCE_H

#include "lowrank/dense.h"
#include "solve/hyper.h"

typedef struct hm_difference {
    const char *family;           /* static text, or the hyper-model's */
    size_t count;
    const char **name;            /* [count] in the checkpoint; borrowed */
    const hm_tensor_info **like;  /* [count] shape only */
    hm_dense dense;               /* all but chosen, visit, user */
    /* owned */
    hm_stream_row *rows;
    uint64_t *elements;
    uint32_t *index;
    double *coefficients;
    hm_plan *plan;
    hm_hyper *hyper;
} hm_difference;

/* Σ_k at_k D_k; `at` has K multipliers.  Of a solved hyper-model the directions are put together from the inputs, in f32. */
hm_status hm_difference_of_blend(hm_difference *out, hm_hyper *hyper, const double *at, hm_error *err);
/* `to` − `from`, over the tensors that `selection` takes. */
hm_status hm_difference_of_pair(hm_difference *out, hm_source *from, hm_source *to, const hm_selection *selection,
                                hm_error *err);
void hm_difference_clear(hm_difference *difference);

#endif
