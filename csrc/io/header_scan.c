#include "io/header_scan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "io/dtype.h"
#include "io/json_lex.h"

#define LENGTH_BYTES 8u

typedef struct scan {
    hm_lex lex;
    hm_header header; /* until the end, tensors[i].offset counts from the start of the data area */
    size_t tensor_room, meta_room;
    const char *file;
    hm_error *err;
} scan;

/* ---- the length ------------------------------------------------------------------------------------------------- */

/* The first bytes of what people take for a safetensors file. */
static const struct {
    const char *begin, *what;
} mistaken[] = {
    {"version ", "it is a Git LFS pointer, not the model: run 'git lfs pull', or download the file itself"},
    {"<", "it is a web page, not the model: download it again, logged in if the site asks for that"},
    {"{", "it is a JSON text, not a model"},
    {"GGUF", "GGUF files are not supported: use the safetensors version of the model"},
};

hm_status hm_header_length(uint64_t *text_bytes, const unsigned char *prefix, size_t prefix_bytes, uint64_t file_bytes,
                           const char *file, hm_error *err)
{
    if (prefix_bytes < LENGTH_BYTES || file_bytes < LENGTH_BYTES)
        return hm_fail(err, HM_ERR_FORMAT, file, NULL,
                       "not a safetensors file: only %" PRIu64 " bytes long; download or copy it again", file_bytes);
    uint64_t length = 0;
    for (unsigned i = 0; i < LENGTH_BYTES; i++) length |= (uint64_t)prefix[i] << (8 * i);

    if (length > HM_HEADER_CAP) {
        for (size_t i = 0; i < sizeof mistaken / sizeof mistaken[0]; i++)
            if (memcmp(prefix, mistaken[i].begin, strlen(mistaken[i].begin)) == 0)
                return hm_fail(err, HM_ERR_FORMAT, file, NULL, "not a safetensors file: %s", mistaken[i].what);
        return hm_fail(err, HM_ERR_FORMAT, file, NULL,
                       "not a safetensors file: its header would be %" PRIu64 " bytes long, at most %" PRIu64
                       " are accepted",
                       length, HM_HEADER_CAP);
    }
    if (length > file_bytes - LENGTH_BYTES)
        return hm_fail(err, HM_ERR_FORMAT, file, NULL,
                       "the file is cut short: its header alone has %" PRIu64 " bytes, the whole file %" PRIu64
                       "; download or copy it again",
                       length, file_bytes);
    *text_bytes = length;
    return HM_OK;
}

/* ---- the text --------------------------------------------------------------------------------------------------- */

/* Turns what the lexer noted into an error. */
static hm_status broken(const scan *s, const char *tensor)
{
    return hm_fail(s->err, HM_ERR_FORMAT, s->file, tensor, "broken header, at its byte %zu: %s", s->lex.problem_at,
                   s->lex.problem);
}

static bool is(const char *text, size_t length, const char *word)
{
    return length == strlen(word) && memcmp(text, word, length) == 0;
}

static hm_status read_dtype(scan *s, hm_tensor_info *info)
{
    size_t length;
    const char *name = hm_lex_string(&s->lex, &length);
    if (name == NULL) return broken(s, info->name);
    if (hm_dtype_find(name, &info->dtype) && length == strlen(name)) return HM_OK;
    if (hm_dtype_is_foreign(name))
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, info->name,
                       "the element type %s is not supported: convert the file to fp16 or bf16", name);
    return hm_fail(s->err, HM_ERR_FORMAT, s->file, info->name, "unknown element type \"%.40s\"", name);
}

static hm_status read_shape(scan *s, hm_tensor_info *info)
{
    if (!hm_lex_expect(&s->lex, '[', "expected '[' before a shape")) return broken(s, info->name);
    info->ndim = 0;
    for (bool first = true; hm_lex_next(&s->lex, ']', &first);) {
        if (info->ndim == HM_MAX_DIMS)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, info->name,
                           "the tensor has more than %d dimensions, which is not supported", HM_MAX_DIMS);
        if (!hm_lex_whole(&s->lex, &info->shape[info->ndim])) return broken(s, info->name);
        info->ndim++;
    }
    return s->lex.problem == NULL ? HM_OK : broken(s, info->name);
}

static hm_status read_extent(scan *s, hm_tensor_info *info)
{
    hm_lex *lex = &s->lex;
    uint64_t begin, end;
    if (!hm_lex_expect(lex, '[', "expected '[' before data_offsets") || !hm_lex_whole(lex, &begin) ||
        !hm_lex_expect(lex, ',', "expected two data_offsets") || !hm_lex_whole(lex, &end) ||
        !hm_lex_expect(lex, ']', "expected ']' after two data_offsets"))
        return broken(s, info->name);
    if (begin > end)
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, info->name,
                       "data_offsets end before they begin (%" PRIu64 ", %" PRIu64 ")", begin, end);
    info->offset = begin;
    info->bytes = end - begin;
    return HM_OK;
}

