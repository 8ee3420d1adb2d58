"""The server's application: routes, with a guard before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import FastAPI

from ztok_rag.errors import ZtokError
from ztok_rag.index.index import ZTokenIndex
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.serving import failures
from ztok_rag.serving.asking import Asking
from ztok_rag.serving.completions import completions_router
from ztok_rag.serving.guard import HEALTH, Guard
from ztok_rag.serving.limits import Limits
from ztok_rag.serving.rag import rag_router
from ztok_rag.serving.tokens import Tokens


def create_app(
    models: Mapping[str, ZTokenLLM],
    indexes: Mapping[str, ZTokenIndex] | None = None,
    *,
    tokens: Tokens | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """An ASGI application.

    Args:
        models: LLMs by the name under which they are asked.
        indexes: by the name under which they are asked. Each is a model, too, that reads the
            handles of the index's store.
        tokens: of those who may ask; `None` lets everybody ask who reaches the server.
        limits: `None` is the default.
        hosts: names under which the server may be asked, without port; `None` is any.

    Raises:
        ZtokError: a model and an index have one name.
    """
    indexes = dict(indexes or {})
    if both := models.keys() & indexes.keys():
        raise ZtokError(f"a model and an index are both named {min(both)!r}; rename the index.")
    limits = limits or Limits()
    own = {name: index.llm() for name, index in indexes.items()}
    asking = Asking({**models, **own}, limits)
    # The pages of the API's documentation would load scripts from elsewhere.
    app = FastAPI(title="ztok-rag", docs_url=None, redoc_url=None)
    failures.install(app)
    app.include_router(completions_router(asking))
    app.include_router(rag_router(indexes, asking))

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.add_middleware(Guard, tokens=tokens, limits=limits, hosts=hosts)
    return app
