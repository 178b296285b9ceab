"""The straightforward training step that simdist's is measured against: equations first, one after the other.

It does what the authors' code does, in the same order and with as many operations, but none twice for want of care:
all modules forward, one backward of the summed losses, one Adam. InfoNCE gathers N permuted copies of all latents of
the batch, then scores one prediction step after the other against the last rows of them. Everything is float32.

Weights are named as simdist names them, so that both compute from the same ones: `tests/benchmarks/test_standin.py`
holds the losses and gradients against each other for the same draws.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.config.schema import Config, LossConfig, ModelConfig, ModuleConfig


@dataclass
class Recorded:
    """The random numbers of one module's forward, as upstream draws them."""

    start: int = 0
    """First frame of the window."""
    noise: list[Tensor] = field(default_factory=list)
    """(B, L, C), for the context and for the latent."""
    permutations: list[Tensor] = field(default_factory=list)
    """N permutations of the B*L latents."""
    negatives: Tensor | None = None
    """(B, A, N) rows that an anchor's steps share, as simdist draws them; instead of permutations."""


class Module(nn.Module):
    """One greedy module: (B, C_in, L_in) -> its loss and its latent (B, C, L)."""

    def __init__(self, config: ModuleConfig, model: ModelConfig, loss: LossConfig, channels: int) -> None:
        super().__init__()
        model = model.of(config)
        self.loss, self.steps = loss, loss.of(config).prediction_steps
        self.layers = nn.ModuleList()
        for layer in config.layers:
            if layer.kind == "maxpool":
                self.layers.append(nn.MaxPool1d(layer.kernel, layer.stride, layer.padding))
                continue
            conv = nn.Conv1d(channels, model.width, layer.kernel, layer.stride, layer.padding)
            norm = nn.BatchNorm1d(model.width) if model.batch_norm and layer.norm else nn.Identity()
            relu = nn.ReLU() if layer.relu else nn.Identity()
            self.layers.append(nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=relu)))
            channels = model.width
        has_head = bool(config.layers) and model.head != "none"
        padding = model.head_kernel // 2
        self.mu = nn.Conv1d(channels, channels, model.head_kernel, padding=padding) if has_head else None
        is_variational = has_head and model.head == "variational"
        self.log_var = nn.Conv1d(channels, channels, model.head_kernel, padding=padding) if is_variational else None
        self.gru = nn.GRU(channels, model.context_width, batch_first=True) if config.gru else None
        context = model.context_width if config.gru else channels
        self.predictor = nn.Linear(context, self.steps * channels, bias=False)
        self.channels = channels

    def forward(self, x: Tensor, beta: float, recorded: Recorded | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Its loss, its InfoNCE, and its latent without gradient."""
        for layer in self.layers:
            x = layer(x)
        mu = latent = context = self.mu(x) if self.mu is not None else x
        kl = torch.zeros((), device=x.device)
        if self.log_var is not None:
            log_var = self.log_var(x)
            context, latent = (self.sample(mu, log_var, i, recorded) for i in range(2))
            kl = (-0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(dim=2)).mean()
        targets, context = latent.transpose(1, 2), context.transpose(1, 2)  # (B, C, L) -> (B, L, C)
        if self.gru is not None:
            context = self.gru(targets)[0]
        nce = self.info_nce(context, targets, recorded)
        return nce + beta * kl, nce.detach(), latent.detach()

    def sample(self, mu: Tensor, log_var: Tensor, number: int, recorded: Recorded | None) -> Tensor:
        """mu + exp(log_var / 2) * eps."""
        noise = torch.randn_like(mu) if recorded is None else recorded.noise[number].transpose(1, 2)
        return mu + torch.exp(0.5 * log_var) * noise

    def info_nce(self, context: Tensor, latent: Tensor, recorded: Recorded | None) -> Tensor:
        """Mean over K steps of the cross-entropy of the right latent among N others."""
        frames, channels = latent.shape[1:]
        window = min(frames, self.loss.window or frames)
        start = int(torch.randint(frames - window + 1, ())) if recorded is None else recorded.start
        every = latent.reshape(-1, channels)  # (B, L, C) -> (B*L, C)
        shared = None if recorded is None or recorded.negatives is None else every[recorded.negatives]  # (B, A, N, C)
        drawn = recorded.permutations if recorded is not None else self.permutations(every)
        negatives = every[torch.stack(drawn, dim=1)] if shared is None else shared  # (B*L, N, C)
        context, latent = context[:, start : start + window], latent[:, start : start + window]
        losses = []
        for k, weight in enumerate(self.predictor.weight.chunk(self.steps), start=1):
            predicted = F.linear(context[:, :-k], weight).reshape(-1, channels, 1)  # (B*(W-k), C, 1)
            positive = latent[:, k:].reshape(-1, 1, channels) @ predicted  # (B*(W-k), 1, 1)
            wrong = negatives[-len(predicted) :] if shared is None else shared[:, : window - k].flatten(0, 1)
            negative = wrong @ predicted  # (B*(W-k), N, C) x (B*(W-k), C, 1) -> (B*(W-k), N, 1)
            scores = torch.cat([positive, negative], dim=1)
            losses.append(-F.log_softmax(scores, dim=1)[:, 0].mean())
        return torch.stack(losses).mean()

    def permutations(self, every: Tensor) -> list[Tensor]:
        """N permutations of the rows."""
        return [torch.randperm(len(every), device=every.device) for _ in range(self.loss.num_negatives)]


class StandIn(nn.Module):
    """All greedy modules with one Adam."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.greedy, channels = nn.ModuleList(), 1
        for module in config.model.modules:
            self.greedy.append(Module(module, config.model, config.loss, channels))
            channels = self.stack[-1].channels
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.optim.lr)

    @property
    def stack(self) -> list[Module]:
        """The modules, in order."""
        return [module for module in self.greedy if isinstance(module, Module)]

    def losses(self, audio: Tensor, beta: float, recorded: list[Recorded] | None = None) -> tuple[Tensor, Tensor]:
        """Losses with gradient and InfoNCEs, both (modules,), of audio (B, 1, T)."""
        x, losses, nces = audio, [], []
        for m, module in enumerate(self.stack):
            loss, nce, x = module(x, beta, recorded[m] if recorded is not None else None)
            losses.append(loss)
            nces.append(nce)
        return torch.stack(losses), torch.stack(nces)

    def step(self, audio: Tensor, beta: float, recorded: list[Recorded] | None = None) -> Tensor:
        """One update; returns each module's InfoNCE."""
        losses, nces = self.losses(audio, beta, recorded)
        self.optimizer.zero_grad()
        losses.sum().backward()
        self.optimizer.step()
        return nces


