"""One's own tables: every form in which people have images, questions and answers, and what is refused."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageColumn
from helpers import shared
from published_layouts import write_tokenizer
from table_files import write_photos
from table_files import write_table as write

from modeling_visualbert.cli import main
from modeling_visualbert.corpus.vocabulary import ASSETS
from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.tables import open_files
from modeling_visualbert.data.vqa_table import read_vqa_table
from modeling_visualbert.tasks.tables import cut_split
from modeling_visualbert.tasks.vqa import VqaArgs, load_vqa_data, majority_baselines, score_answers, vqa_task
from modeling_visualbert.training.loop import train

CPU = Accelerator(cpu=True)
QUESTIONS = ["what is red?", "what is on the table?", "how many stars are there?", "is it blue?"]
ANSWERS = ["star", "circle", "2", "no"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with four images of different colours."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def folder(tmp_path, photos, monkeypatch):
    """A folder for tables, with the images in `photos`; nothing is kept in the caches of this machine."""
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def rows(**columns):
    """Four records with an image, a question and an answer each; a column of this name is added or, if None, left out."""
    found = []
    for number in range(4):
        record = {"image": f"photos/{number}.png", "question": QUESTIONS[number], "answer": ANSWERS[number]}
        record |= {name: value[number] for name, value in columns.items() if value is not None}
        found.append({name: value for name, value in record.items() if columns.get(name, value) is not None})
    return found


def read(path, **options):
    (table,) = open_files({"train": str(path)}).values()
    return read_vqa_table(table, TableImages(), **options)


def refused(path, **options):
    """The error about a table: one line."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# ----------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "A.CSV"])
def test_every_kind_of_file_gives_the_same_rows(folder, name):
    separator = "\t" if name.endswith("tsv") else ","
    found = read(write(folder / name, rows(), separator) if name != "A.CSV" else upper(folder))
    assert found["question"][:] == QUESTIONS
    assert found["answers"][:] == [[answer] for answer in ANSWERS]
    assert found["image_id"][:] == [str(folder / "photos" / f"{number}.png") for number in range(4)]
    assert found["question_id"][:] == [0, 1, 2, 3] and set(found["answer_scores"]) == {None}


def upper(folder):
    write(folder / "a.csv", rows())
    return (folder / "a.csv").rename(folder / "A.CSV")


