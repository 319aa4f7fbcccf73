"""Every command on the pages is there, and takes the arguments it is shown with."""
import re
import shlex
from importlib import import_module

import pytest

from mgdet_plugin.cli import COMMANDS
from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import UserError
from tests.docs.pages import PAGES, text_of

# python tools/X.py ..., mgdet X ... and, within a sentence, X.py ...
COMMAND = re.compile(r'(?:python tools/(\w+)\.py|mgdet (\w+)|(\w+)\.py) (.*)')


class Parsed(Exception):
    """The parser of a command, once it has taken the arguments."""


def shown(line):
    """Name and arguments of a command line of ours; none of any other."""
    found = COMMAND.fullmatch(line.strip())
    name = next(filter(None, found.groups()[:3]), None) if found else None
    return name and '...' not in line and (name in COMMANDS or not found[3]) and (name, found[4])


def lines_of_code():
    blocks = [block for page in PAGES for block in re.findall(r'^```\w*\n(.*?)^```', page.read_text(),
                                                              flags=re.DOTALL | re.MULTILINE)]
    return sorted({line for block in blocks for line in map(shown, block.replace('\\\n', ' ').splitlines()) if line})


def words_in_sentences():
    """A page about another project names its commands, too."""
    pages = [page for page in PAGES if page.name != 'from_tensorflow.md']
    quoted = [' '.join(each.split()) for page in pages for each in re.findall('`([^`]+)`', text_of(page))]
    return sorted({line for line in map(shown, quoted) if line and '--' in line[1]})


def parser_of(name, words, monkeypatch, parse=True):
    """The parser of a command, which has taken the words."""
    parse_args = Parser.parse_args

    def parse_only(self, args):
        if parse:
            parse_args(self, args)
        raise Parsed(self)

    monkeypatch.setattr(Parser, 'parse_args', parse_only)
    with pytest.raises(Parsed) as stopped:
        getattr(import_module(f'mgdet_plugin.cli.{COMMANDS[name]}.{name}'), f'{name}_command')(words)
    return stopped.value.args[0]


@pytest.mark.parametrize(('name', 'said'), lines_of_code())
def test_a_line_of_code_can_be_run(name, said, monkeypatch):
    assert name in COMMANDS
    words = shlex.split(said, comments=True)
    parser_of(name, [each.removeprefix('[').removesuffix(']') for each in words], monkeypatch)


@pytest.mark.parametrize(('name', 'said'), words_in_sentences())
def test_options_in_a_sentence_are_there(name, said, monkeypatch):
    assert name in COMMANDS
    parser = parser_of(name, [], monkeypatch, parse=False)
    assert set(re.findall(r'--[\w-]+', said)) <= set(parser._option_string_actions)


def test_both_kinds_are_found_and_a_wrong_line_is_noticed(monkeypatch):
    assert len(lines_of_code()) > 25 and len(words_in_sentences()) > 5
    assert shown('python tools/train.py CFG --resume') == ('train', 'CFG --resume')
    with pytest.raises(UserError, match='--resum-later'):
        parser_of('train', ['CFG', '--resum-later'], monkeypatch)
