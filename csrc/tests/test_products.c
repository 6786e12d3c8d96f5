/* Product tensors: how a source offers them, what it refuses, their numbers against plain loops in f64, and that these
 * depend neither on pieces nor on threads, budgets or where the factors lie. */
#include <stdatomic.h>
#include <sys/wait.h>

#include "lowrank/expand.h"
#include "model/product.h"
#include "solve/stream.h"
#include "tests/product_models.h"

#define NAME "hypermerge.direction.1.conv.weight"

/* ---- what is offered ------------------------------------------------------------------------------------------- */

static void check_offered(const hm_source *source)
{
    CHECK(hm_source_count(source) == 4);
    const hm_tensor_info *product = hm_source_find(source, NAME);
    if (!CHECK(product != NULL)) return;
    CHECK(product->rank == 3 && product->dtype == HM_F32 && product->ndim == 4);
    CHECK(product->shape[0] == 6 && product->shape[1] == 4 && product->shape[2] == 3 && product->shape[3] == 3);
    CHECK(product->elements == 216 && product->bytes == 6 * 3 * 2 + 3 * 36 * 4 && product->data == NULL);
    CHECK(hm_source_find(source, NAME ".lora_up") == NULL && hm_source_find(source, NAME ".lora_down") == NULL);
    uint32_t index = hm_source_index(source, NAME);
    CHECK(hm_source_tensor(source, index) == product);
    CHECK_TEXT(hm_source_up(source, index)->name, NAME ".lora_up");
    CHECK_TEXT(hm_source_down(source, index)->name, NAME ".lora_down");
    CHECK(hm_source_find(source, "base")->rank == 0 && hm_source_find(source, "x.lora_up")->rank == 0);
    index = hm_source_prefix_index(source, "hypermerge.direction.");
    CHECK(index != HM_ABSENT && hm_source_tensor(source, index) == product);
}

static void test_offered(folder *f)
{
    numbered tensors[] = {
        {.as = {"base", HM_F32, {2, 2, -1}, 0}},
        {.as = {NAME ".lora_down", HM_F32, {3, 4, 3, 3, -1}, 0}}, /* in either order, with others between */
        {.as = {"x.lora_up", HM_F16, {2, 5, -1}, 0}},             /* a checkpoint's own: half a pair of nothing */
        {.as = {NAME ".lora_up", HM_F16, {6, 3, 1, 1, -1}, 0}},
        {.as = {"last", HM_F32, {1, -1}, 0}},
    };
    const char *path = folder_file(f, "offered.safetensors");
    hm_source *source = NULL, *memory = NULL, *stored = NULL;
    char *text = NULL;
    CHECK(write_numbered(path, tensors, 5, NULL, 0) && hm_source_open(&source, path, NULL) == HM_OK);
    CHECK(borrow_numbered(&memory, tensors, 5) == HM_OK);
    if (source == NULL || memory == NULL) return;
    check_offered(source);
    check_offered(memory);
    CHECK_TEXT(hm_source_tensor(source, 1)->name, NAME); /* where the first of the two lies */

    CHECK(hm_source_describe(source, &text, NULL) == HM_OK);
    CHECK_HAS(text, "\"low_rank\":{\"tensors\":1,\"least_rank\":3,\"largest_rank\":3}");
    CHECK_HAS(text, "\"tensors\":4,\"parameters\":141,"); /* 4 + 18 + 108 + 10 + 1 */
    CHECK_HAS(text, "\"dtypes\":{\"F32\":2,\"F16\":2}");
    hm_free(text);

    CHECK(hm_source_as_stored(&stored, source, NULL) == HM_OK && hm_source_count(stored) == 5);
    hm_source_close(source); /* the view keeps it */
    for (size_t i = 0; i < 5; i++) {
        unsigned char numbers[1024];
        const hm_tensor_info *info = hm_source_tensor(stored, i);
        CHECK_TEXT(info->name, tensors[i].as.name);
        CHECK(info->bytes == tensors[i].bytes && info->rank == 0 && hm_source_find(stored, info->name) == info);
        CHECK(hm_source_read(stored, info, 0, info->elements, numbers, NULL) == HM_OK);
        CHECK(memcmp(numbers, tensors[i].stored, info->bytes) == 0);
    }
    CHECK(hm_source_find(stored, NAME) == NULL);
    hm_source *same = NULL;
    CHECK(hm_source_as_stored(&same, stored, NULL) == HM_OK && same == stored);
    hm_source_close(same);
    hm_source_close(stored);
    hm_source_close(memory);
    numbered_clear(tensors, 5);
}

