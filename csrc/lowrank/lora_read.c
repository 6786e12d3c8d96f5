#include "lowrank/lora_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "lowrank/lora_targets.h"
#include "model/names.h"
#include "model/product.h"

#define MOST_PER_SIDE ((uint64_t)INT32_MAX) /* OpenBLAS counts so */

/* ---- suffixes ---------------------------------------------------------------------------------------------------------- */

typedef enum role { UP = 0, DOWN, MID, ALPHA, DIFF, DIFF_BIAS, ROLES } role;

static const struct {
    const char *text;
    role role;
} suffixes[] = {
    {".lora_up.weight", UP},           {".lora_down.weight", DOWN},
    {".lora_mid.weight", MID},         {".alpha", ALPHA},
    {".lora_B.weight", UP},            {".lora_A.weight", DOWN},
    {".lora_B.default.weight", UP},    {".lora_A.default.weight", DOWN},
    {".lora.up.weight", UP},           {".lora.down.weight", DOWN},
    {"_lora.up.weight", UP},           {"_lora.down.weight", DOWN},
    {".lora_linear_layer.up.weight", UP}, {".lora_linear_layer.down.weight", DOWN},
    {".lora_up", UP},                  {".lora_down", DOWN},
    {".lora_B", UP},                   {".lora_A", DOWN},
    {".diff", DIFF},                   {".diff_b", DIFF_BIAS},
};

/* What has other suffixes, by what these contain. */
static const struct {
    const char *text, *kind;
} other_kinds[] = {
    {"hada_", "LoHa"},  {"lokr_", "LoKr"},       {"dora_scale", "DoRA"}, {"lora_magnitude_vector", "DoRA"},
    {"oft_", "OFT"},    {"boft_", "BOFT"},       {"on_input", "IA3"},    {"w_norm", "a whole norm"},
    {"b_norm", "a whole norm"},
};

/* Length of the layer's name and what the tensor is of it; ROLES for an unknown suffix. */
static role role_of(const char *name, size_t *layer)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        size_t n = strlen(suffixes[i].text);
        if (length <= n || memcmp(name + length - n, suffixes[i].text, n) != 0) continue;
        *layer = length - n;
        return suffixes[i].role;
    }
    return ROLES;
}

/* The last part of a name, with the one before where it alone says nothing: ".hada_w1_a", ".a1.weight". */
static const char *suffix_shown(const char *name)
{
    static const char *const mute[] = {".weight", ".bias", ".default.weight"};
    size_t length = strlen(name), cut = 0;
    for (size_t i = 0; i < sizeof mute / sizeof mute[0]; i++) {
        size_t n = strlen(mute[i]);
        if (length > n && strcmp(name + length - n, mute[i]) == 0) cut = n;
    }
    const char *at = name + length - cut;
    while (at > name && at[-1] != '.') at--;
    return at > name ? at - 1 : name;
}

static hm_status refuse_suffix(const hm_source *file, const char *name, hm_error *err)
{
    const char *suffix = suffix_shown(name), *kind = NULL;
    for (size_t i = 0; i < sizeof other_kinds / sizeof other_kinds[0] && kind == NULL; i++)
        if (strstr(suffix, other_kinds[i].text) != NULL) kind = other_kinds[i].kind;
    return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(file), name,
                   "has the suffix %.100s%s%s%s, which is not understood; only LoRA and LoCon files can be merged, leave this "
                   "one out",
                   suffix, kind != NULL ? " (" : "", kind != NULL ? kind : "", kind != NULL ? ")" : "");
}

/* ---- layers ------------------------------------------------------------------------------------------------------------ */

struct item {
    const char *name;
    size_t length; /* of the layer's name */
    role role;
    uint32_t index;
};

/* What a file has of one layer: indices in its header, HM_ABSENT. */
struct layer {
    const char *name;
    size_t length;
    uint32_t of[ROLES];
};

