"""The demo in a real browser, on a desk and on a phone: load, upload, ask, see; links; messages; no request elsewhere."""

import os
import re
import shutil

import pytest
from attack_demo import SCRIPTS, attacked
from bench_demo import image_bytes, running_demo
from PIL import Image
from tiny_checkpoints import save_tiny_checkpoint

pytest.importorskip("gradio", reason='gradio is not installed: pip install "modeling-visualbert[demo]"')
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
TASKS = ("vqa", "nlvr2", "vcr", "flickr30k", "pretraining")
PATIENCE = 60_000  # milliseconds: machines that test are busy


@pytest.fixture(scope="module")
def browser():
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"no browser at {CHROMIUM}; expected Chromium there, or its path in CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A demo with a tab for each task."""
    root = tmp_path_factory.mktemp("demo")
    for task in TASKS:
        save_tiny_checkpoint(task, root / task)
    with running_demo(*(str(root / task) for task in TASKS)) as (address, _):
        yield address


class Watched:
    """A page, with what it asked for from elsewhere, script errors and dialogs."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.elsewhere, self.errors = [], []
        self.page.on("request", self._request)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _request(self, request):
        if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", request.url):
            self.elsewhere.append(request.url)

    def open(self, url, task="vqa"):
        self.page.goto(url)
        tab = self.page.locator(f"#vb-{task}")
        tab.locator(".vb-seen svg").first.wait_for()
        return tab


@pytest.fixture(params=["desk", "phone"])
def watched(browser, request):
    sizes = {
        "desk": {"viewport": {"width": 1280, "height": 860}},
        "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    }
    watched = Watched(browser, **sizes[request.param])
    yield watched
    watched.context.close()
    assert watched.elsewhere == []
    assert watched.errors == []


def files_of(tab):
    return tab.locator("input[type=file]")


def clear(tab):
    tab.locator("button[aria-label='Clear'], button[aria-label='Remove Image']").first.click()


def says(locator, text):
    playwright.expect(locator.first).to_contain_text(re.compile(text), timeout=PATIENCE)


def test_upload_ask_and_see(watched, address, tmp_path):
    (tmp_path / "mine.png").write_bytes(image_bytes(3))
    tab = watched.open(address)
    clear(tab)
    files_of(tab).set_input_files(tmp_path / "mine.png")
    says(tab.locator(".vb-note"), r"\d regions found")
    tab.get_by_label("Question").fill("How many things are there?")
    tab.get_by_role("button", name="Ask").click()
    says(tab.locator(".vb-note"), "all heads")
    assert tab.locator(".vb-bars li").count() == 4
    for part in ("image", "rect"):
        box = tab.locator(f".vb-seen svg {part}").first.bounding_box()
        assert box["width"] > 5 and box["height"] > 5
    assert tab.locator(".vb-seen svg image").get_attribute("href").startswith("data:image/jpeg")
    playwright.expect(watched.page).to_have_url(
        re.compile(r"\?task=vqa&text=How\+many\+things\+are\+there%3F&layer=1&head=0$")
    )


def test_every_tab_fits_the_screen_and_answers(watched, address):
    watched.open(address)
    for task in TASKS:
        watched.page.locator(f"#vb-{task}-button").first.click()
        tab = watched.page.locator(f"#vb-{task}")
        tab.locator(".vb-seen svg").first.wait_for()
        wide = watched.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, task
        tab.get_by_label("by", exact=True).click()
        watched.page.get_by_role("option", name="head 2").click()
        says(tab.locator(".vb-note"), "head 2")


def test_an_example_and_the_link_to_it(watched, address, browser):
    tab = watched.open(address)
    tab.locator(".vb-examples button").nth(1).click()
    playwright.expect(watched.page).to_have_url(re.compile("example=stars"), timeout=PATIENCE)
    assert tab.get_by_label("Question").input_value() == "What color is the diamond?"
    tab.get_by_label("by", exact=True).click()
    watched.page.get_by_role("option", name="head 3").click()
    playwright.expect(watched.page).to_have_url(re.compile("head=3"), timeout=PATIENCE)
    says(tab.locator(".vb-note"), "head 3")
    bars = tab.locator(".vb-answer").first.inner_text()

    other = Watched(browser)
    again = other.open(watched.page.url)
    says(again.locator(".vb-note"), "head 3")
    assert again.locator(".vb-answer").first.inner_text() == bars
    assert again.get_by_label("Question").input_value() == "What color is the diamond?"
    other.context.close()


def test_a_link_opens_its_tab(watched, address):
    watched.page.goto(f"{address}/?task=vcr&example=circles&head=2")
    playwright.expect(watched.page.locator("#vb-vcr-button").first).to_have_attribute(
        "aria-selected", "true", timeout=PATIENCE
    )
    tab = watched.page.locator("#vb-vcr")
    says(tab.locator(".vb-note"), "head 2")
    assert tab.get_by_label("Question").input_value() == "What is [2] like ?"


@pytest.mark.parametrize(
    "query", ["task=no", "task=vqa&example=../../etc/passwd", "task=vqa&layer=99&head=-5&text=", "%00=%ff"]
)
def test_links_that_say_nonsense_open_the_page(watched, address, query):
    watched.page.goto(f"{address}/?{query}")
    watched.page.locator("#vb-vqa").get_by_role("button", name="Ask").wait_for()


def test_text_of_others_is_text(watched, address):
    """In a link that somebody sends, and in what comes back."""
    for text in ("<img src=x onerror=alert(1)>", "${alert(2)}", "{{alert(3)}}", "[<b onclick=alert(4)>it</b>] is red"):
        watched.page.goto("about:blank")
        from urllib.parse import quote

        tab = watched.open(f"{address}/?task=flickr30k&example=stars&text={quote(text)}", "flickr30k")
        playwright.expect(tab.get_by_label("Sentence")).to_have_value(text, timeout=PATIENCE)
        tab.get_by_role("button", name="Find").click()
        watched.page.wait_for_timeout(1000)
        assert not tab.locator(".vb-answer img, .vb-answer b, .vb-seen b, .vb-seen img").count()


def test_labels_of_others_are_text(watched, tmp_path):
    save_tiny_checkpoint("nlvr2", tmp_path, labels=list(SCRIPTS), num_images=1)
    with running_demo(str(tmp_path)) as (address, _):
        watched.page.goto(address)
        tab = watched.page.locator("#vb-classification")
        (tmp_path / "mine.png").write_bytes(image_bytes(3))
        files_of(tab).set_input_files(tmp_path / "mine.png")
        says(tab.locator(".vb-note"), r"\d regions found")
        tab.get_by_label("Text").fill(SCRIPTS[0])
        tab.get_by_role("button", name="Classify").click()
        says(tab.locator(".vb-answer"), re.escape("onerror=alert(2)"))
        assert not tab.locator(".vb-answer :is(img, svg, script, iframe)").count()


def test_the_page_answers_while_it_is_attacked(watched, address, tmp_path):
    """By all attacks at once; scripts in questions and file names are text."""
    image = tmp_path / "<img src=x onerror=alert(7)>.png"
    image.write_bytes(image_bytes(3))
    tab = watched.open(address)
    with attacked(address, 10.0) as attack:
        clear(tab)
        files_of(tab).set_input_files(image)
        says(tab.locator(".vb-note"), r"\d regions found")
        for text in SCRIPTS:
            tab.get_by_label("Question").fill(text)
            tab.get_by_role("button", name="Ask").click()
            watched.page.wait_for_function(
                "text => new URLSearchParams(location.search).get('text') === text", arg=text
            )
            says(tab.locator(".vb-note"), "all heads")
        answers = attack.result()
    assert answers["200"] > 0 and answers["500"] == 0
    assert not tab.locator(".vb-answer :is(img, svg, script, iframe)").count()


@pytest.mark.parametrize("bad", ["100 megapixels", "text", "12 MB"])
def test_bad_images_are_refused_with_a_message(watched, address, tmp_path, bad):
    path = tmp_path / "bad.png"
    if bad == "100 megapixels":
        Image.new("1", (10_000, 10_000)).save(path)
        message = "100 megapixels; at most 25 are accepted"
    elif bad == "text":
        path.write_text("no image")
        message = "cannot be read as an image"
    else:
        path.write_bytes(os.urandom(12_000_000))
        message = "exceed the maximum allowed size"
    tab = watched.open(address)
    clear(tab)
    files_of(tab).set_input_files(path)
    says(watched.page.locator(".toast-body"), message)
    if bad != "12 MB":  # the page is as if nothing had been uploaded
        playwright.expect(tab.locator(".vb-seen svg")).to_have_count(0, timeout=PATIENCE)
        playwright.expect(files_of(tab)).to_have_count(1, timeout=PATIENCE)


def test_asking_without_an_image_is_explained(watched, address):
    tab = watched.open(address)
    clear(tab)
    tab.get_by_role("button", name="Ask").click()
    says(watched.page.locator(".toast-body"), "choose an image first")
