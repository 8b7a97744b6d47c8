"""The object data model keeps its promises, and accepts exactly what the schema accepts."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import unicodedata
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import attrs
from hypothesis import HealthCheck, given, settings, strategies as st
from jsonschema import Draft202012Validator

from addrservice import ROOT_DIR, datamodel
from addrservice.datamodel import Address, AddressEntry, AddressType, Email, Model, Phone
from addrservice.errors import Fault, InvalidAddress
from data import address_data_suite

Document = dict[str, Any]

SCHEMA = json.loads((ROOT_DIR / 'schema/address-book-v1.0.json').read_text(encoding='utf-8'))
VALIDATOR = Draft202012Validator(SCHEMA)

LISTS: dict[str, type[Model]] = {
    'addresses': Address, 'phone_numbers': Phone, 'fax_numbers': Phone, 'emails': Email}

ADDRESS: Document = {
    'kind': 'home', 'street_name': 'Example Road', 'pincode': '00144', 'country': 'India'}
PHONE: Document = {'kind': 'work', 'country_code': 91, 'local_number': '0123'}
EMAIL: Document = {'kind': 'home', 'email': 'asha@example.org'}
ENTRY: Document = {'full_name': 'Asha Example', 'addresses': [ADDRESS], 'phone_numbers': [PHONE],
                   'fax_numbers': [PHONE], 'emails': [EMAIL]}

GOOD_EMAILS = [
    'a@b.c',
    'asha@example.org',
    'first.last+tag@sub.example.co.in',
    "!#$%&'*+-/=?^_`{|}~@example.org",
    '1@2.3',
    'a@x-y.z--z.org',
    'आशा@उदाहरण.भारत',
    'δοκιμή@παράδειγμα.δοκιμή',
    'pelé@example.org',
    '👩@example.org',
    'a' * 64 + '@example.org',
    'a@' + 'b' * 63 + '.org',
    'aa@' + '.'.join(['b' * 62] * 4),
]
BAD_EMAILS = [
    '', '@', 'a', 'a@', '@b.c', 'a@b', 'a.b.c',
    'a..b@c.com', '.a@b.com', 'a.@b.com',
    'a@-b.com', 'a@b-.com', 'a@b.-c', 'a@b.c-', 'a@b..c', 'a@.b.c', 'a@b.c.', 'a@b_c.com',
    'a b@c.d', ' a@b.c', 'a@b.c ', 'a@b.c\n', 'a\n@b.c', 'a\t@b.c', 'a\u00a0b@c.d', 'a@b.c\u2028',
    'a@b@c.d', '"a b"@c.d', '"a"@c.d', 'a@[127.0.0.1]', 'Asha <a@b.c>', 'a(comment)@b.c',
    'a,b@c.d', 'a;b@c.d', 'a:b@c.d', 'a\\b@c.d', 'a@b.c, a@b.d',
    'a\x00@b.c', 'a\x7f@b.c', 'a\x85@b.c', 'a\ud800@b.c',
    'a' * 65 + '@example.org',
    'a@' + 'b' * 64 + '.org',
    'aaa@' + '.'.join(['b' * 62] * 4),
    'a' * 50_000 + '!',
    'a@' + 'a.' * 50_000 + '!',
]
GOOD_TEXTS = ['x', '0', ' x ', 'e\u0301', '😀', 'שלום', '\u202eabc', '\ufeff', '\uffff', 'x' * 256]
BLANK_TEXTS = ['', ' ', '   ', '\u00a0', '\u3000 ']
BAD_TEXTS = [
    'a\x00', 'a\nb', 'a\n', '\n', '\t', '\x1b', 'a\x7f', '\x85', '\ud800', 'a\udfff', 'x' * 257]
GOOD_NUMBERS: list[Any] = [0, 1, 1.0, -0.0, 0.5, 1e14, 999999999999999, 999999999999999.0]
BAD_NUMBERS: list[Any] = [
    -1, -0.5, 999999999999999.5, 10 ** 15, 1e15, 1e300, -1e300, 10 ** 400]
GOOD_DIGITS = ['0', '007', '1' * 15]
BAD_DIGITS = ['', ' 1', '1 ', '1\n', '-1', '+1', '1.0', '1e3', '٣', '１', 'x', '1' * 16]
NO_SCALARS: list[Any] = [None, True, False, [], {}, [1], {'kind': 'home'}]
KINDS = ['home', 'work', 'HOME', 'home ', 'home\n', 'other']

VALUES: list[Any] = [
    *GOOD_EMAILS, *BAD_EMAILS, *GOOD_TEXTS, *BLANK_TEXTS, *BAD_TEXTS, 'x' * 512, 'x' * 513,
    *GOOD_NUMBERS, *BAD_NUMBERS, *GOOD_DIGITS, *BAD_DIGITS, *NO_SCALARS, *KINDS,
    *([item] * count for item in (ADDRESS, PHONE, EMAIL) for count in (1, 50, 51)), [[]], [{}],
]
"""On both sides of every border that a rule of the model draws."""


def canonical(document: object) -> str:
    """Tell documents apart that Python thinks equal: 1, 1.0 and True."""
    return json.dumps(document, sort_keys=True)


def entry_with(list_name: str, item: object) -> Document:
    """Make a document of an entry that has one item, in one of its lists."""
    return {'full_name': 'Asha Example', list_name: [item]}


def faults_of(document: object, model: type[Model] = AddressEntry) -> list[Fault]:
    """Tell what the object model has against a document."""
    try:
        model.from_api_dm(document)
    except InvalidAddress as error:
        return list(error.faults)
    return []


def pointers(document: object, model: type[Model]) -> list[str]:
    """Tell where the object model sees faults."""
    return [fault.pointer for fault in faults_of(document, model)]


def good_documents() -> Iterator[tuple[type[Model], Document]]:
    """Name a good document for the entry and each of its parts."""
    yield AddressEntry, ENTRY
    for list_name, model in LISTS.items():
        yield model, ENTRY[list_name][0]


def nearly_good_documents() -> Iterator[Document]:
    """Make every document of an entry that differs from a good one in one member."""
    yield from one_member_changed(ENTRY, AddressEntry)
    for list_name, model in LISTS.items():
        for item in one_member_changed(ENTRY[list_name][0], model):
            yield entry_with(list_name, item)


def one_member_changed(document: Document, model: type[Model]) -> Iterator[Document]:
    """Remove each member, and put each of VALUES in its place or in the place of a new one."""
    for name in document:
        yield {key: value for key, value in document.items() if key != name}
    for name in [*(field.name for field in attrs.fields(model)), 'unknown']:
        for value in VALUES:
            yield {**document, name: value}


class BuildingTests(unittest.TestCase):
    """Objects that code makes: a bad value never gets in."""

    def test_an_object_has_what_it_was_built_with_and_none_for_the_rest(self) -> None:
        phone = Phone(kind=AddressType.WORK, country_code=91, local_number='0123')
        self.assertEqual((AddressType.WORK, 91, None, '0123'), attrs.astuple(phone))

    def test_a_bad_value_is_refused_when_an_object_is_built(self) -> None:
        with self.assertRaisesRegex(ValueError, '^/email: must be an e-mail address$'):
            Email(kind=AddressType.HOME, email='a@b')

    def test_a_bad_value_is_refused_on_assignment_and_the_old_one_stays(self) -> None:
        email = Email.from_api_dm(EMAIL)
        for value in BAD_EMAILS:
            with self.subTest(value=value[:80]), self.assertRaises(ValueError):
                email.email = value
        self.assertEqual('asha@example.org', email.email)

    def test_a_good_value_can_be_assigned(self) -> None:
        address = Address.from_api_dm(ADDRESS)
        address.city = 'Exampleville'
        address.kind = AddressType.WORK
        self.assertEqual({**ADDRESS, 'city': 'Exampleville', 'kind': 'work'}, address.to_api_dm())

    def test_an_optional_member_can_be_taken_away_and_a_required_one_cannot(self) -> None:
        address = Address.from_api_dm({**ADDRESS, 'city': 'Exampleville'})
        address.city = None
        self.assertEqual(ADDRESS, address.to_api_dm())
        with self.assertRaises(ValueError):
            address.country = None  # type: ignore[assignment]  # the mistake under test

    def test_a_kind_is_an_address_type_and_not_its_name(self) -> None:
        with self.assertRaisesRegex(ValueError, '^/kind: must be "home" or "work"$'):
            Email(kind='home', email='a@b.c')  # type: ignore[arg-type]  # the mistake under test

    def test_the_address_types_are_those_of_the_schema(self) -> None:
        self.assertEqual(SCHEMA['$defs']['kind']['enum'], [kind.value for kind in AddressType])

    def test_a_list_is_taken_from_any_iterable_and_kept_as_a_tuple(self) -> None:
        email = Email.from_api_dm(EMAIL)
        entry = AddressEntry(full_name='Asha Example', emails=(email for _ in range(50)))
        self.assertEqual((email,) * 50, entry.emails)
        entry.emails = [email]  # type: ignore[assignment]  # mypy asks for the kept type
        self.assertEqual((email,), entry.emails)

    def test_a_list_is_checked_when_assigned(self) -> None:
        entry = AddressEntry.from_api_dm(ENTRY)
        email = Email.from_api_dm(EMAIL)
        bad: list[Any] = [5, 'text', [EMAIL], [None], [Phone.from_api_dm(PHONE)], [email] * 51]
        for items in bad:
            with self.subTest(items=items), self.assertRaisesRegex(ValueError, '^/emails: '):
                entry.emails = items
        self.assertEqual((email,), entry.emails)

    def test_numbers_that_cannot_be_written_are_refused_without_trying(self) -> None:
        for value in (10 ** 5000, -10 ** 5000, float('nan'), float('inf'), float('-inf'), 1j):
            for member in ('unit_number', 'street_number', 'pincode'):
                self.assertEqual([f'/{member}'], pointers({**ADDRESS, member: value}, Address))
            self.assertEqual(['/area_code'], pointers({**PHONE, 'area_code': value}, Phone))


class DocumentTests(unittest.TestCase):
    """Documents: which ones are good, and what comes back."""

    def test_every_sample_comes_back_as_it_was(self) -> None:
        for nickname, document in address_data_suite().items():
            with self.subTest(nickname=nickname):
                entry = AddressEntry.from_api_dm(copy.deepcopy(document))
                self.assertEqual(canonical(document), canonical(entry.to_api_dm()))

    def test_each_part_has_a_document_of_its_own(self) -> None:
        for model, document in good_documents():
            with self.subTest(model=model):
                self.assertEqual(document, model.from_api_dm(document).to_api_dm())

    def test_absent_and_empty_are_different_and_both_are_kept(self) -> None:
        for name in LISTS:
            for document in ({'full_name': 'x'}, {'full_name': 'x', name: []}):
                with self.subTest(document=document):
                    self.assertEqual(document, AddressEntry.from_api_dm(document).to_api_dm())
        empty_text = {**ADDRESS, 'city': ''}
        self.assertEqual(empty_text, Address.from_api_dm(empty_text).to_api_dm())

    def test_an_object_does_not_share_its_lists_with_documents(self) -> None:
        document = copy.deepcopy(ENTRY)
        entry = AddressEntry.from_api_dm(document)
        document['emails'][0]['email'] = 'other@example.org'
        entry.to_api_dm().clear()
        self.assertEqual(ENTRY, entry.to_api_dm())

    def test_good_emails_are_accepted(self) -> None:
        for email in GOOD_EMAILS:
            with self.subTest(email=email):
                self.assertEqual([], faults_of({**EMAIL, 'email': email}, Email))

    def test_bad_emails_are_refused(self) -> None:
        for email in BAD_EMAILS:
            with self.subTest(email=email[:80]):
                self.assertEqual(['/email'], pointers({**EMAIL, 'email': email}, Email))

    def test_required_text_takes_all_but_blanks_and_control_characters_and_surrogates(self) -> None:
        self.assert_values('street_name', GOOD_TEXTS, [*BLANK_TEXTS, *BAD_TEXTS, 1])

    def test_optional_text_may_be_blank(self) -> None:
        for member in ('building_name', 'locality', 'city', 'province'):
            self.assert_values(member, [*GOOD_TEXTS, *BLANK_TEXTS], [*BAD_TEXTS, 1])

    def test_a_number_is_from_zero_to_fifteen_nines_and_never_a_boolean(self) -> None:
        self.assert_values('unit_number', GOOD_NUMBERS, [*BAD_NUMBERS, *NO_SCALARS, '1'])

    def test_street_number_and_pincode_are_a_number_or_text(self) -> None:
        self.assert_values('pincode', [*GOOD_NUMBERS, *GOOD_TEXTS],
                           [*BAD_NUMBERS, *BAD_TEXTS, *BLANK_TEXTS, *NO_SCALARS])
        self.assert_values('street_number', [*GOOD_NUMBERS, *GOOD_TEXTS, *BLANK_TEXTS],
                           [*BAD_NUMBERS, *BAD_TEXTS, *NO_SCALARS])

    def test_the_parts_of_a_phone_number_are_digits(self) -> None:
        whole = [number for number in GOOD_NUMBERS if number % 1 == 0]
        for member in ('country_code', 'area_code', 'local_number'):
            self.assert_values(member, [*whole, *GOOD_DIGITS],
                               [*BAD_NUMBERS, *BAD_DIGITS, *NO_SCALARS, 0.5, 1.5], PHONE, Phone)

    def test_a_name_may_be_longer_than_other_text(self) -> None:
        self.assert_values('full_name', ['x' * 512, *GOOD_TEXTS], ['x' * 513, *BLANK_TEXTS],
                           ENTRY, AddressEntry)

    def test_of_all_characters_text_refuses_controls_and_surrogates_and_is_blank_with_spaces(
            self) -> None:
        for character in map(chr, range(0x10000)):
            unsafe = unicodedata.category(character) in ('Cc', 'Cs')
            self.assertEqual(unsafe, bool(datamodel.ANY_TEXT.complaint(character)))
            self.assertEqual(unsafe or character.isspace(),
                             bool(datamodel.FILLED_TEXT.complaint(character)))

    def assert_values(self, member: str, good: list[Any], bad: list[Any],
                      document: Document = ADDRESS, model: type[Model] = Address) -> None:
        for expected, values in (([], good), ([f'/{member}'], bad)):
            for value in values:
                found = pointers({**document, member: value}, model)
                if found != expected:  # a subTest for each would take longer than the checks
                    self.fail(f'{member}: {ascii(value)[:80]} has faults at {found}')


class FoldedTests(unittest.TestCase):
    """An entry that was made from a document behaves as one that was built."""

    def setUp(self) -> None:
        self.built = AddressEntry(
            full_name='Asha Example', addresses=[Address.from_api_dm(ADDRESS)],
            phone_numbers=[Phone.from_api_dm(PHONE)], fax_numbers=[Phone.from_api_dm(PHONE)],
            emails=[Email.from_api_dm(EMAIL)])
        self.folded = AddressEntry.from_api_dm(ENTRY)

    def test_they_are_equal_and_look_the_same(self) -> None:
        self.assertEqual(self.folded, self.built)
        self.assertEqual(repr(AddressEntry.from_api_dm(ENTRY)), repr(self.built))
        self.assertNotEqual(AddressEntry.from_api_dm({**ENTRY, 'full_name': 'x'}), self.built)

    def test_both_write_the_same_text_which_reads_back_to_them(self) -> None:
        text = self.built.to_json()
        self.assertEqual(self.folded.to_json(), text)
        self.assertEqual(json.loads(text), ENTRY)
        self.assertEqual(AddressEntry.from_json(text), self.built)
        self.assertEqual(AddressEntry.from_json(json.dumps(ENTRY, indent=2)).to_json(), text)

    def test_a_change_of_a_part_is_in_what_is_written(self) -> None:
        self.folded.full_name = 'Somebody Else'
        self.assertEqual(json.loads(self.folded.to_json()), {**ENTRY, 'full_name': 'Somebody Else'})
        self.folded = AddressEntry.from_api_dm(ENTRY)
        (self.folded.emails or ())[0].email = 'x@example.org'
        self.assertEqual(json.loads(self.folded.to_json())['emails'],
                         [{**EMAIL, 'email': 'x@example.org'}])

    def test_a_change_is_checked_and_one_that_is_refused_changes_nothing(self) -> None:
        with self.assertRaises(InvalidAddress):
            self.folded.full_name = ''
        self.assertEqual(self.folded, self.built)

    def test_a_copy_of_it_is_its_own(self) -> None:
        for copied in (copy.copy(self.folded), copy.deepcopy(AddressEntry.from_api_dm(ENTRY)),
                       pickle.loads(pickle.dumps(AddressEntry.from_api_dm(ENTRY)))):
            self.assertEqual(copied, self.built)
            copied.full_name = 'x'
            self.assertEqual(AddressEntry.from_api_dm(ENTRY), self.built)
        self.assertEqual(self.folded, self.built)

    def test_what_it_has_not_got_is_an_attribute_error(self) -> None:
        with self.assertRaisesRegex(AttributeError, 'nickname'):
            self.folded.nickname

    def test_of_a_member_that_stands_twice_in_a_text_the_last_counts(self) -> None:
        entry = AddressEntry.from_json('{"full_name": "a", "full_name": "b"}')
        self.assertEqual((entry.to_json(), entry.full_name), ('{"full_name":"b"}', 'b'))

    def test_a_text_that_is_no_entry_is_refused_with_its_faults(self) -> None:
        for text, pointers in (('{"full_name": ""}', ['/full_name']), ('{}', ['/full_name']),
                               ('[]', ['']), ('{"full_name": "x", "emails": null}', ['/emails'])):
            with self.subTest(text=text), self.assertRaises(InvalidAddress) as raised:
                AddressEntry.from_json(text)
            self.assertEqual([fault.pointer for fault in raised.exception.faults], pointers)
        for text in ('', '{', '{"full_name": "x"} x', '{"full_name": "\ud800"}'):
            with self.subTest(text=text), self.assertRaises(ValueError):
                AddressEntry.from_json(text)

    def test_a_text_that_is_not_remembered_is_read_as_well(self) -> None:
        document = {'full_name': 'x', 'emails': [EMAIL] * 50, 'phone_numbers': [PHONE] * 50}
        text = AddressEntry.from_api_dm(document).to_json()
        self.assertGreater(len(text), datamodel.MAX_KEPT)
        self.assertEqual(json.loads(AddressEntry.from_json(text).to_json()), document)


class FaultTests(unittest.TestCase):
    """What a caller is told about a bad document: all of it, where it is, within bounds."""

    def test_all_faults_are_listed_in_document_order_and_missing_members_last(self) -> None:
        self.assertEqual([
            Fault('/addresses/0/pincode', 'must be from 0 to 999999999999999'),
            Fault('/addresses/0/kind', 'must be "home" or "work"'),
            Fault('/addresses/0/colour', 'is not a member of an address'),
            Fault('/addresses/0/street_name', 'is required'),
            Fault('/addresses/0/country', 'is required'),
            Fault('/addresses/2', 'must be an object that describes an address'),
            Fault('/phone_numbers', 'must be a list'),
            Fault('/fax_numbers/0/country_code', 'must be a whole number'),
            Fault('/fax_numbers/0/area_code', 'must be digits, 0 to 9'),
            Fault('/fax_numbers/0/local_number', 'must be a number or text'),
            Fault('/emails/1/email', 'must be an e-mail address'),
            Fault('/full_name', 'is required'),
        ], faults_of({
            'addresses': [{'pincode': -1, 'kind': 'x', 'colour': 1}, ADDRESS, 'here'],
            'phone_numbers': {},
            'fax_numbers': [{'kind': 'home', 'country_code': 1.5, 'area_code': 'x',
                             'local_number': None}],
            'emails': [EMAIL, {'kind': 'home', 'email': 'x'}],
        }))

    def test_each_kind_of_text_fault_has_its_message(self) -> None:
        for value, message in (
                (5, 'must be text'),
                ('x' * 257, 'must have at most 256 characters'),
                (' ', 'must not be blank nor hold control characters or lone surrogates')):
            with self.subTest(message=message):
                self.assertEqual([Fault('/country', message)],
                                 faults_of({**ADDRESS, 'country': value}, Address))

    def test_the_error_says_the_first_fault_and_has_no_hidden_cause(self) -> None:
        with self.assertRaisesRegex(InvalidAddress, '^/full_name: is required$') as caught:
            AddressEntry.from_api_dm({})
        self.assertIsNone(caught.exception.__context__)

    def test_null_is_refused_in_every_member(self) -> None:
        for model, document in good_documents():
            for field in attrs.fields(model):
                with self.subTest(model=model, member=field.name):
                    self.assertEqual([f'/{field.name}'],
                                     pointers({**document, field.name: None}, model))

    def test_what_is_no_object_is_one_fault_of_the_whole_document(self) -> None:
        for document in (None, True, 5, 'text', [], [ENTRY], (), b'', object(), float('nan')):
            with self.subTest(document=document):
                self.assertEqual([Fault('', 'must be an object that describes an entry')],
                                 faults_of(document))

    def test_an_unknown_member_is_pointed_at_as_rfc_6901_writes_it(self) -> None:
        for name, pointer in (('a/b', '/a~1b'), ('a~b', '/a~0b'), ('~1', '/~01'), ('', '/'),
                              ('__proto__', '/__proto__'), ('self', '/self')):
            with self.subTest(name=name):
                self.assertEqual([Fault(pointer, 'is not a member of an entry')],
                                 faults_of({**ENTRY, name: 1}))

    def test_an_unknown_name_is_cut_and_made_printable(self) -> None:
        for name, pointer in (('x' * 100_000, '/' + 'x' * 64 + '…'), ('a\n\x00\ud800', '/a���')):
            self.assertEqual([pointer], pointers({**ENTRY, name: 1}, AddressEntry))

    def test_a_name_that_is_no_text_is_refused_without_looking_at_it(self) -> None:
        for name in (5, None, 10 ** 5000, ('full_name',), AddressType.HOME):
            document: dict[Any, Any] = {**ENTRY, name: 1}
            self.assertEqual([Fault('', 'has a member whose name is not text')],
                             faults_of(document))

    def test_no_message_contains_what_the_caller_wrote(self) -> None:
        for secret in ('sEcReT', 'sEcReT\n', 'sEcReT' * 100, {'sEcReT': 1}, ['sEcReT']):
            for model, document in good_documents():
                for name in [*(field.name for field in attrs.fields(model)), 'sEcReT']:
                    for fault in faults_of({**document, name: secret}, model):
                        self.assertNotIn('sEcReT', fault.message)

    def test_the_items_of_a_list_that_is_too_long_are_not_looked_at(self) -> None:
        class Unread(list[object]):
            def __iter__(self) -> Iterator[object]:
                raise AssertionError('looked at')

        self.assertEqual([Fault('/phone_numbers', 'must have at most 50 items')],
                         faults_of({**ENTRY, 'phone_numbers': Unread([0] * 20_000)}))

    def test_at_most_a_hundred_faults_are_listed(self) -> None:
        wrong_items: Document = dict.fromkeys(LISTS, [{}] * 50)
        unknown_members = dict.fromkeys(map(str, range(50_000)), 0)
        for document in (wrong_items, unknown_members):
            self.assertEqual(100, len(faults_of(document)))

    def test_a_mistake_of_the_model_does_not_pass_for_a_fault_of_the_document(self) -> None:
        with mock.patch.object(Email, 'faults', return_value=iter(())):
            with self.assertRaises(KeyError):
                Email.from_api_dm({**EMAIL, 'unknown': 1})


TEXTS = st.text(st.characters(exclude_categories=('Cc', 'Cs')), max_size=20)
FILLED_TEXTS = TEXTS.filter(str.strip) | st.sampled_from(GOOD_TEXTS)
NUMBERS = st.integers(0, 10 ** 15 - 1) | st.floats(0, 10 ** 15 - 1)
DIGITS = st.integers(0, 10 ** 15 - 1) | st.text('0123456789', min_size=1, max_size=15)
KIND = st.sampled_from(['home', 'work'])

ADDRESSES = st.fixed_dictionaries(
    {'kind': KIND, 'street_name': FILLED_TEXTS, 'pincode': NUMBERS | FILLED_TEXTS,
     'country': FILLED_TEXTS},
    optional={'building_name': TEXTS, 'unit_number': NUMBERS, 'street_number': NUMBERS | TEXTS,
              'locality': TEXTS, 'city': TEXTS, 'province': TEXTS})
PHONES = st.fixed_dictionaries(
    {'kind': KIND, 'country_code': DIGITS, 'local_number': DIGITS}, optional={'area_code': DIGITS})
EMAILS = st.fixed_dictionaries(
    {'kind': KIND, 'email': st.emails() | st.sampled_from(GOOD_EMAILS)})
ENTRIES = st.fixed_dictionaries(
    {'full_name': FILLED_TEXTS},
    optional={'addresses': st.lists(ADDRESSES, max_size=2), 'emails': st.lists(EMAILS, max_size=2),
              'phone_numbers': st.lists(PHONES, max_size=2),
              'fax_numbers': st.lists(PHONES, max_size=2)})

NEAR_EMAILS = st.text('aZ9-._@ é漢😀"\n\u2028', max_size=15) | st.from_regex(
    r'\A[a.-]{1,4}@[ab-]{1,3}\.[ab.é-]{1,4}\n?\Z')
ANY_VALUES = (
    st.sampled_from(VALUES) | st.text(st.characters(), max_size=20) | NEAR_EMAILS | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False) | ADDRESSES | PHONES | EMAILS)


@st.composite
def damaged_entries(draw: st.DrawFn) -> Document:
    """Take a good document and change it in one place only: faults elsewhere would hide it."""
    document = copy.deepcopy(draw(ENTRIES))
    change(draw, draw(st.sampled_from(list(containers(document)))))
    return document


def containers(value: object) -> Iterator[Document | list[Any]]:
    """Walk through a document: itself and all objects and lists in it."""
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def change(draw: st.DrawFn, place: Document | list[Any]) -> None:
    """Remove, add or replace a member of an object; make a list longer or shorter."""
    if isinstance(place, list):
        place[:] = (place or [draw(ANY_VALUES)]) * draw(st.sampled_from([0, 1, 25, 26, 50, 51]))
        return
    name = draw(st.sampled_from([*place, 'unknown']))
    place[name] = copy.deepcopy(draw(ANY_VALUES))
    if draw(st.integers(0, 9)) == 9:
        del place[name]


# The same examples each time, on a slow machine as well: a failure is a change in the code.
property_test = settings(derandomize=True, deadline=None, database=None, max_examples=100,
                         suppress_health_check=[HealthCheck.too_slow])


class SchemaAgreementTests(unittest.TestCase):
    """The API data model and the object data model accept the same documents."""

    @property_test
    @given(ENTRIES)
    def test_both_accept_good_documents(self, document: Document) -> None:
        self.assertEqual('accepted', self.verdict(document))

    @property_test
    @given(damaged_entries())
    def test_both_say_the_same_of_damaged_documents(self, document: Document) -> None:
        self.verdict(document)

    @property_test
    @given(NEAR_EMAILS)
    def test_both_say_the_same_of_anything_like_an_email(self, email: str) -> None:
        self.verdict(entry_with('emails', {'kind': 'home', 'email': email}))

    def test_both_say_the_same_on_both_sides_of_every_border(self) -> None:
        verdicts = [self.verdict(document) for document in nearly_good_documents()]
        self.assertGreater(verdicts.count('accepted'), 500)
        self.assertGreater(verdicts.count('refused'), 2000)

    def test_both_have_the_same_patterns(self) -> None:
        patterns = {name: schema['pattern'] for name, schema in SCHEMA['$defs'].items()
                    if 'pattern' in schema}
        self.assertEqual({
            'any_text': datamodel.ANY_PATTERN,
            'filled_text': datamodel.FILLED_PATTERN,
            'number_or_any_text': datamodel.ANY_PATTERN,
            'number_or_filled_text': datamodel.FILLED_PATTERN,
            'digits': datamodel.DIGITS_PATTERN,
            'email_address': datamodel.EMAIL_PATTERN,
        }, patterns)

    def verdict(self, document: Document) -> str:
        """Ask both, and see an accepted document come back from the object as it was."""
        verdict = 'accepted' if VALIDATOR.is_valid(document) else 'refused'
        faults = faults_of(document)
        if verdict != ('refused' if faults else 'accepted'):
            self.fail(f'{verdict} by the schema, but {faults} in {ascii(document)[:2000]}')
        if not faults:
            came_back = AddressEntry.from_api_dm(document).to_api_dm()
            self.assertEqual(canonical(document), canonical(came_back))
        return verdict


if __name__ == '__main__':
    unittest.main()
