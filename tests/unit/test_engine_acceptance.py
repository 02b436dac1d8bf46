"""Both rules of acceptance: batched versions against the references, and outcomes against the exact distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from specfleet.core.step import Alternative, DraftDistribution, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine.acceptance import SparseDrafts, match, match_batch, match_tree, reject, reject_batch
from specfleet.engine.choose import Choice, Chooser
from specfleet.engine.sampling import Truncation, process

CPU = torch.device("cpu")
VOCABULARY = 12
RUNS = range(3000, 3020)
"""Fixed test seeds of each statement. Some 600 p-values are held to 0.001 here, so one set of seeds in two has an unlucky
one; that they are uniform was checked over thousands of seeds."""
DRAWS = 3000


def rows(count: int, seed: int, scale: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (count, VOCABULARY)).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(-1).numpy()


def truncated(q: np.ndarray, support: int) -> np.ndarray:
    """The `support` likeliest entries of each row, renormalised: what a drafter samples from."""
    kept = np.where(q >= np.sort(q, -1)[:, -support][:, None], q, 0.0)
    return kept / kept.sum(-1, keepdims=True)


def sparse(q: np.ndarray) -> list[DraftDistribution]:
    return [DraftDistribution(tuple(np.flatnonzero(row).tolist()), tuple(row[row > 0].tolist())) for row in q]


def chi_square(tokens: list[int], p: np.ndarray) -> float:
    """p-value of the tokens having been drawn from `p`; a token of probability 0 makes it 0. Tokens expected fewer than
    five times are counted together."""
    counts = np.bincount(tokens, minlength=len(p))
    if counts[p == 0].any():
        return 0.0
    expected = p / p.sum() * len(tokens)
    rare = expected < 5
    observed, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue)


@pytest.mark.parametrize(
    ("target", "draft", "expected"),
    [
        ([5], [], (0, [5])),
        ([5, 6, 7], [5, 6], (2, [5, 6, 7])),
        ([5, 6, 7], [5, 9], (1, [5, 6])),
        ([5, 6, 7], [9, 6], (0, [5])),
        ([5, 5, 5], [5, 5], (2, [5, 5, 5])),
    ],
)
def test_match_accepts_while_equal(target: list[int], draft: list[int], expected: tuple[int, list[int]]) -> None:
    """The accepted prefix and one token of the target's own, always accepted + 1 of them."""
    assert match(target, draft) == expected


def test_a_tree_is_walked_as_far_as_any_path_agrees() -> None:
    """Against brute force over 2,000 random trees: of all paths from the root the longest whose every token is the target's
    own there, and the target's token behind it."""
    random, rescued = np.random.default_rng(2), 0
    for _ in range(2000):
        draft = random.integers(0, 3, int(random.integers(0, 5))).tolist()
        places = {(int(random.integers(len(draft))), int(random.integers(0, 3))) for _ in range(4) if draft}
        alternatives = [Alternative(at, token) for at, token in places if draft[at] != token]
        own: dict[tuple[int, ...], int] = {}
        paths = [tuple(draft[:n]) for n in range(len(draft) + 1)]
        paths += [(*draft[: one.offset], one.token) for one in alternatives]
        for path in paths:
            own[path] = int(random.integers(0, 3))
        agreeing = [path for path in paths if all(own[path[:n]] == token for n, token in enumerate(path))]
        longest = max(agreeing, key=len)

        accepted, committed, alternative = match_tree([own[path] for path in paths], draft, alternatives)

        assert [*longest, own[longest]] == committed
        assert len(longest) == accepted + (alternative is not None)
        assert alternative is None or (*draft[:accepted], alternatives[alternative].token) == longest
        rescued += alternative is not None
    assert rescued > 200


def test_match_batch_equals_match() -> None:
    """Stretches of mixed length, each judged as if alone."""
    random = np.random.default_rng(0)
    drafts = [random.integers(0, 3, n).tolist() for n in (0, 1, 4, 0, 8)]
    targets = [random.integers(0, 3, len(draft) + 1).tolist() for draft in drafts]

    expected = [match(target, draft) for target, draft in zip(targets, drafts, strict=True)]

    assert match_batch([token for target in targets for token in target], drafts) == expected


def test_reject_accepts_what_p_prefers() -> None:
    """q below p is accepted whatever the uniform, p = 0 never, and the replacement comes from norm(max(0, p - q))."""
    p = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])

    assert reject(p, np.array([[0.4, 0.1, 0.5]]), [0], [0.999], 0.1) == (1, 0)
    assert reject(p, np.array([[0.4, 0.1, 0.5]]), [0], [0.999], 0.9) == (1, 2)
    assert reject(p, np.array([[0.5, 0.1, 0.4]]), [2], [0.0], 0.0) == (0, 1)


