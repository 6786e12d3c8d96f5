/* Speed of the inner loops on one core, per variant: a table in GB/s.  The unit is what a caller thinks in: bytes of
 * checkpoint read for the conversions (and for gram, with it: the whole work of the solving pass but the reading),
 * bytes of f32 rows for the rest.  An argument picks the lines whose name contains it.  Best of many short runs, so
 * that a busy machine disturbs little. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/sha256.h"
#include "kernels/kernels.h"

#define N HM_KERNEL_COLUMNS
#define ROWS 64
#define SOURCE_BYTES ((size_t)16 << 20)

typedef struct bench {
    const char *filter;
    const hm_kernels *k;
    size_t m, outputs, k_count;
    hm_dtype type;
    unsigned char *source;
    size_t source_bytes, source_at; /* of one row; where in it */
    float *rows, *out, *c;
    double *sums;
} bench;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best rate of `run`, which handles `bytes` per call. */
static double best_rate(void (*run)(bench *), bench *b, double bytes)
{
    double best = 0;
    for (int trial = 0; trial < 40; trial++) {
        int calls = 0;
        double start = now(), seconds;
        do {
            run(b);
            calls++;
            seconds = now() - start;
        } while (seconds < 2e-3);
        double rate = bytes * calls / seconds;
        if (rate > best) best = rate;
    }
    return best * 1e-9;
}

static const size_t type_bytes[6] = {8, 4, 2, 2, 1, 1};

/* Step through the source as a streaming pass does through its buffers: m of them, N columns of each at a time. */
static unsigned char *next_source(bench *b)
{
    const size_t bytes = N * type_bytes[b->type];
    if (b->source_at + bytes > b->source_bytes) b->source_at = 0;
    unsigned char *at = b->source + b->source_at;
    b->source_at += bytes;
    return at;
}

static void run_load(bench *b)
{
    const unsigned char *src = next_source(b);
    for (size_t i = 0; i < b->m; i++) b->k->load[b->type](src + i * b->source_bytes, b->rows + i * N, N);
}

static void run_load_sub(bench *b)
{
    const unsigned char *src = next_source(b);
    for (size_t i = 0; i < b->m; i++) b->k->load_sub[b->type](src + i * b->source_bytes, b->out, b->rows + i * N, N);
}

static void run_store(bench *b)
{
    unsigned char *dst = next_source(b);
    for (size_t i = 0; i < b->m; i++) b->k->store[b->type](b->rows + i * N, dst + i * b->source_bytes, N);
}

static void run_gram(bench *b)
{
    b->k->gram(b->rows, N, b->m, N, b->sums);
}

static void run_load_sub_gram(bench *b)
{
    run_load_sub(b);
    run_gram(b);
}

static void run_combine(bench *b) { b->k->combine(b->rows, N, b->m, N, b->c, b->outputs, b->out, N); }

static void run_residual(bench *b)
{
    b->k->residual(b->rows, N, b->m, N, b->out, b->out + N, N, b->k_count, b->c, b->sums);
}

static void run_axpy(bench *b) { b->k->axpy(b->rows, 1e-9f, b->rows + N, N); }
static void run_sum_squares(bench *b) { b->sums[0] += b->k->sum_squares(b->rows, N); }
static void run_find_nonfinite(bench *b) { b->sums[0] += (double)b->k->find_nonfinite(b->rows, N); }

static void row(const char *name, const double *rates, size_t count)
{
    printf("%-34s", name);
    for (size_t i = 0; i < count; i++) printf(" %10.2f", rates[i]);
    printf("\n");
    fflush(stdout);
}

/* One line of the table: the same run for every variant. */
static void measure(const char *name, void (*run)(bench *), bench *b, double bytes)
{
    if (strstr(name, b->filter) == NULL) return;
    double rates[8];
    size_t count = 0;
    for (const hm_kernels *const *k = hm_kernels_all(); *k != NULL && count < 8; k++) {
        b->k = *k;
        rates[count++] = best_rate(run, b, bytes);
    }
    row(name, rates, count);
}

static void run_sha256(bench *b)
{
    hm_sha256 hash;
    hm_sha256_begin(&hash);
    hm_sha256_add(&hash, b->source, 1 << 20);
    char hex[65];
    hm_sha256_end(&hash, hex);
    b->sums[0] += hex[0];
}

static void run_sha256_portable(bench *b)
{
    uint32_t state[8] = {0};
    hm_sha256_blocks_portable(state, b->source, (1 << 20) / 64);
    b->sums[0] += state[0];
}

