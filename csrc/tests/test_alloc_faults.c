/* Every allocation of the core fails once, and then every one from there on: each call either does what it does otherwise,
 * or says in one line that memory ran out, gives back all that it took, leaves no file behind and the old one whole; and
 * the same call works the next time.  Threads that the system does not grant are done without. */
#include "tests/fault_operations.h"

static size_t tried, survived, refused;

/* A fault may be survived; what the caller sees is then what it always is. */
static bool accepted(const outcome *got, const outcome *usual)
{
    return got->status == HM_ERR_MEMORY || same_outcome(got, usual);
}

static void fail_one_by_one(world *w, size_t which, int variant, const outcome *usual, bool onwards)
{
    for (size_t at = 1;; at++) {
        const fault_plan plan = {.kinds = FAULT_MEMORY | FAULT_THREAD, .at = at, .onwards = onwards};
        outcome got = run_operation(w, which, variant, plan);
        if (!CHECK(accepted(&got, usual))) tell_run(which, variant, plan, &got);
        if (got.hits == 0) return; /* there were not so many */
        tried++;
        survived += got.status == usual->status;
    }
}

int main(void)
{
    static world w;
    faults_hook_cjson();
    if (world_begin(&w))
        for (size_t which = 0; which < OPERATIONS; which++)
            for (int variant = 0; variant < operations[which].variants; variant++) {
                const fault_plan none = {0}, no_threads = {.kinds = FAULT_THREAD, .at = 1, .onwards = true};
                outcome first = run_operation(&w, which, variant, none);
                outcome usual = run_operation(&w, which, variant, none); /* a save adds to its hyper-model */
                CHECK(first.status == usual.status && usual.status != HM_ERR_MEMORY);
                refused += usual.status != HM_OK; /* some must be; an error's way out is a way, too */
                fail_one_by_one(&w, which, variant, &usual, false);
                fail_one_by_one(&w, which, variant, &usual, true);
                outcome alone = run_operation(&w, which, variant, no_threads);
                outcome last = run_operation(&w, which, variant, none);
                CHECK(same_outcome(&alone, &usual));
                CHECK(same_outcome(&last, &usual));
            }
    world_end(&w);
    CHECK(tried > 1000 && survived > 10 && survived < tried && refused < 20);
    printf("%zu allocations failed, %zu of them survived, %zu calls that refuse; ", tried, survived, refused);
    return check_report("test_alloc_faults");
}
