/* The rules of a safetensors header: what is accepted, what is refused and with which words, and that what we write is
 * read back as it was.  Whole hostile files with a reason each are in tests/hostile. */
#include <inttypes.h>
#include <locale.h>
#include <stdlib.h>
#include <time.h>

#include "base/error.h"
#include "base/memory.h"
#include "io/dtype.h"
#include "io/header_scan.h"
#include "io/header_write.h"
#include "tests/check.h"

static hm_header header; /* of the last accepted text; cleared by the next call of scan */
static hm_error error;

/* The text in a block of exactly its size, so that the sanitizer sees a read beyond it. */
static hm_status scan_bytes(const char *text, size_t length, uint64_t data_bytes)
{
    hm_header_clear(&header);
    memset(&error, 0, sizeof error);
    char *exact = malloc(length > 0 ? length : 1);
    if (exact == NULL) return HM_ERR_MEMORY;
    memcpy(exact, text, length);
    hm_status status = hm_header_scan(&header, exact, length, 8 + length + data_bytes, "f.safetensors", &error);
    free(exact);
    return status;
}

static hm_status scan(const char *text, uint64_t data_bytes)
{
    return scan_bytes(text, strlen(text), data_bytes);
}

static void refused_bytes(const char *text, size_t length, uint64_t data_bytes, const char *reason)
{
    CHECK(scan_bytes(text, length, data_bytes) == HM_ERR_FORMAT);
    CHECK(error.status == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "f.safetensors: ");
    CHECK_HAS(error.message, reason);
    CHECK(strchr(error.message, '\n') == NULL);
}

static void refused(const char *text, uint64_t data_bytes, const char *reason)
{
    refused_bytes(text, strlen(text), data_bytes, reason);
}

/* One F32 tensor "a" of two elements but for one member, which is given. */
#define DTYPE(x) "{\"a\":{\"dtype\":" x ",\"shape\":[2],\"data_offsets\":[0,8]}}"
#define SHAPE(x) "{\"a\":{\"dtype\":\"F32\",\"shape\":" x ",\"data_offsets\":[0,8]}}"
#define EXTENT(x) "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" x "}}"
/* A tensor of bytes. */
#define U8(name, bytes, begin, end) \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #bytes "],\"data_offsets\":[" #begin "," #end "]}"

static void test_types(void)
{
    static const char *const names[HM_DTYPE_COUNT] = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32",
                                                      "I16", "I8",  "U64", "U32",  "U16",     "U8",      "BOOL"};
    static const size_t bytes[HM_DTYPE_COUNT] = {8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1};
    for (int i = 0; i < (int)HM_DTYPE_COUNT; i++) {
        hm_dtype found = HM_DTYPE_KEEP;
        CHECK_TEXT(hm_dtype_name((hm_dtype)i), names[i]);
        CHECK(hm_dtype_bytes((hm_dtype)i) == bytes[i]);
        CHECK(hm_dtype_is_float((hm_dtype)i) == (i < 6));
        CHECK(hm_dtype_find(names[i], &found) && found == (hm_dtype)i);
        CHECK(!hm_dtype_is_foreign(names[i]));
    }
    hm_dtype found = HM_BOOL;
    CHECK(!hm_dtype_find("f32", &found) && !hm_dtype_find("", &found) && found == HM_BOOL);
    CHECK_TEXT(hm_dtype_name(HM_DTYPE_KEEP), "?");
    CHECK(!hm_dtype_is_float(HM_DTYPE_COUNT));
}

