/* Axes that are renamed and turned round: what the new file holds, and that the old one is never in danger. */
#include "apply/axes_document.h"
#include "tests/live_models.h"

static const part parts[] = {
    {"block.0.weight", 4, {5, 4, 3, 3}, 0}, {"block.1.weight", 2, {131, 163}, 0}, {"block.1.bias", 1, {1031}, 0},
    {"fixed.weight", 2, {3, 7}, 1},         {"last.scale", 0, {0}, 0},          {"none", 2, {0, 3}, 0},
};
#define PART_COUNT (sizeof parts / sizeof parts[0])

static int good(hm_status status, const hm_error *err)
{
    if (status != HM_OK) fprintf(stderr, "    %s\n", err->message);
    return status == HM_OK;
}

static unsigned char *bytes_of(const char *path, size_t *count)
{
    FILE *file = fopen(path, "rb");
    if (!CHECK(file != NULL)) return NULL;
    fseek(file, 0, SEEK_END);
    *count = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*count + 1);
    CHECK(fread(bytes, 1, *count, file) == *count);
    fclose(file);
    return bytes;
}

static int same_bytes(const char *a, const char *b)
{
    size_t na = 0, nb = 0;
    unsigned char *x = bytes_of(a, &na), *y = bytes_of(b, &nb);
    int same = x != NULL && y != NULL && na == nb && memcmp(x, y, na) == 0;
    free(x);
    free(y);
    return same;
}

/* The file at `path` as a hyper-model, renamed into `to` and opened there. */
static hm_hyper *renamed(const char *path, const char *to, const hm_rename_options *options)
{
    hm_hyper *before = NULL, *after = NULL;
    hm_error err = {0};
    int fine = good(hm_hyper_open(&before, path, NULL, 0, &err), &err) &&
               good(hm_hyper_rename(before, to, options, NULL, &err), &err) &&
               good(hm_hyper_open(&after, to != NULL ? to : path, NULL, 0, &err), &err);
    CHECK(fine);
    hm_hyper_close(before);
    return after;
}

static hm_source *merged(folder *f, const char *name, hm_hyper *hyper, const double *at, size_t count, hm_dtype dtype)
{
    const char *path = folder_file(f, name);
    hm_merge_options options = {.at = at, .at_count = count, .dtype = dtype};
    hm_source *source = NULL;
    hm_error err = {0};
    CHECK(good(hm_hyper_merge(hyper, path, &options, NULL, &err), &err) &&
          good(hm_source_open(&source, path, &err), &err));
    return source;
}

static int same_numbers(const model_set *set, const hm_source *a, const hm_source *b, hm_dtype dtype)
{
    int same = a != NULL && b != NULL;
    for (size_t i = 0; same && i < set->part_count; i++) {
        size_t bytes = part_elements(&set->parts[i]) * hm_dtype_bytes(dtype);
        unsigned char *x = file_numbers(a, set->parts[i].name, dtype), *y = file_numbers(b, set->parts[i].name, dtype);
        same = x != NULL && y != NULL && memcmp(x, y, bytes) == 0;
        free(x);
        free(y);
    }
    return same;
}

static char *document_of(hm_hyper *hyper)
{
    char *text = NULL;
    CHECK(hm_hyper_document(hyper, &text, NULL) == HM_OK && text != NULL);
    return text;
}

/* ---- signs ------------------------------------------------------------------------------------------------------- */

/* Are the parts of the turned directions those of the original with the other sign, and all else the same? */
static void check_parts(const hm_hyper *before, const hm_hyper *after, const bool *flip)
{
    const hm_header *header = &before->file->header;
    CHECK(header->count == after->file->header.count);
    for (size_t t = 0; t < header->count; t++) {
        const hm_tensor_info *info = &header->tensors[t], *now = &after->file->header.tensors[t];
        unsigned k = 0;
        bool turned = sscanf(info->name, "hypermerge.direction.%u.", &k) == 1 && flip[k - 1];
        size_t size = hm_dtype_bytes(info->dtype);
        unsigned char *x = malloc(info->bytes + 1), *y = malloc(info->bytes + 1);
        CHECK_TEXT(info->name, now->name);
        CHECK(info->dtype == now->dtype && info->bytes == now->bytes);
        CHECK(hm_file_read(&before->file->file, x, info->offset, info->bytes, NULL) == HM_OK);
        CHECK(hm_file_read(&after->file->file, y, now->offset, now->bytes, NULL) == HM_OK);
        for (size_t e = 0; turned && e < info->elements; e++) x[e * size + size - 1] ^= 0x80;
        CHECK(memcmp(x, y, info->bytes) == 0);
        free(x);
        free(y);
    }
    size_t directions = before->solution.directions;
    for (size_t i = 0; i < before->solution.members * directions; i++) {
        double c = before->solution.multipliers[i];
        CHECK(after->solution.multipliers[i] == (flip[i % directions] ? -c : c));
    }
    CHECK(after->solution.loss == before->solution.loss && after->solution.total == before->solution.total);
}

