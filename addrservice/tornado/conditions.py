"""Entity tags, and the conditions that a request puts on them (RFC 9110 sections 8.8.3 and 13)."""

from __future__ import annotations

import re
from typing import NamedTuple

import tornado.web
from tornado import httputil
from tornado.web import HTTPError

from addrservice.tornado.messages import Headers

GZIP_SUFFIX = '-gzip'
"""Tells the tag of a compressed answer from that of the plain one. Both are of
one version, so either may stand in a condition."""

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_EMPTY = r'[ \t]*(?:,[ \t]*)*'  # list elements may be empty (section 5.6.1.2)
_LIST = re.compile(rf'{_EMPTY}{_TAG}(?:[ \t]*,{_EMPTY}{_TAG})*{_EMPTY}')
_PART = re.compile(r'(W/)?"([^"]*)"')


def etag_of(version: str) -> str:
    """The strong entity tag of a version."""
    return f'"{version}"'


def compressed_etag(etag: str) -> str:
    """The tag of the same version, compressed."""
    return f'{etag[:-1]}{GZIP_SUFFIX}"'


def is_compressed(headers: httputil.HTTPHeaders, size: int) -> bool:
    """Whether the client of a request gets JSON of that size compressed."""
    return size >= TaggingGZip.MIN_LENGTH and 'gzip' in headers.get('Accept-Encoding', '')


class Tags(NamedTuple):
    """What a condition lists: versions by their tags; None stands for any, ``*``."""

    strong: frozenset[str] | None
    weak: frozenset[str] = frozenset()

    def match_strongly(self, version: str) -> bool:
        """Whether the version is listed, as ``If-Match`` compares (section 8.8.3.2)."""
        return self.strong is None or version in self.strong

    def match_weakly(self, version: str) -> bool:
        """Whether the version is listed, as ``If-None-Match`` compares."""
        return self.match_strongly(version) or version in self.weak


ANY = Tags(None)


class Conditions(NamedTuple):
    """The preconditions of a request; None stands for a header that is not there."""

    if_match: Tags | None
    if_none_match: Tags | None

    @classmethod
    def of(cls, headers: Headers) -> Conditions:
        """
        :raises HTTPError: 400, a header holds something else than entity tags.
        """
        if _CONDITIONAL.isdisjoint(headers.fields):
            return NO_CONDITIONS
        return cls(read_tags(headers, 'If-Match'), read_tags(headers, 'If-None-Match'))

    def are_met_by_any(self) -> bool:
        """Whether a change may be made to any version that there is."""
        return self.if_match in (None, ANY) and self.if_none_match is None

    def ask_to_create(self) -> bool:
        """Whether a change shall be made only where nothing is yet (section 13.1.2)."""
        return self.if_match is None and self.if_none_match == ANY

    def allow_read(self, version: str) -> bool:
        """Whether that version may be answered; if only ``If-None-Match``
        forbids it, the answer is 304 instead."""
        return self.if_match is None or self.if_match.match_strongly(version)

    def allow_change(self, version: str) -> bool:
        """Whether that version may be replaced or removed."""
        forbidden = self.if_none_match is not None and self.if_none_match.match_weakly(version)
        return self.allow_read(version) and not forbidden


NO_CONDITIONS = Conditions(None, None)
_CONDITIONAL = frozenset(('If-Match', 'If-None-Match'))


def read_tags(headers: httputil.HTTPHeaders, name: str) -> Tags | None:
    """The entity tags in a header, if it is there.

    :raises HTTPError: 400, it holds something else.
    """
    if name not in headers:
        return None
    value = headers[name]
    if value.strip(' \t') == '*':
        return ANY
    if not _LIST.fullmatch(value):
        raise HTTPError(400, f'{name}: is neither * nor a list of entity tags in quotes')
    parts = [(is_weak, tag.removesuffix(GZIP_SUFFIX)) for is_weak, tag in _PART.findall(value)]
    return Tags(frozenset(tag for is_weak, tag in parts if not is_weak),
                frozenset(tag for is_weak, tag in parts if is_weak))


class TaggingGZip(tornado.web.GZipContentEncoding):
    """Compresses answers where clients accept it. Compressed, an answer is
    another sequence of bytes, so its tag must differ (section 8.8.3.3)."""

    CONTENT_TYPES = {*tornado.web.GZipContentEncoding.CONTENT_TYPES, 'application/openmetrics-text'}

    def transform_first_chunk(self, status_code: int, headers: httputil.HTTPHeaders, chunk: bytes,
                              finishing: bool) -> tuple[int, httputil.HTTPHeaders, bytes]:
        status_code, headers, chunk = super().transform_first_chunk(
            status_code, headers, chunk, finishing)
        if 'Content-Encoding' in headers and 'Etag' in headers:
            headers['Etag'] = compressed_etag(headers['Etag'])
        return status_code, headers, chunk


class Varying(tornado.web.OutputTransform):
    """Says that other clients may get an answer compressed."""

    def transform_first_chunk(self, status_code: int, headers: httputil.HTTPHeaders, chunk: bytes,
                              finishing: bool) -> tuple[int, httputil.HTTPHeaders, bytes]:
        varies = headers.get('Vary')
        headers['Vary'] = f'{varies}, Accept-Encoding' if varies else 'Accept-Encoding'
        return status_code, headers, chunk


def compression(request: httputil.HTTPServerRequest) -> tornado.web.OutputTransform:
    """What is done to the answer to a request: one of Tornado's transforms."""
    return TaggingGZip(request) if 'Accept-Encoding' in request.headers else _VARYING


_VARYING = Varying(None)  # type: ignore[arg-type]  # which asks for a request, and does without
