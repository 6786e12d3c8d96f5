/* Every allocation of the core goes through here, overflow-checked.  cJSON's do not (io/document.h).  Tests make each of
 * them fail once: tests/faults.h. */
#ifndef HM_BASE_MEMORY_H
#define HM_BASE_MEMORY_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Zeroed array of `count` items of `item_bytes`, or NULL (also when the product overflows).  count 0 gives a valid block. */
void *hm_alloc(size_t count, size_t item_bytes);
/* realloc with the same check; the old block stays valid on NULL.  New bytes are not zeroed. */
void *hm_grow(void *block, size_t count, size_t item_bytes);
/* Buffer aligned to 4096 bytes (for direct I/O), not zeroed, or NULL.  Free with hm_release_pages. */
void *hm_alloc_pages(size_t bytes);
/* The same for what stays and is read from end to end again and again: in large pages, where the system has them.  Takes up to
 * 2 MiB more.  Free with hm_release_pages. */
void *hm_alloc_large(size_t bytes);
void hm_release_pages(void *block);
void hm_prefer_large_pages(void *block, size_t bytes); /* asks the system; pages_posix.c */
char *hm_copy_text(const char *text);                   /* NULL when out of memory or given NULL */
char *hm_copy_bytes(const char *text, size_t length);   /* appends the NUL */
void hm_release(void *block);                           /* NULL allowed */

bool hm_mul_u64(uint64_t a, uint64_t b, uint64_t *out); /* false on overflow, *out untouched */
bool hm_add_u64(uint64_t a, uint64_t b, uint64_t *out);

/* Text that grows.  After a failed append `failed` is set and further appends do nothing: check once, at the end. */
typedef struct hm_text {
    char *data; /* NUL-terminated once anything was appended */
    size_t length, capacity;
    bool failed;
} hm_text;
void hm_text_add(hm_text *text, const char *bytes, size_t length);
void hm_text_put(hm_text *text, const char *string);
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
void hm_text_format(hm_text *text, const char *format, ...);
void hm_text_clear(hm_text *text); /* frees */

#endif
