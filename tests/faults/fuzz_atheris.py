"""The properties of `test_fuzz.py`, driven by coverage (atheris) instead of by chance.

    pip install atheris
    python tests/faults/fuzz_atheris.py [PROPERTY] [options of libFuzzer, such as -max_total_time=600 or a corpus folder]

PROPERTY is a test's name, with or without `test_`; the first one if there is none. `-list` tells the names. pytest does
not collect this file. A failure is reported with its input as hypothesis shows it; libFuzzer writes the bytes to a file
`crash-*`, which as an argument instead of a corpus runs it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["taskq"]):
    import test_fuzz


def properties() -> dict[str, Callable[[bytes], object]]:
    """The properties that need no fleet, each as a function of bytes."""
    found = {}
    for name, test in vars(test_fuzz).items():
        if name.startswith("test_") and hasattr(test, "hypothesis") and "fleet" not in name:
            found[name.removeprefix("test_")] = test.hypothesis.fuzz_one_input
    return found


def main() -> None:
    """Fuzzes one property until libFuzzer has had enough."""
    known = properties()
    if "-list" in sys.argv:
        print("\n".join(known))
        return
    named = [argument for argument in sys.argv[1:] if argument.removeprefix("test_") in known]
    check = known[named[0].removeprefix("test_")] if named else next(iter(known.values()))
    options = [argument for argument in sys.argv if argument not in named]

    def run(data: bytes) -> None:
        check(data)

    atheris.Setup(options, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
