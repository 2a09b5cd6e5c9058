"""What is inside an encoder is what transformers itself says is there."""

import pytest
import torch
from text_folders import encoder, inside, pair, settled, transformers

from limbeck.actors import Student, Teacher
from limbeck.encoders import Inside
from limbeck.errors import RecipeError
from limbeck.methods.minilm import MiniLM

TEXTS = ["a good film", "the very bad play was not good"]


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "ModernBert", "Roberta"])
def test_streams_are_the_hidden_states_of_transformers(name, tmp_path):
    encoder(tmp_path / "tokens")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokens")
    sizes = {"vocab_size": 14, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0, "num_labels": 2}
    sizes |= {"hidden_dim": 24, "dim": 16} if name == "DistilBert" else {"hidden_size": 16, "intermediate_size": 24}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = getattr(transformers, f"{name}Config")(max_position_embeddings=16, **sizes, **ends)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    reader.model_input_names = ["input_ids", "attention_mask"]
    view = {"named": {"input_ids": "text", "attention_mask": "mask"}}
    view["transforms"] = [{"use": "tokenise", "key": "text", "tokenizer": str(tmp_path / "tokens"), "mask": "mask"}]
    actor = Teacher(model, view=view)
    found = Inside(actor, {"text": TEXTS})
    names = [found.stream(i) for i in range(4)]
    last = found.last()
    heard = actor({"text": TEXTS})
    with torch.no_grad():
        expected, _ = inside(model, reader, TEXTS)
    assert len(found) == 3
    for i in range(3):
        torch.testing.assert_close(heard[names[i]], expected.hidden_states[i])
    torch.testing.assert_close(heard[last], expected.hidden_states[-1])
    ends_in_a_norm = name == "ModernBert"  # its last hidden state is behind a norm of the whole network
    assert torch.allclose(heard[names[3]], heard[last], atol=1e-6) != ends_in_a_norm
    assert (found.heads.number, found.heads.width) == (4, 4)
    with pytest.raises(RecipeError, match=r"the teacher has layers 0 \(its embeddings\) to 3, not 4"):
        found.stream(4)


def test_tokens_that_count_are_those_of_the_view_and_all_where_it_has_no_mask(tmp_path):
    where = pair(tmp_path)
    method = MiniLM()
    batch = settled(method, where)
    like = where.student(batch)["hidden"]
    counts = method.tokens(batch, like)
    assert counts.sum(1).tolist() == [len(text.split()) + 2 for text in batch["text"]]  # with [CLS] and [SEP]
    with pytest.raises(RecipeError, match="attention mask"):
        method.tokens(batch, like[:, :-1])
    bare = Student(where.student.model, view={"named": {"input_ids": "input_ids"}})
    method.bind(bare, where.teacher, where.task)
    ids = torch.randint(5, 14, (2, 6))
    assert method.tokens({"input_ids": ids}, torch.zeros(2, 6, 8)).all()
