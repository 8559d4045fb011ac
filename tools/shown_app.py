"""The application of the pictures: a small shop whose jobs take a while, fail, wait and repeat."""

from __future__ import annotations

import random
import time

from taskq import TaskQ, current_job

q = TaskQ("shop")


@q.task(queue="images", timeout=30)
def thumbnail(path: str, size: int = 256) -> str:
    time.sleep(random.uniform(0.02, 0.12))
    return f"{path}.{size}.jpg"


@q.task(queue="mail", retries=2, backoff=[2, 5])
def send_receipt(order: int) -> None:
    time.sleep(random.uniform(0.01, 0.06))
    if random.random() < 0.08:
        raise ConnectionError(f"smtp.example.org refused the receipt of order {order}")


@q.task(retries=0, memory_limit="512MB")
def price(product: int) -> float:
    time.sleep(random.uniform(0.01, 0.03))
    if random.random() < 0.05:
        raise KeyError(f"product {product} has no price")
    return product * 1.19


@q.task(timeout=600)
def report(month: str) -> int:
    """Runs for as long as the pictures are taken."""
    for page in range(1, 901):
        current_job().progress(page, 900, f"pages of {month}")
        time.sleep(0.6)
    return 900


@q.periodic("0 3 * * *", timezone="Europe/Berlin")
@q.task
def clean_up() -> None: ...


if __name__ == "__main__":
    report.enqueue("2026-11")
    for minute in range(10**6):  # until it is ended
        thumbnail.enqueue_many([(f"product/{number}.jpg",) for number in range(8)])
        send_receipt.enqueue_many([(minute * 10 + number,) for number in range(10)])
        price.enqueue_many([(number,) for number in range(12)])
        thumbnail.options(delay=3600).enqueue("poster.jpg", 2048)
        time.sleep(random.uniform(0.3, 1.2))
