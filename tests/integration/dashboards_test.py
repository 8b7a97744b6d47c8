"""Dashboard and alert rules speak of what the service exposes, and forget nothing."""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import re
import sys
import tempfile
import unittest
from asyncio import CancelledError
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http import HTTPMethod, HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import promql_parser as promql
import yaml
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import data
from addrservice import errors
from addrservice.database.observed_db import _outcome
from addrservice.tornado.app import ROUTES
from addrservice.utils.metrics import NOT_NOW, OTHER_METHOD, REFUSALS, UNKNOWN_ROUTE
from tests.engines import new_store
from tests.support import DEADLINE, ROOT, ServerProcess

PROMETHEUS = ROOT / 'configs' / 'prometheus'
DASHBOARD = json.loads((ROOT / 'configs' / 'grafana' / 'addrservice.json').read_text())
SCHEMA = json.loads((ROOT / 'schema' / 'config-v1.0.json').read_text())['properties']
RULES = [rule for group in yaml.safe_load((PROMETHEUS / 'alerts.yaml').read_text())['groups']
         for rule in group['rules']]
ALERTS = [rule for rule in RULES if 'alert' in rule]
SCRAPING = yaml.safe_load((PROMETHEUS / 'prometheus.yaml').read_text())
TRIALS = yaml.safe_load((PROMETHEUS / 'alerts_test.yaml').read_text())

HTTP = 'http_server_'
OURS = ('addrservice_', HTTP, 'db_client_')
TARGET = frozenset({'job', 'instance'})
"""Labels that every metric gets from Prometheus."""

COUNTERS = ('_total', '_count', '_sum', '_bucket')
WITHOUT_LABELS = ('vector', 'time', 'scalar')
SEVERITIES = ('critical', 'warning')
PROBES = [route.template for route in ROUTES if route.handler.is_probe]

ERRORS = [each for each in vars(errors).values()
          if isinstance(each, type) and issubclass(each, errors.AddrServiceError)]
POSSIBLE: Mapping[str, set[str]] = {
    'method': {*HTTPMethod, OTHER_METHOD},
    'route': {*(route.template for route in ROUTES), UNKNOWN_ROUTE},
    'status': {*(str(int(status)) for status in HTTPStatus), '499'},
    'reason': {*REFUSALS.values(), *NOT_NOW},
    'engine': set(SCHEMA['addr-db']['properties']),
    'outcome': {'ok', *map(_outcome, (CancelledError(), Exception())),
                *(_outcome(each.__new__(each)) for each in ERRORS)},
    'alertname': {rule['alert'] for rule in ALERTS},
    'alertstate': {'pending', 'firing'},
}
"""What a label may be, also if it was not while this test ran."""

Labels = frozenset[str]
Known = dict[str, dict[str, set[str]]]
"""The labels of each metric, and which values they have."""


# --- what is exposed ---

@functools.cache
def scrape() -> Sequence[Metric]:
    """The metrics of a server that was asked for this and that."""
    with (tempfile.TemporaryDirectory() as folder,
          new_store('postgres', Path(folder)) as store,
          ServerProcess({'addr-db': store, 'admin': {'port': 0},
                         'tracing': {'collectors': {'metrics': None, 'ring': None}}}) as server):
        entry = json.dumps(next(iter(data.address_data_suite().values())))
        address = server.request('POST', '/addresses', entry).headers['Location']
        for method, target, body in (
                ('GET', address, None), ('PUT', address, entry), ('GET', '/addresses', None),
                ('DELETE', address, None), ('GET', address, None), ('GET', '/nowhere', None)):
            server.request(method, target, body)
        text = read_metrics(server)
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def read_metrics(server: ServerProcess) -> str:
    port = server.lines('STARTING')[-1]['admin_port']
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=DEADLINE)
    with closing(connection):
        connection.request('GET', '/metrics', headers={'Accept': 'application/openmetrics-text'})
        return connection.getresponse().read().decode()


def exposed() -> Known:
    """What Prometheus has of the service, before it applies rules."""
    known: Known = {'up': {label: set() for label in TARGET}}
    for sample in itertools.chain(*(family.samples for family in scrape())):
        labels = known.setdefault(sample.name, {label: set() for label in TARGET})
        for label, value in sample.labels.items():
            labels.setdefault(label, set()).add(value)
    return known


@functools.cache
def known_to_prometheus() -> Known:
    """What is exposed, and what the rules make of it."""
    known = exposed()
    for rule in RULES:
        if 'record' in rule:
            known[rule['record']] = {label: set() for label in result_labels(known, rule)}
    known['ALERTS'] = {
        'alertname': set(), 'alertstate': set(), 'severity': set(SEVERITIES),
        **{label: set() for rule in ALERTS for label in result_labels(known, rule)}}
    return known


