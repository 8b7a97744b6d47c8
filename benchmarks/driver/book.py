"""The entries of a run, and the requests about them."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.driver.client import NO_CONNECTION, Answer
from benchmarks.driver.plan import DELETE, GET, LIST, OPERATIONS, POST, PUT, Plan
from benchmarks.validation import TYPICAL

EXPECTED = {GET: 200, LIST: 200, PUT: 204, POST: 201, DELETE: 204}
STARTS = {GET: b'GET /addresses/', LIST: b'GET /addresses?limit=20', PUT: b'PUT /addresses/',
          POST: b'POST /addresses', DELETE: b'DELETE /addresses/'}
LOCATION = re.compile(rb'/addresses/([0-9A-Za-z-]{1,64})')


class Request(NamedTuple):
    """A request, ready to be sent, and the id of the entry it is about."""

    operation: str
    entry: bytes
    data: bytes


class Entries:
    """A set of ids from which one can be chosen at random at once."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._ids: list[bytes] = []
        self._places: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._ids)

    def __contains__(self, entry: bytes) -> bool:
        return entry in self._places

    def add(self, entry: bytes) -> None:
        if entry not in self._places:
            self._places[entry] = len(self._ids)
            self._ids.append(entry)

    def choose(self) -> bytes:
        return self._ids[int(self._chance.random() * len(self._ids))]

    def take(self) -> bytes:
        """Chooses one and removes it."""
        entry, last = self.choose(), self._ids[-1]
        place = self._places[last] = self._places[entry]
        self._ids[place] = last
        self._ids.pop()
        del self._places[entry]
        return entry


class Book:
    """The entries of a run: makes requests about them, and learns from the answers.

    An id leaves the set before its delete is sent. So what is in the set must be there, and a 404
    is in order if the id has left the set by the time of the answer.
    """

    def __init__(self, plan: Plan) -> None:
        self._chance = random.Random('requests')
        self.entries = Entries(self._chance)
        self.doubtful: set[bytes] = set()
        """Ids whose delete has failed: they may be there or not."""
        self.lost_posts = 0
        self._least = plan.entries // 2
        self._weights = list(itertools.accumulate(plan.mix.get(name, 0) for name in OPERATIONS))
        body = json.dumps(TYPICAL).encode()
        head = f' HTTP/1.1\r\nHost: {plan.authority}\r\n'.encode()
        with_body = head + (
            b'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b' % (len(body), body))
        self._ends = {PUT: with_body, POST: with_body}
        self._end = head + b'\r\n'

    def choose(self) -> str:
        """An operation, at random as the mix says; but a post when there is no entry to ask for,
        or when a delete would leave less than half of those there were to begin with."""
        operation, = self._chance.choices(OPERATIONS, cum_weights=self._weights)
        least = {GET: 0, PUT: 0, DELETE: self._least}.get(operation, -1)
        return operation if len(self.entries) > least else POST

    def request(self, operation: str) -> Request:
        """One that can be sent now; get, put and delete need an entry."""
        if operation == DELETE:
            return self.delete(self.entries.take())
        return self._request(operation, self.entries.choose() if operation in (GET, PUT) else b'')

    def delete(self, entry: bytes) -> Request:
        """One that removes an entry which is not in the set any more."""
        return self._request(DELETE, entry)

    def settle(self, request: Request, answer: Answer) -> str:
        """Takes note of an answer.

        :return: what is wrong with it, as in `Result.errors`, or nothing.
        """
        if answer.status != EXPECTED[request.operation]:
            return '' if self._is_gone(request, answer) else f'status {answer.status}'
        if request.operation == POST:
            location = LOCATION.fullmatch(answer.location)
            if location is None:
                return 'no location'
            self.entries.add(location[1])
        return ''

    def doubt(self, request: Request, error: str) -> None:
        """Takes note that it is not known what a request did, if it went wrong."""
        if error and request.operation == DELETE:
            self.doubtful.add(request.entry)
        elif error not in ('', NO_CONNECTION) and request.operation == POST:
            self.lost_posts += 1

    def _request(self, operation: str, entry: bytes) -> Request:
        end = self._ends.get(operation, self._end)
        return Request(operation, entry, STARTS[operation] + entry + end)

    def _is_gone(self, request: Request, answer: Answer) -> bool:
        return (answer.status == 404 and request.operation in (GET, PUT)
                and request.entry not in self.entries)
