# The small model from nothing on the embedded digits' source domain.
_base_ = [
    '../_base_/models/multigrid_nano_scratch.py', '../_base_/datasets/digits_source.py',
    '../_base_/schedules/scratch.py'
]
model = dict(
    bbox_head=dict(
        # Pixels; a level takes objects of about two to four of its strides, so that the 3x3 block hardly leaves them.
        anchors=[[(50, 70), (60, 80), (72, 96)], [(27, 40), (33, 48), (42, 60)], [(15, 24), (19, 28), (23, 33)]]))
train_dataloader = dict(batch_size=8)
# Followed on the test set, by which no epoch is chosen; to choose one, validate on val.json.
val_dataloader = {{_base_.test_dataloader}}
val_evaluator = {{_base_.test_evaluator}}
randomness = dict(seed=0)
