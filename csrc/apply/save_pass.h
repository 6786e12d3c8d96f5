/* The writing pass of a hyper-model: every input is read once more, W̃ and the directions are put together, rounded and
 * written, and what is left of each model beside what is stored is measured. */
#ifndef HM_APPLY_SAVE_PASS_H
#define HM_APPLY_SAVE_PASS_H

#include "apply/layout.h"
#include "apply/output.h"
#include "apply/recipe.h"
#include "kernels/kernels.h"
#include "solve/stream.h"

struct hm_save_pass {
    hm_hyper *hyper;
    const hm_layout *layout;
    const hm_kernels *kernels;
    hm_output *base_out, *extra_out; /* the same file unless split */
    size_t extra_from;               /* index in extra_out of layout->extra[0] */
    size_t members, directions, row_count;
    size_t mixed;                    /* directions that are put together here from the inputs: all, or none if hyper-LoRAs */
    hm_stream_row *rows;             /* members, base file, directions that are hyper-LoRAs, the sources of copied tensors */
    uint32_t *index;                 /* [layout->count × row_count] */
    uint64_t *elements;
    float *combination;              /* [(1 + K) × M]: weights of the mean, then of each direction, over the differences */
    float *multipliers;              /* [M × K] */
    double *left;                    /* [M]: Σ of squared residuals */
};

/* Makes the tables and runs.  `pass` has all that stands before `rows`, with both outputs begun; `left` is its result. */
hm_status hm_save_run(struct hm_save_pass *pass, hm_job *job, hm_error *err);
void hm_save_release(struct hm_save_pass *pass); /* the tables */

#endif
