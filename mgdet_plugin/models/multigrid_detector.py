"""The detector: a single-stage detector that refuses inputs its padding cannot match."""
from __future__ import annotations

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from torch import Tensor

from mgdet_plugin.common.errors import UserError

SIZE_DIVISOR = 32


@MODELS.register_module()
class MultiGridDet(SingleStageDetector):
    """mmdet's ``SingleStageDetector`` for MultiGridDet: Darknet, ``MultiGridNeck`` and ``MultiGridHead``.

    Input sides must be multiples of 32: Keras pads its stride-2 convolutions at the top and left, torch on all
    sides, and only for even sizes do the two give the same map.
    """

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, channels, H / stride, W / stride) for the head, strides 32, 16 and 8, of RGB (B, 3, H, W).

        Raises:
            UserError: If H or W is no multiple of 32.
        """
        height, width = batch_inputs.shape[-2:]
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
            raise UserError(f'image sides must be multiples of {SIZE_DIVISOR}, got {width}x{height} (width x height); '
                            'set the Letterbox scale, or pad_size_divisor=32 in the data preprocessor')
        return super().extract_feat(batch_inputs)
