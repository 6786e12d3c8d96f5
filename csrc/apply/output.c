#include "apply/output.h"

#include <pthread.h>
#include <string.h>

#include "base/error.h"
#include "base/threads.h"
#include "io/document.h"

#define READ_BACK ((size_t)4 << 20)
#define READ_BACK_WORKERS 4u

/* Ours: a hyper-model, or a checkpoint whose recipe says so.  A file that is none at all is not ours; one that could not be
 * looked at, for lack of memory or because the disk failed, may be. */
static hm_status find_writer(const char *path, bool *ours, hm_error *err)
{
    hm_source *source = NULL;
    hm_error reason = {0};
    *ours = false;
    hm_status status = hm_source_open(&source, path, &reason);
    if (status == HM_OK) {
        const char *recipe = hm_source_metadata(source, "sd_merge_recipe");
        cJSON *json = NULL;
        *ours = hm_source_metadata(source, "hypermerge") != NULL;
        if (!*ours && recipe != NULL) status = hm_document_parse(&json, recipe, path, "recipe", &reason);
        const char *type = hm_document_string(json, "type");
        *ours = *ours || (type != NULL && strcmp(type, "hyper-merge") == 0);
        cJSON_Delete(json);
        hm_source_close(source);
    }
    if (status != HM_ERR_MEMORY && status != HM_ERR_IO) return HM_OK;
    if (err != NULL) *err = reason;
    return status;
}

hm_status hm_output_check_target(const char *path, hm_source *const *sources, size_t count, bool force, hm_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (sources[i] != NULL && hm_source_path(sources[i]) != NULL && hm_path_same(path, hm_source_path(sources[i])))
            return hm_fail(err, HM_ERR_ARGUMENT, path, NULL, "is one of the inputs; write to another name");
    if (force || !hm_path_exists(path)) return HM_OK;
    bool ours;
    HM_TRY(find_writer(path, &ours, err));
    if (!ours)
        return hm_fail(err, HM_ERR_ARGUMENT, path, NULL,
                       "exists and was not written by hyper-merge; choose another name or use --force");
    return HM_OK;
}

hm_status hm_output_begin(hm_output *out, const char *path, const hm_tensor_info *tensors, size_t count,
                          const hm_meta *meta, size_t meta_count, hm_error *err)
{
    *out = (hm_output){.file = {.fd = -1, .direct_fd = -1}, .count = count};
    hm_text header = {0};
    hm_status status = hm_header_write(&header, tensors, count, meta, meta_count, 0, err);
    out->header_bytes = header.length;
    hm_text_clear(&header);
    HM_TRY(status);
    out->tensors = hm_alloc(count, sizeof *out->tensors);
    if (out->tensors == NULL) return hm_fail_memory(err, "the layout of a file");
    uint64_t at = out->header_bytes;
    for (size_t i = 0; i < count; i++) {
        out->tensors[i] = tensors[i];
        out->tensors[i].offset = at;
        if (!hm_add_u64(at, tensors[i].bytes, &at))
            return hm_fail(err, HM_ERR_ARGUMENT, path, NULL, "the file would be larger than any disk");
    }
    out->end = at;
    out->hashed = out->header_bytes;
    hm_sha256_begin(&out->hash);
    return hm_outfile_begin(&out->file, path, out->end, err);
}

hm_status hm_output_write(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements, hm_error *err)
{
    size_t size = hm_dtype_bytes(out->tensors[i].dtype);
    return hm_outfile_write(&out->file, data, out->tensors[i].offset + start * size, elements * size, err);
}

void hm_output_hash(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements)
{
    size_t size = hm_dtype_bytes(out->tensors[i].dtype);
    if (out->tensors[i].offset + start * size != out->hashed) return;
    hm_sha256_add(&out->hash, data, elements * size);
    out->hashed += elements * size;
}

/* Reading back: each worker reads the next block, then waits until it is that block's turn to be hashed, so that the disk
 * and the arithmetic are busy at the same time. */
struct read_back {
    hm_output *out;
    hm_job *job;
    pthread_mutex_t lock;
    pthread_cond_t turn;
    uint64_t from, next, hashed; /* first byte; blocks given out and done */
    hm_error error;
    bool stopped;
};

static void stop_reading(struct read_back *back, const hm_error *error)
{
    pthread_mutex_lock(&back->lock);
    if (!back->stopped) back->error = *error;
    back->stopped = true;
    pthread_cond_broadcast(&back->turn);
    pthread_mutex_unlock(&back->lock);
}

