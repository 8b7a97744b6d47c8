"""Conditions over HTTP, on each engine: who may change what, who is first, who has it already."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sys
import tempfile
import threading
import unittest
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tornado.httpclient import HTTPResponse

import data
from addrservice.database.records import Stored
from addrservice.tornado.addressbook import BUFFER_SIZE
from tests.engines import EngineAppTestCase, new_store
from tests.support import ServerProcess, on_each_transport

NAMO, RAGA = data.address_data_suite()['namo'], data.address_data_suite()['raga']
LARGE = {'full_name': 'Large', 'emails': [{'kind': 'home', 'email': 'a@example.org'}] * 50}
"""An entry that is worth compressing."""

BAD = {'full_name': ''}
IF_MATCH, IF_NONE_MATCH = 'If-Match', 'If-None-Match'
STRONG_TAG = '^"[0-9a-f]{16}"$'
NO_ID = '0' * 32
"""An id that no entry has."""

CLIENTS = 50

MATCHING_STRONGLY = [
    '{tag}', '*', ' {tag} ', '{stale}, {tag}', '{tag},{stale}', '"a,b" ,{tag}', ',, {tag} ,',
    'W/{tag}, {tag}', '{gzip}', '"x", {gzip}']
NOT_MATCHING_STRONGLY = [
    '{stale}', 'W/{tag}', 'W/{gzip}', '{stale}, W/{tag}', '""', '"*"', '"x", "y"', '{longer}',
    '{shorter}', '{capitals}', '"a,b"']
MATCHING_WEAKLY = [*MATCHING_STRONGLY, 'W/{tag}', 'W/{gzip}', 'W/{stale}, W/{tag}', '"x",W/{tag}']
NOT_MATCHING_WEAKLY = [
    '{stale}', 'W/{stale}', '""', 'W/""', '"*"', '"x", W/"y"', '{longer}', '{shorter}', '"a,b"']
"""Values of ``If-Match`` and ``If-None-Match``, to be filled with tags of one entry."""

NO_LISTS = ['', ',', 'x', '{bare}', "'x'", '"', '"x', '*, *', '*, {tag}', '{tag}, *', '{tag} {tag}',
            '{tag}, x', 'w/{tag}', '"a b"', '{tag};q=1', 'W/*', '{tag}, "']


class Tags(NamedTuple):
    """The tag that an entry has now, and one that it had before."""

    tag: str
    stale: str

    def fill(self, template: str) -> str:
        """A value of a header that speaks of these tags."""
        bare = self.tag.strip('"')
        return template.format(
            tag=self.tag, stale=self.stale, bare=bare, gzip=f'"{bare}-gzip"', longer=f'"{bare}0"',
            shorter=f'"{bare[:-1]}"', capitals=f'"{bare.upper()}x"')


class ConditionsTestCase(EngineAppTestCase):
    """A book on some engine, and one entry in it that has been changed once."""

    book = '/addresses'

    def ask(self, method: str, path: str, document: object = None, **headers: str) -> HTTPResponse:
        """One request of a client that does not say that it knows gzip."""
        body = None if document is None else json.dumps(document)
        return self.fetch(path, method=method, body=body, headers=headers,
                          allow_nonstandard_methods=True, decompress_response=False)

    def ask_if(self, condition: str, value: str, method: str, path: str,
               document: object = None) -> HTTPResponse:
        """One request with one condition; a PUT without a document puts RAGA."""
        sent = RAGA if method == 'PUT' and document is None else document
        return self.ask(method, path, sent, **{condition: value})

    def make_entry(self, document: object = NAMO) -> tuple[str, Tags]:
        """The place of an entry, and its tags."""
        created = self.ask('POST', self.book, RAGA)
        place = created.headers['Location']
        tag = self.ask('PUT', place, document).headers['Etag']
        return place, Tags(tag, created.headers['Etag'])

    def assert_is(self, place: str, document: object, tag: str) -> None:
        """Checks what is stored, and in which version."""
        response = self.ask('GET', place)
        self.assertEqual((response.code, json.loads(response.body), response.headers['Etag']),
                         (200, document, tag))

    def assert_refused(self, response: HTTPResponse, code: int) -> None:
        """Checks that an error is told as every error is, and that it has no tag."""
        self.assertEqual(response.code, code, response.body)
        self.assertNotIn('Etag', response.headers)
        if response.request.method != 'HEAD':
            self.assertEqual(json.loads(response.body)['code'], code)


class VersionTests(ConditionsTestCase):
    def test_every_answer_about_an_entry_tells_its_version(self) -> None:
        created = self.ask('POST', self.book, NAMO)
        place, tag = created.headers['Location'], created.headers['Etag']
        self.assertRegex(tag, STRONG_TAG)
        for method in ('GET', 'HEAD'):
            self.assertEqual(self.ask(method, place).headers['Etag'], tag)
        changed = self.ask('PUT', place, RAGA)
        self.assertEqual((changed.code, changed.body), (204, b''))
        self.assertRegex(changed.headers['Etag'], STRONG_TAG)
        for method in ('GET', 'HEAD'):
            self.assertEqual(self.ask(method, place).headers['Etag'], changed.headers['Etag'])

    def test_every_write_makes_a_version_that_was_never_there(self) -> None:
        answers = [self.ask('PUT', f'{self.book}/x', NAMO, **{IF_NONE_MATCH: '*'})]
        for _ in range(5):
            answers += [self.ask('PUT', f'{self.book}/x', NAMO) for _ in range(2)]
            self.assertEqual(self.ask('DELETE', f'{self.book}/x').code, 204)
            answers.append(self.ask('PUT', f'{self.book}/x', NAMO, **{IF_NONE_MATCH: '*'}))
        answers += [self.ask('POST', self.book, NAMO) for _ in range(5)]
        tags = [answer.headers['Etag'] for answer in answers]
        self.assertEqual(len(set(tags)), len(answers), tags)

    def test_a_refused_write_makes_no_version(self) -> None:
        place, tags = self.make_entry()
        self.assert_refused(self.ask('PUT', place, BAD), 400)
        self.assert_is(place, NAMO, tags.tag)

    def test_a_write_of_another_entry_leaves_the_version_alone(self) -> None:
        place, tags = self.make_entry()
        other, _ = self.make_entry()
        self.ask('PUT', other, RAGA)
        self.assert_is(place, NAMO, tags.tag)

    def test_a_deletion_is_told_without_a_tag(self) -> None:
        place, _ = self.make_entry()
        response = self.ask('DELETE', place)
        self.assertEqual((response.code, response.body), (204, b''))
        self.assertNotIn('Etag', response.headers)


class IfMatchTests(ConditionsTestCase):
    def test_of_two_who_read_the_same_the_second_is_refused(self) -> None:
        place, tags = self.make_entry()
        first = self.ask_if(IF_MATCH, tags.tag, 'PUT', place, RAGA)
        self.assertEqual(first.code, 204)
        self.assert_refused(self.ask_if(IF_MATCH, tags.tag, 'PUT', place, LARGE), 412)
        self.assert_refused(self.ask_if(IF_MATCH, tags.tag, 'DELETE', place), 412)
        self.assert_is(place, RAGA, first.headers['Etag'])

    def test_a_change_between_the_look_and_the_step_is_noticed(self) -> None:
        for condition, template in ((IF_MATCH, '{tag}'), (IF_NONE_MATCH, '{stale}')):
            for method in ('PUT', 'DELETE'):
                with self.subTest(condition, method=method):
                    place, tags = self.make_entry()
                    with mock.patch.object(self.service, 'get_address', self.look_and_be_late()):
                        response = self.ask_if(condition, tags.fill(template), method, place)
                    self.assert_refused(response, 412)
                    now = self.ask('GET', place)
                    self.assertEqual(json.loads(now.body), LARGE)
                    self.assertNotIn(now.headers['Etag'], tags)

    def look_and_be_late(self) -> Callable[[str], Awaitable[Stored]]:
        """Reads an entry; before the reader knows, somebody else has changed it."""
        look = self.service.get_address

        async def look_and_change(nickname: str) -> Stored:
            seen = await look(nickname)
            await self.service.update_address(nickname, LARGE)
            return seen

        return look_and_change

    def test_a_tag_of_an_entry_that_was_made_again_is_stale(self) -> None:
        place = f'{self.book}/again'
        old = self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, NAMO).headers['Etag']
        self.ask('DELETE', place)
        new = self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, NAMO).headers['Etag']
        self.assert_refused(self.ask_if(IF_MATCH, old, 'PUT', place), 412)
        self.assert_is(place, NAMO, new)

    def test_a_tag_of_another_entry_does_not_match(self) -> None:
        place, tags = self.make_entry()
        _, others = self.make_entry()
        self.assert_refused(self.ask_if(IF_MATCH, others.tag, 'PUT', place), 412)
        self.assert_is(place, NAMO, tags.tag)

    def test_a_missing_entry_is_not_found_whatever_the_condition(self) -> None:
        other, tags = self.make_entry()
        there = [other.rpartition('/')[2]]
        for condition in (IF_MATCH, IF_NONE_MATCH):
            for method in ('GET', 'HEAD', 'PUT', 'DELETE'):
                for template in ('*', '{tag}', '{stale}, W/"x"', 'W/{tag}', '""'):
                    for nickname in (NO_ID, 'a.b'):
                        place = f'{self.book}/{nickname}'
                        if (condition, method, template) != (IF_NONE_MATCH, 'PUT', '*'):
                            with self.subTest(template, condition=condition, method=method):
                                response = self.ask_if(condition, tags.fill(template), method,
                                                       place)
                                self.assert_refused(response, 404)
        self.assertEqual(list(json.loads(self.ask('GET', self.book).body)), there)

    def test_a_missing_entry_is_not_made_by_a_condition_beside_the_asterisk(self) -> None:
        for value in ('*', '"x"'):
            response = self.ask('PUT', f'{self.book}/{NO_ID}', NAMO,
                                **{IF_MATCH: value, IF_NONE_MATCH: '*'})
            self.assert_refused(response, 404)


class OrderTests(ConditionsTestCase):
    """What is looked at first (RFC 9110 section 13.2)."""

    def test_a_stale_tag_is_told_before_a_bad_body(self) -> None:
        place, tags = self.make_entry()
        for condition, value in ((IF_MATCH, tags.stale), (IF_MATCH, f'W/{tags.tag}'),
                                 (IF_NONE_MATCH, tags.tag), (IF_NONE_MATCH, f'"x", {tags.tag}')):
            with self.subTest(condition, value=value):
                self.assert_refused(self.ask_if(condition, value, 'PUT', place, BAD), 412)
                for fields in ({'Content-Type': 'text/plain'}, {'Content-Encoding': 'br'}):
                    response = self.ask('PUT', place, NAMO, **{condition: value, **fields})
                    self.assert_refused(response, 412)
        self.assert_is(place, NAMO, tags.tag)

    def test_a_taken_id_is_told_before_a_bad_body(self) -> None:
        place, tags = self.make_entry()
        self.assert_refused(self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, BAD), 412)
        self.assert_is(place, NAMO, tags.tag)

    def test_a_bad_body_with_the_right_tag_is_told_and_changes_nothing(self) -> None:
        place, tags = self.make_entry()
        for condition, value in ((IF_MATCH, tags.tag), (IF_MATCH, '*'),
                                 (IF_NONE_MATCH, tags.stale)):
            with self.subTest(condition, value=value):
                self.assert_refused(self.ask_if(condition, value, 'PUT', place, BAD), 400)
                response = self.ask('PUT', place, NAMO,
                                    **{condition: value, 'Content-Type': 'text/plain'})
                self.assert_refused(response, 415)
        self.assert_is(place, NAMO, tags.tag)

    def test_a_missing_entry_is_told_before_a_bad_body_if_a_version_is_asked_for(self) -> None:
        response = self.ask_if(IF_MATCH, '"x"', 'PUT', f'{self.book}/{NO_ID}', BAD)
        self.assert_refused(response, 404)

    def test_what_is_no_list_of_tags_is_told_and_changes_nothing(self) -> None:
        place, tags = self.make_entry()
        for template in NO_LISTS:
            for condition in (IF_MATCH, IF_NONE_MATCH):
                for method in ('GET', 'HEAD', 'PUT', 'DELETE'):
                    with self.subTest(template, condition=condition, method=method):
                        value = tags.fill(template)
                        self.assert_refused(self.ask_if(condition, value, method, place), 400)
        self.assert_is(place, NAMO, tags.tag)

    def test_one_bad_header_spoils_a_good_one(self) -> None:
        place, tags = self.make_entry()
        for method in ('GET', 'PUT', 'DELETE'):
            for if_match, if_none_match in ((tags.tag, 'x'), ('x', tags.stale), ('*', ''),
                                            (tags.stale, 'x')):
                with self.subTest(method, if_match=if_match, if_none_match=if_none_match):
                    response = self.ask(method, place, RAGA if method == 'PUT' else None,
                                        **{IF_MATCH: if_match, IF_NONE_MATCH: if_none_match})
                    self.assert_refused(response, 400)
        self.assert_is(place, NAMO, tags.tag)

    def test_of_both_conditions_both_must_hold(self) -> None:
        place, tags = self.make_entry()
        for if_match, if_none_match, read, change in (
                ('{tag}', '{stale}', 200, 204), ('{tag}', '{tag}', 304, 412),
                ('{tag}', '*', 304, 412), ('{stale}', '{stale}', 412, 412), ('*', '*', 304, 412),
                ('{stale}', '{tag}', 412, 412), ('W/{tag}', 'W/{tag}', 412, 412),
                ('*', '"x"', 200, 204)):
            headers = {IF_MATCH: tags.fill(if_match), IF_NONE_MATCH: tags.fill(if_none_match)}
            with self.subTest(headers):
                self.assertEqual(self.ask('GET', place, **headers).code, read)
                response = self.ask('PUT', place, NAMO, **headers)
                self.assertEqual(response.code, change)
                tags = Tags(response.headers.get('Etag', tags.tag), tags.stale)
                self.assert_is(place, NAMO, tags.tag)

    def test_a_post_asks_nobody_for_a_version(self) -> None:
        for condition in (IF_MATCH, IF_NONE_MATCH):
            for value in ('*', '"x"'):
                self.assertEqual(self.ask_if(condition, value, 'POST', self.book, NAMO).code, 201)


class IfNoneMatchTests(ConditionsTestCase):
    def test_a_version_that_is_named_is_neither_replaced_nor_removed(self) -> None:
        place, tags = self.make_entry()
        for method in ('PUT', 'DELETE'):
            self.assert_refused(self.ask_if(IF_NONE_MATCH, tags.tag, method, place), 412)
            self.assert_is(place, NAMO, tags.tag)

    def test_a_book_and_a_page_that_the_client_has_are_not_sent_again(self) -> None:
        for _ in range(3):
            place, _ = self.make_entry()
        for path in (self.book, f'{self.book}?limit=2', f'{self.book}?limit=2&count=true'):
            with self.subTest(path):
                full = self.ask('GET', path)
                for value in (full.headers['Etag'], f'W/{full.headers["Etag"]}', '*'):
                    response = self.ask_if(IF_NONE_MATCH, value, 'GET', path)
                    self.assertEqual((response.code, response.body), (304, b''))
                    for name in ('Etag', 'Link', 'X-Total-Count'):
                        self.assertEqual(response.headers.get(name), full.headers.get(name))
        before = self.ask('GET', self.book).headers['Etag']
        self.ask('PUT', place, RAGA)
        self.assertEqual(self.ask_if(IF_NONE_MATCH, before, 'GET', self.book).code, 200)


class ListingTests(ConditionsTestCase):
    """A listing that is sent whole has a tag: one as long as it stays what it is."""

    TARGETS = ('/addresses', '/addresses?limit=2')

    def setUp(self) -> None:
        super().setUp()
        for name in ('a', 'c'):
            self.ask('PUT', f'/addresses/{name}', NAMO, **{IF_NONE_MATCH: '*'})

    def tags(self) -> list[str]:
        """Of each listing, one tag for GET and HEAD."""
        tags = []
        for target in self.TARGETS:
            got, head = (self.ask(method, target) for method in ('GET', 'HEAD'))
            self.assertRegex(got.headers['Etag'], STRONG_TAG)
            self.assertEqual(head.headers['Etag'], got.headers['Etag'])
            tags.append(got.headers['Etag'])
        return tags

    def test_it_stays_while_nothing_changes_and_a_client_that_has_it_gets_304(self) -> None:
        tags = self.tags()
        self.assertEqual(self.tags(), tags)
        for target, tag in zip(self.TARGETS, tags):
            for method in ('GET', 'HEAD'):
                answer = self.ask_if(IF_NONE_MATCH, tag, method, target)
                self.assertEqual((answer.code, answer.body), (304, b''))

    def test_whatever_changes_gives_each_listing_a_tag_that_it_never_had(self) -> None:
        seen = [self.tags()]
        for method, path, document, headers in (
                ('PUT', 'c', RAGA, {}), ('PUT', 'c', NAMO, {}), ('DELETE', 'a', None, {}),
                ('PUT', 'a', NAMO, {IF_NONE_MATCH: '*'}), ('PUT', 'b', NAMO, {IF_NONE_MATCH: '*'})):
            self.ask(method, f'/addresses/{path}', document, **headers)
            seen.append(self.tags())
        for tags in zip(*seen):
            self.assertEqual(len(set(tags)), len(tags))

    def test_a_page_that_is_no_longer_the_last_has_another_tag(self) -> None:
        before = self.ask('GET', '/addresses?limit=2')
        self.ask('PUT', '/addresses/d', NAMO, **{IF_NONE_MATCH: '*'})
        after = self.ask_if(IF_NONE_MATCH, before.headers['Etag'], 'GET', '/addresses?limit=2')
        self.assertEqual((after.code, after.body), (200, before.body))
        self.assertIn('Link', after.headers)

    def test_an_empty_book_has_one_tag(self) -> None:
        for name in ('a', 'c'):
            self.ask('DELETE', f'/addresses/{name}')
        self.assertEqual(self.tags(), self.tags())


class HeaderTests(ConditionsTestCase):
    """Every form of the two headers: an engine is told nothing of them but one version."""

    def test_the_current_version_may_be_replaced(self) -> None:
        place, tags = self.make_entry()
        for template in MATCHING_STRONGLY:
            with self.subTest(template):
                response = self.ask_if(IF_MATCH, tags.fill(template), 'PUT', place)
                self.assertEqual((response.code, response.body), (204, b''))
                self.assertRegex(response.headers['Etag'], STRONG_TAG)
                self.assertNotIn(response.headers['Etag'], tags)
                tags = Tags(response.headers['Etag'], tags.tag)
                self.assert_is(place, RAGA, tags.tag)

    def test_no_other_version_is_replaced_or_removed(self) -> None:
        place, tags = self.make_entry()
        for template in NOT_MATCHING_STRONGLY:
            for method in ('PUT', 'DELETE'):
                with self.subTest(template, method=method):
                    response = self.ask_if(IF_MATCH, tags.fill(template), method, place)
                    self.assert_refused(response, 412)
                    self.assert_is(place, NAMO, tags.tag)

    def test_the_current_version_may_be_removed(self) -> None:
        for template in MATCHING_STRONGLY:
            with self.subTest(template):
                place, tags = self.make_entry()
                response = self.ask_if(IF_MATCH, tags.fill(template), 'DELETE', place)
                self.assertEqual((response.code, response.body), (204, b''))
                self.assert_refused(self.ask('GET', place), 404)

    def test_a_listed_version_is_not_replaced_or_removed(self) -> None:
        place, tags = self.make_entry()
        for template in MATCHING_WEAKLY:
            for method in ('PUT', 'DELETE'):
                with self.subTest(template, method=method):
                    response = self.ask_if(IF_NONE_MATCH, tags.fill(template), method, place)
                    self.assert_refused(response, 412)
                    self.assert_is(place, NAMO, tags.tag)

    def test_a_version_that_is_not_listed_may_be_replaced_and_removed(self) -> None:
        for template in NOT_MATCHING_WEAKLY:
            with self.subTest(template):
                place, tags = self.make_entry()
                response = self.ask_if(IF_NONE_MATCH, tags.fill(template), 'PUT', place)
                self.assertEqual(response.code, 204)
                self.assert_is(place, RAGA, response.headers['Etag'])
                response = self.ask_if(IF_NONE_MATCH, tags.fill(template), 'DELETE', place)
                self.assertEqual(response.code, 204)
                self.assert_refused(self.ask('GET', place), 404)

    def test_only_the_current_version_is_read(self) -> None:
        place, tags = self.make_entry()
        for method in ('GET', 'HEAD'):
            for template in MATCHING_STRONGLY:
                with self.subTest(template, method=method):
                    response = self.ask_if(IF_MATCH, tags.fill(template), method, place)
                    self.assertEqual((response.code, response.headers['Etag']), (200, tags.tag))
            for template in NOT_MATCHING_STRONGLY:
                with self.subTest(template, method=method):
                    response = self.ask_if(IF_MATCH, tags.fill(template), method, place)
                    self.assert_refused(response, 412)

    def test_what_the_client_has_is_not_sent_again(self) -> None:
        place, tags = self.make_entry()
        for template in MATCHING_WEAKLY:
            for method in ('GET', 'HEAD'):
                with self.subTest(template, method=method):
                    response = self.ask_if(IF_NONE_MATCH, tags.fill(template), method, place)
                    self.assertEqual((response.code, response.body), (304, b''))
                    self.assertEqual(response.headers['Etag'], tags.tag)
                    self.assertNotIn('Content-Type', response.headers)
                    self.assertNotIn('Content-Length', response.headers)

    def test_what_the_client_does_not_have_is_sent(self) -> None:
        place, tags = self.make_entry()
        for template in NOT_MATCHING_WEAKLY:
            with self.subTest(template):
                response = self.ask_if(IF_NONE_MATCH, tags.fill(template), 'GET', place)
                self.assertEqual((response.code, json.loads(response.body)), (200, NAMO))
                self.assertEqual(response.headers['Etag'], tags.tag)

    def test_what_is_no_list_of_tags_is_refused_by_a_book_of_any_size(self) -> None:
        for size in (0, 2 * BUFFER_SIZE):
            while len(self.ask('GET', self.book).body) < size:
                self.ask('POST', self.book, LARGE)
            for path in (self.book, f'{self.book}?limit=1'):
                with self.subTest(path, size=size):
                    self.assert_refused(self.ask_if(IF_NONE_MATCH, 'x', 'GET', path), 400)

    def test_a_condition_changes_nothing_at_probes(self) -> None:
        for path in ('/healthz', '/readiness'):
            for condition in (IF_MATCH, IF_NONE_MATCH):
                for value in ('*', '""', '"x"', 'x'):
                    with self.subTest(path, condition=condition, value=value):
                        response = self.ask_if(condition, value, 'GET', path)
                        self.assertEqual(response.code, 200)
                        self.assertIn('uptime', json.loads(response.body))


class CreateTests(ConditionsTestCase):
    """``PUT`` with ``If-None-Match: *``: the client chooses the id."""

    def test_an_entry_is_made_under_the_id_of_the_client(self) -> None:
        for nickname in ('a', '-', 'x' * 64, 'A-b-0', NO_ID, 'null'):
            place = f'{self.book}/{nickname}'
            for document in (NAMO, RAGA):
                with self.subTest(nickname):
                    response = self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, document)
                    self.assertEqual((response.code, response.body), (201, b''))
                    self.assertEqual(response.headers['Location'], place)
                    self.assertRegex(response.headers['Etag'], STRONG_TAG)
                    self.assert_is(place, document, response.headers['Etag'])
                    self.assertEqual(self.ask('DELETE', place).code, 204)

    def test_a_taken_id_is_refused_and_its_entry_stays(self) -> None:
        place, tags = self.make_entry()
        for document in (RAGA, NAMO):
            response = self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, document)
            self.assert_refused(response, 412)
            self.assert_is(place, NAMO, tags.tag)

    def test_ids_that_differ_in_case_are_two(self) -> None:
        tags = [self.ask_if(IF_NONE_MATCH, '*', 'PUT', f'{self.book}/{name}', NAMO).headers['Etag']
                for name in ('asha', 'ASHA')]
        for name, tag in zip(('asha', 'ASHA'), tags, strict=True):
            self.assert_is(f'{self.book}/{name}', NAMO, tag)

    def test_an_impossible_id_is_not_found(self) -> None:
        for nickname in ('a.b', 'x' * 65, 'a_b', 'a%00', '%2e%2e', 'a%2fb', '%c3%a9', '*', 'a%20',
                         '.tmp-x', 'a%0a'):
            with self.subTest(nickname):
                response = self.ask_if(IF_NONE_MATCH, '*', 'PUT', f'{self.book}/{nickname}', NAMO)
                self.assert_refused(response, 404)
        self.assertEqual(json.loads(self.ask('GET', self.book).body), {})

    def test_a_bad_document_makes_nothing(self) -> None:
        self.assert_refused(self.ask_if(IF_NONE_MATCH, '*', 'PUT', f'{self.book}/a', BAD), 400)
        self.assert_refused(self.ask('GET', f'{self.book}/a'), 404)

    def test_the_place_keeps_the_name_of_the_book_and_loses_the_slash(self) -> None:
        for number, path in enumerate(('/addresses/{}', '/addresses/{}/', '/addressbook/{}',
                                       '/addressbook/{}/', '/addresses/{}?limit=0')):
            with self.subTest(path):
                place = path.format(f'a{number}')
                response = self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, NAMO)
                self.assertEqual(response.code, 201)
                self.assertEqual(response.headers['Location'],
                                 place.partition('?')[0].rstrip('/'))

    def test_an_id_that_is_escaped_without_need_is_the_same_id(self) -> None:
        self.assertEqual(self.ask_if(IF_NONE_MATCH, '*', 'PUT', f'{self.book}/%61', NAMO).code, 201)
        self.assert_refused(self.ask_if(IF_NONE_MATCH, '*', 'PUT', f'{self.book}/a', NAMO), 412)

    def test_what_was_made_is_listed(self) -> None:
        for nickname in ('b', 'a'):
            self.ask_if(IF_NONE_MATCH, '*', 'PUT', f'{self.book}/{nickname}', NAMO)
        self.assertEqual(list(json.loads(self.ask('GET', self.book).body)), ['a', 'b'])


class GZipTests(ConditionsTestCase):
    """A compressed answer is of the same version, and has a tag of its own."""

    GZIP = {'Accept-Encoding': 'gzip'}

    def test_a_compressed_entry_has_a_tag_with_a_suffix(self) -> None:
        place, tags = self.make_entry(LARGE)
        for method in ('GET', 'HEAD'):
            response = self.ask(method, place, **self.GZIP)
            self.assertEqual(response.headers['Content-Encoding'], 'gzip')
            self.assertEqual(response.headers['Etag'], tags.fill('{gzip}'))
            self.assertEqual(self.ask(method, place).headers['Etag'], tags.tag)

    def test_an_entry_too_small_to_compress_has_the_plain_tag(self) -> None:
        place, tags = self.make_entry()
        self.assertEqual(self.ask('GET', place, **self.GZIP).headers['Etag'], tags.tag)

    def test_a_write_is_answered_with_the_plain_tag(self) -> None:
        created = self.ask('POST', self.book, LARGE, **self.GZIP)
        changed = self.ask('PUT', created.headers['Location'], LARGE, **self.GZIP)
        for response in (created, changed):
            self.assertRegex(response.headers['Etag'], STRONG_TAG)

    def test_the_tag_of_a_compressed_entry_is_good_for_every_condition(self) -> None:
        place, tags = self.make_entry(LARGE)
        gzip = self.ask('GET', place, **self.GZIP).headers['Etag']
        self.assertEqual(self.ask_if(IF_MATCH, gzip, 'GET', place).code, 200)
        self.assertEqual(self.ask_if(IF_NONE_MATCH, gzip, 'GET', place).code, 304)
        self.assert_refused(self.ask_if(IF_NONE_MATCH, gzip, 'PUT', place), 412)
        changed = self.ask_if(IF_MATCH, gzip, 'PUT', place, LARGE)
        self.assertEqual(changed.code, 204)
        self.assert_refused(self.ask_if(IF_MATCH, gzip, 'PUT', place), 412)
        again = self.ask('GET', place, **self.GZIP).headers['Etag']
        self.assertEqual(self.ask_if(IF_MATCH, again, 'DELETE', place).code, 204)

    def test_a_304_has_the_tag_that_a_200_would_have_had(self) -> None:
        # A cache looks up what it has by this tag (RFC 9111 section 4.3.4).
        place, tags = self.make_entry(LARGE)
        for path in (place, self.book):
            for headers in ({}, self.GZIP):
                tag = self.ask('GET', path, **headers).headers['Etag']
                with self.subTest(path, tag=tag):
                    response = self.ask('GET', path, **{**headers, IF_NONE_MATCH: tag})
                    self.assertEqual((response.code, response.headers['Etag']), (304, tag))
                    self.assertNotIn('Content-Encoding', response.headers)


class RequiredTests(ConditionsTestCase):
    """``server.require-preconditions``: nobody overwrites what he has not seen."""

    settings = {'require-preconditions': True}

    def make_entry(self, document: object = NAMO) -> tuple[str, Tags]:
        created = self.ask('POST', self.book, RAGA)
        place, stale = created.headers['Location'], created.headers['Etag']
        response = self.ask_if(IF_MATCH, stale, 'PUT', place, document)
        return place, Tags(response.headers['Etag'], stale)

    def test_a_change_without_a_condition_is_refused(self) -> None:
        place, tags = self.make_entry()
        for method, document in (('PUT', RAGA), ('PUT', BAD), ('DELETE', None)):
            with self.subTest(method):
                response = self.ask(method, place, document)
                self.assert_refused(response, 428)
                self.assertEqual(response.reason, 'Precondition Required')
                self.assertIn('If-Match', json.loads(response.body)['detail'])
                self.assert_is(place, NAMO, tags.tag)

    def test_a_change_with_a_condition_is_made(self) -> None:
        for condition, template in ((IF_MATCH, '{tag}'), (IF_MATCH, '*'),
                                    (IF_NONE_MATCH, '{stale}')):
            with self.subTest(condition, template=template):
                place, tags = self.make_entry()
                response = self.ask_if(condition, tags.fill(template), 'PUT', place)
                self.assertEqual(response.code, 204)
                tags = Tags(response.headers['Etag'], tags.tag)
                self.assertEqual(self.ask_if(condition, tags.fill(template), 'DELETE',
                                             place).code, 204)

    def test_a_condition_is_still_looked_at(self) -> None:
        place, tags = self.make_entry()
        for value, code in ((tags.stale, 412), ('x', 400), ('', 400)):
            for method in ('PUT', 'DELETE'):
                self.assert_refused(self.ask_if(IF_MATCH, value, method, place), code)
        self.assert_is(place, NAMO, tags.tag)

    def test_what_overwrites_nothing_needs_no_condition(self) -> None:
        place, tags = self.make_entry()
        self.assertEqual(self.ask('POST', self.book, NAMO).code, 201)
        for method in ('GET', 'HEAD', 'OPTIONS'):
            for path in (place, self.book):
                self.assertLess(self.ask(method, path).code, 300)

    def test_an_entry_is_made_with_the_asterisk(self) -> None:
        place = f'{self.book}/a'
        self.assertEqual(self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, NAMO).code, 201)
        self.assert_refused(self.ask_if(IF_NONE_MATCH, '*', 'PUT', place, NAMO), 412)


class SharedBookTestCase(unittest.TestCase):
    """Real servers that share one book, and many clients at once. Each test has an empty book."""

    engine = 'memory'
    servers = 1
    running: ClassVar[list[ServerProcess]]

    @classmethod
    def setUpClass(cls) -> None:
        folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        config = {'addr-db': cls.enterClassContext(new_store(cls.engine, folder))}
        cls.running = [cls.enterClassContext(ServerProcess(config)) for _ in range(cls.servers)]

    def setUp(self) -> None:
        for nickname in self.running[0].request('GET', '/addresses').json():
            self.running[0].request('DELETE', f'/addresses/{nickname}')

    def at_once(self, do: Callable[[int, http.client.HTTPConnection], Any]) -> list[Any]:
        """What many clients get who begin together, spread over the servers."""
        barrier = threading.Barrier(CLIENTS)

        def client(number: int) -> Any:
            port = self.running[number % self.servers].port
            with contextlib.closing(
                    http.client.HTTPConnection('127.0.0.1', port, timeout=20)) as connection:
                connection.connect()
                barrier.wait()
                return do(number, connection)

        with ThreadPoolExecutor(CLIENTS) as threads:
            return list(threads.map(client, range(CLIENTS)))


@on_each_transport
class LostUpdateTests(SharedBookTestCase):
    """Compared and changed in one step, or somebody's work is lost."""

    def test_no_update_of_many_clients_is_lost(self) -> None:
        place = self.create('0')
        outcomes = Counter[int]()

        def add_one(_: int, connection: http.client.HTTPConnection) -> list[int]:
            statuses = [412]
            while statuses[-1] == 412:
                tag, name = self.ask(connection, 'GET', place)[1:]
                statuses.append(self.ask(connection, 'PUT', place, str(int(name) + 1),
                                         {IF_MATCH: tag})[0])
            return statuses[1:]

        for statuses in self.at_once(add_one):
            outcomes.update(statuses)
        self.assertEqual(set(outcomes), {204, 412})  # there was a race, and no failure
        self.assertEqual(outcomes[204], CLIENTS)
        self.assertEqual(self.name_at(place), str(CLIENTS))

    def test_of_many_who_build_on_one_version_one_wins(self) -> None:
        place = self.create('start')
        tag = self.running[0].request('GET', place).headers['Etag']
        for round_number in range(2):
            answers = self.at_once(lambda number, connection: self.ask(
                connection, 'PUT', place, f'{round_number} {number}', {IF_MATCH: tag}))
            statuses = [status for status, _, _ in answers]
            self.assertEqual(Counter(statuses), {204: 1, 412: CLIENTS - 1})
            winner = statuses.index(204)
            tag = answers[winner][1]
            self.assertEqual(self.name_at(place), f'{round_number} {winner}')

    def test_of_many_who_make_the_same_entry_one_wins(self) -> None:
        answers = self.at_once(lambda number, connection: self.ask(
            connection, 'PUT', '/addresses/same', str(number), {IF_NONE_MATCH: '*'}))
        self.assertEqual(Counter(status for status, _, _ in answers), {201: 1, 412: CLIENTS - 1})
        winner = [status for status, _, _ in answers].index(201)
        self.assertEqual(self.name_at('/addresses/same'), str(winner))

    def test_of_many_who_replace_or_remove_one_version_one_wins(self) -> None:
        for _ in range(2):
            place = self.create('start')
            tag = self.running[0].request('GET', place).headers['Etag']
            answers = self.at_once(lambda number, connection: self.ask(
                connection, 'DELETE' if number % 2 else 'PUT', place,
                None if number % 2 else 'changed', {IF_MATCH: tag}))
            statuses = Counter(status for status, _, _ in answers)
            self.assertEqual(statuses[204], 1, statuses)
            self.assertLessEqual(set(statuses), {204, 404, 412})
            winner = [status for status, _, _ in answers].index(204)
            self.assertEqual(self.running[0].request('GET', place).status,
                             404 if winner % 2 else 200)

    def create(self, name: str) -> str:
        answer = self.running[0].request('POST', '/addresses', json.dumps({'full_name': name}))
        self.assertEqual(answer.status, 201)
        return answer.headers['Location']

    def name_at(self, place: str) -> str:
        """The name in an entry, on which all servers agree."""
        names = {server.request('GET', place).json()['full_name'] for server in self.running}
        self.assertEqual(len(names), 1)
        return str(names.pop())

    def ask(self, connection: http.client.HTTPConnection, method: str, place: str,
            name: str | None = None, headers: dict[str, str] | None = None
            ) -> tuple[int, str, str]:
        """Status, tag, and the name in the body, of one request on a kept connection."""
        body = None if name is None else json.dumps({'full_name': name})
        connection.request(method, place, body, headers or {})
        response = connection.getresponse()
        document = json.loads(response.read() or '{}')
        return (response.status, response.headers.get('Etag', ''),
                document.get('full_name', ''))


