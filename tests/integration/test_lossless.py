"""Losslessness through real processes: the ids are the target's own, whatever drafts, how far, and how many at once.

`make test` runs a few prompts with five policies and six drafters, 1 and 16 at a time; `make lossless` the whole grid, an hour
and more alone on two cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import combinations, product

import pytest

from benchmarks.delay import DelayProxy
from specfleet import AsyncClient, SamplingParams
from support.daemons import Daemon, fleet, running, start_drafter, start_verifier, wait_until_empty
from support.pair import Reference, prompts

QUICK = ("fixed:4", "stream", "none", "random", "fair-goodput")
POLICIES = (*QUICK, "fixed:1", "fixed:8", "goodspeed", "smartspec", "awc", "ladder")
TEMPERATURE, TOP_P = 0.8, 0.95
Texts = list[list[int]]


class Grid:
    """References for so many prompts of so many new tokens, computed once."""

    def __init__(self, count: int, tokens: int, alone: int) -> None:
        """`alone`: how many of the prompts are also run one at a time."""
        reference = Reference()
        self.alone = alone
        self.prompts = prompts(count)
        self.tokens = tokens
        self.greedy = [reference.greedy(prompt, tokens) for prompt in self.prompts]
        self.seeded = [
            reference.seeded(prompt, tokens, TEMPERATURE, TOP_P, seed) for seed, prompt in enumerate(self.prompts)
        ]

    async def run(self, server: str, concurrency: int, seeded: bool) -> Texts:
        """All prompts through one server, so many at a time."""
        room = asyncio.Semaphore(concurrency)
        async with AsyncClient(server, timeout=120) as client:

            async def one(seed: int, prompt: str) -> list[int]:
                sampling = (
                    SamplingParams(max_tokens=self.tokens, temperature=TEMPERATURE, top_p=TOP_P, seed=seed)
                    if seeded
                    else SamplingParams(max_tokens=self.tokens, temperature=0.0)
                )
                async with room:
                    return list((await client.generate(prompt, sampling)).token_ids)

            count = self.alone if concurrency == 1 else len(self.prompts)
            return await asyncio.gather(*(one(seed, prompt) for seed, prompt in enumerate(self.prompts[:count])))

    def check(self, servers: Sequence[Daemon], verifier: Daemon) -> None:
        """Each of these servers, both rules of choice, 1 and 16 at a time; then the verifier holds nothing any more."""
        for server in servers:
            for concurrency in (1, 16):
                for seeded, expected in ((False, self.greedy), (True, self.seeded)):
                    texts = asyncio.run(self.run(server.address, concurrency, seeded))
                    pairs = zip(self.prompts, expected, texts, strict=False)
                    wrong = [prompt for prompt, own, text in pairs if own != text]
                    assert not wrong, f"{server.arguments[:3]}, {concurrency} at a time, seeded {seeded}: {wrong}"
        wait_until_empty(verifier)


@pytest.fixture(scope="module")
def small_grid() -> Iterator[Grid]:
    yield Grid(16, 16, alone=4)


@pytest.mark.parametrize("policy", QUICK)
def test_text_is_the_targets_own(small_grid: Grid, policy: str) -> None:
    """Greedy ids equal transformers' generate, seeded ones the target sampling alone with that noise."""
    with fleet("--speculation", policy) as daemons:
        small_grid.check(daemons, daemons[0])


DRAFTERS: tuple[tuple[str, ...], ...] = (
    ("--trees", "--speculator", "hybrid"),
    ("--trees", "--no-ahead"),
    ("--no-early-stop",),
    ("--speculator", "hybrid", "--no-ahead", "--no-early-stop", "--max-draft", "2"),
    ("--quantize", "none"),
    ("--quantize", "int4", "--speculator", "hybrid", "--trees"),
)
"""What a drafter may do otherwise; the default drafts ahead and ends drafts early. In LOCAL each of them scores the text."""

OPTIONS = (
    ("", "--speculator hybrid"),
    ("", "--no-ahead"),
    ("", "--no-early-stop", "--trees"),  # trees need what early stopping learns
    ("", "--quantize none", "--quantize int4"),  # auto is int8 on the CPU
)
"""Of a drafter with a model."""
LOOKUPS = tuple(("--model", "ngram", *option.split()) for option in ("", "--no-ahead", "--no-early-stop"))
CHANGING = ("fixed:4", "stream", "random", "none")
"""`random` changes between the modes at every verdict; `none` stays in LOCAL, where texts are scored."""


