/* A little of everything that the core works on, for the tests that make its calls fail: models, hyper-models of every
 * kind, live bindings.  Made once; nothing in it may be changed by a call that fails. */
#ifndef HM_TESTS_FAULT_WORLD_H
#define HM_TESTS_FAULT_WORLD_H

#include "tests/faults.h"
#include "tests/live_models.h"

static const part world_parts[] = {
    {"model.diffusion_model.input_blocks.0.0.weight", 4, {4, 4, 3, 3}, 0},
    {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 2, {2, 768}, 0},
    {"model.diffusion_model.middle_block.0.weight", 2, {31, 7}, 0},
    {"model.diffusion_model.out.0.bias", 1, {8}, 1},
    {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", 2, {8, 8}, 0},
    {"first_stage_model.decoder.conv_in.weight", 2, {3, 3}, 0},
    {"cond_stage_model.transformer.text_model.embeddings.position_ids", 2, {1, 4}, 1},
    {"model_ema.decay", 0, {0}, 1},
};
enum { WORLD_PARTS = sizeof world_parts / sizeof world_parts[0], WORLD_FLOATS = 6, WORLD_MODELS = 4 };
enum { MEAN, LOW, SPLIT, LINKED, NONE, WEIGHTED, KINDS };
static const char *const kind_files[KINDS] = {"mean.hyper.safetensors",   "low.hyper.safetensors",  "split.hyper.safetensors",
                                              "linked.hyper.safetensors", "none.hyper.safetensors", "weighted.hyper.safetensors"};

typedef struct world {
    folder in, out; /* inputs, and what the calls write */
    model_set set;
    hm_source *models[WORLD_MODELS], *vae, *carrier;
    hm_hyper *solved[KINDS], *opened[KINDS];
    targets targets;       /* f16, some of them with gaps */
    unsigned char *loaded; /* what they hold before a set */
    size_t loaded_bytes;
    hm_live *live[2]; /* from files, in memory */
    hm_job job;
} world;

static const char broken_header[] = "\x40\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                                    "\"b\":[0]}      ";

static hm_tensor_info part_info(size_t i, hm_dtype dtype)
{
    hm_tensor_info info = {.name = world_parts[i].name, .dtype = dtype, .ndim = world_parts[i].ndim};
    memcpy(info.shape, world_parts[i].shape, sizeof world_parts[i].shape);
    info.elements = part_elements(&world_parts[i]);
    info.bytes = info.elements * hm_dtype_bytes(dtype);
    return info;
}

/* Tensors [first, last) of model m as a file; `name` stands for that of the first one where not NULL. */
static int write_part(const world *w, const char *path, size_t m, size_t first, size_t last, const char *name,
                      const char *recipe)
{
    hm_tensor_info infos[WORLD_PARTS];
    const hm_meta meta = {.key = "sd_merge_recipe", .value = recipe};
    hm_text text = {0};
    size_t count = 0;
    for (size_t i = first; i < last; i++) infos[count++] = part_info(i, i == 2 ? HM_F32 : i == 6 ? HM_I32 : HM_F16);
    if (name != NULL) infos[0].name = name;
    FILE *file = hm_header_write(&text, infos, count, &meta, recipe != NULL, 0, NULL) == HM_OK ? fopen(path, "wb") : NULL;
    int good = file != NULL && fwrite(text.data, 1, text.length, file) == text.length;
    for (size_t i = first; good && i < last; i++) {
        unsigned char stored[4096];
        hm_dtype dtype = i == 6 ? HM_F32 : infos[i - first].dtype; /* any bits are integers */
        hm_kernels_best()->store[dtype](w->set.numbers[m][i], stored, infos[i - first].elements);
        good = fwrite(stored, 1, infos[i - first].bytes, file) == infos[i - first].bytes;
    }
    if (file != NULL) good = fclose(file) == 0 && good;
    hm_text_clear(&text);
    return good;
}

static int make_kind(world *w, int kind, const hm_solve_options *solve, const hm_save_options *save)
{
    const char *path = folder_file(&w->in, kind_files[kind]);
    hm_error err = {0};
    int good = hm_solve(&w->solved[kind], w->models, 3, solve, &w->job, &err) == HM_OK &&
               hm_hyper_save(w->solved[kind], path, save, &w->job, &err) == HM_OK &&
               hm_hyper_open(&w->opened[kind], path, NULL, 0, &err) == HM_OK;
    if (!CHECK(good)) fprintf(stderr, "    %s: %s\n", kind_files[kind], err.message);
    return good;
}

static int make_hypers(world *w)
{
    static const double weights[3] = {1, 2, 0.5};
    const hm_save_options plain = {0}, low = {.base_low = true}, split = {.split = true};
    const hm_solve_options mean = {.dtype = HM_DTYPE_KEEP}, none = {.base = HM_BASE_NONE, .dtype = HM_F16};
    const hm_solve_options linked = {.base = HM_BASE_FILE, .base_source = w->models[3], .dtype = HM_DTYPE_KEEP};
    const hm_solve_options weighted = {.method = HM_ALS, .weights = weights, .directions = 1, .dtype = HM_F32};
    folder_file(&w->in, "split.base.safetensors");
    return make_kind(w, MEAN, &mean, &plain) && make_kind(w, LOW, &mean, &low) && make_kind(w, SPLIT, &mean, &split) &&
           make_kind(w, LINKED, &linked, &plain) && make_kind(w, NONE, &none, &plain) &&
           make_kind(w, WEIGHTED, &weighted, &plain);
}

/* Targets that hold cast(W̃) of MEAN but for one, so that a copy of it is kept. */
static int make_live(world *w)
{
    hm_error err = {0};
    model_set floats = w->set;
    floats.part_count = WORLD_FLOATS;
    targets_begin(&w->targets, &floats, HM_F16, ODD);
    targets_load(&w->targets, w->opened[MEAN]->base_file);
    for (size_t e = 0; e < 8; e++) memset(element_at(&w->targets.infos[2], e), 0, 2);
    w->loaded = targets_copy(&w->targets, &w->loaded_bytes);
    int good = 1;
    for (size_t i = 0; i < 2; i++) {
        const hm_live_options options = {.in_memory = i == 1, .keep_original = true};
        good = good && hm_live_bind(&w->live[i], w->opened[MEAN], w->targets.infos, w->targets.names, w->targets.count,
                                    &options, &w->job, &err) == HM_OK;
    }
    if (!CHECK(good)) fprintf(stderr, "    %s\n", err.message);
    return good;
}

static int world_begin(world *w)
{
    *w = (world){.job = {.memory_budget = 1, .threads = 2}};
    int good = folder_begin(&w->in) && folder_begin(&w->out);
    models_begin(&w->set, world_parts, WORLD_PARTS, WORLD_MODELS);
    for (size_t m = 0; good && m < WORLD_MODELS; m++) {
        char name[32];
        snprintf(name, sizeof name, "model%zu.safetensors", m);
        good = write_part(w, folder_file(&w->in, name), m, 0, WORLD_PARTS, NULL, NULL) &&
               hm_source_open(&w->models[m], folder_file(&w->in, name), NULL) == HM_OK;
    }
    const char *vae = folder_file(&w->in, "vae.safetensors"), *carrier = folder_file(&w->in, "carrier.safetensors");
    good = good && write_part(w, vae, 3, 5, 6, "decoder.conv_in.weight", NULL) &&
           write_part(w, carrier, 2, 1, 6, "model.diffusion_model.extra", NULL) &&
           write_part(w, folder_file(&w->in, "foreign.safetensors"), 0, 2, 3, NULL, "{\"type\":\"webui\"}") &&
           write_part(w, folder_file(&w->in, "other.safetensors"), 0, 2, 3, "another.weight", NULL) &&
           write_bytes(folder_file(&w->in, "broken.safetensors"), broken_header, sizeof broken_header - 1) &&
           hm_source_open(&w->vae, vae, NULL) == HM_OK && hm_source_open(&w->carrier, carrier, NULL) == HM_OK;
    return CHECK(good) && make_hypers(w) && make_live(w);
}

static void world_end(world *w)
{
    for (size_t i = 0; i < 2; i++) hm_live_close(w->live[i]);
    for (size_t k = 0; k < KINDS; k++) {
        hm_hyper_close(w->solved[k]);
        hm_hyper_close(w->opened[k]);
    }
    for (size_t m = 0; m < WORLD_MODELS; m++) hm_source_close(w->models[m]);
    hm_source_close(w->vae);
    hm_source_close(w->carrier);
    targets_end(&w->targets);
    free(w->loaded);
    models_end(&w->set);
    folder_end(&w->in);
    folder_end(&w->out);
}

/* Puts the targets back to what they held when they were bound. */
static void reload_targets(world *w)
{
    unsigned char *from = w->loaded;
    for (size_t i = 0; i < w->targets.count; from += w->targets.memory_bytes[i++])
        memcpy(w->targets.memory[i], from, w->targets.memory_bytes[i]);
}

static void digest_targets(const world *w, digest *seen)
{
    for (size_t i = 0; i < w->targets.count; i++) digest_add(seen, w->targets.memory[i], w->targets.memory_bytes[i]);
}

#endif
