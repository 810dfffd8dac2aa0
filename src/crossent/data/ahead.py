"""Reads ahead in threads. Imports no torch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None) -> Iterator[Result]:
    """What a function makes of each item, in the items' order; while one is in use, threads make the next.

    Args:
        function: which releases Python's lock for most of its time, or nothing is gained.
        items: taken as they are needed, one more than there are threads ahead of what is in use.
        threads: how many; None: one a core, 8 at most.
    """
    workers = threads or min(8, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="crossent-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # whoever leaves early does not wait for what it does not want
                future.cancel()