static void *pages(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 4096, bytes) != 0) exit(2);
    memset(p, 0, bytes);
    return p;
}

int main(int argc, char **argv)
{
    static const char *const names[6] = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"};
    const size_t values = (size_t)ROWS * N;
    bench b = {
        .filter = argc > 1 ? argv[1] : "",
        .source = pages(SOURCE_BYTES),
        .rows = pages(values * 4),
        .out = pages(values * 4),
        .c = pages(ROWS * ROWS * 4),
        .sums = pages(ROWS * ROWS * 8),
    };
    char name[64];
    for (size_t i = 0; i < SOURCE_BYTES / 2; i++) {
        uint16_t half = (uint16_t)(0x2000 + i * 7919 % 0x1000); /* f16 around 0.01, far from subnormal */
        memcpy(b.source + 2 * i, &half, 2);
    }
    for (size_t i = 0; i < values; i++) b.rows[i] = (float)(i % 97) * 0.01f, b.out[i] = (float)(i % 89) * 0.01f;
    for (size_t i = 0; i < ROWS * ROWS; i++) b.c[i] = (float)(i % 13) * 0.1f;

    printf("%-34s", "GB/s, one core");
    for (const hm_kernels *const *k = hm_kernels_all(); *k != NULL; k++) printf(" %10s", (*k)->name);
    printf("\n");

    static const size_t heights[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 32, 64};
    for (size_t i = 0; i < sizeof heights / sizeof heights[0]; i++) {
        b.m = heights[i];
        snprintf(name, sizeof name, "gram m=%zu (f32)", b.m);
        measure(name, run_gram, &b, (double)(b.m * N * 4));
    }
    for (int large = 0; large < 2; large++) {
        b.source_bytes = large ? SOURCE_BYTES / 8 : (size_t)128 << 10;
        for (hm_dtype type = HM_F32; type <= HM_BF16; type++) {
            b.m = 8, b.type = type;
            snprintf(name, sizeof name, "load_sub + gram m=8 (%s, %s)", names[type], large ? "16 MiB" : "1 MiB");
            measure(name, run_load_sub_gram, &b, (double)(b.m * N * type_bytes[type]));
        }
    }
    b.source_bytes = (size_t)128 << 10;
    for (hm_dtype type = HM_F64; type <= HM_F8_E5M2; type++) {
        b.m = 8, b.type = type;
        snprintf(name, sizeof name, "load (%s)", names[type]);
        measure(name, run_load, &b, (double)(b.m * N * type_bytes[type]));
        snprintf(name, sizeof name, "load_sub (%s)", names[type]);
        measure(name, run_load_sub, &b, (double)(b.m * N * type_bytes[type]));
    }
    for (size_t i = 0; i < values; i++) b.rows[i] = (float)(i % 97) * 0.01f + 0.1f;
    for (hm_dtype type = HM_F64; type <= HM_F8_E5M2; type++) {
        b.m = 8, b.type = type;
        snprintf(name, sizeof name, "store (%s)", names[type]);
        measure(name, run_store, &b, (double)(b.m * N * type_bytes[type]));
    }
    for (b.m = 8, b.outputs = 1; b.outputs <= 4; b.outputs++) {
        snprintf(name, sizeof name, "combine m=8 outputs=%zu (f32 rows)", b.outputs);
        measure(name, run_combine, &b, (double)(b.m * N * 4));
    }
    for (b.m = 8, b.k_count = 0; b.k_count <= 3; b.k_count++) {
        snprintf(name, sizeof name, "residual m=8 k=%zu (f32 rows)", b.k_count);
        measure(name, run_residual, &b, (double)(b.m * N * 4));
    }
    for (b.m = 1, b.k_count = 2; b.m <= 7; b.m += 2) {
        snprintf(name, sizeof name, "residual m=%zu k=2 (f32 rows)", b.m);
        measure(name, run_residual, &b, (double)(b.m * N * 4));
    }
    measure("axpy (f32, x and d)", run_axpy, &b, (double)N * 8);
    measure("sum_squares (f32)", run_sum_squares, &b, (double)N * 4);
    measure("find_nonfinite (f32)", run_find_nonfinite, &b, (double)N * 4);

    if (strstr("sha256", b.filter) != NULL) {
        const double rates[2] = {best_rate(run_sha256, &b, 1 << 20), best_rate(run_sha256_portable, &b, 1 << 20)};
        row(hm_cpu_get().sha ? "sha256 (SHA-NI, portable)" : "sha256 (portable, portable)", rates, 2);
    }
    return 0;
}
