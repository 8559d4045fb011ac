"""What was probably meant by a name that does not exist, and what a fleet lacks for the tasks of its application."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from taskq.model.settings import Settings

#: Of each task: its queue, and the resources that it takes.
Needs = Mapping[str, tuple[str, Sequence[str]]]

_SHOWN = 5


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean mail?``, or which names there are."""
    names = sorted(set(known))
    near = get_close_matches(name, names, 1)
    if near:
        return f"; did you mean {near[0]}?"
    more = " ..." if len(names) > _SHOWN else ""
    return f"; there are: {', '.join(names[:_SHOWN])}{more}" if names else ""


def misfits(needs: Needs, settings: Settings) -> list[str]:
    """What is wrong between an application and the fleet that is to run it; a sentence for each thing."""
    if not needs:
        return [
            "the application has no task: the module that makes its TaskQ must import those that define its tasks, or "
            "name one of these, as in shop.tasks:q"
        ]
    queues = {queue for queue, _ in needs.values()}
    told = [
        f"no task of the application has the queue {queue}{did_you_mean(queue, queues)}"
        for queue in settings.queues
        if queue not in {*queues, "default"}
    ]
    for queue in sorted(queues - set(settings.queues) if settings.queues else ()):
        tasks = [task for task, (own, _) in needs.items() if own == queue]
        told.append(f"nobody serves the queue {queue}: jobs of {_some(tasks)} wait for a fleet that does")
    capacities = dict(settings.resources)
    for resource in sorted({name for _, resources in needs.values() for name in resources} - set(capacities)):
        tasks = [task for task, (_, resources) in needs.items() if resource in resources]
        told.append(
            f"this fleet has no resource {resource}: jobs of {_some(tasks)} wait for one that has "
            f"(--resources {resource}=1){did_you_mean(resource, capacities) if capacities else ''}"
        )
    return told


def _some(tasks: Sequence[str]) -> str:
    names = sorted(tasks)
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
