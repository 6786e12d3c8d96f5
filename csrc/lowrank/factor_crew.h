/* Tensors that are worked on whole, by their factors: shared out among threads, no more of them at a time than the budget
 * holds, with progress and cancelling. */
#ifndef HM_LOWRANK_FACTOR_CREW_H
#define HM_LOWRANK_FACTOR_CREW_H

#include "hypermerge.h"
#include "lowrank/blas.h"

#define HM_FACTOR_WORKERS 16u

typedef struct hm_factor_work {
    size_t count;
    /* Bytes of memory that task i takes, and bytes of files that it counts for. */
    uint64_t (*memory)(void *user, size_t i);
    uint64_t (*bytes)(void *user, size_t i);
    /* Called once per task, from several threads, in no fixed order; `worker` < HM_FACTOR_WORKERS tells these apart. */
    hm_status (*run)(void *user, size_t i, unsigned worker, const hm_blas *blas, hm_error *err);
    void *user;
    uint64_t before_bytes, later_bytes; /* what other passes of the same call have handled and will handle: for progress */
} hm_factor_work;

/* The bytes, and the threads, that a job allows. */
uint64_t hm_factor_budget(const hm_job *job);
unsigned hm_factor_threads(const hm_job *job);
/* Loads OpenBLAS.  Fills job's out_ fields: what was read counts as read through the page cache. */
hm_status hm_factor_crew_run(const hm_factor_work *work, hm_job *job, hm_error *err);

#endif
