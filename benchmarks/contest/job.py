"""The job that is compared, and whether a server really does it."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.contest.load import Work, requests_for
from benchmarks.contest.peers import KEEPS, LOGS, REFUSES, Peer
from benchmarks.contest.server import Answer, Failed, Server
from benchmarks.validation import ADDRESS, EMAIL, PHONE, TYPICAL

ENTRIES = 100
"""In the book before anything is measured, which is what a list has."""

WORKLOADS: Mapping[str, str] = {
    'get': 'GET one', 'list': f'list of {ENTRIES}', 'put': 'PUT one', 'post': 'POST one'}
"""Names and titles, in the order in which they are measured: what makes entries comes last, so
that no list has to look through them."""

LOG_SECONDS = 3.0
"""For a line to arrive."""

WRONG: Mapping[str, object] = {
    'no name': {'addresses': [ADDRESS]},
    'a name that is too long': {'full_name': 'x' * 513},
    'a name with a control character': {'full_name': 'a\u0007b'},
    'a number for a name': {'full_name': 7},
    'an unknown member': {'full_name': 'A', 'unknown': 1},
    'an unknown member of an address': {'full_name': 'A', 'addresses': [{**ADDRESS, 'x': 1}]},
    'an unknown kind': {'full_name': 'A', 'addresses': [{**ADDRESS, 'kind': 'x'}]},
    'too many e-mails': {'full_name': 'A', 'emails': [EMAIL] * 51},
    'an e-mail without a domain': {'full_name': 'A', 'emails': [{**EMAIL, 'email': 'asha@'}]},
    'letters in a phone number': {'full_name': 'A', 'fax_numbers': [{**PHONE, 'area_code': 'x'}]},
    'a negative number': {'full_name': 'A', 'addresses': [{**ADDRESS, 'unit_number': -1}]},
    'no object': [TYPICAL],
}
"""What must be refused."""

LOCATION = re.compile('/addresses/[0-9A-Za-z-]{1,64}')
FIELD = re.compile(r'([\w.-]+)=("(?:[^"\\]|\\.)*"|\S+)')
DURATIONS, REQUEST_IDS = {'duration', 'time_ms'}, {'request_id', 'req_id'}
"""What the fields of a log line may be called."""


def fill(server: Server) -> dict[str, Any]:
    """Makes the entries.

    :return: them, by the path that leads to each.
    :raises Failed: it does not make them.
    """
    return dict(_create(server, _entry(number)) for number in range(ENTRIES))


def works(paths: list[str]) -> Mapping[str, Work]:
    """The workloads, on those entries."""
    body = json.dumps(TYPICAL).encode()
    return {
        'get': Work([*requests_for('GET', paths)], 200),
        'list': Work([*requests_for('GET', [f'/addresses?limit={ENTRIES}'])], 200),
        'put': Work([*requests_for('PUT', paths, body)], 204),
        'post': Work([*requests_for('POST', ['/addresses'], body)], 201)}


def check(peer: Peer, server: Server, made: Mapping[str, Any]) -> None:
    """Looks whether a server does its part of the job.

    :param made: what the book has, as `fill` told.
    :raises Failed: it does not.
    """
    for name, look in _CHECKS:
        if name in peer.job:
            look(server, made)


def check_lines(server: Server, requests: int) -> None:
    """
    :raises Failed: so many requests have left fewer lines in the log.
    """
    deadline = time.monotonic() + LOG_SECONDS
    while (lines := server.count_lines()) < requests:
        if time.monotonic() > deadline:
            raise Failed(f'{requests} requests have left {lines} lines in the log')
        time.sleep(0.05)


def _entry(number: int) -> dict[str, Any]:
    return {**TYPICAL, 'full_name': f'Asha Example {number:02}'}


def _create(server: Server, entry: object) -> tuple[str, object]:
    answer = server.ask('POST', '/addresses', json.dumps(entry).encode())
    _require(answer.status == 201, f'POST of an entry is answered {answer.status}')
    path = answer.headers.get('Location', '')
    _require(LOCATION.fullmatch(path) is not None, f'the Location is {path!r}')
    return path, entry


def _check_keeping(server: Server, made: Mapping[str, Any]) -> None:
    for path, entry in made.items():
        _require(_document(server.ask('GET', path)) == entry, f'{path} is not what was put there')
    status = server.ask('GET', '/addresses/' + secrets.token_hex(16)).status
    _require(status == 404, f'an unknown id is answered {status}')
    for count in (ENTRIES, 3):
        listed = _document(server.ask('GET', f'/addresses?limit={count}'))
        expected = [(path.rpartition('/')[2], made[path]) for path in sorted(made)[:count]]
        _require(isinstance(listed, dict) and list(listed.items()) == expected,
                 f'a list of {count} is not that of the first entries in the order of their ids')


def _check_replacing(server: Server, made: Mapping[str, Any]) -> None:
    """Leaves all as it was."""
    path, entry = next(iter(made.items()))
    for other in ({'full_name': 'Another Example'}, entry):
        status = _put(server, path, other)
        _require(status == 204, f'PUT of an entry is answered {status}')
        _require(_document(server.ask('GET', path)) == other,
                 f'{path} is not what has replaced it')
    path = f'/addresses/{secrets.token_hex(16)}'
    status = _put(server, path, entry)
    _require(status == 404, f'PUT to an unknown id is answered {status}')
    status = server.ask('GET', path).status
    _require(status == 404, f'after PUT to an unknown id, GET is answered {status}')


def _put(server: Server, path: str, entry: object) -> int:
    return server.ask('PUT', path, json.dumps(entry).encode()).status


def _check_refusing(server: Server, made: Mapping[str, Any]) -> None:
    path, entry = next(iter(made.items()))
    bodies = {'no JSON': b'{"full_name": ', **{
        name: json.dumps(wrong).encode() for name, wrong in WRONG.items()}}
    for name, body in bodies.items():
        for method, target in (('POST', '/addresses'), ('PUT', path)):
            status = server.ask(method, target, body).status
            _require(400 <= status < 500, f'{method} with {name} is answered {status}')
    _require(_document(server.ask('GET', path)) == entry, 'what was refused has replaced an entry')


def _check_log(server: Server, _made: Mapping[str, Any]) -> None:
    for method, body in (('GET', None), ('PUT', json.dumps(TYPICAL).encode())):
        path = f'/addresses/{secrets.token_hex(16)}'
        server.ask(method, path, body)
        lines = list(_lines_with(server, path))
        _require(len(lines) == 1, f'{method} leaves {len(lines)} lines in the log')
        fields = {name: value.strip('"') for name, value in FIELD.findall(lines[0])}
        _require({method, path, '404'} <= set(fields.values()) and fields.keys() & DURATIONS
                 and fields.keys() & REQUEST_IDS,
                 f'the log line has not all that it should have: {lines[0]}')


_CHECKS = ((KEEPS, _check_keeping), (KEEPS, _check_replacing), (REFUSES, _check_refusing),
           (LOGS, _check_log))


def _lines_with(server: Server, text: str) -> Iterator[str]:
    """The lines that have it, when there are some, or when that takes too long."""
    deadline = time.monotonic() + LOG_SECONDS
    while not any(text in line for line in server.lines()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # a second one would follow at once
    return (line for line in server.lines() if text in line)


def _document(answer: Answer) -> object:
    _require(answer.status == 200, f'a GET is answered {answer.status}')
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise Failed(f'an answer is no JSON: {answer.body[:80]!r}') from error


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)
