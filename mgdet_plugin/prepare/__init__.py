"""From a folder of pictures to a config that trains."""
