"""Model cards: every number is measured, every fact file makes a card, metadata are what the Hub reads."""

import re

import pytest
from huggingface_hub import ModelCard
from tiny_checkpoints import tiny_checkpoint

from modeling_visualbert.hub_code.tasks_visualbert import TASKS
from modeling_visualbert.publish.card import NOT_MEASURED, build_card, cards_folder, default_facts, load_facts
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import read_recipe

NAMES = sorted(path.stem for path in cards_folder().glob("*-*.yaml"))
PUBLISHED = [name for name in NAMES if name.startswith("visualbert-")]
SHAPES = [name for name in NAMES if name.startswith("shapes-")]
HEADS = [task.head for task in TASKS.values()]


def metrics_for(facts):
    """A run with an odd value for everything that a card may tell."""
    keys = [row["key"] for row in facts["scores"]]
    scores = {key: 61.2345 + 3.21 * i for i, key in enumerate(keys)}
    return {
        "task": "any",
        "splits": {"dev": dict.fromkeys(keys, 1.5), "test": {**scores, "num_examples": 1234}},
        "run": {
            "steps": 777,
            "best_step": 555,
            "train_examples": 4321,
            "args": {
                "batch_size": 17,
                "learning_rate": 0.00031,
                "epochs": 3.5,
                "init_from": "runs/vqa/best",
                "seed": 9,
            },
            "processes": 2,
            "seconds": 98.7,
            "peak_memory_mib": 654,
            "torch": "2.13.0",
            "device": "cpu",
        },
        "baselines": {"text only": {key: 12.3456 + i for i, key in enumerate(keys)}, "majority": {}},
    }


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, flags=re.DOTALL | re.MULTILINE)[1]


def numbers(text):
    return {float(number) for number in re.findall(r"(?<![\w.@-])\d+(?:\.\d+)?(?![\w.@])", text)}


def leaves(value):
    """All numbers of nested data, as they are and with two decimals."""
    if isinstance(value, dict):
        return set().union(*map(leaves, value.values()))
    return {float(value), round(float(value), 2)} if isinstance(value, (int, float)) else set()


def test_all_checkpoints_of_the_family_have_facts():
    published = [f"visualbert-{task}{stage}" for task in ("nlvr2", "vcr", "vqa") for stage in ("", "-coco-pre", "-pre")]
    assert sorted(published) == PUBLISHED
    tasks = ("classification", "flickr30k", "nlvr2", "pretraining", "vcr-answer", "vcr-rationale", "vqa")
    assert [f"shapes-{task}" for task in tasks] == SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_every_score_setting_and_cost_is_in_the_metrics(name):
    facts = load_facts(name)
    metrics = metrics_for(facts)
    card = build_card("user/model", facts, metrics)
    for title in ("Evaluation", "Environmental cost"):
        assert numbers(section(card, title)) <= leaves(metrics), title
    assert numbers(section(card, "Training").split("| setting |")[1]) <= leaves(metrics)
    assert facts["scores"]
    for row in facts["scores"]:
        assert f"| {row['name']} | {metrics['splits']['test'][row['key']]:.2f} |" in card
    assert f"| {NOT_MEASURED} |" in section(card, "Evaluation")  # the majority was
    assert "| hardware | cpu |" in card and "| energy | not measured |" in card


