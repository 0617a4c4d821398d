"""Feature stores at their edges: shards, interruption, full disks, damage, foreign detectors; what `datasets` sees of them."""

import copy
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_dataset
from torch.utils.data import DataLoader

from modeling_visualbert import disk as disk_module
from modeling_visualbert.cli import main
from modeling_visualbert.disk import sha256_of
from modeling_visualbert.features import format as store_format
from modeling_visualbert.features.draft import StoreDraft
from modeling_visualbert.features.format import IDS_SCHEMA, SCHEMA, decode_row, encode_row, write_batches
from modeling_visualbert.features.store import FeatureStore, partial_folder, write_store

ROOT = Path(__file__).parents[1]
DIM = 6

pytestmark = pytest.mark.filterwarnings("error:The given NumPy array is not writable")


def regions_of(seed, count=None):
    """Regions with everything that can be known of them, as many as the seed says."""
    generator = torch.Generator().manual_seed(seed)
    count = seed % 4 if count is None else count
    return {
        "visual_embeds": torch.randn(count, DIM, generator=generator),
        "boxes": torch.rand(count, 4, generator=generator) * 30,
        "scores": torch.rand(count, generator=generator),
        "class_ids": torch.randint(0, 1600, (count,), generator=generator),
        "attribute_ids": torch.randint(0, 400, (count,), generator=generator),
        "attribute_scores": torch.rand(count, generator=generator),
        "image_size": torch.tensor([30, 40 + seed]),
    }


def pairs(count):
    """Images whose names do not sort as they come."""
    return [(f"image-{(7 * i) % count}", regions_of(i)) for i in range(count)]


def write(folder, items=None, **options):
    """Write a store of 25 images in shards of 4; returns its folder."""
    fields = {"dim": DIM, "detector": {"name": "Tiny", "fingerprint": "0123abcd"}, "images_per_shard": 4}
    write_store(folder, pairs(25) if items is None else items, **{**fields, **options})
    return folder