def result_labels(known: Known, rule: Mapping[str, Any]) -> Labels:
    """Those of what a rule makes; none if it is wrong, which has its own test."""
    with suppress(AssertionError, ValueError):
        return Reading(known, rule['expr']).labels or Labels()
    return Labels()


# --- expressions ---

@dataclass
class Reading:
    """An expression of PromQL that was checked: it speaks of what is known, and
    the labels that it counts on are there where it does.

    An AssertionError tells what is wrong.
    """

    known: Known
    text: str
    labels: Labels | None = field(init=False)
    """Those of its result; None if that is a number."""

    selectors: list[promql.VectorSelector] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.labels = self._read(promql.parse(self.text))

    def names(self) -> set[str]:
        """The metrics that it speaks of."""
        return {str(selector.name) for selector in self.selectors}

    def _read(self, expr: promql.Expr) -> Labels | None:
        match expr:
            case promql.VectorSelector():
                return self._selected(expr)
            case promql.MatrixSelector():
                return self._selected(expr.vector_selector)
            case promql.AggregateExpr():
                return self._aggregated(expr)
            case promql.BinaryExpr():
                return self._combined(expr)
            case promql.Call():
                return self._called(expr)
            case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
                return self._read(expr.expr)
        return None

    def _selected(self, selector: promql.VectorSelector) -> Labels:
        self.selectors.append(selector)
        name = str(selector.name)
        self._require(name in self.known, f'nobody exposes or records {name}')
        labels = self.known[name]
        for matcher in selector.matchers.matchers:
            self._has({matcher.name}, frozenset(labels), name)
            if matcher.name not in TARGET:
                self._can_be(matcher, labels[matcher.name] | POSSIBLE.get(matcher.name, set()))
        return frozenset(labels)

    def _can_be(self, matcher: promql.Matcher, values: set[str]) -> None:
        is_pattern = matcher.op in (promql.MatchOp.Re, promql.MatchOp.NotRe)
        for wanted in matcher.value.split('|') if is_pattern else [matcher.value]:
            pattern = wanted if is_pattern else re.escape(wanted)
            self._require(any(re.fullmatch(pattern, value) for value in values),
                          f'{matcher.name} is never {wanted}')

    def _aggregated(self, expr: promql.AggregateExpr) -> Labels:
        inner = self._read(expr.expr) or Labels()
        if expr.modifier is None:
            return inner if str(expr.op) in ('topk', 'bottomk') else Labels()
        listed = frozenset(expr.modifier.labels)
        self._has(listed, inner, str(expr.op))
        return listed if expr.modifier.type == promql.AggModifierType.By else inner - listed

    def _called(self, call: promql.Call) -> Labels | None:
        name = call.func.name
        inner = Labels().union(*(self._read(argument) or () for argument in call.args))
        if name in ('rate', 'irate', 'increase'):
            self._counts(call.args[0])
        if name == 'histogram_quantile':
            self._has({'le'}, inner, name)
            return inner - {'le'}
        if name == 'label_replace':
            self._has({call.args[3].val}, inner, name)
            return inner | {call.args[1].val}
        if name in WITHOUT_LABELS:
            return Labels() if name == 'vector' else None
        return inner & TARGET if name == 'absent' else inner

    def _counts(self, argument: promql.Expr) -> None:
        assert isinstance(argument, promql.MatrixSelector)
        name = str(argument.vector_selector.name)
        self._require(name.endswith(COUNTERS), f'{name} is no counter')

    def _combined(self, expr: promql.BinaryExpr) -> Labels | None:
        left, right = self._read(expr.lhs), self._read(expr.rhs)
        if left is None or right is None:
            return left if right is None else right
        if str(expr.op) == 'or':
            return left | right
        kept = self._matched(expr, left, right)
        modifier = expr.modifier
        if modifier and modifier.card == promql.VectorMatchCardinality.ManyToOne:
            return left | set(modifier.group_labels or ())
        return left if str(expr.op) in ('and', 'unless') else kept

    def _matched(self, expr: promql.BinaryExpr, left: Labels, right: Labels) -> Labels:
        """The labels by which the two sides find each other."""
        matching = expr.modifier and expr.modifier.matching
        if not matching:
            self._require(left == right, f'{sorted(left)} never are {sorted(right)}')
            return left
        listed = frozenset(matching.labels)
        if matching.type == promql.LabelModifierType.Include:
            self._has(listed, left & right, 'on')
            return listed
        self._has(listed, left | right, 'ignoring')
        self._require(left - listed == right - listed, f'{left ^ right} differ')
        return left - listed

    def _has(self, wanted: set[str] | Labels, labels: Labels, where: str) -> None:
        self._require(wanted <= labels, f'{where} has no label {sorted(wanted - labels)}')

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f'{message}: {self.text}')


