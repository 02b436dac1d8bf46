"""Text in, text out: tokenizer, chat template, detokenizer, stop strings, and the Generator built on a stream of tokens.

Shared by drafter and verifier. Needs `tokenizers` and `jinja2`; neither torch nor transformers.
"""