static void test_length(void)
{
    uint64_t length = 7;
    static const unsigned char ten[8] = {10}, over[8] = {1, 0, 0, 2}, top[8] = {0, 0, 0, 0, 0, 0, 0, 0x80};
    CHECK(hm_header_length(&length, ten, 8, 18, "f", NULL) == HM_OK && length == 10);
    CHECK(hm_header_length(&length, ten, 8, 17, "f", &error) == HM_ERR_FORMAT && length == 10);
    CHECK_HAS(error.message, "cut short: its header alone has 10 bytes, the whole file 17");
    CHECK(hm_header_length(&length, over, 8, UINT64_MAX, "f", &error) == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "its header would be 33554433 bytes long");
    CHECK(hm_header_length(&length, top, 8, UINT64_MAX, "f", &error) == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "9223372036854775808");
    CHECK(hm_header_length(&length, ten, 7, 7, "f", &error) == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "only 7 bytes long");
    CHECK(hm_header_length(&length, ten, 0, 0, "f", &error) == HM_ERR_FORMAT);
    CHECK(hm_header_length(&length, (const unsigned char *)"version ", 8, 130, "f", &error) == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "git lfs pull");
    CHECK(hm_header_length(&length, (const unsigned char *)"<!DOCTYP", 8, 130, "f", &error) == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "web page");
    CHECK(hm_header_length(&length, (const unsigned char *)"GGUF\3\0\0\0", 8, 130, "f", &error) == HM_ERR_FORMAT);
    CHECK_HAS(error.message, "GGUF");
    /* The scanner checks again by itself. */
    CHECK(hm_header_scan(&header, "{}", 2, 9, "f", &error) == HM_ERR_FORMAT);
    CHECK(hm_header_scan(&header, "{}", UINT64_MAX, UINT64_MAX, "f", &error) == HM_ERR_FORMAT);
}

