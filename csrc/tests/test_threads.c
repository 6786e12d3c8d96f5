/* Threads: results do not depend on how many there are, several callers may share models, hyper-models and live bindings,
 * and a call that is cancelled from its progress leaves nothing behind.  Built with ThreadSanitizer, too. */
#include "tests/fault_operations.h"

enum { CALLERS = 4, ROUNDS = 2 };

/* ---- one caller, many threads ------------------------------------------------------------------------------------ */

static void test_counts(world *w)
{
    static const unsigned counts[] = {1, 2, 7};
    for (size_t which = 0; which < OPERATIONS; which++)
        for (int variant = 0; variant < operations[which].variants; variant++) {
            outcome usual = {0};
            (void)run_operation(w, which, variant, (fault_plan){0}); /* a save adds to its hyper-model */
            for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
                w->job.threads = counts[i];
                outcome got = run_operation(w, which, variant, (fault_plan){0});
                if (i == 0) usual = got;
                if (!CHECK(same_outcome(&got, &usual))) fprintf(stderr, "    %s %d\n", operations[which].name, variant);
            }
        }
    w->job.threads = 2;
}

/* ---- cancelled --------------------------------------------------------------------------------------------------- */

static int cancel_at(void *user, uint64_t done, uint64_t total)
{
    int *left = user;
    CHECK(done <= total);
    return (*left)-- <= 0;
}

static void test_cancel(world *w)
{
    size_t cancelled = 0;
    for (size_t which = 0; which < OPERATIONS; which++)
        for (int variant = 0; variant < operations[which].variants; variant++)
            for (int at = 0; at < 4; at++) {
                int left = at;
                outcome usual = run_operation(w, which, variant, (fault_plan){0});
                w->job.progress = cancel_at;
                w->job.user = &left;
                outcome got = run_operation(w, which, variant, (fault_plan){0});
                w->job.progress = NULL;
                if (!CHECK(got.status == HM_ERR_CANCELLED || same_outcome(&got, &usual)))
                    fprintf(stderr, "    %s %d: %s\n", operations[which].name, variant, got.message);
                cancelled += got.status == HM_ERR_CANCELLED;
                if (got.status != HM_ERR_CANCELLED) break; /* it was not asked so often */
            }
    CHECK(cancelled > 50);
}

/* ---- many callers ------------------------------------------------------------------------------------------------ */

struct caller {
    world own; /* shares everything but targets, job and the folder it writes to */
    pthread_t thread;
    const uint64_t *usual; /* of each operation and variant, in order */
};

/* What changes a source or a hyper-model belongs to one caller at a time. */
static bool can_be_shared(size_t which)
{
    return operations[which].run != save && operations[which].run != sha256 && operations[which].old == NULL &&
           operations[which].run != blend;
}

/* Runs all that can be shared and fills or compares the digests of what was seen and written. */
static void run_all(world *w, uint64_t *fill, const uint64_t *compare)
{
    size_t n = 0;
    for (size_t which = 0; which < OPERATIONS; which++)
        for (int variant = 0; can_be_shared(which) && variant < operations[which].variants; variant++, n++) {
            digest seen = {0};
            hm_error err = {0};
            size_t temporaries;
            clear_out(w, NULL);
            hm_status status = operations[which].run(w, variant, &seen, &err);
            uint64_t files = digest_folder(w->out.path, &temporaries);
            digest_add(&seen, &status, sizeof status);
            digest_add(&seen, &files, sizeof files);
            if (fill != NULL) fill[n] = seen.value;
            if (compare != NULL && !CHECK(compare[n] == seen.value && temporaries == 0))
                fprintf(stderr, "    %s %d: %s\n", operations[which].name, variant, err.message);
        }
}

static void *call(void *arg)
{
    struct caller *caller = arg;
    for (size_t round = 0; round < ROUNDS; round++) run_all(&caller->own, NULL, caller->usual);
    return NULL;
}

static void test_callers(world *w)
{
    static uint64_t usual[OPERATIONS * 32];
    static struct caller callers[CALLERS];
    model_set floats = w->set;
    floats.part_count = WORLD_FLOATS;
    run_all(w, usual, NULL);
    for (size_t i = 0; i < CALLERS; i++) {
        world *own = &callers[i].own;
        *own = *w;
        callers[i].usual = usual;
        CHECK(folder_begin(&own->out));
        targets_begin(&own->targets, &floats, HM_F16, ODD);
        reload_targets(own);
    }
    for (size_t i = 0; i < CALLERS; i++) CHECK(pthread_create(&callers[i].thread, NULL, call, &callers[i]) == 0);
    for (size_t i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
        targets_end(&callers[i].own.targets);
        folder_end(&callers[i].own.out);
    }
}

int main(void)
{
    static world w;
    if (world_begin(&w)) {
        test_counts(&w);
        test_cancel(&w);
        test_callers(&w);
    }
    world_end(&w);
    return check_report("test_threads");
}
