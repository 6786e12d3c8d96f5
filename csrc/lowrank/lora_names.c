#include "lowrank/lora_names.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/names.h"

#define UNET "model.diffusion_model."
#define WEIGHT ".weight"

/* What is inside a block of the UNet: its name there, and the name that diffusers gives it. */
static const struct {
    const char *own, *diffusers;
} inner_names[] = {
    {"in_layers.2", "conv1"},
    {"out_layers.3", "conv2"},
    {"emb_layers.1", "time_emb_proj"},
    {"skip_connection", "conv_shortcut"},
    {"in_layers.0", "norm1"},
    {"out_layers.0", "norm2"},
};

/* Text encoders: where a checkpoint keeps them, and what the formats put in that place. */
static const struct {
    const char *family, *own, *kohya, *comfyui, *diffusers;
} encoders[] = {
    {"sd1", "cond_stage_model.transformer.text_model.", "lora_te_text_model_", "clip_l.transformer.text_model.",
     "text_encoder.text_model."},
    {"sdxl", "conditioner.embedders.0.transformer.text_model.", "lora_te1_text_model_", "clip_l.transformer.text_model.",
     "text_encoder.text_model."},
    {"sdxl", "conditioner.embedders.1.model.", "lora_te2_text_model_", "clip_g.transformer.text_model.",
     "text_encoder_2.text_model."},
    {"sd2", "cond_stage_model.model.", "lora_te_text_model_", "clip_h.transformer.text_model.",
     "text_encoder.text_model."},
    {"sd3", "text_encoders.", NULL, "", NULL},
    {"flux", "text_encoders.", NULL, "", NULL},
};

/* OpenCLIP's layers, as SDXL's second encoder and SD2's have them, in the words of the others. */
static const struct {
    const char *open_clip, *clip;
    unsigned parts; /* 3: one tensor with q, k and v */
} clip_names[] = {
    {"attn.in_proj_weight", "self_attn.%c_proj", 3},
    {"attn.out_proj.weight", "self_attn.out_proj", 1},
    {"mlp.c_fc.weight", "mlp.fc1", 1},
    {"mlp.c_proj.weight", "mlp.fc2", 1},
};

static const char *const format_names[HM_LORA_FORMAT_COUNT] = {"kohya", "comfyui", "diffusers"};

const char *hm_lora_format_name(hm_lora_format format)
{
    return format == HM_LORA_AUTO ? "auto" : format_names[format];
}

/* "sdxl" for "sdxl-inpainting": names are the same. */
static bool is_family(const char *family, const char *base)
{
    size_t length = strlen(base);
    return strncmp(family, base, length) == 0 && (family[length] == 0 || strcmp(family + length, "-inpainting") == 0);
}

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static bool put(hm_lora_part *part, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(part->name, sizeof part->name, format, arguments);
    va_end(arguments);
    return length > 0 && (size_t)length < sizeof part->name;
}

static void underscores(char *text)
{
    for (; *text != 0; text++)
        if (*text == '.') *text = '_';
}

/* Reads "12." and moves past it.  "012." is none of a network's numbers, and would give two layers one name. */
static bool number(const char **text, unsigned *out)
{
    size_t digits = strspn(*text, "0123456789");
    if (digits == 0 || digits > 3 || (*text)[digits] != '.' || (digits > 1 && **text == '0')) return false;
    *out = (unsigned)strtoul(*text, NULL, 10);
    *text += digits + 1;
    return true;
}

/* What follows the block, in diffusers' words: a resnet's convolution, or an attention's layer, which keeps its name. */
static const char *inner_name(const char *rest, bool *is_resnet)
{
    *is_resnet = true;
    for (size_t i = 0; i < sizeof inner_names / sizeof inner_names[0]; i++)
        if (strcmp(rest, inner_names[i].own) == 0) return inner_names[i].diffusers;
    *is_resnet = false;
    static const char *const same[] = {"proj_in", "proj_out", "norm"};
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++)
        if (strcmp(rest, same[i]) == 0) return rest;
    return strncmp(rest, "transformer_blocks.", 19) == 0 ? rest : NULL;
}

/* diffusers' name of a UNet layer: "down_blocks.0.attentions.1.proj_in" for "input_blocks.2.1.proj_in".  Three stages of
 * blocks between two changes of size on the way down (one of the three is the change), three on the way up. */
static bool diffusers_name(const char *own, hm_lora_part *part)
{
    unsigned block, layer;
    bool is_resnet, down = strncmp(own, "input_blocks.", 13) == 0, up = strncmp(own, "output_blocks.", 14) == 0;
    const char *rest = own + (down ? 13 : up ? 14 : 0), *inner;
    if (strncmp(own, "middle_block.", 13) == 0) {
        rest = own + 13;
        if (!number(&rest, &layer) || layer > 2 || (inner = inner_name(rest, &is_resnet)) == NULL) return false;
        return is_resnet == (layer != 1) &&
               put(part, "mid_block.%s.%u.%s", is_resnet ? "resnets" : "attentions", layer / 2, inner);
    }
    if ((!down && !up) || !number(&rest, &block) || !number(&rest, &layer)) return false;
    if (down && block == 0) return false; /* the first convolution */
    unsigned stage = down ? (block - 1) / 3 : block / 3, place = down ? (block - 1) % 3 : block % 3;
    if (down && strcmp(rest, "op") == 0) return place == 2 && put(part, "down_blocks.%u.downsamplers.0.conv", stage);
    if (up && strcmp(rest, "conv") == 0) return place == 2 && put(part, "up_blocks.%u.upsamplers.0.conv", stage);
    if ((inner = inner_name(rest, &is_resnet)) == NULL || is_resnet != (layer == 0)) return false;
    return put(part, "%s_blocks.%u.%s.%u.%s", down ? "down" : "up", stage, is_resnet ? "resnets" : "attentions", place, inner);
}

