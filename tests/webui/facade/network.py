"""A small SD1.5: the host's names, its wrapped text encoder, and layers whose weights LoRAs change at forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import oracle
from live_models import TORCH, to_torch

WIDTH = 6
VOCABULARY = 31

SHAPES: dict[str, tuple[int, ...]] = {
    "model.diffusion_model.input_blocks.0.0.weight": (WIDTH, 4, 3, 3),
    "model.diffusion_model.input_blocks.0.0.bias": (WIDTH,),
    "model.diffusion_model.middle_block.0.weight": (WIDTH, WIDTH),
    "model.diffusion_model.middle_block.0.bias": (WIDTH,),
    "model.diffusion_model.output_blocks.3.0.weight": (4, WIDTH, 3, 3),
    "model.diffusion_model.output_blocks.3.0.bias": (4,),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (VOCABULARY, WIDTH),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (WIDTH, WIDTH),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias": (WIDTH,),
    "first_stage_model.decoder.weight": (3, 4),
}
"""Of a checkpoint."""


class Wrapped(nn.Module):
    """What the host puts around a module: the name grows by `.wrapped`."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, *values: Any) -> Any:
        return self.wrapped(*values)


def _network(self: nn.Module) -> None:
    """The host's patch of every such layer's forward."""
    import sys

    networks = sys.modules.get("networks")
    apply = getattr(networks, "network_apply_weights", None)
    if apply is not None:
        apply(self)


class Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _network(self)
        return nn.functional.linear(x, self.weight.float(), None if self.bias is None else self.bias.float())


class Conv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _network(self)
        return nn.functional.conv2d(x, self.weight.float(), self.bias.float(), padding=1)


class Embedding(nn.Embedding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(x, self.weight.float())


def tree(**children: nn.Module) -> nn.Module:
    """A module with these children."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def unet() -> nn.Module:
    return tree(
        input_blocks=nn.ModuleList([nn.Sequential(Conv2d(4, WIDTH, 3))]),
        middle_block=nn.Sequential(Linear(WIDTH, WIDTH)),
        output_blocks=nn.ModuleList([nn.Module() for _ in range(3)] + [nn.Sequential(Conv2d(WIDTH, 4, 3))]),
    )


def run_unet(net: nn.Module, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """One step: [1, 4, 5, 5] → the same."""
    hidden = net.input_blocks[0](x) + cond.mean(0)[None, :, None, None]
    hidden = torch.tanh(net.middle_block(hidden.movedim(1, -1))).movedim(-1, 1)
    return net.output_blocks[3](hidden)


def text_model(embedding: nn.Module) -> nn.Module:
    layers = nn.ModuleList([tree(mlp=tree(fc1=Linear(WIDTH, WIDTH)))])
    return tree(text_model=tree(embeddings=tree(token_embedding=embedding), encoder=tree(layers=layers)))


def run_text(transformer: nn.Module, prompt: str) -> torch.Tensor:
    """[tokens, WIDTH]."""
    tokens = torch.tensor([ord(letter) % VOCABULARY for letter in prompt] or [0])
    model = transformer.text_model
    return torch.tanh(model.encoder.layers[0].mlp.fc1(model.embeddings.token_embedding(tokens)))


def name_layers(module: nn.Module) -> None:
    """LoRAs find their layers by these names."""
    for path, child in module.named_modules():
        child.network_layer_name = path.replace(".", "_")


def read(path: Any) -> dict[str, torch.Tensor]:
    """A checkpoint's state dict."""
    return {name: to_torch(item) for name, item in oracle.read(path).model.items()}


def cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return tensor.to(TORCH[dtype])
