"""The one tree of errors. Each class knows its condition's name; `specfleet.wire.status` maps names to gRPC and HTTP.

SpecfleetError
├── ConnectionError_             no server answered (retry elsewhere or later)
├── RequestRejected              a server answered, and said no before any work was done
│   ├── InvalidRequest           an argument is outside its limits
│   │   └── PromptTooLong        prompt and context length are in the text
│   ├── ModelMismatch            another vocabulary, protocol version or model than asked for
│   │   └── UnknownModel         no model of that name is served here
│   ├── AuthenticationFailed     no or wrong credentials
│   ├── PermissionDenied         right credentials, not yours to touch
│   ├── QuotaExceeded            your own limit is reached; `retry_after` says when to come back
│   ├── Overloaded               everybody's limit is reached; likewise
│   └── Unavailable              draining, or the verifier behind it cannot be reached
├── DeadlineExceeded             out of time (also a TimeoutError)
├── Cancelled                    the caller gave up
├── StreamInterrupted            a stream ended midway and could not be resumed
├── PositionGap                  a draft begins beyond the tokens that are known
├── InternalError                our fault; the request id is in the server's log
└── ConfigurationError           a flag, file or environment value that cannot be used
    └── ModelLoadError           a model path that does not hold what is needed
"""

from __future__ import annotations

from collections.abc import Mapping


class SpecfleetError(Exception):
    """Base of everything specfleet raises on purpose.

    `code` is a stable snake_case name, `details` machine-readable fields, `request_id` the id that server logs carry,
    `retry_after` the seconds after which trying again makes sense (None: do not).
    """

    code = "error"
    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, str] | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, str] = dict(details or {})
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class ConnectionError_(SpecfleetError):  # noqa: N801 (the underscore keeps the builtin visible)
    code = "connection"
    exit_code = 3


class RequestRejected(SpecfleetError):
    code = "rejected"
    exit_code = 4


class InvalidRequest(RequestRejected):
    code = "invalid_argument"
    exit_code = 2

    @classmethod
    def field(cls, name: str, problem: str) -> InvalidRequest:
        """An error about one request field: `problem` names the value, the limit and the way out."""
        return cls(f"{name}: {problem}", details={"field": name})


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class ModelMismatch(RequestRejected):
    code = "model_mismatch"


class UnknownModel(ModelMismatch):
    code = "unknown_model"
    exit_code = 2


class AuthenticationFailed(RequestRejected):
    code = "unauthenticated"


class PermissionDenied(RequestRejected):
    code = "permission_denied"


class QuotaExceeded(RequestRejected):
    code = "quota_exceeded"


class Overloaded(RequestRejected):
    code = "overloaded"


class Unavailable(RequestRejected):
    code = "unavailable"
    exit_code = 3


class DeadlineExceeded(SpecfleetError, TimeoutError):
    code = "deadline_exceeded"
    exit_code = 5


class Cancelled(SpecfleetError):
    code = "cancelled"
    exit_code = 130


class StreamInterrupted(SpecfleetError):
    code = "interrupted"
    exit_code = 5


class PositionGap(SpecfleetError):
    code = "position_gap"
    exit_code = 5


class InternalError(SpecfleetError):
    code = "internal"
    exit_code = 5


class ConfigurationError(SpecfleetError):
    code = "configuration"
    exit_code = 2


class ModelLoadError(ConfigurationError):
    code = "model_load"