def test_reject_batch_equals_reject() -> None:
    """With the uniforms that the generator gives the batch, the reference accepts as many of each draft and adds the same
    token."""
    counts = [0, 1, 5, 3, 5, 5, 2, 5]
    p = softmax(rows(sum(counts) + len(counts), seed=1, scale=0.5))
    q = [truncated(softmax(rows(max(n, 1), seed=10 + i, scale=0.5)), 6)[:n] for i, n in enumerate(counts)]
    random = np.random.default_rng(2)
    drafts = [[int(random.choice(VOCABULARY, p=row)) for row in qs] for qs in q]
    first = np.cumsum([0, *[n + 1 for n in counts[:-1]]])
    generator = torch.Generator().manual_seed(3)
    uniforms = torch.rand((len(counts), max(counts)), generator=generator).numpy()
    finals = torch.rand((len(counts), 1), generator=generator, dtype=torch.float64)[:, 0].tolist()

    expected = [
        reject(p[f : f + n + 1], qs, draft, uniforms[i, :n].tolist(), finals[i])
        for i, (f, n, qs, draft) in enumerate(zip(first, counts, q, drafts, strict=True))
    ]

    accepted, last = reject_batch(
        torch.from_numpy(p).float(),
        torch.from_numpy(first),
        SparseDrafts(drafts, [sparse(qs) for qs in q], CPU),
        torch.Generator().manual_seed(3),
    )
    assert list(zip(accepted.tolist(), last.tolist(), strict=True)) == expected
    assert len({count for count, _ in expected}) > 2


def commit_reference(p: np.ndarray, q: np.ndarray, random: np.random.Generator) -> list[int]:
    draft = [int(random.choice(VOCABULARY, p=row)) for row in q]
    accepted, last = reject(p, q, draft, random.random(len(draft)).tolist(), float(random.random()))
    return [*draft[:accepted], last]


def commit_batch(p: np.ndarray, q: np.ndarray, random: np.random.Generator) -> list[list[int]]:
    """DRAWS rounds in one call."""
    count = len(q)
    drafts = np.stack([random.choice(VOCABULARY, p=row, size=DRAWS) for row in q], 1).tolist()
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    table = SparseDrafts(drafts, [sparse(q)] * DRAWS, CPU)
    first = torch.arange(DRAWS) * (count + 1)
    accepted, last = reject_batch(torch.from_numpy(p).float().repeat(DRAWS, 1), first, table, generator)
    return [[*d[:a], t] for d, a, t in zip(drafts, accepted.tolist(), last.tolist(), strict=True)]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("support", [VOCABULARY, 4])
def test_rejection_yields_the_targets_distribution(batched: bool, top_p: float, support: int) -> None:
    """Each place of two drafted tokens and the bonus is distributed as p, with q whole or truncated and p whole or a
    nucleus: chi-square p > 0.001 in each of 20 runs."""
    logits = torch.from_numpy(rows(3, seed=4))
    p = process(logits, Truncation(1.0, 0, top_p, 0.0)).softmax(-1).double().numpy()
    p /= p.sum(-1, keepdims=True)
    q = truncated(softmax(0.7 * rows(3, seed=4)[:2] + rows(2, seed=5, scale=0.7)), support)
    for seed in RUNS:
        random = np.random.default_rng(seed)
        rounds = commit_batch(p, q, random) if batched else [commit_reference(p, q, random) for _ in range(1000)]
        for place in range(3):
            tokens = [committed[place] for committed in rounds if len(committed) > place]
            assert len(tokens) > 100
            assert chi_square(tokens, p[place]) > 0.001, (seed, place)


def test_a_draft_that_q_does_not_hold_is_refused() -> None:
    """A drafter that sends a token its own q rules out gains nothing: the token is replaced by a draw of the target's."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    q = [DraftDistribution((1,), (1.0,))]

    accepted, last = reject_batch(p, torch.tensor([0]), SparseDrafts([[0]], [q], CPU), torch.Generator().manual_seed(0))

    assert (accepted.tolist(), last.tolist()) == ([0], [0])


def test_equal_p_and_q_accept_everything() -> None:
    """With q = p nothing is refused, and rounding leaves no impossible token behind."""
    p = softmax(rows(1, seed=6))

    for _ in range(20):
        accepted, _ = reject_batch(
            torch.from_numpy(np.repeat(p, 2, 0)).float(),
            torch.tensor([0]),
            SparseDrafts([[3]], [sparse(p.astype(np.float32))], CPU),
            torch.Generator(),
        )
        assert accepted.tolist() == [1]


# The chooser: the same promises through the engine's own entry ----------------------------------------------------------


def sampled(make: Callable[[int], SamplingParams], logits: np.ndarray, seed: int, want_q: bool = False) -> list[int]:
    """DRAWS independent items with the same single row of logits."""
    choices = [Choice(StepItem(i, [1], make(i), want_q=want_q), first_row=i, position=10 + i) for i in range(DRAWS)]
    results = Chooser(CPU, seed).choose(choices, torch.from_numpy(logits).repeat(DRAWS, 1))
    return [result.tokens[0] for result in results]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("rule", ["seeded", "unseeded", "unseeded with q"])
def test_a_token_without_a_draft_is_distributed_as_p(rule: str, top_p: float) -> None:
    """Seeded by noise along positions, unseeded by the generator, and a drafter's draw that reports q."""
    logits = rows(1, seed=7)
    p = process(torch.from_numpy(logits), Truncation(0.7, 0, top_p, 0.0)).softmax(-1).double().numpy()[0]
    for run in RUNS:
        seed = run if rule == "seeded" else None
        params = SamplingParams(temperature=0.7, top_p=top_p, seed=seed)
        tokens = sampled(lambda _, params=params: params, logits, run, want_q=rule == "unseeded with q")
        assert chi_square(tokens, p) > 0.001, run


