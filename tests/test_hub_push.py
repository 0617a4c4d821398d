"""Push to a Hub on this machine and open from there, through HTTP, in processes that cannot import the package."""

import ast
import hashlib
import json
import re

import pytest
import torch
import yaml
from clean_process import hub_environment, run_clean
from hub_server import serve, talk_to
from huggingface_hub import constants
from safetensors.torch import save_file
from test_pipelines import close
from tiny_checkpoints import PIPELINE_TASKS, save_tiny_checkpoint
from transformers import pipeline

from modeling_visualbert.cli import main
from modeling_visualbert.features.extract import load_region_encoder
from modeling_visualbert.hub_code.tasks_visualbert import HEADS
from modeling_visualbert.publish.card import cards_folder
from modeling_visualbert.publish.push import Pushed, push_folder
from modeling_visualbert.tasks.common import DETECTOR

TASKS = list(PIPELINE_TASKS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders with a tiny checkpoint of each head, and its model and processor."""
    folder = tmp_path_factory.mktemp("saved")
    return {task: (folder / task, *save_tiny_checkpoint(task, folder / task)) for task in TASKS}


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine, which this process talks to as `tester`."""
    with serve() as running:
        talk_to(running, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files through HTTP alone
        monkeypatch.setenv("HF_TOKEN", "hf_tester")
        yield running


@pytest.fixture
def small(tmp_path):
    """A folder that looks like a repository."""
    folder = tmp_path / "small"
    (folder / "examples").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "examples" / "scene.txt").write_text("an image")
    save_file({"weight": torch.arange(1000.0)}, folder / "model.safetensors")
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inputs_of(task, model):
    """Inputs that the models of `transformers` take too, and mean the same: everything is given."""
    generator = torch.Generator().manual_seed(0)
    rows = (2, 3) if task == "vcr" else (2,)
    ids = torch.randint(5, model.config.vocab_size, (*rows, 7), generator=generator)
    regions = torch.randn(*rows, 4, model.config.visual_embedding_dim, generator=generator)
    mask = torch.ones(*rows, 4, dtype=torch.long)
    mask[0, ..., 3:] = 0
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "visual_embeds": regions,
        "visual_attention_mask": mask,
        "visual_token_type_ids": torch.arange(4).expand_as(mask) % 2,
    }
    if task == "flickr30k":
        inputs["region_to_phrase_position"] = torch.tensor([[2, 4], [1, 5]])
    return {name: value.contiguous() for name, value in inputs.items()}


OPEN = """
import hashlib
import torch
import transformers
from safetensors.torch import load_file

found = {}
for task, (repo, auto, head, inputs, kwargs) in VARIABLES["checkpoints"].items():
    inputs = load_file(inputs)
    model = getattr(transformers, auto).from_pretrained(repo, trust_remote_code=True).eval()
    stock = getattr(transformers, head).from_pretrained(repo).eval()
    with torch.no_grad():
        logits, theirs = (m(**inputs)[0] for m in (model, stock))
    seen = logits > -9000  # scores of padding differ: very small numbers in both
    assert torch.equal(seen, theirs > -9000)
    answers = transformers.pipeline(model=repo, trust_remote_code=True)
    digests = {
        name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        for name, value in model.state_dict().items()
    }
    found[task] = {
        "class": f"{type(model).__module__} {type(model).__name__}",
        "base": type(transformers.AutoModel.from_pretrained(repo, trust_remote_code=True)).__name__,
        "processor": type(transformers.AutoProcessor.from_pretrained(repo, trust_remote_code=True)).__name__,
        "stock": type(stock).__module__,
        "logits": logits.tolist(),
        "stock_difference": float((logits - theirs)[seen].abs().max()),
        "digests": digests,
        "task": answers.task,
        "answer": answers(**kwargs),
    }
# What was loaded as remote code goes on to the next repository, code included.
model.push_to_hub("tester/again")
transformers.AutoProcessor.from_pretrained(repo, trust_remote_code=True).push_to_hub("tester/again")
again = transformers.pipeline(model="tester/again", trust_remote_code=True)
found["again"] = {"task": again.task, "same": again(**kwargs) == found[task]["answer"]}
print(json.dumps(found))
"""


