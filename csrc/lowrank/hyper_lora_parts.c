#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "kernels/kernels.h"
#include "lowrank/blas.h"
#include "lowrank/hyper_lora.h"

#define ALIGNMENT ((uint64_t)64)
#define NAME_ROOM 64u /* for what stands around a tensor's name in the name of a factor */

size_t hm_hyper_lora_up_count(const hm_hyper_lora_part *part)
{
    return part->rows * (part->rank > 0 ? part->rank : part->columns);
}

size_t hm_hyper_lora_down_count(const hm_hyper_lora_part *part)
{
    return part->rank * part->columns;
}

size_t hm_hyper_lora_bytes(const hm_hyper_lora_part *part)
{
    return (hm_hyper_lora_up_count(part) + hm_hyper_lora_down_count(part)) * hm_dtype_bytes(part->dtype);
}

/* ---- shapes ------------------------------------------------------------------------------------------------------- */

static void set_shape(hm_hyper_lora_part *part, const hm_tensor_info *like, hm_dtype asked, unsigned rank)
{
    uint64_t rows = like->ndim > 0 ? like->shape[0] : 1, columns = like->elements / rows;
    uint64_t least = rows < columns ? rows : columns;
    bool factors = like->ndim > 1 && rank < least && rank * (rows + columns) < like->elements && rows <= INT32_MAX &&
                   columns <= INT32_MAX;
    *part = (hm_hyper_lora_part){.rows = (size_t)rows,
                                 .columns = (size_t)columns,
                                 .rank = factors ? rank : 0,
                                 .dtype = hm_fine_dtype(hm_output_dtype(like, asked))};
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static hm_status allocate(hm_hyper_loras *loras, hm_error *err)
{
    uint64_t bytes = ALIGNMENT;
    size_t parts = loras->count * loras->directions;
    for (size_t i = 0; i < parts; i++) {
        const hm_hyper_lora_part *part = &loras->parts[i];
        size_t size = hm_dtype_bytes(part->dtype);
        if (!hm_add_u64(bytes, aligned(hm_hyper_lora_up_count(part) * size), &bytes) ||
            !hm_add_u64(bytes, aligned(hm_hyper_lora_down_count(part) * size), &bytes))
            return hm_fail_memory(err, "the hyper-LoRAs");
    }
    loras->numbers = hm_alloc(bytes, 1);
    if (loras->numbers == NULL) return hm_fail_memory(err, "the hyper-LoRAs; smaller ranks take less");
    unsigned char *at = loras->numbers + (ALIGNMENT - (uintptr_t)loras->numbers % ALIGNMENT) % ALIGNMENT;
    for (size_t i = 0; i < parts; i++) {
        hm_hyper_lora_part *part = &loras->parts[i];
        size_t size = hm_dtype_bytes(part->dtype);
        part->up = at;
        at += aligned(hm_hyper_lora_up_count(part) * size);
        part->down = at;
        at += aligned(hm_hyper_lora_down_count(part) * size);
    }
    return HM_OK;
}

/* ---- the source that offers them ---------------------------------------------------------------------------------- */

static void set_strides(hm_tensor_info *info)
{
    int64_t stride = 1;
    for (unsigned d = info->ndim; d-- > 0;) {
        info->strides[d] = stride;
        stride *= (int64_t)info->shape[d];
    }
}

/* Convolutions keep their kernel in `down`, as LoRAs do. */
static size_t describe(const hm_hyper_lora_part *part, const hm_tensor_info *like, size_t k, char *names,
                       hm_tensor_info *out)
{
    size_t room = strlen(like->name) + NAME_ROOM, count = part->rank > 0 ? 2 : 1;
    static const char *const endings[] = {".lora_up", ".lora_down"};
    for (size_t i = 0; i < count; i++) {
        char *name = names + i * room;
        snprintf(name, room, HM_PREFIX_DIRECTION "%zu.%s%s", k + 1, like->name, part->rank > 0 ? endings[i] : "");
        out[i] = (hm_tensor_info){
            .name = name, .dtype = part->dtype, .ndim = like->ndim, .data = i == 0 ? part->up : part->down};
        memcpy(out[i].shape, like->shape, sizeof out[i].shape);
        if (part->rank > 0 && i == 0)
            for (unsigned d = 1; d < like->ndim; d++) out[i].shape[d] = d == 1 ? part->rank : 1;
        if (i == 1) out[i].shape[0] = part->rank;
        set_strides(&out[i]);
    }
    return count;
}

static hm_status find_parts(hm_hyper_loras *loras, const hm_tensor_info *infos, const uint32_t *first, hm_error *err)
{
    const hm_source *source = loras->source;
    const hm_tensor_info *stored = source->stored != NULL ? source->stored : source->header.tensors;
    for (size_t i = 0; i < loras->count * loras->directions; i++) {
        hm_hyper_lora_part *part = &loras->parts[i];
        char *name = hm_copy_text(infos[first[i]].name);
        if (name == NULL) return hm_fail_memory(err, "tensor names");
        if (part->rank > 0) name[strlen(name) - strlen(".lora_up")] = 0;
        part->index = hm_source_index(source, name);
        hm_release(name);
        part->stored_up = &stored[first[i]];
        part->stored_down = part->rank > 0 ? &stored[first[i] + 1] : NULL;
    }
    return HM_OK;
}

static hm_status offer(hm_hyper_loras *loras, const hm_plan *plan, hm_error *err)
{
    size_t parts = loras->count * loras->directions, bytes = 0, at = 0, count = 0;
    for (size_t t = 0; t < loras->count; t++)
        bytes += 2 * loras->directions * (strlen(plan->tensors[loras->plan_index[t]].like->name) + NAME_ROOM);
    char *names = hm_alloc(bytes, 1);
    hm_tensor_info *infos = hm_alloc(2 * parts, sizeof *infos);
    uint32_t *first = hm_alloc(parts, sizeof *first);
    hm_status status = names != NULL && infos != NULL && first != NULL ? HM_OK : hm_fail_memory(err, "tensor names");
    for (size_t i = 0; status == HM_OK && i < parts; i++) {
        const hm_tensor_info *like = plan->tensors[loras->plan_index[i / loras->directions]].like;
        first[i] = (uint32_t)count;
        count += describe(&loras->parts[i], like, i % loras->directions, names + at, infos + count);
        at += 2 * (strlen(like->name) + NAME_ROOM);
    }
    if (status == HM_OK) status = hm_source_borrow(&loras->source, "hyper-LoRAs", infos, count, err);
    if (status == HM_OK) status = find_parts(loras, infos, first, err);
    hm_release(names);
    hm_release(infos);
    hm_release(first);
    return status;
}

static hm_status fill(hm_hyper_loras *loras, const hm_hyper *hyper, const unsigned *ranks, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    size_t directions = loras->directions = hyper->solution.directions;
    for (size_t t = 0; t < plan->count; t++)
        if (plan->tensors[t].action == HM_ACTION_MERGE && hyper->moves[t]) loras->count++;
    loras->ranks = hm_alloc(directions, sizeof *loras->ranks);
    loras->plan_index = hm_alloc(loras->count, sizeof *loras->plan_index);
    loras->parts = hm_alloc(loras->count * directions, sizeof *loras->parts);
    loras->gram = hm_alloc(directions * directions, sizeof *loras->gram);
    if (loras->ranks == NULL || loras->plan_index == NULL || loras->parts == NULL || loras->gram == NULL)
        return hm_fail_memory(err, "the hyper-LoRAs");
    size_t count = 0;
    for (size_t t = 0; t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE || !hyper->moves[t]) continue;
        loras->plan_index[count] = t;
        for (size_t k = 0; k < directions; k++)
            set_shape(&loras->parts[count * directions + k], plan->tensors[t].like, hyper->dtype, ranks[k]);
        count++;
    }
    memcpy(loras->ranks, ranks, directions * sizeof *ranks);
    HM_TRY(allocate(loras, err));
    return offer(loras, plan, err);
}

