"""A real Prometheus scrapes a live fleet under load: every expression that ships says something, and alerts fire."""

from __future__ import annotations

import math
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from specfleet import Client, SpecfleetError
from support.daemons import Daemon, running, start_drafter, start_verifier
from support.pair import DRAFT
from support.prometheus import Prometheus, needs_prometheus, panels, prometheus, promtool, rules, shortened

pytestmark = needs_prometheus

LOAD_SECONDS = 9.0
"""Longer than the window, and than a few scrapes."""
PATIENCE = 60.0
PROMPT = "Once upon a time, there was a little fox who lived"
CLASSES = ("--service-class", "chat:ttft=30,tpot=1", "--service-class", "instant:ttft=0.0001")


@pytest.fixture(scope="module")
def bad_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The draft model with its weights shuffled: it guesses as fast as ever, and always wrong."""
    path = tmp_path_factory.mktemp("bad") / "bad-draft"
    shutil.copytree(DRAFT, path)
    file = path / "model.safetensors"
    content = file.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")  # behind the header's length and the header
    weights = np.frombuffer(content[begin:], dtype=np.uint16)  # bfloat16
    file.write_bytes(content[:begin] + np.random.default_rng(1).permutation(weights).tobytes())
    return path


@pytest.fixture(scope="module")
def daemons(bad_draft: Path) -> Iterator[tuple[Daemon, ...]]:
    """A verifier that draws modes and lengths, two good drafters, and a bad one."""
    with ExitStack() as stack:
        verifier = stack.enter_context(running(start_verifier("--speculation", "random", "--seed", "1", *CLASSES)))
        started = [start_drafter(verifier, "--open-seconds", "1", model=model) for model in (DRAFT, "ngram", bad_draft)]
        yield (verifier, *(stack.enter_context(running(drafter)) for drafter in started))


@pytest.fixture(scope="module")
def server(daemons: tuple[Daemon, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus on all four."""
    verifier, *drafters = (daemon.said("metrics") for daemon in daemons)
    jobs = {"specfleet-verifier": [verifier], "specfleet-drafter": drafters}
    with prometheus(tmp_path_factory.mktemp("prometheus"), jobs) as found:
        yield found


@contextmanager
def load(*drafters: Daemon) -> Iterator[None]:
    """Two streams through each drafter, of all classes, one after another until the block ends."""
    over = threading.Event()

    def run(address: str, number: int) -> None:
        with Client(address, timeout=60) as client:
            while not over.is_set():
                name = ("", "chat", "instant")[number % 3]
                try:
                    client.generate(PROMPT, max_tokens=40, seed=number, service_class=name)
                except SpecfleetError:
                    time.sleep(0.1)  # the class that nobody can keep is refused at times
                number += 1

    threads = [
        threading.Thread(target=run, args=(drafter.address, number)) for number, drafter in enumerate([*drafters] * 2)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


@pytest.fixture(scope="class")
def loaded(daemons: tuple[Daemon, ...], server: Prometheus) -> Iterator[Prometheus]:
    """The good drafters have been busy for a while, and still are."""
    with load(*daemons[1:3]):
        time.sleep(LOAD_SECONDS)
        yield server


def said(server: Prometheus, expression: str) -> list[float]:
    """Values of its series that are numbers."""
    return [value for _, value in server.query(shortened(expression)) if math.isfinite(value)]


def parts(alert: str) -> list[str]:
    """What an alert compares, each comparison as 0 or 1, so that there is an answer while nothing is wrong."""
    found = re.split(r"\band on \(\w+\)|\band\b|\bor\b", alert)
    return [re.sub(r"([<>]=?|==)", r"\1 bool", part) for part in found]


class TestUnderLoad:
    def test_every_expression_says_something(self, loaded: Prometheus) -> None:
        """Of every panel and rule: none fails, none is without a number; the health of rules is good. Errors, refusals and
        losses are no exception: their series are there from the start, at zero."""
        expressions = [expression for _, expression in panels()]
        for rule in rules():
            expressions += [rule["expr"]] if "record" in rule else parts(rule["expr"])
        end = time.monotonic() + PATIENCE  # a busy machine may have ended no generation within the window
        while silent := [one for one in expressions if not said(loaded, one)]:
            assert time.monotonic() < end, "\n".join(silent)
            time.sleep(1.0)
        health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in loaded.rules()}
        assert len(rules()) == len(health)
        assert {("ok", None)} == set(health.values()), health

    def test_what_is_recorded_is_plausible(self, loaded: Prometheus) -> None:
        """Shares are shares, a round has at least its own token, who was promised nothing misses nothing, and a class
        that nobody can keep is refused."""
        for name in ("acceptance:ratio_rate5m", "drafting_wasted:ratio_rate5m", "kv_pages_used:ratio"):
            values = said(loaded, f"specfleet:{name}")
            assert values and all(0.0 <= value <= 1.0 for value in values), (name, values)
        assert all(value >= 1.0 for value in said(loaded, "specfleet:accepted_length:mean_rate5m"))
        assert [0.0] == said(loaded, 'specfleet:slo_miss:ratio_rate5m{slo_class=""}')
        assert [value for value in said(loaded, 'specfleet_verifier_rejected_total{reason="overloaded"}') if value > 0]
        assert all(value > 0.0 for value in said(loaded, "specfleet:speculation_gain:ratio_rate5m"))
        assert "SpecfleetAcceptanceCollapse" not in loaded.firing()


def test_a_bad_drafter_raises_the_alarm(daemons: tuple[Daemon, ...], server: Prometheus, bad_draft: Path) -> None:
    """Once only the bad drafter is in use, its guesses are refused, and the alert on acceptance fires."""
    end = time.monotonic() + PATIENCE
    with load(daemons[3], daemons[3]):
        while "SpecfleetAcceptanceCollapse" not in server.firing():
            assert time.monotonic() < end, (server.firing(), server.query("specfleet:acceptance:ratio_rate5m"))
            time.sleep(0.5)


def test_a_lost_verifier_raises_the_alarm(daemons: tuple[Daemon, ...], server: Prometheus) -> None:
    """It cannot be scraped any more, and what its drafters are asked for fails."""
    verifier, drafter = daemons[:2]
    verifier.stop()
    expected = {"SpecfleetVerifierUnreachable", "SpecfleetGenerationsFail"}
    end = time.monotonic() + PATIENCE
    with load(drafter):
        while not expected <= server.firing():
            assert time.monotonic() < end, server.firing()
            time.sleep(0.5)


def test_the_files_that_ship_are_clean() -> None:
    """promtool: syntax of configuration and rules, and when alerts fire."""
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
