"""Two small chat models, their tokenizer and a file of chats, made here and now, for trying `limbeck distill chat` out.

    python examples/tiny_chat_models.py FOLDER
    limbeck distill chat teacher=FOLDER/teacher student=FOLDER/student data=FOLDER/chat.jsonl

The teacher has learnt the chats for a minute; `FOLDER/other` is a student with another tokenizer (bytes). Real ones are
named in the same way: `teacher=Qwen/Qwen2.5-7B-Instruct student=Qwen/Qwen2.5-0.5B-Instruct data=chat.jsonl`.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ANIMALS = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "owl": "hoot", "pig": "oink", "sheep": "baa"}


def chats(count: int, seed: int) -> list[dict[str, list[dict[str, str]]]]:
    """Questions about sums, words backwards and animals, each with the right answer."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        kind, a, b = draw.randrange(3), draw.randrange(10), draw.randrange(10)
        animal, sound = draw.choice(list(ANIMALS.items()))
        question, answer = (
            (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."),
            (f"What does the {animal} say?", f"The {animal} says {sound}."),
            (f"Spell {animal}.", f"{animal.capitalize()} is spelled {', '.join(animal)}."),
        )[kind]
        found.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    return found


def tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a chat template; at 256 and the special tokens, bytes alone."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def model(tokens: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    """A Llama of these sizes with new weights."""
    torch.manual_seed(width)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
    )


def make(folder: Path, rows: int = 600, epochs: int = 12) -> None:
    """Write `chat.jsonl`, `start` (the teacher before it learnt), `student`, `other`, and train `teacher`."""
    import limbeck

    folder.mkdir(parents=True, exist_ok=True)
    data = chats(rows, seed=0)
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, data)))
    texts = [message["content"] for row in data for message in row["messages"]]
    tokens, characters = tokenizer(texts, 320), tokenizer(texts, 256 + len(SPECIAL))
    for name, own, width, layers in (
        ("start", tokens, 64, 3),
        ("student", tokens, 32, 1),
        ("other", characters, 32, 1),
    ):
        own.save_pretrained(folder / name)
        model(own, width, layers).save_pretrained(folder / name)
    limbeck.distill(
        task="chat",
        data=folder / "chat.jsonl",
        student=folder / "start",
        train={"epochs": epochs, "batch_size": 32, "lr": 5e-3},
        control="none",
        export=["transformers"],
        out=folder / "run-teacher",
    )
    (folder / "run-teacher" / "export" / "transformers").rename(folder / "teacher")


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "tiny-chat"))
