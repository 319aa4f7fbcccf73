# multigrid_nano_bccd.py with the recipe that imported weights are fine-tuned with in place of the one for training from
# nothing. It needs no weights: this is what the other recipe is measured against.
_base_ = ['../_base_/models/multigrid_nano.py', '../_base_/datasets/bccd.py', '../_base_/schedules/scratch.py']
model = dict(
    bbox_head=dict(
        num_classes=3,
        # Pixels, those of multigrid_nano_bccd.py.
        anchors=[[(80, 76), (104, 96), (130, 120)], [(40, 38), (50, 48), (62, 59)], [(14, 14), (20, 20), (28, 27)]]),
    # The thresholds of the other recipe: they are no part of what is learnt.
    test_cfg=dict(score_thr=0.005, max_per_img=100))
default_hooks = dict(class_weights=dict(type='ClassWeightsHook'))  # the recipe balances classes
randomness = dict(seed=0)
