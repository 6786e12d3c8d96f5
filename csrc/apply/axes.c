/* hm_hyper_rename: a hyper-model written anew, with axes that have other names or point the other way.
 *
 * A direction has no sign of its own: W̃ + Σ c_k D_k = W̃ + Σ (−c_k)(−D_k).  Turning one round changes the sign bit of
 * each of its numbers and nothing else, which is exact in every type; of a low-rank direction U V, only those of U. */
#include <string.h>

#include "apply/axes_document.h"
#include "apply/output.h"
#include "apply/recipe.h"
#include "base/error.h"
#include "model/product.h"
#include "solve/stream.h"

#define LORA_DOWN ".lora_down"

struct rename_pass {
    hm_source *file; /* with the factors of low-rank directions one by one */
    hm_output *out;
    bool *turned; /* [tensors]: their sign changes */
    bool hashed;  /* the file records the hash of its data area */
};

/* ---- which tensors turn ------------------------------------------------------------------------------------------ */

/* Number of the direction that a tensor is a part of; 0 for others.  Its range was checked when the file was opened. */
static size_t direction_of(const char *name)
{
    size_t prefix = strlen(HM_PREFIX_DIRECTION), k = 0;
    if (strncmp(name, HM_PREFIX_DIRECTION, prefix) != 0) return 0;
    for (const char *at = name + prefix; *at >= '0' && *at <= '9'; at++) k = k * 10 + (size_t)(*at - '0');
    return k;
}

/* The factor V of a low-rank direction U V: among our own names only factors end like that (model/product.h). */
static bool is_second_factor(const char *name)
{
    size_t length = strlen(name), ending = strlen(LORA_DOWN);
    return length > ending && strcmp(name + length - ending, LORA_DOWN) == 0;
}

static hm_status mark_turned(struct rename_pass *pass, const hm_rename_options *options, hm_error *err)
{
    const hm_header *header = &pass->file->header;
    pass->turned = hm_alloc(header->count, sizeof *pass->turned);
    if (pass->turned == NULL) return hm_fail_memory(err, "the list of tensors");
    for (size_t t = 0; options->flip != NULL && t < header->count; t++) {
        const char *name = header->tensors[t].name;
        size_t k = direction_of(name);
        pass->turned[t] = k > 0 && options->flip[k - 1] && !is_second_factor(name);
    }
    return HM_OK;
}

/* ---- the pass ---------------------------------------------------------------------------------------------------- */

/* The sign is the highest bit of every floating-point type, and files are little-endian. */
static void change_signs(unsigned char *numbers, size_t count, size_t size)
{
    for (size_t i = 0; i < count; i++) numbers[i * size + size - 1] ^= 0x80u;
}

static hm_status rename_work(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch, hm_error *err)
{
    const struct rename_pass *pass = user;
    size_t size = hm_dtype_bytes(piece->as[0]->dtype);
    unsigned char *to = (unsigned char *)segment->result + piece->offset * size;
    (void)scratch;
    (void)err;
    memcpy(to, piece->raw[0], piece->count * size);
    if (pass->turned[piece->tensor]) change_signs(to, piece->count, size);
    return HM_OK;
}

static hm_status rename_finish(void *user, const hm_segment *segment, hm_error *err)
{
    const struct rename_pass *pass = user;
    return hm_output_write(pass->out, segment->tensor, segment->start, segment->result, segment->count, err);
}

static hm_status rename_commit(void *user, const hm_segment *segment, hm_error *err)
{
    const struct rename_pass *pass = user;
    (void)err;
    if (pass->hashed) hm_output_hash(pass->out, segment->tensor, segment->start, segment->result, segment->count);
    return HM_OK;
}

/* Every tensor of the file in its order. */
static hm_status run_pass(struct rename_pass *pass, hm_job *job, hm_error *err)
{
    const hm_header *header = &pass->file->header;
    size_t count = header->count, widest = 1;
    uint32_t *index = hm_alloc(count, sizeof *index);
    uint64_t *elements = hm_alloc(count, sizeof *elements);
    hm_status status = index != NULL && elements != NULL ? HM_OK : hm_fail_memory(err, "the list of tensors");
    for (size_t t = 0; status == HM_OK && t < count; t++) {
        const hm_tensor_info *tensor = &header->tensors[t];
        index[t] = (uint32_t)t;
        elements[t] = tensor->elements;
        if (hm_dtype_bytes(tensor->dtype) > widest) widest = hm_dtype_bytes(tensor->dtype);
    }
    hm_stream_row row = {.source = pass->file, .index = index, .stride = 1};
    hm_stream stream = {.row_count = 1,
                        .tensor_count = count,
                        .rows = &row,
                        .elements = elements,
                        .result_element_bytes = widest,
                        .work = rename_work,
                        .finish = rename_finish,
                        .commit = rename_commit,
                        .user = pass};
    if (status == HM_OK) status = hm_stream_run(&stream, job, err);
    hm_release(index);
    hm_release(elements);
    return status;
}

