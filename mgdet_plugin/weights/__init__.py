"""Keras weights in and out: read safely, resolved exactly, written whole or not at all.

Reading a file that nobody vouches for:

==========================  ====================================================================================
:mod:`.archive`             a path to an opened :mod:`.weights_file`: HDF5, ``.keras`` archive or Darknet's own
:mod:`.reader_process`      the HDF5 library in a process of its own, which lists the structure
:mod:`.safe_h5`             that listing, under the rules against hostile files
:mod:`.file_map`            every byte of a file accounted for; :mod:`.file_gaps` those that belong to nothing
:mod:`.stored_array`        listed arrays to float32, once their shape is known to be right
:mod:`.file_window`         a part of a file as a file; its sha256
:mod:`.zip_member`          the one member of a ``.keras`` archive
:mod:`.darknet_file`        ``darknet53.conv.74`` and its relatives
:mod:`.foreign`             what a file of another kind is
==========================  ====================================================================================

Which array is which tensor:

==========================  ====================================================================================
:mod:`.architecture`        the network as a graph: names, order and shapes
:mod:`.keras_layers`        arrays to Keras layers in stored order
:mod:`.layout`              layers to tensors of the network, where names, order and shapes agree
:mod:`.extras`              arrays that are known and not used
==========================  ====================================================================================

Import, export, proof:

==========================  ====================================================================================
:mod:`.importer`            the whole import; :mod:`.network` and :mod:`.fit` hold it against a config
:mod:`.classes`             what ``--classes`` takes; :mod:`.class_names` which class of the file a new class is
:mod:`.anchors`             what ``--anchors`` takes, and what other anchors cost
:mod:`.report`              what was done; :mod:`.statistics` of tensors
:mod:`.exporter`            a checkpoint to a Keras file; :mod:`.checkpoint`, :mod:`.keras_order`, :mod:`.h5_layouts`
:mod:`.verify`              a file against a checkpoint by another route; :mod:`.pairing`, :mod:`.comparison`
:mod:`.verify_keras`        the same by Keras itself; :mod:`.keras_model` builds the network there
==========================  ====================================================================================

Nothing stored in a file is ever executed or built. Keras is imported by the last two and for ``.keras`` export alone.
"""
