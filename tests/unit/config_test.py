"""A configuration is checked once, completed from its schema, and refused in one line."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import operator
import os
import re
import sys
import tempfile
import unittest
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jsonschema import Draft202012Validator

from addrservice import ROOT_DIR
from addrservice.config import SCHEMA_FILE, complete_config, load_config, mask_secrets, printable
from addrservice.errors import ConfigError

Schema = dict[str, Any]

SCHEMA: Schema = json.loads(SCHEMA_FILE.read_text('utf-8'))
CONFIGS = sorted((ROOT_DIR / 'configs').glob('*.yaml'))

WRONG_VALUES: dict[str, tuple[object, ...]] = {
    'string': (5, True, None, [], {}, ''),
    'integer': ('5', True, None, [], {}, 5.5, 5.0),
    'number': ('5', True, None, [], {}, float('nan'), float('inf'), float('-inf')),
    'array': ('x', 5, None, {}, [5], [None]),
    'null': ('x', 5, False, [], {}),
    'object': ('x', 5, True, None, [], {'x': 5}),
    'boolean': ('true', 1, 0, None, [], {}),
}
"""For each type in the schema, values that are not of it, or not sensible ones."""

REQUIRED = {'sqlite': {'path': 'x'}, 'postgres': {'dsn': 'postgresql://h/b'},
            'file': {'path': 'x'}, 'tls': {'certificate': 'a', 'key': 'b'}}
"""What a section cannot be without."""


def sections() -> Iterator[tuple[str, Schema]]:
    yield from SCHEMA['properties'].items()


def settings() -> Iterator[tuple[str, Schema]]:
    """Name and schema of everything that can be set and is no section."""
    for name, schema in properties(SCHEMA):
        if '.' in name and 'properties' not in schema:
            yield name, schema


def properties(schema: Schema, place: str = '') -> Iterator[tuple[str, Schema]]:
    """Name and schema of every property, however deep."""
    for key, sub_schema in schema.get('properties', {}).items():
        yield f'{place}{key}', sub_schema
        yield from properties(sub_schema, f'{place}{key}.')


def config_with(name: str, value: object) -> dict[str, Any]:
    """A configuration that sets this, and whatever else its section must have."""
    section, _, rest = name.partition('.')
    if not rest:
        return {section: value}
    return {section: {**REQUIRED.get(section, {}), **config_with(rest, value)}}


def setting(config: dict[str, Any], name: str) -> Any:
    """What a configuration says of a setting."""
    return functools.reduce(operator.getitem, name.split('.'), config)


def bounds() -> Iterator[tuple[str, float, tuple[float, ...]]]:
    """The name of a setting, a value at a bound of it, and values beyond that bound."""
    for name, schema in settings():
        step = 1 if schema.get('type') == 'integer' else 0.001
        if 'minimum' in schema:
            yield name, schema['minimum'], (schema['minimum'] - step,)
        if 'exclusiveMinimum' in schema:
            least = schema['exclusiveMinimum']
            yield name, least + step, (least, least - step)
        if 'maximum' in schema:
            yield name, schema['maximum'], (schema['maximum'] + step,)


class ConfigTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def load(self, content: str | bytes, **environment: str) -> dict[str, Any]:
        path = self.folder / 'config.yaml'
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with mock.patch.dict(os.environ, environment):
            return load_config(str(path))

    def name_in(self, content: str, **environment: str) -> object:
        """The service's name according to a file; a key that takes any text."""
        return self.load(f'service:\n  name: {content}\n', **environment)['service']['name']

    @contextlib.contextmanager
    def refused(self, *parts: str) -> Iterator[None]:
        """The configuration is refused, and the detail has all of these in it."""
        with self.assertRaises(ConfigError) as caught:
            yield
        for part in parts:
            self.assertIn(part, caught.exception.detail)
        self.assertNotIn('\n', caught.exception.detail)


