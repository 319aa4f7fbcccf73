"""From the TensorFlow project's YAML files to a config, every key accounted for."""
