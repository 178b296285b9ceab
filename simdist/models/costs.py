"""What a training step costs, counted from the config alone: parameters, FLOPs, bytes kept for the backward pass.

Legend: B clips, L frames, C channels of a latent, H of a GRU, A anchors, K steps predicted, N negatives.

A multiplication with its addition is two FLOPs. Counted are the products that the method needs, for they are what a
GPU's peak refers to; normalization, sampling and the optimizer cost bandwidth, not FLOPs. What an implementation does
on top (the first layer twice, kernels filled up to whole strides) is not counted. A module's input is detached, so its
first convolution (or its GRU, if that is all it has) computes no gradient for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from simdist.config.schema import Config, LayerConfig, ModuleConfig
from simdist.models.stem import LARGEST_WINDOW

PARTS = ("convs", "heads", "gru", "nce")
FLOAT32, INT64 = 4, 8  # bytes
GRU_KEPT = 5  # tensors (B, L, H) that cuDNN's GRU keeps for its backward pass: three gates, the candidate, the state


@dataclass
class Cost:
    """Of one part of a module, in one training step."""

    parameters: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    kept_bytes: int = 0
    """Kept from the forward for the backward pass, besides parameters."""

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward_flops + self.backward_flops

    def product(self, flops: int, *, left_grad: bool, right_grad: bool = True) -> None:
        """Add a product whose forward takes `flops`; each operand that wants a gradient takes as many again."""
        self.forward_flops += flops
        self.backward_flops += flops * (left_grad + right_grad)

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class ModuleCost:
    """Of one greedy module, in one training step of one rank."""

    frames: int
    """L of its latent."""
    latent_bytes: int
    """Its latents in float32: what a rank gives to the others of its group."""
    convs: Cost = field(default_factory=Cost)
    """Convolutions, BatchNorms and poolings."""
    heads: Cost = field(default_factory=Cost)
    """mu and log_var, sampling and the KL."""
    gru: Cost = field(default_factory=Cost)
    nce: Cost = field(default_factory=Cost)
    """The predictors W_k and the scores."""

    @property
    def total(self) -> Cost:
        """Of all parts together."""
        return self.convs + self.heads + self.gru + self.nce

    @property
    def gradient_bytes(self) -> int:
        """Float32 gradients that DDP averages over ranks."""
        return FLOAT32 * self.total.parameters


def module_costs(config: Config, clips: int, mixed: bool = True) -> list[ModuleCost]:
    """Each greedy module's cost in a training step with `clips` clips of `config.data.crop` samples on one rank.

    Args:
        config: the experiment.
        clips: B, a rank's share of the global batch.
        mixed: bf16 or fp16 autocast: activations take two bytes, but what must be in float32 takes four.
    """
    costs, frames, channels = [], config.data.crop, 1
    for module in config.model.modules:
        own = replace(config, model=config.model.of(module))
        cost, frames, channels = _module_cost(own, module, clips, frames, channels, 2 if mixed else FLOAT32)
        costs.append(cost)
    return costs


def step_flops(config: Config, clips: int) -> int:
    """FLOPs of one training step of all modules with `clips` clips, forward and backward."""
    return sum(cost.total.flops for cost in module_costs(config, clips))


def _module_cost(
    config: Config, module: ModuleConfig, clips: int, frames: int, channels: int, size: int
) -> tuple[ModuleCost, int, int]:
    """Cost, frames and channels of a module whose input is (clips, channels, frames); activations of `size` bytes."""
    convs, trained, inputs = Cost(), False, channels
    for number, layer in enumerate(module.layers):
        frames_in, frames = frames, layer.output_frames(frames)
        if layer.kind == "maxpool":
            in_stem = number == 1 and module.layers[0].relu and _is_stem(module, inputs)  # the ReLU comes after it
            read = number == len(module.layers) - 1 and not _keeps_own_input(config, module, number + 1, frames)
            convs.kept_bytes += (INT64 + size * (in_stem or read)) * clips * channels * frames
            continue
        kept = _kept_by_conv(config, module, number, clips, (frames_in, frames), (inputs, channels), size)
        convs += replace(_conv(config, layer, clips, frames, channels, trained), kept_bytes=kept)
        channels, trained = config.model.width, True
    heads = Cost()
    if module.layers and config.model.head != "none":
        heads = _heads(config, clips, frames, channels, size, trained)
        channels, trained = config.model.width, True
    cost = ModuleCost(frames, FLOAT32 * clips * channels * frames, convs, heads)
    if module.gru:
        cost.gru = _gru(config, clips, frames, channels, size, trained)
    cost.nce = _nce(config, module, clips, frames, channels, size, trained)
    return cost, frames, channels


def _conv(config: Config, layer: LayerConfig, clips: int, frames: int, channels: int, trained: bool) -> Cost:
    """Parameters and products of a convolution with its BatchNorm."""
    width, norm = config.model.width, config.model.batch_norm and layer.norm
    weights = width * channels * layer.kernel
    cost = Cost(parameters=weights + width + (2 * width if norm else 0))
    cost.product(2 * clips * frames * weights, left_grad=trained)
    return cost


def _is_stem(module: ModuleConfig, inputs: int) -> bool:
    """Whether `models.stem` computes the first layer: over few numbers at a time, which want no gradient."""
    first = module.layers[0]
    return first.kind == "conv" and inputs * first.kernel <= LARGEST_WINDOW


def _keeps_own_input(config: Config, module: ModuleConfig, number: int, frames: int) -> bool:
    """Whether layer `number`, or the heads behind the last, keep a padded copy of `frames` instead of their input."""
    if number == len(module.layers):
        return config.model.head != "none" and config.model.head_kernel > 1
    layer = module.layers[number]
    taps = -(-layer.kernel // layer.stride)
    blocks = (layer.output_frames(frames) + taps - 1) * layer.stride
    return layer.kind == "conv" and (layer.padding > 0 or blocks != frames)


def _kept_by_conv(
    config: Config,
    module: ModuleConfig,
    number: int,
    clips: int,
    frames: tuple[int, int],
    channels: tuple[int, int],
    size: int,
) -> int:
    """Bytes that layer `number`, a convolution of `frames` (in, out), keeps for its backward pass.

    `channels` are those of the module's input and of the layer's.

    In general: its padded input and its weights by taps, the BatchNorm's input, and the ReLU's output. Without a ReLU,
    its output is kept only by a layer above that reads it as it is. A stem keeps windows of audio instead of the first
    layer's output, whether a convolution or a pooling follows its ReLU.
    """
    layer, width, model, own = module.layers[number], config.model.width, config.model, channels[1]
    stem = _is_stem(module, channels[0])
    followed = [layer.kind for layer in module.layers[1:2] if module.layers[0].relu]
    kept_output = layer.relu or not _keeps_own_input(config, module, number + 1, frames[1])
    after_layer = size * clips * frames[1] * width * (kept_output + (model.batch_norm and layer.norm))
    if stem and number == 0:
        window = layer.kernel * own
        if followed == ["conv"]:
            return FLOAT32 * (window + 1) * width  # its windows are padded for the next layer: counted there
        pooled = followed == ["maxpool"]
        kept = size * clips * frames[1] * (window + pooled)
        return kept + (0 if pooled else size * clips * frames[1] * width * kept_output)
    taps = -(-layer.kernel // layer.stride)
    block_frames = (frames[1] + taps - 1) * layer.stride
    weights = FLOAT32 * taps * layer.stride * own * width * (layer.stride > 1)
    if stem and number == 1 and followed:
        window = module.layers[0].kernel * channels[0]
        return size * clips * block_frames * (window + 1) + weights + after_layer
    padded = _keeps_own_input(config, module, number, frames[0])
    pooled = number > 0 and module.layers[number - 1].kind == "maxpool"
    own_input = padded or pooled or (number == 0 and size != FLOAT32)  # else the layer below keeps it
    return size * clips * block_frames * own * own_input + weights + after_layer


def _heads(config: Config, clips: int, frames: int, channels: int, size: int, trained: bool) -> Cost:
    """The 1x1 convolutions, two draws, and the KL: of log_var, the draws and the KL everything is float32."""
    width, variational = config.model.width, config.model.head == "variational"
    weights = width * channels * config.model.head_kernel
    cost = Cost(parameters=(weights + width) * (1 + variational))
    cost.product(2 * clips * frames * weights * (1 + variational), left_grad=trained)
    rows = clips * (frames + config.model.head_kernel - 1)  # the last ones of a clip are cut off
    if config.model.head_kernel > 1:  # each head keeps its padded input
        cost.kept_bytes = size * rows * channels * (1 + variational)
    if variational:
        # mu, log_var, the latent's and the context's noise
        window = min(frames, config.loss.window or frames)
        cost.kept_bytes += (size + FLOAT32) * rows * width + FLOAT32 * clips * (frames + window) * width
    return cost


def _gru(config: Config, clips: int, frames: int, channels: int, size: int, trained: bool) -> Cost:
    """One layer: three gates from the input, three from the state before. What is kept is an estimate of cuDNN's."""
    hidden = config.model.context_width
    cost = Cost(parameters=3 * hidden * (channels + hidden + 2))
    cost.product(2 * clips * frames * 3 * hidden * channels, left_grad=trained)
    recurrent = 2 * clips * 3 * hidden * hidden  # a frame
    cost.product(recurrent * frames, left_grad=True)
    cost.backward_flops -= recurrent  # the first state is zero and wants no gradient
    cost.kept_bytes = size * clips * frames * (channels + (1 + GRU_KEPT) * hidden) + _cast(size, cost.parameters)
    return cost