def every_drafter(policy: str) -> list[tuple[str, ...]]:
    """All combinations of `OPTIONS` are dealt to the policies so that any two options meet each policy; and all lookups."""
    places = product(*(range(len(one)) for one in OPTIONS))
    dealt = [at for at in places if CHANGING[(2 * at[0] + sum(at[1:])) % len(CHANGING)] == policy]
    chosen = [" ".join(option[n] for option, n in zip(OPTIONS, at, strict=True)) for at in dealt]
    return [*(tuple(options.split()) for options in chosen), *LOOKUPS]


def test_any_two_options_meet_every_policy() -> None:
    dealt = {policy: every_drafter(policy) for policy in CHANGING}
    models = [options for drafters in dealt.values() for options in drafters if options not in LOOKUPS]
    assert len(set(models)) == len(models) == 36
    for policy, drafters in dealt.items():
        for one, other in combinations(OPTIONS, 2):
            met = {(_chosen(one, options), _chosen(other, options)) for options in drafters if options not in LOOKUPS}
            assert met == set(product(one, other)), policy


def _chosen(option: tuple[str, ...], options: tuple[str, ...]) -> str:
    """Which of `option`'s settings these options hold."""
    return next((one for one in option if one and one in " ".join(options)), "")


def check_drafters(
    grid: Grid, policy: str, drafters: Sequence[tuple[str, ...]] = DRAFTERS, round_trip: float = 0.0
) -> None:
    """Each of these drafters on one verifier, so many seconds away and back."""
    with ExitStack() as stack:
        verifier = stack.enter_context(running(start_verifier("--speculation", policy)))
        way = stack.enter_context(DelayProxy(verifier.address, round_trip / 2)).address if round_trip else ""
        started = [start_drafter(verifier, *options, by_way_of=way) for options in drafters]
        grid.check([stack.enter_context(running(drafter)) for drafter in started], verifier)


@pytest.mark.parametrize("policy", ["fixed:4", "random"])
def test_whatever_the_drafter_does(small_grid: Grid, policy: str) -> None:
    """Looked up, not ahead, to the last token granted, in fewer bits: the same ids."""
    check_drafters(small_grid, policy)


FAR_AWAY: tuple[tuple[str, ...], ...] = ((), ("--speculator", "hybrid"))
"""Where messages take their time, drafters also draft for what a verdict may say instead (Draft.beside)."""


@pytest.mark.parametrize("policy", ["fixed:4", "random"])
def test_far_away(small_grid: Grid, policy: str) -> None:
    """Drafts that begin before the verdict they answer is known: the same ids."""
    check_drafters(small_grid, policy, FAR_AWAY, round_trip=0.02)


@pytest.fixture(scope="module")
def whole_grid() -> Iterator[Grid]:
    yield Grid(64, 64, alone=8)


@pytest.mark.lossless
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", POLICIES)
def test_whole_grid(whole_grid: Grid, policy: str) -> None:
    """64 prompts of 64 new tokens with every policy, 16 at a time and some alone, greedy and seeded."""
    with fleet("--speculation", policy) as daemons:
        # The verifier asked itself decodes alone, whatever its policy.
        whole_grid.check(daemons if policy == "none" else daemons[1:], daemons[0])


@pytest.mark.lossless
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", ["fixed:4", "fixed:8", "stream", "random", "fair-goodput"])
def test_whole_grid_whatever_the_drafter_does(whole_grid: Grid, policy: str) -> None:
    """64 prompts likewise."""
    check_drafters(whole_grid, policy)


@pytest.mark.lossless
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("milliseconds", [20, 60])
@pytest.mark.parametrize("policy", ["fixed:4", "fixed:8", "stream", "random", "fair-goodput"])
def test_whole_grid_far_away(whole_grid: Grid, policy: str, milliseconds: int) -> None:
    """64 prompts likewise, through a relay that takes its time."""
    drafters = (*FAR_AWAY, ("--no-early-stop",), ("--trees",), ("--quantize", "none"))
    check_drafters(whole_grid, policy, drafters, milliseconds / 1e3)


@pytest.fixture(scope="module")
def long_grid() -> Iterator[Grid]:
    """Texts long enough to be scored in LOCAL (drafter.session.FIRST_SHADOW)."""
    yield Grid(12, 112, alone=1)


@pytest.mark.lossless
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("policy", CHANGING)
def test_all_combinations_of_what_a_drafter_may_do(long_grid: Grid, policy: str, half: int) -> None:
    """Draft-ahead, shadow scoring, early stop, trees, lookup, fewer bits: together and apart, the same ids."""
    check_drafters(long_grid, policy, every_drafter(policy)[half::2])
