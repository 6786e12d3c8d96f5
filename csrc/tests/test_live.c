/* Live blends against the files that hm_hyper_merge writes: the two must agree in every bit. */
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "tests/live_models.h"

static const part parts[] = {
    {"block.0.weight", 4, {5, 4, 3, 3}, 0}, {"block.1.weight", 2, {131, 163}, 0}, {"block.1.bias", 1, {1031}, 0},
    {"fixed.weight", 2, {3, 7}, 1},         {"last.scale", 0, {0}, 0},          {"last.weight", 3, {3, 1, 41}, 0},
    {"none", 2, {0, 3}, 0},
};
#define PART_COUNT (sizeof parts / sizeof parts[0])

/* A merged checkpoint at these multipliers, opened. */
static hm_source *merged(folder *f, hm_hyper *hyper, const double *at, size_t at_count, const hm_block_value *blocks,
                         size_t block_count, hm_dtype dtype)
{
    const char *path = folder_file(f, "merged.safetensors");
    hm_merge_options options = {
        .at = at, .at_count = at_count, .blocks = blocks, .block_count = block_count, .dtype = dtype};
    hm_source *source = NULL;
    hm_error err = {0};
    if (!CHECK(hm_hyper_merge(hyper, path, &options, NULL, &err) == HM_OK &&
               hm_source_open(&source, path, &err) == HM_OK))
        fprintf(stderr, "    %s\n", err.message);
    return source;
}

static int good(hm_status status, const hm_error *err)
{
    if (status != HM_OK) fprintf(stderr, "    %s\n", err->message);
    return status == HM_OK;
}

/* ---- types × layouts × where the numbers come from --------------------------------------------------------------- */

static void check_one(hm_hyper *hyper, const model_set *set, hm_dtype dtype, layout how, bool in_memory,
                      const hm_source *expected, const double *at, size_t at_count, unsigned threads)
{
    bool has_base = hyper->base_file != NULL;
    hm_live_options options = {.in_memory = in_memory, .keep_original = !has_base};
    hm_job job = {.threads = threads};
    hm_live *live = NULL;
    hm_error err = {0};
    targets t;
    targets_begin(&t, set, dtype, how);
    if (has_base) targets_load(&t, hyper->base_file);
    size_t bytes;
    unsigned char *before = targets_copy(&t, &bytes);
    if (CHECK(good(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &options, &job, &err), &err))) {
        CHECK(live != NULL && good(hm_live_set(live, t.infos, t.count, at, at_count, NULL, 0, &job, &err), &err));
        CHECK(targets_equal(&t, set, expected));
        CHECK(good(hm_live_restore(live, t.infos, t.count, &job, &err), &err));
    }
    CHECK(targets_untouched(&t, before));
    hm_live_close(live);
    targets_end(&t);
}

static void test_types(folder *f, const model_set *set, hm_dtype stored, bool low)
{
    static const hm_dtype dtypes[] = {HM_F32, HM_F16, HM_BF16, HM_F8_E4M3, HM_F8_E5M2, HM_F64};
    const double at[] = {0.4, -1.3};
    hm_solve_options solve = {.directions = 2, .dtype = stored};
    hm_save_options save = {.force = true, .base_low = low};
    hm_hyper *hyper = make_hyper(set, folder_file(f, "types.hyper.safetensors"), &solve, &save);
    if (hyper == NULL) return;
    CHECK((hm_source_find(hyper->file, "hypermerge.base_low.block.1.bias") != NULL) == low);
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        hm_source *expected = merged(f, hyper, at, 2, NULL, 0, dtypes[d]);
        for (unsigned how = 0; expected != NULL && how < 2 * LAYOUTS; how++)
            check_one(hyper, set, dtypes[d], (layout)(how / 2), how % 2 != 0, expected, at, 2, 1 + how % 3);
        hm_source_close(expected);
    }
    hm_hyper_close(hyper);
}

/* ---- kinds of base, many directions ------------------------------------------------------------------------------ */

