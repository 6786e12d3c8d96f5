/* A pass over numbers that all lie in memory.  There is nothing to wait for, so it needs none of what hm_stream_run does
 * for files (more workers than CPUs, turns, results in order): workers take chunks off a counter until none is left. */
#include <stdatomic.h>

#include "apply/live.h"
#include "base/error.h"
#include "base/threads.h"
#include "solve/stream_plan.h"

/* Elements taken at a time, of however many tensors: enough for the CPU's own prefetching to find its pace, few enough that
 * nobody waits long for the last worker, or for a cancel. */
#define CHUNK ((uint64_t)256 << 10)
#define MOST_THREADS 16u

struct memory_pass {
    const hm_stream *stream;
    hm_job *job;
    uint64_t *before;          /* [tensor_count + 1] elements of the tensors in front */
    unsigned char *scratch;    /* per worker */
    size_t scratch_stride;
    uint64_t total_bytes;
    atomic_uint_fast64_t next; /* element, counted through all tensors */
    atomic_uint_fast64_t done_bytes;
    atomic_bool stopped;
    hm_error error;            /* why; written by whoever set `stopped` */
};

bool hm_live_is_in_memory(const hm_stream *stream)
{
    for (size_t t = 0; t < stream->tensor_count; t++) {
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            if (tensor == NULL || tensor->elements == 0) continue;
            if (tensor->data == NULL || !hm_tensor_is_contiguous(tensor)) return false; /* products have no data either */
        }
    }
    return true;
}

static void stop_with(struct memory_pass *pass, const hm_error *error)
{
    if (!atomic_exchange(&pass->stopped, true)) pass->error = *error;
}

/* The tensor that an element belongs to, which is none of the empty ones. */
static size_t tensor_of(const struct memory_pass *pass, uint64_t element)
{
    size_t low = 0, high = pass->stream->tensor_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (pass->before[middle] <= element)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static hm_status work_on(struct memory_pass *pass, size_t t, uint64_t start, size_t count, void *scratch, hm_error *err)
{
    const hm_stream *stream = pass->stream;
    const void *raw[HM_STREAM_ROWS];
    const hm_tensor_info *as[HM_STREAM_ROWS];
    uint64_t bytes = 0;
    for (size_t r = 0; r < stream->row_count; r++) {
        as[r] = hm_stream_tensor(stream, r, t);
        raw[r] = NULL;
        if (as[r] == NULL) continue;
        size_t size = hm_dtype_bytes(as[r]->dtype);
        raw[r] = (const unsigned char *)as[r]->data + start * size;
        bytes += count * size;
    }
    const hm_piece piece = {.tensor = t, .start = start, .count = count, .raw = raw, .as = as};
    const hm_segment segment = {.tensor = t, .start = start, .count = count};
    HM_TRY(stream->work(stream->user, &piece, &segment, scratch, err));
    atomic_fetch_add_explicit(&pass->done_bytes, bytes, memory_order_relaxed);
    return HM_OK;
}

/* Chunks begin at whole cuts of a tensor, so that two workers share no cache line of it. */
static uint64_t cut_before(const struct memory_pass *pass, uint64_t element)
{
    uint64_t all = pass->before[pass->stream->tensor_count];
    if (element >= all) return all;
    uint64_t begin = pass->before[tensor_of(pass, element)];
    return begin + (element - begin) / HM_STREAM_CUT * HM_STREAM_CUT;
}

static hm_status work_on_chunk(struct memory_pass *pass, uint64_t chunk, void *scratch, hm_error *err)
{
    uint64_t at = cut_before(pass, chunk), end = cut_before(pass, chunk + CHUNK);
    for (size_t t = tensor_of(pass, at); at < end; t++) {
        uint64_t until = pass->before[t + 1] < end ? pass->before[t + 1] : end;
        if (until == at) continue; /* it is empty */
        HM_TRY(work_on(pass, t, at - pass->before[t], (size_t)(until - at), scratch, err));
        at = until;
    }
    return HM_OK;
}

static void work_loop(void *arg, unsigned worker)
{
    struct memory_pass *pass = arg;
    void *scratch = pass->scratch + worker * pass->scratch_stride;
    const uint64_t all = pass->before[pass->stream->tensor_count];
    uint64_t chunk;
    while (!atomic_load(&pass->stopped) && (chunk = atomic_fetch_add(&pass->next, CHUNK)) < all) {
        hm_error error = {0};
        if (work_on_chunk(pass, chunk, scratch, &error) != HM_OK) stop_with(pass, &error);
    }
}

/* On the calling thread. */
static void report_progress(void *arg)
{
    struct memory_pass *pass = arg;
    if (pass->job == NULL || pass->job->progress == NULL || atomic_load(&pass->stopped)) return;
    if (pass->job->progress(pass->job->user, atomic_load(&pass->done_bytes), pass->total_bytes) == 0) return;
    hm_error error = {0};
    hm_fail(&error, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    stop_with(pass, &error);
}

static hm_status run(struct memory_pass *pass, unsigned workers, hm_error *err)
{
    const hm_stream *stream = pass->stream;
    pass->before = hm_alloc(stream->tensor_count + 1, sizeof *pass->before);
    pass->scratch = hm_alloc_pages(workers * pass->scratch_stride);
    if (pass->before == NULL || pass->scratch == NULL) return hm_fail_memory(err, "a blend");
    for (size_t t = 0; t < stream->tensor_count; t++) {
        pass->before[t + 1] = pass->before[t] + stream->elements[t];
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            pass->total_bytes += tensor != NULL ? tensor->bytes : 0;
        }
    }
    HM_TRY(hm_crew_run(workers, work_loop, report_progress, pass, err));
    if (!atomic_load(&pass->stopped)) return HM_OK;
    if (err != NULL) *err = pass->error;
    return pass->error.status;
}

hm_status hm_live_run_in_memory(const hm_stream *stream, hm_job *job, hm_error *err)
{
    unsigned workers = job != NULL && job->threads > 0 ? job->threads : hm_cpu_count();
    if (workers > MOST_THREADS) workers = MOST_THREADS;
    struct memory_pass pass = {.stream = stream, .job = job, .scratch_stride = (stream->scratch_bytes + 4095) / 4096 * 4096};
    atomic_init(&pass.next, 0);
    atomic_init(&pass.done_bytes, 0);
    atomic_init(&pass.stopped, false);
    double began = hm_seconds();
    hm_status status = run(&pass, workers, err);
    hm_release(pass.before);
    hm_release_pages(pass.scratch);
    if (job != NULL) {
        job->out_seconds += hm_seconds() - began;
        job->out_total_bytes = pass.total_bytes;
    }
    return status;
}