class SchemaTest(unittest.TestCase):
    def test_the_schema_is_valid_json_schema_of_2020(self) -> None:
        self.assertEqual(SCHEMA['$schema'], Draft202012Validator.META_SCHEMA['$id'])
        Draft202012Validator.check_schema(SCHEMA)

    def test_every_property_has_a_description(self) -> None:
        missing = [name for name, schema in properties(SCHEMA)
                   if not schema.get('description', '').endswith('.') and name != 'logging.version']
        self.assertEqual(missing, [])

    def test_no_section_but_logging_takes_unknown_keys(self) -> None:
        is_open = [name for name, schema in [('', SCHEMA), *sections()]
                   if schema.get('additionalProperties') is not False]
        self.assertEqual(is_open, ['logging'])

    def test_every_number_has_a_lower_and_an_upper_bound(self) -> None:
        for name, schema in settings():
            if schema.get('type') in ('integer', 'number'):
                with self.subTest(key=name):
                    self.assertIn('maximum', schema)
                    self.assertTrue({'minimum', 'exclusiveMinimum'} & set(schema))

    def test_every_default_conforms(self) -> None:
        for name, schema in properties(SCHEMA):
            if 'default' in schema:
                with self.subTest(key=name):
                    Draft202012Validator(schema).validate(schema['default'])

    def test_there_is_a_configuration_for_this_machine(self) -> None:
        self.assertIn('addressbook-local.yaml', [path.name for path in CONFIGS])

    def test_every_configuration_that_we_deliver_conforms(self) -> None:
        for path in CONFIGS:
            with self.subTest(file=path.name):
                Draft202012Validator(SCHEMA).validate(load_config(str(path)))


class DefaultsTest(ConfigTest):
    def expected(self) -> dict[str, Any]:
        """What the schema alone says of a configuration that says nothing."""
        return {section: {key: schema['default']
                          for key, schema in section_schema['properties'].items()
                          if 'default' in schema} or section_schema['default']
                for section, section_schema in sections() if 'default' in section_schema}

    def test_an_empty_configuration_has_every_default_of_the_schema(self) -> None:
        self.assertEqual(complete_config({}), self.expected())
        self.assertEqual(complete_config({})['server']['host'], '127.0.0.1')

    def test_a_file_that_says_nothing_has_every_default(self) -> None:
        for content in ('', '# nothing\n', '---\n', 'null\n'):
            with self.subTest(content=content):
                self.assertEqual(self.load(content), self.expected())

    def test_a_section_that_is_left_empty_counts_as_absent(self) -> None:
        empty = ''.join(f'{section}:\n' for section, _ in sections())
        self.assertEqual(self.load(empty), self.expected())

    def test_what_is_given_stays_and_the_rest_is_filled_in(self) -> None:
        config = complete_config({'server': {'port': 1234}, 'addr-db': {'fs': '/x'}})
        self.assertEqual(config['server'], {**self.expected()['server'], 'port': 1234})
        self.assertEqual(config['addr-db'], {'fs': '/x'})

    def test_the_section_logging_is_kept_as_it_is(self) -> None:
        logging = {'version': 1, 'loggers': {'x': {'level': 'INFO'}}, 'root': None}
        self.assertEqual(complete_config({'logging': logging})['logging'], logging)

    def test_a_complete_configuration_completes_to_itself(self) -> None:
        config = complete_config({'server': {'port': 1234}})
        self.assertEqual(complete_config(config), config)

    def test_a_text_stands_for_a_section_with_that_one_setting(self) -> None:
        for engine, key in (('sqlite', 'path'), ('postgres', 'dsn')):
            with self.subTest(engine=engine):
                config = complete_config({'addr-db': {engine: 'x'}})
                self.assertEqual(config, complete_config({'addr-db': {engine: {key: 'x'}}}))
                self.assertEqual(config['addr-db'][engine][key], 'x')
                self.assertGreater(len(config['addr-db'][engine]), 1, 'no defaults')

    def test_a_section_without_what_it_cannot_be_without_is_refused(self) -> None:
        for engine, key in (('sqlite', 'path'), ('postgres', 'dsn')):
            sections: tuple[object, ...] = ({}, '', None, 5, [])
            for section in sections:
                with self.subTest(section=section), self.refused(f'addr-db.{engine}'):
                    complete_config({'addr-db': {engine: section}})
            with self.refused(f'addr-db.{engine}: ', repr(key)):
                complete_config({'addr-db': {engine: {}}})

    def test_the_configuration_that_is_completed_is_not_changed(self) -> None:
        given: dict[str, Any] = {'server': {'port': 1}, 'drain': None, 'addr-db': {'memory': None}}
        before = copy.deepcopy(given)
        complete_config(given)
        self.assertEqual(given, before)

    def test_nobody_shares_a_default(self) -> None:
        complete_config({})['server']['trusted-proxies'].append('10.0.0.1')
        self.assertEqual(complete_config({})['server']['trusted-proxies'], [])

    def test_every_configuration_that_we_deliver_loads(self) -> None:
        for path in CONFIGS:
            with self.subTest(file=path.name):
                load_config(str(path))


