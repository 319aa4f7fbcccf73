# The small model from nothing on blood cells: under an hour on two cores.
_base_ = [
    '../_base_/models/multigrid_nano_scratch.py', '../_base_/datasets/bccd.py', '../_base_/schedules/scratch.py'
]
model = dict(
    bbox_head=dict(
        num_classes=3,
        # Pixels; a level takes objects of about two to four of its strides, so that the 3x3 block hardly leaves them.
        anchors=[[(80, 76), (104, 96), (130, 120)], [(40, 38), (50, 48), (62, 59)], [(14, 14), (20, 20), (28, 27)]]))
randomness = dict(seed=0)
