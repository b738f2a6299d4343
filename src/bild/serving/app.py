"""The routes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bild import __version__
from bild.decoding import Stats
from bild.engine import Place
from bild.serving import openai, translate
from bild.serving.answers import Answer
from bild.serving.fields import Check, object_of, parse
from bild.serving.following import while_connected
from bild.serving.guard import Guard
from bild.serving.openai import Wish
from bild.serving.problems import Problem, answer, no_key, problem_of
from bild.serving.service import Service, Text
from bild.serving.sse import EventStream
from bild.serving.state import add_state

PAGE = Path(__file__).with_name("page.html")
HTTP_ERRORS = {404: "there is nothing at this path", 405: "this path takes another method"}


def build_app(service: Service) -> ASGIApp:
    """The application of a server.

    Args:
        service: the pair behind its engine.
    """
    app = FastAPI(title="bild", version=__version__, docs_url=None, redoc_url=None)
    add_state(app, service, "engine")
    _add_models(app, service)
    _add_openai(app, service)
    _add_translate(app, service)
    _add_page(app)
    app.add_exception_handler(Exception, failed)
    for kind in (Problem, HTTPException):
        app.add_exception_handler(kind, failed)
    guarded: ASGIApp = Guard(quiet(app), service)
    if service.settings.cors:
        guarded = CORSMiddleware(
            guarded, allow_origins=service.settings.cors, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return guarded


def quiet(app: FastAPI) -> ASGIApp:
    """The routes without Starlette's own answer to an error, which the guard gives.

    What takes nothing but the request is called at once: its way through FastAPI takes a tenth of what HTTP costs.
    """
    outermost: Any = app.build_middleware_stack()
    at_once: dict[tuple[Any, Any], Any] = {
        (method, route.path): route.endpoint
        for route in app.routes
        if isinstance(route, APIRoute) and list(signature(route.endpoint).parameters) == ["request"]
        for method in route.methods or ()
    }

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        if handle := at_once.get((scope.get("method"), scope.get("path"))):
            answered = await handle(Request(scope, receive, send))
            await answered(scope, receive, send)
            return
        if scope.get("method") == "HEAD":
            # As GET; whoever sends the answer leaves its body out.
            scope = {**scope, "method": "GET"}
        await outermost.app(scope, receive, send)

    return run


async def failed(request: Request, error: Exception) -> Response:
    """What a client is told of an error."""
    if isinstance(error, HTTPException):
        message = HTTP_ERRORS.get(error.status_code, "this cannot be done")
        error = Problem(error.status_code, "invalid_request_error", message, headers=error.headers)
    return problem_of(error).answer(request.url.path)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return answer({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        _check_model(service, {"model": name})
        return answer(_model(service))

    del models, model


def _add_openai(app: FastAPI, service: Service) -> None:
    for path, read, known, needed in (
        ("/v1/completions", openai.completion, openai.COMPLETION, "prompt"),
        ("/v1/chat/completions", openai.chat, openai.CHAT, "messages"),
    ):
        handle = _openai(service, read, chat=known is openai.CHAT)
        app.post(path, openapi_extra=_described(known | openai.own_fields(service), [needed]))(handle)


def _openai(service: Service, read: Callable[[Service, Any], Wish], *, chat: bool) -> Callable[..., Any]:
    async def handle(request: Request) -> Response:
        with ExitStack() as held:
            # First: whoever cannot be served must not cost anything.
            held.enter_context(service.quotas.use(request.state.who))
            place = held.enter_context(service.place())
            body = parse(await request.body())
            _check_model(service, body)
            wish = read(service, body)
            work = service.work(wish.ask)
            service.engine.claim(place, work.jobs, work.rules)
            own = Answer(service, wish, work, chat, request.state.id)
            if wish.stream:
                return _streamed(own, place, request, held.pop_all())
            found = await while_connected(request.receive, own.whole(place))
            _note(service, request, found["usage"], found["bild"]["stats"], found["metrics"])
            return answer(found)

    return handle


def _streamed(own: Answer, place: Place, request: Request, held: ExitStack) -> Response:
    texts: list[Text] = []
    settings = own.service.settings

    def ended() -> None:
        held.close()
        stats = Stats.of(commit for text in texts for commit in text.writing.commits)
        usage = {"prompt_tokens": own.work.prompt_tokens, "completion_tokens": stats.num_tokens}
        _note(own.service, request, usage, stats.to_dict(), {})

    def failed(error: Exception) -> None:
        request.state.log["error"] = type(error).__name__

    return EventStream(
        own.chunks(place, texts), ended=ended, failed=failed, ping_s=settings.ping_s, send_s=settings.send_s
    )


def _add_translate(app: FastAPI, service: Service) -> None:
    async def body_of(request: Request) -> Any:
        body = parse(await request.body(), request.headers.get("content-type", "application/json"))
        _check_key(service, request, body)
        return body

    @app.post("/translate", openapi_extra=_described(translate.FIELDS, ["q", "source", "target"]))
    async def translated(request: Request) -> Response:
        with service.place() as place:
            body = await body_of(request)
            with service.quotas.use(request.state.who):
                asked = translate.translation(service, body)
                work = service.work(asked.ask)
                service.engine.claim(place, work.jobs, work.rules)
                texts = await while_connected(request.receive, service.texts(work, place))
        stats = Stats.of(commit for text in texts for commit in text.writing.commits)
        usage = {"prompt_tokens": work.prompt_tokens, "completion_tokens": stats.num_tokens}
        _note(service, request, usage, stats.to_dict(), {})
        return answer(asked.answer(texts))

    @app.post("/detect", openapi_extra=_described(translate.DETECT_FIELDS, ["q"]))
    async def detected(request: Request) -> Response:
        return answer(translate.detect(service, await body_of(request)))

    @app.get("/languages")
    async def languages(request: Request) -> Response:
        if not request.state.allowed:
            # LibreTranslate's own client sends its key in the body of a GET.
            raw = await request.body()
            _check_key(service, request, parse(raw, "application/x-www-form-urlencoded") if raw else {})
        return answer(translate.languages(service))

    del translated, detected, languages


def _add_page(app: FastAPI) -> None:
    page = PAGE.read_bytes()
    headers = {"Content-Security-Policy": _policy(page), "X-Content-Type-Options": "nosniff"}
    headers |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def shown() -> Response:
        return Response(page, headers=headers, media_type="text/html")

    del shown


def _policy(page: bytes) -> str:
    """What the page may do: run its own script and style, and ask this server."""
    allowed = {
        name: base64.b64encode(hashlib.sha256(page[page.index(begin) + len(begin) : page.index(end)]).digest()).decode()
        for name, begin, end in (("script", b"<script>", b"</script>"), ("style", b"<style>", b"</style>"))
    }
    own = "; ".join(f"{name}-src 'sha256-{digest}'" for name, digest in allowed.items())
    return f"default-src 'none'; connect-src 'self'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _check_key(service: Service, request: Request, body: Any) -> None:
    given = body.get("api_key") if isinstance(body, dict) else None
    if not request.state.allowed:
        request.state.who = service.settings.keys.who(given) if isinstance(given, str) else None
        if request.state.who is None:
            raise no_key()


def _check_model(service: Service, body: Any) -> None:
    name = body.get("model") if isinstance(body, dict) else None
    if isinstance(name, str) and name != service.settings.model:
        raise Problem(
            404,
            "invalid_request_error",
            f"there is no model {name[:64]!r} here; the one there is: {service.settings.model}",
            param="model",
            code="model_not_found",
        )


def _model(service: Service) -> dict[str, Any]:
    decoder, limits = service.decoder, service.engine.limits
    return {
        "id": service.settings.model,
        "object": "model",
        "created": 0,
        "owned_by": "bild",
        "bild": {
            "kind": "encoder-decoder" if service.encodes else "decoder-only",
            "dtype": decoder.dtype,
            "policy": decoder.policy.to_dict(),
            "lossless": decoder.policy.lossless,
            "temperature": 0,
            "max_rows": limits.rows,
            "max_cells": limits.cells,
            "languages": [[each.source, each.target] for each in service.settings.languages],
        },
    }


def _note(service: Service, request: Request, usage: Any, stats: Any, times: Any) -> None:
    """What the log and the counters keep of a request."""
    service.board.prompts.inc(usage["prompt_tokens"])
    request.state.log.update(
        tokens_in=usage["prompt_tokens"],
        tokens_out=usage["completion_tokens"],
        rounds=stats["num_rounds"],
        acceptance=stats["acceptance_rate"],
        queue_ms=times.get("queue_time_ms"),
        ttft_ms=times.get("time_to_first_token_ms"),
    )


def _described(known: Mapping[str, Check], needed: Sequence[str]) -> dict[str, Any]:
    """A body of these fields, for ``/openapi.json``."""
    schema = object_of(known, needed)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
