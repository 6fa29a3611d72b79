"""Runs many seeds of a layer of the simulator, or one with a trace."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

from tests.sim.runner import Result, shrink
from tests.sim.tally import Book, Page, Tally

TRACE_LINES = 200
LINE_WIDTH = 300

Results = Callable[[Iterable[int]], Iterable[Result]]


class Layer(NamedTuple):
    """What is run, and what is told of it."""

    page: Page
    run: Callable[..., Result]  # of a seed; takes `trace` and `dropped`
    seeds: int  # by default
    # So many at a time for each process are written to the tally: when a run is ended only those
    # are lost that are under way.
    at_once: int
    twice: int  # every so many seeds are run twice: nothing but the seed may decide


def parser(layer: Layer) -> argparse.ArgumentParser:
    """Return the flags that all layers have."""
    made = argparse.ArgumentParser(prog=f"python -m {layer.page.program}")
    made.add_argument("--seed", type=int, help="one seed, with the end of its trace")
    made.add_argument("--shrink", action="store_true", help="leave out faults that do not matter")
    made.add_argument("--seeds", type=int, default=layer.seeds, help="how many")
    made.add_argument("--start", type=int, default=1, help="the first one, without --tally")
    made.add_argument("--seconds", type=float, default=0, help="stop after so long")
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--tally", type=Path, help="take seeds that this file has not, and add them")
    made.add_argument("--show", action="store_true", help="only say what the tally has")
    return made


def main(layer: Layer, arguments: argparse.Namespace) -> int:
    """Do what the flags say; return 1 when a rule was broken."""
    if arguments.seed is not None:
        return run_one(layer, arguments.seed, arguments.shrink)
    if arguments.show:
        print(Book(arguments.tally, layer.page).tally().text())
        return 0
    return run_many(layer, arguments)


def run_one(layer: Layer, seed: int, shrinks: bool) -> int:
    result = shrink(seed, run=layer.run) if shrinks else layer.run(seed, trace=True)
    print("\n".join(line[:LINE_WIDTH] for line in result.trace[-TRACE_LINES:]))
    print(result.acts)
    print(dict(result.counts))
    print(result.failure or "no rule broken", f"({result.steps} steps)")
    return 1 if result.failure else 0


def run_many(layer: Layer, arguments: argparse.Namespace) -> int:
    all_of_run = Tally(layer.page)
    book = Book(arguments.tally, layer.page) if arguments.tally else None
    number = book.begin(sys.argv[1:]) if book else 0
    began = time.monotonic()
    with _workers(layer, arguments.processes) as run:
        for seeds in _portions(layer, arguments, book):
            tally = Tally(layer.page)
            for result in run(seeds):
                tally.take(result)
                if result.failure:
                    print(f"seed {result.seed}: {result.failure}")
                    print(f"  python -m {layer.page.program} --seed {result.seed}", flush=True)
            all_of_run.add(tally)
            if book:
                book.add(number, tally)
            if arguments.seconds and time.monotonic() - began > arguments.seconds:
                break
    print(all_of_run.text())
    if book:
        print(f"\nTogether with the runs before:\n{book.tally().text()}")
    return 1 if all_of_run.failures else 0


def _portions(layer: Layer, arguments: argparse.Namespace, book: Book | None) -> Iterator[range]:
    size = layer.at_once * arguments.processes
    for first in range(0, arguments.seeds, size):
        count = min(size, arguments.seeds - first)
        start = arguments.start + first
        yield book.take_seeds(count) if book else range(start, start + count)


@contextmanager
def _workers(layer: Layer, processes: int) -> Iterator[Results]:
    """Give what runs seeds, in this process or in several."""
    run = partial(run_checked, layer.run, layer.twice)
    if processes == 1:
        leave_garbage()
        yield partial(map, run)
        return
    with Pool(processes, leave_garbage) as pool:
        yield partial(pool.imap_unordered, run)


def leave_garbage() -> None:
    """Have no collections while a seed runs: what it leaves is collected after it, at once."""
    gc.collect()
    gc.freeze()
    gc.disable()


def run_checked(run: Callable[..., Result], twice: int, seed: int) -> Result:
    """Run a seed, some of them twice."""
    began = time.process_time()
    result = run(seed)
    if seed % twice == 0:
        again = run(seed)
        if (again.steps, again.counts) != (result.steps, result.counts):
            result.failure = result.failure or "the same seed did something else"
    gc.collect(0)
    result.cpu_seconds = time.process_time() - began
    return result
