"""The page: what it may do, and that a real browser shows what the API says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bild.serving import build_app
from bild.serving.settings import Keys
from tests.serving.browser import CHROMIUM, Browser
from tests.serving.conftest import TestClient, started

PICTURES = os.environ.get("BILD_PICTURES")
"""A folder; where it is named, pictures of the page are put there."""


def test_the_page_may_run_only_its_own_script_and_asks_nobody_else(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; connect-src 'self'; script-src 'sha256-" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    # Nothing of another host, and texts only ever as text.
    assert re.findall(r"(?:src|href|url)\s*[=(]", answer.text) == []
    assert "innerHTML" not in answer.text and "http://" not in answer.text and "https://" not in answer.text


def test_the_page_needs_no_key_and_what_it_asks_does(pair):
    own = started(pair, keys=Keys.of(["secret"]))
    client = TestClient(build_app(own))
    assert client.get("/").status_code == 200
    assert client.post("/v1/completions", json={"prompt": "w7"}).status_code == 401
    own.engine.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    own = Browser(tmp_path_factory.mktemp("chromium"))
    yield own
    own.close()


def written(name: str) -> str:
    """A script: the text of a pane without what was rolled back and the sign of its end."""
    return (
        f"[...document.querySelectorAll('#w-{name} p')].map(p => [...p.children].filter(e => e.tagName !== 'DEL')"
        ".map(e => e.textContent).join('')).join('\\n').replace(/ ∎/g, '')"
    )


def begin(browser: Browser, url: str, text: str) -> None:
    browser.open(url)
    browser.run("document.getElementById('text').select(), document.getElementById('slow').value = '1', 0")
    browser.type(text)
    browser.run("document.getElementById('go').click()")


def end(browser: Browser) -> None:
    browser.wait("!document.getElementById('go').disabled")
    assert browser.run("document.getElementById('trouble').textContent") == ""


def test_a_sentence_typed_is_written_by_both_models(browser, server, pair):
    text = "w20 w21 w22 w23 w5 w6"
    begin(browser, server.url, text)
    end(browser)
    both, large = pair.generate(text)[0], pair.generate(text, "large")[0]
    assert both.stats.num_rollbacks and {"small", "large"} == set(both.writers)
    assert browser.run(written("bild")) == both.text and browser.run(written("large")) == large.text
    count = "document.querySelectorAll('#w-bild {}').length"
    assert browser.run(count.format(".large")) == both.writers.count("large")
    assert browser.run(count.format(".small, #w-bild .unread")) == both.writers.count("small")
    assert browser.run(count.format("del")) == both.stats.num_rollbacks
    assert re.match(
        r"[\d.]+ × as fast: [\d.]+ and [\d.]+ ms\.", browser.run("document.getElementById('times').textContent")
    )
    assert "confidence 0." in browser.run("document.querySelector('#w-bild .small').title")
    assert browser.messages == []


def test_each_sentence_may_be_a_row(browser, server, pair):
    browser.open(server.url)
    begin(browser, server.url, "w7 w8. w3!")
    end(browser)
    browser.run("document.getElementById('lines').click(), document.getElementById('go').click()")
    end(browser)
    assert browser.run(written("bild")) == "\n".join(result.text for result in pair.generate(["w7 w8.", "w3!"]))


def test_a_seed_draws_the_same_text_again(browser, server, pair):
    text = "w20 w21 w22"
    browser.open(server.url)
    assert browser.run("document.getElementById('seed').disabled")
    browser.run(
        "for (const [id, value] of [['temperature', '1.5'], ['seed', '7'], ['near', '0']]) "
        "{ document.getElementById(id).value = value } "
        "document.getElementById('form').dispatchEvent(new Event('input')), 0"
    )
    assert not browser.run("document.getElementById('seed').disabled")
    browser.run("document.getElementById('text').select(), document.getElementById('slow').value = '1', 0")
    browser.type(text)
    browser.run("document.getElementById('go').click()")
    end(browser)
    drawn = {"do_sample": True, "temperature": 1.5, "seed": 7, "top_p": 1.0, "top_k": 0}
    (expected,) = pair.generate(text, "large", **drawn)
    # Exact match draws what the large model alone draws.
    assert browser.run(written("bild")) == browser.run(written("large")) == expected.text
    assert '"temperature":1.5,"seed":7' in browser.run("document.getElementById('curl').textContent")


def test_what_goes_wrong_is_said_and_markup_is_text(browser, server):
    begin(browser, server.url, " ")
    browser.wait("!document.getElementById('go').disabled")
    assert "the text is empty" in browser.run("document.getElementById('trouble').textContent")
    begin(browser, server.url, "<img src=x onerror=alert(1)> w7")
    end(browser)
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert "onerror" in browser.run("document.getElementById('curl').textContent")


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_its_window(browser, server, width):
    browser.size(width, 900)
    begin(browser, server.url, "w20 w21 w22 w23 w5 w6")
    end(browser)
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.skipif(PICTURES is None, reason="makes the pictures of docs/serving.md with the bundled pair")
def test_pictures(browser, bundled):
    from tests.serving.conftest import Running

    own = Running(started(bundled, model="de-en"))
    try:
        for width, dark in ((360, False), (360, True), (1280, False), (1280, True)):
            browser.size(width, 800, dark=dark)
            begin(
                browser,
                own.url,
                "Ich habe gestern einen alten Freund getroffen, den ich seit vielen Jahren nicht gesehen hatte.",
            )
            end(browser)
            browser.picture(Path(PICTURES) / f"page-{width}{'-dark' if dark else ''}.png")
    finally:
        own.stop()
