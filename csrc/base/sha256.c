#include "base/sha256.h"

#include <string.h>

#include "base/cpu.h"

#define BLOCK 64

/* FIPS 180-4, 4.2.2. */
const uint32_t hm_sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

static uint32_t read_big_endian(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* 6.2.2, with the standard's names for the eight working variables. */
void hm_sha256_blocks_portable(uint32_t state[8], const unsigned char *data, size_t count)
{
    for (; count > 0; count--, data += BLOCK) {
        uint32_t w[64];
        for (size_t t = 0; t < 16; t++) w[t] = read_big_endian(data + 4 * t);
        for (size_t t = 16; t < 64; t++) {
            uint32_t s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^ w[t - 15] >> 3;
            uint32_t s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ w[t - 2] >> 10;
            w[t] = s1 + w[t - 7] + s0 + w[t - 16];
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (size_t t = 0; t < 64; t++) {
            uint32_t sum1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
            uint32_t choice = (e & f) ^ (~e & g);
            uint32_t t1 = h + sum1 + choice + hm_sha256_constants[t] + w[t];
            uint32_t sum0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
            uint32_t majority = (a & b) ^ (a & c) ^ (b & c);
            h = g, g = f, f = e, e = d + t1;
            d = c, c = b, b = a, a = t1 + sum0 + majority;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

static void add_blocks(uint32_t state[8], const unsigned char *data, size_t count)
{
#if defined(HM_HAVE_SHA256_X86)
    if (hm_cpu_get().sha) {
        hm_sha256_blocks_x86(state, data, count);
        return;
    }
#endif
    hm_sha256_blocks_portable(state, data, count);
}

void hm_sha256_begin(hm_sha256 *hash)
{
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, initial, sizeof initial);
    hash->length = 0;
}

void hm_sha256_add(hm_sha256 *hash, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    const size_t held = (size_t)(hash->length % BLOCK);
    if (bytes == 0) return;
    hash->length += bytes;
    if (held > 0) {
        const size_t room = BLOCK - held, taken = bytes < room ? bytes : room;
        memcpy(hash->block + held, p, taken);
        if (taken < room) return;
        add_blocks(hash->state, hash->block, 1);
        p += taken;
        bytes -= taken;
    }
    add_blocks(hash->state, p, bytes / BLOCK);
    memcpy(hash->block, p + bytes / BLOCK * BLOCK, bytes % BLOCK);
}

void hm_sha256_end(hm_sha256 *hash, char hex[65])
{
    /* 0x80, zeros up to 8 bytes before a block ends, the length in bits. */
    unsigned char padding[BLOCK + 8] = {0x80};
    const size_t held = (size_t)(hash->length % BLOCK);
    const size_t zeros_end = held < BLOCK - 8 ? BLOCK - 8 - held : 2 * BLOCK - 8 - held;
    const uint64_t bits = hash->length * 8;
    for (size_t i = 0; i < 8; i++) padding[zeros_end + i] = (unsigned char)(bits >> (56 - 8 * i));
    hm_sha256_add(hash, padding, zeros_end + 8);
    for (size_t i = 0; i < 64; i++) hex[i] = "0123456789abcdef"[hash->state[i / 8] >> (28 - 4 * (i % 8)) & 15];
    hex[64] = '\0';
}
