/* Every public call of the core that can fail, with the options that lead through its branches, in one table. */
#ifndef HM_TESTS_FAULT_OPERATIONS_H
#define HM_TESTS_FAULT_OPERATIONS_H

#include "tests/fault_world.h"

/* Makes one call of the core between faults_on and faults_off and adds to `seen` all that a caller can see of a success
 * but files.  A failed call must leave its results alone: checked here. */
typedef hm_status (*operation)(world *w, int variant, digest *seen, hm_error *err);

static const double point[] = {0.6, -0.3};

/* A text that the call gave, or did not. */
static hm_status take_text(hm_status status, char *const *text, digest *seen)
{
    faults_off();
    CHECK((status == HM_OK) == (*text != NULL));
    if (*text != NULL) digest_text(seen, *text);
    hm_free(*text);
    return status;
}

static void see_document(hm_hyper *hyper, digest *seen)
{
    char *text = NULL;
    CHECK(hm_hyper_document(hyper, &text, NULL) == HM_OK);
    if (text != NULL) digest_text(seen, text);
    hm_free(text);
}

/* ---- sources ----------------------------------------------------------------------------------------------------- */

static hm_status open_source(world *w, int variant, digest *seen, hm_error *err)
{
    static const char *const files[] = {"model0.safetensors", "mean.hyper.safetensors", "broken.safetensors",
                                        "absent.safetensors", ""};
    const char *path = folder_file(&w->in, files[variant]);
    hm_source *source = NULL;
    faults_on();
    hm_status status = hm_source_open(&source, path, err);
    faults_off();
    CHECK((status == HM_OK) == (source != NULL));
    if (source != NULL) digest_text(seen, source->header_hash);
    hm_source_close(source);
    return status;
}

static hm_status borrow(world *w, int variant, digest *seen, hm_error *err)
{
    hm_tensor_info infos[WORLD_PARTS];
    hm_source *source = NULL;
    for (size_t i = 0; i < WORLD_PARTS; i++) infos[i] = w->set.sources[0]->header.tensors[i];
    if (variant == 1) infos[3].name = infos[0].name;
    faults_on();
    hm_status status = hm_source_borrow(&source, "borrowed", infos, WORLD_PARTS, err);
    faults_off();
    CHECK((status == HM_OK) == (source != NULL));
    if (source != NULL) digest_text(seen, hm_source_tensor(source, hm_source_count(source) - 1)->name);
    hm_source_close(source);
    return status;
}

static hm_status describe(world *w, int variant, digest *seen, hm_error *err)
{
    char *text = NULL;
    faults_on();
    return take_text(hm_source_describe(variant == 0 ? w->models[0] : w->opened[MEAN]->file, &text, err), &text, seen);
}

static hm_status sha256(world *w, int variant, digest *seen, hm_error *err)
{
    char hex[65] = "";
    (void)variant;
    faults_on();
    hm_status status = hm_source_sha256(w->models[1], hex, &w->job, err);
    faults_off();
    CHECK((status == HM_OK) == (hex[0] != 0));
    memset(w->models[1]->sha256, 0, sizeof w->models[1]->sha256);
    digest_text(seen, hex);
    return status;
}

/* ---- solving ----------------------------------------------------------------------------------------------------- */

