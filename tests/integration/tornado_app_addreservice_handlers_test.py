"""The whole walk through the API, over HTTP, on each engine and under both names of the book."""

from __future__ import annotations

import json
import sys
import unittest
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from tests.engines import EngineAppTestCase

NAMO, RAGA = data.address_data_suite()['namo'], data.address_data_suite()['raga']
CURL_DEFAULT_TYPE = 'application/x-www-form-urlencoded'


class TestAddressServiceApp(EngineAppTestCase):
    """The book in memory, under the name that leads."""

    book = '/addresses'

    def create(self, document: object) -> str:
        """Posts a document and returns its place."""
        response = self.ask('POST', self.book, document)
        self.assertEqual((response.code, response.body), (201, b''))
        self.assertRegex(response.headers['Location'], f'^{self.book}/[0-9a-f]{{32}}$')
        self.assertRegex(response.headers['Etag'], '^"[0-9a-f]{16}"$')
        return response.headers['Location']

    def get_json(self, path: str) -> Any:
        response = self.ask('GET', path)
        self.assertEqual(response.code, 200)
        self.assertEqual(response.headers['Content-Type'], 'application/json; charset=UTF-8')
        return json.loads(response.body)

    def test_address_book_endpoints(self) -> None:
        self.assertEqual(self.get_json(self.book), {})
        place = self.create(NAMO)
        nickname = place.rpartition('/')[2]
        self.assertEqual(self.get_json(place), NAMO)
        self.assertEqual(self.get_json(self.book), {nickname: NAMO})
        self.assertEqual(self.ask('PUT', place, RAGA).code, 204)
        self.assertEqual(self.get_json(place), RAGA)
        self.assertEqual(self.get_json(self.book + '/'), {nickname: RAGA})
        self.assertEqual(self.ask('DELETE', place).code, 204)
        self.assertEqual(self.get_json(self.book), {})
        for method in ('GET', 'PUT', 'DELETE'):
            document = RAGA if method == 'PUT' else None
            self.assertEqual(self.ask(method, place, document).code, 404, method)
        self.assertEqual(self.get_json(self.book), {})

    def test_what_curl_says_of_its_data_is_read_as_json(self) -> None:
        response = self.ask('POST', self.book, NAMO, **{'Content-Type': CURL_DEFAULT_TYPE})
        self.assertEqual(response.code, 201)
        self.assertEqual(self.get_json(response.headers['Location']), NAMO)

    def test_the_book_is_listed_in_id_order(self) -> None:
        nicknames = [self.create(NAMO).rpartition('/')[2] for _ in range(20)]
        self.assertEqual(list(self.get_json(self.book)), sorted(nicknames))

    def test_an_entry_that_has_not_changed_is_not_sent_again(self) -> None:
        place = self.create(NAMO)
        etag = self.ask('GET', place).headers['Etag']
        unchanged = self.ask('GET', place, **{'If-None-Match': etag})
        self.assertEqual((unchanged.code, unchanged.body), (304, b''))
        self.assertEqual(unchanged.headers['Etag'], etag)
        self.ask('PUT', place, RAGA)
        changed = self.ask('GET', place, **{'If-None-Match': etag})
        self.assertEqual((changed.code, json.loads(changed.body)), (200, RAGA))
        self.assertNotEqual(changed.headers['Etag'], etag)

    def test_every_write_gives_the_entry_a_new_tag_and_tells_it(self) -> None:
        place = self.create(NAMO)
        tags = [self.ask('GET', place).headers['Etag']]
        for document in (RAGA, RAGA, NAMO):
            tags.append(self.ask('PUT', place, document).headers['Etag'])
            self.assertEqual(self.ask('GET', place).headers['Etag'], tags[-1])
        self.assertEqual(len(set(tags)), len(tags))

    def test_an_entry_that_has_changed_meanwhile_is_not_replaced(self) -> None:
        place = self.create(NAMO)
        etag = self.ask('GET', place).headers['Etag']
        self.assertEqual(self.ask('PUT', place, RAGA, **{'If-Match': etag}).code, 204)
        for method, document in (('PUT', NAMO), ('DELETE', None)):
            self.assertEqual(self.ask(method, place, document, **{'If-Match': etag}).code, 412)
        self.assertEqual(self.get_json(place), RAGA)

    def test_an_entry_is_made_under_an_id_of_the_client(self) -> None:
        place = f'{self.book}/asha'
        for code in (201, 412):
            response = self.ask('PUT', place, NAMO, **{'If-None-Match': '*'})
            self.assertEqual(response.code, code)
        self.assertEqual(self.get_json(self.book), {'asha': NAMO})

    def test_the_book_is_read_in_pages(self) -> None:
        nicknames = sorted(self.create(NAMO).rpartition('/')[2] for _ in range(3))
        first = self.ask('GET', f'{self.book}?limit=2&count=true')
        self.assertEqual(list(json.loads(first.body)), nicknames[:2])
        self.assertEqual(first.headers['X-Total-Count'], '3')
        following = first.headers['Link'].removeprefix('<').removesuffix('>; rel="next"')
        self.assertEqual(list(self.get_json(following)), nicknames[2:])

    def test_a_refused_document_is_told_every_fault_and_changes_nothing(self) -> None:
        place = self.create(NAMO)
        for method, path in (('POST', self.book), ('PUT', place)):
            with self.subTest(method):
                response = self.ask(method, path, {'full_name': ' ', 'emails': [{'kind': 'x'}]})
                document = json.loads(response.body)
                self.assertEqual((response.code, response.reason),
                                 (400, 'JSON Schema validation failed'))
                self.assertEqual({fault['pointer'] for fault in document['errors']},
                                 {'/full_name', '/emails/0/kind', '/emails/0/email'})
        self.assertEqual(self.get_json(self.book), {place.rpartition('/')[2]: NAMO})

    def test_both_names_of_the_book_are_one_book(self) -> None:
        nickname = self.create(NAMO).rpartition('/')[2]
        for name in ('/addresses', '/addressbook'):
            self.assertEqual(self.get_json(f'{name}/{nickname}'), NAMO)


class TestAddressServiceAppUnderItsOtherName(TestAddressServiceApp):
    book = '/addressbook'


class TestAddressServiceAppOnFiles(TestAddressServiceApp):
    engine = 'fs'


class TestAddressServiceAppOnSQLite(TestAddressServiceApp):
    engine = 'sqlite'


class TestAddressServiceAppOnPostgreSQL(TestAddressServiceApp):
    engine = 'postgres'


if __name__ == '__main__':
    unittest.main()
