"""Python's way into the C++ core: the extension module `_core`, built by setup.py.

It owns the conversion of arguments and arrays; it knows no torch and no policy. `Python.h` is
included in this folder and nowhere else.
"""
