/* What a LoRA file holds: which layers, under which names, at which ranks. */
#ifndef HM_LOWRANK_LORA_LIST_H
#define HM_LOWRANK_LORA_LIST_H

#include "lowrank/difference.h"
#include "lowrank/lora_names.h"

typedef enum hm_lora_kind {
    HM_LORA_FACTORS = 0, /* .lora_up.weight, .lora_down.weight, .alpha */
    HM_LORA_WHOLE,       /* .diff: norms */
    HM_LORA_BIAS         /* .diff_b */
} hm_lora_kind;

/* One layer of the file: a tensor of the difference, or a third of its rows. */
typedef struct hm_lora_entry {
    size_t tensor; /* of the difference */
    hm_lora_kind kind;
    hm_lora_part part;
    size_t rows, columns; /* of this part; wholes have one column */
    size_t rank;          /* 0 = left out */
    /* measured */
    double square;      /* ‖D‖² */
    double rest;        /* ‖D − up·down‖² before rounding */
    double rest_stored; /* … as stored */
} hm_lora_entry;

typedef struct hm_lora_list {
    const hm_difference *difference;
    hm_lora_format format;
    size_t count;
    hm_lora_entry *entries; /* in the order of the difference's tensors */
    size_t *first;          /* [difference->count + 1] entries of a tensor: first[t] … first[t + 1]; none: not carried */
} hm_lora_list;

/* The format for a family, when HM_LORA_AUTO is asked for; HM_ERR_ARGUMENT, with what is possible, when it cannot be. */
hm_status hm_lora_format_for(const char *family, hm_lora_format asked, hm_lora_format *out, hm_error *err);

/* `whole`: norms and biases too.  Factors get `rank`, at most the smaller side.  HM_ERR_MISMATCH when nothing has a place. */
hm_status hm_lora_list_make(hm_lora_list *out, const hm_difference *difference, hm_lora_format format, bool whole,
                            size_t rank, hm_error *err);
void hm_lora_list_clear(hm_lora_list *list);

/* Ranks by one budget for all layers: the largest σ² per stored byte first.  Either the file stays within `bytes` (and has the
 * smallest error that it can have), or the relative error of all factors together comes down to `error` (with the fewest
 * bytes).  Reads the difference until every layer's spectrum is known as far as it matters. */
hm_status hm_lora_choose_ranks(hm_lora_list *list, uint64_t bytes, double error, size_t element_bytes, hm_job *job,
                               hm_error *err);

/* Bytes that a layer's names, shapes and alpha take in the file, at most. */
size_t hm_lora_overhead(const hm_lora_entry *entry);
#define HM_LORA_METADATA_BYTES ((uint64_t)16384) /* all that is not about a layer, at most */

#endif
