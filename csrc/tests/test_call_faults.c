/* Every system call on files fails once, and then every one from there on: a call of the core either does what it does
 * otherwise, or says in one line what failed, leaves no file behind and the old one whole; and works the next time.
 * Reads and writes that are interrupted or cut short are no failures at all. */
#include "tests/fault_operations.h"

static size_t tried, survived, swept, transfers;

static bool accepted(const outcome *got, const outcome *usual)
{
    if (got->status == HM_ERR_IO || same_outcome(got, usual)) return true;
    /* Looked at in vain at the beginning, the target is there at the end. */
    return got->status == HM_ERR_ARGUMENT && strstr(got->message, "another file got this name") != NULL;
}

static void fail_one_by_one(world *w, size_t which, int variant, const outcome *usual, bool onwards)
{
    for (size_t at = 1;; at++) {
        const fault_plan plan = {.kinds = FAULT_CALL, .at = at, .onwards = onwards};
        outcome got = run_operation(w, which, variant, plan);
        if (!CHECK(accepted(&got, usual))) tell_run(which, variant, plan, &got);
        if (got.hits == 0) return;
        tried++;
        survived += got.status == usual->status;
        if (got.temporaries == 0) continue;
        swept++;
        (void)run_operation(w, which, variant, (fault_plan){0}); /* takes away what was left, and checks that */
    }
}

static void disturb_one_by_one(world *w, size_t which, int variant, const outcome *usual, fault_manner manner)
{
    for (size_t at = 1;; at++) {
        const fault_plan plan = {.kinds = FAULT_TRANSFER, .at = at, .manner = manner};
        outcome got = run_operation(w, which, variant, plan);
        if (!CHECK(same_outcome(&got, usual))) tell_run(which, variant, plan, &got);
        if (got.hits == 0) return;
        transfers++;
    }
}

int main(void)
{
    static world w;
    if (world_begin(&w))
        for (size_t which = 0; which < OPERATIONS; which++)
            for (int variant = 0; variant < operations[which].variants; variant++) {
                const fault_plan none = {0};
                (void)run_operation(&w, which, variant, none);
                outcome usual = run_operation(&w, which, variant, none); /* a save adds to its hyper-model */
                fail_one_by_one(&w, which, variant, &usual, false);
                fail_one_by_one(&w, which, variant, &usual, true);
                disturb_one_by_one(&w, which, variant, &usual, INTERRUPT);
                disturb_one_by_one(&w, which, variant, &usual, SHORTEN);
                outcome last = run_operation(&w, which, variant, none);
                CHECK(same_outcome(&last, &usual));
            }
    world_end(&w);
    CHECK(tried > 1000 && survived > 10 && survived < tried && transfers > 1000);
    printf("%zu calls failed, %zu of them survived, %zu left what the next run took away, %zu transfers disturbed; ", tried,
           survived, swept, transfers);
    return check_report("test_call_faults");
}
