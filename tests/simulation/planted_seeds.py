"""The first of the lives that show a planted bug, where it is not among the first few.

The search for a bug begins there, so that a run of the tests does not live hundreds of others before it each time. What a
seed means changes with the broker and with the simulator: a number that is out of date costs one life, and the search
goes on from the first one.
"""

from __future__ import annotations

FOUND_IN = {
    "a schedule that moves before it fires": 63,
    "a pause of a schedule that does not last": 13,
    "a removal of a schedule that does not last": 7,
    "an order that does not last": 13,
    "limits that do not last": 29,
    "capacities that do not last": 19,
    "jobs that wait behind one that hangs": 12,
    "a rate that does not last": 44,
    "a unique key that does not last": 90,
    "checkpoints that are not stored": 10,
    "delete on dequeue": 56,
    "late outcomes of another incarnation": 5,
    "an unwanted job that is retried": 22,
    "a command that is answered before its commit": 13,
    "jobs that run before they are durable": 6,
    "a commit between an end and the children": 43,
    "a commit between an end and the next step, and a start that forgets who waits": 61,
    "what was called off stays so": 33,
    "what was cancelled by hand is called back": 27,
    "a flow sent again is another": 27,
    "half a flow": 7,
    "a deaf consumer that keeps its jobs": 14,
    "one that starts and is to retire": 14,
    "a number that nobody has": 5,
    "a number that two have": 12,
    "a turn that takes all that was asked for": 148,
    "a part of a command whose rest is forgotten": 232,
    "a part of a command that is done again": 159,
    "a portion of ends that is lost": 8,
    "an unreadable outcome that does not count": 46,  # earlier ones last half a minute
    "a slot of a recalled lease that also runs": 13,
}
