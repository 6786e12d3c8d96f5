/* hm_hyper_save: the files of a hyper-model.  The numbers in them are those of save_pass.c. */
#include <math.h>
#include <string.h>

#include "apply/layout.h"
#include "apply/recipe.h"
#include "apply/save_pass.h"
#include "base/error.h"
#include "lowrank/hyper_lora.h"
#include "lowrank/lora_save.h"

/* Storing the mean may cost this share of the smallest Δ before base_low is added. */
#define LOW_THRESHOLD 0.01

/* ---- metadata and files ------------------------------------------------------------------------------------------------ */

hm_status hm_hyper_meta(hm_meta_list *meta, const hm_hyper *hyper, const char *path, const double *residual_stored,
                        const char *data_hash, bool with_document, hm_error *err)
{
    char *title = hm_title_of(path);
    if (title == NULL) return hm_fail_memory(err, "metadata");
    if (with_document) {
        hm_text document = {0};
        hm_status status = hm_document_write(hyper, residual_stored, &document, err);
        if (status == HM_OK) hm_meta_add(meta, "hypermerge", document.data);
        hm_text_clear(&document);
        if (status != HM_OK) {
            hm_release(title);
            return status;
        }
    }
    hm_meta_add_standard(meta, hyper, title, data_hash);
    hm_meta_add(meta, "sd_merge_recipe", "{\"type\":\"hyper-merge\"}");
    hm_release(title);
    return meta->failed ? hm_fail_memory(err, "metadata") : HM_OK;
}

/* NAME.hyper.safetensors → NAME.base.safetensors. */
static char *base_path_of(const char *path, hm_error *err)
{
    static const char *const endings[] = {".hyper.safetensors", ".safetensors"};
    size_t length = strlen(path);
    for (size_t i = 0; i < 2; i++) {
        size_t ending = strlen(endings[i]);
        if (length > ending && strcmp(path + length - ending, endings[i]) == 0) {
            length -= ending;
            break;
        }
    }
    hm_text text = {0};
    hm_text_add(&text, path, length);
    hm_text_put(&text, ".base.safetensors");
    if (!text.failed) return text.data;
    hm_text_clear(&text);
    hm_fail_memory(err, "a path");
    return NULL;
}

/* Everything that save opens, so that one place closes it. */
struct save_files {
    hm_layout layout;
    hm_output base, hyper;
    hm_meta_list meta;
    hm_tensor_info *all;
    char *base_path;
    double *placeholders, *stored; /* residual_stored before and after the pass */
};

static bool wants_low(const hm_hyper *hyper, const hm_save_options *options)
{
    if (hyper->base != HM_BASE_MEAN) return false;
    double largest = 0, smallest = INFINITY;
    for (size_t m = 0; m < hyper->solution.members; m++) largest = fmax(largest, hyper->solution.norm[m]);
    for (size_t m = 0; m < hyper->solution.members; m++) /* a model that is the mean itself has no Δ to lose */
        if (hyper->solution.norm[m] > 1e-6 * largest) smallest = fmin(smallest, hyper->solution.norm[m]);
    return options->base_low || sqrt(hyper->rounding) > LOW_THRESHOLD * smallest;
}

