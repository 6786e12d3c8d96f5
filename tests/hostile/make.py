"""Hostile safetensors files, with one line of reason each, and a few odd but valid ones.

    python tests/hostile/make.py OUTDIR      writes them all, for a look

`cases()` yields (name, data, reason, expected): `expected` is a part of the message with which hyper-merge refuses the
file, or None where it must accept it.  Standard library only.
"""

import json
import os
import struct
import sys

CAP = 32 << 20  # the longest header that is accepted


def file(header, data=b"", length=None):
    """A whole file around a header given as text, bytes, or object; `length` lies about its length."""
    if isinstance(header, dict):
        header = json.dumps(header, separators=(",", ":"))
    if isinstance(header, str):
        header = header.encode("utf-8")
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(dtype="F32", shape="[2]", offsets="[0,8]"):
    """The value of one tensor as JSON text, each member free to be wrong."""
    return '{"dtype":"%s","shape":%s,"data_offsets":%s}' % (dtype, shape, offsets)


def one(dtype="F32", shape="[2]", offsets="[0,8]", data=bytes(8), name="weight"):
    """A file of one tensor, by default a good one of two zeros."""
    return file('{"%s":%s}' % (name, tensor(dtype, shape, offsets)), data)


def many(*extents, data):
    """A file of byte tensors a, b, c … with these extents."""
    members = (
        '"%s":%s' % (chr(ord("a") + i), tensor("U8", "[%d]" % (end - begin), "[%d,%d]" % (begin, end)))
        for i, (begin, end) in enumerate(extents)
    )
    return file("{%s}" % ",".join(members), bytes(data))


def length_cases():
    good = one()
    yield "empty", b"", "no bytes at all, as an interrupted download leaves it", "only 0 bytes long"
    yield "seven_bytes", good[:7], "too short for the length of the header", "only 7 bytes long"
    yield "length_only", good[:8], "the header is announced but absent", "cut short"
    yield "header_cut", good[:40], "the file ends within the header", "cut short"
    yield "length_zero", file("", bytes(8)), "a header of no bytes", "does not begin with '{'"
    yield ("length_one_short", file("{}", length=1),
           "the length leaves out the closing brace", "ends too early")
    yield ("length_2_63", file("{}", length=1 << 63),
           "a length that is negative when taken as signed", "header would be")
    yield "length_2_64", file("{}", length=(1 << 64) - 1), "8 + length wraps to 7", "header would be"
    yield "length_minus_8", file("{}", length=(1 << 64) - 8), "8 + length wraps to 0", "header would be"
    yield ("length_over_cap", file("{}", length=CAP + 1),
           "one byte more than is accepted, to be allocated", "header would be")
    yield "length_at_cap", file("{}", length=CAP), "as long as is accepted, but the file is not", "cut short"
    yield "length_over_file", file("{}", length=3), "one byte more than the file has", "cut short"
    yield ("length_big_endian", struct.pack(">Q", 2) + b"{}",
           "the length in the wrong byte order", "header would be")
    yield ("git_lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
           "what git leaves in place of a large file", "git lfs pull")
    yield "web_page", b"<!DOCTYPE html><html></html>", "a login page saved as a model", "web page"


def json_cases():
    yield "not_json", file("hello world"), "no JSON", "does not begin with '{'"
    yield "array", file("[]"), "JSON, but no object", "does not begin with '{'"
    yield "byte_order_mark", file(b"\xef\xbb\xbf{}"), "a mark before the object", "does not begin with '{'"
    yield ("leading_space", file(" {}"),
           "hosts look for the brace as the ninth byte", "does not begin with '{'")
    yield ("unclosed", file('{"weight":' + tensor(), bytes(8)),
           "the closing brace is missing", "ends too early")
    yield ("trailing_text", file("{} {}"),
           "a second object, which most parsers never look at", "only spaces may follow")
    yield ("trailing_nul", file(b"{}\0\0\0\0\0\0"),
           "padding with NUL instead of spaces", "only spaces may follow")
    yield ("trailing_newline", file("{}\n"),
           "padding with something other than spaces", "only spaces may follow")
    yield ("trailing_comma", file('{"weight":%s,}' % tensor(), bytes(8)),
           "a comma before the brace", "expected a string")
    yield "single_quotes", file("{'a':1}"), "a Python literal, no JSON", "expected a string"
    yield "comment", file("{/* */}"), "JSON has no comments", "expected a string"
    yield ("deep_arrays", file('{"a":%s}' % ("[" * 100000)),
           "nesting that overflows the stack of a recursive parser", "a: broken header")
    yield "deep_objects", file('{"a":' * 100000), "the same with objects", 'a: unknown member "a"'
    yield ("deep_shape", one(shape="[" * 50000 + "]" * 50000),
           "the same where a shape is expected", "whole number")


