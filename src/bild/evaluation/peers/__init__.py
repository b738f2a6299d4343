"""Other engines on the same checkpoints, to be compared with: each a method by name.

``transformers-greedy`` and ``transformers-assisted`` run in this process; ``ctranslate2``, ``onnxruntime`` and
``openvino`` each in one of its own, in an environment that is made on first use (see :mod:`.environment`).
"""

from __future__ import annotations

from collections.abc import Callable

from bild.evaluation.method import Method, MethodSpec, PeerContext

__all__ = ["PEERS"]


def _greedy(spec: MethodSpec, context: PeerContext) -> Method:
    from bild.evaluation.peers.in_process import greedy

    return greedy(spec, context)


def _assisted(spec: MethodSpec, context: PeerContext) -> Method:
    from bild.evaluation.peers.in_process import assisted

    return assisted(spec, context)


def _engine(spec: MethodSpec, context: PeerContext) -> Method:
    from bild.evaluation.peers.engines import load_engine

    return load_engine(spec, context)


PEERS: dict[str, Callable[[MethodSpec, PeerContext], Method]] = {
    "transformers-greedy": _greedy,
    "transformers-assisted": _assisted,
    "ctranslate2": _engine,
    "onnxruntime": _engine,
    "openvino": _engine,
}
"""What loads each peer. Raises InputError for an option it does not have, LoadError where it cannot run."""
