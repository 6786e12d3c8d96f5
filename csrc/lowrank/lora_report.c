#include "lowrank/lora_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/header_write.h"
#include "model/names.h"

hm_lora_ranks hm_lora_ranks_of(const hm_lora_list *list)
{
    hm_lora_ranks ranks = {.least = SIZE_MAX};
    for (size_t e = 0; e < list->count; e++) {
        size_t rank = list->entries[e].rank;
        if (rank == 0) continue;
        ranks.layers++;
        if (list->entries[e].kind != HM_LORA_FACTORS) continue;
        if (rank < ranks.least) ranks.least = rank;
        if (rank > ranks.most) ranks.most = rank;
    }
    if (ranks.least == SIZE_MAX) ranks.least = 0;
    return ranks;
}

static double relative(double rest, double square)
{
    return square > 0 ? sqrt(rest / square) : 0;
}

struct block {
    char name[128];
    size_t first; /* entry */
    double square, rest;
};

static int by_name(const void *a, const void *b)
{
    const struct block *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : x->first < y->first ? -1 : x->first > y->first;
}

static int by_place(const void *a, const void *b)
{
    const struct block *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sums over the layers of each block, in the order in which the blocks begin; returns how many there are.  `blocks` has room
 * for one per layer. */
static size_t sum_blocks(const hm_lora_list *list, struct block *blocks)
{
    size_t count = 0;
    for (size_t e = 0; e < list->count; e++) {
        const hm_lora_entry *entry = &list->entries[e];
        blocks[e] = (struct block){.first = e, .square = entry->square, .rest = entry->rest_stored};
        hm_name_block(list->difference->name[entry->tensor], blocks[e].name, sizeof blocks[e].name);
    }
    qsort(blocks, list->count, sizeof *blocks, by_name);
    for (size_t e = 0; e < list->count; e++) {
        if (count > 0 && strcmp(blocks[count - 1].name, blocks[e].name) == 0) {
            blocks[count - 1].square += blocks[e].square;
            blocks[count - 1].rest += blocks[e].rest;
        } else {
            blocks[count++] = blocks[e];
        }
    }
    qsort(blocks, count, sizeof *blocks, by_place);
    return count;
}

static void put_blocks(hm_text *text, const hm_lora_list *list, double total)
{
    struct block *blocks = hm_alloc(list->count, sizeof *blocks);
    if (blocks == NULL) {
        text->failed = true;
        return;
    }
    size_t count = sum_blocks(list, blocks);
    hm_text_put(text, ",\"blocks\":{");
    for (size_t b = 0; b < count; b++) {
        if (b > 0) hm_text_put(text, ",");
        hm_json_string(text, blocks[b].name);
        hm_text_put(text, ":{\"relative_error\":");
        hm_json_number(text, relative(blocks[b].rest, blocks[b].square));
        hm_text_put(text, ",\"share\":");
        hm_json_number(text, total > 0 ? blocks[b].square / total : 0);
        hm_text_put(text, "}");
    }
    hm_text_put(text, "}");
    hm_release(blocks);
}

void hm_lora_put_report(hm_text *text, const hm_lora_list *list, const hm_lora_sums *sums, uint64_t bytes)
{
    hm_lora_ranks ranks = hm_lora_ranks_of(list);
    double square = 0, rest = 0, rest_stored = 0, worst = -1;
    const char *worst_name = "";
    for (size_t e = 0; e < list->count; e++) {
        const hm_lora_entry *entry = &list->entries[e];
        square += entry->square;
        rest += entry->rest;
        rest_stored += entry->rest_stored;
        if (relative(entry->rest_stored, entry->square) <= worst) continue;
        worst = relative(entry->rest_stored, entry->square);
        worst_name = list->difference->name[entry->tensor];
    }
    hm_text_put(text, "{\"format\":");
    hm_json_string(text, hm_lora_format_name(list->format));
    hm_text_format(text, ",\"tensors\":%zu,\"bytes\":%llu,\"rank\":{\"least\":%zu,\"most\":%zu},\"relative_error\":",
                   ranks.layers, (unsigned long long)bytes, ranks.least, ranks.most);
    hm_json_number(text, relative(rest_stored, square));
    hm_text_put(text, ",\"relative_error_unrounded\":");
    hm_json_number(text, relative(rest, square));
    hm_text_put(text, ",\"worst\":{\"tensor\":");
    hm_json_string(text, worst_name);
    hm_text_put(text, ",\"relative_error\":");
    hm_json_number(text, worst > 0 ? worst : 0);
    hm_text_put(text, "}");
    put_blocks(text, list, sums->square);
    hm_text_format(text, ",\"not_carried\":{\"tensors\":%zu,\"share\":", sums->lost);
    hm_json_number(text, sums->square > 0 ? sums->lost_square / sums->square : 0);
    hm_text_put(text, "}}");
}
