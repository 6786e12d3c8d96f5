/* Hyper-LoRAs: directions of limited rank whose multipliers all tensors share,
 *
 *   f(c, L) = Σ_m w_m ‖ΔW_m − Σ_k c_mk L_k‖² → min,   L_k of rank r_k in every tensor.
 *
 * The search begins with deflation: direction 1 alone, until its loss rests; then direction 2 in what that leaves, with
 * direction 1 and its multipliers as they are; and so on.  Then all of them together, from there.  The loss never rises in
 * this, so the end is no worse than that deflation; where the hidden directions overlap it is several percent better.
 *
 * Given the multipliers, with N = cᵀwc (K × K) and P_k = Σ_m w_m c_mk ΔW_m, f splits into tensors, and in each it is
 *   Σ_m w_m ‖ΔW_m‖² − 2 Σ_k ⟨P_k, L_k⟩ + Σ_jk N_jk ⟨L_j, L_k⟩:
 * the inputs matter through K combinations alone.  This is exact, whatever the multipliers; so nothing of the full-rank
 * directions has to be kept, and multipliers are free to leave their span.  One direction at a time, the best L_k is the
 * truncated singular value decomposition of (P_k − Σ_{j≠k} N_kj L_j) / N_kk.
 *
 * Given the LoRAs, with A_jk = ⟨L_j, L_k⟩ and b_mk = ⟨ΔW_m, L_k⟩ summed over all tensors, c_m solves A c_m = b_m; of one
 * direction beside others that stay, c_mk = (b_mk − Σ_{j≠k} A_kj c_mj) / A_kk.  There f is a parabola along every line
 * through the minimum c*, so at c* + β (c* − c) it is f* + β² (f − f*): no more than at the old c for β ≤ 1.  The next LoRAs
 * are sought there, which takes about half as many passes.
 *
 * Tensors in which factors would not be smaller than the matrix (norms, biases, a rank that reaches the smaller side) keep
 * their whole direction: it costs nothing, and is exact. */
#ifndef HM_LOWRANK_HYPER_LORA_H
#define HM_LOWRANK_HYPER_LORA_H

#include "lowrank/blas.h"
#include "lowrank/dense.h"
#include "solve/hyper.h"

/* Direction k of one tensor, in the type in which it is stored: what is measured is then what will be in the file. */
typedef struct hm_hyper_lora_part {
    size_t rows, columns;
    size_t rank;     /* 0: all numbers, at `up` */
    hm_dtype dtype;
    void *up, *down; /* [rows × rank], [rank × columns] */
    uint32_t index;  /* of the tensor that `source` offers */
    const hm_tensor_info *stored_up, *stored_down; /* as they are written; NULL: there is no `down` */
} hm_hyper_lora_part;

struct hm_hyper_loras {
    size_t directions, count;  /* K; tensors that move */
    unsigned *ranks;           /* [K] as asked for */
    size_t *plan_index;        /* [count] ascending */
    hm_hyper_lora_part *parts; /* [count × K] */
    unsigned char *numbers;    /* of all parts */
    hm_source *source;         /* offers them as tensors hypermerge.direction.k.NAME */
    double *gram;              /* A [K × K] */
    double *losses;            /* f after the LoRAs of each pass, and at last with the final multipliers: never rising */
    size_t loss_count;
};

/* Finds them for a solved hyper-model, and puts their multipliers and loss in the place of those of the Gram matrix.  Each
 * pass reads every input twice.  Beside the budget it takes the factors as they are stored, and what decomposing the tensors
 * in work takes.  `options`: ranks, rank_count = K, pass.  HM_ERR_ARGUMENT for a rank of 0. */
hm_status hm_hyper_lora_find(hm_hyper *hyper, const hm_solve_options *options, hm_job *job, hm_error *err);

/* ---- hyper_lora_parts.c: where they are kept ----------------------------------------------------------------------- */

/* All parts, of zeros. */
hm_status hm_hyper_loras_make(hm_hyper_loras **out, const hm_hyper *hyper, const unsigned *ranks, hm_error *err);
void hm_hyper_loras_free(hm_hyper_loras *loras);
size_t hm_hyper_lora_up_count(const hm_hyper_lora_part *part);   /* numbers at `up` */
size_t hm_hyper_lora_down_count(const hm_hyper_lora_part *part); /* 0 without a rank */
/* A part as one block of f32 numbers: `up`, then `down`. */
void hm_hyper_lora_load(const hm_hyper_lora_part *part, float *block);
/* Stores such a block, and leaves in it what rounding gave.  HM_ERR_MISMATCH for a value that does not fit into the type. */
hm_status hm_hyper_lora_store(const hm_hyper_lora_part *part, float *block, hm_error *err);
/* Bytes that a part takes. */
size_t hm_hyper_lora_bytes(const hm_hyper_lora_part *part);
/* x[rows × columns] += share · part, whose numbers are in `block`. */
void hm_hyper_lora_add(const hm_hyper_lora_part *part, const hm_blas *blas, double share, const float *block, float *x);

/* ---- hyper_lora_step.c: the LoRAs, given the multipliers -------------------------------------------------------------- */

typedef struct hm_hyper_lora_step {
    hm_hyper_loras *loras;
    const hm_blas *blas;
    const double *normal;   /* N [K × K] */
    const hm_dense *dense;  /* rows, elements, reference: everything but what the step itself fills in */
    const double *combine;  /* [K × dense->row_count] P_k from the rows */
    size_t pass;            /* from 0: randomises each pass otherwise */
    size_t only;            /* one direction, or HM_HYPER_LORA_ALL */
} hm_hyper_lora_step;
#define HM_HYPER_LORA_ALL SIZE_MAX

/* Replaces each part by a better one, where one is found. */
hm_status hm_hyper_lora_improve(const hm_hyper_lora_step *step, hm_job *job, hm_error *err);

#endif
