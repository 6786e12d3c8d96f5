/* Every allocation around LoRAs as inputs fails once, and then every one from there on: each call does what it does otherwise,
 * or says that memory ran out and gives back all that it took; the next call works. */
#include "tests/fault_memory.h"

#include "solve/hyper.h"
#include "tests/product_models.h"

#define UNET "model.diffusion_model."
#define TO_Q "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
#define TO_K "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"

enum { MEMBERS = 2, LAYERS = 6 };

static struct {
    folder f;
    hm_source *base, *loras[MEMBERS];
    hm_hyper *solved, *opened;
    const char *saved, *lora;
} world;

static const double point[] = {0.5};

static const hm_solve_options *options(void)
{
    static hm_solve_options of;
    of = (hm_solve_options){.base = HM_BASE_FILE, .base_source = world.base, .directions = 1, .dtype = HM_DTYPE_KEEP};
    return &of;
}

static hm_status solve(hm_error *err)
{
    hm_hyper *hyper = NULL;
    hm_job job = {.threads = 2};
    hm_status status = hm_solve(&hyper, world.loras, MEMBERS, options(), &job, err);
    hm_hyper_close(hyper);
    return status;
}

static hm_status solve_alone(hm_error *err)
{
    hm_hyper *hyper = NULL;
    hm_solve_options none = {.base = HM_BASE_NONE, .dtype = HM_DTYPE_KEEP};
    hm_status status = hm_solve(&hyper, world.loras, 1, &none, NULL, err);
    hm_hyper_close(hyper);
    return status;
}

static hm_status save(hm_error *err)
{
    hm_save_options save_options = {.force = true};
    hm_job job = {.threads = 2};
    return hm_hyper_save(world.solved, world.saved, &save_options, &job, err);
}

static hm_status lora(hm_error *err)
{
    hm_lora_options lora_options = {.rank = 2, .dtype = HM_DTYPE_KEEP, .format = HM_LORA_AUTO, .force = true};
    char *json = NULL;
    hm_job job = {.threads = 2};
    hm_status status = hm_hyper_lora(world.solved, point, 1, world.lora, &lora_options, &json, &job, err);
    hm_free(json);
    return status;
}

static hm_status project(hm_error *err)
{
    char *json = NULL;
    hm_status status = hm_hyper_project(world.opened, world.loras[0], &json, NULL, err);
    hm_free(json);
    return status;
}

static hm_status compare(hm_error *err)
{
    char *json = NULL;
    hm_status status = hm_compare(world.loras, MEMBERS, NULL, &json, NULL, err);
    hm_free(json);
    return status;
}

static const fault_operation operations[] = {
    {"solve", solve, false}, {"solve alone", solve_alone, false}, {"save", save, false},
    {"lora", lora, false},   {"project", project, false},         {"compare", compare, false}};

static int world_begin(numbered tensors[MEMBERS][LAYERS])
{
    static const spec base[] = {
        {UNET "input_blocks.0.0.weight", HM_F16, {4, 4, 3, 3, -1}, 0},
        {UNET "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", HM_F16, {24, 24, -1}, 0},
        {UNET "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", HM_F16, {8, 768, -1}, 0},
    };
    int good = folder_begin(&world.f);
    const char *path = folder_file(&world.f, "base.safetensors");
    world.saved = folder_file(&world.f, "x.hyper.safetensors");
    world.lora = folder_file(&world.f, "out.safetensors");
    good = good && write_model(path, base, 3, NULL, 0) && hm_source_open(&world.base, path, NULL) == HM_OK;
    for (size_t m = 0; m < MEMBERS; m++) {
        char name[32];
        snprintf(name, sizeof name, "l%zu.safetensors", m);
        path = folder_file(&world.f, name);
        good = good && write_numbered(path, tensors[m], LAYERS - m, NULL, 0) &&
               hm_source_open(&world.loras[m], path, NULL) == HM_OK;
    }
    return good && hm_solve(&world.solved, world.loras, MEMBERS, options(), NULL, NULL) == HM_OK &&
           hm_hyper_save(world.solved, world.saved, NULL, NULL, NULL) == HM_OK &&
           hm_hyper_open(&world.opened, world.saved, NULL, 0, NULL) == HM_OK;
}

int main(void)
{
    numbered tensors[MEMBERS][LAYERS] = {
        {{.as = {TO_Q ".lora_up.weight", HM_F16, {24, 2, -1}, 0}},
         {.as = {TO_Q ".lora_down.weight", HM_F16, {2, 24, -1}, 0}},
         {.as = {TO_Q ".alpha", HM_F32, {-1}, 0}},
         {.as = {TO_K ".lora_up.weight", HM_F16, {8, 1, -1}, 0}},
         {.as = {TO_K ".lora_down.weight", HM_F16, {1, 768, -1}, 0}},
         {.as = {"lora_unet_conv_in.diff", HM_F16, {4, 4, 3, 3, -1}, 0}}},
        {{.as = {TO_Q ".lora_up.weight", HM_BF16, {24, 11, -1}, 0}},
         {.as = {TO_Q ".lora_down.weight", HM_F16, {11, 24, -1}, 0}},
         {.as = {TO_Q ".alpha", HM_F32, {-1}, 0}},
         {.as = {TO_K ".lora_up.weight", HM_F16, {8, 3, -1}, 0}},
         {.as = {TO_K ".lora_down.weight", HM_F16, {3, 768, -1}, 0}},
         {.as = {"unused", HM_F16, {1, -1}, 0}}}};
    size_t tried = 0;
    if (!CHECK(world_begin(tensors))) return check_report("faults around LoRAs");
    hm_source *first = world.loras[0];
    for (size_t which = 0; which < sizeof operations / sizeof operations[0]; which++) {
        bool without_base = which == 1 || which == 5;
        if (without_base) world.loras[0] = world.loras[1]; /* whole differences need one */
        tried += fault_every_allocation(&operations[which]);
        world.loras[0] = first;
    }
    CHECK(tried > 300);
    hm_hyper_close(world.opened);
    hm_hyper_close(world.solved);
    hm_source_close(world.base);
    for (size_t m = 0; m < MEMBERS; m++) hm_source_close(world.loras[m]);
    for (size_t m = 0; m < MEMBERS; m++) numbered_clear(tensors[m], LAYERS - m);
    folder_end(&world.f);
    return check_report("faults around LoRAs");
}
