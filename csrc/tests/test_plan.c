/* Plans: what is merged, copied, left out and refused, on small models that carry the telling names of real ones. */
#include "model/plan.h"

#include <time.h>

#include "tests/check.h"
#include "tests/model_files.h"

#define U "model.diffusion_model."
#define TE "cond_stage_model.transformer."
#define FIRST U "input_blocks.0.0.weight"
#define ATTENTION U "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- models ------------------------------------------------------------------------------------------------------ */

static const spec sd1[] = {
    {FIRST, HM_F16, {2, 4, 3, 3, -1}, 0},
    {ATTENTION, HM_F16, {2, 768, -1}, 0},
    {U "middle_block.0.bias", HM_F32, {2, -1}, 0},
    {U "output_blocks.10.0.bias", HM_F16, {2, -1}, 0},
    {U "output_blocks.9.0.bias", HM_F16, {2, -1}, 0},
    {U "out.2.bias", HM_F16, {4, -1}, 0},
    {TE "text_model.embeddings.position_ids", HM_I64, {1, 77, -1}, 0},
    {TE "text_model.final_layer_norm.bias", HM_F16, {3, -1}, 0},
    {"first_stage_model.decoder.conv_in.bias", HM_F16, {5, -1}, 0},
    {"betas", HM_F32, {10, -1}, 0},
};
#define SD1 sd1, COUNT(sd1)

/* Borrowed tensors; a plan never looks at numbers. */
static hm_source *model(const char *name, const spec *specs, size_t count)
{
    static const double number;
    hm_tensor_info *infos = calloc(count + 1, sizeof *infos);
    hm_source *source = NULL;
    hm_error err = {0};
    for (size_t i = 0; infos != NULL && i < count; i++) {
        infos[i] = spec_info(&specs[i]);
        infos[i].data = &number;
    }
    if (infos == NULL || !CHECK(hm_source_borrow(&source, name, infos, count, &err) == HM_OK)) {
        fprintf(stderr, "    %s\n", err.message);
        exit(1);
    }
    free(infos);
    return source;
}

/* The same model with tensor `at` replaced (or removed, with a NULL name), and `extra` added (NULL for none). */
static hm_source *variant(const char *name, const spec *specs, size_t count, size_t at, spec with, const spec *extra)
{
    spec copy[32];
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        if (i != at)
            copy[n++] = specs[i];
        else if (with.name != NULL)
            copy[n++] = with;
    if (extra != NULL) copy[n++] = *extra;
    return model(name, copy, n);
}
#define NOTHING ((spec){.name = NULL})
#define NOWHERE ((size_t)-1)

/* ---- making and reading plans ------------------------------------------------------------------------------------ */

static hm_error last_error;

/* Closes the sources: the plan holds its own references.  NULL when refused; the error is in last_error. */
static hm_plan *plan_of(hm_source **sources, size_t count, hm_source *base, hm_source *carrier,
                        const hm_selection *selection)
{
    hm_plan *plan = NULL;
    last_error = (hm_error){0};
    hm_status status = hm_plan_make(&plan, sources, count, base, carrier, selection, &last_error);
    CHECK(status == last_error.status);
    CHECK((status == HM_OK) == (plan != NULL));
    for (size_t i = 0; i < count; i++)
        if (i == 0 || sources[i] != sources[0]) hm_source_close(sources[i]);
    hm_source_close(base);
    hm_source_close(carrier);
    return plan;
}

static hm_plan *plan_two(hm_source *a, hm_source *b, const hm_selection *selection)
{
    return plan_of((hm_source *[]){a, b}, 2, NULL, NULL, selection);
}

static const hm_plan_tensor *find(const hm_plan *plan, const char *name)
{
    for (size_t t = 0; plan != NULL && t < plan->count; t++)
        if (strcmp(plan->tensors[t].like->name, name) == 0) return &plan->tensors[t];
    return NULL;
}

static bool is_merged(const hm_plan *plan, const char *name)
{
    const hm_plan_tensor *tensor = find(plan, name);
    return tensor != NULL && tensor->action == HM_ACTION_MERGE;
}

static bool is_copied(const hm_plan *plan, const char *name)
{
    const hm_plan_tensor *tensor = find(plan, name);
    return tensor != NULL && tensor->action == HM_ACTION_COPY && tensor->copy_from == plan->carrier &&
           strcmp(hm_source_tensor(tensor->copy_from, tensor->copy_index)->name, name) == 0;
}

