#include "solve/stream_plan.h"

#include "lowrank/expand.h"

#define PAGE_BYTES 4096u
/* What a direct read may need beyond its bytes: up to a page before and a page after. */
#define READ_SLACK (2 * (size_t)PAGE_BYTES)
#define LARGEST_READ ((size_t)8 << 20)
#define SMALLEST_ROW (8 * HM_STREAM_CUT + 2 * READ_SLACK) /* one cut of any dtype */
#define NO_READ UINT16_MAX

const hm_tensor_info *hm_stream_tensor(const hm_stream *stream, size_t row, size_t tensor)
{
    const hm_stream_row *from = &stream->rows[row];
    uint32_t index = from->index[tensor * from->stride];
    return index != HM_ABSENT ? &from->source->header.tensors[index] : NULL;
}

_Static_assert(HM_BAND_CUT % HM_STREAM_CUT == 0, "segments may end where bands end");

/* Are these numbers read from a file?  Else they lie in memory, or are computed. */
static bool is_read(const hm_stream *stream, size_t row, const hm_tensor_info *tensor)
{
    return stream->rows[row].source->path != NULL && tensor->rank == 0;
}

static size_t round_down(size_t value, size_t to)
{
    return value / to * to;
}

void hm_item_limits_set(hm_item_limits *limits, const hm_stream *stream, uint64_t slot_bytes)
{
    size_t widest = 1; /* bytes of the widest element; products take none, but must not make items too large */
    limits->buffers = 0;
    for (size_t r = 0; r < stream->row_count; r++) {
        bool stored = false;
        for (size_t t = 0; t < stream->tensor_count; t++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            if (tensor == NULL || tensor->elements == 0) continue;
            size_t size = tensor->rank > 0 ? 2 : hm_dtype_bytes(tensor->dtype);
            if (size > widest) widest = size;
            stored = stored || tensor->rank == 0;
        }
        limits->buffer_of_row[r] = stored ? (uint16_t)limits->buffers++ : 0;
    }
    if (limits->buffers == 0) limits->buffers = 1;
    if (widest > 4) widest = 4; /* a few 8-byte integers must not halve the buffers of a whole model */
    size_t per_element = limits->buffers * widest + stream->result_element_bytes;
    uint64_t fits = slot_bytes / per_element, most = (LARGEST_READ - READ_SLACK) / widest;
    size_t elements = round_down((size_t)(fits < most ? fits : most), HM_STREAM_CUT);
    if (elements < HM_STREAM_CUT) elements = HM_STREAM_CUT;
    limits->elements = elements;
    limits->row_bytes = round_down(elements * widest + READ_SLACK + PAGE_BYTES, PAGE_BYTES);
    if (limits->row_bytes < SMALLEST_ROW) limits->row_bytes = SMALLEST_ROW;
    size_t cut = stream->cut_bytes + HM_STREAM_CUT * stream->result_element_bytes;
    limits->result_bytes = HM_ITEM_SEGMENTS * (stream->cut_bytes + 128) + (hm_stream_cuts(elements) + 1) * cut;
}

void hm_item_planner_begin(hm_item_planner *planner, const hm_stream *stream, const hm_item_limits *limits)
{
    *planner = (hm_item_planner){.stream = stream, .limits = *limits};
}

/* The read of this row that ends exactly where the new range begins, or NULL. */
static hm_item_read *read_to_extend(hm_item *item, const size_t *last_read, size_t row, uint64_t offset)
{
    size_t i = last_read[row];
    if (i == SIZE_MAX || item->reads[i].offset + item->reads[i].bytes != offset) return NULL;
    return &item->reads[i];
}

/* Elements of a row that still fit behind what its buffer holds. */
static size_t room_in_row(const hm_item_planner *planner, hm_item *item, const size_t *last_read, const size_t *filled,
                          size_t row, const hm_tensor_info *tensor, uint64_t start)
{
    size_t size = hm_dtype_bytes(tensor->dtype), used = filled[row];
    uint64_t offset = tensor->offset + start * size;
    if (read_to_extend(item, last_read, row, offset) == NULL) {
        used += READ_SLACK;
        if (item->read_count + planner->stream->row_count > HM_ITEM_READS) return 0;
    }
    return used < planner->limits.row_bytes ? (planner->limits.row_bytes - used) / size : 0;
}

static void add_read(hm_item *item, size_t *last_read, size_t *filled, size_t row, const hm_tensor_info *tensor,
                     uint64_t start, size_t count, hm_item_segment *segment)
{
    size_t size = hm_dtype_bytes(tensor->dtype), bytes = count * size;
    uint64_t offset = tensor->offset + start * size;
    hm_item_read *read = read_to_extend(item, last_read, row, offset);
    if (read == NULL) {
        last_read[row] = item->read_count;
        read = &item->reads[item->read_count++];
        *read = (hm_item_read){.row = row, .offset = offset, .buffer_offset = filled[row] / PAGE_BYTES * PAGE_BYTES};
        if (read->buffer_offset < filled[row]) read->buffer_offset += PAGE_BYTES;
        filled[row] = read->buffer_offset + PAGE_BYTES; /* the head of the first page */
    }
    read->bytes += bytes;
    filled[row] += bytes;
    segment->read_of_row[row] = (uint16_t)(read - item->reads);
}