@pytest.mark.parametrize(
    "value, expected",
    [
        ("net", (["net"], None)),
        (["net", "net", "netting"], (["net", "net", "netting"], None)),
        ([{"answer": "net", "answer_id": 1}, {"answer": "no", "answer_id": 2}], (["net", "no"], None)),
        ({"ids": ["net", "no"], "weights": [1.0, 0.25]}, (["net", "no"], [1.0, 0.25])),
        (2, (["2"], None)),
        ([0.5, 2.5], (["0.5", "2.5"], None)),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.parquet"])
def test_every_form_of_answers(folder, name, value, expected):
    found = read(write(folder / name, rows(answer=None, answers=[value] * 4)))
    assert (found[2]["answers"], found[2]["answer_scores"]) == expected


def test_columns_of_records_as_earlier_versions_of_datasets_have_them(folder):
    found = read(
        write(folder / "a.parquet", rows(answer=None, answers=[{"answer": ["a", "b"], "answer_id": [1, 2]}] * 4))
    )
    assert found[0]["answers"] == ["a", "b"]


def test_the_text_of_a_csv_stays_what_it_is(folder):
    texts = ["007", "None", "NA", "1e5"]
    assert read(write(folder / "a.csv", rows(answer=texts)))["answers"][:] == [[text] for text in texts]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_byte_order_marks_of_spreadsheets(folder, separator):
    path = folder / "a.csv"
    write(path, rows(), separator)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(path)["question"][:] == QUESTIONS


def test_commas_in_the_first_line_of_a_tsv_separate_nothing(folder):
    path = folder / "a.tsv"
    path.write_text("image\tquestion\tanswer\tcaption, text\nphotos/0.png\twhat, and who?\tstar\tx\n")
    found = read(path)
    assert (found[0]["question"], found[0]["answers"]) == ("what, and who?", ["star"])


@pytest.mark.parametrize(
    "error, kind",
    [
        (UnicodeDecodeError("utf-8", b"wh\xe9t", 2, 3, "invalid continuation byte"), ValueError),
        (NotADirectoryError(20, "Not a directory"), OSError),
        (ConnectionResetError(104, "Connection reset by peer"), ConnectionError),
        (RuntimeError("Dataset scripts are no longer supported,\nbut found x.py"), ValueError),
    ],
)
def test_errors_of_datasets_are_one_line_whatever_their_class(folder, monkeypatch, error, kind):
    def fail(*_):
        raise error

    monkeypatch.setattr("modeling_visualbert.data.tables.load_dataset", fail)
    with pytest.raises(kind, match="^--dataset_name me/photos: ") as caught:
        load(folder, dataset_name="me/photos")
    assert "\n" not in str(caught.value)


def test_bytes_and_image_columns(folder, photos):
    content = [(photos / f"{number}.png").read_bytes() for number in (0, 1, 0, 3)]
    plain = Dataset.from_list(rows(image=content))
    plain.to_parquet(folder / "bytes.parquet")
    images = Dataset.from_list(rows(image=[{"bytes": data, "path": "x.png"} for data in content]))
    images.cast_column("image", ImageColumn()).to_parquet(folder / "images.parquet")
    for name in ("bytes.parquet", "images.parquet"):
        (table,) = open_files({"train": str(folder / name)}).values()
        found = TableImages()
        keys = read_vqa_table(table, found)["image_id"][:]
        assert keys[0] == keys[2] and len(found) == len(set(keys)) == 3  # an image that occurs twice is one
        assert [bytes(found[key]) for key in keys] == content


def test_ids_types_and_other_columns(folder):
    ids = ["a-1", "a-2", "b-1", "b-2"]
    kinds = ["what", "what", "how many", "is"]
    found = read(write(folder / "a.jsonl", rows(question_id=ids, question_type=kinds, split=["x"] * 4)))
    assert found["question_id"][:] == ids and found["question_type"][:] == kinds
    assert score_answers(dict(zip(ids, ["star", "star", "two", "yes"], strict=True)), found) == {
        "accuracy": 50.0,  # "two" is 2 as normalised
        "per_question_type": {"how many": 100.0, "is": 0.0, "what": 50.0},
        "per_answer_type": {},
        "num_examples": 4,
    }


def test_accuracy_with_weights_and_with_annotators(folder):
    weighted = [{"ids": ["star", "moon"], "weights": [1.0, 0.3]}] * 4
    found = read(write(folder / "w.json", rows(answer=None, label=weighted)))
    assert score_answers({0: "star", 1: "moon", 2: "Moon!", 3: "sun"}, found)["accuracy"] == pytest.approx(40.0)
    annotated = [["star"] * 3 + ["moon"] * 7] * 4
    found = read(write(folder / "a.json", rows(answer=None, answers=annotated)))
    official = score_answers({0: "star", 1: "moon", 2: "star", 3: "sun"}, found)["accuracy"]
    assert official == pytest.approx((90.0 + 100.0 + 90.0) / 4)


def test_a_test_file_may_lack_answers(folder):
    for name, records in (("a.csv", rows(answer=None)), ("b.csv", rows(answer=["", "", "", ""]))):
        found = read(write(folder / name, records), needs_labels=False)
        assert set(found["answers"]) == {None} and score_answers(dict.fromkeys(range(4), "x"), found) == {
            "num_examples": 4
        }


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, options, message",
    [
        (
            {"image": None, "img": ["x"] * 4},
            {},
            "no column 'image'; there are 'question', 'answer', 'img': pass --image_column img",
        ),
        (
            {"image": None, "Picture_img": ["x"] * 4},
            {},
            "no column 'image'; there are 'question', 'answer', 'Picture_img': pass --image_column Picture_img",
        ),
        (
            {},
            {"question_column": "text"},
            "no column 'text'; there are 'image', 'question', 'answer': pass --question_column",
        ),
        (
            {"answer": None, "reply": ["x"] * 4},
            {},
            "no column 'answers' or 'answer' or 'label'; there are 'image', 'question', 'reply'",
        ),
        ({"question": ["what?", "", "a?", "b?"]}, {}, "row 1: the question is ''; expected at least one word"),
        (
            {"question": ["what?", "who?", " ?, ", "b?"]},
            {},
            "row 2: the question is ' ?, '; expected at least one word",
        ),
        ({"answer": ["a", "b", "c", None]}, {}, "row 3: an answer is None; expected a text or a number"),
        ({"answer": ["a", " ", "c", "d"]}, {}, "row 1: an answer is ' '; expected a text or a number"),
        ({"answer": [[], ["a"], ["b"], ["c"]]}, {}, "row 0: there is no answer; expected at least one"),
        ({"answer": [{"ids": ["a", "b"], "weights": [1.0]}] * 4}, {}, "row 0: 2 answers with 1 weights"),
        ({"answer": [{"ids": ["a"], "weights": [1.5]}] * 4}, {}, "row 0: weights [1.5]; expected numbers in 0..1"),
        ({"id": [1, 2, 2, 3]}, {}, "row 2: question id 2 occurs twice; expected it only once"),
        (
            {"image": ["photos/0.png", None, "photos/1.png", "photos/2.png"]},
            {},
            "row 1: 'image' is empty; expected an image",
        ),
        ({"image": ["photos/0.png", "photos/9.png"] * 2}, {}, "row 1: 'image': no such image file"),
        ({"image": ["https://x.org/1.png"] * 4}, {}, "row 0: 'image': images are not downloaded (https://x.org/1.png)"),
        ({"image": [3] * 4}, {}, "row 0: 'image' is 3; expected an image, the bytes of one, or the path of a file"),
        ({"image": [["photos/0.png", "photos/1.png"]] * 4}, {}, "row 0: 'image' holds 2 images; expected one"),
    ],
)
def test_bad_rows_are_named(folder, changes, options, message):
    found = refused(write(folder / "a.json", records(changes)), **options)
    assert found.startswith(message)


def records(changes):
    """Four records in which a None in a column stays."""
    columns = {name: value for name, value in changes.items() if value is not None}
    left = {name for name, value in changes.items() if value is None}
    base = [{name: value for name, value in record.items() if name not in left} for record in rows()]
    return [record | {name: value[number] for name, value in columns.items()} for number, record in enumerate(base)]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"image,question,answer\n", "no rows in it; expected at least one"),
        ("a.csv", b"", "no rows in it; expected at least one"),
        (
            "a.csv",
            b"image,question,answer\nphotos/0.png,a,b,c\n",
            "row 0 (line 2) has 4 fields; expected 3, as the first line has",
        ),
        (
            "a.csv",
            b"image,question,answer\nphotos/0.png,wh\xe9re,b\n",
            "not UTF-8 text (invalid continuation byte near byte",
        ),
        ("a.csv", b"image,image,answer\nphotos/0.png,a,b\n", "column 'image' occurs twice"),
        ("a.json", b'[{"image": "x"', "cannot be read as json ("),
        ("a.jsonl", b"not json\n", "cannot be read as json ("),
        (
            "a.jsonl",
            b'{"image": "photos/0.png", "question": "wh\xff\xffd?", "answer": "b"}\n',
            "cannot be read as json (ArrowInvalid: Column 1: In chunk 0: Invalid: Invalid UTF8 sequence",
        ),
        (
            "a.json",
            b'{"questions": [{"image": "x"}]}',
            "no column 'image'; there are 'questions' (expected a list of records",
        ),
        ("a.json", b'[null, {"image": "photos/0.png"}]', "row 0 is null; expected a record"),
        ("a.jsonl", b'{"image": "photos/0.png"}\n null\n', "row 1 is null; expected a record"),
        ("a.parquet", b"PAR1 not", "cannot be read as parquet ("),
        ("a.xlsx", b"PK", "a .xlsx file; expected .csv, .tsv, .json, .jsonl, .parquet"),
    ],
)
def test_bad_files_are_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    assert refused(folder / name).startswith(message)