static void test_accepted(void)
{
    CHECK(scan("{}", 0) == HM_OK && header.count == 0 && header.meta_count == 0);
    CHECK(scan("{}      ", 0) == HM_OK);
    CHECK(scan("{\"__metadata__\":{}}", 0) == HM_OK && header.meta_count == 0);

    CHECK(scan("{\"__metadata__\":{\"k\":\"v\",\"\\u006b2\":\"{\\\"x\\\":1}\\n\",\"c\":\"a\\u0000b\"},"
               "\"b\":{\"data_offsets\":[4,10],\"shape\":[1,3],\"dtype\":\"BF16\"},"
               "\t\"s\" : { \"dtype\" : \"F32\" ,\r\n\"shape\":[],\"data_offsets\":[ 0 , 4 ] } ,"
               "\"z\":{\"dtype\":\"I64\",\"shape\":[2,0],\"data_offsets\":[4,4]},"
               "\"y\":{\"dtype\":\"F8_E4M3\",\"shape\":[0],\"data_offsets\":[10,10]}}  ",
               10) == HM_OK);
    CHECK(header.meta_count == 3);
    if (header.meta_count == 3) {
        CHECK_TEXT(header.meta_keys[0], "k");
        CHECK_TEXT(header.meta_values[0], "v");
        CHECK_TEXT(header.meta_keys[1], "k2");
        CHECK_TEXT(header.meta_values[1], "{\"x\":1}\n");
        CHECK_TEXT(header.meta_values[2], "a");
    }
    CHECK(header.count == 4);
    if (header.count == 4) {
        const hm_tensor_info *t = header.tensors;
        uint64_t start = t[0].offset;
        CHECK_TEXT(t[0].name, "s");
        CHECK(t[0].ndim == 0 && t[0].elements == 1 && t[0].bytes == 4 && t[0].dtype == HM_F32 && t[0].data == NULL);
        CHECK_TEXT(t[1].name, "z");
        CHECK(t[1].ndim == 2 && t[1].elements == 0 && t[1].bytes == 0 && t[1].offset == start + 4);
        CHECK_TEXT(t[2].name, "b");
        CHECK(t[2].ndim == 2 && t[2].shape[0] == 1 && t[2].shape[1] == 3 && t[2].elements == 3 && t[2].bytes == 6);
        CHECK_TEXT(t[3].name, "y");
        CHECK(t[3].offset == start + 10);
    }
    const char *one = "{" U8("a", 3, 0, 3) "}";
    CHECK(scan(one, 3) == HM_OK && header.tensors[0].offset == 8 + strlen(one));

    /* Escapes are part of the spelling, not of the name. */
    CHECK(scan("{" U8("\\u0061\\/\\\"\\\\\\b\\f\\n\\r\\t\\u00e9\\u20AC\\ud83d\\ude00", 1, 0, 1) "}", 1) == HM_OK);
    CHECK_TEXT(header.tensors[0].name, "a/\"\\\b\f\n\r\t\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
    CHECK(scan("{" U8("\xC3\xA9\xEF\xBF\xBF\xF4\x8F\xBF\xBF\x7F", 1, 0, 1) "}", 1) == HM_OK);
    CHECK(scan("{" U8("", 1, 0, 1) "}", 1) == HM_OK && header.tensors[0].name[0] == '\0');
    CHECK(scan("{\"a\":{\"\\u0064type\":\"\\u0046\\u0033\\u0032\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8) == HM_OK);
    CHECK(scan(SHAPE("[1,1,1,1,1,1,1,2]"), 8) == HM_OK && header.tensors[0].ndim == 8);
    /* The greatest numbers, and more than a double could tell apart. */
    CHECK(scan("{" U8("a", 9007199254740993, 0, 9007199254740993) "}", 9007199254740993u) == HM_OK);
    CHECK(header.tensors[0].elements == 9007199254740993u);
    CHECK(scan("{" U8("a", 9223372036854775807, 0, 9223372036854775807) "}", INT64_MAX) == HM_OK);
}

static void test_json(void)
{
    refused("", 0, "does not begin with '{'");
    refused("[]", 0, "does not begin with '{'");
    refused(" {}", 0, "does not begin with '{'");
    refused("\xEF\xBB\xBF{}", 0, "does not begin with '{'");
    refused("{", 0, "ends too early");
    refused("{\"a", 0, "ends too early");
    refused("{\"a\\", 0, "ends too early");
    refused("{\"a\":", 0, "ends too early");
    refused("{}x", 0, "only spaces may follow");
    refused("{}\n", 0, "only spaces may follow");
    refused_bytes("{}\0", 3, 0, "at its byte 2: only spaces may follow");
    refused("{}{}", 0, "only spaces may follow");
    refused("{,}", 0, "expected a string");
    refused("{" U8("a", 1, 0, 1) ",}", 1, "expected a string");
    refused("{" U8("a", 1, 0, 1) " " U8("b", 1, 1, 2) "}", 2, "expected ',' or '}'");
    refused("{a:1}", 0, "expected a string");
    refused("{'a':1}", 0, "expected a string");
    refused("{\"a\" 1}", 0, "expected ':'");
    refused("{\"a\":1}", 0, "a: broken header, at its byte 5: expected '{'");
    refused("{\"a\":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}", 0, "a: broken header");
    refused("{/**/}", 0, "expected a string");
    refused("{\"a\tb\":1}", 0, "control character");
    refused_bytes("{\"a\0b\":1}", 9, 0, "control character");
    refused("{\"\\x41\":1}", 0, "unknown escape");
    refused_bytes("{\"\\\0\":1}", 8, 0, "unknown escape");
    refused("{\"\\u12g4\":1}", 0, "four hexadecimal digits");
    refused("{\"\\u12", 0, "four hexadecimal digits");
    refused("{\"\\ud800\":1}", 0, "surrogate");
    refused("{\"\\ud800\\ud800\":1}", 0, "surrogate");
    refused("{\"\\ud800\\n\":1}", 0, "surrogate");
    refused("{\"\\ude00\":1}", 0, "surrogate");
    refused("{\"\\ud83d\\u", 0, "surrogate");
    refused("{\"\\u0000\":{}}", 0, "the tensor's name holds \\u0000");
    refused("{\"a\\u0000b\":{}}", 0, "the tensor's name holds \\u0000");
    refused("{\"a\x80\":1}", 0, "at its byte 3: the text is not valid UTF-8");
    refused("{\"\xC0\x80\":1}", 0, "not valid UTF-8");
    refused("{\"\xE0\x80\x80\":1}", 0, "not valid UTF-8");
    refused("{\"\xED\xA0\x80\":1}", 0, "not valid UTF-8");
    refused("{\"\xF0\x80\x80\x80\":1}", 0, "not valid UTF-8");
    refused("{\"\xF4\x90\x80\x80\":1}", 0, "not valid UTF-8");
    refused("{\"\xE2\x82", 0, "not valid UTF-8");
}

static void test_members(void)
{
    refused("{\"a\":{}}", 0, "a: dtype is missing");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "a: shape is missing");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "a: data_offsets is missing");
    refused("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
            "a: dtype is given twice");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"d\\u0074ype\":\"F32\",\"data_offsets\":[0,8]}}", 8,
            "a: dtype is given twice");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"extra\":0}}", 8,
            "a: unknown member \"extra\"");
    refused("{\"a\":{\"dtype\\u0000\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "a: unknown member");
    refused(DTYPE("\"FP32\""), 8, "a: unknown element type \"FP32\"");
    refused(DTYPE("\"f32\""), 8, "a: unknown element type \"f32\"");
    refused(DTYPE("\"F32\\u0000\""), 8, "a: unknown element type");
    refused(DTYPE("\"\""), 8, "a: unknown element type");
    refused(DTYPE("32"), 8, "a: broken header");
    refused(DTYPE("\"F8_E8M0\""), 8, "a: the element type F8_E8M0 is not supported: convert the file to fp16 or bf16");
    refused(DTYPE("\"F4\""), 8, "not supported");
    refused(DTYPE("\"C64\""), 8, "not supported");
    refused(SHAPE("2"), 8, "a: broken header");
    refused(SHAPE("[2"), 8, "expected a whole number");
    refused(SHAPE("[2,]"), 8, "expected a whole number");
    refused(SHAPE("[[2]]"), 8, "expected a whole number");
    refused(SHAPE("[\"2\"]"), 8, "expected a whole number");
    refused(SHAPE("[null]"), 8, "expected a whole number");
    refused(SHAPE("[-2]"), 8, "without sign");
    refused(SHAPE("[+2]"), 8, "without sign");
    refused(SHAPE("[-0]"), 8, "without sign");
    refused(SHAPE("[2.0]"), 8, "without fraction");
    refused(SHAPE("[2e0]"), 8, "without fraction or exponent");
    refused(SHAPE("[02]"), 8, "must not begin with 0");
    refused(SHAPE("[2 2]"), 8, "expected ',' or ']'");
    refused(SHAPE("[9223372036854775808]"), 8, "2^63 or more");
    refused(SHAPE("[18446744073709551618]"), 8, "2^63 or more");
    refused(SHAPE("[1,1,1,1,1,1,1,1,2]"), 8, "more than 8 dimensions");
    refused(EXTENT("[0]"), 8, "two data_offsets");
    refused(EXTENT("[0,8,8]"), 8, "after two data_offsets");
    refused(EXTENT("{}"), 8, "expected '[' before data_offsets");
    refused(EXTENT("[8,0]"), 8, "end before they begin (8, 0)");
    refused(EXTENT("[-8,0]"), 8, "without sign");
}

