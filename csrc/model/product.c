#include "model/product.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"

#define UP ".lora_up"
#define DOWN ".lora_down"
#define MOST_PER_SIDE ((uint64_t)INT32_MAX) /* OpenBLAS counts so */

typedef enum role { ROLE_WHOLE, ROLE_UP, ROLE_DOWN } role;

static bool ends_with(const char *name, size_t length, const char *ending)
{
    size_t n = strlen(ending);
    return length > n && memcmp(name + length - n, ending, n) == 0;
}

/* What a tensor is, by its name; *stem is the length of the product's name. */
static role role_of(const char *name, size_t *stem)
{
    size_t length = strlen(name), prefix = sizeof HM_OWN_PREFIX - 1;
    role found = ends_with(name, length, UP) ? ROLE_UP : ends_with(name, length, DOWN) ? ROLE_DOWN : ROLE_WHOLE;
    if (found == ROLE_WHOLE || strncmp(name, HM_OWN_PREFIX, prefix) != 0) return ROLE_WHOLE;
    *stem = length - (found == ROLE_UP ? sizeof UP : sizeof DOWN) + 1;
    return *stem > prefix ? found : ROLE_WHOLE;
}

static hm_status refuse(const hm_source *source, const hm_tensor_info *tensor, hm_error *err, const char *reason)
{
    return hm_fail(err, HM_ERR_FORMAT, source->label, tensor->name, "%s", reason);
}

/* Describes the product but for its name. */
static hm_status multiply(const hm_source *source, const hm_tensor_info *up, const hm_tensor_info *down,
                          hm_tensor_info *out, hm_error *err)
{
    if (!hm_dtype_is_float(up->dtype) || !hm_dtype_is_float(down->dtype))
        return refuse(source, hm_dtype_is_float(up->dtype) ? down : up, err,
                      "is a factor, but not of a floating-point type");
    if (up->ndim < 2 || down->ndim < 2)
        return refuse(source, up->ndim < 2 ? up : down, err, "is a factor, but has fewer than two dimensions");
    for (unsigned d = 2; d < up->ndim; d++)
        if (up->shape[d] != 1)
            return refuse(source, up, err, "is no matrix: its dimensions from the third on must be 1");
    if (up->shape[1] != down->shape[0] || up->shape[1] == 0)
        return hm_fail(err, HM_ERR_FORMAT, source->label, up->name,
                       "has the rank %llu and its " DOWN " %llu; they must be equal and not 0",
                       (unsigned long long)up->shape[1], (unsigned long long)down->shape[0]);
    *out = (hm_tensor_info){.dtype = HM_F32, .ndim = down->ndim, .elements = 1, .rank = up->shape[1]};
    out->offset = up->offset < down->offset ? up->offset : down->offset;
    memcpy(out->shape, down->shape, sizeof out->shape);
    out->shape[0] = up->shape[0];
    uint64_t columns = 1, bytes;
    bool empty = false, fits = hm_add_u64(up->bytes, down->bytes, &out->bytes) && out->rank <= MOST_PER_SIDE &&
                               out->shape[0] <= MOST_PER_SIDE;
    for (unsigned d = 0; d < out->ndim; d++) { /* a 0 hides no overflow of the others */
        empty = empty || out->shape[d] == 0;
        if (out->shape[d] == 0) continue;
        fits = fits && hm_mul_u64(out->elements, out->shape[d], &out->elements);
        fits = fits && (d == 0 || hm_mul_u64(columns, out->shape[d], &columns));
    }
    if (!fits || columns > MOST_PER_SIDE || !hm_mul_u64(out->elements, sizeof(double), &bytes) || bytes > INT64_MAX)
        return refuse(source, up, err, "gives a product that is too large");
    if (empty) out->elements = 0;
    return HM_OK;
}

/* The tensor of that name in the file, or HM_ABSENT.  `name` has room for both endings behind the stem. */
static uint32_t find(const hm_source *source, char *name, size_t stem, const char *ending)
{
    strcpy(name + stem, ending);
    return hm_source_index(source, name);
}

