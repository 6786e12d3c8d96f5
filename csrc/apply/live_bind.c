/* hm_live_bind: where the numbers for the targets come from, and whether they can be brought back from there. */
#include <string.h>

#include "apply/live.h"
#include "base/error.h"
#include "model/product.h"

#define ALIGNMENT 64u /* of tensors in memory: whole cache lines */
#define CAST_BLOCK ((size_t)8 * HM_KERNEL_COLUMNS)

/* ---- copies in memory ------------------------------------------------------------------------------------------ */

/* Gives every described tensor a place in one new block (its `data` and strides say where), and a source over it. */
static hm_status make_store(hm_source **source, unsigned char **block, const char *what, hm_tensor_info *infos,
                            size_t count, hm_error *err)
{
    uint64_t total = 0, whole;
    for (size_t i = 0; i < count; i++) {
        if (!hm_add_u64(total, infos[i].bytes, &whole) || !hm_add_u64(whole, ALIGNMENT - 1, &whole) ||
            whole > SIZE_MAX / 2)
            return hm_fail_memory(err, what);
        infos[i].offset = total;
        total = whole / ALIGNMENT * ALIGNMENT;
    }
    *block = hm_alloc_large((size_t)total);
    if (*block == NULL) return hm_fail_memory(err, what);
    for (size_t i = 0; i < count; i++) {
        infos[i].data = *block + infos[i].offset;
        int64_t stride = 1;
        for (unsigned d = infos[i].ndim; d-- > 0;) {
            infos[i].strides[d] = stride;
            stride *= (int64_t)infos[i].shape[d];
        }
    }
    return hm_source_borrow(source, what, infos, count, err);
}

/* The pass of hm_live_bind.  Rows: the stored ones (all for in_memory, else W̃ alone), then the targets. */
struct bind_pass {
    hm_live *live;
    const hm_kernels *kernels;
    size_t stored_rows; /* of the pass */
    bool compare, copy, keep_original;
    uint32_t *copy_index; /* [moved_count × row_count] in live->memory */
    bool *differs;        /* [moved_count] */
};

/* Factors stay factors: a source over them offers their product again. */
static hm_status plan_memory(struct bind_pass *pass, hm_error *err)
{
    hm_live *live = pass->live;
    size_t cells = live->moved_count * live->row_count, count = 0, offered = 0;
    hm_tensor_info *infos = hm_alloc(2 * cells, sizeof *infos);
    pass->copy_index = hm_alloc(cells, sizeof *pass->copy_index);
    hm_status status = infos != NULL && pass->copy_index != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    for (size_t i = 0; status == HM_OK && i < cells; i++) {
        const hm_source *source = live->source[i % live->row_count];
        uint32_t index = live->index[i];
        pass->copy_index[i] = HM_ABSENT;
        if (index == HM_ABSENT) continue;
        pass->copy_index[i] = (uint32_t)offered++;
        if (source->header.tensors[index].rank > 0) {
            infos[count++] = *hm_source_up(source, index);
            infos[count++] = *hm_source_down(source, index);
        } else {
            infos[count++] = source->header.tensors[index];
        }
    }
    if (status == HM_OK)
        status = make_store(&live->memory, &live->memory_block, "the hyper-model in memory", infos, count, err);
    hm_release(infos);
    return status;
}

static hm_status copy_factor(const hm_source *source, const hm_tensor_info *from, const hm_tensor_info *to,
                             hm_error *err)
{
    return hm_source_read(source, from, 0, (size_t)from->elements, (void *)to->data, err);
}

static hm_status copy_factors(const struct bind_pass *pass, hm_error *err)
{
    const hm_live *live = pass->live;
    for (size_t i = 0; i < live->moved_count * live->row_count; i++) {
        const hm_source *source = live->source[i % live->row_count];
        uint32_t from = live->index[i], to = pass->copy_index[i];
        if (from == HM_ABSENT || source->header.tensors[from].rank == 0) continue;
        HM_TRY(copy_factor(source, hm_source_up(source, from), hm_source_up(live->memory, to), err));
        HM_TRY(copy_factor(source, hm_source_down(source, from), hm_source_down(live->memory, to), err));
    }
    return HM_OK;
}

/* ---- the pass: copy what is stored, compare W̃ with the targets ------------------------------------------------ */

static bool same_numbers(const struct bind_pass *pass, const hm_piece *piece, void *scratch)
{
    const hm_tensor_info *stored = piece->as[HM_STORED_BASE], *target = piece->as[pass->stored_rows];
    size_t from = hm_dtype_bytes(stored->dtype), to = hm_dtype_bytes(target->dtype);
    const unsigned char *numbers = piece->raw[HM_STORED_BASE], *held = piece->raw[pass->stored_rows];
    for (size_t done = 0; done < piece->count; done += CAST_BLOCK) {
        size_t n = piece->count - done < CAST_BLOCK ? piece->count - done : CAST_BLOCK;
        hm_live_cast(pass->kernels, target->dtype, scratch, stored->dtype, numbers + done * from, n);
        if (memcmp(scratch, held + done * to, n * to) != 0) return false;
    }
    return true;
}

