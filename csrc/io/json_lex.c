#include "io/json_lex.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

size_t hm_utf8_step(const char *text, size_t length)
{
    const unsigned char *s = (const unsigned char *)text;
    if (length == 0) return 0;
    if (s[0] < 0x80) return 1;

    /* Table 3-7 of the Unicode standard: only the second byte has a range that depends on the first.  E0 and F0 begin
     * where a shorter form would do, ED 80–9F stops before the surrogates, F4 80–8F at U+10FFFF. */
    size_t step;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        step = 2;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        step = 3;
        if (s[0] == 0xE0) low = 0xA0;
        if (s[0] == 0xED) high = 0x9F;
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        step = 4;
        if (s[0] == 0xF0) low = 0x90;
        if (s[0] == 0xF4) high = 0x8F;
    } else {
        return 0;
    }
    if (length < step || s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < step; i++)
        if (s[i] < 0x80 || s[i] > 0xBF) return 0;
    return step;
}

bool hm_lex_begin(hm_lex *lex, const char *text, size_t length)
{
    /* A decoded string with its NUL is at least one byte shorter than its literal (two quotes go, \uXXXX gives at most
     * 3 bytes, a surrogate pair 4), so all of them together fit into as many bytes as the text has. */
    *lex = (hm_lex){.text = text, .length = length, .strings = hm_alloc(length, 1)};
    if (lex->strings == NULL) return false;

    for (size_t at = 0, step; at < length; at += step) {
        step = hm_utf8_step(text + at, length - at);
        if (step > 0) continue;
        lex->at = at;
        hm_lex_fail(lex, "the text is not valid UTF-8");
        break;
    }
    return true;
}

void hm_lex_end(hm_lex *lex)
{
    hm_release(lex->strings);
    lex->strings = NULL;
}

bool hm_lex_fail(hm_lex *lex, const char *problem)
{
    if (lex->problem == NULL) {
        lex->problem = lex->at < lex->length ? problem : "the text ends too early";
        lex->problem_at = lex->at;
    }
    return false;
}

