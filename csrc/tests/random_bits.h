/* Any bits at all, the same in every run: for numbers of every type, NaN and infinity included. */
#ifndef HM_TESTS_RANDOM_BITS_H
#define HM_TESTS_RANDOM_BITS_H

#include <stdint.h>

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static inline uint32_t random_bits(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1du) >> 32);
}

#endif
