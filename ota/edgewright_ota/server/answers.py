"""Reading requests within bounds, and answering them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

MAX_BODY_BYTES = 64 << 10


async def read_json(request: Request, *, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The JSON object a client sent.

    Raises:
        HTTPException: 413 beyond `limit` bytes, 400 when it is not a JSON object.
    """
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise HTTPException(413, f"at most {limit} bytes are taken")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return data


def text(data: dict[str, Any], key: str, *, default: str | None = None, limit: int = 128) -> str:
    """A string field.

    Raises:
        HTTPException: 400 when it is missing, not a string, or too long.
    """
    value = data.get(key, default)
    if not isinstance(value, str) or len(value) > limit:
        raise HTTPException(400, f"{key}: must be a string of at most {limit} characters")
    return value


def texts(data: dict[str, Any], key: str, *, count: int, limit: int = 128) -> list[str]:
    """A list of strings, empty when the field is missing.

    Raises:
        HTTPException: 400 when it is not one, or too long.
    """
    value = data.get(key, [])
    if not isinstance(value, list) or len(value) > count:
        raise HTTPException(400, f"{key}: must be a list of at most {count} strings")
    if not all(isinstance(v, str) and len(v) <= limit for v in value):
        raise HTTPException(400, f"{key}: each must be a string of at most {limit} characters")
    return value


def tagged(request: Request, body: dict[str, Any]) -> Response:
    """A JSON answer with an ETag; 304 without a body when the client has it already."""
    response = JSONResponse(body)
    etag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if request.headers.get("If-None-Match") == etag:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


async def on_error(_request: Request, error: Exception) -> Response:
    """Every refusal as {"error": …}."""
    status, detail, headers = 500, "the server failed; its log says why", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    return JSONResponse({"error": detail}, status_code=status, headers=headers)


def new_token() -> str:
    """A secret of 256 random bits."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What is kept of a token: it is random, so a plain SHA-256 is safe."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def token_fits(token: str, token_hash: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(hash_token(token), token_hash)


def credentials(request: Request) -> tuple[str, str]:
    """Scheme and secret of the Authorization header; empty when there is none."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return scheme, secret.strip()
