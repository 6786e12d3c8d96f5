/* Shared by the questions that measure but write no weights: compare, recover, project. */
#ifndef HM_SOLVE_QUESTIONS_H
#define HM_SOLVE_QUESTIONS_H

#include "base/memory.h"
#include "model/plan.h"
#include "solve/gram.h"

/* Gram of the merged tensors of `plan` about its first source (or about nothing; LoRAs are differences already: from nothing
 * where the first source is one, else from that): total[M × M], and per block
 * blocks[block_count × M × M] where not NULL.  rounding[M], where not NULL (about the first source only): how far, in the
 * same measure as distances, rounding to the types in which it is stored may have moved each model at most. */
hm_status hm_measure_plan(const hm_plan *plan, bool subtract_first, bool allow_nonfinite, double *total, double *blocks,
                          double *rounding, hm_job *job, hm_error *err);

/* "key":[…] and "key":[[…]…] with a comma before them when the text does not end in '{'. */
void hm_put_vector(hm_text *text, const char *key, const double *values, size_t count);
void hm_put_matrix(hm_text *text, const char *key, const double *values, size_t rows, size_t columns);
/* Hands the text over as a result: HM_ERR_MEMORY when it could not be built. */
hm_status hm_give_text(hm_text *text, char **out, hm_error *err);

#endif
