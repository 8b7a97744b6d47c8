"""The schema of an entry is sound, and the samples and its own examples conform to it."""

from __future__ import annotations

import json
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jsonschema import Draft202012Validator

from addrservice import ROOT_DIR
from data import address_data_suite

SCHEMA = json.loads((ROOT_DIR / 'schema/address-book-v1.0.json').read_text(encoding='utf-8'))
VALIDATOR = Draft202012Validator(SCHEMA)


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk through a schema: itself and all schemas of members and definitions in it."""
    yield schema
    for inner in [*schema.get('properties', {}).values(), *schema.get('$defs', {}).values()]:
        yield from subschemas(inner)


def members_used(document: Any) -> set[str]:
    """Collect the member names of a document, on all levels."""
    if isinstance(document, list):
        return set().union(*map(members_used, document))
    if isinstance(document, dict):
        return set(document).union(*map(members_used, document.values()))
    return set()


class SchemaTests(unittest.TestCase):

    def test_the_schema_is_a_valid_schema(self) -> None:
        Draft202012Validator.check_schema(SCHEMA)

    def test_every_example_conforms_to_the_schema_beside_it(self) -> None:
        examples = [(schema, example) for schema in subschemas(SCHEMA)
                    for example in schema.get('examples', [])]
        self.assertGreater(len(examples), 20)
        for schema, example in examples:
            with self.subTest(example=example):
                self.assertEqual([], list(VALIDATOR.evolve(schema=schema).iter_errors(example)))

    def test_every_object_is_closed_and_every_value_is_bounded(self) -> None:
        bounds = {'object': 'additionalProperties', 'array': 'maxItems',
                  'string': 'maxLength', 'number': 'maximum', 'integer': 'maximum'}
        for schema in subschemas(SCHEMA):
            types = schema.get('type', [])
            for name in [types] if isinstance(types, str) else types:
                with self.subTest(schema=schema):
                    self.assertTrue(bounds[name] in schema or 'enum' in schema)

    def test_a_length_is_checked_before_a_pattern(self) -> None:
        for schema in subschemas(SCHEMA):
            if 'pattern' in schema:
                keywords = list(schema)
                self.assertLess(keywords.index('maxLength'), keywords.index('pattern'))

    def test_every_member_is_described(self) -> None:
        for schema in subschemas(SCHEMA):
            for name, member in schema.get('properties', {}).items():
                with self.subTest(member=name):
                    target = member.get('$ref', '').rpartition('/')[2]
                    self.assertIn('description', {**SCHEMA['$defs'].get(target, {}), **member})


class SampleTests(unittest.TestCase):

    def test_the_suite_has_one_document_per_file_under_its_name(self) -> None:
        files = (ROOT_DIR / 'data' / 'addresses').iterdir()
        self.assertEqual(sorted(file.stem for file in files), list(address_data_suite()))

    def test_every_sample_conforms_to_the_schema(self) -> None:
        for nickname, document in address_data_suite().items():
            with self.subTest(nickname=nickname):
                self.assertEqual([], list(VALIDATOR.iter_errors(document)))

    def test_the_samples_show_every_member(self) -> None:
        described = {name for schema in subschemas(SCHEMA) for name in schema.get('properties', {})}
        self.assertEqual(described, members_used(list(address_data_suite().values())))

    def test_each_call_reads_new_documents(self) -> None:
        address_data_suite()['namo'].clear()
        self.assertTrue(address_data_suite()['namo'])


if __name__ == '__main__':
    unittest.main()
