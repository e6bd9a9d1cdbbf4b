"""The command lines of the scripts: a file each for evaluation, training, search and export."""