static hm_status bind_work(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch, hm_error *err)
{
    const struct bind_pass *pass = user;
    const hm_live *live = pass->live;
    (void)err;
    for (size_t r = 0; pass->copy && r < pass->stored_rows; r++) {
        if (piece->raw[r] == NULL) continue;
        uint32_t at = pass->copy_index[piece->tensor * live->row_count + r];
        size_t size = hm_dtype_bytes(piece->as[r]->dtype);
        memcpy((unsigned char *)live->memory->header.tensors[at].data + piece->start * size, piece->raw[r],
               piece->count * size);
    }
    unsigned char *differs = (unsigned char *)segment->result + piece->offset / HM_STREAM_CUT; /* one for each cut */
    if (pass->compare && *differs == 0 && !same_numbers(pass, piece, scratch)) *differs = 1;
    return HM_OK;
}

/* In the order of the tensors, so that every run names the same one. */
static hm_status bind_commit(void *user, const hm_segment *segment, hm_error *err)
{
    const struct bind_pass *pass = user;
    const unsigned char *differs = segment->result;
    if (memchr(differs, 1, hm_stream_cuts(segment->count)) == NULL) return HM_OK;
    pass->differs[segment->tensor] = true;
    if (pass->keep_original) return HM_OK;
    return hm_fail(err, HM_ERR_MISMATCH, NULL, pass->live->names[segment->tensor],
                   "does not hold the hyper-model's base, and the first blend would destroy what it holds; load the "
                   "base, or use keep_original (takes memory for a copy)");
}

static hm_status read_once(struct bind_pass *pass, const hm_tensor_info *moved, hm_job *job, hm_error *err)
{
    const hm_live *live = pass->live;
    hm_stream_row rows[HM_STREAM_ROWS];
    hm_source *held = NULL;
    size_t cells = live->moved_count * live->row_count;
    uint32_t *own = hm_alloc(live->moved_count, sizeof *own), *index = hm_alloc(cells, sizeof *index);
    hm_status status = own != NULL && index != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    for (size_t t = 0; status == HM_OK && t < live->moved_count; t++) own[t] = (uint32_t)t;
    for (size_t i = 0; status == HM_OK && i < cells; i++) {
        bool computed = live->index[i] != HM_ABSENT &&
                        live->source[i % live->row_count]->header.tensors[live->index[i]].rank > 0;
        index[i] = computed ? HM_ABSENT : live->index[i];
    }
    pass->stored_rows = pass->copy ? live->row_count : HM_STORED_BASE + 1;
    for (size_t r = 0; r < pass->stored_rows; r++)
        rows[r] = (hm_stream_row){.source = live->source[r], .index = index + r, .stride = live->row_count};
    if (status == HM_OK && pass->compare)
        status = hm_source_borrow(&held, "the targets", moved, live->moved_count, err);
    if (status == HM_OK) {
        rows[pass->stored_rows] = (hm_stream_row){.source = held, .index = own, .stride = 1};
        const hm_stream stream = {.row_count = pass->stored_rows + (pass->compare ? 1 : 0),
                                  .tensor_count = live->moved_count,
                                  .rows = rows,
                                  .elements = live->elements,
                                  .cut_bytes = 1,
                                  .scratch_bytes = CAST_BLOCK * sizeof(double),
                                  .again = !pass->copy,
                                  .work = bind_work,
                                  .commit = bind_commit,
                                  .user = pass};
        status = hm_live_stream(&stream, job, err);
    }
    if (status == HM_OK && pass->copy) status = copy_factors(pass, err);
    hm_source_close(held);
    hm_release(index);
    hm_release(own);
    return status;
}

/* ---- keeping what differs -------------------------------------------------------------------------------------- */

static hm_status keep_work(void *user, const hm_piece *piece, const hm_segment *segment, void *scratch, hm_error *err)
{
    const hm_source *kept = user;
    size_t size = hm_dtype_bytes(piece->as[0]->dtype);
    (void)segment;
    (void)scratch;
    (void)err;
    memcpy((unsigned char *)kept->header.tensors[piece->tensor].data + piece->start * size, piece->raw[0],
           piece->count * size);
    return HM_OK;
}

/* targets, copies: [count], of which `copies` gets the places in memory.  own: 0 … count − 1. */
static hm_status copy_targets(hm_live *live, const hm_tensor_info *targets, hm_tensor_info *copies, size_t count,
                              const uint32_t *own, const uint64_t *elements, hm_job *job, hm_error *err)
{
    hm_source *held = NULL;
    HM_TRY(make_store(&live->kept, &live->kept_block, "copies of the original tensors", copies, count, err));
    HM_TRY(hm_source_borrow(&held, "the targets", targets, count, err));
    const hm_stream_row row = {.source = held, .index = own, .stride = 1};
    const hm_stream stream = {.row_count = 1,
                              .tensor_count = count,
                              .rows = &row,
                              .elements = elements,
                              .work = keep_work,
                              .user = live->kept};
    hm_status status = hm_live_stream(&stream, job, err);
    hm_source_close(held);
    return status;
}