static void test_bases(folder *f, const model_set *set, unsigned directions)
{
    const double at[] = {0.25, -0.5, 0.125, 1.5, -0.75};
    hm_save_options plain = {.force = true}, split = {.force = true, .split = true};
    hm_solve_options mean = {.directions = directions, .dtype = HM_BF16};
    hm_hyper *hypers[4] = {NULL};
    hm_source *base = NULL;
    folder_file(f, "split.base.safetensors");
    hypers[0] = make_hyper(set, folder_file(f, "mean.hyper.safetensors"), &mean, &plain);
    hypers[1] = make_hyper(set, folder_file(f, "split.hyper.safetensors"), &mean, &split);
    if (hypers[0] == NULL || hypers[1] == NULL) return;
    CHECK(hypers[1]->base_file != hypers[1]->file);

    const char *path = folder_file(f, "base.safetensors");
    hm_merge_options start = {.dtype = HM_F16, .force = true};
    CHECK(hm_hyper_merge(hypers[0], path, &start, NULL, NULL) == HM_OK && hm_source_open(&base, path, NULL) == HM_OK);
    hm_solve_options linked = {
        .base = HM_BASE_FILE, .base_source = base, .directions = directions, .dtype = HM_DTYPE_KEEP};
    hm_solve_options none = {.base = HM_BASE_NONE, .directions = directions, .dtype = HM_F16};
    hypers[2] = make_hyper(set, folder_file(f, "linked.hyper.safetensors"), &linked, &plain);
    hypers[3] = make_hyper(set, folder_file(f, "none.hyper.safetensors"), &none, &plain);
    for (size_t h = 0; h < 4; h++)
        for (int none_given = 0; hypers[h] != NULL && none_given < 2; none_given++) {
            size_t given = none_given ? 0 : directions;
            hm_source *expected = merged(f, hypers[h], at, given, NULL, 0, HM_F16);
            for (unsigned how = 0; expected != NULL && how < 2 * LAYOUTS; how++)
                check_one(hypers[h], set, HM_F16, (layout)(how / 2), how % 2 != 0, expected, at, given, 2);
            hm_source_close(expected);
        }
    if (hypers[3] != NULL) { /* without a base nothing can be brought back but a copy */
        targets t;
        hm_live *live = NULL;
        hm_error err = {0};
        targets_begin(&t, set, HM_F32, ROW_MAJOR);
        CHECK(hm_live_bind(&live, hypers[3], t.infos, t.names, t.count, NULL, NULL, &err) == HM_ERR_MISMATCH &&
              live == NULL);
        CHECK_HAS(err.message, "keep_original");
        targets_end(&t);
    }
    for (size_t h = 0; h < 4; h++) hm_hyper_close(hypers[h]);
    hm_source_close(base);
}

/* ---- no drift ---------------------------------------------------------------------------------------------------- */

static void test_walk(folder *f, const model_set *set, hm_hyper *hyper)
{
    const double far[] = {2.5, -1.75};
    hm_live *live[2] = {NULL};
    targets t[2];
    for (size_t i = 0; i < 2; i++) {
        hm_live_options options = {.in_memory = i == 1};
        targets_begin(&t[i], set, HM_F16, (layout)(2 * i));
        targets_load(&t[i], hyper->base_file);
        CHECK(hm_live_bind(&live[i], hyper, t[i].infos, t[i].names, t[i].count, &options, NULL, NULL) == HM_OK);
    }
    if (live[0] == NULL || live[1] == NULL) return;
    for (size_t step = 0; step <= 300; step++) {
        double at[2] = {3 * uniform(), 3 * uniform()};
        size_t given = step % 3;
        hm_job job = {.threads = (unsigned)(1 + step % 4)};
        int fine = 1;
        for (size_t i = 0; i < 2; i++)
            fine = fine && hm_live_set(live[i], t[i].infos, t[i].count, at, given, NULL, 0, &job, NULL) == HM_OK;
        CHECK(fine);
        if (step % 100 != 0) continue;
        hm_source *expected = merged(f, hyper, at, given, NULL, 0, HM_F16);
        hm_source *there = merged(f, hyper, far, 2, NULL, 0, HM_F16);
        for (size_t i = 0; expected != NULL && there != NULL && i < 2; i++) {
            CHECK(targets_equal(&t[i], set, expected));
            CHECK(hm_live_set(live[i], t[i].infos, t[i].count, far, 2, NULL, 0, NULL, NULL) == HM_OK);
            CHECK(targets_equal(&t[i], set, there));
        }
        hm_source_close(expected);
        hm_source_close(there);
    }
    for (size_t i = 0; i < 2; i++) {
        CHECK(hm_live_set(live[i], t[i].infos, t[i].count, NULL, 0, NULL, 0, NULL, NULL) == HM_OK);
        CHECK(targets_equal(&t[i], set, hyper->base_file)); /* f16 in file and target, no base_low: the base itself */
        hm_live_close(live[i]);
        targets_end(&t[i]);
    }
}

