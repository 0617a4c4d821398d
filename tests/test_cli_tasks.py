"""`visualbert reason`, `choose`, `ground` and `fill` with tiny checkpoints around the shipped region encoder."""

import http.server
import json
import re
import threading
from functools import partial

import pytest
import torch
from PIL import Image
from tiny_checkpoints import save_tiny_checkpoint

from modeling_visualbert.cli import main
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.corpus.vcr import metadata_record
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer

HEADS = {"reason": "nlvr2", "choose": "vcr", "ground": "flickr30k", "fill": "pretraining"}
SENTENCE = "the star is above the small red square"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Model, processor and folder for each command, as training leaves them."""
    folder = tmp_path_factory.mktemp("saved")
    return {
        command: (*save_tiny_checkpoint(task, folder / command), folder / command) for command, task in HEADS.items()
    }


@pytest.fixture(scope="module")
def scene():
    return sample_scene(0, "cli/0")


@pytest.fixture(scope="module")
def files(scene, tmp_path_factory):
    """Two images, the metadata of the first, and one of another size."""
    folder = tmp_path_factory.mktemp("files")
    render(scene).save(folder / "left.png")
    render(sample_scene(1, "cli/1")).save(folder / "right.png")
    (folder / "left.json").write_text(json.dumps(metadata_record(scene)))
    (folder / "other.json").write_text(json.dumps({**metadata_record(scene), "width": 161}))
    (folder / "broken.json").write_text("{")
    (folder / "text.png").write_text("no image")
    return folder


def arguments(command, files):
    """A call that works, without the model."""
    left, right = str(files / "left.png"), str(files / "right.png")
    return {
        "reason": [left, right, "Both images show a star.", "There is a red square in the left image."],
        "choose": [left, str(files / "left.json"), "What color is [0]?", "[0] is red", "[0] is blue", "[0, 1] are red"],
        "ground": [left, SENTENCE, "the star", "the small red square"],
        "fill": [left, "There is a [MASK] star and a small [MASK].", "A blue [MASK]."],
    }[command]


def run(capsys, saved, command, argv, *flags):
    """Standard output of a successful call."""
    assert main([command, "--model", str(saved[command][2]), *argv, *flags]) == 0
    return capsys.readouterr()


@torch.inference_mode()
def expected(command, saved, files, scene):
    """What processor and model say, called by hand."""
    model, processor, _ = saved[command]
    left, *rest = arguments(command, files)
    if command == "reason":
        right, *sentences = rest
        found = processor.post_process_visual_reasoning(
            model(**processor(images=[[left, right]] * len(sentences), text=sentences))
        )
        return [{"sentence": sentence, **one} for sentence, one in zip(sentences, found, strict=True)]
    if command == "choose":
        record = metadata_record(scene)
        boxes = [box[:4] for box in record["boxes"]]
        inputs = processor(images=[left], text=[rest[1]], choices=[rest[2:]], objects=[record["names"]], boxes=[boxes])
        scores = processor.post_process_multiple_choice(model(**inputs))[0]["scores"]
        chosen = [
            {"index": i, "text": text, "score": score}
            for i, (text, score) in enumerate(zip(rest[2:], scores, strict=True))
        ]
        return [{"question": rest[1], "choices": sorted(chosen, key=lambda row: -row["score"])}]
    pixels = processor(images=left)
    if command == "fill":
        inputs = processor(images=left, text=rest[0], text_pair=rest[1])
        return processor.post_process_pretraining(model(**inputs), inputs["input_ids"], 3)
    found = model.get_image_features(pixels["pixel_values"])
    regions = processor.post_process_regions(found, pixels["image_sizes"])
    inputs = processor(images=[{"visual_embeds": regions[0]["visual_embeds"]}], text=[SENTENCE], phrases=[rest[1:]])
    (best,) = processor.post_process_phrase_grounding(model(**inputs), regions, [2], 1)
    sides = ("xmin", "ymin", "xmax", "ymax")
    named = [[{**region, "box": dict(zip(sides, region["box"], strict=True))} for region in one] for one in best]
    return [{"phrase": phrase, "regions": one} for phrase, one in zip(rest[1:], named, strict=True)]


def rounded(value):
    """Floats of nested records to be compared with a tolerance."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize("command", HEADS)
def test_json_is_what_model_and_processor_say(capsys, saved, files, scene, command):
    printed = json.loads(run(capsys, saved, command, arguments(command, files), "--json").out)
    assert printed == rounded(expected(command, saved, files, scene))


