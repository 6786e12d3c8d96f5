/* SHA-256: the published vectors, every length around the padding's edges, every way to cut the input. */
#include "base/sha256.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "tests/check.h"

typedef void blocks_function(uint32_t state[8], const unsigned char *data, size_t count);

static void digest(const void *data, size_t bytes, char hex[65])
{
    hm_sha256 hash;
    hm_sha256_begin(&hash);
    hm_sha256_add(&hash, data, bytes);
    hm_sha256_end(&hash, hex);
}

/* The whole message padded in memory and given to one compression function: independent of the buffering. */
static void digest_at_once(blocks_function *blocks, const unsigned char *data, size_t bytes, char hex[65])
{
    static unsigned char padded[1024];
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    size_t total = (bytes + 9 + 63) / 64 * 64;
    memset(padded, 0, sizeof padded);
    memcpy(padded, data, bytes);
    padded[bytes] = 0x80;
    padded[total - 1] = (unsigned char)(bytes * 8);
    padded[total - 2] = (unsigned char)(bytes * 8 >> 8);
    blocks(state, padded, total / 64);
    for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", state[i]);
}

/* FIPS 180-4 examples and the empty message. */
static const struct {
    const char *message, *hex;
} vectors[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
     "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
};

static void test_vectors(blocks_function *blocks)
{
    char hex[65];
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        digest_at_once(blocks, (const unsigned char *)vectors[i].message, strlen(vectors[i].message), hex);
        CHECK_TEXT(hex, vectors[i].hex);
    }
}

static void test_million(void)
{
    static char piece[1000];
    char hex[65];
    hm_sha256 hash;
    memset(piece, 'a', sizeof piece);
    hm_sha256_begin(&hash);
    for (int i = 0; i < 1000; i++) hm_sha256_add(&hash, piece, sizeof piece);
    hm_sha256_end(&hash, hex);
    CHECK_TEXT(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void test_lengths_and_cuts(void)
{
    unsigned char all[200];
    for (size_t i = 0; i < sizeof all; i++) all[i] = (unsigned char)(i * 151 + 7);
    for (size_t n = 0; n <= sizeof all; n++) {
        char whole[65], other[65];
        unsigned char *data = malloc(n + 1); /* its end is where a sanitizer looks; one byte off keeps it unaligned */
        if (data == NULL) exit(2);
        memcpy(data + 1, all, n);
        digest(data + 1, n, whole);
        digest_at_once(hm_sha256_blocks_portable, all, n, other);
        CHECK_TEXT(whole, other);
#if defined(HM_HAVE_SHA256_X86)
        if (hm_cpu_get().sha) {
            digest_at_once(hm_sha256_blocks_x86, all, n, other);
            CHECK_TEXT(whole, other);
        }
#endif
        for (size_t cut = 0; cut <= n; cut++) {
            hm_sha256 hash;
            hm_sha256_begin(&hash);
            hm_sha256_add(&hash, data + 1, cut);
            hm_sha256_add(&hash, data + 1 + cut, (n - cut) / 2);
            hm_sha256_add(&hash, NULL, 0);
            hm_sha256_add(&hash, data + 1 + cut + (n - cut) / 2, n - cut - (n - cut) / 2);
            hm_sha256_end(&hash, other);
            if (strcmp(whole, other) != 0) CHECK_TEXT(other, whole);
        }
        free(data);
    }
}

int main(void)
{
    char hex[65];
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        digest(vectors[i].message, strlen(vectors[i].message), hex);
        CHECK_TEXT(hex, vectors[i].hex);
    }
    test_vectors(hm_sha256_blocks_portable);
#if defined(HM_HAVE_SHA256_X86)
    if (hm_cpu_get().sha) test_vectors(hm_sha256_blocks_x86);
#endif
    test_million();
    test_lengths_and_cuts();
    return check_report("sha256");
}
