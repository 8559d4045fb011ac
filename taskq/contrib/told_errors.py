"""For tools that are told of the errors of jobs: what goes wrong with that does not change what becomes of the job."""

from __future__ import annotations

import traceback
from collections.abc import Callable


def tell(told: Callable[[BaseException], object], error: BaseException) -> None:
    """Hands on the error of a job. If that raises, as for an exception that has no text, the traceback is printed.

    Args:
        told: is called with the error.
    """
    try:
        told(error)
    except BaseException:  # the text of an exception may raise anything
        traceback.print_exc()
