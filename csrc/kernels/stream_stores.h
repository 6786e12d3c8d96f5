/* For blend_template.h: stores past the caches, which every x86-64 has.  Included where the instruction set is already
 * chosen, by each file anew: no include guard. */
#if defined(__SSE2__) && defined(__GNUC__)

#include <emmintrin.h>

/* By 16 bytes, as results of 16 bits are put: a wider load would have to wait for two stores. */
INLINE void stream_line(unsigned char *to, const unsigned char *line)
{
    for (size_t i = 0; i < 64; i += 16)
        _mm_stream_si128((__m128i *)(void *)(to + i), _mm_loadu_si128((const __m128i *)(const void *)(line + i)));
}

INLINE void stream_end(void) { _mm_sfence(); }

#define STREAM_STORES

#endif
