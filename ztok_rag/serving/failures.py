"""Failures in OpenAI's words: `{"error": {"message", "type", "param", "code"}}`, and a status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ztok_rag.errors import HandleError, ZtokError
from ztok_rag.files import show
from ztok_rag.llamaindex.remote import INVALID_HANDLE

logger = logging.getLogger("ztok_rag.serving")

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_MOST_COMPLAINTS = 3


class Refusal(ZtokError):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: what a program may tell it by.
        param: the field of the request that is at fault.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an error. What is not the asker's doing is logged, and not told."""
    if isinstance(error, Refusal):
        return error.status, body(str(error), error.status, code=error.code, param=error.param)
    if isinstance(error, HandleError):
        return 400, body(str(error), 400, code=INVALID_HANDLE, param="prompt")
    if isinstance(error, ZtokError):
        return 400, body(str(error), 400)
    logger.error("a request failed", exc_info=error)
    return 500, body("the server failed; see its log.", 500)


def body(
    message: str, status: int, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI has it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": show(message), "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Have an app answer with errors of this form."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        status, answer = failure(error)
        return JSONResponse(answer, status)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        complaints = list(error.errors())
        said = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}"
            for e in complaints[:_MOST_COMPLAINTS]
        )
        if any(e["type"] == "json_invalid" for e in complaints):
            said = f"the body is not JSON ({said})"
        return JSONResponse(body(f"{said}.", 400), 400)

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(body(said, error.status_code), error.status_code, error.headers)

    app.add_exception_handler(ZtokError, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, refused)