static hm_status solve(world *w, int variant, digest *seen, hm_error *err)
{
    static const char *const globs[] = {"model.*", "*fc1*", "absent.*"};
    static const double weights[] = {1, 2, 3};
    hm_solve_options options = {.dtype = HM_DTYPE_KEEP};
    hm_source *const *sources = w->models, *alien[2] = {w->models[0], w->vae};
    size_t count = 3;
    switch (variant) {
    case 1: options.method = HM_ALS; options.weights = weights; break;
    case 2: options.base = HM_BASE_FILE; options.base_source = w->models[3]; break;
    case 3: options.base = HM_BASE_NONE; options.selection.common = options.selection.allow_nonfinite = true; break;
    case 4: options.selection = (hm_selection){.include = globs, .includes = 2, .exclude = globs + 1, .excludes = 1}; break;
    case 5: options.selection = (hm_selection){.include = globs, .includes = 3}; break;
    case 6: sources = alien; count = 2; break;
    case 7: sources = w->set.sources; break;
    default: break;
    }
    hm_hyper *hyper = NULL;
    faults_on();
    hm_status status = hm_solve(&hyper, sources, count, &options, &w->job, err);
    faults_off();
    CHECK((status == HM_OK) == (hyper != NULL));
    if (hyper != NULL) see_document(hyper, seen);
    hm_hyper_close(hyper);
    return status;
}

static hm_status document(world *w, int variant, digest *seen, hm_error *err)
{
    char *text = NULL;
    faults_on();
    return take_text(hm_hyper_document(variant == 0 ? w->solved[MEAN] : w->opened[MEAN], &text, err), &text, seen);
}

static hm_status save(world *w, int variant, digest *seen, hm_error *err)
{
    static const struct {
        int kind;
        hm_save_options options;
    } cases[] = {{MEAN, {0}},
                 {LOW, {.base_low = true, .hash = true}},
                 {SPLIT, {.split = true, .force = true}},
                 {SPLIT, {.split = true, .hash = true}},
                 {LINKED, {.force = true}},
                 {NONE, {.hash = true}},
                 {WEIGHTED, {0}}};
    hm_hyper *hyper = w->solved[cases[variant].kind];
    const char *path = folder_file(&w->out, "new.hyper.safetensors");
    digest before = {0}, after = {0};
    folder_file(&w->out, "new.base.safetensors");
    see_document(hyper, &before);
    faults_on();
    hm_status status = hm_hyper_save(hyper, path, &cases[variant].options, &w->job, err);
    faults_off();
    see_document(hyper, &after);
    CHECK(status == HM_OK || after.value == before.value); /* nothing was saved, so nothing is known that was not */
    digest_add(seen, &after.value, sizeof after.value);
    return status;
}

/* ---- hyper-models ------------------------------------------------------------------------------------------------ */

static hm_status open_hyper(world *w, int variant, digest *seen, hm_error *err)
{
    const char *folders[] = {"/nowhere", w->in.path};
    const char *path = variant < KINDS ? folder_file(&w->in, kind_files[variant]) : folder_file(&w->in, "model0.safetensors");
    hm_hyper *hyper = NULL;
    faults_on();
    hm_status status = hm_hyper_open(&hyper, path, folders, 2, err);
    faults_off();
    CHECK((status == HM_OK) == (hyper != NULL));
    if (hyper != NULL) {
        bool has_base = hyper->base_file != NULL;
        /* A base that memory was lacking for is not one that is not there; of one that cannot be read this may be said. */
        CHECK(has_base == (variant != NONE) || (faults.plan.kinds == FAULT_CALL && variant != NONE && faults.hits > 0));
        see_document(hyper, seen);
    }
    hm_hyper_close(hyper);
    return status;
}

static hm_status merge(world *w, int variant, digest *seen, hm_error *err)
{
    static const double block_at[] = {1, 1};
    const hm_block_value blocks[] = {{"model.diffusion_model.*", block_at}, {"*fc1*", point}};
    hm_merge_options options = {.at = point, .at_count = 2, .dtype = HM_DTYPE_KEEP};
    hm_hyper *hyper = w->opened[variant < KINDS ? variant : MEAN];
    switch (variant) {
    case MEAN: options.force = true; break;
    case WEIGHTED: options.at_count = 1; break;
    case KINDS: options.exact = w->models; options.exact_count = 3; break;
    case KINDS + 1: options.carrier = w->carrier; options.vae = w->vae; break;
    case KINDS + 2: options.blocks = blocks; options.block_count = 2; options.dtype = HM_BF16; break;
    case KINDS + 3: hyper = w->solved[LINKED]; break;
    case KINDS + 4: hyper = w->opened[LINKED]; options.exact = w->models; options.exact_count = 3; break;
    default: break;
    }
    (void)seen;
    const char *path = folder_file(&w->out, "new.hyper.safetensors");
    faults_on();
    hm_status status = hm_hyper_merge(hyper, path, &options, &w->job, err);
    faults_off();
    return status;
}