static int item_order(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int order = memcmp(x->name, y->name, x->length < y->length ? x->length : y->length);
    if (order != 0) return order;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static hm_status fill_layer(struct layer *layer, const hm_source *file, const struct item *items, size_t count, hm_error *err)
{
    const hm_tensor_info *tensors = file->header.tensors;
    *layer = (struct layer){.name = items[0].name, .length = items[0].length};
    for (size_t r = 0; r < ROLES; r++) layer->of[r] = HM_ABSENT;
    for (size_t i = 0; i < count; i++) {
        uint32_t *of = &layer->of[items[i].role];
        if (*of != HM_ABSENT)
            return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), items[i].name, "is there twice, also as %.200s",
                           tensors[*of].name);
        *of = items[i].index;
    }
    bool factors = layer->of[UP] != HM_ABSENT || layer->of[DOWN] != HM_ABSENT || layer->of[MID] != HM_ABSENT ||
                   layer->of[ALPHA] != HM_ABSENT;
    if (factors && (layer->of[UP] == HM_ABSENT || layer->of[DOWN] == HM_ABSENT))
        return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), items[0].name,
                       "belongs to a pair of factors of which %s is missing",
                       layer->of[UP] != HM_ABSENT     ? "the lower one (lora_down, lora_A)"
                       : layer->of[DOWN] != HM_ABSENT ? "the upper one (lora_up, lora_B)"
                                                      : "both");
    if (factors && layer->of[DIFF] != HM_ABSENT)
        return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), tensors[layer->of[DIFF]].name,
                       "is a whole difference beside two factors; only one of them can be meant");
    return HM_OK;
}

/* The layers of the file, sorted by name. */
static hm_status list_layers(struct layer **out, size_t *out_count, const hm_source *file, hm_error *err)
{
    size_t count = file->header.count, layers = 0;
    struct item *items = hm_alloc(count, sizeof *items);
    struct layer *list = hm_alloc(count, sizeof *list);
    hm_status status = items != NULL && list != NULL ? HM_OK : hm_fail_memory(err, "layer names");
    for (uint32_t i = 0; status == HM_OK && i < count; i++) {
        const char *name = file->header.tensors[i].name;
        items[i] = (struct item){.name = name, .index = i};
        items[i].role = role_of(name, &items[i].length);
        if (file->header.tensors[i].rank > 0) /* a direction of ours, put together when the file was opened */
            status = hm_fail(err, HM_ERR_MISMATCH, hm_source_label(file), name, "belongs to a hyper-model, not to a LoRA");
        else if (items[i].role == ROLES)
            status = refuse_suffix(file, name, err);
    }
    if (status == HM_OK && count > 0) qsort(items, count, sizeof *items, item_order);
    for (size_t first = 0, end; status == HM_OK && first < count; first = end) {
        end = first + 1;
        while (end < count && items[end].length == items[first].length &&
               memcmp(items[end].name, items[first].name, items[first].length) == 0)
            end++;
        status = fill_layer(&list[layers++], file, items + first, end - first, err);
    }
    hm_release(items);
    if (status != HM_OK) {
        hm_release(list);
        return status;
    }
    *out = list;
    *out_count = layers;
    return HM_OK;
}

/* ---- the view in the making -------------------------------------------------------------------------------------------- */

/* One difference of a tensor: a pair of factors, or a stored tensor as it is. */
struct part {
    hm_lora_target target; /* without a base: tensor is the number of the layer */
    hm_factor_pair pair;
    uint64_t rows, columns, rank;
    bool whole;            /* `up` itself, rank 1 of its one column */
    const char *name;      /* of the stored tensor, for messages */
    const struct layer *layer;
};

struct reading {
    hm_source *view;
    const hm_source *file, *base;
    const hm_lora_targets *targets;
    bool common; /* layers that the base lacks are left out */
    struct part *parts;
    size_t part_count;
};

