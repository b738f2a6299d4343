"""LibreTranslate's API: what its clients send, and that nothing but sentences is touched."""

from __future__ import annotations

import html
import random
import time

import pytest

from bild.serving import build_app
from bild.serving.markup import cut_html
from bild.serving.sentences import cut
from bild.serving.settings import Languages
from tests.serving.conftest import TestClient, is_idle, started


def said(text: str) -> list[str]:
    return [piece.text for piece in cut(text) if piece.said]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Wie geht es dir? Mir geht es gut.", ["Wie geht es dir?", "Mir geht es gut."]),
        ("Er kam am 3. Mai mit Dr. Weber. Sie blieb.", ["Er kam am 3. Mai mit Dr. Weber.", "Sie blieb."]),
        ("„Komm!“ Sie ging… Dann Stille.", ["„Komm!“", "Sie ging…", "Dann Stille."]),
        ("z. B. Äpfel usw. und J. S. Bach.", ["z. B. Äpfel usw. und J. S. Bach."]),
        ("kein Ende\n\n  Zweite Zeile. \r\nDritte", ["kein Ende", "Zweite Zeile.", "Dritte"]),
        ("Version 3.5 ist da. 20 Leute kamen.", ["Version 3.5 ist da.", "20 Leute kamen."]),
        (" \n\t ", []),
        ("", []),
        ("Es kostet 3.50 Euro! Ökonomie? (Ja.) Gut.", ["Es kostet 3.50 Euro!", "Ökonomie?", "(Ja.)", "Gut."]),
    ],
)
def test_sentences(text, sentences):
    assert said(text) == sentences
    assert "".join(piece.text for piece in cut(text)) == text


def test_pieces_join_to_the_text_whatever_it_is():
    rng = random.Random(3)
    for _ in range(500):
        text = "".join(rng.choice("aA. \n\t!?<>/-&;pÄ'\"\u2028") for _ in range(rng.randint(0, 60)))
        assert "".join(piece.text for piece in cut(text)) == text
        assert "".join(p.text for p in cut_html(text.replace("&", ""))) == text.replace("&", "")


def test_html_is_text_between_tags():
    page = '<p class="a > b">Tom &amp; Tim. Sie &lt;lachen&gt;.</p>\n<script>if (a < b) {x()}</script>'
    page += "<!-- Nein. -->3 < 4 Ja.<br"
    pieces = cut_html(page)
    assert [piece.text for piece in pieces if piece.said] == ["Tom & Tim.", "Sie <lachen>.", "3 < 4 Ja."]
    silent = "".join(piece.text for piece in pieces if not piece.said)
    assert "<script>if (a < b) {x()}</script><!-- Nein. -->" in silent and silent.endswith("<br")


@pytest.mark.parametrize(
    ("page", "sentences"),
    [
        ("<p>&nbsp;</p><p>w5 w6</p>", ["w5 w6"]),
        ("w5<br>&#32;<br>&ensp; &nbsp;", ["w5"]),
        ("&nbsp;w5&nbsp;&amp;&nbsp; &#xa0;", ["w5\xa0&"]),
        ('<a href="?x=1&y=>2" title = \'1 > "0\'>w5</a>', ["w5"]),
        ("<p don't>w5</p><p x=\">w6", ["w5", "w6"]),
        ("<![CDATA[w5 > 3]]>w6", ["w6"]),
    ],
)
def test_what_only_looks_like_text_or_a_tag(page, sentences):
    pieces = cut_html(page)
    assert [piece.text for piece in pieces if piece.said] == sentences
    assert html.unescape("".join(piece.text for piece in pieces)) == html.unescape(page)
    for piece in pieces:
        # Byte for byte.
        assert piece.said or piece.text in page


