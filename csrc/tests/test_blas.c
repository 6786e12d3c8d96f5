/* OpenBLAS as it is found on this machine: the calls against plain loops, threads given back, and what happens where it
 * is not there or has no room. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/os.h"
#include "lowrank/blas.h"
#include "tests/check.h"
#include "tests/points.h"

enum { SIZE = 37, INNER = 23 };

static void fill(float *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++) numbers[i] = (float)uniform();
}

static float *at(float *matrix, size_t lda, size_t row, size_t column)
{
    return &matrix[column * lda + row];
}

/* C = A·B in rows is Cᵀ = Bᵀ·Aᵀ in columns: the way in which products are going to use it. */
static void test_gemm(const hm_blas *blas)
{
    float a[SIZE * INNER], b[INNER * SIZE], c[SIZE * SIZE];
    fill(a, SIZE * INNER);
    fill(b, INNER * SIZE);
    blas->gemm('N', 'N', SIZE, SIZE, INNER, 1, b, SIZE, a, INNER, 0, c, SIZE);
    double worst = 0;
    for (size_t i = 0; i < SIZE; i++)
        for (size_t j = 0; j < SIZE; j++) {
            double sum = 0;
            for (size_t k = 0; k < INNER; k++) sum += (double)a[i * INNER + k] * (double)b[k * SIZE + j];
            worst = fmax(worst, fabs(sum - (double)c[i * SIZE + j]));
        }
    CHECK_NEAR(worst, 0, 1e-5);
    blas->gemm('T', 'N', 1, 1, INNER, 2, a, INNER, a, INNER, 1, c, SIZE); /* one dot product on top of what is there */
    double sum = 0;
    for (size_t k = 0; k < INNER; k++) sum += (double)a[k] * ((double)b[k * SIZE] + 2 * (double)a[k]);
    CHECK_NEAR((double)c[0], sum, 1e-5);
}

