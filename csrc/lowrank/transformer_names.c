#include "lowrank/transformer_names.h"

#include <stdio.h>
#include <string.h>

#define UNET "model.diffusion_model."
#define WEIGHT ".weight"

/* '#' stands for the number of the block.  Lines of one tensor are neighbours. */
static const struct {
    const char *family, *own, *diffusers;
    unsigned part, span, parts;
} names[] = {
    {"flux", "double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_q", 0, 1, 3},
    {"flux", "double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_k", 1, 1, 3},
    {"flux", "double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn.to_v", 2, 1, 3},
    {"flux", "double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_q_proj", 0, 1, 3},
    {"flux", "double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_k_proj", 1, 1, 3},
    {"flux", "double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn.add_v_proj", 2, 1, 3},
    {"flux", "double_blocks.#.img_attn.proj", "transformer_blocks.#.attn.to_out.0", 0, 1, 1},
    {"flux", "double_blocks.#.txt_attn.proj", "transformer_blocks.#.attn.to_add_out", 0, 1, 1},
    {"flux", "double_blocks.#.img_mlp.0", "transformer_blocks.#.ff.net.0.proj", 0, 1, 1},
    {"flux", "double_blocks.#.img_mlp.2", "transformer_blocks.#.ff.net.2", 0, 1, 1},
    {"flux", "double_blocks.#.txt_mlp.0", "transformer_blocks.#.ff_context.net.0.proj", 0, 1, 1},
    {"flux", "double_blocks.#.txt_mlp.2", "transformer_blocks.#.ff_context.net.2", 0, 1, 1},
    {"flux", "double_blocks.#.img_mod.lin", "transformer_blocks.#.norm1.linear", 0, 1, 1},
    {"flux", "double_blocks.#.txt_mod.lin", "transformer_blocks.#.norm1_context.linear", 0, 1, 1},
    /* The MLP is four times as wide as each of the three before it. */
    {"flux", "single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_q", 0, 1, 7},
    {"flux", "single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_k", 1, 1, 7},
    {"flux", "single_blocks.#.linear1", "single_transformer_blocks.#.attn.to_v", 2, 1, 7},
    {"flux", "single_blocks.#.linear1", "single_transformer_blocks.#.proj_mlp", 3, 4, 7},
    {"flux", "single_blocks.#.linear2", "single_transformer_blocks.#.proj_out", 0, 1, 1},
    {"flux", "single_blocks.#.modulation.lin", "single_transformer_blocks.#.norm.linear", 0, 1, 1},
    {"flux", "img_in", "x_embedder", 0, 1, 1},
    {"flux", "txt_in", "context_embedder", 0, 1, 1},
    {"flux", "time_in.in_layer", "time_text_embed.timestep_embedder.linear_1", 0, 1, 1},
    {"flux", "time_in.out_layer", "time_text_embed.timestep_embedder.linear_2", 0, 1, 1},
    {"flux", "vector_in.in_layer", "time_text_embed.text_embedder.linear_1", 0, 1, 1},
    {"flux", "vector_in.out_layer", "time_text_embed.text_embedder.linear_2", 0, 1, 1},
    {"flux", "guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1", 0, 1, 1},
    {"flux", "guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2", 0, 1, 1},
    {"flux", "final_layer.linear", "proj_out", 0, 1, 1},
    {"sd3", "joint_blocks.#.x_block.attn.qkv", "transformer_blocks.#.attn.to_q", 0, 1, 3},
    {"sd3", "joint_blocks.#.x_block.attn.qkv", "transformer_blocks.#.attn.to_k", 1, 1, 3},
    {"sd3", "joint_blocks.#.x_block.attn.qkv", "transformer_blocks.#.attn.to_v", 2, 1, 3},
    {"sd3", "joint_blocks.#.x_block.attn2.qkv", "transformer_blocks.#.attn2.to_q", 0, 1, 3},
    {"sd3", "joint_blocks.#.x_block.attn2.qkv", "transformer_blocks.#.attn2.to_k", 1, 1, 3},
    {"sd3", "joint_blocks.#.x_block.attn2.qkv", "transformer_blocks.#.attn2.to_v", 2, 1, 3},
    {"sd3", "joint_blocks.#.context_block.attn.qkv", "transformer_blocks.#.attn.add_q_proj", 0, 1, 3},
    {"sd3", "joint_blocks.#.context_block.attn.qkv", "transformer_blocks.#.attn.add_k_proj", 1, 1, 3},
    {"sd3", "joint_blocks.#.context_block.attn.qkv", "transformer_blocks.#.attn.add_v_proj", 2, 1, 3},
    {"sd3", "joint_blocks.#.x_block.attn.proj", "transformer_blocks.#.attn.to_out.0", 0, 1, 1},
    {"sd3", "joint_blocks.#.x_block.attn2.proj", "transformer_blocks.#.attn2.to_out.0", 0, 1, 1},
    {"sd3", "joint_blocks.#.context_block.attn.proj", "transformer_blocks.#.attn.to_add_out", 0, 1, 1},
    {"sd3", "joint_blocks.#.x_block.mlp.fc1", "transformer_blocks.#.ff.net.0.proj", 0, 1, 1},
    {"sd3", "joint_blocks.#.x_block.mlp.fc2", "transformer_blocks.#.ff.net.2", 0, 1, 1},
    {"sd3", "joint_blocks.#.context_block.mlp.fc1", "transformer_blocks.#.ff_context.net.0.proj", 0, 1, 1},
    {"sd3", "joint_blocks.#.context_block.mlp.fc2", "transformer_blocks.#.ff_context.net.2", 0, 1, 1},
    {"sd3", "joint_blocks.#.x_block.adaLN_modulation.1", "transformer_blocks.#.norm1.linear", 0, 1, 1},
    {"sd3", "x_embedder.proj", "pos_embed.proj", 0, 1, 1},
    {"sd3", "context_embedder", "context_embedder", 0, 1, 1},
    {"sd3", "t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1", 0, 1, 1},
    {"sd3", "t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2", 0, 1, 1},
    {"sd3", "y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1", 0, 1, 1},
    {"sd3", "y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2", 0, 1, 1},
    {"sd3", "final_layer.linear", "proj_out", 0, 1, 1},
};

