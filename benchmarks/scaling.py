"""Scale on paper: what a training step computes, keeps, averages over ranks and reads, from 1 to 1,024 GPUs.

Nothing is run: costs are counted from the config (`simdist.models.costs`, which a test holds against torch's counter)
and divided by the rates below. The rates are assumptions, printed with the tables; options replace them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simdist.config.load import CONFIGS, experiment_parser, parse_experiment
from simdist.config.schema import Config
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError
from simdist.models.costs import PARTS, ModuleCost, module_costs

DESCRIPTION = """\
Print tables of what a training step costs from one GPU to 1,024, counted from the configuration.

Examples:
  python -m benchmarks.scaling
  python -m benchmarks.scaling --config configs/cpc_librispeech.yaml --clips 64 --gpu h200
"""
PEAK = {"h100": (989e12, 3.35e12), "h200": (989e12, 4.8e12)}  # dense bf16 FLOP/s, bytes/s of memory; NVIDIA data sheets
GPUS_A_NODE = 8
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TRAFFIC = 4  # times the kept bytes cross the memory bus: written, read again, and their gradients written and read
ADAM_BYTES = 28  # per parameter: gradient, two moments and weight read; moments and weight written
BUCKET, FIRST_BUCKET = 25 * 2**20, 2**20  # bytes: DDP's defaults
FLAC_READ, FLAC_RATE, WAV_RATE = (
    68_300,
    1_400,
    45_000,
)  # bytes per crop, clips/s per core: measured, see docs/explanation/scaling.md


@dataclass(frozen=True)
class Fabric:
    """What connects the ranks of an all-reduce."""

    name: str
    bandwidth: float
    """Bytes/s in each direction that a ring, or all rings of a node together, can use."""
    latency: float
    """Seconds from one rank to the next."""


NVLINK = Fabric("NVLink", 450e9, 2e-6)  # fourth generation, one GPU
BETWEEN_NODES = (
    Fabric("NDR", GPUS_A_NODE * 50e9, 6e-6),  # one 400 Gb/s port per GPU; NCCL lays a ring through each
    Fabric("25 GbE", 3.125e9, 30e-6),  # one port a node
)


@dataclass(frozen=True)
class Rates:
    """Assumptions about the hardware."""

    flops: float
    """FLOP/s that are reached."""
    memory: float
    """Bytes/s of GPU memory that are reached."""
    floor: float
    """Seconds that a step takes however small it is: launches, and the GRU's frames one after the other."""
    link: float
    """Share of a link's bandwidth that is reached."""


def compute_time(costs: Sequence[ModuleCost], rates: Rates) -> float:
    """Seconds of a step on one GPU: products and memory traffic one after the other, and never below the floor."""
    totals = [cost.total for cost in costs]
    traffic = sum(TRAFFIC * total.kept_bytes + ADAM_BYTES * total.parameters for total in totals)
    return max(sum(total.flops for total in totals) / rates.flops + traffic / rates.memory, rates.floor)


def all_reduce_time(num_bytes: float, messages: int, ranks: int, fabric: Fabric, share: float) -> float:
    """Seconds to sum `num_bytes` in `messages` parts over `ranks`: 2(n-1)/n of the bytes pass every link.

    The latency is a ring's 2(n-1) hops, or a tree's 2 log2(n) where that is less, as NCCL chooses.
    """
    if ranks == 1:
        return 0.0
    hops = min(2 * (ranks - 1), 2 * math.ceil(math.log2(ranks)))
    return 2 * (ranks - 1) / ranks * num_bytes / (fabric.bandwidth * share) + messages * hops * fabric.latency


