"""Requests: the handler of inference endpoints with payloads of any form, and the demo's routes over HTTP."""

import base64
import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from campaign import Outcome, attempt, examples, judge
from hypothesis import given, strategies
from image_mutations import encoded, image, mutate_image
from mutations import DEPTH, DIGITS, mutate_json
from tiny_checkpoints import save_tiny_checkpoint

HANDLER = Path(__file__).parents[2] / "hub_cards" / "handler.py"
GOOD = base64.b64encode(encoded(image(), "PNG")).decode()
DEEP = json.loads("[" * 400 + "]" * 400)
VALUES = (
    *(
        None,
        True,
        0,
        1,
        -1,
        3,
        1.5,
        1e400,
        10**400,
        "",
        "x",
        "x" * 100_000,
        "\0",
        "\ud800",
        "[MASK]" * 300,
        "?",
        DIGITS,
    ),
    *([], {}, ["a"], [None], ["Is it red?"] * 200, [[["a"]]], {"a": 1}, {"bytes": "a"}, {"path": "/etc/passwd"}, DEEP),
    *("/etc/passwd", "http://127.0.0.1:9/a.png", "data:image/png;base64,", "data:", {"visual_embeds": [[0.0]]}, b"a"),
)
_FIELDS = ("image", "question", "images", "statement", "choices", "objects", "boxes", "sentence", "text", "x")


def payload(random):
    """A request like those of the Hub's widget, with something else somewhere."""
    inputs = {"image": GOOD, "question": "Is there a red star?"}
    data = {"inputs": inputs, "parameters": {"top_k": 2}}
    kind = random.randrange(6)
    if kind == 0:
        inputs[random.choice(_FIELDS)] = random.choice(VALUES)
    elif kind == 1:
        data["parameters"] = random.choice(
            [{random.choice(["top_k", "attention", "x"]): random.choice(VALUES)}, *VALUES]
        )
    elif kind == 2:
        del inputs[random.choice(list(inputs))]
    elif kind == 3:
        data[random.choice(["inputs", "x"])] = random.choice(VALUES)
    elif kind == 4:
        inputs["image"] = random.choice(
            [GOOD[:-3], base64.encodebytes(GOOD.encode()).decode(), GOOD * 3, f" \n{GOOD}", GOOD[9:]]
        )
    else:
        inputs["image"] = base64.b64encode(mutate_image(random)).decode()
    return data if random.randrange(20) else random.choice(VALUES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http") / "vqa"
    save_tiny_checkpoint("vqa", folder)
    return folder


@pytest.fixture(scope="module")
def handler(checkpoint):
    spec = importlib.util.spec_from_file_location("handler", HANDLER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(checkpoint))


@pytest.fixture(scope="module")
def usual(handler):
    return attempt(lambda: handler({"inputs": {"image": GOOD, "question": "Is there a red star?"}}))


# What a message of the endpoint names: the image, or the key that is wrong.
NAMES = (*_FIELDS, "input", "parameters", "top_k", "key")


@pytest.mark.filterwarnings("ignore")
@examples(60)
@given(random=strategies.randoms(use_true_random=False))
def test_endpoint(random, handler, usual):
    data = payload(random)
    outcome = attempt(lambda: json.dumps(handler(data)))
    # To an endpoint, a wrong type is the sender's mistake too.
    judge("endpoint", replace(outcome, is_ours=outcome.is_ours or outcome.error == "TypeError"), NAMES, usual)


@pytest.fixture(scope="module")
def server(checkpoint):
    pytest.importorskip("gradio", reason='gradio is not installed: pip install "modeling-visualbert[demo]"')
    from bench_demo import running_demo

    with running_demo(str(checkpoint)) as running:
        yield running


ROUTES = (
    "upload",
    "call/vqa",
    "call/nope",
    "queue/join",
    "queue/data",
    "cancel",
    "reset",
    "info",
    "config",
    "heartbeat/a",
)
ODD = (
    "../" * 9 + "etc/passwd",
    "%00",
    "file=/etc/passwd",
    "file=http://127.0.0.1:9/a",
    "x" * 3000,
    "call/vqa/" + "0" * 32,
    "",
)
HEADERS = (
    {"content-type": "application/json"},
    {"content-type": "multipart/form-data; boundary=a"},
    {"content-type": "multipart/form-data"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": "\xff", "accept": "\x80", "cookie": "a=" + "b" * 3000},
    {"x-forwarded-for": "' OR 1=1", "host": "elsewhere", "range": "bytes=-1", "if-none-match": "*"},
    {"accept-encoding": "a;q=x", "connection": "upgrade", "upgrade": "websocket"},
)


def body(random):
    """JSON of a question, of anything else, or parts of an upload that are damaged."""
    question = json.dumps({"data": [None, "Is it red?", "", 0, -1, ""], "fn_index": 0, "session_hash": "a"}).encode()
    start = b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    content = mutate_image(random)[:50_000]
    return random.choice(
        [
            mutate_json(question, random),
            mutate_json(question, random)[:60_000],
            b"[" * DEPTH,
            start + content + b"\r\n--a--\r\n",
            start + content,
            start.replace(b"a.png", b"../\0\r" + b"x" * 300) + content + b"\r\n--a--\r\n",
            start * 50 + b"--a--",
            b"",
            random.randbytes(200),
        ]
    )


def tried(client, method, path, headers, content):
    """The answer of the server as an outcome. It is clear if its status says that the request is wrong."""
    import httpx

    started = time.monotonic()
    try:
        with client.stream(method, path, headers=headers, content=content) as response:
            status, said = response.status_code, b"" if response.status_code < 400 else response.read()
    except httpx.HTTPError as error:  # the server has hung up on what is no HTTP, which is clear
        status, said = 400, repr(error).encode()
    seconds = time.monotonic() - started
    if status < 400:
        return Outcome(answer=str(status), seconds=seconds)
    return Outcome(
        error=str(status),
        said=f"{status} {said.decode(errors='replace')[:200]!r}",
        is_ours=status < 500,
        seconds=seconds,
    )


@pytest.mark.filterwarnings("ignore")
@examples(60)
@given(random=strategies.randoms(use_true_random=False))
def test_demo(random, server):
    import httpx

    method = random.choice(["GET", "POST", "POST", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X" * 50])
    path = random.choice(["/", "/gradio_api/", "/gradio_api/", "/gradio_api/"]) + random.choice(
        [*ROUTES, *ROUTES, *ODD]
    )
    headers = {name: value.encode("latin1") for name, value in random.choice(HEADERS).items()}
    with httpx.Client(base_url=server[0], timeout=60, trust_env=False) as client:
        outcome = tried(client, method, path, headers, body(random))
        # The time is that of a shared machine; what counts is that the server answers, and is there afterwards.
        judge("demo over HTTP", outcome, ["4"], Outcome(answer="", seconds=30.0))
    # On another connection: one whose request went on after its answer may be hung up.
    assert httpx.get(f"{server[0]}/config", timeout=60, trust_env=False).status_code == 200