def test_all_heads_come_back_from_the_hub_as_they_were(hub, saved, tmp_path):
    image, other = (str(cards_folder() / "examples" / name) for name in ("scene.png", "other_scene.png"))
    calls = {
        "vqa": {"image": image, "question": "Is it red?"},
        "vcr": {
            "image": image,
            "question": "What is [0]?",
            "choices": ["a", "b"],
            "objects": ["star"],
            "boxes": [[1, 2, 30, 40]],
        },
        "nlvr2": {"images": [image, other], "statement": "Both show a star."},
        "flickr30k": {"image": image, "sentence": "a red star", "phrases": ["star"]},
        "pretraining": {"image": image, "text": "a [MASK] star"},
    }
    checkpoints, expected = {}, {}
    for task, (folder, model, processor) in saved.items():
        pushed = push_folder(folder, f"tester/{task}")
        assert hub.files(f"tester/{task}") == contents(folder)
        assert pushed.files == {name: len(content) for name, content in contents(folder).items()}
        save_file(inputs_of(task, model), tmp_path / f"{task}.safetensors")
        auto = HEADS[type(model).__name__].auto_class
        checkpoints[task] = (
            f"tester/{task}",
            auto,
            type(model).__name__,
            str(tmp_path / f"{task}.safetensors"),
            calls[task],
        )
        with torch.no_grad():
            logits = model(**inputs_of(task, model))[0]
        expected[task] = {
            "logits": logits.tolist(),
            "digests": {
                name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
                for name, value in model.state_dict().items()
            },
            "task": PIPELINE_TASKS[task],
            "answer": pipeline(PIPELINE_TASKS[task], model=model, processor=processor)(**calls[task]),
        }
    found = json.loads(run_clean(OPEN, tmp_path / "home", hub, checkpoints=checkpoints))
    assert found.pop("again") == {"task": "visual-fill-mask", "same": True}
    again, first = hub.files("tester/again"), hub.files("tester/pretraining")
    assert set(again) - {"README.md"} == set(first)
    assert all(again[name] == first[name] for name in first if name.endswith((".py", ".safetensors")))
    assert json.loads(again["config.json"])["auto_map"] == json.loads(first["config.json"])["auto_map"]
    for task, told in found.items():
        assert told["answer"] == close(json.loads(json.dumps(expected[task].pop("answer"))))
        # The same kernels round differently where tensors lie at other addresses: seen, up to 3e-7.
        assert torch.allclose(
            torch.tensor(told["logits"]), torch.tensor(expected[task].pop("logits")), rtol=0, atol=2e-6
        )
        assert {key: told[key] for key in expected[task]} == expected[task]
        assert told["class"].startswith("transformers_modules.tester.")
        assert told["class"].split()[-1] == type(saved[task][1]).__name__
        assert (told["base"], told["processor"]) == ("VisualBertModel", "VisualBertProcessor")
        assert told["stock"] == "transformers.models.visual_bert.modeling_visual_bert"
        assert told["stock_difference"] < 1e-5
    assert any("/resolve/" in request and "model.safetensors" in request for request in hub.requests)


