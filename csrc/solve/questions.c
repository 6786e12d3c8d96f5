#include "solve/questions.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "io/header_write.h"
#include "kernels/kernels.h"

static void add_triangle(double *full, const double *triangle, size_t m)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j <= i; j++) {
            full[i * m + j] += triangle[HM_TRIANGLE(i, j)];
            if (i != j) full[j * m + i] += triangle[HM_TRIANGLE(i, j)];
        }
}

/* Half a unit in the last place of 1.  (f64 is computed with as f32.) */
static const double half_units[HM_DTYPE_COUNT] = {[HM_F64] = 0x1p-24,    [HM_F32] = 0x1p-24,    [HM_F16] = 0x1p-11,
                                                  [HM_BF16] = 0x1p-8,    [HM_F8_E4M3] = 0x1p-4, [HM_F8_E5M2] = 0x1p-3};

/* The error of rounding x = m · 2^e, 1 ≤ m < 2, lies anywhere within ± u · 2^e, u = half_units: its mean square is
 * u² 4^e / 3 = x² u² / (3 m²), at most x² u² / 3.  (Over evenly spread m it is 3/7 of that.) */
static void sum_rounding(const hm_plan *plan, const hm_gram_result *grams, double *out)
{
    size_t count = 0;
    for (size_t m = 0; m < plan->source_count; m++) out[m] = 0;
    for (size_t t = 0; t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE) continue;
        double square = grams->reference[count++];
        for (size_t m = 0; m < plan->source_count; m++) {
            uint32_t index = plan->index[t * plan->source_count + m];
            if (index == HM_ABSENT) continue;
            double u = half_units[plan->sources[m]->header.tensors[index].dtype];
            out[m] += square * u * u / 3;
        }
    }
    for (size_t m = 0; m < plan->source_count; m++) out[m] = sqrt(out[m]);
}

hm_status hm_measure_plan(const hm_plan *plan, bool subtract_first, bool allow_nonfinite, double *total, double *blocks,
                          double *rounding, hm_job *job, hm_error *err)
{
    size_t members = plan->source_count, count = 0;
    hm_stream_row rows[HM_MAX_MEMBERS + 1];
    uint64_t *elements = hm_alloc(plan->merged_count, sizeof *elements);
    const char **names = hm_alloc(plan->merged_count, sizeof *names);
    uint32_t *index = hm_alloc(plan->merged_count * members, sizeof *index);
    unsigned *block = hm_alloc(plan->merged_count, sizeof *block);
    hm_gram_result grams = {0};
    hm_status status = HM_OK;
    if (elements == NULL || names == NULL || index == NULL || block == NULL) status = hm_fail_memory(err, "the list of tensors");
    for (size_t t = 0; status == HM_OK && t < plan->count; t++) {
        if (plan->tensors[t].action != HM_ACTION_MERGE) continue;
        elements[count] = plan->tensors[t].like->elements;
        names[count] = plan->tensors[t].like->name;
        block[count] = plan->tensors[t].block;
        memcpy(index + count * members, plan->index + t * members, members * sizeof *index);
        count++;
    }
    for (size_t m = 0; m < members; m++)
        rows[m] = (hm_stream_row){.source = plan->sources[m], .index = index + m, .stride = members};
    if (plan->sources[0]->is_lora) subtract_first = false; /* LoRAs: differences as they are */
    hm_gram_spec spec = {.row_count = members,
                         .rows = rows,
                         .gram_rows = members,
                         .reference = subtract_first ? 0 : HM_GRAM_NO_REFERENCE,
                         .reference_low = HM_GRAM_NO_REFERENCE,
                         .tensor_count = count,
                         .elements = elements,
                         .names = names,
                         .allow_nonfinite = allow_nonfinite,
                         .measure_reference = subtract_first && rounding != NULL};
    if (status == HM_OK) status = hm_gram_measure(&grams, &spec, job, err);
    if (status == HM_OK && rounding != NULL) sum_rounding(plan, &grams, rounding);
    if (status == HM_OK) {
        size_t square = members * members, triangle = HM_TRIANGLE(members, 0);
        memset(total, 0, square * sizeof *total);
        if (blocks != NULL) memset(blocks, 0, plan->block_count * square * sizeof *blocks);
        for (size_t t = 0; t < count; t++) {
            add_triangle(total, grams.grams + t * triangle, members);
            if (blocks != NULL) add_triangle(blocks + block[t] * square, grams.grams + t * triangle, members);
        }
    }
    hm_gram_clear(&grams);
    hm_release(elements);
    hm_release(names);
    hm_release(index);
    hm_release(block);
    return status;
}

static void put_key(hm_text *text, const char *key)
{
    if (text->length > 0 && text->data[text->length - 1] != '{') hm_text_put(text, ",");
    hm_json_string(text, key);
    hm_text_put(text, ":");
}

void hm_put_vector(hm_text *text, const char *key, const double *values, size_t count)
{
    put_key(text, key);
    hm_json_numbers(text, values, count);
}

void hm_put_matrix(hm_text *text, const char *key, const double *values, size_t rows, size_t columns)
{
    put_key(text, key);
    hm_text_put(text, "[");
    for (size_t i = 0; i < rows; i++) {
        if (i > 0) hm_text_put(text, ",");
        hm_json_numbers(text, values + i * columns, columns);
    }
    hm_text_put(text, "]");
}

hm_status hm_give_text(hm_text *text, char **out, hm_error *err)
{
    if (text->failed) {
        hm_text_clear(text);
        return hm_fail_memory(err, "the answer");
    }
    *out = text->data;
    return HM_OK;
}