static hm_status read_alpha(const hm_source *file, uint32_t index, double *out, hm_error *err)
{
    const hm_tensor_info *tensor = &file->header.tensors[index];
    union {
        double f64;
        int64_t i64;
        int32_t i32;
        int16_t i16;
        unsigned char bytes[8];
    } stored = {0};
    float value = 0;
    if (tensor->elements != 1)
        return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), tensor->name, "must be one number, but has %" PRIu64,
                       tensor->elements);
    HM_TRY(hm_source_read(file, tensor, 0, 1, stored.bytes, err));
    switch (tensor->dtype) {
    case HM_I64: value = (float)stored.i64; break;
    case HM_I32: value = (float)stored.i32; break;
    case HM_I16: value = (float)stored.i16; break;
    default:
        if (!hm_dtype_is_float(tensor->dtype))
            return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), tensor->name, "is of type %s, which no alpha has",
                           hm_dtype_name(tensor->dtype));
        hm_kernels_best()->load[tensor->dtype](stored.bytes, &value, 1);
    }
    if (!isfinite(value)) return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), tensor->name, "is not a finite number");
    *out = value;
    return HM_OK;
}

static hm_status refuse(const hm_source *file, const hm_tensor_info *tensor, hm_error *err, const char *reason)
{
    return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), tensor->name, "%s", reason);
}

/* Rows, columns and rank of a layer's factors; *shape gets what stands behind the rows of `down`: [in, kernel…]. */
static hm_status measure_factors(struct part *part, const hm_source *file, hm_tensor_info *shape, hm_error *err)
{
    const hm_tensor_info *up = &file->header.tensors[part->pair.up], *down = &file->header.tensors[part->pair.down];
    const hm_tensor_info *mid = part->pair.mid != HM_ABSENT ? &file->header.tensors[part->pair.mid] : NULL;
    const hm_tensor_info *all[] = {up, down, mid};
    for (size_t i = 0; i < 3 && all[i] != NULL; i++) {
        if (!hm_dtype_is_float(all[i]->dtype)) return refuse(file, all[i], err, "is a factor, but not of a floating-point type");
        if (all[i]->ndim < 2) return refuse(file, all[i], err, "is a factor, but has fewer than two dimensions");
        if (all[i]->elements == 0) return refuse(file, all[i], err, "is a factor, but holds no numbers");
    }
    for (unsigned d = 2; d < up->ndim; d++)
        if (up->shape[d] != 1) return refuse(file, up, err, "is no matrix: its dimensions from the third on must be 1");
    uint64_t inner = mid != NULL ? mid->shape[0] : down->shape[0], lower = mid != NULL ? mid->shape[1] : down->shape[0];
    if (up->shape[1] != inner || down->shape[0] != lower)
        return hm_fail(err, HM_ERR_FORMAT, hm_source_label(file), up->name,
                       "has the rank %" PRIu64 ", the other factor%s %" PRIu64 "; they do not go together", up->shape[1],
                       mid != NULL ? "s" : "", up->shape[1] != inner ? inner : down->shape[0]);
    *shape = *(mid != NULL ? mid : down);
    if (mid != NULL) {
        for (unsigned d = 2; d < down->ndim; d++)
            if (down->shape[d] != 1) return refuse(file, down, err, "must be a matrix where the layer has a lora_mid");
        shape->shape[1] = down->shape[1];
    }
    part->rows = up->shape[0];
    part->rank = up->shape[1];
    part->columns = 1;
    bool fits = true;
    for (unsigned d = 1; d < shape->ndim; d++) fits = fits && hm_mul_u64(part->columns, shape->shape[d], &part->columns);
    uint64_t elements;
    if (!fits || part->rows > MOST_PER_SIDE || part->columns > MOST_PER_SIDE || part->rank > MOST_PER_SIDE ||
        !hm_mul_u64(part->rows, part->columns, &elements) || elements > INT64_MAX / sizeof(double) ||
        part->rank > INT64_MAX / sizeof(double) / (part->rows + part->columns))
        return refuse(file, up, err, "gives a product that is too large");
    return HM_OK;
}

