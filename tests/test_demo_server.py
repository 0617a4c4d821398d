"""The demo as a process: real HTTP from visitors who mean well, from those who do not, and from many at once."""

import asyncio
import contextlib
import io
import json
import os
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from tiny_checkpoints import save_tiny_checkpoint

pytest.importorskip("gradio", reason='gradio is not installed: pip install "modeling-visualbert[demo]"')
import httpx
from bench_demo import QUESTIONS, image_bytes, memory_mb, running_demo, visit

QUESTION = "How many things are there?"
MEGABYTES_MORE = 400  # what a server may grow by under attack: two images of 25 megapixels at once, with copies


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and process id of a running demo."""
    folder = tmp_path_factory.mktemp("demo") / "vqa"
    save_tiny_checkpoint("vqa", folder)
    with running_demo(str(folder)) as running:
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server[0], timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def alive(server, client):
    """After the test the process still answers, and has not grown."""
    before = memory_mb(server[1])
    yield
    assert "vb-bars" in ask(client, upload(client, image_bytes(0)))[0]
    assert memory_mb(server[1]) < before + MEGABYTES_MORE


def upload(client, data, name="image.png"):
    """What the page sends as an image after uploading it."""
    response = client.post("/gradio_api/upload", files={"files": (name, data)})
    assert response.status_code == 200, response.text
    return {"path": response.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def ask(client, image, text=QUESTION, layer=0, head=-1):
    """The values of an answer, or a string that says why there is none."""
    joined = client.post("/gradio_api/call/vqa", json={"data": [image, text, "", layer, head, ""]})
    if joined.status_code != 200:
        return joined.json()["detail"]
    events = client.get(f"/gradio_api/call/vqa/{joined.json()['event_id']}").text
    kind, data = events.strip().rsplit("event: ", 1)[1].split("\ndata: ", 1)
    return json.loads(data) if kind == "complete" else str(json.loads(data)["error"])


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_a_question_is_answered(client):
    bars, seen, link = ask(client, upload(client, image_bytes(1)))
    assert bars.count("<li>") == 4
    assert "<svg" in seen and "data:image/jpeg;base64," in seen
    assert link == "?task=vqa&text=How+many+things+are+there%3F&layer=1&head=0"  # nothing of the image


@pytest.mark.parametrize(
    "name", ["my photo.png", "Größe (1).png", "写真.png", "<img src=x onerror=alert(1)>.png", "100%.png"]
)
def test_files_may_have_any_name(client, name):
    """Browsers send the address of an upload percent-encoded."""
    image = upload(client, image_bytes(1), name)
    image["url"] = f"{client.base_url}/gradio_api/file={quote(image['path'])}"
    assert "vb-bars" in ask(client, image)[0]


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello", "cannot be read as an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read as an image"),
        (image_bytes(0)[:300], "damaged"),
        (encoded(Image.new("1", (10_000, 10_000))), "100 megapixels; at most 25"),
    ],
    ids=["text", "svg", "cut", "100 megapixels"],
)
def test_uploads_that_are_no_good_images_are_refused(client, data, message):
    assert message in ask(client, upload(client, data))


@pytest.mark.usefixtures("alive")
def test_an_image_of_50_megabytes_is_not_taken(client):
    response = client.post("/gradio_api/upload", files={"files": ("big.jpg", bytes(50_000_000))})
    assert response.status_code == 413
    assert response.json()["detail"] == "The upload has 50 MB; at most 10 MB are accepted."


@pytest.mark.usefixtures("alive")
def test_an_upload_of_unknown_length_is_not_taken(client):
    def endless():
        for _ in range(1000):
            yield bytes(100_000)

    try:
        response = client.post("/gradio_api/upload", content=endless())
        assert response.status_code == 411
    except httpx.WriteError:  # the server has answered and hung up
        pass


@pytest.mark.usefixtures("alive")
def test_a_question_of_a_megabyte_is_refused(client):
    image = upload(client, image_bytes(0))
    assert "at most 64 kB are accepted" in ask(client, image, "a" * 1_000_000)
    assert "1,000 characters; at most 400" in ask(client, image, "a" * 1000)
    assert "expected at most 128" in ask(client, image, "a " * 190)


@pytest.mark.usefixtures("alive")
@pytest.mark.parametrize("body", [b"[" * 50_000, b'{"data":' + b"[" * 50_000, b"\xff", b"{", b"5"])
def test_json_that_is_none_is_refused(client, body):
    response = client.post("/gradio_api/call/vqa", content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500


@pytest.mark.parametrize(
    ("text", "layer", "head"),
    [
        (None, 0, -1),
        (5, 0, -1),
        (["a"], 0, -1),
        (QUESTION, "0", -1),
        (QUESTION, 7, -1),
        (QUESTION, 0, 4),
        (QUESTION, 0.0, -1),
    ],
)
def test_values_that_the_page_never_sends_are_refused(client, text, layer, head):
    assert ask(client, upload(client, image_bytes(0)), text, layer, head) in (
        "Please write a question.",
        "There is no such layer or head.",
    )


def test_no_image_is_asked_for(client):
    assert "Please choose an image first" in ask(client, None)


def secret(tmp_path):
    """A readable image and a text on the server's disk that no visitor uploaded."""
    (tmp_path / "secret.png").write_bytes(image_bytes(5))
    return tmp_path / "secret.png"


