#include "solve/stream.h"

#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "kernels/kernels.h"
#include "solve/stream_products.h"

#define DEFAULT_BUDGET ((uint64_t)256 << 20)
#define SMALLEST_BUDGET ((uint64_t)16 << 20)
#define LARGEST_BUDGET ((uint64_t)4 << 30) /* more would not make it faster */
#define MOST_THREADS 16u
/* Workers beyond the computing ones: they keep reads under way.  Two more fill the queue of an NVMe disk; two more again
 * where what was computed must also be written. */
#define READERS 2u
#define WRITERS 2u
#define SLOTS_AHEAD 2u
/* A warm step of all rows together, in elements: as f16 it fills half of a 1 MiB second-level cache. */
#define WARM_ELEMENTS ((size_t)256 * HM_KERNEL_COLUMNS)
#define SMALL_SEGMENT ((uint64_t)32 << 10) /* bytes per row */
#define LEAST_WARM_STEP ((size_t)4 * HM_KERNEL_COLUMNS)

/* One item in flight: its plan, its buffers, its results. */
struct slot {
    hm_item item;
    unsigned char *buffers; /* buffer_of */
    unsigned char *results;
    hm_factors **factors; /* where there are products: hm_item_take_factors */
    bool done;
};

struct pass {
    const hm_stream *stream;
    hm_item_planner planner;
    size_t slot_count;
    hm_item_limits limits;
    size_t step; /* elements of a warm read, and of a gather */
    struct slot *slots;
    hm_stream_products products;
    unsigned char *scratch; /* per worker */
    size_t scratch_stride;
    hm_job *job;
    uint64_t total_bytes;
    bool keep; /* what is read from files, in the page cache */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a slot was committed, a seat returned, or the pass stopped */
    uint64_t taken, committed; /* items */
    bool committing, stopped;
    bool seat_taken[MOST_THREADS]; /* who computes has one */
    unsigned seats;
    uint64_t done_bytes, direct_bytes, cached_bytes;
    hm_error error; /* the first one */
};

static void stop_with(struct pass *pass, const hm_error *error)
{
    pthread_mutex_lock(&pass->lock);
    if (!pass->stopped) {
        pass->stopped = true;
        pass->error = *error;
    }
    pthread_cond_broadcast(&pass->changed);
    pthread_mutex_unlock(&pass->lock);
}

/* Waits for a free slot and fills it with the next item.  NULL: nothing left, or stopped. */
static struct slot *take_item(struct pass *pass)
{
    struct slot *slot = NULL;
    pthread_mutex_lock(&pass->lock);
    while (!pass->stopped && pass->taken - pass->committed == pass->slot_count)
        pthread_cond_wait(&pass->changed, &pass->lock);
    if (!pass->stopped) {
        slot = &pass->slots[pass->taken % pass->slot_count];
        slot->done = false;
        if (hm_item_next(&pass->planner, &slot->item))
            pass->taken++;
        else
            slot = NULL;
    }
    pthread_mutex_unlock(&pass->lock);
    return slot;
}

/* False: stopped. */
static bool take_seat(struct pass *pass, unsigned *seat)
{
    unsigned empty = 0;
    pthread_mutex_lock(&pass->lock);
    while (!pass->stopped) {
        for (empty = 0; empty < pass->seats && pass->seat_taken[empty];) empty++;
        if (empty < pass->seats) break;
        pthread_cond_wait(&pass->changed, &pass->lock);
    }
    bool got = !pass->stopped;
    if (got) pass->seat_taken[empty] = true;
    pthread_mutex_unlock(&pass->lock);
    *seat = empty;
    return got;
}

static void return_seat(struct pass *pass, unsigned seat)
{
    pthread_mutex_lock(&pass->lock);
    pass->seat_taken[seat] = false;
    pthread_cond_broadcast(&pass->changed);
    pthread_mutex_unlock(&pass->lock);
}

static void count_bytes(struct pass *pass, uint64_t handled, uint64_t direct, uint64_t cached)
{
    pthread_mutex_lock(&pass->lock);
    pass->done_bytes += handled;
    pass->direct_bytes += direct;
    pass->cached_bytes += cached;
    pthread_mutex_unlock(&pass->lock);
}

static bool is_stopped(struct pass *pass)
{
    pthread_mutex_lock(&pass->lock);
    bool stopped = pass->stopped;
    pthread_mutex_unlock(&pass->lock);
    return stopped;
}

