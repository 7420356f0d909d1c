"""Token limits of text encoders: how many captions go beyond one, and captions cut to it at a word."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.engine.model_files import is_commit, mirror_of
from pipelines.engine.model_pins import read_pins
from pipelines.engine.storage import Storage
from pipelines.run_config import ModelRef
from soundcap.prompt_lint import TOKENS_A_WORD

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vocabulary = Literal["CLIP", "T5", "RoBERTa"]
OnLong = Literal["warn", "cut", "drop"]
VOCABULARIES: dict[Vocabulary, tuple[tuple[str, ...], int]] = {
    "CLIP": (("clip", "clip_text_model"), 49_408),
    "T5": (("t5",), 32_100),
}
"""By vocabulary: `model_type` of checkpoints that may have it, and its size, which all published ones share."""
CHARS_A_TOKEN, MARKS = 4, 2
"""Of an estimate: ASCII characters a token at most, and tokens that start and end a text."""
_ASCII = re.compile("[\x00-\x7f]+")
_LOOSE_END = " ,;:-"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TokenLimit:
    """Most tokens that a target reads of a text, start and end marks included.

    Attributes:
        tokens: the limit.
        reader: name of the encoder, for people.
        tokenizer: content of a `tokenizer.json` that counts as the reader does; None: tokens are estimated.
    """

    tokens: int
    reader: str
    tokenizer: str | None = None

    def __str__(self) -> str:
        how = "" if self.tokenizer else f", at {TOKENS_A_WORD:g} tokens a word"
        return f"the {self.tokens} tokens that {self.reader} reads{how}"

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        if self.tokenizer is None:
            return [estimated_tokens(text) for text in texts]
        return [len(one.ids) for one in self._tokenizer.encode_batch(list(texts))]

    def cut(self, text: str) -> str:
        """Longest beginning of whole words within the limit; one word at least, and of a longer one its beginning."""
        words = text.split(" ")
        fit = _most_that_fit(len(words), lambda n: self._fits(" ".join(words[:n])))
        if fit:
            return " ".join(words[:fit]).rstrip(_LOOSE_END) or words[0]
        return words[0][: max(1, _most_that_fit(len(words[0]), lambda n: self._fits(words[0][:n])))]

    def _fits(self, text: str) -> bool:
        return self.counts([text])[0] <= self.tokens

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer or "")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def estimated_tokens(text: str) -> int:
    """Estimate, from above, of the tokens of an English caption: by words; by characters, where words are long.

    Each byte of other scripts counts as one.
    """
    other_bytes = 0 if text.isascii() else len(_ASCII.sub("", text).encode())
    ascii_chars = len(text.encode()) - other_bytes
    return math.ceil(max(TOKENS_A_WORD * (text.count(" ") + 1), ascii_chars / CHARS_A_TOKEN)) + other_bytes + MARKS


def find_tokenizer(ref: ModelRef, storage: Storage, vocabulary: Vocabulary | None = None) -> str | None:
    """Content of a checkpoint's `tokenizer.json`, if this machine has it; the network is never asked.

    vocabulary: the one that is wanted; None: whichever it is.
    """
    from tokenizers import Tokenizer

    config, tokenizer = (_find(ref, storage, name) for name in ("config.json", TOKENIZER))
    if config is None or tokenizer is None:
        return None
    if vocabulary is None:
        return tokenizer
    if vocabulary not in VOCABULARIES:
        return None
    kinds, size = VOCABULARIES[vocabulary]
    is_it = json.loads(config).get("model_type") in kinds and Tokenizer.from_str(tokenizer).get_vocab_size() == size
    return tokenizer if is_it else None


def _find(ref: ModelRef, storage: Storage, name: str) -> str | None:
    """Text of a checkpoint's file: in its folder, in the store's mirror, or in the hub client's cache."""
    if Path(ref.path).is_dir():
        file = Path(ref.path) / name
        return file.read_text(encoding="utf-8") if file.is_file() else None
    pin = read_pins(storage).get(f"{ref.path}@{ref.revision}")
    commit = ref.revision if pin is None else pin.commit
    if is_commit(commit) and storage.exists(mirrored := f"{mirror_of(ref.path, commit or '')}/{name}"):
        return storage.read_bytes(mirrored).decode()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(ref.path, name, revision=commit)
    except HFValidationError:  # a folder that is not there
        return None
    return Path(cached).read_text(encoding="utf-8") if isinstance(cached, str) else None


def _most_that_fit(most: int, fits: Callable[[int], bool]) -> int:
    """Largest number up to `most` that fits, by halving; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
