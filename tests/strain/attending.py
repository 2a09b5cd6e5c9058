"""A tiny network for points that attends to two tokens of its class, as text-to-image networks attend to their prompt."""

import torch
from torch import nn

from limbeck.diffusion.network import Conditional
from limbeck.models.toy import Embedding


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Identity()])

    def heads(self, hidden, encoder_hidden_states):
        q, k, v = self.to_q(hidden), self.to_k(encoder_hidden_states), self.to_v(encoder_hidden_states)
        return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v

    def forward(self, hidden, encoder_hidden_states):
        z = self.heads(hidden, encoder_hidden_states)
        for layer in self.to_out:
            z = layer(z)
        return z


class Attending(Conditional):
    def __init__(self, width=8, classes=3, noise="flow", head="velocity", blocks=2):
        super().__init__(noise, head, classes=classes, shape=(2,))
        self.inputs, self.time, self.output = nn.Linear(2, width), Embedding(width), nn.Linear(width, 2)
        self.words = nn.Embedding(classes + 1, 2 * width)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn2": Attention(width)}) for _ in range(blocks))

    def tokens(self, condition):
        return self.words(condition).unflatten(1, (2, -1))

    def predict(self, x, t, condition=None):
        h = (self.inputs(x) + self.time(self.noise.share(t))).unsqueeze(1)
        for block in self.blocks:
            h = h + block["attn2"](torch.tanh(h), encoder_hidden_states=self.tokens(condition))
        return self.output(h.squeeze(1))
