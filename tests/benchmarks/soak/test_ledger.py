"""The soak's bookkeeping: a ledger that could not fail would prove nothing."""

import pytest

from benchmarks.harness.connection import Answer
from benchmarks.soak.ledger import LEFT, LOST, Ledger, rows, still_queued, table, unbalanced

OK = Answer(200, {}, b"{}")
BAD = Answer(422, {}, b'{"error": "audio_unreadable", "detail": "no sound"}')
FULL = Answer(503, {"retry-after": "2"}, b'{"error": "overloaded", "detail": "later"}')


def page(dropped: int = 0, **by_code: int) -> str:
    """What the server counted: `c200=3` is three answers of 200 by the route /embed."""
    lines = [
        f'viola_requests_total{{route="/embed",model="m",code="{code[1:]}"}} {number}'
        for code, number in by_code.items()
    ]
    lines.append('viola_requests_total{route="/health/live",model="",code="200"} 99')
    lines.append(f"viola_dropped_total {dropped}")
    if "c422" in by_code:
        lines.append(f'viola_errors_total{{error="audio_unreadable"}} {by_code["c422"]}')
    return "\n".join([*lines, ""])


def ledger(*answers: Answer) -> Ledger:
    found = Ledger()
    for answer in answers:
        found.answered("good", answer)
    return found


def test_books_balance_when_the_server_counted_what_the_clients_saw() -> None:
    assert unbalanced(ledger(OK, OK, BAD), page(c200=2, c422=1)) == []


@pytest.mark.parametrize("counted", [{"c200": 1, "c422": 1}, {"c200": 3, "c422": 1}, {"c200": 2}])
def test_books_do_not_balance_when_it_counted_anything_else(counted: dict[str, int]) -> None:
    assert unbalanced(ledger(OK, OK, BAD), page(**counted))


def test_a_client_that_left_is_owed_exactly_one_count() -> None:
    books = ledger(OK)
    books.left("leaving")
    assert unbalanced(books, page(c200=1, c499=1)) == []
    assert unbalanced(books, page(c200=2)) == []
    assert unbalanced(books, page(c200=1))
    assert unbalanced(books, page(c200=1, c499=2))


def test_more_dropped_than_was_given_up_does_not_balance() -> None:
    books = ledger(OK)
    assert unbalanced(books, page(c200=1, dropped=1))
    books.left("leaving")
    assert unbalanced(books, page(c200=1, c499=1, dropped=1)) == []


def test_what_is_lost_without_a_kill_is_a_complaint() -> None:
    books = Ledger()
    books.lost("good", by_kill=True)
    assert books.complaints == []
    books.lost("good", by_kill=False, complaint="no answer")
    assert books.complaints == ["good: lost: no answer"]
    assert books.outcomes(LOST) == 1


def test_a_wrong_number_a_500_and_a_503_without_retry_after_are_complaints() -> None:
    books = ledger(FULL)
    assert books.complaints == []
    books.wrong("good", "off by 0.1")
    books.answered("good", Answer(500, {}, b""))
    books.answered("good", Answer(503, {}, FULL.body))
    assert len(books.complaints) == 3


def test_the_ledger_shows_every_request_once() -> None:
    books = ledger(OK, OK, BAD)
    books.left("leaving")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows(books)).splitlines()]
    assert lines[0] == ["client", "sent", "200", "422", LEFT]
    assert lines[2] == ["good", "3", "2", "1", ""]
    assert lines[-1][1:] == ["4", "2", "1", "1"]


def test_frames_that_are_queued_though_nobody_waits_are_told() -> None:
    assert still_queued("viola_queue_frames 0\n") == []
    assert still_queued('viola_queue_frames{worker="1"} 0\nviola_queue_frames{worker="2"} 96\n') == [
        "the queue still holds 96 frames, though nobody waits"
    ]
