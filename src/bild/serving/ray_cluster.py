"""``bild serve --ray``: a local Ray, or the one there is, serves until this process is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import ray
from ray import serve

from bild.serving.plan import Plan
from bild.serving.ray import application

NAME = "bild"


def serve_on_ray(
    plan: Plan, host: str, port: int, replicas: str, drain_s: float, *, say: Callable[[str], None]
) -> None:
    """Start an application of Serve, and end it with SIGTERM or SIGINT: what replicas have accepted is served first.

    Args:
        plan: what is served, and how.
        host: address to listen on.
        port: 1…65535.
        replicas: how many, see :func:`~bild.serving.ray.application`.
        drain_s: how long accepted requests may take at the end, in seconds.
        say: is told where it serves.
    """
    bound, stop = application(plan, replicas=replicas, drain_s=drain_s), threading.Event()
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(bound, name=NAME, route_prefix="/")
        # Only now: when it starts, Ray puts handlers of its own in their place.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: stop.set())
        say(f"serving {plan.settings.model} on http://{host}:{port}, on Ray")
        stop.wait()
        # The application goes before the proxies: these still hand out what its replicas have accepted.
        serve.delete(NAME)
    finally:
        serve.shutdown()
        ray.shutdown()
