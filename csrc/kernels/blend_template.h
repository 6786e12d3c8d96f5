/* The fused blend of kernels.h: included once per instruction set, after template.h, whose names it uses.
 *
 * The including file may define, for results that go past the caches,
 *   STREAM_STORES
 *   stream_line(to, line)         copies 64 bytes to an address that 64 divides
 *   stream_end()                  orders what was streamed before the stores that follow
 *
 * A blend is bound by memory: every operand is read once, the result written once, and all between stays in registers.
 * That takes a loop per type and number of operands, so only the usual ones have it; the others go through short f32
 * rows that stay in the first-level cache.  Each number is read before it is written and never again, so the result
 * may lie over an operand. */

/* Operands of a fused loop at most: a base, its low part and four directions. */
#define FUSED_PARTS 6

static const unsigned char number_bytes[6] = {
    [HM_F64] = 8, [HM_F32] = 4, [HM_F16] = 2, [HM_BF16] = 2, [HM_F8_E4M3] = 1, [HM_F8_E5M2] = 1};

/* How far ahead the operands are asked for, in bytes: the numbers under way would otherwise be only those that fit the
 * window of the CPU, some three lines (one thread, f16: +10 %).  The caches' own prefetching knows the streams, but
 * comes too late, and stops at every page. */
#define AHEAD 512
#if defined(__GNUC__)
#define ASK_FOR(address) __builtin_prefetch((const void *)(address), 0, 3)
#else
#define ASK_FOR(address) (void)(address)
#endif

/* `bytes` of an operand; beyond its end a request does nothing, and no pointer is formed for it. */
INLINE void ask_for(const unsigned char *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) ASK_FOR((uintptr_t)p + AHEAD + i);
}

/* The array that a line is put together in vanishes only where every step of the loop is written out. */
#if defined(STREAM_STORES)
#define UNROLL_LINE UNROLL
#else
#define UNROLL_LINE
#endif

/* ---- fused loops --------------------------------------------------------------------------------------------- */

INLINE vf get_fused(hm_dtype dtype, const unsigned char *p)
{
    return dtype == HM_F32 ? get_F32(p) : dtype == HM_F16 ? get_F16(p) : get_BF16(p);
}

INLINE void put_fused(hm_dtype dtype, unsigned char *p, vf v)
{
    if (dtype == HM_F32)
        put_F32(p, v);
    else if (dtype == HM_F16)
        put_F16(p, v);
    else
        put_BF16(p, v);
}

/* `lines` cache lines of the result.  All parts are of type `from` and take part; the first one moves by `base_step`
 * bytes a line, 0 where zeros stand for a base.  The types, `count` and `stream` are constants here.
 *
 * A line to be streamed is put together in an array first.  The compilers see through it: what is left are the stores
 * past the caches, and there is no second set of conversions. */