static hm_status keep_differing(hm_live *live, const bool *differs, const hm_tensor_info *moved, hm_job *job,
                                hm_error *err)
{
    size_t count = 0;
    hm_tensor_info *targets = hm_alloc(live->moved_count, sizeof *targets);
    hm_tensor_info *copies = hm_alloc(live->moved_count, sizeof *copies);
    uint32_t *own = hm_alloc(live->moved_count, sizeof *own);
    uint64_t *elements = hm_alloc(live->moved_count, sizeof *elements);
    hm_status status = targets != NULL && copies != NULL && own != NULL && elements != NULL
                           ? HM_OK
                           : hm_fail_memory(err, "the list of targets");
    for (size_t t = 0; status == HM_OK && t < live->moved_count; t++) {
        live->kept_index[t] = differs[t] ? (uint32_t)count : HM_ABSENT;
        if (!differs[t]) continue;
        targets[count] = copies[count] = moved[t];
        own[count] = (uint32_t)count;
        elements[count++] = moved[t].elements;
    }
    if (status == HM_OK && count > 0) status = copy_targets(live, targets, copies, count, own, elements, job, err);
    hm_release(targets);
    hm_release(copies);
    hm_release(own);
    hm_release(elements);
    return status;
}

/* ---- the call -------------------------------------------------------------------------------------------------- */

static hm_status fill(hm_live *live, const hm_tensor_info *moved, const hm_live_options *options, hm_job *job,
                      hm_error *err)
{
    bool has_base = live->hyper->base != HM_BASE_NONE;
    struct bind_pass pass = {.live = live,
                             .kernels = hm_kernels_best(),
                             .compare = has_base,
                             .copy = options->in_memory,
                             .keep_original = options->keep_original};
    if (!has_base && live->moved_count > 0 && !options->keep_original)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(live->hyper->file), live->names[0],
                       "the hyper-model has no base to bring the target back from; use keep_original (takes memory for "
                       "a copy)");
    pass.differs = hm_alloc(live->moved_count, sizeof *pass.differs);
    hm_status status = pass.differs != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    for (size_t t = 0; status == HM_OK && t < live->moved_count; t++) pass.differs[t] = !has_base;
    if (status == HM_OK && pass.copy) status = plan_memory(&pass, err);
    if (status == HM_OK && (pass.copy || pass.compare)) status = read_once(&pass, moved, job, err);
    if (status == HM_OK) status = keep_differing(live, pass.differs, moved, job, err);
    if (status == HM_OK && pass.copy) {
        hm_release(live->index);
        live->index = pass.copy_index;
        pass.copy_index = NULL;
        for (size_t r = 0; r < live->row_count; r++) live->source[r] = live->memory;
    }
    hm_release(pass.copy_index);
    hm_release(pass.differs);
    return status;
}

hm_status hm_live_bind(hm_live **out, hm_hyper *hyper, const hm_tensor_info *targets, const char *const *names,
                       size_t count, const hm_live_options *options, hm_job *job, hm_error *err)
{
    static const hm_live_options defaults = {0};
    if (options == NULL) options = &defaults;
    if (hyper->file == NULL)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                       "the hyper-model is not saved yet; save it, open the file and bind that");
    if (count >= HM_ABSENT) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "too many targets");
    HM_TRY(hm_hyper_need_base(hyper, err));
    hm_live *live = hm_alloc(1, sizeof *live);
    if (live == NULL) return hm_fail_memory(err, "a live binding");
    live->hyper = hm_hyper_keep(hyper);
    live->partial = options->partial;
    live->count = count;
    live->row_count = hm_stored_rows(hyper);
    for (size_t r = 0; r < live->row_count; r++) live->source[r] = hm_stored_source(hyper, r);
    live->bound = hm_alloc(count, sizeof *live->bound);
    hm_tensor_info *moved = NULL;
    hm_status status = live->bound != NULL ? HM_OK : hm_fail_memory(err, "the list of targets");
    if (status == HM_OK) status = hm_live_name(live, targets, names, err);
    if (status == HM_OK) status = hm_live_check(live, targets, count, &moved, err);
    if (status == HM_OK) status = fill(live, moved, options, job, err);
    hm_release(moved);
    if (status == HM_OK)
        *out = live;
    else
        hm_live_close(live);
    return status;
}

void hm_live_close(hm_live *live)
{
    if (live == NULL) return;
    hm_source_close(live->memory);
    hm_source_close(live->kept);
    hm_release_pages(live->memory_block);
    hm_release_pages(live->kept_block);
    hm_release(live->bound);
    hm_release(live->target);
    hm_release(live->elements);
    hm_release(live->index);
    hm_release(live->kept_index);
    hm_release(live->names);
    hm_hyper_close(live->hyper);
    hm_release(live);
}
