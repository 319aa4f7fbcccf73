"""Names of classes against those of weights, and weights that do not tell."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.prepare.faults.findings import ERROR, NOTE, WARNING
from mgdet_plugin.prepare.faults.weights_classes import name_findings, weights_findings


@pytest.mark.parametrize(('theirs', 'ours', 'severity', 'said'), [
    (('cat', 'dog'), ('cat', 'dog'), None, ''),
    (('motorcycle', 'dog'), ('motorbike', 'dog'), None, ''),  # one class by another name
    (('cat', 'dog'), ('dog', 'cat'), ERROR, 'in another place: dog (row 1, here 0), cat (row 0, here 1)'),
    (('cat', 'dog'), ('cat', 'raccoon'), WARNING, 'not known by name: raccoon'),
    (('cat', 'dog', 'cow'), ('cat', 'dog'), ERROR, 'w.pth knows 3 classes, the data have 2')])
def test_names(theirs: tuple[str, ...], ours: tuple[str, ...], severity: str | None, said: str) -> None:
    found = list(name_findings('w.pth', theirs, ours, 'my.py'))
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all(said in each.what and '--classes my.py' in each.advice for each in found)


def test_classes_that_weights_have_not_learnt_are_told() -> None:
    [finding] = name_findings('w.pth', ('cat', 'raccoon'), ('cat', 'raccoon'), 'my.py', ('raccoon', ))
    assert finding.kind == 'unlearnt_class' and finding.severity == NOTE


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    path = tmp_path / 'w.pth'
    state = dict(state_dict=dict(weight=torch.zeros(1)))
    torch.save(dict(state, meta=dict(dataset_meta=dict(classes=['dog', 'cat']))), path)
    cfg = Config(dict(load_from=str(path)))
    [finding] = weights_findings(cfg, ('cat', 'dog'))
    assert finding.kind == 'weights_classes' and finding.severity == ERROR and finding.count == 2
    torch.save(state, path)
    [finding] = weights_findings(cfg, ('cat', 'dog'))
    assert finding.kind == 'weights' and 'does not say' in finding.what
    path.unlink()
    [finding] = weights_findings(cfg, ('cat', 'dog'))
    assert finding.severity == NOTE and 'are not there' in finding.examples[0].text
    assert not list(weights_findings(Config(dict(load_from=None)), ('cat', )))
    assert not list(weights_findings(Config(dict(load_from='https://a.b/c.pth')), ('cat', )))
