#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at s, or 0.  Control characters count as ill-formed: a name from a file must
 * not be able to draw on somebody's terminal. */
static size_t printable_sequence(const unsigned char *s)
{
    if (s[0] < 0x20 || s[0] == 0x7f) return 0;
    if (s[0] < 0x80) return 1;
    size_t length = s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xc2 && s[1] < 0xa0) ||                     /* C1 controls */
        (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90) || /* overlong */
        (s[0] == 0xed && s[1] >= 0xa0) || (s[0] == 0xf4 && s[1] >= 0x90)) /* surrogates, beyond U+10FFFF */
        return 0;
    return length;
}

/* Copies text that may come from a file into a bounded buffer, whole characters only. */
static void copy_shown(char *out, size_t capacity, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t at = 0;
    while (*s != 0 && at + 5 < capacity) {
        size_t length = printable_sequence(s);
        if (length == 0) {
            out[at++] = '?';
            s++;
        } else {
            memcpy(out + at, s, length);
            at += length;
            s += length;
        }
    }
    out[at] = 0;
}

hm_status hm_fail(hm_error *err, hm_status status, const char *file, const char *tensor, const char *format, ...)
{
    if (err == NULL) return status;
    char reason[1024], shown[sizeof err->message];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);

    err->status = status;
    copy_shown(err->file, sizeof err->file, file ? file : "");
    copy_shown(err->tensor, sizeof err->tensor, tensor ? tensor : "");
    snprintf(shown, sizeof shown, "%.400s%s%.200s%s%.900s", err->file, err->file[0] ? ": " : "", err->tensor,
             err->tensor[0] ? ": " : "", reason);
    copy_shown(err->message, sizeof err->message, shown);
    return status;
}

hm_status hm_fail_memory(hm_error *err, const char *what)
{
    return hm_fail(err, HM_ERR_MEMORY, NULL, NULL, "out of memory (%s)", what);
}

hm_status hm_fail_errno(hm_error *err, const char *file, const char *action, int code)
{
    char text[128] = "";
#if defined(__GLIBC__)
    /* The GNU strerror_r may return a constant of its own instead of filling the buffer. */
    const char *reason = strerror_r(code, text, sizeof text);
#else
    const char *reason = strerror_r(code, text, sizeof text) == 0 ? text : "unknown error";
#endif
    return hm_fail(err, code == ENOMEM ? HM_ERR_MEMORY : HM_ERR_IO, file, NULL, "%s: %s", action, reason);
}
