"""The page: a tab for each task, and a server that holds up under many visitors.

Gradio is imported here and nowhere else in the package: `pip install "modeling-visualbert[demo]"`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

# Read when gradio is imported: nothing about visitors or the owner is sent anywhere.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import torch
from PIL import Image
from starlette.middleware import Middleware

from ..convert.assemble import complete_checkpoint
from ..visualization import grid
from .checkpoint import Answer, Checkpoint, Look
from .connections import believe_proxies, guard_connections
from .drawing import View, bars_html, views_html
from .examples import Example, Examples, read_examples, scene_examples
from .inputs import MAX_CHARACTERS, MAX_CHOICES, MAX_UPLOAD_BYTES, check_text, open_image, split_choices
from .limits import KEEP_SECONDS, MAX_QUEUE, RequestLimits

_KEPT_SESSIONS = 256


@dataclass(frozen=True)
class _Words:
    """What a task is called on the page."""

    tab: str
    about: str
    label: str
    button: str


_WORDS = {
    "vqa": _Words("Ask", "Ask a question about the image.", "Question", "Ask"),
    "nlvr2": _Words("Compare", "Is a sentence true of these two images?", "Sentence", "Check"),
    "classification": _Words("Classify", "Which label does a text get with its image?", "Text", "Classify"),
    "vcr": _Words(
        "Choose",
        "Which answer is right? [0], [1], ... stand for the things in the image, numbered from left to right.",
        "Question",
        "Choose",
    ),
    "flickr30k": _Words("Find", "Where is what a sentence mentions? Put the phrases in brackets.", "Sentence", "Find"),
    "pretraining": _Words("Fill in", "Fill the gaps of a text about the image; a gap is [MASK].", "Text", "Fill in"),
}

# Listed below the layers, for checkpoints whose answers can be explained as a whole.
_EXPLAINED = {
    "rollout": "all layers (rollout)",
    "gradient": "or: gradient x input",
    "drop": "or: without each region",
}


def serve(
    models: Sequence[str],
    examples: str | None = None,
    host: str | None = None,
    port: int | None = None,
    region_encoder: str | None = None,
    tokenizer: str | None = None,
    any_detector: bool = False,
) -> None:
    """
    Load models and serve the page until the process is stopped.

    Args:
        models: Folders or Hub names of checkpoints, a tab for each. Published ones are completed.
        examples: A file for [`read_examples`]; scenes of the embedded corpus when not given.
        host, port: See [`launch_page`].
        region_encoder, tokenizer, any_detector: What bare checkpoints lack, see [`complete_checkpoint`].

    Raises:
        ValueError: This machine has no such address or port.
    """
    _check_address(host, port)
    signal.signal(signal.SIGTERM, _interrupt)
    names = [complete_checkpoint(name, region_encoder, tokenizer, any_detector=any_detector) for name in models]
    loaded = [Checkpoint(name) for name in names]
    page = build_page(loaded, read_examples(examples) if examples else scene_examples())
    print(f"The demo is at {launch_page(page, host, port)} (Ctrl+C ends it)", flush=True)
    page.block_thread()


def _check_address(host: str | None, port: int | None) -> None:
    """Refuse an address that gradio would wait for without end."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"--port {port}; expected 1 to 65535")
    if host is None:
        return
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"--host {host!r} is no address of this machine ({error}); expected such as 127.0.0.1"
        ) from error


def _interrupt(*_: object) -> None:
    """What stops a service ends it as Ctrl+C does, so that images of visitors are deleted."""
    raise KeyboardInterrupt


