"""The page of --html: what it holds, and what a browser makes of it."""

import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_runs import ROOT, finished  # noqa: F401

from diffusion_lm import main, page
from diffusion_lm.data import tokenizers
from diffusion_lm.sample import Prompt, Step

BYTES = tokenizers.load(name="bytes")
WICKED = "</script><b>\u2028<!--"


def text_data(tokenizer=BYTES):
    return SimpleNamespace(vocab_size=tokenizer.vocab_size, tokenizer=tokenizer, shape=None)


def drawn_by_hand(ids, free, mask, steps=5, **more):
    """A sample that shows the free ones of `ids` in a random order."""
    rng = np.random.default_rng(0)
    ids, free = np.asarray(ids), np.asarray(free)
    when = np.where(free, rng.integers(0, steps, len(ids)), -1)
    places = [np.flatnonzero(when == t) for t in range(steps)]
    made = [Step(at, ids[at], rng.uniform(0.1, 1, len(at)), math.nan) for at in places if at.size]
    return {
        "index": 0,
        "seed": 0,
        "calls": steps,
        "prompt": Prompt(np.where(free, mask, ids), free),
        "steps": made,
        **more,
    }


def content(html):
    """The JSON of a page, as a browser would cut it out."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', html, re.S)
    return json.loads(text)


def test_no_text_breaks_out_and_nothing_is_loaded():
    ids = BYTES.encode(WICKED)
    free = np.arange(len(ids)) > 10
    made = drawn_by_hand(ids, free, BYTES.vocab_size)
    html = page.render(text_data(), [made], {"run": WICKED})
    assert html.count("</script") == 2 and "<!--\\u" not in html and "\u2028" not in html
    held = content(html)
    assert held["facts"] == {"run": WICKED}
    start = bytes(i for i in held["samples"][0]["start"] if i >= 0)
    assert start == WICKED.encode()[:11]
    assert not re.findall(r"""(?: src=| href=|url\(|@import|https?:)""", html)


def test_the_template_is_installed(tmp_path):
    pytest.importorskip("setuptools")
    build = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}"]
    subprocess.run(build, cwd=ROOT, check=True)
    own = (ROOT / "diffusion_lm/page.html").read_text()
    assert (tmp_path / "diffusion_lm/page.html").read_text() == own


def test_pieces_that_are_no_text_are_bytes():
    gpt2 = tokenizers.load(name="gpt2", vocab_size=300)
    ids = np.append(gpt2.encode("a é"), gpt2.end)
    made = drawn_by_hand(ids, np.ones(len(ids), bool), gpt2.vocab_size)
    pieces = content(page.render(text_data(gpt2), [made], {}))["pieces"]
    assert set(pieces) == set(map(str, ids))
    assert sorted(map(str, pieces.values())) == sorted(
        ["a", " ", "[195]", "[169]", tokenizers.END_TEXT]
    )


def test_the_command_writes_a_page_beside_the_text(finished, tmp_path, capsys):  # noqa: F811
    _, workdir = finished
    path = tmp_path / "steps.html"
    argv = [f"--workdir={workdir}", "--mode=sample", "--num_samples=2", "--json"]
    argv += [f"--prompt={WICKED}[MASK:5] the [MASK:9]", "--length=60", "--block=3"]
    assert main.main(argv) == 0
    plain = capsys.readouterr().out
    assert main.main([*argv, f"--html={path}"]) == 0
    out = capsys.readouterr()
    assert out.out == plain and str(path) in out.err
    held = content(path.read_text())
    assert held["facts"]["sampler"].startswith("ancestral (") and len(held["samples"]) == 2
    for sample, row in zip(held["samples"], map(json.loads, plain.splitlines()), strict=True):
        tokens = list(sample["start"])
        assert sample["calls"] == row["calls"] and sum(sample["free"]) == 14
        for step in sample["steps"]:
            for place, token, prob in zip(step["at"], step["id"], step["p"], strict=True):
                assert sample["free"][place] and tokens[place] == -1 and 0 < prob <= 1
                tokens[place] = token
        assert BYTES.decode(tokens) == row["text"]


def test_no_file_is_lost(finished, tmp_path, capsys):  # noqa: F811
    _, workdir = finished
    path = tmp_path / "mine.html"
    path.write_text("mine")
    argv = [f"--workdir={workdir}", "--mode=sample"]
    others = [(tmp_path / "no" / "x.html", "no folder"), (tmp_path, "exists already"), ("", "name")]
    for name, words in [(path, "exists already"), *others]:
        assert main.main([*argv, f"--html={name}"]) == 2
        out = capsys.readouterr()
        assert not out.out and words in out.err and out.err.count("\n") == 1
    assert path.read_text() == "mine"
    with pytest.raises(FileExistsError):  # one that came while samples were drawn
        page.write(str(path), text_data(), [], {})
    assert path.read_text() == "mine"


# In a browser.


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install 'diffusion_lm[browser]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    own = next(filter(None, map(shutil.which, names)), None)  # else the one that Playwright brings
    with api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=own)
        except api.Error:
            pytest.skip("no Chromium: install it, or run `playwright install chromium`")
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """(data, samples) -> a tab with their page; no error, and no request but for the file."""
    tabs, wrong = [], []

    def show(data, samples):
        path = tmp_path / f"{len(tabs)}.html"
        page.write(str(path), data, samples, {"run": WICKED})
        tab = browser.new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda said: said.type != "error" or wrong.append(said.text))
        tab.on("request", lambda r: r.url == path.as_uri() or wrong.append(r.url))
        tab.goto(path.as_uri())
        tabs.append(tab)
        return tab

    yield show
    for tab in tabs:
        tab.close()
    assert not wrong


def text_of(tab):
    return tab.locator(".text").evaluate("box => box.textContent")


def test_the_slider_plays_the_steps(opened):
    given, written = WICKED, "la fa\u00e7ade \U0001f600!\nend"
    ids = BYTES.encode(given + written)
    free = np.arange(len(ids)) >= len(given.encode())
    made = drawn_by_hand(ids, free, BYTES.vocab_size)
    tab = opened(text_data(), [made])
    assert text_of(tab) == given + written and tab.locator(".text b").count() == 0
    slider, step = tab.locator("#slider"), tab.locator("#step")
    assert step.text_content() == "step 5 of 5"
    slider.focus()
    tab.keyboard.press("Home")
    assert text_of(tab) == given and "start" in step.text_content()
    assert tab.locator(".text .blank").count() == free.sum()
    assert tab.locator(".text .given").count() == (~free).sum()
    hidden = free.sum()
    for number in range(1, 6):
        tab.keyboard.press("ArrowRight")
        hidden -= len(made["steps"][number - 1].places)
        assert step.text_content() == f"step {number} of 5"
        assert tab.locator(".text .blank").count() == hidden
        assert tab.locator(".text .now").count() == len(made["steps"][number - 1].places)
    assert text_of(tab) == given + written
    colours = tab.locator(".text .drawn").evaluate_all(
        "all => all.map(span => getComputedStyle(span).backgroundColor)"
    )
    assert len(set(colours)) == 5  # a colour a step


def test_play_goes_to_the_end_and_can_be_paused(opened):
    ids = BYTES.encode("some text that comes about")
    tab = opened(
        text_data(), [drawn_by_hand(ids, np.ones(len(ids), bool), BYTES.vocab_size, steps=4)]
    )
    button = tab.locator("#play")
    button.focus()
    tab.keyboard.press("Enter")
    assert button.text_content() == "Pause"
    while tab.locator("#slider").input_value() == "0":
        tab.wait_for_timeout(20)
    tab.keyboard.press("Space")
    assert button.text_content() == "Play"
    at = tab.locator("#slider").input_value()
    tab.wait_for_timeout(700)  # longer than a step
    assert tab.locator("#slider").input_value() == at
    button.click()
    tab.get_by_role("button", name="Play", exact=True).wait_for(timeout=10_000)
    assert tab.locator("#slider").input_value() == "4"
    assert text_of(tab) == "some text that comes about"


def test_confidence_on_hover_and_by_keys(opened):
    ids = BYTES.encode("abc")
    steps = [
        Step(np.array([1]), np.array([98]), np.array([0.25]), 2.5),
        Step(np.array([2]), np.array([120]), np.array([0.5]), math.nan),
        Step(np.array([2]), np.array([99]), np.array([0.0004]), 3.25),
    ]
    mask = BYTES.vocab_size
    prompt = Prompt(np.array([97, mask, mask]), np.array([False, True, True]))
    made = {"index": 0, "seed": 0, "calls": 9, "prompt": prompt, "steps": steps}
    tab = opened(text_data(), [made])
    tip, spans, figures = tab.locator("#tip"), tab.locator(".text span"), tab.locator(".figures")
    assert not tip.is_visible() and text_of(tab) == BYTES.decode(ids)
    assert figures.text_content() == "effective sample size 3.25 \u00b7 9 network calls"
    spans.nth(1).hover()
    assert tip.text_content() == "\u201cb\u201d\nstep 1 of 3\nconfidence 25.0 %"
    spans.nth(0).hover()
    assert "given by the prompt" in tip.text_content()
    tab.mouse.move(0, 0)
    assert not tip.is_visible()
    tab.locator(".text").focus()
    tab.keyboard.press("End")
    assert "step 3 of 3, drawn 2 times\nconfidence under 0.1 %" in tip.text_content()
    tab.locator("#slider").fill("1")
    tab.locator(".text").focus()
    tab.keyboard.press("End")
    assert tip.text_content() == "not known yet"
    assert "size 2.50" in figures.text_content()
    tab.keyboard.press("Escape")
    assert not tip.is_visible()


def test_broken_bytes_are_shown_as_python_shows_them(opened):
    ids = np.random.default_rng(1).integers(0, 257 - 1, 600)
    ids[::7] = 0xE2  # so that characters begin and do not end
    made = drawn_by_hand(ids, np.ones(len(ids), bool), BYTES.vocab_size)
    assert text_of(opened(text_data(), [made])) == BYTES.decode(ids)


def test_images_are_drawn(opened):
    data = SimpleNamespace(vocab_size=5, tokenizer=None, shape=(2, 3, 1))
    made = drawn_by_hand([0, 1, 2, 3, 4, 4], np.ones(6, bool), 5, steps=3)
    tab = opened(data, [made])

    def pixels():
        return tab.locator("canvas").evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, 3, 2).data]"
        )

    assert pixels() == [v for level in (0, 64, 128, 191, 255, 255) for v in [level] * 3 + [255]]
    tab.locator("#slider").fill("0")
    assert pixels() == [70, 90, 150, 255] * 6
    tab.locator("canvas").hover()
    assert tab.locator("#tip").text_content() == "not known yet"
