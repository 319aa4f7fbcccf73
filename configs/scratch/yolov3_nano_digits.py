# The peer of multigrid_nano_digits.py: mmdet's YOLOv3 on the same backbone, data and schedule.
_base_ = [
    '../_base_/models/yolov3_nano.py', '../_base_/datasets/digits_source.py', '../_base_/schedules/scratch.py'
]
model = dict(
    bbox_head=dict(
        # Nine clusters of the training boxes' sizes by IoU.
        anchor_generator=dict(
            base_sizes=[[(34, 50), (40, 58), (48, 66)], [(23, 31), (26, 36), (29, 43)],
                        [(16, 26), (19, 27), (20, 35)]])))
train_dataloader = dict(batch_size=8)
# Followed on the test set, by which no epoch is chosen; to choose one, validate on val.json.
val_dataloader = {{_base_.test_dataloader}}
val_evaluator = {{_base_.test_evaluator}}
randomness = dict(seed=0)
