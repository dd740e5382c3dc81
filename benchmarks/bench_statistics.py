"""Does the bench cry wolf, and does it see a 10 % slower model? By simulation, and on real processes of this machine.

Three ONNX files are timed in the same generations of processes: a network, the same file again (A/A), and the network
with a tenth more layers (A/B). The simulation draws from a noise model fitted to what was just measured, and from a
ladder of assumed noise.

    python benchmarks/bench_statistics.py --generations 60
    python benchmarks/bench_statistics.py --workers 8    # do forked workers measure what fresh ones do?
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import record

from compresskit.benchmark import machine, stats
from compresskit.benchmark.forks import warm_parents
from compresskit.benchmark.pool import Worker
from compresskit.benchmark.run import Plan, Spec, Timing, measure, open_spec
from compresskit.model import InputSpec


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log latency, and how often a round is hit by a neighbour (25–100 % slower)."""

    process: float
    round: float
    burst: float
    drift: float = 0.02  # of the whole machine, from one round to the next


def network(path: Path, layers: int, kind: str, seed: int = 0) -> None:
    """A chain of equal layers: 3×3 convolutions of 32 channels on 16×16, or 384×384 products of 64 rows."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    shape, weight = ([1, 32, 16, 16], (32, 32, 3, 3)) if kind == "conv" else ([64, 384], (384, 384))
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        array = (rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{i}"))
        op = {"conv": "Conv", "matmul": "MatMul"}[kind]
        nodes.append(helper.make_node(op, [last, f"w{i}"], [f"h{i}"], **({"pads": [1] * 4} if kind == "conv" else {})))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        last = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def collect(kind: str, generations: int, rounds: int) -> list[np.ndarray]:
    """Round medians of A, A again and B: three arrays ``(generations, rounds)``, ns."""
    with tempfile.TemporaryDirectory() as folder:
        fast, slow = Path(folder) / "fast.onnx", Path(folder) / "slow.onnx"
        network(fast, 20, kind)
        network(slow, 22, kind)
        specs = [Spec("A", fast), Spec("A again", fast), Spec("B", slow)]
        timings = measure(specs, Plan(rounds=rounds, processes=generations, budget_s=1e9))
    return [np.array(timing.medians()) for timing in timings]


@dataclass
class Outcome:
    """Of some trials of one comparison: verdicts, generations, and how often the interval held the true ratio."""

    verdicts: Counter
    generations: list[int]
    held: list[bool]


def judged(pairs: Iterable[tuple[np.ndarray, np.ndarray]], plan: Plan, truth: float) -> Outcome:
    """As the bench decides, with an end at the first look that says enough; ``truth`` is the true speed-up."""
    found = Outcome(Counter(), [], [])
    for base, other in pairs:
        for n in range(1, len(base) + 1):
            look = plan.look(n)
            if look is not None and stats.settled(base[:n], other[:n], look):
                break
        ratio = stats.speedup(base[:n], other[:n])
        found.verdicts[stats.decide(ratio)] += 1
        found.generations.append(n)
        found.held.append(ratio.low <= truth <= ratio.high)
    return found


def trials(base: np.ndarray, other: np.ndarray, plan: Plan, draws: int, seed: int = 0) -> tuple[Outcome, Outcome]:
    """On consecutive blocks of generations, and on ``draws`` random choices of as many."""
    rng = np.random.default_rng(seed)
    both = plan.processes + plan.more
    blocks = [np.arange(i, i + both) for i in range(0, len(base) - both + 1, both)]
    chosen = [rng.choice(len(base), both, replace=False) for _ in range(draws)]
    truth = stats.speedup(base, other).value
    return tuple(judged([(base[i], other[i]) for i in picks], plan, truth) for picks in (blocks, chosen))


def fit(base: np.ndarray, again: np.ndarray) -> Noise:
    """The noise of one model, from an A/A sample (whose differences hold it twice)."""
    logs = np.log(base / again)
    middle = np.median(logs, axis=1, keepdims=True)
    spread = 1.4826 * float(np.median(np.abs(logs - middle))) / np.sqrt(2)
    burst = float(np.mean(np.abs(logs - middle) > 6 * spread)) / 2
    between = float(np.var(middle, ddof=1)) / 2 - np.pi / 2 * spread**2 / logs.shape[1]
    return Noise(float(np.sqrt(max(between, 0.0))), spread, burst)


def simulate(noise: Noise, slower: float, plan: Plan, draws: int, seed: int = 0) -> Outcome:
    """``draws`` made-up trials of a model that is ``slower`` (0.1: by 10 %)."""
    rng = np.random.default_rng(seed)
    shape = (plan.processes + plan.more, plan.rounds)

    def made_up() -> tuple[np.ndarray, np.ndarray]:
        drift = np.cumsum(rng.normal(0, noise.drift, shape), axis=1)
        base, other = (
            drift
            + rng.normal(0, noise.process, (shape[0], 1))
            + rng.normal(0, noise.round, shape)
            + (rng.random(shape) < noise.burst) * np.log1p(rng.uniform(0.25, 1, shape))
            for _ in range(2)
        )
        return np.exp(base), np.exp(other + np.log1p(slower))

    return judged((made_up() for _ in range(draws)), plan, 1 / (1 + slower))


def share(counts: Counter) -> str:
    total = sum(counts.values())
    order = ("faster", "slower", "same", "inconclusive")
    return "  ".join(f"{name} {counts[name]} ({counts[name] / total:.1%})" for name in order)


def told(found: Outcome) -> str:
    generations = np.bincount(found.generations)
    when = ", ".join(f"{n}: {count}" for n, count in enumerate(generations) if count)
    return f"{share(found.verdicts)}; held {np.mean(found.held):.1%}; ended after {when}"


def keep(what: str, label: str, found: Outcome) -> None:
    """Rows of the results: wolf cried on equal files, or slower models found; and what the early end costs. Above 2 %
    of noise there is no bar for finding: what is asked of such a machine is only that it doesn't lie."""
    counts, total = found.verdicts, len(found.held)
    held = f"interval held the truth {np.mean(found.held):.1%}; generations, mean {np.mean(found.generations):.1f}"
    if label == "A/A":
        value = (counts["faster"] + counts["slower"]) / total
        record(f"statistics: A/A called different, {what}", "≤ 1 %", f"{value:.1%}", total, held, value <= 0.01)
        return
    if label == "edge":
        value = counts["same"] / total
        record(f"statistics: 5 % slower called the same, {what}", "≤ 5 %", f"{value:.1%}", total, held, value <= 0.05)
        return
    value, quiet = counts["slower"] / total, not what.endswith(("3.0%", "5.0%", "10.0%"))
    bar, met = ("≥ 95 %", value >= 0.95) if quiet else ("", None)
    record(f"statistics: 10 % slower found, {what}", bar, f"{value:.1%}", total, f"else: {share(counts)}; {held}", met)


