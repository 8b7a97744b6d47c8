"""The OpenAPI document says what the service does: same paths, same methods, same errors."""

from __future__ import annotations

import json
import sys
import unittest
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import data
from addrservice import ROOT_DIR, __version__
from addrservice.database.records import new_nickname, new_version
from addrservice.datamodel import MAX_FAULTS
from addrservice.tornado.app import ROUTES
from addrservice.tornado.base import BaseRequestHandler
from addrservice.tornado.conditions import etag_of
from addrservice.tornado.paging import MAX_LIMIT, make_cursor
from tests.support import Answer, ServerProcess

SPEC_FILE = ROOT_DIR / 'schema' / 'openapi-v1.yaml'
SPEC: dict[str, Any] = yaml.safe_load(SPEC_FILE.read_text())
METHODS_THAT_COME_WITH_EVERY_GET = {'HEAD', 'OPTIONS'}
NAMO = json.dumps(data.address_data_suite()['namo'])
DESCRIBED_HEADERS = {'Link', 'X-Total-Count', 'ETag', 'Location'}
"""Those that an answer has only where the document says so."""


def methods_of(handler: type[BaseRequestHandler]) -> set[str]:
    return set(handler.allowed_methods().split(', '))


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a node stands for: a reference within the document is followed."""
    target: Any = SPEC
    for name in node['$ref'].split('/')[1:] if '$ref' in node else []:
        target = target[name]
    return node if target is SPEC else dict(target)


def parameters_of(path: str, method: str) -> dict[str, dict[str, Any]]:
    """Name -> description of what a request may have, besides its path and body."""
    parameters = map(resolved, SPEC['paths'][path][method].get('parameters', []))
    return {parameter['name']: parameter for parameter in parameters}


def answer_of(path: str, method: str, status: int) -> dict[str, Any]:
    """The description of an answer; KeyError if only the default has it."""
    return resolved(SPEC['paths'][path][method]['responses'][str(status)])


class OpenAPITests(unittest.TestCase):
    def test_the_document_is_valid_openapi(self) -> None:
        validate(SPEC, base_uri=SPEC_FILE.as_uri())

    def test_it_names_every_route_and_its_methods_and_no_others(self) -> None:
        served = {route.template: methods_of(route.handler) - METHODS_THAT_COME_WITH_EVERY_GET
                  for route in ROUTES if not route.template.startswith('/addressbook')}
        described = {path: {key.upper() for key in item if key != 'parameters'}
                     for path, item in SPEC['paths'].items()}
        self.assertEqual(described, served)

    def test_the_second_name_of_the_book_serves_the_same(self) -> None:
        handlers = {route.template: route.handler for route in ROUTES}
        for ending in ('', '/{id}'):
            self.assertIs(handlers['/addressbook' + ending], handlers['/addresses' + ending])
        self.assertIn('/addressbook', SPEC['info']['description'])

    def test_versions_and_bounds_are_those_of_the_code(self) -> None:
        self.assertEqual(SPEC['info']['version'], __version__)
        self.assertEqual(SPEC['components']['schemas']['Error']['properties']['errors']['maxItems'],
                         MAX_FAULTS)
        item = SPEC['paths']['/addresses/{id}']
        self.assertRegex(new_nickname(), item['parameters'][0]['schema']['pattern'])
        query = parameters_of('/addresses', 'get')
        self.assertEqual(query['limit']['schema']['maximum'], MAX_LIMIT)
        self.assertRegex(make_cursor(new_nickname()), query['cursor']['schema']['pattern'])
        tag = SPEC['components']['headers']['ETag']['schema']
        for example in (etag_of(new_version()), *tag['examples']):
            self.assertRegex(example, tag['pattern'])

    def test_conditions_are_described_where_they_are_looked_at(self) -> None:
        both = {'If-Match', 'If-None-Match'}
        for path, method, headers in (
                ('/addresses', 'get', {'If-None-Match'}), ('/addresses', 'post', set()),
                ('/addresses/{id}', 'get', both), ('/addresses/{id}', 'put', both),
                ('/addresses/{id}', 'delete', both), ('/healthz', 'get', set())):
            with self.subTest(path, method=method):
                self.assertEqual({name for name, parameter in parameters_of(path, method).items()
                                  if parameter['in'] == 'header'}, headers)

    def test_real_errors_look_as_described(self) -> None:
        validator = Draft202012Validator(SPEC['components']['schemas']['Error'])
        with ServerProcess() as server:
            for method, target, body in (('GET', '/nowhere', None), ('GET', '/addresses/x', None),
                                         ('PATCH', '/addresses', None), ('POST', '/addresses', '['),
                                         ('POST', '/addresses', '{"x": 1}')):
                with self.subTest(method=method, target=target):
                    validator.validate(server.request(method, target, body).json())

    def test_real_answers_have_the_headers_that_are_described(self) -> None:
        place, entry = '/addresses/x', '/addresses/{id}'
        with ServerProcess({'server': {'require-preconditions': True}}) as server:
            create = server.request('PUT', place, NAMO, {'If-None-Match': '*'})
            self.assert_described(create, entry, 'put', 201)
            self.assert_described(server.request('GET', place), entry, 'get', 200)
            tag = create.headers['ETag']
            for method, status, body, headers in (
                    ('GET', 304, None, {'If-None-Match': tag}),
                    ('GET', 412, None, {'If-Match': '"x"'}),
                    ('PUT', 412, NAMO, {'If-None-Match': '*'}),
                    ('PUT', 428, NAMO, {}), ('DELETE', 428, None, {}),
                    ('DELETE', 412, None, {'If-Match': '"x"'}),
                    ('PUT', 204, NAMO, {'If-Match': tag}),
                    ('DELETE', 204, None, {'If-Match': '*'})):
                with self.subTest(method, status=status):
                    answer = server.request(method, place, body, headers)
                    self.assert_described(answer, entry, method.lower(), status)

    def test_real_pages_have_the_headers_that_are_described(self) -> None:
        with ServerProcess() as server:
            for _ in range(2):
                self.assert_described(server.request('POST', '/addresses', NAMO),
                                      '/addresses', 'post', 201)
            answer = server.request('GET', '/addresses?limit=1&count=true')
            self.assert_described(answer, '/addresses', 'get', 200)
            self.assertLessEqual({'Link', 'X-Total-Count', 'ETag'}, set(self.names_of(answer)))
            tag = answer.headers['ETag']
            answer = server.request('GET', '/addresses?limit=1', None, {'If-None-Match': tag})
            self.assertEqual(answer.status, 304)

    def assert_described(self, answer: Answer, path: str, method: str, status: int) -> None:
        """Checks that an answer is there that has all headers it must, and none it must not."""
        self.assertEqual(answer.status, status)
        described = answer_of(path, method, status)
        headers = {name: resolved(header) for name, header in described.get('headers', {}).items()}
        self.assertLessEqual(set(self.names_of(answer)), set(headers))
        for name, header in headers.items():
            if header.get('required'):
                self.assertIn(name, self.names_of(answer))
            if name in self.names_of(answer):
                self.assertRegex(answer.headers[name], header['schema'].get('pattern', '.'))
        if status >= 400:
            schema = SPEC['components']['schemas']['Error']
            Draft202012Validator(schema).validate(answer.json())

    def names_of(self, answer: Answer) -> list[str]:
        """Those of the headers that are described which the answer has."""
        return [name for name in DESCRIBED_HEADERS if name in answer.headers]


if __name__ == '__main__':
    unittest.main()
