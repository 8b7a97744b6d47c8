"""Kills servers at random moments, under load, and looks for all that they had acknowledged.

What a client was told must be there after a new start on the same store. What it was not told
yet may be there or not, but whole. `python3 run.py crash` does this 200 times; the number stands
in the environment variable ADDRSERVICE_KILLS.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import DEADLINE, ROOT, Answer, ServerProcess

KILLS = int(os.environ.get('ADDRSERVICE_KILLS') or '10')
IS_TOLD = 'ADDRSERVICE_KILLS' in os.environ
"""Whether somebody wants to see how far it is; tests say nothing by themselves."""

WRITERS = 4
"""Per server; each changes entries of its own, so that it knows what they must be."""

OWN_NAMES = 8
MOST_ENTRIES = 16
"""Of one writer, so that a check takes no longer after many kills."""

LONGEST_LOAD = 0.3
LOAD_AFTER_KILL = 0.1
BIG = 50
PLACE = {'kind': 'home', 'street_name': 's' * 250, 'locality': 'l' * 250, 'city': 'c' * 250,
         'pincode': 1, 'country': 'x' * 250}
"""Fifty of them make an entry nearly as large as a body may be."""

FAILED = (OSError, http.client.HTTPException)
"""What a client sees of a server that is killed."""


class State(NamedTuple):
    """What an id leads to."""

    text: str | None
    etag: str | None


GONE = State(None, None)


def document(text: str) -> dict[str, Any]:
    """The entry of that text, all of which follows from it: half an entry is noticed."""
    items = int(text.rpartition('-')[2])
    return {'full_name': text, **({'addresses': [PLACE] * items} if items else {})}


class Client:
    """A connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection('127.0.0.1', port, timeout=DEADLINE)

    def ask(self, method: str, path: str = '/addresses', text: str | None = None,
            **headers: str) -> Answer:
        """One request; a text becomes a document."""
        body = None if text is None else json.dumps(document(text))
        fields = {name.replace('_', '-'): value for name, value in headers.items()}
        self._connection.request(method, path, body, fields)
        response = self._connection.getresponse()
        return Answer(response.status, response.reason, response.headers, response.read())

    def state(self, nickname: str) -> State:
        """What is there under that id.

        :raises AssertionError: it does not read, or is not whole.
        """
        answer = self.ask('GET', f'/addresses/{nickname}')
        if answer.status == 404:
            return GONE
        assert answer.status == 200, f'{nickname}: {answer.status} {answer.body!r}'
        text = answer.json()['full_name']
        assert answer.json() == document(text), f'{nickname}: is not whole'
        return State(text, answer.headers['ETag'])

    def close(self) -> None:
        self._connection.close()


