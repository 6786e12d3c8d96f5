/* Live blends of some of the targets; progress of blends in memory; what a hyper-model says that it stores. */
#include "base/memory.h"
#include "tests/live_models.h"

static const part parts[] = {
    {"a.weight", 2, {311, 1024}, 0}, {"a.none", 2, {0, 3}, 0}, {"b.bias", 1, {1031}, 0},
    {"fixed.weight", 2, {3, 7}, 1},  {"z.scale", 0, {0}, 0},   {"z.weight", 3, {3, 1, 641}, 0},
};
#define PART_COUNT (sizeof parts / sizeof parts[0])
#define DIRECTIONS 2
#define ROWS (HM_STORED_DIRECTION + DIRECTIONS)

static hm_live *bind(hm_hyper *hyper, const targets *t, hm_live_options options)
{
    hm_live *live = NULL;
    hm_error err = {0};
    if (!CHECK(hm_live_bind(&live, hyper, t->infos, t->names, t->count, &options, NULL, &err) == HM_OK))
        fprintf(stderr, "    %s\n", err.message);
    return live;
}

/* ---- some targets are elsewhere ---------------------------------------------------------------------------------- */

/* Hides the memory of the targets in `mask` from a call. */
static targets without(const targets *t, unsigned mask)
{
    targets hidden = *t;
    for (size_t i = 0; i < t->count; i++)
        if ((mask >> i & 1) != 0) hidden.infos[i].data = NULL;
    return hidden;
}

static void test_partial(const model_set *set, hm_hyper *hyper, bool in_memory)
{
    const double at[] = {0.5, -0.25}, zero[] = {0, 0};
    const hm_block_value on_hidden = {"a.*", zero};
    hm_error err = {0};
    targets t, whole;
    targets_begin(&t, set, HM_F16, ROW_MAJOR);
    targets_begin(&whole, set, HM_F16, ROW_MAJOR);
    targets_load(&t, hyper->base_file);
    targets_load(&whole, hyper->base_file);
    hm_live *partial = bind(hyper, &t, (hm_live_options){.in_memory = in_memory, .partial = true});
    hm_live *strict = bind(hyper, &whole, (hm_live_options){.in_memory = in_memory});
    if (partial == NULL || strict == NULL) return;
    CHECK(hm_live_set(strict, whole.infos, whole.count, at, 2, NULL, 0, NULL, NULL) == HM_OK);

    targets hidden = without(&whole, 1);
    CHECK(hm_live_set(strict, hidden.infos, hidden.count, zero, 2, NULL, 0, NULL, &err) == HM_ERR_MISMATCH);
    CHECK_HAS(err.message, "a.weight");

    for (unsigned mask = 0; mask < 1u << PART_COUNT; mask++) {
        CHECK(hm_live_restore(partial, t.infos, t.count, NULL, NULL) == HM_OK);
        hidden = without(&t, mask);
        /* A glob may name what is elsewhere. */
        CHECK(hm_live_set(partial, hidden.infos, hidden.count, at, 2, &on_hidden, mask & 1, NULL, &err) == HM_OK);
        for (size_t i = 0; i < t.count; i++) {
            bool written = !set->parts[i].fixed && (mask >> i & 1) == 0;
            unsigned char *base = file_numbers(hyper->base_file, t.names[i], HM_F16);
            CHECK(memcmp(t.infos[i].data, written ? whole.infos[i].data : base, 2 * t.infos[i].elements) == 0);
            free(base);
        }
        CHECK(hm_live_restore(partial, hidden.infos, hidden.count, NULL, NULL) == HM_OK);
        CHECK(targets_equal(&t, set, hyper->base_file));
    }
    CHECK(hm_live_set(partial, t.infos, t.count - 1, at, 2, NULL, 0, NULL, &err) == HM_ERR_ARGUMENT);
    hm_live_close(partial);
    hm_live_close(strict);
    targets_end(&t);
    targets_end(&whole);
}

/* ---- progress ---------------------------------------------------------------------------------------------------- */

struct watched {
    uint64_t done, total;
    unsigned calls;
    int fine;
};

static int watch(void *user, uint64_t done, uint64_t total)
{
    struct watched *w = user;
    w->fine = (w->calls++ == 0 || (done >= w->done && total == w->total)) && done <= total;
    w->done = done;
    w->total = total;
    return w->fine ? 0 : 1;
}

static int cancel_at_the_end(void *user, uint64_t done, uint64_t total)
{
    return user == NULL && done == total;
}