/* ---- one item -------------------------------------------------------------------------------------------------- */

static hm_segment segment_of(const struct slot *slot, size_t s)
{
    const hm_item_segment *planned = &slot->item.segments[s];
    return (hm_segment){.tensor = planned->tensor, .start = planned->start, .count = planned->count,
                        .result = slot->results + planned->result_offset};
}

static unsigned char *buffer_of(const struct pass *pass, const struct slot *slot, size_t row)
{
    return slot->buffers + pass->limits.buffer_of_row[row] * pass->limits.row_bytes;
}

/* Many small tensors are fetched faster by the reads that they share than one by one. */
static bool has_small_segments(const struct pass *pass, const hm_item *item)
{
    return item->segment_count > 1 && item->bytes / item->segment_count / pass->stream->row_count < SMALL_SEGMENT;
}

static bool item_is_cached(const struct pass *pass, const hm_item *item)
{
    for (size_t i = 0; i < item->read_count; i++) {
        const hm_item_read *read = &item->reads[i];
        const hm_file *file = &pass->stream->rows[read->row].source->file;
        if (file->direct_fd >= 0 && !hm_file_is_cached(file, read->offset, read->bytes)) return false;
    }
    return true;
}

/* Calls the work function on [start, start + count) of segment s, with the numbers at raw[]. */
static hm_status work_on(const struct pass *pass, struct slot *slot, size_t s, uint64_t start, size_t count,
                         const void *const *raw, const hm_tensor_info *const *as, void *scratch, hm_error *err)
{
    hm_segment segment = segment_of(slot, s);
    hm_piece piece = {.tensor = segment.tensor, .start = start, .count = count, .offset = start - segment.start,
                      .raw = raw, .as = as};
    return pass->stream->work(pass->stream->user, &piece, &segment, scratch, err);
}

/* Elements [start, start + count) of row r in segment s where no file has them: in place, gathered, or computed. */
static hm_status find_numbers(const void **raw, struct pass *pass, struct slot *slot, unsigned seat, size_t s, size_t r,
                              uint64_t start, size_t count, hm_error *err)
{
    const hm_stream *stream = pass->stream;
    const hm_tensor_info *tensor = hm_stream_tensor(stream, r, slot->item.segments[s].tensor);
    unsigned char *buffer = buffer_of(pass, slot, r);
    if (tensor->rank > 0) {
        const float *numbers = NULL;
        const hm_factors *factors = slot->factors[s * stream->row_count + r];
        HM_TRY(hm_expand(&numbers, pass->products.expansion, seat, r, tensor, factors, start, count, err));
        *raw = numbers;
    } else if (hm_tensor_is_contiguous(tensor)) {
        *raw = (const unsigned char *)tensor->data + start * hm_dtype_bytes(tensor->dtype);
    } else {
        hm_source_gather(tensor, start, count, buffer);
        *raw = buffer;
    }
    return HM_OK;
}

/* Everything of the item lies in the page cache or in memory: read a little, compute while it is hot. */
static hm_status run_warm(struct pass *pass, struct slot *slot, unsigned seat, void *scratch, hm_error *err)
{
    const hm_stream *stream = pass->stream;
    const void *raw[HM_STREAM_ROWS];
    const hm_tensor_info *as[HM_STREAM_ROWS];
    uint64_t cached = 0;
    for (size_t s = 0; s < slot->item.segment_count; s++) {
        const hm_item_segment *segment = &slot->item.segments[s];
        for (size_t done = 0; done < segment->count; done += pass->step) {
            uint64_t start = segment->start + done;
            size_t count = segment->count - done < pass->step ? segment->count - done : pass->step;
            for (size_t r = 0; r < stream->row_count; r++) {
                as[r] = hm_stream_tensor(stream, r, segment->tensor);
                raw[r] = NULL;
                if (as[r] == NULL) continue;
                size_t size = hm_dtype_bytes(as[r]->dtype), bytes = count * size;
                unsigned char *buffer = buffer_of(pass, slot, r);
                const hm_source *source = stream->rows[r].source;
                if (source->path == NULL || as[r]->rank > 0) {
                    HM_TRY(find_numbers(&raw[r], pass, slot, seat, s, r, start, count, err));
                } else {
                    HM_TRY(hm_file_read(&source->file, buffer, as[r]->offset + start * size, bytes, err));
                    raw[r] = buffer;
                    cached += bytes;
                }
            }
            HM_TRY(work_on(pass, slot, s, start, count, raw, as, scratch, err));
        }
    }
    count_bytes(pass, slot->item.bytes, 0, cached);
    return HM_OK;
}

