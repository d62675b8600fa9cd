"""A scripted run of faults against a real server under load; out: a ledger in which nothing is lost.

Good clients send sounds of all lengths and formats the whole time, and every number that they are answered
is held against the one computed beforehand, alone. Beside them, one act after the other: slow clients,
poison, overload, deadlines, clients that leave, long uploads, all of it at once, a rolling restart, a kill,
two workers of which one is killed or hangs, that are restarted, with a torn model too, and lose their folder,
the kill of their supervisor, a full disk, ends before the start is over. After each act everybody waits, and
the clients' ledger, the server's metrics, its queue, its memory and its open files must fit together.

Exit code 0 if nothing was lost and nothing was wrong, else 1 with the reasons.
"""

import asyncio
import sys

from benchmarks.harness import options
from benchmarks.harness.results import read, say, write
from benchmarks.soak import ledger, verdict
from benchmarks.soak.acts import SCRIPT
from benchmarks.soak.play import played


def main() -> None:
    parser = options.command("soak", __doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults; servers' starts come on top")
    options.model(parser)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    say("computing every embedding, each alone")
    play = asyncio.run(played(arguments.model, SCRIPT, seconds=60 * arguments.minutes, seed=arguments.seed))
    found = verdict.complaints(play.record, play.lives)
    path = write(
        "soak",
        ledger.rows(play.lives.ledger),
        minutes=arguments.minutes,
        complaints=found,
        **verdict.figures(play.record),
    )
    say(f"\n{verdict.table(read('soak') or {})}\n\n{path} written")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