/* Bytes of W̃ and of the directions whose multiplier is not 0. */
static uint64_t bytes_read(const model_set *set, size_t directions)
{
    uint64_t elements = 0;
    for (size_t i = 0; i < set->part_count; i++) elements += set->parts[i].fixed ? 0 : part_elements(&set->parts[i]);
    return elements * 2 * (1 + directions);
}

static void test_progress(const model_set *set, hm_hyper *hyper, bool in_memory)
{
    const double both[] = {0.5, 2}, one[] = {0, 2};
    const struct {
        const double *at;
        size_t directions;
    } cases[] = {{both, 2}, {one, 1}, {NULL, 0}};
    targets t;
    targets_begin(&t, set, HM_F16, ROW_MAJOR);
    targets_load(&t, hyper->base_file);
    hm_live *live = bind(hyper, &t, (hm_live_options){.in_memory = in_memory});
    for (size_t c = 0; live != NULL && c < sizeof cases / sizeof cases[0]; c++) {
        struct watched w = {0};
        hm_job job = {.threads = (unsigned)c, .progress = watch, .user = &w};
        size_t given = cases[c].at != NULL ? 2 : 0;
        CHECK(hm_live_set(live, t.infos, t.count, cases[c].at, given, NULL, 0, &job, NULL) == HM_OK);
        CHECK(w.fine && w.calls > 0 && w.done == w.total && w.total == job.out_total_bytes);
        CHECK(w.total == bytes_read(set, cases[c].directions));
        CHECK(job.out_seconds > 0);
        hm_error err = {0};
        hm_job cancelled = {.progress = cancel_at_the_end};
        CHECK(hm_live_set(live, t.infos, t.count, cases[c].at, given, NULL, 0, &cancelled, &err) == HM_ERR_CANCELLED);
        CHECK_HAS(err.message, "until the next call");
    }
    hm_live_close(live);
    targets_end(&t);
}

/* ---- what is stored ---------------------------------------------------------------------------------------------- */

static const hm_stored_tensor *find(const hm_stored_tensor *tensors, size_t count, const char *name)
{
    const hm_stored_tensor *found = NULL;
    for (size_t i = 0; i < count; i++)
        if (strcmp(tensors[i].name, name) == 0) {
            CHECK(found == NULL);
            found = &tensors[i];
        }
    return found;
}

/* The tensor of the file that row `row` of `name` should be. */
static const hm_tensor_info *row_in_file(const hm_hyper *hyper, const char *name, size_t row)
{
    char stored[64];
    if (row == HM_STORED_BASE) return hyper->base_file != NULL ? hm_source_find(hyper->base_file, name) : NULL;
    if (row == HM_STORED_LOW)
        snprintf(stored, sizeof stored, "hypermerge.base_low.%s", name);
    else
        snprintf(stored, sizeof stored, "hypermerge.direction.%zu.%s", row - HM_STORED_LOW, name);
    return hm_source_find(hyper->file, stored);
}

