/* Fuzzing of the texts in `__metadata__`: keys and values of any file that is opened, recipes (sd_merge_recipe,
 * sd_merge_models), modelspec, and what becomes of them in descriptions and in the files that we write.  An input is
 * key NUL value NUL key NUL … */
#include "apply/recipe.h"
#include "fuzz/fuzz.h"
#include "io/document.h"
#include "io/header_scan.h"
#include "io/json_lex.h"

enum { PAIRS_MOST = 24, NAMES_MOST = 4 };

static bool is_utf8(const char *text)
{
    for (size_t left = strlen(text), step; left > 0; text += step, left -= step)
        if ((step = hm_utf8_step(text, left)) == 0) return false;
    return true;
}

/* Writes a header with these pairs and reads it back.  False: refused, because a key comes twice. */
static bool write_and_scan(hm_header *out, const hm_meta *pairs, size_t count)
{
    hm_text text = {0};
    hm_error err = {0};
    const hm_tensor_info tensor = {.name = "weight", .dtype = HM_F16, .ndim = 1, .shape = {2}, .bytes = 4};
    REQUIRE(hm_header_write(&text, &tensor, 1, pairs, count, 0, &err) == HM_OK && text.length % 8 == 0);
    hm_status status = hm_header_scan(out, text.data + 8, text.length - 8, text.length + 4, "file", &err);
    hm_text_clear(&text);
    if (status == HM_OK) return true;
    REQUIRE(status == HM_ERR_FORMAT);
    require_told(status, &err);
    return false;
}

static void require_kept(const hm_header *header, const hm_meta *pairs, size_t count)
{
    REQUIRE(header->meta_count == count);
    for (size_t i = 0; i < count; i++) {
        if (is_utf8(pairs[i].key)) REQUIRE(strcmp(header->meta_keys[i], pairs[i].key) == 0);
        if (is_utf8(pairs[i].value)) REQUIRE(strcmp(header->meta_values[i], pairs[i].value) == 0);
    }
}

static void try_description(hm_header *header)
{
    hm_source source = {.name = (char *)(uintptr_t)"file", .label = (char *)(uintptr_t)"file.safetensors", .header = *header};
    uint32_t by_name = 0;
    source.by_name = &by_name;
    char *json = NULL;
    cJSON *tree = NULL;
    REQUIRE(hm_source_describe(&source, &json, NULL) == HM_OK);
    REQUIRE(hm_document_parse(&tree, json, "file", "description", NULL) == HM_OK);
    const cJSON *metadata = hm_document_object(tree, "metadata"), *item = metadata != NULL ? metadata->child : NULL;
    for (size_t i = 0; i < header->meta_count; i++, item = item->next) {
        REQUIRE(item != NULL && strcmp(item->string, header->meta_keys[i]) == 0);
        REQUIRE(strcmp(cJSON_GetStringValue(item), header->meta_values[i]) == 0);
        REQUIRE(hm_source_metadata(&source, header->meta_keys[i]) == header->meta_values[i]);
    }
    REQUIRE(item == NULL);
    cJSON_Delete(tree);
    hm_free(json);
}

/* Every value as the recipe that it may be. */
static void try_recipe(const char *text)
{
    cJSON *tree = NULL;
    hm_error err = {0};
    hm_status status = hm_document_parse(&tree, text, "file", "recipe", &err);
    if (status == HM_OK) {
        const char *type = hm_document_string(tree, "type");
        REQUIRE(type == NULL || strlen(type) < strlen(text));
        cJSON_Delete(tree);
    } else {
        REQUIRE(status == HM_ERR_FORMAT && tree == NULL);
        require_told(status, &err);
    }
}

/* What is written about a merge of models with such names, hashes and titles must be good metadata in turn. */
static void try_standard(const hm_header *header)
{
    hm_member members[NAMES_MOST] = {{0}};
    hm_hyper hyper = {.members = members};
    for (size_t i = 0; i < header->meta_count && i < NAMES_MOST; i++) {
        members[i].name = header->meta_values[i];
        strncpy(members[i].sha256, header->meta_keys[i], sizeof members[i].sha256 - 1);
        for (char *s = members[i].sha256; *s != '\0'; s++) *s = "0123456789abcdef"[*s & 15];
        hyper.solution.members++;
    }
    char family[] = "sdxl", *title = hm_title_of(header->meta_count > 0 ? header->meta_values[0] : "x.safetensors");
    hyper.family = family;
    hm_meta_list list = {0};
    hm_header again;
    cJSON *models = NULL;
    hm_error err = {0};
    REQUIRE(hyper.solution.members > 0 && title != NULL);
    hm_meta_add_standard(&list, &hyper, title, HM_HASH_PLACEHOLDER);
    REQUIRE(!list.failed && write_and_scan(&again, list.entries, list.count));
    const char *text = NULL;
    for (size_t i = 0; i < again.meta_count; i++)
        if (strcmp(again.meta_keys[i], "sd_merge_models") == 0) text = again.meta_values[i];
    REQUIRE(text != NULL && hm_document_parse(&models, text, "file", "sd_merge_models", &err) == HM_OK);
    cJSON_Delete(models);
    hm_header_clear(&again);
    hm_meta_clear(&list);
    hm_release(title);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hm_meta pairs[PAIRS_MOST];
    size_t count = 0;
    char *key, *value;
    if (size > HM_DOCUMENT_CAP / 8) return 0; /* escapes may take six times the room */
    while (count < PAIRS_MOST && (key = next_piece(&data, &size, '\0')) != NULL) {
        value = next_piece(&data, &size, '\0');
        if (value == NULL) value = calloc(1, 1);
        if (value == NULL) return 0;
        pairs[count++] = (hm_meta){.key = key, .value = value};
    }
    hm_header header;
    if (write_and_scan(&header, pairs, count)) {
        require_kept(&header, pairs, count);
        try_description(&header);
        if (count > 0) try_standard(&header);
        hm_header_clear(&header);
    }
    for (size_t i = 0; i < count; i++) {
        try_recipe(pairs[i].value);
        free((void *)(uintptr_t)pairs[i].key);
        free((void *)(uintptr_t)pairs[i].value);
    }
    return 0;
}
