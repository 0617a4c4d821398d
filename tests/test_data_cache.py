"""Tables of official files in the cache: when they are made, by whom, and what a killed process leaves behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest
from datasets import Features, Value
from test_data_vcr import metadata
from test_data_vcr import record as vcr_record
from test_data_vqa import annotation, question, write_files

from modeling_visualbert.data import cache
from modeling_visualbert.data.cache import batches, cached_table, content_of, stamp_of
from modeling_visualbert.data.flickr30k import load_flickr30k
from modeling_visualbert.data.vcr import load_vcr
from modeling_visualbert.data.vqa2 import load_vqa

FEATURES = Features({"number": Value("int64")})


@pytest.fixture(autouse=True)
def tables(tmp_path, monkeypatch):
    """An empty cache that keeps small tables too; returns the folder of its tables."""
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "KEPT", 0)
    return tmp_path / "cache" / "tables"


def names(folder):
    """Complete tables."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_a_table_is_made_once_and_mapped(tables):
    made = []

    def read(notes):
        made.append(1)
        notes["said"] = "a word"
        return batches(({"number": number} for number in range(2500)), FEATURES)

    for _ in range(2):
        rows, notes = cached_table("numbers", FEATURES, read, 1, "key")
        assert rows["number"][:] == list(range(2500)) and notes == {"said": "a word"}
        assert rows.features == FEATURES and rows.cache_files
    assert len(made) == 1
    assert cached_table("numbers", FEATURES, read, 1, "other key")[0].num_rows == 2500
    assert len(made) == 2 and len(names(tables)) == 2


def test_what_is_small_is_read_each_time(tables, monkeypatch):
    monkeypatch.setattr(cache, "KEPT", 10)
    rows, _ = cached_table("numbers", FEATURES, lambda notes: batches([{"number": 1}], FEATURES), 9, "key")
    assert rows.to_list() == [{"number": 1}] and rows.features == FEATURES and not tables.exists()
    assert len(cached_table("numbers", FEATURES, lambda notes: [], 9, "key")[0]) == 0


def test_an_error_of_the_reader_leaves_nothing(tables):
    def read(notes):
        yield from batches([{"number": 1}], FEATURES)
        raise ValueError("record 2 is bad")

    with pytest.raises(ValueError, match=r"^record 2 is bad$"):
        cached_table("numbers", FEATURES, read, 1)
    assert names(tables) == []


def test_a_full_or_closed_disk_is_named(tables, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tables.parent.parent / "file"))
    (tables.parent.parent / "file").write_text("")
    with pytest.raises(OSError, match=r"file/tables/numbers-.*cannot be written .*MODELING_VISUALBERT_CACHE"):
        cached_table("numbers", FEATURES, lambda notes: [], 1)


def test_a_damaged_table_is_named(tables):
    cached_table("numbers", FEATURES, lambda notes: batches([{"number": 1}], FEATURES), 1)
    (path,) = tables.glob("numbers-*/rows.arrow")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"numbers-\w+: this cached table is damaged .*remove the folder"):
        cached_table("numbers", FEATURES, lambda notes: [], 1)


BUILDER = """
import sys, time
from datasets import Features, Value
from modeling_visualbert.data import cache
cache.KEPT = 0
features = Features({"number": Value("int64")})
def read(notes):
    print("reading", flush=True)
    yield from cache.batches(({"number": number} for number in range(3000)), features)
    time.sleep(float(sys.argv[1]))
rows, _ = cache.cached_table("numbers", features, read, 1, "key")
print(len(rows), flush=True)
"""


