#include "model/names.h"

#include <stdio.h>
#include <string.h>

/* ---- the tables -------------------------------------------------------------------------------------------------- */

#define UNET HM_COMPONENT_UNET
#define TEXT HM_COMPONENT_TEXT
#define OTHER HM_COMPONENT_OTHER

/* Where a name belongs, by its beginning; the first row that fits decides.  `block` NULL: made from the rest. */
static const struct place {
    const char *prefix;
    hm_component component;
    const char *block;
} places[] = {
    {"model.diffusion_model.", UNET, NULL},
    {"diffusion_model.", UNET, NULL},
    {"model_ema.", HM_COMPONENT_EMA, "ema"},
    {"model.model_sampling.", OTHER, "other"},
    {"edm_vpred.", OTHER, "other"},
    {"cond_stage_model.", TEXT, "text_encoder"},
    {"conditioner.embedders.0.", TEXT, "text_encoder_1"},
    {"conditioner.embedders.1.", TEXT, "text_encoder_2"},
    {"conditioner.", TEXT, "text_encoder"},
    {"text_encoders.clip_l.", TEXT, "text_encoder_1"},
    {"text_encoders.clip_g.", TEXT, "text_encoder_2"},
    {"text_encoders.t5", HM_COMPONENT_T5, "t5"},
    {"text_encoders.umt5", HM_COMPONENT_T5, "t5"},
    {"text_encoders.pile_t5", HM_COMPONENT_T5, "t5"},
    {"text_encoders.", TEXT, NULL},
    {"first_stage_model.", HM_COMPONENT_VAE, "vae"},
    {"vae.", HM_COMPONENT_VAE, "vae"},
};
#define FULL_DENOISER_PREFIX places[0].prefix

/* What is not averaged, by name.  WHOLE: the whole name; LAST: its last part; BEGIN: its beginning; INSIDE: anywhere.
 * Rows with WHOLE belong to no network part (component "other"). */
enum { WHOLE, LAST, INSIDE, BEGIN };
static const struct special {
    int where;
    const char *text;
    hm_rule rule;
} specials[] = {
    {BEGIN, "model_ema.", HM_RULE_DROP},

    /* Buffers that the samplers of the original code registered as parameters. */
    {WHOLE, "betas", HM_RULE_COPY},
    {WHOLE, "alphas_cumprod", HM_RULE_COPY},
    {WHOLE, "alphas_cumprod_prev", HM_RULE_COPY},
    {WHOLE, "sqrt_alphas_cumprod", HM_RULE_COPY},
    {WHOLE, "sqrt_one_minus_alphas_cumprod", HM_RULE_COPY},
    {WHOLE, "log_one_minus_alphas_cumprod", HM_RULE_COPY},
    {WHOLE, "sqrt_recip_alphas_cumprod", HM_RULE_COPY},
    {WHOLE, "sqrt_recipm1_alphas_cumprod", HM_RULE_COPY},
    {WHOLE, "posterior_variance", HM_RULE_COPY},
    {WHOLE, "posterior_log_variance_clipped", HM_RULE_COPY},
    {WHOLE, "posterior_mean_coef1", HM_RULE_COPY},
    {WHOLE, "posterior_mean_coef2", HM_RULE_COPY},
    {WHOLE, "lvlb_weights", HM_RULE_COPY},
    {WHOLE, "logvar", HM_RULE_COPY},
    {WHOLE, "scale_factor", HM_RULE_COPY},
    {WHOLE, "denoiser.sigmas", HM_RULE_COPY},
    {BEGIN, "model.model_sampling.", HM_RULE_COPY},

    /* Flags.  Which noise a model predicts decides whether it can be averaged with another; ztsnr does not. */
    {WHOLE, "v_pred", HM_RULE_VPRED},
    {BEGIN, "edm_vpred.", HM_RULE_VPRED},
    {WHOLE, "edm_mean", HM_RULE_VPRED},
    {WHOLE, "edm_std", HM_RULE_VPRED},
    {WHOLE, "ztsnr", HM_RULE_COPY},

    /* Constants inside networks; position_ids are often stored as damaged floats, attn_mask holds −inf. */
    {LAST, "position_ids", HM_RULE_COPY},
    {LAST, "logit_scale", HM_RULE_COPY},
    {LAST, "attn_mask", HM_RULE_COPY},

    /* Weights stored with a scale or as codes: the numbers of the tensor are not the weights. */
    {LAST, "scaled_fp8", HM_RULE_SCALED_FP8},
    {LAST, "scale_weight", HM_RULE_SCALED_FP8},
    {LAST, "scale_input", HM_RULE_SCALED_FP8},
    {LAST, "weight_scale", HM_RULE_SCALED_FP8},
    {LAST, "weight_scale_2", HM_RULE_SCALED_FP8},
    {LAST, "weight_scale_inv", HM_RULE_SCALED_FP8},
    {LAST, "input_scale", HM_RULE_SCALED_FP8},
    {LAST, "comfy_quant", HM_RULE_SCALED_FP8},
    {LAST, "absmax", HM_RULE_SCALED_FP8},
    {LAST, "quant_map", HM_RULE_SCALED_FP8},
    {LAST, "nested_absmax", HM_RULE_SCALED_FP8},
    {LAST, "nested_quant_map", HM_RULE_SCALED_FP8},
    {LAST, "SCB", HM_RULE_SCALED_FP8},
    {LAST, "qweight", HM_RULE_SCALED_FP8},
    {LAST, "qzeros", HM_RULE_SCALED_FP8},
    {LAST, "wscales", HM_RULE_SCALED_FP8},
    {INSIDE, ".quant_state.", HM_RULE_SCALED_FP8},
};

