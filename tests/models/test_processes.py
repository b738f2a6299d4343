"""Several things at once, each in a process of its own."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from bild.models.compiled import processes


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_results_come_in_order_from_other_processes(cores, monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    found = processes.each(lambda item: (item * 2, os.getpid(), torch.get_num_threads()), list(range(5)))
    assert [result for result, *_ in found] == [0, 2, 4, 6, 8]
    assert os.getpid() not in {process for _, process, _ in found} and {threads for *_, threads in found} == {1}


def test_what_fails_or_is_killed_is_said(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 2)

    def work(item):
        if item == "fails":
            raise KeyError("no such thing")
        if item == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
        processes.each(work, ["good", "fails", "good"])
    with pytest.raises(RuntimeError, match="ended with -9"):
        processes.each(work, ["is killed", "good"])
    monkeypatch.setattr(processes.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(RuntimeError, match="cannot be forked"):
        processes.each(work, ["good"])