/* Buffered reads by themselves wait for a few pages at a time; asked for as a whole, they fill the disk's queue. */
static void prefetch(const struct pass *pass, const hm_item *item)
{
    for (size_t i = 0; i < item->read_count; i++) {
        const hm_item_read *read = &item->reads[i];
        hm_file_prefetch(&pass->stream->rows[read->row].source->file, read->offset, read->bytes);
    }
}

/* At least one range is cold: every range in one large read, then compute. */
static hm_status read_cold(struct pass *pass, struct slot *slot, hm_error *err)
{
    uint64_t direct = 0, cached = 0;
    if (pass->keep) prefetch(pass, &slot->item);
    for (size_t i = 0; i < slot->item.read_count; i++) {
        hm_item_read *read = &slot->item.reads[i];
        const hm_file *file = &pass->stream->rows[read->row].source->file;
        unsigned char *buffer = buffer_of(pass, slot, read->row) + read->buffer_offset;
        const void *at = buffer;
        bool was_direct = false;
        if (is_stopped(pass)) return hm_fail(err, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
        if (pass->keep || hm_file_is_cached(file, read->offset, read->bytes))
            HM_TRY(hm_file_read(file, buffer, read->offset, read->bytes, err));
        else
            HM_TRY(hm_file_read_direct(file, buffer, read->offset, read->bytes, &at, &was_direct, err));
        read->data = at;
        if (was_direct)
            direct += read->bytes;
        else
            cached += read->bytes;
    }
    count_bytes(pass, slot->item.bytes, direct, cached);
    return HM_OK;
}

static hm_status run_cold(struct pass *pass, struct slot *slot, unsigned seat, void *scratch, hm_error *err)
{
    const hm_stream *stream = pass->stream;
    const void *raw[HM_STREAM_ROWS];
    const hm_tensor_info *as[HM_STREAM_ROWS];
    for (size_t s = 0; s < slot->item.segment_count; s++) {
        const hm_item_segment *segment = &slot->item.segments[s];
        for (size_t r = 0; r < stream->row_count; r++) {
            as[r] = hm_stream_tensor(stream, r, segment->tensor);
            raw[r] = as[r] != NULL ? hm_item_data(stream, &slot->item, s, r) : NULL;
        }
        /* Borrowed tensors with strides and products have no read: they are found piece by piece. */
        bool in_steps = false;
        for (size_t r = 0; r < stream->row_count; r++) in_steps = in_steps || (as[r] != NULL && raw[r] == NULL);
        size_t step = in_steps ? pass->step : segment->count;
        for (size_t done = 0; done < segment->count; done += step) {
            uint64_t start = segment->start + done;
            size_t count = segment->count - done < step ? segment->count - done : step;
            const void *here[HM_STREAM_ROWS];
            for (size_t r = 0; r < stream->row_count; r++) {
                here[r] = NULL;
                if (as[r] == NULL) continue;
                if (raw[r] != NULL)
                    here[r] = (const unsigned char *)raw[r] + done * hm_dtype_bytes(as[r]->dtype);
                else
                    HM_TRY(find_numbers(&here[r], pass, slot, seat, s, r, start, count, err));
            }
            HM_TRY(work_on(pass, slot, s, start, count, here, as, scratch, err));
        }
    }
    return HM_OK;
}

static hm_status compute_item(struct pass *pass, struct slot *slot, void *scratch, hm_error *err)
{
    bool warm = !has_small_segments(pass, &slot->item) && item_is_cached(pass, &slot->item);
    unsigned seat;
    if (!warm) HM_TRY(read_cold(pass, slot, err));
    if (!take_seat(pass, &seat)) return hm_fail(err, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    hm_status status = warm ? run_warm(pass, slot, seat, scratch, err) : run_cold(pass, slot, seat, scratch, err);
    return_seat(pass, seat);
    return status;
}

static hm_status run_item(struct pass *pass, struct slot *slot, void *scratch, hm_error *err)
{
    hm_status status = HM_OK;
    memset(slot->results, 0, slot->item.result_bytes);
    if (pass->products.any)
        status = hm_item_take_factors(&pass->products, pass->stream, &slot->item, slot->factors, err);
    if (status == HM_OK) status = compute_item(pass, slot, scratch, err);
    if (pass->products.any) hm_item_return_factors(&pass->products, pass->stream, &slot->item, slot->factors);
    for (size_t s = 0; status == HM_OK && pass->stream->finish != NULL && s < slot->item.segment_count; s++) {
        hm_segment segment = segment_of(slot, s);
        status = pass->stream->finish(pass->stream->user, &segment, err);
    }
    return status;
}

/* Marks the slot done and commits what is next in order; one thread commits at a time, outside the lock. */
static hm_status commit_items(struct pass *pass, struct slot *slot, hm_error *err)
{
    hm_status status = HM_OK;
    pthread_mutex_lock(&pass->lock);
    slot->done = true;
    while (status == HM_OK && !pass->committing && !pass->stopped && pass->committed < pass->taken &&
           pass->slots[pass->committed % pass->slot_count].done) {
        struct slot *next = &pass->slots[pass->committed % pass->slot_count];
        pass->committing = true;
        pthread_mutex_unlock(&pass->lock);
        for (size_t s = 0; status == HM_OK && pass->stream->commit != NULL && s < next->item.segment_count; s++) {
            hm_segment segment = segment_of(next, s);
            status = pass->stream->commit(pass->stream->user, &segment, err);
        }
        pthread_mutex_lock(&pass->lock);
        pass->committing = false;
        if (status == HM_OK) {
            next->done = false;
            pass->committed++;
        }
        pthread_cond_broadcast(&pass->changed);
    }
    pthread_mutex_unlock(&pass->lock);
    return status;
}

static void work_loop(void *arg, unsigned worker)
{
    struct pass *pass = arg;
    void *scratch = pass->scratch + worker * pass->scratch_stride;
    for (struct slot *slot; (slot = take_item(pass)) != NULL;) {
        hm_error error = {0};
        hm_status status = run_item(pass, slot, scratch, &error);
        if (status == HM_OK) status = commit_items(pass, slot, &error);
        if (status != HM_OK) {
            stop_with(pass, &error);
            return;
        }
    }
}

/* On the calling thread. */
static void report_progress(void *arg)
{
    struct pass *pass = arg;
    if (pass->job == NULL || pass->job->progress == NULL) return;
    pthread_mutex_lock(&pass->lock);
    uint64_t done = pass->done_bytes;
    bool stopped = pass->stopped;
    pthread_mutex_unlock(&pass->lock);
    if (stopped || pass->job->progress(pass->job->user, done, pass->total_bytes) == 0) return;
    hm_error error = {0};
    hm_fail(&error, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    stop_with(pass, &error);
}

/* Would everything that the pass reads from files fit into what is free or page cache now, and leave a quarter of that? */
static bool has_room_to_keep(const hm_stream *stream)
{
    uint64_t bytes = 0, available = hm_memory_available();
    for (size_t t = 0; t < stream->tensor_count; t++)
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            if (tensor != NULL && stream->rows[r].source->path != NULL) bytes += tensor->bytes;
        }
    return bytes < available / 4 * 3;
}

int hm_second_progress(void *user, uint64_t done, uint64_t total)
{
    const hm_second_pass *second = user;
    return second->job->progress(second->job->user, second->before + done, second->before + total);
}

/* ---- the pass -------------------------------------------------------------------------------------------------- */

static hm_status check_sources(const hm_stream *stream, hm_error *err)
{
    for (size_t r = 0; r < stream->row_count; r++) HM_TRY(hm_source_check_unchanged(stream->rows[r].source, err));
    return HM_OK;
}

static size_t round_up(size_t value, size_t to)
{
    return (value + to - 1) / to * to;
}

/* Shares the budget out: the same total for few rows and for many. */
static hm_status allocate(struct pass *pass, unsigned workers, uint64_t budget, hm_error *err)
{
    const hm_stream *stream = pass->stream;
    pass->slot_count = workers + SLOTS_AHEAD;
    pass->scratch_stride = round_up(stream->scratch_bytes, 4096);
    const hm_item_limits *limits = &pass->limits;
    hm_item_limits_set(&pass->limits, stream, budget / 8 * 3 / pass->slot_count);
    pass->step = WARM_ELEMENTS / stream->row_count / HM_KERNEL_COLUMNS * HM_KERNEL_COLUMNS;
    if (pass->step < LEAST_WARM_STEP) pass->step = LEAST_WARM_STEP;
    if (pass->step > limits->row_bytes / 8) pass->step = limits->row_bytes / 8 / HM_KERNEL_COLUMNS * HM_KERNEL_COLUMNS;
    hm_item_planner_begin(&pass->planner, stream, limits);

    pass->slots = hm_alloc(pass->slot_count, sizeof *pass->slots);
    pass->scratch = hm_alloc_pages(workers * pass->scratch_stride);
    if (pass->slots == NULL || pass->scratch == NULL) return hm_fail_memory(err, "streaming buffers");
    for (size_t i = 0; i < pass->slot_count; i++) {
        size_t factors = pass->products.any ? HM_ITEM_SEGMENTS * stream->row_count : 0;
        pass->slots[i].factors = hm_alloc(factors, sizeof *pass->slots[i].factors);
        pass->slots[i].buffers = hm_alloc_pages(limits->buffers * limits->row_bytes);
        pass->slots[i].results = hm_alloc_pages(limits->result_bytes);
        if (pass->slots[i].factors == NULL || pass->slots[i].buffers == NULL || pass->slots[i].results == NULL)
            return hm_fail_memory(err, "streaming buffers");
    }
    return HM_OK;
}

static void release(struct pass *pass)
{
    for (size_t i = 0; pass->slots != NULL && i < pass->slot_count; i++) {
        hm_release(pass->slots[i].factors);
        hm_release_pages(pass->slots[i].buffers);
        hm_release_pages(pass->slots[i].results);
    }
    hm_release(pass->slots);
    hm_release_pages(pass->scratch);
    hm_stream_products_close(&pass->products);
}

hm_status hm_stream_run(const hm_stream *stream, hm_job *job, hm_error *err)
{
    if (stream->row_count > HM_STREAM_ROWS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu inputs in one pass, at most %d are possible",
                       stream->row_count, HM_STREAM_ROWS);
    HM_TRY(check_sources(stream, err));

    uint64_t budget = job != NULL && job->memory_budget > 0 ? job->memory_budget : DEFAULT_BUDGET;
    if (budget < SMALLEST_BUDGET) budget = SMALLEST_BUDGET;
    if (budget > LARGEST_BUDGET) budget = LARGEST_BUDGET;
    unsigned computing = job != NULL && job->threads > 0 ? job->threads : hm_cpu_count();
    if (computing > MOST_THREADS) computing = MOST_THREADS;
    unsigned workers = computing + READERS + (stream->finish != NULL ? WRITERS : 0);

    struct pass pass = {.stream = stream, .job = job, .seats = computing};
    for (size_t t = 0; t < stream->tensor_count; t++)
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            pass.total_bytes += tensor != NULL ? tensor->bytes : 0;
        }
    pass.keep = stream->again && has_room_to_keep(stream);
    double began = hm_seconds();
    hm_status status = hm_stream_products_open(&pass.products, stream, computing, err);
    /* What products take comes out of the budget; the buffers keep half of it, if only to be able to work at all. */
    uint64_t rest = budget - (pass.products.bytes < budget / 2 ? pass.products.bytes : budget / 2);
    if (status == HM_OK) status = allocate(&pass, workers, rest, err);
    if (status == HM_OK) {
        pthread_mutex_init(&pass.lock, NULL);
        pthread_cond_init(&pass.changed, NULL);
        status = hm_crew_run(workers, work_loop, report_progress, &pass, err);
        if (status == HM_OK && pass.stopped) {
            status = pass.error.status;
            if (err != NULL) *err = pass.error;
        }
        if (status == HM_OK && pass.planner.tensor < stream->tensor_count)
            status = hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the memory budget is too small for these inputs");
        pthread_cond_destroy(&pass.changed);
        pthread_mutex_destroy(&pass.lock);
    }
    release(&pass);
    if (job != NULL) {
        job->out_direct_bytes += pass.direct_bytes;
        job->out_cached_bytes += pass.cached_bytes;
        job->out_seconds += hm_seconds() - began;
        job->out_total_bytes = pass.total_bytes;
    }
    /* A file that was rewritten in place may have ended in any message; say what really happened. */
    if (status != HM_ERR_CANCELLED && status != HM_ERR_MEMORY) HM_TRY(check_sources(stream, err));
    return status;
}