/* ---- what is refused ------------------------------------------------------------------------------------------- */

#define UP "hypermerge.direction.1.t.lora_up"
#define DOWN "hypermerge.direction.1.t.lora_down"
#define WHOLE "hypermerge.direction.1.t"
#define HUGE_SIDE 3000000000L

static void test_refused(folder *f)
{
    static const struct {
        spec tensors[3];
        size_t count;
        const char *tensor, *text;
    } files[] = {
        {{{UP, HM_F16, {4, 2, -1}, 0}}, 1, UP, "one factor of two; the other, .lora_down, is missing"},
        {{{DOWN, HM_F16, {2, 4, -1}, 0}}, 1, DOWN, "the other, .lora_up, is missing"},
        {{{UP, HM_F16, {4, 2, -1}, 0}, {DOWN, HM_F16, {2, 4, -1}, 0}, {WHOLE, HM_F16, {4, 4, -1}, 0}}, 3, WHOLE,
         "as a whole and also as two factors"},
        {{{DOWN, HM_F16, {2, 4, -1}, 0}, {UP, HM_F16, {4, 3, -1}, 0}}, 2, UP, "has the rank 3 and its .lora_down 2"},
        {{{UP, HM_F16, {4, 0, -1}, 0}, {DOWN, HM_F16, {0, 4, -1}, 0}}, 2, UP, "not 0"},
        {{{UP, HM_I32, {4, 2, -1}, 0}, {DOWN, HM_F16, {2, 4, -1}, 0}}, 2, UP, "floating-point"},
        {{{UP, HM_F16, {4, 2, -1}, 0}, {DOWN, HM_BOOL, {2, 4, -1}, 0}}, 2, DOWN, "floating-point"},
        {{{UP, HM_F16, {4, -1}, 0}, {DOWN, HM_F16, {4, 4, -1}, 0}}, 2, UP, "fewer than two dimensions"},
        {{{UP, HM_F16, {4, 4, -1}, 0}, {DOWN, HM_F16, {4, -1}, 0}}, 2, DOWN, "fewer than two dimensions"},
        {{{UP, HM_F16, {-1}, 0}, {DOWN, HM_F16, {-1}, 0}}, 2, UP, "fewer than two dimensions"},
        {{{UP, HM_F16, {4, 2, 3, 1, -1}, 0}, {DOWN, HM_F16, {2, 4, -1}, 0}}, 2, UP, "from the third on must be 1"},
        /* no numbers, yet shapes that nothing can hold */
        {{{UP, HM_F16, {HUGE_SIDE, 1, 0, -1}, 0}, {DOWN, HM_F16, {1, 4, -1}, 0}}, 2, UP, "must be 1"},
        {{{UP, HM_F8_E4M3, {0, HUGE_SIDE, -1}, 0}, {DOWN, HM_F8_E4M3, {HUGE_SIDE, 0, -1}, 0}}, 2, UP, "too large"},
        {{{UP, HM_F8_E4M3, {2, 1, -1}, 0}, {DOWN, HM_F8_E4M3, {1, 0, HUGE_SIDE, HUGE_SIDE, -1}, 0}}, 2, UP,
         "too large"},
    };
    const char *path = folder_file(f, "refused.safetensors");
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        hm_source *source = NULL;
        hm_error err = {0};
        CHECK(write_model(path, files[i].tensors, files[i].count, NULL, 0));
        if (!CHECK(hm_source_open(&source, path, &err) == HM_ERR_FORMAT && source == NULL))
            fprintf(stderr, "    file %zu: %s\n", i, err.message);
        CHECK_TEXT(err.tensor, files[i].tensor);
        CHECK_HAS(err.message, files[i].text);
        CHECK_HAS(err.message, path);
        hm_source_close(source);
    }
    /* Empty, but sound. */
    static const spec empty[] = {{UP, HM_F16, {0, 2, -1}, 0}, {DOWN, HM_F16, {2, 4, -1}, 0}};
    hm_source *source = NULL;
    CHECK(write_model(path, empty, 2, NULL, 0) && hm_source_open(&source, path, NULL) == HM_OK);
    CHECK(source != NULL && hm_source_tensor(source, 0)->elements == 0 && hm_source_tensor(source, 0)->shape[1] == 4);
    hm_source_close(source);
}

