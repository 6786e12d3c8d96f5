#include "model/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "io/header_write.h"
#include "model/align.h"
#include "model/glob.h"

#define BLOCK_NAME 96

/* ---- notes ------------------------------------------------------------------------------------------------------- */

hm_status hm_plan_note(hm_plan *plan, hm_error *err, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    for (char *s = line; *s != 0; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = '?';
    char **notes = hm_grow(plan->notes, plan->note_count + 1, sizeof *notes);
    if (notes == NULL) return hm_fail_memory(err, "a note");
    plan->notes = notes;
    notes[plan->note_count] = hm_copy_text(line);
    if (notes[plan->note_count] == NULL) return hm_fail_memory(err, "a note");
    plan->note_count++;
    return HM_OK;
}

/* "a.safetensors, b.safetensors and 4 more": the parties for which `of` is true. */
static void list_parties(const hm_alignment *a, const bool *of, char out[512])
{
    size_t shown = 0, more = 0, at = 0;
    out[0] = 0;
    for (size_t p = 0; p < a->party_count; p++) {
        if (!of[p]) continue;
        if (shown == 3) {
            more++;
            continue;
        }
        int n = snprintf(out + at, 512 - at, "%s%.120s", shown > 0 ? ", " : "", hm_party_label(a, p));
        at += (size_t)n; /* 3 × 122 bytes at most */
        shown++;
    }
    if (more > 0) snprintf(out + at, 512 - at, " and %zu more", more);
}

static hm_status note_ema(hm_plan *plan, const hm_alignment *a, hm_error *err)
{
    bool has[HM_PARTIES] = {false};
    size_t dropped = 0;
    char files[512];
    for (size_t g = 0; g < a->group_count; g++) {
        if (a->groups[g].rule != HM_RULE_DROP) continue;
        dropped += a->groups[g].count;
        for (size_t i = 0; i < a->groups[g].count; i++) has[a->groups[g].entries[i].party] = true;
    }
    if (dropped == 0) return HM_OK;
    list_parties(a, has, files);
    return hm_plan_note(plan, err, "%zu EMA tensor%s dropped from %s", dropped, dropped == 1 ? "" : "s", files);
}

static hm_status note_parts(hm_plan *plan, const hm_alignment *a, hm_error *err)
{
    for (size_t i = 0; i < a->part_count; i++) {
        const hm_part *part = &a->parts[i];
        bool absent[HM_PARTIES] = {false}, somewhere = false;
        char files[512];
        for (size_t p = 0; p < a->checked_count; p++) {
            absent[p] = !part->seen[p];
            somewhere = somewhere || part->seen[p];
        }
        bool everywhere = hm_part_first_absent(a, part) == HM_PARTIES;
        if (!somewhere || (everywhere && (part->wanted || part->seen[a->carrier]))) continue;
        list_parties(a, absent, files);
        if (!part->seen[a->carrier])
            HM_TRY(hm_plan_note(plan, err, "%s: left out (absent in %s)", part->name, hm_party_label(a, a->carrier)));
        else
            HM_TRY(hm_plan_note(plan, err, "%s: copied from %.120s (absent in %s)", part->name,
                                hm_party_label(a, a->carrier), files));
    }
    return HM_OK;
}

/* ---- which tensors are merged ------------------------------------------------------------------------------------ */

static const char *name_of(const hm_alignment *a, const hm_group *group)
{
    return hm_entry_tensor(a, group->like)->name;
}

static bool matches_any(const char *const *globs, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (hm_glob_match(globs[i], name)) return true;
    return false;
}

/* Every glob must say something: one that matches nothing is a slip of the pen. */
static hm_status check_globs(const hm_source *carrier, const char *const *globs, size_t count, const char *option,
                             hm_error *err)
{
    for (size_t i = 0; i < count; i++) {
        size_t t = 0;
        while (t < carrier->header.count && !hm_glob_match(globs[i], carrier->header.tensors[t].name)) t++;
        if (t == carrier->header.count)
            return hm_fail(err, HM_ERR_ARGUMENT, hm_source_label(carrier), NULL,
                           "no tensor matches %s '%.200s'; names and globs are case-sensitive", option, globs[i]);
    }
    return HM_OK;
}

static void select_groups(hm_alignment *a, const hm_selection *selection)
{
    for (size_t g = 0; g < a->group_count; g++) {
        hm_group *group = &a->groups[g];
        const char *name = name_of(a, group);
        bool wanted = selection->includes > 0
                          ? matches_any(selection->include, selection->includes, name)
                          : group->component != HM_COMPONENT_VAE && group->component != HM_COMPONENT_T5;
        group->selected = group->rule == HM_RULE_MERGE && wanted &&
                          !matches_any(selection->exclude, selection->excludes, name);
        if (group->selected) a->parts[group->part].wanted = true;
    }
}

/* Groups that do not fit together, by what may be done about them. */
typedef struct misfits {
    size_t *refused; /* indices of groups */
    size_t refused_count;
    size_t copied, left_out; /* with --common, or extras that are no reason to refuse */
    const char *first;       /* name of the first of these */
} misfits;

static void decide_groups(hm_alignment *a, bool common, misfits *found)
{
    bool all_known = true; /* then names that no table knows are leftovers of some program */
    for (size_t p = 0; p < a->checked_count; p++)
        all_known = all_known && hm_family_architecture(a->families[p]) != NULL;
    for (size_t g = 0; g < a->group_count; g++) {
        hm_group *group = &a->groups[g];
        const char *key = group->entries[0].key;
        group->verdict = group->carried != NULL && group->rule != HM_RULE_DROP ? HM_TAKE_OVER : HM_LEAVE_OUT;
        if (!group->selected || hm_part_first_absent(a, &a->parts[group->part]) != HM_PARTIES) continue;
        hm_misfit misfit = hm_group_misfit(a, group);
        if (misfit == HM_FITS) {
            if (hm_entry_tensor(a, &group->entries[0])->elements > 0) group->verdict = HM_MERGE;
        } else if (group->entries[0].party >= a->checked_count) {
            continue; /* only a carrier of its own has it */
        } else if (common ||
                   (misfit == HM_MISSING && (hm_name_is_optional(key) || (all_known && !hm_name_is_known(key))))) {
            *(group->carried != NULL ? &found->copied : &found->left_out) += 1;
            if (found->first == NULL) found->first = name_of(a, group);
        } else {
            found->refused[found->refused_count++] = g;
        }
    }
}

static hm_status decide(hm_plan *plan, hm_alignment *a, const hm_selection *selection, hm_error *err)
{
    const hm_source *carrier = a->parties[a->carrier];
    HM_TRY(check_globs(carrier, selection->include, selection->includes, "--include", err));
    HM_TRY(check_globs(carrier, selection->exclude, selection->excludes, "--exclude", err));
    select_groups(a, selection);
    HM_TRY(hm_check_parts(a, selection->common, err));

    misfits found = {.refused = hm_alloc(a->group_count, sizeof *found.refused)};
    if (found.refused == NULL) return hm_fail_memory(err, "tensor names");
    decide_groups(a, selection->common, &found);
    hm_status status = HM_OK;
    if (found.refused_count > 0) status = hm_refuse_misfits(a, found.refused, found.refused_count, err);
    hm_release(found.refused);
    if (status != HM_OK) return status;

    HM_TRY(note_parts(plan, a, err));
    size_t apart = found.copied + found.left_out;
    if (apart > 0)
        HM_TRY(hm_plan_note(plan, err,
                            "%zu tensor%s that the inputs do not share: %zu copied from %.120s, %zu left out (the "
                            "first is %.200s)",
                            apart, apart == 1 ? "" : "s", found.copied, hm_party_label(a, a->carrier), found.left_out,
                            found.first));
    return note_ema(plan, a, err);
}

/* ---- the tables of the plan -------------------------------------------------------------------------------------- */

typedef struct planned {
    hm_plan_tensor tensor;
    const hm_group *group;
} planned;

static int planned_order(const void *a, const void *b)
{
    return hm_tensor_usual_order(((const planned *)a)->tensor.like, ((const planned *)b)->tensor.like);
}

static hm_status fill_tensors(hm_plan *plan, const hm_alignment *a, planned *rows, hm_error *err)
{
    for (size_t g = 0; g < a->group_count; g++) {
        const hm_group *group = &a->groups[g];
        if (group->verdict == HM_LEAVE_OUT) continue;
        const hm_entry *like = group->like;
        /* A carrier of its own may have another shape (an inpainting model): the merged ones are right then. */
        if (group->verdict == HM_MERGE && like->party >= a->checked_count) {
            const hm_tensor_info *x = hm_entry_tensor(a, like), *y = hm_entry_tensor(a, &group->entries[0]);
            if (x->ndim != y->ndim || memcmp(x->shape, y->shape, x->ndim * sizeof x->shape[0]) != 0 ||
                !hm_dtype_is_float(x->dtype))
                like = &group->entries[0];
        }
        planned *row = &rows[plan->count++];
        *row = (planned){.group = group, .tensor = {.like = hm_entry_tensor(a, like), .component = group->component}};
        row->tensor.action = group->verdict == HM_MERGE ? HM_ACTION_MERGE : HM_ACTION_COPY;
        if (group->verdict == HM_TAKE_OVER) {
            row->tensor.copy_from = plan->carrier;
            row->tensor.copy_index = group->carried->index;
        } else {
            row->tensor.copy_index = HM_ABSENT;
            plan->merged_count++;
            plan->merged_elements += row->tensor.like->elements;
        }
    }
    if (plan->count > 0) qsort(rows, plan->count, sizeof *rows, planned_order);

    size_t columns = plan->source_count;
    plan->tensors = hm_alloc(plan->count, sizeof *plan->tensors);
    plan->index = hm_alloc(plan->count, columns * sizeof *plan->index);
    plan->base_index = hm_alloc(plan->count, sizeof *plan->base_index);
    if (plan->tensors == NULL || plan->index == NULL || plan->base_index == NULL)
        return hm_fail_memory(err, "the table of tensors");
    for (size_t t = 0; t < plan->count; t++) {
        plan->tensors[t] = rows[t].tensor;
        for (size_t s = 0; s < columns; s++) plan->index[t * columns + s] = HM_ABSENT;
        plan->base_index[t] = HM_ABSENT;
        if (rows[t].tensor.action != HM_ACTION_MERGE) continue;
        for (size_t i = 0; i < rows[t].group->count; i++) {
            const hm_entry *entry = &rows[t].group->entries[i];
            if (entry->party < columns)
                plan->index[t * columns + entry->party] = entry->index;
            else if (entry->party < a->checked_count)
                plan->base_index[t] = entry->index;
        }
    }
    return HM_OK;
}

typedef struct block_row {
    char name[BLOCK_NAME];
    hm_component component;
    size_t tensor;
} block_row;

static int block_order(const void *a, const void *b)
{
    const block_row *x = a, *y = b;
    if (x->component != y->component) return x->component < y->component ? -1 : 1;
    return hm_name_block_order(x->name, y->name);
}

static hm_status add_block(hm_plan *plan, const block_row *row, hm_error *err)
{
    plan->block_names[plan->block_count] = hm_copy_text(row->name);
    plan->block_components[plan->block_count] = row->component;
    if (plan->block_names[plan->block_count] == NULL) return hm_fail_memory(err, "block names");
    plan->block_count++;
    return HM_OK;
}

/* Sorts the rows and counts the different blocks; too many of them (each costs an M × M matrix) become one per
 * component. */
static size_t arrange_blocks(block_row *rows, size_t count)
{
    for (bool again = true;; again = false) {
        size_t distinct = 0;
        if (count > 0) qsort(rows, count, sizeof *rows, block_order);
        for (size_t i = 0; i < count; i++) distinct += i == 0 || block_order(&rows[i - 1], &rows[i]) != 0;
        if (distinct <= HM_PLAN_BLOCKS || !again) return distinct;
        for (size_t i = 0; i < count; i++)
            snprintf(rows[i].name, sizeof rows[i].name, "%s", hm_component_name(rows[i].component));
    }
}

static hm_status fill_blocks(hm_plan *plan, block_row *rows, hm_error *err)
{
    for (size_t t = 0; t < plan->count; t++) {
        rows[t].tensor = t;
        rows[t].component = plan->tensors[t].component;
        hm_name_block(plan->tensors[t].like->name, rows[t].name, sizeof rows[t].name);
    }
    size_t distinct = arrange_blocks(rows, plan->count);
    plan->block_names = hm_alloc(distinct, sizeof *plan->block_names);
    plan->block_components = hm_alloc(distinct, sizeof *plan->block_components);
    if (plan->block_names == NULL || plan->block_components == NULL) return hm_fail_memory(err, "block names");
    size_t block = 0;
    for (size_t i = 0; i < plan->count; i++) {
        if (i == 0 || block_order(&rows[i - 1], &rows[i]) != 0) {
            /* An unknown network may call a block "vae": names stay different, so the two share one block. */
            block = 0;
            while (block < plan->block_count && strcmp(plan->block_names[block], rows[i].name) != 0) block++;
            if (block == plan->block_count) HM_TRY(add_block(plan, &rows[i], err));
        }
        plan->tensors[rows[i].tensor].block = (unsigned)block;
    }
    return HM_OK;
}

/* ---- making and changing a plan ---------------------------------------------------------------------------------- */

static hm_status hold_sources(hm_plan *plan, hm_source *const *sources, size_t count, hm_source *base,
                              hm_source *carrier, hm_error *err)
{
    plan->sources = hm_alloc(count, sizeof *plan->sources);
    if (plan->sources == NULL) return hm_fail_memory(err, "a plan");
    for (size_t i = 0; i < count; i++) plan->sources[plan->source_count++] = hm_source_keep(sources[i]);
    plan->base = hm_source_keep(base);
    plan->carrier = hm_source_keep(carrier != NULL ? carrier : base != NULL ? base : sources[0]);
    return HM_OK;
}

static hm_status fill_plan(hm_plan *plan, hm_alignment *a, const hm_selection *selection, hm_error *err)
{
    static const hm_selection everything = {0};
    HM_TRY(hm_align(a, plan->sources, plan->source_count, plan->base, plan->carrier, err));
    HM_TRY(hm_check_parties(a, err));
    plan->family = a->families[a->carrier];
    for (size_t p = 0; p < a->checked_count && strcmp(plan->family, "unknown") == 0; p++) plan->family = a->families[p];
    HM_TRY(decide(plan, a, selection != NULL ? selection : &everything, err));

    planned *rows = hm_alloc(a->group_count, sizeof *rows);
    if (rows == NULL) return hm_fail_memory(err, "the table of tensors");
    hm_status status = fill_tensors(plan, a, rows, err);
    hm_release(rows);
    if (status != HM_OK) return status;
    if (plan->merged_count == 0)
        return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(plan->carrier), NULL,
                       "nothing is left to merge; the VAE and the T5 encoder take part only when --include names them");

    block_row *blocks = hm_alloc(plan->count, sizeof *blocks);
    if (blocks == NULL) return hm_fail_memory(err, "block names");
    status = fill_blocks(plan, blocks, err);
    hm_release(blocks);
    return status;
}