static hm_status begin_files(struct save_files *files, struct hm_save_pass *pass, const char *path,
                             const hm_save_options *options, hm_error *err)
{
    bool split = options->split;
    hm_hyper *hyper = pass->hyper;
    const hm_layout *layout = &files->layout;
    size_t members = hyper->solution.members;
    files->placeholders = hm_alloc(members, sizeof(double));
    files->all = hm_alloc(layout->base_count + layout->extra_count, sizeof *files->all);
    if (files->placeholders == NULL || files->all == NULL) return hm_fail_memory(err, "the layout of a file");
    for (size_t m = 0; m < members; m++) files->placeholders[m] = HM_NUMBER_PLACEHOLDER;

    if (split) {
        /* A split-off base is written front to back, so its hash costs nothing. */
        HM_TRY(hm_hyper_meta(&files->meta, hyper, files->base_path, NULL, HM_HASH_PLACEHOLDER, false, err));
        HM_TRY(hm_output_begin(&files->base, files->base_path, layout->base, layout->base_count, files->meta.entries,
                               files->meta.count, err));
        hm_meta_clear(&files->meta);
        const char *slash = strrchr(files->base_path, '/');
        hyper->base_name = hm_copy_text(slash != NULL ? slash + 1 : files->base_path);
        if (hyper->base_name == NULL) return hm_fail_memory(err, "a name");
        memcpy(hyper->base_header_hash, HM_HASH_PLACEHOLDER, sizeof hyper->base_header_hash);
        hyper->base_bytes = files->base.end;
    }
    size_t base_here = split ? 0 : layout->base_count;
    if (base_here > 0) memcpy(files->all, layout->base, base_here * sizeof *files->all);
    memcpy(files->all + base_here, layout->extra, layout->extra_count * sizeof *files->all);
    HM_TRY(hm_hyper_meta(&files->meta, hyper, path, files->placeholders, options->hash ? HM_HASH_PLACEHOLDER : NULL, true, err));
    HM_TRY(hm_output_begin(&files->hyper, path, files->all, base_here + layout->extra_count, files->meta.entries,
                           files->meta.count, err));
    hm_meta_clear(&files->meta);
    pass->base_out = split ? &files->base : &files->hyper;
    pass->extra_out = &files->hyper;
    pass->extra_from = base_here;
    return HM_OK;
}

static hm_status finish_files(struct save_files *files, struct hm_save_pass *pass, const char *path,
                              const hm_save_options *options, hm_job *job, hm_error *err)
{
    bool split = options->split;
    hm_hyper *hyper = pass->hyper;
    size_t members = hyper->solution.members;
    char hash[65];
    double *stored = hm_alloc(members, sizeof(double));
    if (stored == NULL) return hm_fail_memory(err, "the residuals");
    for (size_t m = 0; m < members; m++) {
        double norm = hyper->solution.norm[m];
        stored[m] = norm > 0 ? sqrt(pass->left[m]) / norm : 0;
    }
    hm_release(files->stored);
    files->stored = stored;
    /* Whatever takes time or can fail comes before the first file is put in place: the two belong together. */
    if (split) {
        HM_TRY(hm_output_data_hash(&files->base, hash, job, err));
        HM_TRY(hm_hyper_meta(&files->meta, hyper, files->base_path, NULL, hash, false, err));
        HM_TRY(hm_output_finish(&files->base, files->meta.entries, files->meta.count, hyper->base_header_hash, err));
        hm_meta_clear(&files->meta);
    }
    if (options->hash) HM_TRY(hm_output_data_hash(&files->hyper, hash, job, err));
    HM_TRY(hm_hyper_meta(&files->meta, hyper, path, stored, options->hash ? hash : NULL, true, err));
    HM_TRY(hm_output_finish(&files->hyper, files->meta.entries, files->meta.count, NULL, err));
    HM_TRY(hm_output_check(&files->hyper, err)); /* before the first: nothing that can be foreseen may stop the second */
    if (split) HM_TRY(hm_output_publish(&files->base, err));
    return hm_outfile_publish(&files->hyper.file, err);
}

static hm_status check_targets(const struct save_files *files, const hm_hyper *hyper, const char *path,
                               const hm_save_options *options, hm_error *err)
{
    const hm_plan *plan = hyper->plan;
    HM_TRY(hm_output_check_target(path, plan->sources, plan->source_count, options->force, err));
    HM_TRY(hm_output_check_target(path, &plan->base, 1, options->force, err));
    if (files->base_path == NULL) return HM_OK;
    return hm_output_check_target(files->base_path, plan->sources, plan->source_count, options->force, err);
}

