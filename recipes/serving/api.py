"""The application: OpenAI's addresses, and errors in OpenAI's form."""

import time

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from recipes.serving.chat import ChatCompletions, Limits
from recipes.serving.refusal import Refusal


def make_app(engine, name: str, limits: Limits, hosts: list[str] | None = None) -> FastAPI:
    """The application that serves one model.

    Args:
        engine: an `eval.streaming.StreamingEngine`.
        name: by which requests ask for the model.
        limits: of each request.
        hosts: names under which it may be asked for; None for all.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_route("/v1/chat/completions", ChatCompletions(engine, name, limits), methods=["POST"])
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "prismatic"}

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{asked:path}")
    async def one_model(asked: str) -> dict:
        if asked != name:
            raise Refusal(f"there is no model {asked!r}: this server has {name!r}", "model", 404, "model_not_found")
        return model

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "running": engine.running, "waiting": engine.waiting_now}

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> Response:
        has = "POST /v1/chat/completions, GET /v1/models and GET /health"
        message = f"{request.method} {request.url.path} is not here: expected {has}"
        body = Refusal(message, status=error.status_code).body()
        return Response(body, error.status_code, error.headers, "application/json")

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return Response(refusal.body(), refusal.status, media_type="application/json")

    return app