class OverridesTest(ConfigTest):
    def load_with(self, overrides: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
        path = self.folder / 'config.yaml'
        path.write_text('server: {port: 1, host: 127.0.0.2}\n')
        return load_config(str(path), overrides)

    def test_an_override_wins_over_the_file_and_over_the_default(self) -> None:
        config = self.load_with({'server': {'port': 2}, 'drain': {'delay': 0}})
        self.assertEqual((config['server']['port'], config['drain']['delay']), (2, 0))

    def test_an_override_that_is_not_given_changes_nothing(self) -> None:
        config = self.load_with({'server': {'port': None, 'host': None}})
        self.assertEqual((config['server']['port'], config['server']['host']), (1, '127.0.0.2'))

    def test_an_override_is_checked_like_the_file(self) -> None:
        # An empty host would mean: every address of this machine.
        for section, key, value in (('server', 'host', ''), ('server', 'port', 65536)):
            with self.subTest(key=key), self.refused(f'{section}.{key}'):
                self.load_with({section: {key: value}})


class WrongKeyTest(ConfigTest):
    def test_an_unknown_section_gets_a_suggestion(self) -> None:
        with self.refused("servr: unknown key, did you mean 'server'?"):
            self.load('servr: {}')

    def test_an_unknown_key_in_a_section_gets_a_suggestion(self) -> None:
        with self.refused("server.prot: unknown key, did you mean 'port'?"):
            self.load('server: {prot: 1}')

    def test_every_key_that_is_misspelt_gets_the_right_suggestion(self) -> None:
        for name, _ in settings():
            key = name.rpartition('.')[2]
            if not name.startswith('logging'):
                with self.subTest(key=name):
                    with self.refused(f"{name}x: unknown ", f'did you mean {key!r}?'):
                        complete_config(config_with(f'{name}x', 1))

    def test_an_unknown_key_like_no_other_gets_all_that_are_known(self) -> None:
        with self.refused('drain.xyzzy: unknown key', *SCHEMA['properties']['drain']['properties']):
            self.load('drain: {xyzzy: 1}')

    def test_an_unknown_engine_is_called_one(self) -> None:
        with self.refused("addr-db.memroy: unknown engine, did you mean 'memory'?"):
            self.load('addr-db: {memroy: null}')
        with self.refused('addr-db.zzz: unknown engine', *SCHEMA['properties']['addr-db'][
                'properties']):
            self.load('addr-db: {zzz: null}')

    def test_there_must_be_exactly_one_engine(self) -> None:
        for content in ('{}', '{memory: null, fs: x}'):
            with self.subTest(content=content), self.refused('addr-db: '):
                self.load(f'addr-db: {content}')

    def test_a_key_that_is_no_text_is_unknown(self) -> None:
        for key in ('1', 'true', 'null', '1.5', '2020-01-01'):
            for content in (f'{key}: 1', f'server: {{{key}: 1}}'):
                with self.subTest(content=content), self.refused('unknown key'):
                    self.load(content)

    def test_a_key_that_stands_twice_is_named_with_its_line(self) -> None:
        with self.refused('line 4', 'port', 'twice'):
            self.load('server:\n  port: 1\n  host: a\n  port: 2\n')
        with self.refused('line 3', 'server', 'twice'):
            self.load('server: {port: 1}\ndrain: {}\nserver: {port: 2}\n')

    def test_a_merged_key_does_not_stand_twice(self) -> None:
        config = self.load('server:\n  <<: {port: 1, host: a}\n  port: 2\n')['server']
        self.assertEqual((config['port'], config['host']), (2, 'a'))


class WrongValueTest(ConfigTest):
    def test_every_key_refuses_every_other_type_and_is_named(self) -> None:
        for name, schema in settings():
            for value in WRONG_VALUES.get(schema.get('type', ''), ()):
                with self.subTest(key=name, value=value):
                    with self.refused(name):
                        complete_config(config_with(name, value))

    def test_there_are_wrong_values_for_every_type(self) -> None:
        self.assertEqual({schema['type'] for _, schema in settings() if 'type' in schema},
                         set(WRONG_VALUES))

    def test_every_section_must_be_a_mapping(self) -> None:
        for section, _ in sections():
            for value in ('x', 5, True, [], ['x']):
                with self.subTest(section=section, value=value):
                    with self.refused(f'{section}: must be of type object'):
                        complete_config({section: value})

    def test_the_version_of_the_logging_section_must_be_1(self) -> None:
        for section in ({}, {'version': 2}, {'version': '1'}, {'version': True}):
            with self.subTest(section=section), self.refused('logging', 'version'):
                complete_config({'logging': section})

    def test_a_value_at_a_bound_is_fine_and_one_beyond_it_is_not(self) -> None:
        for name, at_bound, beyond in bounds():
            with self.subTest(key=name):
                config = complete_config(config_with(name, at_bound))
                self.assertEqual(setting(config, name), at_bound)
                for value in beyond:
                    with self.refused(f'{name}: must be '):
                        complete_config(config_with(name, value))

    def test_a_whole_number_of_seconds_is_a_number(self) -> None:
        self.assertEqual(self.load('drain: {delay: 3}')['drain']['delay'], 3)
        self.assertEqual(self.load('drain: {delay: 0.25}')['drain']['delay'], 0.25)

    def test_numbers_that_are_none_are_refused_in_a_file_too(self) -> None:
        for value in ('.nan', '.inf', '-.inf'):
            with self.subTest(value=value), self.refused('drain.delay'):
                self.load(f'drain: {{delay: {value}}}')

    def test_an_integer_with_a_fraction_of_zero_is_no_integer(self) -> None:
        # A port of 80.0 cannot be listened on.
        with self.refused('server.port: must be of type integer'):
            self.load('server: {port: 80.0}')

    def test_a_wrong_value_is_not_repeated_as_it_may_be_a_secret(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.load('server: {port: hunter2}')
        self.assertNotIn('hunter2', str(caught.exception))


class BrokenFileTest(ConfigTest):
    def test_broken_yaml_is_refused_with_line_and_column(self) -> None:
        for content, place in (
                ('server:\n  port: [1\n', 'line 3, column 1'),
                ('server:\n\tport: 1\n', 'line 2, column 1'),
                ('a: b: c\n', 'line 1, column 5'),
                ('server: *nobody\n', 'line 1, column 9'),
                ('server: !unknown {}\n', 'line 1, column 9'),
                ('server: !!python/object/apply:os.getpid []\n', 'line 1, column 9'),
                ('server: {}\n---\ndrain: {}\n', 'line 2, column 1'),
                ('? [1]\n: 2\n', 'line 1, column 3')):
            with self.subTest(content=content), self.refused('YAML', place):
                self.load(content)

    def test_a_character_that_yaml_forbids_is_refused_with_its_line(self) -> None:
        with self.refused('YAML', 'line 2, column 10'):
            self.load('service:\n  name: a\0b\n')

    def test_values_that_look_like_a_date_or_a_number_and_are_none_are_refused(self) -> None:
        for value in ('2020-13-45', '2020-02-30 25:61:61', '!!int abc', '!!float x', '!!bool x',
                      '!!timestamp x', '9' * 5000):
            with self.subTest(value=value):
                with self.refused('line 2'):
                    self.name_in(value)

    def test_a_value_that_is_not_what_it_looks_like_is_not_repeated(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            self.name_in('${PASSWORD}', PASSWORD='2020-13-45')
        self.assertNotIn('2020-13-45', str(caught.exception))

    def test_yaml_that_is_nested_too_deeply_is_refused(self) -> None:
        with self.refused('YAML'):
            self.load('server: ' + '[' * 5000)

    def test_yaml_that_holds_itself_is_refused(self) -> None:
        with self.refused('logging'):
            self.load('logging: &loop\n  version: 1\n  more: *loop\n')

    def test_yaml_that_is_no_mapping_is_refused(self) -> None:
        for content in ('- server\n', '[]\n', 'server\n', '5\n', 'true\n', '""\n'):
            with self.subTest(content=content), self.refused('mapping'):
                self.load(content)

    def test_a_file_that_is_not_utf8_is_refused(self) -> None:
        for content in (b'service: {name: \xff}\n', 'server: {}\n'.encode('utf-16')):
            with self.subTest(content=content), self.refused('UTF-8'):
                self.load(content)

    def test_a_byte_order_mark_does_no_harm(self) -> None:
        self.assertEqual(self.load(b'\xef\xbb\xbfserver: {port: 1}\n')['server']['port'], 1)

    def test_a_missing_file_is_refused(self) -> None:
        for name in ('missing.yaml', 'missing/config.yaml', 'x' * 300):
            with self.subTest(name=name), self.refused('cannot be read'):
                load_config(str(self.folder / name))

    def test_a_folder_is_refused(self) -> None:
        with self.refused('cannot be read', 'directory'):
            load_config(str(self.folder))

    def test_no_detail_names_the_cause_as_python_does(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            load_config(str(self.folder / 'missing.yaml'))
        self.assertIsInstance(caught.exception.__cause__, OSError)
        self.assertNotIn('Errno', caught.exception.detail)


class VariablesTest(ConfigTest):
    def test_a_plain_variable_takes_the_type_that_its_value_looks_like(self) -> None:
        config = self.load('server:\n  port: ${PORT}\n  idle-timeout: ${IDLE}\n',
                           PORT='1234', IDLE='2.5')['server']
        self.assertEqual((config['port'], config['idle-timeout']), (1234, 2.5))

    def test_a_quoted_variable_stays_text(self) -> None:
        for quoted in ('"${PIN}"', "'${PIN}'", '|-\n    ${PIN}', '>-\n    ${PIN}', '!!str ${PIN}'):
            with self.subTest(quoted=quoted):
                self.assertEqual(self.name_in(quoted, PIN='0123'), '0123')

    def test_a_variable_can_be_a_part_of_a_value_and_stand_there_twice(self) -> None:
        self.assertEqual(self.name_in('a ${X}-${Y}${X}', X='1', Y='2'), 'a 1-21')

    def test_a_value_never_becomes_a_structure(self) -> None:
        for value in ('[1, 2]', '{a: 1}', 'a: 1', '- a', '# a', 'a # b', '*a', '&a b', '!!int 5',
                      'x\ny: 1\nserver:\n  port: 1', '"', "'", '| a', '%a', '${X}', '$$', ' a ',
                      '\t', '\\n', '\x00', '---', '...'):
            for text in ('${X}', '"${X}"', "'${X}'"):
                with self.subTest(value=value, text=text), mock.patch(
                        'os.environ', {'X': value}):
                    self.assertEqual(self.name_in(text), value)

    def test_a_variable_that_is_not_set_is_named_with_its_line(self) -> None:
        with self.refused('line 3', 'ADDRSERVICE_TEST_NOT_SET', 'not set'):
            self.load('server:\n  port: 1\n  host: ${ADDRSERVICE_TEST_NOT_SET}\n')

    def test_a_variable_that_is_set_but_empty_is_empty_text(self) -> None:
        self.assertEqual(self.name_in('"x${EMPTY}"', EMPTY=''), 'x')

    def test_a_default_stands_in_for_a_variable_that_is_unset_or_empty(self) -> None:
        self.assertEqual(self.name_in('${EMPTY:-a b}', EMPTY=''), 'a b')
        self.assertEqual(self.name_in('${ADDRSERVICE_TEST_NOT_SET:-a b}'), 'a b')
        self.assertEqual(self.name_in('${SET:-a b}', SET='c'), 'c')

    def test_a_default_may_be_empty_or_a_number(self) -> None:
        self.assertEqual(self.name_in('x${ADDRSERVICE_TEST_NOT_SET:-}'), 'x')
        config = self.load('server:\n  port: ${ADDRSERVICE_TEST_NOT_SET:-1234}\n')
        self.assertEqual(config['server']['port'], 1234)

    def test_two_dollar_signs_are_a_plain_one(self) -> None:
        for text, expected in (('a$$b', 'a$b'), ('$${X}', '${X}'), ('$$$${X}', '$${X}'),
                               ('$$${X}', '$x'), ('5$', '5$'), ('$X', '$X'), ('${', '${'),
                               ('${}', '${}'), ('${1}', '${1}')):
            with self.subTest(text=text):
                self.assertEqual(self.name_in(f"'{text}'", X='x'), expected)

    def test_a_variable_in_a_comment_means_nothing(self) -> None:
        self.load('# ${ADDRSERVICE_TEST_NOT_SET}\nserver: {}  # ${ADDRSERVICE_TEST_NOT_SET}\n')

    def test_a_value_that_is_refused_is_named_like_one_in_the_file(self) -> None:
        with self.refused('server.port: must be of type integer'):
            self.load('server:\n  port: ${PORT}\n', PORT='eighty')


SECRET = 'hunter2'
DSNS = (
    'postgresql://user:{}@db.example/book',
    'postgresql+asyncpg://user:{}@db.example:5432/book?sslmode=require',
    'redis://:{}@cache.example',
    'postgresql://user:@{}@db.example/book',
    'postgresql://user:a@b@{}@db.example/book',
    'postgresql://user@tenant:{}@db.example/book',
    'postgresql://user:a/{}@db.example/book',
    'postgresql://user:a:{}@db.example/book',
    'postgresql://user:{}%40@db.example/book',
    'postgresql://db.example/book?user=a&password={}&sslmode=require',
    'postgresql://db.example/book?PASSWORD={}',
    'postgresql://db.example/book?sslpassword={}',
    'postgresql://a:{0}@db.example/book?password={0}',
    'host=db.example password={} dbname=book',
    "host=db.example password='a {}' dbname=book",
    'host=db.example password = {} dbname=book',
    'https://collector.example/?token={}',
    'https://collector.example/?client_secret={}&x=1',
    'https://collector.example/?access_token={}',
    'https://collector.example/?api_key={}',
    'https://{}@collector.example/1',
    'first https://a:{0}@b/ then https://c:{0}@d/',
)
PUBLIC = ('', 'x', '127.0.0.1', '/var/lib/addrservice', 'postgresql://db.example:5432/book',
          'http://[::1]:8080/', 'a@b.example', '%(asctime)s %(message)s', 'user=me host=here',
          'compass=north', 'Address Book: pass')


class MaskTest(unittest.TestCase):
    def test_the_value_of_a_secret_key_is_masked_whatever_it_is(self) -> None:
        for key in ('password', 'db-password', 'PASSWORD', 'passwd', 'passphrase', 'secret',
                    'client_secret', 'token', 'api-token', 'credentials', 'private_key', 'key',
                    'api_key', 'write-key', 'headers'):
            for value in (SECRET, ['me', SECRET], {'value': SECRET}, [{'value': SECRET}]):
                with self.subTest(key=key, value=value):
                    self.assertNotIn(SECRET, str(mask_secrets({'a': [{key: value}]})))

    def test_a_secret_of_digits_is_masked_too(self) -> None:
        self.assertEqual(mask_secrets({'password': 123456, 'pin-token': [1.5]}),
                         {'password': '***', 'pin-token': ['***']})

    def test_a_password_in_a_text_is_masked_and_the_rest_is_not(self) -> None:
        for dsn in DSNS:
            with self.subTest(dsn=dsn):
                masked = mask_secrets({'dsn': dsn.format(SECRET)})['dsn']
                self.assertNotIn(SECRET, masked)
                self.assertIn('***', masked)
                for host in re.findall(r'\w+\.example', dsn):
                    self.assertIn(host, masked)

    def test_a_dsn_keeps_everything_but_its_password(self) -> None:
        for dsn in DSNS[:3] + DSNS[9:11]:
            with self.subTest(dsn=dsn):
                self.assertEqual(mask_secrets(dsn.format(SECRET)), dsn.format('***'))

    def test_what_is_no_secret_stays_as_it_is(self) -> None:
        values: tuple[object, ...] = (*PUBLIC, 5, 1.5, True, None, [], {}, list(PUBLIC))
        for value in values:
            with self.subTest(value=value):
                self.assertEqual(mask_secrets({'x': value}), {'x': value})

    def test_no_setting_of_ours_is_masked_by_its_name(self) -> None:
        config = complete_config({'logging': {'version': 1, 'root': {'level': 'INFO'}}})
        self.assertEqual(mask_secrets(config), config)

    def test_all_that_a_collector_sends_along_is_masked(self) -> None:
        config = complete_config({'tracing': {'collectors': {'otlp': {
            'headers': {'x-team': SECRET}}}}})
        self.assertNotIn(SECRET, str(mask_secrets(config)))

    def test_of_somebody_s_own_collector_nothing_is_shown(self) -> None:
        config = complete_config({'tracing': {'collectors': {'theirs.Collector': {
            'anything': [SECRET], 'else': 5}, 'ring': None}}})
        shown = printable(config)['tracing']['collectors']
        self.assertEqual(shown['theirs.Collector'], {'anything': ['***'], 'else': '***'})
        self.assertEqual(shown['ring']['last'], 100)

    def test_an_endpoint_with_a_secret_is_refused_without_being_repeated(self) -> None:
        for endpoint in (f'https://x.example/?api_key={SECRET}', f'https://{SECRET}@x.example/'):
            with self.assertRaises(ConfigError) as raised:
                complete_config({'tracing': {'collectors': {'otlp': {'endpoint': endpoint}}}})
            self.assertTrue(str(raised.exception).startswith('tracing.collectors.otlp.endpoint: '))
            self.assertNotIn(SECRET, str(raised.exception))

    def test_what_is_masked_is_a_copy(self) -> None:
        given = {'password': SECRET, 'urls': [DSNS[0].format(SECRET)]}
        before = copy.deepcopy(given)
        mask_secrets(given)
        self.assertEqual(given, before)


if __name__ == '__main__':
    unittest.main()
