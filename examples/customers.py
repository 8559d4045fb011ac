"""What 23,570 real customers are worth, by the month of their first purchase, in chunks on all cores.

    pip install lifetimes            # ships the data, a text file; nothing of the package is imported
    python examples/customers.py

The data: everybody who bought for the first time at CDNOW, an online music shop, in January to March 1997,
and all they bought until June 1998: 69,659 purchases, one a line (customer, day, number of CDs, dollars).
Fader and Hardie made it public ("Forecasting Repeat Sales at CDNOW", 2001), and customer-base analysis has
used it ever since.

Two rounds: each job sums up the customers in a part of the file; then each job draws customers anew, many
times (the bootstrap), which tells how sure the averages are. Prints a small report of the three groups.
"""

import importlib.util
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from taskq import TaskQ

q = TaskQ("customers")
PART_BYTES = 128 * 1024
MONTHS = {"199701": "January", "199702": "February", "199703": "March"}
DRAWS, DRAWS_PER_JOB = 1_000, 25


@dataclass(frozen=True)
class Customer:
    """What one customer did, as far as it is known."""

    first_day: str
    purchases: int
    dollars: float

    def __add__(self, more: "Customer") -> "Customer":
        first_day = min(self.first_day, more.first_day)
        return Customer(first_day, self.purchases + more.purchases, self.dollars + more.dollars)


@q.task
def customers_in(file: Path, start: int, end: int) -> dict[int, Customer]:
    """Sums up the lines that begin in a part of the file. The job gets a place in the file, not the data."""
    found: dict[int, Customer] = {}
    with file.open("rb") as lines:
        lines.seek(start)
        lines.readline()  # the title, or a line of the part before this one
        while lines.tell() <= end and (line := lines.readline()):
            number, day, _, dollars = line.split()
            add(found, int(number), Customer(day.decode(), 1, float(dollars)))
    return found


def add(customers: dict[int, Customer], number: int, more: Customer) -> None:
    """Adds what is known of a customer: one purchase in a job, then the sums of the parts."""
    customers[number] = customers[number] + more if number in customers else more


@q.task
def averages_redrawn(values: list[float], seed: int) -> list[float]:
    """The averages of as many values, drawn from these at random, again and again."""
    chance = random.Random(seed)
    return [fmean(chance.choices(values, k=len(values))) for _ in range(DRAWS_PER_JOB)]


def likely_range(values: list[float]) -> tuple[float, float]:
    """Where the average lies with 95 % certainty, by drawing on all cores."""
    jobs = averages_redrawn.starmap(((values, seed) for seed in range(DRAWS // DRAWS_PER_JOB)), ordered=False)
    averages = sorted(average for some in jobs for average in some)
    return averages[len(averages) // 40], averages[-len(averages) // 40]


def data_file() -> Path:
    """Where the package lifetimes has the data."""
    spec = importlib.util.find_spec("lifetimes")
    if spec is None or spec.origin is None:
        raise SystemExit("the data comes with the package lifetimes: pip install lifetimes")
    return Path(spec.origin).parent / "datasets" / "CDNOW_master.txt"


def main() -> None:
    """Runs both rounds and prints the report."""
    file = data_file()
    parts = [(file, start, start + PART_BYTES) for start in range(0, file.stat().st_size, PART_BYTES)]
    customers: dict[int, Customer] = {}
    with q.fleet():
        start = time.perf_counter()
        for part in customers_in.starmap(parts, ordered=False):
            for number, customer in part.items():
                add(customers, number, customer)
        purchases = sum(customer.purchases for customer in customers.values())
        print(f"CDNOW, 1997: {len(customers):,} customers, {purchases:,} purchases; ", end="")
        print(f"{len(parts)} parts combined in {time.perf_counter() - start:.2f} s\n")
        print("first purchase   customers   came back   purchases   dollars   (95 % sure)")
        for month, name in MONTHS.items():
            group = [customer for customer in customers.values() if customer.first_day.startswith(month)]
            dollars = [customer.dollars for customer in group]
            low, high = likely_range(dollars)
            print(
                f"{name:<14}{len(group):>12,}{fmean(customer.purchases > 1 for customer in group):>12.1%}"
                f"{fmean(customer.purchases for customer in group):>12.2f}{fmean(dollars):>10.2f}"
                f"   ({low:.2f} to {high:.2f})"
            )
        seconds = time.perf_counter() - start
        print(f"\nEach group was drawn anew {DRAWS:,} times. It took {seconds:.1f} s in all")


if __name__ == "__main__":
    main()