def build_page(checkpoints: Sequence[Checkpoint], examples: Examples) -> gr.Blocks:
    """
    The page, ready for [`launch_page`].

    Args:
        checkpoints: One for each tab.
        examples: Images and texts to start from; tasks without any get an empty form.
    """
    _example_folder().mkdir(parents=True, exist_ok=True)
    gr.set_static_paths([_example_folder()])  # what lies elsewhere is deleted after a while
    with gr.Blocks(title="VisualBERT", analytics_enabled=False, delete_cache=(60, KEEP_SECONDS)) as page:
        gr.HTML(_HEADER)
        link = gr.Textbox(visible="hidden", elem_id="vb-link")
        with gr.Tabs(elem_id="vb-tabs", overflow_behavior="wrap"):
            built = [
                _Tab(key, checkpoint, examples, link)
                for key, checkpoint in zip(_keys(checkpoints), checkpoints, strict=True)
            ]
        with gr.Row(elem_classes="vb-foot"):
            copy = gr.Button("Copy link to this state", size="sm", variant="secondary", elem_id="vb-copy")
        link.change(None, link, None, js=_SHOW_LINK, api_visibility="private")
        copy.click(None, None, None, js=_COPY_LINK, api_visibility="private")
        outputs = [component for tab in built for component in tab.everything]

        def restore(request: gr.Request) -> list:
            return _restore(built, dict(request.query_params))

        shared: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        page.load(restore, None, outputs, concurrency_id="model", **shared)
        page.load(None, None, None, js=_SELECT_TAB, **shared)  # gradio ignores `gr.Tabs(selected=...)` while it loads
    return page


def launch_page(page: gr.Blocks, host: str | None = None, port: int | None = None) -> str:
    """
    Serve the page from a thread and return its address.

    Args:
        page: What [`build_page`] made.
        host, port: Where to listen; by default what gradio's environment variables say, else 127.0.0.1 and the first free
            port from 7860.

    Raises:
        OSError: The port is taken.
    """
    _give_memory_back()
    workers = max(1, min(4, os.cpu_count() or 1))
    # As many answers at once as there are processors, each computed by one thread: waiting threads would fight for them.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    # After every question, gradio would compute statistics of the last 10,000.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"], os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1", str(10**9)
    # Waiting visitors get their place in the queue once a second, not whenever somebody else gets an answer.
    page.queue(status_update_rate=1.0, max_size=MAX_QUEUE, default_concurrency_limit=workers, api_open=False)
    calls = {function.api_name for function in page.fns.values() if isinstance(function.api_name, str)}
    limits = Middleware(
        RequestLimits,
        uploads=upload_folder(),
        calls=calls,
        queue=lambda: page._queue,
        is_own_folder=_folder is not None,
    )
    believe_proxies()
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_UPLOAD_BYTES,
        max_threads=workers + 4,
        state_session_capacity=_KEPT_SESSIONS,
        app_kwargs={"middleware": [limits]},
        theme=_theme(),
        css_paths=Path(__file__).with_name("page.css"),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        share=False,
    )
    guard_connections(page.server)
    return address


