"""The Python API behind ``import pipeline``; ``docs/api.md`` shows every function in use.

The functions do what the commands of the same names do, and raise
:class:`pipeline.errors.UserError` where a command would print one line and exit with 2. They print
nothing. Progress bars go to stderr.
"""
