/* Metadata documents: what cJSON alone would let through is refused, and members are read by name and type. */
#include <stdlib.h>

#include "base/error.h"
#include "io/document.h"
#include "tests/check.h"

static hm_error error;

static void accepted(const char *text)
{
    cJSON *tree = NULL;
    CHECK(hm_document_parse(&tree, text, "f", "recipe", &error) == HM_OK);
    CHECK(tree != NULL);
    cJSON_Delete(tree);
}

static void refused(const char *text, const char *reason)
{
    cJSON *tree = NULL;
    CHECK(hm_document_parse(&tree, text, "f", "recipe", &error) == HM_ERR_FORMAT);
    CHECK(tree == NULL);
    CHECK_HAS(error.message, "f: ");
    CHECK_HAS(error.message, "recipe");
    CHECK_HAS(error.message, reason);
}

static void test_texts(void)
{
    accepted("{}");
    accepted(" [1, -0.5e-3, 2E+8, true, false, null, \"x\\u00e9\\ud83d\\ude00\", {\"a\":{\"a\":1}}, []]\n");
    accepted("{\"a\":{\"b\":1},\"b\":{\"b\":2},\"A\":3}");
    accepted("[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"); /* 16 levels */
    refused("[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]", "at its byte 16: nested too deeply");
    refused("", "ends too early");
    refused("{} {}", "text after the end");
    refused("{}x", "text after the end");
    refused("\xEF\xBB\xBF{}", "expected a value");
    refused("{\"a\":1,\"a\":2}", "\"a\" is given twice");
    refused("[{\"a\":{\"x\":1},\"b\":0,\"\\u0061\":2}]", "\"a\" is given twice");
    refused("{\"a\\u0000\":1}", "\\u0000");
    refused("[\"a\\u0000\"]", "\\u0000");
    refused("[\"a\nb\"]", "control character");
    refused("[\"\xC0\xAF\"]", "not valid UTF-8");
    refused("[01]", "must not begin with 0");
    refused("[-]", "expected a digit");
    refused("[1.]", "expected a digit");
    refused("[.5]", "expected a value");
    refused("[1e]", "expected a digit");
    refused("[+1]", "expected a value");
    refused("[0x10]", "expected ','");
    refused("[NaN]", "expected a value");
    refused("[nul]", "expected a value");
    refused("[1e999]", "a number is too large");
    refused("[{\"a\":[-1e999]}]", "a number is too large");
    refused("[0.1111111111111111111111111111111111111111111111111111111111111111]", "too many digits");
    refused("[1,]", "expected a value");
    refused("{\"a\":1,}", "expected a string");
    refused("[1", "ends too early");
}

static void test_size(void)
{
    char *text = malloc(HM_DOCUMENT_CAP + 2);
    if (!CHECK(text != NULL)) return;
    memset(text, ' ', HM_DOCUMENT_CAP + 1);
    memcpy(text, "[1]", 3);
    text[HM_DOCUMENT_CAP] = '\0';
    accepted(text);
    text[HM_DOCUMENT_CAP] = ' ';
    text[HM_DOCUMENT_CAP + 1] = '\0';
    refused(text, "4194305 bytes, at most 4194304");
    free(text);
}

static void test_members(void)
{
    cJSON *tree = NULL;
    CHECK(hm_document_parse(&tree,
                            "{\"o\":{\"n\":-1.25},\"a\":[1,2.5,-3],\"s\":\"text\",\"n\":1e3,\"b\":true,"
                            "\"m\":[1,\"2\",3]}",
                            NULL, "recipe", &error) == HM_OK);
    double value = 7, values[3] = {7, 7, 7};
    CHECK(hm_document_number(hm_document_object(tree, "o"), "n", &value) && value == -1.25);
    CHECK(hm_document_number(tree, "n", &value) && value == 1000);
    CHECK(!hm_document_number(tree, "s", &value) && !hm_document_number(tree, "N", &value) && value == 1000);
    CHECK(!hm_document_number(tree, "b", &value) && !hm_document_number(NULL, "n", &value));
    CHECK_TEXT(hm_document_string(tree, "s"), "text");
    CHECK(hm_document_string(tree, "n") == NULL && hm_document_string(NULL, "s") == NULL);
    CHECK(hm_document_object(tree, "a") == NULL && hm_document_object(tree, "none") == NULL);
    CHECK(hm_document_array(tree, "o") == NULL && cJSON_GetArraySize(hm_document_array(tree, "a")) == 3);
    CHECK(hm_document_string(hm_document_array(tree, "a"), "s") == NULL);
    CHECK(hm_document_numbers(tree, "a", values, 3) && values[0] == 1 && values[1] == 2.5 && values[2] == -3);
    CHECK(!hm_document_numbers(tree, "a", values, 2) && !hm_document_numbers(tree, "a", values, 4));
    CHECK(!hm_document_numbers(tree, "m", values, 3) && !hm_document_numbers(tree, "o", values, 1));
    cJSON_Delete(tree);
}

int main(void)
{
    test_texts();
    test_size();
    test_members();
    return check_report("document");
}
