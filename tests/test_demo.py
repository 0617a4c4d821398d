"""The demo without a browser: what checkpoints answer, what is drawn, and what visitors may send."""

import asyncio
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_image_processor import chunk
from tiny_checkpoints import save_tiny_checkpoint
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

from modeling_visualbert.cli import main
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.demo import limits
from modeling_visualbert.demo.checkpoint import EXPLANATIONS, Checkpoint, Look, split_phrases
from modeling_visualbert.demo.drawing import Bars, View, bars_html, views_html
from modeling_visualbert.demo.examples import read_examples, scene_examples
from modeling_visualbert.demo.limits import check_text, open_image, split_choices
from modeling_visualbert.hub_code.explain_visualbert import explain_answers
from modeling_visualbert.visualization import answer_attention

TASKS = ("vqa", "nlvr2", "vcr", "flickr30k", "pretraining")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny checkpoint of each task."""
    root = tmp_path_factory.mktemp("demo")
    for task in TASKS:
        save_tiny_checkpoint(task, root / task)
    return {task: str(root / task) for task in TASKS}


@pytest.fixture(scope="module")
def checkpoints(folders):
    return {task: Checkpoint(folder) for task, folder in folders.items()}


@pytest.fixture(scope="module")
def examples():
    return scene_examples()


# What checkpoints answer


@pytest.mark.parametrize("task", TASKS)
def test_every_example_is_answered(task, checkpoints, examples):
    checkpoint = checkpoints[task]
    assert checkpoint.task == task
    for example in examples.of_task[task]:
        images = [examples.images[name] for name in example.images]
        answer = checkpoint.answer(images, example.text, example.choices)
        assert len(answer.views) == len(images)
        for group in answer.bars:
            scores = [score for _, score in group.rows]
            assert all(0.0 <= score <= 1.0 for score in scores)
            if group.ranked:
                assert scores == sorted(scores, reverse=True)
                assert sum(scores) <= 1.0 + 1e-5
        for view in answer.views:
            assert len(view.boxes) == len(view.names) == len(view.weights) > 2
            assert all(0.0 <= weight <= 1.0 for weight in view.weights)
        assert "all heads" in answer.note


def test_answers_and_attention_are_those_of_the_model(folders, checkpoints, examples):
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folders["vqa"]).eval()
    processor = AutoProcessor.from_pretrained(folders["vqa"])
    image, question = examples.images["stars"], "What color is the diamond?"
    inputs = processor(images=[image], text=[question])
    with torch.no_grad():
        found = model.get_image_features(inputs["pixel_values"])
        expected = processor.post_process_question_answering(model(**inputs))[0]
    answer = checkpoints["vqa"].answer([image], question)
    for (name, score), best in zip(answer.bars[0].rows, expected, strict=False):
        assert (name, score) == (best["answer"], pytest.approx(best["score"], abs=1e-5))
    texts = processor(images={key: found[key] for key in ("visual_embeds", "visual_attention_mask")}, text=[question])
    weights = answer_attention(model, **texts)[0][found["visual_attention_mask"][0].bool()]
    assert answer.views[0].weights == pytest.approx(weights.tolist(), abs=1e-5)


def test_layers_and_heads_differ_and_average(checkpoints, examples):
    checkpoint, image = checkpoints["vqa"], examples.images["stars"]
    heads = [
        checkpoint.answer([image], "Is there a star?", look=Look(0, head)).views[0].weights
        for head in range(checkpoint.num_heads)
    ]
    mean = checkpoint.answer([image], "Is there a star?", look=Look(0)).views[0].weights
    assert heads[0] != pytest.approx(heads[1], abs=1e-3)
    assert mean == pytest.approx(torch.tensor(heads).mean(dim=0).tolist(), abs=1e-6)


@pytest.mark.parametrize("way", EXPLANATIONS)
def test_answers_are_explained(way, checkpoints, examples):
    checkpoint, image = checkpoints["vqa"], examples.images["stars"]
    answer = checkpoint.answer([image], "Is there a star?", look=Look(1, explanation=way))
    inputs = checkpoint.processor(images=[checkpoint.regions(image)], text=["Is there a star?"])
    (explained,) = explain_answers(checkpoint.model, checkpoint.processor, inputs)
    expected = torch.tensor([max(0.0, region[way]) for region in explained["regions"]])
    if way == "gradient":
        expected /= expected.sum()
    assert answer.views[0].weights == pytest.approx(expected.tolist(), abs=1e-5)
    assert answer.views[0].measure in views_html(answer.views, answer.note)
    assert answer.bars[0].rows[0][0] == explained["answer"]
    assert checkpoints["nlvr2"].explanations == ()


def test_regions_are_found_once_and_remembered_for_some_images_only(folders, monkeypatch):
    checkpoint = Checkpoint(folders["vqa"])
    calls = []
    find = checkpoint.model.get_image_features
    monkeypatch.setattr(checkpoint.model, "get_image_features", lambda **k: calls.append(1) or find(**k))
    for number in (0, 0, 1, 0):
        checkpoint.answer([render(sample_scene(number, f"kept/{number}"))], "Is there a star?")
    assert len(calls) == 2
    for number in range(40):
        checkpoint.regions(render(sample_scene(number, f"many/{number}")))
    assert len(checkpoint._regions) == 32


@pytest.mark.parametrize("task", TASKS)
def test_an_image_without_things_is_answered_or_refused(task, checkpoints, examples):
    blank = Image.new("RGB", (64, 48), "white")
    example = examples.of_task[task][0]
    text = "What is this ?" if task == "vcr" else example.text
    choices = ["a star .", "a circle ."] if task == "vcr" else ()
    images = [blank] * len(example.images)
    found = len(checkpoints[task].regions(blank)["boxes"])
    if task == "flickr30k" and not found:
        with pytest.raises(ValueError, match="Nothing was found"):
            checkpoints[task].answer(images, text, choices)
    else:
        assert len(checkpoints[task].answer(images, text, choices).views[0].boxes) == found


def test_things_are_numbered_from_left_to_right(checkpoints, examples):
    view = checkpoints["vcr"].objects(examples.images["stars"])
    centers = [(box[0] + box[2]) / 2 for box in view.boxes]
    assert centers == sorted(centers)
    assert [label for _, label in view.marks][:2] == ["[0] cross", "[1] triangle"]


def test_phrases_stand_in_brackets():
    sentence, phrases, last = split_phrases("[The red square] is above [a cross].")
    assert (sentence, phrases) == ("The red square is above a cross .", ["The red square", "a cross"])
    assert [sentence.split()[i] for i in last] == ["square", "cross"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("the red square", "in brackets"), ("[ ] is red", "without a word"), ("[the [red] square", "no partner")],
)
def test_brackets_that_mean_nothing_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        split_phrases(text)


def test_checkpoints_that_cannot_see_are_refused(tmp_path, folders):
    config = json.loads((tmp_path.joinpath(folders["vqa"]) / "config.json").read_text())
    for name, change, message in (
        ("blind", {"region_encoder_config": None}, "blind has no region encoder"),
        ("base", {"architectures": ["VisualBertModel"]}, "base is a VisualBertModel checkpoint; expected one of"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            Checkpoint(str(tmp_path / name))


# What is drawn

VIEW = View(Image.new("RGB", (160, 128), "white"), [[10, 10, 60, 60], [70, 10, 150, 90]], ["a <b>", "c"], [0.1, 0.4])


def svg_of(html):
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", html)[0])


def test_the_strongest_region_is_orange_thick_and_last():
    boxes = svg_of(views_html([VIEW], "")).findall("rect")
    assert [box.get("x") for box in boxes] == ["10.0", "70.0"]
    quiet, loud = boxes
    assert loud.get("stroke") == "#e6550d"
    assert float(loud.get("stroke-width")) > float(quiet.get("stroke-width"))
    assert float(loud.get("fill-opacity")) > float(quiet.get("fill-opacity"))


def test_labels_are_shares_of_all_images_and_stay_inside():
    svg = svg_of(views_html([VIEW, VIEW], ""))
    assert sorted(label.text for label in svg.findall("text")) == ["10%", "40%"]
    for label in svg.findall("text"):
        assert 0 <= float(label.get("x")) < 150
        assert 0 < float(label.get("y")) < 128


def test_text_of_others_is_escaped():
    html = bars_html([Bars("<script>", [("<img src=x onerror=alert(1)>", 0.5)])])
    html += views_html([View(VIEW.image, VIEW.boxes, VIEW.names, None, [(0, "<script>alert(1)</script>")])], "<i>")
    assert not re.search(r"<(script|img|i|b)\b", html)


def test_no_regions_and_no_attention_are_drawn_too():
    empty = View(VIEW.image, [], [], [])
    assert not svg_of(views_html([empty], "nothing")).findall("rect")
    assert len(svg_of(views_html([View(VIEW.image, VIEW.boxes, ["", ""])], "")).findall("rect")) == 2


def test_large_images_are_sent_small():
    html = views_html([View(Image.effect_noise((4000, 3000), 50).convert("RGB"), [], [])], "")
    assert len(html) < 600_000
    assert svg_of(html).get("viewBox") == "0 0 4000 3000"


# What visitors may send


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_images_of_phones_are_opened(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # held upright
    path = saved(Image.new("RGB", (400, 300), "red"), tmp_path / "phone.jpg", exif=exif)
    assert open_image(path).size == (300, 400)


@pytest.mark.parametrize(
    "bad", ["megapixels", "bomb", "bytes", "text", "svg", "eps", "cut", "chunk", "animated", "tiny", "empty"]
)
def test_bad_uploads_are_refused_in_one_sentence(bad, tmp_path):
    path, message = tmp_path / "upload", "cannot be read as an image"
    image = Image.new("L", (32, 32))
    if bad == "megapixels":
        saved(Image.new("1", (10_000, 10_000)), path, format="PNG")
        message = "100 megapixels; at most 25"
    elif bad == "bomb":  # beyond what Pillow itself opens
        size = (60_000).to_bytes(4, "big")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size * 2 + b"\x08\x00\x00\x00\x00"))
    elif bad == "bytes":
        path.write_bytes(bytes(50_000_000))
        message = "50 MB; at most 10 MB"
    elif bad in ("text", "svg", "eps", "empty"):
        contents = {"text": b"hello", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "empty": b""}
        path.write_bytes(contents.get(bad, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage"))
    elif bad == "cut":
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue()[:500])
        message = "damaged"
    elif bad == "chunk":  # which Pillow complains about in words of its own
        content = saved(image, tmp_path / "good.png").read_bytes()
        path.write_bytes(content[:33] + chunk(b"fcTL", bytes(5)) + content[33:])
        message = "damaged"
    elif bad == "animated":
        saved(image, path, format="GIF", save_all=True, append_images=[Image.new("L", (32, 32), 255)])
        message = "animated"
    elif bad == "tiny":
        saved(Image.new("L", (4, 4)), path, format="PNG")
        message = "at least 8"
    with pytest.raises(ValueError, match=message) as refusal:
        open_image(path)
    assert str(tmp_path) not in str(refusal.value)


def test_texts_are_bounded():
    assert check_text("  Is it red? ", "a question") == "Is it red?"
    for text in ("", "   ", None, 5, ["a"], {"path": "/etc/passwd"}):
        with pytest.raises(ValueError, match="Please write a question"):
            check_text(text, "a question")
    with pytest.raises(ValueError, match="1,000,000 characters; at most 400"):
        check_text("a" * 1_000_000, "a question")
    assert split_choices("one\n\n two \n") == ["one", "two"]
    for text in ("one", "\n".join("abcdefghi")):
        with pytest.raises(ValueError, match="please write 2 to 8"):
            split_choices(text)


def upload_through_limits(tmp_path, kept=0, announced=1000, chunks=(1000,), wait=0.0):
    """Upload to an app that reads everything and answers 200; the status, the detail, and the middleware."""
    sent, arriving = [], list(chunks)

    async def app(scope, receive, send):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                await send({"type": "http.response.start", "status": 500, "headers": []})
                raise RuntimeError("the visitor has left")
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        await asyncio.sleep(wait)
        return {"type": "http.request", "body": bytes(arriving.pop(0)), "more_body": bool(arriving)}

    async def send(message):
        sent.append(message)

    guard = limits.RequestLimits(app, tmp_path)
    guard.kept.add(kept)
    headers = [(b"content-length", str(announced).encode())]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return [message["status"] for message in sent if "status" in message], sent[-1]["body"].decode(), guard


@pytest.mark.parametrize("kept", [limits.MAX_KEPT_BYTES, limits.MAX_KEPT_BYTES - 999, limits.MAX_KEPT_BYTES - 1000, 0])
def test_uploads_are_bounded_in_sum(kept, tmp_path):
    statuses, detail, guard = upload_through_limits(tmp_path, kept)
    if kept + 1000 > limits.MAX_KEPT_BYTES:
        assert statuses == [503]
        assert "try again" in detail
    else:
        assert statuses == [200]
        assert guard.kept._sum == kept + 1000


def test_uploads_that_arrive_together_are_cut_off_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_KEPT_BYTES", 2500)
    statuses, detail, guard = upload_through_limits(tmp_path, 0, 2000, (1000, 1000, 1000))
    assert statuses == [503]
    assert "try again" in detail
    assert guard.kept._sum == 2000


def test_what_is_only_announced_takes_nothing_from_others(tmp_path):
    """A hundred headers blocked the page for a quarter of an hour."""

    async def app(scope, receive, send):
        raise RuntimeError("the visitor has left")

    guard = limits.RequestLimits(app, tmp_path)
    headers = [(b"content-length", str(limits.MAX_UPLOAD_BYTES).encode())]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    for _ in range(120):
        with pytest.raises(RuntimeError):
            asyncio.run(guard(scope, None, None))
    assert guard.kept.has_room(limits.MAX_KEPT_BYTES)


def test_uploads_take_a_bounded_time(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UPLOAD_SECONDS", 0.2)
    statuses, detail, _ = upload_through_limits(tmp_path, chunks=(100,) * 10, wait=0.05)
    assert statuses == [408]
    assert "longer than 0.2 seconds" in detail


def test_what_was_kept_is_forgotten_in_time(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    kept = limits.KeptBytes()
    assert kept.add(limits.MAX_KEPT_BYTES)
    assert not kept.add(1)
    now[0] += limits.KEEP_SECONDS + 1
    assert kept.add(limits.MAX_KEPT_BYTES)


def test_an_empty_name_of_the_upload_folder_is_none(monkeypatch):
    pytest.importorskip("gradio")
    from modeling_visualbert.demo.page import upload_folder

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert upload_folder().is_absolute()


# Examples of one's own


def test_own_examples(tmp_path, checkpoints):
    render(sample_scene(0, "own/0")).save(tmp_path / "mine.png")
    entry = {"task": "vqa", "name": "mine", "pictures": ["mine.png"], "text": "Is there a star?"}
    (tmp_path / "examples.json").write_text(json.dumps([entry]))
    examples = read_examples(tmp_path / "examples.json")
    (example,) = examples.of_task["vqa"]
    assert checkpoints["vqa"].answer([examples.images["mine.png"]], example.text).bars


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": ["no.png"]}, "example 0: no.png"),
        ({"pictures": []}, "example 0: 0 images; expected one"),
        ({"task": "other"}, "example 0: task 'other'; expected"),
        ({"text": None}, "example 0: text"),
        ({"name": "../up"}, "example 0: name"),
    ],
)
def test_bad_examples_are_named(change, message, tmp_path):
    render(sample_scene(0, "own/0")).save(tmp_path / "mine.png")
    entry = {"task": "vqa", "name": "mine", "pictures": ["mine.png"], "text": "Is there a star?", **change}
    (tmp_path / "examples.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_examples(tmp_path / "examples.json")


# The page


@pytest.fixture
def page(checkpoints, examples, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    from modeling_visualbert.demo.page import build_page

    return build_page([checkpoints["nlvr2"], checkpoints["vqa"], checkpoints["vqa"]], examples)


def test_two_models_of_a_task_have_tabs_of_their_own(page):
    titles = [(block.label, block.elem_id) for block in page.blocks.values() if type(block).__name__ == "Tab"]
    assert titles == [("Compare", "vb-nlvr2"), ("Ask", "vb-vqa"), ("Ask 2", "vb-vqa_2")]


def routes_of(router):
    """Paths of a web application and of the routers that it includes."""
    for route in router.routes:
        if hasattr(route, "path"):
            yield route.path
        else:
            yield from routes_of(route.original_router)


def test_the_routes_of_gradio_are_those_that_the_limits_were_written_for(page):
    """A gradio with other routes needs a look at `limits._ROUTES`, and then its routes in the list."""
    from gradio.routes import App

    known = json.loads((Path(__file__).parent / "fixtures" / "gradio_routes.json").read_text())
    routes = set(routes_of(App.create_app(page)))
    assert sorted(routes) == sorted([*known["served"], *known["refused"]])
    example = {path: re.sub(r"\{\w+(:path)?\}", lambda match: "a1/b" if match[1] else "a1", path) for path in routes}
    assert sorted(path for path in routes if limits._ROUTES.fullmatch(example[path])) == sorted(known["served"])


def test_images_of_visitors_are_deleted_but_not_the_examples(page, tmp_path):
    from gradio.route_utils import delete_files_created_by_app

    (tmp_path / "uploads" / "visitor").mkdir()
    upload = tmp_path / "uploads" / "visitor" / "mine.png"
    upload.write_bytes(b"image")
    page.upload_file_set.add(str(upload))
    files = sorted((tmp_path / "uploads" / "examples").iterdir())
    assert len(files) >= 8
    delete_files_created_by_app(page, None)
    assert not upload.exists()
    assert sorted((tmp_path / "uploads" / "examples").iterdir()) == files


@pytest.mark.parametrize(
    "number", [None, "", "x", "-1", "9", "1" + "0" * 5000, "00000001" + "9" * 5000, "\u0663", "1.0"]
)
def test_numbers_of_links(number):
    pytest.importorskip("gradio")
    from modeling_visualbert.demo.page import _number

    assert _number(number, 1, 4, 2) == (3 if number == "\u0663" else 2)
    assert _number("3", 1, 4, 2) == 3


# The command


def test_the_command_names_what_is_wrong(tmp_path, capsys, monkeypatch):
    pytest.importorskip("gradio")
    assert main(["demo", "--model", str(tmp_path / "none")]) == 2
    assert "no such checkpoint folder" in capsys.readouterr().err


def test_the_command_says_how_to_install_gradio(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "modeling_visualbert.demo.page", raising=False)
    assert main(["demo", "--model", str(tmp_path)]) == 2
    assert 'pip install "modeling-visualbert[demo]"' in capsys.readouterr().err