static void test_signs(folder *f, const model_set *set, hm_dtype stored, hm_base base)
{
    static const bool flip[] = {false, true, true}, first[] = {true, false, false}, none[] = {false, false, false};
    static const double at[] = {0.4, -1.3, 0.25}, turned_at[] = {0.4, 1.3, -0.25};
    const char *path = folder_file(f, "signs.hyper.safetensors"), *to = folder_file(f, "turned.hyper.safetensors");
    hm_solve_options solve = {.base = base, .directions = 3, .dtype = stored};
    hm_save_options save = {.force = true, .base_low = base == HM_BASE_MEAN, .hash = stored == HM_F16};
    hm_hyper *hyper = make_hyper(set, path, &solve, &save);
    hm_rename_options options = {.flip = flip, .force = true}, same = {.flip = none}, once = {.flip = first};
    hm_hyper *turned = renamed(path, to, &options);
    if (hyper == NULL || turned == NULL) return;
    check_parts(hyper, turned, flip);

    hm_source *expected = merged(f, "a.safetensors", hyper, at, 3, HM_F16);
    hm_source *found = merged(f, "b.safetensors", turned, turned_at, 3, HM_F16);
    CHECK(same_numbers(set, expected, found, HM_F16));
    hm_source_close(found);
    found = merged(f, "b.safetensors", turned, at, 3, HM_F16);
    CHECK(!same_numbers(set, expected, found, HM_F16));
    hm_source_close(found);

    /* Live: the same numbers in somebody's tensors. */
    targets t;
    hm_live *live = NULL;
    hm_live_options bind = {.keep_original = true};
    hm_error err = {0};
    targets_begin(&t, set, HM_F16, ROW_MAJOR);
    CHECK(good(hm_live_bind(&live, turned, t.infos, t.names, t.count, &bind, NULL, &err), &err));
    if (live != NULL && expected != NULL) {
        CHECK(good(hm_live_set(live, t.infos, t.count, turned_at, 3, NULL, 0, NULL, &err), &err));
        CHECK(targets_equal(&t, set, expected));
    }
    hm_live_close(live);
    targets_end(&t);

    /* Turned back, every number and the document are what they were; the second time every byte of the file is. */
    char *text = document_of(hyper), *again;
    hm_hyper *back = renamed(to, folder_file(f, "back.hyper.safetensors"), &options);
    if (back != NULL) check_parts(hyper, back, none);
    again = back != NULL ? document_of(back) : NULL;
    CHECK_TEXT(text, again);
    hm_free(again);
    hm_hyper_close(back);
    hm_hyper_close(renamed(path, folder_file(f, "copy.hyper.safetensors"), &same));
    CHECK(same_bytes(folder_file(f, "back.hyper.safetensors"), folder_file(f, "copy.hyper.safetensors")));
    hm_hyper_close(renamed(to, NULL, &once));
    hm_hyper_close(renamed(to, NULL, &once));
    hm_hyper_close(renamed(to, NULL, &options));
    CHECK(same_bytes(to, folder_file(f, "copy.hyper.safetensors")));

    if (save.hash) { /* of the data as it is now */
        const char *was = hm_source_metadata(hyper->file, "sshs_model_hash");
        const char *now = hm_source_metadata(turned->file, "sshs_model_hash");
        const char *longer = hm_source_metadata(turned->file, "modelspec.hash_sha256");
        hm_source *copy = NULL;
        CHECK(was != NULL && now != NULL && strcmp(was, now) != 0);
        CHECK(longer == NULL || strcmp(longer + 2, now) == 0);
        CHECK(hm_source_open(&copy, folder_file(f, "copy.hyper.safetensors"), NULL) == HM_OK);
        CHECK_TEXT(hm_source_metadata(copy, "sshs_model_hash"), was);
        hm_source_close(copy);
    }
    hm_free(text);
    hm_source_close(expected);
    hm_hyper_close(turned);
    hm_hyper_close(hyper);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static void test_problems(void)
{
    static const struct {
        const char *name, *problem;
    } cases[] = {
        {"", NULL},
        {"warmth", NULL},
        {"a \"b\" \\ c/d", NULL},
        {"température · 色温 🙂", NULL},
        {" a", "blank"},
        {"a ", "blank"},
        {"a\nb", "shown"},
        {"a\x1b[31m", "shown"},
        {"\x7f", "shown"},
        {"\xc2\x85", "shown"},
        {"\xc2\xa0", NULL},             /* U+00A0 */
        {"\xe2\x80\xa8", "shown"},      /* U+2028 */
        {"\xe2\x80\xae evil", "shown"}, /* U+202E */
        {"\xe2\x81\xa6", "shown"},      /* U+2066 */
        {"\xef\xbb\xbf", "shown"},      /* U+FEFF */
        {"\xef\xbf\xbf", "shown"},      /* U+FFFF */
        {"\xf0\x9f\xbf\xbe", "shown"},  /* U+1FFFE */
        {"\xf4\x8f\xbf\xbd", NULL},     /* U+10FFFD */
        {"\xff", "UTF-8"},
        {"\xed\xa0\x80", "UTF-8"},
        {"\xc3", "UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *problem = hm_axis_name_problem(cases[i].name);
        if (cases[i].problem == NULL)
            CHECK(problem == NULL);
        else
            CHECK_HAS(problem, cases[i].problem);
    }
    char many[4 * 65 + 1] = "";
    for (size_t i = 0; i < 64; i++) strcat(many, "\xf0\x9f\x99\x82");
    CHECK(hm_axis_name_problem(many) == NULL);
    strcat(many, "a");
    CHECK_HAS(hm_axis_name_problem(many), "64");
}

static void test_names(folder *f, const model_set *set)
{
    const char *path = folder_file(f, "names.hyper.safetensors");
    hm_solve_options solve = {.directions = 3, .dtype = HM_F16};
    hm_hyper *hyper = make_hyper(set, path, &solve, &(hm_save_options){.force = true});
    if (hyper == NULL) return;
    char *plain = document_of(hyper), *text;
    hm_error err = {0};

    const char *two[] = {"warm \"x\" \\", NULL, "Fülle"};
    hm_hyper *named = renamed(path, NULL, &(hm_rename_options){.names = two});
    text = document_of(named);
    CHECK_HAS(text, ",\"axes\":[{\"name\":\"warm \\\"x\\\" \\\\\"},{\"name\":null},{\"name\":\"Fülle\"}]}");
    CHECK(strncmp(text, plain, strlen(plain) - 1) == 0); /* all before is as it was */
    hm_free(text);

    /* NULL keeps, "" takes away; two axes of one name, and what cannot be a name, are refused and change nothing. */
    const char *third[] = {NULL, NULL, ""}, *both[] = {NULL, "warm \"x\" \\", NULL}, *bad[] = {NULL, "a\tb", NULL};
    size_t count = 0;
    unsigned char *before = bytes_of(path, &count), *after;
    CHECK(hm_hyper_rename(named, NULL, &(hm_rename_options){.names = both}, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "axes 1 and 2");
    CHECK(hm_hyper_rename(named, NULL, &(hm_rename_options){.names = bad}, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "axis 2");
    CHECK_HAS(err.message, "a?b");
    after = bytes_of(path, &count);
    CHECK(before != NULL && after != NULL && memcmp(before, after, count) == 0);
    free(before);
    free(after);
    hm_hyper_close(named);
    named = renamed(path, NULL, &(hm_rename_options){.names = third});
    text = document_of(named);
    CHECK_HAS(text, ",\"axes\":[{\"name\":\"warm \\\"x\\\" \\\\\"},{\"name\":null},{\"name\":null}]}");
    hm_free(text);
    hm_hyper_close(named);
    const char *all[] = {"", "", ""};
    named = renamed(path, NULL, &(hm_rename_options){.names = all});
    text = document_of(named);
    CHECK_TEXT(text, plain); /* nothing left to say of the axes */
    hm_free(text);
    hm_hyper_close(named);
    hm_free(plain);
    hm_hyper_close(hyper);
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

static int cancel_at_once(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    (void)done;
    (void)total;
    return 1;
}

static void test_file(folder *f, const model_set *set)
{
    static const bool flip[] = {true, false};
    const char *path = folder_file(f, "own.hyper.safetensors"), *kept = folder_file(f, "kept.hyper.safetensors");
    hm_rename_options options = {.flip = flip};
    hm_hyper *solved = NULL, *hyper = make_hyper(set, path, NULL, &(hm_save_options){.force = true});
    hm_error err = {0};
    if (hyper == NULL) return;
    hm_hyper_close(renamed(path, kept, NULL)); /* without options: a copy */

    CHECK(hm_solve(&solved, set->sources, set->models, NULL, NULL, NULL) == HM_OK);
    CHECK(hm_hyper_rename(solved, path, &options, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "save it first");
    hm_hyper_close(solved);

    hm_job job = {.progress = cancel_at_once};
    CHECK(hm_hyper_rename(hyper, NULL, &options, &job, &err) == HM_ERR_CANCELLED);
    hm_hyper_close(renamed(path, folder_file(f, "after.hyper.safetensors"), NULL));
    CHECK(same_bytes(kept, folder_file(f, "after.hyper.safetensors")));

    /* A file that is not ours stays, unless forced. */
    const char *foreign = folder_file(f, "foreign.txt");
    CHECK(write_bytes(foreign, "precious", 8));
    CHECK(hm_hyper_rename(hyper, foreign, &options, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "--force");
    size_t count = 0;
    unsigned char *now = bytes_of(foreign, &count);
    CHECK(now != NULL && count == 8 && memcmp(now, "precious", 8) == 0);
    free(now);

    /* What somebody put in place of the open file is not ours to overwrite with the old. */
    CHECK(rename(kept, path) == 0);
    CHECK(hm_hyper_rename(hyper, NULL, &options, NULL, &err) == HM_ERR_IO);
    CHECK_HAS(err.message, "replaced");
    CHECK(same_bytes(path, folder_file(f, "after.hyper.safetensors")));
    CHECK(unlink(path) == 0); /* and one that is gone is written back from what is open */
    CHECK(good(hm_hyper_rename(hyper, NULL, &options, NULL, &err), &err));
    CHECK(access(path, F_OK) == 0);
    hm_hyper_close(hyper);
}

static void test_split(folder *f, const model_set *set)
{
    static const bool flip[] = {true, false};
    static const double at[] = {0.5, 0.25}, turned_at[] = {-0.5, 0.25};
    const char *path = folder_file(f, "split.hyper.safetensors"), *base = folder_file(f, "split.base.safetensors");
    hm_rename_options options = {.flip = flip};
    hm_error err = {0};
    size_t before = 0, after = 0;
    hm_hyper *hyper = make_hyper(set, path, NULL, &(hm_save_options){.force = true, .split = true});
    if (hyper == NULL) return;
    hm_source *expected = merged(f, "a.safetensors", hyper, at, 2, HM_F32);
    unsigned char *x = bytes_of(base, &before), *y;
    CHECK(hm_hyper_rename(hyper, base, &options, NULL, &err) == HM_ERR_ARGUMENT); /* never onto the base */
    CHECK_HAS(err.message, "input");
    hm_hyper *turned = renamed(path, NULL, &options);
    y = bytes_of(base, &after);
    CHECK(x != NULL && y != NULL && before == after && memcmp(x, y, before) == 0);
    if (turned != NULL) {
        CHECK(turned->base_file != NULL && turned->base_file != turned->file);
        hm_source *found = merged(f, "b.safetensors", turned, turned_at, 2, HM_F32);
        CHECK(same_numbers(set, expected, found, HM_F32));
        hm_source_close(found);
    }
    hm_hyper_close(turned);
    hm_hyper_close(hyper);
    hm_source_close(expected);
    /* Without its base a hyper-model can still be renamed. */
    CHECK(rename(base, folder_file(f, "away.safetensors")) == 0);
    const char *names[] = {"a", "b"};
    turned = renamed(path, NULL, &(hm_rename_options){.names = names});
    CHECK(turned != NULL && turned->base_file == NULL);
    hm_hyper_close(turned);
    free(x);
    free(y);
}

int main(void)
{
    static const hm_dtype types[] = {HM_F16, HM_BF16, HM_F32, HM_F64, HM_F8_E4M3};
    folder f;
    model_set set;
    if (!CHECK(folder_begin(&f))) return check_report("axes");
    models_begin(&set, parts, PART_COUNT, 5);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) test_signs(&f, &set, types[i], HM_BASE_MEAN);
    test_signs(&f, &set, HM_F32, HM_BASE_NONE);
    test_problems();
    test_names(&f, &set);
    test_file(&f, &set);
    test_split(&f, &set);
    models_end(&set);
    folder_end(&f);
    CHECK(access(f.path, F_OK) != 0); /* nothing else was left in it */
    return check_report("axes");
}
