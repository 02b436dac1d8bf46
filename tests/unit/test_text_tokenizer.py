"""Tokenizer: the ids that transformers gives, from folders and from files, and errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specfleet.core.errors import InvalidRequest, ModelLoadError
from specfleet.core.generation import ChatMessage
from specfleet.text import Tokenizer
from support.text import EOS, TEMPLATE, byte_level, files, sentencepiece

TEXTS = ["Once upon a time", "", " a  b\n", f"x{EOS}y", "naïve 漢字 😀", "</s> <s>"]
CHAT = [ChatMessage("user", "Hi\n"), ChatMessage("assistant", "the house"), ChatMessage("user", "why?")]
SENTENCEPIECE = {"eos_token": "</s>", "bos_token": {"__type": "AddedToken", "content": "<s>"}, "unk_token": "<unk>"}


def folder(path: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


def plain(messages: list[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize(
    "contents",
    [
        files(),
        files(add_bos_token=True, bos_token=EOS),
        files(pad_token="<pad>", additional_special_tokens=["<tool>"]),
        files(sentencepiece(), **SENTENCEPIECE),
        files(sentencepiece(), **SENTENCEPIECE, add_bos_token=False),
    ],
    ids=["byte-level", "bos-asked-for", "new-specials", "sentencepiece", "sentencepiece-no-bos"],
)
def test_ids_are_those_of_transformers(tmp_path: Path, contents: dict[str, bytes]) -> None:
    """Ids, decoded text and the chat's ids equal those of AutoTokenizer on the same files."""
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path, contents)
    stock = transformers.AutoTokenizer.from_pretrained(path)

    tokenizer = Tokenizer.from_folder(path)

    for text in [*TEXTS, "<tool><pad>"]:
        ids = stock(text).input_ids
        assert ids == tokenizer.encode(text)
        assert stock.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    chat = stock.apply_chat_template(plain(CHAT), add_generation_prompt=True)["input_ids"]
    assert list(chat) == tokenizer.apply_chat(CHAT)
    assert stock.eos_token_id in tokenizer.eos_token_ids


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }}{{ bos_token }}",
        "{% for m in messages %}\n    {% if loop.first %}{% continue %}{% endif %}\n    {{ m.content }}\n{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}{{ strftime_now('%Y') }}",
        "{% if tools is none %}no tools{% endif %}{{ add_generation_prompt }}",
    ],
)
def test_templates_render_as_in_transformers(tmp_path: Path, template: str) -> None:
    """Block trimming, loop controls, filters and variables are those of transformers."""
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path, files(bos_token=EOS) | {"chat_template.jinja": template.encode()})
    stock = transformers.AutoTokenizer.from_pretrained(path)

    expected = stock.apply_chat_template(plain(CHAT), add_generation_prompt=True)["input_ids"]

    assert list(expected) == Tokenizer.from_folder(path).apply_chat(CHAT)


def test_files_make_the_same_tokenizer_elsewhere() -> None:
    """What `files()` gives is enough for a drafter without a model: ids, chat, vocabulary and end of text agree."""
    contents = files() | {"config.json": b'{"eos_token_id": [7, 3]}', "model.safetensors": b"weights"}
    here = Tokenizer.from_files(contents)

    there = Tokenizer.from_files(here.files())

    assert "model.safetensors" not in here.files()
    assert here.encode("the house") == there.encode("the house")
    assert here.apply_chat(CHAT) == there.apply_chat(CHAT)
    assert here.vocabulary().digest() == there.vocabulary().digest()
    assert there.eos_token_ids == (3, 7)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, (0,)),
        ({"config.json": b'{"eos_token_id": 5}'}, (5,)),
        ({"config.json": b'{"text_config": {"eos_token_id": 6}}'}, (6,)),
        ({"config.json": b'{"eos_token_id": 5}', "generation_config.json": b'{"eos_token_id": [9, 8]}'}, (8, 9)),
        ({"generation_config.json": b"{}", "config.json": b'{"eos_token_id": null}'}, (0,)),
    ],
)
def test_end_of_text_is_what_generate_would_stop_at(extra: dict[str, bytes], expected: tuple[int, ...]) -> None:
    """generation_config.json outranks config.json, which outranks the tokenizer's own end-of-text token."""
    assert expected == Tokenizer.from_files(files() | extra).eos_token_ids


def test_vocabulary_holds_special_ids() -> None:
    """Special tokens count in the fingerprint: the same table with one more of them is another vocabulary."""
    plain_, special = Tokenizer.from_files(files()), Tokenizer.from_files(files(pad_token="<pad>"))

    assert plain_.vocabulary().special_ids == (0,)
    assert plain_.vocabulary().tokens[0] == EOS
    assert plain_.vocabulary().digest() != special.vocabulary().digest()


