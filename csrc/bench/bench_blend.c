/* Speed of the blend kernel on operands much larger than the caches, against a copy by stores past the caches of the
 * same total number of bytes, which is what the memory can do.
 *
 *     bench_blend [numbers in millions, 200] [rounds, 7] [part of a line's name]
 *
 * Threads take chunks off a counter, as the callers of the kernel do.  The blend and its copy take turns, so that both
 * see the same neighbours; the table gives medians, the best round, the median of the ratios of the rounds and the
 * ratio of the best ones.  On a busy machine the ratios mean more than the rates. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels/kernels.h"

#define CHUNK ((size_t)256 << 10) /* numbers */
#define MAX_DIRECTIONS 4
#define MAX_ROUNDS 99
#define COPY_CHUNK ((size_t)1 << 20) /* bytes */

static const size_t type_bytes[6] = {8, 4, 2, 2, 1, 1};

typedef struct work {
    const hm_kernels *k; /* NULL: copy */
    unsigned char *out;
    unsigned char *operands[MAX_DIRECTIONS + 1];
    hm_dtype to, from[MAX_DIRECTIONS + 1];
    size_t directions, n;
    bool stream;
    const unsigned char *copy_from; /* copy_bytes, over the same memory as the operands */
    unsigned char *copy_to;
    size_t copy_bytes;
    atomic_size_t next;
} work;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void copy_past_caches(unsigned char *to, const unsigned char *from, size_t bytes)
{
#if defined(__SSE2__)
    for (size_t i = 0; i < bytes; i += 64)
        for (size_t j = i; j < i + 64; j += 16)
            _mm_stream_si128((__m128i *)(void *)(to + j), _mm_load_si128((const __m128i *)(const void *)(from + j)));
    _mm_sfence();
#else
    memcpy(to, from, bytes);
#endif
}

static void *work_thread(void *user)
{
    work *w = user;
    if (w->k == NULL) {
        for (size_t at; (at = atomic_fetch_add(&w->next, COPY_CHUNK)) < w->copy_bytes;)
            copy_past_caches(w->copy_to + at, w->copy_from + at,
                             w->copy_bytes - at < COPY_CHUNK ? w->copy_bytes - at : COPY_CHUNK);
        return NULL;
    }
    for (size_t at; (at = atomic_fetch_add(&w->next, CHUNK)) < w->n;) {
        hm_blend_part parts[MAX_DIRECTIONS + 1];
        const size_t n = w->n - at < CHUNK ? w->n - at : CHUNK;
        for (size_t p = 0; p <= w->directions; p++) {
            const unsigned char *data = w->operands[p] + at * type_bytes[w->from[p]];
            parts[p] = (hm_blend_part){data, w->from[p], 0.3f + 0.2f * (float)p};
        }
        w->k->blend(w->out + at * type_bytes[w->to], w->to, parts, w->directions + 1, n, w->stream);
    }
    return NULL;
}

static double seconds(work *w, unsigned threads)
{
    pthread_t other[16];
    atomic_store(&w->next, 0);
    double start = now();
    for (unsigned t = 1; t < threads; t++)
        if (pthread_create(&other[t], NULL, work_thread, w) != 0) exit(2);
    work_thread(w);
    for (unsigned t = 1; t < threads; t++) pthread_join(other[t], NULL);
    return now() - start;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int count)
{
    qsort(x, (size_t)count, sizeof *x, ascending);
    return x[count / 2];
}

static void measure(work *w, const char *name, unsigned threads, int rounds, const char *filter)
{
    char line[64];
    snprintf(line, sizeof line, "%-9s %-12s K=%zu %-6s %u thr", w->k->name, name, w->directions,
             w->stream ? "stream" : "plain", threads);
    if (strstr(line, filter) == NULL) return;
    double rate[MAX_ROUNDS], copy[MAX_ROUNDS], ratio[MAX_ROUNDS];
    size_t bytes = type_bytes[w->to];
    for (size_t p = 0; p <= w->directions; p++) bytes += type_bytes[w->from[p]];
    work copying = {.copy_bytes = bytes * w->n / 2 / 64 * 64, .copy_from = w->copy_from, .copy_to = w->copy_to};
    for (int r = 0; r < rounds; r++) {
        copy[r] = 2e-9 * (double)copying.copy_bytes / seconds(&copying, threads);
        rate[r] = 1e-9 * (double)(bytes * w->n) / seconds(w, threads);
        ratio[r] = rate[r] / copy[r];
    }
    double middle = median(rate, rounds), copy_middle = median(copy, rounds), ratio_middle = median(ratio, rounds);
    double best = rate[rounds - 1], copy_best = copy[rounds - 1];
    printf("%-43s %5.1f (best %5.1f)   %5.1f (best %5.1f)   %3.0f %% (best %3.0f %%)\n", line, middle, best, copy_middle,
           copy_best, 100 * ratio_middle, 100 * best / copy_best);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        hm_dtype to, base, directions;
        size_t numbers; /* per number asked for: f32 takes half as many */
    } kinds[] = {
        {"f16", HM_F16, HM_F16, HM_F16, 2},
        {"bf16", HM_BF16, HM_BF16, HM_BF16, 2},
        {"f32", HM_F32, HM_F32, HM_F32, 1},
        {"f16->f32", HM_F32, HM_F16, HM_F16, 1},
        {"f32,f16->f16", HM_F16, HM_F32, HM_F16, 1},
        {"f8,f16->f16", HM_F16, HM_F8_E4M3, HM_F16, 2},
    };
    const size_t n = (size_t)(argc > 1 ? atol(argv[1]) : 200) * 1000000, operand = n * 2;
    int rounds = argc > 2 ? atoi(argv[2]) : 7;
    const char *filter = argc > 3 ? argv[3] : "";
    if (rounds < 1 || rounds > MAX_ROUNDS || n == 0) return 2;
    unsigned char *memory;
    /* Operands one behind the other, the result last.  They do not start at the same place of a page: that would make
     * all of them compete for the same sets of the caches. */
    const size_t stride = (operand / 4096 + 1) * 4096 + 256;
    if (posix_memalign((void **)&memory, 4096, stride * (MAX_DIRECTIONS + 2)) != 0) return 2;
    for (size_t i = 0; i < stride * (MAX_DIRECTIONS + 2) / 2; i++) {
        const uint16_t half = (uint16_t)(0x2000 + i * 7919 % 0x1000); /* not subnormal in any type */
        memcpy(memory + 2 * i, &half, 2);
    }
    printf("%-43s %-18s   %-18s   %s\n", "medians, GB/s", "blend", "copy", "blend / copy");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (const hm_kernels *const *k = hm_kernels_all(); *k != NULL; k++) {
            for (size_t directions = 1; directions <= MAX_DIRECTIONS; directions *= 2) {
                for (int stream = 1; stream >= 0; stream--) {
                    for (unsigned threads = 1; threads <= 2; threads++) {
                        work w = {.k = *k, .out = memory + stride * (MAX_DIRECTIONS + 1), .to = kinds[i].to,
                                  .directions = directions, .n = n * kinds[i].numbers / 2, .stream = stream == 1,
                                  .copy_from = memory, .copy_to = memory + stride * 3};
                        for (size_t p = 0; p <= directions; p++) {
                            w.operands[p] = memory + stride * p;
                            w.from[p] = p > 0 ? kinds[i].directions : kinds[i].base;
                        }
                        measure(&w, kinds[i].name, threads, rounds, filter);
                    }
                }
            }
        }
    }
    free(memory);
    return 0;
}
