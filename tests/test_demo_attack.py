"""The demo while strangers attack it: every bound over real HTTP, on a page of gradio whose question takes no model."""

import asyncio
import contextlib
import json
import os
import socket
import time

import pytest
from PIL import Image
from tiny_checkpoints import save_tiny_checkpoint

pytest.importorskip("gradio", reason='gradio is not installed: pip install "modeling-visualbert[demo]"')
import gradio as gr
import httpx
from attack_demo import SCRIPTS, attacked
from bench_demo import running_demo, visit

from modeling_visualbert.demo import connections, limits, questions, uploads
from modeling_visualbert.demo.clients import Places, RefusedError, client_of
from modeling_visualbert.demo.connections import believe_proxies


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unknown", "unknown"),
    ],
)
def test_who_counts_as_one_client(address, client):
    assert client_of(address) == client


def test_places_are_given_in_turn_and_the_rest_is_refused():
    places = Places(1, 1, 0.1, "please wait")
    order = []

    async def hold(name, seconds):
        try:
            async with places.taken("a"):
                order.append(name)
                await asyncio.sleep(seconds)
        except RefusedError as error:
            order.append(f"{name}: {error.status} {error}")

    async def all_at_once():
        await asyncio.gather(hold("first", 0.03), hold("second", 0), hold("third", 0))
        await asyncio.gather(hold("long", 0.4), hold("late", 0))
        async with places.taken("a"), places.taken("b"):
            order.append("both")

    asyncio.run(all_at_once())
    assert order.index("first") < order.index("second")
    assert sorted(order) == ["both", "first", "late: 429 please wait", "long", "second", "third: 429 please wait"]
    assert places._clients == {}