static void check_note(const hm_plan *plan, const char *text)
{
    for (size_t i = 0; plan != NULL && i < plan->note_count; i++)
        if (strcmp(plan->notes[i], text) == 0) {
            CHECK(plan->notes[i] != NULL);
            return;
        }
    CHECK_TEXT(plan != NULL && plan->note_count > 0 ? plan->notes[0] : "(no notes)", text);
}

/* Frees the plan; it must have been refused with this status and these words. */
static void check_refused(hm_plan *plan, hm_status status, const char *part, const char *part2)
{
    CHECK(plan == NULL);
    CHECK(last_error.status == status);
    CHECK_HAS(last_error.message, part);
    CHECK_HAS(last_error.message, part2);
    CHECK(strchr(last_error.message, '\n') == NULL);
    hm_plan_free(plan);
}

/* What must hold for every plan. */
static void check_consistent(const hm_plan *plan)
{
    size_t merged = 0;
    uint64_t elements = 0;
    for (size_t t = 0; t < plan->count; t++) {
        const hm_plan_tensor *tensor = &plan->tensors[t];
        if (t > 0) CHECK(hm_tensor_usual_order(plan->tensors[t - 1].like, tensor->like) < 0);
        CHECK(tensor->block < plan->block_count);
        if (tensor->action == HM_ACTION_MERGE) {
            merged++;
            elements += tensor->like->elements;
        }
        for (size_t s = 0; s < plan->source_count; s++) {
            uint32_t i = plan->index[t * plan->source_count + s];
            if (!CHECK((i != HM_ABSENT) == (tensor->action == HM_ACTION_MERGE)) || i == HM_ABSENT) continue;
            const hm_tensor_info *here = hm_source_tensor(plan->sources[s], i);
            CHECK(here != NULL && here->elements == tensor->like->elements && hm_dtype_is_float(here->dtype));
        }
        CHECK((plan->base_index[t] != HM_ABSENT) == (plan->base != NULL && tensor->action == HM_ACTION_MERGE));
    }
    CHECK(merged == plan->merged_count && elements == plan->merged_elements);
}

/* ---- what is merged ---------------------------------------------------------------------------------------------- */

static void test_usual(void)
{
    hm_plan *plan = plan_two(model("a", SD1), model("b", SD1), NULL);
    if (!CHECK(plan != NULL)) return;
    check_consistent(plan);
    CHECK_TEXT(plan->family, "sd1");
    CHECK(plan->count == COUNT(sd1) && plan->merged_count == 7 && plan->note_count == 0);
    CHECK(plan->merged_elements == 72 + 1536 + 2 + 2 + 2 + 4 + 3);
    CHECK(is_merged(plan, FIRST) && is_merged(plan, TE "text_model.final_layer_norm.bias"));
    CHECK(is_copied(plan, TE "text_model.embeddings.position_ids"));
    CHECK(is_copied(plan, "first_stage_model.decoder.conv_in.bias"));
    CHECK(is_copied(plan, "betas"));
    CHECK(find(plan, "betas")->component == HM_COMPONENT_OTHER);
    CHECK_TEXT(plan->tensors[0].like->name, TE "text_model.embeddings.position_ids"); /* 8 bytes per element */
    static const char *const blocks[] = {"input_blocks.0", "input_blocks.1", "middle_block", "output_blocks.9",
                                         "output_blocks.10", "out", "text_encoder", "vae", "other"};
    CHECK(plan->block_count == COUNT(blocks));
    for (size_t i = 0; i < COUNT(blocks) && i < plan->block_count; i++) CHECK_TEXT(plan->block_names[i], blocks[i]);
    CHECK(plan->block_components[6] == HM_COMPONENT_TEXT && plan->block_components[0] == HM_COMPONENT_UNET);
    CHECK_TEXT(plan->block_names[find(plan, ATTENTION)->block], "input_blocks.1");

    /* NaN found later, with --allow-nonfinite. */
    size_t t = (size_t)(find(plan, ATTENTION) - plan->tensors);
    hm_plan_copy_instead(plan, t);
    hm_plan_copy_instead(plan, t);
    CHECK(is_copied(plan, ATTENTION) && plan->merged_count == 6);
    check_consistent(plan);
    CHECK(hm_plan_note(plan, NULL, "%s: copied\n", "x") == HM_OK);
    check_note(plan, "x: copied?");
    hm_plan_free(plan);
    hm_plan_free(NULL);
}