INLINE void blend_lines(unsigned char *out, hm_dtype to, const hm_blend_part *parts, hm_dtype from, int count,
                        size_t base_step, size_t lines, bool stream)
{
    const size_t out_bytes = to == HM_F32 ? 4 : 2, bytes = from == HM_F32 ? 4 : 2, step = LINE(out_bytes) * bytes;
    const hm_blend_part *first = parts, *second = parts + (count > 1 ? 1 : 0), *third = parts + (count > 2 ? 2 : 0);
    const hm_blend_part *fourth = parts + (count > 3 ? 3 : 0), *fifth = parts + (count > 4 ? 4 : 0);
    const hm_blend_part *sixth = parts + (count > 5 ? 5 : 0);
    const unsigned char *p0 = first->data, *p1 = second->data, *p2 = third->data;
    const unsigned char *p3 = fourth->data, *p4 = fifth->data, *p5 = sixth->data;
    const vf c1 = vf_set(second->c), c2 = vf_set(third->c), c3 = vf_set(fourth->c);
    const vf c4 = vf_set(fifth->c), c5 = vf_set(sixth->c);
    for (size_t i = 0; i < lines * step; i += step, p0 += base_step, out += 64) {
        unsigned char line[64];
        unsigned char *target = stream ? line : out;
        ask_for(p0, step);
        if (count > 1) ask_for(p1 + i, step);
        if (count > 2) ask_for(p2 + i, step);
        if (count > 3) ask_for(p3 + i, step);
        if (count > 4) ask_for(p4 + i, step);
        if (count > 5) ask_for(p5 + i, step);
        UNROLL_LINE for (size_t e = 0; e < step; e += LANES * bytes, target += LANES * out_bytes) {
            vf x = get_fused(from, p0 + e), product;
            if (count > 1) product = c1 * get_fused(from, p1 + i + e), x = x + product;
            if (count > 2) product = c2 * get_fused(from, p2 + i + e), x = x + product;
            if (count > 3) product = c3 * get_fused(from, p3 + i + e), x = x + product;
            if (count > 4) product = c4 * get_fused(from, p4 + i + e), x = x + product;
            if (count > 5) product = c5 * get_fused(from, p5 + i + e), x = x + product;
            put_fused(to, target, x);
        }
#if defined(STREAM_STORES)
        if (stream) stream_line(out, line);
#endif
    }
}