def contents(folder):
    """Every file of a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal_regions(read, written):
    assert list(read) == list(written)
    for name, value in written.items():
        assert torch.equal(read[name], value), name


def test_images_are_found_in_all_shards(tmp_path):
    store = FeatureStore(write(tmp_path / "store"))
    assert len(store) == 25
    assert len(store.info["shards"]) == 7
    for image_id, written in pairs(25):
        assert image_id in store
        assert_equal_regions(store[image_id], written)
    assert list(store) == sorted(image_id for image_id, _ in pairs(25))
    assert store.info["num_regions"] == sum(len(regions["scores"]) for _, regions in pairs(25))
    store.verify()


@pytest.mark.parametrize("absent", ["image-", "image-99", "image-1\0", "a", "zebra", "", "\ud800", "p" * 99, 7])
def test_images_that_are_not_there_are_not_found(tmp_path, absent):
    store = FeatureStore(write(tmp_path / "store"))
    assert absent not in store
    with pytest.raises(KeyError, match="no regions of image"):
        store[absent]


def test_names_of_any_language_are_found(tmp_path):
    names = ["été", "ete", "写真", "é", "𝄞", "a b", "ü/1", "Z", "z", "ﬀ"]
    store = FeatureStore(write(tmp_path / "store", [(name, regions_of(i)) for i, name in enumerate(names)]))
    for number, name in enumerate(names):
        assert_equal_regions(store[name], regions_of(number))


@pytest.mark.parametrize("image_id", ["", "a\0b", "\ud800", "a" * 256])
def test_names_that_are_no_text_are_refused(tmp_path, image_id):
    with pytest.raises(ValueError, match="image id .*; expected a number or a name"):
        write(tmp_path / "store", [(image_id, regions_of(1))])


def test_what_is_not_known_is_left_out(tmp_path):
    known = {"visual_embeds": regions_of(3)["visual_embeds"]}
    store = FeatureStore(
        write(tmp_path / "store", [("bare", known), ("full", regions_of(2)), ("empty", regions_of(0))])
    )
    assert_equal_regions(store["bare"], known)
    assert_equal_regions(store["full"], regions_of(2))
    assert store["empty"]["visual_embeds"].shape == (0, DIM)
    assert store["empty"]["boxes"].shape == (0, 4)


def test_arrays_are_views_that_cannot_be_changed(tmp_path):
    store = FeatureStore(write(tmp_path / "store", dtype="float16"))
    array = store.arrays("image-21")["visual_embeds"]
    assert array.dtype == np.float16
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert np.array_equal(array, store["image-21"]["visual_embeds"].numpy())


@pytest.mark.parametrize("name", ["visual_embeds", "scores"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, name):
    regions = regions_of(3)
    regions[name][1] = float("nan")
    with pytest.raises(ValueError, match=f"image 5: '{name}' holds NaN or infinity"):
        write(tmp_path / "store", [(5, regions)])


def test_a_store_of_the_expected_dim_and_detector_opens(tmp_path):
    write(tmp_path / "store")
    assert len(FeatureStore(tmp_path / "store", expect_dim=DIM, expect_detector="0123abcd")) == 25
    write(tmp_path / "unknown", detector="somebody's")
    assert len(FeatureStore(tmp_path / "unknown", expect_dim=DIM, expect_detector="ffff")) == 25


def test_a_store_of_another_dim_or_detector_is_refused_and_both_are_named(tmp_path):
    write(tmp_path / "store")
    with pytest.raises(ValueError, match=r"store: features of dim 6, this model expects 2048 \(detector: Tiny\)"):
        FeatureStore(tmp_path / "store", expect_dim=2048)
    with pytest.raises(ValueError, match="detector Tiny 0123abcd, this model has the region encoder ffff"):
        FeatureStore(tmp_path / "store", expect_dim=DIM, expect_detector="ffff")


def test_workers_open_the_store_themselves(tmp_path):
    write(tmp_path / "store")
    store = copy.deepcopy(FeatureStore(tmp_path / "store"))  # by the way that leads to a worker process
    assert_equal_regions(store["image-0"], dict(pairs(25))["image-0"])
    ids = [image_id for image_id, _ in pairs(25)]
    loader = DataLoader(ids, batch_size=5, num_workers=2, collate_fn=lambda batch: [store[i]["scores"] for i in batch])
    read = [scores for batch in loader for scores in batch]
    assert all(torch.equal(scores, regions["scores"]) for scores, (_, regions) in zip(read, pairs(25), strict=True))


def test_shards_are_closed_files(tmp_path):
    store = FeatureStore(write(tmp_path / "store"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for image_id in store:
        store[image_id]
    assert before is None or len(os.listdir("/proc/self/fd")) == before  # thousands of shards fit under the limit


# `datasets`


def test_datasets_sees_the_rows_in_the_order_they_were_written(tmp_path):
    store = FeatureStore(write(tmp_path / "store"))
    rows = store.to_dataset()
    assert rows["image_id"][:] == [image_id for image_id, _ in pairs(25)]
    for row, (_, written) in zip(rows, pairs(25), strict=True):
        assert_equal_regions(decode_row(row, store.dim, store.dtype), written)


def test_datasets_streams_the_shards_as_from_the_hub(tmp_path):
    store = FeatureStore(write(tmp_path / "store", dtype="float16"))
    stream = load_dataset(str(tmp_path / "store"), split="train", streaming=True)
    assert stream.num_shards == 7
    rows = list(stream.shuffle(seed=0, buffer_size=5))
    assert sorted(row["image_id"] for row in rows) == list(store)
    for row in rows:
        assert_equal_regions(decode_row(row, store.dim, store.dtype), store[row["image_id"]])


def test_an_empty_store_is_an_empty_dataset(tmp_path):
    store = FeatureStore(write(tmp_path / "store", []))
    assert len(store.to_dataset()) == 0
    assert list(store) == []
    assert "image-0" not in store
    store.verify()


# Damage


def damaged_index(folder, change):
    """Change the index of a store."""
    path = folder / "index.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def rewrite_ids(folder, rows):
    """Replace the sorted ids by others, with size and checksum to match."""
    records = [dict(zip(IDS_SCHEMA.names, row, strict=True)) for row in rows]
    batch = pa.RecordBatch.from_pylist(records, schema=IDS_SCHEMA)
    count, size, sha256 = write_batches(folder / "ids.arrow", IDS_SCHEMA, [batch])
    damaged_index(
        folder, lambda info: info.update(ids={"file": "ids.arrow", "bytes": size, "sha256": sha256}, num_images=count)
    )


@pytest.mark.parametrize("file", ["data/shard-00002.arrow", "ids.arrow"])
@pytest.mark.parametrize("cut", [1, 100, "all"])
def test_a_truncated_file_is_refused_when_opening(tmp_path, file, cut):
    path = write(tmp_path / "store") / file
    whole = path.read_bytes()
    path.write_bytes(b"" if cut == "all" else whole[:-cut])
    with pytest.raises(
        ValueError, match=rf"{file}: damaged, \d+ bytes but the index says {len(whole)} \(truncated\?\)"
    ):
        FeatureStore(tmp_path / "store")


@pytest.mark.parametrize("file", ["data/shard-00002.arrow", "ids.arrow"])
def test_a_changed_bit_is_found_by_verifying(tmp_path, file):
    path = write(tmp_path / "store") / file
    content = bytearray(path.read_bytes())
    # A feature, in the middle of the shard; the place of the last image, at the end of the ids.
    at = content.index(regions_of(10)["visual_embeds"].numpy().tobytes()) if "shard" in file else len(content) - 20
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{file}: (checksum \w{{16}}\.\.\., but the index says|image .* is said to be)"
    ):
        FeatureStore(tmp_path / "store").verify()


def test_any_changed_byte_raises_or_is_found_by_verifying(tmp_path):
    """Damage of the right length never crashes the process: what is read is either right in form or a named error."""
    path = write(tmp_path / "store") / "data" / "shard-00001.arrow"
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 8])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        store = FeatureStore(tmp_path / "store")
        for image_id in store:
            try:
                store[image_id]
            except ValueError as error:
                assert "shard-00001.arrow" in str(error) or f"image {image_id}" in str(error)
        if content != whole:
            with pytest.raises(ValueError, match="shard-00001.arrow: checksum"):
                store.verify()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", 0, 0), ("b", 0, 4)], "image b is said to be row 4 of shard-00000.arrow, which has 4 rows"),
        ([("a", 0, 0), ("b", 7, 0)], "image b is said to be row 0 of shard 7; the index is damaged"),
        ([("a", 0, -1)], "image a is said to be row -1 of"),
        ([("a", -1, 0)], "image a is said to be row 0 of shard -1"),
        ([("a", 0, 0), ("a", 0, 1)], "image a twice; expected each image once"),
        ([("b", 0, 0), ("a", 0, 1)], "the image ids are not sorted"),
        ([("a", 0, None)], "expected each image once, sorted"),
    ],
    ids=["row", "shard", "negative row", "negative shard", "twice", "unsorted", "null"],
)
def test_an_index_that_points_nowhere_is_refused(tmp_path, rows, message):
    rewrite_ids(write(tmp_path / "store"), rows)
    with pytest.raises(ValueError, match=f"ids.arrow: .*{message}"):
        FeatureStore(tmp_path / "store")


def test_verifying_finds_images_in_each_others_place(tmp_path):
    rewrite_ids(write(tmp_path / "store"), [("image-0", 0, 1), ("image-7", 0, 0)])
    with pytest.raises(ValueError, match=r"shard-00000.arrow: row 1 is image image-7, not image-0"):
        FeatureStore(tmp_path / "store").verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info["shards"].pop(), r"said to be row 0 of shard 6"),
        (lambda info: info["shards"][0].update(file="../../secret.arrow"), "'file' is .*expected a relative path"),
        (lambda info: info["shards"][0].update(file="/etc/passwd"), "'file' is .*expected a relative path"),
        (lambda info: info["shards"][0].pop("sha256"), "key 'sha256' is missing"),
        (lambda info: info["shards"][0].update(bytes="many"), "'bytes' is 'many'; expected a 64-bit int"),
        (lambda info: info.update(shards={}), "'shards' is {}; expected list"),
        (lambda info: info.update(detector="me"), "'detector' is 'me'; expected dict"),
        (lambda info: info.update(dim=0), "features of dim 0; expected at least 1"),
        (lambda info: info.update(num_images=24), "24 images, but ids.arrow has 25"),
    ],
)
def test_an_index_of_nonsense_is_refused(tmp_path, change, message):
    damaged_index(write(tmp_path / "store"), change)
    with pytest.raises(ValueError, match=message):
        FeatureStore(tmp_path / "store")


def test_a_shard_with_fewer_rows_than_the_index_says_is_named(tmp_path):
    damaged_index(write(tmp_path / "store"), lambda info: info["shards"][0].update(rows=5))
    with pytest.raises(ValueError, match=r"shard-00000.arrow: 4 rows, but the index says 5"):
        FeatureStore(tmp_path / "store")["image-0"]


def test_a_file_that_is_no_shard_is_named(tmp_path):
    path = write(tmp_path / "store") / "data" / "shard-00000.arrow"
    batch = pa.record_batch({"text": ["not regions"]})
    _, size, _ = write_batches(path, batch.schema, [batch])
    damaged_index(tmp_path / "store", lambda info: info["shards"][0].update(bytes=size))
    with pytest.raises(ValueError, match=r"shard-00000.arrow: columns \['text'\]; expected .*image_id"):
        FeatureStore(tmp_path / "store")["image-0"]


# Stores of earlier versions: `store` and `cut.partial`, which was interrupted after its first shard


def counted_regions(count):
    """Regions of numbers that float16 can hold."""
    numbers = np.arange(count * DIM, dtype=np.float32).reshape(count, DIM)
    return {
        "visual_embeds": torch.from_numpy(numbers / 8),
        "boxes": torch.from_numpy(numbers[:, :4] + np.float32(0.1)),
        "scores": torch.from_numpy(numbers[:, 0] / 100),
        "class_ids": torch.arange(count),
        "attribute_ids": torch.arange(count) + 7,
        "attribute_scores": torch.from_numpy(numbers[:, 1] / 100),
        "image_size": torch.tensor([30, 40 + count]),
    }


def stored_pairs():
    """What was written into the stored stores, in order."""
    bare = {"visual_embeds": counted_regions(1)["visual_embeds"]}
    return [*((f"image-{count}", counted_regions(count)) for count in (3, 0, 2, 1)), ("été", bare)]


STORED = Path(__file__).parent / "fixtures" / "store"
STORED_OPTIONS = {
    "dtype": "float16",
    "images_per_shard": 2,
    "names": {"classes": ["cat", "dog", "hat"], "attributes": None},
    "source": {"file": "a.tsv"},
}


def test_a_store_of_an_earlier_version_opens():
    store = FeatureStore(STORED / "store", expect_dim=DIM, expect_detector="0123abcd")
    assert list(store) == ["image-0", "image-1", "image-2", "image-3", "été"]
    for image_id, written in stored_pairs():
        assert_equal_regions(store[image_id], written)
    assert (store.info["classes"], store.info["attributes"]) == (["cat", "dog", "hat"], None)
    store.verify()


def test_the_format_is_that_of_earlier_versions(tmp_path):
    """The same files with the same columns and rows; the index has the same keys in the same order."""
    write(tmp_path / "store", stored_pairs(), **STORED_OPTIONS)
    assert sorted(contents(tmp_path / "store")) == sorted(contents(STORED / "store"))
    for path in STORED.glob("store/**/*.arrow"):
        old, new = (
            pa.ipc.open_stream(file.read_bytes()).read_all() for file in (path, tmp_path / path.relative_to(STORED))
        )
        assert new.equals(old, check_metadata=True)
    old, new = (json.loads((folder / "store" / "index.json").read_text()) for folder in (STORED, tmp_path))
    for info in (old, new):
        for record in (info["ids"], *info["shards"]):
            record.update(bytes=0, sha256="")  # another version of pyarrow may write other bytes
    assert json.dumps(new) == json.dumps(old)


def test_an_interrupted_run_of_an_earlier_version_resumes(tmp_path):
    shutil.copytree(STORED / "cut.partial", tmp_path / "store.partial")
    first = (tmp_path / "store.partial" / "data" / "shard-00000.arrow").read_bytes()
    write(tmp_path / "store", stored_pairs(), resume=True, **STORED_OPTIONS)
    assert (tmp_path / "store" / "data" / "shard-00000.arrow").read_bytes() == first
    for image_id, written in stored_pairs():
        assert_equal_regions(FeatureStore(tmp_path / "store")[image_id], written)


# Interruption


def test_a_shard_of_several_record_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(store_format, "_BATCH_BYTES", 100)
    store = FeatureStore(write(tmp_path / "store", [(i, regions_of(i)) for i in range(9)], images_per_shard=9))
    with pa.memory_map(str(tmp_path / "store" / "data" / "shard-00000.arrow")) as source:
        assert len(pa.ipc.open_stream(source).read_all().to_batches()) > 3
    for number in range(9):
        assert_equal_regions(store[number], regions_of(number))
    store.verify()


def test_the_same_regions_give_the_same_bytes(tmp_path):
    first, second = contents(write(tmp_path / "first")), contents(write(tmp_path / "second", resume=True))
    assert first == second
    assert sorted(first) == ["README.md"] + [f"data/shard-0000{i}.arrow" for i in range(7)] + [
        "ids.arrow",
        "index.json",
    ]


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 23, 24, 25])
def test_a_run_that_stopped_goes_on(tmp_path, stop_after):
    made = []

    def lazily(item, number):
        return lambda: made.append(number) or item

    def some():
        for number, (key, item) in enumerate(pairs(25)):
            if number == stop_after:
                raise KeyboardInterrupt
            yield key, lazily(item, number)

    if stop_after < 25:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "store", some(), resume=True)
        assert not (tmp_path / "store").exists()
        with pytest.raises(FileNotFoundError, match="store.partial holds an unfinished one"):
            FeatureStore(tmp_path / "store")
    before, stop_after = len(made), 99
    write(tmp_path / "store", some(), resume=True)
    assert len(made) == 25 + before % 4  # complete shards are not made again
    assert contents(tmp_path / "store") == contents(write(tmp_path / "whole"))
    assert not partial_folder(tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, 'was started with dtype "float32", not "float16"'),
        ({"images_per_shard": 5}, "was started with images_per_shard 4, not 5"),
        ({"detector": "other"}, "was started with detector .*Tiny.* not .*other"),
        ({"source": {"file": "b"}}, r"was started with source \{\}, not"),
        ({"items": [("other", regions_of(1)), *pairs(25)]}, "shard 0 holds other images than other"),
    ],
)
def test_another_run_does_not_go_on_with_it(tmp_path, changes, message):
    def some():
        yield from pairs(25)[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", some(), resume=True)
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "store", resume=True, **changes)


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt  # SIGINT itself is ignored in processes that a shell started in the background


def test_interrupted_between_any_two_steps_of_finishing(tmp_path, monkeypatch):
    """The index is written, then what is no longer needed removed, then the folder renamed: each may be the last."""
    whole = contents(write(tmp_path / "whole"))
    for number, step in enumerate(["shutil.rmtree", "Path.unlink", "Path.rename"]):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(f"modeling_visualbert.features.draft.{step}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                write(folder, resume=True)
        write(folder, resume=True)
        assert contents(folder) == whole


WRITER = """
import sys
sys.path.insert(0, "tests")
from test_store import pairs, write
from pathlib import Path
print("ready", flush=True)
write(Path(sys.argv[1]), pairs(600), images_per_shard=7, resume=True)
"""


@pytest.mark.slow
def test_killed_ten_times_at_random(tmp_path):
    write(tmp_path / "whole", pairs(600), images_per_shard=7)
    rng = random.Random(0)
    kills = 0
    while not (tmp_path / "store").exists():
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "store")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        if kills < 10:
            time.sleep(rng.uniform(0.0, 0.05))
            process.kill()
            kills += 1
        process.wait()
    assert kills == 10
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


# Full disks


class FullAfter:
    """A disk that is full after a number of bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, file, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return file.original(data)


