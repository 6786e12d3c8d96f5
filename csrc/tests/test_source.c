/* Sources: opening files (and refusing what is none), borrowed tensors and their strides, hashes, descriptions. */
#include "model/source.h"

#include <sys/stat.h>

#include "base/error.h"
#include "base/sha256.h"
#include "tests/check.h"
#include "tests/model_files.h"

static const spec small_model[] = {
    {"b.weight", HM_F32, {2, 3, -1}, 1},
    {"a.bias", HM_F16, {4, -1}, 2},
    {"empty", HM_F16, {0, -1}, 0},
    {"one", HM_F16, {-1}, 3},
};
#define SMALL_COUNT (sizeof small_model / sizeof small_model[0])
static const hm_meta small_meta[] = {{"format", "pt"}, {"note", "\"quoted\"\n"}};

/* sha256 of a whole file, or of its first `bytes`. */
static void hash_of_file(const char *path, size_t bytes, char hex[65])
{
    hm_sha256 hash;
    hm_sha256_begin(&hash);
    FILE *file = fopen(path, "rb");
    int c;
    while (file != NULL && bytes-- > 0 && (c = fgetc(file)) != EOF) {
        unsigned char byte = (unsigned char)c;
        hm_sha256_add(&hash, &byte, 1);
    }
    if (file != NULL) fclose(file);
    hm_sha256_end(&hash, hex);
}

static void test_open(folder *f)
{
    const char *path = folder_file(f, "My.Model.safetensors");
    hm_source *source = NULL;
    hm_error err = {0};
    char hex[65];
    CHECK(write_model(path, small_model, SMALL_COUNT, small_meta, 2));
    if (!CHECK(hm_source_open(&source, path, &err) == HM_OK)) return;
    CHECK_TEXT(hm_source_name(source), "My.Model");
    CHECK_TEXT(hm_source_label(source), path);
    CHECK_TEXT(hm_source_short_label(source), "My.Model.safetensors");
    CHECK(hm_source_path(source) != NULL && hm_source_path(source)[0] == '/');
    CHECK(hm_source_count(source) == SMALL_COUNT);
    CHECK(hm_source_tensor(source, SMALL_COUNT) == NULL);
    CHECK_TEXT(hm_source_tensor(source, 0)->name, "b.weight");
    CHECK(hm_source_find(source, "a.bias") != NULL && hm_source_find(source, "a.bias")->elements == 4);
    CHECK(hm_source_find(source, "one")->ndim == 0 && hm_source_find(source, "one")->elements == 1);
    CHECK(hm_source_find(source, "empty")->elements == 0);
    CHECK(hm_source_find(source, "a") == NULL);
    CHECK(hm_source_find(source, "") == NULL);
    CHECK(hm_source_index(source, "zz") == HM_ABSENT);
    CHECK_TEXT(hm_source_tensor(source, hm_source_prefix_index(source, "b."))->name, "b.weight");
    CHECK(hm_source_prefix_index(source, "b.x") == HM_ABSENT);
    CHECK(hm_source_prefix_index(source, "zz") == HM_ABSENT);
    CHECK_TEXT(hm_source_metadata(source, "format"), "pt");
    CHECK_TEXT(hm_source_metadata(source, "note"), "\"quoted\"\n");
    CHECK(hm_source_metadata(source, "missing") == NULL);

    hash_of_file(path, (size_t)hm_source_tensor(source, 0)->offset, hex);
    CHECK_TEXT(source->header_hash, hex);
    CHECK(hm_source_keep(source) == source);
    hm_source_close(source); /* one reference is left */
    CHECK_TEXT(hm_source_name(source), "My.Model");

    char *json = NULL;
    CHECK(hm_source_describe(source, &json, &err) == HM_OK);
    CHECK_HAS(json, "{\"name\":\"My.Model\",\"path\":\"/");
    CHECK_HAS(json, "\"family\":\"unknown\",\"tensors\":4,\"parameters\":11,\"dtypes\":{\"F32\":1,\"F16\":3}");
    CHECK_HAS(json, "\"components\":{\"unet\":{\"tensors\":4,\"parameters\":11}},\"header_hash\":\"");
    CHECK_HAS(json, "\"metadata\":{\"format\":\"pt\",\"note\":\"\\\"quoted\\\"\\n\"}}");
    hm_free(json);
    hm_source_close(source);
    hm_source_close(NULL);
}

