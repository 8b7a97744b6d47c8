"""What it costs to validate an entry: the object model beside jsonschema. Run it by hand.

One row is one document, one column one way; figures are microseconds, the median of rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jsonschema

from addrservice import ROOT_DIR
from addrservice.datamodel import AddressEntry
from data import address_data_suite

ROUNDS = 11
ROUND_SECONDS = 0.05

ADDRESS = {
    'kind': 'home', 'building_name': 'Example House', 'unit_number': 7, 'street_number': '221B',
    'street_name': 'Example Road', 'locality': 'Sampleganj', 'city': 'Exampleville',
    'province': 'Exampleshire', 'pincode': '00144', 'country': 'India'}
PHONE = {'kind': 'work', 'country_code': 91, 'area_code': '011', 'local_number': 5550100}
EMAIL = {'kind': 'work', 'email': 'asha@office.example.org'}
TYPICAL = {
    'full_name': 'Asha Example', 'addresses': [ADDRESS, ADDRESS], 'phone_numbers': [PHONE, PHONE],
    'fax_numbers': [PHONE], 'emails': [EMAIL, EMAIL]}


def microseconds(function: Callable[[], object]) -> float:
    """Time one call: the median of ROUNDS, each of about ROUND_SECONDS."""
    timer = timeit.Timer(function)
    calls = max(1, round(ROUND_SECONDS / min(timer.repeat(3, 1))))
    return statistics.median(timer.repeat(ROUNDS, calls)) / calls * 1e6


def ways(document: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Name what is measured for one document."""
    schema = json.loads((ROOT_DIR / 'schema/address-book-v1.0.json').read_text(encoding='utf-8'))
    validator = jsonschema.Draft202012Validator(schema)
    entry = AddressEntry.from_api_dm(document)
    return {
        'from_api_dm': lambda: AddressEntry.from_api_dm(document),
        'to_api_dm': entry.to_api_dm,
        'validator, kept': lambda: validator.validate(document),
        'jsonschema.validate': lambda: jsonschema.validate(document, schema),
    }


def main() -> None:
    documents = {'typical': TYPICAL, **address_data_suite()}
    print('µs'.ljust(10), *(way.rjust(20) for way in ways(TYPICAL)))
    for name, document in documents.items():
        figures = (microseconds(way) for way in ways(document).values())
        print(name.ljust(10), *(f'{figure:20.1f}' for figure in figures))


if __name__ == '__main__':
    main()
