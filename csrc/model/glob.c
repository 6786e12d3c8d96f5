#include "model/glob.h"

#include <stddef.h>
#include <stdint.h>

#include "io/json_lex.h"

/* One character of valid UTF-8; a byte that begins no valid sequence stands for itself. */
static uint32_t next_character(const char **text)
{
    const unsigned char *s = (const unsigned char *)*text;
    size_t length = hm_utf8_step(*text, 4); /* none is longer, and a NUL ends them all */
    uint32_t value = length < 2 ? s[0] : s[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) value = value << 6 | (s[i] & 0x3fu);
    *text += length > 0 ? length : 1;
    return value;
}

/* The `]` that closes the set whose inside begins at `inside`, or NULL.  A `]` in first place is a member. */
static const char *set_end(const char *inside)
{
    const char *s = inside;
    if (*s == '!') s++;
    if (*s == ']') s++;
    while (*s != 0 && *s != ']') s++;
    return *s == ']' ? s : NULL;
}

/* `inside` up to `end` is what stands between the brackets.  A range whose ends are the wrong way round is empty. */
static bool set_contains(const char *inside, const char *end, uint32_t c)
{
    bool negated = *inside == '!', found = false;
    if (negated) inside++;
    while (inside < end) {
        uint32_t low = next_character(&inside), high = low;
        if (inside + 1 < end && *inside == '-') {
            inside++;
            high = next_character(&inside);
        }
        found = found || (low <= c && c <= high);
    }
    return found != negated;
}

bool hm_glob_match(const char *glob, const char *name)
{
    /* When a later part fails, only the last star needs another try, one character further on: what an earlier star
     * could take over, the last one can take as well.  So no recursion and no exponential search. */
    const char *after_star = NULL, *star_took = NULL;
    const char *unclosed = NULL; /* a `[` without `]`: all later ones are without it too, no need to search again */
    for (;;) {
        if (*glob == '*') {
            after_star = ++glob;
            star_took = name;
            continue;
        }
        if (*name == 0) {
            if (*glob == 0) return true;
            return false; /* a longer bite of a star leaves even less of the name */
        }
        const char *name_next = name, *glob_next = glob;
        uint32_t c = next_character(&name_next);
        bool fits = false;
        if (*glob == '?') {
            fits = true;
            glob_next = glob + 1;
        } else if (*glob == '[') {
            const char *end = unclosed == NULL || glob < unclosed ? set_end(glob + 1) : NULL;
            if (end == NULL && (unclosed == NULL || glob < unclosed)) unclosed = glob;
            fits = end != NULL ? set_contains(glob + 1, end, c) : c == '[';
            glob_next = end != NULL ? end + 1 : glob + 1;
        } else if (*glob != 0) {
            fits = next_character(&glob_next) == c;
        }
        if (fits) {
            name = name_next;
            glob = glob_next;
        } else if (after_star != NULL) {
            next_character(&star_took);
            name = star_took;
            glob = after_star;
        } else {
            return false;
        }
    }
}