static void test_sizes(void)
{
    refused(SHAPE("[3]"), 8, "a: shape and F32 need 12 bytes, but data_offsets give 8");
    refused(SHAPE("[]"), 8, "need 4 bytes");
    refused(SHAPE("[0]"), 8, "need 0 bytes");
    refused(SHAPE("[4294967296,4294967296]"), 8, "too large");
    refused(SHAPE("[4611686018427387905]"), 8, "too large");
    refused(SHAPE("[2305843009213693952]"), 8, "too large"); /* 2^61 elements of 4 bytes: 2^63 */
    refused(SHAPE("[0,9223372036854775807,9223372036854775807]"), 0, "too large");
    refused(SHAPE("[9223372036854775807,9223372036854775807,0]"), 0, "too large");

    refused("{" U8("a", 4, 0, 4) "}", 3, "cut short: its tensors need 4 bytes, it holds 3");
    refused("{" U8("a", 4, 0, 4) "}", 5, "the last 1 bytes of the file belong to no tensor");
    refused("{}", 1, "the last 1 bytes");
    refused("{" U8("a", 4, 1, 5) "}", 5, "a: there is a hole: the 1 bytes");
    refused("{" U8("a", 4, 0, 4) "," U8("b", 4, 6, 10) "}", 10, "b: there is a hole: the 2 bytes");
    refused("{" U8("a", 4, 0, 4) "," U8("b", 4, 3, 7) "}", 7, "b: its data overlaps that of 'a'");
    refused("{" U8("a", 4, 0, 4) "," U8("b", 4, 0, 4) "}", 4, "b: its data overlaps that of 'a'");
    refused("{" U8("a", 4, 0, 4) "," U8("b", 0, 2, 2) "}", 4, "b: its data overlaps that of 'a'");
    refused("{" U8("a", 0, 5, 5) "}", 0, "a: there is a hole");
    refused("{" U8("a", 1, 9223372036854775806, 9223372036854775807) "}", 1, "hole");
    CHECK(scan("{" U8("b", 4, 4, 8) "," U8("a", 4, 0, 4) "," U8("c", 0, 4, 4) "}", 8) == HM_OK);
}