/* Finds the rows of a part in the base, where it fits there.  `shape`: of the difference, from dimension 1 on. */
static hm_status check_place(const struct reading *r, struct part *part, const hm_tensor_info *shape, hm_error *err)
{
    const hm_tensor_info *of = &r->base->header.tensors[part->target.tensor];
    if (of->ndim == 0 && !part->whole)
        return refuse(r->file, &r->file->header.tensors[part->pair.up], err, "is a factor, but its layer is a single number");
    uint64_t rows = of->ndim > 0 ? of->shape[0] : 1, columns = rows > 0 ? of->elements / rows : 0;
    uint64_t place = rows / part->target.parts * part->target.span;
    bool fits = of->elements > 0 && rows % part->target.parts == 0 && place == part->rows && columns == part->columns;
    if (fits && of->ndim > 2 && shape->ndim == of->ndim) /* 1 × 1 convolutions also come as matrices */
        fits = memcmp(of->shape + 1, shape->shape + 1, (of->ndim - 1) * sizeof *of->shape) == 0;
    part->pair.row = rows / part->target.parts * part->target.part;
    if (fits) return HM_OK;
    return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(r->file), part->name,
                   "gives a difference of %" PRIu64 " × %" PRIu64 ", but %.200s has %" PRIu64 " × %" PRIu64
                   " of %.300s; it is a LoRA for another model",
                   part->rows, part->columns, hm_source_short_label(r->base), place, columns, of->name);
}

static hm_status add_factors(struct reading *r, const struct layer *layer, hm_error *err)
{
    struct part *part = &r->parts[r->part_count];
    hm_tensor_info shape;
    double alpha = 0;
    *part = (struct part){.pair = {.up = layer->of[UP], .down = layer->of[DOWN], .mid = layer->of[MID], .scale = 1},
                          .name = r->file->header.tensors[layer->of[UP]].name,
                          .layer = layer};
    HM_TRY(measure_factors(part, r->file, &shape, err));
    if (layer->of[ALPHA] != HM_ABSENT) {
        HM_TRY(read_alpha(r->file, layer->of[ALPHA], &alpha, err));
        part->pair.scale = (float)(alpha / (double)r->file->header.tensors[layer->of[DOWN]].shape[0]);
    }
    if (r->targets != NULL) {
        HM_TRY(hm_lora_target_find(&part->target, r->targets, hm_source_label(r->file), layer->name, layer->length, err));
        HM_TRY(check_place(r, part, &shape, err));
    } else {
        part->target = (hm_lora_target){.tensor = (uint32_t)r->part_count, .span = 1, .parts = 1};
    }
    r->part_count++;
    return HM_OK;
}

static void leave_out(struct reading *r, const struct layer *layer)
{
    if (r->view->lora_lacking++ == 0) r->view->lora_first_lacking = layer->name;
}

static hm_status add_whole(struct reading *r, const struct layer *layer, role which, hm_error *err)
{
    const hm_tensor_info *stored = &r->file->header.tensors[layer->of[which]];
    struct part *part = &r->parts[r->part_count];
    *part = (struct part){.pair = {.up = layer->of[which], .down = HM_ABSENT, .mid = HM_ABSENT, .scale = 1},
                          .whole = true, .rank = 1, .name = stored->name, .layer = layer};
    if (r->targets == NULL)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(r->file), stored->name,
                       "is a whole difference, which needs the checkpoint that the LoRAs are for: give solve that as --base");
    if (!hm_dtype_is_float(stored->dtype) || stored->elements == 0)
        return refuse(r->file, stored, err, "is a difference, but holds no floating-point numbers");
    HM_TRY(hm_lora_target_find(&part->target, r->targets, hm_source_label(r->file), layer->name, layer->length, err));
    if (which == DIFF_BIAS) part->target = hm_lora_target_bias(r->targets, part->target);
    if (part->target.tensor == HM_ABSENT && r->common) {
        leave_out(r, layer);
        return HM_OK;
    }
    if (part->target.tensor == HM_ABSENT)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(r->file), stored->name,
                       "is for a bias that %.200s does not have; --common leaves it out", hm_source_short_label(r->base));
    part->rows = stored->ndim > 0 ? stored->shape[0] : 1;
    part->columns = stored->elements / part->rows;
    HM_TRY(check_place(r, part, stored, err));
    if (part->target.parts > 1 && (part->columns > 1 || stored->ndim == 0))
        return refuse(r->file, stored, err, "is a whole difference of a part of a tensor, which only biases can be");
    if (!hm_tensor_is_contiguous(stored)) return refuse(r->file, stored, err, "is a difference that does not lie in one piece");
    r->part_count++;
    return HM_OK;
}

