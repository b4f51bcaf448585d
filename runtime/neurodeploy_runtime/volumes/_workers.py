"""One function over many items in a few threads, the caller's among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

Item = TypeVar("Item")


class Workers:
    """Threads that share the items of a call. A context manager: it owns them.

    The calling thread works too, so that calls from several threads at once never
    wait for each other's items to be begun.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._helpers = threads - 1
        self._pool = (
            ThreadPoolExecutor(self._helpers, thread_name_prefix=name)
            if self._helpers
            else None
        )

    def each(self, function: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Call `function` for every item; the first exception ends it and is raised."""
        items = list(items)
        rest = iter(items)  # a list's iterator gives every item to one thread only
        failed = False

        def work() -> None:
            nonlocal failed
            for item in rest:
                if failed:
                    return
                try:
                    function(item)
                except BaseException:
                    failed = True
                    raise

        pool, helpers = self._pool, min(self._helpers, len(items) - 1)
        if pool is None or helpers < 1:
            work()
            return
        futures = [pool.submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            errors = [future.exception() for future in futures if not future.cancel()]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
