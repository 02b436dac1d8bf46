"""`specfleet profile`: what a step of this model takes on this machine, in a file for the scheduler and the simulator."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from specfleet.bench.prompts import read_prompts
from specfleet.cli import profile_acceptance as acceptance
from specfleet.cli.completion import files
from specfleet.cli.demo import PROMPTS
from specfleet.cli.profile_acceptance import Against
from specfleet.cli.table import table
from specfleet.core.errors import ConfigurationError
from specfleet.core.extras import need
from specfleet.observability.progress import loading

if TYPE_CHECKING:
    from specfleet.engine import TorchEngine
    from specfleet.profiling.design import Point
    from specfleet.profiling.measure import Subject

STEP_FILE, DRAFT_FILE = "step-profile.json", "draft-profile.json"
BAR_STEPS = 1000

FILE = click.Path(path_type=Path, dir_okay=False, exists=True)

T = TypeVar("T")
Measure = Callable[["Subject", float, Callable[[], float], Callable[[float], None]], Awaitable[dict[T, float]]]


@dataclass(frozen=True, slots=True)
class Settings:
    """The flags."""

    model: str
    device: str
    dtype: str
    threads: int
    out: Path
    seconds: float
    quantize: str | None
    """Of a draft model."""
    against: Against | None


@click.command("profile")
@click.option(
    "--model", required=True, metavar="PATH_OR_HUB_ID", shell_complete=files, help="Model to measure.  [required]"
)
@click.option("--drafter", is_flag=True, help="Measure how fast it drafts instead of how long its steps take.")
@click.option("--device", default="cpu", show_default=True, metavar="TEXT", help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Number format; auto is float32 on the CPU and the model's own on a GPU.",
)
@click.option(
    "--quantize",
    type=click.Choice(["auto", "int8", "int4", "none"]),
    metavar="WIDTH",
    help="With --drafter: auto, int8, int4 or none, as of the drafter.  [default: auto]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads.  [default: the daemon's own: half of the cores; 1 with --drafter]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help=f"Where to write the profile.  [default: {STEP_FILE}; {DRAFT_FILE} with --drafter]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="N",
    help="Time for measuring, loading not counted; a slow model takes longer.",
)
@click.option(
    "--verifier",
    metavar="HOST:PORT",
    help="With --drafter: measure acceptance against this verifier's texts, and say which length of draft pays most.",
)
@click.option(
    "--prompts",
    type=FILE,
    metavar="FILE.jsonl",
    help='Texts to have continued, as {"prompt": …} lines.  [default: ours]',
)
@click.option(
    "--step-profile",
    type=FILE,
    metavar="FILE",
    help="Profile of the verifier, for what verifying each token costs; without one that is taken to be free.",
)
@click.option("--verifier-ca", type=FILE, metavar="FILE", help="Authority of the verifier's certificate (PEM).")
@click.option("--verifier-token", type=FILE, metavar="FILE", help="File that holds the bearer token for it.")
@click.option("--insecure", is_flag=True, help="Plaintext to another machine is meant.")
def command(
    drafter: bool,
    out: Path | None,
    threads: int | None,
    quantize: str | None,
    verifier: str | None,
    prompts: Path | None,
    step_profile: Path | None,
    verifier_ca: Path | None,
    verifier_token: Path | None,
    insecure: bool,
    **flags: Any,
) -> None:
    """Measure a model's steps on this machine and write a profile.

    \b
    specfleet profile --model models/tiny-target --out target.json
    specfleet verifier --model models/tiny-target --profile target.json
    specfleet profile --model models/tiny-draft --drafter
    specfleet profile --model models/tiny-draft --drafter --verifier 127.0.0.1:7600

    Nothing else should be busy meanwhile: the verifier corrects a profile while it serves, the simulator believes it.
    """
    for module in ("torch", "scipy"):
        need(module)
    from drafter.config import NGRAM
    from scheduler.step_profile import StepProfile

    if flags["model"] == NGRAM:
        raise click.UsageError("--model ngram is no model: looking up takes no step that could be measured")
    if verifier and not drafter:
        raise click.UsageError("--verifier is asked about a draft model's guesses; add --drafter")
    if quantize and not drafter:
        raise click.UsageError("--quantize is for models that only draft; add --drafter")
    if prompts and not verifier:
        raise click.UsageError("--prompts are continued by a verifier; add --verifier HOST:PORT")
    against = None
    if verifier:
        profiled = StepProfile.load(step_profile) if step_profile else None
        texts = read_prompts(prompts) if prompts else PROMPTS
        against = Against(verifier, texts, profiled, verifier_ca, verifier_token, insecure)
    settings = Settings(
        threads=threads or (1 if drafter else max(1, (os.cpu_count() or 2) // 2)),
        quantize=(None if quantize == "none" else quantize or "auto") if drafter else None,
        out=_writable(out or Path(DRAFT_FILE if drafter else STEP_FILE)),
        against=against,
        **flags,
    )
    (_drafting if drafter else _steps)(settings)


def _steps(settings: Settings) -> None:
    from specfleet.profiling.fit import fit, mean_error
    from specfleet.profiling.measure import measure_steps

    with _engine(settings) as engine:
        measured, source = _measured(engine, settings, measure_steps), _source(settings, engine)
    shapes = {point.shape: seconds for point, seconds in measured.items()}
    profile = fit(shapes, source)
    profile.save(settings.out)
    click.echo(_step_table(measured, _features(measured) @ profile.coefficients))
    click.echo(
        f"\nT = {profile.fixed * 1e3:.3g} ms + {profile.per_token * 1e6:.3g} µs per token "
        f"+ {profile.per_cached * 1e6:.3g} µs per cached token + {profile.per_pair * 1e6:.3g} µs per pair"
    )
    click.echo(f"mean absolute percentage error {mean_error(profile, shapes):.1%} over {len(measured)} shapes of steps")
    _said(settings, source)


def _drafting(settings: Settings) -> None:
    from scheduler.draft_time import DraftProfile
    from specfleet.profiling.measure import measure_drafting

    against = settings.against
    with _engine(settings) as engine:
        found = acceptance.measure(against, settings.model, engine) if against else None
        measured = _measured(engine, settings, measure_drafting)
        source = _source(settings, engine)
    profile = DraftProfile(tuple(measured), tuple(measured.values()), source)
    rows = [
        (str(batch), f"{seconds * 1e3:.3f}", f"{batch / seconds:.1f}", f"{seconds / measured[1]:.2f}x")
        for batch, seconds in measured.items()
    ]
    click.echo(table(("drafting together", "ms per token", "tokens/s in all", "of one alone"), rows))
    if against and found:
        profile = acceptance.report(against, found, profile)
    profile.save(settings.out)
    _said(settings, source)


@contextmanager
def _engine(settings: Settings) -> Iterator[TorchEngine]:
    with loading(settings.model):
        from specfleet.engine import EngineConfig, TorchEngine
        from specfleet.profiling.measure import kv_cache_tokens

        engine = TorchEngine(
            EngineConfig(
                model=settings.model,
                device=settings.device,
                dtype=settings.dtype,
                kv_cache_tokens=kv_cache_tokens(),
                threads=settings.threads,
                quantize=settings.quantize,
            )
        )
    try:
        yield engine
    finally:
        engine.shutdown()


def _measured(engine: TorchEngine, settings: Settings, measure: Measure[T]) -> dict[T, float]:
    """Medians."""
    from specfleet.profiling.measure import Subject

    subject = Subject(engine, engine.model.context_length, engine.model.vocabulary_size)
    with _bar() as progress:
        return asyncio.run(_awaited(measure(subject, settings.seconds, time.perf_counter, progress)))


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """A progress bar that is told the share of the work that is done; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=BAR_STEPS, label="measuring", file=sys.stderr) as bar:
        yield lambda share: bar.update(max(0, int(share * BAR_STEPS) - bar.pos))


