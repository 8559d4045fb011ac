"""The jobs of a workflow as a graph in SVG: each stands right of all the jobs that it comes after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from taskq.model.info.job import JobInfo
from taskq.web.texts import short_id, tone

_BOX_WIDTH, _BOX_HEIGHT = 170, 44
_GAP_X, _GAP_Y = 60, 18
_MARGIN = 8
_NAME_CHARS = 22


@dataclass(frozen=True, slots=True)
class Graph:
    """A drawing.

    Attributes:
        width, height: in pixels.
        edges: the paths of the lines.
        boxes: the x and y of each job, and the job.
    """

    width: int
    height: int
    edges: list[str]
    boxes: list[tuple[int, int, JobInfo]]


def layers_of(jobs: Mapping[str, JobInfo]) -> list[list[str]]:
    """The ids of jobs in layers, from those that come first on. A job's layer is behind those of all before it."""
    before = {job_id: {other for other in info.after if other in jobs} for job_id, info in jobs.items()}
    for job_id, info in jobs.items():  # what a job comes after is forgotten when it has succeeded
        for other in info.before:
            if other in before:
                before[other].add(job_id)
    layers: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(jobs):
        layer = [job_id for job_id in jobs if job_id not in placed and before[job_id] <= placed]
        layer = layer or [job_id for job_id in jobs if job_id not in placed]  # cannot be: there is no circle
        layers.append(layer)
        placed.update(layer)
    return layers


def graph_of(jobs: Mapping[str, JobInfo]) -> Graph:
    """Places the jobs of a workflow."""
    layers = layers_of(jobs)
    place: dict[str, tuple[int, int]] = {}
    highest = max((len(layer) for layer in layers), default=1)
    for column, layer in enumerate(layers):
        top = (highest - len(layer)) * (_BOX_HEIGHT + _GAP_Y) // 2
        for row, job_id in enumerate(layer):
            place[job_id] = (
                _MARGIN + column * (_BOX_WIDTH + _GAP_X),
                _MARGIN + top + row * (_BOX_HEIGHT + _GAP_Y),
            )
    pairs = {(other, job_id) for job_id, info in jobs.items() for other in info.after if other in jobs}
    pairs |= {(job_id, other) for job_id, info in jobs.items() for other in info.before if other in jobs}
    edges = [_edge(place[one], place[other]) for one, other in sorted(pairs)]
    width = 2 * _MARGIN + len(layers) * (_BOX_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + highest * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
    return Graph(width, height, edges, [(*place[job_id], info) for job_id, info in jobs.items()])


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = start[0] + _BOX_WIDTH, start[1] + _BOX_HEIGHT // 2
    to_x, to_y = end[0], end[1] + _BOX_HEIGHT // 2
    middle = (x + to_x) // 2
    return f"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"


def drawn(jobs: Mapping[str, JobInfo], chosen: str, prefix: str) -> Markup:
    """The graph as SVG.

    Args:
        chosen: the id of the job that the page is about.
        prefix: the path below which the dashboard is mounted.
    """
    graph = graph_of(jobs)
    parts = [Markup('<path class="edge" d="{}"/>').format(edge) for edge in graph.edges]
    for x, y, info in graph.boxes:
        name = info.task if len(info.task) <= _NAME_CHARS else f"{info.task[:_NAME_CHARS]}..."
        kind = f"step {tone(info.state)}{' chosen' if info.id == chosen else ''}"
        box = (
            '<a href="{}/jobs/{}"><title>{} {}: {}</title><g class="{}" transform="translate({} {})">'
            '<rect width="{}" height="{}" rx="6"/><text x="10" y="18">{}</text>'
            '<text class="dim" x="10" y="35">{} {}</text></g></a>'
        )
        told = (prefix, info.id, info.task, info.id, info.state.value, kind, x, y, _BOX_WIDTH, _BOX_HEIGHT, name)
        parts.append(Markup(box).format(*told, info.state.value, short_id(info.id)))
    label = f"{len(graph.boxes)} jobs and what they come after"
    svg = '<svg class="graph" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="group" aria-label="{2}">{3}</svg>'
    return Markup(svg).format(graph.width, graph.height, label, Markup("").join(parts))
