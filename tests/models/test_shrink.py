"""What shrinking leaves out was nothing, or is exactly what was to be left out; what stays is copied."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from text_folders import encoder, keys
from torch import nn
from transformer_zoo import IDS, MASK, NAMES, logits, made, rows, silence, transformers

import limbeck
from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.models.blocks import Heads, blocks, heads_of
from limbeck.models.importance import by_use, by_weights
from limbeck.models.shrink import build, chosen_layers, shrink
from limbeck.recipe import Recipe

CLOSE = {"rtol": 0, "atol": 1e-9}
COUPLED = [name for name in NAMES if name.startswith(("Bert", "Rob", "Dist", "Elec", "Modern", "GPT"))]
FREE = [name for name in NAMES if name not in COUPLED]
TIED = ["BertForMaskedLM", "DistilBertForMaskedLM", "ModernBertForMaskedLM", "GPT2LMHeadModel", "Qwen2ForCausalLM"]
UNTIED = [name for name in NAMES if name not in (*TIED, "Gemma2ForCausalLM")]  # whose heads read channels of their own
BATCHES = [{"input_ids": IDS, "attention_mask": MASK}]


def reloaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.float64).eval()


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_kept_is_the_same_network(name, tmp_path):
    model = made(name)
    before = logits(model)
    same = shrink(model, layers=4, neurons=24, heads=4, width=16)
    assert torch.equal(logits(same), before)
    torch.testing.assert_close(logits(reloaded(same, tmp_path)), before, rtol=0, atol=1e-12)
    assert not {p.data_ptr() for p in same.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_do_nothing_can_go(name, tmp_path):
    """Blocks that write zeros pass on what they got (in a post-norm network once more normalised)."""
    model = made(name)
    found = blocks(model)
    for layer in (1, 3) if "Modern" not in name else (2, 3):
        silence(model, found[layer].out)
        silence(model, found[layer].outof)
    normed = [m for i in range(4) for m in model.get_submodule(found[i].path).modules() if isinstance(m, nn.LayerNorm)]
    if name.startswith(("Bert", "Rob", "Dist", "Elec")):  # x = LN(LN(x)) holds for norms without a weight
        for norm in normed:
            norm.weight.data.fill_(1)
            norm.bias.data.zero_()
            norm.eps = 1e-14
    kept = [0, 2] if "Modern" not in name else [0, 1]
    smaller = shrink(model, layers=kept)
    atol = 1e-6 if name.startswith("Dist") else 1e-9  # the configuration of DistilBERT has no epsilon: it is 1e-12
    torch.testing.assert_close(logits(smaller), logits(model), rtol=0, atol=atol)
    torch.testing.assert_close(logits(reloaded(smaller, tmp_path)), logits(smaller), **CLOSE)
    assert smaller.config.num_hidden_layers == len(blocks(smaller)) == 2
    influence = by_use(model, found, None, BATCHES).layers
    if not normed or name.startswith(("GPT", "Modern")):
        torch.testing.assert_close(influence[[i for i in range(4) if i not in kept]], torch.zeros(2).double(), **CLOSE)
    by_influence = shrink(model, layers=2, choose="importance", calibration=BATCHES)
    assert chosen_layers(4, 2, "importance", influence) == kept
    torch.testing.assert_close(logits(by_influence), logits(smaller), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_stack_is_the_larger_one_with_blocks_left_out(name):
    """The reference is the same network whose list of blocks was cut by hand."""
    model = made(name)
    kept = [0, 1, 3]
    smaller = logits(shrink(model, layers=kept))
    path, _, last = blocks(model)[0].path.rpartition(".")[0].rpartition(".")
    whole = getattr(model.get_submodule(path), last)
    setattr(model.get_submodule(path), last, nn.ModuleList([whole[i] for i in kept]))
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    torch.testing.assert_close(smaller, logits(model), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_neurons_that_are_written_nowhere_can_go(name, tmp_path):
    model, calibration = made(name), [None, BATCHES][NAMES.index(name) % 2]
    for i, block in enumerate(blocks(model)):
        rows(model, block.outof)[:, torch.randperm(24, generator=torch.Generator().manual_seed(i))[:10]] = 0
    smaller = shrink(model, neurons=14, calibration=calibration)
    torch.testing.assert_close(logits(smaller), logits(model), **CLOSE)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(reloaded(smaller, tmp_path)), logits(smaller), **CLOSE)


def test_a_neuron_that_reads_nothing_is_nothing():
    model = made("LlamaForCausalLM")
    for block in blocks(model):
        gate, value = block.into
        rows(model, gate)[:5] = 0  # silu(0) = 0
        rows(model, value)[5:10] = 0
    torch.testing.assert_close(logits(shrink(model, neurons=14)), logits(model), **CLOSE)


@pytest.mark.parametrize("name", FREE)
def test_heads_that_write_nothing_can_go_whole_groups_first(name, tmp_path):
    model, calibration = made(name), [None, BATCHES][FREE.index(name) % 2]
    before = heads_of(model, blocks(model))
    assert (before.number, before.groups) == (4, 2)
    for i, block in enumerate(blocks(model)):
        columns = rows(model, block.out).unflatten(1, (4, -1))
        columns[:, [2, 3] if i % 2 else [0, 1]] = 0  # one group, another one in every other block
    smaller = shrink(model, heads=2, calibration=calibration)
    assert (smaller.config.num_attention_heads, smaller.config.num_key_value_heads) == (2, 1)
    torch.testing.assert_close(logits(smaller), logits(model), **CLOSE)
    torch.testing.assert_close(logits(reloaded(smaller, tmp_path)), logits(smaller), **CLOSE)


@pytest.mark.parametrize("name", FREE)
def test_heads_of_a_group_can_go_one_by_one(name):
    model = made(name)
    for block in blocks(model):
        rows(model, block.out).unflatten(1, (4, -1))[:, [1, 2]] = 0
    smaller = shrink(model, heads=2, kv_heads=2)
    torch.testing.assert_close(logits(smaller), logits(model), **CLOSE)


@pytest.mark.parametrize("name", UNTIED)
def test_channels_that_nobody_reads_can_go_with_the_heads_that_they_feed(name, tmp_path):
    """Two copies of every channel, one of them never read: a norm over both is a norm over one, so half the width is enough."""
    model = made(name)
    hidden, half = 16, 8
    known = {path for b in blocks(model) for path in (*b.attention, b.out, *b.into, b.outof)}
    coupled = name in COUPLED
    for path, module in model.named_modules():
        if path in known:
            continue
        for parameter in module.parameters(recurse=False):
            embedded = isinstance(module, nn.Embedding) and parameter.shape[1] == hidden
            if embedded or (parameter.dim() == 1 and len(parameter) == hidden):
                parameter.data[..., half:] = parameter.data[..., :half]
            elif parameter.dim() == 2 and not isinstance(module, nn.Embedding):
                if parameter.shape[0] == hidden:
                    parameter.data[half:] = parameter.data[:half]
                if parameter.shape[1] == hidden:
                    parameter.data[:, half:] = 0
    for block in blocks(model):
        for path in (*block.attention, *block.into):
            rows(model, path)[:, half:] = 0
        for path in (block.out, block.outof):
            rows(model, path)[half:] = rows(model, path)[:half]
            if model.get_submodule(path).bias is not None:
                model.get_submodule(path).bias.data[half:] = model.get_submodule(path).bias.data[:half]
        if coupled:
            rows(model, block.out).unflatten(1, (4, -1))[:, [0, 2]] = 0
    smaller = shrink(model, width=8)
    torch.testing.assert_close(logits(smaller), logits(model), rtol=0, atol=1e-6)  # epsilon of the norms
    assert smaller.config.num_attention_heads == (2 if coupled else 4)
    torch.testing.assert_close(logits(reloaded(smaller, tmp_path)), logits(smaller), **CLOSE)


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "DistilBertForMaskedLM"])
def test_tied_embeddings_stay_tied(name, tmp_path):
    model = made(name)
    smaller = shrink(model, layers=2, width=8)
    for one in (smaller, reloaded(smaller, tmp_path)):
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
        assert one.get_input_embeddings().weight.shape == (30, 8)
    untied = made("LlamaForCausalLM", tie_word_embeddings=False)
    small = shrink(untied, layers=1)
    assert small.get_output_embeddings().weight is not small.get_input_embeddings().weight


def test_the_largest_stay_in_their_order_with_everything_that_belongs_to_them():
    model = made("BertForSequenceClassification")
    block = blocks(model)[2]
    into, outof = (model.get_submodule(p) for p in (block.into[0], block.outof))
    score = torch.cat([into.weight, into.bias[:, None]], 1).norm(dim=1) * outof.weight.norm(dim=0)
    best = score.topk(9).indices.sort().values
    smaller = shrink(model, neurons=9, layers=[0, 2])
    mine = blocks(smaller)[1]
    assert torch.equal(smaller.get_submodule(mine.into[0]).weight, into.weight[best])
    assert torch.equal(smaller.get_submodule(mine.into[0]).bias, into.bias[best])
    assert torch.equal(smaller.get_submodule(mine.outof).weight, outof.weight[:, best])
    assert torch.equal(smaller.get_submodule(mine.outof).bias, outof.bias)


def test_importance_by_use_is_what_each_part_adds_to_the_stream():
    model = made("LlamaForCausalLM")
    found, layout = blocks(model), heads_of(model, blocks(model))
    heard: dict[str, torch.Tensor] = {}
    for path in (found[1].out, found[1].outof, found[1].path):
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: heard.update({path: args[0], path + "!": output})
        )
    scores = by_use(model, found, layout, [BATCHES[0], BATCHES[0]])  # twice the same: the same mean
    counts = MASK.bool()
    alone = heard[found[1].out].unflatten(-1, (4, 4))
    out = rows(model, found[1].out)
    for head in range(4):
        added = (alone[..., head, :] @ out.unflatten(1, (4, 4))[:, head].T).square().sum(-1)[counts].mean()
        torch.testing.assert_close(scores.heads[1][head], added)
    neuron = (heard[found[1].outof][..., 3, None] * rows(model, found[1].outof)[:, 3]).square().sum(-1)[counts].mean()
    torch.testing.assert_close(scores.neurons[1][3], neuron)
    after = heard[found[1].path + "!"]
    after = after[0] if isinstance(after, tuple) else after
    cosine = torch.cosine_similarity(heard[found[1].path], after, dim=-1)[counts].mean()
    torch.testing.assert_close(scores.layers[1], 1 - cosine)
    assert by_weights(model, found, layout).layers is None
    with pytest.raises(RecipeError, match="none were given"):
        by_use(model, found, layout, [])


@given(st.integers(1, 40), st.data())
def test_chosen_layers_are_so_many_ascending_and_there(number, data):
    count = data.draw(st.integers(1, number))
    for choose in ("spread", "alternate", "last-of-each", "first", "last"):
        found = chosen_layers(number, count, choose)
        assert found == sorted(set(found))
        assert len(found) == count
        assert 0 <= found[0] <= found[-1] < number
    assert chosen_layers(number, number) == list(range(number)) == chosen_layers(number, None)
    importance = torch.rand(number)
    best = chosen_layers(number, count, "importance", importance)
    assert set(best) == set(importance.topk(count).indices.tolist())


def test_which_layers():
    assert chosen_layers(12, 6, "alternate") == [0, 2, 4, 6, 8, 10]
    assert chosen_layers(12, 4, "last-of-each") == [2, 5, 8, 11]
    assert chosen_layers(12, 4) == [0, 4, 7, 11]
    assert chosen_layers(12, 1) == [0]
    assert chosen_layers(5, [1, 4]) == [1, 4]
    for wrong in ([], [1, 1], [2, 1], [0, 5], [-1]):
        with pytest.raises(RecipeError, match="needed are some of 0 to 4, ascending"):
            chosen_layers(5, wrong)
    for wrong in (0, 6, True):
        with pytest.raises(RecipeError, match="needed is 1 to 5 of them"):
            chosen_layers(5, wrong)
    with pytest.raises(RecipeError, match="Did you mean 'spread'"):
        chosen_layers(5, 2, "spred")
    with pytest.raises(RecipeError, match="measured on texts: give texts"):
        chosen_layers(5, 2, "importance")


def test_fused_projections_are_told_apart_by_trying():
    layouts = {name: heads_of(m := made(name), blocks(m)).layout for name in NAMES}
    assert {layouts[n] for n in ("GPT2LMHeadModel", "ModernBertForMaskedLM", "Phi3ForCausalLM")} == {"parts"}
    assert layouts["GPTNeoXForCausalLM"] == "groups"
    assert layouts["LlamaForCausalLM"] is None
    q, k, v = Heads(4, 2, 3, "groups").rows()
    assert q[:, 0].tolist() == [0, 3, 12, 15]
    assert (k[:, 0].tolist(), v[:, 0].tolist()) == ([6, 18], [9, 21])
    state = torch.get_rng_state()
    model = made("GPT2LMHeadModel")
    state = torch.get_rng_state()
    heads_of(model, blocks(model))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "keys", "sentence"),
    [
        ("BertForMaskedLM", {"heads": 2}, r"make up its width \(4 of 4 are 16\): with 2 heads give width=8"),
        ("BertForMaskedLM", {"width": 9}, "and a width that 4 divides"),
        ("BertForMaskedLM", {"width": 17}, "has 16 channels; needed is 1 to 16"),
        ("BertForMaskedLM", {"neurons": 25}, "have 24; needed is 1 to 24"),
        ("LlamaForCausalLM", {"heads": 3, "kv_heads": 2}, "4 in 2 groups of 2"),
        ("LlamaForCausalLM", {"kv_heads": 3}, "as many or fewer groups"),
        (
            "ModernBertForMaskedLM",
            {"layers": [1, 2]},
            "layers.1.attn_norm.weight is in one of the two only.*keep the first",
        ),
        ("ElectraForSequenceClassification", {"width": 12}, "embeddings_project.bias is in one of the two only"),
        ("GPT2LMHeadModel", {"layers": 9}, "needed is 1 to 4"),
    ],
)
def test_what_does_not_fit_is_said(name, keys, sentence):
    with pytest.raises(RecipeError, match=sentence):
        shrink(made(name), **keys)


def test_networks_that_are_no_single_stack_of_blocks_are_refused():
    small = {"vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    with pytest.raises(RecipeError, match=r"several lists of them \(encoder.block, decoder.block\)"):
        shrink(transformers.T5ForConditionalGeneration(transformers.T5Config(**small)), layers=1)
    albert = transformers.AlbertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=24
    )
    with pytest.raises(RecipeError, match="1 blocks of weights for 4 layers: they are shared"):
        shrink(transformers.AlbertModel(albert), layers=1)
    with pytest.raises(RecipeError, match="for networks of transformers, and Linear is none"):
        shrink(nn.Linear(2, 2), layers=1)
    numbered = made("GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match="with scale_attn_by_inverse_layer_idx a layer computes with its number"):
        shrink(numbered, layers=[0, 2])
    assert shrink(numbered, layers=2, choose="first").config.num_hidden_layers == 2


def test_precision_device_mode_and_generation_settings_go_along():
    model = made("LlamaForCausalLM").to(torch.bfloat16).train()
    model.generation_config.max_new_tokens = 7
    smaller = shrink(model, layers=2, neurons=8)
    assert smaller.dtype == torch.bfloat16
    assert smaller.training
    assert smaller.generation_config.max_new_tokens == 7
    inverse = model.model.rotary_emb.inv_freq.float()
    assert torch.equal(smaller.model.rotary_emb.inv_freq.to(torch.bfloat16).float(), inverse)
    assert model.config.num_hidden_layers == 4


def test_a_student_keeps_layers_and_its_taps_are_those_of_the_smaller_network(tmp_path):
    folder = encoder(tmp_path / "teacher")
    whole, student = Student(folder), Student(folder, layers=[0, 3], taps={"late": "bert.encoder.layer.1"})
    theirs = student.model.bert.encoder.layer[1].state_dict()
    assert all(
        torch.equal(value, theirs[name]) for name, value in whole.model.bert.encoder.layer[3].state_dict().items()
    )
    student.look_at(["text", "label"])
    heard = student({"text": ["a good film", "bad"]})
    assert heard["late"].shape == (2, 5, 16)
    assert student.source.model is student.model
    with pytest.raises(RecipeError, match="4 layers; needed is 1 to 4"):
        Student(folder, layers=5)


def test_layers_in_a_recipe_are_written_out_and_built(tmp_path):
    folder = str(encoder(tmp_path / "teacher"))
    recipe = Recipe.of({"student": {"model": folder, "layers": [0, 3]}})
    assert "layers: [0, 3]" in recipe.to_yaml()
    assert len(blocks(recipe.build_student().model)) == 2
    live = Recipe.of({"student": Student(folder, layers=3)})
    assert live.to_mapping()["student"]["layers"] == 3
    assert len(blocks(live.build_student().model)) == 3
    changed = live.with_settings("student.view=[text]")
    assert len(blocks(changed.build_student().model)) == 3  # not shrunk twice
    with pytest.raises(RecipeError, match="student.layers"):
        Recipe.of({"student": {"model": folder, "layers": "six"}})


@pytest.mark.parametrize("way", ["layers", "build"])
def test_a_run_ships_a_student_that_transformers_reads_alone(way, tmp_path):
    folder = str(encoder(tmp_path / "teacher"))
    made = {"model": "limbeck.models.shrink:build", "args": {"of": folder, "layers": 2, "neurons": 8}}
    student = {"model": folder, "layers": 2} if way == "layers" else made
    run = limbeck.distill(**keys(tmp_path), teacher=folder, student=student, method="kd", out=tmp_path / "run")
    shipped = run.folder / "student"
    alone = transformers.AutoModelForSequenceClassification.from_pretrained(shipped)
    assert alone.config.num_hidden_layers == 2
    tokens = transformers.AutoTokenizer.from_pretrained(shipped)(["a good film"], return_tensors="pt")
    again = Student(shipped)
    again.look_at(["text", "label"])
    with torch.no_grad():
        again.model.eval()
        torch.testing.assert_close(again({"text": ["a good film"]})["logits"], alone(**tokens).logits)
    assert json.loads((shipped / "limbeck.json").read_text())["surgery"] == []
    torch.testing.assert_close(Student(run.folder).model.state_dict(), again.model.state_dict())
    once_more = build(str(run.folder), layers=1)  # a student of the student
    assert len(blocks(once_more)) == 1


def test_importance_is_measured_on_texts_of_a_file(tmp_path):
    folder = str(encoder(tmp_path / "teacher"))
    (tmp_path / "texts.txt").write_text("a good film\n\nthe bad play was not good\n")
    made = build(folder, layers=2, choose="importance", texts=str(tmp_path / "texts.txt"), batch_size=1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    batch = reader(["a good film", "the bad play was not good"], return_tensors="pt", padding=True)
    influence = by_use(model, blocks(model), None, [{k: batch[k] for k in ("input_ids", "attention_mask")}]).layers
    best = sorted(influence.topk(2).indices.tolist())
    assert torch.equal(
        made.bert.encoder.layer[1].output.dense.weight, model.bert.encoder.layer[best[1]].output.dense.weight
    )
    with pytest.raises(RecipeError, match="there is no such file"):
        build(folder, texts="nowhere.txt")
    with pytest.raises(RecipeError, match=r"student.args.neuron'. Did you mean 'neurons'"):
        build(folder, neuron=3)
