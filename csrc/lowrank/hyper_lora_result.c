/* What came out: multipliers and directions in their final scale, and the certificate. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "lowrank/hyper_lora_search.h"

#define PIVOT_SHARE 1e-6 /* as in solution.c */
#define SNAP 1e-13

/* c_mk → c_mk / s and L_k → s L_k, so that the largest multiplier is +1. */
static hm_status scale_direction(hm_hyper_search *s, size_t k, hm_error *err)
{
    size_t directions = s->directions;
    hm_hyper_loras *loras = s->loras;
    double largest = 0, scale = 0;
    for (size_t m = 0; m < s->members; m++) largest = fmax(largest, fabs(s->multipliers[m * directions + k]));
    for (size_t m = 0; m < s->members && scale == 0; m++)
        if (fabs(s->multipliers[m * directions + k]) >= largest * (1 - PIVOT_SHARE)) scale = s->multipliers[m * directions + k];
    if (scale == 0 || scale == 1) return HM_OK;
    for (size_t m = 0; m < s->members; m++) {
        double *c = &s->multipliers[m * directions + k];
        *c /= scale;
        if (fabs(fabs(*c) - 1) <= SNAP) *c = copysign(1, *c);
        s->along[m * directions + k] *= scale;
    }
    for (size_t j = 0; j < directions; j++) {
        loras->gram[k * directions + j] *= scale;
        loras->gram[j * directions + k] *= scale;
    }
    for (size_t t = 0; t < loras->count; t++) {
        const hm_hyper_lora_part *part = &loras->parts[t * directions + k];
        size_t up = hm_hyper_lora_up_count(part), down = hm_hyper_lora_down_count(part);
        /* Evenly, lest one factor leave the range of its type. */
        double first = part->rank > 0 ? copysign(sqrt(fabs(scale)), scale) : scale, second = sqrt(fabs(scale));
        float *block = hm_alloc(up + down, sizeof *block);
        if (block == NULL) return hm_fail_memory(err, "a hyper-LoRA");
        hm_hyper_lora_load(part, block);
        for (size_t i = 0; i < up; i++) block[i] = (float)((double)block[i] * first);
        for (size_t i = up; i < up + down; i++) block[i] = (float)((double)block[i] * second);
        hm_status status = hm_hyper_lora_store(part, block, err);
        hm_release(block);
        HM_TRY(status);
    }
    return HM_OK;
}

/* explained_k = Σ_m w_m c_mk (2 b_mk − Σ_j A_kj c_mj) / Σ_m w_m ‖ΔW_m‖².  Over k they sum to 1 − loss / total, in a block as
 * in the whole; for orthogonal directions they are σ_k² / Σ σ².  Of the whole, where A c_m = b_m, it is Σ_m w_m c_mk b_mk. */
static void explain(const hm_hyper_search *s, const double *gram, const double *along, double total, double *out)
{
    size_t directions = s->directions;
    for (size_t k = 0; k < directions; k++) {
        double sum = 0;
        for (size_t m = 0; m < s->members; m++) {
            const double *c = s->multipliers + m * directions;
            double other = 0;
            for (size_t j = 0; j < directions; j++) other += gram[k * directions + j] * c[j];
            sum += s->weights[m] * c[k] * (2 * along[m * directions + k] - other);
        }
        out[k] = total > 0 ? sum / total : 0;
    }
}

/* The blocks of the hyper-model are those of the plan in which anything differs, in the same order. */
static hm_status explain_blocks(hm_hyper_search *s, hm_error *err)
{
    const hm_plan *plan = s->hyper->plan;
    size_t members = s->members, directions = s->directions, n = members + directions;
    double *work = hm_alloc(n * n + directions * n, sizeof *work);
    hm_status status = work != NULL ? HM_OK : hm_fail_memory(err, "the blocks");
    for (size_t b = 0, i = 0; status == HM_OK && b < plan->block_count && i < s->hyper->block_count; b++) {
        hm_block_share *block = &s->hyper->blocks[i];
        if (strcmp(block->name, plan->block_names[b]) != 0) continue;
        double *gram = work + n * n, *along = gram + directions * directions, total = 0;
        block->explained = hm_alloc(directions, sizeof *block->explained);
        if (block->explained == NULL) {
            status = hm_fail_memory(err, "the blocks");
            break;
        }
        for (size_t m = 0; m < members; m++) total += s->weights[m] * block->gram[m * members + m];
        hm_gram_sum(&s->grams, s->loras->count, n, s->blocks, (unsigned)b, work);
        hm_hyper_search_products(s, work, gram, along);
        explain(s, gram, along, total, block->explained);
        i++;
    }
    hm_release(work);
    return status;
}

hm_status hm_hyper_search_conclude(hm_hyper_search *s, hm_error *err)
{
    hm_solution *solution = &s->hyper->solution;
    size_t members = s->members, directions = s->directions;
    HM_TRY(explain_blocks(s, err));
    for (size_t k = 0; k < directions; k++) HM_TRY(scale_direction(s, k, err));
    explain(s, s->loras->gram, s->along, s->total, solution->explained);
    solution->loss = s->loras->losses[s->loras->loss_count - 1];
    for (size_t m = 0; m < members; m++) {
        const double *c = s->multipliers + m * directions;
        double square = hm_hyper_search_square(s, m),
               left = hm_hyper_search_left(s->loras->gram, s->along + m * directions, c, directions, square);
        solution->residual[m] = square > 0 ? fmin(sqrt(left / square), 1) : 0;
    }
    memcpy(solution->multipliers, s->multipliers, members * directions * sizeof *s->multipliers);
    memset(solution->inputs, 0, members * directions * sizeof *solution->inputs); /* they are no mixtures of the inputs */
    return HM_OK;
}