/* To a new name, and in place of its own file. */
static hm_status rename_axes(world *w, int variant, digest *seen, hm_error *err)
{
    static const char *const names[] = {"style", NULL};
    static const bool flip[] = {true, false};
    const hm_rename_options options = {.names = names, .flip = flip};
    const char *path = folder_file(&w->out, "new.hyper.safetensors");
    hm_hyper *own = NULL, *hyper = w->opened[LOW];
    if (variant == 1 && CHECK(hm_hyper_open(&own, path, NULL, 0, NULL) == HM_OK)) hyper = own;
    faults_on();
    hm_status status = hm_hyper_rename(hyper, variant == 1 ? NULL : path, &options, &w->job, err);
    faults_off();
    see_document(hyper, seen); /* goes on showing what it opened */
    hm_hyper_close(own);
    return status;
}

static hm_status stored(world *w, int variant, digest *seen, hm_error *err)
{
    hm_stored_tensor *tensors = NULL;
    size_t count = 0;
    faults_on();
    hm_status status = hm_hyper_stored(w->opened[variant], &tensors, &count, err);
    faults_off();
    CHECK((status == HM_OK) == (tensors != NULL));
    for (size_t i = 0; i < count; i++) digest_text(seen, tensors[i].name);
    hm_free(tensors);
    return status;
}

static hm_status project(world *w, int variant, digest *seen, hm_error *err)
{
    hm_hyper *hyper = variant < KINDS ? w->opened[variant] : w->solved[variant - KINDS];
    char *text = NULL;
    faults_on();
    return take_text(hm_hyper_project(hyper, w->models[3], &text, &w->job, err), &text, seen);
}

static hm_status compare(world *w, int variant, digest *seen, hm_error *err)
{
    char *text = NULL;
    (void)variant;
    faults_on();
    return take_text(hm_compare(w->models, WORLD_MODELS, NULL, &text, &w->job, err), &text, seen);
}

static hm_status recover(world *w, int variant, digest *seen, hm_error *err)
{
    const hm_recover_options options = {.blocks = variant == 1, .free_sum = variant == 1};
    char *text = NULL;
    faults_on();
    return take_text(hm_recover(w->models[3], w->models, 3, &options, &text, &w->job, err), &text, seen);
}

static hm_status lora(world *w, int variant, digest *seen, hm_error *err)
{
    static const hm_lora_options cases[] = {{.rank = 2, .dtype = HM_DTYPE_KEEP, .format = HM_LORA_AUTO},
                                            {.error = 0.3, .dtype = HM_F32, .format = HM_LORA_COMFYUI, .whole = true},
                                            {.bytes = 30000, .dtype = HM_BF16, .format = HM_LORA_KOHYA},
                                            {.rank = 1, .dtype = HM_F16, .format = HM_LORA_AUTO}};
    const char *path = folder_file(&w->out, "new.hyper.safetensors");
    const hm_lora_options *options = &cases[variant];
    char *text = NULL;
    faults_on();
    hm_status status = variant == 3
                           ? hm_lora_of_pair(w->models[0], w->models[1], path, options, &text, &w->job, err)
                           : hm_hyper_lora(w->opened[MEAN], point, 2, path, options, &text, &w->job, err);
    return take_text(status, &text, seen);
}

/* ---- live -------------------------------------------------------------------------------------------------------- */

