/* Sources: safetensors files, and tensors that the caller owns, behind one face. */
#include "model/source.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "model/product.h"

#define LENGTH_BYTES 8u

/* ---- making one -------------------------------------------------------------------------------------------------- */

static hm_source *source_new(void)
{
    hm_source *source = hm_alloc(1, sizeof *source);
    if (source == NULL) return NULL;
    atomic_init(&source->references, 1);
    source->file = (hm_file){.fd = -1, .direct_fd = -1};
    return source;
}

hm_source *hm_source_keep(hm_source *source)
{
    if (source != NULL) atomic_fetch_add_explicit(&source->references, 1, memory_order_relaxed);
    return source;
}

void hm_source_close(hm_source *source)
{
    if (source == NULL || atomic_fetch_sub_explicit(&source->references, 1, memory_order_acq_rel) > 1) return;
    hm_release(source->by_name);
    if (source->view_of != NULL) {
        if (source->is_lora) {
            hm_release(source->header.tensors);
            hm_release(source->products);
            hm_release(source->pairs);
            hm_release(source->product_names);
        }
        hm_source_close(source->view_of);
        hm_release(source);
        return;
    }
    hm_file_close(&source->file);
    hm_header_clear(&source->header);
    hm_release(source->products);
    hm_release(source->pairs);
    hm_release(source->stored);
    hm_release(source->product_names);
    hm_release(source->name);
    hm_release(source->label);
    hm_release(source->path);
    hm_release(source);
}

typedef struct named {
    const char *name;
    uint32_t index;
} named;

static int by_name_order(const void *a, const void *b)
{
    return strcmp(((const named *)a)->name, ((const named *)b)->name);
}

hm_status hm_source_index_names(hm_source *source, hm_error *err)
{
    size_t count = source->header.count;
    hm_release(source->by_name);
    source->by_name = NULL;
    if (count >= HM_ABSENT) return hm_fail(err, HM_ERR_ARGUMENT, source->label, NULL, "has too many tensors");
    named *sorted = hm_alloc(count, sizeof *sorted);
    source->by_name = hm_alloc(count, sizeof *source->by_name);
    hm_status status = sorted != NULL && source->by_name != NULL ? HM_OK : hm_fail_memory(err, "tensor names");
    for (size_t i = 0; status == HM_OK && i < count; i++)
        sorted[i] = (named){.name = source->header.tensors[i].name, .index = (uint32_t)i};
    if (status == HM_OK && count > 0) qsort(sorted, count, sizeof *sorted, by_name_order);
    for (size_t i = 0; status == HM_OK && i < count; i++) {
        source->by_name[i] = sorted[i].index;
        if (i > 0 && strcmp(sorted[i - 1].name, sorted[i].name) == 0)
            status = hm_fail(err, HM_ERR_ARGUMENT, source->label, sorted[i].name, "this name was given twice");
    }
    hm_release(sorted);
    return status;
}

