#include "lowrank/blas.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/os.h"

/* ---- the symbols ----------------------------------------------------------------------------------------------- */

/* Fortran passes addresses, and behind them the length of each text. */
typedef int whole;
static struct {
    void (*gemm)(const char *, const char *, const whole *, const whole *, const whole *, const float *, const float *,
                 const whole *, const float *, const whole *, const float *, float *, const whole *, size_t, size_t);
    void (*syrk)(const char *, const char *, const whole *, const whole *, const float *, const float *, const whole *,
                 const float *, float *, const whole *, size_t, size_t);
    void (*gemm_f64)(const char *, const char *, const whole *, const whole *, const whole *, const double *,
                     const double *, const whole *, const double *, const whole *, const double *, double *, const whole *,
                     size_t, size_t);
    void (*syrk_f64)(const char *, const char *, const whole *, const whole *, const double *, const double *,
                     const whole *, const double *, double *, const whole *, size_t, size_t);
    void (*trsm_f64)(const char *, const char *, const char *, const char *, const whole *, const whole *, const double *,
                     const double *, const whole *, double *, const whole *, size_t, size_t, size_t, size_t);
    void (*potrf_f64)(const char *, const whole *, double *, const whole *, whole *, size_t);
    void (*syev_f64)(const char *, const char *, const whole *, double *, const whole *, double *, double *, const whole *,
                 whole *, size_t, size_t);
    void (*set_threads)(int);
    int (*get_threads)(void);
    const char *(*config)(void);
} fortran;

#define ENTRY(member, symbol) {symbol, &fortran.member, sizeof fortran.member}
static const struct {
    const char *name;
    void *slot;
    size_t bytes;
} symbols[] = {
    ENTRY(gemm, "sgemm_"),
    ENTRY(syrk, "ssyrk_"),
    ENTRY(gemm_f64, "dgemm_"),
    ENTRY(syrk_f64, "dsyrk_"),
    ENTRY(trsm_f64, "dtrsm_"),
    ENTRY(potrf_f64, "dpotrf_"),
    ENTRY(syev_f64, "dsyev_"),
    ENTRY(set_threads, "openblas_set_num_threads"),
    ENTRY(get_threads, "openblas_get_num_threads"),
    ENTRY(config, "openblas_get_config"),
};
/* Distributions, and the package scipy-openblas32. */
static const char *const prefixes[] = {"", "scipy_"};

/* ---- the calls ------------------------------------------------------------------------------------------------- */

static void gemm(char trans_a, char trans_b, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                 const float *b, size_t ldb, float beta, float *c, size_t ldc)
{
    whole rows = (whole)m, columns = (whole)n, inner = (whole)k, a_step = (whole)lda, b_step = (whole)ldb,
          c_step = (whole)ldc;
    fortran.gemm(&trans_a, &trans_b, &rows, &columns, &inner, &alpha, a, &a_step, b, &b_step, &beta, c, &c_step, 1, 1);
}

static void syrk(char uplo, char trans, size_t n, size_t k, float alpha, const float *a, size_t lda, float beta,
                 float *c, size_t ldc)
{
    whole order = (whole)n, inner = (whole)k, a_step = (whole)lda, c_step = (whole)ldc;
    fortran.syrk(&uplo, &trans, &order, &inner, &alpha, a, &a_step, &beta, c, &c_step, 1, 1);
}

static void gemm_f64(char trans_a, char trans_b, size_t m, size_t n, size_t k, double alpha, const double *a, size_t lda,
                     const double *b, size_t ldb, double beta, double *c, size_t ldc)
{
    whole rows = (whole)m, columns = (whole)n, inner = (whole)k, a_step = (whole)lda, b_step = (whole)ldb,
          c_step = (whole)ldc;
    fortran.gemm_f64(&trans_a, &trans_b, &rows, &columns, &inner, &alpha, a, &a_step, b, &b_step, &beta, c, &c_step, 1, 1);
}

static void syrk_f64(char uplo, char trans, size_t n, size_t k, double alpha, const double *a, size_t lda, double beta,
                     double *c, size_t ldc)
{
    whole order = (whole)n, inner = (whole)k, a_step = (whole)lda, c_step = (whole)ldc;
    fortran.syrk_f64(&uplo, &trans, &order, &inner, &alpha, a, &a_step, &beta, c, &c_step, 1, 1);
}

static void trsm_f64(char side, char uplo, char trans, char diag, size_t m, size_t n, double alpha, const double *t,
                     size_t ldt, double *b, size_t ldb)
{
    whole rows = (whole)m, columns = (whole)n, t_step = (whole)ldt, b_step = (whole)ldb;
    fortran.trsm_f64(&side, &uplo, &trans, &diag, &rows, &columns, &alpha, t, &t_step, b, &b_step, 1, 1, 1, 1);
}

static int potrf_f64(char uplo, size_t n, double *a, size_t lda)
{
    whole order = (whole)n, a_step = (whole)lda, info = 0;
    fortran.potrf_f64(&uplo, &order, a, &a_step, &info, 1);
    return info;
}

static int syev_f64(char uplo, size_t n, double *a, size_t lda, double *values, double *work, size_t work_count)
{
    whole order = (whole)n, a_step = (whole)lda, size = work_count < INT_MAX ? (whole)work_count : INT_MAX, info = 0;
    const char vectors = 'V';
    fortran.syev_f64(&vectors, &uplo, &order, a, &a_step, values, work, &size, &info, 1, 1);
    return info;
}