/* Does the name say what the pattern says?  *block: the digits in the place of '#'. */
static bool matches(const char *pattern, const char *name, size_t length, const char **block, size_t *digits)
{
    const char *hash = strchr(pattern, '#');
    size_t before = hash != NULL ? (size_t)(hash - pattern) : strlen(pattern);
    if (length < before || memcmp(name, pattern, before) != 0) return false;
    *block = name + before;
    *digits = 0;
    if (hash == NULL) return length == before;
    while (before + *digits < length && name[before + *digits] >= '0' && name[before + *digits] <= '9') (*digits)++;
    size_t rest = strlen(hash + 1);
    return *digits > 0 && before + *digits + rest == length && memcmp(*block + *digits, hash + 1, rest) == 0;
}

size_t hm_transformer_names(const char *family, const char *name, hm_transformer_name out[HM_TRANSFORMER_NAMES])
{
    size_t length = strlen(name), ending = strlen(WEIGHT), found = 0;
    if (length <= strlen(UNET) + ending || strncmp(name, UNET, strlen(UNET)) != 0) return 0;
    if (strcmp(name + length - ending, WEIGHT) != 0) return 0;
    const char *own = name + strlen(UNET), *block;
    size_t digits;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && found < HM_TRANSFORMER_NAMES; i++) {
        if (strcmp(names[i].family, family) != 0) continue;
        if (!matches(names[i].own, own, length - strlen(UNET) - ending, &block, &digits)) continue;
        const char *hash = strchr(names[i].diffusers, '#'), *rest = hash != NULL ? hash + 1 : "";
        int before = (int)(hash != NULL ? (size_t)(hash - names[i].diffusers) : strlen(names[i].diffusers));
        int written = snprintf(out[found].name, sizeof out[found].name, "transformer.%.*s%.*s%s", before, names[i].diffusers,
                               (int)digits, block, rest);
        if (written < 0 || (size_t)written >= sizeof out[found].name) continue;
        out[found].part = names[i].part;
        out[found].span = names[i].span;
        out[found++].parts = names[i].parts;
    }
    return found;
}
