/* Globs, and the tables of tensor names: component, rule, block, spelling, family. */
#include <time.h>

#include "model/glob.h"
#include "model/names.h"
#include "model/source.h"
#include "tests/check.h"

/* Expected values of the bracket rows come from Python's fnmatch.fnmatchcase. */
static void test_glob(void)
{
    static const struct {
        const char *glob, *name;
        bool match;
    } cases[] = {
        {"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a.b/c", true}, {"a", "a", true}, {"a", "A", false},
        {"a?c", "abc", true}, {"a?c", "ac", false}, {"?", "", false}, {"a*", "a", true}, {"*a", "ba", true},
        {"*a", "ab", false}, {"a*b*c", "a1b2b3c", true}, {"a*b*c", "a1c2b", false}, {"**a**", "xay", true},
        {"model.diffusion_model.input_blocks.*", "model.diffusion_model.input_blocks.0.0.bias", true},
        {"*.input_blocks.1.*", "model.diffusion_model.input_blocks.11.0.bias", false},
        {"*.in?ut_blocks.[1-3].*", "model.input_blocks.2.x", true},
        {"*.weight", "a.weights", false},
        {"[abc]", "b", true}, {"[abc]", "d", false}, {"[!abc]", "d", true}, {"[!abc]", "a", false},
        {"[!abc]", "", false}, {"[a-c]", "b", true}, {"[c-a]", "b", false}, {"[!c-a]", "b", true},
        {"[]]", "]", true}, {"[]a]", "a", true}, {"[!]]", "]", false}, {"[!]]", "a", true}, {"[", "[", true},
        {"[a", "[a", true}, {"[!", "[!", true}, {"[]", "[]", true}, {"[!]", "[!]", true}, {"x[", "x", false},
        {"[-a]", "-", true}, {"[a-]", "-", true}, {"[a-]", "b", false}, {"[--0]", ".", true}, {"[a-b-c]", "-", true},
        {"[a-b-c]", "c", true}, {"[a--b]", "b", true}, {"[a--b]", "-", false}, {"[]-a]", "^", true},
        {"[\\]", "\\", true}, {"\\*", "\\x", true}, {"\\*", "*", false}, {"[^a]", "^", true}, {"[^a]", "b", false},
        {"[[]", "[", true}, {"a[.]b", "a.b", true}, {"*[0-9]", "w7", true}, {"[a-c][!x]*", "bz9", true},
        {"?", "\xc3\xa9", true}, {"??", "\xc3\xa9", false}, {"[\xc3\xa8-\xc3\xaa]", "\xc3\xa9", true},
        {"[\xc3\xa8-\xc3\xaa]", "e", false}, {"*\xa9", "\xc3\xa9", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (!CHECK(hm_glob_match(cases[i].glob, cases[i].name) == cases[i].match))
            fprintf(stderr, "    glob '%s' on '%s'\n", cases[i].glob, cases[i].name);
}

/* Globs on which a backtracking matcher takes for ever, or the square of the length more than it should. */
static void test_hostile_glob(void)
{
    enum { STARS = 200, LENGTH = 4000 };
    char glob[2 * STARS + 2], name[LENGTH + 1], sets[LENGTH + 2];
    for (size_t i = 0; i < STARS; i++) memcpy(glob + 2 * i, "*a", 2);
    memcpy(glob + 2 * STARS, "b", 2);
    memset(name, 'a', LENGTH);
    name[LENGTH] = 0;
    memset(sets, '[', LENGTH);
    sets[0] = '*';
    sets[LENGTH] = 0;
    clock_t start = clock();
    CHECK(!hm_glob_match(glob, name));
    CHECK(!hm_glob_match(sets, name));
    memset(name, '[', LENGTH - 2);
    CHECK(!hm_glob_match(sets, name));
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 5.0); /* milliseconds; hours if either grew as it could */
}

#define FLOAT HM_F16
#define UNET_PREFIX "model.diffusion_model."

static void test_tables(void)
{
    static const struct {
        const char *name;
        hm_dtype dtype;
        hm_component component;
        hm_rule rule;
        const char *block;
    } cases[] = {
        {UNET_PREFIX "input_blocks.4.1.proj_in.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "input_blocks.4"},
        {UNET_PREFIX "input_blocks.11.0.in_layers.0.bias", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "input_blocks.11"},
        {UNET_PREFIX "middle_block.1.norm.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "middle_block"},
        {UNET_PREFIX "output_blocks.10.0.skip_connection.bias", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE,
         "output_blocks.10"},
        {UNET_PREFIX "time_embed.2.bias", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "time_embed"},
        {UNET_PREFIX "label_emb.0.0.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "label_emb"},
        {UNET_PREFIX "out.2.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "out"},
        {UNET_PREFIX "joint_blocks.23.x_block.attn.qkv.weight", HM_F8_E4M3, HM_COMPONENT_UNET, HM_RULE_MERGE,
         "joint_blocks.23"},
        {UNET_PREFIX "t_embedder.mlp.0.bias", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "t_embedder"},
        {UNET_PREFIX "pos_embed", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "pos_embed"},
        {UNET_PREFIX "blocks.7.ffn.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "blocks.7"},
        {"double_blocks.7.img_attn.norm.key_norm.scale", HM_BF16, HM_COMPONENT_UNET, HM_RULE_MERGE, "double_blocks.7"},
        {"diffusion_model.single_blocks.0.linear1.bias", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "single_blocks.0"},
        {"cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.bias", FLOAT, HM_COMPONENT_TEXT,
         HM_RULE_MERGE, "text_encoder"},
        {"cond_stage_model.transformer.text_model.embeddings.position_ids", HM_F32, HM_COMPONENT_TEXT, HM_RULE_COPY,
         "text_encoder"},
        {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias", FLOAT, HM_COMPONENT_TEXT, HM_RULE_MERGE,
         "text_encoder"},
        {"cond_stage_model.model.attn_mask", HM_F32, HM_COMPONENT_TEXT, HM_RULE_COPY, "text_encoder"},
        {"cond_stage_model.model.logit_scale", HM_F32, HM_COMPONENT_TEXT, HM_RULE_COPY, "text_encoder"},
        {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", FLOAT, HM_COMPONENT_TEXT,
         HM_RULE_MERGE, "text_encoder_1"},
        {"conditioner.embedders.1.model.text_projection", FLOAT, HM_COMPONENT_TEXT, HM_RULE_MERGE, "text_encoder_2"},
        {"conditioner.embedders.10.model.ln_final.bias", FLOAT, HM_COMPONENT_TEXT, HM_RULE_MERGE, "text_encoder"},
        {"text_encoders.clip_l.transformer.text_projection.weight", FLOAT, HM_COMPONENT_TEXT, HM_RULE_MERGE,
         "text_encoder_1"},
        {"text_encoders.clip_g.logit_scale", FLOAT, HM_COMPONENT_TEXT, HM_RULE_COPY, "text_encoder_2"},
        {"text_encoders.gemma2_2b.layers.0.weight", FLOAT, HM_COMPONENT_TEXT, HM_RULE_MERGE, "text_encoder_gemma2_2b"},
        {"text_encoders.t5xxl.transformer.shared.weight", FLOAT, HM_COMPONENT_T5, HM_RULE_MERGE, "t5"},
        {"first_stage_model.decoder.up.0.block.0.conv1.bias", FLOAT, HM_COMPONENT_VAE, HM_RULE_MERGE, "vae"},
        {"vae.encoder.conv_in.weight", FLOAT, HM_COMPONENT_VAE, HM_RULE_MERGE, "vae"},
        {"model_ema.diffusion_modelinput_blocks00weight", FLOAT, HM_COMPONENT_EMA, HM_RULE_DROP, "ema"},
        {"model_ema.decay", HM_F32, HM_COMPONENT_EMA, HM_RULE_DROP, "ema"},
        {"model_ema.num_updates", HM_I32, HM_COMPONENT_EMA, HM_RULE_DROP, "ema"},
        {"betas", HM_F32, HM_COMPONENT_OTHER, HM_RULE_COPY, "other"},
        {"sqrt_recipm1_alphas_cumprod", HM_F32, HM_COMPONENT_OTHER, HM_RULE_COPY, "other"},
        {"model.model_sampling.sigmas", HM_F32, HM_COMPONENT_OTHER, HM_RULE_COPY, "other"},
        {"v_pred", HM_I64, HM_COMPONENT_OTHER, HM_RULE_VPRED, "other"},
        {"ztsnr", HM_F32, HM_COMPONENT_OTHER, HM_RULE_COPY, "other"},
        {"edm_vpred.sigma_max", HM_F32, HM_COMPONENT_OTHER, HM_RULE_VPRED, "other"},
        {"scaled_fp8", HM_F8_E4M3, HM_COMPONENT_UNET, HM_RULE_SCALED_FP8, "scaled_fp8"},
        {"text_encoders.t5xxl.scaled_fp8", HM_F8_E4M3, HM_COMPONENT_T5, HM_RULE_SCALED_FP8, "t5"},
        {"double_blocks.0.img_mlp.0.scale_weight", HM_F32, HM_COMPONENT_UNET, HM_RULE_SCALED_FP8, "double_blocks.0"},
        {"double_blocks.0.img_mlp.0.scale_input", HM_F32, HM_COMPONENT_UNET, HM_RULE_SCALED_FP8, "double_blocks.0"},
        {"double_blocks.0.img_mlp.0.weight_scale_2", HM_F32, HM_COMPONENT_UNET, HM_RULE_SCALED_FP8, "double_blocks.0"},
        {"double_blocks.0.img_mlp.0.comfy_quant", HM_U8, HM_COMPONENT_UNET, HM_RULE_SCALED_FP8, "double_blocks.0"},
        {"double_blocks.0.img_mlp.0.weight.quant_state.bitsandbytes__nf4", HM_U8, HM_COMPONENT_UNET,
         HM_RULE_SCALED_FP8, "double_blocks.0"},
        {"double_blocks.0.img_attn.norm.key_norm.scale", HM_F32, HM_COMPONENT_UNET, HM_RULE_MERGE, "double_blocks.0"},
        {"layers.3.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "layers.3"},
        {"layers.3.num_batches_tracked", HM_I64, HM_COMPONENT_UNET, HM_RULE_COPY, "layers.3"},
        {"layers.3.mask", HM_BOOL, HM_COMPONENT_UNET, HM_RULE_COPY, "layers.3"},
        {"model.layers.12.self_attn.q_proj.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "model.layers.12"},
        {"conv_first.weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "conv_first"},
        {"weight", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, "weight"},
        {"", FLOAT, HM_COMPONENT_UNET, HM_RULE_MERGE, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char block[64];
        hm_name_block(cases[i].name, block, sizeof block);
        int good = CHECK(hm_name_component(cases[i].name) == cases[i].component);
        good &= CHECK(hm_name_rule(cases[i].name, cases[i].dtype) == cases[i].rule);
        good &= CHECK_TEXT(block, cases[i].block);
        if (!good) fprintf(stderr, "    %s\n", cases[i].name);
    }
    char small[8];
    memset(small, 'x', sizeof small);
    hm_name_block(UNET_PREFIX "input_blocks.4.1.proj_in.weight", small, 6);
    CHECK_TEXT(small, "input");
    CHECK(small[6] == 'x');
    CHECK_TEXT(hm_component_name(HM_COMPONENT_VAE), "vae");
    CHECK_TEXT(hm_component_name(HM_COMPONENT_UNET), "unet");
    CHECK(hm_name_is_optional("cond_stage_model.transformer.text_projection.weight"));
    CHECK(hm_name_is_optional("conditioner.embedders.1.model.text_projection"));
    CHECK(!hm_name_is_optional("x.text_projection.bias"));
    CHECK(hm_name_is_known("out.0.weight"));
    CHECK(hm_name_is_known("betas"));
    CHECK(!hm_name_is_known("embedding_manager.weight"));
}

static void test_block_order(void)
{
    static const char *const ordered[] = {"input_blocks.0", "input_blocks.2", "input_blocks.11", "middle_block",
                                          "output_blocks.3", "output_blocks.10", "out", "double_blocks.9",
                                          "double_blocks.10", "single_blocks.0", "final_layer", "time_embed",
                                          "layers.1", "layers.01", "layers.2", "layers.2.x", "layers.10", "z"};
    size_t count = sizeof ordered / sizeof ordered[0];
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < count; j++) {
            int order = hm_name_block_order(ordered[i], ordered[j]);
            bool ties = i != j && strncmp(ordered[i], "layers.", 7) == 0 && strncmp(ordered[j], "layers.", 7) == 0 &&
                        (strstr(ordered[i], ".01") || strstr(ordered[j], ".01"));
            if (ties) { /* equal numbers: which comes first does not matter, but it must be the same both ways */
                CHECK((order < 0) != (hm_name_block_order(ordered[j], ordered[i]) < 0));
                continue;
            }
            if (!CHECK(i < j ? order < 0 : i > j ? order > 0 : order == 0))
                fprintf(stderr, "    %s, %s\n", ordered[i], ordered[j]);
        }
}

static void test_canonical(void)
{
    static const struct {
        const char *name, *canonical;
    } cases[] = {
        {"cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias",
         "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"},
        {"cond_stage_model.transformer.embeddings.position_ids",
         "cond_stage_model.transformer.text_model.embeddings.position_ids"},
        {"cond_stage_model.transformer.final_layer_norm.bias",
         "cond_stage_model.transformer.text_model.final_layer_norm.bias"},
        {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias",
         "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"},
        {"cond_stage_model.transformer.text_projection.weight", "cond_stage_model.transformer.text_projection.weight"},
        {"vae.decoder.conv_in.bias", "first_stage_model.decoder.conv_in.bias"},
        {"diffusion_model.img_in.bias", "model.diffusion_model.img_in.bias"},
        {"double_blocks.0.x", "model.diffusion_model.double_blocks.0.x"},
        {"pos_embed", "model.diffusion_model.pos_embed"},
        {"pos_embedding.weight", "pos_embedding.weight"},
        {"model.diffusion_model.out.0.bias", "model.diffusion_model.out.0.bias"},
        {"layers.3.weight", "layers.3.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[128], again[128];
        CHECK(hm_name_canonical(cases[i].name, out, sizeof out));
        CHECK_TEXT(out, cases[i].canonical);
        CHECK(hm_name_canonical(out, again, sizeof again)); /* a canonical name is its own */
        CHECK_TEXT(again, out);
    }
    char exact[10];
    CHECK(hm_name_canonical("123456789", exact, sizeof exact));
    CHECK(!hm_name_canonical("1234567890", exact, sizeof exact));
}

/* ---- families ---------------------------------------------------------------------------------------------------- */

typedef struct shaped {
    const char *name;
    uint64_t shape[4];
} shaped;

static void check_family(const char *expected, const shaped *tensors, size_t count)
{
    static float number;
    hm_tensor_info infos[8] = {0};
    hm_source *source = NULL;
    for (size_t i = 0; i < count; i++) {
        infos[i] = (hm_tensor_info){.name = tensors[i].name, .dtype = HM_F32, .data = &number};
        while (infos[i].ndim < 4 && tensors[i].shape[infos[i].ndim] > 0) {
            infos[i].shape[infos[i].ndim] = tensors[i].shape[infos[i].ndim];
            infos[i].ndim++;
        }
    }
    if (CHECK(hm_source_borrow(&source, expected, infos, count, NULL) == HM_OK))
        CHECK_TEXT(hm_family(source), expected);
    hm_source_close(source);
}
#define FAMILY(expected, ...) \
    check_family(expected, (const shaped[]){__VA_ARGS__}, sizeof((const shaped[]){__VA_ARGS__}) / sizeof(shaped))

#define ATTENTION "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
#define FIRST "input_blocks.0.0.weight"

static void test_families(void)
{
    FAMILY("sd1", {UNET_PREFIX FIRST, {320, 4, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 768}});
    FAMILY("sd1", {FIRST, {320, 4, 3, 3}}, {ATTENTION, {640, 768}});
    FAMILY("sd1-inpainting", {UNET_PREFIX FIRST, {320, 9, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 768}});
    FAMILY("sd1", {UNET_PREFIX FIRST, {320, 8, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 768}});
    FAMILY("sd2", {UNET_PREFIX FIRST, {320, 4, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 1024}});
    FAMILY("sdxl", {UNET_PREFIX FIRST, {320, 4, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 2048}},
           {UNET_PREFIX "label_emb.0.0.weight", {1280, 2816}});
    FAMILY("sdxl-inpainting", {UNET_PREFIX FIRST, {320, 9, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 2048}},
           {UNET_PREFIX "label_emb.0.0.weight", {1280, 2816}});
    FAMILY("sdxl-refiner", {UNET_PREFIX FIRST, {384, 4, 3, 3}}, {UNET_PREFIX ATTENTION, {768, 1280}},
           {UNET_PREFIX "label_emb.0.0.weight", {1536, 2560}});
    FAMILY("sd3", {UNET_PREFIX "joint_blocks.0.x_block.attn.qkv.weight", {192, 64}});
    FAMILY("flux", {"double_blocks.0.img_attn.qkv.weight", {9, 3}}, {"single_blocks.0.linear1.weight", {9, 3}});
    FAMILY("unknown", {"double_blocks.0.img_attn.qkv.weight", {9, 3}}, {"distilled_guidance_layer.norms.0.scale", {3}});
    FAMILY("vae", {"first_stage_model.encoder.conv_in.weight", {128, 3, 3, 3}},
           {"first_stage_model.decoder.conv_in.weight", {512, 4, 3, 3}});
    FAMILY("vae", {"encoder.conv_in.weight", {128, 3, 3, 3}}, {"decoder.conv_in.weight", {512, 4, 3, 3}});
    FAMILY("unknown", {UNET_PREFIX "blocks.0.weight", {4}}, {"vae.encoder.conv_in.weight", {128, 3, 3, 3}},
           {"vae.decoder.conv_in.weight", {512, 4, 3, 3}});
    FAMILY("lora", {"lora_unet_down_blocks_0_attentions_0_proj_in.alpha", {1}});
    FAMILY("lora", {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", {4, 320}});
    FAMILY("lora", {"double_blocks.0.img_attn.qkv.lokr_w1", {4, 4}});
    FAMILY("diffusers", {"down_blocks.0.attentions.0.proj_in.weight", {320, 320}}, {"conv_in.weight", {320, 4, 3, 3}});
    FAMILY("unknown", {"layers.0.weight", {4, 4}});
    /* The low-rank directions of a hyper-model do not make it a LoRA. */
    FAMILY("sd1", {UNET_PREFIX FIRST, {320, 4, 3, 3}}, {UNET_PREFIX ATTENTION, {640, 768}},
           {"hypermerge.direction.1." UNET_PREFIX ATTENTION ".lora_up", {640, 8}},
           {"hypermerge.direction.1." UNET_PREFIX ATTENTION ".lora_down", {8, 768}},
           {"hypermerge.direction.1.x.lora_up.weight", {640, 8}});
    FAMILY("unknown", {UNET_PREFIX FIRST, {320}}, {UNET_PREFIX ATTENTION, {640, 768}}); /* nonsense shapes */
    FAMILY("unknown", {UNET_PREFIX FIRST, {320, 4, 3, 3}}, {UNET_PREFIX ATTENTION, {640}});
    check_family("unknown", NULL, 0);

    CHECK_TEXT(hm_family_architecture("sd1"), "stable-diffusion-v1");
    CHECK_TEXT(hm_family_architecture("sdxl"), "stable-diffusion-xl-v1-base");
    CHECK_TEXT(hm_family_architecture("flux"), "flux-1-dev");
    CHECK(hm_family_architecture("unknown") == NULL);
    CHECK_TEXT(hm_family_input_kind(UNET_PREFIX FIRST, 9), "an inpainting model");
    CHECK(hm_family_input_kind(UNET_PREFIX FIRST, 4) == NULL);
    CHECK(hm_family_input_kind("x", 9) == NULL);
}

int main(void)
{
    test_glob();
    test_hostile_glob();
    test_tables();
    test_block_order();
    test_canonical();
    test_families();
    return check_report("names");
}
