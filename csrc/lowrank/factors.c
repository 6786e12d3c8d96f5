#include "lowrank/factors.h"

#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "model/product.h"

#define STEP ((size_t)64 << 10) /* elements converted at a time */

struct hm_factor_cache {
    pthread_mutex_t lock;
    hm_factors *first;
    uint64_t serials;
};

hm_status hm_factor_cache_open(hm_factor_cache **out, hm_error *err)
{
    hm_factor_cache *cache = hm_alloc(1, sizeof *cache);
    if (cache == NULL) return hm_fail_memory(err, "factors");
    pthread_mutex_init(&cache->lock, NULL);
    *out = cache;
    return HM_OK;
}

static void release(hm_factors *factors)
{
    hm_release(factors->up);
    hm_release(factors);
}

static void release_unused(hm_factor_cache *cache)
{
    for (hm_factors **at = &cache->first; *at != NULL;) {
        hm_factors *factors = *at;
        if (factors->users > 0) {
            at = &factors->next;
            continue;
        }
        *at = factors->next;
        release(factors);
    }
}

void hm_factor_cache_close(hm_factor_cache *cache)
{
    if (cache == NULL) return;
    release_unused(cache);
    pthread_mutex_destroy(&cache->lock);
    hm_release(cache);
}

uint64_t hm_factors_bytes(const hm_source *source, uint32_t tensor)
{
    const hm_tensor_info *product = &source->header.tensors[tensor];
    if (product->elements == 0) return 0;
    return product->rank * (product->shape[0] + product->elements / product->shape[0]) * sizeof(float);
}

hm_status hm_factor_read(float *out, const hm_source *source, const hm_tensor_info *factor, hm_error *err)
{
    const hm_kernels *kernels = hm_kernels_best();
    void *step = hm_alloc(STEP, sizeof(double));
    hm_status status = step != NULL ? HM_OK : hm_fail_memory(err, "a factor");
    for (uint64_t done = 0; status == HM_OK && done < factor->elements; done += STEP) {
        size_t count = factor->elements - done < STEP ? (size_t)(factor->elements - done) : STEP;
        status = hm_source_read(source, factor, done, count, step, err);
        if (status == HM_OK) kernels->load[factor->dtype](step, out + done, count);
    }
    hm_release(step);
    return status;
}

/* down[p, in, kernel] = Σ_q mid[p, q, kernel] · small[q, in] */
static void join_mid(float *down, const float *mid, const float *small, const hm_tensor_info *mid_info, size_t inputs)
{
    size_t p_count = (size_t)mid_info->shape[0], q_count = (size_t)mid_info->shape[1];
    size_t kernel = (size_t)mid_info->elements / (p_count * q_count), columns = inputs * kernel;
    memset(down, 0, p_count * columns * sizeof *down);
    for (size_t p = 0; p < p_count; p++)
        for (size_t q = 0; q < q_count; q++) {
            const float *weights = mid + (p * q_count + q) * kernel;
            for (size_t i = 0; i < inputs; i++)
                for (size_t k = 0; k < kernel; k++) down[p * columns + i * kernel + k] += weights[k] * small[q * inputs + i];
        }
}

/* The pair's rows of `down`: [rank of the pair × columns]. */
static hm_status read_down(float *down, const hm_source *source, const hm_factor_pair *pair, hm_error *err)
{
    if (pair->down == HM_ABSENT) {
        *down = 1;
        return HM_OK;
    }
    const hm_tensor_info *stored = &source->stored[pair->down];
    if (pair->mid == HM_ABSENT) return hm_factor_read(down, source, stored, err);
    const hm_tensor_info *mid = &source->stored[pair->mid];
    float *numbers = hm_alloc((size_t)(stored->elements + mid->elements), sizeof *numbers);
    if (numbers == NULL) return hm_fail_memory(err, "a factor");
    float *small = numbers + mid->elements;
    hm_status status = hm_factor_read(numbers, source, mid, err);
    if (status == HM_OK) status = hm_factor_read(small, source, stored, err);
    if (status == HM_OK) join_mid(down, numbers, small, mid, (size_t)(stored->elements / stored->shape[0]));
    hm_release(numbers);
    return status;
}

