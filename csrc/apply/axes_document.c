#include "apply/axes_document.h"

#include <string.h>

#include "base/error.h"
#include "io/document.h"
#include "io/header_write.h"
#include "io/json_lex.h"

/* ---- names ------------------------------------------------------------------------------------------------------- */

static uint32_t code_point(const unsigned char *text, size_t length)
{
    static const unsigned char first_bits[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t code = text[0] & first_bits[length];
    for (size_t i = 1; i < length; i++) code = code << 6 | (text[i] & 0x3fu);
    return code;
}

/* Names stand in tables, pictures and pages: what would move the cursor, break the line or turn the writing direction
 * around it has no place in them. */
static bool is_shown(uint32_t code)
{
    return code >= 0x20 && !(code >= 0x7f && code < 0xa0) && code != 0x200e && code != 0x200f &&
           !(code >= 0x2028 && code <= 0x202e) && !(code >= 0x2066 && code <= 0x2069) && code != 0xfeff &&
           !(code >= 0xfff9 && code <= 0xfffb) && (code & 0xfffe) != 0xfffe;
}

const char *hm_axis_name_problem(const char *name)
{
    size_t left = strlen(name), characters = 0;
    if (left > 0 && (name[0] == ' ' || name[left - 1] == ' ')) return "begins or ends with a blank";
    while (left > 0) {
        size_t step = hm_utf8_step(name, left);
        if (step == 0) return "is not UTF-8 text";
        if (!is_shown(code_point((const unsigned char *)name, step))) return "holds a character that cannot be shown";
        if (++characters > HM_AXIS_NAME_MOST) return "is longer than 64 characters";
        name += step;
        left -= step;
    }
    return NULL;
}

/* The entry of an axis in the document as it was read, or NULL. */
static const cJSON *axis_of(const cJSON *root, size_t directions, size_t k)
{
    const cJSON *axes = hm_document_array(root, "axes");
    if (axes == NULL || (size_t)cJSON_GetArraySize(axes) != directions) return NULL;
    const cJSON *axis = cJSON_GetArrayItem(axes, (int)k);
    return cJSON_IsObject(axis) ? axis : NULL;
}

/* names[K], NULL for none.  What a damaged document calls an axis counts as no name: it is only a name. */
static hm_status choose_names(const hm_hyper *hyper, const cJSON *root, const hm_rename_options *options,
                              const char **names, hm_error *err)
{
    size_t directions = hyper->solution.directions;
    for (size_t k = 0; k < directions; k++) {
        const char *given = options->names != NULL ? options->names[k] : NULL;
        const char *problem = given != NULL ? hm_axis_name_problem(given) : NULL;
        if (problem != NULL)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "the name of axis %zu %s: '%.300s'", k + 1, problem,
                           given);
        names[k] = given != NULL ? given : hm_document_string(axis_of(root, directions, k), "name");
        if (names[k] != NULL && (names[k][0] == 0 || hm_axis_name_problem(names[k]) != NULL)) names[k] = NULL;
    }
    for (size_t k = 0; options->names != NULL && k < directions; k++)
        for (size_t other = 0; options->names[k] != NULL && names[k] != NULL && other < directions; other++)
            if (other != k && names[other] != NULL && strcmp(names[k], names[other]) == 0)
                return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "axes %zu and %zu would both be called '%s'",
                               k < other ? k + 1 : other + 1, k < other ? other + 1 : k + 1, names[k]);
    return HM_OK;
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

/* cJSON's own printer rounds numbers to what it takes for equal (a part in 2^52), so that a document would change a
 * little each time it is written.  Depth is bounded: the parser refused more than 16 levels. */
static void put_value(hm_text *out, const cJSON *value)
{
    if (cJSON_IsString(value)) {
        hm_json_string(out, value->valuestring);
    } else if (cJSON_IsNumber(value)) {
        hm_json_number(out, value->valuedouble);
    } else if (cJSON_IsBool(value) || cJSON_IsNull(value)) {
        hm_text_put(out, cJSON_IsNull(value) ? "null" : cJSON_IsTrue(value) ? "true" : "false");
    } else {
        bool object = cJSON_IsObject(value);
        hm_text_put(out, object ? "{" : "[");
        for (const cJSON *item = value->child; item != NULL; item = item->next) {
            if (item != value->child) hm_text_put(out, ",");
            if (object) hm_json_string(out, item->string);
            if (object) hm_text_put(out, ":");
            put_value(out, item);
        }
        hm_text_put(out, object ? "}" : "]");
    }
}