static void test_duplicates_and_single(void)
{
    hm_source *a = model("a", SD1);
    hm_plan *plan = plan_of((hm_source *[]){a, a}, 2, NULL, NULL, NULL); /* the very same source */
    CHECK(plan != NULL && plan->merged_count == 7);
    if (plan != NULL) check_consistent(plan);
    hm_plan_free(plan);
    a = model("a", SD1);
    plan = plan_of(&a, 1, NULL, NULL, NULL);
    CHECK(plan != NULL && plan->count == COUNT(sd1) && plan->merged_count == 7);
    hm_plan_free(plan);
    check_refused(plan_of(NULL, 0, NULL, NULL, NULL), HM_ERR_ARGUMENT, "no model", "");
    hm_source *many[HM_MAX_MEMBERS + 1];
    for (size_t i = 0; i < COUNT(many); i++) many[i] = model("a", SD1);
    check_refused(plan_of(many, COUNT(many), NULL, NULL, NULL), HM_ERR_ARGUMENT, "65 models", "64");
}

static void test_selection(void)
{
    hm_selection vae = {.include = (const char *const[]){"first_stage_model.*", "*.out.*"}, .includes = 2};
    hm_plan *plan = plan_two(model("a", SD1), model("b", SD1), &vae);
    CHECK(plan != NULL && plan->merged_count == 2 && plan->count == COUNT(sd1));
    CHECK(is_merged(plan, "first_stage_model.decoder.conv_in.bias") && is_merged(plan, U "out.2.bias"));
    CHECK(is_copied(plan, FIRST));
    hm_plan_free(plan);

    hm_selection no_text = {.exclude = (const char *const[]){"cond_stage_model.*"}, .excludes = 1};
    plan = plan_two(model("a", SD1), model("b", SD1), &no_text);
    CHECK(plan != NULL && plan->merged_count == 6 && is_copied(plan, TE "text_model.final_layer_norm.bias"));
    hm_plan_free(plan);

    /* What is never averaged stays so, even when it is named. */
    hm_selection all = {.include = (const char *const[]){"*"}, .includes = 1};
    plan = plan_two(model("a", SD1), model("b", SD1), &all);
    CHECK(plan != NULL && plan->merged_count == 8 && is_copied(plan, "betas"));
    hm_plan_free(plan);

    hm_selection typo = {.include = (const char *const[]){"*", "*.Out.*"}, .includes = 2};
    check_refused(plan_two(model("a", SD1), model("b", SD1), &typo), HM_ERR_ARGUMENT, "'*.Out.*'", "--include");
    hm_selection typo2 = {.exclude = (const char *const[]){"nothing"}, .excludes = 1};
    check_refused(plan_two(model("a", SD1), model("b", SD1), &typo2), HM_ERR_ARGUMENT, "'nothing'", "--exclude");
    hm_selection none = {.include = (const char *const[]){"betas"}, .includes = 1};
    check_refused(plan_two(model("a", SD1), model("b", SD1), &none), HM_ERR_MISMATCH, "nothing is left to merge", "");
}