/* First parts of denoiser names, in reading order; `numbered`: the number that follows tells the blocks apart. */
static const struct root {
    const char *name;
    bool numbered;
} roots[] = {
    {"input_blocks", true},      {"middle_block", false},    {"output_blocks", true}, {"out", false},
    {"joint_blocks", true},      {"double_blocks", true},    {"single_blocks", true}, {"final_layer", false},
    {"time_embed", false},       {"label_emb", false},       {"x_embedder", false},   {"pos_embed", false},
    {"context_embedder", false}, {"t_embedder", false},      {"y_embedder", false},   {"img_in", false},
    {"txt_in", false},           {"time_in", false},         {"vector_in", false},    {"guidance_in", false},
};
#define ROOT_COUNT (sizeof roots / sizeof roots[0])

/* ---- looking things up ------------------------------------------------------------------------------------------- */

static bool begins(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static const struct place *place_of(const char *name)
{
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
        if (begins(name, places[i].prefix)) return &places[i];
    return NULL;
}

static const struct special *special_of(const char *name)
{
    const char *dot = strrchr(name, '.'), *last = dot != NULL ? dot + 1 : name;
    for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++) {
        const struct special *row = &specials[i];
        bool fits = row->where == WHOLE   ? strcmp(name, row->text) == 0
                    : row->where == LAST  ? strcmp(last, row->text) == 0
                    : row->where == BEGIN ? begins(name, row->text)
                                          : strstr(name, row->text) != NULL;
        if (fits) return row;
    }
    return NULL;
}

/* Index in roots of the first part of `name`, or ROOT_COUNT. */
static size_t root_of(const char *name)
{
    size_t length = strcspn(name, "."), i = 0;
    while (i < ROOT_COUNT && (strlen(roots[i].name) != length || memcmp(roots[i].name, name, length) != 0)) i++;
    return i;
}

const char *hm_component_name(hm_component component)
{
    static const char *const names[HM_COMPONENT_COUNT] = {"unet", "text_encoder", "t5", "vae", "ema", "other"};
    return (unsigned)component < HM_COMPONENT_COUNT ? names[component] : "other";
}

hm_component hm_name_component(const char *name)
{
    const struct place *place = place_of(name);
    if (place != NULL) return place->component;
    const struct special *special = special_of(name);
    return special != NULL && special->where == WHOLE ? OTHER : UNET;
}

hm_rule hm_name_rule(const char *name, hm_dtype dtype)
{
    const struct special *special = special_of(name);
    if (special != NULL) return special->rule;
    return hm_dtype_is_float(dtype) ? HM_RULE_MERGE : HM_RULE_COPY;
}

bool hm_name_is_optional(const char *name)
{
    size_t length = strlen(name);
    static const char *const endings[] = {".text_projection", ".text_projection.weight"};
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t n = strlen(endings[i]);
        if (length > n && strcmp(name + length - n, endings[i]) == 0) return true;
    }
    return false;
}

