/* Fuzzing of the names that layers have in LoRA files.  An input is text: the family, then names of tensors, one a line.
 * Names must fit, and be whole: a layer's parts together are all of it, and kohya's have no dots. */
#include "fuzz/fuzz.h"
#include "lowrank/lora_names.h"
#include "lowrank/transformer_names.h"
#include "model/names.h"

enum { LINES_MOST = 24 };

static void require_sound(hm_lora_format format, const hm_lora_part *parts, size_t count)
{
    REQUIRE(count <= HM_LORA_PARTS);
    for (size_t i = 0; i < count; i++) {
        REQUIRE(memchr(parts[i].name, '\0', sizeof parts[i].name) != NULL && parts[i].name[0] != '\0');
        REQUIRE(parts[i].index == i && parts[i].count == count);
        REQUIRE(format != HM_LORA_KOHYA || strchr(parts[i].name, '.') == NULL);
    }
}

static void try_name(const char *family, hm_lora_format format, const char *name)
{
    hm_lora_part parts[HM_LORA_PARTS], again[HM_LORA_PARTS];
    char canonical[2 * HM_LORA_NAME];
    (void)hm_lora_parts(family, format, name, parts); /* whatever it is called with */
    if (!hm_name_canonical(name, canonical, sizeof canonical)) return;
    size_t count = hm_lora_parts(family, format, canonical, parts);
    require_sound(format, parts, count);
    REQUIRE(hm_lora_parts(family, format, canonical, again) == count);
    for (size_t i = 0; i < count; i++) REQUIRE(strcmp(parts[i].name, again[i].name) == 0);
}

static void try_transformer_name(const char *family, const char *name)
{
    hm_transformer_name names[HM_TRANSFORMER_NAMES];
    size_t count = hm_transformer_names(family, name, names);
    REQUIRE(count <= HM_TRANSFORMER_NAMES);
    for (size_t i = 0; i < count; i++) {
        REQUIRE(memchr(names[i].name, '\0', sizeof names[i].name) != NULL);
        REQUIRE(names[i].span >= 1 && names[i].part + names[i].span <= names[i].parts);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *lines[LINES_MOST], *family = next_piece(&data, &size, '\n');
    size_t count = 0;
    while (count < LINES_MOST && (lines[count] = next_piece(&data, &size, '\n')) != NULL) count++;
    for (int format = 0; family != NULL && format < HM_LORA_FORMAT_COUNT; format++) {
        REQUIRE(hm_lora_format_name((hm_lora_format)format)[0] != '\0');
        for (size_t i = 0; i < count; i++) try_name(family, (hm_lora_format)format, lines[i]);
    }
    for (size_t i = 0; family != NULL && i < count; i++) try_transformer_name(family, lines[i]);
    for (size_t i = 0; i < count; i++) free(lines[i]);
    free(family);
    return 0;
}