hm_status hm_plan_make(hm_plan **out, hm_source *const *sources, size_t count, hm_source *base, hm_source *carrier,
                       const hm_selection *selection, hm_error *err)
{
    if (count == 0) return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "no model was given");
    if (count > HM_MAX_MEMBERS)
        return hm_fail(err, HM_ERR_ARGUMENT, NULL, NULL, "%zu models were given; at most %d can be merged at once",
                       count, HM_MAX_MEMBERS);
    hm_plan *plan = hm_alloc(1, sizeof *plan);
    hm_alignment *alignment = hm_alloc(1, sizeof *alignment);
    hm_status status = plan != NULL && alignment != NULL ? HM_OK : hm_fail_memory(err, "a plan");
    if (status == HM_OK) status = hold_sources(plan, sources, count, base, carrier, err);
    if (status == HM_OK) status = fill_plan(plan, alignment, selection, err);
    if (alignment != NULL) hm_align_clear(alignment);
    hm_release(alignment);
    if (status != HM_OK) {
        hm_plan_free(plan);
        return status;
    }
    *out = plan;
    return HM_OK;
}

void hm_plan_copy_instead(hm_plan *plan, size_t tensor)
{
    hm_plan_tensor *row = &plan->tensors[tensor];
    if (row->action == HM_ACTION_COPY) return;
    row->action = HM_ACTION_COPY;
    row->copy_from = plan->carrier;
    row->copy_index = hm_source_index(plan->carrier, row->like->name);
    if (row->copy_index == HM_ABSENT || &plan->carrier->header.tensors[row->copy_index] != row->like) {
        row->copy_from = plan->sources[0]; /* `like` is from there when the carrier has no such tensor */
        row->copy_index = plan->index[tensor * plan->source_count];
    }
    plan->merged_count--;
    plan->merged_elements -= row->like->elements;
    for (size_t s = 0; s < plan->source_count; s++) plan->index[tensor * plan->source_count + s] = HM_ABSENT;
    plan->base_index[tensor] = HM_ABSENT;
}

void hm_plan_free(hm_plan *plan)
{
    if (plan == NULL) return;
    for (size_t i = 0; i < plan->source_count; i++) hm_source_close(plan->sources[i]);
    hm_source_close(plan->base);
    hm_source_close(plan->carrier);
    for (size_t i = 0; i < plan->block_count; i++) hm_release(plan->block_names[i]);
    for (size_t i = 0; i < plan->note_count; i++) hm_release(plan->notes[i]);
    hm_release(plan->sources);
    hm_release(plan->tensors);
    hm_release(plan->index);
    hm_release(plan->base_index);
    hm_release(plan->block_names);
    hm_release(plan->block_components);
    hm_release(plan->notes);
    hm_release(plan);
}