static const char *last_component(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* File name without folder and without ".safetensors" or ".hyper.safetensors". */
static char *name_of_path(const char *path)
{
    static const char *const extensions[] = {".safetensors", ".hyper"};
    const char *base = last_component(path);
    size_t length = strlen(base);
    for (size_t i = 0; i < sizeof extensions / sizeof extensions[0]; i++) {
        size_t n = strlen(extensions[i]);
        if (length <= n || memcmp(base + length - n, extensions[i], n) != 0) break;
        length -= n;
    }
    return hm_copy_bytes(base, length);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* Folders end here, before anything is opened: "PATH/." exists for a folder only. */
static hm_status refuse_folder(const char *path, hm_error *err)
{
    hm_text inside = {0};
    hm_text_put(&inside, path);
    hm_text_put(&inside, "/.");
    bool failed = inside.failed, is_folder = !failed && hm_path_exists(inside.data);
    hm_text_clear(&inside);
    if (failed) return hm_fail_memory(err, "a path");
    if (!is_folder) return HM_OK;
    return hm_fail(err, HM_ERR_FORMAT, path, NULL,
                   "is a folder, not a checkpoint; a diffusers model must be made one file first: run "
                   "convert_diffusers_to_original_stable_diffusion.py (SDXL: convert_diffusers_to_original_sdxl.py) "
                   "from the diffusers repository with --use_safetensors");
}

/* The formats that torch.save writes: a zip archive, before that a bare pickle (protocols 2 to 5).  First bytes that
 * could be a header length decide nothing: 80 02 00 … is also 640, of a good file or of one that was cut short. */
static bool looks_pickled(const unsigned char prefix[LENGTH_BYTES])
{
    uint64_t length = 0;
    for (unsigned i = LENGTH_BYTES; i-- > 0;) length = length << 8 | prefix[i];
    if (length <= HM_HEADER_CAP) return false;
    return memcmp(prefix, "PK\3\4", 4) == 0 || (prefix[0] == 0x80 && prefix[1] >= 2 && prefix[1] <= 5);
}

/* Reads and checks the header, and hashes it. */
static hm_status read_header(hm_source *source, hm_error *err)
{
    unsigned char prefix[LENGTH_BYTES] = {0};
    uint64_t size = source->stamp.size, text_bytes = 0;
    size_t prefix_bytes = size < LENGTH_BYTES ? (size_t)size : LENGTH_BYTES;
    HM_TRY(hm_file_read(&source->file, prefix, 0, prefix_bytes, err));
    hm_error length_error = {0};
    hm_status status = hm_header_length(&text_bytes, prefix, prefix_bytes, size, source->label, &length_error);
    if (status != HM_OK) {
        if (looks_pickled(prefix))
            return hm_fail(err, HM_ERR_FORMAT, source->label, NULL,
                           "is a pickled checkpoint (.ckpt, .pt), which can run any program when it is opened; "
                           "convert it to .safetensors first: in ComfyUI load it and use Save Checkpoint, in "
                           "Automatic1111 use Checkpoint Merger with 'No interpolation' and the safetensors format");
        if (err != NULL) *err = length_error;
        return status;
    }
    char *text = hm_alloc((size_t)text_bytes, 1); /* ≤ HM_HEADER_CAP */
    if (text == NULL) return hm_fail_memory(err, "header");
    status = hm_file_read(&source->file, text, LENGTH_BYTES, (size_t)text_bytes, err);
    if (status == HM_OK) status = hm_header_scan(&source->header, text, text_bytes, size, source->label, err);
    if (status == HM_OK) {
        hm_sha256 hash;
        hm_sha256_begin(&hash);
        hm_sha256_add(&hash, prefix, LENGTH_BYTES);
        hm_sha256_add(&hash, text, (size_t)text_bytes);
        hm_sha256_end(&hash, source->header_hash);
    }
    hm_release(text);
    return status;
}

static hm_status open_file(hm_source *source, const char *path, hm_error *err)
{
    source->label = hm_copy_text(path);
    source->name = name_of_path(path);
    if (source->label == NULL || source->name == NULL) return hm_fail_memory(err, "a path");
    HM_TRY(hm_file_open(&source->file, path, err));
    source->path = hm_copy_text(source->file.path);
    if (source->path == NULL) return hm_fail_memory(err, "a path");
    HM_TRY(hm_file_stamp_get(&source->file, &source->stamp, err));
    HM_TRY(read_header(source, err));
    HM_TRY(hm_source_index_names(source, err));
    return hm_products_fold(source, err);
}

hm_status hm_source_open(hm_source **out, const char *path, hm_error *err)
{
    if (path == NULL || path[0] == 0) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "an empty file name was given");
    HM_TRY(refuse_folder(path, err));
    hm_source *source = source_new();
    if (source == NULL) return hm_fail_memory(err, "a source");
    hm_status status = open_file(source, path, err);
    if (status != HM_OK) {
        hm_source_close(source);
        return status;
    }
    *out = source;
    return HM_OK;
}

/* ---- borrowed tensors -------------------------------------------------------------------------------------------- */

/* Copies one tensor's description; the name goes to names[*at]. */
static hm_status borrow_tensor(hm_source *source, size_t i, const hm_tensor_info *from, size_t *at, hm_error *err)
{
    hm_tensor_info *to = &source->header.tensors[i];
    if ((unsigned)from->dtype >= HM_DTYPE_COUNT)
        return hm_fail(err, HM_ERR_ARGUMENT, source->label, from->name, "unknown element type");
    if (from->ndim > HM_MAX_DIMS)
        return hm_fail(err, HM_ERR_ARGUMENT, source->label, from->name, "has %u dimensions; at most %d are supported",
                       from->ndim, HM_MAX_DIMS);
    *to = (hm_tensor_info){.dtype = from->dtype, .ndim = from->ndim, .elements = 1, .data = from->data};
    bool fits = true, empty = false;
    for (unsigned d = 0; d < from->ndim; d++) {
        to->shape[d] = from->shape[d];
        to->strides[d] = from->strides[d];
        empty = empty || from->shape[d] == 0;
        fits = fits && (from->shape[d] == 0 || hm_mul_u64(to->elements, from->shape[d], &to->elements));
    }
    if (!fits || !hm_mul_u64(to->elements, hm_dtype_bytes(to->dtype), &to->bytes))
        return hm_fail(err, HM_ERR_ARGUMENT, source->label, from->name, "its shape is too large");
    if (empty) to->elements = to->bytes = 0;
    if (to->elements > 0 && to->data == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, source->label, from->name, "has no data address");
    size_t length = strlen(from->name) + 1;
    memcpy(source->header.names + *at, from->name, length);
    to->name = source->header.names + *at;
    *at += length;
    return HM_OK;
}

static hm_status borrow_all(hm_source *source, const char *name, const hm_tensor_info *tensors, size_t count,
                            hm_error *err)
{
    size_t name_bytes = 0, at = 0;
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].name == NULL) return hm_fail(err, HM_ERR_ARGUMENT, name, NULL, "tensor %zu has no name", i);
        name_bytes += strlen(tensors[i].name) + 1;
    }
    source->label = hm_copy_text(name);
    source->name = hm_copy_text(name);
    source->header.names = hm_alloc(name_bytes, 1);
    source->header.tensors = hm_alloc(count, sizeof *source->header.tensors);
    if (source->label == NULL || source->name == NULL || source->header.names == NULL || source->header.tensors == NULL)
        return hm_fail_memory(err, "tensor names");
    for (size_t i = 0; i < count; i++) HM_TRY(borrow_tensor(source, i, &tensors[i], &at, err));
    source->header.count = count;
    HM_TRY(hm_source_index_names(source, err));
    return hm_products_fold(source, err);
}

