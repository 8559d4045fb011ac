"""Celery's remote control, `app.control` and `app.control.inspect()`: the fleet answers as one worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery import states
from celery.app.control import Control
from celery.utils.functional import maybe_list

from taskq.contrib.celery.fleet import TASK_ID, fleet_of
from taskq.contrib.celery.messages import read_message
from taskq.contrib.celery.running import HOSTNAME, mark_as_revoked
from taskq.model.errors import BrokerUnavailable, JobNotFound
from taskq.model.info.job import JobInfo
from taskq.model.info.status import FleetStatus
from taskq.model.job import JobState

#: What Celery calls the states of tasks in a worker.
_STATES = {
    JobState.RUNNING: "active",
    JobState.QUEUED: "reserved",
    JobState.WAITING: "reserved",
    JobState.SCHEDULED: "scheduled",
}
#: What to do instead of commands that have no counterpart.
_INSTEAD = {
    "shutdown": "stop the fleet with `taskq stop`",
    "pool_restart": "use `taskq reload`",
    "pool_grow": "start the fleet with another --consumers",
    "pool_shrink": "start the fleet with another --consumers",
    "autoscale": "start the fleet with another --consumers",
    "rate_limit": "change rate_limit of the task and use `taskq reload`",
    "time_limit": "change time_limit of the task and use `taskq reload`",
    "cancel_consumer": "use `taskq pause`",
    "add_consumer": "a fleet serves all queues",
    "election": "a fleet is one",
}


class FleetControl(Control):
    """Answers the commands that Celery sends to its workers."""

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Iterable[str] | None = None,
        connection: object = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[Any], object] | None = None,
        channel: object = None,
        pattern: str | None = None,
        matcher: object = None,
        **more: Any,
    ) -> list[dict[str, Any]] | None:
        """Does what a command says.

        Returns:
            The reply of the fleet, if one is wanted; none if no fleet runs.

        Raises:
            NotImplementedError: the command has no counterpart in taskq; the message says what to do instead.
        """
        answer = _COMMANDS.get(command)
        if answer is None:
            instead = _INSTEAD.get(command, "its fleet has its own commands: see `taskq --help`")
            raise NotImplementedError(f"app.control: {command} is not supported on taskq: {instead}")
        if destination and HOSTNAME not in destination:
            return [] if reply else None
        try:
            told = answer(self, **{**(arguments or {}), **more})
        except BrokerUnavailable:
            return [] if reply else None
        if not reply:
            return None
        if callback is not None:
            callback({HOSTNAME: told})
        return [{HOSTNAME: told}]

    def purge(self, connection: object = None) -> int:
        """Discards all tasks that wait in queues. Returns their number."""
        return fleet_of(self.app).q.purge(JobState.QUEUED)

    discard_all = purge

    # -- commands

    def _revoke(self, task_id: Any, terminate: bool = False, **_signal: Any) -> dict[str, str]:
        ids = list(maybe_list(task_id) or ())
        for each in ids:
            self._revoke_one(each, terminate)
        return {"ok": f"tasks {', '.join(ids)} flagged as revoked"}

    def _revoke_one(self, task_id: str, terminate: bool) -> None:
        fleet = fleet_of(self.app)
        fleet.store.revoke(task_id)
        job_id = fleet.store.job_of(task_id)
        if job_id is None:  # it has not been sent yet, or by another fleet
            if self.app.backend._get_task_meta_for(task_id)["status"] == states.PENDING:
                self.app.backend.mark_as_revoked(task_id, "revoked")
            return
        job = fleet.q.job(job_id)
        try:
            info = job.info(arguments=True)
            if info.state.is_final or not job.cancel(running=terminate):
                return
        except JobNotFound:
            return
        request = self._request(info)
        task = self.app.tasks.get(info.task if request is None else request["task"])
        if request is not None and task is not None and not self._has_ended(task_id):
            mark_as_revoked(task, request, "revoked" if info.state != JobState.RUNNING else "terminated")

    def _has_ended(self, task_id: str) -> bool:
        """Whether an end is stored, apart from what the fleet knows of its job."""
        return self.app.backend._get_task_meta_for(task_id)["status"] in states.READY_STATES

    def _revoke_by_headers(self, headers: Mapping[str, Any], terminate: bool = False, **_signal: Any) -> dict[str, str]:
        found = []
        for info in self._jobs(*_STATES):
            request = self._request(info) or {}
            stamps = request.get("stamps") or {}
            if any(set(maybe_list(stamps.get(name)) or ()) & set(maybe_list(value)) for name, value in headers.items()):
                found.append(request["id"])
        for task_id in found:
            self._revoke_one(task_id, terminate)
        ended = f"terminated: {', '.join(found)}" if terminate else "but not terminated"
        return {"ok": f"headers {dict(headers)} flagged as revoked, {ended}"}

    def _ping(self) -> dict[str, str]:
        self._status()
        return {"ok": "pong"}

    def _status(self) -> FleetStatus:
        status = fleet_of(self.app).q.status()
        if status.broker.state == "stopped":
            raise BrokerUnavailable("no fleet runs")
        return status

    def _tasks_in(self, *wanted: JobState) -> list[dict[str, Any]]:
        return [self._told(info) for info in self._jobs(*wanted)]

    def _active(self, **_options: Any) -> list[dict[str, Any]]:
        return self._tasks_in(JobState.RUNNING)

    def _reserved(self) -> list[dict[str, Any]]:
        return self._tasks_in(JobState.QUEUED, JobState.WAITING)

    def _scheduled(self) -> list[dict[str, Any]]:
        jobs = self._jobs(JobState.SCHEDULED)
        return [{"eta": info.due_at, "priority": 6, "request": self._told(info)} for info in jobs]

    def _registered(self, taskinfoitems: Iterable[str] | None = None, **_options: Any) -> list[str]:
        names = sorted(name for name in self.app.tasks if not name.startswith("celery."))
        items = list(taskinfoitems or ())
        if not items:
            return names
        told = [[f"{item}={getattr(self.app.tasks[name], item, None)}" for item in items] for name in names]
        return [f"{name} [{' '.join(each)}]" for name, each in zip(names, told, strict=True)]

    def _revoked(self) -> list[str]:
        return fleet_of(self.app).store.revoked()

    def _stats(self) -> dict[str, Any]:
        status = self._status()
        return {
            "pid": status.broker.pid,
            "uptime": status.broker.uptime_s,
            "broker": {"transport": "taskq"},
            "pool": {"implementation": "taskq", "processes": [each.pid for each in status.consumers]},
            "total": {"succeeded": status.totals.succeeded, "failed": status.totals.failed},
        }

    def _active_queues(self) -> list[dict[str, Any]]:
        return [{"name": name, "routing_key": name, "exchange": {"name": ""}} for name in self.app.amqp.queues]

    def _query_task(self, ids: Any, **_options: Any) -> dict[str, Any]:
        store, q = fleet_of(self.app).store, fleet_of(self.app).q
        found = {}
        for task_id in maybe_list(ids):
            job_id = store.job_of(task_id)
            if job_id is None:
                continue
            try:
                info = q.job(job_id).info(arguments=True)
            except JobNotFound:
                continue
            found[task_id] = [_STATES.get(info.state, "ready"), self._told(info)]
        return found

    def _conf(self, with_defaults: bool = False) -> Any:
        return self.app.conf.table(with_defaults=with_defaults)

    # -- jobs

    def _jobs(self, *wanted: JobState) -> list[JobInfo]:
        """The tasks in these states, with their arguments."""
        q = fleet_of(self.app).q
        found = []
        for state in wanted:
            for listed in q.jobs(state, limit=None):
                if TASK_ID in listed.meta:
                    try:
                        found.append(q.job(listed.id).info(arguments=True))
                    except JobNotFound:
                        continue
        return found

    def _request(self, info: JobInfo) -> dict[str, Any] | None:
        """The request of a job's message, or None if its arguments are not kept any more."""
        arguments = info.arguments
        if arguments is None or arguments.left_out is not None or len(arguments.args) != 4:
            return None
        return read_message(self.app, *arguments.args)[0]

    def _told(self, info: JobInfo) -> dict[str, Any]:
        request = self._request(info) or {}
        return {
            "id": info.meta.get(TASK_ID, info.id),
            "name": request.get("task", info.task),
            "args": request.get("args"),
            "kwargs": request.get("kwargs"),
            "type": request.get("task", info.task),
            "hostname": HOSTNAME,
            "time_start": info.started_at,
            "acknowledged": False,
            "delivery_info": request.get("delivery_info"),
            "worker_pid": None,
        }


_COMMANDS: Mapping[str, Callable[..., Any]] = {
    "revoke": FleetControl._revoke,
    "revoke_by_stamped_headers": FleetControl._revoke_by_headers,
    "ping": FleetControl._ping,
    "active": FleetControl._active,
    "reserved": FleetControl._reserved,
    "scheduled": FleetControl._scheduled,
    "registered": FleetControl._registered,
    "revoked": FleetControl._revoked,
    "stats": FleetControl._stats,
    "active_queues": FleetControl._active_queues,
    "query_task": FleetControl._query_task,
    "conf": FleetControl._conf,
}