static void test_names(void)
{
    refused("{" U8("a", 1, 0, 1) "," U8("b", 1, 1, 2) "," U8("a", 1, 2, 3) "}", 3, "a: the header has two tensors");
    refused("{" U8("a", 1, 0, 1) "," U8("\\u0061", 1, 1, 2) "}", 2, "a: the header has two tensors");
    CHECK(scan("{" U8("a", 1, 0, 1) "," U8("A", 1, 1, 2) "," U8("aa", 1, 2, 3) "}", 3) == HM_OK);
    refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ twice");
    refused("{\"__metadata__\":{},\"\\u005f_metadata__\":{}}", 0, "__metadata__ twice");
    refused("{\"__metadata__\":{\"k\":\"1\",\"l\":\"1\",\"\\u006b\":\"1\"}}", 0, "\"k\" is given twice");
    refused("{\"__metadata__\":{\"k\":1}}", 0, "__metadata__: the value of \"k\" is not a string");
    refused("{\"__metadata__\":{\"k\":{}}}", 0, "the value of \"k\" is not a string");
    refused("{\"__metadata__\":{\"k\":null}}", 0, "the value of \"k\" is not a string");
    refused("{\"__metadata__\":{\"k\\u0000\":\"v\"}}", 0, "\\u0000");
    refused("{\"__metadata__\":null}", 0, "__metadata__: broken header");
    refused("{\"__metadata__\":[]}", 0, "expected '{' before the metadata");
    refused("{\"__metadata__\":{\"k\"", 0, "ends too early");
    refused("{\"__metadata__\":{\"k\":", 0, "ends too early");
    refused("{" U8("__metadata__", 1, 0, 1) "}", 1, "the value of \"shape\" is not a string");
    /* A name cannot draw on the terminal. */
    refused("{\"\\u001b[31m\\n\":{}}", 0, "?[31m?: dtype is missing");
}

