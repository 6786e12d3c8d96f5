#include "lowrank/factor_crew.h"

#include <pthread.h>

#include "base/error.h"
#include "base/os.h"
#include "base/threads.h"

#define DEFAULT_BUDGET ((uint64_t)256 << 20)
#define LEAST_BUDGET ((uint64_t)16 << 20)

struct crew {
    const hm_factor_work *work;
    const hm_blas *blas;
    const hm_job *job;
    uint64_t budget, total;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t room;
    uint64_t in_use, done;
    size_t next;
    bool stopped;
    hm_error error;
};

static void stop_with(struct crew *crew, const hm_error *error)
{
    pthread_mutex_lock(&crew->lock);
    if (!crew->stopped) crew->error = *error;
    crew->stopped = true;
    pthread_cond_broadcast(&crew->room);
    pthread_mutex_unlock(&crew->lock);
}

/* The next task once there is room for it; work->count: no more. */
static size_t take(struct crew *crew)
{
    const hm_factor_work *work = crew->work;
    pthread_mutex_lock(&crew->lock);
    while (!crew->stopped && crew->next < work->count && crew->in_use > 0 &&
           crew->in_use + work->memory(work->user, crew->next) > crew->budget)
        pthread_cond_wait(&crew->room, &crew->lock);
    size_t i = crew->stopped || crew->next == work->count ? work->count : crew->next++;
    if (i < work->count) crew->in_use += work->memory(work->user, i);
    pthread_mutex_unlock(&crew->lock);
    return i;
}

static void work_loop(void *arg, unsigned worker)
{
    struct crew *crew = arg;
    const hm_factor_work *work = crew->work;
    for (size_t i; (i = take(crew)) < work->count;) {
        hm_error error = {0};
        hm_status status = work->run(work->user, i, worker, crew->blas, &error);
        pthread_mutex_lock(&crew->lock);
        crew->in_use -= work->memory(work->user, i);
        crew->done += work->bytes(work->user, i);
        pthread_cond_broadcast(&crew->room);
        pthread_mutex_unlock(&crew->lock);
        if (status == HM_OK) continue;
        stop_with(crew, &error);
        return;
    }
}

static void tick(void *arg)
{
    struct crew *crew = arg;
    const hm_job *job = crew->job;
    if (job->progress == NULL) return;
    pthread_mutex_lock(&crew->lock);
    bool stopped = crew->stopped;
    uint64_t done = crew->work->before_bytes + crew->done;
    pthread_mutex_unlock(&crew->lock);
    if (stopped || job->progress(job->user, done, crew->total) == 0) return;
    hm_error error = {0};
    hm_fail(&error, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    stop_with(crew, &error);
}

uint64_t hm_factor_budget(const hm_job *job)
{
    uint64_t budget = job != NULL && job->memory_budget > 0 ? job->memory_budget : DEFAULT_BUDGET;
    return budget < LEAST_BUDGET ? LEAST_BUDGET : budget;
}

unsigned hm_factor_threads(const hm_job *job)
{
    unsigned threads = job != NULL && job->threads > 0 ? job->threads : hm_cpu_count();
    return threads < HM_FACTOR_WORKERS ? threads : HM_FACTOR_WORKERS;
}

hm_status hm_factor_crew_run(const hm_factor_work *work, hm_job *job, hm_error *err)
{
    hm_job quiet = {0};
    if (job == NULL) job = &quiet;
    struct crew crew = {.work = work, .job = job, .budget = hm_factor_budget(job)};
    uint64_t bytes = 0;
    for (size_t i = 0; i < work->count; i++) bytes += work->bytes(work->user, i);
    crew.total = work->before_bytes + bytes + work->later_bytes;
    unsigned threads = hm_factor_threads(job);
    if (threads > work->count) threads = work->count > 0 ? (unsigned)work->count : 1;
    HM_TRY(hm_blas_begin(&crew.blas, err));
    double began = hm_seconds();
    pthread_mutex_init(&crew.lock, NULL);
    pthread_cond_init(&crew.room, NULL);
    hm_status status = hm_crew_run(threads, work_loop, tick, &crew, err);
    pthread_cond_destroy(&crew.room);
    pthread_mutex_destroy(&crew.lock);
    hm_blas_end();
    job->out_cached_bytes += bytes;
    job->out_total_bytes = crew.total;
    job->out_seconds += hm_seconds() - began;
    if (status != HM_OK || !crew.stopped) return status;
    if (err != NULL) *err = crew.error;
    return crew.error.status;
}
