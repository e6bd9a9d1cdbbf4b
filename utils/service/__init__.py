"""The page and the service over an index, which serve.py starts. Needs requirements-serve.txt."""
