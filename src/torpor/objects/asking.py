"""Conversations with a task: several object kinds ask what only the task itself can tell, in one batch of calls.

Each kind writes a generator that yields its calls, gets their results, and returns what it made of them. `ask` runs many of
them at once: the calls of all go out together, so that a thread is disturbed once.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Any

    from torpor.tasks.remote import Remote

    Calls = list[tuple[str | int, ...]]
    Asking = Generator[Calls, list[int], Any]


def ask(remote: Remote, *conversations: Asking) -> list[Any]:
    """Run the conversations side by side; their return values, in order. Each takes the errors of its own calls."""
    answers: list[Any] = [None] * len(conversations)
    waiting: list[tuple[int, Asking, Calls]] = []

    def advance(index: int, conversation: Asking, results: list[int] | None) -> None:
        try:
            calls = next(conversation) if results is None else conversation.send(results)
        except StopIteration as end:
            answers[index] = end.value
        else:
            waiting.append((index, conversation, calls))

    for index, conversation in enumerate(conversations):
        advance(index, conversation, None)
    while waiting:
        round_, waiting = waiting, []
        results = remote.batch([call for _, _, calls in round_ for call in calls])
        at = 0
        for index, conversation, calls in round_:
            part: Sequence[int] = results[at : at + len(calls)]
            at += len(calls)
            advance(index, conversation, list(part))
    return answers
