/* Whole tensors, one after the other, as dense f32 matrices: what a decomposition needs and the streaming pass, which cuts
 * tensors into pieces, does not give. */
#ifndef HM_LOWRANK_DENSE_H
#define HM_LOWRANK_DENSE_H

#include "solve/stream.h"

#define HM_DENSE_NO_REFERENCE SIZE_MAX

/* Tensor t is x = Σ_r c_r · (row_r − reference): each product and each sum rounded to f32.  Absent rows count as 0; the
 * reference, one of the rows, takes no part of its own.  Several such combinations of the same rows come from one read. */
typedef struct hm_dense {
    size_t row_count, tensor_count;
    const hm_stream_row *rows;    /* as for a stream; of LoRAs (is_lora) the reference is not subtracted */
    const uint64_t *elements;     /* [tensor_count] */
    const double *coefficients;   /* c of row r for tensor t at [t · coefficient_stride + r]; stride 0: one set for all */
    size_t coefficient_stride;
    size_t outputs;               /* combinations; 0 counts as 1.  Number o takes its c from o · row_count further on */
    size_t reference;             /* a row, or HM_DENSE_NO_REFERENCE */
    const size_t *chosen;         /* [chosen_count] the tensors to visit, ascending; NULL = all */
    size_t chosen_count;
    /* Called once per tensor, from several threads, in no fixed order.  `numbers` may be written over; where there are
     * several combinations they lie one behind the other. */
    hm_status (*visit)(void *user, size_t tensor, float *numbers, hm_error *err);
    void *user;
} hm_dense;

/* Reads as many tensors at a time as half the budget holds (at least one) and has them visited, side by side.  Progress
 * counts every byte twice: when it is read and when it has been visited. */
hm_status hm_dense_run(const hm_dense *dense, hm_job *job, hm_error *err);

#endif
