"""Who writes the same text on the same pair: transformers in this process, a fleet of daemons, and llama.cpp where it is
installed. What `single_stream.py` and `peers.py` compare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import progress
from specfleet import AsyncClient, Client, Reply, SamplingParams
from specfleet.cli.processes import DaemonProcess

Texts = list[tuple[int, ...]]


class Transformers:
    """transformers on the pair and prompts, in this process: each method writes all texts once and returns tokens/s."""

    def __init__(self, target: Path, draft: Path, tokens: int, prompts: tuple[str, ...]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._target: Any = AutoModelForCausalLM.from_pretrained(target, dtype="float32")
        self._draft: Any = AutoModelForCausalLM.from_pretrained(draft, dtype="float32")
        self._draft.generation_config.num_assistant_tokens = 5
        self._tokenizer: Any = AutoTokenizer.from_pretrained(target)
        self.tokens = tokens
        self.prompts = prompts
        self.texts: Texts = []
        """What `generate` wrote: what everybody has to write."""
        self.others: dict[str, Texts] = {}
        """What the other ways wrote. Padding and larger products round differently, so near-ties may flip there."""

    @property
    def ids(self) -> list[list[int]]:
        return [self._tokenizer(prompt)["input_ids"] for prompt in self.prompts]

    @property
    def eos(self) -> int:
        """The id that ends a text."""
        found = self._target.generation_config.eos_token_id
        return int(found[0] if isinstance(found, list) else found)

    def generate(self) -> float:
        return self._one_by_one("generate", {})

    def assisted(self) -> float:
        return self._one_by_one("assisted generation", {"assistant_model": self._draft})

    def static_batch(self) -> float:
        """All prompts in one padded `generate`, which ends when the longest text does."""
        self._tokenizer.padding_side = "left"
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.convert_ids_to_tokens(0)
        inputs = self._tokenizer(list(self.prompts), return_tensors="pt", padding=True)
        start = time.perf_counter()
        output = self._target.generate(**inputs, **self._options())
        seconds = time.perf_counter() - start
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        self.others["padded generate"] = [self._ended(row) for row in rows]
        return sum(map(len, self.others["padded generate"])) / seconds

    def continuous_batch(self) -> float:
        """All prompts through transformers' continuous batching."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self._continuous = getattr(self, "_continuous", None) or ContinuousBatchingConfig(
            page_size=32, num_blocks=512, max_batch_tokens=512
        )
        config = GenerationConfig(
            do_sample=False, max_new_tokens=self.tokens, eos_token_id=self._target.generation_config.eos_token_id
        )
        start = time.perf_counter()
        found = self._target.generate_batch(
            self.ids, generation_config=config, continuous_batching_config=self._continuous, persistent_manager=True
        )
        seconds = time.perf_counter() - start
        texts = [tuple(one.generated_tokens) for one in found.values()]
        if len(texts) < len(self.prompts):
            raise RuntimeError(f"{len(texts)} of {len(self.prompts)} texts came")
        self.others["continuous batching"] = texts
        return sum(map(len, texts)) / seconds

    def close(self) -> None:
        if hasattr(self, "_continuous"):
            self._target.destroy_cached_continuous_batching_manager()

    def _one_by_one(self, name: str, options: dict[str, Any]) -> float:
        texts, seconds = [], 0.0
        for prompt in self.prompts:
            inputs = self._tokenizer(prompt, return_tensors="pt")
            start = time.perf_counter()
            output = self._target.generate(**inputs, **self._options(), **options)
            seconds += time.perf_counter() - start
            texts.append(tuple(output[0, inputs["input_ids"].shape[1] :].tolist()))
        if name == "generate":
            self.texts = texts
        self.others[name] = texts
        return sum(map(len, texts)) / seconds

    def _options(self) -> dict[str, Any]:
        return {"do_sample": False, "max_new_tokens": self.tokens, "pad_token_id": 0}

    def _ended(self, row: Sequence[int]) -> tuple[int, ...]:
        """Without what pads a text that ended sooner than others."""
        end = next((at + 1 for at, token in enumerate(row) if token == self.eos), len(row))
        return tuple(row[:end])


class Fleet:
    """A verifier and drafters as daemons on loopback; streams are spread over the drafters."""

    def __init__(
        self,
        stack: ExitStack,
        target: Path,
        draft: Path,
        policy: str,
        prompts: tuple[str, ...],
        tokens: int,
        streams: int,
        drafters: int = 1,
    ) -> None:
        self.policy = policy

        def daemon(*options: str) -> DaemonProcess:
            process = stack.enter_context(
                DaemonProcess(*options, "--listen", "127.0.0.1:0", "--http", "", "--metrics", "")
            )
            process.wait_ready(120)
            return process

        progress(f"starting the fleet of {policy}")
        verifier = daemon("verifier", "--model", str(target), "--speculation", policy)
        self._addresses = [
            daemon("drafter", "--model", str(draft), "--verifier", verifier.address).address for _ in range(drafters)
        ]
        self._prompts = prompts
        self._many = [prompts[n % len(prompts)] for n in range(streams)]
        self._sampling = SamplingParams(max_tokens=tokens, temperature=0.0)
        self.texts: Texts = []
        self._drafted = self._accepted = 0

    @property
    def acceptance(self) -> float:
        """Accepted over *tested* tokens: a round tests up to its first refusal."""
        return self._accepted / self._drafted if self._drafted else 0.0

    def one(self) -> float:
        """Tokens/s over all prompts, one after another."""
        with Client(self._addresses[0]) as client:
            client.models()  # connected before the clock starts
            start = time.perf_counter()
            replies = [client.generate(prompt, self._sampling) for prompt in self._prompts]
            seconds = time.perf_counter() - start
        self._count(replies)
        return sum(len(reply.token_ids) for reply in replies) / seconds

    def many(self) -> float:
        """Tokens/s of all streams at once."""

        async def run() -> float:
            clients = [AsyncClient(address) for address in self._addresses]
            for client in clients:
                await client.models()
            start = time.perf_counter()
            replies = await asyncio.gather(
                *(clients[n % len(clients)].generate(prompt, self._sampling) for n, prompt in enumerate(self._many))
            )
            seconds = time.perf_counter() - start
            for client in clients:
                await client.close()
            self._count(replies)
            return sum(len(reply.token_ids) for reply in replies) / seconds

        return asyncio.run(run())

    def _count(self, replies: list[Reply]) -> None:
        self.texts = [reply.token_ids for reply in replies][: len(self._prompts)]
        for reply in replies:
            rounds, accepted = reply.speculation.rounds, reply.speculation.accepted
            full = accepted == reply.speculation.drafted
            self._accepted += accepted
            # Tested: the accepted ones, and the first refused one of each round that was not accepted in full.
            self._drafted += accepted + (0 if full else min(rounds, reply.speculation.drafted - accepted))
