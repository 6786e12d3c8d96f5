/* Every allocation around product tensors fails once, and then every one from there on: each call does what it does
 * otherwise, or says that memory ran out and gives back all that it took; the next call works. */
#include "tests/fault_memory.h"

#include "lowrank/expand.h"
#include "model/product.h"
#include "solve/hyper.h"
#include "tests/product_models.h"

enum { ROWS = 300, COLUMNS = 70, ELEMENTS = ROWS * COLUMNS };

static const char document[] =
    "{\"version\":1,\"method\":\"exact\",\"base\":{\"kind\":\"mean\"},\"directions\":1,\"members\":["
    "{\"name\":\"a\",\"multipliers\":[1],\"residual\":0,\"norm\":1},{\"name\":\"b\",\"multipliers\":[-1],\"residual\":0,"
    "\"norm\":1}],\"explained_variance_ratio\":[1],\"loss\":0,\"total\":2,\"gram\":[[1,-1],[-1,1]]}";

static struct {
    const char *path, *merged;
    hm_hyper *hyper;
    hm_live *live;
    uint32_t product;
    float target[ELEMENTS], product_numbers[ELEMENTS];
    hm_tensor_info info;
    const char *name;
} world;

static const double point[] = {0.5};

static hm_status open_hyper(hm_error *err)
{
    hm_hyper *hyper = NULL;
    hm_status status = hm_hyper_open(&hyper, world.path, NULL, 0, err);
    hm_hyper_close(hyper);
    return status;
}

static hm_status view(hm_error *err)
{
    hm_source *stored = NULL;
    hm_status status = hm_source_as_stored(&stored, world.hyper->file, err);
    hm_source_close(stored);
    return status;
}

static hm_status expand(hm_error *err)
{
    memset(world.product_numbers, 0, sizeof world.product_numbers);
    return hm_expand_alone(world.product_numbers, world.hyper->file, world.product, 0, ELEMENTS, err);
}

static hm_status factors(hm_error *err)
{
    static float up[ROWS * 2], down[2 * COLUMNS];
    return hm_hyper_read_factors(world.hyper, world.name, HM_STORED_DIRECTION, up, down, err);
}

static hm_status bind(hm_error *err)
{
    const hm_live_options options = {.in_memory = true, .keep_original = true};
    hm_live *live = NULL;
    hm_status status = hm_live_bind(&live, world.hyper, &world.info, &world.name, 1, &options, NULL, err);
    hm_live_close(live);
    return status;
}

static hm_status set(hm_error *err)
{
    hm_job job = {.threads = 2};
    return hm_live_set(world.live, &world.info, 1, point, 1, NULL, 0, &job, err);
}

static hm_status merge(hm_error *err)
{
    const hm_merge_options options = {.at = point, .at_count = 1, .dtype = HM_DTYPE_KEEP, .force = true};
    hm_job job = {.threads = 2};
    return hm_hyper_merge(world.hyper, world.merged, &options, &job, err);
}

static const fault_operation operations[] = {
    {"open", open_hyper, false}, {"view", view, false}, {"expand", expand, false}, {"factors", factors, false},
    {"bind", bind, false},       {"set", set, false},   {"merge", merge, false}};

static int world_begin(folder *f, numbered tensors[3])
{
    const hm_meta meta = {.key = "hypermerge", .value = document};
    world.path = folder_file(f, "low.hyper.safetensors");
    world.merged = folder_file(f, "merged.safetensors");
    world.name = tensors[0].as.name;
    int good = write_numbered(world.path, tensors, 3, &meta, 1) &&
               hm_hyper_open(&world.hyper, world.path, NULL, 0, NULL) == HM_OK;
    if (!CHECK(good)) return 0;
    world.product = hm_source_index(world.hyper->file, "hypermerge.direction.1.t.weight");
    world.info = spec_info(&tensors[0].as);
    world.info.data = world.target;
    world.info.strides[0] = COLUMNS;
    world.info.strides[1] = 1;
    memcpy(world.target, tensors[0].numbers, sizeof world.target);
    return CHECK(hm_live_bind(&world.live, world.hyper, &world.info, &world.name, 1, NULL, NULL, NULL) == HM_OK);
}

int main(void)
{
    numbered tensors[3] = {{.as = {"t.weight", HM_F32, {ROWS, COLUMNS, -1}, 0}},
                           {.as = {"hypermerge.direction.1.t.weight.lora_up", HM_F16, {ROWS, 2, -1}, 0}},
                           {.as = {"hypermerge.direction.1.t.weight.lora_down", HM_F16, {2, COLUMNS, -1}, 0}}};
    static float usual[ELEMENTS];
    folder f;
    size_t tried = 0;
    if (!CHECK(folder_begin(&f)) || !world_begin(&f, tensors)) return check_report("faults around products");
    for (size_t which = 0; which < sizeof operations / sizeof operations[0]; which++)
        tried += fault_every_allocation(&operations[which]);
    CHECK(tried > 100);
    CHECK(fault_run(&operations[2], (fault_plan){0}) == 0 && fault_run(&operations[5], (fault_plan){0}) == 0);
    for (size_t i = 0; i < ELEMENTS; i++) usual[i] = tensors[0].numbers[i] + 0.5f * world.product_numbers[i];
    CHECK(memcmp(usual, world.target, sizeof usual) == 0);
    hm_live_close(world.live);
    hm_hyper_close(world.hyper);
    numbered_clear(tensors, 3);
    folder_end(&f);
    return check_report("faults around products");
}