#if defined(STREAM_STORES)
#define BLEND_STREAM(to, from, count) \
    if (stream) blend_lines(out, HM_##to, parts, HM_##from, count, base_step, lines, true); else
#else
#define BLEND_STREAM(to, from, count) (void)stream;
#endif
#define BLEND_COUNT(to, from, count)                                                                      \
    case count:                                                                                           \
        BLEND_STREAM(to, from, count) blend_lines(out, HM_##to, parts, HM_##from, count, base_step, lines, false); \
        break;
#define BLEND_TYPES(to, from)                                                                             \
    static void blend_##to##_##from(unsigned char *out, const hm_blend_part *parts, size_t count,         \
                                    size_t base_step, size_t lines, bool stream)                          \
    {                                                                                                     \
        switch (count) {                                                                                  \
            BLEND_COUNT(to, from, 1)                                                                      \
            BLEND_COUNT(to, from, 2)                                                                      \
            BLEND_COUNT(to, from, 3)                                                                      \
            BLEND_COUNT(to, from, 4)                                                                      \
            BLEND_COUNT(to, from, 5)                                                                      \
            BLEND_COUNT(to, from, 6)                                                                      \
        default: break;                                                                                   \
        }                                                                                                 \
    }

BLEND_TYPES(F32, F32)
BLEND_TYPES(F32, F16)
BLEND_TYPES(F32, BF16)
BLEND_TYPES(F16, F32)
BLEND_TYPES(F16, F16)
BLEND_TYPES(F16, BF16)
BLEND_TYPES(BF16, F32)
BLEND_TYPES(BF16, F16)
BLEND_TYPES(BF16, BF16)
#undef BLEND_TYPES
#undef BLEND_COUNT
#undef BLEND_STREAM

typedef void fused_loop(unsigned char *out, const hm_blend_part *parts, size_t count, size_t base_step, size_t lines,
                        bool stream);

/* [type of the result][type of the parts]; NULL where there is none. */
static fused_loop *const fused_loops[6][6] = {
    [HM_F32] = {[HM_F32] = blend_F32_F32, [HM_F16] = blend_F32_F16, [HM_BF16] = blend_F32_BF16},
    [HM_F16] = {[HM_F32] = blend_F16_F32, [HM_F16] = blend_F16_F16, [HM_BF16] = blend_F16_BF16},
    [HM_BF16] = {[HM_F32] = blend_BF16_F32, [HM_F16] = blend_BF16_F16, [HM_BF16] = blend_BF16_BF16},
};

/* ---- any types, any number of parts -------------------------------------------------------------------------- */

/* The numbers from `start` to `end` in rows of HM_KERNEL_COLUMNS.  A row of whole lines may be streamed. */
static void blend_rows(unsigned char *out, hm_dtype to, const hm_blend_part *parts, size_t part_count, size_t start,
                       size_t end, bool stream)
{
    float x[HM_KERNEL_COLUMNS], d[HM_KERNEL_COLUMNS];
    const size_t out_bytes = number_bytes[to];
    for (size_t t = start; t < end; t += HM_KERNEL_COLUMNS) {
        const size_t n = end - t < HM_KERNEL_COLUMNS ? end - t : HM_KERNEL_COLUMNS;
        unsigned char *const target = out + t * out_bytes;
        memset(x, 0, n * sizeof *x);
        for (size_t k = 0; k < part_count; k++) {
            const hm_blend_part *part = parts + k;
            if (part->data == NULL || (k > 0 && part->c == 0)) continue;
            const unsigned char *data = (const unsigned char *)part->data + t * number_bytes[part->dtype];
            KERNEL_TABLE.load[part->dtype](data, k > 0 ? d : x, n);
            if (k > 0) axpy(x, part->c, d, n);
        }
        size_t done = 0;
        if (stream && fused_loops[to][HM_F32] != NULL) {
            const hm_blend_part row = {.data = x, .dtype = HM_F32};
            const size_t lines = n / LINE(out_bytes);
            fused_loops[to][HM_F32](target, &row, 1, LINE(out_bytes) * sizeof *x, lines, true);
            done = lines * LINE(out_bytes);
        }
        KERNEL_TABLE.store[to](x + done, target + done * out_bytes, n - done);
    }
}

/* ---- the entry ----------------------------------------------------------------------------------------------- */

/* The parts that count, with zeros for a missing base; 0 where no fused loop takes them. */
static size_t fused_parts(hm_blend_part *active, const hm_blend_part *parts, size_t part_count)
{
    static const float zeros[LINE(2)]; /* as much as a line of the result asks for */
    size_t count = 1;
    active[0] = (hm_blend_part){.dtype = HM_F32};
    if (part_count > 0) active[0] = parts[0];
    for (size_t k = 1; k < part_count; k++) {
        if (parts[k].data == NULL || parts[k].c == 0) continue;
        if (count == FUSED_PARTS) return 0;
        active[count++] = parts[k];
    }
    if (active[0].data == NULL) active[0] = (hm_blend_part){zeros, active[count > 1 ? 1 : 0].dtype, 1};
    for (size_t k = 1; k < count; k++)
        if (active[k].dtype != active[0].dtype) return 0;
    return count;
}

static void blend(void *out, hm_dtype out_dtype, const hm_blend_part *parts, size_t part_count, size_t n, bool stream)
{
    hm_blend_part active[FUSED_PARTS];
    const size_t out_bytes = number_bytes[out_dtype], gap = (64 - (uintptr_t)out % 64) % 64;
    const size_t count = fused_parts(active, parts, part_count);
    fused_loop *const loop = count > 0 ? fused_loops[out_dtype][active[0].dtype] : NULL;
    size_t start = gap / out_bytes < n ? gap / out_bytes : n; /* of the first whole line */
    if (gap % out_bytes != 0) start = 0, stream = false;      /* no number starts with a line */
    blend_rows(out, out_dtype, parts, part_count, 0, start, false);
    if (loop != NULL) {
        const size_t lines = (n - start) / LINE(out_bytes), bytes = number_bytes[active[0].dtype];
        const bool has_base = part_count > 0 && parts[0].data != NULL;
        const size_t base_step = has_base ? LINE(out_bytes) * bytes : 0;
        for (size_t k = has_base ? 0 : 1; k < count; k++)
            active[k].data = (const unsigned char *)active[k].data + start * bytes;
        loop((unsigned char *)out + start * out_bytes, active, count, base_step, lines, stream);
        start += lines * LINE(out_bytes);
    }
    blend_rows(out, out_dtype, parts, part_count, start, n, stream);
#if defined(STREAM_STORES)
    if (stream) stream_end();
#endif
}
