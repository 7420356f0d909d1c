"""One bad request costs only itself."""

from collections.abc import Callable, Sequence

from soundcap.engines import EngineError
from soundcap.request import CaptionRequest


def answer_or_isolate(
    answer: Callable[[Sequence[CaptionRequest]], list[str | Exception]], requests: Sequence[CaptionRequest]
) -> list[str | Exception]:
    """`answer(requests)`; if that raises, each request by itself, with its own exception in its slot.

    EngineError passes through: it is not about a request.
    """
    try:
        return answer(requests)
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a request raises is its answer
        if len(requests) == 1:
            return [error]
    return [one for request in requests for one in answer_or_isolate(answer, [request])]