@pytest.mark.parametrize("command", HEADS)
def test_regions_are_found_in_bfloat16_and_read_in_single_precision(capsys, saved, files, command, monkeypatch):
    encoder, found = type(saved[command][0].base_model.region_encoder), []
    forward = encoder.forward

    def heard(self, pixel_values, *arguments, **fields):
        found.append(pixel_values.dtype)
        return forward(self, pixel_values, *arguments, **fields)

    monkeypatch.setattr(encoder, "forward", heard)
    fast = json.loads(run(capsys, saved, command, arguments(command, files), "--json", "--bf16").out)
    exact = json.loads(run(capsys, saved, command, arguments(command, files), "--json").out)
    half = len(found) // 2
    assert found == [torch.bfloat16] * half + [torch.float32] * half
    assert [row.keys() for row in fast] == [row.keys() for row in exact]


def test_a_model_without_a_region_encoder_finds_no_regions_in_bfloat16(capsys, files, tmp_path):
    model, processor = save_tiny_checkpoint("vqa", tmp_path)
    model.config.region_encoder_config = None
    type(model)(model.config).save_pretrained(tmp_path)
    assert main(["ask", "--model", str(tmp_path), str(files / "left.png"), "Is it red?", "--bf16"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "no region encoder" in line


@pytest.mark.parametrize("command", HEADS)
def test_text_says_the_same_as_json(capsys, saved, files, scene, command):
    lines = run(capsys, saved, command, arguments(command, files)).out.splitlines()
    records = expected(command, saved, files, scene)
    if command == "reason":
        assert lines == [f"{r['score']:7.1%}  {r['label']:5}  {r['sentence']}" for r in records]
    elif command == "choose":
        best, *rest = records[0]["choices"]
        marked = [(best["index"], best, "  <-"), *((row["index"], row, "") for row in rest)]
        assert lines == [
            f"{row['score']:7.1%}  {row['text']}{mark}" for _, row, mark in sorted(marked, key=lambda it: it[0])
        ]
    elif command == "ground":
        assert len(lines) == 2
        for line, record in zip(lines, records, strict=True):
            (best,) = record["regions"]
            box = ", ".join(f"{side:.0f}" for side in best["box"].values())
            assert line == f"{best['score']:7.1%}  {record['phrase']}: {box}"
    else:
        (record,) = records
        assert len(record["words"]) == 3
        words = [", ".join(f"{w['word']} ({w['score']:.0%})" for w in best) for best in record["words"]]
        assert lines == [*words, f"texts and image belong together: {record['match']:.0%}"]


@pytest.mark.parametrize("command", HEADS)
def test_an_image_is_drawn(capsys, saved, files, tmp_path, command):
    out = tmp_path / "drawn.png"
    done = run(capsys, saved, command, arguments(command, files), "--picture_out", str(out))
    assert done.err.splitlines() == [f"drawn: {out}"]
    with Image.open(out) as image, Image.open(files / "left.png") as left:
        assert image.height > left.height
        assert image.width >= left.width
        assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 20


@pytest.mark.parametrize("command", ["ground", "fill"])
def test_top_k_gives_more(capsys, saved, files, command):
    printed = json.loads(run(capsys, saved, command, arguments(command, files), "--json", "--top_k", "2").out)
    lists = printed[0]["words"] if command == "fill" else [record["regions"] for record in printed]
    for best in lists:
        assert len(best) == 2
        assert best[0]["score"] >= best[1]["score"]


def test_one_text_is_enough_and_not_matched(capsys, saved, files):
    """The match head was trained on two texts."""
    (line,) = run(capsys, saved, "fill", [str(files / "left.png"), "a [MASK] star"], "--top_k", "1").out.splitlines()
    assert re.fullmatch(r"\S+ \(\d+%\)", line)


@pytest.mark.parametrize("command", ["ground", "fill"])
def test_more_than_there_is_gives_all(capsys, saved, files, command):
    """More words than the vocabulary has, more regions than were found."""
    printed = json.loads(run(capsys, saved, command, arguments(command, files), "--json", "--top_k", "1000").out)
    lists = printed[0]["words"] if command == "fill" else [record["regions"] for record in printed]
    assert {len(best) for best in lists} == {len(corpus_tokenizer()) if command == "fill" else len(lists[0])}


def failed(capsys, argv):
    """The one line that a failing call ends with."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"visualbert {argv[0]}: ")
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("command", HEADS)
def test_a_checkpoint_of_another_task_is_refused(capsys, saved, files, command):
    other = next(name for name in HEADS if name != command)
    line = failed(capsys, [command, "--model", str(saved[other][2]), *arguments(command, files)])
    theirs, ours = type(saved[other][0]).__name__, type(saved[command][0]).__name__
    assert f"is a {theirs} checkpoint; expected {ours}" in line


@pytest.mark.parametrize("command", HEADS)
@pytest.mark.parametrize("missing", ["model", "image", "no-image"])
def test_missing_and_broken_files_are_named(capsys, saved, files, command, missing):
    folder = str(files / "nowhere") if missing == "model" else str(saved[command][2])
    argv = arguments(command, files)
    if missing != "model":
        argv = [str(files / ("nowhere.png" if missing == "image" else "text.png")), *argv[1:]]
    line = failed(capsys, [command, "--model", folder, *argv])
    assert (folder if missing == "model" else argv[0]) in line


@pytest.mark.parametrize(
    ("command", "argv", "message"),
    [
        ("reason", ["left.png", "nowhere.png", "a star"], "nowhere.png: no such image file"),
        ("reason", ["left.png", "right.png", " "], "is empty"),
        ("reason", ["left.png", "right.png", "star " * 200], "expected at most 128"),
        ("choose", ["left.png", "nowhere.json", "What?", "a", "b"], "nowhere.json: no such file"),
        ("choose", ["left.png", "broken.json", "What?", "a", "b"], "broken.json: malformed JSON at line 1"),
        ("choose", ["left.png", "other.json", "What?", "a", "b"], "other.json: 161 x 128 pixels, but "),
        ("choose", ["left.png", "left.json", "What is [9]?", "a", "b"], "tag [9], but there are "),
        ("choose", ["left.png", "left.json", "What is [0]?", "[1,12]", "b"], "choice 0: tag [12], but there are "),
        ("choose", ["left.png", "left.json", "What is [0]?", ""], "choice 0: an empty text"),
        ("ground", ["left.png", SENTENCE, "the circle"], "phrase 'the circle' is not in the sentence"),
        ("ground", ["left.png", SENTENCE, "the star", "--top_k", "0"], "--top_k 0; expected at least 1"),
        ("ground", ["left.png", "", "the star"], "is empty"),
        ("fill", ["left.png", "a [MASK]", "a", "b"], "3 texts; expected one or two"),
        ("fill", ["left.png", "a [MASK]", "--top_k", "0"], "--top_k 0; expected at least 1"),
        ("fill", ["left.png", ""], "is empty"),
        ("fill", ["left.png", "a [MASK]", "--picture_out", "/nowhere/drawn.png"], "/nowhere/drawn.png"),
    ],
)
def test_what_users_get_wrong_ends_with_status_2_and_one_line(capsys, saved, files, command, argv, message):
    argv = [str(files / word) if word.endswith((".png", ".json")) and "/" not in word else word for word in argv]
    argv = [command, "--model", str(saved[command][2]), *argv]
    if "--picture_out" in argv:
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    else:
        assert message in failed(capsys, argv)


@pytest.mark.parametrize("command", HEADS)
def test_an_image_without_anything_in_it_is_no_accident(capsys, saved, files, tmp_path, command):
    empty = tmp_path / "empty.png"
    Image.new("RGB", (160, 128), "white").save(empty)
    argv = [str(empty), *arguments(command, files)[1:]]
    status = main([command, "--model", str(saved[command][2]), *argv])
    captured = capsys.readouterr()
    assert (status == 0 and captured.out) or len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("command", HEADS)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_images_of_any_mode_are_read_and_drawn(capsys, saved, files, tmp_path, command, mode):
    with Image.open(files / "left.png") as image:
        image.convert(mode).save(tmp_path / "left.png")
    argv = [str(tmp_path / "left.png"), *arguments(command, files)[1:]]
    run(capsys, saved, command, argv, "--picture_out", str(tmp_path / "drawn.jpg"))
    with Image.open(tmp_path / "drawn.jpg") as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize("command", HEADS)
def test_images_may_lie_behind_an_address(command, saved, files, capsys):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    argv = arguments(command, files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        fetched = [word.replace(str(files), address) if word.endswith(".png") else word for word in argv]
        assert run(capsys, saved, command, fetched, "--json").out == run(capsys, saved, command, argv, "--json").out
        assert main([command, "--model", str(saved[command][2]), f"{address}/gone.png", *argv[1:]]) == 2
        server.shutdown()
    assert capsys.readouterr().err.strip().endswith(f"{address}/gone.png: the server answers 404 File not found")
