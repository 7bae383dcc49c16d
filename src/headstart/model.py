"""A backbone with a head: the module that the loop trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from headstart.protocols import Backbone
from headstart.values import Batch, Features


class Model(nn.Module):
    """features (N,D) -> head -> outputs (N,K)."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> tuple[Features, Tensor]:
        """Features and outputs (N,K) of a batch; rows are mixed after pooling where `batch.mix` says so."""
        features = self.backbone(batch)
        pooled = features.pooled.float()
        if batch.mix is not None:
            share = batch.mix.share[:, None].to(pooled.dtype)
            pooled = share * pooled + (1 - share) * pooled[batch.mix.partner]
        # A head's outputs are compared with each other, so it always runs in full precision.
        with torch.autocast(pooled.device.type, enabled=False):
            return features, self.head(pooled)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Extra forward passes inside move no BatchNorm statistics and draw no dropout; gradients still flow."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
