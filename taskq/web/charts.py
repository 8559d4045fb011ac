"""Charts as SVG, made of numbers. Their colours come from the style sheet, by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from taskq.model.info.job import JobInfo
from taskq.web.texts import number, span

_WIDTH, _HEIGHT = 600, 120
_TIMELINE_HEIGHT = 34


@dataclass(frozen=True, slots=True)
class Series:
    """The figures of one kind, one for each bar.

    Attributes:
        name: what they are, as people say it.
        tone: the class of their colour.
        values: from the oldest to the newest.
    """

    name: str
    tone: str
    values: Sequence[int]


def highest(series: Sequence[Series]) -> int:
    """The most that one bar shows: the top of the scale; 0 if there is nothing."""
    return max((sum(at) for at in zip(*(each.values for each in series), strict=True)), default=0)


def bars(title: str, series: Sequence[Series], labels: Sequence[str]) -> Markup:
    """Bars beside each other, those of several series on top of each other.

    Args:
        title: what the chart shows, for those who cannot see it.
        labels: what each bar stands for, such as its minute.
    """
    count = len(labels)
    most = highest(series)
    top = most or 1
    step = _WIDTH / max(count, 1)
    parts = []
    for at, label in enumerate(labels):
        told = ", ".join(f"{number(each.values[at])} {each.name}" for each in series)
        parts.append(Markup("<g><title>{}: {}</title>").format(label, told))
        parts.append(Markup('<rect class="hit" x="{:.1f}" y="0" width="{:.1f}" height="{}"/>').format(
            at * step, step, _HEIGHT
        ))  # fmt: skip
        y = float(_HEIGHT)
        for each in series:
            height = each.values[at] / top * _HEIGHT
            y -= height
            if height:
                parts.append(_bar(each.tone, at * step, y, max(step - 1.5, 0.5), height))
        parts.append(Markup("</g>"))
    sums = ", ".join(f"{number(sum(each.values))} {each.name}" for each in series)
    return _svg("chart", f"{title}: {sums}, at most {number(most)} a bar", _HEIGHT, parts)


def _bar(tone: str, x: float, y: float, width: float, height: float) -> Markup:
    bar = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
    return Markup(bar).format(tone, x, y, width, max(height, 1.0))


def sparkline(title: str, values: Sequence[int]) -> Markup:
    """A small line without axes."""
    top = max(values, default=0)
    step = 100 / max(len(values) - 1, 1)
    points = " ".join(f"{at * step:.1f},{19 - value / (top or 1) * 18:.1f}" for at, value in enumerate(values))
    told = f"{title}: {number(sum(values))}, at most {number(top)} a minute"
    svg = '<svg class="spark" viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label="{}">'
    return Markup(svg + '<title>{}</title><polyline points="{}"/></svg>').format(told, told, points)


def share_bar(title: str, share: float, tone: str = "busy") -> Markup:
    """A bar that is filled to a share."""
    svg = '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{}">'
    filled = '<rect class="rest" width="100" height="8"/><rect class="{}" width="{:.1f}" height="8"/></svg>'
    return Markup(svg + filled).format(title, tone, min(max(share, 0.0), 1.0) * 100)


def life_of(info: JobInfo, now: float) -> tuple[float, float]:
    """When the life of a job begins and ends, as far as it is known, in seconds since 1970."""
    end = info.finished_at or max(now, info.due_at or now)
    return min(info.enqueued_at, *(each.started_at for each in info.history if each.started_at), end - 1e-3), end


def timeline(info: JobInfo, now: float) -> Markup:
    """The life of a job: when it waited, and each attempt.

    Args:
        now: seconds since 1970.
    """
    begin, end = life_of(info, now)
    scale = _WIDTH / (end - begin)
    pieces = [(each.started_at, each.duration_s, "good" if each.error is None else "bad", f"attempt {each.number}")
              for each in info.history]  # fmt: skip
    if info.state == "running":
        pieces.append((info.started_at, None, "busy", f"attempt {info.attempts}, which runs"))
    parts = [Markup('<rect class="rest" x="0" y="12" width="{}" height="10"/>').format(_WIDTH)]
    for started_at, duration_s, tone, told in pieces:
        if started_at is None:
            continue
        took_s = now - started_at if duration_s is None else duration_s
        x, width = (started_at - begin) * scale, max(took_s * scale, 3.0)
        title = Markup("<g><title>{}: {}</title>").format(told, span(max(took_s, 0.0)))
        parts += [title, _bar(tone, min(x, _WIDTH - width), 7.0, width, 20.0), Markup("</g>")]
    if info.due_at is not None and info.due_at > begin:
        x = min((info.due_at - begin) * scale, _WIDTH - 2)
        parts.append(Markup('<rect class="later" x="{:.1f}" y="2" width="2" height="30"/>').format(x))
    told = f"{span(end - begin)} in all, {len(pieces)} attempts are shown"
    return _svg("timeline", told, _TIMELINE_HEIGHT, parts)


def _svg(kind: str, label: str, height: int, parts: Sequence[Markup]) -> Markup:
    svg = '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    return Markup(svg).format(kind, _WIDTH, height, label, Markup("").join(parts))
