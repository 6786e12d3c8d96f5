#include "io/document.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "io/json_lex.h"

#define DEPTH_CAP 16
#define NUMBER_CAP 63 /* cJSON reads numbers through a buffer of this many characters */

/* The walk over the text that comes before cJSON, which would accept duplicates, raw control characters, numbers such
 * as 01, and names cut off at \u0000. */
typedef struct walk {
    hm_lex lex;
    const char **names; /* of all objects that are open at present, innermost last */
    size_t count, room;
    const char *duplicate;
    bool out_of_memory;
} walk;

static bool keep_name(walk *w, const char *name)
{
    if (w->count == w->room) {
        size_t room = w->room * 2 + 32;
        const char **more = hm_grow(w->names, room, sizeof *more);
        if (more == NULL) {
            w->out_of_memory = true;
            return false;
        }
        w->names = more;
        w->room = room;
    }
    w->names[w->count++] = name;
    return true;
}

static char *text_without_nul(walk *w)
{
    size_t length;
    char *text = hm_lex_string(&w->lex, &length);
    if (text == NULL || strlen(text) == length) return text;
    hm_lex_fail(&w->lex, "\\u0000 in a string");
    return NULL;
}

/* Reads one value with all it holds.  False on a problem, a duplicate, or without memory. */
static bool walk_value(walk *w, unsigned depth)
{
    hm_lex *lex = &w->lex;
    int c = hm_lex_peek(lex);
    if (c == '{' || c == '[') {
        if (depth == DEPTH_CAP) return hm_lex_fail(lex, "nested too deeply");
        char close = c == '{' ? '}' : ']';
        size_t outer = w->count; /* the names of this object begin here */
        lex->at++;
        for (bool first = true; hm_lex_next(lex, close, &first);) {
            if (c == '{') {
                char *name = text_without_nul(w);
                if (name == NULL || !keep_name(w, name) || !hm_lex_expect(lex, ':', "expected ':' after a name"))
                    return false;
            }
            if (!walk_value(w, depth + 1)) return false;
        }
        if (lex->problem != NULL) return false;
        if (w->count > outer) w->duplicate = hm_lex_duplicate(w->names + outer, w->count - outer);
        w->count = outer;
        return w->duplicate == NULL;
    }
    if (c == '"') {
        size_t mark = lex->used;
        bool good = text_without_nul(w) != NULL;
        lex->used = mark; /* names are compared at the end of their object, values never */
        return good;
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        size_t length;
        if (!hm_lex_number(lex, &length)) return false;
        if (length <= NUMBER_CAP) return true;
        lex->at -= length;
        return hm_lex_fail(lex, "a number of too many digits");
    }
    return hm_lex_word(lex);
}

static hm_status check_text(const char *text, size_t length, const char *file, const char *what, hm_error *err)
{
    walk w = {0};
    if (!hm_lex_begin(&w.lex, text, length)) return hm_fail_memory(err, what);
    bool good = walk_value(&w, 0);
    if (good && hm_lex_peek(&w.lex) != -1) good = hm_lex_fail(&w.lex, "there is text after the end");

    hm_status status = HM_OK;
    if (w.out_of_memory)
        status = hm_fail_memory(err, what);
    else if (w.duplicate != NULL)
        status = hm_fail(err, HM_ERR_FORMAT, file, NULL, "broken %s: \"%.80s\" is given twice", what, w.duplicate);
    else if (!good)
        status = hm_fail(err, HM_ERR_FORMAT, file, NULL, "broken %s, at its byte %zu: %s", what, w.lex.problem_at,
                         w.lex.problem);
    hm_release(w.names);
    hm_lex_end(&w.lex);
    return status;
}

/* 1e999 is a number by the grammar, but not one that can be computed with. */
static bool all_finite(const cJSON *item)
{
    for (; item != NULL; item = item->next)
        if ((cJSON_IsNumber(item) && !isfinite(item->valuedouble)) || !all_finite(item->child)) return false;
    return true;
}

hm_status hm_document_parse(cJSON **out, const char *text, const char *file, const char *what, hm_error *err)
{
    size_t length = strlen(text);
    if (length > HM_DOCUMENT_CAP)
        return hm_fail(err, HM_ERR_FORMAT, file, NULL, "the %s has %zu bytes, at most %zu are accepted", what, length,
                       HM_DOCUMENT_CAP);
    HM_TRY(check_text(text, length, file, what, err));
    /* After the check, only memory can be missing. */
    cJSON *tree = cJSON_ParseWithLength(text, length);
    if (tree == NULL) return hm_fail_memory(err, what);
    if (!all_finite(tree)) {
        cJSON_Delete(tree);
        return hm_fail(err, HM_ERR_FORMAT, file, NULL, "broken %s: a number is too large", what);
    }
    *out = tree;
    return HM_OK;
}

/* Linear in the number of members: for objects of fixed members.  Walk ->child where they are many. */
static const cJSON *find(const cJSON *object, const char *name)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, name) : NULL;
}

const cJSON *hm_document_object(const cJSON *object, const char *name)
{
    const cJSON *item = find(object, name);
    return cJSON_IsObject(item) ? item : NULL;
}

const cJSON *hm_document_array(const cJSON *object, const char *name)
{
    const cJSON *item = find(object, name);
    return cJSON_IsArray(item) ? item : NULL;
}

const char *hm_document_string(const cJSON *object, const char *name)
{
    return cJSON_GetStringValue(find(object, name));
}

bool hm_document_number(const cJSON *object, const char *name, double *out)
{
    const cJSON *item = find(object, name);
    if (!cJSON_IsNumber(item)) return false;
    *out = item->valuedouble;
    return true;
}

bool hm_document_numbers(const cJSON *object, const char *name, double *out, size_t count)
{
    const cJSON *array = hm_document_array(object, name);
    if (array == NULL) return false;
    size_t found = 0;
    for (const cJSON *item = array->child; item != NULL; item = item->next, found++) {
        if (found == count || !cJSON_IsNumber(item)) return false;
        out[found] = item->valuedouble;
    }
    return found == count;
}
