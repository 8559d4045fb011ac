"""What the log tells of schedules that fire, whichever engine fires them."""

from __future__ import annotations

from typing import Any

from taskq.model.rules.schedules import Fire

_WHY_SKIPPED = {
    "skip": "the job of the last fire has not ended",
    "buffer_one": "the job of the last fire is still kept back",
}


class FireLog:
    """Tells of fires once they are durable."""

    def __init__(self, log: Any) -> None:
        """
        Args:
            log: a structlog logger.
        """
        self._log = log
        self._skipping: set[str] = set()  # those that left out their last fire, since a job had not ended

    def tell(self, fire: Fire, refusal: str | None) -> None:
        """Tells of a fire.

        Args:
            refusal: why its jobs were refused, if they were.
        """
        row, found = fire.row, fire.found
        name, policy = row.schedule.name, row.schedule.misfire
        if found.missed:
            fired = len(fire.ids)
            self._log.warning("schedule.missed", schedule=name, missed=found.missed, misfire=policy, fired=fired)
        if not fire.ids:
            if found.fires:
                log = self._log.debug if name in self._skipping else self._log.info  # the first one of a row
                log("schedule.skipped", schedule=name, reason=_WHY_SKIPPED[row.schedule.overlap], job_id=row.last_job)
                self._skipping.add(name)
            return
        self._skipping.discard(name)
        if refusal is not None:
            self._log.error("schedule.refused", schedule=name, error=refusal)
        elif fire.after is not None:
            self._log.info("schedule.buffered", schedule=name, job_id=row.last_job, after=fire.after.hex())
        else:
            self._log.debug("schedule.fired", schedule=name, jobs=len(fire.ids), job_id=row.last_job)
