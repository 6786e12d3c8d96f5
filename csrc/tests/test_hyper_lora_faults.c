/* Every allocation of a search for hyper-LoRAs, and of saving and asking what it found, fails once, and then every one from
 * there on: each call does what it does otherwise, or says that memory ran out and gives back all that it took. */
#include "tests/fault_memory.h"

#include "solve/hyper.h"
#include "tests/check.h"
#include "tests/model_files.h"
#include "tests/points.h"

enum { MEMBERS = 2, PARTS = 2, MOST = 30 * 20 };

static const struct {
    const char *name;
    unsigned ndim;
    uint64_t shape[2];
} parts[PARTS] = {{"layers.0.weight", 2, {30, 20}}, {"layers.1.bias", 1, {9}}};

static struct {
    folder out;
    const char *path;
    float numbers[MEMBERS][PARTS][MOST];
    hm_source *sources[MEMBERS];
    hm_hyper *solved;
} world;

static hm_status solve_into(hm_hyper **out, hm_error *err)
{
    static const unsigned rank = 2;
    const hm_solve_options options = {.dtype = HM_F16, .ranks = &rank, .rank_count = 1};
    hm_job job = {.threads = 2};
    return hm_solve(out, world.sources, MEMBERS, &options, &job, err);
}

static hm_status solve(hm_error *err)
{
    hm_hyper *hyper = NULL;
    hm_status status = solve_into(&hyper, err);
    CHECK((status == HM_OK) == (hyper != NULL));
    hm_hyper_close(hyper);
    return status;
}

static hm_status save(hm_error *err)
{
    const hm_save_options options = {.hash = true};
    hm_job job = {.threads = 2};
    return hm_hyper_save(world.solved, world.path, &options, &job, err);
}

static hm_status document(hm_error *err)
{
    char *text = NULL;
    hm_status status = hm_hyper_document(world.solved, &text, err);
    CHECK((status == HM_OK) == (text != NULL));
    hm_free(text);
    return status;
}

static hm_status open_and_project(hm_error *err)
{
    hm_hyper *hyper = NULL;
    char *text = NULL;
    hm_job job = {.threads = 2};
    hm_status status = hm_hyper_open(&hyper, world.path, NULL, 0, err);
    if (status == HM_OK) status = hm_hyper_project(hyper, world.sources[1], &text, &job, err);
    CHECK((status == HM_OK) == (text != NULL));
    hm_free(text);
    hm_hyper_close(hyper);
    return status;
}

static const fault_operation operations[] = {
    {"solve", solve, false}, {"save", save, true}, {"document", document, false}, {"open and project", open_and_project, false}};

static int world_begin(void)
{
    int good = folder_begin(&world.out);
    world.path = folder_file(&world.out, "x.hyper.safetensors");
    for (size_t m = 0; m < MEMBERS; m++) {
        hm_tensor_info infos[PARTS];
        for (size_t p = 0; p < PARTS; p++) {
            infos[p] = (hm_tensor_info){.name = parts[p].name, .dtype = HM_F32, .ndim = parts[p].ndim,
                                        .data = world.numbers[m][p]};
            memcpy(infos[p].shape, parts[p].shape, sizeof parts[p].shape);
            infos[p].strides[0] = parts[p].ndim > 1 ? (int64_t)parts[p].shape[1] : 1;
            infos[p].strides[1] = 1;
            for (size_t i = 0; i < MOST; i++) world.numbers[m][p][i] = (float)uniform();
        }
        good = good && hm_source_borrow(&world.sources[m], "model", infos, PARTS, NULL) == HM_OK;
    }
    return CHECK(good && solve_into(&world.solved, NULL) == HM_OK);
}

int main(void)
{
    size_t tried = 0;
    if (!world_begin()) return check_report("faults around hyper-LoRAs");
    for (size_t which = 0; which < sizeof operations / sizeof operations[0]; which++)
        tried += fault_every_allocation(&operations[which]);
    CHECK(tried > 500);
    hm_hyper_close(world.solved);
    for (size_t m = 0; m < MEMBERS; m++) hm_source_close(world.sources[m]);
    folder_end(&world.out);
    return check_report("faults around hyper-LoRAs");
}
