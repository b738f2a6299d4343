"""A small soak: clients that come and go, and a server that has forgotten all of them."""

from __future__ import annotations

import asyncio

import pytest
import soak

from bild.engine import Limits
from tests.serving.conftest import pair, run  # noqa: F401

TEXTS = ["w7 w8 w9", "w3", "w20 w21 w22 w23 w5 w6"]
TOKENS = 10


def expected(pair, policies) -> dict[str, dict[str, str]]:  # noqa: F811
    return {
        policy: {
            text: result.text
            for text, result in zip(TEXTS, pair.generate(TEXTS, policy, max_new_tokens=TOKENS), strict=True)
        }
        for policy in policies
    }


def test_nobody_is_lost_nothing_hangs_and_nothing_is_left_behind(pair, run):  # noqa: F811
    server = run(Limits(rows=4))
    own = soak.Soak(
        server.url, expected(pair, soak.POLICIES), {"max_tokens": TOKENS}, lambda: 100, vanish=0.2, patience_s=30
    )
    found = asyncio.run(own.run(50, 16))
    assert found.ends["lost"] == found.ends["hung"] == found.different == 0
    assert found.ends["done"] + found.ends["vanished"] == 50 and found.ends["vanished"] > 2
    assert found.texts > 50 and set(found.gauges.values()) == {0.0} and found.growth == 0


def test_what_goes_wrong_is_counted(pair, run):  # noqa: F811
    server = run(Limits(rows=1, queue=1))
    wrong = {"exact": dict.fromkeys(TEXTS, "something else")}
    own = soak.Soak(server.url, wrong, {"max_tokens": TOKENS}, lambda: 100, vanish=0, patience_s=30)
    found = asyncio.run(own.run(12, 12))
    assert found.ends["lost"] > 0 and found.ends["done"] > 0 and found.different == found.texts
    grown = soak.Soaked(memory=[50] * 20 + [100] * 60 + [110] * 20)
    assert grown.growth == pytest.approx(0.1)
    with pytest.raises(ValueError, match="does not end"):
        soak.streamed(b'data: {"choices": []}\r\n', 1)
