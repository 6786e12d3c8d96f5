/* Fuzzing of hyper-models as files: what a document and a table of tensors say together decides what is written into
 * somebody's model.  An input is the text of the `hypermerge` document, a NUL, and lines NAME TAB TYPE D0,D1,… as in
 * fuzz_names; all numbers are small halves.  A file that is accepted must be usable. */
#include <stdio.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "io/header_write.h"
#include "solve/hyper.h"

enum { TENSORS_MOST = 32 };
#define DATA_MOST ((uint64_t)1 << 16)

/* Files of this process: in memory where the system offers that. */
static char folder[64], hyper_path[96], merged_path[96];

static void remove_files(void)
{
    unlink(hyper_path);
    unlink(merged_path);
    rmdir(folder);
}

static void choose_files(void)
{
    if (folder[0] != '\0') return;
    strcpy(folder, "/dev/shm/hm_fuzz_XXXXXX");
    if (mkdtemp(folder) == NULL) {
        strcpy(folder, "/tmp/hm_fuzz_XXXXXX");
        REQUIRE(mkdtemp(folder) != NULL);
    }
    snprintf(hyper_path, sizeof hyper_path, "%s/x.hyper.safetensors", folder);
    snprintf(merged_path, sizeof merged_path, "%s/merged.safetensors", folder);
    REQUIRE(atexit(remove_files) == 0);
}

static bool read_tensor(hm_tensor_info *info, char *line)
{
    char *tab = strchr(line, '\t');
    *info = (hm_tensor_info){.name = line, .dtype = HM_F16, .elements = 1};
    if (tab == NULL) return false;
    *tab++ = '\0';
    if (*tab >= '0' && *tab <= '9') info->dtype = (hm_dtype)(*tab++ - '0');
    for (char *end; info->ndim < HM_MAX_DIMS && *tab != '\0'; tab = end) {
        uint64_t length = strtoull(tab, &end, 10);
        if (end == tab) break;
        info->shape[info->ndim++] = length;
        if (length > DATA_MOST || (info->elements *= length) > DATA_MOST) return false;
        if (*end == ',') end++;
    }
    info->bytes = info->elements * hm_dtype_bytes(info->dtype);
    return true;
}

/* False: too large, or not a header that can be written. */
static bool write_file(const char *document, const hm_tensor_info *tensors, size_t count)
{
    static const unsigned char numbers[16] = {0, 0x38, 0, 0x38, 0, 0x3c, 0, 0x34};
    const hm_meta meta = {.key = "hypermerge", .value = document};
    hm_text text = {0};
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += tensors[i].bytes;
    FILE *file = bytes <= DATA_MOST && hm_header_write(&text, tensors, count, &meta, 1, 0, NULL) == HM_OK
                     ? fopen(hyper_path, "wb") : NULL;
    bool good = file != NULL && fwrite(text.data, 1, text.length, file) == text.length;
    for (uint64_t at = 0; good && at < bytes; at += sizeof numbers) {
        size_t step = bytes - at < sizeof numbers ? (size_t)(bytes - at) : sizeof numbers;
        good = fwrite(numbers, 1, step, file) == step;
    }
    if (file != NULL) good = fclose(file) == 0 && good;
    hm_text_clear(&text);
    return good;
}

static void use(hm_hyper *hyper)
{
    const double at[HM_MAX_MEMBERS] = {0.5, -0.25};
    size_t members = hm_hyper_members(hyper), directions = hm_hyper_directions(hyper);
    hm_job job = {.memory_budget = 1, .threads = 1};
    hm_error err = {0};
    char *text = NULL;
    REQUIRE(members >= 1 && members <= HM_MAX_MEMBERS && directions <= members);
    REQUIRE(hm_hyper_document(hyper, &text, &err) == HM_OK);
    REQUIRE(strcmp(text, hm_source_metadata(hyper->file, "hypermerge")) == 0);
    hm_free(text);
    for (size_t i = 0; i < hyper->file->header.count; i++) (void)hm_was_merged(hyper, hyper->file->header.tensors[i].name);
    for (size_t i = 0; i < hyper->file->header.count; i++) /* factors of a few numbers may have products of millions */
        if (hyper->file->header.tensors[i].elements > DATA_MOST) return;

    const hm_merge_options options = {.at = at, .at_count = directions, .dtype = HM_DTYPE_KEEP, .force = true};
    hm_source *merged = NULL;
    hm_status status = hm_hyper_merge(hyper, merged_path, &options, &job, &err);
    if (status == HM_OK) {
        REQUIRE(hm_source_open(&merged, merged_path, &err) == HM_OK);
        status = hm_hyper_project(hyper, merged, &text, &job, &err);
        if (status == HM_OK) REQUIRE(text[0] == '{');
        hm_source_close(merged);
        hm_free(status == HM_OK ? text : NULL);
    }
    if (status != HM_OK) require_told(status, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hm_tensor_info tensors[TENSORS_MOST];
    char *lines[TENSORS_MOST], *document = next_piece(&data, &size, '\0');
    size_t count = 0;
    bool good = document != NULL;
    choose_files();
    while (count < TENSORS_MOST && (lines[count] = next_piece(&data, &size, '\n')) != NULL) {
        good = read_tensor(&tensors[count], lines[count]) && good;
        count++;
    }
    if (good && write_file(document, tensors, count)) {
        hm_hyper *hyper = NULL;
        hm_error err = {0};
        hm_status status = hm_hyper_open(&hyper, hyper_path, NULL, 0, &err);
        if (status == HM_OK)
            use(hyper);
        else
            require_told(status, &err);
        hm_hyper_close(hyper);
    }
    for (size_t i = 0; i < count; i++) free(lines[i]);
    free(document);
    return 0;
}
