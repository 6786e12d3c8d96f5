/* Every allocation of a call fails once, and then every one from there on: the call does what it does otherwise, or says in
 * one line that memory ran out and gives back all that it took; the next call works. */
#ifndef HM_TESTS_FAULT_MEMORY_H
#define HM_TESTS_FAULT_MEMORY_H

#include "tests/faults.h"

#include "base/error.h"
#include "tests/check.h"

typedef struct fault_operation {
    const char *name;
    hm_status (*run)(hm_error *err);
    bool keeps; /* what it finds stays with the object it was asked of, so that it takes blocks when nothing fails */
} fault_operation;

/* The call under a plan; how often a fault was met. */
static inline size_t fault_run(const fault_operation *operation, fault_plan plan)
{
    hm_error err = {0};
    long blocks = atomic_load(&faults.blocks);
    fault_begin(plan);
    faults_on();
    hm_status status = operation->run(&err);
    faults_off();
    size_t hits = atomic_load(&faults.hits);
    long left = atomic_load(&faults.blocks) - blocks;
    bool told = status == HM_OK || (hits > 0 && status == HM_ERR_MEMORY && strchr(err.message, '\n') == NULL);
    bool whole = left == 0 || (operation->keeps && plan.kinds == 0);
    if (!CHECK(told && whole))
        fprintf(stderr, "    %s, allocation %zu%s: status %d, %ld blocks left: %s\n", operation->name, plan.at,
                plan.onwards ? " onwards" : "", (int)status, left, err.message);
    return hits;
}

/* How many allocations failed.  The first run is without faults; it also loads OpenBLAS, which is not looked at. */
static inline size_t fault_every_allocation(const fault_operation *operation)
{
    size_t tried = 0;
    for (int onwards = 0; onwards < 2; onwards++) {
        fault_run(operation, (fault_plan){0});
        for (size_t at = 1; fault_run(operation, (fault_plan){.kinds = FAULT_MEMORY, .at = at, .onwards = onwards}) > 0; at++)
            tried++;
    }
    return tried;
}

#endif
