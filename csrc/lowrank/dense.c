#include "lowrank/dense.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "kernels/kernels.h"

#define COLUMNS ((size_t)HM_KERNEL_COLUMNS)
#define DEFAULT_BUDGET ((uint64_t)256 << 20)
/* For reading: the work is in the visits, so that buffers beyond a few items per thread gain nothing. */
#define READING_BUDGET ((uint64_t)32 << 20)
#define MOST_THREADS 16u

struct turn {
    uint64_t elements;
    size_t which; /* in the batch */
};

/* Some consecutive tensors of the list, whole in memory. */
struct batch {
    const hm_dense *dense;
    const hm_kernels *kernels;
    size_t count;
    size_t *tensor;       /* [count] index in dense */
    float **numbers;      /* [count] */
    struct turn *order;   /* [count] the largest first: the last ones must not keep one thread busy alone */
    hm_job *job;          /* the caller's */
    uint64_t total;       /* bytes of all batches, twice */
    pthread_mutex_t lock; /* of what follows, while tensors are visited */
    uint64_t done;
    size_t next;
    bool stopped;
    hm_error error;
};

static uint64_t bytes_of(const hm_dense *dense, size_t tensor)
{
    uint64_t bytes = 0;
    for (size_t r = 0; r < dense->row_count; r++) {
        uint32_t index = dense->rows[r].index[tensor * dense->rows[r].stride];
        if (index != HM_ABSENT) bytes += dense->rows[r].source->header.tensors[index].bytes;
    }
    return bytes;
}

/* ---- reading ---------------------------------------------------------------------------------------------------------- */

static const void *numbers_at(const hm_piece *piece, size_t row, size_t at)
{
    return (const char *)piece->raw[row] + at * hm_dtype_bytes(piece->as[row]->dtype);
}

static size_t outputs_of(const hm_dense *dense)
{
    return dense->outputs > 0 ? dense->outputs : 1;
}

static hm_status combine(void *user, const hm_piece *piece, const hm_segment *segment, void *block, hm_error *err)
{
    const struct batch *batch = user;
    const hm_dense *dense = batch->dense;
    const hm_kernels *kernels = batch->kernels;
    const double *c = dense->coefficients + batch->tensor[piece->tensor] * dense->coefficient_stride;
    float *first = batch->numbers[piece->tensor] + piece->start, *reference = block, *row = reference + COLUMNS;
    size_t outputs = outputs_of(dense), elements = (size_t)dense->elements[batch->tensor[piece->tensor]];
    bool subtract = dense->reference != HM_DENSE_NO_REFERENCE && piece->raw[dense->reference] != NULL;
    (void)segment;
    (void)err;
    for (size_t o = 0; o < outputs; o++) memset(first + o * elements, 0, piece->count * sizeof *first);
    for (size_t at = 0; at < piece->count; at += COLUMNS) {
        size_t n = piece->count - at < COLUMNS ? piece->count - at : COLUMNS;
        if (subtract)
            kernels->load[piece->as[dense->reference]->dtype](numbers_at(piece, dense->reference, at), reference, n);
        for (size_t r = 0; r < dense->row_count; r++) {
            if (r == dense->reference || piece->raw[r] == NULL) continue;
            size_t o = 0; /* the first combination that takes from this row */
            while (o < outputs && c[o * dense->row_count + r] == 0) o++;
            if (o == outputs) continue;
            if (subtract && !dense->rows[r].source->is_lora)
                kernels->load_sub[piece->as[r]->dtype](numbers_at(piece, r, at), reference, row, n);
            else
                kernels->load[piece->as[r]->dtype](numbers_at(piece, r, at), row, n);
            for (; o < outputs; o++) {
                double share = c[o * dense->row_count + r];
                if (share != 0) kernels->axpy(first + o * elements + at, (float)share, row, n);
            }
        }
    }
    return HM_OK;
}