class Expression(NamedTuple):
    """An expression, and where it stands."""

    place: str
    text: str
    template: str = ''
    """The text in which labels of its result are filled in."""

    def read(self) -> Reading:
        """It, with times in the place of Grafana's variables."""
        return Reading(known_to_prometheus(), re.sub(r'\$__\w+', '5m', self.text))

    def filled_in(self) -> set[str]:
        """The labels that the template wants."""
        return set(re.findall(r'\$labels\.(\w+)', self.template)
                   or re.findall(r'\{\{\s*(\w+)\s*\}\}', self.template))


def panels() -> Iterator[dict[str, Any]]:
    """All but the rows' titles."""
    return (panel for panel in DASHBOARD['panels'] if panel['type'] != 'row')


def on_dashboard() -> Iterator[Expression]:
    for panel in panels():
        for target in panel['targets']:
            yield Expression(panel['title'], target['expr'], target['legendFormat'])
    for note in DASHBOARD['annotations']['list']:
        if 'expr' in note:
            yield Expression(note['name'], note['expr'], note['textFormat'])
    for variable in DASHBOARD['templating']['list']:
        if variable['type'] == 'query':
            text, label = re.findall(r'^label_values\((.*), (\w+)\)$', variable['definition'])[0]
            yield Expression(variable['name'], text, '{{' + label + '}}')


def in_rules() -> Iterator[Expression]:
    for rule in RULES:
        yield Expression(rule.get('alert') or rule['record'], rule['expr'],
                         ' '.join(rule.get('annotations', {}).values()))


def in_trials() -> Iterator[Expression]:
    for trial in TRIALS['tests']:
        for series in trial['input_series']:
            if 'job="addrservice"' in series['series']:
                yield Expression(trial['name'], series['series'])
        for question in trial['promql_expr_test']:
            yield Expression(trial['name'], question['expr'])


# --- the tests ---

class ExpressionsTest(unittest.TestCase):
    """Every expression, against a server on PostgreSQL."""

    def test_they_speak_of_what_is_exposed(self) -> None:
        for expression in itertools.chain(on_dashboard(), in_rules(), in_trials()):
            with self.subTest(expression.place):
                self.assertLessEqual(expression.filled_in(), set(expression.read().labels or ()))

    def test_nothing_that_is_exposed_is_missing_on_the_dashboard(self) -> None:
        shown = set().union(*(reading.names() for _, reading in readings(on_dashboard())))
        for family in scrape():
            if family.name.startswith(OURS):
                with self.subTest(family.name):
                    self.assertTrue(shown & {sample.name for sample in family.samples})

    def test_probes_are_in_no_rate_and_no_latency(self) -> None:
        for place, reading in readings(on_dashboard(), in_rules()):
            for selector in reading.selectors:
                name = str(selector.name)
                if name.startswith(HTTP) and 'route' in known_to_prometheus()[name]:
                    with self.subTest(place):
                        self.assertEqual(left_out(selector, 'route'), PROBES)

    def test_the_dashboard_shows_the_chosen_job_and_instances(self) -> None:
        variables = {variable['name'] for variable in DASHBOARD['templating']['list']}
        self.assertEqual(variables, {'datasource', *TARGET})
        for place, reading in readings(on_dashboard()):
            if place not in (*variables, 'Alerts'):
                for selector in reading.selectors:
                    with self.subTest(place):
                        self.assertLessEqual({'job=~"$job"', 'instance=~"$instance"'},
                                             matchers(selector))

    def test_rules_are_about_the_job_that_is_scraped(self) -> None:
        [job] = [section['job_name'] for section in SCRAPING['scrape_configs']]
        recorded = {rule.get('record') for rule in RULES}
        for place, reading in readings(in_rules()):
            for selector in reading.selectors:
                if selector.name not in recorded:
                    with self.subTest(place):
                        self.assertIn(f'job="{job}"', matchers(selector))

    def test_where_the_dashboard_shows_exemplars_there_are_some(self) -> None:
        have = {sample.name for family in scrape() for sample in family.samples
                if sample.exemplar and 'trace_id' in sample.exemplar.labels}
        asked = [Expression(panel['title'], target['expr']) for panel in panels()
                 for target in panel['targets'] if target.get('exemplar')]
        self.assertTrue(asked)
        for place, reading in readings(iter(asked)):
            with self.subTest(place):
                self.assertLessEqual(reading.names(), have)

    def test_what_is_wrong_is_found(self) -> None:
        count = 'http_server_request_duration_seconds_count'
        for text in ('http_server_requests_total', f'{count}{{code="200"}}',
                     f'{count}{{route="/nowhere"}}', f'{count}{{status=~"2..|9.."}}',
                     f'sum by (path) ({count})', 'up / on (route) up',
                     'rate(addrservice_entries[5m])', f'histogram_quantile(0.5, rate({count}[5m]))',
                     'db_client_connection_count / db_client_connection_max',
                     f'sum by (job) ({count}) / on (route) sum by (route) ({count})',
                     f'label_replace({count}, "a", "$1", "path", "(.*)")'):
            with self.subTest(text), self.assertRaises(AssertionError):
                Reading(known_to_prometheus(), text)


