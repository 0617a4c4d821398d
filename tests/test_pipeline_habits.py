"""Pipelines called as users of `transformers` call theirs: the forms of its own tests for "visual-question-answering", data sets,
workers, parts given one by one, precision and devices, saving and pushing."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from clean_process import hub_environment, run_clean
from datasets import Dataset, Image
from hub_server import serve, talk_to
from pipeline_results import close, looks
from processes import environment
from tiny_checkpoints import PIPELINE_TASKS, save_tiny_checkpoint, tiny_checkpoint
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_visualbert import VisualBertProcessor
from modeling_visualbert.checkpoints import load_model
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code.tasks_visualbert import TASKS

QUESTION, OTHER = "Is it red?", "How many stars are there?"
TEXTS = {
    "vqa": {"question": QUESTION},
    "nlvr2": {"statement": "Both images show a star."},
    "flickr30k": {"sentence": "the star is above the red square", "phrases": ["the star"]},
    "pretraining": {"text": "a [MASK] star"},
    "vcr": {"question": "What color is it?", "choices": ["it is red", "it is blue"]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved checkpoint of each task."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for task in PIPELINE_TASKS:
        save_tiny_checkpoint(task, folder / task)
    return folder


@pytest.fixture(scope="module")
def pipes(folders):
    return {task: pipeline(name, model=str(folders / task)) for task, name in PIPELINE_TASKS.items()}


@pytest.fixture(scope="module")
def ask(pipes):
    return pipes["vqa"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        render(sample_scene(number, f"habits/{number}")).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(3)]


@pytest.fixture(scope="module")
def rows(images):
    """A data set with more columns than the pipeline reads."""
    columns = {"image": images, "question": [QUESTION, OTHER, QUESTION], "answer": ["yes", "2", "no"], "id": [7, 8, 9]}
    return Dataset.from_dict(columns).cast_column("image", Image())


@pytest.fixture(scope="module")
def expected(ask, images):
    """Of each row of the data set."""
    pairs = zip(images, [QUESTION, OTHER, QUESTION], strict=True)
    return [ask(image=image, question=question) for image, question in pairs]


def image_of(task, images, number=0):
    """The image, or for visual reasoning the pair of images, that a text is about."""
    return (images[number], images[number - 1]) if task == "nlvr2" else images[number]


def test_every_task_takes_a_list_of_images_with_one_text(pipes, images):
    for task, pipe in pipes.items():
        many = [image_of(task, images, number) for number in range(3)]
        one_by_one = [pipe(image, **TEXTS[task]) for image in many]
        assert one_by_one[0] != one_by_one[1]
        assert pipe(many, **TEXTS[task]) == close(one_by_one)
        assert pipe(**{pipe.image_key: many}, **TEXTS[task], batch_size=2) == close(one_by_one)


def test_many_images_with_many_questions(ask, images):
    """The answers to the first question about all images, then those to the second, as `transformers` had it."""
    expected = [ask(image=image, question=question) for question in (QUESTION, OTHER) for image in images]
    calls, handle = looks(ask)
    with handle:
        assert ask(image=images, question=[QUESTION, OTHER]) == close(expected)
        assert sum(calls) == 3


def test_rows_of_a_data_set(ask, rows, expected):
    """Its other columns are left alone."""
    assert ask(rows) == close(expected)
    assert ask(rows, batch_size=2) == close(expected)
    assert ask(rows[1]) == close(expected[1])
    assert ask(list(rows)) == close(expected)


def test_columns_of_a_data_set(ask, rows, images):
    expected = [ask(image=image, question=QUESTION) for image in images]
    assert ask(image=KeyDataset(rows, "image"), question=QUESTION) == close(expected)
    assert ask(image=rows["image"], question=QUESTION) == close(expected)
    assert ask(image=(image for image in images), question=QUESTION) == close(expected)


def test_images_that_a_data_set_has_not_decoded(pipes, ask, rows, images, expected):
    assert ask(rows.cast_column("image", Image(decode=False))) == close(expected)
    with open(images[0], "rb") as file:
        content = file.read()
    for task in ("vqa", "vcr", "flickr30k"):
        assert pipes[task]({"bytes": content, "path": None}, **TEXTS[task]) == close(
            pipes[task](images[0], **TEXTS[task])
        )


def test_generators_and_streams_are_read_as_results_are(ask, images, rows, expected):
    read = []

    def generate():
        for number in range(1_000_000):
            read.append(number)
            yield {"image": images[0], "question": QUESTION}

    results = ask(generate(), batch_size=2)
    assert read == []
    assert next(results) == close(expected[0])
    assert read == [0, 1]
    assert list(ask(rows.to_iterable_dataset())) == close(expected)


class Rows(torch.utils.data.Dataset):
    """A data set of PyTorch, which has no `__iter__`, and no end."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number % len(self.rows)]