static void test_spellings(void)
{
    /* A file of the first days: no "text_model."; the carrier's spelling is kept, whoever it is. */
    hm_source *old = variant("old", SD1, 7, (spec){TE "final_layer_norm.bias", HM_F32, {3, -1}, 0}, NULL);
    hm_plan *plan = plan_two(old, model("new", SD1), NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && is_merged(plan, TE "final_layer_norm.bias"));
    if (plan != NULL) {
        check_consistent(plan);
        CHECK(find(plan, TE "final_layer_norm.bias")->like->dtype == HM_F32);
    }
    hm_plan_free(plan);
    old = variant("old", SD1, 7, (spec){TE "final_layer_norm.bias", HM_F32, {3, -1}, 0}, NULL);
    plan = plan_two(model("new", SD1), old, NULL);
    CHECK(plan != NULL && is_merged(plan, TE "text_model.final_layer_norm.bias"));
    hm_plan_free(plan);

    /* A denoiser without prefix meets a full checkpoint. */
    static const spec bare[] = {{"double_blocks.0.img_attn.qkv.weight", HM_BF16, {2, 2, -1}, 0},
                                {"img_in.weight", HM_BF16, {2, 2, -1}, 0}};
    static const spec full[] = {{U "double_blocks.0.img_attn.qkv.weight", HM_BF16, {2, 2, -1}, 0},
                                {U "img_in.weight", HM_BF16, {2, 2, -1}, 0},
                                {"vae.decoder.conv_in.bias", HM_F32, {4, -1}, 0},
                                {"text_encoders.t5xxl.transformer.shared.weight", HM_F16, {4, -1}, 0},
                                {"text_encoders.clip_l.transformer.x", HM_F16, {4, -1}, 0}};
    plan = plan_two(model("full", full, COUNT(full)), model("bare", bare, COUNT(bare)), NULL);
    CHECK(plan != NULL && plan->merged_count == 2 && plan->count == 5 && is_merged(plan, U "img_in.weight"));
    CHECK(is_copied(plan, "text_encoders.clip_l.transformer.x"));
    check_note(plan, "text_encoder_1: copied from full (absent in bare)");
    check_note(plan, "t5: copied from full (absent in bare)");
    check_note(plan, "vae: copied from full (absent in bare)");
    hm_plan_free(plan);
    plan = plan_two(model("bare", bare, COUNT(bare)), model("full", full, COUNT(full)), NULL);
    CHECK(plan != NULL && plan->merged_count == 2 && plan->count == 2 && is_merged(plan, "img_in.weight"));
    check_note(plan, "text_encoder_1: left out (absent in bare)");
    hm_plan_free(plan);
    plan = plan_two(model("full", full, COUNT(full)), model("f2", full, COUNT(full)), NULL);
    CHECK(plan != NULL && plan->merged_count == 3 && plan->note_count == 0); /* T5 and VAE are copied as ever */
    hm_plan_free(plan);

    /* One tensor under two spellings in one file is no basis for anything. */
    static const spec twice[] = {{"diffusion_model.out.0.bias", HM_F32, {1, -1}, 0},
                                 {"out.0.bias", HM_F32, {1, -1}, 0}};
    check_refused(plan_two(model("a", twice, 2), model("b", twice, 2), NULL), HM_ERR_MISMATCH, "twice", "out.0.bias");
}

static void test_dropped(void)
{
    const spec ema = {"model_ema.diffusion_modelout2bias", HM_F32, {4, -1}, 0};
    hm_plan *plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &ema), model("b", SD1), NULL);
    CHECK(plan != NULL && plan->count == COUNT(sd1) && find(plan, ema.name) == NULL);
    check_note(plan, "1 EMA tensor dropped from a");
    hm_plan_free(plan);
    plan = plan_two(model("a", SD1), variant("b", SD1, NOWHERE, NOTHING, &ema), NULL);
    check_note(plan, "1 EMA tensor dropped from b");
    hm_plan_free(plan);
    plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &ema), variant("b", SD1, NOWHERE, NOTHING, &ema), NULL);
    check_note(plan, "2 EMA tensors dropped from a, b");
    hm_plan_free(plan);
}

static void test_components(void)
{
    hm_plan *plan = plan_two(model("a", SD1), model("b", sd1, 6), NULL); /* b: the denoiser alone */
    CHECK(plan != NULL && plan->merged_count == 6 && plan->count == COUNT(sd1) && plan->note_count == 2);
    check_note(plan, "text_encoder: copied from a (absent in b)");
    hm_plan_free(plan);
    plan = plan_two(model("b", sd1, 6), model("a", SD1), NULL);
    CHECK(plan != NULL && plan->merged_count == 6 && plan->count == 6);
    check_note(plan, "text_encoder: left out (absent in b)");
    hm_plan_free(plan);
    check_refused(plan_two(model("a", SD1), model("b", sd1 + 6, 4), NULL), HM_ERR_MISMATCH,
                  "b: holds no denoiser", "while a does");
    hm_selection vae = {.include = (const char *const[]){"first_stage_model.*"}, .includes = 1};
    plan = plan_two(model("a", SD1), model("b", sd1 + 6, 4), &vae); /* not asked for, so not missed */
    CHECK(plan != NULL && plan->merged_count == 1);
    hm_plan_free(plan);

    /* One of two text encoders. */
    static const spec two[] = {{U "joint_blocks.0.x", HM_F16, {2, -1}, 0},
                               {"text_encoders.clip_g.x", HM_F16, {2, -1}, 0},
                               {"text_encoders.clip_l.x", HM_F16, {2, -1}, 0}};
    plan = plan_two(model("a", two, 3), model("b", two, 2), NULL);
    CHECK(plan != NULL && plan->merged_count == 2 && is_copied(plan, "text_encoders.clip_l.x"));
    check_note(plan, "text_encoder_1: copied from a (absent in b)");
    hm_plan_free(plan);
}

