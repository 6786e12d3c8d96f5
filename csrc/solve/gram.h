/* The measuring pass: one Gram matrix per tensor.
 *   G_mn(t) = ⟨X_m(t) − R(t), X_n(t) − R(t)⟩      for the gram rows m, n
 * The reference R is subtracted in f32 before anything is multiplied (weights of one family agree in their leading digits;
 * multiplied first, those digits would cancel afterwards), products are summed in f32 over HM_KERNEL_COLUMNS columns and in
 * f64 from there on.  Where all rows of a tensor are products with nothing subtracted, they are multiplied by their factors
 * instead: lowrank/lora_gram.h. */
#ifndef HM_SOLVE_GRAM_H
#define HM_SOLVE_GRAM_H

#include "solve/stream.h"

#define HM_GRAM_NO_REFERENCE SIZE_MAX

typedef struct hm_gram_spec {
    size_t row_count;           /* all rows of the pass */
    const hm_stream_row *rows;  /* the first gram_rows of them span the matrix; the others can only be references */
    size_t gram_rows;           /* m ≤ 2 · HM_MAX_MEMBERS */
    size_t reference;           /* row that is subtracted (may be one of the gram rows), or HM_GRAM_NO_REFERENCE */
    size_t reference_low;       /* row added to it (base_low), or HM_GRAM_NO_REFERENCE */
    const bool *plain;          /* [gram_rows]: true = nothing is subtracted from this row (a direction); NULL = none; so with
                                 * LoRAs (is_lora), whatever stands here */
    size_t tensor_count;
    const uint64_t *elements;
    const char *const *names;   /* [tensor_count], for messages */
    bool allow_nonfinite;       /* else NaN or Inf is HM_ERR_MISMATCH with file, tensor and index */
    /* Where not NULL, the squared rounding error of the mean Σ_m mean_weights[m] X_m stored as mean_dtypes[t] is
     * measured as well (reference must be a gram row; mean_weights sum to 1). */
    const double *mean_weights;
    const hm_dtype *mean_dtypes; /* [tensor_count] */
    bool measure_reference;      /* also estimate the squared length of the reference itself */
} hm_gram_spec;

typedef struct hm_gram_result {
    double *grams;     /* [tensor_count × m (m+1)/2], HM_TRIANGLE order */
    double *rounding;  /* [tensor_count], 0 where not asked for */
    double *reference; /* [tensor_count]: ⟨R, R⟩, from the first columns of each cut; 0 where not asked for */
    bool *nonfinite;   /* [tensor_count]: holds NaN or Inf; its Gram is 0 */
} hm_gram_result;

hm_status hm_gram_measure(hm_gram_result *out, const hm_gram_spec *spec, hm_job *job, hm_error *err);
void hm_gram_clear(hm_gram_result *result);
/* Sum of the packed triangles of the tensors for which pick[t] == which (all when pick is NULL), as a full m × m matrix. */
void hm_gram_sum(const hm_gram_result *result, size_t tensor_count, size_t m, const unsigned *pick, unsigned which,
                 double *full);

#endif
