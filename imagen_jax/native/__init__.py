"""Kernels in C++ for XLA's CPU backend, where its own code is far from what a processor can do.

    winograd.py   3x3 convolutions, by winograd.cc
    attention.py  attention, by attention.cc
    devices.py    kernels on a mesh of several devices
    compiling.py  compiles a source file on the machine that runs it, once, and keeps the result

They are called through XLA's foreign function interface. Each module says where its kernel applies;
elsewhere, and without a C++ compiler, networks compute the same by XLA's own means.
"""