def test_null_inside_of_a_row_is_a_value(folder):
    rows = b'[{"image": "photos/0.png", "question": "what?", "answer": "a", "tags": [null, "x", null]}]'
    (folder / "a.json").write_bytes(b"\xef\xbb\xbf" + rows)
    assert open_files({"train": str(folder / "a.json")})["train"].rows[0]["tags"] == [None, "x", None]


def test_bad_rows_can_be_left_out(folder):
    changes = {
        "question": ["what?", "", "a?", "b?"],
        "image": ["photos/0.png", "photos/1.png", "photos/8.png", "photos/3.png"],
    }
    skipped = []
    path = write(folder / "a.json", records(changes))
    found = read(path, skipped=skipped)
    assert found["question_id"][:] == [0, 3]
    assert [line.removeprefix(f"{path}: ")[:6] for line in skipped] == ["row 2:", "row 1:"]
    write(folder / "a.json", records({"question": [""] * 4}))
    with pytest.raises(
        ValueError, match="no row is left of 4; the first was left out because of: .*row 0: the question is ''"
    ):
        read(path, skipped=[])


# ----------------------------------------------------------------------------------------------------------------- splits


def test_rows_about_the_same_images_stay_together():
    keys = [["a"], ["b"], ["a", "c"], ["d"], ["c"], ["e"], ["b"]]
    data = Dataset.from_dict({"number": list(range(7))})
    stays, cut = cut_split(data, keys, 0.5, 0, "x.csv")
    groups = [{0, 2, 4}, {1, 6}, {3}, {5}]
    assert sorted([*stays["number"], *cut["number"]]) == list(range(7))
    assert all(group <= set(cut["number"]) or not group & set(cut["number"]) for group in groups)
    assert cut_split(data, keys, 0.5, 0, "x.csv")[1]["number"][:] == cut["number"][:]
    assert any(cut_split(data, keys, 0.5, seed, "x.csv")[1]["number"][:] != cut["number"][:] for seed in range(1, 9))
    with pytest.raises(ValueError, match=r"x\.csv: all rows are about the same image"):
        cut_split(data.select(range(2)), [["a"], ["a"]], 0.1, 0, "x.csv")


