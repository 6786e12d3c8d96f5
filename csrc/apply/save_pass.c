/* What hm_hyper_save does with the numbers: the second read of every input. */
#include <math.h>
#include <string.h>

#include "apply/save_pass.h"
#include "base/error.h"
#include "lowrank/hyper_lora.h"

#define COLUMNS ((size_t)HM_KERNEL_COLUMNS / 2)

/* ---- results of a segment: M sums for each cut, then the bytes of each output one after another --------------------- */

struct outputs {
    unsigned char *base, *low, *directions;
    size_t direction_bytes; /* of one direction */
};

static struct outputs outputs_of(const struct hm_save_pass *pass, const hm_segment *segment)
{
    const hm_layout_tensor *tensor = &pass->layout->tensors[segment->tensor];
    size_t bytes = segment->count * hm_dtype_bytes(tensor->dtype);
    size_t fine_bytes = segment->count * hm_dtype_bytes(tensor->fine_dtype);
    struct outputs out;
    out.base = (unsigned char *)segment->result + hm_stream_cuts(segment->count) * pass->members * sizeof(double);
    out.low = out.base + (tensor->base_at != HM_NOWHERE ? bytes : 0);
    out.directions = out.low + (tensor->low_at != HM_NOWHERE ? fine_bytes : 0);
    out.direction_bytes = fine_bytes;
    return out;
}

static size_t result_bytes_per_element(const struct hm_save_pass *pass)
{
    const hm_layout *layout = pass->layout;
    size_t most = 1;
    for (size_t i = 0; i < layout->count; i++) {
        const hm_layout_tensor *tensor = &layout->tensors[i];
        size_t fine = hm_dtype_bytes(tensor->fine_dtype), all = 0;
        if (tensor->base_at != HM_NOWHERE) all += hm_dtype_bytes(tensor->dtype);
        if (tensor->low_at != HM_NOWHERE) all += fine;
        if (tensor->moves) all += pass->mixed * fine;
        if (all > most) most = all;
    }
    return most;
}

/* ---- work -------------------------------------------------------------------------------------------------------------- */

/* The first row of the sources of copied tensors. */
static size_t first_copy(const struct hm_save_pass *pass)
{
    return pass->members + 1 + pass->directions - pass->mixed;
}

/* Copied tensors keep the type they have where they come from. */
static void copy_piece(const struct hm_save_pass *pass, const hm_piece *piece, const hm_layout_tensor *tensor,
                       unsigned char *to)
{
    size_t size = hm_dtype_bytes(tensor->dtype), r = first_copy(pass);
    while (piece->raw[r] == NULL) r++;
    memcpy(to + piece->offset * size, piece->raw[r], piece->count * size);
}

/* f32 rows of a worker. */
struct save_scratch {
    float *rows;      /* M differences */
    float *mixed;     /* 1 + K: mean offset, directions */
    float *reference; /* what is subtracted from every model before anything else */
    float *base;      /* W̃ */
    float *shift;     /* stored W̃ − reference */
};

static struct save_scratch scratch_of(const struct hm_save_pass *pass, void *block)
{
    float *base = block;
    size_t m = pass->members, k = pass->directions;
    return (struct save_scratch){.rows = base,
                                 .mixed = base + m * COLUMNS,
                                 .reference = base + (m + 1 + k) * COLUMNS,
                                 .base = base + (m + 2 + k) * COLUMNS,
                                 .shift = base + (m + 3 + k) * COLUMNS};
}

static const void *numbers_at(const hm_piece *piece, size_t row, size_t at)
{
    return (const char *)piece->raw[row] + at * hm_dtype_bytes(piece->as[row]->dtype);
}

/* Rows become differences from the reference: the base file, or model 1 for a mean base, or nothing.  LoRAs are differences
 * already, and what they do not change is 0. */
static void load_differences(const struct hm_save_pass *pass, const hm_piece *piece, size_t at, size_t n,
                             struct save_scratch scratch)
{
    const hm_kernels *kernels = pass->kernels;
    size_t reference = pass->hyper->base == HM_BASE_FILE ? pass->members : 0;
    bool subtract = pass->hyper->base != HM_BASE_NONE;
    if (subtract) kernels->load[piece->as[reference]->dtype](numbers_at(piece, reference, at), scratch.reference, n);
    for (size_t m = 0; m < pass->members; m++) {
        float *row = scratch.rows + m * COLUMNS;
        if (piece->raw[m] == NULL)
            memset(row, 0, n * sizeof *row);
        else if (subtract && !pass->rows[m].source->is_lora)
            kernels->load_sub[piece->as[m]->dtype](numbers_at(piece, m, at), scratch.reference, row, n);
        else
            kernels->load[piece->as[m]->dtype](numbers_at(piece, m, at), row, n);
    }
}

