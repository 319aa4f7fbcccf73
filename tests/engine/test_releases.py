"""What earlier builds left is resumed, evaluated and judged to the figures they had; their configs still load.

Each folder of ``tests/data/releases`` is a tiny run of one build, named by its version and the day of its code, made by
``tests/support/release.py``.
"""
from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

import mgdet_plugin.guard  # noqa: F401  as the train command does: configs of earlier builds do not name it
from mgdet_plugin.runs.run_checks import check_run
from tests.conftest import DATA
from tests.support.release import EPOCHS, LossesHook, draw

RELEASES = sorted((DATA / 'releases').iterdir())
pytestmark = pytest.mark.parametrize('release', RELEASES, ids=lambda path: path.name)


@pytest.fixture
def figures(release: Path) -> dict[str, Any]:
    """What that build measured."""
    return json.loads((release / 'figures.json').read_text())


@pytest.fixture
def work_dir(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of its run, beside its pictures."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / 'set')
    folder = tmp_path / 'run'
    folder.mkdir()
    for path in release.glob('*.pth.gz'):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    shutil.copy(release / 'guard.json', folder)
    (folder / 'last_checkpoint').write_text(str(folder / f'epoch_{EPOCHS}.pth'))
    return folder


def runner_of(release: Path, checkpoint: Path, resume: bool) -> tuple[Runner, LossesHook]:
    """Its config, run by this build."""
    cfg = Config.fromfile(release / 'config.py')
    cfg.load_from, cfg.resume = str(checkpoint), resume
    cfg.work_dir = str(checkpoint.parent)
    if not resume:
        cfg.default_hooks.checkpoint.save_best = None  # there is no training to have a best of
    cfg.experiment_name = f'{release.name}-{resume}'
    runner = Runner.from_cfg(cfg)
    seen = LossesHook()
    runner.register_hook(seen, 'LOWEST')
    return runner, seen


def test_it_is_resumed_to_the_same_figures(release: Path, figures: dict[str, Any], work_dir: Path) -> None:
    (work_dir / f'epoch_{EPOCHS}.pth').unlink()
    runner, seen = runner_of(release, work_dir / 'epoch_1.pth', resume=True)
    runner.train()
    assert seen.losses.keys() == {3, 4}
    for iteration, loss in seen.losses.items():
        assert loss == pytest.approx(figures['losses'][str(iteration)], rel=1e-4)
    assert_same(seen.metrics[EPOCHS], figures['metrics'][str(EPOCHS)])


def test_it_is_evaluated_to_the_same_figures(release: Path, figures: dict[str, Any], work_dir: Path) -> None:
    runner, _ = runner_of(release, work_dir / f'epoch_{EPOCHS}.pth', resume=False)
    runner.load_or_resume()
    metrics = runner.val()
    assert_same(metrics, figures['metrics'][str(EPOCHS)])


def assert_same(metrics: dict[str, Any], expected: dict[str, float]) -> None:
    """Every figure of that build is there and the same."""
    assert expected and expected.keys() <= metrics.keys()
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_it_is_judged_the_same(figures: dict[str, Any], work_dir: Path) -> None:
    verdicts = {each.name: each.passed for each in check_run(work_dir)}
    assert figures['verdicts'] and figures['verdicts'].items() <= verdicts.items()


def test_its_configs_load(release: Path) -> None:
    """Their names and the keys that a person wrote are still known; each builds its model."""
    for name, keys in json.loads((release / 'configs.json').read_text()).items():
        cfg = Config.fromfile(DATA.parents[1] / 'configs' / name)
        missing = [key for key in keys if key not in cfg]
        assert not missing, (name, missing)
