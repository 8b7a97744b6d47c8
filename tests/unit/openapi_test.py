"""The OpenAPI document says what the service does: same paths, same methods, same errors."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from addrservice import ROOT_DIR, __version__
from addrservice.database.addressbook_db import new_nickname
from addrservice.datamodel import MAX_FAULTS
from addrservice.tornado.app import ROUTES
from addrservice.tornado.base import BaseRequestHandler
from tests.support import ServerProcess

SPEC_FILE = ROOT_DIR / 'schema' / 'openapi-v1.yaml'
SPEC: dict[str, Any] = yaml.safe_load(SPEC_FILE.read_text())
METHODS_THAT_COME_WITH_EVERY_GET = {'HEAD', 'OPTIONS'}


def methods_of(handler: type[BaseRequestHandler]) -> set[str]:
    return set(handler.allowed_methods().split(', '))


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

    def test_real_errors_look_as_described(self) -> None:
        validator = Draft202012Validator(SPEC['components']['schemas']['Error'])
        with ServerProcess() as server:
            for method, target, body in (('GET', '/nowhere', None), ('GET', '/addresses/x', None),
                                         ('PATCH', '/addresses', None), ('POST', '/addresses', '['),
                                         ('POST', '/addresses', '{"x": 1}')):
                with self.subTest(method=method, target=target):
                    validator.validate(server.request(method, target, body).json())


if __name__ == '__main__':
    unittest.main()
