"""The error tree is what its docstring draws, and each error says what the edge needs to know."""

from __future__ import annotations

import inspect
import re
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import errors
from addrservice.errors import AddrServiceError, Fault, InvalidAddress
from addrservice.tornado.base import STATUS_OF, detail_of, status_of

BRANCH = re.compile(r'^    (?P<indent>[│├└─ ]*)(?P<name>[A-Z]\w+)(?P<remark>.*)$')
INDENT = 4

STATUSES = {
    'AddrServiceError': 500,
    'ConfigError': 500,
    'InvalidJSON': 400,
    'InvalidAddress': 400,
    'AddressNotFound': 404,
    'AddressExists': 412,
    'AddressChanged': 412,
    'Overloaded': 503,
    'ProfilerBusy': 409,
    'StorageError': 500,
    'UnreadableRecord': 500,
    'StorageUnavailable': 503,
    'OutcomeUnknown': 503,
}


def drawn_lines() -> list[re.Match[str]]:
    """The lines of the tree in the module's docstring."""
    lines = (errors.__doc__ or '').partition('::\n')[2].splitlines()
    return [match for match in map(BRANCH.match, lines) if match]


def drawn_tree() -> Iterator[tuple[str, str]]:
    """Name and base of every class, as the docstring draws them."""
    path: list[str] = []
    for line in drawn_lines():
        depth, rest = divmod(len(line['indent']), INDENT)
        assert rest == 0, line[0]
        path[depth:] = [line['name']]
        yield line['name'], path[depth - 1] if depth else 'Exception'


def real_classes() -> dict[str, type[AddrServiceError]]:
    return {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass)
            if issubclass(cls, AddrServiceError)}


def make(cls: type[AddrServiceError], detail: str = '') -> AddrServiceError:
    if issubclass(cls, InvalidAddress):
        return cls([Fault('/full_name', 'is missing')])
    return cls(detail)


class TreeTest(unittest.TestCase):
    def test_the_docstring_draws_the_real_tree(self) -> None:
        real = {name: cls.__bases__[0].__name__ for name, cls in real_classes().items()}
        self.assertEqual(dict(drawn_tree()), real)

    def test_the_docstring_names_the_built_in_errors_that_ours_are_too(self) -> None:
        remarks = {line['name']: line['remark'] for line in drawn_lines()}
        self.assertIn('(a KeyError too)', remarks['AddressNotFound'])
        self.assertTrue(issubclass(errors.AddressNotFound, KeyError))

    def test_refused_input_is_a_value_error(self) -> None:
        self.assertTrue(issubclass(errors.InvalidJSON, ValueError))
        self.assertTrue(issubclass(errors.InvalidAddress, ValueError))


class StatusTest(unittest.TestCase):
    def test_every_error_has_the_status_that_is_documented(self) -> None:
        self.assertEqual(
            {name: status_of(make(cls)) for name, cls in real_classes().items()}, STATUSES)

    def test_every_row_of_the_table_is_an_error_of_ours(self) -> None:
        self.assertLessEqual(set(STATUS_OF), set(real_classes().values()))

    def test_a_new_error_has_the_status_of_the_nearest_one_in_the_table(self) -> None:
        class Busy(errors.StorageUnavailable):
            pass
        self.assertEqual(status_of(Busy()), 503)

    def test_what_is_not_an_error_of_ours_is_a_fault_of_ours(self) -> None:
        self.assertEqual(status_of(KeyError('x')), 500)


class TextTest(unittest.TestCase):
    def test_a_reason_is_a_constant_fit_for_a_status_line(self) -> None:
        for name, cls in real_classes().items():
            with self.subTest(error=name):
                self.assertRegex(cls.reason, r'\A[A-Za-z ]*\Z')
                self.assertNotIn('reason', vars(make(cls, 'two\r\nlines')))

    def test_the_reasons_of_refused_documents_are_those_of_the_api(self) -> None:
        self.assertEqual(errors.InvalidJSON.reason, 'Invalid JSON body')
        self.assertEqual(errors.InvalidAddress.reason, 'JSON Schema validation failed')

    def test_every_error_reads_as_its_detail(self) -> None:
        for name, cls in real_classes().items():
            with self.subTest(error=name):
                error = make(cls, "it's gone")
                self.assertEqual(str(error), error.detail)
                self.assertEqual(detail_of(error), error.detail)

    def test_a_missing_entry_reads_as_a_sentence_not_as_a_quoted_key(self) -> None:
        self.assertEqual(str(errors.AddressNotFound("it's gone")), "it's gone")

    def test_an_error_without_detail_has_none_to_show(self) -> None:
        self.assertIsNone(detail_of(errors.AddressNotFound()))

    def test_a_refused_document_says_where_its_first_fault_is(self) -> None:
        error = InvalidAddress(iter([Fault('/a', 'is bad'), Fault('/b', 'is worse')]))
        self.assertEqual(error.detail, '/a: is bad')
        self.assertEqual(error.faults, (Fault('/a', 'is bad'), Fault('/b', 'is worse')))

    def test_a_fault_of_the_whole_document_has_a_detail_too(self) -> None:
        self.assertEqual(InvalidAddress([Fault('', 'is no object')]).detail,
                         'document: is no object')

    def test_what_failed_in_the_store_is_for_the_log_alone(self) -> None:
        error = errors.StorageUnavailable('Try later', '/secret/path')
        self.assertEqual((str(error), detail_of(error), error.cause),
                         ('Try later', 'Try later', '/secret/path'))
        self.assertNotIn('/secret/path', repr(error))


if __name__ == '__main__':
    unittest.main()
