"""Text through the engine against transformers' `generate`, token for token, with and without drafts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.engine import EngineCounters
from specfleet.engine.pages import PageCounters
from specfleet.engine.testing import FAMILIES, VOCABULARY, save_tiny_model, stock_model

GREEDY = SamplingParams(temperature=0)
Drafter = Callable[[Sequence[int]], list[int]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Models this small are slower on several threads, and by far where the cores are shared."""
    torch.set_num_threads(1)


def engine_for(folder: Path) -> TorchEngine:
    return TorchEngine(EngineConfig(model=str(folder), kv_cache_tokens=2048, seed=1))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, int(random.integers(1, 60))).tolist() for _ in range(count)]


def generate(folder: Path, prompt: list[int], count: int) -> list[int]:
    model = stock_model(folder)
    model.generation_config.eos_token_id = None
    out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=count, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def write(
    engine: TorchEngine,
    texts: dict[int, list[int]],
    params: SamplingParams,
    count: int,
    drafter: Drafter,
    chunk: int = 24,
) -> dict[int, list[int]]:
    """`count` tokens behind each prompt, all sequences in each step, prompts in chunks, drafts wherever there is room."""
    new: dict[int, list[int]] = {s: [] for s in texts}
    for sequence, prompt in texts.items():
        engine.open(sequence, prompt)
    while any(len(tokens) < count for tokens in new.values()):
        items = []
        for sequence, prompt in texts.items():
            if len(new[sequence]) >= count:
                continue
            rest = [*prompt, *new[sequence]][engine.length(sequence) :]
            if len(rest) > chunk:
                items.append(StepItem(sequence, rest[:chunk], params, sample=False))
                continue
            draft = drafter([*prompt, *new[sequence]])[: count - len(new[sequence]) - 1]
            items.append(StepItem(sequence, [*rest, *draft], params, draft=len(draft)))
        for item, result in zip(items, engine.step_sync(items), strict=True):
            assert len(result.tokens) == (result.accepted + 1 if item.sample else 0)
            new[item.sequence] += result.tokens
        engine.check_integrity()
    for sequence in texts:
        engine.close(sequence)
    assert engine.used_pages == 0
    return new


def guesser(truth: dict[tuple[int, ...], list[int]], rightness: float, seed: int) -> Drafter:
    """Drafts of random length whose tokens are right with probability `rightness`."""
    random = np.random.default_rng(seed)

    def draft(text: Sequence[int]) -> list[int]:
        prompt = next(p for p in truth if tuple(text[: len(p)]) == p)
        ahead = truth[prompt][len(text) - len(prompt) :][: int(random.integers(0, 9))]
        return [t if random.random() < rightness else int(random.integers(VOCABULARY)) for t in ahead]

    return draft


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_generate(family: str, tmp_path: Path) -> None:
    """Alone or in a batch, with no drafts, wrong drafts or right ones: what `generate(do_sample=False)` writes."""
    folder = save_tiny_model(tmp_path, family, seed=3)
    texts = dict(enumerate(prompts(4)))

    expected = {s: generate(folder, prompt, 24) for s, prompt in texts.items()}

    truth = {tuple(prompt): expected[s] for s, prompt in texts.items()}
    for rightness in (None, 0.0, 0.7, 1.0):
        drafter = guesser(truth, rightness, seed=5) if rightness is not None else lambda _: []
        assert write(engine_for(folder), texts, GREEDY, 24, drafter) == expected


def test_seeded_text_does_not_depend_on_drafts_batch_or_chunks(tmp_path: Path) -> None:
    """One seed, one text: alone without drafts, together with any."""
    folder = save_tiny_model(tmp_path, "llama")
    texts = dict(enumerate(prompts(5, seed=2)))
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=2**64 - 5)

    expected = {s: write(engine_for(folder), {s: p}, params, 30, lambda _: [])[s] for s, p in texts.items()}

    truth = {tuple(prompt): expected[s] for s, prompt in texts.items()}
    for rightness in (0.0, 0.8, 1.0):
        assert write(engine_for(folder), texts, params, 30, guesser(truth, rightness, seed=7), chunk=11) == expected
    assert len({tuple(text) for text in expected.values()}) == 5