async def _awaited(result: Awaitable[T]) -> T:
    return await result


def _source(settings: Settings, engine: TorchEngine) -> str:
    """Machine, model and date: what somebody needs who wonders whether this profile is theirs."""
    from specfleet.engine.device import device_name

    dtype = engine.model.bits or str(engine.model.dtype).removeprefix("torch.")
    model = Path(settings.model).name
    day = datetime.now(UTC).date().isoformat()
    return f"{device_name(engine.model.device)}; {model} in {dtype}; measured {day} for {settings.seconds:g} s"


def _features(measured: dict[Point, float]) -> Any:
    import numpy as np

    return np.array([point.shape.features for point in measured])


def _step_table(measured: dict[Point, float], fitted: Any) -> str:
    rows = []
    for (point, seconds), guess in sorted(zip(measured.items(), fitted, strict=True), key=lambda row: row[0][1]):
        new, context = zip(*point.sequences, strict=True)
        rows.append(
            (
                str(len(point.sequences)),
                _range(new),
                _range(context),
                f"{seconds * 1e3:.3f}",
                f"{guess * 1e3:.3f}",
                f"{guess / seconds - 1.0:+.1%}",
            )
        )
    return table(("sequences", "new tokens each", "context", "measured ms", "fitted ms", "error"), rows)


def _range(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}–{max(values)}"


def _writable(out: Path) -> Path:
    """Said before a minute of measuring, not after it. Raises ConfigurationError."""
    folder = out.absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"--out is {out}, but there is no folder {folder}; create it or choose another file")
    if not os.access(out if out.exists() else folder, os.W_OK):
        raise ConfigurationError(f"--out is {out}, which cannot be written; choose another file")
    return out


def _said(settings: Settings, source: str) -> None:
    click.echo(f"{source}\nwritten to {settings.out}")