def chain(path: Path) -> Any:
    """What :func:`network` writes with 20 convolutions, as a module."""
    from torch import nn

    return nn.Sequential(*[part for _ in range(20) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())])


def workers(generations: int) -> None:
    """Rows with the ratios of what a forked and a fresh worker of the same model measure, in turns."""
    image = (InputSpec("x", "float32", (1, 32, 16, 16)),)
    with tempfile.TemporaryDirectory() as folder, warm_parents():
        path = Path(folder) / "chain.onnx"
        network(path, 20, "conv")
        for runtime in ("onnxruntime", "openvino", "torch"):
            module = {"inputs": image, "loader": "bench_statistics:chain"} if runtime == "torch" else {}
            pairs = [_pair(Spec("chain", path, runtime, **module), turn) for turn in range(generations)]
            for what, bar in (("p50", 0.05), ("load", 0.15), ("first_call", 0.15), ("peak_memory", 0.05)):
                ratio = stats.estimate([forked[what] / fresh[what] for fresh, forked in pairs])
                met = abs(np.log(ratio.value)) <= np.log1p(bar)
                record(f"statistics: forked over fresh workers, {runtime}, {what}", f"1 within {bar:.0%}",
                       f"{ratio.value:.3f}×", ratio.n, f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}",
                       bool(met))  # fmt: skip