/* ---- numbers --------------------------------------------------------------------------------------------------- */

typedef struct sized {
    hm_dtype up_dtype, down_dtype;
    long up[5], down[5];
} sized;

/* Many bands of whole cuts; odd sides; convolutions; more ranks than sides; one row; rows longer than a band may be. */
static const sized sizes[] = {
    {HM_F16, HM_F16, {500, 8, -1}, {8, 1280, -1}},
    {HM_F32, HM_BF16, {211, 5, 1, 1, -1}, {5, 37, 3, 3, -1}},
    {HM_BF16, HM_F64, {1500, 2, -1}, {2, 601, -1}},
    {HM_F8_E4M3, HM_F32, {3, 7, -1}, {7, 2, -1}},
    {HM_F64, HM_F8_E5M2, {1, 33, -1}, {33, 1, -1}},
    {HM_F32, HM_F32, {2, 1, -1}, {1, 1100000, -1}},
    {HM_F16, HM_F16, {40, 3, -1}, {3, 70000, -1}},
};
#define SIZES (sizeof sizes / sizeof sizes[0])

static void make_pair(numbered pair[2], const sized *s)
{
    pair[0] = (numbered){.as = {NAME ".lora_up", s->up_dtype, {0}, 0}};
    pair[1] = (numbered){.as = {NAME ".lora_down", s->down_dtype, {0}, 0}};
    memcpy(pair[0].as.shape, s->up, sizeof s->up);
    memcpy(pair[1].as.shape, s->down, sizeof s->down);
}

/* Any piece from any seat has the bits of the whole. */
static void check_pieces(const hm_source *source, const float *whole)
{
    const hm_tensor_info *tensor = &source->header.tensors[0];
    hm_expansion *expansion = NULL;
    hm_factor_cache *cache = NULL;
    hm_factors *factors = NULL, *again = NULL;
    CHECK(hm_expansion_open(&expansion, 3, 2, NULL) == HM_OK && hm_factor_cache_open(&cache, NULL) == HM_OK);
    CHECK(hm_factors_take(&factors, cache, source, 0, NULL) == HM_OK);
    CHECK(hm_factors_take(&again, cache, source, 0, NULL) == HM_OK && again == factors); /* shared */
    CHECK(hm_factors_bytes(source, 0) == 4 * (hm_source_up(source, 0)->elements + hm_source_down(source, 0)->elements));
    hm_factors_return(cache, again);
    for (int i = 0; i < 40; i++) {
        uint64_t start = (uint64_t)((uniform() + 1) / 2 * (double)tensor->elements);
        uint64_t most = tensor->elements - start < 300000 ? tensor->elements - start : 300000;
        size_t count = 1 + (size_t)((uniform() + 1) / 2 * (double)(most - 1));
        const float *numbers = NULL;
        unsigned seat = (unsigned)i % 3;
        CHECK(hm_expand(&numbers, expansion, seat, (size_t)i % 2, tensor, factors, start, count, NULL) == HM_OK);
        CHECK(numbers != NULL && memcmp(numbers, whole + start, count * sizeof *numbers) == 0);
    }
    hm_factors_return(cache, factors);
    hm_factor_cache_close(cache);
    hm_expansion_close(expansion);
}