@pytest.mark.parametrize("name", SHAPES)
def test_metadata_are_what_the_hub_reads(name):
    facts = load_facts(name)
    metrics = metrics_for(facts)
    data = ModelCard(build_card("user/model", facts, metrics), ignore_metadata_errors=False).data
    assert (data.library_name, data.license, data.language) == ("transformers", "apache-2.0", "en")
    assert data.pipeline_tag == facts["pipeline_tag"]
    measured = {result.metric_name: result.metric_value for result in data.eval_results}
    assert measured == {row["name"]: metrics["splits"]["test"][row["key"]] for row in facts["scores"]}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert data.widget
    for example in data.widget:
        image = example["src"].removeprefix("https://huggingface.co/user/model/resolve/main/")
        assert (cards_folder() / image).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_without_metrics_nothing_is_claimed(name):
    card = build_card("user/model", load_facts(name), None, region_dim=512)
    assert ModelCard(card, ignore_metadata_errors=False).data.eval_results is None
    assert "Not measured for this card." in section(card, "Evaluation")
    assert numbers(section(card, "Evaluation")) | numbers(section(card, "Environmental cost")) == set()
    assert f"| hardware | {NOT_MEASURED} |" in card


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_described_with_their_regions(name):
    facts = load_facts(name)
    dim = {"vqa": "2048", "nlvr2": "1024", "vcr": "512"}[name.split("-")[1]]
    assert f"{dim} numbers each" in facts["expects"]["regions"]
    assert facts["source"] == f"uclanlp/{name}"
    assert ModelCard(build_card("user/model", facts, None, int(dim))).data.base_model == facts["source"]
    assert {"regions", "segments", "text", "answers", "padding"} <= set(facts["expects"])
    pre = "VisualBertForPreTraining"
    heads = {"vqa": "VisualBertForQuestionAnswering", "nlvr2": "VisualBertForVisualReasoning"}
    final = heads.get(name.split("-")[1], "VisualBertForMultipleChoice")
    assert facts["head"] == (pre if name.endswith("-pre") else final)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("region_dim", [None, 2048])
def test_every_snippet_is_python(name, region_dim):
    card = build_card("user/model", load_facts(name), None, region_dim)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    compile(code, name, "exec")
    assert 'snapshot_download("user/model")' in code
    assert ("numpy.zeros" in code) == (region_dim is not None)


def test_a_region_encoder_elsewhere_is_attached_in_the_code():
    facts = {**load_facts("visualbert-vqa"), "region_encoder": "me/detector"}
    (code,) = re.findall(r"```python\n(.*?)```", build_card("user/model", facts, None), flags=re.DOTALL)
    compile(code, "card", "exec")
    assert 'attach_region_encoder(AutoModel.from_pretrained("me/detector", trust_remote_code=True))' in code
    assert "examples/scene.png" in code and "numpy" not in code


@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_without_facts_says_so(head):
    card = build_card("user/model", default_facts(head), {"splits": {}, "run": {"seconds": 3.0}})
    assert "Not examined." in section(card, "Limits and biases")
    assert "Not stated." in section(card, "Training")
    assert "| training and scoring, wall time | 3.0 s |" in card
    assert ModelCard(card).data.license is None


def test_what_was_printed_is_shown():
    card = build_card("user/model", default_facts(HEADS[0]), None, printed="[{'answer': 'red'}]")
    assert "```text\n[{'answer': 'red'}]\n```" in card
    assert "```text" not in build_card("user/model", default_facts(HEADS[0]), None)


