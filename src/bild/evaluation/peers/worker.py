"""An engine in a process of its own, spoken to line by line in JSON."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from bild.errors import InputError, LoadError
from bild.evaluation.method import Output
from bild.evaluation.peers.environment import clean_variables

SETTLE_S = 0.02
"""OpenMP threads spin for a while after their last work (CTranslate2's: 5 ms) and slow down whoever comes next."""
CLOSE_S = 5.0


class WorkerPeer:
    """A method that asks a worker process; its times are those the worker takes around text in, text out.

    The worker writes ``{"ready": true, "weight_bytes": …, "versions": {…}}`` once it has loaded. From then on a line
    ``{"source": …}`` is answered by ``{"text", "token_ids", "total_s", "ttft_s"}`` or ``{"error": …}``. It ends when
    its input does.

    Args:
        name: as the user wrote it.
        command: starts the worker.
        variables: environment variables on top of ours.
        settle_s: seconds to wait before and after a text, 0…, for spinning threads to come to rest.

    Raises:
        LoadError: a worker that did not get ready, and why.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        variables: dict[str, str] | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.name, self.settle_s = name, settle_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        self._process = _start(command, self._log, {} if variables is None else variables)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        try:
            facts = self._answer()
        except LoadError:
            self.close()
            raise
        if "error" in facts:
            self.close()
            raise LoadError(f"the engine cannot load the model ({facts['error']})")
        self.weight_bytes: int | None = facts.get("weight_bytes")
        self.details: dict[str, Any] = {k: v for k, v in facts.items() if k not in ("ready", "weight_bytes")}

    def __call__(self, source: str) -> Output:
        """Decode one text.

        Raises:
            InputError: a text the engine cannot decode.
            LoadError: a worker that died.
        """
        time.sleep(self.settle_s)
        self._ask({"source": source})
        answer = self._answer()
        if "error" in answer:
            raise InputError(answer["error"])
        time.sleep(self.settle_s)
        return Output(answer["text"], answer["token_ids"], ttft_s=answer["ttft_s"], total_s=answer["total_s"])

    def close(self) -> None:
        """End the worker; harmless when it has ended."""
        with contextlib.suppress(OSError):
            self._questions.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._log.close()

    def _ask(self, question: dict[str, Any]) -> None:
        try:
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
        except (OSError, ValueError):
            raise LoadError(self._obituary()) from None

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise LoadError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _obituary(self) -> str:
        if self._log.closed:
            return "the engine is closed"
        return f"the engine's process ended with {self._process.wait()} ({last_line(self._log)})"


def last_line(log: Any) -> str:
    """The last line a process left in this binary file, where a traceback says what happened."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _start(command: Sequence[str], log: Any, variables: dict[str, str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            env=clean_variables() | variables,
            # Ctrl-C is for us: we close the worker, and it does not die in the middle of a text.
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        raise LoadError(f"the engine cannot be started ({error})") from None
