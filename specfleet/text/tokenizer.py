"""A model's tokenizer with its special ids and chat template, from a folder, a hub id, or files sent by a verifier.

Ids are those that transformers' `AutoTokenizer` gives for the same files; tests compare them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from specfleet.core.errors import InvalidRequest, ModelLoadError
from specfleet.core.generation import ChatMessage
from specfleet.core.vocabulary import Vocabulary
from specfleet.text.chat_template import ChatTemplate

FILE_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
"""Every file that has a say; only the first must exist."""

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_FILE = "chat_template.jinja"


class Tokenizer:
    """Immutable once made; safe to share between tasks and threads."""

    def __init__(self, files: Mapping[str, bytes], origin: str) -> None:
        """Use `from_folder` or `from_files`. `origin` names the files in errors."""
        self.origin = origin
        self._files = {name: files[name] for name in FILE_NAMES if name in files}
        self._config = _special_tokens_config(self._files, origin)
        self._backend = _backend(self._files, self._config, origin)
        self.special_tokens = {name: text for name in _NAMED_TOKENS if (text := _content(self._config.get(name)))}
        self.eos_token_ids = self._eos_token_ids()
        """Ids that end a text, sorted; empty for a model that never says so."""

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """From a model folder, or a Hugging Face hub id (only the small files are fetched). Raises ModelLoadError."""
        folder = Path(path)
        if not folder.exists():
            return cls(_fetch(str(path)), str(path))
        if not folder.is_dir():
            raise ModelLoadError(f"model {path} is a file; give the folder that holds tokenizer.json")
        return cls(_read(folder), str(path))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], origin: str = "the tokenizer's files") -> Tokenizer:
        """From the contents of files by name (what `files()` gives). Raises ModelLoadError."""
        return cls(files, origin)

    def files(self) -> dict[str, bytes]:
        """Contents by name: enough to make the same tokenizer elsewhere."""
        return dict(self._files)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the special tokens around them that the model was trained with. Raises InvalidRequest."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"has an unpaired surrogate at character {error.start}, which is no text; remove it"
            raise InvalidRequest.field("prompt", problem) from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def apply_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation that asks for the next assistant message.

        Raises InvalidRequest when the model has no chat template or the template refuses the messages.
        """
        if self._template is None:
            problem = f"{self.origin} has no chat template; send a plain prompt, or add {_TEMPLATE_FILE} to the model"
            raise InvalidRequest.field("chat", problem)
        # The template writes the special tokens itself.
        return self.encode(self._template.render(messages), add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; incomplete characters become U+FFFD, ids beyond the vocabulary nothing."""
        return self._backend.decode(token_ids, skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        """What one token adds to a text, special tokens by their names; U+FFFD for part of a character."""
        # Behind another token: decoders drop a space in front of the first.
        return self._backend.decode([self._anchor, token_id], skip_special_tokens=False)[len(self._anchor_text) :]

    @cached_property
    def _anchor(self) -> int:
        """A token of plain text, so that what follows it is decoded as inside a text."""
        return next(iter(self._backend.encode("a", add_special_tokens=False).ids), 0)

    @cached_property
    def _anchor_text(self) -> str:
        return self._backend.decode([self._anchor], skip_special_tokens=False)

    def vocabulary(self) -> Vocabulary:
        """What ids mean, to compare with a peer's."""
        return self._vocabulary

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        added = self._backend.get_added_tokens_decoder()
        special = [index for index, token in added.items() if token.special]
        return Vocabulary.of(self._backend.get_vocab(with_added_tokens=True), special)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        source = _template_source(self._files, self._config)
        return ChatTemplate(source, self.special_tokens) if source is not None else None

    def _eos_token_ids(self) -> tuple[int, ...]:
        """As generate() takes them: generation_config.json, else config.json, else the tokenizer's own."""
        for name in ("generation_config.json", "config.json"):
            config = _json(self._files, name, self.origin)
            found = config.get("eos_token_id", _object(config.get("text_config")).get("eos_token_id"))
            if found is not None:
                return tuple(sorted({found} if isinstance(found, int) else set(found)))
        eos = self.special_tokens.get("eos_token")
        index = self._backend.token_to_id(eos) if eos else None
        return () if index is None else (index,)


def _read(folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in FILE_NAMES if (folder / name).is_file()}
    except OSError as error:
        raise ModelLoadError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error


def _fetch(name: str) -> dict[str, bytes]:
    """The small files of a hub repository, from the local cache or the network."""
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelLoadError(
            f"model path {name} does not exist; give a folder with tokenizer.json, or a hub id org/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelLoadError(
            f"model path {name} does not exist here; to fetch it from the hub, pip install huggingface_hub"
        ) from error
    try:
        return _read(Path(snapshot_download(name, allow_patterns=list(FILE_NAMES))))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(
            f"model {name} is no folder here and cannot be fetched from the hub: {reason}; give a folder, or check the name"
        ) from error


def _backend(files: Mapping[str, bytes], config: Mapping[str, Any], origin: str) -> tokenizers.Tokenizer:
    if "tokenizer.json" not in files:
        raise ModelLoadError(
            f"{origin} has no tokenizer.json; write one with "
            "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    try:
        backend = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises nothing narrower
        raise ModelLoadError(f"{origin}: tokenizer.json cannot be read: {error}") from error
    # Whole prompts only: a limit baked into the file would cut them silently.
    backend.no_truncation()
    backend.no_padding()
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [text for text in _special_texts(config) if text not in known]
    if missing:
        backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in missing])
    # Which special tokens surround a text is up to tokenizer.json: where it exists, transformers too passes over
    # add_bos_token and add_eos_token in tokenizer_config.json.
    return backend


def _special_tokens_config(files: Mapping[str, bytes], origin: str) -> dict[str, Any]:
    """tokenizer_config.json; older models say some of it in special_tokens_map.json."""
    return _json(files, "special_tokens_map.json", origin) | _json(files, "tokenizer_config.json", origin)


def _special_texts(config: Mapping[str, Any]) -> list[str]:
    """Texts that the configuration declares special, in the order that new ids are given out."""
    by_id = _object(config.get("added_tokens_decoder"))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    texts = [_content(by_id[index]) for index in sorted(by_id, key=int) if _object(by_id[index]).get("special")]
    texts += [_content(config.get(name)) for name in _NAMED_TOKENS]
    texts += [_content(token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    return list(dict.fromkeys(text for text in texts if text))


def _template_source(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if _TEMPLATE_FILE in files:
        return files[_TEMPLATE_FILE].decode()
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found}.get("default")
    return found if isinstance(found, str) else None


def _content(token: Any) -> str | None:
    """Special tokens are written as a text or as an object with one."""
    text = _object(token).get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(files: Mapping[str, bytes], name: str, origin: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        return _object(json.loads(files[name]))
    except ValueError as error:
        raise ModelLoadError(f"{origin}: {name} is not JSON: {error}") from error