@pytest.mark.parametrize(
    "piece",
    ["<!--", "<a", "<script>", "<", "</", "&amp", "a. A", "“", ". ", '<a x="', "<a x='>\"", '<a x="">', "&nbsp;", "= "],
)
def test_a_hostile_page_takes_no_longer_than_it_is_long(piece):
    start = time.perf_counter()
    cut_html(piece * (500_000 // len(piece)))
    assert time.perf_counter() - start < 5


def test_mastodon_s_request(client, pair):
    page = "<p>w7 w8. W9 w3!</p><br /><p>w5</p>"
    body = {"q": [page, "w4"], "source": "auto", "target": "en", "format": "html", "api_key": ""}
    answer = client.post("/translate", json=body).json()
    words = [result.text for result in pair.generate(["w7 w8.", "W9 w3!", "w5", "w4"])]
    assert answer["translatedText"] == [f"<p>{words[0]} {words[1]}</p><br /><p>{words[2]}</p>", words[3]]
    assert [each["language"] for each in answer["detectedLanguage"]] == ["de", "de"]


def test_weblate_s_request_is_a_form(client, pair):
    answer = client.post("/translate", data={"q": "w7 w8", "source": "de", "target": "en", "api_key": ""})
    assert answer.json() == {"translatedText": pair.generate("w7 w8")[0].text}
    exact = {"q": "w7 w8", "source": "de", "target": "en", "policy": "exact"}
    for lossless in ("true", "1", "false", "0", ""):
        assert client.post("/translate", data=exact | {"lossless": lossless}).status_code == 200
    refused = client.post("/translate", data=exact | {"lossless": "yes"})
    assert refused.status_code == 400 and "allowed is true or false" in refused.json()["error"]
    many = client.post("/translate", data={"q": ["w7", "w8"], "source": "de", "target": "en"}).json()["translatedText"]
    assert many == [result.text for result in pair.generate(["w7", "w8"])]
    assert [each["code"] for each in client.get("/languages").json()] == ["de", "en"]
    assert client.get("/languages").json()[0] == {"code": "de", "name": "German", "targets": ["en"]}


@pytest.mark.parametrize("send", ["json", "data"])
def test_alternatives_are_the_hypotheses_of_each_sentence(client, pair, send):
    body = {"q": ["w7 w8. W9 w3!", "w4"], "source": "de", "target": "en", "alternatives": 2}
    answer = client.post("/translate", **{send: body}).json()
    results = pair.generate(["w7 w8.", "W9 w3!", "w4"], num_beams=4)
    found = [[pair.tokenizer.decode(h.tokens, skip_special_tokens=True) for h in r.hypotheses] for r in results]
    pages = [[f"{first} {second}", third] for first, second, third in zip(*found, strict=True)]
    assert answer["translatedText"] == pages[0]
    assert answer["alternatives"] == [[pages[1][0], pages[2][0]], [pages[1][1], pages[2][1]]]
    one = client.post("/translate", **{send: body | {"q": "w4", "alternatives": 1}}).json()
    assert one["translatedText"] == pages[0][1] and one["alternatives"] == [pages[1][1]]
    assert "alternatives" not in client.post("/translate", **{send: body | {"alternatives": 0}}).json()


def test_lines_and_spaces_stay(client, pair):
    (word,) = [result.text for result in pair.generate("w7")]
    answer = client.post("/translate", json={"q": " w7\n\n\tw7 \r\n", "source": "de", "target": "en"})
    assert answer.json()["translatedText"] == f" {word}\n\n\t{word} \r\n"
    blank = client.post("/translate", json={"q": " \n", "source": "de", "target": "en"})
    assert blank.json()["translatedText"] == " \n"


def test_a_thousand_sentences_are_a_thousand_rows(client, service, pair):
    rng = random.Random(1)
    lines = [" ".join(f"w{rng.randrange(2, 40)}" for _ in range(3)) for _ in range(40)]
    body = {"q": "\n".join(lines * 25), "source": "de", "target": "en", "policy": "large"}
    own = pair.generation_config
    before, own.max_new_tokens = own.max_new_tokens, 4
    try:
        found = client.post("/translate", json=body).json()["translatedText"].split("\n")
        assert found == [result.text for result in pair.generate(lines, "large")] * 25
    finally:
        own.max_new_tokens = before
    assert is_idle(service)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"source": "de", "target": "en"}, "missing q"),
        ({"q": "w7", "target": "en"}, "missing source"),
        ({"q": "w7", "source": "de"}, "missing target"),
        ({"q": "w7", "source": "fr", "target": "en"}, "fr is not supported; allowed are de"),
        ({"q": "w7", "source": "de", "target": "fr"}, "fr is not supported; allowed are en"),
        ({"q": 7, "source": "de", "target": "en"}, "a text or a list of texts"),
        ({"q": ["a", 7], "source": "de", "target": "en"}, "a text or a list of texts"),
        ({"q": "w7", "source": "de", "target": "en", "format": "pdf"}, "allowed are text and html"),
        ({"q": "w7", "source": "de", "target": "en", "alternatives": 16}, "a whole number, 0 to 15"),
        ({"q": "w7", "source": "de", "target": "en", "alternatives": "some"}, "a whole number, 0 to 15"),
        ({"q": "w7", "source": "de", "target": "en", "alternatives": True}, "a whole number, 0 to 15"),
        ({"q": "w7", "source": "de", "target": "en", "alternatives": "9" * 5000}, "a whole number, 0 to 15"),
        ({"q": "w7", "source": "de", "target": "en", "sorce": "x"}, "did you mean source"),
    ],
)
def test_errors_are_libretranslate_s(client, service, body, says):
    answer = client.post("/translate", json=body)
    assert answer.status_code == 400 and says in answer.json()["error"]
    assert is_idle(service)


def test_detect(client):
    assert client.post("/detect", data={"q": "w7"}).json() == [{"confidence": 100.0, "language": "de"}]
    assert client.post("/detect", json={"q": ""}).status_code == 400


def test_without_languages_there_is_no_such_api(pair):
    own = started(pair, languages=())
    client = TestClient(build_app(own))
    answer = client.get("/languages")
    assert answer.status_code == 404 and "--translate de:en" in answer.json()["error"]
    own.engine.stop()


def test_a_pair_of_languages_may_have_a_prefix(pair):
    own = started(pair, languages=(Languages.parse("de:en"), Languages.parse("de:fr=w4 w4 ")))
    client = TestClient(build_app(own))
    answer = client.post("/translate", json={"q": "w7", "source": "de", "target": "fr"}).json()
    assert answer["translatedText"] == pair.generate("w7", prefix="w4 w4 ")[0].text
    own.engine.stop()