@pytest.mark.parametrize("room", [0, 10, 1000, 3000, 9000, 20000])
def test_a_full_disk_leaves_whole_shards_and_says_so(tmp_path, monkeypatch, room):
    original, disk = disk_module.HashedFile.write, FullAfter(room)

    def write_to_full_disk(file, data):
        file.original = lambda data: original(file, data)
        return disk.write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(disk_module.HashedFile, "write", write_to_full_disk)
        with pytest.raises(
            OSError, match=r"No space left on device; nothing half-written is kept: make room"
        ) as raised:
            write(tmp_path / "store", resume=True)
    assert raised.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(raised.value)
    partial = partial_folder(tmp_path / "store")
    assert not list(partial.rglob("*.tmp"))
    for part in partial.glob("parts/*.json"):
        record = json.loads(part.read_text())
        assert sha256_of(partial / record["file"]) == record["sha256"]
    write(tmp_path / "store", resume=True)
    assert contents(tmp_path / "store") == contents(write(tmp_path / "whole"))


LIMITED = """
import resource, signal, sys
sys.path.insert(0, "tests")
from test_store import pairs, regions_of, write
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
write(Path(sys.argv[1]), [("small", regions_of(1)), ("large", regions_of(2, count=4000))], images_per_shard=1, resume=True)
"""


