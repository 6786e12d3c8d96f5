/* Shared by the fuzz targets: what every one of them demands, and how inputs are cut into pieces. */
#ifndef HM_FUZZ_H
#define HM_FUZZ_H

#include <stdlib.h>
#include <string.h>

#include "hypermerge.h"

#define REQUIRE(condition)         \
    do {                           \
        if (!(condition)) abort(); \
    } while (0)

/* A failure is told in one line, under the status that was returned; input alone never exhausts the memory. */
static inline void require_told(hm_status status, const hm_error *err)
{
    REQUIRE(status != HM_OK && status != HM_ERR_MEMORY && err->status == status);
    REQUIRE(err->message[0] != '\0' && strpbrk(err->message, "\n\r\x1b") == NULL);
}

/* The next piece of an input, up to `end` or to the input's end: a copy with a NUL (pieces end at a NUL, too), so that
 * a read beyond it is seen.  NULL when nothing is left.  To be freed. */
static inline char *next_piece(const uint8_t **data, size_t *size, char end)
{
    if (*size == 0) return NULL;
    const uint8_t *stop = memchr(*data, end, *size);
    size_t length = stop != NULL ? (size_t)(stop - *data) : *size;
    char *piece = malloc(length + 1);
    if (piece == NULL) return NULL;
    memcpy(piece, *data, length);
    piece[length] = '\0';
    size_t used = stop != NULL ? length + 1 : length;
    *data += used;
    *size -= used;
    return piece;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
