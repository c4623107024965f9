"""Train every network of a small space, for `bench_search.py` to replay searches on.

Run it with `python tests/benchmarks/make_table.py tests/benchmarks/tables/NAME.toml --root DATA`. It takes hours, can
be stopped at any moment and goes on where it was. A line of NAME.jsonl is one training: the network, its seed, accuracy
on the selection part after each epoch, on the report part after the last, and the CPU seconds of each epoch on one
thread. Networks come in a random order, seed after seed, so that an unfinished table is a fair part of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bsconv_nas.api import SearchSpace
from bsconv_nas.search.data import load
from bsconv_nas.search.experiment import Experiment
from bsconv_nas.search.trial import trial_seed
from bsconv_nas.training.sources import shape

Work = tuple[str, str, tuple[int, ...], int]  # the file, the data's root, the network, the seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--root", required=True, help="where the images are")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    out = args.table.with_suffix(".jsonl")
    todo = list(work(args.table, args.root, args.seeds, out))
    print(f"{len(todo)} trainings to do")
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=spawn) as pool, out.open("a") as file:
        for count, row in enumerate(pool.map(trained, todo), 1):
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
            file.flush()
            if count % 20 == 0:
                each = (time.perf_counter() - start) / count
                print(f"{count} of {len(todo)}, {each * (len(todo) - count) / 60:.0f} minutes left", flush=True)


def work(table: Path, root: str, seeds: int, out: Path) -> Iterator[Work]:
    """Yield the trainings that the table lacks; a line torn by a kill is cut off first."""
    text = out.read_text() if out.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole)
    done = {(tuple(row["network"]), row["seed"]) for row in map(json.loads, whole.splitlines())}
    space, _ = space_and_data(str(table), root, with_data=False)
    networks = space.feasible().sample(10**6, np.random.default_rng(0))
    for seed in range(seeds):
        for network in networks:
            if (network.indices, seed) not in done:
                yield str(table), root, network.indices, seed


@cache
def space_and_data(table: str, root: str, with_data: bool = True) -> tuple[SearchSpace, Any]:
    experiment = Experiment.load(table, [f"data.root={root}"])
    space = SearchSpace.load(experiment.space, *shape(experiment.data))
    return space, load(experiment.data) if with_data else None


def trained(work: Work) -> dict[str, Any]:
    """Train one network on one thread and return its line."""
    import torch

    from bsconv_nas.training.loop import Trainer, evaluate

    torch.set_num_threads(1)
    table, root, indices, seed = work
    space, dataset = space_and_data(table, root)
    network = space.table.architecture(indices)
    stream = trial_seed(seed, network.key)
    model = space.build(network, seed=stream)
    trainer = Trainer(model, dataset, Experiment.load(table).recipe, seed=stream)
    accuracies, seconds, before = [], [], time.process_time()
    for result in trainer.epochs():
        accuracies.append(round(result.val_accuracy, 6))
        seconds.append(round(time.process_time() - before, 3))
        before = time.process_time()
    report = round(evaluate(trainer.final_model(), dataset, "report")[1], 6)
    return {"network": indices, "seed": seed, "val_accuracy": accuracies, "report": report, "seconds": seconds}


if __name__ == "__main__":
    main()