def test_a_step_of_many_items_equals_one_at_a_time(tmp_path: Path) -> None:
    """Greedy, seeded, drafted and undrafted items in one step give what each gives alone."""
    folder = save_tiny_model(tmp_path, "gemma")
    texts = prompts(6, seed=4)
    kinds = [GREEDY, SamplingParams(seed=4), SamplingParams(seed=5, top_k=7, logprobs=True)]
    items = [StepItem(i, p, kinds[i % 3], draft=min(i, len(p) - 1)) for i, p in enumerate(texts)]
    together, alone = engine_for(folder), engine_for(folder)
    for item in items:
        together.open(item.sequence, item.tokens)
        alone.open(item.sequence, item.tokens)

    expected = [alone.step_sync([item])[0] for item in items]

    found = together.step_sync(items)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert [together.length(i) for i in range(6)] == [alone.length(i) for i in range(6)]
    for one, other in zip(found, expected, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        assert one.logprobs is None or one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_drafter_and_its_target_agree_over_the_rejection_rule(tmp_path: Path) -> None:
    """Unseeded text drafted by the target itself, q sent sparse: everything that q could hold is accepted."""
    folder = save_tiny_model(tmp_path, "llama")
    drafter, target = engine_for(folder), engine_for(folder)
    params = SamplingParams(temperature=0.8, top_k=20)
    prompt = prompts(1)[0]
    drafter.open(1, prompt)
    target.open(1, prompt)
    text, tokens, q = list(prompt), list(prompt), []
    for _ in range(5):
        (result,) = drafter.step_sync([StepItem(1, tokens, params, want_q=True)])
        tokens = list(result.tokens)
        text += tokens
        q.append(result.q)

    (verdict,) = target.step_sync([StepItem(1, text, params, draft=5, q=q)])

    assert (verdict.accepted, len(verdict.tokens)) == (5, 6)


def test_steps_in_a_row_equal_steps_one_by_one(tmp_path: Path) -> None:
    """`extend` feeds each newest token back: the same results, by item and then by step."""
    folder = save_tiny_model(tmp_path, "llama")
    engine, other = engine_for(folder), engine_for(folder)
    items = [StepItem(i, prompt, SamplingParams(seed=i)) for i, prompt in enumerate(prompts(3))]
    for item in items:
        engine.open(item.sequence, item.tokens)
        other.open(item.sequence, item.tokens)

    expected = []
    feed = items
    for _ in range(4):
        expected.append(other.step_sync(feed))
        feed = [i._replace(tokens=r.tokens) for i, r in zip(items, expected[-1], strict=True)]

    assert [list(row) for row in zip(*expected, strict=True)] == asyncio.run(engine.extend(items, 4))
    engine.shutdown()


def test_steps_run_in_the_engines_own_thread(tmp_path: Path) -> None:
    """`step` is awaited, gives what `step_sync` gives, and leaves the event loop free meanwhile."""
    folder = save_tiny_model(tmp_path, "llama")
    engine, other = engine_for(folder), engine_for(folder)
    item = StepItem(1, [1, 2, 3], GREEDY)
    engine.open(1, item.tokens)
    other.open(1, item.tokens)

    async def main() -> list[object]:
        return [await engine.step([item]), await engine.step([])]

    assert [other.step_sync([item]), []] == asyncio.run(main())
    engine.shutdown()


def test_a_warm_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """No page, no count, and the same text as without."""
    folder = save_tiny_model(tmp_path, "llama")
    prompt = prompts(1)[0]
    engine = engine_for(folder)
    pages = engine.free_pages
    engine.warm_up()

    assert (engine.free_pages, engine.cached_pages) == (pages, 0)
    assert (engine.counters, engine.page_counters) == (EngineCounters(), PageCounters())
    engine.check_integrity()
    engine.open(0, prompt)
    first = engine.step_sync([StepItem(0, prompt, GREEDY)])[0].tokens[0]
    assert [first] == generate(folder, prompt, 1)
    engine.shutdown()
