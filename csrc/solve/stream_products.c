#include "solve/stream_products.h"

/* What tensor t takes: factors, and bands for each seat. */
static void measure(const hm_stream *stream, size_t t, uint64_t *factor_bytes, uint64_t *band_bytes)
{
    *factor_bytes = *band_bytes = 0;
    for (size_t r = 0; r < stream->row_count; r++) {
        const hm_stream_row *row = &stream->rows[r];
        const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
        if (tensor == NULL || tensor->rank == 0 || tensor->elements == 0) continue;
        uint64_t band = hm_band_elements(tensor);
        *factor_bytes += hm_factors_bytes(row->source, row->index[t * row->stride]);
        *band_bytes += (band < tensor->elements ? band : tensor->elements) * sizeof(float);
    }
}

hm_status hm_stream_products_open(hm_stream_products *out, const hm_stream *stream, unsigned seats, hm_error *err)
{
    uint64_t most_factors = 0, most_bands = 0, factors, bands;
    *out = (hm_stream_products){0};
    for (size_t t = 0; t < stream->tensor_count; t++) {
        measure(stream, t, &factors, &bands);
        if (factors > most_factors) most_factors = factors;
        if (bands > most_bands) most_bands = bands;
    }
    out->any = most_bands > 0;
    if (!out->any) return HM_OK;
    out->bytes = 2 * most_factors + seats * most_bands;
    hm_status status = hm_expansion_open(&out->expansion, seats, stream->row_count, err);
    if (status == HM_OK) status = hm_factor_cache_open(&out->cache, err);
    if (status != HM_OK) hm_stream_products_close(out);
    return status;
}

void hm_stream_products_close(hm_stream_products *products)
{
    hm_expansion_close(products->expansion);
    hm_factor_cache_close(products->cache);
    *products = (hm_stream_products){0};
}

hm_status hm_item_take_factors(hm_stream_products *products, const hm_stream *stream, const hm_item *item,
                               hm_factors **held, hm_error *err)
{
    hm_status status = HM_OK;
    for (size_t s = 0; s < item->segment_count; s++)
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_stream_row *row = &stream->rows[r];
            size_t t = item->segments[s].tensor;
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            hm_factors **at = &held[s * stream->row_count + r];
            *at = NULL;
            if (status == HM_OK && tensor != NULL && tensor->rank > 0)
                status = hm_factors_take(at, products->cache, row->source, row->index[t * row->stride], err);
        }
    return status;
}

void hm_item_return_factors(hm_stream_products *products, const hm_stream *stream, const hm_item *item,
                            hm_factors **held)
{
    for (size_t i = 0; i < item->segment_count * stream->row_count; i++)
        if (held[i] != NULL) hm_factors_return(products->cache, held[i]);
}