/* Fills info->elements; the shape must need exactly the bytes that data_offsets give. */
static hm_status check_size(const scan *s, hm_tensor_info *info)
{
    /* The product goes over the dimensions that are not 0, so that strides, too, need no check later. */
    uint64_t product = hm_dtype_bytes(info->dtype);
    bool empty = false;
    for (unsigned i = 0; i < info->ndim; i++) {
        if (info->shape[i] == 0)
            empty = true;
        else if (!hm_mul_u64(product, info->shape[i], &product) || product > INT64_MAX)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, info->name, "the shape is too large: 2^63 bytes or more");
    }
    uint64_t needed = empty ? 0 : product;
    if (needed != info->bytes)
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, info->name,
                       "shape and %s need %" PRIu64 " bytes, but data_offsets give %" PRIu64,
                       hm_dtype_name(info->dtype), needed, info->bytes);
    info->elements = needed / hm_dtype_bytes(info->dtype);
    return HM_OK;
}

/* The value behind a tensor's name. */
static hm_status read_tensor(scan *s, const char *name)
{
    hm_header *header = &s->header;
    if (header->count == s->tensor_room) {
        size_t room = s->tensor_room * 2 + 64;
        hm_tensor_info *more = hm_grow(header->tensors, room, sizeof *more);
        if (more == NULL) return hm_fail_memory(s->err, "table of tensors");
        header->tensors = more;
        s->tensor_room = room;
    }
    hm_tensor_info *info = &header->tensors[header->count];
    *info = (hm_tensor_info){.name = name};

    enum { DTYPE, SHAPE, EXTENT, MEMBERS };
    static const char *const members[MEMBERS] = {"dtype", "shape", "data_offsets"};
    static hm_status (*const readers[MEMBERS])(scan *, hm_tensor_info *) = {read_dtype, read_shape, read_extent};
    bool seen[MEMBERS] = {false};

    if (!hm_lex_expect(&s->lex, '{', "expected '{' before dtype, shape and data_offsets"))
        return broken(s, name);
    size_t mark = s->lex.used; /* what follows is not kept */
    for (bool first = true; hm_lex_next(&s->lex, '}', &first); s->lex.used = mark) {
        size_t length;
        const char *member = hm_lex_string(&s->lex, &length);
        if (member == NULL) break;
        int which = 0;
        while (which < MEMBERS && !is(member, length, members[which])) which++;
        if (which == MEMBERS)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, name,
                           "unknown member \"%.40s\": only dtype, shape and data_offsets are allowed", member);
        if (seen[which])
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, name, "%s is given twice", members[which]);
        seen[which] = true;
        if (!hm_lex_expect(&s->lex, ':', "expected ':' after a name")) break;
        HM_TRY(readers[which](s, info));
    }
    if (s->lex.problem != NULL) return broken(s, name);
    for (int i = 0; i < MEMBERS; i++)
        if (!seen[i]) return hm_fail(s->err, HM_ERR_FORMAT, s->file, name, "%s is missing", members[i]);
    HM_TRY(check_size(s, info));
    header->count++;
    return HM_OK;
}

/* The value behind "__metadata__". */
static hm_status read_metadata(scan *s)
{
    hm_header *header = &s->header;
    hm_lex *lex = &s->lex;
    if (!hm_lex_expect(lex, '{', "expected '{' before the metadata")) return broken(s, "__metadata__");
    for (bool first = true; hm_lex_next(lex, '}', &first);) {
        if (header->meta_count == s->meta_room) {
            size_t room = s->meta_room * 2 + 16;
            char **keys = hm_grow(header->meta_keys, room, sizeof *keys);
            if (keys != NULL) header->meta_keys = keys;
            char **values = hm_grow(header->meta_values, room, sizeof *values);
            if (values != NULL) header->meta_values = values;
            if (keys == NULL || values == NULL) return hm_fail_memory(s->err, "table of metadata");
            s->meta_room = room;
        }
        size_t length;
        char *key = hm_lex_string(lex, &length);
        if (key == NULL || !hm_lex_expect(lex, ':', "expected ':' after a name")) break;
        if (strlen(key) != length)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, "__metadata__", "a key holds \\u0000, which is refused");
        int next = hm_lex_peek(lex);
        if (next != '"' && next != -1)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, "__metadata__", "the value of \"%.80s\" is not a string",
                           key);
        char *value = hm_lex_string(lex, &length);
        if (value == NULL) break;
        header->meta_keys[header->meta_count] = key;
        header->meta_values[header->meta_count] = value;
        header->meta_count++;
    }
    return lex->problem == NULL ? HM_OK : broken(s, "__metadata__");
}

