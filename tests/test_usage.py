"""What users do with a saved model: Auto classes, pipeline, command line; and rules that keep the package safe to use."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_cases import GOLDEN
from PIL import Image
from published_layouts import VOCABULARY, write_tokenizer
from tiny_checkpoints import ANSWERS, tiny_checkpoint
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    pipeline,
)

import modeling_visualbert
from modeling_visualbert import (
    QueryRegionEncoder,
    QueryRegionEncoderConfig,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
    VisualBertImageProcessor,
    VisualBertModel,
    VisualBertProcessor,
    VisualBertVQAPipeline,
    ask,
)
from modeling_visualbert.cli import main
from modeling_visualbert.cli import regions as regions_commands
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.features.convert import READERS
from modeling_visualbert.features.format import DTYPES
from modeling_visualbert.features.images import IMAGE_IDS
from modeling_visualbert.tasks.common import DETECTOR

PACKAGE = Path(modeling_visualbert.__file__).parent
QUESTIONS = ["Is there a red circle?", "How many things are there in the picture?", "What color is the big star?"]


@pytest.fixture(scope="module")
def checkpoint():
    """Model and processor with the shipped region encoder."""
    return tiny_checkpoint("vqa", num_hidden_layers=2)


@pytest.fixture(scope="module")
def model(checkpoint):
    return checkpoint[0]


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    """Folder with model and processor, as training leaves it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    for part in checkpoint:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of three scenes."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        render(sample_scene(i, f"usage/{i}")).save(path)
    return paths


@pytest.fixture
def answering(saved):
    return pipeline("visual-question-answering", model=str(saved))


@pytest.fixture
def detections(answering):
    """Batch sizes of the detector's calls."""
    calls = []
    detector = answering.model.visual_bert.region_encoder.detector
    detector.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return calls


def flat(answers):
    """Answers of any nesting as one list of (answer, rounded score)."""
    if isinstance(answers, dict):
        return [(answers["answer"], pytest.approx(answers["score"], abs=1e-5))]
    return [pair for item in answers for pair in flat(item)]


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        (AutoConfig, VisualBertConfig),
        (AutoModel, VisualBertModel),
        (AutoModelForVisualQuestionAnswering, VisualBertForQuestionAnswering),
        (AutoProcessor, VisualBertProcessor),
        (AutoImageProcessor, VisualBertImageProcessor),
        (AutoTokenizer, BertTokenizer),
    ],
)
def test_auto_classes_resolve_to_ours(saved, auto, expected):
    assert type(auto.from_pretrained(saved)) is expected


def test_the_shipped_region_encoder_opens_by_auto_classes():
    assert type(AutoConfig.from_pretrained(DETECTOR)) is QueryRegionEncoderConfig
    assert type(AutoModel.from_pretrained(DETECTOR)) is QueryRegionEncoder
    assert type(AutoImageProcessor.from_pretrained(DETECTOR)) is VisualBertImageProcessor


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForVisualQuestionAnswering])
def test_all_weights_come_back(model, saved, auto):
    loaded = auto.from_pretrained(saved)
    expected = (model.visual_bert if auto is AutoModel else model).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_pipeline_is_ours(answering):
    assert type(answering) is VisualBertVQAPipeline
    assert type(answering.model) is VisualBertForQuestionAnswering
    assert type(answering.processor) is VisualBertProcessor


def test_one_question(answering, images, detections):
    answers = answering(image=str(images[0]), question=QUESTIONS[0])
    assert {answer["answer"] for answer in answers} == set(ANSWERS) - {"<unk>"}
    scores = [answer["score"] for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0)
    assert answering(image=Image.open(images[0]), question=QUESTIONS[0], top_k=2) == answers[:2]
    assert detections == [1, 1]


def test_many_questions_detect_once(answering, images, detections):
    together = answering(image=images[0], question=QUESTIONS, top_k=3)
    assert detections == [1]
    alone = [answering(image=images[0], question=question, top_k=3) for question in QUESTIONS]
    assert [len(answers) for answers in together] == [3, 3, 3]
    assert flat(together) == flat(alone)
    assert len({answers[0]["score"] for answers in alone}) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_of_dicts_in_batches(answering, images, detections, batch_size):
    items = [{"image": str(path), "question": asked} for path, asked in zip(images, QUESTIONS, strict=True)]
    answers = answering(items, top_k=2, batch_size=batch_size)
    assert detections == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[batch_size]
    alone = [answering(item, top_k=2) for item in items]
    assert [len(item) for item in answers] == [2, 2, 2]
    assert flat(answers) == flat(alone)
    assert flat(list(answering((item for item in items), top_k=2))) == flat(alone)


