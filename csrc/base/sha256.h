/* SHA-256 (FIPS 180-4), with the CPU's SHA instructions where it has them. */
#ifndef HM_BASE_SHA256_H
#define HM_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct hm_sha256 {
    uint32_t state[8];
    uint64_t length;      /* bytes so far */
    unsigned char block[64];
} hm_sha256;

void hm_sha256_begin(hm_sha256 *hash);
void hm_sha256_add(hm_sha256 *hash, const void *data, size_t bytes);
void hm_sha256_end(hm_sha256 *hash, char hex[65]); /* 64 lower-case digits and NUL */

/* Inside: `count` blocks of 64 bytes into the state; hm_sha256_add takes the best one.  `_x86` only if
 * hm_cpu_get().sha. */
extern const uint32_t hm_sha256_constants[64];
void hm_sha256_blocks_portable(uint32_t state[8], const unsigned char *data, size_t count);
#if defined(__x86_64__) && defined(__GNUC__)
#define HM_HAVE_SHA256_X86 1
void hm_sha256_blocks_x86(uint32_t state[8], const unsigned char *data, size_t count);
#endif

#endif
