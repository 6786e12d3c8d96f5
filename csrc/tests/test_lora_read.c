/* LoRA files as sources: what they offer, and factors put together.  Names, alphas and refusals in all their kinds are tested
 * from Python; here is what only the core sees. */
#include "lowrank/lora_read.h"

#include <math.h>

#include "lowrank/factor_svd.h"
#include "lowrank/factors.h"
#include "lowrank/lora_targets.h"
#include "model/names.h"
#include "model/product.h"
#include "tests/product_models.h"

#define UNET "model.diffusion_model."
#define OPEN_CLIP "conditioner.embedders.1.model.transformer.resblocks.0.attn."

static const spec base_specs[] = {
    {UNET "input_blocks.0.0.weight", HM_F16, {4, 4, 3, 3, -1}, 0},
    {UNET "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", HM_F16, {6, 2048, -1}, 0},
    {UNET "input_blocks.3.0.op.weight", HM_F16, {5, 4, 3, 3, -1}, 0},
    {UNET "label_emb.0.0.weight", HM_F16, {3, 3, -1}, 0},
    {OPEN_CLIP "in_proj_weight", HM_F16, {9, 4, -1}, 0},
    {OPEN_CLIP "in_proj_bias", HM_F16, {9, -1}, 0},
};
enum { BASE_COUNT = sizeof base_specs / sizeof base_specs[0] };

static hm_source *open_base(folder *f)
{
    hm_source *base = NULL;
    const char *path = folder_file(f, "base.safetensors");
    if (!CHECK(write_model(path, base_specs, BASE_COUNT, NULL, 0) && hm_source_open(&base, path, NULL) == HM_OK)) return NULL;
    CHECK_TEXT(hm_family(base), "sdxl");
    return base;
}

static void test_targets(const hm_source *base)
{
    hm_lora_targets *targets = NULL;
    hm_lora_target found;
    hm_error err = {0};
    static const struct {
        const char *layer;
        uint32_t tensor;
        unsigned part, parts;
    } known[] = {
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 1, 0, 1},
        {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 1, 0, 1},
        {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k", 1, 0, 1},
        {"lora_unet_input_blocks_3_0_op", 2, 0, 1},
        {"unet.conv_in", 0, 0, 1},
        {"unet.add_embedding.linear_1", 3, 0, 1},
        {"lora_te2_text_model_encoder_layers_0_self_attn_v_proj", 4, 2, 3},
        {"text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj", 4, 1, 3},
    };
    static const char *const strange[] = {"", "lora_unet", "lora_unet_input_blocks_3_0_o", "lora_unet_input_blocks_3_0_op_",
                                          "lora_te2_text_model_encoder_layers_0_self_attn", "unet.", "."};
    if (!CHECK(hm_lora_targets_make(&targets, base, NULL) == HM_OK)) return;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        hm_status status = hm_lora_target_find(&found, targets, "f", known[i].layer, strlen(known[i].layer), &err);
        if (!CHECK(status == HM_OK && found.tensor == known[i].tensor && found.part == known[i].part &&
                   found.parts == known[i].parts))
            fprintf(stderr, "    %s: %s\n", known[i].layer, err.message);
    }
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++)
        CHECK(hm_lora_target_find(&found, targets, "f", strange[i], strlen(strange[i]), &err) == HM_ERR_MISMATCH);
    /* The length counts, not what follows: names of layers are the beginnings of names of tensors. */
    CHECK(hm_lora_target_find(&found, targets, "f", "unet.conv_in.lora_up", strlen("unet.conv_in"), &err) == HM_OK);
    hm_lora_target weight = {.tensor = 4, .part = 2, .parts = 3}, bias = hm_lora_target_bias(targets, weight);
    CHECK(bias.tensor == 5 && bias.part == 2 && bias.parts == 3);
    weight.tensor = 1;
    CHECK(hm_lora_target_bias(targets, weight).tensor == HM_ABSENT);
    hm_lora_targets_free(targets);
    hm_lora_targets_free(NULL);
}

/* Largest difference between the numbers of a product and `wanted`. */
static double worst(const hm_source *view, uint32_t index, const double *wanted)
{
    const hm_tensor_info *tensor = hm_source_tensor(view, index);
    size_t rows = (size_t)tensor->shape[0], columns = (size_t)tensor->elements / rows, rank = (size_t)tensor->rank;
    float *up = calloc(rank * (rows + columns), sizeof *up), *down = up + rank * rows;
    double most = up != NULL && hm_product_read(up, down, view, index, NULL) == HM_OK ? 0 : INFINITY;
    for (size_t i = 0; i < rows && isfinite(most); i++)
        for (size_t j = 0; j < columns; j++) {
            double sum = 0;
            for (size_t k = 0; k < rank; k++) sum += (double)up[i * rank + k] * (double)down[k * columns + j];
            most = fmax(most, fabs(sum - wanted[i * columns + j]));
        }
    free(up);
    return most;
}