class LostAnswerTests(SharedBookTestCase):
    """Whoever does not hear that an entry was made asks for it again, and gets it once."""

    PLACE = '/addresses/my-own-id'

    def test_a_creation_whose_answer_was_lost_may_be_repeated(self) -> None:
        server = self.running[0]
        self.send_and_hang_up()
        server.wait_for(lambda: server.request('GET', self.PLACE).status == 200)
        tag = server.request('GET', self.PLACE).headers['Etag']
        for _ in range(2):
            self.assertEqual(self.repeat(), 412)
        answer = server.request('GET', self.PLACE)
        self.assertEqual((answer.json(), answer.headers['Etag']), (NAMO, tag))

    def test_a_creation_that_is_repeated_at_once_is_made_once(self) -> None:
        for _ in range(5):
            self.send_and_hang_up()
            self.assertIn(self.repeat(), (201, 412))
            self.assertEqual(self.repeat(), 412)
            self.assertEqual(self.running[0].request('GET', '/addresses').json(),
                             {'my-own-id': NAMO})
            self.assertEqual(self.running[0].request('DELETE', self.PLACE).status, 204)

    def send_and_hang_up(self) -> None:
        body = json.dumps(NAMO).encode()
        with self.running[0].connect() as connection:
            connection.sendall(
                b'PUT %b HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\nContent-Length: %d\r\n\r\n%b'
                % (self.PLACE.encode(), len(body), body))

    def repeat(self) -> int:
        return self.running[-1].request('PUT', self.PLACE, json.dumps(NAMO),
                                        {IF_NONE_MATCH: '*'}).status


