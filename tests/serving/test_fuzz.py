"""Whatever schemathesis makes of the published schema is answered, and never by a 500. Runs where it is installed."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from bild.serving import build_app
from tests.serving.conftest import is_idle, wait_until

with warnings.catch_warnings():
    # What it brings along warns of its own next versions.
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; see 'make fuzz'")
EXAMPLES = int(os.environ.get("BILD_FUZZ_EXAMPLES", "40"))
pytestmark = pytest.mark.filterwarnings("ignore")
MODES = {"as it wants them": "POSITIVE", "as it does not": "NEGATIVE"}


@pytest.mark.parametrize("wanted", MODES)
def test_nothing_is_answered_by_a_500(service, wanted):
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_app(service))
    mode, seen = schemathesis.GenerationMode[MODES[wanted]], set()

    def check(case) -> None:
        if isinstance(case.body, dict):
            # Longer texts would only take longer.
            for name in ("max_tokens", "max_completion_tokens"):
                asked = case.body.get(name, 2)
                case.body[name] = min(asked, 2) if type(asked) is int else asked
            if "q" in case.body or "messages" not in case.body:
                del case.body["max_completion_tokens"]
            if "q" in case.body:
                del case.body["max_tokens"]
        answer = case.call()
        seen.add((case.method, case.path, answer.status_code))
        assert answer.status_code < 500, (case.path, answer.status_code, answer.text, case.body)
        if answer.status_code >= 400:
            assert answer.json()["error"] and "detail" not in answer.json(), answer.text
        wait_until(lambda: is_idle(service))

    for operation in schema.get_all_operations():
        cases = operation.ok().as_strategy(generation_mode=mode)
        run = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        # An operation without a body or parameters cannot be asked wrongly.
        with suppress(Unsatisfiable):
            run(given(cases)(check))()
    paths = {path for _, path, _ in seen}
    assert {"/v1/completions", "/v1/chat/completions", "/translate", "/detect"} <= paths
    assert {status for _, path, status in seen if path == "/v1/completions"} >= {400}