def test_a_client_has_half_of_the_room_for_uploads():
    kept, half = limits.KeptBytes(), limits.MAX_KEPT_BYTES // 2
    assert kept.add(half, "a")
    assert not kept.has_room(1, "a")
    assert kept.add(half, "b")
    assert not kept.has_room(1, "c")


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Serves a page that takes an image and a text, with given values of constants; returns its address and the page."""
    pages = []

    def start(wait=0.0, environment=(), **constants):
        for variable in ("FORWARDED_ALLOW_IPS", "GRADIO_TEMP_DIR"):
            monkeypatch.setenv(variable, str(tmp_path))
        monkeypatch.delenv("FORWARDED_ALLOW_IPS")
        for name, value in environment:
            monkeypatch.setenv(name, value)
        for name, value in constants.items():
            for module in (limits, questions, connections):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        from modeling_visualbert.demo.page import launch_page

        def answer(image, text):
            time.sleep(wait)
            return f"{text} is answered"

        with gr.Blocks() as page:
            image, text = gr.File(), gr.Textbox()
            gr.Button().click(
                answer, [image, text], gr.HTML(), api_name="vqa", concurrency_id="model", preprocess=False
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pages.append(page)
        return launch_page(page, "127.0.0.1", port).rstrip("/"), page

    yield start
    for page in pages:
        page.close()


def client_at(url, source, **options):
    return httpx.AsyncClient(
        base_url=url,
        transport=httpx.AsyncHTTPTransport(local_address=source, limits=httpx.Limits(max_connections=None)),
        timeout=60,
        trust_env=False,
        **options,
    )


async def ask(client, image=None, fetch=True):
    """The answer, or the status and the reason why there is none."""
    joined = await client.post("/gradio_api/call/vqa", json={"data": [image, "hello"]})
    if joined.status_code != 200 or not fetch:
        return joined.status_code, joined.json().get("detail")
    return (await client.get(f"/gradio_api/call/vqa/{joined.json()['event_id']}")).text


def test_one_client_cannot_fill_the_queue(launch):
    url, page = launch(OPEN_OF_ONE=3, QUESTIONS_WAITING=4)

    async def attack():
        async with client_at(url, "127.0.0.2") as stranger, client_at(url, "127.0.0.1") as visitor:
            asked = [asyncio.create_task(ask(stranger, fetch=False)) for _ in range(20)]
            done, waiting = await asyncio.wait(asked, timeout=3)
            answer = await ask(visitor)
            for task in waiting:
                task.cancel()
            return [task.result() for task in done], len(waiting), answer

    results, waiting, answer = asyncio.run(attack())
    assert results.count((200, None)) == 3
    assert 0 < waiting <= 5  # one that is next, and up to four behind it
    assert len(results) >= 15
    assert {result for result in results if result[0] != 200} == {(429, questions._TOO_MANY)}
    assert "hello is answered" in answer


def test_who_fetches_answers_can_ask_any_number_of_questions(launch):
    url, _ = launch(OPEN_OF_ONE=2, wait=0.02)

    async def visit_many_times():
        async with client_at(url, "127.0.0.1") as visitor:
            return await asyncio.gather(*(ask(visitor) for _ in range(30)))

    assert all("hello is answered" in answer for answer in asyncio.run(visit_many_times()))


def test_answers_that_nobody_fetches_are_forgotten(launch):
    url, page = launch(OPEN_OF_ONE=2, UNFETCHED_SECONDS=0.3)

    async def attack():
        async with client_at(url, "127.0.0.2") as stranger:
            return [await ask(stranger, fetch=False) for _ in range(7)]

    assert asyncio.run(attack()) == [(200, None)] * 7
    assert len(page._queue.pending_messages_per_session) <= 2
    assert len(page._queue.pending_event_ids_session) <= 2


def test_large_images_are_in_the_queue_one_after_another(launch, tmp_path):
    url, page = launch(wait=0.15, SMALL_PIXELS=1000, PIXELS_AT_ONCE=10_000)
    Image.new("L", (90, 90)).save(tmp_path / "large.png")
    most = []

    async def all_at_once():
        async with client_at(url, "127.0.0.2") as stranger, client_at(url, "127.0.0.1") as visitor:
            sent = await stranger.post("/gradio_api/upload", files={"files": (tmp_path / "large.png").open("rb")})
            image = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
            asked = asyncio.gather(*(ask(stranger, image) for _ in range(6)))
            small = asyncio.create_task(ask(visitor))
            while not asked.done():
                most.append(len([e for e in list(page._queue.event_ids_to_events.values()) if e.data.data[0]]))
                await asyncio.sleep(0.01)
            return asked.result(), await small

    answers, small = asyncio.run(all_at_once())
    assert all("hello is answered" in answer for answer in (*answers, small))
    assert max(most) == 1


def test_event_streams_of_a_client_are_bounded(launch):
    url, _ = launch(STREAMS_OF_ONE=3)
    assert asyncio.run(open_streams(url, ["127.0.0.2"] * 5 + ["127.0.0.1"])) == [200, 200, 200, 429, 429, 200]


async def open_streams(url, sources, headers=None):
    """Statuses of event streams that are open at once."""
    statuses = []
    async with contextlib.AsyncExitStack() as stack:
        for number, source in enumerate(sources):
            client = await stack.enter_async_context(
                client_at(url, source, headers=headers[number] if headers else None)
            )
            response = await stack.enter_async_context(client.stream("GET", f"/gradio_api/heartbeat/a{number}"))
            statuses.append(response.status_code)
    return statuses


def test_forged_addresses_are_not_believed(launch):
    url, _ = launch(STREAMS_OF_ONE=2)
    forged = [{"x-forwarded-for": f"203.0.113.{number}"} for number in range(4)]
    assert asyncio.run(open_streams(url, ["127.0.0.1"] * 4, forged)) == [200, 200, 429, 429]


def test_behind_a_proxy_its_word_counts(launch):
    """The last address is what the proxy saw; what stands before it is what the client said."""
    url, _ = launch(STREAMS_OF_ONE=2, environment=[("FORWARDED_ALLOW_IPS", "127.0.0.1")])
    said = [{"x-forwarded-for": f"198.51.100.{number}, 203.0.113.7"} for number in range(3)]
    said += [{"x-forwarded-for": "203.0.113.8"}]
    assert asyncio.run(open_streams(url, ["127.0.0.1"] * 4, said)) == [200, 200, 429, 200]


@pytest.mark.parametrize(
    ("space", "set_to", "expected"), [("", None, ""), ("u/s", None, "10.0.0.0/8"), ("u/s", "x", "x")]
)
def test_proxies_that_are_believed(space, set_to, expected, monkeypatch):
    monkeypatch.setenv("SPACE_ID", space)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", set_to or "")
    if set_to is None:
        monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    believe_proxies()
    assert os.environ["FORWARDED_ALLOW_IPS"].startswith(expected)


def raw(url, source="127.0.0.2"):
    """An open connection to the server."""
    place = httpx.URL(url)
    connection = socket.create_connection((place.host, place.port), timeout=20, source_address=(source, 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return connection


def read_all(connection):
    received = b""
    try:
        while block := connection.recv(1 << 16):
            received += block
    except ConnectionError:  # the server hung up while something was under way
        pass
    connection.close()
    return received.decode()


def test_connections_of_a_client_are_bounded(launch):
    url, _ = launch(MAX_CONNECTIONS_OF_ONE=3)
    opened = [raw(url) for _ in range(3)]
    time.sleep(0.2)
    refused = read_all(raw(url))
    assert refused.startswith("HTTP/1.1 429") and "Too many connections from your address" in refused
    assert httpx.get(f"{url}/theme.css", trust_env=False).status_code == 200
    for connection in opened:
        connection.close()


def test_connections_of_all_are_bounded(launch):
    url, _ = launch(MAX_CONNECTIONS=3)
    opened = [raw(url, f"127.0.0.{number}") for number in (2, 3, 4)]
    time.sleep(0.2)
    assert read_all(raw(url, "127.0.0.5")).startswith("HTTP/1.1 503")
    for connection in opened:
        connection.close()


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nx: "])
@pytest.mark.parametrize("is_second", [False, True])
def test_slow_headers_are_given_up(launch, first, is_second):
    url, _ = launch(HEADER_SECONDS=0.5)
    connection = raw(url)
    if is_second:
        connection.sendall(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        first = first or b"G"
    connection.sendall(first)
    received = read_all(connection)
    assert received.startswith("HTTP/1.1 408") and "Too slow." in received


def test_bodies_in_other_encodings_are_refused(launch):
    url, _ = launch()
    body = json.dumps({"data": [], "event_id": "a"}).encode("utf-16")
    headers = {"content-type": "multipart/form-data"}
    answer = httpx.post(f"{url}/gradio_api/reset", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 400 and "Expected JSON." in answer.text


def test_endless_headers_are_given_up(launch):
    url, _ = launch()
    connection = raw(url)
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000)
    except ConnectionError:
        return
    assert read_all(connection)[:12] in ("HTTP/1.1 400", "HTTP/1.1 431", "")


def test_slow_bodies_are_given_up(launch):
    url, _ = launch(BODY_SECONDS=0.5)
    connection = raw(url)
    connection.sendall(b"POST /gradio_api/call/vqa HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    received = read_all(connection)
    assert received.startswith("HTTP/1.1 408") and "The request took longer than 0.5 seconds." in received


def test_who_does_not_read_is_disconnected(launch):
    url, page = launch(READ_SECONDS=0.5)
    sent = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", bytes(9_000_000))}, trust_env=False)
    connection = raw(url)
    connection.sendall(f"GET /gradio_api/file={sent.json()[0]} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    end = time.monotonic() + 20
    while not page.server.server_state.connections and time.monotonic() < end:
        time.sleep(0.05)
    while page.server.server_state.connections and time.monotonic() < end:
        time.sleep(0.05)
    assert not page.server.server_state.connections
    connection.close()


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("query", "kind", "content"),
    [
        ("", FORM, b'--x\r\ncontent-disposition: form-data; name="files"\r\n\r\ntext\r\n--x--\r\n'),
        ("?upload_id=a", FORM, b'--x\r\ncontent-disposition: form-data; name="files"\r\n\r\ntext\r\n--x--\r\n'),
        ("", FORM, b"--x\r\nno header\r\n\r\n"),
        ("", "multipart/form-data", b"--x"),
        ("", "text/html", b"<p>"),
    ],
)
def test_uploads_that_are_none_are_refused(launch, query, kind, content):
    url, _ = launch()
    answer = httpx.post(
        f"{url}/gradio_api/upload{query}", content=content, headers={"content-type": kind}, trust_env=False
    )
    assert answer.status_code in (400, 413)


def test_uploads_of_many_files_are_refused(launch):
    """A thousand would be written to disk."""
    url, _ = launch()
    files = [("files", (f"{number}.png", b"x")) for number in range(9)]
    assert httpx.post(f"{url}/gradio_api/upload", files=files[:8], trust_env=False).status_code == 200
    answer = httpx.post(f"{url}/gradio_api/upload", files=files, trust_env=False)
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "The upload has more than 8 files; the page sends one or two.",
    )


def test_what_is_left_of_broken_uploads_is_deleted(launch, tmp_path, monkeypatch):
    """Of a visitor who hung up; nothing of others in a folder that is not the demo's own."""
    monkeypatch.setattr(uploads, "REMAINS_SECONDS", -1)
    url, _ = launch()
    connection = raw(url)
    head = b"POST /gradio_api/upload HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(100_000)
    connection.sendall(head + b"content-length: 900000\r\n\r\n" + part)
    end = time.monotonic() + 20
    while not list(tmp_path.glob("tmp*")) and time.monotonic() < end:
        time.sleep(0.05)
    connection.close()
    limits.RequestLimits(None, tmp_path)._tidy()
    assert len(list(tmp_path.glob("tmp*"))) == 1
    limits.RequestLimits(None, tmp_path, is_own_folder=True)._tidy()
    assert not list(tmp_path.glob("tmp*"))


