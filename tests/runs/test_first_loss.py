"""The loss a run starts from: terms averaged over images, and what is drawn anew for comparison."""
from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.evaluation import AS_GIVEN, RANDOM_CLASSES, RANDOM_ROWS, first_losses
from mgdet_plugin.runs.held_out import HeldOut, random_rows
from tests.support.small_run import make_dataset, write_config
from tests.support.validation_loss import validation_loss


class Batchwise(nn.Module):
    """Stands for a detector: the loss of a batch is the mean of its numbers, one term a list over scales."""

    def data_preprocessor(self, batch, training):
        assert not training and not self.training
        return dict(inputs=batch, data_samples=batch)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'loss' and not torch.is_grad_enabled()
        mean = torch.tensor(inputs).mean()
        return dict(loss_a=mean, loss_b=[mean, mean], accuracy=mean)


def test_terms_are_means_over_images_of_unequal_batches():
    assert validation_loss(Batchwise(), [[1., 2., 3.], [6.]]) == dict(loss_a=3., loss_b=6., loss=9.)


def test_random_rows_leave_the_first_ones():
    state = {f'bbox_head.predict_convs.{i}.{name}': torch.ones((12, 4, 1, 1) if name == 'weight' else 12)
             for i in range(3) for name in ('weight', 'bias')}
    changed = random_rows(state, (8, 0, 12))
    kept = [int((changed[f'bbox_head.predict_convs.{i}.weight'] == 1).flatten(1).all(1).sum()) for i in range(3)]
    assert kept == [8, 0, 12]
    assert changed['bbox_head.predict_convs.0.bias'].tolist() == [1.] * 8 + [0.] * 4
    assert all((tensor == 1).all() for tensor in state.values())


def test_measures_a_checkpoint_beside_its_random_rows(tmp_path, monkeypatch):
    config = write_config(tmp_path / 'config.py', make_dataset(tmp_path / 'data'))
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    state['bbox_head.predict_convs.0.bias'][-1] = 9.  # one class far too sure: random class rows must differ
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'a.pth')
    losses = first_losses(str(config), str(tmp_path / 'a.pth'))
    assert list(losses) == [AS_GIVEN, RANDOM_CLASSES, RANDOM_ROWS]
    given, classes, rows = losses.values()
    assert given['loss_coord'] == classes['loss_coord'] != rows['loss_coord']
    assert given['loss_cls'] > classes['loss_cls']
    for terms in losses.values():
        assert terms['loss'] == pytest.approx(sum(value for name, value in terms.items() if name != 'loss'))
        assert list(terms)[-1] == 'loss'
    model = MODELS.build(cfg.model)
    model.load_state_dict(state)
    assert given == pytest.approx(validation_loss(model, Runner.build_dataloader(cfg.val_dataloader)), rel=1e-5)
    monkeypatch.setattr(HeldOut, 'measure', lambda self, state: dict(val={}))
    with pytest.raises(UserError, match='no images'):
        first_losses(str(config), str(tmp_path / 'a.pth'))