def test_scores_of_another_split_are_not_taken():
    facts = load_facts("shapes-vqa")
    with pytest.raises(ValueError, match="no scores of split 'test'; it has dev"):
        build_card("user/model", facts, {"splits": {"dev": {"accuracy": 1.0}}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title: [", "not yaml that can be read"),
        ("- a", r"found \['a'\]; expected a mapping"),
        ("title: a\nexample: {image: a}\n", "key 'head' is missing"),
        (
            "title: a\nsource: uclanlp/visualbert-vqa\nexample: {image: a}\nexpects: {regions: 'of {size}'}\n",
            "regions of 'expects' have field 'size'; expected some of name, title,",
        ),
        ("title: a\nhead: VisualBertModel\nexample: {image: a}\n", "head 'VisualBertModel'; expected one of"),
        ("title: a\nhead: VisualBertForPreTraining\nexample: {a: 1}\ncolour: b\n", "unknown key 'colour'"),
    ],
)
def test_broken_facts_are_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_facts(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_own_facts_build_on_others(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "title: a\nhead: VisualBertForPreTraining\nexpects: {text: one, regions: two}\n"
    )
    (tmp_path / "mine.yaml").write_text("based_on: base.yaml\nexample: {image: a.png}\nexpects: {text: three}\n")
    facts = load_facts(tmp_path / "mine.yaml")
    assert facts["expects"] == {"text": "three", "regions": "two"}
    assert facts["folder"] == tmp_path


def test_requirements_are_those_of_the_package():
    project = (cards_folder().parent / "pyproject.toml").read_text()
    for line in (cards_folder() / "requirements.txt").read_text().split():
        assert f'"{line}"' in project


def test_everything_is_installed():
    """The list of packages is written by hand, for the sake of `hub_cards` and `examples`, which lie beside the package."""
    root = cards_folder().parent
    listed = set(
        re.findall(r'^    "(modeling_visualbert[\w.]*)",$', (root / "pyproject.toml").read_text(), flags=re.MULTILINE)
    )
    found = {".".join(path.parent.relative_to(root).parts) for path in root.glob("modeling_visualbert/**/__init__.py")}
    assert listed == found | {"modeling_visualbert.hub_cards", "modeling_visualbert.examples"}


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(n + 1)}: &{chr(n + 1)} [*{chr(n)}, *{chr(n)}, *{chr(n)}]\n" for n in range(97, 120)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("based_on: own.yaml\n", "based_on own.yaml leads back to itself"),
        ("based_on: ../own.yaml\n", "based_on is '../own.yaml'; expected the name of a file beside it"),
        ("based_on: none.yaml\n", "based_on is 'none.yaml', which is not there; expected the name of a file beside it"),
        ("based_on: [own]\n", r"based_on is \['own'\]; expected the name of a file beside it"),
        ("expects: 3\n", "'expects' is 3; expected a mapping"),
        (BOMB, r"its aliases \(`\*name`\) make more than 1,000,000 characters of it"),
        ("a: &a [*a]\n", r"its aliases \(`\*name`\) make more than"),
        (
            "based_on: " + "9" * 5000 + ".yaml",
            "based_on is .9+, which is not there; expected the name of a file beside it",
        ),
        ("a: " + "[" * 20_000, "not yaml that can be read: more than 100 mappings and lists inside each other"),
        ("a: " + "9" * 5000, "not yaml that can be read: Exceeds the limit"),
        ("a: 2026-13-45\n", "not yaml that can be read: month must be in 1..12"),
    ],
)
def test_facts_and_recipes_that_have_no_end(content, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path}: {message}[^\n]*$"):
        load_facts(path)
    if "based_on" not in content and "expects" not in content:
        with pytest.raises(ValueError, match=rf"^{path}: {message}[^\n]*$"):
            read_recipe(path, VqaArgs)


def test_facts_that_lead_to_one_another(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"based_on: {other}.yaml\n")
    with pytest.raises(ValueError, match=r"b.yaml: based_on a.yaml leads back to itself"):
        load_facts(tmp_path / "a.yaml")


def test_labels_and_settings_of_others_stay_in_their_cells():
    _, processor = tiny_checkpoint("nlvr2", labels=["no`</td>\n---\n# Title |", *map(str, range(60))], num_images=1)
    metrics = {"run": {"args": {"learning_rate": "1 |\n| <script> | 2"}}, "splits": {}}
    card = build_card("me/model", default_facts("VisualBertForVisualReasoning", None, processor), metrics, 5)
    assert "`no'&lt;/td> --- # Title \\|`, `0`" in card and " and 11 more" in card
    assert "| learning rate | 1 \\| \\| &lt;script> \\| 2 |" in card
    assert "\n# Title" not in card and "<script>" not in card


def test_facts_stay_in_their_places():
    """Whatever Markdown, HTML, YAML or template they hold."""
    hostile = "a\n---\n# Title: <script> | `c` {{ 7 * 7 }} ```\n..."
    keys = ("title", "license", "pipeline_tag", "source", "base_model")
    lists = {key: [hostile] for key in ("tags", "metrics", "datasets")}
    example = {"example": {"image": "scene.png", "question": hostile}, "expects": {hostile: hostile}}
    score = {"scores": [{"key": "accuracy", "name": hostile, "type": hostile}]}
    facts = {**load_facts("shapes-vqa"), **dict.fromkeys(keys, hostile), **lists, **example, **score}
    metrics = {"splits": {facts["dataset"]["split"]: {"accuracy": 50.0, "num_examples": 2}}}
    card = build_card("me/model", facts, metrics)
    data = ModelCard(card, ignore_metadata_errors=False).data
    assert (data.license, data.model_name, data.tags, data.datasets) == (hostile, hostile, [hostile], [hostile])
    line = "a --- # Title: <script> \\| `c` {{ 7 * 7 }} ``` ..."
    body = card.splitlines()
    assert {f"# {line}", f"| {line} | {line} |", f"| {line} | 50.00 |", f"    question={hostile!r},"} <= set(body)
    assert not [found for found in body if found.startswith("# Title")] and body.count("---") == 2
