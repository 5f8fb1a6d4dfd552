"""Several calls in flight at once, their results in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_onebox.api.arguments import whole_number
from airflow_provider_onebox.api.progress import Progress
from airflow_provider_onebox.api.settings import MAX_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


Item = TypeVar("Item")


Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], parallelism: int | str, what: str = "rows"
) -> Iterator[Result]:
    """Call a function for each item, several at a time, and give the results in the order of the items.

    No more than twice as many items as there are threads are in memory. When a call raises, those that have not begun
    are dropped and those in flight are waited for; then the error is raised.

    :param function: what to call; in several threads.
    :param items: read in the caller's own thread, a few ahead.
    :param parallelism: calls in flight at once, 1 to 32.
    :param what: what the items are, for the lines of progress in the log.
    :return: an iterator over the results.
    :raises OneboxConfigError: at once, if the parallelism is invalid.
    """
    parallelism = whole_number("parallelism", parallelism, 1, MAX_CONNECTIONS)

    def results() -> Iterator[Result]:
        in_flight: deque[Future[Result]] = deque()
        pool = ThreadPoolExecutor(parallelism, thread_name_prefix="onebox-row")
        progress = Progress(what)

        def take() -> Result:
            result = in_flight.popleft().result()
            progress.add()
            return result

        try:
            for item in items:
                in_flight.append(pool.submit(function, item))
                if len(in_flight) == 2 * parallelism:
                    yield take()
            while in_flight:
                yield take()
        finally:
            pool.shutdown(cancel_futures=True)

    return results()
