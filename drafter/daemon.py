"""Putting a drafter together: configuration, connection, speculator, services; ready; serve; drain; stop."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import numpy as np
import uvloop
from prometheus_client import CollectorRegistry

from drafter.batcher import DraftBatcher
from drafter.config import NGRAM, DrafterConfig
from drafter.early_stop import EarlyStop, state_file
from drafter.resume import Patience
from drafter.router import Router
from drafter.source import Drafter
from drafter.speculators import Speculator
from drafter.speculators.hybrid import Hybrid
from drafter.speculators.model import Model
from drafter.speculators.ngram import Ngram
from scheduler import routing
from specfleet.core.config import describe
from specfleet.core.extras import need
from specfleet.core.protocol import MAX_DRAFT_TOKENS
from specfleet.core.signals import stop_requested
from specfleet.http import http_server
from specfleet.observability import log as logs
from specfleet.observability.drafter import PREFIX, DrafterMetrics
from specfleet.observability.grpc_server import GrpcServerMetrics
from specfleet.observability.log import say
from specfleet.observability.progress import loading, waiting
from specfleet.observability.registry import serve_metrics
from specfleet.observability.trace import traced
from specfleet.text import TextGenerator, Tokenizer
from specfleet.wire import generation
from specfleet.wire.credentials import Credentials, token_file
from specfleet.wire.server import Server, trusting
from specfleet.wire.tls import watched_tls
from specfleet.wire.verification import GrpcVerifierConnection

if TYPE_CHECKING:
    from specfleet.engine import TorchEngine

log = logging.getLogger(__name__)


def run(config: DrafterConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    if config.model != NGRAM:
        need("torch")
    logs.configure(config.log_level)
    return uvloop.run(_serve(config))


async def _serve(config: DrafterConfig) -> int:
    for line in describe(config):
        say(line)
    async with AsyncExitStack() as stack:
        registry = CollectorRegistry()
        observer = DrafterMetrics(registry)
        guard, certificate = trusting(config)
        calls = GrpcServerMetrics(registry, (generation.SERVICE,))
        server = Server((calls,), guard, certificate, insecure=config.insecure)
        address = server.bind(config.listen)
        tracer = traced(registry, PREFIX, time.monotonic) if config.trace else None
        metrics = serve_metrics(registry, config.metrics, stack, tracer)
        http = http_server(config, registry, guard, certificate)
        credentials = Credentials(
            token_file(config.verifier_token),
            watched_tls(config.verifier_ca, config.verifier_cert, config.verifier_key),
            config.insecure,
        )
        connections = [GrpcVerifierConnection(target, credentials, tracer) for target in config.verifier]
        policy = routing.build(config.routing, np.random.default_rng())
        router = Router(connections, policy, time.monotonic, observer)
        stack.push_async_callback(router.close)
        # A model is loaded while nothing else needs the loop; verifiers are asked only for what they alone know.
        tokenizer = None if config.model == NGRAM else Tokenizer.from_folder(config.model)
        with waiting(f"waiting for {router.target}"):
            await router.reach(config.connect_seconds)
        tokenizer = tokenizer or Tokenizer.from_files(await router.tokenizer_files())
        model = await router.agree(tokenizer.vocabulary())
        speculator = _speculator(config, stack)
        patience = Patience(open=config.open_seconds, resume=config.resume_seconds)
        early = _early_stop(config, model.name, stack) if config.early_stop else None
        drafter = Drafter(
            router,
            speculator,
            tokenizer.vocabulary(),
            time.monotonic,
            observer,
            patience,
            ahead=config.ahead,
            early=early,
            tracer=tracer,
            trees=config.trees,
            max_draft=config.max_draft or MAX_DRAFT_TOKENS,
        )
        generator = TextGenerator(drafter, tokenizer, drafter=config.name or address)
        server.add_generation(generator)
        await server.start()
        await http.start(generator, tokenizer.piece, page=True)
        stop = stop_requested()
        await server.ready(True)
        await http.ready(True)
        say(
            f"ready drafter grpc={address} http={http.address} metrics={metrics} speculator={speculator.name} "
            f"verifier={router.target} target={model.name}"
        )
        await stop.wait()
        await asyncio.gather(server.drain(config.drain_seconds), http.drain(config.drain_seconds))
    return 0


def _early_stop(config: DrafterConfig, target: str, stack: AsyncExitStack) -> EarlyStop:
    """What is known of this pair's guesses, saved when the daemon ends."""
    if config.state is None:
        return EarlyStop()
    path = state_file(config.state, config.model, target)
    early = EarlyStop.load(path)

    def save() -> None:
        try:
            early.save(path)
        except OSError as error:
            log.warning("what was learnt of guesses cannot be saved", extra={"path": str(path), "error": str(error)})

    stack.callback(save)
    return early


def _speculator(config: DrafterConfig, stack: AsyncExitStack) -> Speculator:
    if config.model == NGRAM:
        return Ngram()
    with loading(config.model):
        engine = _engine(config)
        stack.callback(engine.shutdown)
        engine.warm_up()
    batcher = DraftBatcher(
        engine, measure=config.early_stop, runners_up=config.trees or (config.ahead and config.early_stop)
    )
    task = asyncio.create_task(batcher.run())
    task.add_done_callback(_batcher_ended)
    stack.callback(task.cancel)
    model = Model(batcher, engine.model.context_length)
    return Hybrid(model) if config.speculator == "hybrid" else model


def _engine(config: DrafterConfig) -> TorchEngine:
    # Imported here: an n-gram drafter needs no torch, neither installed nor in memory.
    from specfleet.engine import EngineConfig, TorchEngine

    return TorchEngine(
        EngineConfig(
            model=config.model,
            device=config.device,
            dtype=config.dtype,
            kv_cache_tokens=config.kv_cache_tokens,
            threads=config.threads or None,
            quantize=None if config.quantize == "none" else config.quantize,
        )
    )


def _batcher_ended(task: asyncio.Task[None]) -> None:
    """The batcher runs as long as the daemon; without it no draft is ever answered."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("draft batcher ended", exc_info=task.exception())
