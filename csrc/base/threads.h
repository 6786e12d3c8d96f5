/* A crew of worker threads that run one function until it returns, while the calling thread watches: it alone reports
 * progress (and so may touch what only it may touch, such as an interpreter's lock). Nobody spins. */
#ifndef HM_BASE_THREADS_H
#define HM_BASE_THREADS_H

#include "hypermerge.h"

/* Runs body(arg, worker) on `workers` threads (fewer if the system grants fewer; on the calling thread if it grants none)
 * and, until all have returned, calls tick(arg) on the calling thread about every 50 ms, and once at the end (only that
 * where the system grants no thread). */
hm_status hm_crew_run(unsigned workers, void (*body)(void *arg, unsigned worker), void (*tick)(void *arg), void *arg,
                      hm_error *err);

#endif
