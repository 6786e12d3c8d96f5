#include "model/align.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/memory.h"

#define NAME_ROOM 1024 /* longer names keep their own spelling */

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static int entry_order(const void *a, const void *b)
{
    const hm_entry *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    if (order != 0) return order;
    return x->party < y->party ? -1 : x->party > y->party;
}

/* Canonical key of a party's tensor.  Where the file also has a tensor of the canonical name, each keeps its own. */
static hm_status set_key(hm_entry *entry, const hm_source *source, const char *name, hm_error *err)
{
    char canonical[NAME_ROOM];
    entry->key = name;
    if (!hm_name_canonical(name, canonical, sizeof canonical) || strcmp(canonical, name) == 0 ||
        hm_source_index(source, canonical) != HM_ABSENT)
        return HM_OK;
    entry->owned = hm_copy_text(canonical);
    if (entry->owned == NULL) return hm_fail_memory(err, "tensor names");
    entry->key = entry->owned;
    return HM_OK;
}

static hm_status collect_entries(hm_alignment *a, hm_error *err)
{
    size_t room = 0;
    for (size_t p = 0; p < a->party_count; p++) room += a->parties[p]->header.count;
    a->entries = hm_alloc(room, sizeof *a->entries);
    if (a->entries == NULL) return hm_fail_memory(err, "tensor names");
    for (size_t p = 0; p < a->party_count; p++) {
        const hm_source *source = a->parties[p];
        for (size_t i = 0; i < source->header.count; i++) {
            const char *name = source->header.tensors[i].name;
            if (strncmp(name, HM_OWN_PREFIX, strlen(HM_OWN_PREFIX)) == 0) continue;
            hm_entry *entry = &a->entries[a->entry_count++];
            *entry = (hm_entry){.party = (uint32_t)p, .index = (uint32_t)i};
            HM_TRY(set_key(entry, source, name, err));
        }
    }
    if (a->entry_count > 0) qsort(a->entries, a->entry_count, sizeof *a->entries, entry_order);
    for (size_t i = 1; i < a->entry_count; i++) {
        const hm_entry *x = &a->entries[i - 1], *y = &a->entries[i];
        if (x->party == y->party && strcmp(x->key, y->key) == 0)
            return hm_fail(err, HM_ERR_MISMATCH, hm_source_label(a->parties[x->party]), hm_entry_tensor(a, x)->name,
                           "the file holds this tensor twice, also as '%.200s'; remove one of them",
                           hm_entry_tensor(a, y)->name);
    }
    return HM_OK;
}

/* ---- groups and parts -------------------------------------------------------------------------------------------- */

/* Parts beyond the table share the last row: no real file has so many. */
static uint32_t part_of(hm_alignment *a, hm_component component, const char *key)
{
    char name[sizeof a->parts[0].name];
    if (component == HM_COMPONENT_UNET)
        snprintf(name, sizeof name, "%s", hm_component_name(component));
    else
        hm_name_block(key, name, sizeof name);
    size_t i = 0;
    while (i < a->part_count && (a->parts[i].component != component || strcmp(a->parts[i].name, name) != 0)) i++;
    if (i == HM_PARTS) return HM_PARTS - 1;
    if (i == a->part_count) {
        a->part_count++;
        a->parts[i].component = component;
        memcpy(a->parts[i].name, name, sizeof name);
    }
    return (uint32_t)i;
}

static void fill_group(hm_alignment *a, hm_group *group, const hm_entry *entries, size_t count)
{
    const char *key = entries[0].key;
    *group = (hm_group){.entries = entries, .count = count, .component = hm_name_component(key)};
    group->carried = hm_group_entry(group, a->carrier);
    group->like = group->carried != NULL ? group->carried : &entries[0];
    group->part = part_of(a, group->component, key);

    /* The name decides; then a tensor is merged if any party has it in floating point (if not all do: a misfit). */
    group->rule = hm_name_rule(key, HM_I64);
    if (group->rule == HM_RULE_COPY)
        for (size_t i = 0; i < count && group->rule == HM_RULE_COPY; i++)
            group->rule = hm_name_rule(key, hm_entry_tensor(a, &entries[i])->dtype);
    if (group->rule == HM_RULE_MERGE)
        for (size_t i = 0; i < count; i++) a->parts[group->part].seen[entries[i].party] = true;
}

static hm_status collect_groups(hm_alignment *a, hm_error *err)
{
    size_t groups = 0;
    for (size_t i = 0; i < a->entry_count; i++)
        groups += i == 0 || strcmp(a->entries[i - 1].key, a->entries[i].key) != 0;
    a->groups = hm_alloc(groups, sizeof *a->groups);
    if (a->groups == NULL) return hm_fail_memory(err, "tensor names");
    for (size_t first = 0, end; first < a->entry_count; first = end) {
        end = first + 1;
        while (end < a->entry_count && strcmp(a->entries[first].key, a->entries[end].key) == 0) end++;
        fill_group(a, &a->groups[a->group_count++], &a->entries[first], end - first);
    }
    return HM_OK;
}

hm_status hm_align(hm_alignment *out, hm_source *const *sources, size_t count, hm_source *base, hm_source *carrier,
                   hm_error *err)
{
    *out = (hm_alignment){0};
    for (size_t i = 0; i < count; i++) out->parties[out->party_count++] = sources[i];
    out->source_count = count;
    if (base != NULL) out->parties[out->party_count++] = base;
    out->checked_count = out->party_count;
    out->carrier = base != NULL ? count : 0;
    if (carrier != NULL && carrier != base) {
        out->carrier = 0;
        while (out->carrier < out->party_count && out->parties[out->carrier] != carrier) out->carrier++;
        if (out->carrier == out->party_count) out->parties[out->party_count++] = carrier;
    }
    for (size_t p = 0; p < out->party_count; p++)
        out->families[p] = out->parties[p]->is_lora ? out->parties[p]->lora_family : hm_family(out->parties[p]);
    HM_TRY(collect_entries(out, err));
    HM_TRY(collect_groups(out, err));
    /* A LoRA stands for its base with some tensors changed: it lacks no part. */
    for (size_t p = 0; p < out->checked_count; p++)
        for (size_t i = 0; out->parties[p]->is_lora && i < out->part_count; i++) out->parts[i].seen[p] = true;
    return HM_OK;
}

void hm_align_clear(hm_alignment *alignment)
{
    for (size_t i = 0; i < alignment->entry_count; i++) hm_release(alignment->entries[i].owned);
    hm_release(alignment->entries);
    hm_release(alignment->groups);
    *alignment = (hm_alignment){0};
}

/* ---- questions --------------------------------------------------------------------------------------------------- */

const hm_tensor_info *hm_entry_tensor(const hm_alignment *alignment, const hm_entry *entry)
{
    return &alignment->parties[entry->party]->header.tensors[entry->index];
}

const char *hm_party_label(const hm_alignment *alignment, size_t party)
{
    return hm_source_short_label(alignment->parties[party]);
}

size_t hm_part_first_absent(const hm_alignment *alignment, const hm_part *part)
{
    for (size_t p = 0; p < alignment->checked_count; p++)
        if (!part->seen[p]) return p;
    return HM_PARTIES;
}

const hm_entry *hm_group_entry(const hm_group *group, size_t party)
{
    for (size_t i = 0; i < group->count; i++)
        if (group->entries[i].party == party) return &group->entries[i];
    return NULL;
}