def _give_memory_back() -> None:
    """Have glibc return the memory of large images to the system at once; each thread would keep as much as it ever used."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, size in ((-3, 8 << 20), (-1, 32 << 20)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(parameter, size)


def upload_folder() -> Path:
    """Where gradio keeps images: a folder of this process, removed when it ends."""
    if not os.environ.get("GRADIO_TEMP_DIR"):
        global _folder
        _folder = tempfile.TemporaryDirectory(prefix="visualbert_demo_")
        os.environ["GRADIO_TEMP_DIR"] = _folder.name
    return Path(os.environ["GRADIO_TEMP_DIR"])


def _example_folder() -> Path:
    return upload_folder() / "examples"


_folder: tempfile.TemporaryDirectory | None = None


class _Tab:
    """The components of one task and what happens when they are used."""

    def __init__(self, key: str, checkpoint: Checkpoint, examples: Examples, link: gr.Textbox):
        self.key = key
        self.checkpoint = checkpoint
        self.images = examples.images
        self.examples = {
            example.name: example
            for example in examples.of_task.get(checkpoint.kind, ())
            if len(example.images) == checkpoint.num_images
        }
        words = _WORDS[checkpoint.kind]
        first = next(iter(self.examples.values()), None)
        shown = self._shown(self._answer_example(first)) if first else ("", "")
        title = " ".join([words.tab, *self.key.split("_")[1:]])
        with gr.Tab(title, id=self.key, elem_id=f"vb-{self.key}") as self.tab:
            gr.Markdown(words.about, elem_classes="vb-about")
            if self.examples:
                self.gallery = gr.Dataset(
                    label="Examples",
                    components=[gr.Image(visible=False)],
                    samples=[[str(self._thumbnail(example))] for example in self.examples.values()],
                    type="index",
                    elem_classes="vb-examples",
                )
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=300):
                    self.example = gr.Textbox(first.name if first else "", visible=False)
                    with gr.Row(elem_classes="vb-inputs"):
                        sides = range(checkpoint.num_images)
                        self.inputs = [self._image(first, side) for side in sides]
                    self.text = gr.Textbox(
                        first.text if first else "", label=words.label, max_length=MAX_CHARACTERS, lines=1, max_lines=3
                    )
                    self.choices = gr.Textbox(
                        "\n".join(first.choices) if first else "",
                        label="Choices, one a line",
                        max_length=MAX_CHARACTERS,
                        lines=4,
                        max_lines=MAX_CHOICES,
                        visible=checkpoint.task == "vcr",
                    )
                    ask = gr.Button(words.button, variant="primary", elem_classes="vb-ask")
                with gr.Column(scale=5, min_width=300, elem_classes="vb-result"):
                    self.bars = gr.HTML(shown[0], elem_classes="vb-answer")
                    self.seen = gr.HTML(shown[1], elem_classes="vb-seen")
                    with gr.Row(elem_classes="vb-look"):
                        layers = [(f"layer {i + 1}", i) for i in range(checkpoint.num_layers)]
                        default = layers[-1][1]
                        layers += [(_EXPLAINED[way], len(layers) + i) for i, way in enumerate(checkpoint.explanations)]
                        heads = [("all heads", -1)] + [(f"head {i + 1}", i) for i in range(checkpoint.num_heads)]
                        self.layer = gr.Dropdown(layers, value=default, label="Attention in", min_width=120)
                        self.head = gr.Dropdown(heads, value=-1, label="by", min_width=120)
        self.form = [*self.inputs, self.text, self.choices, self.layer, self.head, self.example]
        self.everything = [*self.form, self.bars, self.seen]
        self._connect(ask, link)

    def _connect(self, ask: gr.Button, link: gr.Textbox) -> None:
        # Without gradio's preprocessing, which decodes whatever was uploaded; see `_read`.
        shared: dict[str, Any] = {"concurrency_id": "model", "show_progress": "minimal", "preprocess": False}
        results = [self.bars, self.seen, link]
        gr.on([ask.click, self.text.submit], self._ask, self.form, results, api_name=self.key, **shared)
        shared["api_visibility"] = "private"
        gr.on([self.layer.input, self.head.input], self._ask, self.form, results, **shared)
        for image in self.inputs:
            image.upload(self._uploaded, self.inputs, [*self.inputs, self.example, *results], **shared)
            cleared = [self.example, self.bars, self.seen]
            image.clear(None, None, cleared, js="() => ['', '', '']", api_visibility="private")
        if self.examples:
            self.gallery.click(self._pick, [self.gallery, self.layer, self.head], [*self.form, *results], **shared)

    def _image(self, example: Example | None, side: int) -> gr.Image:
        return gr.Image(
            str(self._file(example.images[side])) if example else None,
            label=("Left image", "Right image")[side] if self.checkpoint.num_images == 2 else "Image",
            sources=["upload", "clipboard"],
            height=190 if self.checkpoint.num_images == 2 else 230,
            min_width=140,
            buttons=[],
            show_label=False,
            placeholder="Drop an image here, or tap to choose one",
        )

    def _ask(self, *form: Any) -> tuple[str, str, str]:
        """Answer what is in the form; the bars, the image with its regions, and the link to this state."""
        *files, text, choices, layer, head, example = form
        images = [_read(file) for file in files]
        if None in images:
            raise _refusal("Please choose an image first, or one of the examples.")
        answer = self._answer([image for image in images if image], text, choices, layer, head)
        return *self._shown(answer), self._link(example, text, choices, layer, head)

    def _answer(self, images: Sequence[Image.Image], text: Any, choices: Any, layer: Any, head: Any) -> Answer:
        num_layers, explanations = self.checkpoint.num_layers, self.checkpoint.explanations
        if not (
            _is_in(layer, range(num_layers + len(explanations))) and _is_in(head, range(-1, self.checkpoint.num_heads))
        ):
            raise _refusal("There is no such layer or head.")
        look = Look(layer, None if head < 0 else head)
        if layer >= num_layers:
            look = Look(num_layers - 1, explanation=explanations[layer - num_layers])
        try:
            text = check_text(text, f"a {_WORDS[self.checkpoint.kind].label.lower()}")
            listed = split_choices(choices) if self.checkpoint.task == "vcr" else []
            return self.checkpoint.answer(images, text, listed, look)
        except (ValueError, TypeError) as error:  # written for readers, such as "question 0 is too long"
            raise _refusal(str(error)) from None

    def _answer_example(self, example: Example) -> Answer:
        look = Look(self.checkpoint.num_layers - 1)
        return self.checkpoint.answer(
            [self.images[name] for name in example.images], example.text, example.choices, look
        )

    def _uploaded(self, *files: Any) -> tuple:
        """Visitors' images: what was found in them, before anything is asked. The link cannot hold them."""
        kept: list = []
        views = []
        for file in files:
            try:
                image = _read(file)
                views += [self._found(image)] if image is not None else []
                kept.append(gr.skip())
            except gr.Error as error:
                gr.Warning(error.message, title="Not possible")
                kept.append(None)
        count = sum(len(view.boxes) for view in views)
        seen = views_html(views, f"{count} regions found.") if views else ""
        return *kept, "", "", seen, f"?{urlencode({'task': self.key})}"

    def _found(self, image: Image.Image) -> View:
        return self.checkpoint.objects(image) if self.checkpoint.task == "vcr" else self.checkpoint.view(image)

    def _pick(self, number: Any, layer: Any, head: Any) -> tuple:
        """An example of the gallery, with its answer."""
        if not _is_in(number, range(len(self.examples))):
            raise _refusal("There is no such example.")
        example = list(self.examples.values())[number]
        images = [self.images[name] for name in example.images]
        choices = "\n".join(example.choices)
        shown = self._shown(self._answer(images, example.text, choices, layer, head))
        link = self._link(example.name, example.text, choices, layer, head)
        files = [str(self._file(name)) for name in example.images]
        return *files, example.text, choices, layer, head, example.name, *shown, link

    def restore(self, query: dict[str, str]) -> list:
        """Values of `everything` for a link; what is missing in it or wrong keeps the value of a fresh page."""
        example = self.examples.get(query.get("example", ""))
        text = query.get("text", example.text if example else "")[:MAX_CHARACTERS]
        choices = query.get("choices", "\n".join(example.choices) if example else "")[:MAX_CHARACTERS]
        num_layers = self.checkpoint.num_layers
        layer = _number(query.get("layer"), 1, num_layers + len(self.checkpoint.explanations), num_layers) - 1
        head = _number(query.get("head"), 0, self.checkpoint.num_heads, 0) - 1
        if example is None:  # somebody's own image is in no link
            return [*[None] * len(self.inputs), text, choices, layer, head, "", "", ""]
        images = [self.images[name] for name in example.images]
        try:
            shown = self._shown(self._answer(images, text, choices, layer, head))
        except gr.Error as error:
            shown = ("", views_html([self._found(image) for image in images], error.message))
        files = [str(self._file(name)) for name in example.images]
        return [*files, text, choices, layer, head, example.name, *shown]

    def _shown(self, answer: Answer) -> tuple[str, str]:
        return bars_html(answer.bars), views_html(answer.views, answer.note)

    def _link(self, example: Any, text: str, choices: str, layer: int, head: int) -> str:
        """The state as a query; an image only by the name of an example."""
        state = {"task": self.key, "text": text, "layer": layer + 1, "head": head + 1}
        if self.checkpoint.task == "vcr":
            state["choices"] = choices
        if isinstance(example, str) and example in self.examples:
            state["example"] = example
        return f"?{urlencode(state)}"

    def _file(self, name: str) -> Path:
        """An example image as a file that the page can show."""
        path = _example_folder() / f"{list(self.images).index(name)}.png"
        if not path.exists():
            self.images[name].save(path)
        return path

    def _thumbnail(self, example: Example) -> Path:
        if len(example.images) == 1:
            return self._file(example.images[0])
        path = _example_folder() / f"pair_{example.name}.png"
        grid([self.images[name] for name in example.images], columns=2).save(path)
        return path


