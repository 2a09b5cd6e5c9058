"""The head of causal language models is kept apart from what it is given, for every architecture alike."""

import pytest
import torch
import transformers
from torch import nn

from limbeck import Student, Teacher
from limbeck.models.adapters import causal
from limbeck.signals import Projection

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1}
CONFIGS = {
    "llama": transformers.LlamaConfig(**LLAMA),
    "tied": transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "gemma2": transformers.Gemma2Config(**LLAMA, head_dim=8, final_logit_softcapping=0.5),
    "cohere": transformers.CohereConfig(**LLAMA, eos_token_id=1),
    "granite": transformers.GraniteConfig(**LLAMA, logits_scaling=4.0),
    "opt": transformers.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=32),
    "phi": transformers.PhiConfig(**SMALL, intermediate_size=32),
}


def tokens() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(14).view(2, 7), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_head_is_given_times_its_weight_are_the_models_own_logits(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()  # large enough that scale and cap are seen
    student = Student(model)
    logits = student(tokens())["logits"]
    assert isinstance(logits, Projection)
    assert logits.weight is model.get_output_embeddings().weight
    torch.testing.assert_close(logits.materialise(), model(**tokens()).logits)
    assert student.probe(tokens())["logits"] == (7, 50)


def test_a_gradient_through_the_projection_is_that_through_the_models_own_logits():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["gemma2"]).double()
    into = torch.randn(2, 7, 50, dtype=torch.float64)
    found = []
    for logits in (Student(model)(tokens())["logits"].materialise(), model(**tokens()).logits):
        model.zero_grad()
        (logits * into).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for ours, own in zip(*found, strict=True):
        torch.testing.assert_close(ours, own)


class Doubled(transformers.LlamaForCausalLM):
    """Does more to its logits than its configuration says."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits + 1
        return out


def test_a_model_that_does_more_to_its_logits_gives_them_itself():
    torch.manual_seed(0)
    assert causal.find(Doubled(CONFIGS["llama"])) is None
    assert causal.find(transformers.BertForMaskedLM(transformers.BertConfig(**LLAMA))) is None
    assert causal.find(nn.Linear(2, 2)) is None


def test_looking_for_the_head_leaves_the_model_as_it_was():
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert causal.find(model) is not None
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_frozen_teachers_head_is_a_constant():
    torch.manual_seed(0)
    teacher = Teacher(transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]))
    assert not teacher(tokens())["logits"].materialise().requires_grad
    teacher.mode = "through"
    assert teacher(tokens())["logits"].materialise().requires_grad


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(attention):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, attn_implementation=attention)
    student = Student(transformers.AutoModelForCausalLM.from_config(config))
    first, second = torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8, 9])
    packed = {
        "input_ids": torch.cat([first, second])[None],
        "attention_mask": torch.ones(1, 7, dtype=torch.int64),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
        "segment": torch.tensor([[0, 0, 0, 1, 1, 1, 1]]),
    }
    together = student(packed)["logits"].materialise()[0]
    for row, found in ((first, together[:3]), (second, together[3:])):
        torch.testing.assert_close(student.model(input_ids=row[None]).logits[0], found, rtol=0, atol=1e-5)


def test_other_taps_leave_the_head_where_it_was():
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"])
    student = Student(model, taps={"first": "model.layers.0"})
    heard = student(tokens())
    assert heard["first"].shape == (2, 7, 16)
    torch.testing.assert_close(heard["logits"].materialise(), model(**tokens()).logits)
