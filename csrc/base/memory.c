#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BYTES ((size_t)4096)
#define LARGE_PAGE_BYTES ((size_t)2 << 20)
#define WORTH_LARGE_PAGES ((size_t)16 << 20)

bool hm_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    if (b != 0 && a > UINT64_MAX / b) return false;
    *out = a * b;
    return true;
}

bool hm_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    if (a > UINT64_MAX - b) return false;
    *out = a + b;
    return true;
}

/* Sizes beyond half the address space only arise from broken lengths; malloc would refuse them too, some checkers abort. */
static bool bytes_of(size_t count, size_t item_bytes, size_t *out)
{
    uint64_t bytes;
    if (!hm_mul_u64(count, item_bytes, &bytes) || bytes > SIZE_MAX / 2) return false;
    *out = bytes > 0 ? (size_t)bytes : 1;
    return true;
}

void *hm_alloc(size_t count, size_t item_bytes)
{
    size_t bytes;
    return bytes_of(count, item_bytes, &bytes) ? calloc(1, bytes) : NULL;
}

void *hm_grow(void *block, size_t count, size_t item_bytes)
{
    size_t bytes;
    return bytes_of(count, item_bytes, &bytes) ? realloc(block, bytes) : NULL;
}

/* Whole pages, at least one. */
static void *alloc_pages(size_t bytes, size_t page_bytes, size_t *whole)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    *whole = bytes > 0 ? (bytes + page_bytes - 1) / page_bytes * page_bytes : page_bytes;
    return aligned_alloc(page_bytes, *whole);
}

void *hm_alloc_pages(size_t bytes)
{
    size_t whole;
    return alloc_pages(bytes, PAGE_BYTES, &whole);
}

void *hm_alloc_large(size_t bytes)
{
    size_t whole;
    if (bytes < WORTH_LARGE_PAGES) return hm_alloc_pages(bytes);
    void *block = alloc_pages(bytes, LARGE_PAGE_BYTES, &whole);
    if (block != NULL) hm_prefer_large_pages(block, whole);
    return block;
}

void hm_release_pages(void *block)
{
    free(block);
}

void hm_release(void *block)
{
    free(block);
}

void hm_free(void *memory)
{
    free(memory);
}

char *hm_copy_bytes(const char *text, size_t length)
{
    char *copy = hm_alloc(length + 1, 1);
    if (copy != NULL && length > 0) memcpy(copy, text, length);
    return copy;
}

char *hm_copy_text(const char *text)
{
    return text != NULL ? hm_copy_bytes(text, strlen(text)) : NULL;
}

void hm_text_add(hm_text *text, const char *bytes, size_t length)
{
    if (text->failed) return;
    if (length >= text->capacity - text->length) { /* keep room for the NUL */
        size_t capacity = text->capacity < 128 ? 256 : text->capacity + text->capacity / 2;
        if (capacity < text->length + length + 1) capacity = text->length + length + 1;
        char *data = hm_grow(text->data, capacity, 1);
        if (data == NULL) {
            text->failed = true;
            return;
        }
        text->data = data;
        text->capacity = capacity;
    }
    if (length > 0) memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = 0;
}

void hm_text_put(hm_text *text, const char *string)
{
    hm_text_add(text, string, strlen(string));
}

void hm_text_format(hm_text *text, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof line)
        text->failed = true; /* longer than any line of ours: better no text than a cut one */
    else
        hm_text_add(text, line, (size_t)length);
}

void hm_text_clear(hm_text *text)
{
    free(text->data);
    *text = (hm_text){0};
}
