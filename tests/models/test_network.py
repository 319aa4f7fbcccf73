"""Backbone widths, neck and detector."""
import pytest
import torch
from mmdet.models.backbones import Darknet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models import MultiGridNeck, ScaledDarknet
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def nano():
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(ROOT / 'configs/mgdet_nano_source.py').model).eval()


def test_full_width_is_mmdets_own():
    ours, theirs = ScaledDarknet(widen_factor=1.0), Darknet(53)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_quarter_width():
    maps = ScaledDarknet(widen_factor=0.25)(torch.rand(1, 3, 64, 64))
    assert [tuple(each.shape) for each in maps] == [(1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2)]


def test_zero_init_residual_blocks_are_the_identity():
    backbone = ScaledDarknet(widen_factor=0.25, zero_init_residual=True, norm_eval=False)
    backbone.init_weights()
    block, x = backbone.conv_res_block3.res1.eval(), torch.randn(1, 64, 4, 4)
    torch.testing.assert_close(block(x), x)
    assert backbone.conv_res_block3.conv.norm.weight.min() == 1


@pytest.mark.parametrize('factor', [0.1, 0.0, -1])
def test_widths_must_be_whole_and_even(factor):
    with pytest.raises(UserError, match=f'got {factor}'):
        ScaledDarknet(widen_factor=factor)


def test_nano_has_the_convolutions_of_the_full_network(nano):
    convs = [module for module in nano.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 66 + 3
    assert sum(module.bias is not None for module in convs) == 3
    assert 2.7e6 < sum(parameter.numel() for parameter in nano.parameters()) < 2.9e6
    norms = [module for module in nano.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 66 and {norm.eps for norm in norms} == {1e-3}


def test_neck_joins_upsampled_channels_first():
    neck = MultiGridNeck((8, 6, 4), (4, 2, 2)).eval()
    assert neck.blocks[1].conv1.conv.in_channels == 6 + 2
    seen = []
    neck.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    fine, middle, coarse = torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4), torch.rand(1, 8, 2, 2)
    outs = neck((fine, middle, coarse))
    assert [tuple(out.shape) for out in outs] == [(1, 4, 2, 2), (1, 2, 4, 4), (1, 2, 8, 8)]
    torch.testing.assert_close(seen[0][:, 2:], middle)
    up = neck.up_convs[0](outs[0])
    torch.testing.assert_close(seen[0][:, :2], up.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(UserError, match='one entry a level'):
        MultiGridNeck((8, 6), (4, 2, 2))


def test_sides_must_be_multiples_of_32(nano):
    maps = nano.bbox_head(nano.extract_feat(torch.rand(1, 3, 64, 96)))
    assert [tuple(each.shape) for each in maps] == [(1, 18, 2, 3), (1, 18, 4, 6), (1, 18, 8, 12)]
    for height, width in ((63, 64), (64, 100)):
        with pytest.raises(UserError, match=f'got {width}x{height}'):
            nano.extract_feat(torch.rand(1, 3, height, width))
