/* What a live binding refuses, and that nothing is written then. */
#include "tests/live_models.h"

static const part parts[] = {
    {"a.weight", 2, {8, 6}, 0},
    {"b.weight", 4, {2, 3, 2, 2}, 0},
    {"b.bias", 1, {48}, 0},
    {"fixed.weight", 2, {8, 6}, 1},
};
#define PART_COUNT (sizeof parts / sizeof parts[0])

/* Binding must fail with that status and text, and touch nothing. */
static void refuse_bind(hm_hyper *hyper, const targets *t, hm_status status, const char *tensor, const char *text)
{
    size_t bytes;
    unsigned char *before = targets_copy(t, &bytes);
    hm_live_options options = {.keep_original = true};
    hm_live *live = NULL;
    hm_error err = {0};
    CHECK(hm_live_bind(&live, hyper, t->infos, t->names, t->count, &options, NULL, &err) == status && live == NULL);
    CHECK_TEXT(err.tensor, tensor);
    CHECK_HAS(err.message, text);
    CHECK(targets_untouched(t, before));
    hm_live_close(live);
}

static void test_bind(hm_hyper *hyper, const model_set *set)
{
    targets t;
    targets_begin(&t, set, HM_F32, ROW_MAJOR);
    const targets whole = t;

    t.names[1] = "c.weight";
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "c.weight", "has no such tensor");
    t.names[1] = "hypermerge.direction.1.b.weight"; /* there, but nobody's */
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "hypermerge.direction.1.b.weight", "has no such tensor");
    t.names[1] = NULL;
    refuse_bind(hyper, &t, HM_ERR_ARGUMENT, "", "target 2 has no name");
    t = whole;
    t.names[3] = "a.weight";
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "bound twice");
    t = whole;
    t.infos[0].shape[0] = 6, t.infos[0].shape[1] = 8;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "has the shape [6, 8], in the hyper-model [8, 6]");
    t = whole;
    t.infos[0].ndim = 1, t.infos[0].shape[0] = 48;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "has the shape [48]");
    t.infos[0].ndim = HM_MAX_DIMS + 1;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "has the shape [48, ");
    t = whole;
    t.infos[2].dtype = HM_I32;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "b.bias", "of type I32");
    t.infos[2].dtype = (hm_dtype)99;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "b.bias", "only floating-point");
    t = whole;
    t.infos[2].data = NULL;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "b.bias", "NULL");
    t = whole;
    t.infos[0].strides[0] = 0; /* expanded */
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "between its own elements");
    t.infos[0].strides[0] = 5; /* windows that overlap by one */
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "between its own elements");
    t.infos[0].strides[0] = INT64_MIN;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "lead out of the memory");
    t.infos[0].strides[0] = INT64_MAX / 4;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "lead out of the memory");
    t = whole;
    t.infos[2].data = (const char *)t.infos[0].data + 47 * 4; /* the last number of another target */
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "b.bias", "same memory as a.weight");
    t.infos[2].data = t.infos[0].data;
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "b.bias", "same memory as a.weight");
    t = whole;
    t.infos[3].data = t.infos[0].data; /* one of the two would be written */
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "fixed.weight", "same memory as a.weight");

    t.infos[3].data = whole.infos[3].data;
    t.infos[0].data = (const char *)t.infos[3].data + 40 * 4; /* the one that is written begins behind the other */
    refuse_bind(hyper, &t, HM_ERR_MISMATCH, "a.weight", "same memory as fixed.weight");

    /* Of tensors that no direction moves only the name and the shape matter. */
    hm_live_options keep = {.keep_original = true};
    hm_live *live = NULL;
    t = whole;
    t.infos[3].dtype = HM_I64, t.infos[3].data = NULL;
    CHECK(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &keep, NULL, NULL) == HM_OK);
    hm_live_close(live);
    live = NULL;
    CHECK(hm_live_bind(&live, hyper, NULL, NULL, 0, NULL, NULL, NULL) == HM_OK);
    CHECK(live != NULL && hm_live_set(live, NULL, 0, NULL, 0, NULL, 0, NULL, NULL) == HM_OK);
    CHECK(live != NULL && hm_live_restore(live, NULL, 0, NULL, NULL) == HM_OK);
    hm_live_close(live);
    hm_live_close(NULL);
    t = whole;
    targets_end(&t);
}

