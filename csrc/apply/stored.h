/* Where an opened hyper-model keeps what a blend of a tensor is made of.  The rows of such a blend are, in the order in
 * which they are added up: W̃, base_low, D_1 … D_K. */
#ifndef HM_APPLY_STORED_H
#define HM_APPLY_STORED_H

#include "solve/hyper.h"

#define HM_STORED_BASE 0u
#define HM_STORED_LOW 1u
#define HM_STORED_DIRECTION 2u /* row of D_1 */

/* 2 + K */
size_t hm_stored_rows(const hm_hyper *hyper);
/* The file that row r lies in; of row 0 the linked base, where there is one.  Borrowed. */
hm_source *hm_stored_source(const hm_hyper *hyper, size_t row);
/* Is the tensor of that name more than its base value: does a direction move it, or has it a base_low? */
bool hm_stored_moves(const hm_hyper *hyper, const char *name);
/* Fills index[hm_stored_rows], each in its row's source or HM_ABSENT.  What is there must have the shape of `like` and
 * a floating-point type, else HM_ERR_FORMAT: the file may say anything. */
hm_status hm_stored_index(const hm_hyper *hyper, const hm_tensor_info *like, uint32_t *index, hm_error *err);

#endif