/* The pair to which stored tensor i belongs.  `name` gets the product's name. */
static hm_status pair_of(const hm_source *source, uint32_t i, role is, size_t stem, char *name, hm_factor_pair *out,
                         hm_error *err)
{
    const hm_tensor_info *tensor = &source->header.tensors[i];
    memcpy(name, tensor->name, stem);
    out->up = is == ROLE_UP ? i : find(source, name, stem, UP);
    out->down = is == ROLE_DOWN ? i : find(source, name, stem, DOWN);
    out->mid = HM_ABSENT;
    out->row = 0;
    out->scale = 1;
    if (out->up == HM_ABSENT || out->down == HM_ABSENT)
        return hm_fail(err, HM_ERR_FORMAT, source->label, tensor->name,
                       "is one factor of two; the other, %s, is missing", is == ROLE_UP ? DOWN : UP);
    if (find(source, name, stem, "") != HM_ABSENT)
        return hm_fail(err, HM_ERR_FORMAT, source->label, name, "is there as a whole and also as two factors");
    return HM_OK;
}

hm_status hm_products_fold(hm_source *source, hm_error *err)
{
    hm_header *header = &source->header;
    size_t factors = 0, name_bytes = sizeof DOWN, at = 0, stem;
    for (size_t i = 0; i < header->count; i++) {
        if (role_of(header->tensors[i].name, &stem) == ROLE_WHOLE) continue;
        factors++;
        name_bytes += strlen(header->tensors[i].name) + 1;
    }
    if (factors == 0) return HM_OK;
    hm_tensor_info *offered = hm_alloc(header->count, sizeof *offered);
    source->products = hm_alloc(factors, sizeof *source->products);
    source->pairs = hm_alloc(factors, sizeof *source->pairs);
    source->product_names = hm_alloc(name_bytes, 1);
    hm_status status = offered != NULL && source->products != NULL && source->pairs != NULL && source->product_names != NULL
                           ? HM_OK
                           : hm_fail_memory(err, "tensor names");
    size_t count = 0;
    for (uint32_t i = 0; status == HM_OK && i < header->count; i++) {
        role is = role_of(header->tensors[i].name, &stem);
        if (is == ROLE_WHOLE) {
            offered[count++] = header->tensors[i];
            continue;
        }
        size_t number = source->product_count;
        hm_factor_pair *pair = &source->pairs[number];
        char *name = source->product_names + at;
        status = pair_of(source, i, is, stem, name, pair, err);
        if (status != HM_OK || i > pair->up || i > pair->down) continue; /* met before, at its other factor */
        status = multiply(source, &header->tensors[pair->up], &header->tensors[pair->down], &offered[count], err);
        offered[count].name = name;
        at += stem + 1;
        source->products[number] = (hm_product){.tensor = (uint32_t)count++, .first = (uint32_t)number, .count = 1};
        source->product_count++;
    }
    if (status != HM_OK) {
        hm_release(offered);
        return status;
    }
    source->stored = header->tensors;
    source->stored_count = header->count;
    header->tensors = offered;
    header->count = count;
    return hm_source_index_names(source, err);
}

static int tensor_order(const void *a, const void *b)
{
    const hm_product *x = a, *y = b;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

const hm_product *hm_source_product(const hm_source *source, uint32_t tensor)
{
    const hm_product wanted = {.tensor = tensor};
    return bsearch(&wanted, source->products, source->product_count, sizeof wanted, tensor_order);
}

const hm_tensor_info *hm_source_up(const hm_source *source, uint32_t tensor)
{
    return &source->stored[source->pairs[hm_source_product(source, tensor)->first].up];
}

const hm_tensor_info *hm_source_down(const hm_source *source, uint32_t tensor)
{
    return &source->stored[source->pairs[hm_source_product(source, tensor)->first].down];
}

hm_status hm_source_as_stored(hm_source **out, hm_source *source, hm_error *err)
{
    if (source->product_count == 0) {
        *out = hm_source_keep(source);
        return HM_OK;
    }
    hm_source *view = hm_alloc(1, sizeof *view);
    if (view == NULL) return hm_fail_memory(err, "a source");
    atomic_init(&view->references, 1);
    view->view_of = hm_source_keep(source);
    view->name = source->name;
    view->label = source->label;
    view->path = source->path;
    view->file = source->file;
    view->stamp = source->stamp;
    memcpy(view->header_hash, source->header_hash, sizeof view->header_hash);
    view->header = source->header;
    view->header.tensors = source->stored;
    view->header.count = source->stored_count;
    hm_status status = hm_source_index_names(view, err);
    if (status == HM_OK)
        *out = view;
    else
        hm_source_close(view);
    return status;
}
