"""`taskq bench` beside a bare skeleton of the same shape: what taskq's features cost.

python tests/bench [--rounds N]
"""

from __future__ import annotations

from argparse import ArgumentParser

from skeleton import Skeleton

from taskq.cli.bench.command import CONSUMERS, report

if __name__ == "__main__":
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3, help="measure each ratio so often, and show the median")
    with Skeleton(CONSUMERS) as skeleton:
        report(options.parse_args().rounds, skeleton)
