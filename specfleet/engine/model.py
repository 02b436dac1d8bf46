"""Loading a causal language model: Hugging Face's own, with our attention in place of its own, or one clear error."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from specfleet.core.errors import ConfigurationError, ModelLoadError
from specfleet.engine import attention, quantize
from specfleet.engine.attention import AttentionCall, AttentionContext
from specfleet.engine.batch import Span, StepBatch
from specfleet.engine.device import launching_on
from specfleet.engine.fuse import KINDS, DenseLinear, FusedDecoder, UniformLinear, can_fuse, can_pack, pack_linears
from specfleet.engine.kv_pool import KVPool, LayerShape
from specfleet.engine.parallel import Ranks, shard

log = logging.getLogger(__name__)

_PROBE_ENDS = (16, 21, 23, 24)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


Runner = Callable[[AttentionContext], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that the engine can run."""

    run: Runner
    """One forward pass: logits of the batch's wanted rows, float32 (rows, vocabulary)."""
    name: str
    device: torch.device
    dtype: torch.dtype
    backend: str
    layers: tuple[LayerShape, ...]
    vocabulary_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    parameters: int
    bits: str | None = None
    """Of its weights, where they are fewer than those of `dtype`."""


def load(
    model: str,
    device: str = "cpu",
    dtype: str = "auto",
    backend: str = "auto",
    bits: str | None = None,
    ranks: Ranks | None = None,
    uniform: bool = False,
) -> LoadedModel:
    """Load a folder or a Hugging Face id onto `device`.

    `dtype`: float32, bfloat16, float16, or auto (float32 on the CPU, else what the checkpoint says). `backend`: sdpa, numba,
    triton, varlen, or auto (`attention.CHOICES`). `bits`: int8, int4 or auto, for a model that only drafts. `ranks`: load
    this one's share. `uniform`: a token's products are the same in any company. Raises ModelLoadError or ConfigurationError,
    naming the value and the way out.
    """
    place = resolve_device(device)
    source = resolve_source(model)
    widths = quantize.choices(bits, place)
    for width in widths:
        with _quiet(bars=sys.stderr.isatty() and not Path(source).is_dir()):
            module = _load_module(model, source, _resolve_dtype(dtype, place))
        try:
            return adapt(module, model, place, backend, width, ranks, uniform)
        except (ConfigurationError, ModelLoadError) as error:
            if width == widths[-1]:
                raise
            log.info("model keeps its own weights", extra={"model": model, "tried": width, "error": error.message})
    raise AssertionError("unreachable")


def adapt(
    module: Any,
    model: str,
    place: torch.device,
    backend: str = "auto",
    bits: str | None = None,
    ranks: Ranks | None = None,
    uniform: bool = False,
) -> LoadedModel:
    """Make of transformers' `module` something that the engine can run on `place`; the module is used up. Arguments and errors
    as of `load`; `model` is its name."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if ranks is not None:
        shard(module, ranks)  # before it moves: it need not fit on one device
    try:
        module = module.to(place).eval().requires_grad_(False)
    except torch.OutOfMemoryError:
        raise ModelLoadError(
            f"model {model!r} takes {module.get_memory_footprint() / 1e9:.3g} GB, more than {place} has to spare; take a "
            "smaller one, or a smaller --dtype"
        ) from None
    dtype_found, config = module.dtype, module.config.get_text_config()
    attention.register()
    with launching_on(place):
        backend, calls, runner = _adapt(module, model, backend, place, bits, uniform)
    return LoadedModel(
        run=runner,
        name=model,
        device=place,
        dtype=dtype_found,
        backend=backend,
        layers=tuple(call.shape for call in calls),
        vocabulary_size=config.vocab_size,
        context_length=_context_length(config),
        eos_token_ids=_eos_token_ids(module),
        parameters=parameters,
        bits=bits,
    )


def resolve_device(device: str) -> torch.device:
    """The device, or ConfigurationError if this machine does not have it."""
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigurationError(f"device {device!r} is unknown; use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device {device!r}: torch {torch.__version__} finds no CUDA GPU here; use --device cpu"
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device {device!r}: this machine has {torch.cuda.device_count()} GPUs, counted from 0"
        )
    return place


def resolve_source(model: str) -> str:
    """A local folder that exists, or a Hugging Face id. A path that does not exist is an error here and never becomes
    a request to the hub."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(
                f"model {model!r} is a folder without config.json; give a folder saved by save_pretrained"
            )
        return str(path)
    if path.exists():
        raise ModelLoadError(f"model {model!r} is a file; give the folder that holds config.json and the weights")
    if model.startswith((".", "~", os.sep)) or not _HUB_ID.fullmatch(model):
        raise ModelLoadError(
            f"model path {model!r} does not exist; give a folder with config.json, or a Hugging Face id"
        )
    return model


def _resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _load_module(model: str, source: str, dtype: torch.dtype | str) -> Any:
    try:
        config = AutoConfig.from_pretrained(source)
        return AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype)
    except ConfigurationError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, safetensors' own, ...
        first_line = str(error).strip().split("\n", 1)[0]
        where = "" if Path(source).is_dir() else " (not a folder here, so it was looked for on the Hugging Face hub)"
        raise ModelLoadError(f"model {model!r}{where} cannot be loaded: {first_line}") from error


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """transformers' warnings off, its progress bars (the hub's downloads) as said, and back to what they were."""
    log = transformers.utils.logging
    verbosity, were = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    (log.enable_progress_bar if bars else log.disable_progress_bar)()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        (log.enable_progress_bar if were else log.disable_progress_bar)()