static void test_set(hm_hyper *hyper, const model_set *set)
{
    static const double nan_at[] = {0, NAN}, inf_at[] = {INFINITY}, three[] = {1, 1, 1}, one[] = {1};
    const struct {
        const double *at;
        size_t count;
        const char *text;
    } wrong[] = {
        {nan_at, 2, "multiplier 2 is"}, {inf_at, 1, "multiplier 1 is inf"}, {three, 3, "3 multipliers were given"}};
    const hm_block_value nan_block = {"a.*", nan_at};
    hm_live_options keep = {.keep_original = true};
    hm_live *live = NULL;
    hm_error err = {0};
    size_t bytes;
    targets t;
    targets_begin(&t, set, HM_F16, ROW_MAJOR);
    targets_load(&t, hyper->base_file);
    CHECK(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &keep, NULL, NULL) == HM_OK);
    if (live == NULL) return;
    const targets whole = t;
    unsigned char *before = targets_copy(&t, &bytes);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK(hm_live_set(live, t.infos, t.count, wrong[i].at, wrong[i].count, NULL, 0, NULL, &err) == HM_ERR_ARGUMENT);
        CHECK_HAS(err.message, wrong[i].text);
    }
    CHECK(hm_live_set(live, t.infos, t.count, one, 1, &nan_block, 1, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK(hm_live_set(live, t.infos, t.count - 1, one, 1, NULL, 0, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "3 targets were given, but 4 were bound");
    for (int step = 0; step < 6; step++) { /* the storage was changed behind our back */
        t = whole;
        if (step == 0) t.infos[1].dtype = HM_BF16;
        if (step == 1) t.infos[1].shape[0] = 3, t.infos[1].shape[1] = 2;
        if (step == 2) t.infos[1].ndim = 3;
        if (step == 3) t.infos[1].data = NULL;
        if (step == 4) t.infos[1].data = t.infos[2].data;
        if (step == 5) t.infos[1].strides[3] = 0;
        CHECK(hm_live_set(live, t.infos, t.count, one, 1, NULL, 0, NULL, &err) == HM_ERR_MISMATCH);
        CHECK(strncmp(err.tensor, "b.", 2) == 0);
        CHECK(hm_live_restore(live, t.infos, t.count, NULL, &err) == HM_ERR_MISMATCH);
    }
    t = whole;
    CHECK(targets_untouched(&t, before));
    hm_live_close(live);
    targets_end(&t);
}

static void test_unsaved(const model_set *set)
{
    hm_solve_options solve = {.directions = 1, .dtype = HM_F16};
    hm_hyper *solved = NULL;
    targets t;
    targets_begin(&t, set, HM_F32, ROW_MAJOR);
    CHECK(hm_solve(&solved, set->sources, set->models, &solve, NULL, NULL) == HM_OK);
    if (solved != NULL) refuse_bind(solved, &t, HM_ERR_ARGUMENT, "", "not saved yet");
    hm_hyper_close(solved);
    targets_end(&t);
}

/* A linked base that was removed; a file that changes while it is bound. */
static void test_files(folder *f, const model_set *set)
{
    const double at[] = {1};
    hm_solve_options solve = {.directions = 1, .dtype = HM_F16};
    hm_save_options save = {.split = true, .force = true};
    const char *path = folder_file(f, "away.hyper.safetensors"), *base = folder_file(f, "away.base.safetensors");
    hm_hyper *hyper = make_hyper(set, path, &solve, &save), *orphan = NULL;
    hm_live *live[2] = {NULL};
    hm_error err = {0};
    size_t bytes;
    targets t;
    targets_begin(&t, set, HM_F16, ROW_MAJOR);
    if (hyper == NULL) return;
    targets_load(&t, hyper->base_file);
    for (size_t i = 0; i < 2; i++) {
        hm_live_options options = {.in_memory = i == 1};
        CHECK(hm_live_bind(&live[i], hyper, t.infos, t.names, t.count, &options, NULL, NULL) == HM_OK);
    }
    hm_hyper_close(hyper); /* a binding keeps what it needs */
    unsigned char *before = targets_copy(&t, &bytes);
    CHECK(truncate(path, 100) == 0);
    CHECK(live[0] != NULL && hm_live_set(live[0], t.infos, t.count, at, 1, NULL, 0, NULL, &err) == HM_ERR_IO);
    CHECK_HAS(err.message, "changed while being read");
    CHECK(targets_untouched(&t, before));
    CHECK(live[1] != NULL && hm_live_set(live[1], t.infos, t.count, at, 1, NULL, 0, NULL, &err) == HM_OK);
    hm_live_close(live[0]);
    hm_live_close(live[1]);

    hyper = make_hyper(set, path, &solve, &save);
    hm_hyper_close(hyper);
    CHECK(unlink(base) == 0 && hm_hyper_open(&orphan, path, NULL, 0, NULL) == HM_OK);
    if (orphan != NULL) refuse_bind(orphan, &t, HM_ERR_IO, "", "was not found");
    hm_hyper_close(orphan);
    targets_end(&t);
}

int main(void)
{
    folder f;
    model_set set;
    if (!CHECK(folder_begin(&f))) return check_report("live, refused");
    models_begin(&set, parts, PART_COUNT, 3);
    hm_solve_options solve = {.directions = 2, .dtype = HM_F16};
    hm_hyper *hyper = make_hyper(&set, folder_file(&f, "good.hyper.safetensors"), &solve, NULL);
    if (hyper != NULL) {
        test_bind(hyper, &set);
        test_set(hyper, &set);
    }
    test_unsaved(&set);
    test_files(&f, &set);
    hm_hyper_close(hyper);
    models_end(&set);
    folder_end(&f);
    return check_report("live, refused");
}