/* Stores W̃ (and base_low) and leaves in scratch.shift how far the stored base lies from the reference. */
static void store_mean(const struct hm_save_pass *pass, const hm_layout_tensor *tensor, struct outputs out, size_t at,
                       size_t n, struct save_scratch scratch)
{
    const hm_kernels *kernels = pass->kernels;
    hm_dtype fine = tensor->fine_dtype;
    unsigned char *stored = out.base + at * hm_dtype_bytes(tensor->dtype), *low = out.low + at * hm_dtype_bytes(fine);
    memcpy(scratch.base, scratch.reference, n * sizeof(float));
    kernels->axpy(scratch.base, 1.0f, scratch.mixed, n);
    kernels->store[tensor->dtype](scratch.base, stored, n);
    kernels->load_sub[tensor->dtype](stored, scratch.reference, scratch.shift, n);
    if (tensor->low_at == HM_NOWHERE) return;
    float *left_over = scratch.mixed; /* the mean's offset is no longer needed */
    kernels->load[tensor->dtype](stored, left_over, n);
    for (size_t i = 0; i < n; i++) left_over[i] = scratch.base[i] - left_over[i];
    kernels->store[fine](left_over, low, n);
    kernels->load[fine](low, left_over, n);
    kernels->axpy(scratch.shift, 1.0f, left_over, n);
}

/* Makes a direction what readers will find: rounded, if it was put together here, or one that is there already. */
static void settle_direction(const struct hm_save_pass *pass, const hm_piece *piece, struct outputs out, size_t k,
                             size_t done, size_t n, struct save_scratch scratch)
{
    const hm_kernels *kernels = pass->kernels;
    hm_dtype fine = pass->layout->tensors[piece->tensor].fine_dtype;
    float *row = scratch.mixed + (1 + k) * COLUMNS;
    if (pass->mixed == 0) {
        size_t r = pass->members + 1 + k;
        kernels->load[piece->as[r]->dtype](numbers_at(piece, r, done), row, n);
        return;
    }
    unsigned char *stored = out.directions + k * out.direction_bytes + ((size_t)piece->offset + done) * hm_dtype_bytes(fine);
    kernels->store[fine](row, stored, n);
    kernels->load[fine](stored, row, n);
}

static hm_status save_work(void *user, const hm_piece *piece, const hm_segment *segment, void *block, hm_error *err)
{
    const struct hm_save_pass *pass = user;
    const hm_kernels *kernels = pass->kernels;
    const hm_layout_tensor *tensor = &pass->layout->tensors[piece->tensor];
    struct outputs out = outputs_of(pass, segment);
    struct save_scratch scratch = scratch_of(pass, block);
    (void)err;
    if (!tensor->merged) {
        copy_piece(pass, piece, tensor, out.base);
        return HM_OK;
    }
    size_t members = pass->members, directions = tensor->moves ? pass->directions : 0;
    bool mean = pass->hyper->base == HM_BASE_MEAN;
    for (size_t done = 0; done < piece->count; done += COLUMNS) {
        size_t n = piece->count - done < COLUMNS ? piece->count - done : COLUMNS, at = (size_t)piece->offset + done;
        double *sums = (double *)segment->result + at / HM_STREAM_CUT * members;
        load_differences(pass, piece, done, n, scratch);
        kernels->combine(scratch.rows, COLUMNS, members, n, pass->combination, 1 + (tensor->moves ? pass->mixed : 0),
                         scratch.mixed, COLUMNS);
        if (mean) store_mean(pass, tensor, out, at, n, scratch);
        for (size_t k = 0; k < directions; k++) settle_direction(pass, piece, out, k, done, n, scratch);
        if (directions == pass->directions)
            kernels->residual(scratch.rows, COLUMNS, members, n, mean ? scratch.shift : NULL, scratch.mixed + COLUMNS,
                              COLUMNS, directions, pass->multipliers, sums);
        else /* all models are equal here: no direction, so no multipliers either */
            kernels->residual(scratch.rows, COLUMNS, members, n, mean ? scratch.shift : NULL, NULL, 0, 0, NULL,
                              sums);
    }
    return HM_OK;
}

typedef hm_status (*visit_output)(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements, hm_error *err);

