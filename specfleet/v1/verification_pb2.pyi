from specfleet.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerifyRequest(_message.Message):
    __slots__ = ("open", "draft", "shadow", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    draft: Draft
    shadow: Shadow
    close: Close
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., shadow: _Optional[_Union[Shadow, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("opened", "verdict", "finished")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    verdict: Verdict
    finished: Finished
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol_version", "request_id", "prompt_token_ids", "output_token_ids", "sampling", "service_class", "vocabulary_digest", "vocabulary_checksums", "model", "can_draft", "draft_seconds_per_token", "round_trip_seconds")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CAN_DRAFT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _common_pb2.SamplingParams
    service_class: str
    vocabulary_digest: bytes
    vocabulary_checksums: bytes
    model: str
    can_draft: bool
    draft_seconds_per_token: float
    round_trip_seconds: float
    def __init__(self, protocol_version: _Optional[int] = ..., request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., service_class: _Optional[str] = ..., vocabulary_digest: _Optional[bytes] = ..., vocabulary_checksums: _Optional[bytes] = ..., model: _Optional[str] = ..., can_draft: _Optional[bool] = ..., draft_seconds_per_token: _Optional[float] = ..., round_trip_seconds: _Optional[float] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("position", "token_ids", "confirmed", "last", "distributions", "draft_seconds", "survival", "alternatives", "beside")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SURVIVAL_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    BESIDE_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    confirmed: int
    last: bool
    distributions: _containers.RepeatedCompositeFieldContainer[DraftDistribution]
    draft_seconds: float
    survival: _containers.RepeatedScalarFieldContainer[float]
    alternatives: _containers.RepeatedCompositeFieldContainer[Alternative]
    beside: bool
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., confirmed: _Optional[int] = ..., last: _Optional[bool] = ..., distributions: _Optional[_Iterable[_Union[DraftDistribution, _Mapping]]] = ..., draft_seconds: _Optional[float] = ..., survival: _Optional[_Iterable[float]] = ..., alternatives: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., beside: _Optional[bool] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("offset", "token_id")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    offset: int
    token_id: int
    def __init__(self, offset: _Optional[int] = ..., token_id: _Optional[int] = ...) -> None: ...

class DraftDistribution(_message.Message):
    __slots__ = ("token_ids", "probabilities")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class Shadow(_message.Message):
    __slots__ = ("position", "tested", "accepted", "draft_seconds_per_token")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TESTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DRAFT_SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    position: int
    tested: int
    accepted: int
    draft_seconds_per_token: float
    def __init__(self, position: _Optional[int] = ..., tested: _Optional[int] = ..., accepted: _Optional[int] = ..., draft_seconds_per_token: _Optional[float] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Grant(_message.Message):
    __slots__ = ("mode", "length", "alternatives", "token_cost")
    MODE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COST_FIELD_NUMBER: _ClassVar[int]
    mode: _common_pb2.Mode
    length: int
    alternatives: int
    token_cost: float
    def __init__(self, mode: _Optional[_Union[_common_pb2.Mode, str]] = ..., length: _Optional[int] = ..., alternatives: _Optional[int] = ..., token_cost: _Optional[float] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("grant", "model", "prompt_tokens", "cached_tokens", "verifier", "waited_seconds")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    grant: Grant
    model: _common_pb2.Model
    prompt_tokens: int
    cached_tokens: int
    verifier: str
    waited_seconds: float
    def __init__(self, grant: _Optional[_Union[Grant, _Mapping]] = ..., model: _Optional[_Union[_common_pb2.Model, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., verifier: _Optional[str] = ..., waited_seconds: _Optional[float] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("position", "token_ids", "drafted", "accepted", "grant", "logprobs", "mode", "trimmed", "alternatives", "alternative_accepted", "top_logprobs")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    drafted: int
    accepted: int
    grant: Grant
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    mode: _common_pb2.Mode
    trimmed: int
    alternatives: int
    alternative_accepted: bool
    top_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TopLogprobs]
    def __init__(self, position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., logprobs: _Optional[_Iterable[float]] = ..., mode: _Optional[_Union[_common_pb2.Mode, str]] = ..., trimmed: _Optional[int] = ..., alternatives: _Optional[int] = ..., alternative_accepted: _Optional[bool] = ..., top_logprobs: _Optional[_Iterable[_Union[_common_pb2.TopLogprobs, _Mapping]]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "usage")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    reason: _common_pb2.FinishReason
    usage: _common_pb2.Usage
    def __init__(self, reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.Model
    def __init__(self, model: _Optional[_Union[_common_pb2.Model, _Mapping]] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("queue", "sessions", "free_kv_tokens", "step_seconds")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    FREE_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue: int
    sessions: int
    free_kv_tokens: int
    step_seconds: float
    def __init__(self, queue: _Optional[int] = ..., sessions: _Optional[int] = ..., free_kv_tokens: _Optional[int] = ..., step_seconds: _Optional[float] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTokenizerResponse(_message.Message):
    __slots__ = ("file_name", "content")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    content: bytes
    def __init__(self, file_name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...