def test_push_by_command_and_the_code_of_the_card(hub, saved, tmp_path, capsys):
    """What `visualbert push` sends is what a dry run lists, and a visitor who copies the card's code gets what it says."""
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"splits": {"test": {"accuracy": 61.5, "num_examples": 8}}, "run": {"seconds": 2.5}}))
    command = ["push", str(saved["vqa"][0]), "tester/shapes-vqa", "--facts", "shapes-vqa", "--private"]
    assert main([*command, "--metrics", str(metrics)]) == 0
    *listed, total, url = capsys.readouterr().out.splitlines()
    files = hub.files("tester/shapes-vqa")
    assert dict(reversed(line.split()) for line in listed) == {name: f"{len(files[name]):,}" for name in files}
    assert total.split()[0] == f"{sum(map(len, files.values())):,}"
    assert url.startswith(f"{hub.url}/tester/shapes-vqa/commit/")
    assert hub.repositories["tester/shapes-vqa"].private
    assert hub.repositories["tester/shapes-vqa"].titles == ["initial commit", "Upload VisualBERT"]
    assert {"README.md", "handler.py", "requirements.txt", "metrics.json", "examples/scene.png"} <= set(files)
    assert {"model.safetensors", "pipeline_visualbert.py", "tokenizer.json", "processor_config.json"} <= set(files)
    assert str(tmp_path).encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", card, flags=re.DOTALL)
    assert run_clean(code, tmp_path / "home", hub) == printed


def test_a_branch_is_made_and_main_stays(hub, small):
    push_folder(small, "tester/model")
    (small / "config.json").write_text('{"new": 1}')
    push_folder(small, "tester/model", revision="next")
    assert hub.files("tester/model")["config.json"] == b"{}"
    assert hub.files("tester/model", "next") == contents(small)


def test_a_pull_request_leaves_main_alone(hub, small):
    push_folder(small, "tester/model")
    (small / "config.json").write_text('{"new": 1}')
    pushed = push_folder(small, "tester/model", create_pr=True)
    assert pushed.url == f"{hub.url}/tester/model/discussions/1"
    assert hub.files("tester/model")["config.json"] == b"{}"
    assert hub.files("tester/model", "refs/pr/1") == contents(small)


FAILURES = {
    "commit": ("POST /commit/", 500, ConnectionError, "the Hub refused the push with status 500"),
    "upload": ("PUT /_large/", 413, ValueError, "model.safetensors: 4,080 bytes, too large for the Hub"),
    "preupload": ("POST /preupload/", 403, PermissionError, "may not write there"),
}


@pytest.mark.parametrize("step", FAILURES)
@pytest.mark.parametrize("state", ["new", "existing", "branch"])
def test_a_push_that_fails_half_way_publishes_nothing(hub, small, monkeypatch, step, state):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of retries
    if state != "new":
        push_folder(small, "tester/model")
        (small / "config.json").write_text('{"new": 1}')
        save_file({"weight": torch.arange(1001.0)[1:]}, small / "model.safetensors")
    before = {name: (dict(r.refs), dict(r.commits)) for name, r in hub.repositories.items()}
    pattern, status, error, message = FAILURES[step]
    hub.failures[pattern] = (status, "told by the server")
    with pytest.raises(error, match=re.escape(message)) as raised:
        push_folder(small, "tester/model", revision="next" if state == "branch" else None)
    assert "\n" not in str(raised.value) and "told by the server" in str(raised.value)
    assert {name: (dict(r.refs), dict(r.commits)) for name, r in hub.repositories.items()} == before


def push_again(hub, small, **options):
    """What a folder with one new value is pushed as, and the number of requests before."""
    (small / "config.json").write_text('{"new": 1}')
    begun = len(hub.requests)
    return begun, lambda: push_folder(small, "tester/model", **options)


