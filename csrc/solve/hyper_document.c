/* The `hypermerge` metadata document: everything that answers questions about a hyper-model without its weights. */
#include <math.h>

#include "base/error.h"
#include "io/document.h"
#include "io/header_write.h"
#include "lowrank/hyper_lora.h"
#include "solve/hyper.h"

#define BLOCK_GRAM_MARGIN ((size_t)HM_MAX_MEMBERS * 64)

static void put_matrix(hm_text *out, const double *matrix, size_t rows, size_t columns)
{
    hm_text_put(out, "[");
    for (size_t i = 0; i < rows; i++) {
        if (i > 0) hm_text_put(out, ",");
        hm_json_numbers(out, matrix + i * columns, columns);
    }
    hm_text_put(out, "]");
}

static void put_pair(hm_text *out, const char *key, const char *value)
{
    hm_text_put(out, ",");
    hm_json_string(out, key);
    hm_text_put(out, ":");
    hm_json_string(out, value);
}

static void put_texts(hm_text *out, const char *key, char *const *texts, size_t count)
{
    hm_json_string(out, key);
    hm_text_put(out, ":[");
    for (size_t i = 0; i < count; i++) {
        if (i > 0) hm_text_put(out, ",");
        hm_json_string(out, texts[i]);
    }
    hm_text_put(out, "]");
}

static const char *base_kind(hm_base base)
{
    return base == HM_BASE_MEAN ? "mean" : base == HM_BASE_FILE ? "file" : "none";
}

static void put_base(hm_text *out, const hm_hyper *hyper)
{
    hm_text_put(out, "\"base\":{\"kind\":");
    hm_json_string(out, base_kind(hyper->base));
    if (hyper->base_name != NULL) {
        put_pair(out, "name", hyper->base_name);
        hm_text_format(out, ",\"size\":%llu", (unsigned long long)hyper->base_bytes);
        if (hyper->base_header_hash[0] != 0) put_pair(out, "header_hash", hyper->base_header_hash);
        if (hyper->base_sha256[0] != 0) put_pair(out, "sha256", hyper->base_sha256);
    }
    hm_text_put(out, "}");
}

static void put_members(hm_text *out, const hm_hyper *hyper, const double *residual_stored)
{
    const hm_solution *solution = &hyper->solution;
    hm_text_put(out, "\"members\":[");
    for (size_t m = 0; m < solution->members; m++) {
        const hm_member *member = &hyper->members[m];
        hm_text_put(out, m > 0 ? ",{\"name\":" : "{\"name\":");
        hm_json_string(out, member->name);
        if (member->header_hash[0] != 0) put_pair(out, "header_hash", member->header_hash);
        if (member->sha256[0] != 0) put_pair(out, "sha256", member->sha256);
        if (member->is_lora) put_pair(out, "kind", "lora");
        hm_text_put(out, ",\"multipliers\":");
        hm_json_numbers(out, solution->multipliers + m * solution->directions, solution->directions);
        hm_text_put(out, ",\"residual\":");
        hm_json_number(out, solution->residual[m]);
        if (residual_stored != NULL) {
            hm_text_put(out, ",\"residual_stored\":");
            hm_json_number(out, residual_stored[m]);
        }
        hm_text_put(out, ",\"norm\":");
        hm_json_number(out, solution->norm[m]);
        if (hyper->weights != NULL) {
            hm_text_put(out, ",\"weight\":");
            hm_json_number(out, hyper->weights[m]);
        }
        hm_text_put(out, "}");
    }
    hm_text_put(out, "]");
}

/* How much of a block's own variance each direction explains: v_kᵀ G_b v_k / tr G_b with v_k the k-th eigenvector of the
 * whole (√w G √w where weighted).  v_mk = √w_m · c_mk · s_k, and s_k² = 1 / Σ_m w_m c_mk². */
static void block_explained(const hm_hyper *hyper, const double *gram, double *out)
{
    const hm_solution *solution = &hyper->solution;
    size_t members = solution->members, directions = solution->directions;
    double total = 0;
    for (size_t m = 0; m < members; m++) total += (hyper->weights != NULL ? hyper->weights[m] : 1) * gram[m * members + m];
    for (size_t k = 0; k < directions; k++) {
        double square = 0, form = 0;
        for (size_t i = 0; i < members; i++) {
            double wi = hyper->weights != NULL ? hyper->weights[i] : 1, ci = solution->multipliers[i * directions + k];
            square += wi * ci * ci;
            for (size_t j = 0; j < members; j++) {
                double wj = hyper->weights != NULL ? hyper->weights[j] : 1;
                form += wi * ci * gram[i * members + j] * wj * solution->multipliers[j * directions + k];
            }
        }
        out[k] = total > 0 && square > 0 ? form / square / total : 0;
    }
}

