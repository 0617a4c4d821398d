"""`handler.py` of a pushed checkpoint: the JSON of the Hub's widget, in a process that has never heard of this package."""

import base64
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from tiny_checkpoints import PIPELINE_TASKS, save_tiny_checkpoint
from transformers import pipeline

from modeling_visualbert.corpus.scenes import render, sample_scene

HANDLER = Path(__file__).parents[1] / "hub_cards" / "handler.py"


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


IMAGES = [render(sample_scene(number, f"handler/{number}")) for number in range(2)]
INPUTS = {
    "vqa": {"image": IMAGES[0], "question": "Is there a red star?"},
    "nlvr2": {"images": IMAGES, "statement": "Both images show a star."},
    "vcr": {
        "image": IMAGES[0],
        "question": "What color is [0]?",
        "choices": ["[0] is red.", "[0] is blue."],
        "objects": ["star"],
        "boxes": [[10, 10, 50, 50]],
    },
    "flickr30k": {"image": IMAGES[0], "sentence": "the star is red", "phrases": ["the star"]},
    "pretraining": {"image": IMAGES[0], "text": "There is a [MASK] star."},
}
RUN = """
import importlib.util, json, sys
assert importlib.util.find_spec("modeling_visualbert") is None
spec = importlib.util.spec_from_file_location("handler", sys.argv[1] + "/handler.py")
handler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(handler)
answer = handler.EndpointHandler(sys.argv[1])
for line in sys.stdin:
    try:
        print(json.dumps(answer(json.loads(line))), flush=True)
    except (ValueError, TypeError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""


def as_json(inputs):
    """Inputs as a client sends them."""
    data = dict(inputs)
    if "image" in data:
        data["image"] = encoded(data["image"])
    if "images" in data:
        data["images"] = [encoded(image) for image in data["images"]]
    return data


def answers(folder, requests, tmp_path):
    """What the handler says to each request, in a process without the package."""
    shutil.copy(HANDLER, folder / "handler.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    # An editable installation of the package is found by a file in site-packages: -S leaves such files out.
    paths = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", RUN, str(folder)],
        input="".join(f"{json.dumps(request)}\n" for request in requests),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_answers_are_those_of_the_pipeline(tmp_path):
    save_tiny_checkpoint("vqa", tmp_path / "vqa")
    expected = pipeline("visual-question-answering", model=str(tmp_path / "vqa"))(INPUTS["vqa"], top_k=2)
    request = {"inputs": as_json(INPUTS["vqa"]), "parameters": {"top_k": 2}}
    as_address = {**request["inputs"], "image": f"data:image/png;base64,{request['inputs']['image']}"}
    long = {**request["inputs"], "question": "a" * 1_000_000}
    path = {**request["inputs"], "image": str(HANDLER)}
    found = answers(
        tmp_path / "vqa",
        [request, {**request, "inputs": as_address}, {"inputs": long}, {"inputs": path}, request],
        tmp_path,
    )
    for result in (found[0], found[1], found[4]):
        assert [set(answer) for answer in result] == [{"answer", "score"}] * 2
        assert [answer["answer"] for answer in result] == [answer["answer"] for answer in expected]
        assert [answer["score"] for answer in result] == pytest.approx(
            [answer["score"] for answer in expected], abs=1e-5
        )
    assert found[2] == {"error": "question: a text of 1,000,000 characters; expected at most 2,000"}
    assert "paths and URLs are not opened" in found[3]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in INPUTS if task != "vqa"])
def test_other_tasks(task, tmp_path):
    save_tiny_checkpoint(task, tmp_path / task)
    expected = pipeline(PIPELINE_TASKS[task], model=str(tmp_path / task))(INPUTS[task])
    (found,) = answers(tmp_path / task, [{"inputs": as_json(INPUTS[task])}], tmp_path)
    assert rounded(found) == rounded(json.loads(json.dumps(expected)))


def rounded(value):
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-4)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    """The handler in this process."""
    import importlib.util

    folder = tmp_path_factory.mktemp("handler") / "vqa"
    save_tiny_checkpoint("vqa", folder)
    spec = importlib.util.spec_from_file_location("handler", HANDLER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler.__new__(module.EndpointHandler)
    handler.pipeline = pipeline("visual-question-answering", model=str(folder))
    return handler


GOOD = encoded(IMAGES[0])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (None, "no inputs"),
        ({}, "no inputs"),
        ({"inputs": "text"}, "no inputs"),
        ({"inputs": {"image": GOOD}}, "no question"),
        ({"inputs": {"question": "Is it red?"}}, "no image"),
        ({"inputs": {"image": GOOD, "question": "Is it red?", "other": 1}}, "unknown key 'other'"),
        ({"inputs": {"image": GOOD, "question": 5}}, "question is int"),
        ({"inputs": {"image": GOOD, "question": {"a": 1}}}, "question: dict; expected text"),
        ({"inputs": {"image": GOOD, "question": ["Is it red?"] * 101}}, "a list of 101 items; expected at most 100"),
        ({"inputs": {"image": GOOD, "question": [[[[["a"]]]]]}}, "more than four nested lists"),
        ({"inputs": {"image": GOOD, "question": "Is it red?"}, "parameters": {"top_k": 0}}, "top_k 0"),
        ({"inputs": {"image": GOOD, "question": "Is it red?"}, "parameters": {"batch_size": 9}}, "expected {'top_k'"),
        ({"inputs": {"image": GOOD, "question": "Is it red?"}, "parameters": "x"}, "expected {'top_k'"),
        ({"inputs": {"image": {"visual_embeds": [[0.0]]}, "question": "Is it red?"}}, "an image is dict"),
        ({"inputs": {"image": "/etc/passwd", "question": "Is it red?"}}, "an image"),
        ({"inputs": {"image": "http://127.0.0.1:9/a.png", "question": "Is it red?"}}, "URLs are not opened"),
        ({"inputs": {"image": base64.b64encode(b"hello").decode(), "question": "Is it red?"}}, "cannot be read"),
        ({"inputs": {"image": "A" * 20_000_000, "question": "Is it red?"}}, "more than 10 MB"),
        (
            {"inputs": {"image": encoded(Image.new("1", (10_000, 10_000))), "question": "?"}},
            "10000 x 10000 pixels; expected at most",
        ),
        ({"inputs": {"image": GOOD[: len(GOOD) // 8 * 4], "question": "Is it red?"}}, "damaged or truncated"),
        ({"inputs": {"images": [GOOD], "statement": "It is red."}}, "a list of two images"),
    ],
)
def test_bad_requests_are_refused_with_a_message(handler, request_, message):
    with pytest.raises((ValueError, TypeError)) as refusal:
        handler(request_)
    assert message in str(refusal.value)


def test_base64_may_be_written_in_lines(handler):
    in_lines = base64.encodebytes(base64.b64decode(GOOD)).decode()
    assert in_lines.count("\n") > 1
    expected, found = (handler({"inputs": {"image": one, "question": "Is it red?"}}) for one in (GOOD, in_lines))
    assert found == expected


def test_nothing_in_a_request_is_fetched(handler):
    """Wherever a stranger puts an address, no request arrives there."""
    with listener() as (address, requests):
        forms = (address, f"data:{address}", {"url": address}, {"path": address}, [address, address], None)
        for image in forms:
            with pytest.raises((ValueError, TypeError)):
                handler({"inputs": {"image": image, "question": "Is it red?"}})
            with pytest.raises((ValueError, TypeError)):
                handler({"inputs": {"images": image, "question": "Is it red?"}})
        with pytest.raises(ValueError, match="no image"):
            handler({"inputs": {"question": address}})
        assert handler({"inputs": {"image": GOOD, "question": address}})
        assert requests == []


@contextmanager
def listener():
    """An address on this machine and the paths that are asked for there."""
    requests = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/image.png", requests
    finally:
        server.shutdown()
        server.server_close()
