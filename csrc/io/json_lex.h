/* The words of JSON (RFC 8259), read strictly and once from left to right; the grammar of a document is its caller's.
 *
 * Calls skip white space first.  The first thing that is wrong is noted in `problem` and `problem_at`; after it every
 * call fails, so that a caller may look once, at the end of a loop. */
#ifndef HM_IO_JSON_LEX_H
#define HM_IO_JSON_LEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hm_lex {
    const char *text; /* borrowed; need not end with NUL */
    size_t length;
    size_t at;           /* the next byte */
    char *strings;       /* decoded strings, NUL-terminated, one behind the other */
    size_t used;         /* bytes of `strings`; set it back to forget the latest ones */
    const char *problem; /* NULL as long as all is well; a constant text */
    size_t problem_at;
} hm_lex;

/* Also checks that the text is UTF-8, which may leave a problem.  False when out of memory.  The bytes of `strings` are
 * the caller's to keep (set the field to NULL) or to free with hm_lex_end. */
bool hm_lex_begin(hm_lex *lex, const char *text, size_t length);
void hm_lex_end(hm_lex *lex);

/* Length of the UTF-8 sequence at `text`, or 0 if it is broken (overlong, a surrogate, above U+10FFFF, cut off). */
size_t hm_utf8_step(const char *text, size_t length);

/* Notes a problem at the present place, unless there is one already.  Returns false. */
bool hm_lex_fail(hm_lex *lex, const char *problem);
/* The next byte that is not white space, or −1 at the end and after a problem. */
int hm_lex_peek(hm_lex *lex);
/* Takes the byte `c` if it is next. */
bool hm_lex_take(hm_lex *lex, char c);
/* Takes the byte `c`, or notes `problem`. */
bool hm_lex_expect(hm_lex *lex, char c, const char *problem);
/* Walks the items of an object or array whose opening bracket was taken:
 *     for (bool first = true; hm_lex_next(lex, ']', &first);) …read one item…
 * and then look at `problem`. */
bool hm_lex_next(hm_lex *lex, char close, bool *first);

/* A string, unescaped into `strings`; NULL on a problem.  *length counts its bytes without the closing NUL: where it
 * differs from strlen, the string holds \u0000. */
char *hm_lex_string(hm_lex *lex, size_t *length);
/* A whole number 0 … 2^63 − 1, written without sign, fraction, exponent or leading zero. */
bool hm_lex_whole(hm_lex *lex, uint64_t *out);
/* Any number; *length is that of its text, which begins at `at − *length`. */
bool hm_lex_number(hm_lex *lex, size_t *length);
/* true, false or null. */
bool hm_lex_word(hm_lex *lex);

/* A name that occurs twice among names[0 … count − 1], or NULL.  O(n log n); sorts the array. */
const char *hm_lex_duplicate(const char **names, size_t count);

#endif