static void put_blocks(hm_text *out, const hm_hyper *hyper, bool with_grams)
{
    size_t members = hyper->solution.members, directions = hyper->solution.directions;
    double explained[HM_MAX_MEMBERS];
    hm_text_put(out, "\"blocks\":{");
    for (size_t b = 0; b < hyper->block_count; b++) {
        const hm_block_share *block = &hyper->blocks[b];
        double total = 0;
        for (size_t m = 0; m < members; m++) total += block->gram[m * members + m];
        if (block->explained == NULL) block_explained(hyper, block->gram, explained);
        if (b > 0) hm_text_put(out, ",");
        hm_json_string(out, block->name);
        hm_text_put(out, ":{\"component\":");
        hm_json_string(out, hm_component_name(block->component));
        hm_text_put(out, ",\"total\":");
        hm_json_number(out, total);
        hm_text_put(out, ",\"explained\":");
        hm_json_numbers(out, block->explained != NULL ? block->explained : explained, directions);
        if (with_grams) {
            hm_text_put(out, ",\"gram\":");
            put_matrix(out, block->gram, members, members);
        }
        hm_text_put(out, "}");
    }
    hm_text_put(out, "}");
}

static void put_loras(hm_text *out, const hm_hyper_loras *loras)
{
    hm_text_put(out, ",\"ranks\":[");
    for (size_t k = 0; k < loras->directions; k++) hm_text_format(out, k > 0 ? ",%u" : "%u", loras->ranks[k]);
    hm_text_put(out, "],\"losses\":");
    hm_json_numbers(out, loras->losses, loras->loss_count);
    hm_text_put(out, ",\"direction_gram\":");
    put_matrix(out, loras->gram, loras->directions, loras->directions);
}

static void put_document(hm_text *out, const hm_hyper *hyper, const double *residual_stored, bool with_block_grams)
{
    const hm_solution *solution = &hyper->solution;
    hm_text_format(out, "{\"version\":%d,\"method\":", HM_DOCUMENT_VERSION);
    hm_json_string(out, hyper->ranked ? HM_METHOD_RANKED : solution->method == HM_ALS ? "als" : "exact");
    hm_text_put(out, ",\"generator\":\"hyper-merge " HM_VERSION "\"");
    put_pair(out, "family", hyper->family);
    hm_text_put(out, ",");
    put_base(out, hyper);
    hm_text_format(out, ",\"directions\":%zu,\"rank\":%zu,", solution->directions, solution->rank);
    put_members(out, hyper, residual_stored);
    hm_text_put(out, ",\"explained_variance_ratio\":");
    hm_json_numbers(out, solution->explained, solution->directions);
    hm_text_put(out, ",\"spectrum\":");
    hm_json_numbers(out, solution->eigenvalues, solution->members);
    hm_text_put(out, ",\"loss\":");
    hm_json_number(out, solution->loss);
    hm_text_put(out, ",\"total\":");
    hm_json_number(out, solution->total);
    if (solution->method == HM_ALS) {
        hm_text_format(out, ",\"iterations\":%zu,\"loss_history\":", solution->iterations);
        hm_json_numbers(out, solution->history, solution->history_count);
    }
    if (hyper->loras != NULL) put_loras(out, hyper->loras);
    hm_text_put(out, ",\"selection\":{");
    put_texts(out, "include", hyper->include, hyper->include_count);
    hm_text_put(out, ",");
    put_texts(out, "exclude", hyper->exclude, hyper->exclude_count);
    hm_text_format(out, ",\"common\":%s}", hyper->common ? "true" : "false");
    if (hyper->unmoved_count > 0) {
        hm_text_put(out, ",");
        put_texts(out, "unmoved", hyper->unmoved, hyper->unmoved_count);
    }
    if (hyper->plan != NULL) {
        size_t moving = 0;
        for (size_t t = 0; t < hyper->plan->count; t++) moving += hyper->moves[t] ? 1 : 0;
        hm_text_format(out, ",\"tensors\":{\"merged\":%zu,\"with_directions\":%zu,\"copied\":%zu,\"elements\":%llu}",
                       hyper->plan->merged_count, moving, hyper->plan->count - hyper->plan->merged_count,
                       (unsigned long long)hyper->plan->merged_elements);
        hm_text_put(out, ",");
        put_texts(out, "notes", hyper->plan->notes, hyper->plan->note_count);
    }
    hm_text_put(out, ",");
    put_blocks(out, hyper, with_block_grams);
    hm_text_put(out, ",\"gram\":");
    put_matrix(out, hyper->gram, solution->members, solution->members);
    hm_text_put(out, "}");
}

hm_status hm_document_write(const hm_hyper *hyper, const double *residual_stored, hm_text *out, hm_error *err)
{
    size_t before = out->length;
    put_document(out, hyper, residual_stored, true);
    if (!out->failed && out->length - before > HM_DOCUMENT_CAP - BLOCK_GRAM_MARGIN) {
        /* 64 members times 60 blocks: the shares per block stay, their Gram matrices do not fit.  The margin keeps this
         * decision the same for the text with placeholders and the final one, which is shorter by a few bytes a member. */
        out->length = before;
        put_document(out, hyper, residual_stored, false);
    }
    if (!out->failed && out->length - before > HM_DOCUMENT_CAP)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the metadata of so many models does not fit; merge fewer at a time");
    return out->failed ? hm_fail_memory(err, "the metadata document") : HM_OK;
}
