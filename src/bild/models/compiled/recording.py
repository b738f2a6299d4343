"""Passes of a GPU, recorded once as CUDA graphs and replayed: hundreds of kernels for the price of one call.

A recording reads and writes at the addresses it was made with. So it is looked up by the addresses of what it is
given, small inputs are copied to where it reads them, and what it computes is copied before anybody else replays it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bild.errors import one_line

logger = logging.getLogger("bild")

Function = Callable[[list[Tensor]], Sequence[Tensor]]

MOST = 256
"""Recordings of one function that are kept; those not used for longest go first."""


class Recording(NamedTuple):
    """A recorded call: replay, what it reads from, and where its results lie."""

    graph: Any
    inputs: dict[int, Tensor]
    outputs: Sequence[Tensor]


class Recorded:
    """A function on a GPU whose calls are recorded when they come a second time.

    The first time it simply runs, which also loads its kernels: that cannot happen while recording.

    Args:
        function: of tensors, in one list, to tensors; it makes the host wait for nothing.
    """

    def __init__(self, function: Function) -> None:
        self._function, self._lock = function, Lock()
        self._recordings: OrderedDict[Any, Recording | None] = OrderedDict()
        self._pool: Any = None
        self._records = True
        self.recordings = 0
        """How many calls were recorded."""

    def __call__(self, tensors: list[Tensor], copied: Sequence[int]) -> Sequence[Tensor]:
        """The function's results, which are the caller's own.

        Args:
            tensors: its arguments, on the GPU but for those that are copied.
            copied: places of small arguments that are written to where a recording reads them.
        """
        moved = set(copied)
        key = (
            *[tuple(tensors[place].shape) for place in copied],
            *[each.data_ptr() for place, each in enumerate(tensors) if place not in moved],
            # Layers are alike, so these tell all shapes.
            *[tuple(each.shape) for each in (*tensors[2:3], *tensors[-2:])],
        )
        with self._lock:
            recording = self._recordings.get(key)
            if recording is None and self._records and key in self._recordings:
                recording = self._try_to_record(tensors, moved)
            self._remember(key, recording)
            if recording is None:
                return self._function([each.to(self._device(tensors, moved)) for each in tensors])
            for place in copied:
                # Of a few hundred bytes the driver takes a copy before this returns.
                recording.inputs[place].copy_(tensors[place], non_blocking=True)
            recording.graph.replay()
            return [each.clone() for each in recording.outputs]

    def _remember(self, key: Any, recording: Recording | None) -> None:
        self._recordings[key] = recording
        self._recordings.move_to_end(key)
        while len(self._recordings) > MOST:
            self._recordings.popitem(last=False)

    def _device(self, tensors: list[Tensor], moved: set[int]) -> torch.device:
        return next(each.device for place, each in enumerate(tensors) if place not in moved)

    def _try_to_record(self, tensors: list[Tensor], moved: set[int]) -> Recording | None:
        try:
            return self._record(tensors, moved)
        except RuntimeError as error:  # of CUDA, whatever cannot be recorded; the text must not be lost
            self._records = False
            logger.warning("passes cannot be recorded as CUDA graphs and run one by one (%s)", one_line(error))
            return None

    def _record(self, tensors: list[Tensor], moved: set[int]) -> Recording:
        device = self._device(tensors, moved)
        inputs = {place: tensors[place].to(device, copy=True) for place in moved}
        arguments = [inputs.get(place, each) for place, each in enumerate(tensors)]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        now = torch.cuda.current_stream(device)
        stream.wait_stream(now)
        # Not torch.cuda.graph: it empties the cache of memory, and with it the addresses that come back.
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = self._function(arguments)
            finally:
                graph.capture_end()
        now.wait_stream(stream)
        self.recordings += 1
        # Not the storage: once it is free again, the next text is given it, and finds this recording.
        return Recording(graph, inputs, outputs)
