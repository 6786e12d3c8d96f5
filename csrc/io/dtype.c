#include "io/dtype.h"

#include <string.h>

/* `rank`: position when a file is written.  The safetensors library sorts by its own list of types, which grows by
 * alignment (BOOL first, U64 last), backwards; so that equal tensors give an equal data area and equal hashes, the
 * order within one width matters as well. */
static const struct {
    const char *name;
    unsigned char bytes, is_float, rank;
} types[HM_DTYPE_COUNT] = {
    [HM_U64] = {"U64", 8, 0, 0},          [HM_I64] = {"I64", 8, 0, 1},          [HM_F64] = {"F64", 8, 1, 2},
    [HM_F32] = {"F32", 4, 1, 3},          [HM_U32] = {"U32", 4, 0, 4},          [HM_I32] = {"I32", 4, 0, 5},
    [HM_BF16] = {"BF16", 2, 1, 6},        [HM_F16] = {"F16", 2, 1, 7},          [HM_U16] = {"U16", 2, 0, 8},
    [HM_I16] = {"I16", 2, 0, 9},          [HM_F8_E4M3] = {"F8_E4M3", 1, 1, 10}, [HM_F8_E5M2] = {"F8_E5M2", 1, 1, 11},
    [HM_I8] = {"I8", 1, 0, 12},           [HM_U8] = {"U8", 1, 0, 13},           [HM_BOOL] = {"BOOL", 1, 0, 14},
};

static const char *const foreign[] = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"};

/* The enum may be given any int by a caller. */
static bool known(hm_dtype dtype)
{
    return (int)dtype >= 0 && (int)dtype < (int)HM_DTYPE_COUNT;
}

const char *hm_dtype_name(hm_dtype dtype)
{
    return known(dtype) ? types[dtype].name : "?";
}

size_t hm_dtype_bytes(hm_dtype dtype)
{
    return known(dtype) ? types[dtype].bytes : 1;
}

bool hm_dtype_is_float(hm_dtype dtype)
{
    return known(dtype) && types[dtype].is_float;
}

int hm_dtype_write_rank(hm_dtype dtype)
{
    return known(dtype) ? types[dtype].rank : (int)HM_DTYPE_COUNT;
}

bool hm_dtype_find(const char *name, hm_dtype *out)
{
    for (int i = 0; i < (int)HM_DTYPE_COUNT; i++) {
        if (strcmp(name, types[i].name) != 0) continue;
        *out = (hm_dtype)i;
        return true;
    }
    return false;
}

bool hm_dtype_is_foreign(const char *name)
{
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (strcmp(name, foreign[i]) == 0) return true;
    return false;
}