@pytest.mark.usefixtures("alive")
def test_no_path_from_a_request_is_opened(client, tmp_path):
    path, image = secret(tmp_path), upload(client, image_bytes(0))
    uploads = Path(image["path"]).parents[1]
    os.symlink(path, tmp_path / "link.png")
    for foreign in (
        str(path),
        f"file://{path}",
        str(tmp_path / "link.png"),
        f"{uploads}/../{path.relative_to('/')}",
        os.path.relpath(path),
        "/etc/passwd",
        "/proc/self/environ",
        "http://127.0.0.1:9/secret.png",
        "\0",
        "a" * 5000,
        5,
        {"path": str(path)},
    ):
        assert ask(client, {**image, "path": foreign}) == "This file was not uploaded here."
        assert ask(client, image, {"path": foreign, "meta": image["meta"]}) == "This file was not uploaded here."
    for url in ("http://127.0.0.1:9/x.png", "data:image/png;base64,AAAA", f"/gradio_api/file={path}"):
        assert "This address is not that of a file" in ask(client, {**image, "url": url})
    assert not isinstance(ask(client, str(path)), list)  # no file data at all


def test_nothing_is_fetched_for_visitors(client, tmp_path):
    """A server of ours would notice."""
    import http.server
    import threading

    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

    listener = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listener.server_port}/image.png"
    meta = {"_type": "gradio.FileData"}
    for data in (
        {"path": url, "meta": meta},
        {"path": None, "url": url, "meta": meta},
        {"url": url, "meta": meta},
        url,
    ):
        assert not isinstance(ask(client, data), list)
    for route in (f"/gradio_api/file={url}", f"/gradio_api/proxy={url}", f"/proxy={url}", f"/file={url}"):
        assert client.get(route).status_code in (403, 404)
    listener.shutdown()
    listener.server_close()
    assert asked == []


def test_no_file_of_the_server_is_served(client, tmp_path):
    path = secret(tmp_path)
    for route in (
        f"/gradio_api/file={path}",
        f"/gradio_api/file=/{path}",
        f"/gradio_api/file=%2F{str(path)[1:]}",
        f"/gradio_api/file=../../../../../..{path}",
        "/gradio_api/file=pyproject.toml",
        f"/gradio_api/file={Path(__file__).resolve()}",
        f"/file={path}",
        f"/static/..%2f..%2f..%2f..%2f..%2f..%2f..{path}",
        f"/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{path}",
        f"/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..{path}",
        "/gradio_api/file=/etc/passwd",
    ):
        response = client.get(route)
        assert response.status_code in (403, 404), route
        assert image_bytes(5) not in response.content and b"root:" not in response.content


@pytest.mark.parametrize(
    "route",
    [
        "/monitoring",
        "/gradio_api/deep_link",
        "/gradio_api/vibe-code",
        "/gradio_api/runs",
        "/gradio_api/run/vqa",
        "/docs",
    ],
)
def test_what_the_page_does_not_need_is_not_there(client, route):
    assert client.get(route).status_code == 404
    assert client.post(route, json={}).status_code == 404


