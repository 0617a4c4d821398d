"""`--push_to_hub`: the trained model is published at the end, and what would prevent that is found out before."""

import json
import subprocess
from dataclasses import asdict

import processes
import pytest
from clean_process import hub_environment
from hub_server import serve, talk_to
from huggingface_hub import constants
from toy_training import toy_args, toy_task

from modeling_visualbert.publish import push
from modeling_visualbert.publish.push import check_push
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import SECRETS


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine, which this process talks to as `tester`."""
    with serve() as running:
        talk_to(running, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_tester")
        running.add("tester/public", {"README.md": b"old"})
        yield running


def hub_args(output_dir, **changes):
    values = {**asdict(toy_args(output_dir)), "push_to_hub": True, "hub_model_id": "tester/toy", **changes}
    return VqaArgs(**values)


def toy_without_pictures(args, accelerator):
    task = toy_task()
    task.draw = task.write_results = None
    return task


def never(args, accelerator):
    raise AssertionError("the run began")


def test_the_best_model_is_published_with_card_and_metrics(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(push, "try_repository", lambda *_, **__: "")  # takes ten seconds; see the slow test
    args = hub_args(tmp_path / "run", hub_token="hf_tester", hub_private_repo=True)
    monkeypatch.delenv("HF_TOKEN")
    run_task(toy_without_pictures, args)
    files = hub.files("tester/toy")
    assert hub.repositories["tester/toy"].private
    assert files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["splits"]["dev"]["accuracy"]
    assert json.loads(files["metrics.json"])["splits"]["dev"]["accuracy"] == accuracy
    assert f"{accuracy:.2f}" in files["README.md"].decode()
    assert f"published: {hub.url}/tester/toy/commit/" in capsys.readouterr().out
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not any(b"hf_tester" in content for content in (*files.values(), *(path.read_bytes() for path in written)))
    assert "hf_tester" not in repr(args)
    assert SECRETS == ("hub_token",)


@pytest.mark.parametrize(
    ("repo_id", "token", "options", "message"),
    [
        ("toy", "hf_tester", {}, "'toy' is not a repository name; expected user/name"),
        (
            "tester/toy",
            "hf_wrong",
            {},
            "tester/toy: wrong or missing token; log in with `hf auth login` or set HF_TOKEN",
        ),
        ("tester/toy", None, {}, "tester/toy: no token; log in with `hf auth login` or set HF_TOKEN"),
        ("tester/toy", "hf_reader", {}, "tester/toy: this token may only read; expected one that may write"),
        ("other/toy", "hf_tester", {}, "other/toy: the token is that of tester; expected tester/NAME"),
        (
            "tester/public",
            "hf_tester",
            {"hub_private_repo": True},
            "tester/public exists and is public; expected a priv",
        ),
    ],
)
def test_what_would_fail_at_the_end_fails_at_once(hub, tmp_path, monkeypatch, repo_id, token, options, message):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    args = hub_args(tmp_path / "run", hub_model_id=repo_id, hub_token=token, **options)
    with pytest.raises((ValueError, PermissionError)) as raised:
        run_task(never, args)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    assert set(hub.repositories) == {"tester/public"}


def test_a_hub_that_is_not_there_is_named_at_once(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="tester/toy: http://127.0.0.1:9 refused the push or cannot be reached"):
        check_push("tester/toy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9 was not contacted: .*HF_HUB_OFFLINE"):
        check_push("tester/toy")


def test_a_push_that_fails_leaves_the_model_and_says_how_to_send_it(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "try_repository", lambda *_, **__: "")
    hub.failures["POST /commit/"] = (500, "told by the server")
    with pytest.raises(ConnectionError) as raised:
        run_task(toy_without_pictures, hub_args(tmp_path))
    assert "told by the server" in str(raised.value)
    assert str(raised.value).endswith(
        f"the trained model is in {tmp_path}/best, and `visualbert push {tmp_path} tester/toy` sends it"
    )
    assert (tmp_path / "best" / "model.safetensors").is_file() and (tmp_path / "metrics.json").is_file()
    assert set(hub.repositories) == {"tester/public"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "--push_to_hub without --hub_model_id; expected the name of the repository, user/name"),
        ({"hub_model_id": "a/b"}, "--hub_model_id without --push_to_hub; expected both"),
        ({"hub_private_repo": True}, "--hub_private_repo without --push_to_hub; expected both"),
        ({"hub_token": "x"}, "--hub_token without --push_to_hub; expected both"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VqaArgs("x", **options)


TOY_RUN = """
import sys
from test_training_push import hub_args, toy_without_pictures
from modeling_visualbert.tasks.run import run_task
from modeling_visualbert.training.accelerator import end_run
*_, accelerator = run_task(toy_without_pictures, hub_args(sys.argv[1]))
end_run(accelerator)
"""


@pytest.mark.slow
def test_one_of_two_processes_publishes(hub, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(TOY_RUN)
    environment = processes.environment(ACCELERATE_USE_CPU="true", **hub_environment(hub))
    environment["PYTHONPATH"] += f":{processes.ROOT / 'tests'}"
    command = [*processes.launcher(2), str(script), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("published: ") == 1
    assert hub.repositories["tester/toy"].titles == ["initial commit", "Upload VisualBERT"]
    assert hub.files("tester/toy")["model.safetensors"] == (tmp_path / "run/best/model.safetensors").read_bytes()
