/* Fuzzing of everything that looks at tensor names: tables, families, blocks, spellings, and the alignment of several
 * files with globs.  An input is text, one tensor a line:
 *     NAME TAB TYPE D0,D1,…      TYPE a digit (hm_dtype); what is missing counts as F16 [4, 4]
 *     +GLOB, -GLOB               include, exclude
 *     =                          the next file begins; "=c" the carrier of its own, "=b" the base */
#include "fuzz/fuzz.h"
#include "io/document.h"
#include "io/header_write.h"
#include "model/plan.h"
#include "model/spelling.h"

enum { FILES_MOST = 6, LINES_MOST = 400, GLOBS_MOST = 8 }; /* more lines than a plan has blocks */

struct file {
    hm_tensor_info *tensors; /* a run of those of the input */
    size_t count;
    hm_source *source;
    char role; /* 'c', 'b' or 0 */
};

struct input {
    char *lines[LINES_MOST]; /* owned */
    size_t line_count;
    hm_tensor_info tensors[LINES_MOST];
    struct file files[FILES_MOST];
    size_t file_count;
    const char *globs[2][GLOBS_MOST]; /* include, exclude */
    size_t glob_count[2];
};

static void add_tensor(hm_tensor_info *info, char *line)
{
    static const char nowhere[1];
    char *tab = strchr(line, '\t');
    *info = (hm_tensor_info){.name = line, .dtype = HM_F16, .ndim = 2, .shape = {4, 4}, .data = nowhere};
    if (tab == NULL) return;
    *tab++ = '\0';
    if (*tab >= '0' && *tab <= '9') info->dtype = (hm_dtype)(*tab++ - '0');
    info->ndim = 0;
    for (char *end; info->ndim < HM_MAX_DIMS && *tab != '\0'; tab = end) {
        info->shape[info->ndim] = strtoull(tab, &end, 10);
        if (end == tab) break;
        info->ndim++;
        if (*end == ',') end++;
    }
}

static void read_input(struct input *in, const uint8_t *data, size_t size)
{
    hm_tensor_info *next = in->tensors;
    char *line;
    in->line_count = in->glob_count[0] = in->glob_count[1] = 0;
    in->file_count = 1;
    in->files[0] = (struct file){.tensors = next};
    while (in->line_count < LINES_MOST && (line = next_piece(&data, &size, '\n')) != NULL) {
        in->lines[in->line_count++] = line;
        size_t kind = line[0] == '+' ? 0 : 1;
        if (line[0] == '=' && in->file_count < FILES_MOST) {
            in->files[in->file_count++] = (struct file){.tensors = next, .role = line[1]};
        } else if ((line[0] == '+' || line[0] == '-') && in->glob_count[kind] < GLOBS_MOST) {
            in->globs[kind][in->glob_count[kind]++] = line + 1;
        } else {
            add_tensor(next++, line);
            in->files[in->file_count - 1].count++;
        }
    }
}

static void clear_input(struct input *in)
{
    for (size_t i = 0; i < in->line_count; i++) free(in->lines[i]);
    for (size_t f = 0; f < in->file_count; f++) hm_source_close(in->files[f].source);
}

/* ---- one name ---------------------------------------------------------------------------------------------------- */

static void try_block(const char *name)
{
    enum { WHOLE = 4096 };
    char *whole = malloc(WHOLE);
    if (whole == NULL) return;
    hm_name_block(name, whole, WHOLE);
    for (size_t capacity = 1; capacity <= 96; capacity += 47) {
        char *cut = malloc(capacity); /* so that a byte too many is seen */
        if (cut == NULL) break;
        hm_name_block(name, cut, capacity);
        size_t length = strlen(cut);
        REQUIRE(length < capacity && memcmp(cut, whole, length) == 0);
        REQUIRE(length == strlen(whole) || length == capacity - 1);
        free(cut);
    }
    free(whole);
}

static void try_canonical(const char *name)
{
    enum { ROOM = 64 };
    size_t capacity = strlen(name) + ROOM;
    char *once = malloc(capacity), *twice = malloc(capacity);
    if (once != NULL && twice != NULL) {
        REQUIRE(hm_name_canonical(name, once, capacity));
        REQUIRE(hm_name_canonical(once, twice, capacity) && strcmp(once, twice) == 0);
        REQUIRE(hm_name_component(once) == hm_name_component(name));
        REQUIRE(!hm_name_canonical(name, twice, strlen(once)) && hm_name_canonical(name, twice, strlen(once) + 1));
    }
    free(once);
    free(twice);
}

static void try_name(const hm_tensor_info *info)
{
    REQUIRE((unsigned)hm_name_component(info->name) < HM_COMPONENT_COUNT);
    REQUIRE(strcmp(hm_component_name(hm_name_component(info->name)), "") != 0);
    hm_rule rule = hm_name_rule(info->name, info->dtype);
    REQUIRE((unsigned)rule <= HM_RULE_SCALED_FP8 && (rule != HM_RULE_MERGE || hm_dtype_is_float(info->dtype)));
    (void)hm_name_is_optional(info->name);
    (void)hm_name_is_known(info->name);
    (void)hm_family_input_kind(info->name, info->shape[1]);
    try_block(info->name);
    try_canonical(info->name);
}

