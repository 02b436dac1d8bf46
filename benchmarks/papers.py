"""The papers' set-ups in the simulator: what they claim, and what our policies do there.

    python benchmarks/papers.py [--section wisp …] [--quick | --full] [--cells TEXT] [--policies NAME,…] [--paces N,…]
        [--machine NAME] [--seconds N]

Sections: wisp (devices per card at a speed), smartspec (latency over load), planet (a grid of regimes), dsd (600 and 1,000
drafters), goodspeed (fair shares). Figures are functions of configurations and seed, the same on every machine, so one run of
each is a measurement and not a sample of the machine. Configurations are those that ship (`simulator/configs/`), made shorter:
a section takes 2 to 25 minutes of one core; --quick plays a corner of each in about two, --full the files as they are, hours.
Parts can be played alone: of planet the --cells whose names hold the text (where no usual cell's does, of the whole grid), for
so many --seconds, half of them warm-up; of planet and smartspec some --policies beside ours and none ('' for no others), of
smartspec some --rates, of wisp some --paces on one --machine.
docs/results.md says what the papers claim and why figures differ.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Report, progress, table
from scheduler.estimators import expected_tokens
from simulator.baselines import policy
from simulator.config import Simulation
from simulator.distributions import Distribution
from simulator.document import Document, changed, checked, find, read
from simulator.figures import figures
from simulator.play import play
from simulator.search import Cell, attainment, cells

OURS = "fair-goodput"
PACES = (2, 4, 6, 8)
PUBLISHED = {OURS: (164, 142, 103, 86), "centralized": (97, 80, 54, 41), "sled": (83, 42, 27, 21)}
"""Devices at PACES tokens/s: WISP's table for Qwen3-32B on one A100; ours stands where WISP's own does."""
GUESSES = {"wisp-fitted": (560, 310, 225), "wisp-roofline": (640, 640, 225)}
"""Where the search begins, for ours, centralized and sled: devices times their tokens/s."""
STRIDE, CLOSE = 1.1, 1.03
"""How far it goes at a time, and how close its bounds are in the end."""
CYCLES = {"quick": 2.2, "usual": 2.2, "full": 4.0}
"""A run of WISP's lasts so many times what one of its requests does."""
LONGEST = 8
"""Drafted tokens in the rounds of a class, as our default has it."""
LEAST_REQUESTS = 200
"""That a run of SmartSpec's sweep issues and counts."""
PLANET = {1: (0.05,), 8: (0.01, 0.05, 0.15), 64: (0.01,)}
"""Clients, and the distances that are played with so many. 512 take a minute a policy: --full or --cells plays them."""
SCALE = 10
"""But for --full, DSD's fleet has so many times fewer targets and drafters: each target's load is the same."""
FAR = (0.05, 0.1, 0.2)
"""Where DSD's target-only is looked for, in seconds of round trip."""

Changes = Mapping[str, Any]
Section = Callable[..., None]
"""Of a report and a size, and what narrows it down."""
DRAWS = 20_000
"""Of a distribution, for its mean."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=SECTIONS, default=[])
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", default="usual")
    parser.add_argument("--full", action="store_const", const="full", dest="size")
    parser.add_argument("--cells", default="", metavar="TEXT")
    parser.add_argument("--policies", type=lambda text: list(filter(None, text.split(","))), metavar="NAME,…")
    parser.add_argument("--seconds", type=int, metavar="N")
    parser.add_argument("--rates", type=lambda text: list(map(int, text.split(","))), metavar="N,…")
    parser.add_argument("--paces", type=lambda text: list(map(int, text.split(","))), metavar="N,…")
    parser.add_argument("--machine", choices=GUESSES)
    arguments = parser.parse_args()
    parts = {
        "planet": {"only": arguments.cells, "others": arguments.policies, "seconds": arguments.seconds},
        "smartspec": {"others": arguments.policies, "rates": arguments.rates},
        "wisp": {"paces": arguments.paces, "machine": arguments.machine},
    }
    report = Report("papers")
    for name in arguments.section or SECTIONS:
        print(f"\n== {name}", flush=True)
        SECTIONS[name](report, arguments.size, **parts.get(name, {}))
    return report.finish()


class Configuration:
    """One that ships, and runs of changed copies of it."""

    def __init__(self, name: str, **changes: Any) -> None:
        """`changes` by dotted keys with double underscores."""
        self.path = find(name)
        self.document = self.changed(read(self.path), {key.replace("__", "."): one for key, one in changes.items()})

    def changed(self, document: Document, changes: Changes) -> Document:
        return changed(document, changes, self.path)

    @property
    def config(self) -> Simulation:
        """Without its grid."""
        return checked({key: one for key, one in self.document.items() if key != "grid"}, self.path)

    def play(self, name: str, changes: Changes) -> dict[str, Any]:
        """Figures of one run with the file's first seed."""
        progress(f"{self.path.stem}, {name}, {', '.join(map(str, changes.values()))}")
        document = {key: one for key, one in self.document.items() if key != "grid"}
        config = checked(self.changed(document, changes), self.path)
        found = figures(play(config, policy(name), config.seeds[0], folder=self.path.parent), 0.0)
        progress("")
        return found