def test_data_sets_of_pytorch(ask, rows, expected):
    results = ask(Rows(rows))
    assert next(results) == close(expected[0])
    assert list(results) == close(expected[1:])


def test_workers_prepare_images(pipes, ask, rows, expected, images):
    assert ask(rows, batch_size=2, num_workers=2) == close(expected)
    assert list(ask(Rows(rows), num_workers=1)) == close(expected)
    item = {"image": images[0], **TEXTS["flickr30k"]}
    ground = pipes["flickr30k"]
    assert ground([item, item], num_workers=1) == close([ground(item)] * 2)
    with pytest.raises(FileNotFoundError) as failure:
        ask([{"image": images[0], "question": QUESTION}, {"image": "gone.png", "question": QUESTION}], num_workers=1)
    assert str(failure.value) == "row 1: gone.png: no such image file"


def test_workers_of_any_kind_can_be_started(pipes, images):
    """Those that are no forks get the pipeline as bytes."""
    for task, pipe in pipes.items():
        item = {pipe.image_key: image_of(task, images), **TEXTS[task]}
        expected = pipe(item)  # after a call, models hold functions that cannot be sent
        prepare = pickle.loads(pickle.dumps(pipe._without_model()._prepare_rows))  # noqa: S301
        found = pipe.postprocess(pipe.forward(prepare([(0, item)], given={}, options={})))
        assert found == close([expected])
        assert pipe.postprocess(pipe.forward(pipe.preprocess(item))) == close([expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.rename_column("question", "text"),
            "row 0: no question; expected .*, found 'image', 'text', 'answer'",
        ),
        (lambda rows: rows.remove_columns("image"), "row 0: no image; expected .*, found 'question', 'answer', 'id'"),
        (lambda rows: [rows[0], {**rows[1], "question": " "}], "row 1: question 0 is empty"),
        (lambda rows: [rows[0], {**rows[1], "question": None}], "row 1: question is NoneType"),
        (lambda rows: [rows[0], rows[0], {**rows[1], "image": "x.png"}], "row 2: x.png: no such image file"),
        (lambda rows: [rows[0], "x.png"], "row 1: got str; expected arguments or dicts"),
    ],
    ids=["renamed", "no-image", "empty", "none", "no-file", "no-dict"],
)
def test_a_bad_row_is_named(ask, rows, change, message):
    for batch_size in (1, 3):
        with pytest.raises((ValueError, TypeError, OSError), match=message) as failure:
            ask(change(rows), batch_size=batch_size)
        assert len(str(failure.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ask, rows, images: ask(question=QUESTION), "no image; expected .*, found 'question'"),
        (lambda ask, rows, images: ask(), "no question; expected"),
        (lambda ask, rows, images: ask(images[0]), "no question; expected"),
        (lambda ask, rows, images: ask((images[0], QUESTION)), "row 0: got str; expected"),
        (lambda ask, rows, images: ask(image=images, question=rows["question"]), "question is Column; expected .* the data set"),
        (lambda ask, rows, images: ask(image=[images[0], "x.png"], question="a"), "image 1: x.png: no such image file"),
        (lambda ask, rows, images: ask(images[0], question=[]), "no texts; expected at least one question"),
        (lambda ask, rows, images: ask(images[0], QUESTION, topk=1), "unexpected keyword argument 'topk'"),
        (lambda ask, rows, images: ask(images, QUESTION, batch_size=0), "batch_size 0, num_workers 0; expected at least 1"),
        (lambda ask, rows, images: ask(images, QUESTION, num_workers=-1), "num_workers -1; expected .* at least 0"),
    ],
)  # fmt: skip
def test_wrong_calls_end_in_one_line(ask, rows, images, call, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message) as failure:
        call(ask, rows, images)
    assert len(str(failure.value).splitlines()) == 1


def test_objects_belong_to_one_image(pipes, images):
    with pytest.raises(ValueError, match="objects of many images; expected a dict for each image"):
        pipes["vcr"](images, **TEXTS["vcr"], objects=["star"], boxes=[[1, 1, 9, 9]])


def test_options_of_the_processor_are_passed_on(ask, images):
    long = "is it red " * 200
    with pytest.raises(ValueError, match="question 0"):
        ask(images[0], long)
    assert ask(images[0], QUESTION, padding="longest") == close(ask(images[0], QUESTION))


