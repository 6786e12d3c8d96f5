/* The inside of a hyper-model.  It is either solved (it has a plan: inputs are open, directions are known as combinations
 * of them, nothing is written yet) or opened (it has a file: directions lie there). */
#ifndef HM_SOLVE_HYPER_H
#define HM_SOLVE_HYPER_H

#include <stdatomic.h>

#include "base/memory.h"
#include "model/plan.h"
#include "solve/solution.h"

#define HM_PREFIX "hypermerge."
#define HM_PREFIX_DIRECTION "hypermerge.direction."
#define HM_PREFIX_BASE_LOW "hypermerge.base_low."
#define HM_DOCUMENT_VERSION 1
#define HM_METHOD_RANKED "hyper-lora" /* what the document calls the method of hyper-LoRAs */
#define HM_LONGEST_MOVED_NAME 960u /* of a tensor that has directions, so that their names fit into a buffer on the stack */

typedef struct hm_member {
    char *name;
    char header_hash[65], sha256[65]; /* "" = unknown */
    bool is_lora;
} hm_member;

/* A block's share in the whole: tensors that people who merge move together. */
typedef struct hm_block_share {
    char *name;
    hm_component component;
    double *gram; /* [M × M] about the base, unweighted */
    double *explained; /* [K], of hyper-LoRAs; else NULL: it follows from gram */
} hm_block_share;

typedef struct hm_hyper_loras hm_hyper_loras; /* lowrank/hyper_lora.h */

struct hm_hyper {
    atomic_uint references;
    hm_base base;
    hm_solution solution;    /* opened ones: members, directions, multipliers, inputs, residual, norm, loss, total, explained */
    hm_member *members;      /* [M] */
    double *gram;            /* [M × M] about the base, unweighted */
    double *weights;         /* [M], sum M; NULL = all equal */
    double *residual_stored; /* [M]; NULL before anything was written */
    char *family;
    char **include, **exclude;
    size_t include_count, exclude_count;
    bool common, allow_nonfinite;
    bool ranked;             /* the directions are hyper-LoRAs: each what it is, and no mixture of the inputs */
    char **unmoved;          /* merged tensors that are equal in all inputs: they have no direction, yet they are not copies;
                              * sorted (hm_text_order) */
    size_t unmoved_count;
    char *base_name;         /* HM_BASE_FILE, or the split-off W̃: file name with extension */
    char base_header_hash[65], base_sha256[65];
    uint64_t base_bytes;     /* size of that file */

    /* solved */
    hm_plan *plan;
    hm_dtype dtype;          /* of merged tensors when written */
    bool *moves;             /* [plan->count]: the inputs differ here, so there is a direction */
    double rounding;         /* Σ of squared rounding errors of the mean as it would be stored; 0 for other bases */
    hm_block_share *blocks;
    size_t block_count;
    hm_hyper_loras *loras;   /* the directions themselves where they are hyper-LoRAs, else NULL */

    /* opened */
    hm_source *file;
    hm_source *base_file;    /* where W̃ is: `file` itself, the linked base, or NULL (none, or not found) */
    char *document;          /* the metadata as it stands in the file */
};

/* Type under which a merged tensor is written when the carrier has `like` and the user asked for `asked`.  Copied ones keep
 * their type: a VAE that was trained for f32 may not fit into f16. */
hm_dtype hm_output_dtype(const hm_tensor_info *like, hm_dtype asked);
/* Type of base_low and the directions of a tensor: its own, but f16 for fp8, whose two or three bits of mantissa would drown
 * them. */
hm_dtype hm_fine_dtype(hm_dtype stored);

/* Solved or made of LoRAs alone, without a base?  Then the tensors are the LoRAs' layers, and no checkpoint can be made. */
bool hm_hyper_is_lora(const hm_hyper *hyper);
/* Weights that sum to 1 (of the mean), for all members. */
void hm_mean_weights(const hm_hyper *hyper, double *out);

/* The document as text; residual_stored NULL leaves those members' entries out. */
hm_status hm_document_write(const hm_hyper *hyper, const double *residual_stored, hm_text *out, hm_error *err);

/* For qsort and bsearch on arrays of char *. */
int hm_text_order(const void *a, const void *b);
/* Index in the file of direction k ≥ 1 (k = 0: base_low) of a tensor of an opened hyper-model, or HM_ABSENT. */
uint32_t hm_part_index(const hm_hyper *hyper, size_t k, const char *name);

/* Whether a tensor of an opened hyper-model was merged when it was made, rather than copied: it moves, or it is known to be
 * equal in all inputs. */
bool hm_was_merged(const hm_hyper *hyper, const char *name);

/* HM_ERR_ARGUMENT where the directions are no mixtures of the inputs. */
hm_status hm_hyper_need_mixtures(const hm_hyper *hyper, hm_error *err);

/* HM_ERR_IO when the linked base of an opened hyper-model was not found: for calls that need its numbers. */
hm_status hm_hyper_need_base(const hm_hyper *hyper, hm_error *err);

#endif
