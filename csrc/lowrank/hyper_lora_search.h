/* Between the search (hyper_lora.c) and what is told of its result (hyper_lora_result.c). */
#ifndef HM_LOWRANK_HYPER_LORA_SEARCH_H
#define HM_LOWRANK_HYPER_LORA_SEARCH_H

#include "lowrank/hyper_lora.h"
#include "solve/gram.h"

typedef struct hm_hyper_search {
    hm_hyper *hyper;
    hm_hyper_loras *loras;
    const hm_solve_options *options;
    const hm_blas *blas;
    size_t members, directions;
    hm_stream_row *rows;   /* M inputs, K directions, the base file where there is one */
    size_t row_count;
    uint32_t *index;       /* [count × row_count] */
    uint64_t *elements;
    const char **names;
    unsigned *blocks;      /* [count] in the plan */
    double weights[HM_MAX_MEMBERS]; /* sum M */
    double total;          /* Σ_m w_m ‖ΔW_m‖² */
    double *multipliers;   /* c [M × K] */
    double *previous;
    double *along;         /* b [M × K] */
    hm_gram_result grams;  /* of the last measurement: rows M + K */
    size_t passes;         /* made so far */
    hm_job *job;
} hm_hyper_search;

double hm_hyper_search_square(const hm_hyper_search *s, size_t m); /* ‖ΔW_m‖² */
/* A and b from a sum of Gram matrices [(M + K)²] over the rows ΔW_m − R and L_k. */
void hm_hyper_search_products(const hm_hyper_search *s, const double *full, double *gram, double *along);
/* ‖ΔW_m − Σ_k c_k L_k‖² from A, b_m and ‖ΔW_m‖². */
double hm_hyper_search_left(const double *gram, const double *along, const double *c, size_t directions, double square);
/* Scales the directions so that the largest multiplier is +1, and puts multipliers and certificate into the hyper-model. */
hm_status hm_hyper_search_conclude(hm_hyper_search *s, hm_error *err);

#endif
