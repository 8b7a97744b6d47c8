"""The comparison as a picture: SVG with horizontal bars, for light pages and dark ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as Xml

from benchmarks.contest.figures import Row
from benchmarks.contest.job import WORKLOADS

SHOWN = ('get', 'put', 'post')
WIDTH, LEFT, RIGHT, TOP = 840, 310, 60, 56
BAR, GAP, BETWEEN = 13, 2, 12
"""The height of a bar, what is between those of a server, and between servers."""

BEYOND = ' →'
"""Stands behind a figure whose bar ends too soon."""

# Of a page's own colours nothing is known but whether they are light or dark: the bars stand out
# from both, all else is turned round.
STYLE = '''
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.own text { font-weight: bold; }
.get { fill: #2f81f7; }
.put { fill: #1f9d8a; }
.post { fill: #d9730d; }
.line { stroke: #8c959f; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } }
'''


def svg(rows: Sequence[Row], base: str, own: str) -> str:
    """The chart, the same for the same rows.

    :param rows: with ratios.
    :param base: the title of the server that all are compared with.
    :param own: the name of the one to be stressed.
    """
    height = TOP + len(rows) * _step() + 8
    root = Xml.Element('svg', {
        'xmlns': 'http://www.w3.org/2000/svg', 'viewBox': f'0 0 {WIDTH} {height}',
        'width': str(WIDTH), 'height': str(height), 'role': 'img',
        'aria-labelledby': 'title desc'})
    Xml.SubElement(root, 'title', id='title').text = f'Requests per second relative to {base}'
    Xml.SubElement(root, 'desc', id='desc').text = ' '.join(map(_sentence, rows))
    Xml.SubElement(root, 'style').text = STYLE
    _draw_legend(root, base)
    most = max(_most(rows), 1)
    scale = (WIDTH - LEFT - RIGHT) / most
    _draw_line(root, LEFT + scale, height)
    for number, row in enumerate(rows):
        group = Xml.SubElement(root, 'g', {'class': 'own'} if row.peer.name == own else {})
        _draw_row(group, row, TOP + number * _step(), most, scale)
    Xml.indent(root)
    return Xml.tostring(root, encoding='unicode') + '\n'


def _step() -> int:
    return _pile() + BETWEEN


def _pile() -> int:
    """The height of the bars of one server."""
    return len(SHOWN) * (BAR + GAP) - GAP


def _most(rows: Sequence[Row]) -> float:
    """The end of the scale: a tenth, so that a little noise does not change all bars. What does
    nothing of the job may go beyond it, or nobody would see how the others differ."""
    compared = [row for row in rows if row.peer.job] or rows
    return math.ceil(10 * max(row.ratio[name] for row in compared for name in SHOWN)) / 10


def _sentence(row: Row) -> str:
    return f'{row.peer.title}: {", ".join(_figures(row))}.'


def _figures(row: Row) -> Iterator[str]:
    return (f'{WORKLOADS[name]} {row.ratio[name]:.2f}' for name in SHOWN)


def _draw_legend(root: Xml.Element, base: str) -> None:
    _text(root, 8, 20, f'Requests per second, {base} = 1')
    for number, name in enumerate(SHOWN):
        x = LEFT + number * 110
        Xml.SubElement(root, 'rect', {
            'class': name, 'x': str(x), 'y': '32', 'width': str(BAR), 'height': str(BAR)})
        _text(root, x + BAR + 6, 43, WORKLOADS[name])


def _draw_row(group: Xml.Element, row: Row, y: int, most: float, scale: float) -> None:
    _text(group, LEFT - 10, y + _pile() // 2 + 5, row.peer.title, 'end')
    for number, name in enumerate(SHOWN):
        ratio, top = row.ratio[name], y + number * (BAR + GAP)
        width = min(ratio, most) * scale
        Xml.SubElement(group, 'rect', {
            'class': name, 'x': str(LEFT), 'y': str(top), 'width': f'{width:.1f}',
            'height': str(BAR)})
        _text(group, LEFT + width + 6, top + BAR - 2, f'{ratio:.2f}{BEYOND * (ratio > most)}')


def _draw_line(root: Xml.Element, x: float, height: int) -> None:
    Xml.SubElement(root, 'line', {
        'class': 'line', 'x1': f'{x:.1f}', 'x2': f'{x:.1f}', 'y1': str(TOP - 4),
        'y2': str(height - 8)})


def _text(parent: Xml.Element, x: float, y: int, text: str, anchor: str = 'start') -> None:
    Xml.SubElement(parent, 'text', {
        'x': f'{x:.1f}', 'y': str(y), 'text-anchor': anchor}).text = text
