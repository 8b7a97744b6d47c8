"""The service against its peers: other servers that do the same job, each the idiomatic way.

Each server is one process on a core of its own, where there are two; what makes the load is on
another. In each round every server is started anew, on a new store, is seen to really do the job,
and is then driven in a closed loop. What is told is the median of the rounds, and of the ratios
within a round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from benchmarks.contest import environment
from benchmarks.contest.chart import svg
from benchmarks.contest.cores import share_out
from benchmarks.contest.figures import Row, summarize
from benchmarks.contest.peers import BASE, OWN, Peer, peers_of
from benchmarks.contest.rounds import Outcome, Plan, compare
from benchmarks.contest.stores import ENGINES
from benchmarks.contest.tables import document, markdown
from benchmarks.driver.options import Parser, count_up_to, seconds_up_to

MOST_ROUNDS, MOST_SECONDS = 1000, 60
MOST_CONNECTIONS = 64
"""Fewer than the requests that the service works on at once before it answers 503."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, and prints tables; or makes what the peers run on.

    :return: the exit status: 0 all went well, 1 a server failed and is not in the tables, 2 it
        could not begin.
    """
    args = _parse_args(argv)
    try:
        if args.setup:
            return _set_up()
        _require_setup(args.plan.peers)
    except (environment.NotReady, OSError) as error:
        _say(str(error))
        return 2
    outcome = _compare(args.plan)
    _report(args, outcome)
    for name, reason in outcome.failures.items():
        _say(f'{name} is left out: {reason}')
    return int(bool(outcome.failures))


def _set_up() -> int:
    if environment.is_ready():
        _say(f'{environment.FOLDER.name} is as it should be')
        return 0
    _say(f'making {environment.FOLDER.name}, which takes a minute or two …')
    environment.make()
    return 0


def _require_setup(peers: Sequence[Peer]) -> None:
    """
    :raises NotReady: what they run on is not there.
    """
    if any(peer.needs_setup for peer in peers) and not environment.is_ready():
        raise environment.NotReady(
            'what the peers run on is not there, or is not what it should be now: '
            'run `run.py bench --setup` first')


def _compare(plan: Plan) -> Outcome:
    cores = share_out()
    _say(cores.describe())
    with tqdm(file=sys.stderr, disable=None, leave=False, bar_format='{desc} {elapsed}') as bar:
        return compare(plan, cores, bar.set_description_str)


def _report(args: argparse.Namespace, outcome: Outcome) -> None:
    rows = summarize(outcome.found, args.plan.peers, BASE)
    base = next((row.peer.title for row in rows if row.peer.name == BASE), '')
    if args.json:
        args.json.write_text(json.dumps(document(args.plan, rows, outcome), indent=2) + '\n')
    if args.chart:
        _draw(args.chart, rows, base)
    if rows:  # last: whoever reads it may have seen enough
        print(*markdown(rows, base), sep='\n', flush=True)


def _draw(file: Path, rows: Sequence[Row], base: str) -> None:
    if rows and rows[0].ratio:
        file.write_text(svg(rows, base, OWN), encoding='utf-8')
    else:
        _say(f'without {BASE} there is nothing to draw')


def _say(text: str) -> None:
    print(f'run.py bench: {" ".join(text.split())}', file=sys.stderr, flush=True)


# --- the command line ---

def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, and the `plan` made of them."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        args.plan = Plan(_chosen(args), args.engine, args.rounds, args.seconds, args.connections)
    except ValueError as error:
        parser.error(str(error))
    return args


def _parser() -> Parser:
    parser = Parser(
        prog='run.py bench', allow_abbrev=False,
        description='Measures the service and other servers that do the same job, in turn, and '
                    'tells how they compare.')
    parser.add_argument('--setup', action='store_true',
                        help=f'make {environment.FOLDER.name}, which the peers run on, and no more')
    parser.add_argument('--peers', metavar='NAME,…',
                        help='the servers, of those that know the engine (default: all: '
                             f'{_names(ENGINES[0])})')
    parser.add_argument('--engine', choices=ENGINES, default=ENGINES[0],
                        help='where entries are kept (default: %(default)s)')
    parser.add_argument('--rounds', type=count_up_to(MOST_ROUNDS), default=5, metavar='N',
                        help='default: %(default)s')
    parser.add_argument('--seconds', type=seconds_up_to(MOST_SECONDS), default=2.0, metavar='N',
                        help='for each workload of each server in a round (default: %(default)g)')
    parser.add_argument('--connections', type=count_up_to(MOST_CONNECTIONS), default=32,
                        metavar='N',
                        help='kept alive, with one request at a time on each, at most '
                             f'{MOST_CONNECTIONS} (default: %(default)s)')
    parser.add_argument('--json', type=_writable, metavar='FILE',
                        help='write all figures there, too')
    parser.add_argument('--chart', type=_writable, metavar='FILE',
                        help='draw the comparison there, as SVG')
    return parser


def _names(engine: str) -> str:
    return ','.join(peer.name for peer in peers_of(engine))


def _chosen(args: argparse.Namespace) -> Sequence[Peer]:
    """
    :raises ValueError: a name is not known, or is needed; the text is one line.
    """
    known = {peer.name: peer for peer in peers_of(args.engine)}
    names = list(known) if args.peers is None else list(dict.fromkeys(args.peers.split(',')))
    for name in names:
        if name not in known:
            raise ValueError(f'--peers: {name!r} is none of those with --engine {args.engine}: '
                             f'{",".join(known)}')
    if args.chart and BASE not in names:
        raise ValueError(f'--chart: shows how others compare with {BASE}, which is not among '
                         'the peers')
    return [known[name] for name in names]


def _writable(path: str) -> Path:
    """Looks before the run: what cannot be written shall be known then."""
    file = Path(path)
    try:
        file.open('a').close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f'cannot write it: {error}') from error
    return file


if __name__ == '__main__':
    sys.exit(main())
