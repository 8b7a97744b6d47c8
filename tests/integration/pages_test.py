"""Pages of the book over HTTP, on each engine: every entry once, in bounded memory."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlencode

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tornado.httpclient import HTTPResponse

import data
from addrservice.database.records import new_nickname
from addrservice.datamodel import MAX_ITEMS, MAX_TEXT
from addrservice.errors import AddressNotFound
from addrservice.tornado.addressbook import MAX_PAGE_SIZE
from addrservice.tornado.paging import make_cursor
from tests.engines import EngineAppTestCase
from tests.support import (
    DEADLINE, ServerProcess, on_each_transport, read_to_end, split_answers)

NAMO, RAGA = data.address_data_suite()['namo'], data.address_data_suite()['raga']
SMALL = {'full_name': 'Small'}
BIG = {'full_name': 'Big', 'addresses': [
    {'kind': 'home', 'street_name': 'x' * MAX_TEXT, 'country': 'x' * MAX_TEXT,
     'pincode': '1', 'city': 'x' * MAX_TEXT, 'locality': 'x' * MAX_TEXT}] * MAX_ITEMS}
"""An entry of some 55 KB."""

BIG_SIZE = len(json.dumps(BIG))
MB = 1024 * 1024
AT_ONCE = 2.0
"""Seconds; far less than what would pass if one client waited for another."""

LINK = re.compile(r'<(/address(?:es|book)/?\?limit=[0-9]+&cursor=[A-Za-z0-9_-]+)>; rel="next"')
"""What stands in a Link, and nowhere else in the header: no other text needs an escape."""

BAD_QUERIES = [
    *(f'limit={value}' for value in (
        '', '0', '-1', '1001', '10000', '99999999999999999999', 'x', '1.5', '1e2', '+1', '%2b1',
        '0x1', '%201', '1%20', '1%0a', '1%00', '%ff', '%d9%a1', '1,2', '1;2', 'true')),
    'limit', 'limit=2&limit=2', 'limit=2&limit=3', 'limit=2&limit=', 'limit=2&%6cimit=2',
    *(f'cursor={value}' for value in (
        '', 'x', '0', 'a-b', '%ff', '%00', '..', 'AAAAAAAAAAAA', f'{make_cursor("a")}=',
        f'{make_cursor("a")}%3d', f'{make_cursor("a")}%0a', f'%20{make_cursor("a")}',
        make_cursor('a').swapcase(), make_cursor('a')[:-1], make_cursor('a') + 'A',
        make_cursor('..'), make_cursor('x' * 65), 'x' * 4000)),
    'cursor', f'cursor={make_cursor("a")}&cursor={make_cursor("a")}',
    *(f'count={value}' for value in ('', '1', '0', 'yes', 'TRUE', '%20true', 'true%0a', '%ff')),
    'count', 'count=true&count=true', 'count=true&count=false',
    'limit=2&count=x', 'limit=x&count=true', f'limit=0&cursor={make_cursor("a")}']

STRANGE_QUERIES = ['', 'x', 'x=1', 'x=1&x=2', 'Limit=0', 'LIMIT=x', 'limits=0', 'offset=-1', '&',
                   '&&=&', '=', '%ff=%ff', 'limit%00=0', 'q=limit=0', 'page=x', 'sort=%27;--']
"""What is ignored, as it means nothing here."""


class PagesTestCase(EngineAppTestCase):
    """A book on some engine, and ways to fill it and to walk through it."""

    book = '/addresses'

    def add(self, *nicknames: str, document: object = SMALL) -> list[str]:
        """Makes entries with these ids, and returns them in order."""
        async def make() -> None:
            for nickname in nicknames:
                await self.service.create_address(document, nickname)

        self.io_loop.run_sync(make)
        return sorted(nicknames)

    def add_many(self, count: int) -> list[str]:
        return self.add(*(f'id-{number:03}' for number in range(count)))

    def page(self, query: str, book: str | None = None) -> HTTPResponse:
        response = self.ask('GET', f'{book or self.book}?{query}')
        self.assertEqual(response.code, 200, response.body)
        self.assertEqual(response.headers['Content-Type'], 'application/json; charset=UTF-8')
        return response

    def walk(self, query: str, book: str | None = None) -> list[list[str]]:
        """The ids on each page, from the first to the one without a Link."""
        response = self.page(query, book)
        pages = [list(json.loads(response.body))]
        while target := next_target(response):
            self.assertLess(len(pages), 1000, 'the walk does not end')
            response = self.ask('GET', target)
            self.assertEqual(response.code, 200, response.body)
            pages.append(list(json.loads(response.body)))
        return pages

    def assert_bad(self, response: HTTPResponse, detail: str = '') -> None:
        self.assertEqual(response.code, 400, response.effective_url)
        for name in ('Link', 'X-Total-Count', 'Etag'):
            self.assertNotIn(name, response.headers)
        if response.request.method != 'HEAD':
            document = json.loads(response.body)
            self.assertEqual(document['code'], 400)
            self.assertIn(detail, document['detail'])


def next_target(response: HTTPResponse) -> str | None:
    """Where the next page is, if the answer says that there is one."""
    links = response.headers.get_list('Link')
    if not links:
        return None
    link, = links
    match = LINK.fullmatch(link)
    assert match is not None, link
    return match[1]


class WalkTests(PagesTestCase):
    """Links followed to the end."""

    def test_a_walk_meets_every_entry_once_in_the_order_of_ids(self) -> None:
        ids = self.add_many(25)
        for limit in (1, 2, 7, 10, 11, 24, 25, 26, 999, 1000):
            with self.subTest(limit=limit):
                pages = self.walk(f'limit={limit}')
                self.assertEqual([nickname for page in pages for nickname in page], ids)
                self.assertEqual([len(page) for page in pages[:-1]], [limit] * (len(pages) - 1))
                self.assertGreater(len(pages[-1]), 0)

    def test_a_walk_is_in_the_order_of_the_book(self) -> None:
        self.add('b', 'a-b', 'a', 'B', 'ab', 'A', '9', '10', '-', 'a0', 'Z', 'z', 'x' * 64, 'x')
        whole = list(json.loads(self.ask('GET', self.book).body))
        self.assertEqual(whole, sorted(whole))
        for limit in (1, 3):
            self.assertEqual([nickname for page in self.walk(f'limit={limit}')
                              for nickname in page], whole)

    def test_the_last_page_has_no_link_also_if_it_is_full(self) -> None:
        ids = self.add_many(4)
        for limit, pages in ((2, [ids[:2], ids[2:]]), (4, [ids]), (5, [ids]),
                             (3, [ids[:3], ids[3:]]), (1, [[nickname] for nickname in ids])):
            with self.subTest(limit=limit):
                self.assertEqual(self.walk(f'limit={limit}'), pages)

    def test_an_empty_book_is_one_empty_page(self) -> None:
        response = self.page('limit=1&count=true')
        self.assertEqual((response.body, response.headers['X-Total-Count']), (b'{}', '0'))
        self.assertIsNone(next_target(response))

    def test_a_page_holds_entries_as_the_book_does(self) -> None:
        self.add('a', document=NAMO)
        self.add('b', document=RAGA)
        self.assertEqual(json.loads(self.page('limit=1').body), {'a': NAMO})
        self.assertEqual(json.loads(self.page('limit=2').body), {'a': NAMO, 'b': RAGA})
        self.assertEqual(self.page('limit=2').body, self.ask('GET', self.book).body)

    def test_every_name_of_the_book_keeps_its_name_in_the_link(self) -> None:
        ids = self.add_many(3)
        for book in ('/addresses', '/addresses/', '/addressbook', '/addressbook/'):
            with self.subTest(book):
                target = next_target(self.page('limit=2', book))
                assert target is not None
                self.assertEqual(target.partition('?')[0], book)
                self.assertEqual(self.walk('limit=2', book), [ids[:2], ids[2:]])

    def test_a_link_leads_on_though_its_entry_is_gone(self) -> None:
        ids = self.add_many(5)
        target = next_target(self.page('limit=2'))
        assert target is not None
        for nickname in ids[:3]:
            self.ask('DELETE', f'{self.book}/{nickname}')
        self.assertEqual(list(json.loads(self.ask('GET', target).body)), ids[3:])
        for nickname in ids[3:]:
            self.ask('DELETE', f'{self.book}/{nickname}')
        last = self.ask('GET', target)
        self.assertEqual((last.code, last.body, next_target(last)), (200, b'{}', None))

    def test_a_link_leads_on_in_another_process(self) -> None:
        # A cursor has no memory: that of a server that was started anew is the same.
        ids = self.add('a', 'b', 'c')
        query = urlencode({'limit': 1, 'cursor': make_cursor('a')})
        self.assertEqual(self.walk(query), [[ids[1]], [ids[2]]])

    def test_a_cursor_may_be_asked_for_with_another_limit_or_none(self) -> None:
        ids = self.add_many(9)
        query = urlencode({'cursor': make_cursor(ids[3])})
        self.assertEqual(list(json.loads(self.page(query).body)), ids[4:])
        self.assertNotIn('Link', self.page(query).headers)
        self.assertEqual(self.walk(f'{query}&limit=2'), [ids[4:6], ids[6:8], ids[8:]])

    def test_the_order_of_arguments_and_others_among_them_mean_nothing(self) -> None:
        ids = self.add_many(3)
        cursor = make_cursor(ids[0])
        for query in (f'cursor={cursor}&limit=1', f'limit=1&cursor={cursor}', 'limit=0001&x&'
                      f'cursor={cursor}&Limit=0', f'%6cimit=%31&cursor={cursor}'):
            with self.subTest(query):
                self.assertEqual(self.walk(query), [ids[1:2], ids[2:]])

    def test_without_a_limit_the_whole_book_comes_as_ever(self) -> None:
        ids = self.add_many(12)
        whole = self.ask('GET', self.book).body
        self.assertEqual(list(json.loads(whole)), ids)
        for query in STRANGE_QUERIES:
            with self.subTest(query):
                response = self.page(query)
                self.assertEqual(response.body, whole)
                for name in ('Link', 'X-Total-Count'):
                    self.assertNotIn(name, response.headers)

    def test_a_query_means_nothing_to_an_entry_or_a_post(self) -> None:
        self.add('a', document=NAMO)
        for query in ('limit=0', 'limit=1&limit=1', 'cursor=x', 'count=x'):
            self.assertEqual(self.ask('GET', f'{self.book}/a?{query}').code, 200)
            response = self.ask('POST', f'{self.book}?{query}', NAMO)
            self.assertEqual(response.code, 201)
            self.assertNotIn('?', response.headers['Location'])


class CountTests(PagesTestCase):
    def test_a_count_is_of_the_whole_book_and_told_on_demand(self) -> None:
        self.add_many(12)
        for query in ('count=true', 'count=true&limit=5', 'limit=1000&count=true',
                      f'count=true&limit=5&cursor={make_cursor("id-009")}'):
            with self.subTest(query):
                self.assertEqual(self.page(query).headers['X-Total-Count'], '12')
        for query in ('', 'count=false', 'limit=5', 'limit=5&count=false', 'Count=true'):
            with self.subTest(query):
                self.assertNotIn('X-Total-Count', self.page(query).headers)

    def test_a_count_follows_every_write(self) -> None:
        for count in range(1, 4):
            place = self.ask('POST', self.book, NAMO).headers['Location']
            self.assertEqual(self.page('count=true').headers['X-Total-Count'], str(count))
        self.ask('PUT', place, RAGA)
        self.assertEqual(self.page('count=true').headers['X-Total-Count'], '3')
        self.ask('DELETE', place)
        self.assertEqual(self.page('count=true').headers['X-Total-Count'], '2')


class QueryTests(PagesTestCase):
    def test_what_cannot_be_understood_is_refused_with_the_name_of_the_argument(self) -> None:
        self.add_many(3)
        for query in BAD_QUERIES:
            for method in ('GET', 'HEAD'):
                with self.subTest(query, method=method):
                    response = self.ask(method, f'{self.book}?{query}')
                    self.assert_bad(response, ': ')

    def test_a_refusal_names_what_is_wrong(self) -> None:
        for name in ('limit', 'cursor', 'count'):
            for query in (f'{name}=', f'{name}=%ff', f'{name}=x&{name}=x'):
                self.assert_bad(self.ask('GET', f'{self.book}?{query}'), f'{name}: ')

    def test_no_cursor_that_is_changed_in_one_place_is_accepted(self) -> None:
        cursor = make_cursor('ab')
        for place in range(len(cursor)):
            wrong = 'B' if cursor[place] == 'A' else 'A'
            changed = cursor[:place] + wrong + cursor[place + 1:]
            self.assert_bad(self.ask('GET', f'{self.book}?limit=1&cursor={changed}'), 'cursor: ')


class HeadTests(PagesTestCase):
    def test_head_has_the_headers_of_get(self) -> None:
        self.add_many(5)
        for query in ('', 'limit=2', 'limit=5', 'limit=2&count=true', 'count=true',
                      f'limit=2&cursor={make_cursor("id-001")}'):
            with self.subTest(query):
                get, head = (self.ask(method, f'{self.book}?{query}')
                             for method in ('GET', 'HEAD'))
                self.assertEqual((head.code, head.body), (200, b''))
                self.assertEqual(self.headers_of(head), self.headers_of(get))

    def test_head_of_a_book_that_is_streamed_tells_the_count(self) -> None:
        self.add('a', 'b', 'c', document=BIG)
        get, head = (self.ask(method, f'{self.book}?count=true') for method in ('GET', 'HEAD'))
        self.assertEqual((head.code, head.body, head.headers['X-Total-Count']), (200, b'', '3'))
        self.assertEqual(self.headers_of(head), self.headers_of(get))

    def headers_of(self, response: HTTPResponse) -> dict[str, str]:
        """Without those of the one answer and of its framing."""
        return {name: value for name, value in response.headers.get_all()
                if name not in ('Date', 'X-Request-Id', 'Transfer-Encoding')}


class BigPageTests(PagesTestCase):
    """A page ends before its limit rather than grow without bound."""

    def test_a_page_of_big_entries_ends_early_with_a_link(self) -> None:
        count = 2 * MAX_PAGE_SIZE // BIG_SIZE + 5
        ids = self.add(*(f'id-{number:03}' for number in range(count)), document=BIG)
        target, found = f'{self.book}?limit=1000', list[str]()
        sizes = []
        while target:
            response = self.ask('GET', target)
            found += json.loads(response.body)
            sizes.append(len(response.body))
            target = next_target(response) or ''
        self.assertEqual(found, ids)
        self.assertEqual(len(sizes), 3)
        for size in sizes:
            self.assertLess(size, MAX_PAGE_SIZE + 2 * BIG_SIZE)
        self.assertGreater(min(sizes[:-1]), MAX_PAGE_SIZE)

    def test_a_page_that_ends_early_with_the_last_entry_has_no_link(self) -> None:
        count = MAX_PAGE_SIZE // BIG_SIZE + 1
        ids = self.add(*(f'id-{number:03}' for number in range(count)), document=BIG)
        self.assertEqual(self.walk('limit=1000'), [ids])

    def test_a_small_page_of_big_entries_is_full(self) -> None:
        ids = self.add('a', 'b', 'c', document=BIG)
        self.assertEqual(self.walk('limit=2'), [ids[:2], ids[2:]])


class WritersTests(PagesTestCase):
    """Walks while others write: what is there throughout is met once."""

    ROUNDS = 3

    def test_a_walk_meets_what_stays_once_while_others_write(self) -> None:
        stays = self.add(*(f'{number:03}-stays' for number in range(60)))
        self.add(*(f'{number:03}-goes' for number in range(0, 60, 2)))
        for round_number in range(self.ROUNDS):
            walk = functools.partial(self.walk_while_others_write, round_number)
            found = self.io_loop.run_sync(walk, timeout=DEADLINE)
            self.assertEqual(found, sorted(set(found)))
            self.assertEqual([nickname for nickname in found if 'stays' in nickname], stays)

    async def walk_while_others_write(self, round_number: int) -> list[str]:
        """Behind each page, entries before and after its end come, go and change."""
        target: str | None = f'{self.book}?limit={(7, 13, 50)[round_number % 3]}'
        found: list[str] = []
        while target:
            response = await self.http_client.fetch(self.get_url(target))
            found += json.loads(response.body)
            target = next_target(response)
            await self.write(found, round_number)
        return found

    async def write(self, found: list[str], round_number: int) -> None:
        last = int(found[-1][:3])
        # Fewer than are on a page, or the walk would never come to its end.
        for number in (last // 2, last, min(last + 1, 59), min(last + 5, 59)):
            await self.service.create_address(
                SMALL, f'{number:03}-new-{round_number}-{len(found)}-{new_nickname()}')
            await self.service.update_address(f'{number:03}-stays', RAGA)
            with contextlib.suppress(AddressNotFound):
                await self.service.delete_address(f'{number:03}-goes')

    def test_an_entry_that_was_deleted_and_made_again_is_met_at_most_once(self) -> None:
        ids = self.add_many(10)
        target, found = f'{self.book}?limit=3', list[str]()
        while target:
            response = self.ask('GET', target)
            found += json.loads(response.body)
            for nickname in ids:
                self.ask('DELETE', f'{self.book}/{nickname}')
                self.add(nickname)
            target = next_target(response) or ''
        self.assertEqual(found, ids)


class LargeBookTestCase(unittest.TestCase):
    """A real server, and a book that is much larger than what it may hold in memory."""

    ENTRIES = 400
    server: ClassVar[ServerProcess]

    @classmethod
    def setUpClass(cls) -> None:
        folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.fill(folder)
        cls.server = cls.enterClassContext(
            ServerProcess({'addr-db': {'fs': str(folder / 'store')}}))
        cls.server.request('GET', '/addresses?limit=1000')

    @classmethod
    def fill(cls, folder: Path) -> None:
        """Writes the files; to ask the server to would take several seconds."""
        text = json.dumps(BIG)
        (folder / 'store').mkdir()
        for number in range(cls.ENTRIES):
            (folder / 'store' / f'id-{number:03}.json').write_text(text)

    def memory(self) -> int:
        """Bytes that the server has had in use at most so far."""
        assert self.server.process is not None
        status = Path(f'/proc/{self.server.process.pid}/status').read_text()
        match = re.search(r'VmHWM:\s+(\d+) kB', status)
        assert match is not None
        return 1024 * int(match[1])

    def seconds_of(self, method: str, target: str, body: str | None = None) -> float:
        start = time.monotonic()
        answer = self.server.request(method, target, body)
        self.assertLess(answer.status, 300)
        return time.monotonic() - start


@on_each_transport
class LargeBookTests(LargeBookTestCase):
    def test_neither_pages_nor_the_whole_book_take_memory_for_all_of_it(self) -> None:
        before = self.memory()
        target: str | None = '/addresses?limit=1000'
        found = 0
        while target:
            answer = self.server.request('GET', target)
            found += len(answer.json())
            match = LINK.fullmatch(answer.headers['Link'] or '')
            target = match and match[1]
        self.assertEqual(found, self.ENTRIES)
        whole = self.server.request('GET', '/addresses')
        self.assertEqual(len(whole.json()), self.ENTRIES)
        self.assertGreater(len(whole.body), 20 * MB)
        self.assertLess(self.memory() - before, 8 * MB)

    def test_many_pages_at_once_are_bounded_too(self) -> None:
        before = self.memory()
        self.server.request('GET', '/addresses?limit=1000')
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(self.server.connect()) for _ in range(10)]
            for client in clients:
                client.sendall(b'GET /addresses?limit=1000 HTTP/1.1\r\nHost: x\r\n'
                               b'Connection: close\r\n\r\n')
            for client in clients:
                answer, = split_answers(read_to_end(client))
                self.assertEqual(answer.status, 200)
                self.assertRegex(answer.headers['Link'], LINK)
        self.assertLess(self.memory() - before, 10 * 4 * MB)

    def test_a_slow_client_of_the_whole_book_does_not_keep_others_waiting(self) -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(self.server.connect()) for _ in range(3)]
            for client in clients:
                client.sendall(b'GET /addresses?count=true HTTP/1.1\r\nHost: x\r\n'
                               b'Connection: close\r\n\r\n')
            started = [client.recv(1000) for client in clients]
            body = json.dumps(RAGA)
            for _ in range(5):
                for method, target, document in (
                        ('POST', '/addresses', body), ('PUT', '/addresses/id-399', body),
                        ('GET', '/addresses/id-399', None), ('GET', '/addresses?limit=2', None),
                        ('GET', '/healthz', None), ('HEAD', '/addresses', None)):
                    self.assertLess(self.seconds_of(method, target, document), AT_ONCE)
            for client, start in zip(clients, started, strict=True):
                answer, = split_answers(start + read_to_end(client))
                self.assertEqual(answer.headers['X-Total-Count'], str(self.ENTRIES))
                self.assertGreaterEqual(len(answer.json()), self.ENTRIES)
        for nickname in self.server.request('GET', '/addresses').json():
            if not nickname.startswith('id-'):
                self.server.request('DELETE', f'/addresses/{nickname}')

    def test_a_client_that_hangs_up_in_mid_book_is_forgotten(self) -> None:
        for _ in range(5):
            with self.server.connect() as client:
                client.sendall(b'GET /addresses HTTP/1.1\r\nHost: x\r\n\r\n')
                client.recv(1000)
        self.assertLess(self.seconds_of('GET', '/addresses?limit=1'), AT_ONCE)
        self.server.wait_for(lambda: sum(
            line.get('status') == 499 for line in self.server.lines('RESPONSE')) >= 5)


class PagesOnFilesTests(
        WalkTests, CountTests, QueryTests, HeadTests, BigPageTests, WritersTests):
    engine = 'fs'

    def test_a_damaged_entry_is_left_out_and_does_not_end_a_walk(self) -> None:
        ids = self.add_many(6)
        folder = Path(self.service.config['addr-db']['fs'])
        for nickname in (ids[0], ids[2], ids[5]):
            (folder / f'{nickname}.json').write_text('damaged')
        self.assertEqual(self.walk('limit=2'), [[ids[1], ids[3]], [ids[4]]])
        self.assertEqual(self.walk('limit=1'), [[ids[1]], [ids[3]], [ids[4]]])
        self.assertEqual(self.page('count=true').headers['X-Total-Count'], '6')


class PagesOnSQLiteTests(
        WalkTests, CountTests, QueryTests, HeadTests, BigPageTests, WritersTests):
    engine = 'sqlite'


class PagesOnPostgreSQLTests(
        WalkTests, CountTests, QueryTests, HeadTests, BigPageTests, WritersTests):
    engine = 'postgres'


if __name__ == '__main__':
    unittest.main()
