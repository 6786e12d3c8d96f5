/* The table under a plan: the tensors of all parties grouped by canonical name, and which party has what. */
#ifndef HM_MODEL_ALIGN_H
#define HM_MODEL_ALIGN_H

#include "model/names.h"
#include "model/source.h"

#define HM_PARTIES (HM_MAX_MEMBERS + 2) /* the inputs, a base, a carrier of its own */
#define HM_PARTS 32                     /* enough for every text encoder that ever came in one file */

/* One tensor of one party. */
typedef struct hm_entry {
    const char *key; /* canonical name */
    char *owned;     /* the same, where it is no party's own spelling */
    uint32_t party, index;
} hm_entry;

/* What becomes of a group. */
typedef enum hm_verdict { HM_LEAVE_OUT = 0, HM_TAKE_OVER, HM_MERGE } hm_verdict;

/* The tensors of one canonical name. */
typedef struct hm_group {
    const hm_entry *entries; /* ordered by party, at most one of each */
    size_t count;
    const hm_entry *carried; /* the carrier's, or NULL */
    const hm_entry *like;    /* the carrier's where it has one, else the first */
    hm_rule rule;
    hm_component component;
    uint32_t part;
    bool selected;           /* rule MERGE, and the selection wants it */
    hm_verdict verdict;
} hm_group;

/* What is absent as a whole: the denoiser, one text encoder, the VAE. */
typedef struct hm_part {
    char name[64];
    hm_component component;
    bool seen[HM_PARTIES]; /* which parties have tensors of it that can be merged */
    bool wanted;           /* a tensor of it is selected */
} hm_part;

typedef struct hm_alignment {
    hm_source *parties[HM_PARTIES]; /* sources, then the base, then a carrier that is neither; borrowed */
    const char *families[HM_PARTIES];
    size_t party_count;
    size_t source_count;
    size_t checked_count; /* the first so many must fit together: all but a carrier of its own */
    size_t carrier;       /* index in parties */
    hm_entry *entries;
    size_t entry_count;
    hm_group *groups;     /* sorted by canonical name */
    size_t group_count;
    hm_part parts[HM_PARTS];
    size_t part_count;
} hm_alignment;

hm_status hm_align(hm_alignment *out, hm_source *const *sources, size_t count, hm_source *base, hm_source *carrier,
                   hm_error *err);
void hm_align_clear(hm_alignment *alignment);

const hm_tensor_info *hm_entry_tensor(const hm_alignment *alignment, const hm_entry *entry);
/* Name of party i for messages: "a.safetensors". */
const char *hm_party_label(const hm_alignment *alignment, size_t party);
/* The first checked party that has nothing of the part, or HM_PARTIES. */
size_t hm_part_first_absent(const hm_alignment *alignment, const hm_part *part);
/* The group's entry of that party, or NULL. */
const hm_entry *hm_group_entry(const hm_group *group, size_t party);

/* ---- plan_check.c ------------------------------------------------------------------------------------------------ */

/* What makes the parties unfit whatever is selected: families, LoRAs, hyper-models, kinds of prediction. */
hm_status hm_check_parties(const hm_alignment *alignment, hm_error *err);
/* Quantised layouts in a part that is to be merged; a denoiser that some inputs lack (unless `common`). */
hm_status hm_check_parts(const hm_alignment *alignment, bool common, hm_error *err);

/* Why a selected group cannot be merged, or HM_FITS. */
typedef enum hm_misfit { HM_FITS = 0, HM_MISSING, HM_SHAPE, HM_NO_FLOAT } hm_misfit;
hm_misfit hm_group_misfit(const hm_alignment *alignment, const hm_group *group);
/* One refusal for all groups whose index is in misfits[count]. */
hm_status hm_refuse_misfits(const hm_alignment *alignment, const size_t *misfits, size_t count, hm_error *err);

#endif