static const hm_blas calls = {gemm, syrk, gemm_f64, syrk_f64, trsm_f64, potrf_f64, syev_f64};

/* ---- loading --------------------------------------------------------------------------------------------------- */

#define REMEDY                                                                                                         \
    "low-rank directions and LoRAs need it; install it, on Debian or Ubuntu with: apt-get install libopenblas0-pthread, " \
    "elsewhere with: pip install scipy-openblas32"

/* What it takes of the address space: itself with the Fortran library, and for every thread that it starts (one per CPU)
 * and every one that calls it a buffer.  Where it does not get one it spins for ever or ends the process. */
#define LIBRARY_BYTES ((uint64_t)96 << 20)
#define BUFFER_BYTES ((uint64_t)128 << 20) /* and a stack */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows */
static void *library;
static char *given; /* hm_blas_library */
static unsigned users;
static int threads_before;

/* What a thread gets that asks for nothing: `ulimit -s`. */
static uint64_t stack_bytes(void)
{
    pthread_attr_t usual;
    size_t bytes = (size_t)8 << 20;
    pthread_attr_init(&usual);
    pthread_attr_getstacksize(&usual, &bytes);
    pthread_attr_destroy(&usual);
    return bytes;
}

static hm_status check_room(hm_error *err)
{
    uint64_t threads = 2 * (uint64_t)hm_cpu_count() + 1, needed = LIBRARY_BYTES + threads * (BUFFER_BYTES + stack_bytes());
    uint64_t left = hm_address_space_left();
    if (left >= needed) return HM_OK;
    return hm_fail(err, HM_ERR_MEMORY, NULL, NULL,
                   "OpenBLAS, which low-rank directions and LoRAs need, takes up to %llu MiB of address space and this "
                   "process may map %llu MiB more; raise the limit (ulimit -v, ulimit -d)",
                   (unsigned long long)(needed >> 20), (unsigned long long)(left >> 20));
}

/* Finds all symbols under one prefix.  False: there are not all, or it counts in 64 bits; `reason` says which. */
static bool find_symbols(void *found, char *reason, size_t reason_bytes)
{
    const char *lacking = symbols[0].name;
    for (size_t p = 0; p < sizeof prefixes / sizeof prefixes[0]; p++) {
        size_t s = 0;
        for (; s < sizeof symbols / sizeof symbols[0]; s++) {
            char name[64];
            snprintf(name, sizeof name, "%s%s", prefixes[p], symbols[s].name);
            void *address = hm_library_symbol(found, name);
            if (address == NULL) break;
            memcpy(symbols[s].slot, &address, symbols[s].bytes);
        }
        if (s == sizeof symbols / sizeof symbols[0]) {
            if (strstr(fortran.config(), "USE64BITINT") == NULL) return true;
            snprintf(reason, reason_bytes, "it counts in 64 bits, 32 are needed");
            return false;
        }
        if (s > 0) lacking = symbols[s].name;
    }
    snprintf(reason, reason_bytes, "it is no OpenBLAS, or one without LAPACK (%s is missing)", lacking);
    return false;
}

static bool load_one(const char *name, char *reason, size_t reason_bytes)
{
    void *found = hm_library_open(name, reason, reason_bytes);
    if (found == NULL) return false;
    if (!find_symbols(found, reason, reason_bytes)) {
        hm_library_close(found);
        return false;
    }
    library = found;
    return true;
}

/* What somebody asked for by name is used or refused; the usual names are tried one after the other. */
static hm_status load(hm_error *err)
{
    static const char *const usual[] = {"libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so", "libopenblas.dylib"};
    char reason[400], first[400];
    const char *asked = getenv("HM_OPENBLAS");
    if (asked != NULL && asked[0] != 0) {
        if (load_one(asked, reason, sizeof reason)) return HM_OK;
        return hm_fail(err, HM_ERR_ARGUMENT, asked, NULL, "HM_OPENBLAS names this library, and it cannot be used: %s",
                       reason);
    }
    if (given != NULL && load_one(given, first, sizeof first)) return HM_OK;
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++) {
        char *why = i == 0 && given == NULL ? first : reason;
        if (load_one(usual[i], why, sizeof reason)) return HM_OK;
    }
    return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "OpenBLAS was not found (%s); " REMEDY, first);
}

hm_status hm_blas_library(const char *path, hm_error *err)
{
    char *copy = hm_copy_text(path);
    if (path != NULL && copy == NULL) return hm_fail_memory(err, "a path");
    pthread_mutex_lock(&lock);
    hm_release(given);
    given = copy;
    pthread_mutex_unlock(&lock);
    return HM_OK;
}

hm_status hm_blas_begin(const hm_blas **out, hm_error *err)
{
    hm_status status = HM_OK;
    pthread_mutex_lock(&lock);
    if (library == NULL) {
        status = check_room(err);
        if (status == HM_OK) status = load(err);
    }
    if (status == HM_OK) {
        if (users++ == 0) {
            threads_before = fortran.get_threads();
            fortran.set_threads(1);
        }
        *out = &calls;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

void hm_blas_end(void)
{
    pthread_mutex_lock(&lock);
    /* Unless somebody else in the process has meanwhile asked for another number. */
    if (--users == 0 && fortran.get_threads() == 1) fortran.set_threads(threads_before);
    pthread_mutex_unlock(&lock);
}
