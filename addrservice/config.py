"""Reads the YAML configuration, checks it before anything starts, and fails in one line.

``schema/config-v1.0.json`` is the one place where keys, types, bounds,
descriptions and defaults are declared; this module only applies it.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import jsonschema
import yaml

from addrservice.errors import ConfigError

Config = dict[str, Any]

SCHEMA_FILE = Path(__file__).resolve().parent.parent / 'schema' / 'config-v1.0.json'

SHORTHAND = 'x-shorthand'
"""Of a section in the schema: the key that is meant where a text stands for all of it."""

_VARIABLE = re.compile(r'\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})')
_SECRET_NAME = r'(?:passw|passphrase|secret|token|credential|private|authorization|api[-_]?key)'
# Header fields that are sent along are there to prove who sends them.
_SECRET_KEY = re.compile(
    rf'{_SECRET_NAME}|(?:^|[-_.])(?:keys?|headers|auth|pass|pwd|bearer|cookie)$', re.IGNORECASE)
_SECRETS_IN_TEXT = (
    # The password of a URL: from the first colon to the last @ before what may be a host.
    re.compile(r'(?<=://)([^:\s/]*:)\S*(?=@)'),
    # What stands before a host in a URL of the web: a key, if it is not user and password.
    re.compile(r'(https?://)[^\s/@]*(?=@)'),
    # A parameter: ``password=…``, of a query or of a list of words, perhaps in quotes.
    re.compile(rf"(?i)(\b\w*{_SECRET_NAME}\w*\s*=\s*)('[^']*'|[^&\s]*)"),
)


def load_config(path: str, overrides: Mapping[str, Mapping[str, object]] | None = None) -> Config:
    """Reads, checks and completes a configuration file.

    ``${NAME}`` and ``${NAME:-default}`` in a value stand for an environment
    variable; ``$$`` is a plain dollar sign.

    :param path: the YAML file.
    :param overrides: section -> key -> value, from the command line; these
        win over the file, and None stands for "not given".
    :return: every setting, with defaults where the file says nothing.
    :raises ConfigError: names the key, or the line.
    """
    config = complete_config(_read_yaml(path))
    for section, values in (overrides or {}).items():
        if given := {key: value for key, value in values.items() if value is not None}:
            config[section] = {**config.get(section, {}), **given}
    return complete_config(config)


def complete_config(config: Mapping[str, Any]) -> Config:
    """Checks a configuration and fills in the defaults.

    :param config: as a YAML file would say it; a section that is left empty
        counts as absent. It is not changed.
    :raises ConfigError: names the key.
    """
    schema = json.loads(SCHEMA_FILE.read_text('utf-8'))
    given = {key: value for key, value in config.items() if value is not None}
    error = jsonschema.exceptions.best_match(_Validator(schema).iter_errors(given))
    if error:
        raise ConfigError(_explain(error))
    return _with_defaults(given, schema)


def mask_secrets(value: Any, is_secret: bool = False) -> Any:
    """A copy fit for printing: passwords, also those inside URLs, are ``***``."""
    if isinstance(value, Mapping):
        return {name: mask_secrets(item, is_secret or bool(_SECRET_KEY.search(str(name))))
                for name, item in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item, is_secret) for item in value]
    if is_secret:
        return '***'
    if isinstance(value, str):
        for pattern in _SECRETS_IN_TEXT:
            value = pattern.sub(r'\1***', value)
    return value


def printable(config: Config) -> Any:
    """A copy that can be shown to anyone, and read as a configuration again."""
    masked = mask_secrets(config)
    collectors = masked['tracing']['collectors']
    for name in collectors:
        if '.' in name:  # somebody's own: nobody knows which of its settings are secrets
            collectors[name] = mask_secrets(collectors[name], is_secret=True)
    return _escape_variables(masked)


def _escape_variables(value: Any) -> Any:
    if isinstance(value, dict):
        return {_escape_variables(name): _escape_variables(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escape_variables(item) for item in value]
    return value.replace('$', '$$') if isinstance(value, str) else value


# Types as Python and its event loop take them: 5.0 is no port, and NaN no time.
_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]  # the stubs omit it
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({
        'integer': lambda _, value: isinstance(value, int) and not isinstance(value, bool),
        'number': lambda _, value: (isinstance(value, (int, float)) and math.isfinite(value)
                                    and not isinstance(value, bool))}))


def _with_defaults(given: Mapping[str, Any], schema: Mapping[str, Any]) -> Config:
    config: Config = {}
    for key, sub_schema in schema.get('properties', {}).items():
        if key in given or 'default' in sub_schema:
            value = given.get(key, copy.deepcopy(sub_schema.get('default')))
            if isinstance(value, str) and SHORTHAND in sub_schema:
                value = {sub_schema[SHORTHAND]: value}
            if value is None and 'properties' in sub_schema:
                value = {}  # there, with nothing said about it
            is_section = isinstance(value, Mapping) and 'properties' in sub_schema
            config[key] = _with_defaults(value, sub_schema) if is_section else value
    return {**config, **{key: given[key] for key in given if key not in config}}


def _explain(error: jsonschema.exceptions.ValidationError) -> str:
    """One line for one violation: the key first, then what it should be."""
    where = '.'.join(str(part) for part in error.absolute_path)
    if error.validator == 'additionalProperties':
        return _explain_unknown_key(error, where)
    return f'{where or "configuration"}: {_shall_be(error)}'


def _explain_unknown_key(error: jsonschema.exceptions.ValidationError, where: str) -> str:
    schema = cast(Mapping[str, Any], error.schema)
    known = list(schema['properties'])
    patterns = schema.get('patternProperties', ())
    key = next(key for key in cast(Mapping[str, Any], error.instance) if key not in known
               and not any(re.search(pattern, str(key)) for pattern in patterns))
    guess = difflib.get_close_matches(str(key), known, n=1)
    hint = f'did you mean {guess[0]!r}?' if guess else f'known are {", ".join(known)}'
    what = {'addr-db': 'engine', 'tracing.collectors': 'collector'}.get(where, 'key')
    return f'{where + "." if where else ""}{key}: unknown {what}, {hint}'


def _shall_be(error: jsonschema.exceptions.ValidationError) -> str:
    wanted = error.validator_value
    # What a value should be is said by the schema; the value itself may be a
    # secret, and is not repeated.
    return {
        'type': f'must be of type {wanted}',
        'minimum': f'must be at least {wanted}',
        'exclusiveMinimum': f'must be more than {wanted}',
        'maximum': f'must be at most {wanted}',
        'minLength': 'must not be empty',
        'minProperties': 'needs one key, the name of the engine',
        'maxProperties': 'must have one key only, the name of the engine',
        'required': error.message,
        'const': f'must be {wanted}',
        'pattern': f'must match {wanted}',
    }.get(str(error.validator), error.message)


def _read_yaml(path: str) -> Config:
    try:
        text = Path(path).read_text('utf-8')
        content = yaml.load(text, _ConfigLoader)
    except OSError as error:
        raise ConfigError(f'cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise ConfigError('cannot be read: it is not UTF-8 text') from error
    except yaml.YAMLError as error:
        raise ConfigError(f'is not YAML: {_explain_yaml(error, text)}') from error
    except RecursionError as error:
        raise ConfigError('is not YAML that can be used: it is nested too deeply') from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError('must be a mapping of keys to values')
    for key, value in content.items():
        _refuse_loops(key, value)
    return content


def _refuse_loops(key: str, value: object) -> None:
    """YAML can make a value that holds itself, and nothing here would end."""
    try:
        json.dumps(value, default=str, skipkeys=True)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{key}: holds itself') from error


def _explain_yaml(error: yaml.YAMLError, text: str) -> str:
    match error:
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark(line=line, column=column)):
            return f'line {line + 1}, column {column + 1}: {error.problem}'
        case yaml.reader.ReaderError(position=position):
            before = text[:position]
            column = position - before.rfind('\n')
            return f'line {before.count(chr(10)) + 1}, column {column}: {error.reason}'
    return ' '.join(str(error).split())


class _ConfigLoader(yaml.SafeLoader):
    """YAML as usual, but variables are replaced and no key may stand twice."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs omit it
        # Replaced before YAML decides on a type: ``port: ${PORT}`` is a number,
        # ``"${PIN}"`` stays text, and no value can become a structure.
        event.value = _replace_variables(event.value, event.start_mark.line + 1)
        return super().compose_scalar_node(anchor)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise ConfigError(f'line {key_node.start_mark.line + 1}: {key}: stands twice')
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, OverflowError) as error:
            # What looked like a date or a number, and is none.
            raise ConfigError(f'line {node.start_mark.line + 1}: a value is not what it looks '
                              'like; put it in quotes if it is text') from error


def _replace_variables(text: str, line: int) -> str:
    def replacement(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name is None:
            return '$'
        value = os.environ.get(name)
        if not value and default is not None:
            return default
        if value is None:
            raise ConfigError(f'line {line}: the environment variable {name} is not set')
        return value

    return _VARIABLE.sub(replacement, text)