static void test_names_of_files(folder *f)
{
    static const char *const names[][2] = {
        {"x.hyper.safetensors", "x"}, {"x.hyper", "x.hyper"}, {"x.safetensors.bak", "x.safetensors.bak"},
        {".safetensors", ".safetensors"}, {"x.safetensors.safetensors", "x.safetensors"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *path = folder_file(f, names[i][0]);
        hm_source *source = NULL;
        CHECK(write_model(path, small_model, 1, NULL, 0));
        if (CHECK(hm_source_open(&source, path, NULL) == HM_OK)) CHECK_TEXT(hm_source_name(source), names[i][1]);
        hm_source_close(source);
    }
    /* A link keeps the name it was given by; the path is that of the file. */
    const char *target = folder_file(f, "0123abcd"), *link_path = folder_file(f, "pretty.safetensors");
    hm_source *source = NULL;
    CHECK(write_model(target, small_model, 1, NULL, 0));
    CHECK(symlink(target, link_path) == 0);
    if (CHECK(hm_source_open(&source, link_path, NULL) == HM_OK)) {
        CHECK_TEXT(hm_source_name(source), "pretty");
        CHECK_TEXT(hm_source_short_label(source), "pretty.safetensors");
        CHECK_HAS(hm_source_path(source), "0123abcd");
    }
    hm_source_close(source);
}

static void check_refused(folder *f, const char *name, const void *bytes, size_t count, hm_status status,
                          const char *part)
{
    const char *path = folder_file(f, name);
    hm_source *source = NULL;
    hm_error err = {0};
    CHECK(write_bytes(path, bytes, count));
    CHECK(hm_source_open(&source, path, &err) == status);
    CHECK(source == NULL);
    CHECK_HAS(err.message, name);
    CHECK_HAS(err.message, part);
}

static void test_refused(folder *f)
{
    static const char zip[] = "PK\3\4\0\0\0\0\0\0archive/data.pkl";
    static const char pickle[] = "\x80\x02\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.";
    check_refused(f, "old.ckpt", zip, sizeof zip, HM_ERR_FORMAT, "convert it to .safetensors first");
    check_refused(f, "older.pt", pickle, sizeof pickle, HM_ERR_FORMAT, "pickled");
    check_refused(f, "llm.gguf", "GGUF\3\0\0\0\0\0\0\0", 12, HM_ERR_FORMAT, "GGUF");
    check_refused(f, "empty.safetensors", "", 0, HM_ERR_FORMAT, "0 bytes");
    check_refused(f, "short.safetensors", "\x80\x02", 2, HM_ERR_FORMAT, "2 bytes");
    check_refused(f, "cut.safetensors", "\x80\0\0\0\0\0\0\0{\"a\":", 13, HM_ERR_FORMAT, "cut short");
    check_refused(f, "broken.safetensors", "\2\0\0\0\0\0\0\0{]", 10, HM_ERR_FORMAT, "header");

    hm_source *source = NULL;
    hm_error err = {0};
    CHECK(hm_source_open(&source, f->path, &err) == HM_ERR_FORMAT);
    CHECK_HAS(err.message, "is a folder");
    CHECK_HAS(err.message, "diffusers");
    CHECK(hm_source_open(&source, folder_file(f, "nowhere.safetensors"), &err) == HM_ERR_IO);
    CHECK_HAS(err.message, "nowhere.safetensors");
    CHECK(hm_source_open(&source, "", &err) == HM_ERR_ARGUMENT);
    CHECK(hm_source_open(&source, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK(source == NULL);

    /* 0x80 and 2 also begin an honest header length of 640 bytes. */
    char honest[8 + 640 + 4] = "\x80\2";
    const char *path = folder_file(f, "honest.safetensors");
    memset(honest + 8, ' ', 640);
    static const char text[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}";
    memcpy(honest + 8, text, sizeof text - 1);
    CHECK(write_bytes(path, honest, sizeof honest));
    CHECK(hm_source_open(&source, path, &err) == HM_OK);
    hm_source_close(source);
}

/* ---- hashes, changes --------------------------------------------------------------------------------------------- */

typedef struct ticks {
    uint64_t calls, last, total;
    int answer;
} ticks;

static int on_progress(void *user, uint64_t done, uint64_t total)
{
    ticks *t = user;
    t->calls++;
    t->last = done;
    t->total = total;
    return t->answer;
}

static void test_sha256(folder *f)
{
    /* Larger than two read blocks, and no multiple of anything. */
    static const spec large[] = {{"w", HM_U8, {9437189, -1}, 77}};
    const char *path = folder_file(f, "large.safetensors");
    hm_source *source = NULL;
    hm_error err = {0};
    char expected[65], got[65] = "untouched", again[65];
    ticks counted = {0};
    hm_job job = {.progress = on_progress, .user = &counted};
    CHECK(write_model(path, large, 1, NULL, 0));
    if (!CHECK(hm_source_open(&source, path, &err) == HM_OK)) return;

    counted.answer = 1;
    CHECK(hm_source_sha256(source, got, &job, &err) == HM_ERR_CANCELLED);
    CHECK_TEXT(got, "untouched");
    CHECK_TEXT(source->sha256, "");
    counted.answer = 0;
    hash_of_file(path, SIZE_MAX, expected);
    CHECK(hm_source_sha256(source, got, &job, &err) == HM_OK);
    CHECK_TEXT(got, expected);
    CHECK_TEXT(source->sha256, expected);
    CHECK(counted.calls >= 2 && counted.last == counted.total && counted.total == source->stamp.size);
    CHECK(job.out_cached_bytes + job.out_direct_bytes == source->stamp.size);
    CHECK(hm_source_sha256(source, again, NULL, NULL) == HM_OK);
    CHECK_TEXT(again, expected);

    CHECK(hm_source_set_sha256(source, "ABCDEF", &err) == HM_ERR_ARGUMENT);
    CHECK(hm_source_set_sha256(source, NULL, &err) == HM_ERR_ARGUMENT);
    CHECK_TEXT(source->sha256, expected);
    char upper[65];
    memset(upper, 'A', 64);
    upper[64] = 0;
    CHECK(hm_source_set_sha256(source, upper, &err) == HM_OK);
    CHECK(source->sha256[0] == 'a' && source->sha256[63] == 'a');
    upper[10] = 'g';
    CHECK(hm_source_set_sha256(source, upper, &err) == HM_ERR_ARGUMENT);
    char *json = NULL;
    CHECK(hm_source_describe(source, &json, NULL) == HM_OK);
    CHECK_HAS(json, "\"sha256\":\"aaaaaaaa");
    hm_free(json);

    /* Truncated under the reader: refused, whichever call notices. */
    CHECK(hm_source_check_unchanged(source, &err) == HM_OK);
    CHECK(truncate(path, 5000000) == 0);
    CHECK(hm_source_check_unchanged(source, &err) == HM_ERR_IO);
    CHECK_HAS(err.message, "changed while being read; run again");
    CHECK_HAS(err.message, "large.safetensors");
    CHECK(hm_source_sha256(source, got, &job, &err) == HM_ERR_IO);
    CHECK_TEXT(got, expected);
    hm_source_close(source);

    /* Replaced by a rename: the old file stays readable. */
    const char *other = folder_file(f, "other.safetensors");
    CHECK(write_model(path, small_model, 1, NULL, 0));
    CHECK(write_model(other, small_model, 2, NULL, 0));
    if (!CHECK(hm_source_open(&source, path, &err) == HM_OK)) return;
    CHECK(rename(other, path) == 0);
    CHECK(hm_source_check_unchanged(source, &err) == HM_OK);
    CHECK(hm_source_count(source) == 1);
    hm_source_close(source);
}

/* ---- borrowed tensors -------------------------------------------------------------------------------------------- */

static void test_borrow(void)
{
    float numbers[6] = {0, 1, 2, 3, 4, 5};
    hm_tensor_info infos[3] = {
        {.name = "w", .dtype = HM_F32, .ndim = 2, .shape = {2, 3}, .data = numbers, .strides = {3, 1}},
        {.name = "a", .dtype = HM_F32, .data = numbers},
        {.name = "none", .dtype = HM_I64, .ndim = 2, .shape = {0, 7}},
    };
    hm_source *source = NULL;
    hm_error err = {0};
    char hex[65], name[] = "w";
    infos[0].name = name;
    if (!CHECK(hm_source_borrow(&source, "state dict", infos, 3, &err) == HM_OK)) return;
    name[0] = '?'; /* names were copied */
    CHECK_TEXT(hm_source_label(source), "state dict");
    CHECK_TEXT(hm_source_short_label(source), "state dict");
    CHECK(hm_source_path(source) == NULL);
    CHECK_TEXT(hm_source_tensor(source, 0)->name, "w");
    CHECK(hm_source_find(source, "w")->bytes == 24 && hm_source_find(source, "a")->bytes == 4);
    CHECK(hm_source_find(source, "none")->elements == 0);
    CHECK(hm_source_metadata(source, "format") == NULL);
    CHECK(hm_source_check_unchanged(source, &err) == HM_OK);
    CHECK(hm_source_sha256(source, hex, NULL, &err) == HM_ERR_ARGUMENT);
    char *json = NULL;
    CHECK(hm_source_describe(source, &json, &err) == HM_OK);
    CHECK_HAS(json, "\"path\":null,\"size\":28,");
    CHECK_HAS(json, "\"header_hash\":null,\"metadata\":{}}");
    hm_free(json);
    hm_source_close(source);

    source = NULL;
    infos[1].name = infos[0].name = "w";
    CHECK(hm_source_borrow(&source, "twice", infos, 2, &err) == HM_ERR_ARGUMENT);
    CHECK_HAS(err.message, "twice: w: ");
    infos[1].name = NULL;
    CHECK(hm_source_borrow(&source, "x", infos, 2, &err) == HM_ERR_ARGUMENT);
    infos[0].data = NULL;
    CHECK(hm_source_borrow(&source, "x", infos, 1, &err) == HM_ERR_ARGUMENT);
    infos[0].data = numbers;
    infos[0].ndim = HM_MAX_DIMS + 1;
    CHECK(hm_source_borrow(&source, "x", infos, 1, &err) == HM_ERR_ARGUMENT);
    infos[0].ndim = 2;
    infos[0].dtype = HM_DTYPE_COUNT;
    CHECK(hm_source_borrow(&source, "x", infos, 1, &err) == HM_ERR_ARGUMENT);
    infos[0].dtype = HM_F32;
    infos[0].shape[0] = infos[0].shape[1] = (uint64_t)1 << 33;
    CHECK(hm_source_borrow(&source, "x", infos, 1, &err) == HM_ERR_ARGUMENT);
    CHECK(source == NULL);
    CHECK(hm_source_borrow(&source, NULL, NULL, 0, &err) == HM_OK);
    CHECK(hm_source_count(source) == 0 && hm_source_find(source, "w") == NULL);
    hm_source_close(source);
}

/* Every range of a strided tensor against the plain formula. */
static void check_gather(const hm_tensor_info *t, bool contiguous)
{
    size_t size = hm_dtype_bytes(t->dtype), all = (size_t)t->elements;
    unsigned char expected[8 * 64], got[8 * 64 + 1];
    for (size_t i = 0; i < all; i++) {
        int64_t offset = 0;
        uint64_t rest = i;
        for (unsigned d = t->ndim; d-- > 0; rest /= t->shape[d])
            offset += (int64_t)(rest % t->shape[d]) * t->strides[d];
        memcpy(expected + i * size, (const char *)t->data + offset * (int64_t)size, size);
    }
    CHECK(hm_tensor_is_contiguous(t) == contiguous);
    for (size_t start = 0; start <= all; start++)
        for (size_t count = 0; start + count <= all; count++) {
            memset(got, 0xee, sizeof got);
            hm_source_gather(t, start, count, got);
            if (!CHECK(memcmp(got, expected + start * size, count * size) == 0 && got[count * size] == 0xee)) return;
        }
}

static void test_gather(void)
{
    static const hm_dtype dtypes[] = {HM_F64, HM_F32, HM_BF16, HM_F8_E4M3};
    uint64_t store[64];
    for (size_t i = 0; i < 64; i++) store[i] = 0x0101010101010101u * i;
    for (size_t i = 0; i < sizeof store; i++) ((unsigned char *)store)[i] = (unsigned char)(i * 7 + i / 256);
    for (size_t d = 0; d < 4; d++) {
        hm_tensor_info t = {.dtype = dtypes[d], .ndim = 3, .shape = {2, 3, 4}, .elements = 24, .data = store,
                            .strides = {12, 4, 1}};
        check_gather(&t, true);
        t.strides[0] = 1, t.strides[1] = 2, t.strides[2] = 6; /* transposed */
        check_gather(&t, false);
        t.strides[0] = 24, t.strides[1] = 6, t.strides[2] = 1; /* a slice */
        check_gather(&t, false);
        t.strides[0] = 0, t.strides[1] = 0, t.strides[2] = 2; /* broadcast */
        check_gather(&t, false);
        t.data = (const char *)store + 23 * hm_dtype_bytes(t.dtype);
        t.strides[0] = -12, t.strides[1] = -4, t.strides[2] = -1; /* reversed */
        check_gather(&t, false);
        t.data = store;
        t.shape[0] = 1, t.shape[2] = 1, t.elements = 3; /* strides of single elements mean nothing */
        t.strides[0] = 77, t.strides[1] = 1, t.strides[2] = -5;
        check_gather(&t, true);
        t.strides[1] = 5;
        check_gather(&t, false);
        t = (hm_tensor_info){.dtype = dtypes[d], .elements = 1, .data = store};
        check_gather(&t, true);
        t = (hm_tensor_info){.dtype = dtypes[d], .ndim = 2, .shape = {0, 3}, .strides = {9, 9}};
        check_gather(&t, true);
    }
}

int main(void)
{
    folder f;
    if (!CHECK(folder_begin(&f))) return check_report("source");
    test_open(&f);
    test_names_of_files(&f);
    test_refused(&f);
    test_sha256(&f);
    test_borrow();
    test_gather();
    folder_end(&f);
    return check_report("source");
}