#define LAYER "lora_te2_text_model_encoder_layers_0_self_attn_"

/* q and v of one tensor, with a rank each, and a convolution with a middle factor. */
static void test_view(folder *f, hm_source *base)
{
    numbered n[] = {
        {.as = {LAYER "q_proj.lora_up.weight", HM_F32, {3, 1, -1}, 0}},
        {.as = {LAYER "q_proj.lora_down.weight", HM_F32, {1, 4, -1}, 0}},
        {.as = {LAYER "v_proj.lora_up.weight", HM_BF16, {3, 2, -1}, 0}},
        {.as = {LAYER "v_proj.lora_down.weight", HM_F32, {2, 4, -1}, 0}},
        {.as = {LAYER "v_proj.alpha", HM_F32, {-1}, 0}},
        {.as = {"lora_unet_input_blocks_3_0_op.lora_up.weight", HM_F32, {5, 2, 1, 1, -1}, 0}},
        {.as = {"lora_unet_input_blocks_3_0_op.lora_down.weight", HM_F16, {3, 4, 1, 1, -1}, 0}},
        {.as = {"lora_unet_input_blocks_3_0_op.lora_mid.weight", HM_F32, {2, 3, 3, 3, -1}, 0}},
    };
    enum { COUNT = sizeof n / sizeof n[0] };
    double in_proj[9 * 4] = {0}, op[5 * 36] = {0};
    hm_source *file = NULL, *view = NULL;
    const char *path = folder_file(f, "lora.safetensors");
    if (!CHECK(write_numbered(path, n, COUNT, NULL, 0) && hm_source_open(&file, path, NULL) == HM_OK)) return;
    CHECK(hm_is_lora_file(file) && !hm_is_lora_file(base));
    double scale = (double)n[4].numbers[0] / 2;
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < 4; j++) {
            in_proj[i * 4 + j] = (double)n[0].numbers[i] * (double)n[1].numbers[j];
            for (size_t k = 0; k < 2; k++)
                in_proj[(6 + i) * 4 + j] += scale * (double)n[2].numbers[i * 2 + k] * (double)n[3].numbers[k * 4 + j];
        }
    for (size_t o = 0; o < 5; o++)
        for (size_t p = 0; p < 2; p++)
            for (size_t q = 0; q < 3; q++)
                for (size_t in = 0; in < 4; in++)
                    for (size_t x = 0; x < 9; x++)
                        op[o * 36 + in * 9 + x] += (double)n[5].numbers[o * 2 + p] * (double)n[7].numbers[(p * 3 + q) * 9 + x] *
                                                   (double)n[6].numbers[q * 4 + in];
    if (CHECK(hm_lora_read(&view, file, base, false, NULL) == HM_OK)) {
        uint32_t first = hm_source_index(view, OPEN_CLIP "in_proj_weight"), second = hm_source_index(view, base_specs[2].name);
        CHECK(view->is_lora && hm_source_count(view) == 2 && !hm_is_lora_file(view));
        CHECK_TEXT(view->lora_family, "sdxl");
        CHECK_TEXT(hm_source_name(view), "lora");
        if (CHECK(first != HM_ABSENT && second != HM_ABSENT)) {
            CHECK(hm_source_tensor(view, first)->rank == 3 && hm_source_product(view, first)->count == 2);
            CHECK(hm_source_tensor(view, second)->rank == 2 && hm_source_tensor(view, second)->ndim == 4);
            CHECK(worst(view, first, in_proj) < 1e-6 && worst(view, second, op) < 1e-5);
        }
        hm_source_close(view);
    }
    hm_source *both[2] = {file, base}, *read[2];
    CHECK(hm_lora_read_all(read, both, 2, base, false, NULL) == HM_OK && read[0]->is_lora && read[1] == base);
    for (size_t i = 0; i < 2; i++) hm_source_close(read[i]);
    CHECK(hm_lora_read_all(read, both, 2, NULL, false, NULL) == HM_ERR_MISMATCH && read[0] == NULL && read[1] == NULL);
    CHECK(hm_lora_read_all(read, both, 1, NULL, false, NULL) == HM_OK && read[0]->is_lora);
    CHECK_TEXT(read[0]->lora_family, "lora");
    CHECK(hm_source_count(read[0]) == 3 && hm_source_find(read[0], LAYER "q_proj") != NULL);
    hm_source_close(read[0]);
    hm_source_close(file);
    numbered_clear(n, COUNT);
}