def load(tmp_path, **fields):
    return load_vqa_data(VqaArgs(str(tmp_path / "run"), **fields)).splits


def test_splits_of_files(folder):
    train, dev = write(folder / "a.csv", rows()), write(folder / "b.csv", rows()[:3])
    assert {
        role: len(split) for role, split in load(folder, train_file=train, validation_file=dev, test_file=dev).items()
    } == {
        "train": 4,
        "dev": 3,
        "test": 3,
    }
    cut = load(folder, train_file=train, test_file=dev)
    assert {role: len(split) for role, split in cut.items()} == {"train": 3, "dev": 1, "test": 3}
    assert list(cut) == ["train", "dev", "test"]
    limited = load(folder, train_file=train, validation_file=dev, max_train_samples=2, max_eval_samples=1)
    assert [len(limited["train"]), len(limited["dev"])] == [2, 1]


def test_splits_of_a_data_set(folder, photos):
    features = Features({"image": ImageColumn(), "question": Value("string"), "answers": List(Value("string"))})
    data = Dataset.from_list(
        [
            {"image": str(photos / f"{number}.png"), "question": QUESTIONS[number], "answers": [ANSWERS[number]]}
            for number in range(4)
        ],
        features=features,
    )
    name = str(folder / "saved")
    DatasetDict({"train": data, "val": data.select([0]), "held": data.select([1, 2])}).save_to_disk(name)
    found = load(folder, dataset_name=name, test_split="held")
    assert {role: len(split) for role, split in found.items()} == {"train": 4, "dev": 1, "test": 2}
    with pytest.raises(ValueError, match=r"saved: no split 'none'; there are 'train', 'val', 'held'"):
        load(folder, dataset_name=name, dev_split="none")
    data.save_to_disk(str(folder / "one"))
    assert {role: len(split) for role, split in load(folder, dataset_name=str(folder / "one")).items()} == {
        "train": 3,
        "dev": 1,
    }


