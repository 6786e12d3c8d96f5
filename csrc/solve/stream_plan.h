/* How a pass is cut into items: which segments of which tensors go together, and with which reads they are fetched. */
#ifndef HM_SOLVE_STREAM_PLAN_H
#define HM_SOLVE_STREAM_PLAN_H

#include "solve/stream.h"

#define HM_ITEM_SEGMENTS 48
#define HM_ITEM_READS 512

typedef struct hm_item_limits {
    size_t elements;     /* of one item, roughly */
    size_t row_bytes;    /* buffer per row that has one */
    size_t buffers;
    uint16_t buffer_of_row[HM_STREAM_ROWS]; /* 0 for those that need none: nothing is stored in them */
    size_t result_bytes; /* per item */
} hm_item_limits;

typedef struct hm_item_segment {
    size_t tensor;
    uint64_t start;
    size_t count;
    size_t result_offset;
    uint16_t read_of_row[HM_STREAM_ROWS]; /* index in reads, or UINT16_MAX: absent, in memory, or computed */
} hm_item_segment;

/* One contiguous range of one file; neighbouring small tensors share it. */
typedef struct hm_item_read {
    size_t row;
    uint64_t offset;      /* in the file */
    size_t bytes;
    size_t buffer_offset; /* in the row's buffer, 4096-aligned */
    const void *data;     /* once read */
} hm_item_read;

typedef struct hm_item {
    hm_item_segment segments[HM_ITEM_SEGMENTS];
    size_t segment_count;
    hm_item_read reads[HM_ITEM_READS];
    size_t read_count;
    size_t result_bytes;
    uint64_t bytes; /* of all rows: for progress */
} hm_item;

typedef struct hm_item_planner {
    const hm_stream *stream;
    hm_item_limits limits;
    size_t tensor;  /* next */
    uint64_t start; /* next element of it */
} hm_item_planner;

/* Splits `slot_bytes` over the buffers and the results, in proportion to what an element takes in each. */
void hm_item_limits_set(hm_item_limits *limits, const hm_stream *stream, uint64_t slot_bytes);
void hm_item_planner_begin(hm_item_planner *planner, const hm_stream *stream, const hm_item_limits *limits);
/* Fills the next item; false at the end. */
bool hm_item_next(hm_item_planner *planner, hm_item *item);

/* The tensor of row r, or NULL where it is absent. */
const hm_tensor_info *hm_stream_tensor(const hm_stream *stream, size_t row, size_t tensor);
/* First byte of segment s in row r after the item's reads; NULL for borrowed tensors that must be gathered, and for
 * products. */
const void *hm_item_data(const hm_stream *stream, const hm_item *item, size_t segment, size_t row);

#endif