def test_a_dict_may_hold_many_questions(answering, images):
    items = [{"image": str(images[0]), "question": QUESTIONS}, {"image": str(images[1]), "question": QUESTIONS[:1]}]
    first, second = answering(items, top_k=1)
    assert flat(first) == flat(answering(items[0], top_k=1))
    assert flat(second) == flat(answering(items[1], top_k=1))
    assert (len(first), len(second)) == (3, 1)


def test_many_questions_of_many_images_in_batches(answering, images):
    items = [{"image": str(path), "question": QUESTIONS[:2]} for path in images[:2]]
    assert flat(answering(items, top_k=1, batch_size=2)) == flat(answering(items, top_k=1))


def test_images_of_different_sizes_in_batches(answering, images, tmp_path):
    answering.processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 96}
    Image.open(images[0]).resize((90, 90)).save(tmp_path / "square.png")
    items = [{"image": str(path), "question": QUESTIONS[0]} for path in (images[0], tmp_path / "square.png")]
    assert flat(answering(items, batch_size=2)) == flat(answering(items))


def test_precomputed_regions_give_the_answers_of_the_pixels(answering, model, saved, images, detections):
    processor = AutoProcessor.from_pretrained(saved)
    from_pixels = answering(image=images[0], question=QUESTIONS)
    found = model.visual_bert.get_image_features(processor(images=[images[0]])["pixel_values"])
    (regions,) = processor.post_process_regions(found, [(128, 160)])
    assert len(regions["visual_embeds"]) > 0
    detections.clear()
    assert flat(answering(image=regions, question=QUESTIONS)) == flat(from_pixels)
    assert flat(answering({"image": regions, "question": QUESTIONS[0]})) == flat(from_pixels[0])
    assert detections == []


def test_regions_of_unequal_number_in_batches(answering, model):
    generator = torch.Generator().manual_seed(0)
    dim = model.config.visual_embedding_dim
    images = [{"visual_embeds": torch.randn(count, dim, generator=generator)} for count in (1, 4, 2)]
    items = [{"image": image, "question": asked} for image, asked in zip(images, QUESTIONS, strict=True)]
    assert flat(answering(items, batch_size=3)) == flat(answering(items))


def test_ask_gives_answers_and_the_regions_in_pixels(answering, model, saved, images, detections):
    processor = AutoProcessor.from_pretrained(saved)
    answers, regions = ask(answering.model, processor, images[1], QUESTIONS, top_k=2)
    assert detections == [1]
    assert flat(answers) == flat(answering(image=images[1], question=QUESTIONS, top_k=2))
    assert regions["image_size"].tolist() == [128, 160]
    assert regions["boxes"][:, 2].max() > 2.0  # pixels, not units of the image
    assert regions["boxes"].shape == (len(regions["visual_embeds"]), 4)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"question": ""}, ValueError, "question 0 is empty"),
        ({"question": []}, ValueError, "no texts; expected at least one question"),
        ({"question": ["a", None]}, TypeError, "question 1 is NoneType; expected a string"),
        ({"question": "a", "topk": 3}, TypeError, "unexpected keyword argument 'topk'"),
        ({"question": "a", "image": None}, ValueError, "no image; expected .*'image' and 'question', found 'question'"),
        ({"question": "a", "image": "nowhere.png"}, FileNotFoundError, "nowhere.png: no such image file"),
        (
            {"question": "a", "image": {"visual_embeds": torch.ones(2, 3)}},
            ValueError,
            "features have dim 3, this model",
        ),
        (
            {"image": {"image": "nowhere.png"}},
            ValueError,
            "no question; expected arguments or dicts with the keys 'image' and 'question'",
        ),
    ],
    ids=["empty", "none", "no-string", "keyword", "no-image", "missing", "regions", "no-question"],
)
def test_wrong_calls_say_what_was_expected(answering, images, kwargs, error, message):
    with pytest.raises(error, match=message):
        answering(**{"image": images[0], **kwargs})


@pytest.mark.parametrize("image", ["image.png", {"question": "a"}], ids=["no-question", "no-image"])
def test_half_a_call_says_what_is_missing(answering, image):
    with pytest.raises(ValueError, match=r"no (question|image); expected .*'image' and 'question'"):
        answering(image)


def visualbert(*args):
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "modeling_visualbert.cli", *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_ask_in_the_terminal(answering, saved, images, tmp_path):
    drawn = tmp_path / "drawn.png"
    done = visualbert("ask", "--model", saved, images[0], *QUESTIONS[:2], "--top_k", 2, "--picture_out", drawn)
    assert done.returncode == 0, done.stderr
    expected = answering(image=images[0], question=QUESTIONS[:2], top_k=2)
    lines = [f"{answer['score']:7.1%}  {answer['answer']}" for answers in expected for answer in answers]
    assert done.stdout.splitlines() == [QUESTIONS[0], *lines[:2], QUESTIONS[1], *lines[2:]]
    with Image.open(drawn) as image:
        assert image.width == 480
        assert image.height > 128 * 3
        assert len(image.getcolors(maxcolors=10**6)) > 100


