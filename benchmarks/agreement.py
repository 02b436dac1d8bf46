"""What drafting far from the verifier could save at most, from where a draft model agrees with its target.

A draft model's guess of a token counts here given that the text before it is the target's. Between two tokens that it would
have guessed wrong lies a *run*; no drafter, however it is built, has more than a run verified at once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import TorchEngine

GREEDY = SamplingParams(temperature=0.0)
ROUND = 4
"""Guesses of the rounds that are looked at."""
REPEATS = 5


@dataclass(frozen=True)
class Agreement:
    texts: list[list[bool]]
    """Of each text, whether the draft model would have guessed each token."""
    step_seconds: float
    """Of one token of the target,"""
    verify_seconds: float
    """and with ROUND guesses beside."""
    draft_seconds: float
    """Of one guess."""

    def stream_ceiling(self, round_trip: float, most: int) -> float:
        """Tokens a step of a verifier that decodes on, `round_trip` seconds away, and verifies up to `most` guesses beside for
        nothing: how many times faster than without drafts a stream can be."""
        steps = sum(self._stream_steps(text, round_trip, most) for text in self.texts)
        return sum(map(len, self.texts)) / steps

    def _stream_steps(self, text: Sequence[bool], round_trip: float, most: int) -> int:
        """A branch begins when the token in which the last one was wrong has come; its guesses arrive one after another."""
        step, draft = self.step_seconds, self.draft_seconds
        steps = place = 0
        while place < len(text):
            run = next((n for n, right in enumerate(text[place:]) if not right), len(text) - place)
            begun, written = steps, 0
            while written <= run and place + written < len(text):
                arrived = int(((steps - begun) * step - round_trip) / draft) - written
                written += 1 + max(0, min(most, run - written, arrived))
                steps += 1
            place += written
        return steps

    def overlap_ceiling(self, round_seconds: float) -> float:
        """How many times faster rounds of ROUND guesses, which take `round_seconds`, get by drafting ahead: where the whole
        draft and the guess of the verifier's own token behind it are right, the next round takes its verification only."""
        rounds = early = 0
        for text in self.texts:
            place, there = 0, False
            while place < len(text):
                ahead = text[place : place + ROUND + 1]
                right = next((n for n, one in enumerate(ahead[:ROUND]) if not one), ROUND)
                rounds += 1
                early += there
                there = right == ROUND and all(ahead)
                place += right + 1
        return 1.0 / (1.0 - early / rounds * (1.0 - self.verify_seconds / round_seconds))


def agreement(target: TorchEngine, draft: TorchEngine, prompts: Sequence[Sequence[int]], tokens: int) -> Agreement:
    """Greedy texts of `tokens` tokens behind each prompt, token by token, and what `draft` says to each of them at once."""
    texts: list[list[bool]] = []
    steps: list[float] = []
    rounds: list[float] = []
    guesses: list[float] = []
    for number, prompt in enumerate(prompts):
        text, start = list(prompt), len(prompt)
        target.open(number, text)
        while len(text) < start + tokens:
            seconds, found = _step(target, StepItem(number, text[target.length(number) :], GREEDY))
            text += found
            steps.append(seconds)
        for _ in range(REPEATS):
            target.truncate(number, len(text) - ROUND - 1)
            rounds.append(_step(target, StepItem(number, text[-ROUND - 1 :], GREEDY, draft=ROUND))[0])
        target.close(number)
        draft.open(number, text[:start])
        logits = draft.forward([StepItem(number, text, GREEDY, draft=tokens)])
        texts.append([guess == token for guess, token in zip(logits.argmax(-1).tolist(), text[start:], strict=False)])
        for _ in range(REPEATS):
            draft.truncate(number, len(text) - 1)
            guesses.append(_step(draft, StepItem(number, text[-1:], GREEDY))[0])
        draft.close(number)
    step, verify, guess = (statistics.median(found) for found in (steps, rounds, guesses))
    return Agreement(texts, step, verify, guess)


def _step(engine: TorchEngine, item: StepItem) -> tuple[float, tuple[int, ...]]:
    """Its seconds and its tokens."""
    start = time.perf_counter()
    result = engine.step_sync([item])[0]
    return time.perf_counter() - start, tuple(result.tokens)