def text_cases():
    yield ("nul_in_name", one(name="weight\\u0000x"),
           "a name that C code sees cut off, equal to another one", "\\u0000")
    yield "raw_nul_in_name", one(name="weight\0"), "a raw NUL byte in a string", "control character"
    yield "raw_control", one(name="a\tb"), "a raw control byte in a string", "control character"
    yield "bad_escape", one(name="\\x41"), "an escape which JSON does not have", "unknown escape"
    yield "short_escape", one(name="\\u00e"), "three hexadecimal digits", "four hexadecimal digits"
    yield "lone_surrogate", one(name="\\ud800"), "half a character; no UTF-8 can hold it", "surrogate"
    yield "swapped_surrogates", one(name="\\ude00\\ud83d"), "the second half first", "surrogate"
    for name, raw, reason in (
        ("utf8_overlong", b"\xc0\x80", "NUL in two bytes, to get past a check for NUL"),
        ("utf8_overlong_slash", b"\xe0\x80\xaf", "a slash in three bytes"),
        ("utf8_surrogate", b"\xed\xa0\x80", "a surrogate as UTF-8"),
        ("utf8_beyond", b"\xf4\x90\x80\x80", "beyond U+10FFFF"),
        ("utf8_cut", b"\xe2\x82", "a sequence that the quote cuts off"),
        ("latin1", b"\xe9", "a name in Latin-1"),
    ):
        yield name, file(b'{"' + raw + b'":' + tensor().encode() + b"}", bytes(8)), reason, "not valid UTF-8"
    yield ("terminal_escape", file('{"\\u001b[2J\\r":{}}'),
           "a name that clears the terminal when printed", "?[2J?: dtype is missing")


