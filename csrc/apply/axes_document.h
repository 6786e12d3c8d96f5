/* The metadata document of a hyper-model whose axes get other names or are turned round.
 *   "axes":[{"name":"warmth"},{"name":null}]     one per direction; absent where no axis has a name */
#ifndef HM_APPLY_AXES_DOCUMENT_H
#define HM_APPLY_AXES_DOCUMENT_H

#include "solve/hyper.h"

#define HM_AXIS_NAME_MOST 64u /* characters */

/* What is wrong with a name ("is longer than 64 characters"), or NULL.  "" is right: no name. */
const char *hm_axis_name_problem(const char *name);

/* Appends the document of an opened hyper-model as it reads after the change; everything else stands as it did, also
 * what only a later version understands.  HM_ERR_ARGUMENT for a name that cannot be one or that another axis has. */
hm_status hm_axes_document(const hm_hyper *hyper, const hm_rename_options *options, hm_text *out, hm_error *err);

#endif
