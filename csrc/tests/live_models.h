/* Small hyper-models on disk, and targets in every layout, for the tests of live blends. */
#ifndef HM_TESTS_LIVE_MODELS_H
#define HM_TESTS_LIVE_MODELS_H

#include "kernels/kernels.h"
#include "solve/hyper.h"
#include "tests/check.h"
#include "tests/model_files.h"
#include "tests/points.h"

/* One tensor of a test model.  Its numbers are the same in all inputs when `fixed`. */
typedef struct part {
    const char *name;
    unsigned ndim;
    uint64_t shape[4];
    int fixed;
} part;

enum { PARTS_MOST = 8, MODELS_MOST = 8 };

typedef struct model_set {
    const part *parts;
    size_t part_count, models;
    float *numbers[MODELS_MOST][PARTS_MOST];
    hm_source *sources[MODELS_MOST];
} model_set;

static inline uint64_t part_elements(const part *p)
{
    uint64_t elements = 1;
    for (unsigned d = 0; d < p->ndim; d++) elements *= p->shape[d];
    return elements;
}

static inline void models_begin(model_set *set, const part *parts, size_t part_count, size_t models)
{
    *set = (model_set){.parts = parts, .part_count = part_count, .models = models};
    for (size_t m = 0; m < models; m++) {
        hm_tensor_info infos[PARTS_MOST];
        for (size_t i = 0; i < part_count; i++) {
            uint64_t elements = part_elements(&parts[i]), stride = 1;
            float *numbers = set->numbers[m][i] = malloc((elements + 1) * sizeof *numbers);
            for (uint64_t e = 0; e < elements; e++) {
                double common = sin(0.37 * (double)e + (double)i);
                numbers[e] = (float)(parts[i].fixed ? common : 0.3 * common + 0.05 * uniform());
            }
            infos[i] = (hm_tensor_info){.name = parts[i].name, .dtype = HM_F32, .ndim = parts[i].ndim, .data = numbers};
            memcpy(infos[i].shape, parts[i].shape, sizeof parts[i].shape);
            for (unsigned d = parts[i].ndim; d-- > 0; stride *= parts[i].shape[d])
                infos[i].strides[d] = (int64_t)stride;
        }
        char name[32];
        snprintf(name, sizeof name, "model%zu", m);
        CHECK(hm_source_borrow(&set->sources[m], name, infos, part_count, NULL) == HM_OK);
    }
}

static inline void models_end(model_set *set)
{
    for (size_t m = 0; m < set->models; m++) {
        hm_source_close(set->sources[m]);
        for (size_t i = 0; i < set->part_count; i++) free(set->numbers[m][i]);
    }
}

/* Solves, saves under `path` and opens what was written. */
static inline hm_hyper *make_hyper(const model_set *set, const char *path, const hm_solve_options *solve,
                                   const hm_save_options *save)
{
    hm_hyper *solved = NULL, *opened = NULL;
    hm_error err = {0};
    int good = hm_solve(&solved, set->sources, set->models, solve, NULL, &err) == HM_OK &&
               hm_hyper_save(solved, path, save, NULL, &err) == HM_OK &&
               hm_hyper_open(&opened, path, NULL, 0, &err) == HM_OK;
    if (!CHECK(good)) fprintf(stderr, "    %s\n", err.message);
    hm_hyper_close(solved);
    return opened;
}

/* ---- targets ----------------------------------------------------------------------------------------------------- */

typedef enum layout { ROW_MAJOR, CHANNELS_LAST, ODD, LAYOUTS } layout;
#define GUARD 0xee /* what lies between and around the elements of a target */

typedef struct targets {
    size_t count;
    hm_tensor_info infos[PARTS_MOST];
    const char *names[PARTS_MOST];
    unsigned char *memory[PARTS_MOST];
    size_t memory_bytes[PARTS_MOST];
} targets;

/* Strides in elements and what they span; ODD reverses the first dimension and leaves gaps. */
static inline void lay_out(hm_tensor_info *info, layout how, uint64_t *span, uint64_t *first)
{
    uint64_t stride = how == ODD ? 3 : 1;
    *first = 0;
    if (how == CHANNELS_LAST && info->ndim == 4) {
        static const unsigned order[4] = {1, 3, 2, 0};
        for (size_t i = 0; i < 4; stride *= info->shape[order[i++]]) info->strides[order[i]] = (int64_t)stride;
        *span = stride;
        return;
    }
    for (unsigned d = info->ndim; d-- > 0; stride = stride * info->shape[d] + (how == ODD))
        info->strides[d] = (int64_t)stride;
    *span = stride + 1;
    if (how == ODD && info->ndim > 0 && info->shape[0] > 0) {
        *first = (uint64_t)info->strides[0] * (info->shape[0] - 1);
        info->strides[0] = -info->strides[0];
    }
}