def test_a_file_that_the_system_does_not_let_grow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "store")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "nothing half-written is kept: make room and run the command again" in done.stderr
    partial = partial_folder(tmp_path / "store")
    assert sorted(path.name for path in partial.glob("*/*")) == ["00000.json", "shard-00000.arrow"]


def test_a_draft_with_missing_shards_is_not_finished(tmp_path):
    draft = StoreDraft.begin(tmp_path / "store.partial", tmp_path / "store", {"format": 3})
    draft.write_shard(1, [encode_row("a", regions_of(1), DIM, "float32")])
    with pytest.raises(ValueError, match=r"2 of 3 shards are missing, the first is 0; run the command again"):
        draft.finish(3)
    assert not (tmp_path / "store").exists()


def test_what_datasets_knows_of_the_columns_travels_in_the_shards(tmp_path):
    path = write(tmp_path / "store") / "data" / "shard-00000.arrow"
    with pa.memory_map(str(path)) as source:
        assert pa.ipc.open_stream(source).schema.equals(SCHEMA, check_metadata=True)


def test_an_unknown_detector_can_be_named_once(tmp_path, capsys):
    store = write(tmp_path / "store", detector="unknown")
    assert main(["store", str(store), "--detector", "unc-nlp/frcnn-vg-finetuned"]) == 0
    assert '{"name": "frcnn-vg", "fingerprint": null}' in capsys.readouterr().out
    FeatureStore(store).verify()
    assert main(["store", str(store), "--detector", "pythia-x101"]) == 2
    assert "the detector is 'frcnn-vg' already; expected one that is unknown" in capsys.readouterr().err
