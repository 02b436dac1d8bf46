"""Do drafter and verifier mean the same by a token id? Asked once, before anything is drafted."""

from __future__ import annotations

from specfleet.core.errors import InternalError, ModelMismatch
from specfleet.core.protocol import Finished, Open, Opened, VerifierConnection
from specfleet.core.types import ModelInfo, SamplingParams
from specfleet.core.vocabulary import Vocabulary


async def check_vocabulary(connection: VerifierConnection, vocabulary: Vocabulary) -> ModelInfo:
    """The verifier's model, whose ids mean what `vocabulary` says.

    Raises:
        ModelMismatch: in the verifier's words, naming the first id that differs.
    """
    model = await connection.model()
    if model.vocabulary_digest == vocabulary.digest():
        return model
    stream = await connection.verify()
    probe = Open(
        prompt=(0,),
        sampling=SamplingParams(max_tokens=1, temperature=0.0),
        vocabulary_digest=vocabulary.digest(),
        vocabulary_checksums=vocabulary.checksums(),
        can_draft=False,
    )
    try:
        await stream.send(probe)
        answer = await stream.receive()
    finally:
        stream.cancel()
    if isinstance(answer, Opened | Finished):
        raise ModelMismatch(f"vocabulary differs from that of {model.name}; use a drafter with the same tokenizer")
    raise InternalError("the verifier did not answer a vocabulary check")