class Writer:
    """Changes entries of its own, one after the other, and remembers what it was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known = {f'{name}-{i}': GONE for i in range(OWN_NAMES)}
        self.doubtful: dict[str, str | None] = {}
        """Ids with the text of a change that nobody has acknowledged."""

        self.unnamed: list[str] = []
        """Texts of new entries that nobody has acknowledged."""

        self.faults: list[str] = []
        self.lost: set[int] = set()
        """Ports of the servers that have hung up."""

        self.acknowledged = 0
        self._written = 0
        self._chance = random.Random()

    def work(self, home: int, other: int, done: threading.Event) -> None:
        """Changes entries at one server and reads them at another, until it is told to end
        or the first has gone."""
        self.lost = set()
        with contextlib.closing(Client(home)) as here, contextlib.closing(Client(other)) as there:
            while not done.is_set() and home not in self.lost:
                try:
                    self.change(here)
                except FAILED:
                    self.lost.add(home)
                if other not in self.lost:
                    self.look(there)

    def change(self, client: Client) -> None:
        """One random change, unless that entry may be anything."""
        nickname = self._pick()
        if nickname is None:
            self.post(client, self._new_text())
        elif self.known[nickname] == GONE:
            self.send(client, 'PUT', nickname, self._new_text(), 201, If_None_Match='*')
        else:
            headers = {'If_Match': str(self.known[nickname].etag)} if self._one_in(2) else {}
            if self._one_in(3) or len(self._entries()) > MOST_ENTRIES:
                self.send(client, 'DELETE', nickname, None, 204, **headers)
            else:
                self.send(client, 'PUT', nickname, self._new_text(), 204, **headers)

    def post(self, client: Client, text: str) -> None:
        """Adds an entry whose id the server chooses."""
        self.unnamed.append(text)
        answer = client.ask('POST', text=text)
        if answer.status == 201:
            self.unnamed.remove(text)
            nickname = answer.headers['Location'].rpartition('/')[2]
            self._learn(nickname, State(text, answer.headers['ETag']))
        else:
            self._refused('POST', answer)

    def send(self, client: Client, method: str, nickname: str, text: str | None, expected: int,
             **headers: str) -> None:
        """One change to an entry; it is in doubt until the answer is there."""
        self.doubtful[nickname] = text
        answer = client.ask(method, f'/addresses/{nickname}', text, **headers)
        if answer.status == expected:
            del self.doubtful[nickname]
            self._learn(nickname, State(text, answer.headers['ETag']))
        else:
            self._refused(f'{method} {nickname} {headers}', answer)

    def look(self, client: Client) -> None:
        """What one server has acknowledged, every other one shows."""
        nickname = self._chance.choice(list(self.known))
        if nickname not in self.doubtful and self._one_in(3):
            try:
                found = client.state(nickname)
            except AssertionError as error:
                self.faults.append(str(error))
            except FAILED:
                self.lost.add(client.port)
            else:
                if found != self.known[nickname]:
                    self.faults.append(f'{nickname}: {found}, not {self.known[nickname]}')

    def settle(self, found: dict[str, State]) -> None:
        """Takes what is there for known, so that the next kill cannot undo it."""
        for nickname in self.doubtful:
            self.known[nickname] = found.get(nickname, GONE)
        for nickname, state in found.items():
            if state.text in self.unnamed:
                self.known[nickname] = state
        self.doubtful.clear()
        self.unnamed.clear()

    def _pick(self) -> str | None:
        """An id that is not in doubt; none for a new entry under an id that is not ours."""
        nicknames = [*self._entries(), *(f'{self.name}-{i}' for i in range(OWN_NAMES))]
        certain = [nickname for nickname in nicknames if nickname not in self.doubtful]
        return None if not certain or self._one_in(6) else self._chance.choice(certain)

    def _entries(self) -> list[str]:
        return [nickname for nickname, state in self.known.items() if state != GONE]

    def _new_text(self) -> str:
        self._written += 1
        return f'{self.name}-{self._written}-{BIG if self._one_in(5) else 0}'

    def _one_in(self, number: int) -> bool:
        return self._chance.randrange(number) == 0

    def _learn(self, nickname: str, state: State) -> None:
        self.known[nickname] = state
        self.acknowledged += 1

    def _refused(self, what: str, answer: Answer) -> None:
        # "Not now" is an honest answer of a busy machine; any other is wrong here.
        if answer.status != 503:
            self.faults.append(f'{what}: {answer.status} {answer.body!r}')


class CrashTestCase(unittest.TestCase):
    """One store, the servers on it, and what is known about it."""

    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.folder = Path(parent.name) / 'store'
        self.chance = random.Random()
        self.writers: list[Writer] = []

    def config(self) -> dict[str, Any]:
        """The section ``addr-db``; each engine's class has its own."""
        raise NotImplementedError

    def check_files(self, servers: Sequence[ServerProcess]) -> None:
        """No file is there that nobody needs, while these servers run; each engine's class knows
        its own."""
        raise NotImplementedError

    @contextlib.contextmanager
    def server(self) -> Iterator[ServerProcess]:
        """A server on the store. Now and then one is killed first while it opens it."""
        server = ServerProcess(self.config())
        if self.chance.randrange(4) == 0:
            starting = subprocess.Popen(server.command, cwd=ROOT, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(self.chance.uniform(0.15, 0.4))
            starting.kill()
            starting.wait()
            server.log_file.unlink(missing_ok=True)
        with server:
            yield server

    @contextlib.contextmanager
    def load(self, servers: Sequence[ServerProcess]) -> Iterator[None]:
        """Clients at work: they are when this begins, and are not any more when it ends."""
        done = threading.Event()
        before = self.acknowledged()
        with ThreadPoolExecutor(len(self.writers)) as threads:
            work = [threads.submit(writer.work, servers[i % len(servers)].port,
                                   servers[(i + 1) % len(servers)].port, done)
                    for i, writer in enumerate(self.writers)]
            try:
                while self.acknowledged() == before and not any(task.done() for task in work):
                    time.sleep(0.001)
                yield
            finally:
                done.set()
            for task in work:
                task.result()

    def acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)

    def kill_under_load(self, victim: ServerProcess, *others: ServerProcess) -> None:
        """Ends one server at a random moment; clients of the others notice nothing."""
        with self.load([victim, *others]):
            time.sleep(self.chance.uniform(0, LONGEST_LOAD))
            if self.chance.randrange(5) == 0:  # in the middle of a stop
                assert victim.process is not None
                victim.process.send_signal(signal.SIGTERM)
                time.sleep(self.chance.uniform(0, 0.1))
            victim.stop(signal.SIGKILL)
            if others:
                time.sleep(LOAD_AFTER_KILL)
        for writer in self.writers:
            self.assertEqual([], writer.faults)
            self.assertLessEqual(writer.lost, {victim.port}, writer.name)

    def check(self, server: ServerProcess) -> dict[str, State]:
        """Compares what is there with what was acknowledged.

        :return: what is there.
        """
        found = self.read_all(server)
        known = {name: state for writer in self.writers for name, state in writer.known.items()}
        doubtful = {name: text for writer in self.writers
                    for name, text in writer.doubtful.items()}
        for nickname in {*known} - {*doubtful}:
            self.assertEqual(known[nickname], found.get(nickname, GONE), nickname)
        for nickname, text in doubtful.items():
            state = found.get(nickname, GONE)
            if state != known[nickname]:
                self.assertEqual(text, state.text, nickname)
                self.assertNotEqual(known[nickname].etag, state.etag, nickname)
        unasked = sorted(str(found[nickname].text) for nickname in {*found} - {*known})
        unnamed = [text for writer in self.writers for text in writer.unnamed]
        self.assertEqual(len(unasked), len(set(unasked)), 'made twice')
        self.assertLessEqual(set(unasked), set(unnamed), 'made by nobody')
        return found

    def read_all(self, server: ServerProcess) -> dict[str, State]:
        """Every entry, by itself and in the listing."""
        with contextlib.closing(Client(server.port)) as client:
            answer = client.ask('GET', '/addresses?count=true')
            self.assertEqual(200, answer.status, answer.body)
            listing = answer.json()
            self.assertEqual(str(len(listing)), answer.headers['X-Total-Count'])
            found = {nickname: client.state(nickname) for nickname in listing}
        for nickname, entry in listing.items():
            self.assertEqual(document(str(found[nickname].text)), entry)
        self.assertEqual([], [line for line in server.lines() if line['level'] == 'ERROR'])
        return found

    def settle(self, found: dict[str, State]) -> None:
        for writer in self.writers:
            writer.settle(found)

    def kill_again_and_again(self, kills: int) -> None:
        """Each server checks what the one before has left."""
        self.writers = [Writer(f'w{i}') for i in range(WRITERS)]
        for kill in range(kills):
            with self.server() as server:
                self.check_files([server])
                self.settle(found := self.check(server))
                self.kill_under_load(server)
            self.tell(kill, kills, len(found))
        self.check_end()

    def kill_one_of_two_again_and_again(self, kills: int) -> None:
        """The one that is not killed goes on, has all, and is there when another comes."""
        self.writers = [Writer(f'w{i}') for i in range(2 * WRITERS)]
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(self.server())]
            for kill in range(kills):
                servers.append(stack.enter_context(self.server()))
                self.chance.shuffle(servers)
                self.kill_under_load(*servers)
                del servers[0]
                found = self.check(servers[0])
                self.check_files(servers)
                self.tell(kill, kills, len(found))
                self.settle(found)
        self.check_end()

    def check_end(self) -> None:
        """All is there at the end, and nothing is left of what was killed."""
        with ServerProcess(self.config()) as server:
            self.check_files([server])
            self.check(server)
            self.assertEqual(0, server.stop())
        self.check_files([])
        self.assertGreater(self.acknowledged(), 0)

    def tell(self, kill: int, kills: int, entries: int) -> None:
        if IS_TOLD:
            doubts = sum(len(writer.doubtful) + len(writer.unnamed) for writer in self.writers)
            print(f'{self._testMethodName}: {kill + 1} of {kills}, {self.acknowledged()} changes '
                  f'acknowledged, {doubts} in doubt, {entries} entries',
                  file=sys.stderr, flush=True)


