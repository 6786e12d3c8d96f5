/* Fuzzing of the globs; an input is a glob, a newline, a name.  The matcher must agree with a slow one that is written
 * straight from the rules of Python's fnmatch.fnmatchcase. */
#include <stdbool.h>

#include "fuzz/fuzz.h"
#include "io/json_lex.h"
#include "model/glob.h"

#define LONGEST 300u /* the slow matcher takes the product of both lengths */

/* Characters of a text; bytes that are no UTF-8 stand for themselves, out of the way of real characters. */
static size_t decode(const char *text, uint32_t *out)
{
    size_t count = 0;
    for (size_t left = strlen(text), step; left > 0; text += step, left -= step) {
        const unsigned char *s = (const unsigned char *)text;
        step = hm_utf8_step(text, left);
        out[count] = step == 1 ? s[0] : step == 2 ? s[0] & 0x1fu : step == 3 ? s[0] & 0x0fu : step == 4 ? s[0] & 7u : s[0];
        for (size_t i = 1; i < step; i++) out[count] = out[count] << 6 | (s[i] & 0x3fu);
        count++;
        if (step == 0) step = 1;
    }
    return count;
}

/* One element of a glob: what it takes, and where the next one begins. */
static bool takes(const uint32_t *glob, size_t at, size_t length, uint32_t c, size_t *next)
{
    *next = at + 1;
    if (glob[at] == '?') return true;
    if (glob[at] != '[') return glob[at] == c;
    size_t inside = at + 1, end = inside;
    if (end < length && glob[end] == '!') end++;
    if (end < length && glob[end] == ']') end++;
    while (end < length && glob[end] != ']') end++;
    if (end >= length) return c == '[';
    *next = end + 1;
    bool negated = glob[inside] == '!', found = false;
    for (size_t i = inside + (negated ? 1 : 0); i < end;) {
        if (i + 2 < end && glob[i + 1] == '-') {
            found = found || (glob[i] <= c && c <= glob[i + 2]);
            i += 3;
        } else {
            found = found || glob[i] == c;
            i++;
        }
    }
    return found != negated;
}

/* reach[n]: the glob up to here can take the first n characters of the name. */
static bool slow_match(const char *glob_text, const char *name_text)
{
    uint32_t glob[LONGEST], name[LONGEST];
    bool reach[LONGEST + 1] = {true}, after[LONGEST + 1];
    size_t glob_length = decode(glob_text, glob), name_length = decode(name_text, name);
    for (size_t at = 0, next; at < glob_length; at = next) {
        memset(after, 0, sizeof after);
        next = at + 1;
        if (glob[at] == '*') {
            for (size_t n = 0; n <= name_length; n++) after[n] = reach[n] || (n > 0 && after[n - 1]);
        } else {
            (void)takes(glob, at, glob_length, 0, &next);
            for (size_t n = 0; n < name_length; n++) after[n + 1] = reach[n] && takes(glob, at, glob_length, name[n], &next);
        }
        memcpy(reach, after, sizeof reach);
    }
    return reach[name_length];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > LONGEST) return 0;
    char *glob = next_piece(&data, &size, '\n'), *name = next_piece(&data, &size, '\0');
    if (glob != NULL) REQUIRE(hm_glob_match(glob, name != NULL ? name : "") == slow_match(glob, name != NULL ? name : ""));
    free(glob);
    free(name);
    return 0;
}