def mean(drawn: Distribution, of: Callable[[float], float] = float) -> float:
    """Of a function of what is drawn."""
    rng = random.Random(0)
    return statistics.fmean(of(drawn.draw(rng)) for _ in range(DRAWS))


# --- WISP --------------------------------------------------------------------------------------------------------------


def wisp(report: Report, size: str, paces: Sequence[int] | None = None, machine: str | None = None) -> None:
    """Devices that one card keeps at a speed, 95 % of requests."""
    machines = (machine,) if machine else ("wisp-fitted",) if size == "quick" else tuple(GUESSES)
    paces = paces or ((4,) if size == "quick" else PACES)
    for name in machines:
        own = Configuration(name)
        rows = [[f"{name}, devices at", *(f"{pace} tokens/s" for pace in paces), "published"]]
        found: dict[str, list[int]] = {}
        for one, guess in zip((OURS, "centralized", "sled"), GUESSES[name], strict=True):
            found[one] = [capacity(own, one, pace, guess // pace, size) for pace in paces]
            published = [PUBLISHED[one][PACES.index(pace)] for pace in paces]
            rows.append([one, *map(str, found[one]), "/".join(map(str, published))])
        report.figures[name] = dict(found)
        if name == "wisp-fitted":
            best = [ceiling(own, pace) for pace in paces]
            report.figures["wisp-fitted, most that any policy could"] = best
            rows += [["bound, drafts", *(f"{one:.0f}" for one, _ in best), ""]]
            rows += [["bound, target-only", *(f"{one:.0f}" for _, one in best), ""]]
        table(rows)
        print(flush=True)
        _wisp_bars(report, name, found)


def ceiling(own: Configuration, pace: float) -> tuple[float, float]:
    """Devices that a card could keep at `pace` with the best drafts and without any, whatever the policy: by its work alone.

    A request prefills once, then costs so much per token; each session needs a verdict as often as its tokens last, so steps
    cost their fixed part at least that often. Whoever makes all wait for the first token as long as is promised can have the
    most devices.
    """
    work, acceptance = own.config.workload, own.config.tiers["device"].acceptance
    assert work.closed_loop is not None
    prompt, output = mean(work.prompt_tokens), mean(work.output_tokens)
    terms = own.document["verifiers"]["a100"]["profile"]
    fixed, token, context = terms["fixed"], terms["per_token"], terms["per_cached"] * (prompt + output / 2.0)
    cycle = mean(work.closed_loop.think_seconds) + own.document["classes"]["paced"]["ttft"] + output / pace

    def best(rate: float) -> float:
        """Seconds a token."""
        return min((token * (1 + n) + context) / expected_tokens(rate, n) for n in range(1, LONGEST + 1))

    longest = mean(acceptance, lambda rate: expected_tokens(rate, LONGEST))
    return (
        cycle * (1.0 - fixed * pace / longest) / (prompt * token + output * mean(acceptance, best)),
        cycle * (1.0 - fixed * pace) / (prompt * token + output * (token + context)),
    )


def _wisp_bars(report: Report, name: str, found: Mapping[str, Sequence[int]]) -> None:
    def least(other: str) -> float:
        return min(ours / max(1, theirs) for ours, theirs in zip(found[OURS], found[other], strict=True))

    if name == "wisp-fitted":
        report.bar(f"{name}: {OURS} against centralized, least over speeds", least("centralized"), 2.1)
        report.bar(f"{name}: {OURS} against sled, least over speeds", least("sled"), 2.0)
    else:
        report.bar(f"{name}: {OURS} against centralized, least over speeds", least("centralized"), 0.95)


def capacity(own: Configuration, name: str, pace: float, guess: int, size: str) -> int:
    """Most devices with which 95 % of requests keep `pace` tokens/s: out from the guess, then in between, to 3 %.

    Everybody begins at once. So a run warms up for as long as a request takes at that pace, and counts what is begun in as
    long again and a little more: what a card keeps is seen once requests begin as others end.
    """
    work = own.config.workload
    assert work.closed_loop is not None
    request = mean(work.closed_loop.think_seconds) + mean(work.output_tokens) / pace
    changes = {"classes.paced.tpot": 1.0 / pace, "warm_up": round(request), "duration": round(CYCLES[size] * request)}

    def met(devices: int) -> bool:
        return attainment(own.play(name, {**changes, "tiers.device.count": devices}), "paced") >= 0.95

    low = high = guess
    if met(guess):
        while met(high := math.ceil(STRIDE * low)):
            low = high
    else:
        while low and not met(low := int(high / STRIDE)):
            high = low
    while high > CLOSE * low and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if met(middle) else (low, middle)
    return low


# --- SmartSpec ---------------------------------------------------------------------------------------------------------


def smartspec(
    report: Report, size: str, others: Sequence[str] | None = None, rates: Sequence[int] | None = None
) -> None:
    """Median latency of requests over load; of ours, `none` and `others`."""
    own = Configuration("smartspec-load")
    rates = rates or ((1, 8) if size == "quick" else (1, 4, 8, 16, 24, 32))
    names = (OURS, *(("smartspec", "fixed:4") if others is None else others), "none")
    rows = [["acceptance, requests/s: median s", *names, f"none / {OURS}"]]
    ratios: dict[tuple[float, int], float] = {}
    for acceptance in (0.8,) if size == "quick" else (0.6, 0.8):
        for rate in rates:
            changes = {"tiers.client.acceptance": acceptance, "workload.poisson.rate": rate}
            if size != "full":
                # The median of a few requests is a matter of luck.
                changes |= {"warm_up": 8, "duration": max(30, 8 + LEAST_REQUESTS // rate)}
            seconds = [own.play(name, changes)["e2e_s"]["p50"] for name in names]
            ratios[acceptance, rate] = seconds[-1] / seconds[0]
            report.figures[f"smartspec, acceptance {acceptance:g}, {rate}/s"] = dict(zip(names, seconds, strict=True))
            rows.append(
                [f"{acceptance:g}, {rate}", *(f"{one:.2f}" for one in seconds), f"{ratios[acceptance, rate]:.2f}"]
            )
    table(rows)
    report.bar("smartspec: median latency against none, worst load", 1.0 / min(ratios.values()), 1.02, at_most=True)
    if 1 in rates:
        report.bar("smartspec: times better than none, 1 request/s, acceptance 0.8", ratios[0.8, 1], 2.5)


# --- planet ------------------------------------------------------------------------------------------------------------


def planet(
    report: Report, size: str, only: str = "", others: Sequence[str] | None = None, seconds: int | None = None
) -> None:
    """Geometric mean tokens/s of every policy, or of ours, `none`, `stream` and `others`, in every cell of the grid whose name
    holds `only`; ours against none and the best other."""
    own = Configuration("planet")
    names = list(map(str, own.document["policies"]))
    if others is not None:
        names = [name for name in names if name in (OURS, "none", "stream", *others)]
    published = [name for name in names if name not in (OURS, "stream")]
    print(f"{'costs, drafters, clients, ms':38}{' '.join(f'{name:>12}' for name in names)}  /none  /best", flush=True)
    shares: dict[str, list[float]] = {"none": [], "published": [], "stream": []}
    for labels, changes in _planet_cells(own, size, only, seconds):
        speeds = {name: own.play(name, changes)["geomean_tokens_per_s"] or 0.0 for name in names}
        best = max(published, key=speeds.__getitem__)
        for key, other in (("none", "none"), ("published", best), ("stream", "stream")):
            shares[key].append(speeds[OURS] / speeds[other])
        report.figures[f"planet, {labels}"] = speeds
        print(
            f"{labels:38}{' '.join(f'{speeds[name]:12.1f}' for name in names)}  {shares['none'][-1]:5.3f}  "
            f"{shares['published'][-1]:5.3f} {best}",
            flush=True,
        )
    for key, least, mean in (("none", 0.99, None), ("published", 0.98, 1.10), ("stream", 0.98, None)):
        against = {"none": "none", "published": "the best published-style policy per cell"}.get(key, key)
        report.bar(f"planet: {OURS} against {against}, worst of {len(shares[key])} cells", min(shares[key]), least)
        geometric = math.exp(statistics.fmean(map(math.log, shares[key])))
        if mean is None:
            report.figures[f"planet: geometric mean against {against}"] = geometric
        else:
            report.bar(f"planet: {OURS} against {against}, geometric mean", geometric, mean)
            report.figures[f"planet: cells below 0.98 of {against}"] = sum(one < 0.98 for one in shares[key])


def _planet_cells(
    own: Configuration, size: str, only: str, seconds: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and changes of each cell that is played."""
    named = [one for one in map(_planet_cell, cells(own.document, own.path)) if only in one[0]]
    sized = [one for one in named if size == "full" or _plays(size, *one[1:4])]
    for name, _, clients, _, changes in sized or named:
        if seconds is not None:
            changes |= {"duration": seconds, "warm_up": seconds // 2}
        elif size != "full":
            changes |= {"duration": 12, "warm_up": 6} if clients >= 64 else {"duration": 20, "warm_up": 8}
        yield name, changes


def _planet_cell(cell: Cell) -> tuple[str, str, int, float, dict[str, Any]]:
    """Name, costs, clients, round trip and changes."""
    costs, clients, trip = (cell.labels[key] for key in ("costs", "tiers.edge.count", "tiers.edge.network.round_trip"))
    name = f"{costs}, {cell.labels['drafters']}, {clients}, {trip * 1e3:g}"
    return name, costs, clients, trip, {key: value_at(cell.document, key) for key in PLANET_KEYS}


def _plays(size: str, costs: str, clients: int, trip: float) -> bool:
    if size == "usual":
        return trip in PLANET.get(clients, ())
    return clients == 8 and trip in (0.01, 0.15) and costs in ("8b on a card", "dear tokens")


PLANET_KEYS = (
    "verifiers.gpu.profile",
    "tiers.edge.draft_seconds",
    "tiers.edge.acceptance",
    "tiers.edge.count",
    "tiers.edge.network.round_trip",
)


def value_at(document: Document, key: str) -> Any:
    """The value at a dotted key."""
    found: Any = document
    for part in key.split("."):
        found = found[part]
    return found


# --- DSD ---------------------------------------------------------------------------------------------------------------


def dsd(report: Report, size: str) -> None:
    """Tokens/s of the fleet at both sizes and distances, and how far away target-only is better."""
    names = (OURS, "awc", "fixed:4", "centralized")
    rows = [["drafters, ms: tokens/s", *names, f"{OURS} / fixed:4", f"{OURS} / awc", "tpot p50 ms"]]
    fixed, awc = [], []
    for drafters in (600,) if size == "quick" else (600, 1000):
        own = _dsd(drafters, size)
        for trip in (0.01,) if size == "quick" else (0.01, 0.03):
            found = [own.play(name, _distance(trip)) for name in names]
            speeds = [one["tokens_per_s"] for one in found]
            fixed.append(speeds[0] / speeds[2])
            awc.append(speeds[0] / speeds[1])
            report.figures[f"dsd, {drafters}, {trip * 1e3:g} ms"] = dict(zip(names, speeds, strict=True))
            tpot = " ".join(f"{one['tpot_s']['p50'] * 1e3:.1f}" for one in found)
            rows.append(
                [
                    f"{drafters}, {trip * 1e3:g}",
                    *(f"{one:.0f}" for one in speeds),
                    f"{fixed[-1]:.3f}",
                    f"{awc[-1]:.3f}",
                    tpot,
                ]
            )
    table(rows)
    report.bar(f"dsd: {OURS} against fixed:4, least", min(fixed), 1.15)
    report.bar(f"dsd: {OURS} against awc, least", min(awc), 1.0)
    if size != "quick":
        _crossing(report, size)


def _dsd(drafters: int, size: str) -> Configuration:
    if size == "full":
        return Configuration(f"dsd-{drafters}")
    each = drafters // 2 // SCALE
    fewer = {"tiers__phone__count": each, "tiers__laptop__count": each, "verifiers__target__count": 20 // SCALE}
    return Configuration(f"dsd-{drafters}", duration=12, warm_up=4, **fewer)


def _distance(trip: float) -> dict[str, float]:
    return {f"tiers.{tier}.network.round_trip": trip for tier in ("phone", "laptop")}


def _crossing(report: Report, size: str) -> None:
    """The distance from which on target-only is faster than a fixed length of 4, and than awc, and ours at those."""
    own = _dsd(600, size)
    names = (OURS, "awc", "fixed:4", "centralized")
    rows = [["600 drafters, ms: tokens/s", *names]]
    wins: dict[str, float] = {}
    for trip in (0.01, *FAR):
        speeds = {name: own.play(name, _distance(trip))["tokens_per_s"] for name in names}
        rows.append([f"{trip * 1e3:g}", *(f"{speeds[name]:.0f}" for name in names)])
        for name in names[:3]:
            if speeds[name] < speeds["centralized"]:
                wins.setdefault(name, trip)
    table(rows)
    report.figures["dsd: target-only is faster from, s"] = wins


# --- GoodSpeed ---------------------------------------------------------------------------------------------------------


def goodspeed(report: Report, size: str) -> None:
    """Sum over clients of log tokens/s, in the two published settings."""
    for budget in (16,) if size == "quick" else (16, 20):
        name = f"goodspeed-c{budget}"
        own = Configuration(name) if size == "full" else Configuration(name, duration=60, warm_up=15)
        rows = [[name, "log-utility", "tokens/s", "least", "Jain"]]
        found: dict[str, float] = {}
        speeds: dict[str, float] = {}
        for one in (OURS, f"goodspeed:{budget}", f"barrier:{budget}", "fixed:2", "random"):
            said = own.play(one, {})
            # Every drafter has a text under way all the time, so the geometric mean says the sum of logarithms.
            found[one] = said["clients"] * math.log(said["geomean_tokens_per_s"])
            speeds[one] = said["tokens_per_s"]
            rows.append(
                [
                    one,
                    f"{found[one]:.2f}",
                    f"{speeds[one]:.1f}",
                    f"{said['min_tokens_per_s']:.1f}",
                    f"{said['jain']:.3f}",
                ]
            )
        table(rows)
        print(flush=True)
        report.figures[name] = {"log_utility": found, "tokens_per_s": speeds}
        for other in ("fixed:2", "random"):
            report.bar(f"{name}: log-utility above {other}'s by", found[OURS] - found[other], 0.0)
        barrier = f"barrier:{budget}"
        report.bar(f"{name}: tokens/s, {OURS} against {barrier}", speeds[OURS] / speeds[barrier], 1.0)
        free = speeds[f"goodspeed:{budget}"] / speeds[barrier]
        report.bar(f"{name}: tokens/s, the same split without the barrier", free, 1.0)


SECTIONS: dict[str, Section] = {
    "wisp": wisp,
    "smartspec": smartspec,
    "planet": planet,
    "dsd": dsd,
    "goodspeed": goodspeed,
}

if __name__ == "__main__":
    sys.exit(main())
