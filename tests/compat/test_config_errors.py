"""A mistake in a config's file or in ``--cfg-options`` is one line that says where."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mgdet_plugin.cli.parser import cfg_options
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS

BASE = 'stages = [dict(epochs=1)]\nload_from = "a.pth"\noptim_wrapper = dict(lr=1)\n'


@pytest.mark.parametrize('content, said', [
    ('x = (1,\n', r"child.py, line 1, cannot be read: SyntaxError: '\(' was never closed"),
    ("_base_ = 'base.py'\nx = 1 / 0\n", 'child.py, line 2, cannot be read: ZeroDivisionError'),
    ("_base_ = 'basis.py'\n", 'child.py: _base_ names basis.py, which is not there; the nearest name is base.py'),
    ("_base_ = 'base.py'\nstages = dict(a=1)\n", 'child.py cannot be read: TypeError: stages='),
    ("_base_ = 'base.py'\nx = {{_base_.nothing}}\n", "child.py cannot be read: {{_base_...}} names 'nothing'"),
    ("custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)\n",
     "child.py: custom_imports: No module named 'no_such_module'; give modules"),
])
def test_a_file_that_is_no_config(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'child.py').write_text(content)
    with pytest.raises(UserError, match=said.replace('{', r'\{')):
        Config.fromfile(tmp_path / 'child.py')


@pytest.mark.parametrize('key, said', [
    ('stages.3.epochs', "stages is a list of 1, so the place in it is a number from 0 to 0, got '3'"),
    ('stages.head.epochs', "got 'head'"),
    ('optim_wrapper.lr.x', 'optim_wrapper.lr is 1, which has no'),
    ('optim_wraper.lr', 'no optim_wraper in the config, so nothing would read it; the nearest name is optim_wrapper'),
    ('load_form', 'the nearest name is load_from'),
    ('custom_imports.imports', 'modules are imported as the config is read'),
])
def test_an_option_that_leads_nowhere(key: str, said: str) -> None:
    cfg = Config.fromstring(BASE, '.py')
    with pytest.raises(UserError, match=re.escape(said)):
        cfg.merge_from_dict({key: 2})


def test_options_that_lead_somewhere() -> None:
    cfg = Config.fromstring(BASE, '.py')
    cfg.merge_from_dict({'stages.0.epochs': 3, 'optim_wrapper.more.x': 4, 'of_my_own': 5, 'val_dataloader': None})
    assert (cfg.stages[0].epochs, cfg.optim_wrapper.more.x, cfg.of_my_own) == (3, 4, 5)


def test_brackets_that_do_not_match() -> None:
    with pytest.raises(UserError, match='Imbalanced brackets'):
        cfg_options(['a=[1,2'])


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_the_text_of_a_config_says_what_the_config_says(path: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(path)
    cfg.dump(tmp_path / 'again.py')
    assert Config.fromfile(tmp_path / 'again.py').to_dict() == cfg.to_dict()
    assert (tmp_path / 'again.py').read_text() == cfg.pretty_text


def test_a_value_that_no_text_stands_for_is_refused() -> None:
    with pytest.raises(SyntaxError, match='a value that cannot be written: a = <object object'):
        _ = Config(dict(a=object())).pretty_text
