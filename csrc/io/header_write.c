#include "io/header_write.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "io/dtype.h"
#include "io/header_scan.h"
#include "io/json_lex.h"

void hm_json_string(hm_text *out, const char *value)
{
    size_t left = strlen(value);
    hm_text_put(out, "\"");
    const char *plain = value; /* start of the bytes that are copied as they are */
    while (left > 0) {
        unsigned char c = (unsigned char)*value;
        size_t step = hm_utf8_step(value, left);
        if (c >= 0x20 && c != '"' && c != '\\' && step > 0) {
            value += step;
            left -= step;
            continue;
        }
        hm_text_add(out, plain, (size_t)(value - plain));
        if (step == 0)
            hm_text_put(out, "\xEF\xBF\xBD"); /* U+FFFD: file names need not be UTF-8, a header must be */
        else if (c == '"' || c == '\\')
            hm_text_format(out, "\\%c", c);
        else if (c == '\n')
            hm_text_put(out, "\\n");
        else if (c == '\t')
            hm_text_put(out, "\\t");
        else
            hm_text_format(out, "\\u%04x", (unsigned)c);
        plain = ++value;
        left--;
    }
    hm_text_add(out, plain, (size_t)(value - plain));
    hm_text_put(out, "\"");
}

void hm_json_number(hm_text *out, double value)
{
    if (!isfinite(value)) {
        hm_text_put(out, "null");
        return;
    }
    char digits[64];
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        double back = strtod(digits, NULL);
        if (memcmp(&back, &value, sizeof value) == 0) break; /* the bits: −0 keeps its sign */
    }
    /* Whatever the locale put between the digits (it may be several bytes) is the decimal point. */
    for (const char *p = digits; *p != '\0'; p++) {
        if (strchr("0123456789+-e", *p) != NULL) {
            hm_text_add(out, p, 1);
            continue;
        }
        hm_text_put(out, ".");
        while (p[1] != '\0' && strchr("0123456789+-e", p[1]) == NULL) p++;
    }
}

static void write_tensor(hm_text *out, const hm_tensor_info *tensor, uint64_t begin, uint64_t end)
{
    hm_json_string(out, tensor->name);
    hm_text_format(out, ":{\"dtype\":\"%s\",\"shape\":[", hm_dtype_name(tensor->dtype));
    for (unsigned i = 0; i < tensor->ndim; i++)
        hm_text_format(out, i == 0 ? "%" PRIu64 : ",%" PRIu64, tensor->shape[i]);
    hm_text_format(out, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, end);
}

/* The object, without length and padding. */
static hm_status write_object(hm_text *out, const hm_tensor_info *tensors, size_t count, const hm_meta *meta,
                              size_t meta_count, hm_error *err)
{
    hm_text_put(out, "{");
    if (meta_count > 0) {
        hm_text_put(out, "\"__metadata__\":");
        for (size_t i = 0; i < meta_count; i++) {
            hm_text_put(out, i == 0 ? "{" : ",");
            hm_json_string(out, meta[i].key);
            hm_text_put(out, ":");
            hm_json_string(out, meta[i].value);
        }
        hm_text_put(out, "}");
    }
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t end;
        if (!hm_add_u64(at, tensors[i].bytes, &end) || end > INT64_MAX)
            return hm_fail(err, HM_ERR_ARGUMENT, NULL, tensors[i].name, "the file would have 2^63 bytes or more");
        if (i > 0 || meta_count > 0) hm_text_put(out, ",");
        write_tensor(out, &tensors[i], at, end);
        at = end;
    }
    hm_text_put(out, "}");
    return HM_OK;
}

hm_status hm_header_write(hm_text *out, const hm_tensor_info *tensors, size_t count, const hm_meta *meta,
                          size_t meta_count, uint64_t total_bytes, hm_error *err)
{
    char blanks[64];
    memset(blanks, ' ', sizeof blanks);
    size_t start = out->length;
    hm_text_add(out, blanks, 8); /* the place of the length */
    hm_status status = write_object(out, tensors, count, meta, meta_count, err);
    if (status == HM_OK && out->failed) status = hm_fail_memory(err, "header to be written");
    if (status != HM_OK) goto undo;

    uint64_t written = out->length - start;
    uint64_t wanted = total_bytes != 0 ? total_bytes : (written + 7) / 8 * 8;
    if (wanted < written || wanted % 8 != 0) {
        status = hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                         "the header has %" PRIu64 " bytes and does not fit into the %" PRIu64 " kept for it", written,
                         wanted);
        goto undo;
    }
    if (wanted - 8 > HM_HEADER_CAP) {
        status = hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL,
                         "the header would have %" PRIu64 " bytes, more than the %" PRIu64
                         " that a reader accepts: shorten names or metadata",
                         wanted - 8, HM_HEADER_CAP);
        goto undo;
    }
    for (uint64_t pad = wanted - written; pad > 0;) {
        size_t step = pad < sizeof blanks ? (size_t)pad : sizeof blanks;
        hm_text_add(out, blanks, step);
        pad -= step;
    }
    if (out->failed) {
        status = hm_fail_memory(err, "header to be written");
        goto undo;
    }
    for (unsigned i = 0; i < 8; i++) out->data[start + i] = (char)((wanted - 8) >> (8 * i));
    return HM_OK;

undo: /* what was there before stays */
    out->length = start;
    if (out->data != NULL) out->data[start] = '\0';
    return status;
}

int hm_tensor_usual_order(const void *a, const void *b)
{
    const hm_tensor_info *x = a, *y = b;
    int by_type = hm_dtype_write_rank(x->dtype) - hm_dtype_write_rank(y->dtype);
    return by_type != 0 ? by_type : strcmp(x->name, y->name);
}

void hm_json_numbers(hm_text *out, const double *values, size_t count)
{
    hm_text_put(out, "[");
    for (size_t i = 0; i < count; i++) {
        if (i > 0) hm_text_put(out, ",");
        hm_json_number(out, values[i]);
    }
    hm_text_put(out, "]");
}