/* What the document says of a W̃ that an earlier save split off.  The document is written before the files are there, so it
 * speaks of the new one at once; when that does not come about, the earlier one is still what there is. */
struct split_off {
    char *name;
    char header_hash[65];
    uint64_t bytes;
};

static struct split_off forget_split_off(hm_hyper *hyper)
{
    struct split_off earlier = {0};
    if (hyper->base != HM_BASE_MEAN) return earlier;
    earlier.name = hyper->base_name;
    earlier.bytes = hyper->base_bytes;
    memcpy(earlier.header_hash, hyper->base_header_hash, sizeof earlier.header_hash);
    hyper->base_name = NULL;
    return earlier;
}

static void settle_split_off(hm_hyper *hyper, struct split_off earlier, bool saved)
{
    if (hyper->base != HM_BASE_MEAN) return;
    hm_release(saved ? earlier.name : hyper->base_name);
    if (saved) return;
    hyper->base_name = earlier.name;
    hyper->base_bytes = earlier.bytes;
    memcpy(hyper->base_header_hash, earlier.header_hash, sizeof earlier.header_hash);
}

hm_status hm_hyper_save(hm_hyper *hyper, const char *path, const hm_save_options *options, hm_job *job, hm_error *err)
{
    static const hm_save_options defaults = {0};
    if (options == NULL) options = &defaults;
    if (hyper->plan == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(hyper->file), NULL, "is already a file; copy it");
    if (hyper->base == HM_BASE_FILE && hm_source_path(hyper->plan->base) == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(hyper->plan->base), NULL,
                       "is the base and lies in memory; save it as a file first: a hyper-model links its base by file name");
    bool split = options->split;
    if (split && hyper->base != HM_BASE_MEAN)
        return hm_fail(err, HM_ERR_ARGUMENT, path, NULL, "only a mean base can be split off; other bases are not in the file");

    if (hm_lora_save_fits(hyper)) return hm_lora_save(hyper, path, options, job, err);

    struct save_files files = {.base = HM_OUTPUT_CLOSED, .hyper = HM_OUTPUT_CLOSED};
    struct hm_save_pass pass = {.hyper = hyper,
                             .layout = &files.layout,
                             .kernels = hm_kernels_best(),
                             .members = hyper->solution.members,
                             .directions = hyper->solution.directions,
                             .mixed = hyper->loras != NULL ? 0 : hyper->solution.directions};
    hm_status status = HM_OK;
    const struct split_off earlier = forget_split_off(hyper);
    if (split) { /* where the loader will look for it: beside the file itself, not beside a link to it */
        hm_error reason = {0};
        char *full = hm_path_resolve(path, &reason);
        files.base_path = full != NULL ? base_path_of(full, &reason) : NULL;
        if (files.base_path == NULL) status = reason.status;
        if (status != HM_OK && err != NULL) *err = reason;
        hm_release(full);
    }
    if (status == HM_OK) status = check_targets(&files, hyper, path, options, err);
    if (status == HM_OK) status = hm_layout_make(&files.layout, hyper, wants_low(hyper, options), split, err);
    if (status == HM_OK) status = begin_files(&files, &pass, path, options, err);
    if (status == HM_OK) status = hm_save_run(&pass, job, err);
    if (status == HM_OK) status = finish_files(&files, &pass, path, options, job, err);
    if (status == HM_OK) { /* the file is there: what was measured on it becomes part of the document */
        hm_release(hyper->residual_stored);
        hyper->residual_stored = files.stored;
        files.stored = NULL;
    }
    settle_split_off(hyper, earlier, status == HM_OK);
    hm_output_close(&files.base);
    hm_output_close(&files.hyper);
    hm_meta_clear(&files.meta);
    hm_layout_clear(&files.layout);
    hm_release(files.all);
    hm_release(files.base_path);
    hm_release(files.placeholders);
    hm_release(files.stored);
    hm_save_release(&pass);
    return status;
}