static hm_status bind(world *w, int variant, digest *seen, hm_error *err)
{
    const hm_live_options options = {.in_memory = variant % 2 == 1, .keep_original = variant < 4};
    hm_hyper *hyper = w->opened[variant < 2 ? MEAN : variant < 4 ? NONE : LINKED];
    hm_live *live = NULL;
    reload_targets(w);
    faults_on();
    hm_status status = hm_live_bind(&live, hyper, w->targets.infos, w->targets.names, w->targets.count, &options, &w->job, err);
    faults_off();
    CHECK((status == HM_OK) == (live != NULL));
    hm_live_close(live);
    digest_targets(w, seen); /* untouched, of course */
    return status;
}

/* Whatever became of a failed call, the next one puts everything right. */
static hm_status set(world *w, int variant, digest *seen, hm_error *err)
{
    const hm_block_value block = {"*fc1*", point};
    hm_live *live = w->live[variant % 2];
    size_t count = w->targets.count;
    reload_targets(w);
    faults_on();
    hm_status status = variant < 2 ? hm_live_set(live, w->targets.infos, count, point, 2, &block, 1, &w->job, err)
                                   : hm_live_restore(live, w->targets.infos, count, &w->job, err);
    faults_off();
    if (status == HM_OK) digest_targets(w, seen);
    CHECK(hm_live_restore(live, w->targets.infos, count, NULL, NULL) == HM_OK);
    unsigned char *copy = malloc(w->loaded_bytes);
    memcpy(copy, w->loaded, w->loaded_bytes);
    CHECK(targets_untouched(&w->targets, copy));
    return status;
}

static hm_status blend(world *w, int variant, digest *seen, hm_error *err)
{
    enum { ROWS = 1024, COLUMNS = 600 };
    static float numbers[3][ROWS * COLUMNS];
    hm_tensor_info infos[3];
    for (size_t i = 0; i < 3; i++) {
        for (size_t e = 0; e < ROWS * COLUMNS; e++) numbers[i][e] = (float)(e % 977 + i);
        infos[i] = (hm_tensor_info){.name = "x", .dtype = HM_F32, .ndim = 2, .shape = {ROWS, COLUMNS}, .strides = {COLUMNS, 1},
                                    .data = numbers[i]};
    }
    if (variant == 1) infos[0] = (hm_tensor_info){.name = "x", .dtype = HM_F32, .ndim = 2, .shape = {ROWS, COLUMNS},
                                                  .strides = {1, ROWS}, .data = numbers[0]};
    const hm_tensor_info *directions[] = {&infos[2]};
    (void)w;
    faults_on();
    hm_status status = hm_blend(&infos[0], &infos[1], directions, point, 1, 3, err);
    faults_off();
    digest_add(seen, numbers[0], status == HM_OK ? sizeof numbers[0] : 0);
    return status;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    operation run;
    int variants;
    const char *old; /* what lies at the place of the output before: a file of `in`; NULL: nothing */
} operations[] = {
    {"open", open_source, 5, NULL},      {"borrow", borrow, 2, NULL},      {"describe", describe, 2, NULL},
    {"sha256", sha256, 1, NULL},         {"solve", solve, 8, NULL},        {"document", document, 2, NULL},
    {"save", save, 7, NULL},             {"save over ours", save, 4, "mean.hyper.safetensors"},
    {"save over another's", save, 3, "foreign.safetensors"},               {"open hyper", open_hyper, KINDS + 1, NULL},
    {"merge", merge, KINDS + 5, NULL},   {"merge over ours", merge, 2, "none.hyper.safetensors"},
    {"merge over another's", merge, 2, "foreign.safetensors"},             {"project", project, 2 * KINDS, NULL},
    {"rename", rename_axes, 1, NULL},    {"rename over ours", rename_axes, 2, "mean.hyper.safetensors"},
    {"stored", stored, KINDS, NULL},
    {"lora", lora, 4, NULL},             {"lora over another's", lora, 1, "foreign.safetensors"},
    {"compare", compare, 1, NULL},       {"recover", recover, 2, NULL},    {"bind", bind, 6, NULL},
    {"set and restore", set, 4, NULL},   {"blend", blend, 2, NULL},
};
enum { OPERATIONS = sizeof operations / sizeof operations[0] };