def test_a_folder_of_images_with_metadata(folder):
    shutil.copytree(folder / "photos", folder / "data" / "train")
    records = [{"file_name": f"{n}.png", "question": QUESTIONS[n], "answer": ANSWERS[n]} for n in range(4)]
    write(folder / "data" / "train" / "metadata.jsonl", records)
    found = load(folder, dataset_name=str(folder / "data"))
    assert {role: len(split) for role, split in found.items()} == {"train": 3, "dev": 1}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"train_file": "a.csv", "data_dir": "d"}, "--data_dir with --train_file; expected one of them"),
        ({"train_file": "a.csv", "dataset_name": "d"}, "--dataset_name with --train_file; expected one of them"),
        ({"dataset_config_name": "c"}, "--dataset_config_name without --dataset_name"),
        ({"train_file": "none.csv"}, "none.csv: no such file"),
        ({"test_file": "a.csv"}, "no split to train on; expected --train_file"),
        ({"dataset_name": "./none"}, "--dataset_name ./none: no such folder"),
        ({"train_file": "a.csv", "train_val_split": 1.0}, "--train_val_split 1.0; expected a number in (0, 1)"),
        ({"train_file": "a.csv", "max_train_samples": 0}, "--max_train_samples 0; expected at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(folder, monkeypatch, fields, message):
    monkeypatch.chdir(folder)
    write(folder / "a.csv", rows())
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(folder, **fields)
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def tokenizer(folder):
    words = sorted({word.strip("?") for question in QUESTIONS for word in question.split()})
    return str(write_tokenizer(folder / "tokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *words]))


def test_a_model_is_trained_on_a_table_and_answers(folder, tokenizer, capsys):
    """Four rows with the default limits: the answers are learned by heart, from pixels."""
    table = write(folder / "a.csv", rows())
    fields = {
        "train_file": table,
        "validation_file": table,
        "tokenizer": tokenizer,
        "grid_backbone": "small",
        "grid_size": 2,
    }
    fields |= {
        "epochs": 60.0,
        "evals_per_epoch": 0.1,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "dropout": 0.0,
        "cpu": True,
    }
    args = VqaArgs(str(folder / "run"), **SIZES, **fields)
    task = vqa_task(args, CPU)
    assert task.processor.answers == ["<unk>", *sorted(ANSWERS)]
    metrics = train(task, args, CPU)
    assert metrics["splits"]["dev"]["accuracy"] == 100.0
    assert majority_baselines(task.splits["train"], task.splits["dev"])["majority answer"]["accuracy"] == 25.0
    best = str(folder / "run" / "best")
    capsys.readouterr()
    assert main(["ask", "--model", best, str(folder / "photos" / "2.png"), QUESTIONS[2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answers"][0]["answer"] == "2"
    output = str(folder / "evaluated")
    assert main(["evaluate", "--model", best, "--test_file", table, "--output_dir", output, "--cpu"]) == 0
    assert json.loads((folder / "evaluated" / "metrics.json").read_text())["splits"]["test"]["accuracy"] == 100.0
    assert not list((folder / "evaluated").glob("results_*"))


def test_few_steps_are_told(folder, tokenizer, caplog):
    fields = {
        "train_file": write(folder / "a.csv", rows()),
        "tokenizer": tokenizer,
        "grid_backbone": "small",
        "cpu": True,
    }
    args = VqaArgs(str(folder / "run"), **SIZES, **fields, epochs=2.0)
    train(vqa_task(args, CPU), args, CPU)
    assert (
        "3 examples in 2 epochs are 1 steps of 64 examples, too few to learn much: a smaller --batch_size"
        in caplog.text
    )


def test_images_in_the_table_are_read_in_every_step_or_stored(folder, photos, tokenizer):
    content = [(photos / f"{number}.png").read_bytes() for number in range(4)]
    Dataset.from_list(rows(image=content)).to_parquet(folder / "a.parquet")
    fields = {"train_file": str(folder / "a.parquet"), "tokenizer": tokenizer, "cpu": True, "seed": 3}
    grid = VqaArgs(str(folder / "run"), **SIZES, **fields, grid_backbone="small", grid_size=2)
    task = vqa_task(grid, CPU)
    pixels = task.collate([task.splits["train"][number] for number in range(3)])
    assert pixels["pixel_values"].shape[0] == 3
    encoder = ASSETS / "shapes_detector"
    stored = vqa_task(VqaArgs(str(folder / "run"), **SIZES, **fields, region_encoder=str(encoder)), CPU)
    assert stored.collate([stored.splits["train"][0]])["visual_embeds"].dtype == torch.float16


def test_regions_are_found_in_a_store_by_the_names_of_the_files(folder, tokenizer):
    source, store = str(folder / "photos"), str(folder / "store")
    encoder = str(ASSETS / "shapes_detector")
    assert main(["extract", source, store, "--region_encoder", encoder]) == 0
    fields = {"train_file": write(folder / "a.csv", rows()), "features_dir": store, "tokenizer": tokenizer, "cpu": True}
    task = vqa_task(VqaArgs(str(folder / "run"), **SIZES, **fields), CPU)
    batch = task.collate([task.splits["train"][0]])
    assert batch["visual_embeds"].shape[0] == 1
    shutil.copytree(folder / "photos", folder / "more")
    twice = rows(image=["photos/0.png", "more/0.png", "photos/1.png", "photos/2.png"])
    fields["train_file"] = write(folder / "a.csv", twice)
    with pytest.raises(ValueError, match=r"store: 2 images are called '0'; expected different names"):
        vqa_task(VqaArgs(str(folder / "run"), **SIZES, **fields), CPU)


def test_own_data_needs_a_tokenizer_and_a_region_encoder(folder, tokenizer):
    table = write(folder / "a.csv", rows())
    with pytest.raises(
        ValueError, match=r"own data without --init_from and --tokenizer; expected a VisualBERT or BERT"
    ):
        vqa_task(VqaArgs(str(folder / "run"), train_file=table, grid_backbone="small", cpu=True), CPU)
    with pytest.raises(ValueError, match="these images are not the embedded corpus; pass --region_encoder"):
        vqa_task(VqaArgs(str(folder / "run"), train_file=table, tokenizer=tokenizer, cpu=True), CPU)


def test_real_questions_about_real_photos():
    folder = shared("real/daquar")
    (table,) = open_files({"train": str(folder / "questions.csv")}, str(folder / "photos")).values()
    images = TableImages()
    found = read_vqa_table(table, images)
    assert (len(found), len(images)) == (9974, 1442)
    assert found[0]["question"] == "what is the object on the shelves" and found[0]["answers"] == ["cup"]


def test_a_damaged_table_of_any_kind_is_named(folder):
    """What the readers of `datasets` and Arrow raise has other types, and no name of a file."""
    from datasets import Dataset as Rows

    Rows.from_list(rows()).to_parquet(folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    place = content.rindex(b"PAR1") - 60
    (folder / "a.parquet").write_bytes(content[:place] + b"\xff" * 50 + content[place + 50 :])
    (folder / "a.csv").write_bytes(b"PK\x03\x04image,question,answer\n0.png,a,b\n")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(ValueError, match=rf"^{folder / name}: cannot be read as \w+ \(.*\)$"):
            read(folder / name)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"])
def test_a_cell_that_is_no_possible_path_names_its_row(folder, path):
    write(folder / "a.jsonl", rows(image=[path] * 4))
    with pytest.raises(
        FileNotFoundError, match=r"a.jsonl: row 0: 'image': no such image file .{,220}; --images_dir says"
    ):
        read(folder / "a.jsonl")
