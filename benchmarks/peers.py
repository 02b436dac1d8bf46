"""Everybody who can write the same text on the same pair, on the same cores, in turns: one stream, and sixteen at once.

    python benchmarks/peers.py [--rounds 3] [--tokens 64] [--streams 16] [--drafters 4] [--models FOLDER]

One stream: transformers' `generate` and assisted generation, llama.cpp without and with the draft model (where
llama-cpp-python and gguf are installed), and our fleet. Sixteen: transformers' padded `generate` and its continuous batching,
and our fleet with four drafters, under the default policy, always drafting ahead, and target-only. Daemons idle while others
run. All are to write the same greedy text; who batches rounds differently, so of those the share of equal texts is said.

All of a fleet's processes share the cores here, drafters included, which elsewhere would cost the verifier nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import llama_peer
from benchmarks.common import MODELS, PROMPTS, Report, interleaved, medians
from benchmarks.contenders import Fleet, Texts, Transformers

POLICIES = ("fair-goodput", "stream", "none")
Run = Callable[[], float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--drafters", type=int, default=4)
    parser.add_argument("--policies", nargs="+", default=POLICIES, metavar="NAME")
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    report = Report("peers")
    target, draft = arguments.models / "tiny-target", arguments.models / "tiny-draft"
    prompts = tuple(PROMPTS[n % len(PROMPTS)] for n in range(arguments.streams))
    with ExitStack() as stack:
        single = Transformers(target, draft, arguments.tokens, PROMPTS)
        batch = Transformers(target, draft, arguments.tokens, prompts)
        stack.callback(batch.close)
        skipped: dict[str, str] = {}
        peers, texts = _llama(stack, target, draft, single, arguments.tokens, skipped)
        one: dict[str, Run] = {"generate": single.generate, "assisted generation": single.assisted, **peers}
        many: dict[str, Run] = {"padded generate": batch.static_batch, "continuous batching": batch.continuous_batch}
        _try(many, skipped)
        fleets = {}
        for policy in arguments.policies:
            fleet = Fleet(
                stack, target, draft, policy, PROMPTS, arguments.tokens, arguments.streams, arguments.drafters
            )
            fleets[policy] = fleet
        ours_one: dict[str, Run] = {f"specfleet {name}": fleet.one for name, fleet in fleets.items()}
        ours_many: dict[str, Run] = {f"specfleet {name}": fleet.many for name, fleet in fleets.items()}
        found_one = medians(interleaved({**one, **ours_one}, arguments.rounds))
        for fleet in fleets.values():
            if fleet.texts != single.texts:
                raise SystemExit(f"{fleet.policy} wrote other text than the target alone: figures would mean nothing")
        found_many = medians(interleaved({**many, **ours_many}, arguments.rounds))
        others = {**single.others, **batch.others, **texts()}
    _say(report, found_one, found_many, others, single.texts, skipped, arguments)
    return report.finish()


def _llama(
    stack: ExitStack, target: Path, draft: Path, single: Transformers, tokens: int, skipped: dict[str, str]
) -> tuple[dict[str, Run], Callable[[], dict[str, Texts]]]:
    """Its runs, and later what they wrote."""
    reason = llama_peer.missing()
    if reason:
        skipped["llama.cpp"] = reason
        return {}, dict
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        peer = llama_peer.LlamaCpp(target, draft, folder, single.ids, tokens, single.eos)
    except (RuntimeError, ValueError, OSError) as error:
        skipped["llama.cpp"] = f"does not load the converted pair: {error}"
        return {}, dict
    return {"llama.cpp": peer.generate, "llama.cpp with draft": peer.assisted}, lambda: peer.others


def _try(runs: dict[str, Run], skipped: dict[str, str]) -> None:
    """Take out, with the reason, what does not run on this machine."""
    for name, run in list(runs.items()):
        try:
            run()
        except Exception as error:  # noqa: BLE001 (whatever a peer fails with is its reason)
            skipped[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            del runs[name]


def _say(
    report: Report,
    one: dict[str, float],
    many: dict[str, float],
    others: dict[str, Texts],
    texts: Texts,
    skipped: dict[str, str],
    arguments: argparse.Namespace,
) -> None:
    peers_many = {name: speed for name, speed in many.items() if not name.startswith("specfleet")}
    # Whoever has no batch of its own serves sixteen streams one after another.
    best_peer = max([*peers_many.values(), *(speed for name, speed in one.items() if not name.startswith("specfleet"))])
    rows = [["", "one stream", "vs generate", f"{arguments.streams} streams", "vs best peer", "texts as generate's"]]
    for name in dict.fromkeys([*one, *many]):
        alone, together = one.get(name), many.get(name)
        same = _same(others.get(name), texts)
        rows.append(
            [
                name,
                f"{alone:.1f}" if alone else "",
                f"{alone / one['generate']:.2f}x" if alone else "",
                f"{together:.1f}" if together else "",
                f"{together / best_peer:.2f}x" if together else "",
                "all" if name.startswith("specfleet") or same == 1.0 else f"{same:.0%}" if same is not None else "",
            ]
        )
    report.table(f"Tokens/s, medians of {arguments.rounds} interleaved rounds, {arguments.tokens} tokens each.", rows)
    for name, reason in skipped.items():
        print(f"not measured: {name}: {reason}")
    report.figures |= {"one_stream": one, "streams": many, "skipped": skipped}
    ours_one = max(speed for name, speed in one.items() if name.startswith("specfleet"))
    ours_many = max(speed for name, speed in many.items() if name.startswith("specfleet"))
    report.bar("one stream vs generate", ours_one / one["generate"], 1.8)
    report.bar("one stream vs assisted generation", ours_one / one["assisted generation"], 1.3)
    report.bar(f"{arguments.streams} streams vs the best peer's tokens/s", ours_many / best_peer, 1.5)


def _same(found: Texts | None, texts: Texts) -> float | None:
    if found is None:
        return None
    return sum(one == texts[n % len(texts)] for n, one in enumerate(found)) / len(found)


if __name__ == "__main__":
    sys.exit(main())
