"""Several things at once, each in a process of its own."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from bild.models import run_pair
from bild.models.compiled import compiling, processes
from tests.networks import build


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_results_come_in_order_from_other_processes(cores, monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: cores)

    def work(item):
        # What is compiled there is compiled for as many threads as there are here; torch itself runs in one.
        operations = torch.__config__.parallel_info().split("at::get_num_threads() : ")[1].split()[0]
        return item * 2, os.getpid(), torch.get_num_threads(), operations, processes.is_forked

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = processes.each(work, list(range(5)))
    assert [result for result, *_ in found] == [0, 2, 4, 6, 8] and not processes.is_forked
    assert os.getpid() not in {process for _, process, *_ in found}
    assert {each[2:] for each in found} == {(3, "1", True)}


def test_what_fails_is_killed_or_hangs_is_said(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 2)

    def work(item):
        if item == "fails":
            raise KeyError("no such thing")
        if item == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "hangs":
            time.sleep(600)
        return item

    with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
        processes.each(work, ["good", "fails", "good"])
    with pytest.raises(RuntimeError, match="ended with -9"):
        processes.each(work, ["is killed", "good"])
    monkeypatch.setattr(processes, "PATIENCE_S", 0.5)
    with pytest.raises(RuntimeError, match=r"has said nothing for 0\.5 s"):
        processes.each(work, ["good", "hangs"])


def test_what_is_done_aside_is_told_afterwards_and_its_failure_is_not():
    told = []
    with processes.aside(lambda: os.getpid(), told.append):
        assert not told
    assert len(told) == 1 and told[0] != os.getpid()
    with processes.aside(lambda: 1 // 0, told.append):
        pass
    assert len(told) == 1
    # Whoever breaks off does not wait for it.
    start = time.monotonic()
    with pytest.raises(KeyError), processes.aside(lambda: time.sleep(600), told.append):
        raise KeyError
    assert time.monotonic() - start < 60


def test_nothing_is_forked_beside_other_threads_or_on_one_core(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 2)
    # A process of pytest-xdist has threads of its own.
    others, seen = [threading.Thread(name=processes.WATCHER)], threading.current_thread()
    monkeypatch.setattr(threading, "enumerate", lambda: [seen, *others])
    assert processes.can_fork()
    monkeypatch.setattr(processes, "cores", lambda: 1)
    assert not processes.can_fork()
    monkeypatch.setattr(processes, "cores", lambda: 2)
    others.append(threading.Thread(name="reader"))
    assert not processes.can_fork()
    others.pop()
    monkeypatch.setattr(processes.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert not processes.can_fork()


@pytest.mark.compiles
def test_both_sides_of_a_pair_are_compiled_at_once(fresh_cache, monkeypatch):
    monkeypatch.setattr(processes, "can_fork", lambda: True)
    # Whichever products are ours here, at a toy's sizes.
    monkeypatch.setattr(compiling.kernels, "has_all_products", lambda graph: True)
    networks = [build("gpt2", seed=seed, layers=1, width=32, dtype=torch.float32) for seed in (61, 62)]
    before, asked = compiling.compilations, []
    monkeypatch.setattr(compiling, "_compile", lambda *given, own=compiling._compile: asked.append(1) or own(*given))
    large, small = run_pair(*networks, "static")
    assert large.is_compiled and small.is_compiled
    # One of the two graphs was compiled here, the other was there afterwards.
    assert len(asked) == 1 and compiling.compilations == before + 2
    assert len(list((fresh_cache / "compiled").glob("*.pt2"))) == 2