def builder(seconds):
    """A process that takes so long to make a table."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(seconds)], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_what_a_killed_process_leaves_does_not_count(tables):
    killed = builder(600)
    assert killed.stdout.readline() == "reading\n"
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not [name for name in names(tables) if not name.startswith(".")]
    after = builder(0)
    assert after.communicate()[0] == "reading\n3000\n"
    assert len(names(tables)) == 1  # the draft of the killed one is gone too


def test_one_process_reads_and_the_others_wait(tables):
    processes = [builder(1) for _ in range(3)]
    said = sorted(process.communicate()[0] for process in processes)
    assert said == ["3000\n", "3000\n", "reading\n3000\n"]


def test_waiting_is_said(tables, caplog):
    caplog.set_level("INFO")
    entered, go_on = threading.Event(), threading.Event()

    def slow(notes):
        entered.set()
        go_on.wait()
        return batches([{"number": 1}], FEATURES)

    threads = [threading.Thread(target=cached_table, args=("numbers", FEATURES, slow, 1)) for _ in range(2)]
    threads[0].start()
    entered.wait()
    threads[1].start()
    while "waiting for it" not in caplog.text:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()


def test_changed_content_is_another_table(tmp_path, tables):
    paths = write_files(tmp_path, [question(1)], [annotation(1, answers=("cat",))])
    status = paths[1].stat()
    assert load_vqa(*paths)["answers"][:] == [["cat"]]
    paths[1].write_text(paths[1].read_text().replace("cat", "dog"))
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))  # as long and as old as before
    assert load_vqa(*paths)["answers"][:] == [["dog"]]
    assert len(names(tables)) == 2


def test_bad_records_are_listed_again_from_the_cache(tmp_path, tables, caplog):
    paths = write_files(tmp_path, [question(1), question(2, text="?")], [annotation(1)], data_subtype="val2014")
    skipped, again = [], []
    assert load_vqa(*paths, skipped=skipped).to_list() == load_vqa(*paths, skipped=again).to_list()
    assert skipped == again and "question 1: question id 2 is empty" in skipped[0]
    assert caplog.text.count("2 questions; the full val2014 has 214354") == 2
    with pytest.raises(ValueError, match="question id 2 is empty"):
        load_vqa(*paths)


def test_a_changed_metadata_file_is_read_again_and_others_are_not(tmp_path, tables):
    images = tmp_path / "vcr1images"
    record = vcr_record("val-0")
    path = images / record["metadata_fn"]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(metadata()))
    (tmp_path / "val.jsonl").write_text(json.dumps(record) + "\n")
    width = load_vcr(tmp_path / "val.jsonl", images)[0]["width"]
    assert len(names(tables)) == 2  # questions and metadata
    load_vcr(tmp_path / "val.jsonl", images, objects="all")
    assert len([name for name in names(tables) if name.startswith("vcr_metadata")]) == 1
    path.write_text(json.dumps(metadata(width=width + 100)))
    assert load_vcr(tmp_path / "val.jsonl", images)[0]["width"] == width + 100
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"val.jsonl: line 1: .*: no such file"):
        load_vcr(tmp_path / "val.jsonl", images)


def test_a_changed_sentence_file_is_read_again(tmp_path, tables):
    for name in ("Sentences", "Annotations"):
        (tmp_path / name).mkdir()
    for words in ("A [/EN#1/people man] .\n", "A [/EN#1/people woman] .\n"):
        (tmp_path / "Sentences" / "7.txt").write_text(words)
        found = [load_flickr30k(tmp_path, [7], grounded=False)["sentence"][:] for _ in range(2)]
        assert found == [[f"A {words.split()[2].rstrip(']')} ."]] * 2


def test_stamps_and_contents(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    before = stamp_of([str(path)]), content_of(path)
    os.utime(path, (1, 1))
    assert stamp_of([str(path)]) != before[0] and content_of(path) == before[1]
    assert stamp_of([str(path), str(tmp_path / "missing")])[0] == 3
    with pytest.raises(FileNotFoundError, match=r"missing: no such file"):
        content_of(tmp_path / "missing")


def test_rows_of_another_form_are_refused(tables):
    with pytest.raises(pa.ArrowInvalid):
        cached_table("numbers", FEATURES, lambda notes: batches([{"number": "one"}], FEATURES), 1)
    assert names(tables) == []
