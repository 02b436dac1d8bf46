"""Text in, text out: tokenizer, chat template, detokenizer, stop strings, and the Generator built on a stream of tokens.

Shared by drafter and verifier. Needs `tokenizers` and `jinja2`; neither torch nor transformers.
"""

from specfleet.text.detokenizer import Detokenizer
from specfleet.text.generator import TextGenerator, TokenSource
from specfleet.text.stop import StopStrings
from specfleet.text.tokenizer import Tokenizer

__all__ = ["Detokenizer", "StopStrings", "TextGenerator", "TokenSource", "Tokenizer"]
