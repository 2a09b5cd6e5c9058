"""Features told to later layers: nothing at first, then c + a(t) W p behind the layer only; copies, other surgeries, refusals."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limbeck.actors import Student
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.further import hear
from limbeck.diffusion.network import Plain
from limbeck.diffusion.selfconditioned import condition, layer_for, listeners, pooled, refuse_unheard, self_condition
from limbeck.diffusion.styles import learn_styles
from limbeck.errors import RecipeError
from limbeck.models.toy import Mixture, PictureDenoiser, PointDenoiser

T = torch.tensor([0.3, 0.7])
X, PICTURES = torch.tensor([[0.3, -1.0], [1.0, 0.2]]), torch.linspace(-1, 1, 128).view(2, 1, 8, 8)


def network(kind=PointDenoiser, **options):
    torch.manual_seed(0)
    return kind(**({"width": 8} | options))


def learnt(model, size=1.0):
    """As after some training: features are told, by an amount that goes with time."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.route.parameters():
            p.normal_(std=size, generator=g)
    return model


def amount(route, share):
    """a(t), written anew."""
    angles = share[:, None] * torch.logspace(0, 1.5, 8, dtype=share.dtype)
    return 1 + torch.cat([angles.sin(), angles.cos()], 1) @ route.scale.weight.T + route.scale.bias


def test_pooling_is_the_mean_over_places():
    maps, tokens, vectors = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 3), torch.randn(2, 3)
    torch.testing.assert_close(pooled(maps), maps.mean((2, 3)))
    torch.testing.assert_close(pooled(tokens), tokens.mean(1))
    assert torch.equal(pooled((vectors, maps)), vectors)
    torch.testing.assert_close(pooled(maps[..., None]), maps.mean((2, 3)))


@pytest.mark.parametrize(("kind", "x", "features"), [(PointDenoiser, X, 8), (PictureDenoiser, PICTURES, 16)])
def test_at_first_the_network_says_what_it_said_to_the_bit(kind, x, features):
    model = network(kind)
    before = model.predict(x, T)
    condition(model, layer_for(model), features)
    assert torch.equal(model.predict(x, T), before)
    model.double()
    assert torch.equal(model.predict(x.double(), T), kind.predict(copy.deepcopy(model), x.double(), T))


@settings(max_examples=12, deadline=None)
@given(depth=st.integers(3, 5), width=st.sampled_from([1, 3, 8]), data=st.data())
def test_of_points_layers_behind_hear_the_time_and_what_was_told(depth, width, data):
    """e' = e + a(t) W p in every hidden layer behind the one that is heard, and e in those before and in itself."""
    at = data.draw(st.integers(0, depth - 3))
    model = network(width=width, depth=depth).double()
    condition(model, f"hidden.{at}", width)
    learnt(model)
    x, t = X.double(), T.double()
    e = model.embedded(t, {})
    h = F.silu(model.inputs(x) + e)
    for i, layer in enumerate(model.hidden):
        z = F.linear(h, layer.weight, layer.bias)
        h = h + F.silu(z + e)
        if i == at:
            e = e + amount(model.route, t) * (z @ model.route.map.weight.T)
    torch.testing.assert_close(model.predict(x, t), model.output(h))


def test_of_pictures_blocks_behind_hear_it():
    model = network(PictureDenoiser).double()
    condition(model, "inner.0", 16)
    learnt(model, 0.3)
    x, t = PICTURES.double(), T.double()
    e = model.embedded(t, {})
    bare = copy.deepcopy(model)
    for module in bare.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    wide = bare.down(bare.inputs(x), e)
    h = bare.inner[0](bare.smaller(wide), e)
    e = e + amount(model.route, t) * (h.mean((2, 3)) @ model.route.map.weight.T)
    h = bare.up(torch.cat([wide, bare.larger(bare.inner[1](h, e))], 1), e)
    torch.testing.assert_close(model.predict(x, t), bare.output(F.silu(bare.norm(h))))
    assert model.route.now.heard == 2