static void check_read(hm_hyper *hyper, const char *name, size_t row)
{
    const hm_tensor_info *info = row_in_file(hyper, name, row);
    const hm_source *source = row == HM_STORED_BASE ? hyper->base_file : hyper->file;
    size_t size = hm_dtype_bytes(info->dtype);
    uint64_t start = info->elements / 3, count = info->elements - start - info->elements / 5;
    unsigned char *expected = file_numbers(source, info->name, info->dtype), *read = malloc(count * size + 2);
    memset(read, GUARD, count * size + 2);
    CHECK(hm_hyper_read(hyper, name, row, start, count, read + 1, NULL) == HM_OK);
    CHECK(memcmp(read + 1, expected + start * size, count * size) == 0);
    CHECK(read[0] == GUARD && read[count * size + 1] == GUARD);
    hm_error err = {0};
    CHECK(hm_hyper_read(hyper, name, row, start, info->elements - start + 1, read, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "no such elements");
    CHECK(hm_hyper_read(hyper, name, row, UINT64_MAX, 1, read, &err) == HM_ERR_ARGUMENT);
    CHECK(hm_hyper_read(hyper, name, row, 0, UINT64_MAX, read, &err) == HM_ERR_ARGUMENT);
    free(expected);
    free(read);
}

static void test_stored(const model_set *set, hm_hyper *hyper)
{
    hm_stored_tensor *tensors = NULL;
    size_t count = 0;
    hm_error err = {0};
    if (!CHECK(hm_hyper_stored(hyper, &tensors, &count, &err) == HM_OK)) return;
    size_t in_base = 0, left_out = 0;
    for (size_t i = 0; i < set->part_count; i++) {
        const hm_stored_tensor *tensor = find(tensors, count, set->parts[i].name);
        if (tensor == NULL) { /* no base, and no direction either: it is nowhere */
            left_out++;
            continue;
        }
        in_base++;
        CHECK(tensor->ndim == set->parts[i].ndim);
        CHECK(memcmp(tensor->shape, set->parts[i].shape, tensor->ndim * sizeof *tensor->shape) == 0);
        for (size_t r = 0; r < ROWS; r++) {
            const hm_tensor_info *info = row_in_file(hyper, tensor->name, r);
            if (tensor->moves) CHECK(tensor->rows[r] == (info != NULL ? info->dtype : HM_DTYPE_KEEP));
            if (info != NULL)
                check_read(hyper, tensor->name, r);
            else
                CHECK(hm_hyper_read(hyper, tensor->name, r, 0, 0, NULL, &err) == HM_ERR_ARGUMENT);
        }
        CHECK(tensor->moves == (row_in_file(hyper, tensor->name, HM_STORED_LOW) != NULL ||
                                row_in_file(hyper, tensor->name, HM_STORED_DIRECTION) != NULL));
        CHECK(hm_hyper_read(hyper, tensor->name, ROWS, 0, 0, NULL, &err) == HM_ERR_ARGUMENT);
        CHECK_HAS(err.message, "row 4 is not stored");
    }
    CHECK(in_base == count && (hyper->base_file == NULL || left_out == 0));
    CHECK(hm_hyper_read(hyper, "nobody", 0, 0, 0, NULL, &err) == HM_ERR_ARGUMENT);
    hm_free(tensors);
}

static void test_unsaved(const model_set *set)
{
    hm_hyper *solved = NULL;
    hm_stored_tensor *tensors = NULL;
    size_t count = 0;
    char byte;
    hm_error err = {0};
    CHECK(hm_solve(&solved, set->sources, set->models, NULL, NULL, NULL) == HM_OK);
    if (solved == NULL) return;
    CHECK(hm_hyper_stored(solved, &tensors, &count, &err) == HM_ERR_ARGUMENT && tensors == NULL);
    CHECK_HAS(err.message, "not saved yet");
    CHECK(hm_hyper_read(solved, "b.bias", 0, 0, 0, &byte, &err) == HM_ERR_ARGUMENT);
    hm_hyper_close(solved);
}

/* ---- large blocks ------------------------------------------------------------------------------------------------ */

static void test_large_blocks(void)
{
    static const size_t sizes[] = {0, 1, 4097, ((size_t)16 << 20) - 1, (size_t)16 << 20, ((size_t)33 << 20) + 5};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *block = hm_alloc_large(sizes[i]);
        if (!CHECK(block != NULL && (uintptr_t)block % 4096 == 0)) continue;
        memset(block, GUARD, sizes[i]);
        hm_release_pages(block);
    }
    CHECK(hm_alloc_large(SIZE_MAX) == NULL);
    CHECK(hm_alloc_large(SIZE_MAX / 2 + 1) == NULL);
}

int main(void)
{
    folder f;
    model_set set;
    if (!CHECK(folder_begin(&f))) return check_report("live, parts");
    models_begin(&set, parts, PART_COUNT, 4);
    hm_save_options save = {.force = true}, split = {.force = true, .split = true}, low = {.force = true, .base_low = true};
    hm_solve_options mean = {.directions = DIRECTIONS, .dtype = HM_F16};
    hm_solve_options none = {.directions = DIRECTIONS, .dtype = HM_BF16, .base = HM_BASE_NONE};
    folder_file(&f, "split.base.safetensors");
    hm_hyper *hypers[4] = {make_hyper(&set, folder_file(&f, "mean.hyper.safetensors"), &mean, &save),
                           make_hyper(&set, folder_file(&f, "split.hyper.safetensors"), &mean, &split),
                           make_hyper(&set, folder_file(&f, "low.hyper.safetensors"), &mean, &low),
                           make_hyper(&set, folder_file(&f, "none.hyper.safetensors"), &none, &save)};
    for (int in_memory = 0; hypers[0] != NULL && in_memory < 2; in_memory++) {
        test_partial(&set, hypers[0], in_memory != 0);
        test_progress(&set, hypers[0], in_memory != 0);
    }
    for (size_t h = 0; h < 4; h++) {
        if (hypers[h] != NULL) test_stored(&set, hypers[h]);
        hm_hyper_close(hypers[h]);
    }
    test_unsaved(&set);
    test_large_blocks();
    models_end(&set);
    folder_end(&f);
    return check_report("live, parts");
}
