"""A stack names its files as they are imported, and is never endless."""

from __future__ import annotations

import asyncio
import sys
import unittest
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from addrservice.utils import frames
from addrservice.utils.frames import MAX_LINES

ELSEWHERE = compile('def f(): pass', '/secret/folder/file.py', 'exec')
NOWHERE = compile('def f(): pass', '<string>', 'exec')


class FramesTest(unittest.TestCase):
    def test_a_place_has_the_path_from_where_it_is_imported(self) -> None:
        for function, expected in {
            frames.place: 'addrservice/utils/frames.py:7 place',
            yaml.YAMLObject.to_yaml: 'yaml/__init__.py:7 YAMLObject.to_yaml',
            asyncio.Queue.put: 'asyncio/queues.py:7 Queue.put',
        }.items():
            with self.subTest(expected=expected):
                self.assertEqual(frames.place(function.__code__, 7), expected)

    def test_a_file_from_elsewhere_is_its_name_alone(self) -> None:
        self.assertEqual(frames.place(ELSEWHERE, 3), 'file.py:3 <module>')

    def test_a_place_without_a_line_is_where_the_function_begins(self) -> None:
        code = frames.place.__code__
        self.assertEqual(frames.place(code, None), frames.place(code, code.co_firstlineno))

    def test_only_what_is_neither_python_nor_installed_is_ours(self) -> None:
        self.assertTrue(frames.is_library(yaml.load.__code__.co_filename))
        self.assertTrue(frames.is_library(asyncio.run.__code__.co_filename))
        self.assertTrue(frames.is_library(NOWHERE.co_filename))
        self.assertFalse(frames.is_library(frames.place.__code__.co_filename))
        self.assertFalse(frames.is_library(ELSEWHERE.co_filename))

    def test_a_long_stack_loses_its_middle_and_says_how_much(self) -> None:
        lines = [str(number) for number in range(MAX_LINES + 1)]
        self.assertEqual(frames.shorten(lines[:-1]), lines[:-1])
        short = frames.shorten(lines)
        self.assertEqual(len(short), MAX_LINES)
        self.assertEqual((short[0], short[-1]), (lines[0], lines[-1]))
        self.assertIn('… 2 more …', short)


if __name__ == '__main__':
    unittest.main()
