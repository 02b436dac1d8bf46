"""One rank of a tensor-parallel engine, as torchrun starts it: rank 0 writes texts and prints them as JSON.

torchrun --nproc-per-node=2 --module support.ranks MODEL[:graphs] …
"""

from __future__ import annotations

import json
import sys

import torch

from specfleet.core.step import Alternative, StepItem
from specfleet.core.types import SamplingParams
from specfleet.engine import EngineConfig, TorchEngine
from specfleet.engine.leader import follow
from specfleet.engine.parallel import join
from specfleet.engine.worker import Worker

SAMPLINGS = (SamplingParams(temperature=0.0), SamplingParams(seed=5, temperature=0.9, top_p=0.95))


def texts(engine: TorchEngine, tokens: int) -> list[list[int]]:
    """Greedy and seeded, six sequences in each step that share a prefix, through right and wrong drafts and trees."""
    found: list[list[int]] = []
    for sampling in SAMPLINGS:
        written = [[7, 3, 5, 2, 9, 11, 4, 8, 1, 6, 12, 10, 15, 14, 13, 16, 17, *range(20, 20 + n)] for n in range(6)]
        ends = [len(text) + tokens for text in written]
        for number, text in enumerate(written):
            engine.open(number, text)
        while any(len(text) < end for text, end in zip(written, ends, strict=True)):
            items = []
            for number, text in enumerate(written):
                draft = text[-1 - number :][:number] if len(text) < ends[number] else []
                others = [Alternative(at, (token + 1) % 90) for at, token in enumerate(draft) if at % 2]
                known = text[engine.length(number) :]
                items.append(StepItem(number, [*known, *draft], sampling, draft=len(draft), alternatives=others))
            for text, result in zip(written, engine.step_sync(items), strict=True):
                text += result.tokens
        engine.check_integrity()
        for number, end in enumerate(ends):
            engine.close(number)
            found.append(written[number][:end])
    return found


def main(models: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = join("cpu")
    for model in models:
        folder, _, graphs = model.partition(":")
        config = EngineConfig(model=folder, kv_cache_tokens=1024, graphs=graphs == "graphs")
        if ranks.rank:
            follow(Worker(config, ranks=ranks), ranks)
            continue
        engine = TorchEngine(config, ranks=ranks)
        found = {"texts": texts(engine, 24), "kv_heads": engine.model.layers[0].kv_heads}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        engine.shutdown()
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