/* ---- blocks, targets left out, storage that moved ---------------------------------------------------------------- */

/* Target i alone holds what a merge at those multipliers gives. */
static int one_is_at(folder *f, hm_hyper *hyper, const model_set *set, const targets *t, size_t i, const double *at)
{
    targets one = {.count = 1, .infos = {t->infos[i]}, .names = {t->names[i]}, .memory = {t->memory[i]},
                   .memory_bytes = {t->memory_bytes[i]}};
    hm_source *expected = merged(f, hyper, at, 2, NULL, 0, t->infos[i].dtype);
    int same = expected != NULL && targets_equal(&one, set, expected);
    hm_source_close(expected);
    return same;
}

static void test_blocks(folder *f, const model_set *set, hm_hyper *hyper)
{
    const double at[] = {0.5, 0.5}, zero[] = {0, 0}, other[] = {-1, 2};
    const hm_block_value blocks[] = {{"block.*", zero}, {"*.bias", other}, {"last.*", other}};
    const hm_block_value unknown = {"blok.*", zero}, fixed = {"fixed.*", zero};
    hm_error err = {0};
    hm_live *live = NULL;
    targets t, moved;
    targets_begin(&t, set, HM_F32, CHANNELS_LAST);
    targets_load(&t, hyper->base_file);
    size_t all = t.count, bytes;
    t.count = 4; /* without last.*, which the globs may name all the same */
    CHECK(good(hm_live_bind(&live, hyper, t.infos, t.names, t.count, NULL, NULL, &err), &err));
    if (live == NULL) return;
    CHECK(good(hm_live_set(live, t.infos, t.count, at, 2, blocks, 3, NULL, &err), &err));
    hm_source *expected = merged(f, hyper, at, 2, blocks, 3, HM_F32);
    CHECK(targets_equal(&t, set, expected));
    CHECK(one_is_at(f, hyper, set, &t, 0, zero) && one_is_at(f, hyper, set, &t, 1, zero));
    CHECK(one_is_at(f, hyper, set, &t, 2, other)); /* block.1.bias: the last match wins */

    unsigned char *before = targets_copy(&t, &bytes);
    CHECK(hm_live_set(live, t.infos, t.count, at, 2, &unknown, 1, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "blok.*");
    CHECK(hm_live_set(live, t.infos, t.count, at, 2, &fixed, 1, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK(targets_untouched(&t, before));

    targets_begin(&moved, set, HM_F32, ODD); /* the host put them elsewhere, and in another order of dimensions */
    moved.count = 4;
    CHECK(good(hm_live_set(live, moved.infos, moved.count, at, 2, blocks, 3, NULL, &err), &err));
    CHECK(targets_equal(&moved, set, expected));
    t.count = moved.count = all;
    hm_source_close(expected);
    hm_live_close(live);
    targets_end(&t);
    targets_end(&moved);
}

/* ---- keep_original ----------------------------------------------------------------------------------------------- */

static void test_keep(folder *f, const model_set *set, hm_hyper *hyper)
{
    const double at[] = {1, -1};
    hm_source *expected = merged(f, hyper, at, 2, NULL, 0, HM_BF16);
    for (unsigned how = 0; how < 2 * LAYOUTS; how++) {
        hm_live_options options = {.in_memory = how % 2 != 0};
        hm_live *live = NULL;
        hm_error err = {0};
        targets t;
        targets_begin(&t, set, HM_BF16, (layout)(how / 2));
        targets_load(&t, hyper->base_file);
        *element_at(&t.infos[2], 1030) ^= 1;                 /* the last bit of the last number */
        memset(element_at(&t.infos[1], 5), 0xff, 2);         /* a NaN */
        *element_at(&t.infos[3], 0) ^= 1;                    /* fixed: nobody minds */
        size_t bytes;
        unsigned char *before = targets_copy(&t, &bytes), *again = targets_copy(&t, &bytes);
        CHECK(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &options, NULL, &err) == HM_ERR_MISMATCH &&
              live == NULL);
        CHECK_HAS(err.tensor, "block.1.");
        CHECK_HAS(err.message, "load the base, or use keep_original");
        CHECK(targets_untouched(&t, before));
        options.keep_original = true;
        if (CHECK(good(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &options, NULL, &err), &err))) {
            CHECK(good(hm_live_set(live, t.infos, t.count, at, 2, NULL, 0, NULL, &err), &err));
            CHECK(targets_equal(&t, set, expected));
            CHECK(good(hm_live_restore(live, t.infos, t.count, NULL, &err), &err));
        }
        CHECK(targets_untouched(&t, again));
        hm_live_close(live);
        targets_end(&t);
    }
    hm_source_close(expected);
}

/* ---- two threads: two bindings, and one binding with two sets of targets ----------------------------------------- */

struct walker {
    hm_live *live;
    targets t;
    double at[2];
    int fine;
};

static void *walk(void *arg)
{
    struct walker *w = arg;
    hm_job job = {.threads = 2};
    w->fine = 1;
    for (int step = 0; step <= 20; step++) {
        const double at[] = {w->at[0] + 20 - step, w->at[1]};
        w->fine = w->fine && hm_live_set(w->live, w->t.infos, w->t.count, at, 2, NULL, 0, &job, NULL) == HM_OK;
    }
    return NULL;
}

static void test_threads(folder *f, const model_set *set, hm_hyper *hyper)
{
    struct walker walkers[3];
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++) {
        struct walker *w = &walkers[i];
        hm_live_options options = {.in_memory = i == 1};
        *w = (struct walker){.at = {0.5 * (double)i, -0.25}};
        targets_begin(&w->t, set, HM_F32, (layout)i);
        targets_load(&w->t, hyper->base_file);
        if (i < 2)
            CHECK(hm_live_bind(&w->live, hyper, w->t.infos, w->t.names, w->t.count, &options, NULL, NULL) == HM_OK);
        else
            w->live = walkers[0].live;
    }
    for (size_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, walk, &walkers[i]) == 0);
    for (size_t i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    for (size_t i = 0; i < 3; i++) {
        hm_source *expected = merged(f, hyper, walkers[i].at, 2, NULL, 0, HM_F32);
        CHECK(walkers[i].fine && targets_equal(&walkers[i].t, set, expected));
        hm_source_close(expected);
        if (i < 2) hm_live_close(walkers[i].live);
        targets_end(&walkers[i].t);
    }
}

