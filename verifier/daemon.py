"""Putting the verifier together: configuration, engine, loop, services; ready; serve; drain; stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from scheduler import Scheduler, SchedulerConfig
from scheduler.step_profile import UNPROFILED, StepProfile
from specfleet.core.config import describe
from specfleet.core.errors import InternalError
from specfleet.core.extras import need
from specfleet.core.signals import stop_requested
from specfleet.core.trace import Tracer
from specfleet.core.types import ModelInfo
from specfleet.http import http_server
from specfleet.observability import log as logs
from specfleet.observability.grpc_server import GrpcServerMetrics
from specfleet.observability.log import say
from specfleet.observability.progress import gauge, loading
from specfleet.observability.registry import serve_metrics
from specfleet.observability.trace import traced
from specfleet.observability.verifier import PREFIX, VerifierGauges, VerifierMetrics
from specfleet.observability.vllm import VllmNames
from specfleet.text import TextGenerator, Tokenizer
from specfleet.wire import generation, verification
from specfleet.wire.auth import caller
from specfleet.wire.server import Server, trusting
from verifier.config import VerifierConfig
from verifier.loop import BatchLoop
from verifier.verifier import Limits, TargetOnly, Verifier
from verifier.watchdog import Watchdog

if TYPE_CHECKING:
    from specfleet.engine import EngineConfig, TorchEngine
    from specfleet.engine.parallel import Ranks

log = logging.getLogger(__name__)


def run(config: VerifierConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    need("torch")
    logs.configure(config.log_level)
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:  # torchrun started several
        from specfleet.engine.parallel import join

        ranks = join(config.device)
        code = _follow(config, ranks) if ranks.rank else uvloop.run(_serve(config, ranks))
        ranks.leave()
        return code
    return uvloop.run(_serve(config, None))


async def _serve(config: VerifierConfig, ranks: Ranks | None) -> int:
    for line in describe(config):
        say(line)
    async with AsyncExitStack() as stack:
        registry = CollectorRegistry()
        guard, certificate = trusting(config)
        calls = GrpcServerMetrics(registry, (verification.SERVICE, generation.SERVICE))
        server = Server((calls,), guard, certificate, insecure=config.insecure)
        address = server.bind(config.listen)
        tracer = traced(registry, PREFIX, time.monotonic) if config.trace else None
        metrics = serve_metrics(registry, config.metrics, stack, tracer)
        http = http_server(config, registry, guard, certificate)
        scheduler = Scheduler(_scheduler_config(config))
        tokenizer = Tokenizer.from_folder(config.model)
        await asyncio.sleep(0)  # Ctrl-C that came until now
        with loading(config.model) as relabel:
            engine = _engine(config, tracer, ranks, relabel)
            stack.callback(engine.shutdown)
            engine.warm_up()
        observer = VerifierMetrics(registry, ("", *(one.name for one in config.service_class)))
        if config.vllm_metrics:
            registry.register(VllmNames(observer, config.name or Path(config.model).name))
        loop = BatchLoop(engine, scheduler, time.monotonic, observer, tracer)
        registry.register(VerifierGauges(_Gauges(loop, engine, scheduler)))
        verifier = _verifier(config, loop, engine, tokenizer, address, observer, tracer)
        server.add_verification(verifier, tracer)
        generator = TextGenerator(TargetOnly(verifier, caller), tokenizer)
        server.add_generation(generator)
        await server.start()
        await http.start(generator, tokenizer.piece)

        async def ready(now: bool) -> None:
            await server.ready(now)
            await http.ready(now)

        batches = asyncio.create_task(loop.run())
        watchdog = Watchdog(loop, verifier, ready, config.step_seconds_limit)
        watching = asyncio.create_task(watchdog.run())
        stack.callback(watching.cancel)
        stop = stop_requested()
        await ready(True)
        say(f"ready verifier grpc={address} http={http.address} metrics={metrics} model={verifier.model().name}")
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({stopped, batches}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        await asyncio.gather(server.drain(config.drain_seconds), http.drain(config.drain_seconds))
        if batches in done:
            batches.result()
            raise InternalError("the batch loop ended")
        batches.cancel()
        await asyncio.gather(batches, return_exceptions=True)
    return 0


def _engine(
    config: VerifierConfig, tracer: Tracer | None, ranks: Ranks | None, relabel: Callable[[str], None]
) -> TorchEngine:
    # Imported here: torch takes seconds, and whatever else can be wrong is said before.
    from specfleet.engine import TorchEngine

    def captured(done: int, total: int) -> None:
        relabel(f"capturing CUDA graphs {gauge(done / total)}")

    return TorchEngine(_engine_config(config, ranks), tracer=tracer, progress=captured, ranks=ranks)


def _engine_config(config: VerifierConfig, ranks: Ranks | None) -> EngineConfig:
    from specfleet.engine import EngineConfig

    return EngineConfig(
        model=config.model,
        device=ranks.device if ranks else config.device,
        dtype=config.dtype,
        kv_cache_tokens=config.kv_cache_tokens,
        threads=config.threads or max(1, (os.cpu_count() or 2) // 2),
        seed=config.seed,
        deterministic=config.deterministic,
        graphs=None if config.cuda_graphs else False,
    )


def _follow(config: VerifierConfig, ranks: Ranks) -> int:
    """All that ranks other than 0 do: their share of each step, until rank 0 has drained and says so."""
    from specfleet.engine.leader import follow
    from specfleet.engine.worker import Worker

    for number in (signal.SIGTERM, signal.SIGINT):  # meant for rank 0, which drains
        signal.signal(number, signal.SIG_IGN)
    follow(Worker(_engine_config(config, ranks), ranks=ranks), ranks)
    return 0


def _scheduler_config(config: VerifierConfig) -> SchedulerConfig:
    return SchedulerConfig(
        speculation=config.speculation,
        batching=config.batching,
        max_step_tokens=config.max_step_tokens,
        profile=StepProfile.load(config.profile) if config.profile else UNPROFILED,
        draft_wait_seconds=config.draft_wait_seconds,
        classes=config.service_class,
        shares={one.identity: one.share for one in config.share},
        seed=config.seed if config.seed is not None else int.from_bytes(os.urandom(4), "little"),
    )


def _verifier(
    config: VerifierConfig,
    loop: BatchLoop,
    engine: TorchEngine,
    tokenizer: Tokenizer,
    address: str,
    observer: VerifierMetrics,
    tracer: Tracer | None,
) -> Verifier:
    vocabulary = tokenizer.vocabulary()
    model = ModelInfo(
        name=config.name or Path(config.model).name,
        vocabulary_size=engine.model.vocabulary_size,
        vocabulary_digest=vocabulary.digest(),
        context_length=engine.model.context_length,
        eos_token_ids=engine.model.eos_token_ids,
        software=f"specfleet {metadata.version('specfleet')}",
        policy=config.speculation,
        service_classes=config.service_class,
    )
    limits = Limits(
        max_sessions=config.max_sessions,
        idle_seconds=config.idle_seconds,
        kv_tokens=engine.total_pages * engine.page_size,
    )
    return Verifier(loop, model, vocabulary, tokenizer.files(), limits, address, observer, tracer)


class _Gauges:
    """What the loop and the engine know at the moment of a scrape."""

    def __init__(self, loop: BatchLoop, engine: TorchEngine, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._engine = engine

    def sessions(self) -> dict[str, int]:
        prefilling = self._loop.prefilling
        return {"prefill": prefilling, "generate": self._loop.sessions - prefilling}

    def queue(self) -> dict[str, int]:
        return {"prefill": self._loop.prefilling}

    def kv_pages(self) -> dict[str, int]:
        free, cached = self._engine.free_pages, self._engine.cached_pages
        return {"used": self._engine.used_pages, "cached": cached, "free": free - cached}

    def evictions(self) -> dict[str, int]:
        return {"preempted": self._loop.preemptions, "cache": self._engine.page_counters.evictions}

    def price(self) -> float:
        return self._scheduler.price

    def fairness(self) -> float:
        return self._scheduler.fairness

    def prefix_cache(self) -> tuple[int, int]:
        counters = self._engine.page_counters
        return counters.prefix_queries, counters.prefix_hits