static void read_back_loop(void *arg, unsigned worker)
{
    struct read_back *back = arg;
    hm_file file = {.fd = back->out->file.fd, .direct_fd = -1, .path = back->out->file.target};
    hm_error error = {0};
    void *buffer = hm_alloc_pages(READ_BACK);
    (void)worker;
    if (buffer == NULL) {
        hm_fail_memory(&error, "a buffer");
        stop_reading(back, &error);
        return;
    }
    for (;;) {
        pthread_mutex_lock(&back->lock);
        uint64_t block = back->next++, at = back->from + block * READ_BACK;
        bool stopped = back->stopped;
        pthread_mutex_unlock(&back->lock);
        if (stopped || at >= back->out->end) break;
        size_t bytes = back->out->end - at < READ_BACK ? (size_t)(back->out->end - at) : READ_BACK;
        if (hm_file_read(&file, buffer, at, bytes, &error) != HM_OK) {
            stop_reading(back, &error);
            break;
        }
        pthread_mutex_lock(&back->lock);
        while (!back->stopped && back->hashed != block) pthread_cond_wait(&back->turn, &back->lock);
        stopped = back->stopped;
        pthread_mutex_unlock(&back->lock);
        if (stopped) break;
        hm_sha256_add(&back->out->hash, buffer, bytes);
        pthread_mutex_lock(&back->lock);
        back->hashed++;
        pthread_cond_broadcast(&back->turn);
        pthread_mutex_unlock(&back->lock);
    }
    hm_release_pages(buffer);
}

static void read_back_tick(void *arg)
{
    struct read_back *back = arg;
    hm_error error = {0};
    if (back->job == NULL || back->job->progress == NULL) return;
    pthread_mutex_lock(&back->lock);
    bool stopped = back->stopped;
    pthread_mutex_unlock(&back->lock);
    if (stopped) return; /* whoever cancelled is not asked again */
    if (back->job->progress(back->job->user, back->job->out_total_bytes, back->job->out_total_bytes) == 0) return;
    hm_fail(&error, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    stop_reading(back, &error);
}

hm_status hm_output_data_hash(hm_output *out, char hex[65], hm_job *job, hm_error *err)
{
    if (out->hashed < out->end) {
        struct read_back back = {.out = out, .job = job, .from = out->hashed};
        pthread_mutex_init(&back.lock, NULL);
        pthread_cond_init(&back.turn, NULL);
        hm_status status = hm_crew_run(READ_BACK_WORKERS, read_back_loop, read_back_tick, &back, err);
        pthread_cond_destroy(&back.turn);
        pthread_mutex_destroy(&back.lock);
        HM_TRY(status);
        if (back.stopped) {
            if (err != NULL) *err = back.error;
            return back.error.status;
        }
    }
    hm_sha256_end(&out->hash, hex);
    return HM_OK;
}

hm_status hm_output_finish(hm_output *out, const hm_meta *meta, size_t meta_count, char *header_hash, hm_error *err)
{
    hm_text header = {0};
    hm_status status = hm_header_write(&header, out->tensors, out->count, meta, meta_count, out->header_bytes, err);
    if (status == HM_OK && header_hash != NULL) {
        hm_sha256 hash;
        hm_sha256_begin(&hash);
        hm_sha256_add(&hash, header.data, header.length);
        hm_sha256_end(&hash, header_hash);
    }
    if (status == HM_OK) status = hm_outfile_write(&out->file, header.data, 0, header.length, err);
    hm_text_clear(&header);
    return status == HM_OK ? hm_outfile_sync(&out->file, err) : status;
}

hm_status hm_output_check(const hm_output *out, hm_error *err)
{
    HM_TRY(hm_outfile_check(&out->file, err));
    if (!hm_outfile_target_changed(&out->file)) return HM_OK;
    bool ours;
    HM_TRY(find_writer(out->file.target, &ours, err));
    if (ours) return HM_OK; /* another run was faster */
    return hm_fail(err, HM_ERR_ARGUMENT, out->file.target, NULL,
                   "another file got this name while it was being written; choose another name");
}

hm_status hm_output_publish(hm_output *out, hm_error *err)
{
    HM_TRY(hm_output_check(out, err));
    return hm_outfile_publish(&out->file, err);
}

void hm_output_close(hm_output *out)
{
    hm_outfile_close(&out->file);
    hm_release(out->tensors);
    *out = (hm_output){.file = {.fd = -1, .direct_fd = -1}};
}