/* A view lives on when everybody else has let go of the file and of the base. */
static void test_ownership(folder *f, hm_source *base)
{
    static const spec specs[] = {{"unet.conv_in.lora_A.weight", HM_F16, {2, 4, 3, 3, -1}, 0},
                                 {"unet.conv_in.lora_B.weight", HM_F16, {4, 2, 1, 1, -1}, 0}};
    const char *path = folder_file(f, "owned.safetensors");
    hm_source *file = NULL, *with = NULL, *without = NULL;
    if (!CHECK(write_model(path, specs, 2, NULL, 0) && hm_source_open(&file, path, NULL) == HM_OK)) return;
    CHECK(hm_lora_read(&with, file, base, false, NULL) == HM_OK && hm_lora_read(&without, file, NULL, false, NULL) == HM_OK);
    hm_source_close(file);
    CHECK_TEXT(hm_source_tensor(with, 0)->name, base_specs[0].name);
    CHECK_TEXT(hm_source_tensor(without, 0)->name, "unet.conv_in");
    CHECK(hm_source_check_unchanged(with, NULL) == HM_OK && strlen(with->header_hash) == 64);
    float up[8], down[72];
    CHECK(hm_product_read(up, down, without, 0, NULL) == HM_OK && up[7] == 0 && down[71] == 0);
    hm_source_close(with);
    hm_source_close(without);
}

static size_t below(size_t n)
{
    return (size_t)((uniform() + 1) / 2 * (double)n);
}

/* A pair of factors of some layer of the base, as it should be; returns how many tensors that are. */
static size_t good_pair(hm_tensor_info *infos, char names[][96])
{
    static const struct {
        const char *layer;
        uint64_t rows, inputs, kernel;
    } layers[] = {{"lora_unet_conv_in", 4, 4, 3}, {LAYER "q_proj", 3, 4, 0}, {LAYER "v_proj", 3, 4, 0},
                  {"lora_unet_input_blocks_3_0_op", 5, 4, 3}, {"lora_unet_label_emb_0_0", 3, 3, 0}};
    static const char *const endings[3][2] = {{".lora_up.weight", ".lora_down.weight"}, {".lora_B.weight", ".lora_A.weight"},
                                              {"_lora.up.weight", "_lora.down.weight"}};
    size_t which = below(5), ending = below(3), count = 2 + below(3);
    uint64_t rank = 1 + below(4), kernel = layers[which].kernel;
    if (kernel == 0 && count == 4) count = 3;
    for (size_t i = 0; i < count; i++) { /* up, down, alpha, mid */
        const char *suffix = i < 2 ? endings[ending][i] : i == 2 ? ".alpha" : ".lora_mid.weight";
        snprintf(names[i], sizeof names[i], "%s%s", layers[which].layer, suffix);
        infos[i] = (hm_tensor_info){.name = names[i], .dtype = i == 2 ? HM_F32 : (hm_dtype)below(6)};
        infos[i].ndim = i == 2 ? 0 : kernel > 0 ? 4 : 2;
        infos[i].shape[0] = i == 0 ? layers[which].rows : rank;
        infos[i].shape[1] = i == 1 ? layers[which].inputs : rank;
        infos[i].shape[2] = infos[i].shape[3] = (i == 1 && count < 4) || i == 3 ? kernel : 1;
    }
    return count;
}

/* One thing that is otherwise. */
static void spoil(hm_tensor_info *info, char *name)
{
    static const char *const endings[] = {".lora_up.weight", ".lora_mid.weight", ".diff", ".diff_b", ".hada_w1_a", "x", ".alpha"};
    switch (below(4)) {
    case 0: info->dtype = (hm_dtype)below(HM_DTYPE_COUNT); break;
    case 1: info->ndim = (unsigned)below(6); break;
    case 2: info->shape[below(4)] = below(10); break;
    default: strcpy(strchr(name, '.') != NULL ? strchr(name, '.') : name, endings[below(7)]);
    }
}

