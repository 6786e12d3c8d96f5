/* The family of a file, from a few names and shapes that tell it apart.  Names are tried under every prefix under which
 * the denoiser of a checkpoint, or a file with the denoiser alone, keeps them. */
#include <string.h>

#include "model/names.h"
#include "model/source.h"

static const char *const denoiser_prefixes[] = {"model.diffusion_model.", "", "diffusion_model."};
static const char *const vae_prefixes[] = {"first_stage_model.", "vae.", ""};
#define PREFIXES 3

/* Endings that only adapters have.  Full weights of an adapter file (".diff") tell nothing alone. */
static const char *const lora_endings[] = {
    ".lora_up.weight", ".lora_down.weight", ".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight",
    ".lora_B.default.weight", "_lora.up.weight", "_lora.down.weight", ".lora.up.weight", ".lora.down.weight",
    ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight", ".lora_up", ".lora_down", ".lora_A", ".lora_B",
    ".lora_mid.weight", ".hada_w1_a", ".hada_w2_a", ".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w2_a", ".oft_blocks",
    ".dora_scale",
};
static const char *const lora_beginnings[] = {"lora_unet_", "lora_te", "lora_transformer_", "lycoris_"};
static const char *const diffusers_beginnings[] = {
    "down_blocks.", "up_blocks.", "unet.down_blocks.", "decoder.up_blocks.", "encoder.down_blocks.",
    "single_transformer_blocks.", "time_text_embed.",
};
/* Networks with the block names of Flux or of SD 1 and 2 that are something else: video models, other distillates. */
static const char *const not_flux[] = {"txt_in.individual_token_refiner.", "distilled_guidance_layer.",
                                       "double_stream_modulation_img."};

static const struct {
    const char *canonical; /* its dimension 1 are the input channels */
    uint64_t channels;
    const char *kind;
} input_kinds[] = {
    {"model.diffusion_model.input_blocks.0.0.weight", 9, "an inpainting model"},
    {"model.diffusion_model.input_blocks.0.0.weight", 8, "an instruct-pix2pix model"},
    {"model.diffusion_model.input_blocks.0.0.weight", 5, "a depth-to-image model"},
    {"model.diffusion_model.img_in.weight", 384, "an inpainting model"},
    {"model.diffusion_model.img_in.weight", 128, "a canny or depth model"},
};

static const struct {
    const char *family, *architecture;
} architectures[] = {
    {"sd1", "stable-diffusion-v1"},
    {"sd1-inpainting", "stable-diffusion-v1-inpainting"},
    {"sd2", "stable-diffusion-v2"},
    {"sd2-inpainting", "stable-diffusion-v2-inpainting"},
    {"sdxl", "stable-diffusion-xl-v1-base"},
    {"sdxl-inpainting", "stable-diffusion-xl-v1-inpainting"},
    {"sdxl-refiner", "stable-diffusion-xl-v1-refiner"},
    {"sd3", "stable-diffusion-3"},
    {"flux", "flux-1-dev"},
};

static bool ends(const char *name, size_t length, const char *ending)
{
    size_t n = strlen(ending);
    return length >= n && memcmp(name + length - n, ending, n) == 0;
}

/* Is there a tensor whose name begins with one of the prefixes and then `text`?  *prefix tells which. */
static bool has_under(const hm_source *source, const char *const *prefixes, const char *text, const char **prefix)
{
    char name[128];
    for (size_t i = 0; i < PREFIXES; i++) {
        size_t length = strlen(prefixes[i]);
        memcpy(name, prefixes[i], length);
        memcpy(name + length, text, strlen(text) + 1); /* both come from this file and are short */
        if (hm_source_prefix_index(source, name) == HM_ABSENT) continue;
        if (prefix != NULL) *prefix = prefixes[i];
        return true;
    }
    return false;
}

static bool has_any(const hm_source *source, const char *const *beginnings, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (hm_source_prefix_index(source, beginnings[i]) != HM_ABSENT) return true;
    return false;
}