def step_communication(costs: Sequence[ModuleCost], config: Config, ranks: int, fabric: Fabric, share: float) -> float:
    """Seconds of all collectives of a step: gradients in DDP's buckets, and BatchNorm's buffers from rank 0."""
    fabric = fabric if ranks > GPUS_A_NODE else NVLINK
    size = 0.5 if config.train.compress_gradients else 1.0
    seconds = 0.0
    for cost in costs:
        num_bytes = size * cost.gradient_bytes
        messages = 1 + math.ceil(max(0.0, num_bytes - FIRST_BUCKET) / BUCKET)
        messages += config.model.batch_norm and cost.convs.parameters > 0
        seconds += all_reduce_time(num_bytes, messages, ranks, fabric, share)
    return seconds


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under a line of text; the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    align: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(head) - 1)]
    lines = [
        "| " + " | ".join(side(cell, width) for side, cell, width in zip(align, row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join(["", title, "", lines[0], rule, *lines[1:]])


def module_table(costs: Sequence[ModuleCost], clips: int) -> str:
    """Parameters, FLOPs and bytes of each module, and of all."""

    def row(name: str, parts: Sequence[float], rest: Sequence[float]) -> list[str]:
        return [name, *(f"{flops / 1e9:.1f}" for flops in parts), *(f"{number / 1e6:.2f}" for number in rest)]

    rows, sums = [], [0.0] * 8
    for m, cost in enumerate(costs):
        total = cost.total
        parts = [getattr(cost, part).flops for part in PARTS]
        numbers = [*parts, total.flops, total.parameters, total.kept_bytes, cost.gradient_bytes]
        sums = [a + b for a, b in zip(sums, numbers, strict=True)]
        rows.append(row(f"{m}", numbers[:5], numbers[5:]))
    rows.append(row("all", sums[:5], sums[5:]))
    head = ["module", *(f"{part} GFLOP" for part in PARTS), "all GFLOP", "parameters M", "kept MB", "gradients MB"]
    return table(f"A step of {clips} clips on one GPU, forward and backward, by module.", head, rows)


def scaling_table(costs: Sequence[ModuleCost], config: Config, clips: int, rates: Rates) -> str:
    """All-reduce against compute: NVLink within nodes of eight GPUs, one of the fabrics between nodes."""
    compute = compute_time(costs, rates)
    rows = []
    for ranks in COUNTS:
        cells = [f"{ranks}", f"{ranks * clips}", f"{compute * 1e3:.2f}"]
        for fabric in BETWEEN_NODES:
            averaging = step_communication(costs, config, ranks, fabric, rates.link)
            cells += [
                f"{averaging * 1e3:.2f}",
                f"{compute / (compute + averaging):.0%}",
                f"{compute / max(compute, averaging):.0%}",
                f"{ranks * clips / (compute + averaging):,.0f}",
            ]
        rows.append(cells)
    head = ["GPUs", "batch", "compute ms"]
    for fabric in BETWEEN_NODES:
        head += [f"{fabric.name} ms", "efficiency", "if hidden", "clips/s"]
    return table(
        f"All-reduce against compute, {clips} clips per GPU (up to {GPUS_A_NODE} GPUs: NVLink alone).", head, rows
    )


def batch_table(config: Config, rates: Rates) -> str:
    """What more clips per GPU do to a step."""
    rows = []
    for clips in (1, 2, 4, 8, 16, 32, 64, 128):
        costs = module_costs(config, clips)
        compute = compute_time(costs, rates)
        flops = sum(cost.total.flops for cost in costs)
        kept = [cost.total.kept_bytes for cost in costs]
        ethernet, infiniband = (
            compute / (compute + step_communication(costs, config, 64, fabric, rates.link))
            for fabric in reversed(BETWEEN_NODES)
        )
        rows.append(
            [
                f"{clips}",
                f"{compute * 1e3:.2f}",
                f"{clips / compute:,.0f}",
                f"{flops / compute / 1e12:.0f}",
                f"{max(kept) / 1e9:.2f}",
                f"{sum(kept) / 1e9:.2f}",
                f"{infiniband:.0%}",
                f"{ethernet:.0%}",
            ]
        )
    head = [
        "clips per GPU",
        "compute ms",
        "clips/s",
        "TFLOP/s",
        "kept GB, largest module",
        "of all",
        "64 GPUs NDR",
        "25 GbE",
    ]
    return table("More clips per GPU: throughput of one GPU, and efficiency of 64.", head, rows)


def loader_table(config: Config, clips: int, rates: Rates) -> str:
    """What storage and CPU cores must deliver so that no GPU waits."""
    rate = clips / compute_time(module_costs(config, clips), rates)
    rows = []
    for name, count in (
        ("one GPU", 1),
        (f"a node of {GPUS_A_NODE}", GPUS_A_NODE),
        ("64 GPUs", 64),
        ("1,024 GPUs", 1024),
    ):
        wanted = rate * count
        wav = 2 * config.data.crop
        flac = FLAC_READ - 2 * 20_480 + wav  # a seek costs the same whatever is read after it
        cells = [name, f"{wanted:,.0f}", f"{wanted * config.data.crop / 16_000 / 3600:,.2f}"]
        rows.append(
            [
                *cells,
                f"{wanted * flac / 1e6:,.0f}",
                f"{wanted / FLAC_RATE:,.1f}",
                f"{wanted * wav / 1e6:,.0f}",
                f"{wanted / WAV_RATE:,.1f}",
            ]
        )
    head = ["for", "clips/s", "hours of speech/s", "FLAC MB/s", "FLAC cores", "WAV MB/s", "WAV cores"]
    return table(f"What the loader must deliver, {clips} clips per GPU and step.", head, rows)


def negatives_table(config: Config, costs: Sequence[ModuleCost], clips: int) -> str:
    """Where a negative comes from, at one global batch on more and more ranks; and what gathering would take."""
    batch = 64
    latents = sum(cost.latent_bytes for cost in costs) / clips  # per clip, float32
    largest = max(cost.latent_bytes for cost in costs) / clips
    rows = []
    for ranks in (1, 2, 4, 8, 16, 32, 64):
        share = batch // ranks
        rows.append(
            [
                f"{ranks}",
                f"{share}",
                f"{1 / share:.1%}",
                f"{config.loss.num_negatives / share:.1f}",
                f"{1 / batch:.1%}",
                f"{(batch - share) * latents / 1e6:,.0f}",
                f"{batch * largest / 1e6:,.0f}",
            ]
        )
    head = [
        "ranks",
        "clips per rank",
        "from own sequence",
        f"of {config.loss.num_negatives}",
        "one group",
        "one group: received MB/step",
        "held MB",
    ]
    return table(f"Negatives of a global batch of {batch} on more and more ranks.", head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = experiment_parser("python -m benchmarks.scaling", DESCRIPTION)
    parser.add_argument("--clips", type=int, default=8, help="Clips on each GPU in a step.")
    parser.add_argument("--gpu", choices=list(PEAK), default="h100", help="Whose peak rates are taken.")
    parser.add_argument("--share", type=float, default=0.3, help="Share of the GPU's peak FLOP/s that is reached.")
    parser.add_argument("--memory-share", type=float, default=0.7, help="Share of its memory's peak bandwidth.")
    parser.add_argument("--link-share", type=float, default=0.8, help="Share of a link's bandwidth.")
    parser.add_argument("--floor-ms", type=float, default=6.0, help="Shortest possible step, whatever its size.")
    config, parsed = parse_experiment(parser, argv, default=CONFIGS / "sim_librispeech.yaml")
    if (
        parsed.clips < 1
        or parsed.floor_ms < 0
        or not all(0 < share <= 1 for share in (parsed.share, parsed.memory_share, parsed.link_share))
    ):
        raise InputError("--clips must be at least 1, --floor-ms 0 or more, and every share in (0, 1]")
    flops, memory = PEAK[parsed.gpu]
    rates = Rates(flops * parsed.share, memory * parsed.memory_share, parsed.floor_ms / 1e3, parsed.link_share)
    costs = module_costs(config, parsed.clips)
    print(
        f"{config.name}: {config.data.crop} samples per clip, bf16. Assumed of an {parsed.gpu.upper()}: "
        f"{parsed.share:.0%} of {flops / 1e12:.0f} TFLOP/s, {parsed.memory_share:.0%} of {memory / 1e12:.2f} TB/s, "
        f"no step below {parsed.floor_ms:g} ms; {parsed.link_share:.0%} of each link."
    )
    print(module_table(costs, parsed.clips))
    print(batch_table(config, rates))
    print(scaling_table(costs, config, parsed.clips, rates))
    print(loader_table(config, parsed.clips, rates))
    print(negatives_table(config, costs, parsed.clips))
    return EXIT_OK


if __name__ == "__main__":
    run(main)