/* A weight of no dimension has no rows that factors could make, and a number of no dimension is no row of a third. */
static void test_single_numbers(folder *f)
{
    static const spec bases[] = {{UNET "double_blocks.0.img_attn.qkv.weight", HM_F32, {3, 4, -1}, 0},
                                 {UNET "double_blocks.0.img_attn.qkv.bias", HM_F32, {3, -1}, 0},
                                 {UNET "double_blocks.0.scale.weight", HM_F32, {-1}, 0}};
    static const spec loras[2][3] = {{{"diffusion_model.double_blocks.0.scale.lora_B.weight", HM_F32, {1, 2, -1}, 0},
                                      {"diffusion_model.double_blocks.0.scale.lora_A.weight", HM_F32, {2, 1, -1}, 0},
                                      {"diffusion_model.double_blocks.0.scale.alpha", HM_F32, {-1}, 0}},
                                     {{"transformer_blocks.0.attn.to_q.lora_B.weight", HM_F32, {1, 2, -1}, 0},
                                      {"transformer_blocks.0.attn.to_q.lora_A.weight", HM_F32, {2, 4, -1}, 0},
                                      {"transformer_blocks.0.attn.to_q.diff_b", HM_F32, {-1}, 0}}};
    hm_source *base = NULL, *view = NULL;
    const char *path = folder_file(f, "numbers.safetensors");
    if (!CHECK(write_model(path, bases, 3, NULL, 0) && hm_source_open(&base, path, NULL) == HM_OK)) return;
    for (size_t i = 0; i < 2; i++) {
        hm_source *file = NULL;
        path = folder_file(f, i == 0 ? "scale.safetensors" : "third.safetensors");
        CHECK(write_model(path, loras[i], 3, NULL, 0) && hm_source_open(&file, path, NULL) == HM_OK);
        CHECK(hm_lora_read(&view, file, base, false, NULL) == HM_ERR_FORMAT && view == NULL);
        hm_source_close(file);
    }
    hm_source_close(base);
}

/* Files put together at random: refused in one line, or read within their bounds (the sanitizers watch). */
static void test_anything(hm_source *base)
{
    static unsigned char numbers[8 * 10 * 10 * 10 * 10];
    size_t read = 0, refused = 0;
    for (unsigned round = 0; round < 4000; round++) {
        hm_tensor_info infos[12] = {0};
        char names[12][96];
        size_t count = 0;
        for (size_t pair = 1 + below(3); pair > 0; pair--) count += good_pair(infos + count, names + count);
        for (size_t spoilt = below(3), i; spoilt > 0; spoilt--) i = below(count), spoil(&infos[i], names[i]);
        for (size_t i = 0; i < count; i++) {
            int64_t stride = 1;
            infos[i].data = numbers;
            for (unsigned d = infos[i].ndim; d-- > 0; stride *= (int64_t)infos[i].shape[d]) infos[i].strides[d] = stride;
        }
        hm_source *file = NULL, *view = NULL;
        hm_error err = {0};
        if (hm_source_borrow(&file, "memory", infos, count, NULL) != HM_OK) continue; /* a name twice */
        hm_status status = hm_lora_read(&view, file, round % 5 == 0 ? NULL : base, round % 2 == 0, &err);
        hm_source_close(file);
        CHECK(status == HM_OK || (strlen(err.message) > 20 && strchr(err.message, '\n') == NULL));
        refused += status != HM_OK ? 1 : 0;
        for (uint32_t i = 0; status == HM_OK && i < hm_source_count(view); i++) {
            const hm_tensor_info *tensor = hm_source_tensor(view, i);
            if (tensor->rank == 0) continue;
            size_t rows = (size_t)tensor->shape[0], columns = (size_t)tensor->elements / rows, rank = (size_t)tensor->rank;
            float *up = malloc(rank * (rows + columns) * sizeof *up);
            CHECK(hm_product_read(up, up + rank * rows, view, i, NULL) == HM_OK);
            free(up);
            read++;
        }
        if (status == HM_OK) hm_source_close(view);
    }
    if (!CHECK(read > 1000 && refused > 1000)) fprintf(stderr, "    %zu products read, %zu files refused\n", read, refused);
}