bool hm_name_is_known(const char *name)
{
    return place_of(name) != NULL || root_of(name) < ROOT_COUNT || hm_name_component(name) == OTHER;
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

/* Length of the part of a name before the next dot, and whether it is a number. */
static size_t part_length(const char *part, bool *is_number)
{
    size_t length = strcspn(part, ".");
    *is_number = length > 0 && strspn(part, "0123456789") == length;
    return length;
}

/* Length of the block's name at the beginning of `rest`.  A number counts in the first `depth` parts after the first;
 * where there is none, the first part is the block. */
static size_t block_length(const char *rest, unsigned depth)
{
    bool is_number;
    size_t first = part_length(rest, &is_number), at = first;
    for (unsigned i = 0; i < depth && rest[at] == '.'; i++) {
        at += 1 + part_length(rest + at + 1, &is_number);
        if (is_number) return at;
    }
    return first;
}

/* Layers of LoRAs have names without dots: up to the first number behind an underscore, "lora_unet_down_blocks_0". */
static size_t lora_block_length(const char *name)
{
    size_t at = strcspn(name, "_");
    while (name[at] == '_' && strspn(name + at + 1, "0123456789") == 0) at += 1 + strcspn(name + at + 1, "_");
    return name[at] == '_' ? at + 1 + strspn(name + at + 1, "0123456789") : at;
}

void hm_name_block(const char *name, char *out, size_t capacity)
{
    if (capacity == 0) return;
    const struct place *place = place_of(name);
    const char *prefix = "", *block = NULL;
    size_t length = 0;
    if (place != NULL && place->block != NULL) {
        block = place->block;
        length = strlen(block);
    } else if (place != NULL && place->component == TEXT) {
        prefix = "text_encoder_";
        block = name + strlen(place->prefix);
        length = strcspn(block, ".");
    } else if (place == NULL && begins(name, "lora_") && strchr(name, '.') == NULL) {
        block = name;
        length = lora_block_length(name);
    } else if (place == NULL && hm_name_component(name) == OTHER) {
        block = "other";
        length = strlen(block);
    } else {
        block = place != NULL ? name + strlen(place->prefix) : name;
        size_t root = root_of(block);
        unsigned depth = root < ROOT_COUNT ? (roots[root].numbered ? 1 : 0) : place != NULL ? 1 : 2;
        length = block_length(block, depth);
    }
    snprintf(out, capacity, "%s%.*s", prefix, length < capacity ? (int)length : (int)capacity, block);
}

/* Compares with runs of digits as numbers of any length; leading zeros decide last. */
static int natural_order(const char *a, const char *b)
{
    const char *a0 = a, *b0 = b;
    while (*a != 0 && *b != 0) {
        size_t da = strspn(a, "0123456789"), db = strspn(b, "0123456789");
        if (da == 0 || db == 0) {
            if (*a != *b) return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
            a++, b++;
            continue;
        }
        const char *na = a + strspn(a, "0"), *nb = b + strspn(b, "0");
        size_t la = na < a + da ? (size_t)(a + da - na) : 0, lb = nb < b + db ? (size_t)(b + db - nb) : 0;
        if (la != lb) return la < lb ? -1 : 1;
        int order = memcmp(na, nb, la);
        if (order != 0) return order;
        a += da, b += db;
    }
    if (*a != *b) return *a == 0 ? -1 : 1;
    return strcmp(a0, b0);
}

int hm_name_block_order(const char *a, const char *b)
{
    size_t x = root_of(a), y = root_of(b);
    if (x != y) return x < y ? -1 : 1;
    return natural_order(a, b);
}

/* ---- spellings --------------------------------------------------------------------------------------------------- */

bool hm_name_canonical(const char *name, char *out, size_t capacity)
{
    static const char old_text[] = "cond_stage_model.transformer.";
    static const char *const text_parts[] = {"embeddings.", "encoder.", "final_layer_norm."};
    const char *before = "", *middle = "", *rest = name;
    if (begins(name, old_text)) {
        for (size_t i = 0; i < sizeof text_parts / sizeof text_parts[0]; i++)
            if (begins(name + strlen(old_text), text_parts[i])) {
                before = old_text;
                middle = "text_model.";
                rest = name + strlen(old_text);
            }
    } else if (begins(name, "vae.")) {
        before = "first_stage_model.";
        rest = name + strlen("vae.");
    } else if (begins(name, "diffusion_model.")) {
        before = "model.";
    } else if (root_of(name) < ROOT_COUNT) {
        before = FULL_DENOISER_PREFIX;
    }
    int length = snprintf(out, capacity, "%s%s%s", before, middle, rest);
    return length >= 0 && (size_t)length < capacity;
}
