"""Computes what 23,570 real customers are worth, by the month of their first purchase, in chunks on all cores.

    pip install lifetimes            # it contains the data, a text file; the package itself is not imported
    python examples/customers.py

The data covers everyone who first bought at CDNOW, an online music shop, between January and March 1997, and
everything they bought until June 1998: 69,659 purchases, one per line (customer, day, number of CDs, dollars).
Fader and Hardie published it ("Forecasting Repeat Sales at CDNOW", 2001), and customer-base analysis has used
it ever since.

There are two rounds. In the first, each job sums up the customers in one part of the file. In the second, each
job resamples the customers many times (the bootstrap), which shows how certain the averages are. At the end
the program prints a short report on the three groups.
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
    """The known purchases of one customer."""

    first_day: str
    purchases: int
    dollars: float

    def __add__(self, more: "Customer") -> "Customer":
        first_day = min(self.first_day, more.first_day)
        return Customer(first_day, self.purchases + more.purchases, self.dollars + more.dollars)


@q.task
def customers_in(file: Path, start: int, end: int) -> dict[int, Customer]:
    """Sums up the lines that begin in one part of the file. The job gets a position in the file, not the data."""
    found: dict[int, Customer] = {}
    with file.open("rb") as lines:
        lines.seek(start)
        lines.readline()  # the header, or a line that belongs to the part before this one
        while lines.tell() <= end and (line := lines.readline()):
            number, day, _, dollars = line.split()
            add(found, int(number), Customer(day.decode(), 1, float(dollars)))
    return found


def add(customers: dict[int, Customer], number: int, more: Customer) -> None:
    """Adds purchases of a customer: one at a time in a job, then the sums of the parts."""
    customers[number] = customers[number] + more if number in customers else more


@q.task
def averages_redrawn(values: list[float], seed: int) -> list[float]:
    """Returns the averages of random samples, each as large as the list of values."""
    chance = random.Random(seed)
    return [fmean(chance.choices(values, k=len(values))) for _ in range(DRAWS_PER_JOB)]


def likely_range(values: list[float]) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the average, sampled on all cores."""
    jobs = averages_redrawn.starmap(((values, seed) for seed in range(DRAWS // DRAWS_PER_JOB)), ordered=False)
    averages = sorted(average for some in jobs for average in some)
    return averages[len(averages) // 40], averages[-len(averages) // 40]


def data_file() -> Path:
    """Finds the data in the package lifetimes."""
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
        print("first purchase   customers   came back   purchases   dollars   (95 % interval)")
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
        print(f"\nEach group was resampled {DRAWS:,} times. It took {seconds:.1f} s in all")


if __name__ == "__main__":
    main()