static void test_numbers(folder *f)
{
    const char *path = folder_file(f, "numbers.safetensors");
    for (size_t i = 0; i < SIZES; i++) {
        numbered pair[2];
        hm_source *source = NULL, *memory = NULL;
        hm_error err = {0};
        make_pair(pair, &sizes[i]);
        CHECK(write_numbered(path, pair, 2, NULL, 0) && hm_source_open(&source, path, NULL) == HM_OK);
        CHECK(borrow_numbered(&memory, pair, 2) == HM_OK);
        if (source == NULL || memory == NULL) continue;
        uint64_t elements = source->header.tensors[0].elements;
        float *whole = malloc(elements * sizeof *whole), *again = malloc(elements * sizeof *again);
        if (!CHECK(hm_expand_alone(whole, source, 0, 0, elements, &err) == HM_OK))
            fprintf(stderr, "    %s\n", err.message);
        double worst = worst_error(whole, &pair[0], &pair[1]);
        if (!CHECK(worst <= 1)) fprintf(stderr, "    shape %zu: %g\n", i, worst);
        CHECK(hm_expand_alone(again, memory, 0, 0, elements, NULL) == HM_OK);
        CHECK(memcmp(whole, again, elements * sizeof *whole) == 0);
        CHECK(hm_band_elements(&source->header.tensors[0]) <= (uint64_t)1 << 20);
        check_pieces(source, whole);
        check_pieces(memory, whole);
        free(whole);
        free(again);
        numbered_clear(pair, 2);
        hm_source_close(source);
        hm_source_close(memory);
    }
}

/* ---- in a pass ------------------------------------------------------------------------------------------------- */

struct collected {
    float *out[2]; /* of each tensor, as the pieces come */
    const float *base;
    atomic_int wrong;
};

static hm_status collect(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch, hm_error *err)
{
    struct collected *c = user;
    (void)segment;
    (void)scratch;
    (void)err;
    if (piece->tensor == 1) return HM_OK; /* a tensor without a product between the two */
    if (piece->as[1]->dtype != HM_F32 || piece->raw[1] == NULL) c->wrong++;
    if (piece->tensor == 0 && piece->raw[0] != NULL && /* the row beside it is that of the same elements */
        memcmp(piece->raw[0], c->base + piece->start, piece->count * sizeof(float)) != 0)
        c->wrong++;
    memcpy(c->out[piece->tensor / 2] + piece->start, piece->raw[1], piece->count * sizeof(float));
    return HM_OK;
}

static int cancel_at_once(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    return done <= total;
}

struct watched {
    uint64_t done, total;
};

static int watch(void *user, uint64_t done, uint64_t total)
{
    *(struct watched *)user = (struct watched){.done = done, .total = total};
    return 0;
}

/* Rows: a stored one beside the products, and the products; with small and large items, from a file and from memory. */
static void test_stream(folder *f)
{
    numbered tensors[] = {
        {.as = {"base", HM_F32, {700, 1280, -1}, 0}},
        {.as = {"plain", HM_F32, {77, -1}, 0}},
        {.as = {NAME ".lora_up", HM_F16, {700, 6, -1}, 0}},
        {.as = {NAME ".lora_down", HM_F16, {6, 1280, -1}, 0}},
        {.as = {"hypermerge.direction.1.odd.lora_up", HM_BF16, {901, 3, -1}, 0}},
        {.as = {"hypermerge.direction.1.odd.lora_down", HM_BF16, {3, 331, -1}, 0}},
    };
    const char *path = folder_file(f, "stream.safetensors");
    hm_source *sources[2] = {NULL, NULL};
    CHECK(write_numbered(path, tensors, 6, NULL, 0) && hm_source_open(&sources[0], path, NULL) == HM_OK);
    CHECK(borrow_numbered(&sources[1], tensors, 6) == HM_OK);
    if (sources[0] == NULL || sources[1] == NULL) return;
    float *expected[2], *got[2];
    const uint64_t elements[3] = {700 * 1280, 77, 901 * 331};
    for (size_t t = 0; t < 2; t++) {
        expected[t] = malloc(elements[2 * t] * sizeof(float));
        got[t] = malloc(elements[2 * t] * sizeof(float));
        uint32_t index = hm_source_index(sources[0], t == 0 ? NAME : "hypermerge.direction.1.odd");
        CHECK(hm_expand_alone(expected[t], sources[0], index, 0, elements[2 * t], NULL) == HM_OK);
    }
    static const struct {
        uint64_t budget;
        unsigned threads;
    } ways[] = {{1, 1}, {1, 4}, {(uint64_t)40 << 20, 2}, {(uint64_t)1 << 30, 4}};
    for (size_t s = 0; s < 2; s++) {
        uint32_t index[6] = {hm_source_index(sources[s], "base"), hm_source_index(sources[s], NAME),
                             hm_source_index(sources[s], "plain"), HM_ABSENT,
                             HM_ABSENT, hm_source_index(sources[s], "hypermerge.direction.1.odd")};
        const hm_stream_row rows[2] = {{sources[s], index, 2}, {sources[s], index + 1, 2}};
        struct collected c = {.out = {got[0], got[1]}, .base = tensors[0].numbers};
        const hm_stream stream = {
            .row_count = 2, .tensor_count = 3, .rows = rows, .elements = elements, .work = collect, .user = &c};
        for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
            struct watched seen = {0};
            hm_job job = {
                .memory_budget = ways[w].budget, .threads = ways[w].threads, .progress = watch, .user = &seen};
            for (size_t t = 0; t < 2; t++) memset(got[t], 0xff, elements[2 * t] * sizeof(float));
            CHECK(hm_stream_run(&stream, &job, NULL) == HM_OK && c.wrong == 0);
            for (size_t t = 0; t < 2; t++) CHECK(memcmp(got[t], expected[t], elements[2 * t] * sizeof(float)) == 0);
            /* Factors count once, as they are stored. */
            CHECK(seen.done == seen.total && seen.total == 4 * (elements[0] + 77) + 2 * (6 * 1980 + 3 * 1232));
        }
        hm_job stop = {.progress = cancel_at_once};
        CHECK(hm_stream_run(&stream, &stop, NULL) == HM_ERR_CANCELLED);
    }
    for (size_t t = 0; t < 2; t++) {
        free(expected[t]);
        free(got[t]);
    }
    numbered_clear(tensors, 6);
    hm_source_close(sources[0]);
    hm_source_close(sources[1]);
}