static int part_order(const void *a, const void *b)
{
    const struct part *x = a, *y = b;
    if (x->target.tensor != y->target.tensor) return x->target.tensor < y->target.tensor ? -1 : 1;
    if (x->pair.row != y->pair.row) return x->pair.row < y->pair.row ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The tensor that the parts of one target make. */
static hm_status offer(struct reading *r, const struct part *parts, size_t count, size_t *names_at, hm_error *err)
{
    hm_source *view = r->view;
    const hm_tensor_info *tensors = r->file->header.tensors, *stored = &tensors[parts[0].pair.up];
    hm_tensor_info *out = &view->header.tensors[view->header.count];
    for (size_t i = 1; i < count; i++)
        if (parts[i].pair.row < parts[i - 1].pair.row + parts[i - 1].rows)
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(r->file), parts[i].name, "means the same tensor as %.200s",
                           parts[i - 1].name);
    if (r->base != NULL) {
        const hm_tensor_info *of = &r->base->header.tensors[parts[0].target.tensor];
        *out = (hm_tensor_info){.dtype = HM_F32, .ndim = of->ndim, .elements = of->elements};
        memcpy(out->shape, of->shape, sizeof out->shape);
        size_t length = strlen(of->name) + 1;
        out->name = memcpy(view->product_names + *names_at, of->name, length);
        *names_at += length;
    } else {
        struct part same = parts[0];
        HM_TRY(measure_factors(&same, r->file, out, err)); /* again: `out` gets the shape behind the rows */
        out->dtype = HM_F32;
        out->shape[0] = parts[0].rows;
        out->elements = parts[0].rows * parts[0].columns;
        out->data = NULL;
        memset(out->strides, 0, sizeof out->strides);
        memcpy(view->product_names + *names_at, parts[0].layer->name, parts[0].layer->length);
        out->name = view->product_names + *names_at;
        *names_at += parts[0].layer->length + 1; /* zeroed memory */
    }
    out->offset = stored->offset;
    out->bytes = out->rank = 0;
    if (count == 1 && parts[0].whole && parts[0].target.parts == 1) { /* as it is stored, in the base's shape */
        out->dtype = stored->dtype;
        out->bytes = stored->bytes;
        out->data = stored->data;
        int64_t stride = 1;
        for (unsigned d = out->ndim; d-- > 0; stride *= (int64_t)out->shape[d]) out->strides[d] = stride;
        view->header.count++;
        return HM_OK;
    }
    view->products[view->product_count++] = (hm_product){
        .tensor = (uint32_t)view->header.count, .first = (uint32_t)(parts - r->parts), .count = (uint32_t)count};
    for (size_t i = 0; i < count; i++) {
        out->rank += parts[i].rank;
        out->bytes += tensors[parts[i].pair.up].bytes;
        if (parts[i].pair.down != HM_ABSENT) out->bytes += tensors[parts[i].pair.down].bytes;
    }
    view->header.count++;
    return HM_OK;
}

static hm_status offer_all(struct reading *r, hm_error *err)
{
    hm_source *view = r->view;
    size_t name_bytes = 0, at = 0;
    if (r->part_count > 0) qsort(r->parts, r->part_count, sizeof *r->parts, part_order);
    for (size_t i = 0; i < r->part_count; i++)
        name_bytes += 1 + (r->base != NULL ? strlen(r->base->header.tensors[r->parts[i].target.tensor].name)
                                           : r->parts[i].layer->length);
    view->header.tensors = hm_alloc(r->part_count, sizeof *view->header.tensors);
    view->products = hm_alloc(r->part_count, sizeof *view->products);
    view->pairs = hm_alloc(r->part_count, sizeof *view->pairs);
    view->product_names = hm_alloc(name_bytes, 1);
    if (view->header.tensors == NULL || view->products == NULL || view->pairs == NULL || view->product_names == NULL)
        return hm_fail_memory(err, "tensor names");
    for (size_t i = 0; i < r->part_count; i++) view->pairs[i] = r->parts[i].pair;
    for (size_t first = 0, end; first < r->part_count; first = end) {
        end = first + 1;
        while (end < r->part_count && r->parts[end].target.tensor == r->parts[first].target.tensor) end++;
        HM_TRY(offer(r, r->parts + first, end - first, &at, err));
    }
    return hm_source_index_names(view, err);
}

