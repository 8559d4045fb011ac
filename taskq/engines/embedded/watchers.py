"""Clients that wait for the end of jobs, or for the items that jobs yield."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients
from taskq.engines.server import Peer
from taskq.model.effects import Effects
from taskq.model.errors import JobNotFound, ProtocolError, QueueFull, TaskQError
from taskq.model.limits import ITEMS_ANSWER, ITEMS_ANSWER_BYTES, MAX_READERS
from taskq.model.stored import FIRST_FINAL, Ended, StoredJob, StoredState
from taskq.protocol import frames
from taskq.protocol.endings import result_frame, unknown_frame
from taskq.protocol.items import items_frame

#: So many ends are sent together, up to one with a larger result.
_ENDS_TOGETHER = 100
_LARGE_BYTES = 16 * 1024


class Watchers:
    """Who waits for what. What is reported here is already durable."""

    def __init__(self, store: Store, clients: Clients) -> None:
        self._store = store
        self._clients = clients
        self._watchers: dict[bytes, set[Peer]] = {}
        self._readers: dict[bytes, list[tuple[Peer, int, int]]] = {}  # who waits for items: the request, the start
        self._read_by: dict[Peer, set[bytes]] = {}  # the jobs for whose items each of them waits

    def of(self, job_id: bytes) -> Collection[Peer]:
        """The clients that wait for the end of a job."""
        return self._watchers.get(job_id, ())

    def wait_for(self, effects: Effects) -> bool:
        """Whether somebody waits for one of these ends, or items."""
        readers = self._readers
        if readers and any(row.id in readers for row, *_ in (*effects.items, *effects.ended)):
            return True
        watchers = self._watchers
        return bool(watchers) and any(row.id in watchers for row, _, _ in effects.ended)

    # -- who waits

    def add(self, peer: Peer, job_id: bytes) -> None:
        """Notes that a client waits for the end of a job that has not ended."""
        if not peer.closed:
            self._watchers.setdefault(job_id, set()).add(peer)
            peer.watched.add(job_id)

    def watch(self, peer: Peer, job_id: bytes) -> bool:
        """Sends a client the end of a job in the store: now if it has ended, else when it does. Returns whether the job
        is there."""
        kept = self._store.states([job_id]).get(job_id)
        if kept is None:
            return False
        if kept < FIRST_FINAL:  # most have not: their arguments are not read for this
            self.add(peer, job_id)
        elif (stored := self._store.read(job_id)) is not None:
            self._push(peer, job_id, stored.kept, stored.outcome or b"")
        return True

    def read_items(self, peer: Peer, request: int, stored: StoredJob, start: int) -> None:
        """Answers with items of a job from a position on, or with its end; if there is neither yet, as soon as there
        is.

        Raises:
            QueueFull: too many wait already.
        """
        job_id = stored.row.id
        items = self._store.items(stored.row.seq, start, ITEMS_ANSWER, ITEMS_ANSWER_BYTES)
        if items or stored.kept >= FIRST_FINAL:
            self._clients.send(peer, items_frame(request, items, stored.kept.state, stored.outcome))
            return
        readers = self._readers.setdefault(job_id, [])
        if len(readers) >= MAX_READERS:
            raise QueueFull(f"{MAX_READERS} clients already wait for the items of this job")
        readers.append((peer, request, start))
        self._read_by.setdefault(peer, set()).add(job_id)

    def forget(self, peer: Peer) -> None:
        """Forgets a client that is gone."""
        for job_id in self._read_by.pop(peer, ()):
            self._readers[job_id] = [reader for reader in self._readers[job_id] if reader[0] is not peer]
            if not self._readers[job_id]:
                del self._readers[job_id]
        for job_id in peer.watched:
            watchers = self._watchers.get(job_id)
            if watchers is not None:
                watchers.discard(peer)
                if not watchers:
                    del self._watchers[job_id]

    # -- reports

    def tell(self, effects: Effects) -> None:
        """Sends ends and items, which are committed, to the clients that wait for them."""
        if self._watchers:
            self._tell_ends(effects.ended)
        if self._readers:
            for job_id in {row.id for row, *_ in (*effects.items, *effects.ended)}:
                readers = self._readers.pop(job_id, ())
                for peer, _, _ in readers:
                    self._reads_no_more(peer, job_id)
                for peer, request, start in readers:
                    self._answer_reader(peer, request, job_id, start)

    def _tell_ends(self, ended: Iterable[Ended]) -> None:
        """Sends many ends to a client in one call of the system, which takes longer than all else."""
        told: dict[Peer, list[bytes]] = {}
        for row, kept, outcome in ended:
            for peer in self._watchers.pop(row.id, ()):
                peer.watched.discard(row.id)
                if self._clients.is_clogged(peer):
                    self._clients.defer(peer, row.id)
                    continue
                together = told.setdefault(peer, [])
                together.append(result_frame(row.id, kept.state, outcome))
                if len(together) == _ENDS_TOGETHER or len(outcome) > _LARGE_BYTES:
                    self._clients.send(peer, b"".join(together))
                    together.clear()
        for peer, together in told.items():
            if together:
                self._clients.send(peer, b"".join(together))

    def _reads_no_more(self, peer: Peer, job_id: bytes) -> None:
        read = self._read_by.get(peer)
        if read is not None:
            read.discard(job_id)
            if not read:
                del self._read_by[peer]

    def tell_deferred(self) -> None:
        """Goes on informing clients that have read what they were sent."""
        for peer, job_id in self._clients.take_deferred():
            if not self.watch(peer, job_id):
                self.tell_unknown(peer, job_id)  # pruned meanwhile

    def tell_removed(self, ids: Iterable[bytes]) -> None:
        """Tells the clients that wait for jobs which were removed."""
        for job_id in ids:
            for peer in self._watchers.pop(job_id, ()):
                peer.watched.discard(job_id)
                self.tell_unknown(peer, job_id)

    def tell_unknown(self, peer: Peer, job_id: bytes) -> None:
        """Tells a client that nothing is known of a job."""
        self._clients.send(peer, unknown_frame(job_id))

    def _push(self, peer: Peer, job_id: bytes, kept: StoredState, outcome: bytes) -> None:
        if self._clients.is_clogged(peer):
            self._clients.defer(peer, job_id)  # read from the store again when the client has read what it was sent
        else:
            self._clients.send(peer, result_frame(job_id, kept.state, outcome))

    def _answer_reader(self, peer: Peer, request: int, job_id: bytes, start: int) -> None:
        try:
            self.refuse_clogged(peer)
            stored = self._store.read(job_id)
            if stored is None:
                raise JobNotFound.of(job_id)
            self.read_items(peer, request, stored, start)
        except TaskQError as error:
            self._clients.send(peer, frames.error_frame(request, error))

    def refuse_clogged(self, peer: Peer) -> None:
        """Refuses a client that asks for more without reading what it was sent.

        Raises:
            ProtocolError: it does.
        """
        if self._clients.is_clogged(peer):
            raise ProtocolError("the client goes on asking, but reads no answers")
