/* How a failure travels: a status up the stack, one line of text in the caller's hm_error.
 * Rule: a specific message is never overwritten by a more general one, so only the place that knows the reason writes. */
#ifndef HM_BASE_ERROR_H
#define HM_BASE_ERROR_H

#include "hypermerge.h"

#if defined(__GNUC__)
#define HM_PRINTF(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))
#else
#define HM_PRINTF(fmt_at, args_at)
#endif

/* Fills `err` (which may be NULL) and returns `status`.  `file` and `tensor` may be NULL; where given, the line begins
 * "file: tensor: ".  Control characters and broken UTF-8 in names (they come from files) are shown as '?'. */
hm_status hm_fail(hm_error *err, hm_status status, const char *file, const char *tensor, const char *format, ...)
    HM_PRINTF(5, 6);

/* HM_ERR_MEMORY, "out of memory (<what>)". */
hm_status hm_fail_memory(hm_error *err, const char *what);

/* HM_ERR_IO (of ENOMEM: HM_ERR_MEMORY) with the text of errno value `code`: "file: <action>: No space left on device". */
hm_status hm_fail_errno(hm_error *err, const char *file, const char *action, int code);

#define HM_TRY(expression)                          \
    do {                                            \
        hm_status hm_try_status_ = (expression);    \
        if (hm_try_status_ != HM_OK) return hm_try_status_; \
    } while (0)

#endif