def _pair(spec: Spec, turn: int) -> list[dict[str, float]]:
    """Figures of a fresh and of a forked worker that take turns."""
    with ExitStack() as stack:
        order = (0, 1) if turn % 2 else (1, 0)
        pair = {i: Worker(spec.name, spec.runtime, 60, stack, fresh=not i) for i in order}
        timings = [Timing(), Timing()]
        for i in order:
            pair[i].answer()
        for i in order:
            open_spec(spec, pair[i], timings[i], 1, 0)
        rounds = [[np.median(pair[i].ask(do="round", min_time_s=0.04, min_calls=1)) for i in (0, 1)] for _ in range(9)]
        return [
            {
                "p50": float(np.median([taken[i] for taken in rounds[2:]])),
                "load": timings[i].load_ms[0],
                "first_call": timings[i].first_ms[0],
                "peak_memory": float(pair[i].ask(do="peak")),
            }
            for i in (0, 1)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=60, help="real generations of processes for each network")
    parser.add_argument("--draws", type=int, default=2000, help="simulated trials, and random choices of real ones")
    parser.add_argument("--kind", nargs="*", default=["conv", "matmul"], choices=["conv", "matmul"])
    parser.add_argument("--fixed", action="store_true", help="no early end, for comparison; nothing is recorded")
    parser.add_argument("--save", type=Path, help="write the real samples as .npz")
    parser.add_argument("--workers", type=int, help="only compare so many generations of fresh and of forked workers")
    args = parser.parse_args()
    if args.workers:
        workers(args.workers)
        return
    plan = Plan(early=()) if args.fixed else Plan()
    row = (lambda *_: None) if args.fixed else keep
    looks = [n for n in range(1, plan.processes + plan.more) if plan.look(n)]
    print(json.dumps(machine.environment()))
    print(
        f"one trial: {plan.processes + plan.more} processes of {plan.rounds} rounds, an end after {looks} where known"
    )
    ladder = [Noise(p, 0.02, 0.05) for p in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)]
    samples = {}
    for kind in args.kind if args.generations else []:
        start = time.monotonic()
        a, again, b = samples[kind] = collect(kind, args.generations, plan.rounds)
        took = time.monotonic() - start
        print(f"\nreal, {kind}: {args.generations} generations, {took / args.generations:.2f} s each, "
              f"A {np.median(a) / 1e6:.3f} ms, B/A {1 / stats.speedup(a, b).value:.3f}")  # fmt: skip
        for label, other in (("A/A", again), ("A/B", b)):
            blocks, chosen = trials(a, other, plan, args.draws)
            print(f"  {label} consecutive blocks: {told(blocks)}\n  {label} random choices:     {told(chosen)}")
            row(f"real, {kind}, {plan.early[0][0] if plan.early else plan.processes} to "
                f"{plan.processes + plan.more} of {args.generations} generations", label, chosen)  # fmt: skip
        noise = fit(a, again)
        print(f"  fitted noise: {json.dumps({k: round(v, 4) for k, v in asdict(noise).items()})}")
        ladder.append(noise)
    print(f"\nsimulated, {args.draws} trials each (the last {len(samples)} as fitted)")
    for noise in ladder:
        for slower, label in ((0.0, "A/A"), (0.05, "edge"), (0.1, "A/B")):
            found = simulate(noise, slower, plan, args.draws)
            print(f"  process {noise.process:.2%} round {noise.round:.2%} bursts {noise.burst:.1%}, "
                  f"{slower:.0%} slower: {told(found)}")  # fmt: skip
            if noise in ladder[: -len(samples) or None]:
                row(f"simulated, process noise {noise.process:.1%}", label, found)
    if args.save:
        np.savez(args.save, **{f"{kind}_{i}": array for kind, s in samples.items() for i, array in enumerate(s)})


if __name__ == "__main__":
    main()