def test_the_old_name_of_the_task(folders, images, expected):
    assert pipeline("vqa", model=str(folders / "vqa"))(images[0], QUESTION) == close(expected[0])


def other_tokenizer():
    """One that fits, but numbers two words the other way round."""
    tokenizer = corpus_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    return tokenizer


@pytest.mark.parametrize("never_saved", [False, True])
def test_parts_may_be_given_one_by_one(folders, images, expected, never_saved):
    folder = str(folders / "vqa")
    model = tiny_checkpoint("vqa")[0] if never_saved else load_model(folder)
    tokenizer, image_processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    for parts in (
        {"processor": processor},
        {"processor": folder},
        {"processor": processor, "tokenizer": tokenizer, "image_processor": image_processor},
        {"tokenizer": tokenizer, "image_processor": image_processor},
        {"tokenizer": folder, "image_processor": folder},
        {"tokenizer": tokenizer, "feature_extractor": image_processor},
    ):
        given = pipeline("visual-question-answering", model=model, **parts)
        assert given(images[0], QUESTION) == close(expected[0])
    for parts in ({}, {"tokenizer": tokenizer}, {"image_processor": image_processor}):
        if never_saved:
            with pytest.raises(ValueError, match="no processor is given or beside the model; expected `processor`, or"):
                pipeline("visual-question-answering", model=model, **parts)
        else:
            given = pipeline("visual-question-answering", model=model, **parts)
            assert given(images[0], QUESTION) == close(expected[0])


def test_parts_that_are_given_are_used(folders, images, ask):
    """Not those of the processor beside the model, which stays as it is when it is given too."""
    folder, tokenizer = str(folders / "vqa"), other_tokenizer()
    processor = AutoProcessor.from_pretrained(folder)
    for parts in ({}, {"processor": processor}):
        given = pipeline("visual-question-answering", model=folder, tokenizer=tokenizer, **parts)
        assert given(images[0], "Is it blue?") == close(ask(images[0], "Is it red?"))
    assert processor.tokenizer is not tokenizer
    smaller = AutoImageProcessor.from_pretrained(folder, size={"height": 96, "width": 128})
    given = pipeline("visual-question-answering", model=folder, image_processor=smaller)
    calls = []
    handle = given.model.visual_bert.region_encoder.detector.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["pixel_values"].shape[-2:]), with_kwargs=True
    )
    with handle:
        given(images[0], QUESTION)
    assert calls == [(96, 128)]


def test_the_answers_are_the_labels_where_the_processor_has_none(folders, images, expected):
    processor = AutoProcessor.from_pretrained(folders / "vqa")
    bare = VisualBertProcessor(processor.image_processor, processor.tokenizer)
    given = pipeline("visual-question-answering", model=str(folders / "vqa"), processor=bare)
    assert given(images[0], QUESTION) == close(expected[0])
    assert bare.answers is None


def test_only_the_processor_says_how_tags_are_aligned(folders):
    model, processor = tiny_checkpoint("vcr")
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    with pytest.raises(ValueError, match="no processor is given or beside the model; expected `processor`$"):
        pipeline("visual-multiple-choice", model=model, **parts)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"dtype": "float16"}, {"dtype": "auto"}], ids=str)
def test_precision(folders, pipes, images, options):
    for task, name in PIPELINE_TASKS.items():
        pipe = pipeline(name, model=str(folders / task), **options)
        wanted = {"auto": torch.float32, "float16": torch.float16}.get(options["dtype"], options["dtype"])
        assert {parameter.dtype for parameter in pipe.model.parameters()} == {wanted}
        image = image_of(task, images)
        found, full = json.dumps(pipe(image, **TEXTS[task])), json.dumps(pipes[task](image, **TEXTS[task]))
        assert len(found) > 20 and "NaN" not in found
        if wanted == torch.float32:
            assert found == full


@pytest.mark.parametrize(
    "options", [{"device_map": "auto"}, {"device_map": "cpu"}, {"device": -1}, {"device": "cpu"}], ids=str
)
def test_devices(folders, images, expected, options):
    given = pipeline("visual-question-answering", model=str(folders / "vqa"), **options)
    assert given(images[0], QUESTION) == close(expected[0])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", [0, "cuda", "cuda:1", torch.device("mps")], ids=str)
