/* Names of layers in LoRA files.  The whole lists are held against golden ones from Python; here are the kinds. */
#include <string.h>

#include "lowrank/lora_names.h"
#include "lowrank/transformer_names.h"
#include "tests/check.h"

static void is(const char *family, hm_lora_format format, const char *tensor, const char *wanted)
{
    hm_lora_part parts[HM_LORA_PARTS];
    size_t count = hm_lora_parts(family, format, tensor, parts);
    CHECK(count == (wanted != NULL ? 1 : 0));
    if (count == 1) {
        CHECK_TEXT(parts[0].name, wanted);
        CHECK(parts[0].index == 0 && parts[0].count == 1);
    }
}

static void test_unet(void)
{
    static const char q[] = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight";
    is("sd1", HM_LORA_KOHYA, q, "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q");
    is("sd1-inpainting", HM_LORA_DIFFUSERS, q, "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q");
    is("sd1", HM_LORA_COMFYUI, q, "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q");
    is("sdxl", HM_LORA_KOHYA, "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.ff.net.0.proj.weight",
       "lora_unet_input_blocks_4_1_transformer_blocks_1_ff_net_0_proj");
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.input_blocks.3.0.op.weight", "lora_unet_down_blocks_0_downsamplers_0_conv");
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.output_blocks.5.2.conv.weight", "lora_unet_up_blocks_1_upsamplers_0_conv");
    is("sd2", HM_LORA_KOHYA, "model.diffusion_model.middle_block.2.in_layers.2.weight", "lora_unet_mid_block_resnets_1_conv1");
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.middle_block.1.norm.weight", "lora_unet_mid_block_attentions_0_norm");
    /* Not layers that trainers know, or in places where such layers cannot be. */
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.input_blocks.0.0.weight", NULL);
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.time_embed.0.weight", NULL);
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.input_blocks.2.1.in_layers.2.weight", NULL);
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.middle_block.3.in_layers.2.weight", NULL);
    is("sd1", HM_LORA_KOHYA, "model.diffusion_model.input_blocks.99999.0.op.weight", NULL);
    is("flux", HM_LORA_KOHYA, "model.diffusion_model.double_blocks.0.img_attn.qkv.weight", NULL);
    is("flux", HM_LORA_COMFYUI, "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
       "diffusion_model.double_blocks.0.img_attn.qkv");
    is("unknown", HM_LORA_COMFYUI, "layers.3.weight", "diffusion_model.layers.3");
    is("sd1", HM_LORA_KOHYA, "first_stage_model.decoder.conv_in.weight", NULL);
}

static void test_text_encoders(void)
{
    static const char fc1[] = "cond_stage_model.transformer.text_model.encoder.layers.7.mlp.fc1.weight";
    is("sd1", HM_LORA_KOHYA, fc1, "lora_te_text_model_encoder_layers_7_mlp_fc1");
    is("sd1", HM_LORA_COMFYUI, fc1, "text_encoders.clip_l.transformer.text_model.encoder.layers.7.mlp.fc1");
    is("sd1", HM_LORA_DIFFUSERS, fc1, "text_encoder.text_model.encoder.layers.7.mlp.fc1");
    is("sdxl", HM_LORA_KOHYA, "conditioner.embedders.0.transformer.text_model.encoder.layers.7.self_attn.q_proj.weight",
       "lora_te1_text_model_encoder_layers_7_self_attn_q_proj");
    is("sdxl", HM_LORA_KOHYA, "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_proj.weight",
       "lora_te2_text_model_encoder_layers_3_mlp_fc2");
    is("sd1", HM_LORA_KOHYA, "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", NULL);
    is("sd3", HM_LORA_COMFYUI, "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
       "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1");
    is("sd3", HM_LORA_KOHYA, "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight", NULL);
}