/* ---- one run ----------------------------------------------------------------------------------------------------- */

/* What a run did, and what it was compared with. */
typedef struct outcome {
    hm_status status;
    uint64_t seen, files; /* digests: what the caller sees, what lies in `out` */
    size_t temporaries;
    size_t calls, hits;
    char message[512];
} outcome;

/* An empty folder but for the old file.  Temporaries are left to the next writer. */
static void clear_out(world *w, const char *old)
{
    for (size_t i = 0; i < w->out.count; i++) unlink(w->out.files[i]);
    if (old == NULL) return;
    char block[4096];
    FILE *from = fopen(folder_file(&w->in, old), "rb"), *to = fopen(folder_file(&w->out, "new.hyper.safetensors"), "wb");
    CHECK(from != NULL && to != NULL);
    for (size_t got; from != NULL && to != NULL && (got = fread(block, 1, sizeof block, from)) > 0;)
        CHECK(fwrite(block, 1, got, to) == got);
    if (from != NULL) fclose(from);
    if (to != NULL) fclose(to);
}

static void tell_run(size_t which, int variant, fault_plan plan, const outcome *got)
{
    fprintf(stderr, "    %s %d, fault %zu%s (the last in %s): %s\n", operations[which].name, variant, plan.at,
            plan.onwards ? " onwards" : "", faults.where, got->status == HM_OK ? "done, or with another result" : got->message);
}

/* Runs one operation under a plan.  Leaks of memory and of descriptors are looked for in any case. */
static outcome run_operation(world *w, size_t which, int variant, fault_plan plan)
{
    digest seen = {0};
    hm_error err = {0};
    outcome got = {0};
    clear_out(w, operations[which].old);
    const uint64_t files_before = digest_folder(w->out.path, &got.temporaries);
    long blocks = atomic_load(&faults.blocks);
    size_t descriptors = open_files();
    fault_begin(plan);
    got.status = operations[which].run(w, variant, &seen, &err);
    faults_off();
    got.calls = atomic_load(&faults.calls);
    got.hits = atomic_load(&faults.hits);
    got.seen = seen.value;
    got.files = digest_folder(w->out.path, &got.temporaries);
    snprintf(got.message, sizeof got.message, "%.500s", err.message);
    bool whole = atomic_load(&faults.blocks) == blocks || 
                 (operations[which].run == save && plan.kinds == 0); /* the first time a document grows */
    bool good = CHECK(whole) && CHECK(open_files() == descriptors);
    if (got.status != HM_OK) {
        good = CHECK(err.status == got.status) && CHECK(err.message[0] != 0 && strpbrk(err.message, "\n\r") == NULL) && good;
        /* The old file is whole.  Of a pair (split), the second name may still fail when the first is in place: if the disk
         * breaks between two system calls, and then only. */
        bool torn = operations[which].run == save && plan.kinds == FAULT_CALL &&
                    strstr(got.message, "cannot be put in place") != NULL;
        good = CHECK(got.files == files_before || torn) && good;
    }
    /* Nothing stays behind.  What cannot even be looked at any more is left to the next writer. */
    bool blind = plan.kinds == FAULT_CALL && (plan.onwards || strstr(faults.where, "stat") != NULL);
    good = CHECK(got.temporaries == 0 || blind) && good;
    if (!good)
        tell_run(which, variant, plan, &got);
    return got;
}

/* The same outcome as without a fault? */
static bool same_outcome(const outcome *a, const outcome *b)
{
    return a->status == b->status && a->seen == b->seen && a->files == b->files && strcmp(a->message, b->message) == 0;
}

#endif
