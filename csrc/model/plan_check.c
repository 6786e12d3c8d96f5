/* What makes inputs unfit to be merged, and the one line that says so. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"
#include "model/align.h"

#define LISTED 5       /* names in a message */
#define LISTED_FILES 8
#define LINE 1024

/* A message in the making; what does not fit is cut. */
typedef struct line {
    char text[LINE];
    size_t length;
} line;

HM_PRINTF(2, 3) static void add(line *to, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(to->text + to->length, sizeof to->text - to->length, format, args);
    va_end(args);
    if (n > 0) to->length += (size_t)n < sizeof to->text - to->length ? (size_t)n : sizeof to->text - to->length - 1;
}

static const char *label(const hm_alignment *a, size_t party)
{
    return hm_source_label(a->parties[party]);
}

/* ---- whole files ------------------------------------------------------------------------------------------------- */

/* Variants of one family differ in the shape of one tensor, which has a message of its own. */
static bool same_family(const char *a, const char *b)
{
    static const char variant[] = "-inpainting";
    size_t la = strlen(a), lb = strlen(b), n = strlen(variant);
    if (la > n && strcmp(a + la - n, variant) == 0) la -= n;
    if (lb > n && strcmp(b + lb - n, variant) == 0) lb -= n;
    return la == lb && memcmp(a, b, la) == 0;
}

static hm_status check_families(const hm_alignment *a, hm_error *err)
{
    size_t first = HM_PARTIES, other = HM_PARTIES;
    for (size_t p = 0; p < a->checked_count; p++) {
        if (strcmp(a->families[p], "unknown") == 0) continue;
        if (first == HM_PARTIES)
            first = p;
        else if (other == HM_PARTIES && !same_family(a->families[first], a->families[p]))
            other = p;
    }
    if (other == HM_PARTIES) return HM_OK;
    line list = {0};
    size_t shown = 0;
    add(&list, "%.100s is %s", hm_party_label(a, first), a->families[first]);
    for (size_t p = 0; p < a->checked_count && shown < LISTED_FILES; p++) {
        if (p == first || strcmp(a->families[p], "unknown") == 0) continue;
        /* In a long list only those that differ. */
        if (a->checked_count > LISTED_FILES && same_family(a->families[first], a->families[p])) continue;
        add(&list, ", %.100s is %s", hm_party_label(a, p), a->families[p]);
        shown++;
    }
    return hm_fail(err, HM_ERR_MISMATCH, label(a, other), NULL,
                   "is of another family (%s); only models of one architecture can be merged", list.text);
}

/* What a file predicts, from its flags; the more special flag first. */
static const char *prediction_kind(const hm_source *source)
{
    if (hm_source_prefix_index(source, "edm_vpred.") != HM_ABSENT) return "an EDM v-prediction model";
    if (hm_source_index(source, "edm_mean") != HM_ABSENT) return "an EDM model";
    if (hm_source_index(source, "v_pred") != HM_ABSENT) return "a v-prediction model";
    return "an epsilon model (no v_pred flag)";
}

static hm_status check_predictions(const hm_alignment *a, hm_error *err)
{
    const char *first = NULL;
    size_t which = 0;
    for (size_t p = 0; p < a->checked_count; p++) {
        if (a->parties[p]->is_lora) continue;
        const char *kind = prediction_kind(a->parties[p]);
        if (first == NULL) {
            first = kind;
            which = p;
        }
        if (strcmp(kind, first) == 0) continue;
        return hm_fail(err, HM_ERR_MISMATCH, label(a, p), NULL,
                       "is %s, while %.200s is %s; these do not mix: leave one kind out", kind, hm_party_label(a, which),
                       first);
    }
    return HM_OK;
}