def member_cases():
    yield "tensor_null", file('{"weight":null}'), "a tensor that is no object", "weight: broken header"
    yield "tensor_empty", file('{"weight":{}}'), "a tensor without members", "dtype is missing"
    yield ("no_dtype", file('{"weight":{"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
           "a missing member", "dtype is missing")
    yield ("no_shape", file('{"weight":{"dtype":"F32","data_offsets":[0,8]}}', bytes(8)),
           "a missing member", "shape is missing")
    yield ("no_offsets", file('{"weight":{"dtype":"F32","shape":[2]}}', bytes(8)),
           "a missing member", "data_offsets is missing")
    yield ("extra_member", file('{"weight":%s,"x":0}}' % tensor()[:-1], bytes(8)),
           "a member that means nothing", 'unknown member "x"')
    yield ("member_twice", file('{"weight":%s,"shape":[1]}}' % tensor()[:-1], bytes(8)),
           "parsers differ on which one counts", "shape is given twice")
    yield ("member_twice_escaped", file('{"weight":%s,"sh\\u0061pe":[1]}}' % tensor()[:-1], bytes(8)),
           "the same name in another spelling", "shape is given twice")
    yield ("dtype_unknown", one(dtype="F31"),
           "an element type that does not exist", 'unknown element type "F31"')
    yield "dtype_lower_case", one(dtype="f32"), "type names are exact", 'unknown element type "f32"'
    yield "dtype_torch", one(dtype="torch.float32"), "a name from another library", "unknown element type"
    yield "dtype_long", one(dtype="F" * 100000), "a message must not carry all of it", "unknown element type"
    yield ("dtype_number", file('{"w":{"dtype":32,"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
           "a type that is no string", "w: broken header")
    for dtype in ("F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ", "C64"):
        yield ("dtype_" + dtype.lower(), one(dtype=dtype),
               "a real type, but one that cannot be merged", dtype + " is not supported")
    yield "shape_number", one(shape="2"), "a shape that is no array", "expected '['"
    yield "shape_string", one(shape='["2"]'), "a dimension that is no number", "whole number"
    yield ("nine_dimensions", one(shape="[1,1,1,1,1,1,1,1,2]"),
           "one dimension more than fits into the table", "more than 8 dimensions")
    yield ("million_dimensions", one(shape="[%s]" % ",".join(["1"] * 1000000)),
           "many more", "more than 8 dimensions")
    yield "one_offset", one(offsets="[8]"), "an extent without end", "two data_offsets"
    yield "three_offsets", one(offsets="[0,8,8]"), "an extent of three numbers", "two data_offsets"


def number_cases():
    yield "negative_shape", one(shape="[-2]"), "(−2)·(−4) = 8 bytes", "without sign"
    yield "negative_pair", one(shape="[-1,-2]"), "two signs that cancel in the product", "without sign"
    yield "negative_offset", one(offsets="[-8,0]"), "reads before the data area: the header", "without sign"
    yield "plus_sign", one(shape="[+2]"), "JSON has no plus sign", "without sign"
    yield ("float_shape", one(shape="[2.0]"),
           "a whole number written as a fraction", "without fraction or exponent")
    yield "half_element", one(shape="[2.5]"), "a fraction", "without fraction or exponent"
    yield ("exponent", one(shape="[2e0]"),
           "a whole number written with an exponent", "without fraction or exponent")
    yield "leading_zero", one(shape="[02]"), "2, or octal", "must not begin with 0"
    yield "hexadecimal", one(shape="[0x2]"), "JSON has no hexadecimal numbers", "expected ',' or ']'"
    yield "not_a_number", one(shape="[NaN]"), "JSON has no NaN", "whole number"
    yield ("end_2_53_plus_1", one("U8", "[9007199254740993]", "[0,9007199254740993]", b""),
           "a double cannot tell it from 2^53", "need 9007199254740993 bytes")
    yield ("size_2_53_plus_1", one("U8", "[9007199254740992]", "[0,9007199254740993]", b""),
           "equal as doubles", "but data_offsets give 9007199254740993")
    yield ("end_2_63", one("U8", "[1]", "[9223372036854775807,9223372036854775808]", b"x"),
           "negative when taken as signed", "2^63 or more")
    yield ("end_2_64", one("U8", "[18446744073709551616]", "[0,18446744073709551616]", b""),
           "wraps to 0", "2^63 or more")
    yield ("end_2_64_plus_8", one(offsets="[0,18446744073709551624]"),
           "wraps to 8, the right size", "2^63 or more")
    yield "number_of_digits", one(shape="[%s]" % ("9" * 100000)), "a number of 100,000 digits", "2^63 or more"
    yield ("product_wraps_to_0", one(shape="[4294967296,4294967296]", offsets="[0,0]", data=b""),
           "2^32 · 2^32 wraps to 0", "too large")
    yield ("bytes_wrap_to_8", one(shape="[4611686018427387906]"),
           "(2^62 + 2) · 4 wraps to 8, the right size", "too large")
    yield ("product_behind_zero", one(shape="[0,4611686018427387904,4611686018427387904]", offsets="[0,0]", data=b""),
           "no elements, but strides that overflow", "too large")


def extent_cases():
    yield "begin_after_end", one(offsets="[8,0]"), "a size that wraps to nearly 2^64", "end before they begin"
    yield ("shape_too_large", one(shape="[3]"),
           "reads four bytes beyond the tensor", "need 12 bytes, but data_offsets give 8")
    yield ("shape_too_small", one(shape="[1]"),
           "leaves four bytes that belong to nobody", "need 4 bytes, but data_offsets give 8")
    yield "wrong_dtype", one(dtype="F16"), "the type does not fit the size", "F16 need 4 bytes"
    yield "scalar_of_8", one(shape="[]"), "a scalar has one element", "need 4 bytes"
    yield "overlap_same", many((0, 8), (0, 8), data=8), "one extent for two tensors", "overlaps that of"
    yield ("overlap_one_byte", many((0, 8), (7, 15), data=15),
           "one byte in two tensors", "b: its data overlaps that of 'a'")
    yield ("overlap_inside", many((0, 8), (2, 4), data=8),
           "one tensor inside another", "b: its data overlaps that of 'a'")
    yield ("overlap_empty", many((0, 8), (4, 4), data=8),
           "an empty tensor inside another", "b: its data overlaps that of 'a'")
    yield ("bomb",
           file("{%s}" % ",".join('"t%d":%s' % (i, tensor("U8", "[1024]", "[0,1024]")) for i in range(10000)),
                bytes(1024)),
           "10,000 tensors in 1 KiB: 10 MB when read", "overlaps that of")
    yield ("hole_start", many((4, 8), data=8),
           "hidden bytes before the first tensor", "a: there is a hole: the 4 bytes")
    yield ("hole_middle", many((0, 4), (8, 12), data=12),
           "hidden bytes between two tensors", "b: there is a hole: the 4 bytes")
    yield "hole_end", many((0, 8), data=12), "hidden bytes after the last tensor", "last 4 bytes of the file"
    yield ("data_without_tensors", file("{}", b"MZ\x90\0"),
           "a file that is also something else", "last 4 bytes of the file")
    yield ("data_cut", one(data=bytes(7)),
           "a download that lacks the last byte", "cut short: its tensors need 8 bytes")
    yield "data_absent", one(data=b""), "the header without its data", "cut short: its tensors need 8 bytes"
    yield ("end_far_beyond", one("U8", "[1099511627776]", "[0,1099511627776]", bytes(8)),
           "a terabyte in a small file", "cut short")
    yield ("empty_beyond", one("U8", "[0]", "[64,64]", b""),
           "an empty tensor that begins behind the end", "hole")


def name_cases():
    pair = '{"%s":%s,"%s":%s}'
    a, b = tensor(), tensor(offsets="[8,16]")
    yield ("name_twice", file(pair % ("weight", a, "weight", b), bytes(16)),
           "parsers differ on which one counts", "two tensors of this name")
    yield ("name_twice_escaped", file(pair % ("weight", a, "\\u0077eight", b), bytes(16)),
           "the same name in another spelling", "two tensors of this name")
    yield ("name_twice_of_many",
           file("{%s}" % ",".join('"t%d":%s' % (i % 49999, tensor("U8", "[0]", "[0,0]")) for i in range(50000))),
           "the last of 50,000 is the first again; a comparison of all pairs takes minutes",
           "t0: the header has two tensors of this name")
    yield ("metadata_twice", file('{"__metadata__":{},"__metadata__":{"k":"v"}}'),
           "parsers differ on which one counts", "__metadata__ twice")
    yield ("metadata_key_twice", file('{"__metadata__":{"k":"1","k":"2"}}'),
           "parsers differ on which one counts", '"k" is given twice')
    yield "metadata_number", file('{"__metadata__":{"k":1}}'), "values must be strings", "is not a string"
    yield ("metadata_object", file('{"__metadata__":{"k":{}}}'),
           "JSON in metadata must be text; an object crashes hosts", "is not a string")
    yield ("metadata_null", file('{"__metadata__":null}'),
           "metadata that is no object", "__metadata__: broken header")
    yield ("metadata_nul_key", file('{"__metadata__":{"k\\u0000":"v"}}'),
           "a key that C code sees cut off", "\\u0000")
    yield "metadata_tensor", one(name="__metadata__"), "a tensor of the reserved name", "is not a string"


def accepted_cases():
    yield "ok_plain", one(), "two zeros"
    yield "ok_empty_object", file("{}"), "no tensors, no data"
    yield "ok_metadata_only", file({"__metadata__": {"format": "pt"}}), "no tensors, but metadata"
    yield ("ok_metadata_empty", file('{"__metadata__":{},"weight":%s}' % tensor(), bytes(8)),
           "metadata without keys")
    yield "ok_trailing_spaces", file("{}" + " " * 1000), "padding, more than is needed"
    yield ("ok_white_space", file('{\n\t"weight" :\r %s }' % tensor().replace(",", " , "), bytes(8)),
           "white space between the words")
    yield "ok_scalar", one(shape="[]", offsets="[0,4]", data=bytes(4)), "a scalar: no dimensions, one element"
    yield ("ok_shape_0", one(shape="[0]", offsets="[0,0]", data=b""),
           "an empty tensor, as v_pred and ztsnr are")
    yield "ok_shape_2_0", one(shape="[2,0]", offsets="[0,0]", data=b""), "an empty tensor of two dimensions"
    yield ("ok_empty_among", many((0, 4), (4, 4), (4, 8), (8, 8), (0, 0), data=8),
           "empty tensors at every boundary")
    yield "ok_eight_dimensions", one(shape="[1,1,1,1,1,1,1,2]"), "as many dimensions as fit"
    yield ("ok_members_reordered", file('{"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}', bytes(8)),
           "members have no order")
    yield "ok_tensors_reordered", many((8, 12), (0, 4), (4, 8), data=12), "tensors have no order either"
    yield "ok_escaped_name", one(name="\\u0077ei\\/ght\\ud83d\\ude00"), "every spelling that JSON allows"
    yield "ok_unicode_name", one(name="Gewicht \u00e9\u4e2d\U0001f600"), "names are UTF-8"
    yield ("ok_odd_start", file('{"weight":%s}' % tensor() + " " * 3, bytes(8)),
           "data that begins at no multiple of 8")
    yield ("ok_metadata_last", file('{"weight":%s,"__metadata__":{"k":"v"}}' % tensor(), bytes(8)),
           "metadata behind the tensors")
    sizes = {"F64": 8, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U16": 2, "BOOL": 1}
    for dtype, size in sizes.items():
        yield ("ok_" + dtype.lower(), one(dtype, "[2]", "[0,%d]" % (2 * size), bytes(2 * size)),
               "an element type that is read")


def cases():
    """Yields (name, data, reason, expected): see the head of this file."""
    for group in (
        length_cases, json_cases, text_cases, member_cases, number_cases, extent_cases, name_cases
    ):
        yield from group()
    for name, data, reason in accepted_cases():
        yield name, data, reason, None


def main(folder):
    os.makedirs(folder, exist_ok=True)
    for name, data, reason, expected in cases():
        with open(os.path.join(folder, name + ".safetensors"), "wb") as out:
            out.write(data)
        print("%-24s %-8s %s" % (name, "accepted" if expected is None else "refused", reason))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/hostile/make.py OUTDIR")
    main(sys.argv[1])