@pytest.mark.parametrize("value", ["NaN", "1e400", '"\\ud800"', "9" * 5000])
@pytest.mark.parametrize("path", ["call/vqa", "queue/join", "cancel", "reset"])
def test_values_that_cannot_be_repeated_are_refused(launch, path, value):
    url, _ = launch()
    body = f'{{"data": [null, {value}], "event_id": [{value}], "session_hash": {value}, "fn_index": {value}}}'
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/gradio_api/{path}", content=body, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["detail"]) == (400, "Expected JSON.")


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.xhtml", f"{SCRIPTS[1]}.htm", "a"])
def test_uploads_are_never_shown_as_pages(launch, name):
    url, _ = launch()
    sent = httpx.post(f"{url}/gradio_api/upload", files={"files": (name, SCRIPTS[0].encode())}, trust_env=False)
    answer = httpx.get(f"{url}/gradio_api/file={sent.json()[0]}", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.slow
def test_the_demo_withstands_all_attacks_at_once(tmp_path):
    save_tiny_checkpoint("vqa", tmp_path)
    with running_demo(str(tmp_path)) as (url, process_id), attacked(url, 20.0) as got:
        visitor = asyncio.run(visit(url, 1, 18.0, 0.2, process_id))
        answers = got.result()
    assert answers["500"] == 0
    assert answers["200"] > 50 and answers["429"] > 50 and answers["408"] > 50
    assert visitor.errors == [] and len(visitor.seconds) > 5
    assert visitor.memory_peak < 1000