/* What some programs add to files of known families is no reason to refuse them. */
static void test_extras(void)
{
    const spec projection = {TE "text_projection.weight", HM_F16, {3, 3, -1}, 0};
    const spec junk = {"embedding_manager.x", HM_F32, {3, -1}, 0};
    hm_plan *plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &projection), model("b", SD1), NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && is_copied(plan, projection.name));
    check_note(plan, "1 tensor that the inputs do not share: 1 copied from a, 0 left out (the first is " TE
                     "text_projection.weight)");
    hm_plan_free(plan);
    plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &projection), variant("b", SD1, NOWHERE, NOTHING, &projection),
                    NULL);
    CHECK(plan != NULL && plan->merged_count == 8 && is_merged(plan, projection.name));
    hm_plan_free(plan);
    plan = plan_two(model("a", SD1), variant("b", SD1, NOWHERE, NOTHING, &junk), NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && find(plan, junk.name) == NULL && plan->note_count == 1);
    hm_plan_free(plan);
}

/* ---- what is refused --------------------------------------------------------------------------------------------- */

static const spec net[] = {{"layers.0.weight", HM_F32, {4, -1}, 0}, {"layers.1.weight", HM_F32, {4, -1}, 0},
                           {"layers.2.weight", HM_F32, {4, -1}, 0}, {"layers.10.weight", HM_F32, {4, -1}, 0},
                           {"layers.4.weight", HM_F32, {4, -1}, 0}, {"layers.5.weight", HM_F32, {4, -1}, 0},
                           {"layers.6.weight", HM_F32, {4, -1}, 0}};
#define NET net, COUNT(net)

static void test_misfits(void)
{
    static const hm_selection common = {.common = true};
    spec other[COUNT(net)];
    memcpy(other, net, sizeof net);

    check_refused(plan_two(model("a", NET), variant("b", NET, 3, NOTHING, NULL), NULL), HM_ERR_MISMATCH,
                  "b: layers.10.weight: absent, while a has it", "--common");
    check_refused(plan_two(variant("a", NET, 3, NOTHING, NULL), model("b", NET), NULL), HM_ERR_MISMATCH,
                  "a: layers.10.weight: absent, while b has it", "--common");
    CHECK_TEXT(last_error.file, "a");
    CHECK_TEXT(last_error.tensor, "layers.10.weight");
    other[1].shape[0] = 5;
    check_refused(plan_two(model("a", NET), model("b", other, COUNT(net)), NULL), HM_ERR_MISMATCH,
                  "b: layers.1.weight: its shape is [5], in a [4]", "--common");
    hm_plan *plan = plan_two(model("a", NET), model("b", other, COUNT(net)), &common);
    CHECK(plan != NULL && plan->merged_count == 6 && is_copied(plan, "layers.1.weight"));
    check_note(plan, "1 tensor that the inputs do not share: 1 copied from a, 0 left out (the first is "
                     "layers.1.weight)");
    if (plan != NULL) check_consistent(plan);
    hm_plan_free(plan);

    for (size_t i = 0; i < COUNT(net); i++) other[i].shape[0] = 6;
    check_refused(plan_two(model("a", NET), model("b", other, COUNT(net)), NULL), HM_ERR_MISMATCH,
                  "7 tensors in all do not fit, also layers.1.weight, layers.10.weight, layers.2.weight, "
                  "layers.4.weight, …", "b: layers.0.weight");
    check_refused(plan_two(model("a", NET), model("b", other, COUNT(net)), &common), HM_ERR_MISMATCH,
                  "nothing is left", "");
    other[0].dtype = HM_I32;
    other[0].shape[0] = 4;
    check_refused(plan_two(model("a", NET), variant("b", NET, 0, other[0], NULL), NULL), HM_ERR_MISMATCH,
                  "b: layers.0.weight: holds I32", "floating");
    check_refused(plan_two(variant("a", NET, 0, other[0], NULL), model("b", NET), NULL), HM_ERR_MISMATCH,
                  "a: layers.0.weight: holds I32", "floating");
    plan = plan_two(variant("a", NET, 0, other[0], NULL), variant("b", NET, 0, other[0], NULL), NULL);
    CHECK(plan != NULL && plan->merged_count == 6 && is_copied(plan, "layers.0.weight"));
    hm_plan_free(plan);

    /* Missing in the carrier, with --common: it cannot be copied from there. */
    plan = plan_two(variant("a", NET, 3, NOTHING, NULL), model("b", NET), &common);
    CHECK(plan != NULL && plan->merged_count == 6 && plan->count == 6);
    check_note(plan, "1 tensor that the inputs do not share: 0 copied from a, 1 left out (the first is "
                     "layers.10.weight)");
    hm_plan_free(plan);

    /* [4] and [4, 1] are different things; floats of different types are not; empty ones are nothing to merge. */
    other[0] = (spec){"layers.0.weight", HM_F32, {4, 1, -1}, 0};
    check_refused(plan_two(model("a", NET), variant("b", NET, 0, other[0], NULL), NULL), HM_ERR_MISMATCH, "[4, 1]", "");
    other[0] = (spec){"layers.0.weight", HM_F8_E4M3, {4, -1}, 0};
    plan = plan_two(model("a", NET), variant("b", NET, 0, other[0], NULL), NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && find(plan, "layers.0.weight")->like->dtype == HM_F32);
    hm_plan_free(plan);
    const spec nil = {"nil", HM_F32, {0, -1}, 0};
    plan = plan_two(variant("a", NET, NOWHERE, NOTHING, &nil), variant("b", NET, NOWHERE, NOTHING, &nil), NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && is_copied(plan, "nil"));
    hm_plan_free(plan);
}

