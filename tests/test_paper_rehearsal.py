"""The commands of docs/paper.md, run one after the other on files of the published layouts, small and with random weights.

What is replaced is said in `REPLACED`; training commands get a length of two steps. This checks what parsing cannot see: that the
files that one step writes are those that the next one reads, under the names on the page, with features of the right length.
"""

import base64
import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from detector_golden import VCR, golden
from documents import ROOT, blocks, command_lines, words_of
from helpers import randomise, tiny_config
from published_layouts import write_checkpoint, write_tokenizer
from test_convert_region_detector import original_spelling, vcr_weights, write_frcnn
from test_towers import made
from transformers import AutoConfig, BertConfig, BertForPreTraining

from modeling_visualbert import VisualBertForMultipleChoice
from modeling_visualbert.cli import main
from modeling_visualbert.convert.assemble import open_region_encoder
from modeling_visualbert.corpus.scenes import SHAPES
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features.extract import extract_regions
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.tasks.common import DETECTOR

PAGE = (ROOT / "docs" / "paper.md").read_text()
LINES = [line for line in command_lines(PAGE) if line.startswith(("visualbert ", "accelerate launch "))]
# Nothing is downloaded, parsers are not installed, and the machine may have no bf16.
REPLACED = {
    "google-bert/bert-base-uncased": "hub/bert",
    "uclanlp/visualbert-": "hub/visualbert-",
    "--region_encoder pythia-x101": f"--region_encoder {DETECTOR}",
    "--region_encoder detectron-r101": f"--region_encoder {DETECTOR}",
    "--region_encoder frcnn-vg --": "--region_encoder hub/frcnn-vg --",
    "convert frcnn-vg ": "convert hub/frcnn-vg ",
    "openai/clip-vit-large-patch14-336": "hub/clip",
    "--parser stanza:en": "--trees data/flickr30k/Trees",
    "--mixed_precision bf16": "--mixed_precision no",
    "--num_workers 8": "--num_workers 0",
    "photo.jpg": str(ROOT / "docs" / "scene.jpg"),
}
SHORT = "--max_steps 2 --batch_size 4 --eval_batch_size 32 --save_steps 100 --cpu"
SMALL = "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 4 --intermediate_size 40"

# VCR's detector knows the classes of COCO.
CLASSES = dict(zip(SHAPES, ("dog", "cat", "horse", "sheep", "cow", "bear", "zebra", "giraffe"), strict=False))

pytestmark = pytest.mark.slow


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_annotations(corpus, data):
    """The official files of the corpus under the names of the real ones."""
    splits = {"train": "train2014", "val": "val2014", "test": "test2015"}
    for ours, theirs in splits.items():
        for path in (corpus / "vqa").glob(f"*{ours}*"):
            kind = "questions" if "questions" in path.name else "annotations"
            if (kind, ours) != ("annotations", "test"):  # not published
                prefix = "v2_OpenEnded_mscoco" if kind == "questions" else "v2_mscoco"
                copy(path, data / "vqa2" / f"{prefix}_{theirs}_{kind}.json")
    for ours in ("train", "val"):
        (path,) = (corpus / "coco").glob(f"**/captions*{ours}*.json")
        copy(path, data / "coco" / "annotations" / f"captions_{splits[ours]}.json")
    captions = json.loads((data / "coco" / "annotations" / "captions_val2014.json").read_text())
    captions["images"] = captions["images"][::2]
    (data / "coco" / "annotations" / "captions_val2017.json").write_text(json.dumps(captions))
    for split in ("train", "dev", "test1"):
        copy(corpus / "nlvr2" / "data" / f"{split}.json", data / "nlvr2" / f"{split}.json")
    unlabelled(data / "nlvr2" / "test1.json", data / "nlvr2" / "test2.json", "label")
    shutil.copytree(corpus / "vcr", data / "vcr")
    for path in (*(data / "vcr").glob("*.jsonl"), *(data / "vcr").rglob("*.json")):
        path.write_text(re.sub(f'"({"|".join(SHAPES)})"', lambda found: f'"{CLASSES[found[1]]}"', path.read_text()))
    for path in (data / "vcr").glob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:8]))  # its detector reads large images
    unlabelled(data / "vcr" / "test.jsonl", data / "vcr" / "test.jsonl", "answer_label", "rationale_label")
    shutil.copytree(corpus / "flickr30k", data / "flickr30k")
    for path in (data / "flickr30k").glob("shapes_*.txt"):
        path.rename(path.with_name(path.name.removeprefix("shapes_")))


