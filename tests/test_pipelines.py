"""The five pipelines: one call, many images, many texts for each image, regions found once, plain dicts."""

import json

import pytest
import torch
import transformers
from PIL import Image
from pipeline_results import close, looks
from test_region_detector import processor_for as detector_processor
from test_region_detector import tiny_model as tiny_vcr
from tiny_checkpoints import PIPELINE_TASKS, save_tiny_checkpoint, tiny_checkpoint
from transformers import pipeline

from modeling_visualbert import VisualBertForMultipleChoice, VisualBertProcessor
from modeling_visualbert.corpus.scenes import render, sample_scene
from modeling_visualbert.corpus.vcr import metadata_record
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code import pipeline_visualbert, tasks_visualbert
from modeling_visualbert.hub_code.explain_visualbert import attention_weights, explain_answers

TASKS = list(PIPELINE_TASKS)


@pytest.fixture(scope="module")
def checkpoints():
    return {task: tiny_checkpoint(task) for task in TASKS}


@pytest.fixture
def pipes(checkpoints):
    """A pipeline for each task."""
    return {
        task: pipeline(PIPELINE_TASKS[task], model=model, processor=processor)
        for task, (model, processor) in checkpoints.items()
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Files of two scenes and their metadata."""
    folder, found = tmp_path_factory.mktemp("scenes"), []
    for number in range(2):
        scene = sample_scene(number, f"pipelines/{number}")
        render(scene).save(folder / f"{number}.png")
        found.append((str(folder / f"{number}.png"), metadata_record(scene)))
    return found


def item_of(task, scenes, number=0, many=False):
    """Arguments of a call about a scene, with one text or with two."""
    (image, metadata), (other, _) = scenes[number], scenes[1 - number]
    if task == "vqa":
        return {"image": image, "question": ["Is it red?", "How many stars are there?"] if many else "Is it red?"}
    if task == "nlvr2":
        texts = ["Both images show a star.", "There is a circle in the left image."]
        return {"images": (image, other), "statement": texts if many else texts[0]}
    if task == "flickr30k":
        sentences, phrases = ["the star is above the red square", "two circles"], [["the star", "the red square"], [1]]
        return {
            "image": image,
            "sentence": sentences if many else sentences[0],
            "phrases": phrases if many else phrases[0],
        }
    if task == "pretraining":
        texts, pairs = ["a [MASK] star", "a small [MASK] and a [MASK]"], ["a star", "two squares"]
        return {"image": image, "text": texts if many else texts[0], "text_pair": pairs if many else pairs[0]}
    questions, choices = ["What color is [0]?", "Is [0,1] small?"], [["[0] is red", "[0] is blue"], ["yes", "no it is"]]
    return {
        "image": image,
        "question": questions if many else questions[0],
        "choices": choices if many else choices[0],
        "objects": metadata["names"],
        "boxes": [box[:4] for box in metadata["boxes"]],
    }


@pytest.mark.parametrize("task", TASKS)
def test_arguments_a_dict_and_an_iterable_of_dicts_give_the_same(pipes, scenes, task):
    items = [item_of(task, scenes, 0), item_of(task, scenes, 1, many=True), item_of(task, scenes, 1)]
    one_by_one = [pipes[task](**item) for item in items]
    assert [pipes[task](item) for item in items] == close(one_by_one)
    for batch_size in (None, 2, 3):
        assert pipes[task](iter(items), batch_size=batch_size) == close(one_by_one)


@pytest.mark.parametrize("task", TASKS)
def test_results_are_plain(pipes, scenes, task):
    result = pipes[task](**item_of(task, scenes, many=True))
    assert len(result) == 2
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("task", TASKS)
def test_each_image_is_looked_at_once(pipes, scenes, task):
    calls, handle = looks(pipes[task])
    with handle:
        items = [item_of(task, scenes, 0, many=True), item_of(task, scenes, 1, many=True)]
        pipes[task](items, batch_size=2)
        assert sum(calls) == (4 if task == "nlvr2" else 2)
        calls.clear()
        pipes[task](items[0])
        assert sum(calls) == (2 if task == "nlvr2" else 1)


@pytest.mark.parametrize("task", TASKS)
def test_regions_found_before_give_the_same(pipes, scenes, task):
    item = item_of(task, scenes, many=True)
    objects = {name: item[name] for name in ("objects", "boxes") if name in item}
    calls, handle = looks(pipes[task])
    with handle:
        expected = pipes[task](item)
        if task == "nlvr2":
            found = {"images": [pipes[task].find_regions(image) for image in item["images"]]}
        else:
            found = {"image": pipes[task].find_regions(item["image"], **objects)}
        calls.clear()
        assert pipes[task]({**item, **found}) == close(expected)
        assert calls == []


def test_regions_and_images_mix_in_one_batch(pipes, scenes):
    items = [item_of("vqa", scenes, 0), item_of("vqa", scenes, 1)]
    mixed = [items[0], {**items[1], "image": pipes["vqa"].find_regions(scenes[1][0])}]
    assert pipes["vqa"](mixed, batch_size=2) == close(pipes["vqa"](items, batch_size=1))


def test_boxes_are_in_pixels_of_the_image_that_was_given(pipes, scenes, tmp_path):
    with Image.open(scenes[0][0]) as image:
        image.resize((480, 256)).save(tmp_path / "large.png")
    item = item_of("flickr30k", scenes)
    regions = pipes["flickr30k"].find_regions(tmp_path / "large.png")
    (first, _) = pipes["flickr30k"]({**item, "image": tmp_path / "large.png"}, top_k=50)
    assert len(first["regions"]) == len(regions["boxes"])
    for found in first["regions"]:
        assert list(found["box"].values()) == close(regions["boxes"][found["region"]].tolist())
        assert list(found["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert 300 < max(found["box"]["xmax"] for found in first["regions"]) <= 480


def test_choices_come_best_first_with_their_place(pipes, scenes):
    item = item_of("vcr", scenes)
    chosen = pipes["vcr"](item)
    assert [row["score"] for row in chosen] == sorted((row["score"] for row in chosen), reverse=True)
    assert {row["index"]: row["text"] for row in chosen} == dict(enumerate(item["choices"]))
    assert sum(row["score"] for row in chosen) == pytest.approx(1.0)
    assert pipes["vcr"](item, top_k=1) == close(chosen[:1])


def test_items_of_a_batch_have_different_numbers_of_choices(pipes, scenes):
    few = item_of("vcr", scenes)
    more = {**item_of("vcr", scenes, 1), "choices": ["it is red", "it is blue", "yes", "no"]}
    together, alone = pipes["vcr"]([few, more], batch_size=2), [pipes["vcr"](few), pipes["vcr"](more)]
    assert [len(chosen) for chosen in together] == [2, 4] and together == [close(chosen) for chosen in alone]


def test_options_may_be_given_when_the_pipeline_is_made(checkpoints, scenes):
    model, processor = checkpoints["vqa"]
    one = pipeline("visual-question-answering", model=model, processor=processor, top_k=1, batch_size=2)
    items = [item_of("vqa", scenes, number) for number in (0, 1)]
    assert [len(answers) for answers in one(items)] == [1, 1]
    assert len(one(items[0], top_k=3)) == 3
    with pytest.raises(TypeError, match="topk"):
        pipeline("visual-question-answering", model=model, processor=processor, topk=1)


def test_no_regions_ground_nothing(pipes, checkpoints):
    dim = checkpoints["flickr30k"][0].config.visual_embedding_dim
    nothing = {"visual_embeds": torch.zeros(0, dim), "boxes": torch.zeros(0, 4)}
    found = pipes["flickr30k"](nothing, "a red star", phrases=["star"])
    assert found == [{"phrase": "star", "regions": []}]


def test_a_region_encoder_from_elsewhere_is_like_one_inside(checkpoints, scenes):
    with_eyes, processor = checkpoints["vqa"]
    fields = {**with_eyes.config.to_dict(), "region_encoder_config": None}
    blind = type(with_eyes)(type(with_eyes.config)(**fields)).eval()
    blind.load_state_dict(with_eyes.state_dict(), strict=False)
    encoder = type(with_eyes.visual_bert.region_encoder)(with_eyes.config.region_encoder_config)
    encoder.load_state_dict(with_eyes.visual_bert.region_encoder.state_dict())
    pipe = pipeline("visual-question-answering", model=blind, processor=processor)
    with pytest.raises(ValueError, match="no region encoder"):
        pipe(item_of("vqa", scenes))
    blind.attach_region_encoder(encoder)
    assert pipe(item_of("vqa", scenes)) == close(
        pipeline("visual-question-answering", model=with_eyes, processor=processor)(item_of("vqa", scenes))
    )
    assert not any(weight.requires_grad for weight in encoder.parameters()) and not encoder.training
    with pytest.raises(ValueError, match="has a region encoder already"):
        blind.attach_region_encoder(encoder)
    other = type(with_eyes)(type(with_eyes.config)(**{**fields, "visual_embedding_dim": 12}))
    with pytest.raises(ValueError, match="features of 73 numbers, the model reads 12"):
        other.attach_region_encoder(encoder)


def test_half_precision(checkpoints, scenes):
    model, processor = tiny_checkpoint("vqa")
    answers = pipeline("visual-question-answering", model=model.to(torch.bfloat16), processor=processor)(
        **item_of("vqa", scenes), top_k=2
    )
    assert len(answers) == 2


def without(item, key):
    return {name: value for name, value in item.items() if name != key}


@pytest.mark.parametrize(
    ("task", "change", "error", "message"),
    [
        ("vcr", lambda item: without(item, "choices"), ValueError, "no choices; expected .*'image'.*'choices'"),
        ("vcr", lambda item: without(item, "boxes"), ValueError, r"0 boxes for \d objects"),
        (
            "vcr",
            lambda item: {**item, "question": ["a", "b"]},
            ValueError,
            "choices for 2 questions|choices 'a'|choices",
        ),
        (
            "vcr",
            lambda item: {**without(item, "objects"), "object": []},
            TypeError,
            "unknown key 'object', which looks like 'objects'",
        ),
        ("nlvr2", lambda item: {**item, "images": item["images"][:1]}, ValueError, "expected a pair of images"),
        ("nlvr2", lambda item: {**item, "images": item["images"][0]}, ValueError, "str; expected a pair of images"),
        ("nlvr2", lambda item: {**item, "statement": None}, TypeError, "statement is NoneType"),
        ("flickr30k", lambda item: {**item, "phrases": "the star"}, ValueError, "expected a list of phrases"),
        ("flickr30k", lambda item: {**item, "phrases": []}, ValueError, "expected a list of phrases"),
        ("flickr30k", lambda item: {**item, "phrases": ["a cat"]}, ValueError, "phrase 'a cat' is not in the sentence"),
        (
            "flickr30k",
            lambda item: {**item, "image": {"visual_embeds": torch.zeros(2, 73)}},
            ValueError,
            "without 'boxes'",
        ),
        ("pretraining", lambda item: {**item, "text_pair": ["a", "b"]}, TypeError, "string"),
        (
            "pretraining",
            lambda item: {**item, "text": ["a"], "text_pair": ["a", "b"]},
            ValueError,
            "2 second texts for 1",
        ),
        ("vqa", lambda item: "image.png", ValueError, "no question; expected"),
        ("vqa", lambda item: ["image.png"], TypeError, "got str; expected arguments or dicts with the keys"),
    ],
)
def test_wrong_calls_say_what_was_expected(pipes, scenes, task, change, error, message):
    with pytest.raises(error, match=message):
        pipes[task](change(item_of(task, scenes)))


def test_top_k_of_zero_is_refused(pipes, scenes):
    for task in ("vqa", "flickr30k", "pretraining", "vcr"):
        with pytest.raises(ValueError, match="top_k 0; expected at least 1"):
            pipes[task](item_of(task, scenes), top_k=0)


@pytest.mark.parametrize("attention", ["x", 0.5, True, (0,), (0, 1, 2), (0, "1")])
def test_attention_of_anything_but_a_layer_and_a_head_is_refused(attention, pipes, scenes):
    with pytest.raises(ValueError, match=r"attention .*; expected a layer or a pair \(layer, head\), counted from 0"):
        pipes["vqa"](item_of("vqa", scenes), attention=attention)


def test_a_tokenizer_of_another_size_is_refused(checkpoints):
    model, processor = checkpoints["vqa"]
    tokenizer = corpus_tokenizer()
    tokenizer.add_tokens("zebra")
    other = VisualBertProcessor(processor.image_processor, tokenizer, task="vqa", answers=processor.answers)
    pieces = len(corpus_tokenizer())
    with pytest.raises(
        ValueError, match=f"a tokenizer of {pieces + 1} word pieces, but the model has {pieces}; expected"
    ):
        pipeline("visual-question-answering", model=model, processor=other)


def test_a_model_from_a_folder_has_its_processor_there(checkpoints, tmp_path):
    model, processor = checkpoints["vqa"]
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"has no processor \(processor_config.json\)"):
        pipeline("visual-question-answering", model=opened)
    processor.save_pretrained(tmp_path)
    assert pipeline("visual-question-answering", model=opened).processor.answers == processor.answers
    with pytest.raises(ValueError, match="no processor is given or beside the model; expected `processor`"):
        pipeline("visual-question-answering", model=model)  # was never on a disk


def test_a_model_of_another_task_is_refused(checkpoints):
    model, processor = checkpoints["nlvr2"][0], checkpoints["vqa"][1]
    with pytest.raises(ValueError, match="VisualBertForVisualReasoning; expected this package's VisualBertForQuestion"):
        pipeline("visual-question-answering", model=model, processor=processor)
    with pytest.raises(ValueError, match="processor is for task 'vqa'; expected 'nlvr2'"):
        pipeline("visual-reasoning", model=model, processor=processor)


def test_the_class_of_transformers_with_the_same_name_is_refused(checkpoints):
    config = transformers.VisualBertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    stock = transformers.VisualBertForQuestionAnswering(config)
    with pytest.raises(ValueError, match=r"the model is transformers\.models.*; expected this package's"):
        pipeline("visual-question-answering", model=stock, processor=checkpoints["vqa"][1])


def test_every_task_has_one_pipeline():
    assert {task.name: task.pipeline for task in tasks_visualbert.TASKS.values()} == PIPELINE_TASKS
    for task in tasks_visualbert.TASKS.values():
        pipeline_class = getattr(pipeline_visualbert, task.pipeline_class)
        assert pipeline_class.about is task
        assert pipeline_class.__doc__.count(">>> ") == 2
        assert hasattr(transformers, task.auto_class)


def test_explained_answers(pipes, scenes):
    """`explain=True` says the same as the function, with the boxes of the regions, for one question and for many."""
    pipe, item = pipes["vqa"], item_of("vqa", scenes, many=True)
    regions = pipe.find_regions(item["image"])
    explained = pipe(**item, explain=True, top_k=2)
    assert [found["answers"] for found in explained] == close(pipe(**item, top_k=2))
    assert "explain" not in pipe._postprocess_params
    inputs = pipe.processor(images={"visual_embeds": regions["visual_embeds"]}, text=item["question"])
    for found, expected in zip(explained, explain_answers(pipe.model, pipe.processor, inputs), strict=True):
        assert found["words"] == close(expected["words"])
        assert [region["box"] for region in found["regions"]] == close(regions["boxes"].tolist())
        left = [{key: value for key, value in region.items() if key != "box"} for region in found["regions"]]
        assert left == close(expected["regions"])
    (alone,) = pipe([{"image": item["image"], "question": item["question"][1]}], explain=True)
    assert alone["answers"][:2] == close(explained[1]["answers"])
    bare = pipe({"image": {"visual_embeds": regions["visual_embeds"]}, "question": item["question"][1]}, explain=True)
    assert all("box" not in region for region in bare["regions"])


@pytest.mark.parametrize("task", TASKS)
def test_attention_to_the_regions(pipes, scenes, task):
    """Beside the same results, in batches too, the attention of a layer; a head of it differs, all heads average to it."""
    pipe, items = pipes[task], [item_of(task, scenes, 0), item_of(task, scenes, 1, many=True)]
    found = pipe(items, attention=0, batch_size=2)
    assert found == close([pipe(item, attention=0) for item in items])
    assert [found[0]["result"], [row["result"] for row in found[1]]] == close(pipe(items))
    heads = [pipe(items[0], attention=(0, head))["attention"] for head in range(4)]
    assert heads[0] != pytest.approx(heads[1], abs=1e-3)
    assert found[0]["attention"] == pytest.approx(torch.tensor(heads).mean(dim=0).tolist(), abs=1e-6)
    assert 0.0 < sum(found[0]["attention"]) < 1.0
    images = items[0]["images"] if task == "nlvr2" else [items[0]["image"]]
    objects = {name: items[0][name] for name in ("objects", "boxes") if name in items[0]}
    assert len(heads[0]) == sum(len(pipe.find_regions(image, **objects)["boxes"]) for image in images)
    assert pipe.model.config._attn_implementation != "eager"
    for wrong in (1, -1, (0, 4), (1, 0)):
        with pytest.raises(ValueError, match=r"attention .*; expected a layer from 0 to 0, or .* a head from 0 to 3"):
            pipe(items[0], attention=wrong)


READERS = {
    "vqa": lambda ids, mask, sep: [ids.index(mask)],
    "nlvr2": lambda ids, mask, sep: [0],
    "flickr30k": lambda ids, mask, sep: [2, 7],  # "the [star] is above the red [square]" after [CLS]
    "pretraining": lambda ids, mask, sep: [i for i, piece in enumerate(ids) if piece == mask],
}


@pytest.mark.parametrize("task", READERS)
def test_attention_is_that_of_the_position_that_is_read(pipes, scenes, task):
    pipe, item = pipes[task], item_of(task, scenes)
    images = item.pop("images") if task == "nlvr2" else [item.pop("image")]
    regions = [pipe.find_regions(image) for image in images]
    text = {"text": item.pop(pipe.about.text_key), **item}
    inputs = pipe.processor(images=[regions] if task == "nlvr2" else regions, **{k: [v] for k, v in text.items()})
    weights_SS = attention_weights(pipe.model, **inputs)[0][0, 2]
    ids, tokenizer = inputs["input_ids"][0].tolist(), pipe.processor.tokenizer
    positions = READERS[task](ids, tokenizer.mask_token_id, tokenizer.sep_token_id)
    expected = weights_SS[positions, len(ids) :].mean(dim=0)
    given = {pipe.image_key: regions if task == "nlvr2" else regions[0], pipe.about.text_key: text.pop("text"), **text}
    assert pipe(given, attention=(0, 2))["attention"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_attention_of_a_text_without_a_mask_is_that_of_its_first_token(pipes, scenes):
    pipe, text = pipes["pretraining"], "a small star"
    regions = pipe.find_regions(scenes[0][0])
    inputs = pipe.processor(images=[regions], text=[text])
    weights_SS = attention_weights(pipe.model, **inputs)[0][0, 2]
    expected = weights_SS[0, inputs["input_ids"].shape[1] :].tolist()
    assert pipe({"image": regions, "text": text}, attention=(0, 2))["attention"] == pytest.approx(expected, abs=1e-6)


def test_the_detector_of_vcr_is_told_the_classes(scenes):
    """Its features, and so the scores, depend on what the objects are."""
    model = tiny_vcr(VisualBertForMultipleChoice, "given", vocab_size=len(corpus_tokenizer()))
    names = ["whole image", "red circle", "blue square", "cup", "tie"]
    image_processor = detector_processor("given", class_names=names)
    processor = VisualBertProcessor(image_processor, corpus_tokenizer(), task="vcr", max_length=64)
    pipe = pipeline(PIPELINE_TASKS["vcr"], model=model, processor=processor)
    item = {"image": scenes[0][0], "boxes": [[5, 5, 40, 30], [20, 10, 70, 55]]}
    cups, ties = (pipe.find_regions(**item, objects=["red circle", name]) for name in ("cup", "tie"))
    assert cups["class_ids"].tolist() == [0, 1, 3] and ties["class_ids"].tolist() == [0, 1, 4]
    torch.testing.assert_close(cups["visual_embeds"][:2], ties["visual_embeds"][:2])
    assert not torch.allclose(cups["visual_embeds"][2], ties["visual_embeds"][2])


def test_attention_of_multiple_choice_is_that_of_the_best_choice(pipes, scenes):
    pipe, item = pipes["vcr"], item_of("vcr", scenes)
    both = pipe(item, attention=0)
    assert [row["index"] for row in both["result"]] == [row["index"] for row in pipe(item)]
    choices = {"choices": item["choices"], "objects": item["objects"], "boxes": item["boxes"]}
    inputs = pipe.processor(images=[item["image"]], text=[item["question"]], **{k: [v] for k, v in choices.items()})
    weights_SS = attention_weights(pipe.model, **inputs)[0][both["result"][0]["index"]].mean(dim=0)
    expected = weights_SS[0, inputs["input_ids"].shape[-1] :]
    assert both["attention"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_layer_that_reads_words_only_has_no_attention_to_regions(checkpoints, scenes):
    model, processor = checkpoints["vqa"]
    late = type(model)(type(model.config)(**{**model.config.to_dict(), "bypass_transformer": True})).eval()
    late.load_state_dict(model.state_dict(), strict=False)
    pipe = pipeline("visual-question-answering", model=late, processor=processor)
    item = item_of("vqa", scenes)
    assert pipe(item, attention=0)["attention"] is None
    assert len(pipe(item, attention=1)["attention"]) == len(pipe.find_regions(item["image"])["boxes"])


@pytest.mark.parametrize("top_k", [1, 3])
def test_ask_gives_the_answers_of_the_pipeline_and_the_regions(pipes, checkpoints, scenes, top_k):
    (model, processor), image, questions = checkpoints["vqa"], scenes[0][0], ["Is it red?", "How many stars are there?"]
    answers, regions = pipeline_visualbert.ask(model, processor, image, questions, top_k=top_k)
    assert answers == close(pipes["vqa"](image=image, question=questions, top_k=top_k))
    assert [len(row) for row in answers] == [top_k, top_k]
    torch.testing.assert_close(regions["boxes"], pipes["vqa"].find_regions(image)["boxes"])


def test_the_task_of_a_folder_is_known_without_the_hub(tmp_path):
    """`transformers` asks the Hub for it; these tests are offline."""
    save_tiny_checkpoint("flickr30k", tmp_path / "flickr30k")
    assert pipeline(model=str(tmp_path / "flickr30k")).about.name == "flickr30k"


def test_where_the_task_is_not_known_it_has_to_be_named(tmp_path):
    from transformers import BertConfig

    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(
        RuntimeError, match=r"offline mode; name the task, as in pipeline\('visual-question-answering', model="
    ):
        pipeline(model=str(tmp_path / "bert"))