static void test_inpainting(void)
{
    static const hm_selection common = {.common = true};
    const spec nine = {FIRST, HM_F16, {2, 9, 3, 3, -1}, 0}, eight = {FIRST, HM_F16, {2, 8, 3, 3, -1}, 0};
    check_refused(plan_two(model("a", SD1), variant("b", SD1, 0, nine, NULL), NULL), HM_ERR_MISMATCH,
                  "b is an inpainting model (9 input channels), the others are not; leave it out or use --common",
                  FIRST);
    CHECK_TEXT(last_error.file, "b");
    hm_source *three[] = {variant("a", SD1, 0, nine, NULL), variant("b", SD1, 0, nine, NULL), model("c", SD1)};
    check_refused(plan_of(three, 3, NULL, NULL, NULL), HM_ERR_MISMATCH,
                  "a, b are each an inpainting model (9 input channels)", "leave them out");
    check_refused(plan_two(variant("a", SD1, 0, eight, NULL), model("b", SD1), NULL), HM_ERR_MISMATCH,
                  "a is an instruct-pix2pix model (8 input channels)", "");
    hm_plan *plan = plan_two(model("a", SD1), variant("b", SD1, 0, nine, NULL), &common);
    CHECK(plan != NULL && plan->merged_count == 6 && is_copied(plan, FIRST));
    hm_plan_free(plan);
    plan = plan_two(variant("a", SD1, 0, nine, NULL), variant("b", SD1, 0, nine, NULL), NULL);
    CHECK(plan != NULL && plan->merged_count == 7);
    CHECK_TEXT(plan != NULL ? plan->family : "", "sd1-inpainting");
    hm_plan_free(plan);
}

