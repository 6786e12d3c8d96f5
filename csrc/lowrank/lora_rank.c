/* Sharing one budget out over the layers.
 *
 * Rank r of a layer with a rows and b columns takes r·(a + b) numbers and leaves Σ_{i>r} σ_i² of its difference.  One more
 * rank anywhere buys σ² for (a + b) numbers, and within a layer σ falls; so taking the largest σ² per number first is the
 * best way to spend a budget (up to the last few ranks, which may not fit exactly). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "lowrank/lora_list.h"
#include "lowrank/svd.h"

#define FIRST_CAP ((size_t)64)

struct spectrum {
    double *squares; /* σ², [known] */
    size_t known;
    size_t cap;      /* rank up to which it is wanted */
};

struct offer {
    double gain; /* σ² per number */
    size_t entry, rank;
};

struct spectra {
    hm_lora_list *list;
    const hm_blas *blas;
    struct spectrum *of; /* [list->count] */
};

static size_t smaller_side(const hm_lora_entry *entry)
{
    return entry->rows < entry->columns ? entry->rows : entry->columns;
}

static hm_status measure(void *user, size_t tensor, float *numbers, hm_error *err)
{
    struct spectra *spectra = user;
    const hm_lora_list *list = spectra->list;
    for (size_t e = list->first[tensor]; e < list->first[tensor + 1]; e++) {
        hm_lora_entry *entry = &list->entries[e];
        struct spectrum *spectrum = &spectra->of[e];
        if (entry->kind != HM_LORA_FACTORS || spectrum->known >= spectrum->cap) continue;
        hm_low_rank found;
        hm_status status = hm_low_rank_find(&found, spectra->blas, numbers + entry->part.index * entry->rows * entry->columns,
                                            entry->rows, entry->columns, spectrum->cap, e,
                                            list->difference->name[tensor], err);
        if (status != HM_OK) return status;
        hm_release(spectrum->squares);
        spectrum->squares = found.sigma;
        spectrum->known = found.rank;
        found.sigma = NULL;
        entry->square = found.square;
        for (size_t i = 0; i < spectrum->known; i++) spectrum->squares[i] *= spectrum->squares[i];
        hm_low_rank_clear(&found);
    }
    return HM_OK;
}

/* Reads the tensors with an entry whose spectrum is not known up to its cap. */
static hm_status measure_missing(struct spectra *spectra, hm_job *job, hm_error *err)
{
    const hm_lora_list *list = spectra->list;
    size_t *chosen = hm_alloc(list->difference->count, sizeof *chosen), count = 0;
    if (chosen == NULL) return hm_fail_memory(err, "the list of layers");
    for (size_t t = 0; t < list->difference->count; t++) {
        bool missing = false;
        for (size_t e = list->first[t]; e < list->first[t + 1]; e++)
            missing = missing || (list->entries[e].kind == HM_LORA_FACTORS && spectra->of[e].known < spectra->of[e].cap);
        if (missing) chosen[count++] = t;
    }
    hm_dense dense = list->difference->dense;
    dense.chosen = chosen;
    dense.chosen_count = count;
    dense.visit = measure;
    dense.user = spectra;
    hm_status status = count > 0 ? hm_dense_run(&dense, job, err) : HM_OK;
    hm_release(chosen);
    return status;
}