hm_status hm_source_borrow(hm_source **out, const char *name, const hm_tensor_info *tensors, size_t count,
                           hm_error *err)
{
    if (name == NULL) name = "tensors";
    hm_source *source = source_new();
    if (source == NULL) return hm_fail_memory(err, "a source");
    hm_status status = borrow_all(source, name, tensors, count, err);
    if (status != HM_OK) {
        hm_source_close(source);
        return status;
    }
    *out = source;
    return HM_OK;
}

bool hm_tensor_is_contiguous(const hm_tensor_info *tensor)
{
    if (tensor->data == NULL || tensor->elements == 0) return true;
    uint64_t expected = 1;
    for (unsigned d = tensor->ndim; d-- > 0;) {
        if (tensor->shape[d] != 1 && tensor->strides[d] != (int64_t)expected) return false;
        expected *= tensor->shape[d];
    }
    return true;
}

/* Copies `count` elements that lie `stride` elements apart.  memcpy of a constant size is one load and one store. */
static void gather_run(char *to, const char *from, size_t count, int64_t stride, size_t size)
{
    if (stride == 1) {
        memcpy(to, from, count * size);
        return;
    }
    int64_t step = stride * (int64_t)size;
    switch (size) {
    case 1:
        for (size_t i = 0; i < count; i++, from += step) to[i] = *from;
        break;
    case 2:
        for (size_t i = 0; i < count; i++, from += step) memcpy(to + 2 * i, from, 2);
        break;
    case 4:
        for (size_t i = 0; i < count; i++, from += step) memcpy(to + 4 * i, from, 4);
        break;
    default:
        for (size_t i = 0; i < count; i++, from += step) memcpy(to + size * i, from, size);
        break;
    }
}

