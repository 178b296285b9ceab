"""Check a machine, a corpus and a cluster: `python -m simdist.doctor --cluster PROFILE --data.root ROOT`.

All checks run before the command fails, for a cluster often has more than one problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape

from simdist.cluster.choice import DISCOVERED, Choice, chosen_profile
from simdist.cluster.profile import Profile
from simdist.cluster.profile_text import write_profile
from simdist.config.parser import Parser
from simdist.config.schema import DATA_ROOT
from simdist.core.console import run
from simdist.core.errors import EXIT_FAILED, EXIT_OK, InputError
from simdist.core.secrets import redacted
from simdist.doctor import machine
from simdist.doctor.cluster import check_cluster
from simdist.doctor.corpus import check_corpus
from simdist.doctor.findings import Finding
from simdist.doctor.node_check import check_node

DESCRIPTION = """\
Check whether this machine, a corpus and a cluster are ready to train, and suggest fixes.

Without options it checks this machine. --cluster queries SLURM and runs a job of a few seconds on one node.
`--cluster slurm` uses your default profile (SIMDIST_CLUSTER, or ~/.config/simdist/cluster.yaml), or else one derived
from what SLURM reports; --write saves it as a file to edit.

Examples:
  python -m simdist.doctor
  python -m simdist.doctor --data.root data/librispeech
  python -m simdist.doctor --cluster slurm --write mine.yaml
  python -m simdist.doctor --cluster gpu --data.root /shared/librispeech --runs /shared/runs
  python -m simdist.doctor --cluster slurm/profiles/mine.yaml --json

Exit codes: 0 no errors (warnings are possible); 1 at least one error; 2 wrong input.
"""
STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    parsed = parser.parse_args(argv)
    if parsed.wait < 0:
        parser.error(f"--wait is {parsed.wait}; it must be 0 (no job) or a number of seconds")
    choice = _choice(parsed, parser)
    profile = choice.profile if choice else None
    console = Console(soft_wrap=True, highlight=False)
    if choice and not parsed.json:
        for line in choice.lines(how_else=False):
            console.print(line, markup=False)
    if parsed.write and not parsed.json:
        console.print(f"wrote this profile to {parsed.write}", markup=False)
    findings = []
    with console.status("checking") if not parsed.json else Console(stderr=True).status("checking") as status:
        for finding in map(without_secrets, examine(profile, parsed.data_root, parsed.runs, parsed.wait)):
            findings.append(finding)
            status.update(f"checking: {escape(finding.subject)} done")
            if not parsed.json:
                show(finding, console)
    if parsed.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        summarize(findings, console)
    return EXIT_FAILED if any(finding.level == "error" for finding in findings) else EXIT_OK


def _choice(parsed: Namespace, parser: Parser) -> Choice | None:
    """The profile to check, written to a file on request.

    Raises:
        InputError: there is no such profile, or the file exists.
    """
    if parsed.cluster is None:
        if parsed.write is not None:
            parser.error("--write needs --cluster, such as --cluster slurm for a profile derived from this cluster")
        return None
    if parsed.write is not None and parsed.write.exists():
        raise InputError(f"{parsed.write} already exists. Choose another file, or remove it")
    choice = chosen_profile(parsed.cluster)
    if parsed.write is not None:
        if parsed.cluster == DISCOVERED and choice.cluster is None:
            raise InputError("SLURM does not answer, so nothing was written. Run the doctor on a login node")
        write_profile(parsed.write, choice.text())
    return choice


def examine(profile: Profile | None, data: Path | None, runs: Path, wait: int) -> Iterator[Finding]:
    """All findings, as they are made.

    Args:
        profile: cluster to check, if any.
        data: packed corpus to check, if any.
        runs: folder of the runs.
        wait: seconds to wait for a node; 0 starts no job.
    """
    yield from machine.check_packages()
    yield from machine.check_accelerator()
    yield from machine.check_bf16()
    found, save_seconds = machine.check_disk(runs)
    yield from found
    yield from machine.check_wandb()
    if data is not None:
        yield from check_corpus(data)
    if profile is None:
        return
    reachable = True
    for finding in check_cluster(profile, save_seconds):
        reachable &= not (finding.level == "error" and finding.subject in ("slurm", "partition", "job"))
        yield finding
    if reachable and wait:
        yield from check_node(profile, runs, wait)


def without_secrets(finding: Finding) -> Finding:
    """The finding with keys and tokens taken out: set-up lines may export some."""
    return replace(finding, message=redacted(finding.message), remedy=redacted(finding.remedy))


def show(finding: Finding, console: Console) -> None:
    """One line, and another for the remedy."""
    console.print(
        f"[{STYLES[finding.level]}]{finding.level:8}[/] {escape(f'{finding.subject:14}')} {escape(finding.message)}"
    )
    if finding.remedy:
        console.print(f"{'':23} -> {escape(finding.remedy)}")


def summarize(findings: list[Finding], console: Console) -> None:
    """The last line: how many of each."""
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    told = ", ".join(f"{number} {level}{'s' * (number != 1)}" for level, number in counts.items())
    console.print(f"{len(findings)} checks: {told}")


def _parser() -> Parser:
    parser = Parser(prog="python -m simdist.doctor", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "--cluster",
        type=str | None,
        default=None,
        help="Also check a cluster: `slurm`, or the name or YAML file of a profile.",
    )
    add(
        "--write",
        type=Path | None,
        default=None,
        help="With --cluster: new file to write its profile to, with comments.",
    )
    add(*DATA_ROOT, dest="data_root", type=Path | None, default=None, help="Also check this folder of a packed corpus.")
    add("--runs", type=Path, default=Path("runs"), help="Folder of the runs, which the nodes of a cluster must share.")
    add("--wait", type=int, default=120, help="With --cluster: seconds to wait for a free node. 0 starts no job.")
    add("--json", action="store_true", help="Print the findings as JSON.")
    return parser


if __name__ == "__main__":
    run(main)
