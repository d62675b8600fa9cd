"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

# An embedding changes nothing on the server, and a clip that is taught twice is one example: every request
# may be sent twice.
STATUSES = frozenset({408, 429, 502, 503})


@dataclass(frozen=True)
class Retries:
    """attempts: sent at most so often. The waits double from first_s to longest_s, and each is drawn at
    random from the upper half of that, so that clients do not come back all at once; the server's Retry-After
    is obeyed, and stretched by up to a tenth, unless it is longer than give_up_s."""

    attempts: int = 5
    first_s: float = 0.5
    longest_s: float = 20.0
    give_up_s: float = 120.0

    def wait_s(self, attempt: int, status: int, retry_after: str | None) -> float | None:
        """Seconds until the next attempt after the failed `attempt` (1, 2 …); None to give up. status: 0
        where there was no answer."""
        if attempt >= self.attempts or (status and status not in STATUSES):
            return None
        if retry_after is not None and retry_after.isdecimal():
            asked_s = float(retry_after)
            return asked_s + random.uniform(0, 0.1 * asked_s) if asked_s <= self.give_up_s else None
        return random.uniform(0.5, 1.0) * min(self.first_s * 2.0 ** (attempt - 1), self.longest_s)