static bool is_lora(const hm_source *source)
{
    if (has_any(source, lora_beginnings, sizeof lora_beginnings / sizeof lora_beginnings[0])) return true;
    for (size_t i = 0; i < source->header.count; i++) {
        const char *name = source->header.tensors[i].name;
        if (strncmp(name, HM_OWN_PREFIX, strlen(HM_OWN_PREFIX)) == 0) continue; /* a hyper-model's own directions */
        size_t length = strlen(name);
        for (size_t k = 0; k < sizeof lora_endings / sizeof lora_endings[0]; k++)
            if (ends(name, length, lora_endings[k])) return true;
    }
    return false;
}

/* Width of the text features that the UNet's cross attention takes in: 768 SD1, 1024 SD2, 2048 SDXL, 1280 its refiner;
 * 0 when there is none. */
static uint64_t context_width(const hm_source *source, const char *prefix)
{
    for (size_t i = 0; i < source->header.count; i++) {
        const hm_tensor_info *tensor = &source->header.tensors[i];
        if (tensor->ndim >= 2 && strncmp(tensor->name, prefix, strlen(prefix)) == 0 &&
            ends(tensor->name, strlen(tensor->name), ".attn2.to_k.weight"))
            return tensor->shape[1];
    }
    return 0;
}

static const char *unet_family(const hm_source *source, const char *prefix)
{
    char name[128];
    memcpy(name, prefix, strlen(prefix) + 1);
    const hm_tensor_info *first = hm_source_find(source, strcat(name, "input_blocks.0.0.weight"));
    if (first == NULL || first->ndim < 2) return "unknown";
    for (size_t i = 0; i < source->header.count; i++) /* video models keep the names and add a second stack */
        if (strstr(source->header.tensors[i].name, ".time_stack.") != NULL) return "unknown";
    bool inpainting = first->shape[1] == 9;
    bool labelled = has_under(source, denoiser_prefixes, "label_emb.", NULL);
    switch (context_width(source, prefix)) {
    case 768: return inpainting ? "sd1-inpainting" : "sd1";
    case 1024: return inpainting ? "sd2-inpainting" : "sd2";
    case 1280: return labelled ? "sdxl-refiner" : "unknown";
    case 2048: return !labelled ? "unknown" : inpainting ? "sdxl-inpainting" : "sdxl";
    default: return "unknown";
    }
}

const char *hm_family(const hm_source *source)
{
    const char *prefix = "";
    if (is_lora(source)) return "lora";
    if (has_any(source, diffusers_beginnings, sizeof diffusers_beginnings / sizeof diffusers_beginnings[0]))
        return "diffusers";
    if (has_under(source, denoiser_prefixes, "joint_blocks.0.", NULL)) return "sd3";
    if (has_under(source, denoiser_prefixes, "double_blocks.0.", NULL) ||
        has_under(source, denoiser_prefixes, "single_blocks.0.", NULL)) {
        for (size_t i = 0; i < sizeof not_flux / sizeof not_flux[0]; i++)
            if (has_under(source, denoiser_prefixes, not_flux[i], NULL)) return "unknown";
        return "flux";
    }
    if (has_under(source, denoiser_prefixes, "input_blocks.0.0.", &prefix)) return unet_family(source, prefix);
    if (hm_source_prefix_index(source, "model.diffusion_model.") == HM_ABSENT &&
        has_under(source, vae_prefixes, "decoder.conv_in.", NULL) &&
        has_under(source, vae_prefixes, "encoder.conv_in.", NULL))
        return "vae";
    return "unknown";
}

const char *hm_family_architecture(const char *family)
{
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++)
        if (strcmp(architectures[i].family, family) == 0) return architectures[i].architecture;
    return NULL;
}

const char *hm_family_input_kind(const char *canonical, uint64_t channels)
{
    for (size_t i = 0; i < sizeof input_kinds / sizeof input_kinds[0]; i++)
        if (input_kinds[i].channels == channels && strcmp(input_kinds[i].canonical, canonical) == 0)
            return input_kinds[i].kind;
    return NULL;
}
