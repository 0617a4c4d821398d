"""What is looked at before LMDB opens a file: every genuine tree passes, whatever leads out of the file is refused."""

import struct
from random import Random

import pytest

from modeling_visualbert.features.lmdb_files import check_lmdb

lmdb = pytest.importorskip("lmdb")
PAGE = 4096


def write(folder, steps, **options):
    """The data file after one transaction for each step, a dict of values by key; those that are None are deleted."""
    with lmdb.open(str(folder), map_size=1 << 26, **options) as environment:
        for step in steps:
            with environment.begin(write=True) as transaction:
                for key, value in step.items():
                    transaction.delete(key) if value is None else transaction.put(key, value)
    return folder / "data.mdb"


def steps(longest):
    random = Random(0)
    keys = [f"train2014/COCO_train2014_{random.randrange(10**12):012d}".encode() for _ in range(3000)]
    values = {key: bytes(random.randrange(longest)) for key in keys}
    return [values, dict.fromkeys(keys[::3]), dict.fromkeys(keys[1::3], b"other"), dict.fromkeys(keys)]


@pytest.mark.parametrize("longest", [30, 9000])
@pytest.mark.parametrize("count", range(5))
def test_genuine_files_pass(tmp_path, count, longest):
    """Trees of up to three levels with values in overflow pages, and empty ones."""
    check_lmdb(write(tmp_path, steps(longest)[:count]))


def branch_and_leaf(content):
    """Where the last page of each of the two kinds begins."""
    found = {}
    for start in range(2 * PAGE, len(content), PAGE):
        number, flags = struct.unpack_from("=Q2xH", content, start)
        if number == start // PAGE and flags in (1, 2):
            found[flags] = start
    return found[1], found[2]


@pytest.mark.parametrize(
    ("page", "at", "form", "value", "message"),
    [
        ("first", 16, "I", 1, "it does not begin as one of version 1"),
        ("first", 40, "I", 1 << 30, "it does not begin as one of version 1"),
        ("second", 40, "I", 8192, "its first two pages contradict each other"),
        ("both", 92, "H", 8, r"flags 0x8; expected keys that are texts, each once"),
        ("both", 128, "Q", 1 << 40, r"page \d+ is outside of the file or comes again"),
        ("both", 136, "Q", 1 << 40, None),
        ("branch", 0, "Q", 1, "no page of a tree"),
        ("branch", 10, "H", 2, "is no key with something inside of the file"),
        ("branch", 12, "H", 18, "no page of a tree"),
        ("leaf", 10, "H", 4, "no page of a tree"),
        ("leaf", 12, "H", 60000, "no page of a tree"),
        ("leaf", 16, "H", 60000, "a node at byte 60000"),
        ("node", 0, "H", 60000, "is no key with something inside of the file"),
        ("node", 4, "H", 2, "is no key with something inside of the file"),
        ("node", 6, "H", 60000, "is no key with something inside of the file"),
        ("below", 0, "I", 1 << 30, r"page \d+ is outside of the file or comes again"),
        ("below", 0, "I", 1, r"page 1 is outside of the file or comes again"),
    ],
)
def test_what_leads_out_of_the_file_is_refused(tmp_path, page, at, form, value, message):
    path = write(tmp_path, steps(9000)[:1])
    content = bytearray(path.read_bytes())
    branch, leaf = branch_and_leaf(content)
    node, below = (start + struct.unpack_from("=H", content, start + 16)[0] for start in (leaf, branch))
    places = {"first": [0], "second": [PAGE], "both": [0, PAGE]}
    for start in places.get(page, [{"branch": branch, "leaf": leaf, "node": node, "below": below}.get(page)]):
        struct.pack_into("=" + form, content, start + at, value)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.mdb: ") as refused:
        check_lmdb(path)
    cut_off = f"{len(content)} bytes; expected {((1 << 40) + 1) * PAGE} \\(is it cut off"
    assert refused.match(cut_off if message is None else rf"not an LMDB file, or damaged \(.*{message}")


def test_overflow_pages_have_to_be_there(tmp_path):
    path = write(tmp_path, steps(9000)[:1])
    content = bytearray(path.read_bytes())
    for start in range(2 * PAGE, len(content), PAGE):
        number, flags, count = struct.unpack_from("=Q2xHI", content, start)
        if number == start // PAGE and flags == 4 and count < 9:
            struct.pack_into("=I", content, start + 12, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no key with something inside of the file"):
        check_lmdb(path)


def test_files_that_are_too_short_are_refused(tmp_path):
    path = write(tmp_path, steps(30)[:1])
    content = path.read_bytes()
    for length in (0, 1, 100, PAGE, PAGE + 50, 2 * PAGE, len(content) - PAGE):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"data\.mdb: "):
            check_lmdb(path)
