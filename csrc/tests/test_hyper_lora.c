/* Hyper-LoRAs: the loss never rises, threads and budgets change no bit, each pass can be cancelled, and what is degenerate
 * gives numbers.  What the numbers must be is tested against NumPy. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lowrank/hyper_lora.h"
#include "tests/check.h"
#include "tests/points.h"

enum { MEMBERS = 4, PARTS = 5, LARGE = 1500 };

/* Tensor 1 is too large for its combinations to fit into the smallest budget together. */
static const struct {
    const char *name;
    unsigned ndim;
    uint64_t shape[4];
} parts[PARTS] = {{"layers.0.weight", 2, {60, 44}},
                  {"layers.1.weight", 2, {LARGE, 800}},
                  {"layers.2.weight", 4, {24, 6, 3, 3}},
                  {"layers.3.bias", 1, {130}},
                  {"layers.4.weight", 2, {3, 90}}};

typedef struct family {
    float *numbers[MEMBERS][PARTS];
    hm_source *sources[MEMBERS];
} family;

static uint64_t elements_of(size_t p)
{
    uint64_t n = 1;
    for (unsigned d = 0; d < parts[p].ndim; d++) n *= parts[p].shape[d];
    return n;
}

/* Random numbers along three hidden directions of rank 3, and a little noise; members from `equal` on are like the first,
 * and tensor `resting` is the same in all. */
static int family_begin(family *f, size_t equal, size_t resting)
{
    int good = 1;
    *f = (family){0};
    double shares[MEMBERS][3];
    for (size_t m = 0; m < MEMBERS; m++)
        for (size_t k = 0; k < 3; k++) shares[m][k] = uniform() * (double)(3 - k);
    for (size_t p = 0; p < PARTS; p++) {
        uint64_t rows = parts[p].shape[0], n = elements_of(p), columns = n / rows;
        float *left = malloc(rows * 9 * sizeof *left), *right = malloc(columns * 9 * sizeof *right);
        for (size_t i = 0; i < rows * 9; i++) left[i] = (float)uniform();
        for (size_t i = 0; i < columns * 9; i++) right[i] = (float)uniform();
        for (size_t m = 0; m < MEMBERS; m++) {
            float *x = f->numbers[m][p] = malloc(n * sizeof *x);
            if (m > 0 && (m >= equal || p == resting)) {
                memcpy(x, f->numbers[0][p], n * sizeof *x);
                continue;
            }
            for (uint64_t i = 0; i < n; i++) {
                double value = 0.05 * uniform();
                for (size_t k = 0; k < 9; k++)
                    value += shares[m][k / 3] * (double)left[i / columns * 9 + k] * (double)right[i % columns * 9 + k];
                x[i] = (float)value;
            }
        }
        free(left);
        free(right);
    }
    for (size_t m = 0; m < MEMBERS; m++) {
        hm_tensor_info infos[PARTS];
        for (size_t p = 0; p < PARTS; p++) {
            infos[p] = (hm_tensor_info){.name = parts[p].name, .dtype = HM_F32, .ndim = parts[p].ndim,
                                        .data = f->numbers[m][p]};
            memcpy(infos[p].shape, parts[p].shape, sizeof parts[p].shape);
            int64_t stride = 1;
            for (unsigned d = parts[p].ndim; d-- > 0; stride *= (int64_t)parts[p].shape[d]) infos[p].strides[d] = stride;
        }
        good = good && hm_source_borrow(&f->sources[m], "model", infos, PARTS, NULL) == HM_OK;
    }
    return CHECK(good);
}

static void family_end(family *f)
{
    for (size_t m = 0; m < MEMBERS; m++) {
        hm_source_close(f->sources[m]);
        for (size_t p = 0; p < PARTS; p++) free(f->numbers[m][p]);
    }
}

static hm_hyper *solve(const family *f, const unsigned *ranks, size_t count, hm_job *job)
{
    const hm_solve_options options = {.dtype = HM_F16, .ranks = ranks, .rank_count = count};
    hm_error err = {0};
    hm_hyper *hyper = NULL;
    if (!CHECK(hm_solve(&hyper, f->sources, MEMBERS, &options, job, &err) == HM_OK))
        fprintf(stderr, "    %s\n", err.message);
    return hyper;
}

/* Everything is a number, the shares sum to what is explained, and the loss never rose. */
static void check_sound(const hm_hyper *hyper)
{
    const hm_solution *s = &hyper->solution;
    const hm_hyper_loras *loras = hyper->loras;
    double sum = 0;
    for (size_t i = 0; i < s->members * s->directions; i++) CHECK(fabs(s->multipliers[i]) <= 1);
    for (size_t m = 0; m < s->members; m++) CHECK(s->residual[m] >= 0 && s->residual[m] <= 1);
    for (size_t k = 0; k < s->directions; k++) sum += s->explained[k];
    CHECK(fabs(sum - (1 - s->loss / s->total)) < 1e-6);
    CHECK(loras->loss_count >= 2 && s->loss == loras->losses[loras->loss_count - 1] && isfinite(loras->losses[0]));
    for (size_t i = 1; i < loras->loss_count; i++) CHECK(loras->losses[i] <= loras->losses[i - 1]);
    for (size_t i = 0; i < loras->count * loras->directions; i++) {
        const hm_hyper_lora_part *part = &loras->parts[i];
        const hm_tensor_info *offered = &loras->source->header.tensors[part->index];
        CHECK(offered->rank == part->rank && offered->elements == part->rows * part->columns);
    }
}

