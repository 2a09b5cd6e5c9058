"""Small tokenizers of every kind, trained on the spot, as transformers wraps them."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps, the fox does not.",
    "Ein süßer Käse für 3,50 €, sagte Jürgen, naïve café, Ærøskøbing, Zürich, façade.",
    "数学は楽しい。数学は難しい。Москва — столица России. 🙂👩‍👩‍👧 emoji! किताब हिन्दी में है।",
    "def f(x):\n    return {'a': x ** 2}\n\n\tprint(f(10))  # comment\n",
    "hello world hello there worldly theories thermal another other mother weather the then them",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def wrapped(backend: Tokenizer, **more: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False, **more
    )


def _byte_level(size: int, *, space: bool, normalizer=None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL[1:], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend)


def _metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama's: BPE over ▁ with the bytes as tokens of the vocabulary, none of them special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator(CORPUS[:1] + CORPUS[3:], trainers.BpeTrainer(vocab_size=160, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    names = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return wrapped(backend, unk_token="<unk>")


def _unigram(*, normalizer=None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.UnigramTrainer(vocab_size=220, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend, unk_token="<unk>")


def _wordpiece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend, unk_token="<unk>")


def _suffix() -> PreTrainedTokenizerFast:
    """As the first GPT's: words, whose last piece is marked."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend, unk_token="<unk>")


MAKERS = {
    "bytes": lambda: _byte_level(258, space=False),
    "byte-level": lambda: _byte_level(420, space=False),
    "byte-level, space in front": lambda: _byte_level(340, space=True),
    "byte-level, NFC": lambda: _byte_level(380, space=False, normalizer=normalizers.NFC()),
    "metaspace": lambda: _metaspace("always"),
    "metaspace, no space in front": lambda: _metaspace("never"),
    "metaspace, space in front of the first": lambda: _metaspace("first"),
    "unigram": lambda: _unigram(),
    "unigram, NFKC and lower case": lambda: _unigram(
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "wordpiece": _wordpiece,
    "end of word": _suffix,
}
# What they spell is the text's own bytes, whatever the text.
EXACT = [
    "bytes",
    "byte-level",
    "byte-level, space in front",
    "metaspace",
    "metaspace, no space in front",
    "metaspace, space in front of the first",
]


@cache
def trained(kind: str) -> PreTrainedTokenizerFast:
    return MAKERS[kind]()
