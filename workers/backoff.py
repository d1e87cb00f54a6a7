"""How long to wait before another try: doubling, with jitter, bounded."""

from __future__ import annotations

import random
from collections.abc import Callable


def delay_seconds(failures: int, *, base: float, longest: float, chance: Callable[[], float] = random.random) -> float:
    """The wait after so many failures (1 or more): between half and all of `base` doubled for each further one.

    At most `longest`. The jitter keeps those that failed together from trying together again; its lower bound keeps
    one from trying at once (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/).
    """
    assert failures >= 1
    # Beyond 2**32 every base is over every bound.
    full = min(longest, base * 2.0 ** min(failures - 1, 32))
    return full * (0.5 + 0.5 * chance())
