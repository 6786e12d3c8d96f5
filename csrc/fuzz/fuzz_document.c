/* Fuzzing of the metadata documents; an input is JSON text.  What passes our checks must be within the reach of cJSON (where
 * only memory can fail), and must pass them again after cJSON printed it. */
#include "base/memory.h"
#include "fuzz/fuzz.h"
#include "io/document.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = hm_copy_bytes((const char *)data, size);
    if (text == NULL) return 0;
    cJSON *tree = NULL, *again = NULL;
    hm_error err = {0};
    hm_status status = hm_document_parse(&tree, text, "file", "document", &err);
    if (status == HM_OK) {
        char *printed = cJSON_PrintUnformatted(tree);
        REQUIRE(printed != NULL && hm_document_parse(&again, printed, "file", "document", &err) == HM_OK);
        REQUIRE(cJSON_Compare(tree, again, 1));
        cJSON_Delete(again);
        cJSON_Delete(tree);
        free(printed);
    } else {
        REQUIRE(status == HM_ERR_FORMAT && tree == NULL);
        require_told(status, &err);
    }
    hm_release(text);
    return 0;
}