static hm_status read_layers(struct reading *r, const struct layer *layers, size_t count, hm_error *err)
{
    r->parts = hm_alloc(2 * count, sizeof *r->parts);
    if (r->parts == NULL) return hm_fail_memory(err, "layers");
    for (size_t i = 0; i < count; i++) {
        if (r->common && r->targets != NULL && !hm_lora_target_known(r->targets, layers[i].name, layers[i].length)) {
            leave_out(r, &layers[i]);
            continue;
        }
        if (layers[i].of[UP] != HM_ABSENT) HM_TRY(add_factors(r, &layers[i], err));
        if (layers[i].of[DIFF] != HM_ABSENT) HM_TRY(add_whole(r, &layers[i], DIFF, err));
        if (layers[i].of[DIFF_BIAS] != HM_ABSENT) HM_TRY(add_whole(r, &layers[i], DIFF_BIAS, err));
    }
    if (r->part_count == 0 && r->view->lora_lacking > 0)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(r->file), NULL,
                       "none of its %zu layers has a place in %.200s; it is a LoRA for another model", count,
                       hm_source_short_label(r->base));
    if (r->part_count == 0) return hm_fail(err, HM_ERR_FORMAT, hm_source_label(r->file), NULL, "is a LoRA without layers");
    return offer_all(r, err);
}

/* The same file behind a new face; what the view owns is empty yet. */
static hm_source *new_view(hm_source *file, const hm_source *base)
{
    hm_source *view = hm_alloc(1, sizeof *view);
    if (view == NULL) return NULL;
    atomic_init(&view->references, 1);
    view->view_of = hm_source_keep(file);
    view->is_lora = true;
    view->lora_family = base != NULL ? hm_family(base) : "lora";
    view->name = file->name;
    view->label = file->label;
    view->path = file->path;
    view->file = file->file;
    view->stamp = file->stamp;
    memcpy(view->header_hash, file->header_hash, sizeof view->header_hash);
    memcpy(view->sha256, file->sha256, sizeof view->sha256);
    view->header = file->header; /* metadata */
    view->header.tensors = NULL;
    view->header.count = 0;
    view->stored = file->header.tensors;
    view->stored_count = file->header.count;
    return view;
}

bool hm_is_lora_file(const hm_source *source)
{
    return !source->is_lora && strcmp(hm_family(source), "lora") == 0;
}

static hm_status read_one(hm_source **out, hm_source *file, const hm_source *base, const hm_lora_targets *targets, bool common,
                          hm_error *err)
{
    struct layer *layers = NULL;
    size_t count = 0;
    struct reading r = {.view = new_view(file, base), .file = file, .base = base, .targets = targets,
                        .common = common};
    hm_status status = r.view != NULL ? HM_OK : hm_fail_memory(err, "a source");
    if (status == HM_OK) status = list_layers(&layers, &count, file, err);
    if (status == HM_OK) status = read_layers(&r, layers, count, err);
    hm_release(r.parts);
    hm_release(layers);
    if (status == HM_OK)
        *out = r.view;
    else
        hm_source_close(r.view);
    return status;
}

hm_status hm_lora_read(hm_source **out, hm_source *file, const hm_source *base, bool common, hm_error *err)
{
    hm_lora_targets *targets = NULL;
    if (base != NULL) HM_TRY(hm_lora_targets_make(&targets, base, err));
    hm_status status = read_one(out, file, base, targets, common, err);
    hm_lora_targets_free(targets);
    return status;
}

/* ---- several files ----------------------------------------------------------------------------------------------------- */

#define OWN "in the words of the checkpoint"
#define DIFFUSERS "as diffusers does"
#define BARE ", without a prefix"

