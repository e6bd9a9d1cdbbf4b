"""Training places from any geotagged photos, in the GSV-Cities format, with a validation and a test part.

`python -m datasets.places` is the command. It reads the photos (`photos`), divides them by area (`parts`), groups them
by the rule of the unified dataset (`planning`), and writes all of it (`writing`).
"""