/* ---- a large tensor: many pieces, stores past the caches, cancel ------------------------------------------------- */

static int cancel_soon(void *user, uint64_t done, uint64_t total)
{
    (void)total;
    (void)user;
    return done > 0;
}

/* Every number old or new? */
static int between(const targets *t, const unsigned char *old, const unsigned char *new)
{
    for (uint64_t e = 0; e < t->infos[0].elements; e++) {
        const unsigned char *now = element_at(&t->infos[0], e);
        if (memcmp(now, old + 4 * e, 4) != 0 && memcmp(now, new + 4 * e, 4) != 0) return 0;
    }
    return 1;
}

static void test_large(folder *f)
{
    static const part large[] = {{"large.weight", 2, {2243, 2003}, 0}, {"small.bias", 1, {129}, 0}};
    const double at[] = {0.75};
    hm_solve_options solve = {.directions = 1, .dtype = HM_F16};
    hm_save_options save = {.force = true};
    model_set set;
    models_begin(&set, large, 2, 2);
    hm_hyper *hyper = make_hyper(&set, folder_file(f, "large.hyper.safetensors"), &solve, &save);
    hm_source *expected = hyper != NULL ? merged(f, hyper, at, 1, NULL, 0, HM_F32) : NULL;
    for (unsigned in_memory = 0; expected != NULL && in_memory < 2; in_memory++) {
        hm_live_options options = {.in_memory = in_memory != 0};
        hm_job cancelling = {.threads = 1, .progress = cancel_soon};
        hm_live *live = NULL;
        hm_error err = {0};
        targets t;
        targets_begin(&t, &set, HM_F32, ROW_MAJOR);
        targets_load(&t, hyper->base_file);
        CHECK(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &options, &cancelling, &err) == HM_ERR_CANCELLED);
        CHECK(live == NULL);
        CHECK(good(hm_live_bind(&live, hyper, t.infos, t.names, t.count, &options, NULL, &err), &err));
        unsigned char *old = file_numbers(hyper->base_file, "large.weight", HM_F32);
        unsigned char *new = file_numbers(expected, "large.weight", HM_F32);
        for (int turn = 0; live != NULL && turn < 3; turn++) {
            CHECK(hm_live_set(live, t.infos, t.count, at, 1, NULL, 0, &cancelling, &err) == HM_ERR_CANCELLED);
            CHECK_HAS(err.message, "cancelled; some tensors may hold");
            CHECK(between(&t, old, new));
            CHECK(good(hm_live_set(live, t.infos, t.count, at, 1, NULL, 0, NULL, &err), &err));
            CHECK(targets_equal(&t, &set, expected));
            CHECK(hm_live_restore(live, t.infos, t.count, &cancelling, &err) == HM_ERR_CANCELLED);
            CHECK(between(&t, old, new));
            CHECK(good(hm_live_restore(live, t.infos, t.count, NULL, &err), &err));
            CHECK(targets_equal(&t, &set, hyper->base_file));
        }
        free(old);
        free(new);
        hm_live_close(live);
        targets_end(&t);
    }
    hm_source_close(expected);
    hm_hyper_close(hyper);
    models_end(&set);
}