/* Visits what a segment wrote: base, base_low, directions. */
static hm_status each_output(const struct hm_save_pass *pass, const hm_segment *segment, visit_output visit, hm_error *err)
{
    const hm_layout_tensor *tensor = &pass->layout->tensors[segment->tensor];
    struct outputs out = outputs_of(pass, segment);
    if (tensor->base_at != HM_NOWHERE)
        HM_TRY(visit(pass->base_out, tensor->base_at, segment->start, out.base, segment->count, err));
    if (tensor->low_at != HM_NOWHERE)
        HM_TRY(visit(pass->extra_out, pass->extra_from + tensor->low_at, segment->start, out.low, segment->count, err));
    for (size_t k = 0; tensor->moves && k < pass->mixed; k++)
        HM_TRY(visit(pass->extra_out, pass->extra_from + pass->layout->order[tensor->direction_at + k], segment->start,
                     out.directions + k * out.direction_bytes, segment->count, err));
    return HM_OK;
}

static hm_status hash_output(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements, hm_error *err)
{
    (void)err;
    hm_output_hash(out, i, start, data, elements);
    return HM_OK;
}

/* Residuals that are not finite come from numbers that left the range of their type while being stored (or from ones so
 * large that only their squares do: then this finds nothing). */
static hm_status check_finite(hm_output *out, size_t i, uint64_t start, const void *data, size_t elements, hm_error *err)
{
    const hm_tensor_info *tensor = &out->tensors[i];
    const hm_kernels *kernels = hm_kernels_best();
    float block[256];
    for (size_t at = 0; at < elements; at += 256) {
        size_t n = elements - at < 256 ? elements - at : 256;
        kernels->load[tensor->dtype]((const char *)data + at * hm_dtype_bytes(tensor->dtype), block, n);
        size_t bad = kernels->find_nonfinite(block, n);
        if (bad < n)
            return hm_fail(err, HM_ERR_MISMATCH, out->file.target, tensor->name,
                           "its value at index %llu does not fit into %s; use a wider --dtype",
                           (unsigned long long)(start + at + bad), hm_dtype_name(tensor->dtype));
    }
    return HM_OK;
}

static hm_status save_finish(void *user, const hm_segment *segment, hm_error *err)
{
    return each_output(user, segment, hm_output_write, err);
}

static hm_status save_commit(void *user, const hm_segment *segment, hm_error *err)
{
    const struct hm_save_pass *pass = user;
    const double *sums = segment->result;
    bool finite = true;
    for (size_t i = 0; i < hm_stream_cuts(segment->count) * pass->members; i++) {
        pass->left[i % pass->members] += sums[i];
        finite = finite && isfinite(sums[i]);
    }
    if (!finite) HM_TRY(each_output(pass, segment, check_finite, err));
    return each_output(pass, segment, hash_output, err);
}

/* ---- the pass ---------------------------------------------------------------------------------------------------------- */

/* Rows: the members, the base file (or nothing), hyper-LoRAs, and every source that gives copied tensors. */
static hm_status make_rows(struct hm_save_pass *pass, hm_error *err)
{
    const hm_plan *plan = pass->hyper->plan;
    const hm_layout *layout = pass->layout;
    hm_source *copies[HM_STREAM_ROWS];
    size_t copy_count = 0, members = pass->members, first = first_copy(pass);
    for (size_t i = 0; i < layout->count; i++) {
        if (layout->tensors[i].merged) continue;
        hm_source *from = plan->tensors[layout->tensors[i].plan_index].copy_from;
        size_t c = 0;
        while (c < copy_count && copies[c] != from) c++;
        if (c < copy_count) continue;
        if (first + copy_count == HM_STREAM_ROWS)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "tensors are copied from too many files");
        copies[copy_count++] = from;
    }
    pass->row_count = first + copy_count;
    pass->rows = hm_alloc(pass->row_count, sizeof *pass->rows);
    pass->index = hm_alloc(layout->count * pass->row_count, sizeof *pass->index);
    pass->elements = hm_alloc(layout->count, sizeof *pass->elements);
    pass->left = hm_alloc(members, sizeof *pass->left);
    pass->combination = hm_alloc((1 + pass->directions) * members, sizeof *pass->combination);
    pass->multipliers = hm_alloc(members * pass->directions, sizeof *pass->multipliers);
    if (pass->rows == NULL || pass->index == NULL || pass->elements == NULL || pass->left == NULL ||
        pass->combination == NULL || pass->multipliers == NULL)
        return hm_fail_memory(err, "the writing pass");

    for (size_t r = 0; r < pass->row_count; r++) {
        hm_source *source = r < members        ? plan->sources[r]
                            : r >= first       ? copies[r - first]
                            : r > members      ? pass->hyper->loras->source
                            : plan->base != NULL ? plan->base
                                                 : plan->sources[0];
        pass->rows[r] = (hm_stream_row){.source = source, .index = pass->index + r, .stride = pass->row_count};
    }
    for (size_t i = 0; i < layout->count; i++) {
        const hm_layout_tensor *tensor = &layout->tensors[i];
        uint32_t *index = pass->index + i * pass->row_count;
        pass->elements[i] = tensor->like->elements;
        for (size_t r = 0; r < pass->row_count; r++) index[r] = HM_ABSENT;
        if (tensor->merged) {
            memcpy(index, plan->index + tensor->plan_index * members, members * sizeof *index);
            index[members] = plan->base_index[tensor->plan_index];
            for (size_t r = members + 1; tensor->moves && r < first; r++)
                index[r] = pass->hyper->loras->parts[tensor->part_at + r - members - 1].index;
        } else {
            const hm_plan_tensor *copied = &plan->tensors[tensor->plan_index];
            for (size_t r = first; r < pass->row_count; r++)
                if (pass->rows[r].source == copied->copy_from) index[r] = copied->copy_index;
        }
    }
    return HM_OK;
}

