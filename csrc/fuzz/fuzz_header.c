/* Fuzzing of the header scanner; an input is a whole safetensors file.
 *
 * Whatever is accepted must keep what the scanner promises, and must come back as the same table after it was written
 * by hm_header_write.  Each input is tried as it is, and once more with the length taken from the input's size, because
 * mutations seldom keep the first eight bytes right. */
#include "base/memory.h"
#include "fuzz/fuzz.h"
#include "io/header_scan.h"
#include "io/header_write.h"

static void require_covering(const hm_header *header, uint64_t data_start, uint64_t file_bytes)
{
    uint64_t at = data_start;
    for (size_t i = 0; i < header->count; i++) {
        const hm_tensor_info *t = &header->tensors[i];
        REQUIRE(t->offset == at && t->bytes <= file_bytes - at);
        REQUIRE(t->ndim <= HM_MAX_DIMS && t->bytes == t->elements * hm_dtype_bytes(t->dtype));
        at += t->bytes;
    }
    REQUIRE(at == file_bytes);
}

static void require_same(const hm_header *a, const hm_header *b)
{
    REQUIRE(a->count == b->count && a->meta_count == b->meta_count);
    for (size_t i = 0; i < a->count; i++) {
        const hm_tensor_info *x = &a->tensors[i], *y = &b->tensors[i];
        REQUIRE(strcmp(x->name, y->name) == 0 && x->dtype == y->dtype && x->ndim == y->ndim);
        REQUIRE(memcmp(x->shape, y->shape, sizeof x->shape) == 0);
        REQUIRE(x->bytes == y->bytes && x->elements == y->elements);
    }
    for (size_t i = 0; i < a->meta_count; i++)
        REQUIRE(strcmp(a->meta_keys[i], b->meta_keys[i]) == 0 && strcmp(a->meta_values[i], b->meta_values[i]) == 0);
}

static void try_header(const char *text, uint64_t text_bytes, uint64_t file_bytes)
{
    hm_header header, again;
    hm_error err = {0};
    hm_status status = hm_header_scan(&header, text, text_bytes, file_bytes, "file", &err);
    if (status != HM_OK) {
        REQUIRE(status == HM_ERR_FORMAT);
        require_told(status, &err);
        return;
    }
    require_covering(&header, 8 + text_bytes, file_bytes);

    hm_meta *meta = hm_alloc(header.meta_count, sizeof *meta);
    REQUIRE(meta != NULL);
    for (size_t i = 0; i < header.meta_count; i++)
        meta[i] = (hm_meta){header.meta_keys[i], header.meta_values[i]};
    hm_text written = {0};
    REQUIRE(hm_header_write(&written, header.tensors, header.count, meta, header.meta_count, 0, NULL) == HM_OK);
    REQUIRE(written.length % 8 == 0);
    REQUIRE(hm_header_scan(&again, written.data + 8, written.length - 8,
                           written.length + (file_bytes - 8 - text_bytes), "file", NULL) == HM_OK);
    require_same(&header, &again);

    hm_text_clear(&written);
    hm_release(meta);
    hm_header_clear(&again);
    hm_header_clear(&header);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t text_bytes, first = 0;
    if (hm_header_length(&text_bytes, data, size < 8 ? size : 8, size, "file", NULL) == HM_OK)
        try_header((const char *)data + 8, text_bytes, size);
    if (size < 8) return 0;
    for (unsigned i = 0; i < 8; i++) first |= (uint64_t)data[i] << (8 * i);
    first &= INT64_MAX >> 1; /* as the size of the data area; the sum of both must not wrap */
    try_header((const char *)data + 8, size - 8, size + first);
    return 0;
}
