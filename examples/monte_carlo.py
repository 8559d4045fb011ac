"""Computes the price of an option by simulation on all cores; watch the error shrink while results arrive.

    pip install numpy
    python examples/monte_carlo.py

A share costs 100. How much is the right to buy it for 105 in a year worth (5 % interest, 20 % volatility)?
Each job simulates 500,000 possible years, and results are combined as they come, in any order. Theory (Black
and Scholes, 1973) gives the answer, 8.02, and says that four times the work halves the error. You can watch both.
"""

import math
import time
from statistics import NormalDist

import numpy as np

from taskq import TaskQ

q = TaskQ("monte_carlo")
SHARE, STRIKE, YEARS, INTEREST, VOLATILITY = 100.0, 105.0, 1.0, 0.05, 0.20
JOBS, PATHS = 256, 500_000


@q.task
def play(seed: int, paths: int = PATHS) -> tuple[int, float, float]:
    """Simulates years. Returns their number, the sum of what the option paid, and the sum of its squares.

    The seed is an argument, so a job that runs again, for whatever reason, returns the same result.
    """
    normal = np.random.default_rng([1973, seed]).standard_normal(paths)
    share = SHARE * np.exp((INTEREST - VOLATILITY**2 / 2) * YEARS + VOLATILITY * math.sqrt(YEARS) * normal)
    paid = math.exp(-INTEREST * YEARS) * np.maximum(share - STRIKE, 0.0)
    return paths, float(paid.sum()), float((paid * paid).sum())


def theory() -> float:
    """Returns the price by the formula of Black and Scholes."""
    spread = VOLATILITY * math.sqrt(YEARS)
    d1 = (math.log(SHARE / STRIKE) + (INTEREST + VOLATILITY**2 / 2) * YEARS) / spread
    probability = NormalDist().cdf
    return SHARE * probability(d1) - STRIKE * math.exp(-INTEREST * YEARS) * probability(d1 - spread)


def main() -> None:
    """Combines the results as they arrive, and prints a line whenever their number has doubled."""
    exact = theory()
    with q.fleet():
        print("       years    price   +/- 95 %   off by")
        start = time.perf_counter()
        count, total, squares, tell_at = 0, 0.0, 0.0, PATHS
        for paths, paid, squared in play.map(range(JOBS), ordered=False):
            count, total, squares = count + paths, total + paid, squares + squared
            if count >= tell_at:
                price = total / count
                error = 1.96 * math.sqrt((squares / count - price**2) / count)
                bar = "#" * round(error * 1000)
                print(f"{count:>12,}  {price:7.4f}    {error:.4f}  {price - exact:+.4f}  {bar}")
                tell_at *= 2
        seconds = time.perf_counter() - start
    print(f"\nsimulated {price:.4f} +/- {error:.4f}, theory {exact:.4f}: ", end="")
    print("they agree" if abs(price - exact) < 2 * error else "they do not agree")
    print(f"{count / seconds / 1e6:.1f} million years a second")


if __name__ == "__main__":
    main()