def _nce(
    config: Config, module: ModuleConfig, clips: int, frames: int, channels: int, size: int, trained: bool
) -> Cost:
    """Predictions (B*A, K, C) against their K positives, views of the latents, and N negatives, gathered each time."""
    loss = config.loss.of(module)
    steps, negatives = loss.prediction_steps, loss.num_negatives
    context = config.model.context_width if module.gru else channels
    anchors = clips * (min(frames, config.loss.window or frames) - 1)  # B * A
    cost = Cost(parameters=steps * channels * context)
    cost.product(2 * anchors * cost.parameters, left_grad=trained or module.gru)
    cost.product(2 * anchors * steps * (1 + negatives) * channels, left_grad=True, right_grad=trained)
    cost.kept_bytes = size * (anchors * context + anchors * steps * channels)
    if config.model.head != "none" if module.layers else size != FLOAT32:  # else the latent is kept already
        cost.kept_bytes += size * clips * frames * channels
    sets = anchors * (steps if config.loss.negatives == "other_positives" else 1)
    cost.kept_bytes += INT64 * sets * negatives  # rows
    cost.kept_bytes += FLOAT32 * anchors * steps * (negatives + 2)  # scores, their log-sum-exp, the difference
    cost.kept_bytes += FLOAT32 * anchors // clips * steps  # weights
    cost.kept_bytes += _cast(size, cost.parameters)
    return cost


def _cast(size: int, weights: int) -> int:
    """Bytes of the weights' copy in the autocast type."""
    return size * weights if size != FLOAT32 else 0