class ConditionsOnFilesTests(VersionTests, IfMatchTests, IfNoneMatchTests, CreateTests):
    engine = 'fs'


class ConditionsOnSQLiteTests(VersionTests, IfMatchTests, IfNoneMatchTests, CreateTests):
    engine = 'sqlite'


class ConditionsOnPostgreSQLTests(VersionTests, IfMatchTests, IfNoneMatchTests, CreateTests):
    engine = 'postgres'


class RequiredOnFilesTests(RequiredTests):
    engine = 'fs'


class RequiredOnSQLiteTests(RequiredTests):
    engine = 'sqlite'


class RequiredOnPostgreSQLTests(RequiredTests):
    engine = 'postgres'


class SharedBookOnFilesTests(LostUpdateTests, LostAnswerTests):
    engine = 'fs'

    def test_a_creation_that_was_answered_outlives_the_process(self) -> None:
        self.assertEqual(self.repeat(), 201)
        server = self.running[0]
        tag = server.request('GET', self.PLACE).headers['Etag']
        server.stop(signal.SIGKILL)
        server.start()
        self.assertEqual(self.repeat(), 412)
        answer = server.request('GET', self.PLACE)
        self.assertEqual((answer.json(), answer.headers['Etag']), (NAMO, tag))
        changed = server.request('PUT', self.PLACE, json.dumps(RAGA), {IF_MATCH: tag})
        self.assertEqual(changed.status, 204)


class SharedBookOnSQLiteTests(SharedBookOnFilesTests):
    engine = 'sqlite'


class SharedBookOnPostgreSQLTests(SharedBookOnFilesTests):
    engine = 'postgres'


class SharedBookOnFilesOfTwoProcessesTests(LostUpdateTests, LostAnswerTests):
    engine = 'fs'
    servers = 2


class SharedBookOnSQLiteOfTwoProcessesTests(LostUpdateTests, LostAnswerTests):
    engine = 'sqlite'
    servers = 2


class SharedBookOnPostgreSQLOfTwoProcessesTests(LostUpdateTests, LostAnswerTests):
    engine = 'postgres'
    servers = 2


if __name__ == '__main__':
    unittest.main()