/* Without a base, layers of different files meet by name: so all must be named in one way. */
static const char *const kinds[][2] = {
    {"lora_unet_input_blocks_", OWN},      {"lora_unet_middle_block_", OWN},    {"lora_unet_output_blocks_", OWN},
    {"lora_unet_double_blocks_", OWN},     {"lora_unet_single_blocks_", OWN},   {"lora_unet_joint_blocks_", OWN},
    {"lora_unet_", "as kohya does"},       {"lycoris_", "as LyCORIS does"},     {"diffusion_model.", "as ComfyUI does"},
    {"unet.", DIFFUSERS},                  {"transformer.", DIFFUSERS},         {"base_model.model.", "as PEFT does"},
    {"lora_transformer_", DIFFUSERS ", with underscores"},
    {"model.diffusion_model.", OWN ", with its prefix"},
    {"down_blocks.", DIFFUSERS BARE},      {"mid_block.", DIFFUSERS BARE},      {"up_blocks.", DIFFUSERS BARE},
    {"transformer_blocks.", DIFFUSERS BARE}, {"single_transformer_blocks.", DIFFUSERS BARE},
    {"input_blocks.", OWN BARE},           {"middle_block.", OWN BARE},         {"output_blocks.", OWN BARE},
    {"double_blocks.", OWN BARE},          {"single_blocks.", OWN BARE},        {"joint_blocks.", OWN BARE},
};

static const char *kind_of(const hm_source *view, const char *prefix)
{
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, kinds[k][0]);
        if (hm_source_prefix_index(view, name) != HM_ABSENT) return kinds[k][1];
    }
    return NULL;
}

static hm_status refuse_kinds(const hm_source *view, const char *kind, const hm_source *other, const char *others,
                              hm_error *err)
{
    return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(view), NULL,
                   "names its layers %s, %.200s %s; give solve the checkpoint that they are for as --base, by which the names "
                   "can be compared",
                   kind, hm_source_short_label(other), others);
}

hm_status hm_lora_kinds_agree(const hm_source *view, const hm_source *other, const char *prefix, hm_error *err)
{
    const char *kind = kind_of(view, ""), *others = kind_of(other, prefix);
    if (kind == NULL || others == NULL || strcmp(kind, others) == 0) return HM_OK;
    return refuse_kinds(view, kind, other, others, err);
}

static hm_status check_kinds(hm_source *const *views, size_t count, hm_error *err)
{
    const char *first = NULL;
    size_t which = 0;
    for (size_t i = 0; i < count; i++) {
        const char *kind = kind_of(views[i], "");
        if (kind == NULL) continue; /* a text encoder alone */
        if (first == NULL) {
            first = kind;
            which = i;
        } else if (strcmp(first, kind) != 0) {
            return refuse_kinds(views[i], kind, views[which], first, err);
        }
    }
    return HM_OK;
}

static hm_status read_each(hm_source **out, hm_source *const *sources, size_t count, const hm_source *base, size_t loras,
                           const hm_lora_targets *targets, bool common, hm_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (!hm_is_lora_file(sources[i])) {
            out[i] = hm_source_keep(sources[i]);
            continue;
        }
        if (base == NULL && loras < count)
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(sources[i]), NULL,
                           "is a LoRA, a difference from a checkpoint; give solve the one that it is for as --base");
        HM_TRY(read_one(&out[i], sources[i], base, targets, common, err));
    }
    return base == NULL && loras > 0 ? check_kinds(out, count, err) : HM_OK;
}

hm_status hm_lora_read_all(hm_source **out, hm_source *const *sources, size_t count, const hm_source *base, bool common,
                           hm_error *err)
{
    size_t loras = 0;
    hm_lora_targets *targets = NULL;
    for (size_t i = 0; i < count; i++) {
        loras += hm_is_lora_file(sources[i]) ? 1 : 0;
        out[i] = NULL;
    }
    if (base != NULL && loras > 0) HM_TRY(hm_lora_targets_make(&targets, base, err));
    hm_status status = read_each(out, sources, count, base, loras, targets, common, err);
    hm_lora_targets_free(targets);
    for (size_t i = 0; status != HM_OK && i < count; i++) {
        hm_source_close(out[i]);
        out[i] = NULL;
    }
    return status;
}
