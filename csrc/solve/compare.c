/* hm_compare: how M checkpoints lie to one another, from one read of each. */
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "io/header_write.h"
#include "lowrank/lora_read.h"
#include "solve/questions.h"
#include "solve/solution.h"

/* Two inputs count as one when they differ by less than this share of the largest distance in the set.  Equal files give
 * exactly 0; this leaves room for nothing but the rounding of the sums. */
#define DUPLICATE_SHARE 1e-6

static void put_names(hm_text *text, const hm_plan *plan, const size_t *which, size_t count)
{
    hm_text_put(text, "[");
    for (size_t i = 0; i < count; i++) {
        if (i > 0) hm_text_put(text, ",");
        hm_json_string(text, hm_source_name(plan->sources[which[i]]));
    }
    hm_text_put(text, "]");
}

/* [[name, name, …], …]: groups of equal inputs. */
static void put_duplicates(hm_text *text, const hm_plan *plan, const double *distance)
{
    size_t members = plan->source_count, group[HM_MAX_MEMBERS];
    double largest = 0;
    bool taken[HM_MAX_MEMBERS] = {false}, any = false;
    for (size_t i = 0; i < members * members; i++) largest = fmax(largest, distance[i]);
    hm_text_put(text, ",\"duplicates\":[");
    for (size_t i = 0; i < members; i++) {
        size_t size = 0;
        if (taken[i]) continue;
        group[size++] = i;
        for (size_t j = i + 1; j < members; j++)
            if (!taken[j] && distance[i * members + j] <= DUPLICATE_SHARE * largest) {
                taken[j] = true;
                group[size++] = j;
            }
        if (size < 2) continue;
        if (any) hm_text_put(text, ",");
        any = true;
        put_names(text, plan, group, size);
    }
    hm_text_put(text, "]");
}

static void put_answer(hm_text *text, const hm_plan *plan, const double *about_first, const double *about_mean,
                       const double *to_hull, const double *rounding)
{
    size_t members = plan->source_count, all[HM_MAX_MEMBERS];
    double distance[HM_MAX_MEMBERS * HM_MAX_MEMBERS], cosine[HM_MAX_MEMBERS * HM_MAX_MEMBERS], norm[HM_MAX_MEMBERS];
    for (size_t i = 0; i < members; i++) {
        all[i] = i;
        norm[i] = sqrt(fmax(about_mean[i * members + i], 0));
    }
    for (size_t i = 0; i < members; i++)
        for (size_t j = 0; j < members; j++) {
            double square = about_first[i * members + i] + about_first[j * members + j] - 2 * about_first[i * members + j];
            double product = norm[i] * norm[j];
            distance[i * members + j] = i == j ? 0 : sqrt(fmax(square, 0));
            cosine[i * members + j] = product > 0 ? fmin(1, fmax(-1, about_mean[i * members + j] / product)) : 0;
        }
    hm_text_put(text, "{\"models\":");
    put_names(text, plan, all, members);
    hm_text_put(text, ",\"family\":");
    hm_json_string(text, plan->family);
    hm_text_format(text, ",\"tensors\":%zu,\"elements\":%llu", plan->merged_count, (unsigned long long)plan->merged_elements);
    hm_put_matrix(text, "gram", about_mean, members, members);
    hm_put_matrix(text, "distance", distance, members, members);
    hm_put_matrix(text, "cosine", cosine, members, members);
    hm_put_vector(text, "norm", norm, members);
    hm_put_vector(text, "distance_to_others", to_hull, members);
    hm_put_vector(text, "rounding", rounding, members);
    put_duplicates(text, plan, distance);
    hm_text_put(text, ",\"notes\":[");
    for (size_t i = 0; i < plan->note_count; i++) {
        if (i > 0) hm_text_put(text, ",");
        hm_json_string(text, plan->notes[i]);
    }
    hm_text_put(text, "]}");
}

hm_status hm_compare(hm_source *const *sources, size_t count, const hm_selection *selection, char **out_json, hm_job *job,
                     hm_error *err)
{
    static const hm_selection everything = {0};
    if (selection == NULL) selection = &everything;
    if (count < 2 || count > HM_MAX_MEMBERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu model%s given; compare takes 2 to %d", count,
                       count == 1 ? " was" : "s were", HM_MAX_MEMBERS);
    for (size_t i = 0; i < count; i++)
        if (sources[i] == NULL) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "a model is missing");
    hm_plan *plan = NULL;
    hm_source *read[HM_MAX_MEMBERS];
    HM_TRY(hm_lora_read_all(read, sources, count, NULL, false, err));
    hm_status planned = hm_plan_make(&plan, read, count, NULL, NULL, selection, err);
    for (size_t i = 0; i < count; i++) hm_source_close(read[i]);
    HM_TRY(planned);
    size_t square = count * count;
    double *about_first = hm_alloc(2 * square, sizeof(double)), *about_mean, to_hull[HM_MAX_MEMBERS], rounding[HM_MAX_MEMBERS];
    hm_status status = HM_OK;
    if (about_first == NULL) status = hm_fail_memory(err, "the Gram matrix");
    if (status == HM_OK)
        status = hm_measure_plan(plan, true, selection->allow_nonfinite, about_first, NULL, rounding, job, err);
    if (status == HM_OK) {
        about_mean = about_first + square;
        memcpy(about_mean, about_first, square * sizeof(double));
        hm_gram_centre(about_mean, count, NULL);
        status = hm_hull_distances(about_first, count, to_hull, err);
        if (status == HM_OK) {
            hm_text text = {0};
            put_answer(&text, plan, about_first, about_mean, to_hull, rounding);
            status = hm_give_text(&text, out_json, err);
        }
    }
    hm_release(about_first);
    hm_plan_free(plan);
    return status;
}
