"""The routes by which every server tells how it is."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

from bild import __version__
from bild.serving.metrics import CONTENT_TYPE
from bild.serving.problems import answer, unavailable
from bild.serving.served import Served


def add_state(app: FastAPI, service: Served, worker: str) -> None:
    """``/health``, ``/ready``, ``/version`` and ``/metrics``.

    Args:
        app: gets the routes.
        service: whose state it is.
        worker: what does the work, in a word.
    """
    engine = service.engine

    @app.get("/health")
    async def health() -> Response:
        if not engine.healthy():
            raise unavailable(f"the {worker} does not work any more")
        return answer({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        if engine.draining or not engine.alive:
            raise unavailable("the server is being shut down")
        return answer({"status": "ok"})

    @app.get("/version")
    async def version() -> Response:
        return answer({"version": __version__})

    @app.get("/metrics")
    async def board() -> Response:
        return Response(service.board.page(), media_type=CONTENT_TYPE)

    del health, ready, version, board
