"""`specfleet demo`: a whole fleet on this machine, a streamed completion, and what speculation was worth.

One verifier and two drafters with the shipped pair, on free ports of the loopback interface. The figures compare the same
prompts with and without drafting, and sent straight to the verifier, in turns, in this one run.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click

from specfleet.cli.processes import DaemonProcess
from specfleet.cli.speculation import coloured, legend
from specfleet.client import AsyncClient, Client, Reply
from specfleet.core.errors import ConfigurationError, InternalError

PROMPTS = (
    "Once upon a time, there was a little fox who lived",
    "After the storm the sailors found",
    "Question: A train has 6 cars with 40 seats each. If 100 seats are taken, how many seats are free?\nAnswer:",
    "def is_prime(n):",
)
"""Our own, from the kinds of text that the tiny pair was trained on."""
LOOPBACK = "127.0.0.1:0"
READY_SECONDS = 120.0
LONGER = 3
"""Completions of eight streams are so many times as long."""
DEFINITIONS = """tokens/s: output tokens over the time from send to last token. target-only: through the same drafters, told
not to draft. straight: from the verifier itself. All share this machine's processors, which drafters usually do not.
acceptance: accepted / drafted and verified."""


@dataclass(frozen=True, slots=True)
class Fleet:
    verifier: DaemonProcess
    drafters: tuple[DaemonProcess, ...]


@click.command("demo")
@click.option("--prompt", default=PROMPTS[0], show_default=True, metavar="TEXT", help="What to go on from.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=48,
    show_default=True,
    metavar="N",
    help="Length of each completion.",
)
@click.option("--speculation", default="fair-goodput", show_default=True, metavar="POLICY", help="Speculation policy.")
@click.option("--models", type=click.Path(path_type=Path), help="Folder with tiny-target and tiny-draft.")
@click.option("--stay", is_flag=True, help="Leave the fleet running, with Prometheus where it is installed.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object on the last line.")
def command(prompt: str, max_tokens: int, speculation: str, models: Path | None, stay: bool, as_json: bool) -> None:
    """Start a fleet here, stream a completion, compare with the target alone, stop everything.

    \b
    specfleet demo
    specfleet demo --prompt "The dragon said" --speculation stream
    specfleet demo --stay            # leave it running; Ctrl-C stops it
    """
    folder = _models(models)
    if not prompt:
        raise click.UsageError("--prompt is empty; give some text to go on from")
    with ExitStack() as stack:
        click.echo("starting one verifier and two drafters …", nl=False)
        began = time.monotonic()
        fleet = _start(stack, folder, speculation)
        click.echo(f" ready after {time.monotonic() - began:.1f} s")
        _stream(fleet, prompt, max_tokens)
        figures = asyncio.run(_measure(fleet, max_tokens))
        _table(figures)
        if as_json:
            click.echo(json.dumps(figures))
        if stay:
            _stay(stack, fleet)


def _models(folder: Path | None) -> Path:
    """Where the shipped pair lies: beside the packages in a checkout."""
    found = folder or Path(__file__).resolve().parents[2] / "models"
    for name in ("tiny-target", "tiny-draft"):
        if not (found / name / "config.json").exists():
            raise ConfigurationError(f"no model in {found / name}; run from a checkout, or say --models FOLDER")
    return found


def _start(stack: ExitStack, models: Path, speculation: str) -> Fleet:
    def daemon(*arguments: str) -> DaemonProcess:
        where = ("--listen", LOOPBACK, "--http", LOOPBACK, "--metrics", LOOPBACK)
        return stack.enter_context(DaemonProcess(*arguments, *where))

    verifier = daemon("verifier", "--model", str(models / "tiny-target"), "--speculation", speculation)
    verifier.wait_ready(READY_SECONDS)
    common = ("drafter", "--model", str(models / "tiny-draft"), "--verifier", verifier.address)
    drafters = tuple(daemon(*common, "--name", name) for name in ("drafter-a", "drafter-b"))
    for drafter in drafters:
        drafter.wait_ready(READY_SECONDS)
    return Fleet(verifier, drafters)


def _stream(fleet: Fleet, prompt: str, max_tokens: int) -> None:
    """One completion as it arrives, coloured by where its tokens came from."""
    click.echo(f"\n{click.style(prompt, bold=True)}", nl=False)
    with Client(fleet.drafters[0].address) as client:
        stream = client.stream(prompt, max_tokens=max_tokens, temperature=0.0)
        with stream:
            for event in stream:
                click.echo(coloured(event), nl=False)
    click.echo(f"\n\n({legend()} tokens; the text is exactly the target's own)")


class Way(Enum):
    """How a prompt is served."""

    DRAFTING = "drafting"
    TARGET_ONLY = "target-only"
    """Through the drafters, which only pass on what the verifier decodes."""
    STRAIGHT = "straight"
    """By the verifier, with nobody between."""


async def _measure(fleet: Fleet, max_tokens: int) -> dict[str, Any]:
    """The same prompts in every way, in turns; then all at once, in turns there and back, so that nobody is always first on
    a cold fleet. Those are longer: a policy that has to find out what pays needs a moment for it, as it would in service."""
    one: dict[Way, list[Reply]] = {way: [] for way in Way}
    many: dict[Way, list[Reply]] = {way: [] for way in Way}
    seconds = dict.fromkeys(Way, 0.0)
    together = list(PROMPTS) * 2
    there_and_back = (*Way, *reversed(Way))
    with click.progressbar(length=len(PROMPTS) + len(there_and_back), label="measuring", file=sys.stderr) as bar:
        for number, prompt in enumerate(PROMPTS):
            for way in Way:
                one[way] += await _run(fleet, way, [prompt], max_tokens, first=number)
            bar.update(1)
        for way in there_and_back:
            start = time.monotonic()
            many[way] += await _run(fleet, way, together, LONGER * max_tokens)
            seconds[way] += time.monotonic() - start
            bar.update(1)
    for replies in (one, many):
        texts = [[reply.token_ids for reply in replies[way]] for way in Way]
        if texts[1:] != texts[:-1]:
            raise InternalError("the texts with and without speculation differ; please report this as a bug")
    return {
        "one_stream": _figures(one[Way.DRAFTING], {way: _speed(one[way]) for way in Way}),
        "eight_streams": _figures(many[Way.DRAFTING], {way: _total(many[way]) / seconds[way] for way in Way}),
    }


async def _run(fleet: Fleet, way: Way, prompts: Sequence[str], max_tokens: int, first: int = 0) -> list[Reply]:
    """All prompts at once, spread over the servers from the `first` on."""
    servers = [fleet.verifier] if way is Way.STRAIGHT else fleet.drafters
    clients = [AsyncClient(server.address) for server in servers]
    try:
        return await asyncio.gather(
            *(
                clients[number % len(clients)].generate(
                    prompt, max_tokens=max_tokens, temperature=0.0, target_only=way is Way.TARGET_ONLY
                )
                for number, prompt in enumerate(prompts, first)
            )
        )
    finally:
        for client in clients:
            await client.close()


def _total(replies: Sequence[Reply]) -> int:
    return sum(len(reply.token_ids) for reply in replies)


def _speed(replies: Sequence[Reply]) -> float:
    """Median tokens per second of single streams."""
    return statistics.median(len(reply.token_ids) / reply.timing.total_s for reply in replies)


def _figures(replies: Sequence[Reply], speeds: Mapping[Way, float]) -> dict[str, Any]:
    rounds = sum(reply.speculation.rounds for reply in replies)
    drafted = sum(reply.speculation.drafted for reply in replies)
    accepted = sum(reply.speculation.accepted for reply in replies)
    lengths = [length for reply in replies for length in reply.speculation.lengths]
    return {
        "tokens_per_s": speeds[Way.DRAFTING],
        "target_only_tokens_per_s": speeds[Way.TARGET_ONLY],
        "ratio": speeds[Way.DRAFTING] / speeds[Way.TARGET_ONLY],
        "straight_tokens_per_s": speeds[Way.STRAIGHT],
        "acceptance_rate": accepted / drafted if drafted else None,
        "mean_accepted_length": 1 + accepted / rounds if rounds else None,
        "mean_length": statistics.fmean(lengths) if lengths else 0.0,
        "max_length": max(lengths, default=0),
    }


def _table(figures: dict[str, Any]) -> None:
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    click.echo(
        f"\n{'':14}{'tokens/s':>10}{'target-only':>13}{'ratio':>8}{'straight':>10}{'acceptance':>12}{'accepted len':>14}"
        f"{'drafted len':>13}"
    )
    for name, row in figures.items():
        click.echo(
            f"{name.replace('_', ' '):14}{row['tokens_per_s']:>10.1f}{row['target_only_tokens_per_s']:>13.1f}"
            f"{row['ratio']:>7.2f}x{row['straight_tokens_per_s']:>10.1f}{cell(row['acceptance_rate'], '.2f'):>12}"
            f"{cell(row['mean_accepted_length'], '.2f'):>14}{row['mean_length']:>13.2f}"
        )
    click.echo(DEFINITIONS)


def _stay(stack: ExitStack, fleet: Fleet) -> None:
    """Until Ctrl-C."""
    click.echo(f"\nverifier {fleet.verifier.address}, metrics http://{fleet.verifier.said('metrics')}/metrics")
    for drafter in fleet.drafters:
        click.echo(f"drafter  {drafter.address}, metrics http://{drafter.said('metrics')}/metrics")
        click.echo(
            f"         a page to try it: http://{drafter.said('http')}/, for OpenAI clients: http://{drafter.said('http')}/v1"
        )
    click.echo(f'\nspecfleet generate "Once upon a time" --server {fleet.drafters[0].address}')
    _prometheus(stack, fleet)
    click.echo("Ctrl-C stops it.")
    while all(daemon.process.poll() is None for daemon in (fleet.verifier, *fleet.drafters)):
        time.sleep(0.5)
    raise ConfigurationError("a daemon of the fleet has ended")


def _prometheus(stack: ExitStack, fleet: Fleet) -> None:
    """Scrape the fleet, where Prometheus is installed, under the names that deploy/prometheus and the dashboards know."""
    program = shutil.which("prometheus")
    if program is None:
        click.echo("Prometheus is not installed here; the metrics above are plain HTTP")
        return
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    jobs = [
        {
            "job_name": f"specfleet-{kind}",
            "static_configs": [{"targets": [daemon.said("metrics") for daemon in daemons]}],
        }
        for kind, daemons in (("verifier", (fleet.verifier,)), ("drafter", fleet.drafters))
    ]
    rules = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules" / "*.yml"
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(rules)],
        "scrape_configs": jobs,
    }
    # JSON is YAML. Rules lie beside the packages in a checkout; elsewhere the pattern finds none.
    (folder / "prometheus.yml").write_text(json.dumps(config))
    arguments = ["--config.file", f"{folder}/prometheus.yml", "--storage.tsdb.path", f"{folder}/data"]
    process = subprocess.Popen(
        [program, *arguments, "--web.listen-address", "127.0.0.1:9090"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    click.echo("Prometheus: http://127.0.0.1:9090")