/* The decomposition by factors against the one of the whole matrix. */
static void test_factor_svd(void)
{
    enum { ROWS = 40, COLUMNS = 70, RANK = 12 };
    const hm_blas *blas;
    hm_error err = {0};
    hm_factor_matrix m = {.rows = ROWS, .columns = COLUMNS, .rank = RANK, .up = calloc(RANK * (ROWS + COLUMNS), sizeof(double))};
    float *whole = calloc(ROWS * COLUMNS, sizeof *whole);
    m.down = m.up + RANK * ROWS;
    for (size_t k = 0; k < RANK; k++) { /* the last one is there twice, one is nothing, one is tiny and one of its factors huge */
        double size = k == 3 ? 0 : k == 4 ? 1e-6 : 1;
        for (size_t i = 0; i < ROWS; i++) m.up[i * RANK + k] = k == RANK - 1 ? m.up[i * RANK + k - 1] : size * uniform();
        for (size_t j = 0; j < COLUMNS; j++) m.down[k * COLUMNS + j] = uniform();
    }
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < COLUMNS; j++) {
            double sum = 0;
            for (size_t k = 0; k < RANK; k++) sum += m.up[i * RANK + k] * m.down[k * COLUMNS + j];
            whole[i * COLUMNS + j] = (float)sum;
        }
    if (!CHECK(hm_blas_begin(&blas, &err) == HM_OK)) fprintf(stderr, "    %s\n", err.message);
    static const size_t ranks[] = {0, 3, 9, 10, 12, 30, 1000};
    for (size_t r = 0; r < sizeof ranks / sizeof ranks[0]; r++) {
        hm_low_rank a, b;
        double rest;
        CHECK(hm_low_rank_of_factors(&a, blas, &m, 0, ROWS, ranks[r], "m", &err) == HM_OK);
        CHECK(a.rank == (ranks[r] < ROWS ? ranks[r] : ROWS));
        CHECK(hm_factor_rest(&rest, blas, &m, 0, &a, &err) == HM_OK && fabs(rest - a.rest) <= 1e-7 * a.square);
        if (ranks[r] > 0) {
            CHECK(hm_low_rank_find(&b, blas, whole, ROWS, COLUMNS, ranks[r], 1, "m", &err) == HM_OK);
            CHECK(fabs(a.square - b.square) <= 1e-6 * b.square && fabs(a.rest - b.rest) <= 2e-3 * b.square);
            for (size_t k = 0; k < a.rank && k < 8; k++) CHECK(fabs(a.sigma[k] - b.sigma[k]) <= 1e-3 * b.sigma[0]);
            for (size_t k = 10; k < a.rank; k++) CHECK(a.sigma[k] < 1e-3 * a.sigma[0]);
            hm_low_rank_clear(&b);
        }
        CHECK(ranks[r] < 11 || a.rest <= 1e-10 * a.square);
        hm_low_rank_clear(&a);
    }
    hm_low_rank part; /* some rows of it */
    CHECK(hm_low_rank_of_factors(&part, blas, &m, 10, 20, 20, "m", &err) == HM_OK && part.rows == 20);
    double square = 0;
    for (size_t i = 10 * COLUMNS; i < 30 * COLUMNS; i++) square += (double)whole[i] * (double)whole[i];
    CHECK(fabs(part.square - square) <= 1e-6 * square && part.rest <= 1e-10 * square);
    hm_low_rank_clear(&part);
    m.up[5] = NAN;
    CHECK(hm_low_rank_of_factors(&part, blas, &m, 0, ROWS, 4, "m", &err) == HM_ERR_MISMATCH);
    hm_blas_end();
    free(m.up);
    free(whole);
}

/* Layers of LoRAs without a base: blocks that are neither one layer each nor all one. */
static void test_blocks(void)
{
    static const char *const names[][2] = {
        {"lora_unet_down_blocks_0_attentions_1_proj_in", "lora_unet_down_blocks_0"},
        {"lora_te1_text_model_encoder_layers_11_mlp_fc1", "lora_te1_text_model_encoder_layers_11"},
        {"lora_unet_mid_block_resnets_0_conv1", "lora_unet_mid_block_resnets_0"},
        {"lora_unet_conv_in", "lora_unet_conv_in"},
        {"unet.down_blocks.2.resnets.0.conv1", "unet.down_blocks.2"},
    };
    char block[64], small[8];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        hm_name_block(names[i][0], block, sizeof block);
        CHECK_TEXT(block, names[i][1]);
        hm_name_block(names[i][0], small, sizeof small);
        CHECK(strlen(small) == 7 && strncmp(small, names[i][1], 7) == 0);
    }
}

int main(void)
{
    folder f;
    if (!CHECK(folder_begin(&f))) return check_report("LoRAs as inputs");
    hm_source *base = open_base(&f);
    if (base != NULL) {
        test_targets(base);
        test_view(&f, base);
        test_ownership(&f, base);
        test_anything(base);
    }
    hm_source_close(base);
    test_single_numbers(&f);
    test_blocks();
    test_factor_svd();
    folder_end(&f);
    return check_report("LoRAs as inputs");
}
