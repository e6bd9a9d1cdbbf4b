"""An index: the features of images in a folder, which programs and scripts read and write. docs/index_format.md has the
format. Needs NumPy alone.
"""

METADATA = "metadata.json"  # the file that makes a folder an index
