"""The reader of array pickles: what genuine files hold comes back, what hostile ones ask for is one ValueError."""

import os
import pickle
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from modeling_visualbert.convert.array_pickles import load_arrays

P2, P4 = b"\x80\x02", b"\x80\x04"
MULTIARRAY = b"cnumpy.core.multiarray\n"
ARRAY = MULTIARRAY + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def dtype(code=b"f4", state=b"I3\nS'<'\nNNNI-1\nI-1\nI0\n"):
    return b"cnumpy\ndtype\n(S'" + code + b"'\nI0\nI1\ntR(" + state + b"tb"


def array(shape=b"I2\n", kind=None, content=b"S'abcdefgh'\n"):
    return ARRAY + b"(I1\n(" + shape + b"t" + (kind or dtype()) + b"I00\n" + content + b"tb"


def read(tmp_path, content):
    (tmp_path / "file.pkl").write_bytes(content)
    return load_arrays(tmp_path / "file.pkl")


@pytest.mark.parametrize("protocol", range(5))
def test_plain_content_comes_back(tmp_path, protocol):
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 4), np.int64),
        "point": np.array(2.5, np.float16),
        "bytes": np.arange(256, dtype=np.uint8),
    }
    plain = {"cfg": "a: ö\n", 3: [1, -(2**70), 2.5, None, True], "t": (1, (2,), (1, 2, 3, 4), ()), "b": b"\xff\x00"}
    content = {"blobs": OrderedDict(arrays), "again": arrays["matrix"], "scalar": np.float32(1.5), **plain}
    found = read(tmp_path, pickle.dumps(content, protocol=protocol))
    for name, value in arrays.items():
        assert found["blobs"][name].dtype == value.dtype.newbyteorder("=") and found["blobs"][name].flags.writeable
        np.testing.assert_array_equal(found["blobs"][name], value)
    assert found["again"] is found["blobs"]["matrix"] and found["scalar"] == 1.5
    assert {key: found[key] for key in plain} == plain


def test_python_2_with_protocol_2(tmp_path):
    """As Detectron wrote: byte strings everywhere, one dtype for all arrays, the second time by reference."""
    first = b"\x80\x02}q\x01U\x05blobsq\x02}q\x03(U\x03a_wq\x04"
    first += b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07"
    first += b"(K\x01K\x02\x85cnumpy\ndtype\nq\x08U\x02f4K\x00K\x01\x87Rq\x09"
    first += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    first += b"\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0tb"
    second = b"U\x0ca_w_momentumh\x05h\x06K\x00\x85U\x01b\x87R(K\x01K\x01\x85h\x09\x89U\x04\x00\x00\x00\x00tb"
    found = read(tmp_path, first + second + b"us.")["blobs"]
    assert found["a_w"].tolist() == [1.0, -2.0] and found["a_w_momentum"].tolist() == [0.0]


