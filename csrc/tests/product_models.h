/* Factors with numbers of their own, in files and in memory, and the products in f64. */
#ifndef HM_TESTS_PRODUCT_MODELS_H
#define HM_TESTS_PRODUCT_MODELS_H

#include "kernels/kernels.h"
#include "tests/check.h"
#include "tests/model_files.h"
#include "tests/points.h"

/* A tensor of a test file, with random numbers. */
typedef struct numbered {
    spec as;
    uint64_t elements, bytes;
    float *numbers;        /* as they come back from `stored` */
    unsigned char *stored;
} numbered;

static inline void numbered_fill(numbered *n)
{
    const hm_kernels *kernels = hm_kernels_best();
    hm_tensor_info info = spec_info(&n->as);
    n->elements = info.elements;
    n->bytes = info.bytes;
    n->numbers = malloc((info.elements + 1) * sizeof *n->numbers);
    n->stored = calloc(info.bytes + 1, 1);
    for (uint64_t i = 0; i < info.elements; i++) n->numbers[i] = (float)uniform();
    if (!hm_dtype_is_float(info.dtype)) return;
    kernels->store[info.dtype](n->numbers, n->stored, info.elements);
    kernels->load[info.dtype](n->stored, n->numbers, info.elements);
}

static inline void numbered_clear(numbered *n, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(n[i].numbers);
        free(n[i].stored);
    }
}

/* Fills and writes them, in their order. */
static inline int write_numbered(const char *path, numbered *n, size_t count, const hm_meta *meta, size_t meta_count)
{
    hm_tensor_info infos[16] = {0};
    hm_text header = {0};
    for (size_t i = 0; i < count; i++) infos[i] = spec_info(&n[i].as);
    int good = hm_header_write(&header, infos, count, meta, meta_count, 0, NULL) == HM_OK && !header.failed;
    FILE *file = good ? fopen(path, "wb") : NULL;
    good = file != NULL && fwrite(header.data, 1, header.length, file) == header.length;
    for (size_t i = 0; i < count; i++) {
        numbered_fill(&n[i]);
        good = good && fwrite(n[i].stored, 1, n[i].bytes, file) == n[i].bytes;
    }
    if (file != NULL) good = fclose(file) == 0 && good;
    hm_text_clear(&header);
    return good;
}

/* The same tensors where they lie in memory. */
static inline hm_status borrow_numbered(hm_source **out, const numbered *n, size_t count)
{
    hm_tensor_info infos[16] = {0};
    for (size_t i = 0; i < count; i++) {
        infos[i] = spec_info(&n[i].as);
        infos[i].data = n[i].stored;
        int64_t stride = 1;
        for (unsigned d = infos[i].ndim; d-- > 0; stride *= (int64_t)infos[i].shape[d]) infos[i].strides[d] = stride;
    }
    return hm_source_borrow(out, "memory", infos, count, NULL);
}

/* Largest difference between `got` and up · down, in units of what r roundings of f32 may cost at that element. */
static inline double worst_error(const float *got, const numbered *up, const numbered *down)
{
    uint64_t rank = (uint64_t)up->as.shape[1], rows = up->elements / rank, columns = down->elements / rank;
    double worst = 0;
    for (uint64_t i = 0; i < rows; i++)
        for (uint64_t j = 0; j < columns; j++) {
            double sum = 0, size = 0;
            for (uint64_t k = 0; k < rank; k++) {
                double term = (double)up->numbers[i * rank + k] * (double)down->numbers[k * columns + j];
                sum += term;
                size += fabs(term);
            }
            double unit = ((double)rank + 1) * size * 0x1p-24 + 1e-30;
            worst = fmax(worst, fabs((double)got[i * columns + j] - sum) / unit);
        }
    return worst;
}

#endif
