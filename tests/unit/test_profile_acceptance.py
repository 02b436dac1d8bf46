"""What a drafter's profile says of acceptance: guesses as a model makes them, rounds as they are played, what pays."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.draft_time import DraftProfile
from specfleet.cli.main import main
from specfleet.core.errors import ConfigurationError
from specfleet.core.step import StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.testing import VOCABULARY, save_tiny_model
from specfleet.profiling.acceptance import Costs, Guessed, Heard, guessed, speeds, tokens_a_round, told_apart

GREEDY = SamplingParams(temperature=0.0)
R, W = True, False


@pytest.mark.parametrize("start", [1, 2, 17, 40, 299])
def test_guesses_are_those_that_a_draft_would_have(start: int, tmp_path: Path) -> None:
    """Against the model asked token by token, over a text of its own with every fifth token changed."""
    engine = TorchEngine(EngineConfig(model=str(save_tiny_model(tmp_path, "llama")), kv_cache_tokens=2048, threads=1))
    try:
        text, expected = [3], []
        engine.open(9, text)
        while len(text) < 300:
            own = engine.step_sync([StepItem(9, text[-1:], GREEDY)])[0].tokens[0]
            text.append(own if len(text) % 5 else (own + 1) % VOCABULARY)
            expected.append(bool((len(text) - 1) % 5))
        for _ in range(2):  # the second time the prefix cache has it
            assert expected[start - 1 :] == [one.right for one in guessed(engine, Heard(tuple(text), start, 0.0, 0.0))]
        assert [] == guessed(engine, Heard(tuple(text), 300, 0.0, 0.0))
        engine.close(9)
        engine.check_integrity()
    finally:
        engine.shutdown()


def test_rounds_are_played_one_behind_the_other() -> None:
    """R R W R R R with drafts of 2: two right and a bonus (3 tokens), then one right... as a verifier would have it."""
    assert 1.0 == tokens_a_round([[R, W, R]], 0)
    # R R | next from place 3: R R | next from 6: nothing.
    assert 3.0 == tokens_a_round([[R, R, W, R, R, R]], 2)
    # W: 1 token; R W: 2; R R: 3. The last one has no room for its draft.
    assert 2.0 == tokens_a_round([[W, R, W, R, R, R, R]], 2)
    assert 1.0 == tokens_a_round([[R]], 4)
    assert 1.5 == tokens_a_round([[W, W], [R, R]], 1)


def test_the_length_that_pays() -> None:
    """All right, free drafts: the longer the better. Nothing right: none. A dear token shortens it, distance lengthens it."""
    right, mixed = [[R] * 400], [([R] * 3 + [W]) * 100]

    def best(texts: list[list[bool]], **costs: float) -> int:
        found = speeds(texts, Costs(**{"draft": 0.0, "round_trip": 0.0, "step": 0.01, **costs}))
        return max(range(len(found)), key=found.__getitem__)

    assert 16 == best(right)
    assert 0 == best([[W] * 400], draft=0.001)
    assert 3 == best(mixed, draft=0.001)
    assert best(mixed, draft=0.001, token=0.02) < 3
    assert 0 == best(mixed, draft=0.001, round_trip=0.06) < best(right, draft=0.001, round_trip=0.06)
    assert [100.0, 200.0] == pytest.approx(speeds(right, Costs(0.0, 0.0, 0.01), 1))


def test_how_well_a_model_knows_when_it_is_right() -> None:
    """Two standard deviations apart; not told apart; the wrong way round; and where nothing is to be told apart."""

    def guesses(right: list[float], wrong: list[float]) -> list[Guessed]:
        return [Guessed(True, odds) for odds in right] + [Guessed(False, odds) for odds in wrong]

    assert 2.0 == told_apart(guesses([0.0, 2.0], [-2.0, 0.0]))
    assert 0.0 == told_apart(guesses([0.0, 2.0], [0.0, 2.0])) == told_apart(guesses([-2.0, 0.0], [0.0, 2.0]))
    assert told_apart(guesses([1.0, 2.0], [1.0])) is told_apart(guesses([], [1.0, 2.0])) is None
    assert told_apart(guesses([1.0, 1.0], [0.0, 0.0])) is None


def test_a_profile_keeps_what_was_found(tmp_path: Path) -> None:
    """Through its file; one of before has none of it; what cannot be is refused."""
    path = tmp_path / "draft.json"
    DraftProfile((1,), (0.001,), "here", 0.5, 3, 0.75).save(path)
    kept = DraftProfile.load(path)
    assert (0.5, 3, 0.75) == (kept.acceptance, kept.best_length, kept.confidence)
    old = DraftProfile((1,), (0.001,))
    assert old.acceptance is old.best_length is old.confidence is None
    for wrong in ((1.5, 3), (0.5, -1), (0.5, 2.5), (0.5, 3, -0.1), (0.5, 3, float("inf"))):
        with pytest.raises(ConfigurationError, match=r"acceptance|best_length|confidence"):
            DraftProfile((1,), (0.001,), "", *wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--verifier", "127.0.0.1:1"), ("--verifier", "--drafter")),
        (("--drafter", "--prompts", "{tmp}/p.jsonl"), ("--prompts", "--verifier")),
        (("--drafter", "--verifier", "127.0.0.1:1", "--prompts", "{tmp}/none"), ("--prompts", "none")),
        (("--drafter", "--verifier", "far-away:1"), ("far-away:1", "insecure")),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """One line, exit code 2."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "Once"}')
    model = str(save_tiny_model(tmp_path / "model"))
    out = ("--out", str(tmp_path / "o.json"))
    capsys.readouterr()
    assert 2 == main(["profile", "--model", model, *out, *(one.format(tmp=tmp_path) for one in arguments)])
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