static void test_families(void)
{
    static const spec sd3[] = {{U "joint_blocks.0.x", HM_F16, {2, -1}, 0}};
    static const spec lora[] = {{"lora_unet_x.lora_up.weight", HM_F16, {2, 2, -1}, 0}};
    static const spec shard[] = {{"down_blocks.0.x.weight", HM_F16, {2, -1}, 0}};
    check_refused(plan_two(model("a", SD1), model("b", sd3, 1), NULL), HM_ERR_MISMATCH,
                  "b: is of another family (a is sd1, b is sd3)", "architecture");
    check_refused(plan_two(model("a", SD1), model("b", lora, 1), NULL), HM_ERR_MISMATCH, "b: is a LoRA", "");
    check_refused(plan_two(model("a", lora, 1), model("b", lora, 1), NULL), HM_ERR_MISMATCH, "a: is a LoRA", "");
    check_refused(plan_two(model("a", SD1), model("b", shard, 1), NULL), HM_ERR_MISMATCH, "b is diffusers", "");
    check_refused(plan_two(model("a", SD1), model("b", NET), NULL), HM_ERR_MISMATCH, "b: is another network",
                  "none of its 7 tensors");
    check_refused(plan_of((hm_source *[]){model("a", NET), model("c", SD1), model("b", NET)}, 3, NULL, NULL, NULL),
                  HM_ERR_MISMATCH, "c: is another network", "in a;");
    check_refused(plan_of((hm_source *[]){model("c", SD1), model("a", NET), model("b", NET)}, 3, NULL, NULL, NULL),
                  HM_ERR_MISMATCH, "c: is another network", "in a;");
    hm_plan *plan = plan_two(model("a", shard, 1), model("b", shard, 1), NULL); /* alike, so welcome */
    CHECK(plan != NULL && plan->merged_count == 1);
    hm_plan_free(plan);

    const spec own = {"hypermerge.direction.1." FIRST, HM_F16, {2, 4, 3, 3, -1}, 0};
    check_refused(plan_two(model("a", SD1), variant("h", SD1, NOWHERE, NOTHING, &own), NULL), HM_ERR_MISMATCH,
                  "h: is a hyper-model", "hyper-merge merge");
    hm_source *x = model("x", SD1); /* as the base it gives W̃, and its directions take no part */
    plan = plan_of(&x, 1, variant("h", SD1, NOWHERE, NOTHING, &own), NULL, NULL);
    CHECK(plan != NULL && plan->count == COUNT(sd1) && find(plan, own.name) == NULL);
    hm_plan_free(plan);
}

static void test_flags_and_quantised(void)
{
    const spec v = {"v_pred", HM_I64, {0, -1}, 0}, ztsnr = {"ztsnr", HM_I64, {0, -1}, 0};
    check_refused(plan_two(model("a", SD1), variant("b", SD1, NOWHERE, NOTHING, &v), NULL), HM_ERR_MISMATCH,
                  "b: is a v-prediction model", "a is an epsilon model");
    hm_plan *plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &v), variant("b", SD1, NOWHERE, NOTHING, &v), NULL);
    CHECK(plan != NULL && is_copied(plan, "v_pred"));
    hm_plan_free(plan);
    plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &ztsnr), model("b", SD1), NULL);
    CHECK(plan != NULL && is_copied(plan, "ztsnr"));
    hm_plan_free(plan);

    const spec scale = {U "out.2.scale_weight", HM_F32, {-1}, 0};
    check_refused(plan_two(model("a", SD1), variant("b", SD1, NOWHERE, NOTHING, &scale), NULL), HM_ERR_MISMATCH,
                  "b: " U "out.2.scale_weight: ", "scaled fp8");
    /* In a part that is only copied the companions go along with it. */
    const spec vae_scale = {"first_stage_model.decoder.conv_in.scale_weight", HM_F32, {-1}, 0};
    plan = plan_two(variant("a", SD1, NOWHERE, NOTHING, &vae_scale), model("b", SD1), NULL);
    CHECK(plan != NULL && is_copied(plan, vae_scale.name));
    hm_plan_free(plan);
}

/* ---- base and carrier -------------------------------------------------------------------------------------------- */