/* 10,000 tensors and 2,000 keys, in the order that a comparison of all pairs likes least. */
static void test_time(void)
{
    hm_text text = {0};
    hm_text_put(&text, "{\"__metadata__\":{");
    for (int i = 0; i < 2000; i++)
        hm_text_format(&text, "%s\"ss_a_rather_long_common_beginning.%d\":\"value %d\"", i > 0 ? "," : "", 2000 - i, i);
    hm_text_put(&text, "}");
    for (int i = 9999; i >= 0; i--)
        hm_text_format(&text,
                       ",\"model.diffusion_model.input_blocks.%d.weight\":{\"dtype\":\"F16\",\"shape\":[2,4],"
                       "\"data_offsets\":[%d,%d]}",
                       i, 16 * i, 16 * i + 16);
    hm_text_put(&text, "}");
    CHECK(!text.failed);

    struct timespec before, after;
    timespec_get(&before, TIME_UTC);
    CHECK(scan_bytes(text.data, text.length, 160000) == HM_OK);
    timespec_get(&after, TIME_UTC);
    double seconds = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    CHECK(header.count == 10000 && header.meta_count == 2000);
    CHECK_TEXT(header.tensors[9999].name, "model.diffusion_model.input_blocks.9999.weight");
    CHECK_TEXT(header.meta_keys[1999], "ss_a_rather_long_common_beginning.1");
    CHECK(seconds < 0.5); /* takes a few ms; quadratic look-up would take seconds */
    hm_text_clear(&text);
}

static void test_order(void)
{
    /* One tensor of each type, as the safetensors library lays them out. */
    static const char *const usual[HM_DTYPE_COUNT] = {"U64", "I64", "F64", "F32",     "U32",     "I32", "BF16", "F16",
                                                      "U16", "I16", "F8_E4M3", "F8_E5M2", "I8",  "U8",   "BOOL"};
    hm_tensor_info tensors[HM_DTYPE_COUNT + 1];
    memset(tensors, 0, sizeof tensors);
    for (int i = 0; i < (int)HM_DTYPE_COUNT; i++) {
        tensors[i].name = "t";
        tensors[i].dtype = (hm_dtype)i;
    }
    qsort(tensors, HM_DTYPE_COUNT, sizeof *tensors, hm_tensor_usual_order);
    for (int i = 0; i < (int)HM_DTYPE_COUNT; i++) CHECK_TEXT(hm_dtype_name(tensors[i].dtype), usual[i]);

    const hm_tensor_info a = {.name = "a", .dtype = HM_F16}, b = {.name = "b", .dtype = HM_F16},
                         high = {.name = "\xC3\xA9", .dtype = HM_F16};
    CHECK(hm_tensor_usual_order(&a, &b) < 0 && hm_tensor_usual_order(&b, &a) > 0);
    CHECK(hm_tensor_usual_order(&a, &a) == 0 && hm_tensor_usual_order(&b, &high) < 0); /* bytes, not signed chars */
}

static void test_strings_and_numbers(void)
{
    hm_text out = {0};
    hm_json_string(&out, "a\"\\/\b\n\t\x1f\x7f \xC3\xA9\xF0\x9F\x98\x80|\xFF\xC3|");
    CHECK_TEXT(out.data, "\"a\\\"\\\\/\\u0008\\n\\t\\u001f\x7f \xC3\xA9\xF0\x9F\x98\x80|\xEF\xBF\xBD\xEF\xBF\xBD|\"");
    hm_text_clear(&out);
    hm_json_string(&out, "");
    CHECK_TEXT(out.data, "\"\"");
    hm_text_clear(&out);

    static const struct {
        double value;
        const char *text;
    } numbers[] = {{0, "0"},        {-0.0, "-0"},   {1, "1"},           {0.1, "0.1"},
                   {-2.5, "-2.5"},  {1e300, "1e+300"}, {1.0 / 3, "0.3333333333333333"},
                   {0.1 + 0.2, "0.30000000000000004"}, {5e-324, "4.94065645841247e-324"},
                   {INFINITY, "null"}, {NAN, "null"}};
    /* A locale with a comma, where the machine has one, must make no difference. */
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && setlocale(LC_NUMERIC, "de_DE.UTF-8") == NULL) break;
        for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
            hm_json_number(&out, numbers[i].value);
            CHECK_TEXT(out.data, numbers[i].text);
            hm_text_clear(&out);
        }
    }
    setlocale(LC_NUMERIC, "C");
}