def readings(*sources: Iterator[Expression]) -> Iterator[tuple[str, Reading]]:
    """What is read, and where it stands; without what is wrong, which has its own test."""
    for expression in itertools.chain(*sources):
        with suppress(AssertionError, ValueError):
            yield expression.place, expression.read()


def matchers(selector: promql.VectorSelector) -> set[str]:
    """What a selector wants of labels, one by one."""
    return {str(matcher) for matcher in selector.matchers.matchers}


def left_out(selector: promql.VectorSelector, label: str) -> list[str]:
    """The values of a label that a selector does not want."""
    return [value for matcher in selector.matchers.matchers
            if (matcher.name, matcher.op) == (label, promql.MatchOp.NotRe)
            for value in matcher.value.split('|')]


class DashboardTest(unittest.TestCase):
    """What Grafana wants of the file, and an operator of the panels."""

    def test_it_can_be_imported_anywhere(self) -> None:
        self.assertIsNone(DASHBOARD['id'])
        self.assertEqual(DASHBOARD['uid'], 'addrservice')
        self.assertGreaterEqual(DASHBOARD['schemaVersion'], 39)
        self.assertTrue(DASHBOARD['title'] and DASHBOARD['tags'] and DASHBOARD['refresh'])
        for asking in (*panels(), *(target for panel in panels() for target in panel['targets'])):
            self.assertEqual(asking['datasource'],
                             {'type': 'prometheus', 'uid': '${datasource}'})

    def test_ids_are_unique(self) -> None:
        self.assertEqual(repeated(panel['id'] for panel in DASHBOARD['panels']), [])
        for panel in panels():
            self.assertEqual(repeated(target['refId'] for target in panel['targets']), [])

    def test_every_panel_says_what_it_shows(self) -> None:
        for panel in panels():
            with self.subTest(panel['title']):
                self.assertTrue(panel['title'] and panel['description'] and panel['targets'])
                self.assertTrue(panel['fieldConfig']['defaults']['unit'])
                self.assertTrue(all(target['expr'] for target in panel['targets']))

    def test_no_two_panels_lie_on_each_other(self) -> None:
        taken: list[Any] = []
        for panel in DASHBOARD['panels']:
            x, y, w, h = (panel['gridPos'][key] for key in 'xywh')
            self.assertLessEqual(x + w, 24, panel['title'])
            taken += itertools.product(range(x, x + w), range(y, y + h))
        self.assertEqual(repeated(taken), [])


class RulesTest(unittest.TestCase):
    """What Prometheus wants of its files, and an operator of the alerts."""

    def test_every_alert_says_what_it_means_and_what_to_do(self) -> None:
        for rule in ALERTS:
            with self.subTest(rule['alert']):
                self.assertRegex(rule['for'], r'^\d+[mh]$')
                self.assertIn(rule['labels']['severity'], SEVERITIES)
                self.assertLess(len(rule['annotations']['summary']), 100)
                self.assertGreater(len(rule['annotations']['description']), 100)

    def test_names_are_unique(self) -> None:
        self.assertEqual(repeated(rule.get('alert') or rule['record'] for rule in RULES), [])

    def test_every_alert_is_tried(self) -> None:
        expected = [sample['labels'] for trial in TRIALS['tests']
                    for question in trial['promql_expr_test']
                    for sample in question['exp_samples']]
        self.assertEqual(set(re.findall(r'alertname="(\w+)"', ' '.join(expected))),
                         {rule['alert'] for rule in ALERTS})

    def test_the_admin_port_is_scraped_where_it_is_by_default(self) -> None:
        [section] = SCRAPING['scrape_configs']
        admin = SCHEMA['admin']['properties']
        self.assertEqual(section['static_configs'][0]['targets'],
                         [f'{admin["host"]["default"]}:{admin["port"]["default"]}'])

    def test_the_rules_are_loaded_where_they_are(self) -> None:
        for files in SCRAPING['rule_files'], TRIALS['rule_files']:
            self.assertEqual([(PROMETHEUS / name).exists() for name in files], [True])


def repeated(values: Iterator[Any] | Sequence[Any]) -> list[Any]:
    """What is there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


if __name__ == '__main__':
    unittest.main()
