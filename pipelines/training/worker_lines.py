"""Lines that training workers say, brought to the driver while it waits for them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_EVERY_S = 1.0


class LineBox:
    """An actor's state: what was said since the driver last looked."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@contextmanager
def lines_from_workers(say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """A function to send to workers: each line given to it there is given to `say` here, a little later.

    It never waits, so training does not depend on whether anyone listens.
    """
    import ray

    box: Any = ray.remote(num_cpus=0, max_restarts=-1)(LineBox).remote()
    done = threading.Event()

    def forward() -> None:
        last = False
        while not last:
            last = done.wait(POLL_EVERY_S)  # look once more after the end
            try:
                lines = ray.get(box.take.remote())
            except ray.exceptions.RayError:
                continue  # the box's process died: it restarts empty, and training is not to suffer for it
            for line in lines:
                say(line)

    thread = threading.Thread(target=forward, name="lines-from-workers", daemon=True)
    thread.start()
    try:
        yield lambda line: box.put.remote(line)
    finally:
        done.set()
        thread.join()
        ray.kill(box)