/* Elements whose results still fit behind the first `used` bytes. */
static size_t room_for_results(const hm_item_planner *planner, size_t used, uint64_t left)
{
    const hm_stream *stream = planner->stream;
    size_t free_bytes = planner->limits.result_bytes - used;
    size_t cut = stream->cut_bytes + HM_STREAM_CUT * stream->result_element_bytes;
    if (cut == 0) return SIZE_MAX;
    if (left <= HM_STREAM_CUT && stream->cut_bytes + (size_t)left * stream->result_element_bytes <= free_bytes)
        return (size_t)left;
    return free_bytes / cut * HM_STREAM_CUT;
}

/* Tensors in memory and products fill no buffer, yet items must stay small: they are what is shared out among the
 * threads, and progress and cancel happen between them. */
static size_t limits_without_reads(const hm_item_planner *planner)
{
    for (size_t r = 0; r < planner->stream->row_count; r++) {
        const hm_source *source = planner->stream->rows[r].source;
        if (source->path == NULL || source->product_count > 0) return planner->limits.elements;
    }
    return SIZE_MAX;
}

/* Of `room` elements from the planner's place as many as make whole cuts, or whole bands of a product where they fit. */
static size_t whole_cuts(const hm_item_planner *planner, size_t room)
{
    const hm_stream *stream = planner->stream;
    for (size_t r = 0; r < stream->row_count; r++) {
        const hm_tensor_info *tensor = hm_stream_tensor(stream, r, planner->tensor);
        uint64_t band = tensor != NULL && tensor->rank > 0 ? hm_band_elements(tensor) : 0;
        if (band == 0 || band % HM_STREAM_CUT != 0) continue;
        uint64_t end = (planner->start + room) / band * band;
        if (end > planner->start) return (size_t)(end - planner->start);
    }
    return round_down(room, HM_STREAM_CUT);
}

bool hm_item_next(hm_item_planner *planner, hm_item *item)
{
    const hm_stream *stream = planner->stream;
    size_t last_read[HM_STREAM_ROWS], filled[HM_STREAM_ROWS];
    for (size_t r = 0; r < stream->row_count; r++) last_read[r] = SIZE_MAX, filled[r] = 0;
    size_t without_reads = limits_without_reads(planner); /* elements that the item may still take */
    item->segment_count = item->read_count = 0;
    item->result_bytes = 0;
    item->bytes = 0;

    while (planner->tensor < stream->tensor_count && item->segment_count < HM_ITEM_SEGMENTS) {
        size_t t = planner->tensor;
        uint64_t left = stream->elements[t] - planner->start;
        if (left == 0) {
            planner->tensor++;
            planner->start = 0;
            continue;
        }
        size_t result_at = (item->result_bytes + 63) / 64 * 64;
        if (result_at > planner->limits.result_bytes) break;
        size_t room = room_for_results(planner, result_at, left);
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            if (tensor == NULL || !is_read(stream, r, tensor)) continue;
            size_t fits = room_in_row(planner, item, last_read, filled, r, tensor, planner->start);
            if (fits < room) room = fits;
        }
        if (room > without_reads) room = without_reads;
        size_t count = left <= room ? (size_t)left : whole_cuts(planner, room);
        if (count == 0) break;

        hm_item_segment *segment = &item->segments[item->segment_count++];
        segment->tensor = t;
        segment->start = planner->start;
        segment->count = count;
        segment->result_offset = result_at;
        for (size_t r = 0; r < stream->row_count; r++) {
            const hm_tensor_info *tensor = hm_stream_tensor(stream, r, t);
            segment->read_of_row[r] = NO_READ;
            if (tensor == NULL) continue;
            if (tensor->rank == 0)
                item->bytes += count * hm_dtype_bytes(tensor->dtype);
            else if (planner->start == 0)
                item->bytes += tensor->bytes; /* its factors are read once */
            if (is_read(stream, r, tensor))
                add_read(item, last_read, filled, r, tensor, planner->start, count, segment);
        }
        item->result_bytes =
            result_at + hm_stream_cuts(count) * stream->cut_bytes + count * stream->result_element_bytes;
        if (without_reads != SIZE_MAX) without_reads -= count < without_reads ? count : without_reads;
        planner->start += count;
    }
    return item->segment_count > 0;
}

const void *hm_item_data(const hm_stream *stream, const hm_item *item, size_t segment, size_t row)
{
    const hm_item_segment *part = &item->segments[segment];
    const hm_tensor_info *tensor = hm_stream_tensor(stream, row, part->tensor);
    size_t size = hm_dtype_bytes(tensor->dtype);
    if (tensor->rank > 0) return NULL;
    if (part->read_of_row[row] == NO_READ) {
        const unsigned char *data = tensor->data;
        return hm_tensor_is_contiguous(tensor) ? data + part->start * size : NULL;
    }
    const hm_item_read *read = &item->reads[part->read_of_row[row]];
    return (const unsigned char *)read->data + (tensor->offset + part->start * size - read->offset);
}