static void test_base_and_carrier(void)
{
    hm_source *members[] = {model("a", SD1), model("b", SD1)};
    hm_plan *plan = plan_of(members, 2, model("base", SD1), NULL, NULL);
    CHECK(plan != NULL && plan->carrier == plan->base && plan->source_count == 2 && plan->merged_count == 7);
    if (plan != NULL) {
        check_consistent(plan);
        CHECK(find(plan, FIRST)->like == hm_source_find(plan->base, FIRST));
        CHECK(is_copied(plan, "betas"));
    }
    hm_plan_free(plan);
    hm_source *one = model("a", SD1);
    check_refused(plan_of(&one, 1, variant("base", SD1, 2, NOTHING, NULL), NULL, NULL), HM_ERR_MISMATCH,
                  "base: " U "middle_block.0.bias: absent, while a has it", "");

    /* Another input as carrier; the list holds its reference twice, as the caller would. */
    hm_source *second = model("b", SD1);
    plan = plan_of((hm_source *[]){model("a", SD1), second}, 2, NULL, hm_source_keep(second), NULL);
    CHECK(plan != NULL && plan->carrier == plan->sources[1]);
    CHECK(is_copied(plan, "betas"));
    hm_plan_free(plan);

    /* A file of its own as carrier: it gives what is not merged, and need not fit. */
    const spec nine = {FIRST, HM_F32, {2, 9, 3, 3, -1}, 0}, extra = {"extra", HM_F32, {3, -1}, 0};
    plan = plan_of((hm_source *[]){model("a", SD1), model("b", SD1)}, 2, NULL, variant("c", SD1, 0, nine, &extra),
                   NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && is_merged(plan, FIRST) && is_copied(plan, "extra"));
    if (plan != NULL) {
        check_consistent(plan);
        CHECK(find(plan, FIRST)->like == hm_source_find(plan->sources[0], FIRST));
        CHECK(find(plan, ATTENTION)->like == hm_source_find(plan->carrier, ATTENTION));
        size_t t = (size_t)(find(plan, FIRST) - plan->tensors);
        hm_plan_copy_instead(plan, t); /* the shape of the plan stays: from the first input */
        CHECK(plan->tensors[t].copy_from == plan->sources[0]);
        CHECK(hm_source_tensor(plan->sources[0], plan->tensors[t].copy_index) == plan->tensors[t].like);
    }
    hm_plan_free(plan);
    plan = plan_of((hm_source *[]){model("a", SD1), model("b", SD1)}, 2, NULL, model("c", sd1, 5), NULL);
    CHECK(plan != NULL && plan->merged_count == 7 && find(plan, "betas") == NULL);
    check_note(plan, "vae: left out (absent in c)");
    hm_plan_free(plan);
}

/* ---- files, and many of them ------------------------------------------------------------------------------------- */

static void test_files(void)
{
    folder f;
    if (!CHECK(folder_begin(&f))) return;
    const char *a_path = folder_file(&f, "a.safetensors"), *b_path = folder_file(&f, "b.safetensors");
    hm_source *a = NULL, *b = NULL;
    CHECK(write_model(a_path, SD1, NULL, 0) && write_model(b_path, sd1, 6, NULL, 0));
    if (CHECK(hm_source_open(&a, a_path, NULL) == HM_OK && hm_source_open(&b, b_path, NULL) == HM_OK)) {
        hm_plan *plan = plan_two(a, b, NULL);
        CHECK(plan != NULL && plan->merged_count == 6);
        check_note(plan, "text_encoder: copied from a.safetensors (absent in b.safetensors)");
        check_note(plan, "vae: copied from a.safetensors (absent in b.safetensors)");
        if (plan != NULL) check_consistent(plan);
        hm_plan_free(plan);
    }
    folder_end(&f);
}

/* 64 sources of 5000 tensors: anything quadratic in the tensors would take minutes. */
static void test_many(void)
{
    enum { TENSORS = 5000 };
    spec *specs = calloc(TENSORS, sizeof *specs);
    char(*names)[32] = calloc(TENSORS, sizeof *names);
    hm_source *sources[HM_MAX_MEMBERS];
    if (!CHECK(specs != NULL && names != NULL)) exit(1);
    for (int i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof names[i], "layers.%d.weight", i * 7919 % TENSORS);
        specs[i] = (spec){names[i], HM_F16, {3, 3, -1}, 0};
    }
    for (size_t s = 0; s < HM_MAX_MEMBERS; s++) sources[s] = model("m", specs, TENSORS);
    clock_t start = clock();
    hm_plan *plan = plan_of(sources, HM_MAX_MEMBERS, NULL, NULL, NULL);
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 20.0); /* half a second on a plain build */
    CHECK(plan != NULL && plan->merged_count == TENSORS);
    CHECK(plan != NULL && plan->block_count == 1); /* 5000 blocks would be 5000 Gram matrices */
    CHECK_TEXT(plan != NULL ? plan->block_names[0] : "", "unet");
    hm_plan_free(plan);
    free(specs);
    free(names);
}

int main(void)
{
    test_usual();
    test_duplicates_and_single();
    test_selection();
    test_spellings();
    test_dropped();
    test_components();
    test_extras();
    test_misfits();
    test_inpainting();
    test_families();
    test_flags_and_quantised();
    test_base_and_carrier();
    test_files();
    test_many();
    return check_report("plan");
}
