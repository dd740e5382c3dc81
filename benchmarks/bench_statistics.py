"""Does the bench cry wolf, and does it see a 10 % slower model? By simulation, and on real processes of this machine.

Three ONNX files are timed in the same generations of processes: a network, the same file again (A/A), and the network
with a tenth more layers (A/B). The simulation draws from a noise model fitted to what was just measured, and from a
ladder of assumed noise.

    python benchmarks/bench_statistics.py --generations 60
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from results import record

from compresskit.benchmark import machine, stats
from compresskit.benchmark.run import Plan, Spec, measure


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


def trials(base: np.ndarray, other: np.ndarray, size: int, draws: int, seed: int = 0) -> tuple[Counter, Counter]:
    """Verdicts on consecutive blocks of generations, and on ``draws`` random choices of as many."""
    rng = np.random.default_rng(seed)
    both = size + Plan.more
    blocks = [np.arange(i, i + both) for i in range(0, len(base) - both + 1, both)]
    chosen = [rng.choice(len(base), both, replace=False) for _ in range(draws)]
    return tuple(Counter(verdict(base[i], other[i], size) for i in picks) for picks in (blocks, chosen))


def verdict(base: np.ndarray, other: np.ndarray, size: int) -> str:
    """As the bench decides: by the first ``size`` generations, or by all where those leave it open."""
    first = stats.compare(base[:size], other[:size])
    return stats.compare(base, other) if first == "inconclusive" else first


def fit(base: np.ndarray, again: np.ndarray) -> Noise:
    """The noise of one model, from an A/A sample (whose differences hold it twice)."""
    logs = np.log(base / again)
    middle = np.median(logs, axis=1, keepdims=True)
    spread = 1.4826 * float(np.median(np.abs(logs - middle))) / np.sqrt(2)
    burst = float(np.mean(np.abs(logs - middle) > 6 * spread)) / 2
    between = float(np.var(middle, ddof=1)) / 2 - np.pi / 2 * spread**2 / logs.shape[1]
    return Noise(float(np.sqrt(max(between, 0.0))), spread, burst)


def simulate(noise: Noise, slower: float, processes: int, rounds: int, draws: int, seed: int = 0) -> Counter:
    """Verdicts on ``draws`` made-up trials of a model that is ``slower`` (0.1: by 10 %)."""
    rng = np.random.default_rng(seed)
    verdicts: Counter = Counter()
    shape = (processes + Plan.more, rounds)
    for _ in range(draws):
        drift = np.cumsum(rng.normal(0, noise.drift, shape), axis=1)
        base, other = (
            drift
            + rng.normal(0, noise.process, (shape[0], 1))
            + rng.normal(0, noise.round, shape)
            + (rng.random(shape) < noise.burst) * np.log1p(rng.uniform(0.25, 1, shape))
            for _ in range(2)
        )
        verdicts[verdict(np.exp(base), np.exp(other + np.log1p(slower)), processes)] += 1
    return verdicts


def share(counts: Counter) -> str:
    total = sum(counts.values())
    order = ("faster", "slower", "same", "inconclusive")
    return "  ".join(f"{name} {counts[name]} ({counts[name] / total:.1%})" for name in order)


def keep(what: str, label: str, counts: Counter) -> None:
    """A row of the results: wolf cried on equal files, or slower models found. Above 2 % of noise there is no bar for
    finding: what is asked of such a machine is only that it doesn't lie."""
    total = sum(counts.values())
    if label == "A/A":
        value = (counts["faster"] + counts["slower"]) / total
        record(f"statistics: A/A called different, {what}", "≤ 1 %", f"{value:.1%}", total, "", value <= 0.01)
        return
    value, quiet = counts["slower"] / total, not what.endswith(("3.0%", "5.0%", "10.0%"))
    bar, met = ("≥ 95 %", value >= 0.95) if quiet else ("", None)
    record(f"statistics: 10 % slower found, {what}", bar, f"{value:.1%}", total, f"else: {share(counts)}", met)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=60, help="real generations of processes for each network")
    parser.add_argument("--processes", type=int, default=Plan.processes, help="generations in one trial")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--draws", type=int, default=2000, help="simulated trials, and random choices of real ones")
    parser.add_argument("--kind", nargs="*", default=["conv", "matmul"], choices=["conv", "matmul"])
    parser.add_argument("--save", type=Path, help="write the real samples as .npz")
    args = parser.parse_args()
    print(json.dumps(machine.environment()))
    print(f"one trial: {args.processes} processes of {args.rounds} rounds, {Plan.more} more where those leave it open")
    ladder = [Noise(p, 0.02, 0.05) for p in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)]
    samples = {}
    for kind in args.kind if args.generations else []:
        start = time.monotonic()
        a, again, b = samples[kind] = collect(kind, args.generations, args.rounds)
        took = time.monotonic() - start
        print(f"\nreal, {kind}: {args.generations} generations, {took / args.generations:.2f} s each, "
              f"A {np.median(a) / 1e6:.3f} ms, B/A {1 / stats.speedup(a, b).value:.3f}")  # fmt: skip
        for label, other in (("A/A", again), ("A/B", b)):
            blocks, chosen = trials(a, other, args.processes, args.draws)
            print(f"  {label} consecutive blocks: {share(blocks)}\n  {label} random choices:     {share(chosen)}")
            keep(
                f"real, {kind}, {args.processes} or {args.processes + Plan.more} of {args.generations} generations",
                label,
                chosen,
            )
        noise = fit(a, again)
        print(f"  fitted noise: {json.dumps({k: round(v, 4) for k, v in asdict(noise).items()})}")
        ladder.append(noise)
    print(f"\nsimulated, {args.draws} trials each (the last {len(samples)} as fitted)")
    for noise in ladder:
        for slower in (0.0, 0.1):
            counts = simulate(noise, slower, args.processes, args.rounds, args.draws)
            print(f"  process {noise.process:.2%} round {noise.round:.2%} bursts {noise.burst:.1%}, "
                  f"{'A/A' if not slower else '10 % slower'}: {share(counts)}")  # fmt: skip
            if noise in ladder[: -len(samples) or None]:
                keep(f"simulated, process noise {noise.process:.1%}", "A/B" if slower else "A/A", counts)
    if args.save:
        np.savez(args.save, **{f"{kind}_{i}": array for kind, s in samples.items() for i, array in enumerate(s)})


if __name__ == "__main__":
    main()