def _context_length(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ModelLoadError(f"{type(config).__name__} does not say how long a context the model takes")


def _eos_token_ids(module: Any) -> tuple[int, ...]:
    for holder in (module.generation_config, module.config.get_text_config()):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    return ()


# Our attention in place of the model's own ---------------------------------------------------------------------------


def _adapt(
    module: Any, model: str, backend: str, device: torch.device, bits: str | None, uniform: bool
) -> tuple[str, list[AttentionCall], Runner]:
    """Switch `module` to our attention and make sure that it computes the same: the back end chosen, the attention calls in
    order of layers, and what runs a batch."""
    choices = attention.choices(backend, device)
    size, dtype, kind = module.config.get_text_config().vocab_size, module.dtype, type(module).__name__
    probe = torch.tensor([(7919 * i + 11) % size for i in range(_PROBE_ENDS[-1])])
    with torch.inference_mode():
        expected = module(input_ids=probe[None].to(device), use_cache=False).logits[0].float()
    module.config._attn_implementation = attention.NAME
    module.config.get_text_config()._attn_implementation = attention.NAME
    calls = _trace(module, probe)
    _check_windows(module, calls)
    if bits:
        quantize.check(bits, module)
    run = _make_runner(module, [call.window for call in calls], bits, uniform)
    tolerance = quantize.TOLERANCE[bits] if bits else 1e-4 if dtype == torch.float32 else 0.05
    for choice in choices:
        pool = KVPool([call.shape for call in calls], 2, dtype, device)
        try:
            attention.check_backend(choice, device)
            found = _probe(run, probe, pool, choice)
        except RuntimeError as error:
            if choice == choices[-1]:
                reason = str(error).strip().split("\n", 1)[0]
                raise ConfigurationError(f"attention backend {choice} does not run {kind} here: {reason}") from error
        except ConfigurationError:
            if choice == choices[-1]:
                raise
        else:
            _check_same(f"{model!r} ({kind})", expected, found, tolerance)
            return choice, calls, run
    raise AssertionError("unreachable")


@torch.inference_mode()
def _probe(run: Runner, tokens: torch.Tensor, pool: KVPool, backend: str) -> torch.Tensor:
    """Logits of all tokens, in steps of many and of few and on pages out of order: later steps look back at the cache."""
    found = []
    for start, end in pairwise((0, *_PROBE_ENDS)):
        batch = StepBatch(
            [Span(tokens[start:end].tolist(), start, pages=[1, 0], rows=end - start)], pool.keys[0].device
        )
        found.append(run(AttentionContext(batch, pool, backend)))
    return torch.cat(found)


def _make_runner(module: Any, windows: list[int | None], bits: str | None, uniform: bool) -> Runner:
    """The fastest way to run `module` here: fused, with packed weights, or as it is."""
    kind = UniformLinear if uniform and not bits else KINDS[bits]
    if can_fuse(module) and (can_pack(module) or not bits):
        return FusedDecoder(module, windows, kind if can_pack(module) else DenseLinear)
    if can_pack(module):
        pack_linears(module, kind)
    elif bits:
        quantize.on_device(bits, module)
    return partial(_run_module, module)


def _run_module(module: Any, context: AttentionContext) -> torch.Tensor:
    """transformers' own forward pass over a packed batch."""
    batch = context.batch
    output = module(
        input_ids=batch.token_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=batch.logit_rows,
        specfleet=context,
    )
    return output.logits[0].float()


def _trace(module: Any, tokens: torch.Tensor) -> list[AttentionCall]:
    """Which layers call our attention, and how. Raises ModelLoadError unless each does so exactly once."""
    calls: list[AttentionCall] = []
    batch = StepBatch([Span(tokens.tolist(), start=0, pages=[1, 0], rows=1)], module.device)
    with torch.inference_mode():
        _run_module(module, AttentionContext(batch, None, trace=calls))
    layers = module.config.get_text_config().num_hidden_layers
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise ModelLoadError(
            f"{type(module).__name__} is not supported: {len(calls)} attention calls in {layers} layers, where every layer "
            "has to call transformers' attention interface once"
        )
    return sorted(calls, key=lambda call: call.layer)


def _check_windows(module: Any, calls: list[AttentionCall]) -> None:
    """What each layer asks for must be what the configuration says: the probe is too short to see a window."""
    config = module.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    types = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * len(calls)
    for call, kind in zip(calls, types, strict=True):
        wanted = {"sliding_attention": window, "full_attention": None}
        if kind not in wanted or call.window != wanted[kind]:
            raise ModelLoadError(
                f"{type(module).__name__} is not supported: layer {call.layer} is {kind} and asks for window {call.window}"
            )


def _check_same(what: str, expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> None:
    """Compare with the stock model: catches attention biases (ALiBi) and whatever else never reaches the interface."""
    difference = float((expected - found).abs().mean() / expected.std().clamp_min(1e-6))
    if not difference <= tolerance:
        raise ModelLoadError(
            f"model {what} is not supported: with paged attention its logits differ from its own by {difference:.2g} "
            f"standard deviations, at most {tolerance:g} is allowed"
        )
