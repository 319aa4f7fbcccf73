# The peer of multigrid_nano_bccd.py: mmdet's YOLOv3 on the same backbone, data and schedule.
_base_ = [
    '../_base_/models/yolov3_nano.py', '../_base_/datasets/bccd.py', '../_base_/schedules/scratch.py'
]
model = dict(
    bbox_head=dict(
        num_classes=3,
        # Nine clusters of the training boxes' sizes by IoU, at 320 pixels.
        anchor_generator=dict(
            base_sizes=[[(59, 52), (64, 60), (108, 100)], [(50, 48), (44, 53), (54, 55)],
                        [(20, 19), (42, 44), (52, 39)]])))
randomness = dict(seed=0)