def unlabelled(source, target, *labels):
    """JSON lines without labels."""
    records = [json.loads(line) for line in source.read_text().splitlines()]
    kept = ({key: value for key, value in record.items() if key not in labels} for record in records)
    target.write_text("".join(json.dumps(record) + "\n" for record in kept))


def regions_of(folder, encoder_name, boxes=None):
    """Regions of all images in a folder, by path; of given boxes, if there are any."""
    encoder, image_processor = open_region_encoder(encoder_name)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
    images = ((path, path) for path in paths)
    return dict(extract_regions(encoder, image_processor, images, 8, progress=False, boxes=boxes))


def write_features(corpus, data):
    """Features in the layouts in which the page's downloads come."""
    downloads, of_images = data / "downloads", regions_of(corpus / "images", DETECTOR)
    npy = downloads / "detectron_fix_100" / "fc6" / "vqa" / "train2014"
    npy.mkdir(parents=True)
    names = {path: f"COCO_train2014_{int(path.stem.split('_')[-1]):012d}" for path in of_images}
    for path, found in of_images.items():
        np.save(npy / f"{names[path]}.npy", found["visual_embeds"].numpy())
    write_chunks(downloads / "nlvr2_coco", {f"{names[path]}.jpg.npz": found for path, found in of_images.items()})
    of_pairs = regions_of(corpus / "nlvr2", DETECTOR)
    write_chunks(downloads / "nlvr2", {path.name: found for path, found in of_pairs.items()})
    # A detector with random weights finds nothing, but it describes what the other one has found.
    boxes = {path: found["boxes"].tolist() for path, found in of_images.items()}
    described = regions_of(corpus / "images", "hub/frcnn-vg", boxes)
    lines = [tsv_line(int(path.stem.split("_")[-1]), found) for path, found in described.items()]
    for name, stem in (("flickr30k", "train_flickr30k_resnet101.tsv"), ("trainval", "karpathy_train_resnet101.tsv")):
        (downloads / name).mkdir()
        for part in (0, 1):
            (downloads / name / f"{stem}.{part}").write_text("".join(lines[part::2]))


def write_chunks(folder, regions):
    """Two of the authors' `.th` files."""
    folder.mkdir(parents=True)
    records = [
        (name, tuple(found[key] for key in ("visual_embeds", "boxes", "scores"))) for name, found in regions.items()
    ]
    for part in (0, 1):
        torch.save(dict(records[part::2]), folder / f"features_{part}.th")


def tsv_line(image_id, found):
    height, width = found["image_size"].tolist()
    arrays = (found["boxes"].numpy(), found["visual_embeds"].numpy())
    encoded = [base64.b64encode(array.astype("<f4").tobytes()).decode() for array in arrays]
    return "\t".join([str(image_id), str(width), str(height), str(len(arrays[0])), *encoded]) + "\n"


def write_models(hub, data):
    """BERT, the published checkpoints, and the authors' VCR files, all small."""
    tokenizer = corpus_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(hub / "bert")
    tokenizer.save_pretrained(hub / "bert")
    write_tokenizer(hub / "tokenizer")
    made("clip").save_pretrained(hub / "clip")
    dim = AutoConfig.from_pretrained(DETECTOR).region_dim
    for task in ("vqa", "nlvr2"):
        write_checkpoint(hub / f"visualbert-{task}", task, dim)
    vcr_dim = golden(VCR).config["source_config"]["final_dim"]
    config = tiny_config("vcr", vocab_size=len(tokenizer), visual_embedding_dim=vcr_dim, max_position_embeddings=128)
    weights = randomise(VisualBertForMultipleChoice(config)).state_dict()
    weights = {f"bert.{original_spelling(key)}": value for key, value in weights.items()} | vcr_weights()
    for name in ("vcr_pre", "vcr_finetuned"):
        torch.save(weights, data / "downloads" / f"{name}.th")


