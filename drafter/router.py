"""Several verifiers behind one connection: each new generation opens on one of them, chosen by load.

Loads are asked for when a generation opens and reported values are older than a moment, of all verifiers at once. Who does
not answer in time is left out; who cannot be reached when a generation opens is passed over for the next. A stream that has
begun stays where it is; when it breaks, its verifier is left out like any other that does not answer, and what goes on with
the generation (drafter.resume) opens a new stream.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drafter.observer import Observer, Silent
from drafter.vocabulary import check_vocabulary
from scheduler.routing import RoutingPolicy
from specfleet.core.clock import Clock
from specfleet.core.errors import (
    Cancelled,
    ConnectionError_,
    DeadlineExceeded,
    ModelMismatch,
    SpecfleetError,
    Unavailable,
)
from specfleet.core.protocol import ClientStream, Open, VerifierConnection, VerifyRequest, VerifyResponse
from specfleet.core.types import Load, ModelInfo
from specfleet.core.vocabulary import Vocabulary

log = logging.getLogger(__name__)

FRESH_SECONDS = 0.25
"""A report of load is used for so long; generations opened meanwhile are added to it."""
AGAIN_SECONDS = 1.0
"""A verifier that did not answer is asked again after so long."""
PROBE_SECONDS = 0.5
"""How long a verifier may take to say what its load is."""
ANSWER_SECONDS = 5.0
"""How long it may take for the first time, when it is connected to."""
OTHERS_SECONDS = 2.0
"""At the start: once one verifier has answered, the others have so long."""
RETRY_SECONDS = 0.2
UNREACHABLE = (ConnectionError_, Unavailable)
DRAINING = (Unavailable, Cancelled)
"""A verifier that stops says the one before it begins a generation, and the other when it ends one."""


@dataclass(slots=True, eq=False)
class _Candidate:
    """One of the verifiers, and what is known of it."""

    connection: VerifierConnection
    up: bool = False
    model: ModelInfo | None = None
    """Once its vocabulary was compared; again after it was away, for it may come back as another."""
    load: Load | None = None
    asked_at: float = -math.inf
    opened: int = 0
    """Generations opened on it since its load was reported."""
    trouble: str = ""
    """What was last logged of it."""
    probe: asyncio.Task[None] | None = None

    @property
    def present_load(self) -> Load | None:
        if not self.up or self.load is None:
            return None
        return replace(self.load, sessions=self.load.sessions + self.opened)


class Router:
    """Implements VerifierConnection. Call `reach`, then `agree`, before the first generation."""

    def __init__(
        self,
        connections: Sequence[VerifierConnection],
        policy: RoutingPolicy,
        clock: Clock,
        observer: Observer | None = None,
    ) -> None:
        self._candidates = [_Candidate(connection) for connection in connections]
        self._policy = policy
        self._clock = clock
        self._observer = observer or Silent()
        self._vocabulary: Vocabulary | None = None
        self._model: ModelInfo | None = None

    @property
    def target(self) -> str:
        return ",".join(candidate.connection.target for candidate in self._candidates)

    # --- at the start ----------------------------------------------------------------------------------------------

    async def reach(self, seconds: float) -> None:
        """Wait until verifiers answer: for the first one up to `seconds`, for the others a moment longer.

        Raises:
            ConnectionError_: none of them did.
        """
        deadline = self._clock() + seconds
        missing = self._candidates
        while True:
            errors = await asyncio.gather(*(self._answers(candidate) for candidate in missing))
            failed = [(one, error) for one, error in zip(missing, errors, strict=True) if error is not None]
            if not failed:
                return
            if len(failed) < len(missing):
                deadline = min(deadline, self._clock() + OTHERS_SECONDS)
            missing = [one for one, _ in failed]
            if self._clock() >= deadline:
                break
            await asyncio.sleep(RETRY_SECONDS)
        if len(missing) == len(self._candidates):
            raise failed[0][1]
        for one, error in failed:
            log.warning("starting without a verifier", extra={"verifier": one.connection.target, "error": str(error)})

    async def agree(self, vocabulary: Vocabulary) -> ModelInfo:
        """Make sure that all that answered serve one model, whose ids mean what `vocabulary` says. The others are held to it
        when they appear.

        Raises:
            ModelMismatch: naming the verifier, and the first id that differs.
        """
        self._vocabulary = vocabulary
        for candidate in self._candidates:
            if candidate.up:
                candidate.model = await self._checked(candidate.connection, vocabulary)
        assert self._model is not None, "agree before reach"
        return self._model

    async def _answers(self, candidate: _Candidate) -> SpecfleetError | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await candidate.connection.model()
        except (ConnectionError_, DeadlineExceeded) as error:
            return error
        except TimeoutError:
            return ConnectionError_(f"{candidate.connection.target} did not answer within {ANSWER_SECONDS:g} s")
        candidate.up = True
        return None

    async def _checked(self, connection: VerifierConnection, vocabulary: Vocabulary) -> ModelInfo:
        """Its model, which is also everybody else's."""
        try:
            model = await check_vocabulary(connection, vocabulary)
        except ModelMismatch as error:
            raise ModelMismatch(f"verifier {connection.target}: {error.message}") from None
        if self._model is None:
            self._model = model
        elif model.name != self._model.name:
            raise ModelMismatch(
                f"verifier {connection.target} serves {model.name}, the others serve {self._model.name}; a drafter works for "
                "one model: leave one out, or give both the same --name if they are the same"
            )
        elif model.context_length < self._model.context_length:
            self._model = model
        return model

    # --- as one connection -----------------------------------------------------------------------------------------

    async def verify(self) -> ClientStream:
        return _RoutedStream(self, self._model.name if self._model is not None else "")

    async def model(self) -> ModelInfo:
        """The one that all agree on; where contexts differ, the one with the shortest."""
        return self._model or await self._reached.model()

    async def load(self) -> Load:
        """Of all together."""
        await self._refresh()
        loads = [load for one in self._candidates if (load := one.present_load) is not None]
        if not loads:
            raise ConnectionError_(f"none of {self.target} answers")
        return Load(
            sum(load.queue for load in loads),
            sum(load.sessions for load in loads),
            sum(load.free_kv_tokens for load in loads),
            max(load.step_seconds for load in loads),
        )

    async def tokenizer_files(self) -> dict[str, bytes]:
        return await self._reached.tokenizer_files()

    async def close(self) -> None:
        probes = [one.probe for one in self._candidates if one.probe is not None]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        for candidate in self._candidates:
            await candidate.connection.close()

    @property
    def _reached(self) -> VerifierConnection:
        return next((one for one in self._candidates if one.up), self._candidates[0]).connection

    # --- choosing --------------------------------------------------------------------------------------------------

    async def pick(self, tried: Sequence[_Candidate]) -> _Candidate | None:
        """Where to open the next generation, those apart that were tried; None when all were."""
        left = [one for one in self._candidates if one not in tried]
        if len(left) <= 1:
            return left[0] if left else None
        await self._refresh()
        chosen = self._policy.choose([None if one in tried else one.present_load for one in self._candidates])
        # Nobody answered in time. That may be our own fault, so they are tried nevertheless.
        candidate = left[0] if chosen is None else self._candidates[chosen]
        candidate.opened += 1
        return candidate

    def lost(self, candidate: _Candidate, error: Exception) -> None:
        """A verifier does not answer; generations go to others from now on."""
        candidate.asked_at = self._clock()
        was_up, candidate.up = candidate.up, False
        candidate.load = candidate.model = None
        trouble = str(error) or f"no answer within {PROBE_SECONDS:g} s"
        if was_up or trouble != candidate.trouble:
            log.warning("verifier not used", extra={"verifier": candidate.connection.target, "error": trouble})
            candidate.trouble = trouble
        if was_up and len(self._candidates) > 1:
            self._observer.verifier_switched("draining" if isinstance(error, DRAINING) else "unreachable")

    async def _refresh(self) -> None:
        """Have a load of everybody that is not too old, as far as they answer."""
        now = self._clock()
        for one in self._candidates:
            age = FRESH_SECONDS if one.up else AGAIN_SECONDS
            if one.probe is None and now - one.asked_at >= age:
                one.probe = asyncio.create_task(self._probe(one))
        # Those that were away are not waited for, unless there is nobody else.
        anybody = any(one.up for one in self._candidates)
        probes = [one.probe for one in self._candidates if one.probe is not None and (one.up or not anybody)]
        if probes:
            await asyncio.wait(probes)

    async def _probe(self, candidate: _Candidate) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if candidate.model is None and self._vocabulary is not None:
                    candidate.model = await self._checked(candidate.connection, self._vocabulary)
                load = await candidate.connection.load()
        except (SpecfleetError, TimeoutError) as error:
            self.lost(candidate, error)
        else:
            if not candidate.up:
                log.info("verifier found", extra={"verifier": candidate.connection.target})
                candidate.trouble = ""
            candidate.up, candidate.load, candidate.opened, candidate.asked_at = True, load, 0, self._clock()
        finally:
            candidate.probe = None


