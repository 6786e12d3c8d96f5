/* SHA-256 with the SHA extensions.  The instructions want the eight working variables as two vectors, {A,B,E,F} and
 * {C,D,G,H} (highest lane first), and do two rounds each; four message words make four rounds. */
#include "base/sha256.h"

#if defined(HM_HAVE_SHA256_X86)

#include <immintrin.h>

/* Rounds 4·i … 4·i+3 with the message words `w`. */
#define ROUNDS(i, w)                                                                                               \
    do {                                                                                                           \
        __m128i sum = _mm_add_epi32(w, _mm_loadu_si128((const __m128i *)(const void *)&hm_sha256_constants[4 * (i)])); \
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);                                                             \
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));                                    \
    } while (0)

/* w0 … w3 hold W[t−16] … W[t−1]; w0 becomes W[t] … W[t+3].  The alignr picks W[t−7] … W[t−4]. */
#define SCHEDULE(w0, w1, w2, w3) \
    w0 = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4)), w3)

__attribute__((target("sha,sse4.1,ssse3"))) void hm_sha256_blocks_x86(uint32_t state[8], const unsigned char *data,
                                                                      size_t count)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i *const out = (__m128i *)(void *)state;
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(out), 0xb1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(out + 1), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);

    for (; count > 0; count--, data += 64) {
        const __m128i *in = (const __m128i *)(const void *)data;
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w0 = _mm_shuffle_epi8(_mm_loadu_si128(in), swap);
        __m128i w1 = _mm_shuffle_epi8(_mm_loadu_si128(in + 1), swap);
        __m128i w2 = _mm_shuffle_epi8(_mm_loadu_si128(in + 2), swap);
        __m128i w3 = _mm_shuffle_epi8(_mm_loadu_si128(in + 3), swap);
        for (int i = 0; i < 12; i += 4) {
            ROUNDS(i, w0);
            SCHEDULE(w0, w1, w2, w3);
            ROUNDS(i + 1, w1);
            SCHEDULE(w1, w2, w3, w0);
            ROUNDS(i + 2, w2);
            SCHEDULE(w2, w3, w0, w1);
            ROUNDS(i + 3, w3);
            SCHEDULE(w3, w0, w1, w2);
        }
        ROUNDS(12, w0);
        ROUNDS(13, w1);
        ROUNDS(14, w2);
        ROUNDS(15, w3);
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }

    __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
    __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(out, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(out + 1, _mm_alignr_epi8(dchg, feba, 8));
}

#endif
