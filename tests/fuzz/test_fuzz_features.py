"""Region features of others in every form that is read, and our own stores: damaged, cut off, with sizes that lie."""

import shutil
import warnings

import numpy as np
import pytest
from campaign import attempt, examples, judge
from hypothesis import given, strategies
from image_mutations import damage
from mutations import mutate_json, mutate_text
from test_convert_features import image, write_tsv

from modeling_visualbert.features.convert import convert_features
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


# How it is written, and what reads it.
FORMS = {
    "a.tsv": (write_tsv, convert),
    "npz": (lambda path: write_numpy(path, lambda file, arrays: np.savez_compressed(file, **arrays)), convert),
    "npy": (lambda path: write_numpy(path, lambda file, arrays: save_npy(file.with_suffix(".npy"), arrays)), convert),
    "pickled npy": (lambda path: write_numpy(path, save_pickled_npy), convert),
    "a.h5": (write_hdf5, convert),
    "store": (write_store, read_store),
}


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
    path = random.choice([source] if source.is_file() else sorted(file for file in source.rglob("*") if file.is_file()))
    path.write_bytes(mutate(path.read_bytes(), random))
    judge(f"features: {form}", attempt(quietly), [str(folder)], usual)