class _RoutedStream:
    """ClientStream that goes to a verifier once it is opened, and to the next while none has answered."""

    def __init__(self, router: Router, model: str) -> None:
        self._router = router
        self._model = model
        self._tried: list[_Candidate] = []
        self._opening: Open | None = None
        self._stream: ClientStream | None = None
        self._answered = False

    async def send(self, message: VerifyRequest) -> None:
        if isinstance(message, Open) and self._stream is None:
            # By name, so that a verifier which comes back with another model refuses.
            self._opening = replace(message, model=message.model or self._model)
            await self._open(None)
        elif self._stream is None:
            raise AssertionError("the first message of a stream is Open")
        else:
            await self._stream.send(message)

    async def receive(self) -> VerifyResponse | None:
        while True:
            assert self._stream is not None, "received before Open was sent"
            try:
                message = await self._stream.receive()
            except (*UNREACHABLE, Cancelled) as error:
                if self._answered or isinstance(error, Cancelled):
                    self._router.lost(self._tried[-1], error)
                    raise
                await self._open(error)
                continue
            self._answered = True
            return message

    def cancel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    async def _open(self, failed: SpecfleetError | None) -> None:
        """Send Open to the next verifier that takes it. Raises the last error when there is none left."""
        assert self._opening is not None
        while True:
            if failed is not None:
                self._router.lost(self._tried[-1], failed)
            candidate = await self._router.pick(self._tried)
            if candidate is None:
                assert failed is not None, "a router without verifiers"
                raise failed
            self._tried.append(candidate)
            self.cancel()
            self._stream = await candidate.connection.verify()
            try:
                await self._stream.send(self._opening)
                return
            except UNREACHABLE as error:
                failed = error
