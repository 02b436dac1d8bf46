"""A causal language model on a paged KV cache: ragged batches in, accepted tokens out. The only home of torch."""

from specfleet.engine.config import EngineConfig
from specfleet.engine.engine import TorchEngine

__all__ = ["EngineConfig", "TorchEngine"]