CUTS = {
    "the request is lost": lambda number, cut: "before" if number == cut else None,
    "the answer is lost": lambda number, cut: "after" if number == cut else None,
    "the network is gone": lambda number, cut: "before" if number >= cut else None,
    "the network is gone after it": lambda number, cut: (
        "after" if number == cut else "before" if number > cut else None
    ),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("state", ["new", "existing", "branch", "pull request"])
def test_a_push_that_is_cut_at_any_request_can_be_repeated(hub, small, monkeypatch, state, cut):
    """Branches have the old files or all new ones, an error is one line that says what to do, and the same push succeeds."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of retries
    old = {} if state == "new" else contents(small)
    options = {"branch": {"revision": "next"}, "pull request": {"create_pr": True}}.get(state, {})
    push_folder(small, "tester/other")  # what is asked once in a process
    for number in range(1, 100):
        hub.repositories.pop("tester/model", None)
        hub.large_files.clear()
        if state != "new":
            hub.add("tester/model", old)
        begun, push = push_again(hub, small, **options)
        new = contents(small)
        hub.hang_up = lambda request, cut=cut, number=begun + number: CUTS[cut](request, number)
        try:
            push()
        except ConnectionError as error:
            assert "\n" not in str(error) and "push again with the same command" in str(error)
        finally:
            is_cut = len(hub.requests) >= begun + number
            hub.hang_up = lambda request: None
        for ref in hub.repositories["tester/model"].refs if "tester/model" in hub.repositories else ():
            assert hub.files("tester/model", ref) in (old, new)
        if not is_cut:
            break
        push()
        changed = {"branch": "next", "pull request": "refs/pr/1"}.get(state, "main")
        assert hub.files("tester/model", changed) == new
    assert 4 <= number < 10


@pytest.mark.parametrize("state", ["main", "next"])
def test_a_commit_whose_answer_is_lost_counts(hub, small, state):
    push_folder(small, "tester/model")
    push_folder(small, "tester/model", revision="next")
    begun, push = push_again(hub, small, revision=state)
    hub.hang_up = lambda number: "after" if "/commit/" in hub.requests[-1] else None
    assert push().url == f"{hub.url}/tester/model/commit/{hub.repositories['tester/model'].refs[state]}"
    assert hub.files("tester/model", state) == contents(small)
    assert sum("/commit/" in request for request in hub.requests[begun:]) == 1


def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(hub, small):
    push_folder(small, "tester/model")
    _, push = push_again(hub, small, create_pr=True)
    hub.hang_up = lambda number: "after" if "/commit/" in hub.requests[-1] else None
    with pytest.raises(
        ConnectionError, match="look at .*/tester/model/discussions whether the pull request was opened"
    ):
        push()
    assert set(hub.repositories["tester/model"].refs) == {"main", "refs/pr/1"}


@pytest.mark.parametrize(
    ("repo_id", "token", "options", "message"),
    [
        ("tester/model", "hf_wrong", {}, "wrong or missing token; log in with `hf auth login` or set HF_TOKEN"),
        ("tester/model", "hf_reader", {}, "this token may not write there"),
        ("other/model", "hf_tester", {}, "this token may not write there; the name may belong to someone else"),
        ("other/taken", "hf_tester", {}, "this token may not write there; the name may belong to someone else"),
        ("tester/mine", "hf_tester", {"private": True}, "tester/mine exists and is public; expected a private one"),
    ],
    ids=["wrong-token", "read-token", "other-user", "name-taken", "public"],
)
def test_what_the_hub_refuses_ends_in_one_line(hub, small, repo_id, token, options, message):
    push_folder(small, "other/taken", token="hf_other")
    push_folder(small, "tester/mine")
    (small / "config.json").write_text('{"new": 1}')
    with pytest.raises((PermissionError, ValueError), match=message) as raised:
        push_folder(small, repo_id, token=token, **options)
    assert "\n" not in str(raised.value)
    assert set(hub.repositories) == {"other/taken", "tester/mine"}
    assert hub.files("other/taken")["config.json"] == hub.files("tester/mine")["config.json"] == b"{}"


def test_a_file_that_is_too_large_is_named(hub, small, monkeypatch):
    hub.max_bytes = 1000
    with pytest.raises(ValueError, match=r"the largest is model.safetensors, 4,080 bytes .*too large"):
        push_folder(small, "tester/model")
    monkeypatch.setattr("modeling_visualbert.publish.push.MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="model.safetensors: 4,080 bytes; the Hub takes at most 1,000"):
        push_folder(small, "tester/model")
    assert hub.repositories == {}


def test_without_a_network_there_is_one_line(small, monkeypatch):
    with pytest.raises(ConnectionError, match="was not contacted: .*HF_HUB_OFFLINE") as raised:
        push_folder(small, "tester/model", token="hf_tester")
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9 refused the push or cannot be reached"):
        push_folder(small, "tester/model", token="hf_tester")


@pytest.mark.slow
def test_a_region_encoder_inside_and_one_elsewhere(hub, saved, tmp_path, monkeypatch):
    """A checkpoint without eyes, pushed with a detector put inside and with a reference to one on the Hub."""
    _, model, processor = saved["vqa"]
    fields = {**model.config.to_dict(), "region_encoder_config": None}
    blind = type(model)(type(model.config)(**fields))
    blind.load_state_dict(model.state_dict(), strict=False)
    blind.save_pretrained(tmp_path / "blind")
    processor.save_pretrained(tmp_path / "blind")
    encoder, image_processor = load_region_encoder(str(DETECTOR))
    encoder.save_pretrained(tmp_path / "detector")
    image_processor.save_pretrained(tmp_path / "detector")
    push_folder(tmp_path / "detector", "tester/detector")
    facts = {"title": "a", "head": "VisualBertForQuestionAnswering", "example": {"question": "Is it red?"}}
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump({**facts, "region_encoder": "tester/detector"}))
    (tmp_path / "inside.yaml").write_text(yaml.safe_dump(facts))
    for name, value in {**hub_environment(hub), "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    printed = []
    for name, flags in (("elsewhere", []), ("inside", ["--region_encoder", str(DETECTOR)])):
        argv = [str(tmp_path / "blind"), f"tester/{name}", "--facts", str(tmp_path / f"{name}.yaml"), *flags]
        assert main(["push", *argv]) == 0
        printed += re.findall(r"```text\n(.*?)```", hub.files(f"tester/{name}")["README.md"].decode(), flags=re.DOTALL)
    elsewhere, inside = map(ast.literal_eval, printed)
    assert elsewhere == close(inside)
    assert len(hub.files("tester/elsewhere")["model.safetensors"]) < len(
        hub.files("tester/inside")["model.safetensors"]
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere", "tester/model"], "nowhere: no such checkpoint folder"),
        (["{empty}", "tester/model"], "no config.json; expected a folder with a model and its processor"),
        (["{vqa}", "model"], "'model' is not a repository name; expected user/name"),
        (["{vqa}", "a/b/c"], "'a/b/c' is not a repository name; expected user/name"),
        (["{vqa}", "tester/model", "--facts", "nothing"], "nothing: no such facts file"),
        (["{vqa}", "tester/model", "--facts", "shapes-nlvr2"], "the facts are of VisualBertForVisualReasoning"),
        (["{vqa}", "tester/model", "--metrics", "nowhere.json"], "nowhere.json: no such file"),
        (["{vqa}", "tester/model", "--metrics", "{broken}"], "broken.json: malformed JSON"),
        (["{vqa}", "tester/model", "--region_encoder", "{vqa}"], "expected a region encoder"),
        (["{vqa}", "tester/model", "--region_encoder", str(DETECTOR)], "the model has a region encoder already"),
        (["{vqa}", "tester/model", "--folder", "{empty}"], "exists; choose another folder or remove it"),
    ],
)
def test_what_users_get_wrong_ends_with_status_2_and_one_line(saved, tmp_path, capsys, argv, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    places = {"vqa": saved["vqa"][0], "empty": tmp_path / "empty", "broken": tmp_path / "broken.json"}
    argv = [word.format(**places) for word in argv]
    assert main(["push", *argv, "--dry_run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("visualbert push: ") and message in line


def test_a_result_says_what_was_sent(hub, small):
    pushed = push_folder(small, "tester/model")
    assert pushed == Pushed({name: len(content) for name, content in contents(small).items()}, pushed.url)
