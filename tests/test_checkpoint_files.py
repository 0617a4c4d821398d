"""Archives of `torch.save`, and what unpacking, packing and copying may have made of them: read right, or refused by name."""

import zipfile

import pytest
import torch
from published_layouts import write_checkpoint

from modeling_visualbert.convert.array_pickles import load_chunk
from modeling_visualbert.convert.checkpoint_files import load_weights
from modeling_visualbert.convert.visualbert import convert_published_checkpoint

# Numbers that hardly shrink: compressed, they take as many bytes as the tensor, so that `torch` would map what is no tensor.
WEIGHTS = {"a": torch.randn(50, 40, generator=torch.Generator().manual_seed(0)), "b": torch.arange(5)}
DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def pack(
    source,
    target,
    kind=lambda name: STORED,
    name=lambda name: name,
    content=lambda name, data: data,
    more=(),
    zip64=False,
):
    """Write the members of an archive again. `kind`: how to compress one; `name`: None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = content(member.filename, old.read(member))
            if (renamed := name(member.filename)) is not None:
                info = zipfile.ZipInfo(renamed)
                info.compress_type = kind(member.filename)
                with new.open(info, "w", force_zip64=zip64) as file:
                    file.write(data)
        for added in more:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # about names that occur twice
                new.writestr(added, b"\0" * 8000)


def other_byte_order(name, data):
    if name.endswith("/byteorder"):
        return b"big"
    width = {"data/0": 4, "data/1": 8}.get(name.partition("/")[2])
    return data if width is None else b"".join(data[i : i + width][::-1] for i in range(0, len(data), width))


RIGHT = {
    "stored again": {},
    "zip64": {"zip64": True},
    "another folder": {"name": lambda name: f"other name/{name.partition('/')[2]}"},
    "no byte order": {"name": lambda name: None if name.endswith("byteorder") else name},
    "another byte order": {"content": other_byte_order},
    "longer than needed": {"content": lambda name, data: data + b"\0" * 64 if name.endswith("data/0") else data},
}
WRONG = {
    "deflated": ({"kind": lambda name: DEFLATED}, r"an archive that was compressed again"),
    "tensors deflated": (
        {"kind": lambda name: DEFLATED if "/data/" in name else STORED},
        r"an archive that was compressed again",
    ),
    "bzip2": ({"kind": lambda name: zipfile.ZIP_BZIP2}, "an archive that was compressed again"),
    "lzma": ({"kind": lambda name: zipfile.ZIP_LZMA}, "an archive that was compressed again"),
    "folder in a folder": ({"name": lambda name: f"x/{name}"}, "an archive without data.pkl"),
    "no folder": ({"name": lambda name: name.partition("/")[2]}, "an archive with data.pkl beside"),
    "no version": ({"name": lambda name: None if name.endswith("version") else name}, "an archive without version"),
    "no data.pkl": ({"name": lambda name: None if name.endswith(".pkl") else name}, "an archive without data.pkl"),
    "no tensor": ({"name": lambda name: None if name.endswith("data/0") else name}, "data/0: file not found"),
    "cut tensor": ({"content": lambda name, data: data[:100] if name.endswith("data/0") else data}, "storage"),
    "tensor twice": ({"more": ["weights/data/0"]}, "an archive with weights/data/0 twice"),
    "another file": ({"more": ["__MACOSX/._data"]}, "an archive with __MACOSX/._data beside the folder weights"),
    "another pickle": ({"more": ["other/data.pkl"]}, "an archive with other/data.pkl beside the folder weights"),
}


@pytest.fixture
def saved(tmp_path):
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("read", [load_weights, load_chunk])
@pytest.mark.parametrize("case", RIGHT)
def test_archives_that_were_packed_again_are_read_right(saved, tmp_path, read, case):
    pack(saved, tmp_path / "again.th", **RIGHT[case])
    found = read(tmp_path / "again.th")
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("read", [load_weights, load_chunk])
@pytest.mark.parametrize("case", WRONG)
def test_archives_that_are_none_of_torch_are_refused_by_name(saved, tmp_path, read, case):
    changes, message = WRONG[case]
    pack(saved, tmp_path / "again.th", **changes)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/again.th: [^\n]*{message}[^\n]*$"):
        read(tmp_path / "again.th")


@pytest.mark.parametrize("read", [load_weights, load_chunk])
@pytest.mark.parametrize(
    "content",
    [
        lambda data: b"#!/bin/sh\n" + data,
        lambda data: data[:-30],
        lambda data: data[: len(data) // 2],
        lambda data: b"PK\x03\x04",
        lambda data: b"",
    ],
    ids=["something-before", "no-directory", "half", "start", "empty"],
)
def test_damaged_archives_are_refused_by_name(saved, tmp_path, read, content):
    (tmp_path / "again.th").write_bytes(content(saved.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/again.th: [^\n]{{10,}}$"):
        read(tmp_path / "again.th")


def test_code_in_an_archive_is_refused_by_name(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.th")
    with pytest.raises(
        ValueError, match=r"model.th: .*an archive of TorchScript, which holds code; expected it as torch.save"
    ):
        load_weights(tmp_path / "model.th")


def test_a_published_folder_whose_weights_were_compressed_again_is_refused(tmp_path):
    folder = tmp_path / "published"
    write_checkpoint(folder, "vqa", 7)
    (weights,) = folder.glob("*.bin")
    pack(weights, tmp_path / "again", kind=lambda name: DEFLATED)
    (tmp_path / "again").replace(weights)
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: an archive that was compressed again; expected it as torch"
    ):
        convert_published_checkpoint(folder)