/* Over differences from the reference: the mean's weights sum to 1 (model 1 differs from itself by nothing).  A direction
 * Σ a_m (W_m − W̃) with W̃ = R + Σ ŵ_j Δ_j becomes Σ (a_m − ŵ_m Σ_j a_j) Δ_m; for an eigenvector of the centred Gram Σ a is
 * 0 up to rounding, for one found by iteration nearly so. */
static void make_combination(struct hm_save_pass *pass)
{
    const hm_hyper *hyper = pass->hyper;
    const hm_solution *solution = &hyper->solution;
    size_t members = pass->members, directions = pass->directions;
    double weights[HM_MAX_MEMBERS];
    hm_mean_weights(hyper, weights);
    for (size_t m = 0; m < members; m++) pass->combination[m] = (float)weights[m];
    for (size_t k = 0; k < directions; k++) {
        const double *a = solution->inputs + k * members;
        double sum = 0;
        for (size_t m = 0; m < members; m++) sum += a[m];
        for (size_t m = 0; m < members; m++)
            pass->combination[(1 + k) * members + m] =
                (float)(hyper->base == HM_BASE_MEAN ? a[m] - weights[m] * sum : a[m]);
    }
    for (size_t i = 0; i < members * directions; i++) pass->multipliers[i] = (float)solution->multipliers[i];
}

/* Hyper-LoRAs lie in memory as they are stored. */
static hm_status write_loras(const struct hm_save_pass *pass, hm_error *err)
{
    const hm_layout *layout = pass->layout;
    for (size_t i = 0; i < layout->count; i++)
        for (size_t k = 0; layout->tensors[i].moves && k < pass->directions; k++) {
            const hm_layout_tensor *tensor = &layout->tensors[i];
            const hm_hyper_lora_part *part = &pass->hyper->loras->parts[tensor->part_at + k];
            size_t up = layout->order[tensor->direction_at + k], down = layout->down_order[tensor->direction_at + k];
            HM_TRY(hm_output_write(pass->extra_out, pass->extra_from + up, 0, part->up, hm_hyper_lora_up_count(part), err));
            if (part->rank == 0) continue;
            HM_TRY(hm_output_write(pass->extra_out, pass->extra_from + down, 0, part->down, hm_hyper_lora_down_count(part),
                                   err));
        }
    return HM_OK;
}

hm_status hm_save_run(struct hm_save_pass *pass, hm_job *job, hm_error *err)
{
    HM_TRY(make_rows(pass, err));
    make_combination(pass);
    if (pass->hyper->loras != NULL) HM_TRY(write_loras(pass, err));
    hm_stream stream = {.row_count = pass->row_count,
                        .tensor_count = pass->layout->count,
                        .rows = pass->rows,
                        .elements = pass->elements,
                        .cut_bytes = pass->members * sizeof(double),
                        .result_element_bytes = result_bytes_per_element(pass),
                        .scratch_bytes = (pass->members + pass->directions + 4) * COLUMNS * sizeof(float),
                        .work = save_work,
                        .finish = save_finish,
                        .commit = save_commit,
                        .user = pass};
    return hm_stream_run(&stream, job, err);
}

void hm_save_release(struct hm_save_pass *pass)
{
    hm_release(pass->rows);
    hm_release(pass->index);
    hm_release(pass->elements);
    hm_release(pass->left);
    hm_release(pass->combination);
    hm_release(pass->multipliers);
}