hm_status hm_hyper_loras_make(hm_hyper_loras **out, const hm_hyper *hyper, const unsigned *ranks, hm_error *err)
{
    hm_hyper_loras *loras = hm_alloc(1, sizeof *loras);
    if (loras == NULL) return hm_fail_memory(err, "the hyper-LoRAs");
    hm_status status = fill(loras, hyper, ranks, err);
    if (status == HM_OK)
        *out = loras;
    else
        hm_hyper_loras_free(loras);
    return status;
}

void hm_hyper_loras_free(hm_hyper_loras *loras)
{
    if (loras == NULL) return;
    hm_source_close(loras->source);
    hm_release(loras->ranks);
    hm_release(loras->plan_index);
    hm_release(loras->parts);
    hm_release(loras->numbers);
    hm_release(loras->gram);
    hm_release(loras->losses);
    hm_release(loras);
}

/* ---- numbers ------------------------------------------------------------------------------------------------------ */

void hm_hyper_lora_load(const hm_hyper_lora_part *part, float *block)
{
    const hm_kernels *kernels = hm_kernels_best();
    kernels->load[part->dtype](part->up, block, hm_hyper_lora_up_count(part));
    kernels->load[part->dtype](part->down, block + hm_hyper_lora_up_count(part), hm_hyper_lora_down_count(part));
}

static hm_status store(const hm_hyper_lora_part *part, float *numbers, void *to, size_t count, const char *name,
                       hm_error *err)
{
    const hm_kernels *kernels = hm_kernels_best();
    kernels->store[part->dtype](numbers, to, count);
    kernels->load[part->dtype](to, numbers, count);
    if (kernels->find_nonfinite(numbers, count) == count) return HM_OK;
    return hm_fail(err, HM_ERR_MISMATCH, NULL, name, "a value does not fit into %s; use a wider --dtype",
                   hm_dtype_name(part->dtype));
}

hm_status hm_hyper_lora_store(const hm_hyper_lora_part *part, float *block, hm_error *err)
{
    size_t up = hm_hyper_lora_up_count(part), down = hm_hyper_lora_down_count(part);
    HM_TRY(store(part, block, part->up, up, part->stored_up->name, err));
    return down > 0 ? store(part, block + up, part->down, down, part->stored_down->name, err) : HM_OK;
}

void hm_hyper_lora_add(const hm_hyper_lora_part *part, const hm_blas *blas, double share, const float *block, float *x)
{
    if (part->rank == 0) {
        size_t count = part->rows * part->columns;
        for (size_t i = 0; i < count; i++) x[i] += (float)share * block[i];
        return;
    }
    /* In columns, as OpenBLAS has it: xᵀ += share · downᵀ · upᵀ. */
    blas->gemm('N', 'N', part->columns, part->rows, part->rank, (float)share, block + part->rows * part->rank,
               part->columns, block, part->rank, 1, x, part->columns);
}
