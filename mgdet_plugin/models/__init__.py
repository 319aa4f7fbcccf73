"""Registered models and task modules of MultiGridDet, and the pure functions they are made of."""
from mgdet_plugin.models.darknet import ScaledDarknet
from mgdet_plugin.models.multigrid_assigner import MultiGridAssigner
from mgdet_plugin.models.multigrid_bbox_coder import MultiGridBBoxCoder
from mgdet_plugin.models.multigrid_detector import MultiGridDet
from mgdet_plugin.models.multigrid_head import MultiGridHead
from mgdet_plugin.models.multigrid_loss import MultiGridLoss
from mgdet_plugin.models.multigrid_neck import MultiGridNeck
from mgdet_plugin.models.multigrid_tta import MultiGridTTA

__all__ = [
    'MultiGridAssigner', 'MultiGridBBoxCoder', 'MultiGridDet', 'MultiGridHead', 'MultiGridLoss', 'MultiGridNeck',
    'MultiGridTTA', 'ScaledDarknet'
]