/* ---- without OpenBLAS ------------------------------------------------------------------------------------------ */

/* First of all, in a child: what was loaded once stays.  Nothing but products needs it. */
static void test_without_blas(void)
{
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        static numbered tensors[] = {{.as = {NAME ".lora_up", HM_F32, {4, 2, -1}, 0}},
                                     {.as = {NAME ".lora_down", HM_F32, {2, 5, -1}, 0}},
                                     {.as = {"base", HM_F32, {20, -1}, 0}}};
        float out[20], back[20] = {0};
        hm_source *source = NULL;
        hm_error err = {0};
        setenv("HM_OPENBLAS", "/nowhere/libopenblas.so", 1);
        for (size_t i = 0; i < 3; i++) numbered_fill(&tensors[i]);
        if (borrow_numbered(&source, tensors, 3) != HM_OK) _exit(2);
        if (hm_expand_alone(out, source, 0, 0, 20, &err) != HM_ERR_ARGUMENT) _exit(3);
        if (strstr(err.message, "HM_OPENBLAS") == NULL || strchr(err.message, '\n') != NULL) _exit(4);
        uint64_t elements[3] = {20, 20, 20};
        uint32_t index[6] = {HM_ABSENT, 0, HM_ABSENT, 0, HM_ABSENT, 0};
        const hm_stream_row rows[2] = {{source, index, 2}, {source, index + 1, 2}};
        struct collected c = {.out = {back, back}};
        const hm_stream stream = {
            .row_count = 2, .tensor_count = 3, .rows = rows, .elements = elements, .work = collect, .user = &c};
        if (hm_stream_run(&stream, NULL, &err) != HM_ERR_ARGUMENT || strstr(err.message, "/nowhere/") == NULL) _exit(5);
        index[1] = index[3] = index[5] = 1;
        if (hm_stream_run(&stream, NULL, &err) != HM_OK || memcmp(back, tensors[2].numbers, sizeof back) != 0) _exit(6);
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (!CHECK(WEXITSTATUS(status) == 0)) fprintf(stderr, "    step %d\n", WEXITSTATUS(status));
}

int main(void)
{
    folder f;
    if (!CHECK(folder_begin(&f))) return check_report("products");
    test_without_blas();
    test_offered(&f);
    test_refused(&f);
    test_numbers(&f);
    test_stream(&f);
    folder_end(&f);
    return check_report("products");
}