/* A symmetric positive definite matrix, its Cholesky factor, a triangular solve with it, and its eigenvalues. */
static void test_symmetric(const hm_blas *blas)
{
    float a[INNER * SIZE], gram[INNER * INNER];
    double wide[INNER * SIZE], factor[INNER * INNER], full[INNER * INNER], product[INNER * INNER];
    double right[INNER], solved[INNER], values[INNER], work[64 * INNER];
    fill(a, INNER * SIZE);
    for (size_t i = 0; i < INNER * SIZE; i++) wide[i] = (double)a[i];
    blas->syrk('L', 'N', INNER, SIZE, 1, a, INNER, 0, gram, INNER);
    blas->syrk_f64('L', 'N', INNER, SIZE, 1, wide, INNER, 0, factor, INNER);
    blas->gemm_f64('N', 'T', INNER, INNER, SIZE, 1, wide, INNER, wide, INNER, 0, product, INNER);
    double worst = 0, worst_f64 = 0, trace = 0, sum = 0;
    for (size_t j = 0; j < INNER; j++)
        for (size_t i = j; i < INNER; i++) {
            double exact = 0;
            for (size_t k = 0; k < SIZE; k++) exact += wide[k * INNER + i] * wide[k * INNER + j];
            worst = fmax(worst, fabs(exact - (double)*at(gram, INNER, i, j)));
            worst_f64 = fmax(worst_f64, fmax(fabs(exact - factor[j * INNER + i]), fabs(exact - product[i * INNER + j])));
            full[i * INNER + j] = full[j * INNER + i] = exact;
        }
    CHECK_NEAR(worst, 0, 1e-4);
    CHECK_NEAR(worst_f64, 0, 1e-12);

    CHECK(blas->potrf_f64('L', INNER, factor, INNER) == 0);
    for (size_t i = 0; i < INNER; i++) right[i] = solved[i] = uniform();
    blas->trsm_f64('L', 'L', 'N', 'N', INNER, 1, 1, factor, INNER, solved, INNER);
    blas->trsm_f64('L', 'L', 'T', 'N', INNER, 1, 1, factor, INNER, solved, INNER);
    for (size_t i = 0; i < INNER; i++) {
        double back = 0;
        for (size_t k = 0; k < INNER; k++) back += full[i * INNER + k] * solved[k];
        CHECK_NEAR(back, right[i], 1e-9);
    }
    factor[0] = -1;
    CHECK(blas->potrf_f64('L', INNER, factor, INNER) == 1);

    for (size_t i = 0; i < INNER; i++) trace += full[i * INNER + i];
    CHECK(blas->syev_f64('L', INNER, full, INNER, values, work, 64 * INNER) == 0);
    for (size_t i = 0; i < INNER; i++) sum += values[i];
    CHECK_NEAR(sum, trace, 1e-9 * trace);
    for (size_t i = 1; i < INNER; i++) CHECK(values[i - 1] <= values[i] && values[0] > 0);
    for (size_t i = 0; i < INNER; i++) { /* the last vector: G v = λ v */
        double image = 0;
        const double *v = full + (INNER - 1) * INNER;
        for (size_t k = 0; k < INNER; k++) image += product[k * INNER + i] * v[k];
        CHECK_NEAR(image, values[INNER - 1] * v[i], 1e-9 * trace);
    }
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

/* Runs on several threads at a time: nobody's end may take the library from the others. */
static void *use(void *out)
{
    int *good = out;
    for (int i = 0; i < 50; i++) {
        const hm_blas *blas;
        float a[SIZE * INNER], b[INNER], c[SIZE];
        for (size_t k = 0; k < SIZE * INNER; k++) a[k] = 1;
        for (size_t k = 0; k < INNER; k++) b[k] = 2;
        if (hm_blas_begin(&blas, NULL) != HM_OK) return NULL;
        blas->gemm('N', 'N', SIZE, 1, INNER, 1, a, SIZE, b, INNER, 0, c, SIZE);
        hm_blas_end();
        for (size_t k = 0; k < SIZE; k++) *good += c[k] == 2 * INNER;
    }
    return NULL;
}

static void test_threads(void)
{
    pthread_t threads[4];
    int good[4] = {0};
    for (size_t t = 0; t < 4; t++) CHECK(pthread_create(&threads[t], NULL, use, &good[t]) == 0);
    for (size_t t = 0; t < 4; t++) pthread_join(threads[t], NULL);
    for (size_t t = 0; t < 4; t++) CHECK(good[t] == 50 * SIZE);
}

/* Another user of the same library, with a number of threads of its own. */
static void test_given_back(void)
{
    char reason[200];
    const char *name = getenv("HM_OPENBLAS");
    void *library = hm_library_open(name != NULL && name[0] != 0 ? name : "libopenblas.so.0", reason, sizeof reason);
    void *addresses[2] = {NULL, NULL};
    static const char *const names[2][2] = {{"openblas_set_num_threads", "openblas_get_num_threads"},
                                            {"scipy_openblas_set_num_threads", "scipy_openblas_get_num_threads"}};
    for (size_t p = 0; p < 2 && library != NULL && addresses[0] == NULL; p++)
        for (size_t s = 0; s < 2; s++) addresses[s] = hm_library_symbol(library, names[p][s]);
    if (!CHECK(addresses[0] != NULL && addresses[1] != NULL)) return;
    void (*set)(int);
    int (*get)(void);
    memcpy(&set, &addresses[0], sizeof set);
    memcpy(&get, &addresses[1], sizeof get);
    const hm_blas *blas;
    set(2);
    CHECK(get() == 2);
    CHECK(hm_blas_begin(&blas, NULL) == HM_OK && get() == 1);
    CHECK(hm_blas_begin(&blas, NULL) == HM_OK && get() == 1);
    hm_blas_end();
    CHECK(get() == 1);
    hm_blas_end();
    CHECK(get() == 2);
    CHECK(hm_blas_begin(&blas, NULL) == HM_OK);
    set(3); /* by somebody who knows nothing of us */
    hm_blas_end();
    CHECK(get() == 3);
    set(2);
    hm_library_close(library);
}

/* ---- where it is not to be had: in children, because a library that was loaded stays --------------------------- */

static int refused(hm_status status, const char *first, const char *second)
{
    const hm_blas *blas = NULL;
    hm_error err = {0};
    return CHECK(hm_blas_begin(&blas, &err) == status && blas == NULL) && CHECK_HAS(err.message, first) &&
           CHECK_HAS(err.message, second) && CHECK(strchr(err.message, '\n') == NULL);
}

/* Leaves this process 200 MiB more than it has: a sanitizer may have mapped terabytes. */
static int tighten(int space)
{
    unsigned long long all = 0, data = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    int good = file != NULL && fscanf(file, "%llu %*u %*u %*u %*u %llu", &all, &data) == 2;
    if (file != NULL) fclose(file);
    rlim_t used = (rlim_t)(space ? all : data) * (rlim_t)sysconf(_SC_PAGESIZE);
    const struct rlimit limit = {.rlim_cur = used + ((rlim_t)200 << 20), .rlim_max = RLIM_INFINITY};
    good = good && (space ? setrlimit(RLIMIT_AS, &limit) : setrlimit(RLIMIT_DATA, &limit)) == 0;
    return CHECK(good);
}

static int without_room(void)
{
    return tighten(1) && refused(HM_ERR_MEMORY, "address space", "ulimit -v");
}

static int without_data(void)
{
    return tighten(0) && refused(HM_ERR_MEMORY, "address space", "ulimit -d");
}

static int wrong_path(void)
{
    setenv("HM_OPENBLAS", "/nowhere/libopenblas.so", 1);
    if (!refused(HM_ERR_ARGUMENT, "/nowhere/libopenblas.so", "HM_OPENBLAS")) return 0;
    setenv("HM_OPENBLAS", "libm.so.6", 1);
    if (!refused(HM_ERR_ARGUMENT, "HM_OPENBLAS", "it is no OpenBLAS")) return 0;
    unsetenv("HM_OPENBLAS"); /* the next attempt is a new one; what the caller gave is only the first place to look */
    const hm_blas *blas = NULL;
    if (hm_blas_library("/nowhere/too.so", NULL) != HM_OK || hm_blas_begin(&blas, NULL) != HM_OK) return 0;
    hm_blas_end();
    return hm_blas_library(NULL, NULL) == HM_OK;
}

/* Runs `test` in a child with a time limit of its own: OpenBLAS without room would spin for ever. */
static void in_child(int (*test)(void))
{
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(test() ? 0 : 1);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    in_child(without_room);
    in_child(without_data);
    in_child(wrong_path);
    const hm_blas *blas;
    hm_error err = {0};
    if (CHECK(hm_blas_begin(&blas, &err) == HM_OK)) {
        test_gemm(blas);
        test_symmetric(blas);
        hm_blas_end();
        test_threads();
        test_given_back();
    } else {
        fprintf(stderr, "    %s\n", err.message);
    }
    return check_report("blas");
}