/* ---- metadata and file ------------------------------------------------------------------------------------------- */

struct metadata {
    hm_meta *entries;
    size_t count;
    hm_text document;
    char hash[65], prefixed_hash[67]; /* of the data area, as sshs_model_hash and as modelspec.hash_sha256 have it */
};

static void set_hash(struct metadata *meta, const char *hex)
{
    memcpy(meta->hash, hex, sizeof meta->hash);
    meta->prefixed_hash[0] = '0';
    meta->prefixed_hash[1] = 'x';
    memcpy(meta->prefixed_hash + 2, hex, sizeof meta->hash);
}

/* All that the file says of itself, in its order, with the new document and, where it had them, new hashes. */
static hm_status make_metadata(struct metadata *meta, struct rename_pass *pass, const hm_hyper *hyper,
                               const hm_rename_options *options, hm_error *err)
{
    const hm_header *header = &pass->file->header;
    HM_TRY(hm_axes_document(hyper, options, &meta->document, err));
    meta->entries = hm_alloc(header->meta_count, sizeof *meta->entries);
    if (meta->entries == NULL) return hm_fail_memory(err, "metadata");
    set_hash(meta, HM_HASH_PLACEHOLDER);
    for (size_t i = 0; i < header->meta_count; i++) {
        const char *key = header->meta_keys[i], *value = header->meta_values[i];
        bool plain = strcmp(key, "sshs_model_hash") == 0, prefixed = strcmp(key, "modelspec.hash_sha256") == 0;
        pass->hashed = pass->hashed || plain || prefixed;
        if (strcmp(key, "hypermerge") == 0)
            value = meta->document.data;
        else if (plain || prefixed)
            value = plain ? meta->hash : meta->prefixed_hash;
        meta->entries[meta->count++] = (hm_meta){.key = key, .value = value};
    }
    return HM_OK;
}

/* The file in place of which the new one goes must be the one that is open, not what somebody put there since. */
static hm_status check_own(const hm_source *file, hm_error *err)
{
    hm_file now;
    hm_file_stamp stamp;
    if (!hm_path_exists(file->path)) return HM_OK; /* removed: nothing can be lost */
    HM_TRY(hm_file_open(&now, file->path, err));
    hm_status status = hm_file_stamp_get(&now, &stamp, err);
    hm_file_close(&now);
    if (status == HM_OK && (stamp.device != file->stamp.device || stamp.inode != file->stamp.inode))
        status = hm_fail(err, HM_ERR_IO, file->path, NULL,
                         "was replaced by another file since it was opened; open it again, or write to another name");
    return status;
}

static hm_status check_target(const hm_hyper *hyper, const char *path, bool own, bool force, hm_error *err)
{
    hm_source *others[] = {hyper->file, hyper->base_file};
    return own ? check_own(hyper->file, err) : hm_output_check_target(path, others, 2, force, err);
}

hm_status hm_hyper_rename(hm_hyper *hyper, const char *path, const hm_rename_options *options, hm_job *job,
                          hm_error *err)
{
    static const hm_rename_options defaults = {0};
    if (options == NULL) options = &defaults;
    if (hyper->file == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "this hyper-model is not a file yet; save it first");
    bool own = path == NULL || hm_path_same(path, hyper->file->path);
    if (own) path = hyper->file->path;

    hm_output out = HM_OUTPUT_CLOSED;
    struct metadata meta = {0};
    struct rename_pass pass = {.out = &out};
    char hash[65];
    hm_status status = hm_source_as_stored(&pass.file, hyper->file, err);
    if (status == HM_OK) status = make_metadata(&meta, &pass, hyper, options, err);
    if (status == HM_OK) status = mark_turned(&pass, options, err);
    if (status == HM_OK) status = check_target(hyper, path, own, options->force, err);
    if (status == HM_OK) {
        const hm_header *header = &pass.file->header;
        status = hm_output_begin(&out, path, header->tensors, header->count, meta.entries, meta.count, err);
    }
    if (status == HM_OK) status = run_pass(&pass, job, err);
    if (status == HM_OK && pass.hashed) status = hm_output_data_hash(&out, hash, job, err);
    if (status == HM_OK && pass.hashed) set_hash(&meta, hash);
    if (status == HM_OK) status = hm_output_finish(&out, meta.entries, meta.count, NULL, err);
    if (status == HM_OK) status = check_target(hyper, path, own, options->force, err); /* the pass took its time */
    if (status == HM_OK) status = hm_output_publish(&out, err);
    hm_output_close(&out);
    hm_text_clear(&meta.document);
    hm_release(meta.entries);
    hm_release(pass.turned);
    hm_source_close(pass.file);
    return status;
}
