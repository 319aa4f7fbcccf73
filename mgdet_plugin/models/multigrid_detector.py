"""The detector: a single-stage detector that refuses inputs its padding cannot match and keeps truth in its place."""
from __future__ import annotations

from collections.abc import Callable

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.truth import truth_in_input, truth_in_original

SIZE_DIVISOR = 32


@MODELS.register_module()
class MultiGridDet(SingleStageDetector):
    """mmdet's ``SingleStageDetector`` for MultiGridDet: Darknet, ``MultiGridNeck`` and ``MultiGridHead``.

    Input sides must be multiples of 32: Keras pads its stride-2 convolutions at the top and left, torch on all
    sides, and only for even sizes do the two give the same map.

    Losses take true boxes in pixels of the input, predicted samples hold them in those of the original picture; a
    sample that was letterboxed says in which of the two its own are, so a pipeline may load them before or after.

    Attributes:
        trunk: What gives the feature maps for this detector and images in place of the network; None: nothing does.
    """
    trunk: Callable[[MultiGridDet, Tensor], tuple[Tensor, ...]] | None = None

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a batch; see ``SingleStageDetector``.

        Raises:
            UserError: The samples have no boxes.
        """
        return super().loss(batch_inputs, self.labelled(batch_data_samples))

    @staticmethod
    def labelled(batch_data_samples: SampleList) -> SampleList:
        """The samples with true boxes in pixels of the input.

        Raises:
            UserError: The samples have no boxes.
        """
        if not all('bboxes' in sample.gt_instances for sample in batch_data_samples):
            raise UserError('the training pipeline loads no boxes; put '
                            "dict(type='LoadAnnotations', with_bbox=True) after LoadImageFromFile")
        return [truth_in_input(sample) for sample in batch_data_samples]

    def add_pred_to_datasample(self, data_samples: SampleList, results_list: InstanceList) -> SampleList:
        """Copies of the samples with predictions, all boxes in pixels of the original picture."""
        return super().add_pred_to_datasample([truth_in_original(sample) for sample in data_samples], results_list)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, channels, H / stride, W / stride) for the head, strides 32, 16 and 8, of RGB (B, 3, H, W).

        Raises:
            UserError: If H or W is no multiple of 32.
        """
        height, width = batch_inputs.shape[-2:]
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
            raise UserError(f'image sides must be multiples of {SIZE_DIVISOR}, got {width}x{height} (width x height); '
                            'set the Letterbox scale, or pad_size_divisor=32 in the data preprocessor')
        return super().extract_feat(batch_inputs) if self.trunk is None else self.trunk(self, batch_inputs)
