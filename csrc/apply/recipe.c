#include "apply/recipe.h"

#include <string.h>

#include "base/os.h"

void hm_meta_add(hm_meta_list *list, const char *key, const char *value)
{
    char *copy = hm_copy_text(value);
    if (copy == NULL || list->count == HM_META_MAX) {
        hm_release(copy);
        list->failed = true;
        return;
    }
    list->owned[list->count] = copy;
    list->entries[list->count++] = (hm_meta){.key = key, .value = copy};
}

void hm_meta_clear(hm_meta_list *list)
{
    for (size_t i = 0; i < list->count; i++) hm_release(list->owned[i]);
    *list = (hm_meta_list){0};
}

static void add_text(hm_meta_list *list, const char *key, hm_text *text)
{
    if (text->failed)
        list->failed = true;
    else
        hm_meta_add(list, key, text->data);
    hm_text_clear(text);
}

/* Is the sha256 of member m that of an earlier one?  One file may be given twice, a name in JSON may not. */
static bool is_listed(const hm_hyper *hyper, size_t m)
{
    for (size_t i = 0; i < m; i++)
        if (strcmp(hyper->members[i].sha256, hyper->members[m].sha256) == 0) return true;
    return false;
}

/* {sha256: {"name": …, "legacy_hash": null, "sd_merge_recipe": null}}, as the web UI's own merger writes it, for the inputs
 * whose sha256 is known. */
static void add_models(hm_meta_list *list, const hm_hyper *hyper)
{
    hm_text text = {0};
    hm_text_put(&text, "{");
    bool any = false;
    for (size_t m = 0; m < hyper->solution.members; m++) {
        const hm_member *member = &hyper->members[m];
        if (member->sha256[0] == 0 || is_listed(hyper, m)) continue;
        if (any) hm_text_put(&text, ",");
        any = true;
        hm_json_string(&text, member->sha256);
        hm_text_put(&text, ":{\"name\":");
        hm_json_string(&text, member->name);
        hm_text_put(&text, ",\"legacy_hash\":null,\"sd_merge_recipe\":null}");
    }
    hm_text_put(&text, "}");
    add_text(list, "sd_merge_models", &text);
}

const char *hm_family_resolution(const char *family)
{
    return strncmp(family, "sd1", 3) == 0 ? "512x512" : strncmp(family, "sd2", 3) == 0 ? "768x768" : "1024x1024";
}

void hm_meta_add_standard(hm_meta_list *list, const hm_hyper *hyper, const char *title, const char *data_hash)
{
    const char *architecture = hm_family_architecture(hyper->family);
    hm_meta_add(list, "format", "pt");
    if (architecture != NULL) {
        char date[11];
        hm_utc_date(date);
        hm_meta_add(list, "modelspec.sai_model_spec", "1.0.1");
        hm_meta_add(list, "modelspec.architecture", architecture);
        hm_meta_add(list, "modelspec.implementation", "hyper-merge");
        hm_meta_add(list, "modelspec.title", title);
        hm_meta_add(list, "modelspec.resolution", hm_family_resolution(hyper->family));
        hm_meta_add(list, "modelspec.date", date);
        hm_text text = {0};
        if (data_hash != NULL) {
            hm_text_put(&text, "0x");
            hm_text_put(&text, data_hash);
            add_text(list, "modelspec.hash_sha256", &text);
        }
        for (size_t m = 0; m < hyper->solution.members; m++) {
            if (m > 0) hm_text_put(&text, ", ");
            hm_text_put(&text, hyper->members[m].name);
        }
        add_text(list, "modelspec.merged_from", &text);
    }
    if (data_hash != NULL) hm_meta_add(list, "sshs_model_hash", data_hash);
    add_models(list, hyper);
}

char *hm_title_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    size_t length = strlen(name), suffix = strlen(".safetensors");
    if (length > suffix && strcmp(name + length - suffix, ".safetensors") == 0) length -= suffix;
    return hm_copy_bytes(name, length);
}
