"""Typed errors as OpenAI's clients know them: status, headers, body. The statuses are those of specfleet.wire.status."""

from __future__ import annotations

import math
from typing import Any

from specfleet.core.errors import AuthenticationFailed, InvalidRequest, PromptTooLong, SpecfleetError, UnknownModel
from specfleet.wire.status import clipped, row_of

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_NAMES: dict[type[SpecfleetError], str] = {
    PromptTooLong: "context_length_exceeded",
    UnknownModel: "model_not_found",
    AuthenticationFailed: "invalid_api_key",
}
"""Codes that programs look for; elsewhere `code` is the error's own."""
_FIELDS = {"chat": "messages", "prompt_token_ids": "prompt"}
"""Our names of fields, where OpenAI has others."""
_HOPELESS = (409, 500)
"""Statuses that OpenAI's clients would try again, though the answer stays the same."""


class BadCall(InvalidRequest):
    """What only HTTP can get wrong: path, method, media type, size of the body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = code


def status_of(error: SpecfleetError) -> int:
    return error.status if isinstance(error, BadCall) else row_of(error).http


def headers_of(error: SpecfleetError) -> dict[str, str]:
    """Retry-After (whole seconds, and exact for OpenAI's clients), WWW-Authenticate, and whether to try again at all."""
    status, found = status_of(error), {}
    retry = error.retry_after
    if retry is None and status == 503:
        retry = 1.0
    if retry is not None:
        found = {"retry-after": str(max(1, math.ceil(retry))), "retry-after-ms": f"{retry * 1e3:.0f}"}
    if status == 401:
        found["www-authenticate"] = "Bearer"
    if status in _HOPELESS:
        found["x-should-retry"] = "false"
    return found


def body_of(error: SpecfleetError) -> dict[str, Any]:
    """OpenAI's error object."""
    status = status_of(error)
    field = error.details.get("field")
    code = error.reason if isinstance(error, BadCall) else _NAMES.get(type(error), error.code)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    found = {
        "message": clipped(error.message),
        "type": kind,
        "param": _FIELDS.get(field, field) if field else None,
        "code": code,
    }
    return {"error": found}