/* The members of an object but one, each followed by a comma. */
static void put_members_but(hm_text *out, const cJSON *object, const char *left_out)
{
    for (const cJSON *item = object != NULL ? object->child : NULL; item != NULL; item = item->next) {
        if (strcmp(item->string, left_out) == 0) continue;
        hm_json_string(out, item->string);
        hm_text_put(out, ":");
        put_value(out, item);
        hm_text_put(out, ",");
    }
}

/* Is there anything to be said of the axes? */
static bool axes_are_described(const cJSON *root, const char *const *names, size_t directions)
{
    for (size_t k = 0; k < directions; k++) {
        if (names[k] != NULL) return true;
        const cJSON *axis = axis_of(root, directions, k);
        for (const cJSON *item = axis != NULL ? axis->child : NULL; item != NULL; item = item->next)
            if (strcmp(item->string, "name") != 0) return true;
    }
    return false;
}

static void put_document(hm_text *out, const cJSON *root, const char *const *names, size_t directions)
{
    hm_text_put(out, "{");
    put_members_but(out, root, "axes");
    if (axes_are_described(root, names, directions)) {
        hm_text_put(out, "\"axes\":[");
        for (size_t k = 0; k < directions; k++) {
            hm_text_put(out, k > 0 ? ",{" : "{");
            put_members_but(out, axis_of(root, directions, k), "name");
            hm_text_put(out, "\"name\":");
            if (names[k] != NULL)
                hm_json_string(out, names[k]);
            else
                hm_text_put(out, "null");
            hm_text_put(out, "}");
        }
        hm_text_put(out, "]}");
    } else if (!out->failed) {
        out->data[out->length - 1] = '}'; /* in place of the last comma: a document has members */
    }
}

/* 0 stays 0, so that turning twice gives the same text. */
static void turn(cJSON *value)
{
    if (cJSON_IsNumber(value) && value->valuedouble != 0) value->valuedouble = -value->valuedouble;
}

/* ⟨D_j, D_k⟩ of directions that are not orthogonal. */
static void turn_direction_gram(const cJSON *root, const bool *flip, size_t directions)
{
    const cJSON *gram = hm_document_array(root, "direction_gram");
    const cJSON *row = gram != NULL ? gram->child : NULL;
    for (size_t j = 0; row != NULL && j < directions; j++, row = row->next) {
        cJSON *value = row->child;
        for (size_t k = 0; value != NULL && k < directions; k++, value = value->next)
            if (flip[j] != flip[k]) turn(value);
    }
}

/* c_mk → −c_mk.  Beside ⟨D_j, D_k⟩ the only numbers of the document that know the sign of a direction: other Gram
 * matrices, shares and residuals are of the models, or squares. */
static void turn_multipliers(const cJSON *root, const bool *flip, size_t directions)
{
    const cJSON *member;
    cJSON_ArrayForEach(member, hm_document_array(root, "members"))
    {
        const cJSON *multipliers = hm_document_array(member, "multipliers");
        cJSON *value = multipliers != NULL ? multipliers->child : NULL;
        for (size_t k = 0; value != NULL && k < directions; k++, value = value->next)
            if (flip[k]) turn(value);
    }
}

hm_status hm_axes_document(const hm_hyper *hyper, const hm_rename_options *options, hm_text *out, hm_error *err)
{
    const char *names[HM_MAX_MEMBERS];
    size_t directions = hyper->solution.directions, before = out->length;
    cJSON *root = NULL;
    HM_TRY(hm_document_parse(&root, hyper->document, hm_source_label(hyper->file), "hypermerge metadata", err));
    hm_status status = choose_names(hyper, root, options, names, err);
    if (status == HM_OK) {
        if (options->flip != NULL) {
            turn_multipliers(root, options->flip, directions);
            turn_direction_gram(root, options->flip, directions);
        }
        put_document(out, root, names, directions);
        if (out->failed)
            status = hm_fail_memory(err, "the metadata document");
        else if (out->length - before > HM_DOCUMENT_CAP)
            status = hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(hyper->file), NULL,
                             "its metadata has no room for these names: choose shorter ones");
    }
    cJSON_Delete(root);
    return status;
}