static void test_threads_and_budgets(const family *f)
{
    static const unsigned ranks[] = {6, 3};
    static const hm_job jobs[] = {{.threads = 1}, {.threads = 2, .memory_budget = 1}, {.threads = 3, .memory_budget = 20 << 20}};
    hm_hyper *first = NULL;
    for (size_t i = 0; i < 3; i++) {
        hm_job job = jobs[i];
        hm_hyper *hyper = solve(f, ranks, 2, &job);
        if (hyper == NULL) break;
        check_sound(hyper);
        if (first == NULL) {
            first = hyper;
            continue;
        }
        const hm_hyper_loras *one = first->loras, *other = hyper->loras;
        CHECK(one->loss_count == other->loss_count &&
              memcmp(one->losses, other->losses, one->loss_count * sizeof *one->losses) == 0);
        for (size_t p = 0; p < one->count * 2; p++) {
            const hm_hyper_lora_part *a = &one->parts[p], *b = &other->parts[p];
            size_t size = hm_dtype_bytes(a->dtype);
            CHECK(memcmp(a->up, b->up, hm_hyper_lora_up_count(a) * size) == 0);
            CHECK(memcmp(a->down, b->down, hm_hyper_lora_down_count(a) * size) == 0);
        }
        hm_hyper_close(hyper);
    }
    hm_hyper_close(first);
}

static void test_degenerate(void)
{
    static const unsigned ranks[] = {1000, 1, 2};
    for (size_t equal = 2; equal <= MEMBERS; equal++) {
        family f;
        hm_job job = {.threads = 2};
        /* Of `equal` different models about their mean equal − 1 directions are left. */
        if (!family_begin(&f, equal, equal)) return;
        hm_hyper *hyper = solve(&f, ranks, equal - 1, &job);
        if (hyper != NULL) check_sound(hyper);
        CHECK(hyper == NULL || hyper->loras->count == PARTS - 1);
        hm_hyper_close(hyper);
        family_end(&f);
    }
}

static int stop_later(void *user, uint64_t done, uint64_t total)
{
    int *left = user;
    CHECK(done <= total);
    return --*left < 0;
}

static int stop_after(void *user, size_t number, double loss, double total)
{
    CHECK(number >= 1 && loss >= 0 && loss <= total);
    return number >= *(const size_t *)user;
}

static void test_cancel(const family *f)
{
    static const unsigned ranks[] = {6, 3};
    int calls = 0, more = 1;
    for (int at = 0; more; at = at < 4 ? at + 1 : at * 2) {
        hm_hyper *hyper = NULL;
        hm_error err = {0};
        const hm_solve_options options = {.dtype = HM_DTYPE_KEEP, .ranks = ranks, .rank_count = 2};
        calls = at;
        hm_job job = {.threads = 2, .progress = stop_later, .user = &calls};
        hm_status status = hm_solve(&hyper, f->sources, MEMBERS, &options, &job, &err);
        more = status == HM_ERR_CANCELLED;
        CHECK(more ? hyper == NULL && at < 10000 : status == HM_OK && at > 3);
        hm_hyper_close(hyper);
    }
    for (size_t number = 1; number < 3; number++) {
        hm_hyper *hyper = NULL;
        const hm_solve_options options = {.dtype = HM_DTYPE_KEEP, .ranks = ranks, .rank_count = 2, .pass = stop_after,
                                          .pass_user = &number};
        CHECK(hm_solve(&hyper, f->sources, MEMBERS, &options, NULL, NULL) == HM_ERR_CANCELLED && hyper == NULL);
    }
}

static void test_refused(const family *f)
{
    static const unsigned none[] = {4, 0}, many[] = {1, 1, 1, 1, 1};
    const hm_solve_options cases[] = {{.dtype = HM_DTYPE_KEEP, .ranks = none, .rank_count = 2},
                                      {.dtype = HM_DTYPE_KEEP, .ranks = many, .rank_count = 4},
                                      {.dtype = HM_DTYPE_KEEP, .ranks = many, .rank_count = 5},
                                      {.dtype = HM_DTYPE_KEEP, .ranks = many, .rank_count = 2, .method = HM_ALS},
                                      {.dtype = HM_DTYPE_KEEP, .ranks = many, .rank_count = 2, .directions = 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hm_hyper *hyper = NULL;
        CHECK(hm_solve(&hyper, f->sources, MEMBERS, &cases[i], NULL, NULL) == HM_ERR_ARGUMENT && hyper == NULL);
    }
}

int main(void)
{
    family f;
    if (family_begin(&f, MEMBERS, PARTS)) {
        test_threads_and_budgets(&f);
        test_cancel(&f);
        test_refused(&f);
    }
    family_end(&f);
    test_degenerate();
    return check_report("hyper-LoRAs");
}