void hm_source_gather(const hm_tensor_info *tensor, uint64_t start, size_t count, void *out)
{
    size_t size = hm_dtype_bytes(tensor->dtype);
    const char *base = tensor->data;
    char *to = out;
    if (count == 0) return;
    if (hm_tensor_is_contiguous(tensor)) { /* also numbers without dimensions */
        memcpy(to, base + start * size, count * size);
        return;
    }
    /* Row by row of the last dimension; `at` is the place of the next element. */
    unsigned last = tensor->ndim - 1;
    uint64_t at[HM_MAX_DIMS] = {0}, rest = start;
    for (unsigned d = tensor->ndim; d-- > 0;) {
        at[d] = rest % tensor->shape[d];
        rest /= tensor->shape[d];
    }
    while (count > 0) {
        int64_t offset = 0;
        for (unsigned d = 0; d <= last; d++) offset += (int64_t)at[d] * tensor->strides[d];
        uint64_t left = tensor->shape[last] - at[last];
        size_t run = left < count ? (size_t)left : count;
        gather_run(to, base + offset * (int64_t)size, run, tensor->strides[last], size);
        to += run * size;
        count -= run;
        at[last] = 0;
        for (unsigned d = last; d-- > 0;) {
            if (++at[d] < tensor->shape[d]) break;
            at[d] = 0;
        }
    }
}

/* ---- questions --------------------------------------------------------------------------------------------------- */

const char *hm_source_name(const hm_source *source)
{
    return source->name;
}

const char *hm_source_path(const hm_source *source)
{
    return source->path;
}

const char *hm_source_label(const hm_source *source)
{
    return source->label;
}

const char *hm_source_short_label(const hm_source *source)
{
    return source->path != NULL ? last_component(source->label) : source->label;
}

size_t hm_source_count(const hm_source *source)
{
    return source->header.count;
}

const hm_tensor_info *hm_source_tensor(const hm_source *source, size_t i)
{
    return i < source->header.count ? &source->header.tensors[i] : NULL;
}

/* Place in by_name of the first tensor whose name is not below `name`. */
static size_t lower_bound(const hm_source *source, const char *name)
{
    size_t low = 0, high = source->header.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(source->header.tensors[source->by_name[middle]].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t hm_source_index(const hm_source *source, const char *name)
{
    size_t i = lower_bound(source, name);
    if (i == source->header.count) return HM_ABSENT;
    uint32_t index = source->by_name[i];
    return strcmp(source->header.tensors[index].name, name) == 0 ? index : HM_ABSENT;
}

uint32_t hm_source_prefix_index(const hm_source *source, const char *prefix)
{
    size_t i = lower_bound(source, prefix); /* names that begin with a prefix follow it directly in this order */
    if (i == source->header.count) return HM_ABSENT;
    uint32_t index = source->by_name[i];
    return strncmp(source->header.tensors[index].name, prefix, strlen(prefix)) == 0 ? index : HM_ABSENT;
}

const hm_tensor_info *hm_source_find(const hm_source *source, const char *name)
{
    uint32_t index = hm_source_index(source, name);
    return index != HM_ABSENT ? &source->header.tensors[index] : NULL;
}

const char *hm_source_metadata(const hm_source *source, const char *key)
{
    for (size_t i = 0; i < source->header.meta_count; i++)
        if (strcmp(source->header.meta_keys[i], key) == 0) return source->header.meta_values[i];
    return NULL;
}

hm_status hm_source_read(const hm_source *source, const hm_tensor_info *tensor, uint64_t start, size_t count, void *out,
                         hm_error *err)
{
    size_t size = hm_dtype_bytes(tensor->dtype);
    if (source->path != NULL) return hm_file_read(&source->file, out, tensor->offset + start * size, count * size, err);
    hm_source_gather(tensor, start, count, out);
    return HM_OK;
}

hm_status hm_source_check_unchanged(const hm_source *source, hm_error *err)
{
    if (source->path == NULL) return HM_OK;
    hm_file_stamp now;
    HM_TRY(hm_file_stamp_get(&source->file, &now, err));
    if (now.size != source->stamp.size || now.mtime_s != source->stamp.mtime_s ||
        now.mtime_ns != source->stamp.mtime_ns)
        return hm_fail(err, HM_ERR_IO, source->label, NULL, "changed while being read; run again");
    return HM_OK;
}