static bool is_unet_layer(const char *own)
{
    hm_lora_part part;
    return diffusers_name(own, &part);
}

static size_t unet_parts(const char *family, hm_lora_format format, const char *own, hm_lora_part *part)
{
    bool known = is_family(family, "sd1") || is_family(family, "sd2") || is_family(family, "sdxl");
    switch (format) {
    case HM_LORA_KOHYA:
        if (!known || !is_unet_layer(own)) return 0;
        if (is_family(family, "sdxl")) { /* its trainer keeps the checkpoint's own names */
            if (!put(part, "lora_unet_%s", own)) return 0;
        } else {
            hm_lora_part diffusers;
            diffusers_name(own, &diffusers);
            if (!put(part, "lora_unet_%s", diffusers.name)) return 0;
        }
        underscores(part->name);
        return 1;
    case HM_LORA_COMFYUI:
        return put(part, "diffusion_model.%s", own) ? 1 : 0;
    case HM_LORA_DIFFUSERS: {
        hm_lora_part diffusers;
        return known && diffusers_name(own, &diffusers) && put(part, "unet.%s", diffusers.name) ? 1 : 0;
    }
    default:
        return 0;
    }
}

/* The layer of a text encoder behind `before`: one part, or three. */
static size_t encoder_parts(const char *before, hm_lora_format format, const char *own, hm_lora_part *parts)
{
    char layer[HM_LORA_NAME];
    unsigned count = 1, resblock;
    const char *rest = own;
    if (strncmp(own, "transformer.resblocks.", 22) == 0) {
        rest = own + 22;
        size_t i = 0, names = sizeof clip_names / sizeof clip_names[0];
        if (!number(&rest, &resblock)) return 0;
        while (i < names && strcmp(rest, clip_names[i].open_clip) != 0) i++;
        if (i == names) return 0;
        count = clip_names[i].parts;
        snprintf(layer, sizeof layer, "encoder.layers.%u.%s", resblock, clip_names[i].clip);
    } else {
        size_t length = strlen(own), ending = strlen(WEIGHT);
        if (length <= ending || length - ending >= sizeof layer || strcmp(own + length - ending, WEIGHT) != 0) return 0;
        if (strncmp(own, "encoder.layers.", 15) != 0) return 0;
        memcpy(layer, own, length - ending);
        layer[length - ending] = 0;
    }
    for (unsigned i = 0; i < count; i++) {
        char *letter = count > 1 ? strstr(layer, "%c") : NULL;
        char one[HM_LORA_NAME];
        memcpy(one, layer, sizeof one);
        if (letter != NULL) { /* "%c_proj" becomes "q_proj" */
            size_t at = (size_t)(letter - layer);
            one[at] = "qkv"[i];
            memmove(one + at + 1, letter + 2, strlen(letter + 2) + 1);
        }
        if (!put(&parts[i], "%s%s", before, one)) return 0;
        if (format == HM_LORA_KOHYA) underscores(parts[i].name);
        parts[i].index = i;
        parts[i].count = count;
    }
    return count;
}

size_t hm_lora_parts(const char *family, hm_lora_format format, const char *name, hm_lora_part parts[HM_LORA_PARTS])
{
    memset(parts, 0, HM_LORA_PARTS * sizeof *parts);
    parts[0].count = 1;
    size_t length = strlen(name), ending = strlen(WEIGHT);
    char own[HM_LORA_NAME];
    hm_component component = hm_name_component(name);
    if (length >= sizeof own) return 0;
    if (format == HM_LORA_AUTO) return put(&parts[0], "%s", name) ? 1 : 0;
    for (size_t i = 0; i < sizeof encoders / sizeof encoders[0]; i++) {
        size_t before = strlen(encoders[i].own);
        if (!is_family(family, encoders[i].family) || strncmp(name, encoders[i].own, before) != 0) continue;
        const char *put_before = format == HM_LORA_KOHYA      ? encoders[i].kohya
                                 : format == HM_LORA_DIFFUSERS ? encoders[i].diffusers
                                                               : encoders[i].comfyui;
        if (put_before == NULL) return 0;
        char prefix[64];
        snprintf(prefix, sizeof prefix, "%s%s", format == HM_LORA_COMFYUI ? "text_encoders." : "", put_before);
        if (encoders[i].comfyui[0] != 0) return encoder_parts(prefix, format, name + before, parts);
        /* Families that keep their encoders under ComfyUI's own names. */
        if (length <= ending || strcmp(name + length - ending, WEIGHT) != 0) return 0;
        return put(&parts[0], "%s%.*s", prefix, (int)(length - before - ending), name + before) ? 1 : 0;
    }
    if (component != HM_COMPONENT_UNET || length <= ending || strcmp(name + length - ending, WEIGHT) != 0) return 0;
    memcpy(own, name, length - ending);
    own[length - ending] = 0;
    size_t prefix = strncmp(own, UNET, strlen(UNET)) == 0 ? strlen(UNET) : 0;
    return unet_parts(family, format, own + prefix, &parts[0]);
}
