/* What a source is, for people and for records: its description as JSON, and the sha256 of its file. */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "io/header_write.h"
#include "model/names.h"
#include "model/product.h"

#define BLOCK_BYTES ((size_t)4 << 20)
#define READ_SLACK ((size_t)8192) /* what hm_file_read_direct wants beyond its bytes */
#define TICK_SECONDS 0.05

static void put_text(hm_text *out, const char *key, const char *value)
{
    hm_text_format(out, ",\"%s\":", key);
    if (value != NULL)
        hm_json_string(out, value);
    else
        hm_text_put(out, "null");
}

hm_status hm_source_describe(hm_source *source, char **out_json, hm_error *err)
{
    const hm_header *header = &source->header;
    size_t of_dtype[HM_DTYPE_COUNT] = {0}, of_component[HM_COMPONENT_COUNT] = {0};
    uint64_t parameters[HM_COMPONENT_COUNT] = {0}, all_parameters = 0, bytes = 0;
    uint64_t least_rank = UINT64_MAX, largest_rank = 0;
    for (size_t i = 0; i < header->count; i++) {
        const hm_tensor_info *tensor = &header->tensors[i];
        hm_component component = hm_name_component(tensor->name);
        uint64_t elements = tensor->elements;
        hm_dtype dtype = tensor->dtype;
        if (tensor->rank > 0) {
            const hm_tensor_info *up = hm_source_up(source, (uint32_t)i);
            elements = up->elements + hm_source_down(source, (uint32_t)i)->elements;
            dtype = up->dtype;
            if (tensor->rank < least_rank) least_rank = tensor->rank;
            if (tensor->rank > largest_rank) largest_rank = tensor->rank;
        }
        of_dtype[dtype]++;
        of_component[component]++;
        parameters[component] += elements;
        all_parameters += elements;
        bytes += tensor->bytes;
    }

    hm_text out = {0};
    hm_text_put(&out, "{\"name\":");
    hm_json_string(&out, source->name);
    put_text(&out, "path", source->path);
    hm_text_format(&out, ",\"size\":%" PRIu64, source->path != NULL ? source->stamp.size : bytes);
    put_text(&out, "family", hm_family(source));
    hm_text_format(&out, ",\"tensors\":%zu,\"parameters\":%" PRIu64 ",\"dtypes\":{", header->count, all_parameters);
    const char *comma = "";
    for (int d = 0; d < HM_DTYPE_COUNT; d++) {
        if (of_dtype[d] == 0) continue;
        hm_text_format(&out, "%s\"%s\":%zu", comma, hm_dtype_name((hm_dtype)d), of_dtype[d]);
        comma = ",";
    }
    hm_text_put(&out, "},\"components\":{");
    comma = "";
    for (int c = 0; c < HM_COMPONENT_COUNT; c++) {
        if (of_component[c] == 0) continue;
        hm_text_format(&out, "%s\"%s\":{\"tensors\":%zu,\"parameters\":%" PRIu64 "}", comma,
                       hm_component_name((hm_component)c), of_component[c], parameters[c]);
        comma = ",";
    }
    hm_text_put(&out, "}");
    if (source->product_count > 0)
        hm_text_format(&out, ",\"low_rank\":{\"tensors\":%zu,\"least_rank\":%" PRIu64 ",\"largest_rank\":%" PRIu64 "}",
                       source->product_count, least_rank, largest_rank);
    put_text(&out, "header_hash", source->path != NULL ? source->header_hash : NULL);
    if (source->sha256[0] != 0) put_text(&out, "sha256", source->sha256);
    hm_text_put(&out, ",\"metadata\":{");
    for (size_t i = 0; i < header->meta_count; i++) {
        if (i > 0) hm_text_put(&out, ",");
        hm_json_string(&out, header->meta_keys[i]);
        hm_text_put(&out, ":");
        hm_json_string(&out, header->meta_values[i]);
    }
    hm_text_put(&out, "}}");
    if (out.failed) {
        hm_text_clear(&out);
        return hm_fail_memory(err, "a description");
    }
    *out_json = out.data;
    return HM_OK;
}

hm_status hm_source_set_sha256(hm_source *source, const char *hex, hm_error *err)
{
    char digits[65] = {0};
    size_t length = hex != NULL ? strlen(hex) : 0;
    bool good = length == 64;
    for (size_t i = 0; good && i < length; i++) {
        digits[i] = hex[i] >= 'A' && hex[i] <= 'F' ? (char)(hex[i] - 'A' + 'a') : hex[i];
        good = (digits[i] >= '0' && digits[i] <= '9') || (digits[i] >= 'a' && digits[i] <= 'f');
    }
    if (!good)
        return hm_fail(err, HM_ERR_ARGUMENT, source->label, NULL,
                       "a sha256 has 64 hexadecimal digits; this was given: %.80s", hex != NULL ? hex : "nothing");
    memcpy(source->sha256, digits, sizeof digits);
    return HM_OK;
}

/* Reads the whole file in blocks; counts in *job what was read past the page cache. */
static hm_status hash_file(const hm_source *source, char *buffer, hm_job *job, char hex[65], hm_error *err)
{
    hm_sha256 hash;
    hm_sha256_begin(&hash);
    uint64_t size = source->stamp.size, done = 0;
    double last_tick = hm_seconds();
    while (done < size) {
        size_t bytes = size - done < BLOCK_BYTES ? (size_t)(size - done) : BLOCK_BYTES;
        const void *data = buffer;
        bool direct = false;
        if (hm_file_is_cached(&source->file, done, bytes))
            HM_TRY(hm_file_read(&source->file, buffer, done, bytes, err));
        else
            HM_TRY(hm_file_read_direct(&source->file, buffer, done, bytes, &data, &direct, err));
        hm_sha256_add(&hash, data, bytes);
        *(direct ? &job->out_direct_bytes : &job->out_cached_bytes) += bytes;
        done += bytes;
        double now = hm_seconds();
        if (job->progress != NULL && (done == size || now - last_tick >= TICK_SECONDS)) {
            last_tick = now;
            if (job->progress(job->user, done, size) != 0)
                return hm_fail(err, HM_ERR_CANCELLED, source->label, NULL, "cancelled");
        }
    }
    hm_sha256_end(&hash, hex);
    return hm_source_check_unchanged(source, err);
}

hm_status hm_source_sha256(hm_source *source, char *out, hm_job *job, hm_error *err)
{
    if (source->path == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, source->label, NULL, "tensors in memory have no file to hash");
    hm_job quiet = {0};
    if (job == NULL) job = &quiet;
    job->out_direct_bytes = job->out_cached_bytes = 0;
    char *buffer = hm_alloc_pages(BLOCK_BYTES + READ_SLACK), hex[65];
    if (buffer == NULL) return hm_fail_memory(err, "a read buffer");
    double start = hm_seconds();
    hm_status status = hash_file(source, buffer, job, hex, err);
    job->out_seconds = hm_seconds() - start;
    hm_release_pages(buffer);
    if (status != HM_OK) return status;
    memcpy(source->sha256, hex, sizeof hex);
    memcpy(out, hex, sizeof hex);
    return HM_OK;
}
