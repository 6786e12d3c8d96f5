#include "lowrank/factors.h"

#include <pthread.h>

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
    return (hm_source_up(source, tensor)->elements + hm_source_down(source, tensor)->elements) * sizeof(float);
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

static hm_status make(hm_factors **out, const hm_source *source, uint32_t tensor, hm_error *err)
{
    const hm_tensor_info *up = hm_source_up(source, tensor), *down = hm_source_down(source, tensor);
    hm_factors *factors = hm_alloc(1, sizeof *factors);
    float *numbers = hm_alloc((size_t)(up->elements + down->elements), sizeof *numbers);
    hm_status status = factors != NULL && numbers != NULL
                           ? HM_OK
                           : hm_fail(err, HM_ERR_MEMORY, hm_source_label(source), source->header.tensors[tensor].name,
                                     "out of memory (its factors)");
    if (status == HM_OK) status = hm_factor_read(numbers, source, up, err);
    if (status == HM_OK) status = hm_factor_read(numbers + up->elements, source, down, err);
    if (status != HM_OK) {
        hm_release(factors);
        hm_release(numbers);
        return status;
    }
    size_t rank = (size_t)up->shape[1];
    *factors = (hm_factors){.source = source,
                            .tensor = tensor,
                            .rows = (size_t)up->shape[0],
                            .columns = (size_t)down->elements / rank,
                            .rank = rank,
                            .up = numbers,
                            .down = numbers + up->elements};
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
