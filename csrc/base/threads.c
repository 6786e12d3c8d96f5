#include "base/threads.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/error.h"
#include "base/memory.h"

#define TICK_NANOSECONDS 50000000L
/* What the system gives otherwise is `ulimit -s`: with a large one and a limit on the address space nothing else has room. */
#define STACK_BYTES ((size_t)2 << 20)

struct crew {
    void (*body)(void *arg, unsigned worker);
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t done;
    unsigned running;
};

struct member {
    struct crew *crew;
    pthread_t thread;
    unsigned number;
};

static void *run_member(void *start)
{
    struct member *member = start;
    struct crew *crew = member->crew;
    crew->body(crew->arg, member->number);
    pthread_mutex_lock(&crew->lock);
    crew->running--;
    pthread_cond_signal(&crew->done);
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

/* Waits on the monotonic clock, so that a changed wall clock neither freezes nor floods the progress display. */
static void wait_for_all(struct crew *crew, void (*tick)(void *arg))
{
    pthread_mutex_lock(&crew->lock);
    while (crew->running > 0) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += TICK_NANOSECONDS;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        int code = 0;
        while (crew->running > 0 && code != ETIMEDOUT) code = pthread_cond_timedwait(&crew->done, &crew->lock, &until);
        pthread_mutex_unlock(&crew->lock);
        if (tick != NULL) tick(crew->arg);
        pthread_mutex_lock(&crew->lock);
    }
    pthread_mutex_unlock(&crew->lock);
}

hm_status hm_crew_run(unsigned workers, void (*body)(void *arg, unsigned worker), void (*tick)(void *arg), void *arg,
                      hm_error *err)
{
    struct member *members = hm_alloc(workers, sizeof *members);
    if (members == NULL) return hm_fail_memory(err, "threads");

    struct crew crew = {.body = body, .arg = arg};
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&crew.lock, NULL);
    pthread_cond_init(&crew.done, &clock);
    pthread_condattr_destroy(&clock);

    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_BYTES);
    unsigned started = 0;
    while (started < workers) {
        members[started] = (struct member){.crew = &crew, .number = started};
        pthread_mutex_lock(&crew.lock);
        crew.running++;
        pthread_mutex_unlock(&crew.lock);
        if (pthread_create(&members[started].thread, &small, run_member, &members[started]) != 0) {
            pthread_mutex_lock(&crew.lock);
            crew.running--;
            pthread_mutex_unlock(&crew.lock);
            break;
        }
        started++;
    }
    pthread_attr_destroy(&small);
    if (started == 0)
        body(arg, 0);
    else
        wait_for_all(&crew, tick);
    for (unsigned i = 0; i < started; i++) pthread_join(members[i].thread, NULL);
    if (tick != NULL) tick(arg);

    pthread_cond_destroy(&crew.done);
    pthread_mutex_destroy(&crew.lock);
    hm_release(members);
    return HM_OK;
}