def test_template_inside_the_configuration_is_found() -> None:
    """Older models keep the template in tokenizer_config.json, alone or in a list by name."""
    contents = files(chat_template=[{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}])
    del contents["chat_template.jinja"]

    assert Tokenizer.from_files(files()).apply_chat(CHAT) == Tokenizer.from_files(contents).apply_chat(CHAT)


def test_no_template_is_a_bad_request() -> None:
    """A chat with a model that has no template is refused, naming the model and the way out."""
    contents = files()
    del contents["chat_template.jinja"]

    with pytest.raises(InvalidRequest, match=r"models/raw has no chat template; send a plain prompt"):
        Tokenizer.from_files(contents, "models/raw").apply_chat(CHAT)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_refusing_template_is_a_bad_request(template: str, message: str) -> None:
    """Whatever a template raises, and whatever the sandbox forbids, becomes InvalidRequest with the template's words."""
    tokenizer = Tokenizer.from_files(files() | {"chat_template.jinja": template.encode()})

    with pytest.raises(InvalidRequest, match=f"chat template refuses these messages: .*{message}"):
        tokenizer.apply_chat(CHAT)


def test_broken_template_names_its_line() -> None:
    """A template that is not jinja is the model's fault, and the line is named."""
    tokenizer = Tokenizer.from_files(files() | {"chat_template.jinja": b"fine\n{% if %}"})

    with pytest.raises(ModelLoadError, match="chat template, line 2"):
        tokenizer.apply_chat(CHAT)


def test_long_text_is_never_cut() -> None:
    """A truncation length baked into tokenizer.json does not silently shorten prompts."""
    backend = byte_level()
    backend.enable_truncation(4)

    assert len(Tokenizer.from_files(files(backend)).encode("the house " * 40)) > 40


def test_surrogate_is_a_bad_request() -> None:
    """Text that is no Unicode (half of a surrogate pair, which JSON can carry) is refused, naming the place."""
    with pytest.raises(InvalidRequest, match="unpaired surrogate at character 1"):
        Tokenizer.from_files(files()).encode("x\ud800")


def test_missing_model_says_what_to_give(tmp_path: Path) -> None:
    """A path that does not exist, a file, an empty folder and a broken file each name the path and the way out."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    folder(tmp_path, {"tokenizer.json": b"{"})
    cases = {
        tmp_path / "nowhere": "nowhere does not exist; give a folder",
        tmp_path / "file": "is a file; give the folder",
        tmp_path / "empty": "empty has no tokenizer.json; write one",
        tmp_path: "tokenizer.json cannot be read",
    }

    for path, message in cases.items():
        with pytest.raises(ModelLoadError, match=message):
            Tokenizer.from_folder(path)


def test_broken_configuration_is_named() -> None:
    """A configuration file that is not JSON is named."""
    with pytest.raises(ModelLoadError, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_files(files() | {"tokenizer_config.json": b"["})


def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id that cannot be fetched is one line that names it, not a stack of retries."""
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(name: str, allow_patterns: list[str]) -> str:
        assert "tokenizer.json" in allow_patterns and not any("safetensors" in one for one in allow_patterns)
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)

    with pytest.raises(
        ModelLoadError, match=r"model acme/tiny is no folder here and cannot be fetched.*: no route;"
    ) as e:
        Tokenizer.from_folder("acme/tiny")
    assert "\n" not in str(e.value)


def test_hub_id_uses_the_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub id is read from the snapshot that huggingface_hub keeps."""
    hub = pytest.importorskip("huggingface_hub")
    folder(tmp_path, files() | {"tokenizer_config.json": json.dumps({"eos_token": EOS}).encode()})
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))

    assert Tokenizer.from_folder("acme/tiny").eos_token_ids == (0,)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_token_by_itself_is_what_it_adds_to_a_text(make: Callable[[], Any]) -> None:
    """A space in front stays, special tokens have their names, part of a character is U+FFFD."""
    tokenizer = Tokenizer.from_files(files(make()))
    text = "the house was old, and the time was short"
    ids = tokenizer.encode(f"x {text}", add_special_tokens=False)
    pieces = [tokenizer.piece(one) for one in ids]
    assert "".join(pieces).endswith(text) and any(piece.startswith(" ") for piece in pieces)
    assert EOS == tokenizer.piece(tokenizer.encode(EOS)[-1])
    assert "\ufffd" in tokenizer.piece(tokenizer.encode("é", add_special_tokens=False)[-1])
