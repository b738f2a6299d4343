"""A pair on Ray: an application of Serve with an engine a replica, and a mapper for Ray Data.

    serve run bild.serving.ray:app pair=my-pair replicas=1:4
    serve deploy deploy.yaml

Needs the extra ``ray``. Each replica is a process of its own with the same application as ``bild serve``, its guard,
keys and limits included; one that dies takes its own requests along and nothing else, and another takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from typing import Any

from ray import serve

from bild.errors import InputError
from bild.serving.app import build_app
from bild.serving.plan import Plan, plan
from bild.serving.translator import Translator

__all__ = ["Replica", "Translator", "app", "application", "translate_file"]

DRAIN_S = 30.0
HEALTH_S = 5.0
"""How often a replica is asked whether its engine works, and how long it may take to say so."""


class Replica:
    """An engine and its application. What it raises when it is asked how it is, Serve answers with a new one.

    Args:
        plan: what is served, and how.
        threads: of torch, 1…: the processors it may count on.
    """

    def __init__(self, plan: Plan, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(max(1, threads // plan.lanes))
        self.service = plan.service()
        self.service.engine.start()

    def __serve_build_asgi_app__(self) -> Any:
        return build_app(self.service)

    def check_health(self) -> None:
        """Raise if the engine does not work any more."""
        if not self.service.engine.healthy():
            raise RuntimeError("the engine does not work any more")

    def process(self) -> int:
        """Its id, for tests and for whoever looks at a machine."""
        return os.getpid()


def application(
    plan: Plan,
    *,
    replicas: str = "1",
    cpus: float = 1,
    gpus: float = 0,
    drain_s: float = DRAIN_S,
    scaling: Mapping[str, Any] | None = None,
) -> serve.Application:
    """An application of Serve.

    Args:
        plan: what is served, and how.
        replicas: how many, ``"2"``, or ``"1:4"``: from one to four, as many as the load asks for.
        cpus: processors of a replica, above 0; torch has as many threads.
        gpus: GPUs of a replica, 0….
        drain_s: how long a replica that is to end may serve what it has accepted, in seconds.
        scaling: further fields of Serve's ``autoscaling_config``, as ``{"downscale_delay_s": 60}``.

    Raises:
        InputError: replicas of another form, or scaling where their number is fixed.
    """
    least, most = parse_replicas(replicas)
    limits = plan.limits
    number: dict[str, Any] = {"num_replicas": least}
    if most > least:
        # More than its rows wait for each other: then another replica pays.
        own = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": limits.rows}
        number = {"num_replicas": None, "autoscaling_config": own | ({} if scaling is None else dict(scaling))}
    elif scaling is not None:
        raise InputError(f"scaling is given, and replicas are {replicas}; write them as in 1:4, or leave scaling out")
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        name="bild",
        # Serve's own default of 5 would keep batches small.
        max_ongoing_requests=limits.rows + limits.queue,
        max_queued_requests=limits.queue,
        graceful_shutdown_timeout_s=drain_s,
        health_check_period_s=HEALTH_S,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        **number,
    )
    return deployment.bind(plan, max(1, int(cpus)))


def app(args: Mapping[str, Any]) -> serve.Application:
    """An application from plain values, as ``serve run`` and ``deploy.yaml`` hand them over.

    Args:
        args: options of ``bild serve`` under their names with underscores (``max_rows``, ``api_key_file``), and
            ``replicas``, ``cpus``, ``gpus``, ``drain`` and ``scaling`` as :func:`application` has them. From a command
            line all of them are texts.

    Raises:
        InputError: an option that does not exist, or a value that cannot be used.
    """
    given = {name: _value(name, value) for name, value in args.items()}
    shape = {ours: given.pop(name) for name, ours in SHAPE.items() if name in given}
    if "replicas" in shape:
        shape["replicas"] = str(shape["replicas"])
    for name in ("translate", "cors_origin"):
        if isinstance(given.get(name), str):
            given[name] = [given[name]]
    try:
        return application(plan(**given), **shape)
    except TypeError as error:
        raise InputError(f"an option cannot be used: {error}") from None


def translate_file(
    source: str, target: str, *, actors: int = 1, batch_size: int = 256, **translator: Any
) -> tuple[int, int]:
    """Decode a file line by line with Ray Data; line n of the result belongs to line n of the file.

    Args:
        source: file with one text a line.
        target: file that is written.
        actors: processes that decode, 1…, each with a pair of its own and one processor.
        batch_size: lines an actor is handed at once, 1….
        translator: arguments of :class:`~bild.serving.translator.Translator`.

    Returns:
        Lines, and how many of them could not be decoded.
    """
    import ray.data

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    lines = ray.data.read_text(source, drop_empty_lines=False)
    done = lines.map_batches(
        Translator,
        fn_constructor_kwargs=translator,
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    count = failed = 0
    with open(target, "w", encoding="utf-8") as file:
        for batch in done.iter_batches(batch_size=batch_size):
            for text, error in zip(batch["translation"], batch["error"], strict=True):
                file.write(" ".join(str(text).splitlines()) + "\n")
                count, failed = count + 1, failed + bool(error)
    return count, failed


SHAPE = {"replicas": "replicas", "cpus": "cpus", "gpus": "gpus", "drain": "drain_s", "scaling": "scaling"}


def parse_replicas(text: str) -> tuple[int, int]:
    """Read ``"2"`` or ``"1:4"``.

    Raises:
        InputError: text of another form.
    """
    least, colon, most = text.partition(":")
    try:
        numbers = int(least), int(most if colon else least)
    except ValueError:
        numbers = (0, 0)
    if not 1 <= numbers[0] <= numbers[1]:
        raise InputError(f"replicas are {text!r}; write a number from 1 on, or two as in 1:4")
    return numbers


def _value(name: str, value: Any) -> Any:
    """A value from a command line as what it says."""
    if not isinstance(value, str) or name not in KINDS:
        return value
    if KINDS[name] is bool:
        return value == "true"
    try:
        return KINDS[name](value)
    except ValueError:
        raise InputError(f"{name} is {value!r}; allowed is a number") from None


KINDS: dict[str, type] = {
    name: int if name.startswith("key_") else type(each.default)
    for name, each in signature(plan).parameters.items()
    if name in ("key_requests", "key_rate") or type(each.default) in (bool, int, float)
} | {"cpus": float, "gpus": float, "drain": float}
"""What options are that are no texts."""