def test_a_device_that_is_not_here_is_refused(folders, device):
    with pytest.raises(ValueError, match=r"^device .*: PyTorch does not find it on this machine; expected 'cpu'$"):
        pipeline("visual-question-answering", model=str(folders / "vqa"), device=device)
    with pytest.raises(ValueError, match="device 'gpu'; expected 'cpu', 'cuda', a number or a torch.device"):
        pipeline("visual-question-answering", model=str(folders / "vqa"), device="gpu")


ANSWERS_WITHOUT_THE_PACKAGE = """
from transformers import pipeline
found = {}
for task, name in VARIABLES["tasks"].items():
    pipe = pipeline(name, model=VARIABLES["where"] + task, trust_remote_code=True)
    found[task] = pipe(VARIABLES["images"][task], **VARIABLES["texts"][task])
print(json.dumps(found))
"""


def answers_without_the_package(pipes, images, where, home, hub=None):
    values = {"tasks": {task: PIPELINE_TASKS[task] for task in pipes}, "where": where, "texts": TEXTS}
    values["images"] = {task: image_of(task, images) for task in pipes}
    return json.loads(run_clean(ANSWERS_WITHOUT_THE_PACKAGE, home, hub, **values).splitlines()[-1])


@pytest.mark.parametrize("task", PIPELINE_TASKS)
def test_a_saved_pipeline_answers(pipes, images, tmp_path, task):
    """All that is needed is in the folder, and the model is as it was."""
    pipe, image = pipes[task], image_of(task, images)
    before = pipe.model.config.to_dict()
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.model.config.to_dict() == before
    again = pipeline(PIPELINE_TASKS[task], model=str(tmp_path / "saved"))
    assert again(image, **TEXTS[task]) == close(pipe(image, **TEXTS[task]))
    assert again.model.config.id2label == pipe.model.config.id2label
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file; expected a folder"):
        pipe.save_pretrained(tmp_path / "file")


def test_a_model_that_was_given_a_region_encoder_is_saved_with_it(ask, images, expected, tmp_path):
    model, processor = tiny_checkpoint("vqa")
    fields = {**model.config.to_dict(), "region_encoder_config": None}
    blind = type(model)(type(model.config)(**fields)).eval()
    blind.load_state_dict(model.state_dict(), strict=False)
    blind.attach_region_encoder(model.visual_bert.region_encoder)
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    pipeline("visual-question-answering", model=blind, **parts).save_pretrained(tmp_path)
    assert pipeline("visual-question-answering", model=str(tmp_path))(images[0], QUESTION) == close(expected[0])


@pytest.mark.slow
def test_without_the_package_a_saved_pipeline_answers_too(ask, images, expected, tmp_path):
    ask.save_pretrained(tmp_path / "vqa")
    found = answers_without_the_package({"vqa": ask}, images, f"{tmp_path}/", tmp_path / "home")
    assert found["vqa"] == close(expected[0])


PUSH = """
import sys, modeling_visualbert
from transformers import pipeline
for task, name in zip(sys.argv[2::2], sys.argv[3::2]):
    pipeline(name, model=f"{sys.argv[1]}/{task}").push_to_hub(f"tester/{task}")
"""


@pytest.mark.slow
def test_pushed_pipelines_answer_with_and_without_the_package(folders, pipes, images, tmp_path, monkeypatch):
    expected = {task: pipe(image_of(task, images), **TEXTS[task]) for task, pipe in pipes.items()}
    with serve() as hub:
        names = [part for pair in PIPELINE_TASKS.items() for part in pair]
        variables = environment(HF_HOME=str(tmp_path / "pushing"), **hub_environment(hub))
        subprocess.run([sys.executable, "-c", PUSH, str(folders), *names], env=variables, check=True, timeout=300)
        for task in PIPELINE_TASKS:
            needed = {"processor_config.json", "tokenizer.json", "pipeline_visualbert.py", "model.safetensors"}
            assert needed <= hub.files(f"tester/{task}").keys()
        assert answers_without_the_package(pipes, images, "tester/", tmp_path / "home", hub) == close(expected)
        talk_to(hub, monkeypatch)
        again = pipeline("visual-question-answering", model="tester/vqa")
        assert again(images[0], QUESTION) == close(expected["vqa"])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_pipeline_without_a_model_says_which_could_be_meant(task):
    published = {"vqa": "uclanlp/visualbert-vqa", "nlvr2": "uclanlp/visualbert-nlvr2", "vcr": "uclanlp/visualbert-vcr"}
    with pytest.raises(ValueError) as refused:
        pipeline(task.pipeline)
    message = str(refused.value)
    assert message.startswith(
        f"pipeline('{task.pipeline}') without a model; expected model=..., a folder such as runs/"
    )
    assert published.get(task.name, "") in message