def names(folder: Path) -> list[str]:
    """All that lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


class FileEngineTests(CrashTestCase):

    is_shared = False

    def config(self) -> dict[str, Any]:
        return {'addr-db': {'fs': str(self.folder)}}

    def check_files(self, servers: Sequence[ServerProcess]) -> None:
        # Who starts beside another cannot tell what is left from what is at work.
        if not (self.is_shared and servers):
            self.assertEqual(['.gate', '.in-use'], [
                name for name in names(self.folder) if not name.endswith('.json')])

    def test_what_one_process_has_acknowledged_is_there_after_it_was_killed(self) -> None:
        self.kill_again_and_again(share_of_kills(0))

    def test_of_two_processes_on_one_folder_either_may_be_killed(self) -> None:
        self.is_shared = True
        self.kill_one_of_two_again_and_again(share_of_kills(2))


class SQLiteEngineTests(CrashTestCase):

    def config(self) -> dict[str, Any]:
        return {'addr-db': {'sqlite': str(self.folder / 'book.db')}}

    def check_files(self, servers: Sequence[ServerProcess]) -> None:
        beside = ['book.db-shm', 'book.db-wal'] if servers else []
        self.assertEqual(['book.db', *beside], names(self.folder))

    def test_what_one_process_has_acknowledged_is_there_after_it_was_killed(self) -> None:
        self.kill_again_and_again(share_of_kills(1))

    def test_of_two_processes_on_one_file_either_may_be_killed(self) -> None:
        self.kill_one_of_two_again_and_again(share_of_kills(3))


def share_of_kills(number: int, weights: Iterable[int] = (3, 3, 2, 2)) -> int:
    """How many of all kills are for one test; one at least."""
    ends = [0]
    for weight in weights:
        ends.append(ends[-1] + weight)
    return max(1, KILLS * ends[number + 1] // ends[-1] - KILLS * ends[number] // ends[-1])


if __name__ == '__main__':
    unittest.main()