def test_nothing_before_the_layer_changes_and_nothing_is_left_for_the_next_pass():
    model = network(depth=4)
    condition(model, "hidden.1", 8)
    heard = {}
    for i, layer in enumerate(model.hidden):
        layer.register_forward_hook(lambda m, args, out, i=i: heard.setdefault(i, []).append(out))
    model.predict(X, T)
    first = model.predict(X, T)
    learnt(model)
    told = model.predict(X, T)
    again = model.predict(X, T)
    assert all(torch.equal(heard[i][1], heard[i][2]) for i in (0, 1))
    assert not torch.equal(heard[2][1], heard[2][2])
    assert torch.equal(told, again)
    assert not torch.allclose(told, first)


def test_each_sample_is_told_its_own_and_at_its_own_time():
    model = network()
    condition(model, "hidden.0", 8)
    learnt(model)
    alone = torch.cat([model.predict(X[i : i + 1], T[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(model.predict(X, T), alone)
    torch.testing.assert_close(model.predict(X.flip(0), T.flip(0)), alone.flip(0))


def test_gradients_reach_what_is_told_once_something_is():
    model = network().double()
    condition(model, "hidden.0", 8)
    model.predict(X.double(), T).square().sum().backward()
    assert model.route.map.weight.grad.abs().max() > 0
    assert model.route.scale.weight.grad.abs().max() == 0  # W p is still nothing
    learnt(model)

    def said(weight, scale):
        now = {"route.map.weight": weight, "route.scale.weight": scale}
        return torch.func.functional_call(Called(model), {f"model.{k}": v for k, v in now.items()}, (X.double(),))

    own = (model.route.map.weight.detach().clone(), model.route.scale.weight.detach().clone())
    assert torch.autograd.gradcheck(said, tuple(p.requires_grad_() for p in own))


class Called(nn.Module):
    """A network as a module that is called on x alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.predict(x, T)


@pytest.mark.parametrize("noise", ["flow", "vp", "ve"])
def test_the_amount_goes_by_the_share_of_whatever_times_the_schedule_has(noise):
    model = network(noise=noise)
    condition(model, "hidden.0", 8)
    assert (model.route.amount(torch.rand(5)) == 1).all()
    learnt(model)
    model.predict(X, model.noise.at(T))
    torch.testing.assert_close(model.route.now.time, T)
    torch.testing.assert_close(model.route.amount(T), amount(model.route, T))
    wrapped = Plain(Own(), noise, "x0")
    condition(wrapped, "network.body", 6, ["network.more"])
    learnt(wrapped)
    fed = model.noise.fed(torch.tensor([model.noise.first, model.noise.last]))
    torch.testing.assert_close(wrapped.route.amount(fed), amount(wrapped.route, torch.tensor([0.0, 1.0])))


def test_other_surgeries_before_and_after_keep_their_effect():
    numbers = {"until": torch.tensor([0.2, 0.9])}
    found = []
    for order in ((0, 1), (1, 0)):
        model = network()
        for step in order:
            hear(model, {"until": 0.0}) if step else condition(model, "hidden.0", 8)
        learnt(model)
        with torch.no_grad():
            model.numbers.layers["until"].weight.normal_(generator=torch.Generator().manual_seed(2))
        found.append(model.predict(X, T, **numbers))
        assert not torch.allclose(found[-1], model.predict(X, T))
        model.route.map.weight.data.zero_()
        assert not torch.allclose(found[-1], model.predict(X, T, **numbers))
    torch.testing.assert_close(*found)
    styled = network()
    condition(styled, "hidden.0", 8)
    plain = learnt(styled).predict(X, T)
    learn_styles(styled, [1.0])
    assert torch.equal(styled.predict(X, T), plain)


def test_a_copy_is_a_network_of_its_own_also_in_the_middle_of_a_graph():
    model = network()
    condition(model, "hidden.0", 8)
    model.predict(X, T).sum().backward()
    before = model.predict(X, T)
    twin = copy.deepcopy(model)
    learnt(twin)
    assert torch.equal(model.predict(X, T), before)
    assert not torch.allclose(twin.predict(X, T), before)
    assert next(iter(twin.time._forward_pre_hooks.values())).__self__ is twin.route


def test_the_surgery_is_noted_repeats_from_plain_data_and_does_nothing_twice():
    actor = Student(network())
    actor.look_at(["x"])
    actor.tap("hint", "hidden.0")
    assert self_condition(actor, "hidden.0", 8) == []
    (done,) = actor.source.surgery
    again = network()
    condition(again, **done["structure"])
    condition(again, **done["structure"])
    again.load_state_dict(learnt(actor.model).state_dict())
    assert torch.equal(again.predict(X, T), actor.model.predict(X, T))
    with pytest.raises(RecipeError, match="method.layer=hidden.0"):
        condition(again, "hidden.1", 8)
    denoiser = Denoiser(actor)
    whole = denoiser(X, T)
    assert torch.equal(denoiser.feature("hint", X, T, {}), denoiser.heard["hint"])  # a pass that ends at the layer
    assert torch.equal(denoiser(X, T).value, whole.value)


def test_the_middle_is_heard_or_the_layer_before_where_nobody_is_behind_it():
    assert layer_for(network()) == "hidden.0"
    assert layer_for(network(depth=5)) == "hidden.2"
    assert layer_for(network(PictureDenoiser)) == "inner.1"
    for named in ("inputs", "hidden.1"):
        assert layer_for(network(), named) == named
    assert [one.path for one in listeners(network(PictureDenoiser))] == ["down", "inner.0", "inner.1", "up"]
    with pytest.raises(RecipeError, match="method.layer"):
        layer_for(Mixture([[0.0, 1.0]], 0.1))


def test_a_layer_behind_which_nobody_listens_is_refused():
    model = network()
    condition(model, "hidden.1", 8)
    actor = Student(model)
    actor.look_at(["x"])
    with pytest.raises(RecipeError, match="an earlier one"):
        refuse_unheard(Denoiser(actor), X, {})
    heard = network()
    condition(heard, "inputs", 8)
    refuse_unheard(Denoiser(Student(heard, view=["x"])), X, {})
    assert heard.route.now.heard == 2


class Own(nn.Module):
    """Somebody's network of tokens, with places of its own."""

    def __init__(self):
        super().__init__()
        self.clock, self.body, self.more, self.last = nn.Linear(1, 6), nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x, t):
        h = (self.body(x) + self.clock(t[:, None]).unsqueeze(1)).tanh()
        return self.last(h + self.more(h).tanh())


def test_an_unknown_network_says_into_which_layers():
    def own():
        torch.manual_seed(0)
        return Plain(Own(), "vp", "epsilon", shape=(5, 2))

    with pytest.raises(RecipeError, match="method.into"):
        condition(own(), "network.body", 6)
    with pytest.raises(RecipeError, match="method.into names network.nothing"):
        listeners(own(), ["network.nothing"])
    with pytest.raises(RecipeError, match="several widths"):
        listeners(own(), ["network.more", "network.last"])
    with pytest.raises(RecipeError, match="'network.body:input' is no layer"):
        condition(own(), "network.body:input", 6, ["network.more"])
    model, x, t = own(), torch.randn(2, 5, 2), torch.tensor([10.0, 900.0])
    plain = model.predict(x, t)
    condition(model, "network.body", 6, ["network.more"])
    assert torch.equal(model.predict(x, t), plain)
    learnt(model)
    net, route = model.network, model.route
    body = x @ net.body.weight.T + net.body.bias
    h = (body + F.linear((t - 1)[:, None], net.clock.weight, net.clock.bias).unsqueeze(1)).tanh()
    r = amount(route, (t - 1) / 999) * (body.mean(1) @ route.map.weight.T)
    more = h @ net.more.weight.T + net.more.bias + r.unsqueeze(1)
    torch.testing.assert_close(model.predict(x, t), F.linear(h + more.tanh(), net.last.weight, net.last.bias))


def test_blocks_that_are_computed_again_in_the_backward_pass_are_refused():
    model = network(PictureDenoiser)
    condition(model, "inner.0", 16)
    learnt(model)
    inner = type(model.inner[1]).forward.__get__(model.inner[1])
    model.inner[1].forward = lambda x, e: checkpoint(inner, x, e, use_reentrant=False)
    model.predict(PICTURES, T).sum().backward()  # hooks around a block are not called again
    up = model.up
    model._modules["up"] = Again(up)
    with pytest.raises(RecipeError, match="train.gradient_checkpointing=false"):
        model.predict(PICTURES, T).sum().backward()


class Again(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, e):
        return checkpoint(self.inner, x, e, use_reentrant=False)


def test_half_precision_stays():
    for kind, x, features in ((PointDenoiser, X, 8), (PictureDenoiser, PICTURES, 16)):
        model = network(kind)
        condition(model, layer_for(model), features)
        learnt(model).bfloat16()
        assert model.predict(x.bfloat16(), T).dtype == torch.bfloat16


def unet():
    diffusers = pytest.importorskip("diffusers")
    from limbeck.models.adapters.companions import Companions
    from limbeck.models.adapters.diffusers_network import DiffusersNetwork

    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DiffusersNetwork(net, Companions(scheduler=diffusers.DDPMScheduler())).eval()


def test_a_unet_of_diffusers_hears_its_middle_on_the_way_up():
    model, t = unet(), torch.tensor([100.0, 500.0])
    plain = model.predict(PICTURES, t)
    assert layer_for(model) == "network.mid_block"
    condition(model, "network.mid_block", 8)
    assert torch.equal(model.predict(PICTURES, t), plain)
    learnt(model, 0.3)
    up = [module for name, module in unet().network.named_modules() if "up_blocks" in name and "resnets." in name]
    counted = sum(type(module).__name__ == "ResnetBlock2D" for module in up)
    middle = []
    model.network.mid_block.register_forward_hook(lambda m, args, out: middle.append(out))
    found = model.predict(PICTURES, t)
    assert model.route.now.heard == counted == 4
    told = amount(model.route, (t - 1) / 999) * (middle[0].mean((2, 3)) @ model.route.map.weight.T)
    other = unet()
    for module in other.network.up_blocks.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.register_forward_pre_hook(lambda m, args: (args[0], args[1] + told, *args[2:]))
    torch.testing.assert_close(found, other.predict(PICTURES, t))
    assert not torch.allclose(found, plain)


def test_a_diffusion_transformer_of_diffusers_hears_in_later_blocks_and_at_its_end():
    diffusers = pytest.importorskip("diffusers")
    from limbeck.models.adapters.companions import Companions
    from limbeck.models.adapters.diffusers_network import DiffusersNetwork

    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        sample_size=8,
        patch_size=4,
        num_embeds_ada_norm=5,
    )
    nn.init.normal_(net.proj_out_2.weight, std=0.1)
    model = DiffusersNetwork(net, Companions(scheduler=diffusers.DDPMScheduler())).eval()
    t, label = torch.tensor([100.0, 500.0]), torch.tensor([0, 3])
    plain = model.predict(PICTURES, t, condition=label)
    actor = Student(model)
    assert layer_for(model) == "network.transformer_blocks.1"
    (sentence,) = self_condition(actor, "network.transformer_blocks.1", 8)
    assert "pipeline" in sentence
    assert torch.equal(model.predict(PICTURES, t, condition=label), plain)
    learnt(model, 0.3)
    assert not torch.allclose(model.predict(PICTURES, t, condition=label), plain)
    assert model.route.now.heard == 2  # the last block, and the modulation of what is given
    model.network.enable_gradient_checkpointing()
    model.train()
    with pytest.raises(RecipeError, match="checkpointing"):
        model.predict(PICTURES, t, condition=label).sum().backward()


def test_a_transformer_of_stable_diffusion_3_hears_too():
    diffusers = pytest.importorskip("diffusers")
    from limbeck.models.adapters.companions import Companions
    from limbeck.models.adapters.diffusers_network import DiffusersNetwork

    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=4,
    )
    model = DiffusersNetwork(net, Companions(scheduler=diffusers.FlowMatchEulerDiscreteScheduler())).eval()
    said = {"condition": torch.randn(2, 3, 8), "pooled": torch.randn(2, 8)}
    plain = model.predict(PICTURES, T, **said)
    condition(model, "network.transformer_blocks.1.0", 8)
    assert torch.equal(model.predict(PICTURES, T, **said), plain)
    learnt(model, 0.3)
    assert not torch.allclose(model.predict(PICTURES, T, **said), plain)
    assert model.route.now.heard == 3  # both norms of the last block, and the last of all