static int report(const struct batch *batch, uint64_t done)
{
    if (batch->job == NULL || batch->job->progress == NULL) return 0;
    return batch->job->progress(batch->job->user, done, batch->total);
}

static int reading_progress(void *user, uint64_t done, uint64_t total)
{
    const struct batch *batch = user;
    (void)total;
    return report(batch, batch->done + done);
}

static hm_status read_batch(struct batch *batch, hm_error *err)
{
    const hm_dense *dense = batch->dense;
    hm_stream_row rows[HM_STREAM_ROWS];
    uint64_t *elements = hm_alloc(batch->count, sizeof *elements);
    uint32_t *index = hm_alloc(batch->count * dense->row_count, sizeof *index);
    hm_status status = elements != NULL && index != NULL ? HM_OK : hm_fail_memory(err, "the list of tensors");
    for (size_t i = 0; status == HM_OK && i < batch->count; i++) {
        elements[i] = dense->elements[batch->tensor[i]];
        for (size_t r = 0; r < dense->row_count; r++)
            index[i * dense->row_count + r] = dense->rows[r].index[batch->tensor[i] * dense->rows[r].stride];
    }
    for (size_t r = 0; r < dense->row_count; r++)
        rows[r] = (hm_stream_row){.source = dense->rows[r].source, .index = index + r, .stride = dense->row_count};
    hm_stream stream = {.row_count = dense->row_count,
                        .tensor_count = batch->count,
                        .rows = rows,
                        .elements = elements,
                        .scratch_bytes = 2 * COLUMNS * sizeof(float),
                        .work = combine,
                        .user = batch};
    bool tight = batch->job != NULL && batch->job->memory_budget > 0 && batch->job->memory_budget < READING_BUDGET;
    hm_job job = {.memory_budget = tight ? batch->job->memory_budget : READING_BUDGET,
                  .threads = batch->job != NULL ? batch->job->threads : 0,
                  .progress = reading_progress,
                  .user = batch};
    if (status == HM_OK) status = hm_stream_run(&stream, &job, err);
    if (status == HM_OK) batch->done += job.out_total_bytes;
    if (batch->job != NULL) {
        batch->job->out_direct_bytes += job.out_direct_bytes;
        batch->job->out_cached_bytes += job.out_cached_bytes;
    }
    hm_release(elements);
    hm_release(index);
    return status;
}

/* ---- visiting --------------------------------------------------------------------------------------------------------- */

static void stop_with(struct batch *batch, const hm_error *error)
{
    pthread_mutex_lock(&batch->lock);
    if (!batch->stopped) batch->error = *error;
    batch->stopped = true;
    pthread_mutex_unlock(&batch->lock);
}

static void visit_loop(void *arg, unsigned worker)
{
    struct batch *batch = arg;
    (void)worker;
    for (;;) {
        pthread_mutex_lock(&batch->lock);
        size_t i = batch->stopped ? batch->count : batch->next++;
        pthread_mutex_unlock(&batch->lock);
        if (i >= batch->count) return;
        size_t which = batch->order[i].which, tensor = batch->tensor[which];
        hm_error error = {0};
        if (batch->dense->visit(batch->dense->user, tensor, batch->numbers[which], &error) != HM_OK) {
            stop_with(batch, &error);
            return;
        }
        pthread_mutex_lock(&batch->lock);
        batch->done += bytes_of(batch->dense, tensor);
        pthread_mutex_unlock(&batch->lock);
    }
}

