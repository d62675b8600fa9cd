"""Faults of all kinds against a real server under load; out: a ledger in which nothing is lost.

lives                           the server, its restarts and its ends
good_requests, good_clients     the load, and whether its numbers are right
bad_clients, damaged            who breaks the rules, and the files that they send
acts, play                      what happens, and one after the other
ledger, record, verdict         what was counted and seen, and whether it fits together
"""

from benchmarks.soak.verdict import table

__all__ = ["table"]
