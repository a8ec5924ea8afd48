"""``single.pyx`` has nothing that Python calls: ``fastloss/cython.pyx`` takes its C functions."""