static void visit_tick(void *arg)
{
    struct batch *batch = arg;
    pthread_mutex_lock(&batch->lock);
    bool stopped = batch->stopped;
    uint64_t done = batch->done;
    pthread_mutex_unlock(&batch->lock);
    if (stopped || report(batch, done) == 0) return;
    hm_error error = {0};
    hm_fail(&error, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    stop_with(batch, &error);
}

static int largest_first(const void *a, const void *b)
{
    const struct turn *x = a, *y = b;
    if (x->elements != y->elements) return x->elements > y->elements ? -1 : 1;
    return x->which < y->which ? -1 : x->which > y->which;
}

static hm_status visit_batch(struct batch *batch, unsigned threads, hm_error *err)
{
    batch->next = 0;
    for (size_t i = 0; i < batch->count; i++)
        batch->order[i] = (struct turn){.elements = batch->dense->elements[batch->tensor[i]], .which = i};
    qsort(batch->order, batch->count, sizeof *batch->order, largest_first);
    unsigned workers = batch->count < threads ? (unsigned)batch->count : threads;
    HM_TRY(hm_crew_run(workers, visit_loop, visit_tick, batch, err));
    if (!batch->stopped) return HM_OK;
    if (err != NULL) *err = batch->error;
    return batch->error.status;
}

/* ---- all of it -------------------------------------------------------------------------------------------------------- */

static size_t nth(const hm_dense *dense, size_t i)
{
    return dense->chosen != NULL ? dense->chosen[i] : i;
}

static hm_status run_batches(struct batch *batch, size_t count, uint64_t room, unsigned threads, hm_error *err)
{
    const hm_dense *dense = batch->dense;
    for (size_t i = 0; i < count;) {
        size_t first = i;
        uint64_t bytes = 0;
        for (batch->count = 0; i < count; i++) {
            uint64_t more = dense->elements[nth(dense, i)] * outputs_of(dense) * sizeof(float);
            if (i > first && bytes + more > room) break;
            batch->tensor[batch->count++] = nth(dense, i);
            bytes += more + 64; /* each begins on a cache line of its own */
        }
        unsigned char *block = hm_alloc_pages((size_t)bytes);
        if (block == NULL) return hm_fail_memory(err, "whole tensors");
        size_t at = 0;
        for (size_t b = 0; b < batch->count; b++) {
            batch->numbers[b] = (float *)(void *)(block + at);
            at += (size_t)((dense->elements[batch->tensor[b]] * outputs_of(dense) * sizeof(float) + 63) / 64 * 64);
        }
        hm_status status = read_batch(batch, err);
        if (status == HM_OK) status = visit_batch(batch, threads, err);
        hm_release_pages(block);
        HM_TRY(status);
    }
    return HM_OK;
}

hm_status hm_dense_run(const hm_dense *dense, hm_job *job, hm_error *err)
{
    size_t count = dense->chosen != NULL ? dense->chosen_count : dense->tensor_count;
    uint64_t budget = job != NULL && job->memory_budget > 0 ? job->memory_budget : DEFAULT_BUDGET;
    unsigned threads = job != NULL && job->threads > 0 ? job->threads : hm_cpu_count();
    struct batch batch = {.dense = dense, .kernels = hm_kernels_best(), .job = job};
    for (size_t i = 0; i < count; i++) batch.total += 2 * bytes_of(dense, nth(dense, i));
    batch.tensor = hm_alloc(count, sizeof *batch.tensor);
    batch.numbers = hm_alloc(count, sizeof *batch.numbers);
    batch.order = hm_alloc(count, sizeof *batch.order);
    double began = hm_seconds();
    hm_status status = HM_OK;
    if (batch.tensor == NULL || batch.numbers == NULL || batch.order == NULL) {
        status = hm_fail_memory(err, "the list of tensors");
    } else {
        pthread_mutex_init(&batch.lock, NULL);
        status = run_batches(&batch, count, budget / 2, threads < MOST_THREADS ? threads : MOST_THREADS, err);
        pthread_mutex_destroy(&batch.lock);
    }
    hm_release(batch.tensor);
    hm_release(batch.numbers);
    hm_release(batch.order);
    if (job != NULL) {
        job->out_total_bytes = batch.total;
        job->out_seconds += hm_seconds() - began;
    }
    return status;
}