static inline void targets_begin(targets *t, const model_set *set, hm_dtype dtype, layout how)
{
    *t = (targets){.count = set->part_count};
    for (size_t i = 0; i < t->count; i++) {
        hm_tensor_info *info = &t->infos[i];
        uint64_t span, first;
        *info = (hm_tensor_info){.name = set->parts[i].name, .dtype = dtype, .ndim = set->parts[i].ndim};
        memcpy(info->shape, set->parts[i].shape, sizeof set->parts[i].shape);
        info->elements = part_elements(&set->parts[i]);
        lay_out(info, how, &span, &first);
        t->names[i] = info->name;
        t->memory_bytes[i] = (span + 1) * hm_dtype_bytes(dtype);
        t->memory[i] = malloc(t->memory_bytes[i]);
        memset(t->memory[i], GUARD, t->memory_bytes[i]);
        info->data = t->memory[i] + first * hm_dtype_bytes(dtype);
    }
}

static inline void targets_end(targets *t)
{
    for (size_t i = 0; i < t->count; i++) free(t->memory[i]);
}

/* Address of element e in row-major order: nothing shared with the code under test. */
static inline unsigned char *element_at(const hm_tensor_info *info, uint64_t e)
{
    int64_t at = 0;
    for (unsigned d = info->ndim; d-- > 0; e /= info->shape[d]) at += (int64_t)(e % info->shape[d]) * info->strides[d];
    return (unsigned char *)info->data + at * (int64_t)hm_dtype_bytes(info->dtype);
}

/* Row-major bytes of a tensor of a file, converted to `dtype`. */
static inline unsigned char *file_numbers(const hm_source *source, const char *name, hm_dtype dtype)
{
    const hm_kernels *kernels = hm_kernels_best();
    const hm_tensor_info *info = hm_source_find(source, name);
    if (!CHECK(info != NULL)) return NULL;
    unsigned char *raw = malloc(info->bytes + 1), *out = malloc(info->elements * hm_dtype_bytes(dtype) + 1);
    float *numbers = malloc((info->elements + 1) * sizeof *numbers);
    CHECK(hm_file_read(&source->file, raw, info->offset, info->bytes, NULL) == HM_OK);
    if (info->dtype == dtype) {
        memcpy(out, raw, info->bytes);
    } else {
        kernels->load[info->dtype](raw, numbers, info->elements);
        kernels->store[dtype](numbers, out, info->elements);
    }
    free(raw);
    free(numbers);
    return out;
}

/* Puts a file's tensors into the targets. */
static inline void targets_load(targets *t, const hm_source *source)
{
    for (size_t i = 0; i < t->count; i++) {
        size_t size = hm_dtype_bytes(t->infos[i].dtype);
        unsigned char *numbers = file_numbers(source, t->names[i], t->infos[i].dtype);
        for (uint64_t e = 0; numbers != NULL && e < t->infos[i].elements; e++)
            memcpy(element_at(&t->infos[i], e), numbers + e * size, size);
        free(numbers);
    }
}

/* Do the targets that move hold the file's numbers, bit for bit, and is nothing written beside them? */
static inline int targets_equal(const targets *t, const model_set *set, const hm_source *source)
{
    for (size_t i = 0; i < t->count; i++) {
        size_t size = hm_dtype_bytes(t->infos[i].dtype), guards = 0;
        if (set->parts[i].fixed) continue;
        unsigned char *numbers = file_numbers(source, t->names[i], t->infos[i].dtype);
        unsigned char *copy = malloc(t->memory_bytes[i]);
        int same = numbers != NULL;
        memcpy(copy, t->memory[i], t->memory_bytes[i]);
        for (uint64_t e = 0; same && e < t->infos[i].elements; e++) {
            const unsigned char *at = element_at(&t->infos[i], e);
            same = memcmp(at, numbers + e * size, size) == 0;
            memset(copy + (at - t->memory[i]), GUARD, size);
        }
        while (same && guards < t->memory_bytes[i] && copy[guards] == GUARD) guards++;
        same = same && guards == t->memory_bytes[i];
        free(numbers);
        free(copy);
        if (!same) {
            fprintf(stderr, "    %s (%s) differs\n", t->names[i], hm_dtype_name(t->infos[i].dtype));
            return 0;
        }
    }
    return 1;
}

/* All memory of the targets, to see whether anything at all was touched. */
static inline unsigned char *targets_copy(const targets *t, size_t *bytes)
{
    *bytes = 0;
    for (size_t i = 0; i < t->count; i++) *bytes += t->memory_bytes[i];
    unsigned char *copy = malloc(*bytes + 1), *to = copy;
    for (size_t i = 0; i < t->count; to += t->memory_bytes[i++]) memcpy(to, t->memory[i], t->memory_bytes[i]);
    return copy;
}

/* Frees the copy. */
static inline int targets_untouched(const targets *t, unsigned char *copy)
{
    size_t bytes;
    unsigned char *now = targets_copy(t, &bytes);
    int same = memcmp(now, copy, bytes) == 0;
    free(now);
    free(copy);
    return same;
}

#endif
