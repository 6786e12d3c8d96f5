#include "apply/output.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/document.h"

#define READ_BACK ((size_t)4 << 20)

/* Ours: a hyper-model, or a checkpoint whose recipe says so. */
static bool written_by_us(const char *path)
{
    hm_source *source = NULL;
    if (hm_source_open(&source, path, NULL) != HM_OK) return false;
    bool ours = hm_source_metadata(source, "hypermerge") != NULL;
    const char *recipe = hm_source_metadata(source, "sd_merge_recipe");
    cJSON *json = NULL;
    if (!ours && recipe != NULL && hm_document_parse(&json, recipe, path, "recipe", NULL) == HM_OK) {
        const char *type = hm_document_string(json, "type");
        ours = type != NULL && strcmp(type, "hyper-merge") == 0;
        cJSON_Delete(json);
    }
    hm_source_close(source);
    return ours;
}

hm_status hm_output_check_target(const char *path, hm_source *const *sources, size_t count, bool force, hm_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (sources[i] != NULL && hm_source_path(sources[i]) != NULL && hm_path_same(path, hm_source_path(sources[i])))
            return hm_fail(err, HM_ERR_ARGUMENT, path, NULL, "is one of the inputs; write to another name");
    if (!force && hm_path_exists(path) && !written_by_us(path))
        return hm_fail(err, HM_ERR_ARGUMENT, path, NULL,
                       "exists and was not written by hyper-merge; choose another name or use --force");
    return HM_OK;
}

hm_status hm_output_begin(hm_output *out, const char *path, const hm_tensor_info *tensors, size_t count,
                          const hm_meta *meta, size_t meta_count, hm_error *err)
{
    *out = (hm_output){.file = {.fd = -1}, .count = count};
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

hm_status hm_output_data_hash(hm_output *out, char hex[65], hm_job *job, hm_error *err)
{
    void *buffer = hm_alloc_pages(READ_BACK);
    if (buffer == NULL) return hm_fail_memory(err, "a buffer");
    hm_status status = HM_OK;
    while (status == HM_OK && out->hashed < out->end) {
        size_t bytes = out->end - out->hashed < READ_BACK ? (size_t)(out->end - out->hashed) : READ_BACK;
        status = hm_outfile_read(&out->file, buffer, out->hashed, bytes, err);
        if (status == HM_OK) hm_sha256_add(&out->hash, buffer, bytes);
        out->hashed += bytes;
        if (status == HM_OK && job != NULL && job->progress != NULL && job->progress(job->user, out->end, out->end) != 0)
            status = hm_fail(err, HM_ERR_CANCELLED, NULL, NULL, "cancelled");
    }
    hm_release_pages(buffer);
    if (status == HM_OK) hm_sha256_end(&out->hash, hex);
    return status;
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
    return status == HM_OK ? hm_outfile_commit(&out->file, err) : status;
}

void hm_output_close(hm_output *out)
{
    hm_outfile_abandon(&out->file);
    hm_release(out->tensors);
    *out = (hm_output){.file = {.fd = -1}};
}
