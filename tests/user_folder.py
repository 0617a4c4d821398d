"""A folder as the pages of the documentation suppose it: photos, tables and checkpoints, small and with random weights."""

import csv
import random
import shutil

import torch
from documents import ROOT
from PIL import Image
from test_tower_sizes import save_tower
from tiny_checkpoints import save_tiny_checkpoint
from tiny_detectors import tiny_detector
from transformers import BertConfig, BertModel, DetrImageProcessor

from modeling_visualbert.corpus.vocabulary import corpus_tokenizer

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
CHECKPOINTS = {
    "runs/vqa/best": "vqa",
    "runs/nlvr2/best": "nlvr2",
    "runs/vcr/answer/best": "vcr",
    "runs/flickr30k/best": "flickr30k",
    "runs/pretraining/best": "pretraining",
    "uclanlp/visualbert-vqa": "vqa",
}


def save_bert(folder):
    """A BERT of one layer with the words of the embedded corpus."""
    tokenizer = corpus_tokenizer()
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_photos(folder, count=20):
    """`photos.csv` with questions about photos of one colour, which lie beside it."""
    folder.mkdir(parents=True)
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer"])
        for number in range(count):
            color = random.Random(number).choice(sorted(COLORS))
            Image.new("RGB", (64, 64), COLORS[color]).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", "What color is it?", color])


def save_small_models(folder):
    """What the pages take from the Hub, in folders of the same names."""
    save_bert(folder / "google-bert" / "bert-base-uncased")
    for name in ("microsoft/resnet-50", "openai/clip-vit-base-patch16"):
        save_tower(folder / name)
    detector = folder / "facebook" / "detr-resnet-50"
    tiny_detector("detr").save_pretrained(detector)
    DetrImageProcessor(size={"height": 64, "width": 96}).save_pretrained(detector)


def make_user_folder(folder):
    """Everything that the Python and the commands of the pages read."""
    for name, task in CHECKPOINTS.items():
        save_tiny_checkpoint(task, folder / name)
    save_small_models(folder)
    write_photos(folder / "data")
    shutil.copy(folder / "data" / "photos.csv", folder / "data" / "held_back.csv")
    (folder / "data" / "photos").mkdir()
    (folder / "docs").mkdir()
    for name in ("scene.jpg", "other_scene.jpg", "scene.json"):
        shutil.copy(ROOT / "docs" / name, folder / "docs")
    for copy in ("scene.jpg", "photo.jpg", "left.jpg", "right.jpg", "data/photos/kitchen.jpg"):
        shutil.copy(ROOT / "docs" / "scene.jpg", folder / copy)
    return folder
