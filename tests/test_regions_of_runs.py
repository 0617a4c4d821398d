"""Regions that a training run finds: by all processes, kept when it is killed, announced before they are found."""

import json
import subprocess
import time
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from PIL import Image
from processes import ROOT, environment, launcher

from modeling_visualbert.data.files import index_images_by_name
from modeling_visualbert.features import extract
from modeling_visualbert.features.extract import Processes
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.hub_code.modeling_region_encoder import QueryRegionEncoder
from modeling_visualbert.tasks import regions
from modeling_visualbert.tasks.common import DETECTOR, TaskArgs
from modeling_visualbert.tasks.regions import prepare_images
from modeling_visualbert.tasks.tables import TaskData


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of 40 images, and a cache of its own."""
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(folder / f"p-{number:02d}.png")
    return folder


def data_of(folder):
    rows = Dataset.from_dict({"image": [f"p-{number:02d}" for number in range(40)]})
    return TaskData({"train": rows}, {"train": "train"}, "image", index_images_by_name, folder, [])


def prepare(folder, boxes=None, **fields):
    args = TaskArgs(str(folder / "run"), region_encoder=str(DETECTOR), cpu=True, **fields)
    return prepare_images(args, data_of(folder), Processes(), boxes)


def stores(tmp_path, pattern="*"):
    return [path for path in (tmp_path / "cache" / "regions").glob(pattern) if path.is_dir()]


def test_folder_and_size_are_told_before_regions_are_found(images, tmp_path, capsys):
    found, _ = prepare(images)
    (folder,) = stores(tmp_path)
    told = capsys.readouterr().err
    assert "finding the regions of 40 images; they are kept in" in told
    assert str(folder) in told
    store = FeatureStore(folder)
    size = float(told.split("which will have up to ")[1].split(" MB")[0]) * 1e6
    assert sum(shard["bytes"] for shard in store.info["shards"]) < size + 20_000
    assert store.dtype == "float16"
    assert found.get("p-07")["visual_embeds"].dtype == np.float16
    prepare(images)
    assert "finding the regions" not in capsys.readouterr().err


def test_a_run_that_was_interrupted_loses_at_most_a_shard(images, tmp_path, monkeypatch, capsys):
    calls = []

    def forward(self, *args, find=QueryRegionEncoder.forward, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(kwargs["pixel_values"]))
        return find(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(QueryRegionEncoder, "forward", forward)
        with pytest.raises(KeyboardInterrupt):
            prepare(images)
    assert calls == [16, 16]
    (partial_store,) = stores(tmp_path, "*.partial")
    written = {path.name: path.stat().st_mtime_ns for path in (partial_store / "data").glob("*.arrow")}
    assert len(written) == 2
    prepare(images)
    assert "(of about 32 they are there already)" in capsys.readouterr().err
    (folder,) = stores(tmp_path)
    assert len(FeatureStore(folder)) == 40
    assert written.items() <= {path.name: path.stat().st_mtime_ns for path in (folder / "data").glob("*.arrow")}.items()


def test_a_detector_that_another_version_describes_otherwise_has_regions_of_its_own(images, tmp_path, monkeypatch):
    """The cache of an older version of this package is in nobody's way."""
    prepare(images)
    describe = extract.describe_detector

    def otherwise(*detector):
        return {**describe(*detector), "config_hash": "of an older version"}

    for module in (extract, regions):
        monkeypatch.setattr(module, "describe_detector", otherwise)
    prepare(images)
    assert len(stores(tmp_path)) == 2


def test_given_boxes_are_described(images):
    boxes = {f"p-{number:02d}": [[0, 0, 48, 32], [4, 4, 20 + number % 8, 30]] for number in range(40)}
    found, _ = prepare(images, boxes)
    assert found.get("p-03")["boxes"].tolist() == [[0, 0, 48, 32], [4, 4, 23, 30]]
    other, _ = prepare(images, {**boxes, "p-03": [[0, 0, 48, 32]]})
    assert len(other.get("p-03")["boxes"]) == 1


def test_an_image_that_cannot_be_read_stops_a_run_or_is_left_out(images):
    (images / "p-05.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"p-05\.png: not an image"):
        prepare(images)
    _, data = prepare(images, skip_bad_records=True)
    assert len(data.splits["train"]) == 39
    assert len(data.skipped) == 1 and "p-05.png" in data.skipped[0]


@pytest.mark.slow
def test_two_processes_find_regions_together_and_a_killed_run_goes_on(tmp_path):
    sizes = ["--train_scenes", "700", "--val_scenes", "20", "--test_scenes", "20"]
    command = [str(ROOT / "examples" / "run_vqa.py"), "--cpu", *sizes, "--max_steps", "1", "--batch_size", "8"]
    start = partial(subprocess.Popen, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def run(name, cache, processes):
        variables = environment(MODELING_VISUALBERT_CACHE=str(tmp_path / cache))
        return start([*launcher(processes), *command, "--output_dir", str(tmp_path / name)], env=variables)

    killed = run("killed", "cache", 2)
    parts, deadline = [], time.time() + 120
    while len(parts) < 4 and time.time() < deadline and killed.poll() is None:
        parts = list((tmp_path / "cache" / "regions").glob("*.partial/parts/*.json"))
        time.sleep(0.005)
    assert killed.poll() is None, killed.communicate()[1][-3000:]
    for process in [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]:
        process.kill()  # the launcher's processes have sessions of their own
    assert "finding the regions of 740 images with 2 processes" in killed.communicate()[1]
    parts = list((tmp_path / "cache" / "regions").glob("*.partial/parts/*.json"))
    assert 4 <= len(parts) < 47
    numbers = {int(part.stem) for part in parts}
    assert {number % 2 for number in numbers} == {0, 1}  # both took part
    kept = {json.loads(part.read_text())["file"]: json.loads(part.read_text())["sha256"] for part in parts}
    (partial_store,) = (tmp_path / "cache" / "regions").glob("*.partial")
    times = {file: (partial_store / file).stat().st_mtime_ns for file in kept}

    resumed = run("resumed", "cache", 2)
    told = resumed.communicate()[1]
    assert resumed.returncode == 0, told[-3000:]
    assert "they are there already" in told
    (folder,) = (path for path in (tmp_path / "cache" / "regions").iterdir() if path.is_dir())
    assert {file: (folder / file).stat().st_mtime_ns for file in kept} == times

    alone = run("alone", "other_cache", 1)
    assert alone.communicate() and alone.returncode == 0
    (other,) = (path for path in (tmp_path / "other_cache" / "regions").iterdir() if path.is_dir())
    one, two = FeatureStore(folder), FeatureStore(other)
    assert list(one) == list(two)
    for image_id in one:
        assert torch.equal(one[image_id]["visual_embeds"], two[image_id]["visual_embeds"])