static hm_status read_text(scan *s)
{
    hm_lex *lex = &s->lex;
    if (lex->problem != NULL) return broken(s, NULL);
    /* No white space before: the hosts look for '{' as the ninth byte of the file. */
    if (lex->length == 0 || lex->text[0] != '{')
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, NULL,
                       "not a safetensors file: its header does not begin with '{'");
    lex->at = 1;
    bool has_metadata = false;
    for (bool first = true; hm_lex_next(lex, '}', &first);) {
        size_t length;
        const char *name = hm_lex_string(lex, &length);
        if (name == NULL || !hm_lex_expect(lex, ':', "expected ':' after a name")) break;
        if (strlen(name) != length)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, name, "the tensor's name holds \\u0000, which is refused");
        if (is(name, length, "__metadata__")) {
            if (has_metadata)
                return hm_fail(s->err, HM_ERR_FORMAT, s->file, NULL, "the header has __metadata__ twice");
            has_metadata = true;
            HM_TRY(read_metadata(s));
        } else {
            HM_TRY(read_tensor(s, name));
        }
    }
    if (lex->problem != NULL) return broken(s, NULL);
    for (; lex->at < lex->length; lex->at++)
        if (lex->text[lex->at] != ' ')
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, NULL,
                           "broken header, at its byte %zu: only spaces may follow the closing '}'", lex->at);
    return HM_OK;
}

/* ---- what only the whole table tells ---------------------------------------------------------------------------- */

static hm_status check_names(const scan *s)
{
    const hm_header *header = &s->header;
    size_t most = header->count > header->meta_count ? header->count : header->meta_count;
    const char **names = hm_alloc(most, sizeof *names);
    if (names == NULL) return hm_fail_memory(s->err, "names of tensors");

    for (size_t i = 0; i < header->count; i++) names[i] = header->tensors[i].name;
    const char *tensor = hm_lex_duplicate(names, header->count);
    for (size_t i = 0; i < header->meta_count; i++) names[i] = header->meta_keys[i];
    const char *key = tensor != NULL ? NULL : hm_lex_duplicate(names, header->meta_count);
    hm_release(names);

    if (tensor != NULL)
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, tensor, "the header has two tensors of this name");
    if (key != NULL)
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, "__metadata__", "the key \"%.80s\" is given twice", key);
    return HM_OK;
}

/* Empty tensors come before the one that begins at the same place, or they would seem to lie inside it. */
static int by_extent(const void *a, const void *b)
{
    const hm_tensor_info *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Sorts the table, checks that it covers the data area, and makes the offsets count from the start of the file. */
static hm_status check_extents(scan *s, uint64_t data_start, uint64_t file_bytes)
{
    hm_tensor_info *tensors = s->header.tensors;
    size_t count = s->header.count;
    if (count > 0) qsort(tensors, count, sizeof *tensors, by_extent);

    uint64_t at = 0; /* where the next tensor must begin */
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].offset < at)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, tensors[i].name, "its data overlaps that of '%.200s'",
                           tensors[i - 1].name);
        if (tensors[i].offset > at)
            return hm_fail(s->err, HM_ERR_FORMAT, s->file, tensors[i].name,
                           "there is a hole: the %" PRIu64 " bytes before its data belong to no tensor",
                           tensors[i].offset - at);
        at += tensors[i].bytes; /* begin + bytes = end < 2^63 */
    }
    uint64_t data_bytes = file_bytes - data_start;
    if (at > data_bytes)
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, NULL,
                       "the file is cut short: its tensors need %" PRIu64 " bytes, it holds %" PRIu64
                       " of them; download or copy it again",
                       at, data_bytes);
    if (at < data_bytes)
        return hm_fail(s->err, HM_ERR_FORMAT, s->file, NULL,
                       "the last %" PRIu64 " bytes of the file belong to no tensor", data_bytes - at);
    for (size_t i = 0; i < count; i++) tensors[i].offset += data_start; /* ≤ file size now */
    return HM_OK;
}

hm_status hm_header_scan(hm_header *out, const char *text, uint64_t text_bytes, uint64_t file_bytes, const char *file,
                         hm_error *err)
{
    unsigned char prefix[LENGTH_BYTES];
    for (unsigned i = 0; i < LENGTH_BYTES; i++) prefix[i] = (unsigned char)(text_bytes >> (8 * i));
    HM_TRY(hm_header_length(&text_bytes, prefix, LENGTH_BYTES, file_bytes, file, err));

    scan s = {.file = file, .err = err};
    if (!hm_lex_begin(&s.lex, text, (size_t)text_bytes)) return hm_fail_memory(err, "header");
    s.header.names = s.lex.strings;
    hm_status status = read_text(&s);
    if (status == HM_OK) status = check_names(&s);
    if (status == HM_OK) status = check_extents(&s, LENGTH_BYTES + text_bytes, file_bytes);
    if (status != HM_OK) {
        hm_header_clear(&s.header);
        return status;
    }
    *out = s.header;
    return HM_OK;
}

void hm_header_clear(hm_header *header)
{
    hm_release(header->tensors);
    hm_release(header->meta_keys);
    hm_release(header->meta_values);
    hm_release(header->names);
    *header = (hm_header){0};
}