def batched_info_nce(context: Tensor, latent: Tensor, weight: Tensor, negatives: Tensor, steps: int) -> Tensor:
    """The plainest way to one batched product over all steps, by which the cost of `Module.info_nce` is judged.

    Args:
        context: (B, W, C_context) of the window, which begins at frame 0.
        latent: (B, L, C).
        weight: (K*C, C_context).
        negatives: (B, W - 1, N) rows, shared by an anchor's steps.
        steps: K.
    """
    batch, window, _ = context.shape
    frames, channels = latent.shape[1:]
    predicted = F.linear(context[:, :-1], weight).view(-1, steps, channels)  # (B*A, K, C)
    target = torch.arange(window - 1)[:, None] + torch.arange(1, steps + 1)  # (A, K)
    positives = torch.arange(batch)[:, None, None] * frames + target.clamp(max=window - 1)
    rows = torch.cat([positives, negatives], dim=2).flatten(0, 1)
    scores = predicted @ latent.reshape(-1, channels)[rows].transpose(1, 2)  # (B*A, K, K + N)
    positive = scores[:, :, :steps].diagonal(dim1=1, dim2=2)[..., None]
    losses = -F.log_softmax(torch.cat([positive, scores[:, :, steps:]], dim=2), dim=2)[..., 0]  # (B*A, K)
    inside = (target < window).repeat(batch, 1)
    return ((losses * inside).sum(0) / inside.sum(0)).mean()
