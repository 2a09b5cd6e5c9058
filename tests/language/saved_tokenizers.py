"""Small real tokenizers, trained on the spot and saved as folders that `AutoTokenizer` opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the answer? The answer is forty-two, I think.",
    "user: hello there, who are you?\nassistant: I am a small model and I answer questions about the world.",
    "Der schnelle braune Fuchs springt über den faulen Hund; naïve café, Größe, Straße. ÄÖÜ!",
    "def answer(question):\n    return {'yes': 1, 'no': 0}[question]\n\nprint(answer('yes'))\n",
    "0 1 2 3 4 5 6 7 8 9 10 42 100 1,000 3.14 ... !?()[]{}<>/|_ system user assistant INST",
    "日本語のテキスト и немного текста по-русски 🙂🙃 👩‍👩‍👧 e\u0301 \u1e69",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\\n' }}{% else %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}[SYS] {{ message['content'] }} "
    "[/SYS]{% elif message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]{% else %} "
    "{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "chatml-marked": CHATML_MARKED, "llama": LLAMA, "mistral": MISTRAL}
SPECIALS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def byte_bpe(folder: Path, *, size: int = 400, template: str | None = CHATML, corpus: Sequence[str] = CORPUS) -> Path:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it; any text comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(tokenizer, trainer, folder, template, corpus)


def bytes_only(folder: Path, *, template: str | None = CHATML) -> Path:
    """One token per byte (byte-level BPE without a merge)."""
    return byte_bpe(folder, size=0, template=template)


def metaspace_bpe(
    folder: Path,
    *,
    size: int = 400,
    template: str | None = CHATML,
    corpus: Sequence[str] = CORPUS,
    prefix: str = "first",
) -> Path:
    """BPE over `▁` with bytes for what it does not know, as SentencePiece gives Llama 2 and Mistral.

    `prefix`: `first`, `always` or `never` put a space before the text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)
    tokenizer.decoder = _pieces_of_sentences(prefix)
    specials = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size + 256, special_tokens=specials, limit_alphabet=60, show_progress=False
    )
    return _trained(tokenizer, trainer, folder, template, corpus, bytes_are_special=False)


def unigram(
    folder: Path,
    *,
    size: int = 300,
    template: str | None = CHATML,
    corpus: Sequence[str] = CORPUS,
    prefix: str = "always",
) -> Path:
    """A unigram model over `▁`, as T5 and XLM-R have it; unknown characters become `<unk>`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix, split=True)
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    return _trained(tokenizer, trainer, folder, template, corpus)


def wordpiece(
    folder: Path, *, size: int = 400, template: str | None = CHATML, corpus: Sequence[str] = CORPUS, lower: bool = True
) -> Path:
    """WordPiece as BERT has it: words are split at spaces and signs, spaces are lost, `##` continues a word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False)
    letters = sorted({letter for text in corpus for letter in text if not letter.isspace()})
    inside = " ".join(f"x{letter}" for letter in letters)  # each known inside a word too
    return _trained(tokenizer, trainer, folder, template, [*corpus, inside])


KINDS = {"byte_bpe": byte_bpe, "metaspace_bpe": metaspace_bpe, "unigram": unigram, "wordpiece": wordpiece}


def _pieces_of_sentences(prefix: str) -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([] if prefix == "never" else [decoders.Strip(" ", 1, 0)])])


def _trained(
    tokenizer: Tokenizer,
    trainer: trainers.Trainer,
    folder: Path,
    template: str | None,
    corpus: Sequence[str],
    bytes_are_special: bool = True,
) -> Path:
    tokenizer.train_from_iterator(corpus, trainer)
    if not bytes_are_special:
        tokenizer = _with_ordinary_bytes(tokenizer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    if template is not None:
        wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return Path(folder)


def _with_ordinary_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """A trainer takes byte tokens only as special ones, which the decoder would then not turn into bytes."""
    import json

    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = [token for token in told["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(told))
