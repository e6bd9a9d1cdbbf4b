"""Hub models: other projects' models, which torch.hub loads and which run in this pipeline.

`config` has the flags, `repository` finds the code, `isolation` keeps its modules apart from this project's, and
`describer` makes of it what the pipeline takes.
"""
