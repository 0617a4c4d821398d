"""Region features of others in every form that is read, and our own stores: damaged, cut off, with sizes that lie."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign import attempt, examples, judge
from hypothesis import given, strategies
from image_mutations import damage
from mutations import mutate_json, mutate_text
from pickle_mutations import mutate_archive, mutate_pickle
from PIL import Image
from test_convert_features import image, item_of, write_lmdb, write_tsv

from modeling_visualbert.features.convert import convert_features
from modeling_visualbert.features.sheet import store_sheet
from modeling_visualbert.features.store import FeatureStore


def write_numpy(folder, save):
    folder.mkdir()
    for number in (7, 9):
        save(folder / f"{number}.{'npy' if save is np.save else 'npz'}", image(number, 3))
    return folder


def save_npy(path, arrays):
    np.save(path, arrays["features"])


def save_pickled_npy(path, arrays):
    np.save(path.with_suffix(".npy"), arrays, allow_pickle=True)


def write_hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for number in (7, 9):
            for name, value in image(number, 3).items():
                file.create_dataset(f"{number}/{name}", data=value)
    return path


def write_th(path):
    torch.save(
        {f"{number}.png": tuple(map(torch.from_numpy, list(image(number).values())[:3])) for number in (7, 9)}, path
    )
    return path


def write_two_in_lmdb(folder, **changes):
    lmdb = pytest.importorskip("lmdb")
    write_lmdb(lmdb, folder, {"p_7": item_of(7), "p_9": item_of(9), **changes})
    (folder / "lock.mdb").unlink()
    return folder


def write_store(folder):
    convert_features(write_tsv(folder.with_suffix(".tsv")), folder, progress=False)
    return folder


def convert(source):
    """How many images a new store has."""
    target = source.with_name("new")
    for path in source.parent.glob("new*"):
        shutil.rmtree(path)
    return len(convert_features(source, target, progress=False))


def read_store(folder):
    """Everything that a store holds."""
    store = FeatureStore(folder)
    store.verify()
    return sum(len(store[image_id]["visual_embeds"]) for image_id in store)


def write_store_and_pictures(folder):
    folder.mkdir()
    for image_id in FeatureStore(write_store(folder / "store")):
        Image.new("RGB", (40, 30)).save(folder / f"{image_id}.png")
    return folder


def draw_sheet(folder):
    """The size of a sheet with the regions of a store drawn in."""
    return store_sheet(FeatureStore(folder / "store"), {path.stem: path for path in folder.glob("*.png")}).size


# How it is written, and what reads it.
FORMS = {
    "a.tsv": (write_tsv, convert),
    "npz": (lambda path: write_numpy(path, lambda file, arrays: np.savez_compressed(file, **arrays)), convert),
    "npy": (lambda path: write_numpy(path, lambda file, arrays: save_npy(file.with_suffix(".npy"), arrays)), convert),
    "pickled npy": (lambda path: write_numpy(path, save_pickled_npy), convert),
    "a.h5": (write_hdf5, convert),
    "a.th": (write_th, convert),
    "a.lmdb": (write_two_in_lmdb, convert),
    "store": (write_store, read_store),
    "sheet": (write_store_and_pictures, draw_sheet),
}


def change(source, random, harm):
    """Change a file of a source, or a value in a file."""
    if source.suffix == ".lmdb" and random.randrange(2):
        write_two_in_lmdb(source, p_9=mutate_pickle(item_of(9), random, harm))
        return
    path = random.choice([source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file()))
    content = path.read_bytes()
    path.write_bytes(mutate_archive(content, random, harm) if path.suffix == ".th" else mutate(content, random))


def mutate(content, random):
    """Damage of bytes, or of text and JSON where it is that."""
    if content.startswith(b"{"):
        return random.choice([mutate_json, damage])(content, random)
    if content.isascii():
        return random.choice([mutate_text, damage])(content, random)
    return damage(content, random)


@pytest.mark.parametrize("form", FORMS)
@examples(8)
@given(random=strategies.randoms(use_true_random=False))
def test_features(form, random, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"features {form}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write, read = FORMS[form]
    source = write(folder / form)

    def quietly():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about numbers that look odd
            return read(source)

    usual = attempt(quietly)
    assert usual.answer is not None, usual
    change(source, random, folder / "harm")
    outcome = attempt(quietly)
    assert not (folder / "harm").exists() and not Path("written").exists(), "a file was unpickled"
    judge(f"features: {form}", outcome, [str(folder)], usual)
