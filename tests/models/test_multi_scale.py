"""Multi-scale training by mmdet's batch resize, as docs/from_tensorflow.md has it: picture and truth move together."""
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData


def test_batches_change_their_size_and_boxes_with_them():
    init_default_scope('mmdet')
    preprocessor = MODELS.build(dict(
        type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, pad_size_divisor=32,
        batch_augments=[dict(type='BatchSyncRandomResize', random_size_range=(64, 160), interval=2, size_divisor=32)]))
    torch.manual_seed(0)
    seen = []
    for iteration in range(24):
        MessageHub.get_current_instance().update_info('iter', iteration)
        box = torch.tensor([[12.0, 24.0, 48.0, 72.0]])
        sample = DetDataSample(metainfo=dict(img_shape=(96, 96)), gt_instances=InstanceData(
            bboxes=box.clone(), labels=torch.tensor([0])))
        batch = preprocessor(dict(inputs=[torch.zeros(3, 96, 96, dtype=torch.uint8)], data_samples=[sample]),
                             training=True)
        side = batch['inputs'].shape[-1]
        assert batch['inputs'].shape[-2:] == (side, side) and side % 32 == 0 and 64 <= side <= 160
        torch.testing.assert_close(batch['data_samples'][0].gt_instances.bboxes, box * side / 96)
        seen.append(side)
    assert all(seen[each] == seen[each + 1] for each in range(0, 24, 2)) and len(set(seen)) > 2