static void test_write(void)
{
    const hm_tensor_info tensors[] = {
        {.name = "w\"\n\xC3\xA9", .dtype = HM_F16, .ndim = 2, .shape = {2, 3}, .bytes = 12},
        {.name = "empty", .dtype = HM_BOOL, .ndim = 1, .shape = {0}, .bytes = 0},
        {.name = "scalar", .dtype = HM_I64, .ndim = 0, .bytes = 8},
    };
    const hm_meta meta[] = {{"hypermerge", "{\"version\":1}"}, {"k", "line\nline"}};
    hm_text out = {0};
    hm_text_put(&out, "before");
    CHECK(hm_header_write(&out, tensors, 3, meta, 2, 0, &error) == HM_OK);
    size_t length = out.length - 6;
    CHECK(length % 8 == 0);
    CHECK(memcmp(out.data, "before", 6) == 0);
    CHECK((unsigned char)out.data[6] + 256u * (unsigned char)out.data[7] == length - 8);
    CHECK(memcmp(out.data + 14, "{\"__metadata__\":{\"hypermerge\":\"{\\\"version\\\":1}\",", 48) == 0);

    CHECK(scan_bytes(out.data + 14, length - 8, 20) == HM_OK);
    CHECK(header.count == 3 && header.meta_count == 2);
    if (header.count == 3 && header.meta_count == 2) {
        CHECK_TEXT(header.tensors[0].name, tensors[0].name);
        CHECK(header.tensors[0].offset == length && header.tensors[0].shape[1] == 3);
        CHECK_TEXT(header.tensors[1].name, "empty");
        CHECK(header.tensors[2].offset == length + 12 && header.tensors[2].dtype == HM_I64);
        CHECK_TEXT(header.meta_keys[0], "hypermerge");
        CHECK_TEXT(header.meta_values[1], "line\nline");
    }

    /* The same size again with shorter values, and then with longer ones. */
    const hm_meta shorter = {"k", ""};
    hm_text again = {0};
    CHECK(hm_header_write(&again, tensors, 3, &shorter, 1, length, &error) == HM_OK && again.length == length);
    CHECK(scan_bytes(again.data + 8, length - 8, 20) == HM_OK && header.meta_count == 1);
    size_t kept = again.length;
    CHECK(hm_header_write(&again, tensors, 3, meta, 2, length - 8, &error) == HM_ERR_ARGUMENT);
    CHECK_HAS(error.message, "does not fit");
    CHECK(again.length == kept && again.data[kept] == '\0');
    CHECK(hm_header_write(&again, tensors, 3, meta, 2, length + 4, &error) == HM_ERR_ARGUMENT);
    CHECK(hm_header_write(&again, tensors, 3, meta, 2, HM_HEADER_CAP + 16, &error) == HM_ERR_ARGUMENT);
    CHECK_HAS(error.message, "more than the 33554432");
    CHECK(again.length == kept);
    const hm_tensor_info huge[] = {{.name = "a", .dtype = HM_U8, .bytes = INT64_MAX}, {.name = "b", .bytes = 1}};
    CHECK(hm_header_write(&again, huge, 2, NULL, 0, 0, &error) == HM_ERR_ARGUMENT);
    hm_text_clear(&again);
    hm_text_clear(&out);

    CHECK(hm_header_write(&out, NULL, 0, NULL, 0, 0, &error) == HM_OK && out.length == 16);
    CHECK(memcmp(out.data, "\x08\0\0\0\0\0\0\0{}      ", 16) == 0);
    CHECK(hm_header_write(&out, tensors, 1, NULL, 0, 0, &error) == HM_OK && memcmp(out.data + 24, "{\"w\\\"", 5) == 0);
    hm_text_clear(&out);
}

int main(void)
{
    test_types();
    test_length();
    test_accepted();
    test_json();
    test_members();
    test_sizes();
    test_names();
    test_time();
    test_order();
    test_strings_and_numbers();
    test_write();
    hm_header_clear(&header);
    return check_report("header");
}