/* ---- files that are not in the page cache ------------------------------------------------------------------------ */

/* A slider reads the same numbers again and again: whatever the first move finds cold, the next one must find cached. */
static void test_cold(folder *f)
{
    static const part large[] = {{"large.weight", 2, {1201, 1999}, 0}};
    const double at[] = {0.5};
    hm_solve_options solve = {.directions = 1, .dtype = HM_F16};
    hm_save_options save = {.force = true};
    hm_live *live = NULL;
    hm_error err = {0};
    model_set set;
    targets t;
    models_begin(&set, large, 1, 2);
    hm_hyper *hyper = make_hyper(&set, folder_file(f, "cold.hyper.safetensors"), &solve, &save);
    targets_begin(&t, &set, HM_F32, ROW_MAJOR);
    if (hyper != NULL) {
        const hm_file *file = &hyper->file->file;
        targets_load(&t, hyper->base_file);
        CHECK(good(hm_live_bind(&live, hyper, t.infos, t.names, t.count, NULL, NULL, &err), &err));
        CHECK(fsync(file->fd) == 0 && posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
        hm_job job = {.threads = 2};
        CHECK(live != NULL && good(hm_live_set(live, t.infos, t.count, at, 1, NULL, 0, &job, &err), &err));
        CHECK(job.out_direct_bytes == 0 && job.out_cached_bytes >= 2 * 2 * t.infos[0].elements);
        CHECK(hm_file_is_cached(file, 0, hyper->file->stamp.size));
        hm_source *expected = merged(f, hyper, at, 1, NULL, 0, HM_F32);
        CHECK(expected != NULL && targets_equal(&t, &set, expected));
        hm_source_close(expected);
    }
    hm_live_close(live);
    hm_hyper_close(hyper);
    targets_end(&t);
    models_end(&set);
}

int main(void)
{
    folder f;
    model_set set, many;
    if (!CHECK(folder_begin(&f))) return check_report("live");
    models_begin(&set, parts, PART_COUNT, 3);
    models_begin(&many, parts, PART_COUNT, 7);
    test_types(&f, &set, HM_F32, false);
    test_types(&f, &set, HM_F16, false);
    test_types(&f, &set, HM_BF16, true);
    test_types(&f, &set, HM_F8_E4M3, true);
    test_bases(&f, &set, 1);
    test_bases(&f, &many, 5);
    hm_solve_options solve = {.directions = 2, .dtype = HM_F16};
    hm_save_options save = {.force = true};
    hm_hyper *hyper = make_hyper(&many, folder_file(&f, "walk.hyper.safetensors"), &solve, &save);
    if (hyper != NULL) {
        test_walk(&f, &many, hyper);
        test_blocks(&f, &many, hyper);
        test_keep(&f, &many, hyper);
        test_threads(&f, &many, hyper);
    }
    test_large(&f);
    test_cold(&f);
    hm_hyper_close(hyper);
    models_end(&set);
    models_end(&many);
    folder_end(&f);
    return check_report("live");
}