/* The pair's columns of `up`, from column `at`, in its rows. */
static hm_status read_up(float *up, size_t rank, size_t at, const hm_source *source, const hm_factor_pair *pair, hm_error *err)
{
    const hm_tensor_info *stored = &source->stored[pair->up];
    size_t rows = (size_t)stored->shape[0], columns = (size_t)stored->elements / rows;
    float *to = up + (size_t)pair->row * rank + at;
    if (columns == rank) { /* the only pair: it lies there as it is stored */
        HM_TRY(hm_factor_read(to, source, stored, err));
        for (size_t i = 0; pair->scale != 1 && i < rows * columns; i++) to[i] *= pair->scale;
        return HM_OK;
    }
    float *numbers = hm_alloc((size_t)stored->elements, sizeof *numbers);
    if (numbers == NULL) return hm_fail_memory(err, "a factor");
    hm_status status = hm_factor_read(numbers, source, stored, err);
    for (size_t i = 0; status == HM_OK && i < rows; i++)
        for (size_t k = 0; k < columns; k++) to[i * rank + k] = pair->scale * numbers[i * columns + k];
    hm_release(numbers);
    return status;
}

hm_status hm_product_read(float *up, float *down, const hm_source *source, uint32_t tensor, hm_error *err)
{
    const hm_product *product = hm_source_product(source, tensor);
    const hm_tensor_info *info = &source->header.tensors[tensor];
    size_t rank = (size_t)info->rank, rows = (size_t)info->shape[0], columns = (size_t)info->elements / rows, at = 0;
    if (product->count > 1 || source->stored[source->pairs[product->first].up].shape[0] < rows)
        memset(up, 0, rows * rank * sizeof *up);
    for (uint32_t i = 0; i < product->count; i++) {
        const hm_factor_pair *pair = &source->pairs[product->first + i];
        const hm_tensor_info *stored = &source->stored[pair->up];
        HM_TRY(read_up(up, rank, at, source, pair, err));
        HM_TRY(read_down(down + at * columns, source, pair, err));
        at += (size_t)(stored->elements / stored->shape[0]);
    }
    return HM_OK;
}

static hm_status make(hm_factors **out, const hm_source *source, uint32_t tensor, hm_error *err)
{
    const hm_tensor_info *info = &source->header.tensors[tensor];
    size_t rank = (size_t)info->rank, rows = (size_t)info->shape[0], columns = (size_t)info->elements / rows;
    hm_factors *factors = hm_alloc(1, sizeof *factors);
    float *numbers = hm_alloc(rank * (rows + columns), sizeof *numbers);
    hm_status status = factors != NULL && numbers != NULL
                           ? HM_OK
                           : hm_fail(err, HM_ERR_MEMORY, hm_source_label(source), info->name, "out of memory (its factors)");
    if (status == HM_OK) status = hm_product_read(numbers, numbers + rows * rank, source, tensor, err);
    if (status != HM_OK) {
        hm_release(factors);
        hm_release(numbers);
        return status;
    }
    *factors = (hm_factors){.source = source,
                            .tensor = tensor,
                            .rows = rows,
                            .columns = columns,
                            .rank = rank,
                            .up = numbers,
                            .down = numbers + rows * rank};
    *out = factors;
    return HM_OK;
}

hm_status hm_factors_take(hm_factors **out, hm_factor_cache *cache, const hm_source *source, uint32_t tensor,
                          hm_error *err)
{
    hm_status status = HM_OK;
    pthread_mutex_lock(&cache->lock); /* also while they are read: who comes next wants the same ones */
    hm_factors *factors = cache->first;
    while (factors != NULL && (factors->source != source || factors->tensor != tensor)) factors = factors->next;
    if (factors == NULL) {
        release_unused(cache);
        status = make(&factors, source, tensor, err);
        if (status == HM_OK) {
            factors->serial = ++cache->serials;
            factors->next = cache->first;
            cache->first = factors;
        }
    }
    if (status == HM_OK) {
        factors->users++;
        *out = factors;
    }
    pthread_mutex_unlock(&cache->lock);
    return status;
}

void hm_factors_return(hm_factor_cache *cache, hm_factors *factors)
{
    pthread_mutex_lock(&cache->lock);
    factors->users--;
    pthread_mutex_unlock(&cache->lock);
}
