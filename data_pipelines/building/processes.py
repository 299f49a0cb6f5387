"""Work on many things in several processes, each of which prepares once for its share of them."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

Start = Callable[[], Callable[[Thing], Result]]
"""Prepares in a process and returns what works on one thing."""


def in_processes(start: Start[Thing, Result], things: Sequence[Thing], processes: int) -> Iterator[Result]:
    """Yields the results as they come; with one process everything happens in this one.

    Args:
        start: a function at the top of a module, or a partial of one: it goes to other processes.
        things: process p of P takes those with the numbers p, p + P, p + 2P, ...
        processes: how many.

    Raises:
        OSError: of a thing, or because a process was ended from outside.
        ValueError: of a thing.
    """
    if min(processes, len(things)) <= 1:
        yield from map(start(), things) if things else ()
        return
    context = multiprocessing.get_context("spawn")
    running: list[BaseProcess] = []
    answering: dict[Connection, BaseProcess] = {}
    try:
        for number in range(min(processes, len(things))):
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_answer, args=(start, things[number::processes], theirs), daemon=True
            )
            process.start()
            # The pipe ends with its process only if nobody else holds its other end.
            theirs.close()
            running.append(process)
            answering[ours] = process
        while answering:
            for ready in wait(list(answering)):
                assert isinstance(ready, Connection)
                try:
                    error, answer = ready.recv()
                except EOFError:
                    _check_end(answering.pop(ready))
                    continue
                if error is not None:
                    raise (OSError if error == "io" else ValueError)(answer)
                yield answer
    finally:
        for process in running:
            process.terminate()
            process.join()


def _check_end(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise OSError(
            f"a process ended with code {process.exitcode} (-9: killed, perhaps for want of memory). Start again with "
            "fewer processes: what is whole is kept."
        )


def _answer(start: Start[Thing, Result], things: Sequence[Thing], answers: Connection) -> None:
    # The process that waits for the answers is interrupted too, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work = start()
        for thing in things:
            answers.send((None, work(thing)))
    except BrokenPipeError:
        return
    except (OSError, ValueError) as error:
        answers.send(("io" if isinstance(error, OSError) else "value", str(error)))
