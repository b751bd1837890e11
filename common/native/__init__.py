"""Kernels in C++ for the CPU, built once on the machine that runs them; the plain torch path is complete without."""
