/* What hm_hyper_lora and hm_lora_of_pair say about the file that they wrote. */
#ifndef HM_LOWRANK_LORA_REPORT_H
#define HM_LOWRANK_LORA_REPORT_H

#include "base/memory.h"
#include "lowrank/lora_list.h"

typedef struct hm_lora_ranks {
    size_t layers;      /* that are in the file */
    size_t least, most; /* of factors; 0 where there are none */
} hm_lora_ranks;

typedef struct hm_lora_sums {
    double square;      /* ‖D‖² in all */
    double lost_square; /* of the tensors that no layer carries, and how many those are */
    size_t lost;
} hm_lora_sums;

hm_lora_ranks hm_lora_ranks_of(const hm_lora_list *list);
/* The JSON object of hm_hyper_lora.  `list` has been measured; bytes: of the file. */
void hm_lora_put_report(hm_text *text, const hm_lora_list *list, const hm_lora_sums *sums, uint64_t bytes);

#endif
