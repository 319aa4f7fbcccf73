"""Keras weights in: read safely, resolve exactly, write whole or not at all.

========================  ======================================================================================
:mod:`.archive`           a path to an opened weights file: HDF5, or the one member of a ``.keras`` archive
:mod:`.safe_h5`           bytes of a stranger's HDF5 file to a listing of arrays, and to float32 once a shape is known
:mod:`.keras_layers`      that listing to Keras layers in stored order
:mod:`.layout`            layers in stored order to layers in creation order, and to tensors of the network
:mod:`.network`           the config's side: which tensors its model has
:mod:`.classes`           class names or a count; prediction rows for new classes
:mod:`.importer`          the whole import
:mod:`.report`            what was done, for a person and for a machine; writing several files as one
========================  ======================================================================================

Keras is never imported and nothing stored in a file is ever executed or built.
"""