static int sign(int value)
{
    return (value > 0) - (value < 0);
}

/* A sort must be able to rely on the order of blocks. */
static void try_order(const struct file *file)
{
    size_t count = file->count < 6 ? file->count : 6;
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < count; j++) {
            const char *a = file->tensors[i].name, *b = file->tensors[j].name;
            int order = hm_name_block_order(a, b);
            REQUIRE(sign(order) == -sign(hm_name_block_order(b, a)) && (order == 0) == (strcmp(a, b) == 0));
            for (size_t k = 0; order <= 0 && k < count; k++)
                if (hm_name_block_order(b, file->tensors[k].name) <= 0)
                    REQUIRE(hm_name_block_order(a, file->tensors[k].name) <= 0);
        }
}

/* ---- one file ---------------------------------------------------------------------------------------------------- */

static void try_spelling(const hm_source *source)
{
    hm_spelling spelling;
    REQUIRE(hm_spelling_make(&spelling, source, NULL) == HM_OK);
    for (size_t i = 0; i < source->header.count; i++)
        REQUIRE(hm_spelling_find(&spelling, source->header.tensors[i].name) < source->header.count);
    (void)hm_spelling_find(&spelling, "input_blocks.0.0.weight");
    hm_spelling_clear(&spelling);
}

static void try_description(hm_source *source)
{
    char *json = NULL;
    cJSON *tree = NULL;
    double tensors;
    hm_error err = {0};
    REQUIRE(hm_source_describe(source, &json, &err) == HM_OK);
    REQUIRE(hm_document_parse(&tree, json, "file", "description", &err) == HM_OK);
    REQUIRE(hm_document_number(tree, "tensors", &tensors) && tensors == (double)source->header.count);
    cJSON_Delete(tree);
    hm_free(json);
}

static void try_file(struct file *file)
{
    hm_error err = {0};
    for (size_t i = 0; i < file->count; i++)
        if (file->tensors[i].ndim <= HM_MAX_DIMS) try_name(&file->tensors[i]);
    try_order(file);
    hm_status status = hm_source_borrow(&file->source, "file", file->tensors, file->count, &err);
    if (status != HM_OK) {
        REQUIRE(status == HM_ERR_ARGUMENT && file->source == NULL);
        require_told(status, &err);
        return;
    }
    const char *family = hm_family(file->source);
    REQUIRE(family != NULL && family[0] != '\0');
    try_spelling(file->source);
    try_description(file->source);
}

/* ---- several files ----------------------------------------------------------------------------------------------- */

static void require_sound(const hm_plan *plan)
{
    size_t merged = 0;
    for (size_t t = 0; t < plan->count; t++) {
        const hm_plan_tensor *tensor = &plan->tensors[t];
        bool copied = tensor->action == HM_ACTION_COPY;
        merged += copied ? 0 : 1;
        REQUIRE(tensor->block < plan->block_count && (copied == (tensor->copy_from != NULL)));
        REQUIRE(!copied || tensor->copy_index < tensor->copy_from->header.count);
        for (size_t s = 0; s < plan->source_count; s++) {
            uint32_t index = plan->index[t * plan->source_count + s];
            REQUIRE(copied ? index == HM_ABSENT : index < plan->sources[s]->header.count);
            if (copied) continue;
            const hm_tensor_info *info = &plan->sources[s]->header.tensors[index];
            REQUIRE(hm_dtype_is_float(info->dtype) && info->elements == tensor->like->elements);
        }
        REQUIRE(t == 0 || hm_tensor_usual_order(plan->tensors[t - 1].like, tensor->like) <= 0);
    }
    REQUIRE(merged == plan->merged_count && merged > 0);
    for (size_t i = 0; i < plan->block_count; i++)
        for (size_t j = 0; j < i; j++) REQUIRE(strcmp(plan->block_names[i], plan->block_names[j]) != 0);
    for (size_t i = 0; i < plan->note_count; i++)
        for (const char *s = plan->notes[i]; *s != '\0'; s++) REQUIRE((unsigned char)*s >= 0x20 && *s != 0x7f);
}

static void try_plan(struct input *in, bool common)
{
    hm_source *sources[FILES_MOST], *base = NULL, *carrier = NULL;
    size_t count = 0;
    for (size_t f = 0; f < in->file_count; f++) {
        hm_source *source = in->files[f].source;
        if (source == NULL) return;
        if (in->files[f].role == 'b')
            base = source;
        else if (in->files[f].role == 'c')
            carrier = source;
        else
            sources[count++] = source;
    }
    hm_selection selection = {.include = in->globs[0], .includes = in->glob_count[0],
                              .exclude = in->globs[1], .excludes = in->glob_count[1], .common = common};
    hm_plan *plan = NULL;
    hm_error err = {0};
    hm_status status = hm_plan_make(&plan, sources, count, base, carrier, &selection, &err);
    if (status == HM_OK)
        require_sound(plan);
    else
        require_told(status, &err);
    hm_plan_free(plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct input in;
    read_input(&in, data, size);
    for (size_t f = 0; f < in.file_count; f++) try_file(&in.files[f]);
    try_plan(&in, false);
    try_plan(&in, true);
    clear_input(&in);
    return 0;
}