def _keys(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """What tabs are called in links: by their task, and by a number from the second of a task on."""
    tasks = [checkpoint.kind for checkpoint in checkpoints]
    numbers = [tasks[:i].count(task) + 1 for i, task in enumerate(tasks)]
    return [task if number == 1 else f"{task}_{number}" for task, number in zip(tasks, numbers, strict=True)]


def _restore(tabs: Sequence[_Tab], query: dict[str, str]) -> list:
    """What a link says; a page that was opened without one stays as it was built."""
    linked = next((tab for tab in tabs if tab.key == query.get("task")), None)
    values: list = []
    for tab in tabs:
        values += tab.restore(query) if tab is linked and len(query) > 1 else [gr.skip()] * len(tab.everything)
    return values


def _read(file: Any) -> Image.Image | None:
    """The image of an upload, whose path [`RequestLimits`] has checked; None when nothing is there."""
    path = file.get("path") if isinstance(file, dict) else None
    if path is None:
        return None
    try:
        return open_image(path)
    except FileNotFoundError:
        raise _refusal("The image was deleted here after a while; please upload it again.") from None
    except ValueError as error:
        raise _refusal(str(error)) from None


def _is_in(number: Any, allowed: range) -> bool:
    return type(number) is int and number in allowed


def _number(text: str | None, least: int, most: int, default: int) -> int:
    known = text is not None and text.isdecimal() and len(text) < 9 and least <= int(text) <= most
    return int(text) if text is not None and known else default


def _refusal(message: str) -> gr.Error:
    """Shown to the visitor; no traceback in the log, which a crowd could fill."""
    return gr.Error(message, title="Not possible", print_exception=False)


def _theme() -> gr.themes.Base:
    # Fonts that devices have: gradio's own come from another server.
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Soft(
        primary_hue="orange", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "Menlo", "monospace"]
    ).set(button_primary_background_fill="#b84a00", button_primary_background_fill_hover="#9a3d00")


_HEADER = """<div class="vb-header"><h1>VisualBERT</h1>
<p>One BERT reads a text and the regions of an image. Choose an example or your own image, ask, and see where it looks.</p>
</div>"""

_SELECT_TAB = """() => {
    const task = new URLSearchParams(location.search).get("task");
    document.getElementById(`vb-${task}-button`)?.click();
}"""
# On hf.co the page is in a frame: the address that visitors see is changed by the page around it.
_SHOW_LINK = """(query) => {
    if (!query) return;
    history.replaceState(null, "", query);
    if (window.parent !== window) window.parent.postMessage({queryString: query.slice(1)}, "https://huggingface.co");
}"""
_COPY_LINK = """() => {
    const button = document.getElementById("vb-copy"), say = (text) => { button.textContent = text; };
    const text = button.textContent;
    navigator.clipboard.writeText(location.href).then(() => say("Copied"), () => prompt("The link:", location.href));
    setTimeout(() => say(text), 1500);
}"""

__all__ = ["build_page", "launch_page", "serve", "upload_folder"]