int hm_lex_peek(hm_lex *lex)
{
    if (lex->problem != NULL) return -1;
    for (; lex->at < lex->length; lex->at++) {
        char c = lex->text[lex->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return (unsigned char)c;
    }
    return -1;
}

bool hm_lex_take(hm_lex *lex, char c)
{
    if (hm_lex_peek(lex) != (unsigned char)c) return false;
    lex->at++;
    return true;
}

bool hm_lex_expect(hm_lex *lex, char c, const char *problem)
{
    return hm_lex_take(lex, c) || hm_lex_fail(lex, problem);
}

bool hm_lex_next(hm_lex *lex, char close, bool *first)
{
    if (hm_lex_take(lex, close)) return false;
    if (*first) {
        *first = false;
        return lex->problem == NULL;
    }
    /* After a comma the closing bracket is no item: the caller's read of the item refuses it. */
    return hm_lex_expect(lex, ',', close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
}

/* Four hexadecimal digits at the present place, or −1. */
static int hex4(const hm_lex *lex)
{
    if (lex->length - lex->at < 4) return -1;
    int value = 0;
    for (size_t i = 0; i < 4; i++) {
        char c = lex->text[lex->at + i];
        int digit;
        if (c >= '0' && c <= '9')
            digit = c - '0';
        else if (c >= 'a' && c <= 'f')
            digit = c - 'a' + 10;
        else if (c >= 'A' && c <= 'F')
            digit = c - 'A' + 10;
        else
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

static char *put_utf8(char *out, unsigned code)
{
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | (code >> 6));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (char)(0xE0 | (code >> 12));
        *out++ = (char)(0x80 | ((code >> 6) & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else {
        *out++ = (char)(0xF0 | (code >> 18));
        *out++ = (char)(0x80 | ((code >> 12) & 0x3F));
        *out++ = (char)(0x80 | ((code >> 6) & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    }
    return out;
}

/* The digits behind \u, and the second half of a surrogate pair.  Appends at *out. */
static bool unicode_escape(hm_lex *lex, char **out)
{
    int code = hex4(lex);
    if (code < 0) return hm_lex_fail(lex, "\\u must be followed by four hexadecimal digits");
    lex->at += 4;
    if (code >= 0xDC00 && code <= 0xDFFF) return hm_lex_fail(lex, "half of a surrogate pair in a \\u escape");
    if (code >= 0xD800 && code <= 0xDBFF) {
        int second = -1;
        if (lex->length - lex->at >= 6 && lex->text[lex->at] == '\\' && lex->text[lex->at + 1] == 'u') {
            lex->at += 2;
            second = hex4(lex);
            lex->at += 4;
        }
        if (second < 0xDC00 || second > 0xDFFF) return hm_lex_fail(lex, "half of a surrogate pair in a \\u escape");
        code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    }
    *out = put_utf8(*out, (unsigned)code);
    return true;
}

char *hm_lex_string(hm_lex *lex, size_t *length)
{
    if (!hm_lex_expect(lex, '"', "expected a string in double quotes")) return NULL;
    char *start = lex->strings + lex->used, *out = start;
    for (;;) {
        if (lex->at == lex->length) break;
        char c = lex->text[lex->at];
        if ((unsigned char)c < 0x20) {
            hm_lex_fail(lex, "a control character inside a string");
            return NULL;
        }
        lex->at++;
        if (c == '"') {
            *out = '\0';
            *length = (size_t)(out - start);
            lex->used += *length + 1;
            return start;
        }
        if (c != '\\') {
            *out++ = c;
            continue;
        }
        if (lex->at == lex->length) break;
        static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
        char letter = lex->text[lex->at];
        const char *found = letter == '\0' ? NULL : strchr(letters, letter);
        if (found != NULL) {
            lex->at++;
            *out++ = meanings[found - letters];
        } else if (letter == 'u') {
            lex->at++;
            if (!unicode_escape(lex, &out)) return NULL;
        } else {
            hm_lex_fail(lex, "an unknown escape in a string");
            return NULL;
        }
    }
    hm_lex_fail(lex, "a string without end");
    return NULL;
}

static bool is_digit(const hm_lex *lex)
{
    return lex->at < lex->length && lex->text[lex->at] >= '0' && lex->text[lex->at] <= '9';
}

/* 0, or digits that do not begin with 0. */
static bool digits(hm_lex *lex)
{
    if (!is_digit(lex)) return hm_lex_fail(lex, "expected a digit");
    bool zero = lex->text[lex->at] == '0';
    lex->at++;
    if (zero && is_digit(lex)) return hm_lex_fail(lex, "a number must not begin with 0");
    while (is_digit(lex)) lex->at++;
    return true;
}

bool hm_lex_whole(hm_lex *lex, uint64_t *out)
{
    int c = hm_lex_peek(lex);
    if (c == '-' || c == '+') return hm_lex_fail(lex, "expected a whole number without sign");
    if (c < '0' || c > '9') return hm_lex_fail(lex, "expected a whole number");
    size_t start = lex->at;
    if (!digits(lex)) return false;
    if (lex->at < lex->length && strchr(".eE", lex->text[lex->at]) != NULL && lex->text[lex->at] != '\0')
        return hm_lex_fail(lex, "expected a whole number without fraction or exponent");

    uint64_t value = 0;
    for (size_t i = start; i < lex->at; i++) {
        unsigned digit = (unsigned)(lex->text[i] - '0');
        if (value > ((uint64_t)INT64_MAX - digit) / 10) {
            lex->at = start;
            return hm_lex_fail(lex, "a number of 2^63 or more");
        }
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

bool hm_lex_number(hm_lex *lex, size_t *length)
{
    int c = hm_lex_peek(lex);
    if (c != '-' && (c < '0' || c > '9')) return hm_lex_fail(lex, "expected a number");
    size_t start = lex->at;
    if (c == '-') lex->at++;
    if (!digits(lex)) return false;
    if (lex->at < lex->length && lex->text[lex->at] == '.') {
        lex->at++;
        if (!is_digit(lex)) return hm_lex_fail(lex, "expected a digit");
        while (is_digit(lex)) lex->at++;
    }
    if (lex->at < lex->length && (lex->text[lex->at] == 'e' || lex->text[lex->at] == 'E')) {
        lex->at++;
        if (lex->at < lex->length && (lex->text[lex->at] == '-' || lex->text[lex->at] == '+')) lex->at++;
        if (!is_digit(lex)) return hm_lex_fail(lex, "expected a digit");
        while (is_digit(lex)) lex->at++;
    }
    *length = lex->at - start;
    return true;
}

bool hm_lex_word(hm_lex *lex)
{
    static const char *const words[] = {"true", "false", "null"};
    if (hm_lex_peek(lex) >= 0) {
        for (size_t i = 0; i < 3; i++) {
            size_t length = strlen(words[i]);
            if (lex->length - lex->at < length || memcmp(lex->text + lex->at, words[i], length) != 0) continue;
            lex->at += length;
            return true;
        }
    }
    return hm_lex_fail(lex, "expected a value");
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

const char *hm_lex_duplicate(const char **names, size_t count)
{
    if (count < 2) return NULL;
    qsort(names, count, sizeof *names, by_text);
    for (size_t i = 1; i < count; i++)
        if (strcmp(names[i - 1], names[i]) == 0) return names[i];
    return NULL;
}