@pytest.fixture(scope="module")
def rehearsed(corpus, tmp_path_factory):
    """The folder in which all commands have run."""
    folder = tmp_path_factory.mktemp("rehearsal")
    data, hub = folder / "data", folder / "hub"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MODELING_VISUALBERT_CACHE", str(folder / "cache"))
        (folder / "examples").symlink_to(ROOT / "examples")
        write_annotations(corpus, data)
        (hub / "frcnn-vg").mkdir(parents=True)
        write_frcnn(hub / "frcnn-vg")
        write_features(corpus, data)
        write_models(hub, data)
        for name in ("coco", "flickr30k"):
            (data / "downloads" / f"{name}_images").symlink_to(corpus / "images")
        (data / "downloads" / "nlvr2_images").symlink_to(corpus / "nlvr2")
        (code,) = (block for language, block in blocks(PAGE) if language == "python")
        exec(compile(code, "paper.md", "exec"), {})
        for line in LINES:
            run(line, patch)
    return folder


def run(line, patch):
    for old, new in REPLACED.items():
        line = line.replace(old, new)
    program, *flags = words_of(line)
    if program != "visualbert":
        flags += SHORT.split() + (SMALL.split() if "scratch" in flags else [])
        patch.setattr(sys, "argv", [program, *flags])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(program, run_name="__main__")
        assert ended.value.code == 0, line
        return
    if flags[0] in ("evaluate", "extract", "analyze"):
        flags.append("--cpu")
    if flags[0] == "evaluate" and "hub/" in line:
        flags += ["--tokenizer", "hub/tokenizer"]
    if flags[0] == "convert" and ".th" in line:
        flags += ["--num_attention_heads", "4"]
    assert main(flags) == 0, line


def scores(folder, run, split):
    return json.loads((folder / "runs" / run / "metrics.json").read_text())["splits"][split]


def test_every_model_is_scored(rehearsed):
    assert "accuracy" in scores(rehearsed, "nlvr2_144_dev", "dev")
    assert "consistency" in scores(rehearsed, "nlvr2_published_test1", "test1")
    grounded = scores(rehearsed, "flickr30k_entities_test", "test")
    assert "recall_at_1" in grounded and grounded["upper_bound"] > 90
    log = (rehearsed / "runs" / "flickr30k_entities" / "log.jsonl").read_text()
    assert '"dev_upper_bound": ' in log and json.loads(log.splitlines()[0])["grad_norm"] > 0
    for name in ("nlvr2_no_coco", "nlvr2_late", "ablation", "flickr30k_no_coco", "flickr30k_late"):
        assert scores(rehearsed, name, "dev")["num_examples"] > 0


def test_files_for_the_evaluation_servers_are_where_the_page_says(rehearsed):
    for name in ("vqa_published", "vqa2_test2015", "vqa2_late_test2015", "clip_vqa_test2015"):
        assert (rehearsed / "runs" / name / "results_test2015.json").is_file()
    assert (rehearsed / "runs" / "nlvr2_published_test2" / "results_test2.csv").is_file()
    assert (rehearsed / "runs" / "vcr_test" / "results_test.csv").is_file()


def test_features_of_flickr30k_end_with_six_spatial_numbers(rehearsed):
    store = FeatureStore(rehearsed / "data" / "flickr30k_regions")
    own = FeatureStore(rehearsed / "data" / "flickr30k_own_regions")
    assert store.detector["spatial_features"] and own.detector["spatial_features"] and store.dim == own.dim
    regions = store[next(iter(store))]
    height, width = regions["image_size"].tolist()
    corners = regions["boxes"] / torch.tensor([width, height, width, height])
    torch.testing.assert_close(regions["visual_embeds"][:, -6:-2], corners, atol=1e-3, rtol=0)


def test_the_analysis_is_drawn(rehearsed):
    assert (rehearsed / "runs" / "attention" / "analysis.txt").is_file()
    assert list((rehearsed / "runs" / "attention").glob("picture_*.png"))