def test_a_missing_image_ends_with_one_line(saved):
    done = visualbert("ask", "--model", saved, "nowhere.png", "Is it red?")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["visualbert ask: nowhere.png: no such image file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no EPIPE")
def test_a_reader_that_leaves_ends_the_command_quietly(saved, images):
    command = [sys.executable, "-m", "modeling_visualbert.cli", "ask", "--model", saved, images[0], "Is it red?"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asking:
        asking.stdout.close()
        assert asking.stderr.read() == b""
    assert asking.returncode == 141


def test_ask_prints_json(answering, saved, images, capsys):
    assert main(["ask", "--model", str(saved), str(images[0]), *QUESTIONS, "--json", "--top_k", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [record["question"] for record in printed] == QUESTIONS
    given = [record["answers"] for record in printed]
    assert flat(given) == flat(answering(image=images[0], question=QUESTIONS, top_k=1))


def test_one_question_prints_no_heading(saved, images, capsys):
    assert main(["ask", "--model", str(saved), str(images[0]), "Is it red?", "--top_k", "1"]) == 0
    assert re.fullmatch(r" *\d+\.\d%  \w+\n", capsys.readouterr().out)


def test_a_question_without_quotes_is_told(saved, images, capsys):
    assert main(["ask", "--model", str(saved), str(images[0]), "Is", "it", "red?"]) == 0
    told = 'visualbert ask: 3 questions of one word each; one question is given in quotes: "Is it red?"\n'
    assert capsys.readouterr().err == told
    assert main(["ask", "--model", str(saved), str(images[0]), "Why?", "Is it red?"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("question", "flags", "message"),
    [
        ("", [], "question 0 is empty ''; expected at least one word"),
        ("a " * 200, [], "question 0 has 204 tokens"),
        ("a", ["--top_k", "0"], "--top_k 0; expected at least 1"),
        ("a", ["--picture_out", "/nowhere/drawn.png"], "/nowhere/drawn.png"),
    ],
    ids=["empty", "long", "top-k", "image-out"],
)
def test_what_users_get_wrong_ends_with_status_2_and_one_line(saved, images, capsys, question, flags, message):
    assert main(["ask", "--model", str(saved), str(images[0]), question, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("visualbert ask: ")
    assert message in error.replace("(", "").replace(")", "")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["ask", "convert"])
def test_a_missing_checkpoint_is_named(tmp_path, images, capsys, command):
    missing = str(tmp_path / "nowhere")
    argv = {"ask": ["--model", missing, str(images[0]), "a"], "convert": [missing, str(tmp_path / "out")]}[command]
    assert main([command, *argv]) == 2
    assert re.search(rf"{missing}.*(no such|not found|does not exist)", capsys.readouterr().err)


def test_convert_writes_model_processor_and_report(tmp_path, capsys):
    target = tmp_path / "converted"
    words = [f"word{number}" for number in range(120 - len(VOCABULARY))]  # the model has 120
    tokenizer = write_tokenizer(tmp_path / "tokenizer", [*VOCABULARY, *words])
    flags = ["--num_attention_heads", "4", "--tokenizer", str(tokenizer)]
    assert main(["convert", str(GOLDEN / "vqa.th"), str(target), *flags]) == 0
    assert "VisualBertForQuestionAnswering: 61 loaded" in capsys.readouterr().out
    model, processor = (
        AutoModelForVisualQuestionAnswering.from_pretrained(target),
        AutoProcessor.from_pretrained(target),
    )
    assert model.config.num_attention_heads == 4
    assert processor.answers == list(model.config.id2label.values())
    assert processor.region_dim == model.config.visual_embedding_dim
    report = (target / "key_report.txt").read_text().splitlines()
    assert len(report) == 61
    assert all(re.fullmatch(r"(loaded|tied|new|skipped) +\S+ -> \S+ \[[\dx]+\]", line) for line in report)


def test_convert_leaves_an_existing_folder_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["convert", str(GOLDEN / "vqa.th"), str(tmp_path / "mine")]) == 2
    assert (
        capsys.readouterr().err
        == f"visualbert convert: {tmp_path / 'mine'} exists; choose another folder or remove it\n"
    )
    assert list((tmp_path / "mine").iterdir()) == []


def test_convert_that_fails_leaves_no_folder(tmp_path):
    argv = ["convert", str(GOLDEN / "vqa.th"), str(tmp_path / "out"), "--num_attention_heads", "4"]
    assert main([*argv, "--tokenizer", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "out").exists()


def test_version(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"visualbert {modeling_visualbert.__version__}\n"


def test_without_a_command_usage_is_shown(capsys):
    with pytest.raises(SystemExit, match="^2$"):
        main([])
    assert "required: COMMAND" in capsys.readouterr().err


FORBIDDEN = {
    r"\bpickle\.loads?\b": "pickle runs code",
    r"\ballow_pickle\s*=\s*True": "NumPy's pickle runs code",
    r"\bweights_only\s*=\s*False": "torch.load runs code",
    r"\btorch\.load\((?!.*weights_only=True)": "torch.load without weights_only=True",
    r"(?<![\w.])(eval|exec)\(": "runs text as code",
    r"\bshell\s*=\s*True": "runs text as a command",
    r"\btrust_remote_code\s*=\s*True": "runs code of others",
    r"\byaml\.(unsafe_)?load\(": "YAML can make objects",
}


@pytest.mark.parametrize("path", sorted([*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("examples/*.py")]), ids=str)
def test_nothing_in_a_file_runs_foreign_code(path):
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        for pattern, reason in FORBIDDEN.items():
            assert not re.search(pattern, line), f"{path.name}:{number}: {reason}: {line.strip()}"


HUB_FILES = sorted(path for path in (PACKAGE / "hub_code").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_hub_files_import_only_what_users_have_and_each_other(path):
    # The last two are dependencies of `transformers` itself.
    allowed = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors", *sys.stdlib_module_names}
    siblings = {hub_file.stem for hub_file in HUB_FILES}
    tree = ast.parse(path.read_text("utf-8"))
    # `transformers` does not demand what is imported inside `try`.
    optional = {part for node in tree.body if isinstance(node, ast.Try) for part in node.body}
    for node in (node for node in ast.walk(tree) if node not in optional):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and node.module in siblings, ast.unparse(node)
            assert all(alias.name != "*" for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("path", HUB_FILES, ids=lambda path: path.name)
def test_no_line_of_text_looks_like_a_relative_import(path):
    """`transformers` finds the files to copy by this pattern, in docstrings too."""
    text = path.read_text("utf-8")
    found = re.findall(r"^\s*import\s+\.(\S+)\s*$|^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)
    imported = [n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.level == 1]
    assert sorted(a or b for a, b in found) == sorted(imported)


def _printed(program):
    """Standard output of a program in a process of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_else():
    program = "import sys, modeling_visualbert; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert _printed(program) == "set()\n"


IMPORT_ORDERS = (
    "import modeling_visualbert\nfrom transformers import AutoModel",
    "from transformers import AutoModel, pipeline\nimport modeling_visualbert",
    "from modeling_visualbert import VisualBertVQAPipeline",
    "from modeling_visualbert.hub_code.modeling_region_encoder import RegionEncoder",
    "from transformers import AutoProcessor\nimport modeling_visualbert",
)
AFTER_IMPORTS = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
kinds = ("visual_bert", "query_region_encoder", "grid_region_encoder", "region_detector")
configs = [type(AutoConfig.for_model(kind)) for kind in kinds]
found = [*configs, *(AutoModel._model_mapping[config] for config in configs), PROCESSOR_MAPPING[configs[0]]]
found += [AutoModelForPreTraining._model_mapping[configs[0]], *(IMAGE_PROCESSOR_MAPPING[config]["pil"] for config in configs)]
found += [PIPELINE_REGISTRY.check_task("visual-question-answering")[1]["impl"]]
print(len(found), {cls.__module__.split(".")[0] for cls in found})
"""


def test_auto_classes_know_ours_in_whatever_order_things_are_imported():
    programs = [f"{first}\n{AFTER_IMPORTS}" for first in IMPORT_ORDERS]
    running = [  # at the same time: each spends seconds on imports
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for program in programs
    ]
    for first, process in zip(IMPORT_ORDERS, running, strict=True):
        assert process.communicate()[0] == "15 {'modeling_visualbert'}\n", first


def test_public_names_are_listed_once_and_exist():
    assert sorted(modeling_visualbert.__all__) == list(dict.fromkeys(sorted(modeling_visualbert.__all__)))
    for name in modeling_visualbert.__all__:
        assert getattr(modeling_visualbert, name) is not None
    assert modeling_visualbert.load_picture is modeling_visualbert.load_image
    assert set(modeling_visualbert.__all__) <= set(dir(modeling_visualbert))
    with pytest.raises(AttributeError, match="'modeling_visualbert' has no attribute 'VisualBert'"):
        modeling_visualbert.VisualBert  # noqa: B018


def test_choices_of_the_command_line_are_those_of_the_package():
    assert sorted(regions_commands.FEATURE_KINDS) == sorted(READERS)
    assert sorted(regions_commands.IMAGE_IDS) == sorted(IMAGE_IDS)
    assert regions_commands.DTYPES == DTYPES