static int best_first(const void *a, const void *b)
{
    const struct offer *x = a, *y = b;
    if (x->gain != y->gain) return x->gain > y->gain ? -1 : 1;
    if (x->entry != y->entry) return x->entry < y->entry ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static uint64_t numbers_per_rank(const hm_lora_entry *entry)
{
    return entry->rows + entry->columns;
}

/* Sets every entry's rank from the spectra as far as they are known. */
static hm_status share_out(struct spectra *spectra, uint64_t bytes, double error, size_t element_bytes, hm_error *err)
{
    hm_lora_list *list = spectra->list;
    size_t offer_count = 0, n = 0;
    double rest = 0, total = 0;
    uint64_t used = HM_LORA_METADATA_BYTES;
    for (size_t e = 0; e < list->count; e++) {
        hm_lora_entry *entry = &list->entries[e];
        offer_count += spectra->of[e].known;
        if (entry->kind == HM_LORA_FACTORS) {
            entry->rank = 0;
            total += entry->square;
        } else {
            used += entry->rows * element_bytes + hm_lora_overhead(entry);
        }
    }
    struct offer *offers = hm_alloc(offer_count, sizeof *offers);
    bool *full = hm_alloc(list->count, sizeof *full);
    if (offers == NULL || full == NULL) {
        hm_release(offers);
        hm_release(full);
        return hm_fail_memory(err, "the list of ranks");
    }
    for (size_t e = 0; e < list->count; e++)
        for (size_t i = 0; i < spectra->of[e].known; i++)
            offers[n++] = (struct offer){.gain = spectra->of[e].squares[i] / (double)numbers_per_rank(&list->entries[e]),
                                         .entry = e, .rank = i};
    qsort(offers, n, sizeof *offers, best_first);
    rest = total;
    for (size_t i = 0; i < n; i++) {
        hm_lora_entry *entry = &list->entries[offers[i].entry];
        if (offers[i].gain <= 0 || full[offers[i].entry]) continue;
        if (bytes == 0 && rest <= error * error * total) break;
        uint64_t cost = numbers_per_rank(entry) * element_bytes;
        if (entry->rank == 0) cost += hm_lora_overhead(entry);
        if (bytes > 0 && used + cost > bytes) {
            full[offers[i].entry] = true;
            continue;
        }
        used += cost;
        rest -= spectra->of[offers[i].entry].squares[offers[i].rank];
        entry->rank++;
    }
    hm_release(offers);
    hm_release(full);
    return HM_OK;
}

/* Four times what an equal share gives: few layers want more. */
static size_t first_cap(const hm_lora_list *list, uint64_t bytes, size_t element_bytes)
{
    uint64_t per_rank = 1;
    if (bytes == 0) return FIRST_CAP;
    for (size_t e = 0; e < list->count; e++)
        if (list->entries[e].kind == HM_LORA_FACTORS) per_rank += numbers_per_rank(&list->entries[e]) * element_bytes;
    uint64_t cap = 4 * (bytes / per_rank + 1);
    return cap < 16 ? 16 : cap < FIRST_CAP * 4 ? (size_t)cap : FIRST_CAP * 4;
}

static hm_status choose(struct spectra *spectra, uint64_t bytes, double error, size_t element_bytes, hm_job *job,
                        hm_error *err)
{
    hm_lora_list *list = spectra->list;
    size_t cap = first_cap(list, bytes, element_bytes);
    for (size_t e = 0; e < list->count; e++) {
        size_t side = smaller_side(&list->entries[e]);
        spectra->of[e].cap = list->entries[e].kind == HM_LORA_FACTORS ? (cap < side ? cap : side) : 0;
    }
    for (bool more = true; more;) {
        HM_TRY(measure_missing(spectra, job, err));
        HM_TRY(share_out(spectra, bytes, error, element_bytes, err));
        /* A layer that takes all we know of it may want more. */
        more = false;
        for (size_t e = 0; e < list->count; e++) {
            struct spectrum *spectrum = &spectra->of[e];
            size_t side = smaller_side(&list->entries[e]);
            if (list->entries[e].rank < spectrum->cap || spectrum->cap == 0 || spectrum->cap == side) continue;
            spectrum->cap = spectrum->cap > side / 2 ? side : 2 * spectrum->cap;
            more = true;
        }
    }
    return HM_OK;
}

/* A file that would hold nothing, or more than was asked for, is no answer. */
static hm_status check_chosen(const hm_lora_list *list, uint64_t bytes, size_t element_bytes, hm_error *err)
{
    double total = 0;
    uint64_t wholes = HM_LORA_METADATA_BYTES;
    bool factors = false, any = false;
    for (size_t e = 0; e < list->count; e++) {
        const hm_lora_entry *entry = &list->entries[e];
        if (entry->kind != HM_LORA_FACTORS) {
            wholes += entry->rows * element_bytes + hm_lora_overhead(entry);
            continue;
        }
        factors = true;
        any = any || entry->rank > 0;
        total += entry->square;
    }
    if (factors && total == 0)
        return hm_fail(err, HM_ERR_MISMATCH, NULL, NULL, "all layers are equal: there is no difference to share bytes out over");
    if (bytes > 0 && (wholes > bytes || (factors && !any)))
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%llu bytes are too few for a LoRA of this model",
                       (unsigned long long)bytes);
    return HM_OK;
}

hm_status hm_lora_choose_ranks(hm_lora_list *list, uint64_t bytes, double error, size_t element_bytes, hm_job *job,
                               hm_error *err)
{
    struct spectra spectra = {.list = list, .of = hm_alloc(list->count, sizeof *spectra.of)};
    if (spectra.of == NULL) return hm_fail_memory(err, "the list of ranks");
    hm_status status = hm_blas_begin(&spectra.blas, err);
    if (status == HM_OK) {
        status = choose(&spectra, bytes, error, element_bytes, job, err);
        hm_blas_end();
    }
    for (size_t e = 0; e < list->count; e++) hm_release(spectra.of[e].squares);
    hm_release(spectra.of);
    return status == HM_OK ? check_chosen(list, bytes, element_bytes, err) : status;
}