@pytest.mark.parametrize("path", ["call/nope", "cancel", "reset", "queue/join"])
@pytest.mark.parametrize("body", ["{}", "[]", '{"data": []}', '{"data": [], "fn_index": 99}', "nothing"])
def test_no_request_is_an_error_of_the_server(client, path, body):
    answer = client.post(f"/gradio_api/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404, 422), answer.text


def test_uploads_lie_in_a_folder_of_the_process(client, server):
    path = Path(upload(client, image_bytes(0), name="../../../evil<>.png")["path"])
    assert "visualbert_demo_" in path.parts[-3]
    assert not (path.parents[3] / "evil<>.png").exists()


def test_an_image_that_was_deleted_is_explained(client):
    image = upload(client, image_bytes(6))
    Path(image["path"]).unlink()
    assert "please upload it again" in ask(client, image)


async def at_once(address, count, clients=1):
    """What many questions at the same moment get, from so many addresses."""

    async def one(number):
        client = visitors[number % clients]
        # The answer: its status and, if it went into the queue, whether there was a result.
        data = [images[number % len(images)], QUESTIONS[number % len(QUESTIONS)], "", 0, -1, ""]
        joined = await client.post("/gradio_api/call/vqa", json={"data": data})
        if joined.status_code != 200:
            return joined.status_code, joined.json()["detail"]
        events = await client.get(f"/gradio_api/call/vqa/{joined.json()['event_id']}")
        return 200, "event: complete" in events.text

    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with contextlib.AsyncExitStack() as stack:
        visitors = []
        for number in range(1, clients + 1):
            place = httpx.AsyncHTTPTransport(local_address=f"127.0.0.{number}", limits=limits)
            visitor = httpx.AsyncClient(base_url=address, timeout=240, transport=place, trust_env=False)
            visitors.append(await stack.enter_async_context(visitor))
        images = []
        for number in range(4):
            response = await visitors[0].post("/gradio_api/upload", files={"files": ("a.png", image_bytes(number))})
            images.append({"path": response.json()[0], "meta": {"_type": "gradio.FileData"}})
        return await asyncio.gather(*(one(number) for number in range(count)))


@pytest.mark.usefixtures("alive")
def test_60_questions_at_once_wait_and_are_answered(server):
    assert asyncio.run(at_once(server[0], 60)) == [(200, True)] * 60


@pytest.mark.slow
@pytest.mark.usefixtures("alive")
def test_more_than_the_queue_holds_are_refused_with_a_message(server):
    results = asyncio.run(at_once(server[0], 400, clients=50))
    assert results.count((200, True)) >= 64
    refused = [result for result in results if result != (200, True)]
    assert refused and all(status == 503 and "Queue is full" in message for status, message in refused)


@pytest.mark.slow
def test_60_large_images_at_once_do_not_fill_the_memory(server, client):
    """25 megapixels each: 75 MB decoded, 4.5 GB if all were decoded at once."""
    image = upload(client, encoded(Image.new("L", (5000, 5000), 200)))
    before = memory_mb(server[1])

    async def all_at_once():
        peak = 0.0
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=server[0], timeout=500, limits=limits, trust_env=False) as visitors:

            async def one():
                data = [image, QUESTION, "", 0, -1, ""]
                joined = await visitors.post("/gradio_api/call/vqa", json={"data": data})
                return (await visitors.get(f"/gradio_api/call/vqa/{joined.json()['event_id']}")).text

            waiting = asyncio.gather(*(one() for _ in range(60)))
            while not waiting.done():
                peak = max(peak, memory_mb(server[1]))
                await asyncio.sleep(0.1)
            return peak, waiting.result()

    peak, answers = asyncio.run(all_at_once())
    assert all("event: complete" in answer for answer in answers)
    assert peak < before + 1500


@pytest.mark.slow
def test_50_visitors_get_answers_all_the_time(server):
    result = asyncio.run(visit(server[0], users=50, seconds=15.0, pause=1.0, process_id=server[1]))
    assert result.errors == []
    assert len(result.seconds) >= 50
    assert result.memory_peak < result.memory_before + MEGABYTES_MORE


def test_the_client_of_gradio_can_ask(server, tmp_path):
    from gradio_client import Client, handle_file

    (tmp_path / "image.png").write_bytes(image_bytes(2))
    client = Client(server[0], verbose=False, analytics_enabled=False, download_files=False)
    bars, seen, link = client.predict(handle_file(tmp_path / "image.png"), QUESTION, api_name="/vqa")
    assert "vb-bars" in bars and "<svg" in seen and link.startswith("?task=vqa")
    client.close()


@pytest.mark.slow
def test_it_ends_when_it_is_told_to_and_leaves_nothing(tmp_path):
    save_tiny_checkpoint("vqa", tmp_path / "vqa")
    with running_demo(str(tmp_path / "vqa")) as (address, process_id):
        with httpx.Client(base_url=address, trust_env=False) as client:
            folder = Path(upload(client, image_bytes(0))["path"]).parents[1]
        assert folder.is_dir()
    time.sleep(0.5)
    assert not Path(f"/proc/{process_id}").exists()
    assert not folder.exists()