def test_a_seeded_token_is_a_function_of_its_place_alone() -> None:
    """Verified behind any draft or decoded alone, one by one or all at once: the same tokens."""
    logits = torch.from_numpy(rows(6, seed=8))
    params = SamplingParams(temperature=1.3, seed=99)
    chooser = Chooser(CPU, None)
    alone = [
        chooser.choose([Choice(StepItem(0, [1], params), 0, 40 + i)], logits[i : i + 1])[0].tokens[0] for i in range(6)
    ]

    draft = [*alone[:3], (alone[3] + 1) % VOCABULARY, 0]
    verified = chooser.choose([Choice(StepItem(0, [1, *draft], params, draft=5), 0, 40)], logits)[0]

    assert (3, tuple(alone[:4])) == (verified.accepted, verified.tokens)


def test_drafter_and_target_with_one_seed_choose_alike() -> None:
    """With q = p the drafter's seeded guess is the target's token: the same noise on both sides."""
    logits = torch.from_numpy(rows(200, seed=9))
    params = SamplingParams(seed=5)
    choices = [Choice(StepItem(i, [1], params), i, i) for i in range(200)]

    target = Chooser(CPU, 1).choose(choices, logits)
    drafter = Chooser(CPU, 2).choose(choices, logits)

    assert target == drafter


def test_q_is_what_the_token_was_drawn_from() -> None:
    """want_q returns at most 64 ids, likeliest first, renormalised, with the drawn token among them; greedy is a point."""
    size = 300
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (4, size)).astype(np.float32))
    kinds = [SamplingParams(), SamplingParams(top_k=5), SamplingParams(seed=3), SamplingParams(temperature=0)]
    choices = [Choice(StepItem(i, [1], params, want_q=True), i, 7) for i, params in enumerate(kinds)]

    results = Chooser(CPU, 0).choose(choices, logits)

    assert [len(r.q.token_ids) for r in results if r.q] == [64, 5, 64, 1]
    for i, result in enumerate(results):
        assert result.q is not None
        assert result.tokens[0] in result.q.token_ids
        assert sum(result.q.probabilities) == pytest.approx(1.0, abs=1e-5)
        assert result.q.token_ids[0] == int(logits[i].argmax())


def test_logprobs_are_the_models_own() -> None:
    """Before temperature and truncation, one per committed token, whichever rule chose them, and as many of the likeliest in
    its place as were asked for."""
    logits = torch.from_numpy(rows(7, seed=10))
    best = logits.argmax(-1).tolist()
    q = [DraftDistribution((3,), (1.0,))]
    choices = [
        Choice(
            StepItem(0, [1, *best[:2]], SamplingParams(temperature=0, logprobs=True, top_logprobs=1), draft=2), 0, 5
        ),
        Choice(StepItem(1, [1], SamplingParams(temperature=0)), 3, 5),
        Choice(StepItem(2, [1, 3], SamplingParams(top_k=2, logprobs=True), draft=1, q=q), 4, 5),
        Choice(StepItem(3, [1], SamplingParams(seed=1, temperature=0.1, logprobs=True, top_logprobs=3)), 6, 5),
    ]

    results = Chooser(CPU, 0).choose(choices, logits)

    logs = logits.log_softmax(-1)
    for choice, result in zip(choices, results, strict=True):
        assert len(result.tokens) == result.accepted + 1
        if choice.item.sampling.logprobs:
            expected = [float(logs[choice.first_row + i, token]) for i, token in enumerate(result.tokens)]
            assert result.logprobs == pytest.approx(expected, abs=1e-5)
        else:
            assert result.logprobs is None
        if count := choice.item.sampling.top_logprobs:
            best = [logs[choice.first_row + i].topk(count) for i in range(len(result.tokens))]
            assert result.top_logprobs is not None
            for found, place in zip(result.top_logprobs, best, strict=True):
                assert place.indices.tolist() == [token for token, _ in found]
                assert place.values.tolist() == pytest.approx([value for _, value in found], abs=1e-5)
        else:
            assert result.top_logprobs is None