hm_status hm_check_parties(const hm_alignment *a, hm_error *err)
{
    for (size_t p = 0; p < a->checked_count; p++) {
        if (strcmp(a->families[p], "lora") == 0 && !a->parties[p]->is_lora)
            return hm_fail(err, HM_ERR_MISMATCH, label(a, p), NULL,
                           "is a LoRA, not a checkpoint; averages of its factors mean nothing: leave it out, or merge "
                           "it into a checkpoint first");
        if (p < a->source_count && hm_source_prefix_index(a->parties[p], HM_OWN_PREFIX) != HM_ABSENT)
            return hm_fail(err, HM_ERR_MISMATCH, label(a, p), NULL,
                           "is a hyper-model, not a checkpoint; make a checkpoint of it first: hyper-merge merge");
    }
    if (a->checked_count < 2) return HM_OK;
    HM_TRY(check_families(a, err));
    return check_predictions(a, err);
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

hm_status hm_check_parts(const hm_alignment *a, bool common, hm_error *err)
{
    for (size_t g = 0; g < a->group_count; g++) {
        const hm_group *group = &a->groups[g];
        const hm_part *part = &a->parts[group->part];
        const hm_entry *entry = &group->entries[0];
        if (group->rule != HM_RULE_SCALED_FP8 || !part->wanted || entry->party >= a->checked_count ||
            hm_part_first_absent(a, part) != HM_PARTIES)
            continue;
        return hm_fail(err, HM_ERR_MISMATCH, label(a, entry->party), hm_entry_tensor(a, entry)->name,
                       "the weights of this file are quantised (scaled fp8 or the like) and cannot be merged as they "
                       "are; use its fp16 or bf16 version");
    }
    for (size_t i = 0; i < a->part_count && !common; i++) {
        const hm_part *part = &a->parts[i];
        size_t absent = hm_part_first_absent(a, part), present = 0;
        if (part->component != HM_COMPONENT_UNET || !part->wanted || absent == HM_PARTIES) continue;
        while (present < a->checked_count && !part->seen[present]) present++;
        if (present == a->checked_count) continue;
        return hm_fail(err, HM_ERR_MISMATCH, label(a, absent), NULL,
                       "holds no denoiser, while %.200s does; leave it out, or choose with --include what to merge",
                       hm_party_label(a, present));
    }
    return HM_OK;
}

/* ---- single tensors ---------------------------------------------------------------------------------------------- */

static bool same_shape(const hm_tensor_info *x, const hm_tensor_info *y)
{
    if (x->ndim != y->ndim) return false;
    for (unsigned d = 0; d < x->ndim; d++)
        if (x->shape[d] != y->shape[d]) return false;
    return true;
}

static size_t checked_entries(const hm_alignment *a, const hm_group *group)
{
    size_t n = group->count;
    while (n > 0 && group->entries[n - 1].party >= a->checked_count) n--;
    return n;
}

/* The first entry that does not fit the group's first, and why; HM_MISSING gives no entry. */
static hm_misfit first_misfit(const hm_alignment *a, const hm_group *group, const hm_entry **which)
{
    size_t n = checked_entries(a, group), lacking = 0;
    *which = NULL;
    for (size_t p = 0; n < a->checked_count && p < a->checked_count; p++)
        lacking += !a->parties[p]->is_lora && hm_group_entry(group, p) == NULL ? 1 : 0;
    if (lacking > 0 || n == 0) return HM_MISSING;
    const hm_tensor_info *first = hm_entry_tensor(a, &group->entries[0]);
    for (size_t i = 0; i < n; i++) {
        const hm_tensor_info *tensor = hm_entry_tensor(a, &group->entries[i]);
        *which = &group->entries[i];
        if (!hm_dtype_is_float(tensor->dtype)) return HM_NO_FLOAT;
        if (!same_shape(first, tensor)) return HM_SHAPE;
    }
    return HM_FITS;
}

hm_misfit hm_group_misfit(const hm_alignment *a, const hm_group *group)
{
    const hm_entry *which;
    return first_misfit(a, group, &which);
}

static void add_shape(line *to, const hm_tensor_info *tensor)
{
    add(to, "[");
    for (unsigned d = 0; d < tensor->ndim; d++) add(to, d == 0 ? "%" PRIu64 : ", %" PRIu64, tensor->shape[d]);
    add(to, "]");
}

/* Models with other inputs than the rest, called what they are. */
static hm_status refuse_input_channels(const hm_alignment *a, const hm_group *group, hm_error *err)
{
    const char *kind = NULL;
    uint64_t channels = 0;
    size_t odd = 0, special = HM_PARTIES;
    line files = {0};
    for (size_t i = 0; i < checked_entries(a, group); i++) {
        const hm_entry *entry = &group->entries[i];
        const hm_tensor_info *tensor = hm_entry_tensor(a, entry);
        const char *here = tensor->ndim >= 2 ? hm_family_input_kind(entry->key, tensor->shape[1]) : NULL;
        if (here == NULL || (kind != NULL && tensor->shape[1] != channels)) continue;
        kind = here;
        channels = tensor->shape[1];
        if (special == HM_PARTIES) special = entry->party;
        if (odd < LISTED_FILES) add(&files, "%s%.100s", odd > 0 ? ", " : "", hm_party_label(a, entry->party));
        odd++;
    }
    if (kind == NULL || odd == a->checked_count) return HM_OK; /* the shapes differ for another reason */
    if (odd > LISTED_FILES) add(&files, " and %zu more", odd - LISTED_FILES);
    return hm_fail(err, HM_ERR_MISMATCH, label(a, special), hm_entry_tensor(a, hm_group_entry(group, special))->name,
                   "%s %s %s (%" PRIu64 " input channels), the others are not; leave %s out or use --common",
                   files.text, odd > 1 ? "are each" : "is", kind, channels, odd > 1 ? "them" : "it");
}

/* The file that is wrong, and what is wrong there, for the first tensor of the list. */
static size_t explain_misfit(const hm_alignment *a, const hm_group *group, line *to)
{
    const hm_entry *which;
    hm_misfit misfit = first_misfit(a, group, &which);
    const hm_entry *first = &group->entries[0];
    const char *first_label = hm_party_label(a, first->party);
    if (misfit == HM_MISSING) {
        size_t absent = 0;
        while (a->parties[absent]->is_lora || hm_group_entry(group, absent) != NULL) absent++;
        add(to, "absent, while %.100s has it", first_label);
        return absent;
    }
    const hm_tensor_info *tensor = hm_entry_tensor(a, which);
    if (misfit == HM_NO_FLOAT) {
        add(to, "holds %s, not floating-point numbers", hm_dtype_name(tensor->dtype));
    } else {
        add(to, "its shape is ");
        add_shape(to, tensor);
        add(to, ", in %.100s ", first_label);
        add_shape(to, hm_entry_tensor(a, first));
    }
    return which->party;
}

/* A file that meets no other in any name is another network, and a list of names would only hide that.  (LoRAs were compared
 * with the base before.) */
static hm_status refuse_strangers(const hm_alignment *a, hm_error *err)
{
    size_t names[HM_PARTIES] = {0}, shared[HM_PARTIES] = {0};
    for (size_t g = 0; g < a->group_count; g++) {
        if (!a->groups[g].selected) continue;
        for (size_t i = 0; i < a->groups[g].count; i++) {
            names[a->groups[g].entries[i].party]++;
            shared[a->groups[g].entries[i].party] += a->groups[g].count > 1;
        }
    }
    for (size_t p = a->checked_count; p-- > 0;) /* of two strangers the later one is named */
        if (names[p] > 0 && shared[p] == 0 && !a->parties[p]->is_lora)
            return hm_fail(err, HM_ERR_MISMATCH, label(a, p), NULL,
                           "is another network: none of its %zu tensors that could be merged is in %.200s; only models "
                           "of one architecture can be merged",
                           names[p], hm_party_label(a, p == 0 ? 1 : 0));
    return HM_OK;
}

hm_status hm_refuse_misfits(const hm_alignment *a, const size_t *misfits, size_t count, hm_error *err)
{
    HM_TRY(refuse_strangers(a, err));
    for (size_t i = 0; i < count; i++) {
        const hm_group *group = &a->groups[misfits[i]];
        if (hm_group_misfit(a, group) == HM_SHAPE) HM_TRY(refuse_input_channels(a, group, err));
    }
    line reason = {0};
    const hm_group *first = &a->groups[misfits[0]];
    size_t party = explain_misfit(a, first, &reason);
    if (count > 1) {
        add(&reason, "; %zu tensors in all do not fit", count);
        for (size_t i = 1; i < count && i < LISTED; i++)
            add(&reason, "%s%.100s", i == 1 ? ", also " : ", ", hm_entry_tensor(a, a->groups[misfits[i]].like)->name);
        if (count > LISTED) add(&reason, ", …");
    }
    return hm_fail(err, HM_ERR_MISMATCH, label(a, party), hm_entry_tensor(a, first->like)->name,
                   "%s; leave this file out, or use --common to merge what all inputs share", reason.text);
}
