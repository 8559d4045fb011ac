"""Indexes every source file of Python's standard library on all cores, then answers queries.

    python examples/word_index.py                               # a few queries
    python examples/word_index.py "deque maxlen" pickle         # your queries: lines with all of the words

Each file is one job: about 1,800 jobs, 30 MB of source. The program prints how long the indexing took, and for
each query the number of matching lines and the first three of them, as file:line.
"""

import re
import sys
import sysconfig
import time
from collections import defaultdict
from pathlib import Path

from taskq import TaskQ

q = TaskQ("word_index")
LIBRARY = Path(sysconfig.get_path("stdlib"))
WORD = re.compile(r"[a-z_][a-z_0-9]{2,}")
QUERIES = ["antigravity", "deque maxlen", "raise notimplementederror", "todo"]


@q.task
def index(path: Path) -> dict[str, list[int]]:
    """Returns the words of a file, each with the numbers of its lines."""
    lines_of: dict[str, list[int]] = {}
    for number, line in enumerate(lines(path), 1):
        for word in set(WORD.findall(line.lower())):
            lines_of.setdefault(word, []).append(number)
    return lines_of


def lines(path: Path) -> list[str]:
    """Returns the lines of a source file."""
    return path.read_text("utf-8", errors="replace").split("\n")


def main() -> None:
    """Builds the index from the results, in the order of the files; then answers the queries."""
    queries = sys.argv[1:] or QUERIES
    paths = sorted(path for path in LIBRARY.rglob("*.py") if "site-packages" not in path.parts)
    places: dict[str, dict[Path, list[int]]] = defaultdict(dict)  # word -> file -> lines
    with q.fleet():
        start = time.perf_counter()
        for path, lines_of in zip(paths, index.map(paths), strict=True):
            for word, numbers in lines_of.items():
                places[word][path] = numbers
        seconds = time.perf_counter() - start
        consumers = q.status().consumers
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    work_seconds = sum(each.busy_s for each in consumers)
    print(f"{len(paths):,} files, {megabytes:.1f} MB, {len(places):,} words, indexed in {seconds:.2f} s:")
    print(f"{work_seconds:.2f} s of work, shared by {len(consumers)} consumers\n")
    for query in queries:
        answer(query, places)


def answer(query: str, places: dict[str, dict[Path, list[int]]]) -> None:
    """Prints the lines that have all words of a query."""
    start = time.perf_counter()
    words = WORD.findall(query.lower())
    found = [places.get(word, {}) for word in words] or [{}]
    hits = [
        (path, number)
        for path in sorted(set(found[0]).intersection(*found[1:]))
        for number in sorted(set(found[0][path]).intersection(*(files[path] for files in found[1:])))
    ]
    print(f"{query!r}: {len(hits):,} lines, found in {(time.perf_counter() - start) * 1e3:.2f} ms")
    for path, number in hits[:3]:
        print(f"    {path.relative_to(LIBRARY)}:{number}: {lines(path)[number - 1].strip():.80}")


if __name__ == "__main__":
    main()