HOSTILE = {
    "os.system by GLOBAL": (b"cos\nsystem\n(S'touch written'\ntR.", "it refers to os.system"),
    "by INST": (b"(S'touch written'\nios\nsystem\n.", "an object of a class"),
    "by OBJ": (b"(cos\nsystem\nS'touch written'\no.", "it refers to os.system"),
    "by NEWOBJ": (P2 + b"ccollections\nOrderedDict\n)\x81.", "an object of a class"),
    "by STACK_GLOBAL": (P4 + b"\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch written\x85R.", "it refers to os.system"),
    "a name that is none": (P4 + b"K\x01K\x02\x93.", "without a name"),
    "a dotted name": (P4 + b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "it refers to numpy.ndarray.__class__"),
    "an extension": (P2 + b"\x82\x01.", "instruction EXT1"),
    "a persistent id": (b"Pid\n.", "instruction PERSID"),
    "no instruction": (b"\xff", "no instruction"),
    "nothing": (b"", "ends too early"),
    "no end": (P2 + b"N", "ends too early"),
    "no value": (b".", "a value is missing"),
    "no mark": (b"t.", "a mark is missing"),
    "no memo": (b"g9\n.", "nothing at memo index 9"),
    "a large memo index": (P2 + b"Nr\x00\x00\x00\x20.", "memo index 536870912 in a file of 9 bytes"),
    "a negative memo index": (b"Np-1\n.", "memo index -1"),
    "a long string": (P4 + b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "only 1 remain"),
    "a large number": (P2 + b"\x8b\xff\xff\xff\x7f.", "not enough data"),
    "many digits": (b"L" + b"9" * 6000 + b"L\n.", "4300"),
    "instructions without end": (b"]" * 2_000_001, "more than 2000000 instructions"),
    "copies of the stack's top": (b"]2\x86.", "instruction DUP"),
    "state of a dict": (P2 + b"ccollections\nOrderedDict\n)R}U\x09__class__K\x01sb.", "state for something"),
    "state of a name": (P4 + b"\x8c\x07_codecs\x8c\x06encode\x93}\x8c\x0c__defaults__)sb.", "state for something"),
    "nested keys": (P2 + b"}" + b")" + b"\x85" * 99_999 + b"Ns.", "tuple as a key"),
    "no pairs": (P2 + b"ccollections\nOrderedDict\n](K\x01K\x02e\x85R.", "something else than pairs"),
    "another encoding": (P4 + b"\x8c\x07_codecs\x8c\x06encode\x93\x8c\x01a\x8c\x03hex\x86R.", "another encoding"),
    "an object dtype": (dtype(b"O8") + b".", "dtype 'O8'; expected numbers"),
    "a record dtype": (dtype(b"V8") + b".", "dtype 'V8'; expected numbers"),
    "a dtype of a text": (dtype(b"f4,f4") + b".", "dtype 'f4,f4'; expected numbers"),
    "a long double": (dtype(b"f16") + b".", "dtype 'f16'; expected numbers"),
    "other flags of a dtype": (dtype(state=b"I3\nS'<'\nNNNI-1\nI-1\nI63\n") + b".", "fields, parts or flags"),
    "parts of a dtype": (dtype(state=b"I3\nS'<'\n(tNNI-1\nI-1\nI0\n") + b".", "fields, parts or flags"),
    "another byte order": (dtype(state=b"I3\nS'#'\nNNNI-1\nI-1\nI0\n") + b".", "fields, parts or flags"),
    "a dtype alone": (dtype() + b".", "where a value should be"),
    "an object scalar": (MULTIARRAY + b"scalar\n(" + dtype(b"O8") + b"S'AAAAAAAA'\ntR.", "dtype 'O8'"),
    "a scalar of flags": (
        MULTIARRAY + b"scalar\n(" + dtype(b"f8", b"I3\nS'|'\nNNNI-1\nI-1\nI63\n") + b"S'AAAAAAAA'\ntR.",
        "fields, parts or flags",
    ),
    "a short scalar": (MULTIARRAY + b"scalar\n(" + dtype(b"f8") + b"S'A'\ntR.", "1 bytes for an array"),
    "another array class": (MULTIARRAY + b"_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "another class"),
    "an array of given strides": (
        b"cnumpy\nndarray\n((I1\ntS'f8'\nS'x'\nI0\n(I800\nttR.",
        "takes 1 positional argument",
    ),
    "an array that is called": (array() + b")R.", "a call of something"),
    "an array without content": (ARRAY + b".", "an array without content"),
    "an array without content in a tuple": (ARRAY + b"\x85.", "an array without content"),
    "an array used too early": (ARRAY + b"p1\ng1\n.", "before its content"),
    "a negative side": (array(b"I-1\n") + b".", "not a tuple of sizes"),
    "sides that are texts": (array(b"S'a'\n") + b".", "not a tuple of sizes"),
    "a large side": (array(b"I4000000000000\n") + b".", "8 bytes for an array"),
    "sides beyond 64 bits": (array(b"I4294967296\n" * 3, content=b"S''\n") + b".", "0 bytes for an array"),
    "content that is a list": (array(content=b"(l") + b".", "list as the content"),
    "objects as content": (array(kind=dtype(b"O"), content=b"(NNl") + b".", "dtype 'O'"),
    "an array of nothing": (ARRAY + b"Nb.", "state for something"),
    "fewer parts of an array": (ARRAY + b"(I1\ntb.", "missing"),
    "content by reference": (
        b"S'" + b"a" * 4000 + b"'\np1\n0(" + (array(b"I1000\n", content=b"g1\n")) * 9 + b"l.",
        "more content than a file of",
    ),
    "large content by reference": (
        b"S'" + b"a" * 80_000 + b"'\np1\n0(" + (array(b"I20000\n", content=b"g1\n")) * 2 + b"l.",
        "the content of an array is used again",
    ),
    "pairs by reference": (
        P2
        + b"]("
        + b"(K\x01K\x02\x86"[1:] * 200
        + b"eq\x010("
        + b"ccollections\nOrderedDict\nh\x01\x85R" * 300
        + b"l.",
        "more content than a file of",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_error(tmp_path, monkeypatch, name):
    content, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"file\.pkl: not a pickle that can be read safely: ") as caught:
            read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 2e5 + 200 * len(content)
    finally:
        tracemalloc.stop()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir() == ["file.pkl"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_memory_is_that_of_the_arrays(tmp_path, protocol):
    """Neither the file nor the contents that its memo refers to are kept beside the arrays."""
    arrays = {str(number): np.random.default_rng(number).random(1 << 17) for number in range(20)}
    size = sum(value.nbytes for value in arrays.values())
    content = pickle.dumps(arrays, protocol=protocol)
    (tmp_path / "file.pkl").write_bytes(content)
    tracemalloc.start()
    try:
        found = load_arrays(tmp_path / "file.pkl")
        assert tracemalloc.get_traced_memory()[1] < 1.3 * size
    finally:
        tracemalloc.stop()
    assert all(np.array_equal(found[name], value) for name, value in arrays.items())


def test_the_error_names_the_array(tmp_path):
    content = pickle.dumps({"blobs": {"fc6_w": np.ones(2), "fc7_w": np.array([{}])}})
    with pytest.raises(ValueError, match=r"dtype 'O8'; expected numbers \(byte \d+, after 'fc7_w'\)"):
        read(tmp_path, content)


def test_every_cut_is_refused(tmp_path):
    content = pickle.dumps({"blobs": {"a_w": np.ones((2, 2), np.float32)}, "cfg": "a: 1"}, protocol=2)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"file\.pkl"):
            read(tmp_path, content[:length])


def test_changed_bytes_are_refused_or_plain(tmp_path):
    """Whatever a changed file says, the process goes on, and what it gives is plain."""
    content = pickle.dumps({"blobs": {"a_w": np.ones((2, 2), np.float32)}, "cfg": "a: 1"}, protocol=2)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(content)
        for place in generator.integers(len(content), size=2):
            changed[place] = generator.integers(256)
        try:
            found = read(tmp_path, bytes(changed))
        except ValueError as error:
            assert "file.pkl" in str(error)
        else:
            assert isinstance(found, (dict, list, tuple, str, bytes, int, float, np.ndarray, type(None)))
