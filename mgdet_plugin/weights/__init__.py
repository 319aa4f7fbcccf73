"""Keras weights in and out: read safely, resolved exactly, written whole or not at all.

==========================  ====================================================================================
:mod:`.container`           a file that nobody vouches for to named arrays: :mod:`.archive` opens it, the HDF5
                            library lists it in a process of its own (:mod:`.reader_process`, :mod:`.safe_h5`)
:mod:`.mapping`             which array is which tensor: :mod:`.architecture`, :mod:`.keras_layers` and
                            :mod:`.layout`; which class is which row: :mod:`.classes`, :mod:`.class_names`
:mod:`.importer`            the whole import; :mod:`.conversion` and :mod:`.network` are its part that needs torch
:mod:`.added_classes`       a :mod:`.checkpoint` with classes added, as the import adds them to a file's
:mod:`.exporter`            a :mod:`.checkpoint` to a Keras file: :mod:`.keras_layouts`, :mod:`.keras_model`
:mod:`.verify`              a file read again, and compared with a checkpoint tensor by tensor
==========================  ====================================================================================

Nothing stored in a file is ever executed or built. Keras is imported for ``.keras`` export alone.
"""