static void test_fused(void)
{
    hm_lora_part parts[HM_LORA_PARTS];
    static const char fused[] = "conditioner.embedders.1.model.transformer.resblocks.11.attn.in_proj_weight";
    CHECK(hm_lora_parts("sdxl", HM_LORA_KOHYA, fused, parts) == 3);
    CHECK_TEXT(parts[0].name, "lora_te2_text_model_encoder_layers_11_self_attn_q_proj");
    CHECK_TEXT(parts[1].name, "lora_te2_text_model_encoder_layers_11_self_attn_k_proj");
    CHECK_TEXT(parts[2].name, "lora_te2_text_model_encoder_layers_11_self_attn_v_proj");
    for (unsigned i = 0; i < 3; i++) CHECK(parts[i].index == i && parts[i].count == 3);
    CHECK(hm_lora_parts("sdxl", HM_LORA_COMFYUI, fused, parts) == 3);
    CHECK_TEXT(parts[2].name, "text_encoders.clip_g.transformer.text_model.encoder.layers.11.self_attn.v_proj");
}

static void test_long_names(void)
{
    char name[1000];
    hm_lora_part parts[HM_LORA_PARTS];
    for (size_t length = 200; length < 320; length++) {
        memset(name, 'a', sizeof name);
        strcpy(name + length, ".weight");
        size_t count = hm_lora_parts("unknown", HM_LORA_COMFYUI, name, parts);
        CHECK(count == 0 || strlen(parts[0].name) == strlen("diffusion_model.") + length);
        CHECK(count == (strlen("diffusion_model.") + length < HM_LORA_NAME && length + 7 < HM_LORA_NAME ? 1u : 0u));
    }
}

/* All names of a tensor, and that their rows are all of it, one behind the other. */
static void is_split(const char *family, const char *tensor, size_t count, const char *first, const char *last)
{
    hm_transformer_name names[HM_TRANSFORMER_NAMES];
    if (!CHECK(hm_transformer_names(family, tensor, names) == count) || count == 0) return;
    CHECK_TEXT(names[0].name, first);
    CHECK_TEXT(names[count - 1].name, last);
    unsigned rows = 0;
    for (size_t i = 0; i < count; i++) {
        CHECK(names[i].part == rows && names[i].parts == names[0].parts);
        rows += names[i].span;
    }
    CHECK(rows == names[0].parts);
}

static void test_transformers(void)
{
    is_split("flux", "model.diffusion_model.double_blocks.18.img_attn.qkv.weight", 3,
             "transformer.transformer_blocks.18.attn.to_q", "transformer.transformer_blocks.18.attn.to_v");
    is_split("flux", "model.diffusion_model.single_blocks.0.linear1.weight", 4,
             "transformer.single_transformer_blocks.0.attn.to_q", "transformer.single_transformer_blocks.0.proj_mlp");
    is_split("flux", "model.diffusion_model.final_layer.linear.weight", 1, "transformer.proj_out", "transformer.proj_out");
    is_split("sd3", "model.diffusion_model.joint_blocks.7.context_block.attn.qkv.weight", 3,
             "transformer.transformer_blocks.7.attn.add_q_proj", "transformer.transformer_blocks.7.attn.add_v_proj");
    /* Rows in another order, other families, and what only looks alike. */
    static const char *const none[][2] = {
        {"flux", "model.diffusion_model.final_layer.adaLN_modulation.1.weight"},
        {"sd3", "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.weight"},
        {"sd1", "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"},
        {"flux", "model.diffusion_model.double_blocks..img_attn.qkv.weight"},
        {"flux", "model.diffusion_model.double_blocks.1x.img_attn.qkv.weight"},
        {"flux", "model.diffusion_model.double_blocks.1.img_attn.qkv.bias"},
        {"flux", "model.diffusion_model.img_in.0.weight"},
        {"flux", "model.diffusion_model..weight"},
        {"flux", "double_blocks.0.img_attn.qkv.weight"},
        {"flux", ""}};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) is_split(none[i][0], none[i][1], 0, NULL, NULL);
    char name[600] = "model.diffusion_model.double_blocks.";
    memset(name + strlen(name), '1', 300);
    strcat(name, ".img_attn.qkv.weight");
    is_split("flux", name, 0, NULL, NULL); /* too long to have one */
}

int main(void)
{
    test_transformers();
    test_unet();
    test_text_encoders();
    test_fused();
    test_long_names();
    return check_report("lora_names");
}
