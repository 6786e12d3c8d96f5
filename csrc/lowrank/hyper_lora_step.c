/* One pass over the inputs that improves the LoRAs for the multipliers there are. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "lowrank/hyper_lora.h"
#include "lowrank/svd.h"

#define DEFAULT_BUDGET ((uint64_t)256 << 20)

/* What the visits of a pass over some tensors need: combinations of the directions first … first + count − 1. */
struct visit {
    const hm_hyper_lora_step *step;
    size_t first, count;
};

/* ---- one part ------------------------------------------------------------------------------------------------------- */

static double dot(const float *x, const float *y, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/* 2 ⟨T, L⟩ − n ‖L‖²: how much L takes off the loss, against none.  `block`: the numbers of L; `work`: rank · (rows + 2 rank)
 * numbers. */
static double gain(const hm_hyper_lora_part *part, const hm_blas *blas, const float *block, const float *t, double n,
                   float *work)
{
    size_t rows = part->rows, columns = part->columns, rank = part->rank;
    if (rank == 0) return 2 * dot(t, block, rows * columns) - n * dot(block, block, rows * columns);
    const float *up = block, *down = block + rows * rank;
    float *up_square = work + rows * rank, *down_square = up_square + rank * rank;
    /* ⟨T, up·down⟩ = ⟨T·downᵀ, up⟩ and ‖up·down‖² = ⟨upᵀ·up, down·downᵀ⟩; all row-major, so transposed for OpenBLAS. */
    blas->gemm('T', 'N', rank, rows, columns, 1, down, columns, t, columns, 0, work, rank);
    blas->gemm('N', 'T', rank, rank, rows, 1, up, rank, up, rank, 0, up_square, rank);
    blas->gemm('T', 'N', rank, rank, columns, 1, down, columns, down, columns, 0, down_square, rank);
    return 2 * dot(work, up, rows * rank) - n * dot(up_square, down_square, rank * rank);
}

/* The best direction of the part's rank for T, of which it is to be 1/n.  `near`: the direction it had before, or NULL. */
static hm_status find(float *block, const hm_hyper_lora_part *part, const hm_blas *blas, const float *t, double n,
                      const float *near, uint64_t seed, hm_error *err)
{
    size_t rows = part->rows, columns = part->columns, up = hm_hyper_lora_up_count(part);
    if (part->rank == 0) {
        for (size_t i = 0; i < up; i++) block[i] = (float)((double)t[i] / n);
        return HM_OK;
    }
    hm_low_rank found;
    HM_TRY(hm_low_rank_refine(&found, blas, t, rows, columns, part->rank, near, near != NULL ? near + up : NULL, seed,
                              part->stored_up->name, err));
    double share = 1 / sqrt(n); /* each factor takes its half */
    for (size_t i = 0; i < up; i++) block[i] = (float)((double)found.up[i] * share);
    for (size_t i = 0; i < part->rank * columns; i++) block[up + i] = (float)((double)found.down[i] * share);
    hm_low_rank_clear(&found);
    return HM_OK;
}

/* Puts the best direction for T in place of the old one, unless that takes more off the loss: the decomposition is a
 * randomised one, and its factors are rounded. */
static hm_status improve(const hm_hyper_lora_part *part, const hm_blas *blas, const float *t, double n, uint64_t seed,
                         hm_error *err)
{
    size_t count = hm_hyper_lora_up_count(part) + hm_hyper_lora_down_count(part);
    float *blocks = hm_alloc(2 * count + part->rank * (part->rows + 2 * part->rank), sizeof *blocks);
    if (blocks == NULL) return hm_fail_memory(err, "a hyper-LoRA");
    float *old = blocks, *new = blocks + count, *work = new + count;
    hm_hyper_lora_load(part, old);
    double before = gain(part, blas, old, t, n, work);
    hm_status status = find(new, part, blas, t, n, before > 0 ? old : NULL, seed, err);
    if (status == HM_OK) status = hm_hyper_lora_store(part, new, err);
    if (status == HM_OK && !(gain(part, blas, new, t, n, work) > before))
        status = hm_hyper_lora_store(part, old, err); /* the same bytes again */
    hm_release(blocks);
    return status;
}

/* ---- one tensor ----------------------------------------------------------------------------------------------------- */

/* T = P_k − Σ_{j≠k} N_kj L_j, in place of P_k. */
static hm_status subtract_others(const hm_hyper_lora_step *step, size_t tensor, size_t k, float *p, hm_error *err)
{
    size_t directions = step->loras->directions;
    const hm_hyper_lora_part *parts = step->loras->parts + tensor * directions;
    size_t most = 0;
    for (size_t j = 0; j < directions; j++) {
        size_t count = hm_hyper_lora_up_count(&parts[j]) + hm_hyper_lora_down_count(&parts[j]);
        most = count > most ? count : most;
    }
    float *block = hm_alloc(most, sizeof *block);
    if (block == NULL) return hm_fail_memory(err, "a hyper-LoRA");
    for (size_t j = 0; j < directions; j++) {
        double share = step->normal[k * directions + j];
        if (j == k || share == 0) continue;
        hm_hyper_lora_load(&parts[j], block);
        hm_hyper_lora_add(&parts[j], step->blas, -share, block, p);
    }
    hm_release(block);
    return HM_OK;
}

static hm_status visit_tensor(void *user, size_t tensor, float *numbers, hm_error *err)
{
    const struct visit *visit = user;
    const hm_hyper_lora_step *step = visit->step;
    size_t directions = step->loras->directions, elements = (size_t)step->dense->elements[tensor];
    for (size_t i = 0; i < visit->count; i++) {
        size_t k = visit->first + i;
        double n = step->normal[k * directions + k];
        uint64_t seed = ((uint64_t)step->pass * step->loras->count + tensor) * directions + k;
        if (!(n > 0)) continue; /* no model moves along it */
        HM_TRY(subtract_others(step, tensor, k, numbers + i * elements, err));
        const hm_hyper_lora_part *part = &step->loras->parts[tensor * directions + k];
        HM_TRY(improve(part, step->blas, numbers + i * elements, n, seed, err));
    }
    return HM_OK;
}

/* ---- all of them ---------------------------------------------------------------------------------------------------- */

static hm_status run(const hm_hyper_lora_step *step, size_t first, size_t count, const size_t *chosen, size_t chosen_count,
                     hm_job *job, hm_error *err)
{
    if (chosen_count == 0) return HM_OK;
    struct visit visit = {.step = step, .first = first, .count = count};
    hm_dense dense = *step->dense;
    dense.coefficients = step->combine + first * dense.row_count;
    dense.outputs = count;
    dense.chosen = chosen;
    dense.chosen_count = chosen_count;
    dense.visit = visit_tensor;
    dense.user = &visit;
    return hm_dense_run(&dense, job, err);
}

/* A tensor is read once for all its K combinations where they fit together, else once for each. */
hm_status hm_hyper_lora_improve(const hm_hyper_lora_step *step, hm_job *job, hm_error *err)
{
    if (step->only != HM_HYPER_LORA_ALL) return run(step, step->only, 1, NULL, step->loras->count, job, err);
    size_t count = step->loras->count, directions = step->loras->directions, fitting = 0, large = count;
    uint64_t budget = job != NULL && job->memory_budget > 0 ? job->memory_budget : DEFAULT_BUDGET;
    size_t *chosen = hm_alloc(count, sizeof *chosen);
    if (chosen == NULL) return hm_fail_memory(err, "the list of tensors");
    for (size_t t = count; t-- > 0;) /* the large ones from the end of the list */
        if (step->dense->elements[t] * directions * sizeof(float) > budget / 2) chosen[--large] = t;
    for (size_t t = 0; t < count; t++)
        if (step->dense->elements[t] * directions * sizeof(float) <= budget / 2) chosen[fitting++] = t;
    hm_status status = run(step, 0, directions, chosen, fitting, job, err);
    for (size_t k = 0; status == HM_OK && k < directions; k++)
        status = run(step, k, 1, chosen + large, count - large, job, err);
    hm_release(chosen);
    return status;
}
